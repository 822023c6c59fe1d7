"""The pinned parameters of an aggregation. An unsafe policy cannot be constructed.

Every client holds its own copy; nothing in it is ever taken from the server. Specification: docs/spec.md, section
"Parameters".
"""

import json
import math
import re
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, field, fields
from enum import Enum
from fractions import Fraction
from functools import cached_property
from types import MappingProxyType, NoneType
from typing import Any

from secagg.arguments import must_be, positive, whole
from secagg.encoding import Field as Encoded
from secagg.encoding import digest
from secagg.errors import ConfigError
from secagg.field import Field, Kind
from secagg.layout import WHOLE, Layout
from secagg.toml import from_toml, to_toml

MAX_CLIENTS = 256
SLOT_BITS = 64
_FLOAT64_SMALLEST = 2.0**-1022
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


class Suite(Enum):
    """KEM of the sealed envelopes and of the pairwise secrets (RFC 9180; X-Wing draft-08)."""

    MLKEM768_X25519 = "MLKEM768_X25519"
    X25519 = "X25519"


@dataclass(frozen=True, kw_only=True)
class Policy:
    """Parameters of one silo-profile aggregation, the same for all clients and the server.

    Say what the vector is with `length` and `clip_range`, which make it floats of one range, or with a `layout`.

    Attributes:
        project: name that separates studies; ASCII letters, digits, ``._-``.
        clients: n, the pinned cohort size, never the number that showed up; 3 to 256.
        length: d, values per vector; given by the layout where there is one.
        clip_range: every value is clipped to [-clip_range, clip_range]; fixed, never data-dependent. 0 with a layout.
        max_corrupt: c, clients that may collude with the server and with each other; at least 1.
        min_survivors: inputs in a sum at least; 0 means the smallest safe number.
        suite: post-quantum hybrid by default, because patient data stays sensitive for decades.
        bits: b, the sum is taken modulo 2^b; 8 to 64; 0 means as many as the sum needs.
        value_bits: a value is quantised to integers of magnitude at most 2^(value_bits - 1); 0 means 16, and with a
            layout nothing, for its fields have their own.
        weights: public weights by client id, positive; 1 where absent. They multiply floats, and nothing else.
        server_key: Ed25519 key that signs round starts and results; empty where the transport authenticates the server.
        layout: the fields of the vector, where it is more than floats of one range.
        excess_seeds: whether clients disclose seeds of noise that they added for a smaller sum than there is.

    Raises:
        ConfigError: the parameters cannot be safe, with the number that would be.
    """

    project: str
    clients: int
    length: int = 0
    clip_range: float = 0.0
    max_corrupt: int = 1
    min_survivors: int = 0
    suite: Suite = Suite.MLKEM768_X25519
    bits: int = 0
    value_bits: int = 0
    weights: Mapping[str, float] = field(default_factory=dict)
    server_key: bytes = b""
    layout: Layout | None = None
    excess_seeds: bool = False

    def __post_init__(self) -> None:
        self._types()
        self._set(weights=MappingProxyType(dict(sorted(self.weights.items()))))
        self._set(**{name: whole(name, getattr(self, name)) for name in _WHOLE})
        if self.layout is None:
            self._set(value_bits=self.value_bits or 16)
        elif self.length in (0, self.layout.length):
            self._set(length=self.layout.length)
        if self.min_survivors == 0:
            self._set(min_survivors=self.smallest_safe_sum)
        for problem in self._problems():
            raise ConfigError(problem)

    def _set(self, **values: object) -> None:
        for name, value in values.items():
            object.__setattr__(self, name, value)

    def _types(self) -> None:
        must_be(self.project, str, "project", "give a name")
        must_be(self.suite, Suite, "suite", "give secagg.Suite.MLKEM768_X25519 or secagg.Suite.X25519")
        must_be(self.weights, Mapping, "weights", "give a mapping of client ids to weights")
        for client_id in self.weights:
            must_be(client_id, str, f"the client id {client_id!r} of a weight", "ids are texts, as in the roster")
        must_be(self.server_key, bytes, "server_key", "give the 32 bytes of the server's SigningKey.verify_key")
        must_be(self.layout, (Layout, NoneType), "layout", "give a secagg.Layout of named fields")
        must_be(self.excess_seeds, bool, "excess_seeds", "give true or false")

    def _problems(self) -> Iterator[str]:
        if not _ID.fullmatch(self.project):
            yield f"project {self.project!r}: use 1 to 64 ASCII letters, digits, '.', '_' or '-'"
        if not 3 <= self.clients <= MAX_CLIENTS:
            yield f"clients = {self.clients}: secure aggregation needs 3 to {MAX_CLIENTS} clients"
        if self.max_corrupt < 1:
            yield f"max_corrupt = {self.max_corrupt}: at least 1, because whoever receives the sum may collude"
        if self.max_corrupt > max(self.clients - 2, 1):
            yield (
                f"max_corrupt = {self.max_corrupt}: {self.clients} clients tolerate at most "
                f"{max(self.clients - 2, 1)} colluding ones"
            )
        if not self.smallest_safe_sum <= self.min_survivors <= self.clients:
            yield (
                f"min_survivors = {self.min_survivors}: with {self.clients} clients of which {self.max_corrupt} may "
                f"collude it must be {self.smallest_safe_sum} to {self.clients}, or some inputs could be singled out"
            )
        yield from self._two_layouts()
        if self.bits == 0:
            self._set(bits=max(8, self.bits_needed))
        if not 8 <= self.bits <= 64:
            yield f"bits = {self.bits}: must be 8 to 64" + self._widest()
        if self.bits < self.bits_needed:
            yield f"bits = {self.bits} can overflow: the sum needs at least {self.bits_needed}" + self._widest()
        if len(self.server_key) not in (0, 32):
            yield "server_key: an Ed25519 key has 32 bytes"
        for client_id, weight in self.weights.items():
            positive(f"weight of {client_id}", weight)
        yield from self._vanishing()

    def _two_layouts(self) -> Iterator[str]:
        if self.layout is None:
            if self.length < 1:
                yield f"length = {self.length}: a vector has at least one value; give a length or a layout"
            return
        if self.length != self.layout.length:
            yield f"length = {self.length}: the layout has {self.layout.length} values; leave length out"
        if self.clip_range != 0 or self.value_bits != 0:
            yield "clip_range and value_bits are those of the layout's fields; leave them out of the policy"
        if self.weights and self.layout.weight is not None:
            yield f"the policy has public weights and the layout has private ones, {self.layout.weight!r}; keep one"

    def _widest(self) -> str:
        """What makes a sum so wide."""
        name, widest = max(self.fields.items(), key=lambda item: item[1].bits_needed(self.clients))
        where = "" if self.layout is None else f" of the field {name!r}"
        return f"; {self.clients} values{where} of magnitude at most {widest.largest_value} need {self.bits_needed}"

    def _vanishing(self) -> Iterator[str]:
        """What would silently turn an update into zeros, subnormal numbers or infinities."""
        for name, part in self.fields.items():
            if part.kind is not Kind.FLOAT:
                continue
            where = "" if self.layout is None else f" of the field {name!r}"
            full = self.largest_weight * part.number
            if not (math.isfinite(self.clients * full) and full / part.largest_value >= _FLOAT64_SMALLEST):
                yield (
                    f"the largest weight is {self.largest_weight}: times clip_range{where} it leaves the normal "
                    "float64 numbers; divide all weights by it"
                )
            if self.fields.weight is not None:
                continue
            unnamed = {"a client without one": 1.0} if len(self.weights) < self.clients else {}
            for client_id, weight in {**self.weights, **unnamed}.items():
                if Fraction(float(weight)) * part.largest_value < Fraction(float(self.largest_weight)):
                    yield (
                        f"the weight of {client_id} is {weight} and the largest {self.largest_weight}: with value_bits "
                        f"= {part.bits}{where} its whole range is less than one step; raise value_bits or even the "
                        "weights out"
                    )

    @cached_property
    def fields(self) -> Layout:
        """The layout, or the one field that `length`, `clip_range` and `value_bits` make."""
        if self.layout is not None:
            return self.layout
        return Layout({WHOLE: Field.floats(self.length, clip_range=self.clip_range, value_bits=self.value_bits)})

    @property
    def threshold(self) -> int:
        """Shares that open a secret, and attestations that open a round: t = q = floor((n + c) / 2) + 1.

        Two sets of t clients have more than c in common, hence an honest one, and an honest client signs one set.
        """
        return (self.clients + self.max_corrupt) // 2 + 1

    @property
    def smallest_safe_sum(self) -> int:
        """The least legal `min_survivors`: max(t, c + 2, 3)."""
        return max(self.threshold, self.max_corrupt + 2, 3)

    @property
    def bits_needed(self) -> int:
        """Smallest modulus width at which the sum of n honest values cannot wrap, in whichever field is widest."""
        return max(part.bits_needed(self.clients) for part in self.fields.values())

    @property
    def largest_value(self) -> int:
        """Magnitude of the largest quantised value of any field."""
        return max(part.largest_value for part in self.fields.values())

    def excess(self, included: int) -> int:
        """How many seeds of noise a client has for itself alone: those that a sum over so many clients does not need.

        A client gives `excess(clients)` of them with its update, and discloses the last `excess(|U3|)`.
        """
        return included - self.min_survivors if self.excess_seeds else 0

    @property
    def slots(self) -> int:
        """Constant slots appended to every vector, ceil(64 / b): masks that fail to cancel show in them."""
        return math.ceil(SLOT_BITS / self.bits)

    @property
    def largest_weight(self) -> float:
        """The weight at which a clip range becomes `largest_value`: the largest; a client without one counts as 1."""
        if self.layout is not None and self.layout.largest_weight is not None:
            return self.layout.largest_weight
        return max([*self.weights.values(), *([1.0] if len(self.weights) < self.clients else [])])

    def weight(self, client_id: str) -> float:
        """Public weight of a client, 1 where none was given."""
        return self.weights.get(client_id, 1.0)

    def possible(self, part: Field, included: Collection[str]) -> tuple[int, int]:
        """The least and the largest sum of a field over these clients; `bits` alone bounds integers."""
        match part.kind:
            case Kind.INTEGER:
                return -(1 << (self.bits - 1)), (1 << (self.bits - 1)) - 1
            case Kind.FLOAT if self.fields.weight is None:
                largest = sum(part.bound(self.weight(client_id), self.largest_weight) for client_id in included)
                return -largest, largest
        largest = len(included) * part.largest_value
        return (-largest if part.kind is Kind.FLOAT else 0), largest

    def hash(self) -> bytes:
        """H(policy), 32 bytes; enters the session id, so that parties with different policies never meet."""
        return self._hash

    @cached_property
    def _hash(self) -> bytes:
        numbers = [self.clients, self.length, self.max_corrupt, self.min_survivors, self.bits, self.value_bits]
        weights = [[client_id, float(weight).hex()] for client_id, weight in self.weights.items()]
        layout: list[Encoded] = []
        if self.layout is not None:
            layout.append(
                [
                    [name, part.kind.value, list(part.shape), float(part.number).hex(), part.bits]
                    for name, part in self.layout.items()
                ]
            )
        about = (self.project, numbers, float(self.clip_range).hex(), weights, self.server_key)
        return digest("policy", *about, *layout, *(["excess-seeds-in-head"] if self.excess_seeds else []))

    def to_table(self) -> dict[str, Any]:
        """This policy as plain values: texts, numbers, lists and dicts, as TOML and JSON have them."""
        named: dict[str, Any] = {part.name: getattr(self, part.name) for part in fields(self)}
        if self.layout is not None:
            layout = [{"name": name, **part.table()} for name, part in self.layout.items()]
            named = {name: named[name] for name in named if name not in _OF_ONE_FIELD} | {"layout": layout}
        else:
            del named["layout"]
        if not self.excess_seeds:
            del named["excess_seeds"]
        weights = {client_id: float(weight) for client_id, weight in self.weights.items()}
        plain = {"suite": self.suite.value, "server_key": self.server_key.hex(), "weights": weights}
        return {name: plain.get(name, value) for name, value in named.items()}

    @classmethod
    def from_table(cls, table: Mapping[str, Any]) -> "Policy":
        """The inverse of `to_table`; a field that is not there has its default.

        Raises:
            ConfigError: a field lacks, is unknown or of the wrong type, or the policy cannot be safe.
        """
        must_be(table, Mapping, "the policy", "give a table with the fields of secagg.Policy")
        known = [part.name for part in fields(cls)]
        if unknown := sorted(map(str, table.keys() - set(known))):
            raise ConfigError(f"the policy has the unknown field {unknown[0]!r}; remove it, or use a later version")
        for name in known[:2] if "layout" in table else known[:4]:
            if name not in table:
                raise ConfigError(f"the policy lacks the field {name!r}")
        return cls(**{name: _read(name, value) for name, value in table.items()})

    def to_toml(self) -> str:
        """This policy as a TOML text with one table [policy]; numbers keep their last bit."""
        return to_toml({"policy": self.to_table()})

    @classmethod
    def from_toml(cls, text: str) -> "Policy":
        """The policy in a TOML text; what else is in it does not matter. ConfigError as `from_table`."""
        return cls.from_table(_table_in(from_toml, text))

    def to_json(self) -> str:
        """This policy as a JSON text with one member "policy"; numbers keep their last bit."""
        return json.dumps({"policy": self.to_table()})

    @classmethod
    def from_json(cls, text: str) -> "Policy":
        """The policy in a JSON text; what else is in it does not matter. ConfigError as `from_table`."""
        return cls.from_table(_table_in(json.loads, text))

    def __reduce__(self) -> "tuple[Callable[[dict[str, Any]], Policy], tuple[dict[str, Any]]]":
        return Policy.from_table, (self.to_table(),)


_WHOLE = ("clients", "length", "max_corrupt", "min_survivors", "bits", "value_bits")
_OF_ONE_FIELD = ("length", "clip_range", "value_bits", "layout")


def _table_in(parse: Callable[[str], Any], text: str) -> Any:
    """The table "policy" of a text. ConfigError where there is none."""
    try:
        return parse(text)["policy"]
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ConfigError("the text is not a policy; write a table [policy] with the fields of secagg.Policy") from None


def _read(name: str, value: Any) -> Any:
    """A field of a policy, from its plain value."""
    try:
        match name:
            case "suite":
                return Suite(value)
            case "server_key":
                return bytes.fromhex(value)
            case "weights":
                return {client_id: positive(f"weight of {client_id}", weight) for client_id, weight in value.items()}
            case "layout":
                return Layout(_once((entry["name"], _field(entry)) for entry in value))
    except ConfigError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(f"the policy's field {name!r} has a value that it cannot have") from None
    return value


def _once(named: Iterable[tuple[str, Field]]) -> dict[str, Field]:
    """Fields by name. ConfigError for a name that comes twice: a dict would keep the last one without a word."""
    found: dict[str, Field] = {}
    for name, part in named:
        if name in found:
            raise ConfigError(f"the layout has the field {name!r} twice; give each its own name")
        found[name] = part
    return found


def _field(entry: Mapping[str, Any]) -> Field:
    try:
        return Field.of_table({name: value for name, value in entry.items() if name != "name"})
    except ConfigError as error:
        raise ConfigError(f"the layout's {entry['name']!r}: {error}") from None
