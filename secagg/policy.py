"""The pinned parameters of an aggregation. An unsafe policy cannot be constructed.

Every client holds its own copy; nothing in it is ever taken from the server. Specification: docs/spec.md, section
"Parameters".
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from enum import Enum
from fractions import Fraction
from types import MappingProxyType

from secagg.encoding import digest
from secagg.errors import ConfigError

MAX_CLIENTS = 256
SLOT_BITS = 64
_FLOAT32_SMALLEST, _FLOAT32_LARGEST = 2.0**-126, 2.0**128 - 2.0**104  # normal numbers; an update may be float32
_FLOAT64_SMALLEST = 2.0**-1022
_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def _positive(number: float) -> bool:
    try:
        return math.isfinite(number) and number > 0
    except OverflowError:  # an integer beyond float64
        return False


class Suite(Enum):
    """KEM of the sealed envelopes and of the pairwise secrets (RFC 9180; X-Wing draft-08)."""

    MLKEM768_X25519 = "MLKEM768_X25519"
    X25519 = "X25519"


@dataclass(frozen=True, slots=True, kw_only=True)
class Policy:
    """Parameters of one silo-profile aggregation, the same for all clients and the server.

    Attributes:
        project: name that separates studies; ASCII letters, digits, ``._-``.
        clients: n, the pinned cohort size, never the number that showed up; 3 to 256.
        length: d, values per vector.
        clip_range: every value is clipped to [-clip_range, clip_range]; fixed, never data-dependent.
        max_corrupt: c, clients that may collude with the server and with each other; at least 1.
        min_survivors: inputs in a sum at least; 0 means the smallest safe number.
        suite: post-quantum hybrid by default, because patient data stays sensitive for decades.
        bits: b, the sum is taken modulo 2^b; 8 to 64.
        value_bits: a value is quantised to integers of magnitude at most 2^(value_bits - 1).
        weights: public weights by client id, positive; 1 where absent.
        server_key: Ed25519 key that signs round starts and results; empty where the transport authenticates the server.

    Raises:
        ConfigError: the parameters cannot be safe, with the number that would be.
    """

    project: str
    clients: int
    length: int
    clip_range: float
    max_corrupt: int = 1
    min_survivors: int = 0
    suite: Suite = Suite.MLKEM768_X25519
    bits: int = 32
    value_bits: int = 16
    weights: Mapping[str, float] = field(default_factory=dict)
    server_key: bytes = b""

    def __post_init__(self) -> None:
        object.__setattr__(self, "weights", MappingProxyType(dict(sorted(self.weights.items()))))
        if self.min_survivors == 0:
            object.__setattr__(self, "min_survivors", self.smallest_safe_sum)
        for problem in self._problems():
            raise ConfigError(problem)

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
        if self.length < 1:
            yield f"length = {self.length}: a vector has at least one value"
        if not _positive(self.clip_range):
            yield f"clip_range = {self.clip_range}: must be a positive finite number"
        if not 8 <= self.bits <= 64:
            yield f"bits = {self.bits}: must be 8 to 64"
        if not 2 <= self.value_bits <= 48:
            yield f"value_bits = {self.value_bits}: must be 2 to 48"
        if self.bits < self.bits_needed:
            yield (
                f"bits = {self.bits} can overflow: the sum of {self.clients} values of {self.value_bits} bits needs "
                f"at least {self.bits_needed}"
            )
        if len(self.server_key) not in (0, 32):
            yield "server_key: an Ed25519 key has 32 bytes"
        for client_id, weight in self.weights.items():
            if not _positive(weight):
                yield f"weight of {client_id} is {weight}: must be a positive finite number"
        yield from self._vanishing()

    def _vanishing(self) -> Iterator[str]:
        """What would silently turn an update into zeros, subnormal numbers or infinities."""
        smallest = _FLOAT32_SMALLEST * self.largest_value
        if not smallest <= self.clip_range <= _FLOAT32_LARGEST:
            yield (
                f"clip_range = {self.clip_range}: use {smallest:.2g} to {_FLOAT32_LARGEST:.2g}, or its steps of "
                f"{self.value_bits} bits leave the normal float32 numbers"
            )
        full = self.largest_weight * self.clip_range
        if not (math.isfinite(self.clients * full) and full / self.largest_value >= _FLOAT64_SMALLEST):
            yield (
                f"the largest weight is {self.largest_weight}: times clip_range it leaves the normal float64 numbers; "
                "divide all weights by it"
            )
        unnamed = {"a client without one": 1.0} if len(self.weights) < self.clients else {}
        for client_id, weight in {**self.weights, **unnamed}.items():
            if Fraction(float(weight)) * self.largest_value < Fraction(float(self.largest_weight)):
                yield (
                    f"the weight of {client_id} is {weight} and the largest {self.largest_weight}: with value_bits = "
                    f"{self.value_bits} its whole range is less than one step; raise value_bits or even the weights out"
                )

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
        """Smallest modulus width at which the sum of n honest values cannot wrap.

        The sum lies between -n and n times `largest_value`, so 2^b has to be larger than 2 n times it.
        """
        return (2 * self.clients * self.largest_value).bit_length()

    @property
    def largest_value(self) -> int:
        """Magnitude of the largest quantised value: 2^(value_bits - 1)."""
        return 1 << (self.value_bits - 1)

    @property
    def slots(self) -> int:
        """Constant slots appended to every vector, ceil(64 / b): masks that fail to cancel show in them."""
        return math.ceil(SLOT_BITS / self.bits)

    @property
    def largest_weight(self) -> float:
        """The weight at which `clip_range` becomes `largest_value`: the largest; a client without one counts as 1."""
        return max([*self.weights.values(), *([1.0] if len(self.weights) < self.clients else [])])

    def bound(self, client_id: str) -> int:
        """Magnitude of the largest integer that this client's values become: `largest_value` scaled by its weight."""
        share = Fraction(float(self.weight(client_id))) / Fraction(float(self.largest_weight))
        return math.ceil(self.largest_value * share)

    def scale(self, client_id: str) -> float:
        """Quantised units per unit of this client's update; takes `clip_range` to at most `bound`."""
        scale = self.largest_value * (self.weight(client_id) / self.largest_weight) / self.clip_range
        while self.clip_range * scale > self.bound(client_id):  # the rounding of three operations
            scale = math.nextafter(scale, 0)
        return scale

    def weight(self, client_id: str) -> float:
        """Public weight of a client, 1 where none was given."""
        return self.weights.get(client_id, 1.0)

    def hash(self) -> bytes:
        """H(policy), 32 bytes; enters the session id, so that parties with different policies never meet."""
        numbers = [self.clients, self.length, self.max_corrupt, self.min_survivors, self.bits, self.value_bits]
        weights = [[client_id, float(weight).hex()] for client_id, weight in self.weights.items()]
        return digest("policy", self.project, numbers, float(self.clip_range).hex(), weights, self.server_key)


class PinnedRoster(Mapping[str, bytes]):
    """The cohort, pinned out of band: client id to Ed25519 verify key, iterated in bytewise order of the ids.

    Raises:
        ConfigError: an id outside ``[A-Za-z0-9._-]``, a key that is not 32 bytes, or two clients with one key.
    """

    def __init__(self, keys: Mapping[str, bytes]) -> None:
        for client_id, key in keys.items():
            if not _ID.fullmatch(client_id):
                raise ConfigError(f"client id {client_id!r}: use 1 to 64 ASCII letters, digits, '.', '_' or '-'")
            if len(key) != 32:
                raise ConfigError(f"roster: the verify key of {client_id} must have 32 bytes")
        if len(set(keys.values())) != len(keys):
            raise ConfigError("roster: two clients share one verify key")
        self._keys = {client_id: bytes(keys[client_id]) for client_id in sorted(keys)}

    def __getitem__(self, client_id: str) -> bytes:
        return self._keys[client_id]

    def __iter__(self) -> Iterator[str]:
        return iter(self._keys)

    def __len__(self) -> int:
        return len(self._keys)

    def hash(self) -> bytes:
        """H(sorted roster of (id, verify key)), 32 bytes."""
        return digest("roster", [[client_id, key] for client_id, key in self._keys.items()])


def session_id(policy: Policy, pinned: PinnedRoster) -> bytes:
    """Session = H(suite | project | H(policy) | H(sorted roster)): 32 bytes.

    Raises:
        ConfigError: the roster does not have the policy's number of clients, or lacks a weighted client.
    """
    if len(pinned) != policy.clients:
        raise ConfigError(f"the roster lists {len(pinned)} clients and the policy says clients = {policy.clients}")
    for client_id in policy.weights:
        if client_id not in pinned:
            raise ConfigError(f"the policy gives a weight to {client_id}, which the roster does not list")
    return digest("session", policy.suite.value, policy.project, policy.hash(), pinned.hash())
