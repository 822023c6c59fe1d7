"""An attacker made of linear algebra: what do the bytes that left honest clients determine?

Knowledge model. The attacker is the server, everybody who listens, and at most c corrupt clients who hand over every
key. It has

- every masked input y that an honest client ever produced, delivered or not: one equation over Z/2^b,
  y_u = x_u + mask of b_u + sum of +- masks of the pairs of u, in which x_u and every mask are unknowns. A mask is a
  word: the bytes of its *real* seed, taken from the real state of the client, and its place in that seed's keystream.
  Equal words are one unknown, different ones are independent. So a seed that is reused, shared by two clients or not
  bound to its round shows by itself;
- every Shamir share that a corrupt client can open with its real channel key, and every share that an honest client
  released: one equation over GF(p) in the secret and the other coefficients of its dealer's polynomial;
- every secret that was released or belongs to a corrupt client;
- every word of a keystream that an honest client shows in Blame, found by its bytes wherever in the keystream it lies:
  a server that lies asks everybody who released for them.

A secret is known when the shares determine it: a matter of rank over GF(p), after which it is computed and held against
its public key or commitment. A known s_u opens every pair mask of u, a known b_u its self mask. What is left of the
equations is eliminated over Z/2^b, and every combination of inputs that is free of unknown masks is found, with its
value, which is held against the real inputs: a model that is not the code fails right there.

Limits. Generator, key agreement, envelopes and hashes are symbols: an unknown seed says nothing about its words, a word
nothing about the others, an envelope nothing about its content, and nobody forges a signature. `quantum` gives away
every X25519 secret of recorded traffic. Time, sizes and traffic are not modelled. d = 1: coordinates are masked by
different words of the same keystreams, so that more of them repeat the same equations in other unknowns; so do the
constant slots, in which nothing else is unknown. What the allowed sum itself says about an input is not a question for
this file.
"""

from collections.abc import Hashable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np

import secagg.client
from secagg.keys import MaskKey
from secagg.masking import envelope_info, self_commitment, slot_values
from secagg.packing import dtype_for, unpack
from secagg.policy import Policy, Suite
from secagg.prg import apply_masks, keystream
from secagg.shamir import PRIME, SECRET_BYTES, SHARE_BYTES

# --- Linear algebra over Z/p^k -----------------------------------------------------------------------------------


def eliminate(rows: Iterable[Sequence[int]], columns: int, p: int, k: int = 1) -> list[list[int]]:
    """Generators over Z/p^k of every combination of `rows` whose first `columns` entries vanish (Howell's form).

    Of two elements of Z/p^k one divides the other, so that the least divisible entry of a column clears the others. It
    need not be a unit: a multiple of its row that kills it still says something about the columns to the right, and
    stays. Over a field (k = 1) this is Gauss.
    """
    modulus = p**k
    pool = [[entry % modulus for entry in row] for row in rows]
    for column in range(columns):
        places = [i for i, row in enumerate(pool) if row[column]]
        if not places:
            continue
        pivot = pool.pop(min(places, key=lambda i: valuation(pool[i][column], p, k)))
        power = p ** valuation(pivot[column], p, k)
        inverse = pow(pivot[column] // power, -1, modulus)
        for row in pool:
            if row[column]:
                factor = row[column] // power * inverse
                row[:] = [(a - factor * b) % modulus for a, b in zip(row, pivot, strict=True)]
        if power > 1:
            pool.append([a * (modulus // power) % modulus for a in pivot])
    return pool


def valuation(value: int, p: int, k: int) -> int:
    """How often p divides a value that is not 0 modulo p^k."""
    return next(v for v in range(k) if value % p ** (v + 1))


def spans(rows: Sequence[Sequence[int]], vector: Sequence[int], p: int, k: int = 1) -> bool:
    """Whether `vector` is a combination of `rows` over Z/p^k: then one more unknown, its own, is all that is free."""
    marked = [[*row, 0] for row in rows] + [[*vector, 1]]
    return any(row[-1] % p for row in eliminate(marked, len(vector), p, k))


def rank(rows: Sequence[Sequence[int]], p: int) -> int:
    """Rank over GF(p)."""
    return len(rows) - len(eliminate(rows, len(rows[0]) if rows else 0, p))


# --- What the attacker hears -------------------------------------------------------------------------------------


class Secret(NamedTuple):
    """The public name of a secret: 's' with its X25519 public key, or 'b' or 'r' with its commitment."""

    kind: str
    client: str
    slot: bytes
    public: bytes

    def is_value(self, value: bytes) -> bool:
        """Whether these bytes are the secret: anybody can tell."""
        if self.kind == "s":
            return MaskKey(Suite.X25519, value).dh_public == self.public
        return self_commitment(self.slot, self.client, value) == self.public


class Share(NamedTuple):
    """One point of one polynomial: `polynomial` is the signature of the header under which it was dealt."""

    secret: Secret
    polynomial: bytes
    x: int
    y: int


PUBLIC = Secret("public", "", b"", b"")
"""What everybody knows from the start."""

NO_SEED = bytes(32)
"""A seed that stands for none: everybody knows its mask."""


class Word(NamedTuple):
    """One word of one keystream, which masks the value or the slot at that place of a vector."""

    seed: bytes
    place: int


def key_of(advertisement) -> Secret:
    return Secret("s", advertisement.client_id, advertisement.slot, advertisement.mask_dh_pk)


def seed_of(header) -> Secret:
    return Secret("b", header.client_id, header.slot, header.self_commitment)


@dataclass(frozen=True, eq=False)
class Equation:
    """Value = input + sum of sign * word modulo 2^bits; any opener of a word's seed gives it away."""

    input: Hashable
    value: int
    masks: Mapping[Word, tuple[int, frozenset[Secret]]]


@dataclass(frozen=True)
class View:
    """Everything that the attacker heard."""

    equations: tuple[Equation, ...] = ()
    shares: frozenset[Share] = frozenset()
    secrets: frozenset[Secret] = frozenset()
    words: frozenset[Word] = frozenset()

    def __add__(self, other: "View") -> "View":
        heard = dict.fromkeys((*self.equations, *other.equations))
        known = (self.shares | other.shares, self.secrets | other.secrets, self.words | other.words)
        return View(tuple(heard), *known)


def masked(state, roster, headers, peers, message, value: int, *, name: Hashable, quantum: bool = False) -> View:
    """The equation of an honest client's masked input, from the state (`client.Masked`) that it has just reached.

    Args:
        state: holds the real secrets, from which the real seeds are computed.
        roster: U1 as this client saw it.
        headers: by dealer, as this client saw them.
        peers: U2 as this client saw it.
        message: its `MaskedInput`.
        value: the real input.
        name: of the unknown that the input is.
        quantum: whether X25519 hides nothing.

    Raises:
        AssertionError: y without these masks is not the input and the constant slots: the model is not the code.
    """
    policy, me, held = state.own.policy, state.own.me, state.held
    own_seed = secagg.client.self_mask_seed(roster.hash, message.round_id, me, held.self_seed)
    add, subtract = [own_seed], []
    masks = {Word(own_seed, 0): (1, frozenset([PUBLIC if own_seed == NO_SEED else seed_of(headers[me])]))}
    for peer in peers:
        if peer == me:
            continue
        keys = roster.by_id[peer]
        secret = held.pair_secret(peer)
        exchanged = held.mask_key.exchange(keys.mask_dh_pk)
        seed = secagg.client.pair_mask_seed(roster.hash, message.round_id, (me, peer), exchanged, secret)
        openers = {key_of(roster.by_id[me]), key_of(keys)}
        if quantum:
            openers.add(Secret("r", "", message.round_id, secret) if secret else PUBLIC)
        (add if me < peer else subtract).append(seed)
        assert Word(seed, 0) not in masks
        masks[Word(seed, 0)] = (1 if me < peer else -1, frozenset(openers))
    y = unpack(message.y, policy.length + policy.slots, policy.bits)
    bare = y.copy()
    apply_masks(bare, subtract, add)
    bare &= bare.dtype.type((1 << policy.bits) - 1)
    assert bare.tolist() == [value % (1 << policy.bits), *slot_values(policy, message.round_id).tolist()]
    return View((Equation(name, int(y[0]), masks),))


def dealt(channel_key, holder: str, roster, message) -> View:
    """What a corrupt holder reads in a dealer's `EncryptedShares`, as soon as the server has them."""
    header = message.header
    bundle = message.bundles[roster.others(header.client_id).index(holder)]
    info = envelope_info("shares", header.slot, roster.hash, header.client_id, holder)
    opened = channel_key.open(info, bundle.shares)
    secrets = (key_of(roster.by_id[header.client_id]), seed_of(header))
    return _shares(secrets, header, roster.positions[holder], (opened[:SHARE_BYTES], opened[SHARE_BYTES:]))


def released(message, roster, headers) -> View:
    """What an `UnmaskingShares` says: own b_u, and a share or pair secret of everybody else."""
    x = roster.positions[message.client_id]
    view = View(secrets=frozenset([seed_of(headers[message.client_id])]))
    assert seed_of(headers[message.client_id]).is_value(message.self_seed)
    for peer, share in message.self_seed_shares.items():
        view += _shares([seed_of(headers[peer])], headers[peer], x, [share])
    for peer, share in message.mask_key_shares.items():
        view += _shares([key_of(roster.by_id[peer])], headers[peer], x, [share])
    pairs = frozenset(Secret("r", "", message.round_id, secret) for secret in message.pair_secrets.values())
    return view + View(secrets=pairs)


def shown(message, equations: Iterable[Equation], policy: Policy) -> View:
    """The words that a `SlotMasks` says, of the keystreams in its sender's equations; a seed in it says all of them.

    Raises:
        AssertionError: a mask that is in none of these keystreams: the model is not the code.
    """
    seeds, words = {word.seed for equation in equations for word in equation.masks}, set[Word]()
    size, width = policy.length + policy.slots, dtype_for(policy.bits).itemsize
    for mask in message.masks.values():
        found = {word for seed in seeds for word in _found(mask, seed, size, width)}
        assert found, "what is shown in Blame is no word of a mask"
        words |= found
    return View(words=frozenset(words))


@cache
def _found(mask: bytes, seed: bytes, size: int, width: int) -> frozenset[Word]:
    stream = keystream(seed, 0, size * width)
    first, mask = (0, stream) if mask == seed else (stream.find(mask), mask)
    return frozenset(Word(seed, first // width + i) for i in range(len(mask) // width) if first >= 0)


def _shares(secrets, header, x: int, shares) -> View:
    points = zip(secrets, shares, strict=True)
    return View(shares=frozenset(Share(s, header.signature + s.kind.encode(), x, int.from_bytes(y)) for s, y in points))


# --- What that determines ----------------------------------------------------------------------------------------


@dataclass
class Attacker:
    """Decides from a view which secrets and which combinations of inputs it determines.

    Attributes:
        threshold: t under which secrets were shared.
        bits: b.
        inputs: the real inputs by name, for nothing but to check that a combination found has the value that it should.
        given: secrets known from the start, such as those of the corrupt clients.
    """

    threshold: int
    bits: int
    inputs: Mapping[Hashable, int]
    given: frozenset[Secret] = frozenset([PUBLIC])
    _opened: dict[frozenset[Share], frozenset[Secret]] = field(default_factory=dict)
    _found: dict = field(default_factory=dict)

    def secrets(self, view: View) -> frozenset[Secret]:
        """Every secret that is known, released or determined by its shares: rank over GF(p)."""
        if view.shares not in self._opened:
            by_secret: dict[Secret, list[Share]] = {}
            for share in sorted(view.shares):
                by_secret.setdefault(share.secret, []).append(share)
            self._opened[view.shares] = frozenset(s for s, shares in by_secret.items() if self._determine(s, shares))
        return self.given | view.secrets | self._opened[view.shares]

    def _determine(self, secret: Secret, shares: Sequence[Share]) -> bool:
        """Whether these shares give a secret, also where a polynomial is of a lower degree than it should be."""
        for degree in range(self.threshold):
            values = self._solve(shares, degree)
            if any(value < 1 << 8 * SECRET_BYTES and secret.is_value(value.to_bytes(SECRET_BYTES)) for value in values):
                return True
        assert not values, "the shares are not those of the committed secret"
        return False

    def _solve(self, shares: Sequence[Share], degree: int) -> set[int]:
        """Unknowns: the secret, and as many more coefficients of each polynomial as its degree. Rank over GF(p)."""
        polynomials = sorted({share.polynomial for share in shares})
        rows = []
        for share in shares:
            coefficients = [0] * (degree * len(polynomials))
            first = degree * polynomials.index(share.polynomial)
            coefficients[first : first + degree] = [pow(share.x, power, PRIME) for power in range(1, degree + 1)]
            rows.append([*coefficients, 1, share.y])
        left = eliminate(rows, degree * len(polynomials), PRIME)
        return {row[-1] * pow(row[-2], -1, PRIME) % PRIME for row in left if row[-2]}

    def sums(self, view: View) -> list[dict[Hashable, int]]:
        """Generators of every combination of inputs that is determined: rank over Z/2^b.

        Raises:
            AssertionError: a combination without the value that the real inputs give it, or a dimension that the rank
                over GF(2) contradicts.
        """
        if not view.equations:
            return []
        known = self.secrets(view)
        relevant = known & {s for e in view.equations for _, openers in e.masks.values() for s in openers}
        words = view.words & {word for e in view.equations for word in e.masks}
        key = (view.equations, relevant, words)
        if key not in self._found:
            self._found[key] = self._eliminate(view.equations, relevant, words)
        return self._found[key]

    def _eliminate(
        self, equations: Sequence[Equation], known: frozenset[Secret], words: frozenset[Word]
    ) -> list[dict[Hashable, int]]:
        names = sorted({equation.input for equation in equations})
        opened: dict[Word, int] = {}
        unknown: dict[Word, int] = {}
        for equation in equations:
            for word, (_, openers) in equation.masks.items():
                if openers & known or word in words:
                    opened[word] = _value(word, self.bits)
                else:
                    unknown.setdefault(word, len(unknown))
        rows = []
        for equation in equations:
            row = [0] * (len(unknown) + len(names) + 1)
            row[len(unknown) + names.index(equation.input)] = 1
            row[-1] = equation.value
            for word, (sign, _) in equation.masks.items():
                if word in unknown:
                    row[unknown[word]] = sign
                else:
                    row[-1] -= sign * opened[word]
            rows.append(row)
        found = [row[len(unknown) :] for row in eliminate(rows, len(unknown), 2, self.bits)]
        for *combination, value in found:
            real = sum(c * self.inputs[name] for c, name in zip(combination, names, strict=True))
            assert (real - value) % (1 << self.bits) == 0, "the model of the masks is not the code"
        # Masks enter with +-1 and pair masks as the edges of a graph do: every pivot is odd, and GF(2) must agree.
        assert len(found) == len(rows) - rank([row[: len(unknown)] for row in rows], 2)
        return [{n: c for n, c in zip(names, row, strict=False) if c} for row in found if any(row)]


def _value(word: Word, bits: int) -> int:
    mask = np.zeros(word.place + 1, dtype_for(bits))
    apply_masks(mask, [word.seed], [])
    return int(mask[-1]) % (1 << bits)


def within(found: Sequence[Mapping[Hashable, int]], allowed: Sequence[Iterable[Hashable]], bits: int) -> bool:
    """Whether every combination found is one of the allowed sums over sets of inputs: multiples and totals of them."""
    names = sorted({name for row in found for name in row} | {name for group in allowed for name in group})
    groups = [[int(name in group) for name in names] for group in map(set, allowed)]
    return all(spans(groups, [row.get(name, 0) for name in names], 2, bits) for row in found)
