"""Canonical encoding of everything that is hashed, signed or sealed.

Protobuf bytes are not canonical and never enter a hash. Specification: docs/spec.md, section "Encoding".
"""

import hashlib
from collections.abc import Sequence
from typing import TypeAlias

VERSION = 1
HASH_BYTES = 32

Field: TypeAlias = "bytes | str | int | Sequence[Field]"


def encode(purpose: str, *fields: Field) -> bytes:
    """The label of `purpose` under this protocol version, then every field, each length-prefixed: injective.

    A field is u32 big-endian length and bytes; text is ASCII, an integer is u64 big-endian, a sequence is its u32
    count and then its encoded items.

    Raises:
        ValueError: text outside ASCII, or an integer outside 0..2^64-1 (our mistake; peers' input is checked before).
    """
    return b"".join([_sized(f"secagg/{VERSION} {purpose}".encode("ascii")), *(_field(field) for field in fields)])


def digest(purpose: str, *fields: Field) -> bytes:
    """SHA-256 over `encode(purpose, *fields)`: 32 bytes."""
    return hashlib.sha256(encode(purpose, *fields)).digest()


def _sized(data: bytes) -> bytes:
    return len(data).to_bytes(4, "big") + data


def _field(field: Field) -> bytes:
    if isinstance(field, (bytes, bytearray, memoryview)):
        return _sized(bytes(field))
    if isinstance(field, str):
        return _sized(field.encode("ascii"))
    if isinstance(field, int):
        if not 0 <= field < 2**64:
            raise ValueError("an encoded integer is 0 to 2^64 - 1")
        return _sized(field.to_bytes(8, "big"))
    return _sized(len(field).to_bytes(4, "big") + b"".join(_field(item) for item in field))
