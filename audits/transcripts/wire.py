"""A reader of the wire format, driven by protos/secagg.proto itself: only what the vectors hold has to be read."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

PROTO = Path(__file__).parents[2] / "protos" / "secagg.proto"
MESSAGE = re.compile(r"message (\w+) \{(.*?)\n\}", re.DOTALL)
FIELD = re.compile(r"(repeated )?(\w+) (\w+) = (\d+);")


def shapes() -> dict[str, dict[int, tuple[str, str, bool]]]:
    """Of each message its fields by number: type, name, and whether it is repeated."""
    found = {}
    for name, body in MESSAGE.findall(PROTO.read_text()):
        found[name] = {int(number): (kind, field, bool(many)) for many, kind, field, number in FIELD.findall(body)}
    return found


SHAPES = shapes()


def decode(message: str, data: bytes) -> dict[str, Any]:
    """The fields of a message by name, with the empty ones that protobuf leaves out."""
    empty = {"string": "", "bytes": b"", "uint64": 0}
    fields: dict[str, Any] = {}
    for kind, name, many in SHAPES[message].values():
        fields[name] = [] if many else empty.get(kind)
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        kind, name, many = SHAPES[message][tag >> 3]
        size, at = _varint(data, at)
        value: Any = size
        if tag & 7 == 2:
            value, at = data[at : at + size], at + size
            value = value.decode() if kind == "string" else value if kind == "bytes" else decode(kind, value)
        if many:
            fields[name].append(value)
        else:
            fields[name] = value
    return fields


def values(fields: Any) -> Any:
    """A message as the list of its fields, as it is hashed and as it stands in a transcript."""
    if isinstance(fields, dict):
        return [values(value) for value in fields.values()]
    return [values(item) for item in fields] if isinstance(fields, list) else fields


def _varint(data: bytes, at: int) -> tuple[int, int]:
    number = shift = 0
    while True:
        byte = data[at]
        number |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return number, at
