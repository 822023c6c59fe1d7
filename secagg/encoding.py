"""Canonical encoding of everything that is hashed, signed or sealed.

Protobuf bytes are not canonical and never enter a hash. Specification: docs/spec.md, section "Encoding".
"""

import hashlib
from collections.abc import Mapping, Sequence
from functools import cache, lru_cache
from typing import TypeAlias

from blake3 import blake3

VERSION = 2
HASH_BYTES = 32

Buffer: TypeAlias = "bytes | bytearray | memoryview"
"""Bytes, maybe somebody else's: vectors are passed on without being copied."""

VectorHash: TypeAlias = blake3
"""A hash that takes a vector in pieces: `update` with each, `digest` at the end."""

_FEW = 2048
_SIZES = [size.to_bytes(4, "big") for size in range(_FEW)]
"""The length prefixes of short fields, made once: a round encodes thousands of hashes, keys and ids."""

Field: TypeAlias = "Buffer | str | int | Sequence[Field]"


def encode(purpose: str, *fields: Field) -> bytes:
    """The bytes that are signed, hashed or sealed for a purpose; other purposes or fields never give the same bytes.

    First comes the label, which names this protocol version and the purpose, then every field. A field is its length
    (u32 big-endian) and its bytes: text as ASCII, an integer as u64 big-endian, a sequence as its count (u32) followed
    by its items, each encoded as a field.

    Raises:
        ValueError: text outside ASCII, or an integer outside 0..2^64-1 (our mistake; peers' input is checked before).
    """
    pieces: list[Buffer] = [_label(purpose)]
    _append(pieces, fields)
    return b"".join(pieces)


def split_fields(data: Buffer) -> list[memoryview]:
    """The length-prefixed fields that follow one another: what `encode` made of each, the label first.

    Of a field that is a sequence: what comes behind its count of four bytes, which is not compared.

    Raises:
        ValueError: a field is longer than what is there.
    """
    view, found, start = memoryview(data), list[memoryview](), 0
    while start < len(view):
        stop = start + 4 + int.from_bytes(view[start : start + 4], "big")
        if stop > len(view) or start + 4 > len(view):
            raise ValueError("a field is longer than its record")
        found.append(view[start + 4 : stop])
        start = stop
    return found


def digest(purpose: str, *fields: Field) -> bytes:
    """H: SHA-256 over `encode(purpose, *fields)`, 32 bytes."""
    return hashlib.sha256(encode(purpose, *fields)).digest()


def size_of_field(size: int) -> bytes:
    """What precedes a field of so many bytes."""
    return _SIZES[size] if size < _FEW else size.to_bytes(4, "big")


@lru_cache(maxsize=64)
def begun(purpose: str, *fields: bytes | str) -> bytes:
    """`encode`, kept, of what many statements begin with; what follows is joined to it, each field with its size.

    Not for secrets: it remembers what it was given.
    """
    return encode(purpose, *fields)


@lru_cache(maxsize=1024)
def text_field(text: str) -> bytes:
    """A text as `encode` spells it: for who joins the encoding of many statements that differ in little."""
    data = text.encode("ascii")
    return size_of_field(len(data)) + data


def named_field(values: Mapping[str, bytes]) -> bytes:
    """A sequence of [text, value] pairs as the bytes that `encode` makes of it: a server meets n^2 released shares."""
    pieces = [size_of_field(len(values))]
    for text, value in values.items():
        pair = _SIZES[2] + text_field(text) + size_of_field(len(value)) + value
        pieces += (size_of_field(len(pair)), pair)
    return b"".join(pieces)


def vector_digest(purpose: str, vector: Buffer) -> bytes:
    """HV: BLAKE3 over `encode(purpose, vector)`, 32 bytes; the vector is hashed where it lies.

    A server hashes every masked input: that takes a third of SHA-256's time (docs/adr/0006).
    """
    return vector_hash(purpose, len(vector)).update(vector).digest()


def vector_hash(purpose: str, size: int) -> VectorHash:
    """Begins `vector_digest` of a vector of `size` bytes, below 2^32, that then comes in pieces."""
    return blake3(encode(purpose) + size_of_field(size))


def _append(pieces: list[Buffer], fields: Sequence[Field]) -> None:
    for field in fields:  # tens of thousands a round, nearly all of them short bytes and ids
        if type(field) is bytes and (size := len(field)) < _FEW:
            pieces += (_SIZES[size], field)
        elif isinstance(field, str):
            pieces.append(text_field(field))
        else:
            data = _bytes_of(field)
            pieces += (size_of_field(len(data)), data)


def _bytes_of(field: Field) -> Buffer:
    if isinstance(field, int):
        if not 0 <= field < 2**64:
            raise ValueError("an encoded integer is 0 to 2^64 - 1")
        return field.to_bytes(8, "big")
    if isinstance(field, (bytes, bytearray, memoryview)):
        return field
    items: list[Buffer] = [size_of_field(len(field))]
    _append(items, field)
    return b"".join(items)


@cache
def _label(purpose: str) -> bytes:
    label = f"secagg/{VERSION} {purpose}".encode("ascii")
    return len(label).to_bytes(4, "big") + label
