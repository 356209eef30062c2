"""Key pairs, keys derived from them, and sealed shares: thin functions over `cryptography`.

X25519 makes a secret that two clients share; HKDF-SHA256 makes from it keys that are bound to the
round, the two clients, their public keys and the use; ChaCha20-Poly1305 seals shares.
"""

from __future__ import annotations

import os
import struct

from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from fedopt.errors import SecureAggregationError

KEY_NBYTES = 32
NONCE_NBYTES = 12
TAG_NBYTES = 16

_LABEL = b"fedopt secure aggregation 1 "


def new_secret() -> bytes:
    """Return 32 random bytes of the system; a private key or a seed."""
    return os.urandom(KEY_NBYTES)


def public_key(private: bytes) -> bytes:
    """Return the public key of a private key, 32 bytes each."""
    return X25519PrivateKey.from_private_bytes(private).public_key().public_bytes_raw()


def pair_key(private: bytes, theirs: bytes, digest: bytes) -> bytes:
    """Return the key of the mask of two clients, the same on both sides.

    Args:
        private: own private masking key.
        theirs: the other's public masking key.
        digest: of the agreement.

    Raises:
        SecureAggregationError: the other's key is of no use.
    """
    both = b"".join(sorted((public_key(private), theirs)))
    return _derive(_exchange(private, theirs), b"pair mask", digest + both)


def self_key(seed: bytes, digest: bytes) -> bytes:
    """Return the key of a client's own mask.

    Args:
        seed: its random seed, b in the paper.
        digest: of the agreement.
    """
    return _derive(seed, b"self mask", digest)


def commitment(seed: bytes, digest: bytes) -> bytes:
    """Return 32 bytes by which the server knows the seed again, and which tell nothing about it."""
    return _derive(seed, b"commitment", digest)


def seal(
    plaintext: bytes, private: bytes, theirs: bytes, digest: bytes, sender: int, receiver: int
) -> bytes:
    """Return a text encrypted for one receiver of one round: nonce, ciphertext, tag.

    Args:
        plaintext: any bytes.
        private: the sender's private encryption key.
        theirs: the receiver's public encryption key.
        digest: of the agreement.
        sender: client id.
        receiver: client id.
    """
    key = _seal_key(private, public_key(private), theirs, theirs, digest)
    nonce = os.urandom(NONCE_NBYTES)  # so that even a session begun again from a copy is safe
    associated = _associated(digest, sender, receiver)
    return nonce + ChaCha20Poly1305(key).encrypt(nonce, plaintext, associated)


def unseal(
    sealed: bytes, private: bytes, theirs: bytes, digest: bytes, sender: int, receiver: int
) -> bytes:
    """Return what `seal` got, with the receiver's private and the sender's public key.

    Raises:
        SecureAggregationError: altered, or sealed for another receiver, by another sender, in
            another round.
    """
    key = _seal_key(private, theirs, public_key(private), theirs, digest)
    nonce, ciphertext = sealed[:NONCE_NBYTES], sealed[NONCE_NBYTES:]
    associated = _associated(digest, sender, receiver)
    try:
        return ChaCha20Poly1305(key).decrypt(nonce, ciphertext, associated)
    except (InvalidTag, ValueError):
        raise SecureAggregationError(
            f"client {receiver} cannot open the shares of client {sender}: they were altered, or "
            "are of another round, sender or receiver."
        ) from None


def _seal_key(
    private: bytes, sender_public: bytes, receiver_public: bytes, theirs: bytes, digest: bytes
) -> bytes:
    context = digest + sender_public + receiver_public
    return _derive(_exchange(private, theirs), b"shares", context)


def _associated(digest: bytes, sender: int, receiver: int) -> bytes:
    return _LABEL + digest + struct.pack("<QQ", sender, receiver)


def _exchange(private: bytes, theirs: bytes) -> bytes:
    try:
        public = X25519PublicKey.from_public_bytes(theirs)
        return X25519PrivateKey.from_private_bytes(private).exchange(public)
    except ValueError:  # of small order, or of another length
        raise SecureAggregationError("a public key is not a key of X25519.") from None


def _derive(secret: bytes, use: bytes, context: bytes) -> bytes:
    info = _LABEL + use + b"\0" + context
    return HKDF(algorithm=SHA256(), length=KEY_NBYTES, salt=None, info=info).derive(secret)
