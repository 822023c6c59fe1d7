"""Specification, section "Transcripts": one file into its records, each with its one encoding (T-20)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

from audits.verifier.encoding import MalformedError, encode, items, split
from audits.verifier.primitives import P

LARGEST = 2**20
FORMAT = 2

# The fields of each kind, in their order: `bytes` with the sizes that are allowed, or a list of the same.
HASH, NUMBER, ID, NAME, ANY = "hash", "number", "id", "name", "any"
SIGNATURE = ANY  # of whatever length: T-04 says whether it is one

CLAIM = (HASH, NAME, NUMBER, NUMBER, *[HASH] * 6, [(ID, SIGNATURE)])
HEADER = (HASH, HASH, ID, HASH, HASH, SIGNATURE)
BUNDLE = (ANY, ANY, ANY, ANY, ANY)  # T-08
KINDS: dict[str, tuple[Any, ...]] = {
    "header": HEADER,
    "advertisement": (HASH, ID, ANY, ANY, ANY, "nonce", HASH, [CLAIM], SIGNATURE),
    "shares": (HEADER, [BUNDLE]),
    "report": (HASH, HASH, HASH, ID, "id or none", SIGNATURE),
    "input": (HASH, HASH, HASH, HASH, ID, HASH, SIGNATURE),
    "block": (ANY,),
    "attestation": (HASH, ID, SIGNATURE),
    "release": (HASH, HASH, ID, HASH, [(ID, "share")], [(ID, "share")], [(ID, HASH)], SIGNATURE),
    "pair": (ID, ID, HASH),
    "result": (NAME, NUMBER, HASH, HASH, HASH, HASH, HASH, SIGNATURE),
    "confirmation": (HASH, ID, SIGNATURE),
    "closing": (HASH, SIGNATURE),
}
SIZES = {
    HASH: {32},
    NUMBER: {8},
    "nonce": {16},
    "share": {33},
}


class Record(NamedTuple):
    """One record: its place in the file from 0, its kind, its bytes, its fields in the order of the text."""

    place: int
    kind: str
    data: bytes
    fields: list[Any]


@dataclass
class Cut:
    """What the cutting of a file into records came to."""

    rest: int = 0  # bytes at the end that are no record


def cut(data: bytes, result: Cut) -> Iterator[bytes]:
    """The records' bytes, each preceded by its length as u32. What is left over is counted in `result`."""
    at = 0
    while at + 4 <= len(data):
        size = int.from_bytes(data[at : at + 4], "big")
        if size > LARGEST or at + 4 + size > len(data):
            break
        yield data[at + 4 : at + 4 + size]
        at += 4 + size
    result.rest = len(data) - at


def parsed(place: int, data: bytes) -> Record:
    """A record with its fields.

    Raises:
        MalformedError: it is not the one encoding of a record of a known kind.
    """
    label, *fields = split(data)
    kind = label.decode("ascii", "replace").removeprefix("secagg/2 transcript-")
    if kind == "opening":
        return Record(place, kind, data, fields)
    if kind not in KINDS or label != f"secagg/2 transcript-{kind}".encode():
        raise MalformedError(f"it is of an unknown kind, {kind[:40]!r}")
    if kind == "release":
        return Record(place, kind, data, _released(fields))
    read = Record(place, kind, data, _read(fields, KINDS[kind]))
    if kind == "advertisement":
        _claims(read.fields[7])
    return read


def _claims(claims: list[Any]) -> None:
    """M-01 of release claims: 8 at most, each with the sorted attestations of 1 to 256 clients."""
    names = [[name for name, _ in claim[10]] for claim in claims]
    if len(claims) > 8 or any(each != sorted(set(each)) or not 1 <= len(each) <= 256 for each in names):
        raise MalformedError("it has more than 8 claims, or one without sorted attestations")


def _released(fields: list[bytes]) -> list[Any]:
    """A release; seeds of excess noise, which come behind the signature or not at all, stand before it here."""
    seeds = [_one(seed, HASH) for seed in items(fields[8])] if len(fields) == 9 else None
    read = _read(fields[:8] if seeds is not None else fields, KINDS["release"])
    _release(*read[4:7])
    if seeds is None:
        return read
    if not seeds or len(set(seeds)) != len(seeds) or len(seeds) > 256:
        raise MalformedError("a release has seeds that are not distinct, or an empty list of them")
    return [*read[:7], seeds, read[7]]


def _release(b: list[Any], s: list[Any], pairs: list[Any]) -> None:
    """M-01 of unmasking shares: lists sorted, shares below p, nobody's both kinds, no pair with an included client."""
    for entries in (b, s, pairs):
        if [name for name, _ in entries] != sorted({name for name, _ in entries}):
            raise MalformedError("a list of a release is not sorted, or names a client twice")
    if any(int.from_bytes(value, "big") >= P for _, value in (*b, *s)):
        raise MalformedError("a share is not below the prime")
    if {name for name, _ in b} & {name for name, _ in s}:
        raise MalformedError("a release has shares of both kinds for one client")
    if not {name for name, _ in pairs} <= {name for name, _ in s}:
        raise MalformedError("a release has a pair secret with a client of which it has no share of s")


def _read(fields: list[bytes], shape: tuple[Any, ...]) -> list[Any]:
    if len(fields) != len(shape):
        raise MalformedError("it has another number of fields")
    return [_one(data, what) for data, what in zip(fields, shape, strict=True)]


def _one(data: bytes, what: Any) -> Any:
    if isinstance(what, list):
        return [_read(items(item), what[0]) for item in items(data)]
    if isinstance(what, tuple):
        return _read(items(data), what)
    if what in SIZES:
        if len(data) not in SIZES[what]:
            raise MalformedError(f"a {what} has {len(data)} bytes")
        if what == NUMBER and data[0] >= 0x80:
            raise MalformedError("a round number or attempt is not below 2^63")
        return int.from_bytes(data, "big") if what == NUMBER else data
    if what in (ID, NAME, "id or none"):
        return name_of(data, what)
    return data


def name_of(data: bytes, what: str = NAME) -> str:
    """An id, of 1 to 64 ASCII characters, or the name of a run, of 1 to 256 printable ones.

    Raises:
        MalformedError: it is none.
    """
    sound = data.isascii() and (data.decode().isprintable() and len(data) <= 256 if what == NAME else len(data) <= 64)
    if not sound or (not data and what != "id or none"):
        raise MalformedError(f"its {what} is no text of that kind")
    return data.decode("ascii")


def record(kind: str, *fields: Any) -> bytes:
    """The bytes of a record, as they stand after its length."""
    return encode(f"transcript-{kind}", *fields)
