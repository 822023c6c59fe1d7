"""What the reader brings: policy and roster, and what follows from them (specification, "Parameters" and "Fields")."""

from __future__ import annotations

import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audits.verifier.encoding import H, Value

SUITES = ("MLKEM768_X25519", "X25519")


class UnreadableError(Exception):
    """No verdict: what was given is no policy, no roster or no transcript (exit status 3)."""


@dataclass(frozen=True)
class Field:
    """One field of a layout. `number` is clip range, largest value or step, by its kind."""

    name: str
    kind: str
    shape: tuple[int, ...]
    number: float
    bits: int

    @property
    def size(self) -> int:
        """Values of the vector that belong to it."""
        return math.prod(self.shape)

    def magnitude(self) -> int | None:
        """M: the largest that one client of the largest weight can send; None where it is not bounded."""
        if self.kind == "float":
            return int(2 ** (self.bits - 1))
        if self.kind == "count":
            return int(self.number)
        if self.kind == "weight":
            step = 2.0 ** math.ceil(math.log2(self.number / 2 ** (self.bits - 1)))
            return math.ceil(self.number / step)
        return None


@dataclass(frozen=True)
class Policy:
    """The parameters of a sum."""

    project: str
    clients: int
    suite: str = "MLKEM768_X25519"
    length: int = 0
    clip_range: float = 0.0
    max_corrupt: int = 1
    min_survivors: int = 0
    bits: int = 0
    value_bits: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)
    server_key: bytes = b""
    layout: tuple[Field, ...] = ()
    excess_seeds: bool = False

    @property
    def threshold(self) -> int:
        """t, and q, which is the same."""
        return (self.clients + self.max_corrupt) // 2 + 1

    @property
    def fields(self) -> tuple[Field, ...]:
        """The layout; without one, a single field of floats."""
        return self.layout or (Field("", "float", (self.length,), self.clip_range, self.value_bits),)

    @property
    def slots(self) -> int:
        """Constant slots behind the values."""
        return math.ceil(64 / self.bits)

    @property
    def hashed(self) -> list[Value]:
        """The fields of H(policy)."""
        numbers = [
            self.clients, self.length, self.max_corrupt, self.min_survivors, self.bits, self.value_bits,
        ]  # fmt: skip
        about = [self.project, numbers, self.clip_range.hex(), self.weight_list, self.server_key, *self.layout_list]
        return [*about, "excess-seeds-in-head"] if self.excess_seeds else about

    @property
    def weight_list(self) -> list[Value]:
        """The public weights as they are encoded."""
        return [[name, float(weight).hex()] for name, weight in sorted(self.weights.items())]

    @property
    def layout_list(self) -> list[Value]:
        """The layout as one more field; nothing where there is none."""
        named: list[Value] = [[f.name, f.kind, list(f.shape), float(f.number).hex(), f.bits] for f in self.layout]
        return [named] if named else []

    @property
    def hash(self) -> bytes:
        """H(policy)."""
        return H("policy", *self.hashed)


NUMBER_OF = {"float": "clip_range", "count": "largest", "weight": "largest", "integer": "step"}
BITS_OF = {"float": "value_bits", "weight": "value_bits", "integer": "bits"}


def load_policy(path: Path) -> Policy:
    """The policy in the table [policy] of a TOML file.

    Raises:
        UnreadableError: it is none, or one that no party may use.
    """
    table = dict(_table(path, "policy"))
    try:
        table["server_key"] = bytes.fromhex(table.get("server_key", ""))
        table["weights"] = {str(name): float(w) for name, w in table.get("weights", {}).items()}
        table["layout"] = tuple(_field(entry) for entry in table.get("layout", []))
        if table["layout"]:
            table["length"] = sum(f.size for f in table["layout"])
        else:
            table.setdefault("value_bits", 16)
        table["clip_range"] = float(table.get("clip_range", 0.0))
        policy = Policy(**table)
    except (TypeError, ValueError, KeyError) as error:
        raise UnreadableError(f"{path} holds no policy: {error}.") from error
    return _whole(policy, path)


def _field(entry: dict[str, Any]) -> Field:
    kind = entry["kind"]
    shape = entry.get("shape", [])
    number = float(entry.get(NUMBER_OF[kind], 1.0))
    return Field(entry["name"], kind, tuple(shape), number, int(entry.get(BITS_OF.get(kind, ""), 0)))


def _whole(policy: Policy, path: Path) -> Policy:
    """The policy with the numbers that follow where none is given, or no policy at all where a limit is broken."""
    t, n, c = policy.threshold, policy.clients, policy.max_corrupt
    least = max(t, c + 2, 3)
    needed = 8
    for one in policy.fields:
        magnitude = one.magnitude()
        needed = max(needed, one.bits if magnitude is None else (2 * n * magnitude).bit_length())
    numbers = {"min_survivors": policy.min_survivors or least, "bits": policy.bits or needed}
    policy = Policy(**{**policy.__dict__, **numbers})
    sound = 3 <= n <= 256 and c >= 1 and least <= policy.min_survivors <= n and needed <= policy.bits <= 64
    if not sound or policy.suite not in SUITES or policy.length < 1:
        raise UnreadableError(f"{path} holds a policy outside the limits of the specification, section Parameters.")
    return policy


def load_roster(path: Path) -> dict[str, bytes]:
    """The verify key of each client, from the table [clients] of a TOML file.

    Raises:
        UnreadableError: it holds none.
    """
    try:
        roster = {name: bytes.fromhex(key) for name, key in sorted(_table(path, "clients").items())}
    except (TypeError, ValueError) as error:
        raise UnreadableError(f"{path} holds no roster: {error}.") from error
    if any(len(key) != 32 for key in roster.values()):
        raise UnreadableError(f"{path} holds a verify key that is not of 32 bytes.")
    return roster


def _table(path: Path, name: str) -> dict[str, Any]:
    try:
        table = tomllib.loads(path.read_text()).get(name)
    except (OSError, ValueError) as error:
        raise UnreadableError(f"{path} cannot be read: {error}.") from error
    if not isinstance(table, dict):
        raise UnreadableError(f"{path} has no table [{name}].")
    return table
