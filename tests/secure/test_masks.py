"""Masks: the stream of RFC 8439, whatever the pieces; adding and taking away are exact."""

from __future__ import annotations

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from hypothesis import given, settings
from hypothesis import strategies as st

from fedopt.secure import masks
from fedopt.secure.fixed_point import PIECE
from fedopt.secure.masks import Mask, apply


def stream(key: bytes, length: int) -> np.ndarray[tuple[int], np.dtype[np.uint64]]:
    encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * length)), dtype="<u8")


def test_the_stream_is_that_of_the_standard() -> None:
    """RFC 8439, appendix A.1, test vectors 1 and 2: key and nonce zero, blocks 0 and 1."""
    words = np.zeros(16, dtype=np.uint64)
    apply(words, [Mask(bytes(32), 1)])
    assert words.tobytes().hex() == (
        "76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7"
        "da41597c5157488d7724e03fb8d84a376a43b8f41518a11cc387b669b2ee6586"
        "9f07e7be5551387a98ba977c732d080dcb0f29a048e3656912c6533e32ee7aed"
        "29b721769ce64e43d57133b074d839d531ed1f28510afb45ace10a1f4b794d6f"
    )


@pytest.mark.parametrize("length", [1, 7, 8, 9, PIECE - 1, PIECE, PIECE + 1, 2 * PIECE + 3])
def test_pieces_do_not_show(length: int) -> None:
    key = bytes(range(32))
    words = np.arange(length, dtype=np.uint64)
    apply(words, [Mask(key, 1)])
    assert np.array_equal(words, np.arange(length, dtype=np.uint64) + stream(key, length))
    apply(words, [Mask(key, -1)])
    assert np.array_equal(words, np.arange(length, dtype=np.uint64))


@given(st.lists(st.tuples(st.binary(min_size=32, max_size=32), st.sampled_from([-1, 1]))))
@settings(max_examples=30)
def test_batches_of_masks_do_not_show(drawn: list[tuple[bytes, int]]) -> None:
    applied = [Mask(key, sign) for key, sign in drawn]
    expected = np.zeros(5, dtype=np.uint64)
    for mask in applied:
        expected = (
            expected + stream(mask.key, 5) if mask.sign > 0 else expected - stream(mask.key, 5)
        )
    words = np.zeros(5, dtype=np.uint64)
    together, masks.TOGETHER = masks.TOGETHER, 3
    try:
        apply(words, applied)
    finally:
        masks.TOGETHER = together
    assert np.array_equal(words, expected)
    apply(words, [Mask(mask.key, -mask.sign) for mask in reversed(applied)])
    assert not words.any()
