"""Tables of plain values as TOML: what people keep, compare and read aloud."""

import json
import tomllib
from collections.abc import Iterator, Mapping
from typing import Any


def to_toml(table: Mapping[str, Any]) -> str:
    """TOML of nested mappings, lists of mappings and plain values; `from_toml` gives back each number to its last bit.

    Args:
        table: texts in ASCII, bools, ints, floats, lists of them, mappings, and lists of mappings.
    """
    return "\n".join(_lines(table, "")).strip("\n") + "\n"


def from_toml(text: str) -> dict[str, Any]:
    """The tables in a TOML text. ValueError where it is none."""
    return tomllib.loads(text)


def _lines(table: Mapping[str, Any], path: str) -> Iterator[str]:
    inner = {name: value for name, value in table.items() if isinstance(value, Mapping) or _tables(value)}
    for name in [name for name in table if name not in inner]:
        yield f"{_key(name)} = {_written(table[name])}"
    for name, value in inner.items():
        where = f"{path}{_key(name)}"
        for each in [value] if isinstance(value, Mapping) else value:
            yield from ("", f"[{where}]" if isinstance(value, Mapping) else f"[[{where}]]")
            yield from _lines(each, f"{where}.")


def _tables(value: object) -> bool:
    return isinstance(value, list) and bool(value) and isinstance(value[0], Mapping)


def _key(name: str) -> str:
    return name if name.replace("_", "").isalnum() and name.isascii() else json.dumps(name)


def _written(value: object) -> str:
    if isinstance(value, (str, bool)):
        return json.dumps(value)  # of ASCII and of true and false, which TOML spells alike
    if isinstance(value, list):
        return f"[{', '.join(map(_written, value))}]"
    return repr(value)
