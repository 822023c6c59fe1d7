"""Specification, section "Encoding": what is hashed and signed, and the strict way back from it."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

from blake3 import blake3

Value = str | int | bytes | Sequence["Value"]


class MalformedError(Exception):
    """Bytes that are not the one encoding of anything."""


def field(x: Value) -> bytes:
    """One field: its length as u32, then the bytes; an integer has eight, a list begins with its count."""
    if isinstance(x, str):
        data = x.encode("ascii")
    elif isinstance(x, int):
        data = x.to_bytes(8, "big")
    elif isinstance(x, bytes):
        data = x
    else:
        data = len(x).to_bytes(4, "big") + b"".join(field(item) for item in x)
    return len(data).to_bytes(4, "big") + data


def encode(purpose: str, *fields: Value) -> bytes:
    """The fields after the label of their purpose."""
    return b"".join(field(x) for x in (f"secagg/2 {purpose}", *fields))


def H(purpose: str, *fields: Value) -> bytes:  # noqa: N802 - the specification's name
    """SHA-256 of the encoding: 32 bytes."""
    return hashlib.sha256(encode(purpose, *fields)).digest()


def HV(purpose: str, vector: bytes) -> bytes:  # noqa: N802 - the specification's name
    """BLAKE3 of the encoding, for vectors: 32 bytes."""
    return blake3(encode(purpose, vector)).digest()


def split(data: bytes) -> list[bytes]:
    """The fields that lie one after the other in `data`, which they fill.

    Raises:
        MalformedError: a length that does not fit.
    """
    fields, at = [], 0
    while at < len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if at + 4 + size > len(data):
            raise MalformedError("a field is longer than what holds it")
        fields.append(data[at + 4 : at + 4 + size])
        at += 4 + size
    return fields


def items(data: bytes) -> list[bytes]:
    """The items of a list field.

    Raises:
        MalformedError: the count is not that of the items.
    """
    found = split(data[4:])
    if len(data) < 4 or len(found) != int.from_bytes(data[:4], "big"):
        raise MalformedError("a list does not hold as many items as it says")
    return found


def root_over(leaves: Sequence[bytes]) -> bytes:
    """Root of the tree over a dealer's bundles (RFC 9162, section 2.1)."""
    if len(leaves) == 1:
        return leaves[0]
    half = 2 ** ((len(leaves) - 1).bit_length() - 1)
    return H("bundle-node", root_over(leaves[:half]), root_over(leaves[half:]))
