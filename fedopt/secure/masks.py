"""Masks: vectors of words that look random without their key, added to and taken from a vector.

A mask is the key stream of ChaCha20 under a key that is used for nothing else, as 64-bit words in
little-endian order. Streams run beside each other, piece after piece, so that memory does not grow
with the number of masks, and a piece stays in the cache while all of them are added to it.

Source: RFC 8439 (ChaCha20).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from fedopt.secure.fixed_point import PIECE, Words

TOGETHER = 256
"""Streams that are open at the same time."""
_NONCE = bytes(16)  # block counter and nonce: each key makes one stream
_ZEROS = bytes(8 * PIECE)


@dataclass(frozen=True)
class Mask:
    """A mask and what to do with it.

    Args:
        key: 32 bytes.
        sign: +1 adds it, -1 takes it away.
    """

    key: bytes
    sign: int


def apply(words: Words, masks: Sequence[Mask]) -> None:
    """Add masks to a vector or take them away, modulo 2^64, in place.

    Args:
        words: `[L]`, contiguous.
        masks: any number.
    """
    buffer = bytearray(8 * PIECE)
    stream = np.frombuffer(buffer, dtype="<u8")
    for batch in range(0, len(masks), TOGETHER):
        together = [
            (Cipher(algorithms.ChaCha20(mask.key, _NONCE), mode=None).encryptor(), mask.sign)
            for mask in masks[batch : batch + TOGETHER]
        ]
        for first in range(0, len(words), PIECE):
            piece = words[first : first + PIECE]
            count = len(piece)
            zeros = memoryview(_ZEROS)[: 8 * count]
            for encryptor, sign in together:
                encryptor.update_into(zeros, buffer)
                if sign > 0:
                    np.add(piece, stream[:count], out=piece)
                else:
                    np.subtract(piece, stream[:count], out=piece)
