"""Specification, sections "Primitives" and "Keys and seeds", with the libraries that the product does not use for it.

| need | the product | here |
|---|---|---|
| Ed25519 | PyNaCl | cryptography (OpenSSL) |
| X25519 | cryptography | PyNaCl (libsodium) |
| mask generator | AES-256-CTR or GCM of cryptography | AES-256-GCM of libsodium, by chunks as the text says |
| ML-KEM-768 keys | cryptography | `mlkem`, plain Python after FIPS 203 |
| HKDF | cryptography | two lines of `hmac` |
| SHA-256, BLAKE3 | hashlib, blake3 | the same; there is no second BLAKE3 for Python |
"""

from __future__ import annotations

import hashlib
import hmac
from collections.abc import Mapping

import numpy as np
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from nacl import bindings

from audits.verifier import mlkem
from audits.verifier.encoding import encode

P = 2**256 + 297  # of the secret sharing
CHUNK = 2**18
PRIME = 2**255 - 19  # of Curve25519
NO_SECRET = b""


def verifies(key: bytes, signed: bytes, signature: bytes) -> bool:
    """Whether an Ed25519 signature is one of this key on these bytes."""
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, signed)
    except (InvalidSignature, ValueError):
        return False
    return True


def hkdf(salt: bytes, ikm: bytes, info: bytes) -> bytes:
    """HKDF-SHA256 (RFC 5869), 32 bytes."""
    return hmac.digest(hmac.digest(salt or bytes(32), ikm, "sha256"), info + b"\x01", "sha256")


def words(seed: bytes, count: int, width: int) -> np.ndarray:
    """`count` words of `width` bytes off the keystream of a seed, as uint64 of shape (count,)."""
    size = count * width
    stream = b"".join(
        bindings.crypto_aead_aes256gcm_encrypt(zeros, None, i.to_bytes(12, "big"), seed)[: len(zeros)]
        for i, zeros in enumerate(bytes(min(CHUNK, size - start)) for start in range(0, size, CHUNK))
    )
    return np.frombuffer(stream, dtype=f"<u{width}").astype(np.uint64)


def combine(shares: Mapping[int, bytes]) -> int:
    """The secret that these shares {x: 33 bytes} determine, by Lagrange interpolation at 0."""
    total = 0
    for x, value in shares.items():
        weight = int.from_bytes(value, "big")
        for other in shares.keys() - {x}:
            weight = weight * other * pow(other - x, -1, P) % P
        total += weight
    return total % P


def exchange(private: bytes, public: bytes) -> bytes:
    """X25519 shared secret; 32 zero bytes where the point is of small order."""
    try:
        return bindings.crypto_scalarmult(private, public)
    except Exception:  # libsodium refuses the all-zero result itself
        return bytes(32)


def usable_point(key: bytes) -> bool:
    """T-06: a canonical u-coordinate (below the prime, unused bit clear) that is no point of small order."""
    if len(key) != 32 or int.from_bytes(key, "little") >= PRIME:
        return False
    return exchange(bytes(31) + b"\x40", key) != bytes(32)


def usable_key(key: bytes, suite: str) -> bool:
    """T-06: a KEM key of the suite: X-Wing (ML-KEM-768, then X25519) or X25519."""
    if suite == "X25519":
        return usable_point(key)
    return len(key) == 1216 and mlkem.usable(key[:1184]) and usable_point(key[1184:])


def keys_of(s: bytes, suite: str) -> tuple[bytes, bytes, bytes]:
    """What follows from a mask key s_u: private X25519 key, its public key, the mask KEM key (empty with X25519)."""
    private = hkdf(NO_SECRET, s, encode("mask/dh"))
    public = bindings.crypto_scalarmult_base(private)
    if suite == "X25519":
        return private, public, b""
    return private, public, xwing_key(hkdf(NO_SECRET, s, encode("mask/kem")))


def xwing_key(seed: bytes) -> bytes:
    """The public X-Wing key of a seed of 32 bytes: 1216 bytes."""
    expanded = hashlib.shake_256(seed).digest(96)
    return mlkem.public_key(expanded[:32]) + bindings.crypto_scalarmult_base(expanded[64:])


def pair_secret(s: bytes, recipient: str, suite: str) -> bytes:
    """r_uv, derived by the dealer of the pair from its mask key; empty with X25519."""
    return hkdf(NO_SECRET, s, encode("pair", recipient)) if suite != "X25519" else b""
