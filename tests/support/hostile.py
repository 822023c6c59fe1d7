"""Hostile peers: what a lying server or client says instead, and a witness of everything that leaves honest sites.

A lie is a function of the message that would have been said. What a corrupt client says carries its own signature,
what it says in another's name does not: nobody in the model forges Ed25519.
"""

import hashlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, fields, is_dataclass, replace
from typing import Any
from unittest import mock

import numpy as np

import secagg.client
from secagg import ClientSession, Policy, SigningKey, wire
from secagg.keys import MaskKey, Secret
from secagg.masking import pair_mask_seed, self_mask_seed
from secagg.merkle import tree
from secagg.messages import (
    AdvertiseKeys,
    Attestation,
    Bundle,
    EncryptedShares,
    Header,
    MaskedInput,
    Roster,
    ShareReport,
    UnmaskingShares,
)
from secagg.packing import pack, unpack
from secagg.prg import apply_masks
from secagg.roster import PinnedRoster
from secagg.shamir import PRIME, SHARE_BYTES
from secagg.steps import State
from tests.support.cohort import SENDING, Cohort, Play

KEYS, SHARES, REPORT, MASKED, ATTEST, UNMASK = SENDING
ROSTER, INBOX, REPORTS, INCLUDED, ATTESTED, RESULT = (*SENDING[1:], "Result")
"""What the server says is named after the round that it opens."""

VICTIM, COLLUDER = "site-a", "site-d"
OTHER_HASH = bytes([7]) * 32

# --- entries of lists --------------------------------------------------------------------------------------------


def entry_of(entries: Iterable[Any], client_id: str) -> Any:
    return next(entry for entry in entries if entry.client_id == client_id)


def without(entries: Iterable[Any], *gone: str) -> tuple[Any, ...]:
    return tuple(entry for entry in entries if entry.client_id not in gone)


def swapped(entries: Iterable[Any], new: Any) -> tuple[Any, ...]:
    """`entries` with the one of `new.client_id` replaced, in order of the ids."""
    return tuple(sorted([*without(entries, new.client_id), new], key=lambda entry: entry.client_id))


def unchecked(message: Any, **changes: Any) -> Any:
    """A copy that could not be built: a lie does not check its own shape before it is sent."""
    copy = object.__new__(type(message))
    for item in fields(message):
        object.__setattr__(copy, item.name, changes.get(item.name, getattr(message, item.name)))
    return copy


# --- what a corrupt client says ----------------------------------------------------------------------------------

Lie = Callable[[Cohort, Any], Any]


def resigned(**changes: Any) -> Lie:
    return lambda cohort, message: replace(message, **changes).sign(cohort.keys[message.client_id])


def unsigned(**changes: Any) -> Lie:
    return lambda cohort, message: replace(message, **changes)


def dealt(cohort: Cohort, message: EncryptedShares, bundles: Iterable[Bundle]) -> EncryptedShares:
    """Other bundles under a header that commits to them."""
    listed = tuple(bundles)
    header = replace(message.header, bundles_root=tree([bundle.digest() for bundle in listed])[0])
    return EncryptedShares(header.sign(cohort.keys[header.client_id]), listed)


def rebundled(change: Callable[[tuple[Bundle, ...]], Iterable[Bundle]], resign: bool = True) -> Lie:
    """Other bundles, under a header that commits to them or not."""

    def lie(cohort: Cohort, message: EncryptedShares) -> EncryptedShares:
        bundles = tuple(change(message.bundles))
        return dealt(cohort, message, bundles) if resign else EncryptedShares(message.header, bundles)

    return lie


def headed(**changes: Any) -> Lie:
    def lie(cohort: Cohort, message: EncryptedShares) -> EncryptedShares:
        header = replace(message.header, **changes).sign(cohort.keys[message.header.client_id])
        return EncryptedShares(header, message.bundles)

    return lie


def altered(place: int, **changes: Any) -> Callable[[tuple[Bundle, ...]], Iterable[Bundle]]:
    """One bundle changed; a value that is a function is applied to what was there."""

    def change(bundles: tuple[Bundle, ...]) -> Iterable[Bundle]:
        bundle = bundles[place]
        values = {name: value(getattr(bundle, name)) if callable(value) else value for name, value in changes.items()}
        listed = list(bundles)
        listed[place] = replace(bundle, **values)
        return listed

    return change


def flip(value: bytes) -> bytes:
    """The last bit changed."""
    return bytes(value[:-1]) + bytes([value[-1] ^ 1])


def flipped(mapping: Mapping[str, bytes]) -> dict[str, bytes]:
    """The first entry changed in its last bit."""
    (client_id, value), *rest = mapping.items()
    return {client_id: flip(value), **dict(rest)}


def wrong_list(name: str, change: Callable[[Mapping[str, bytes]], Mapping[str, bytes]]) -> Lie:
    return lambda cohort, m: replace(m, **{name: change(getattr(m, name))}).sign(cohort.keys[m.client_id])


def both_lists(cohort: Cohort, message: UnmaskingShares) -> UnmaskingShares:
    """Shares of both kinds for everybody: the message type refuses to hold it."""
    both = {**message.self_seed_shares, **message.mask_key_shares}
    lists = {"self_seed_shares": dict(sorted(both.items())), "mask_key_shares": dict(sorted(both.items()))}
    lie = unchecked(message, **lists)
    return unchecked(lie, signature=cohort.keys[message.client_id].sign(lie.statement()))


def poisoned(policy: Policy, place: int, delta: int) -> Lie:
    """One value of y changed, signed: right where it is an input, and an accident where it is a slot."""

    def lie(cohort: Cohort, message: MaskedInput) -> MaskedInput:
        vector = unpack(message.y, policy.length + policy.slots, policy.bits)
        vector[place] = (int(vector[place]) + delta) % (1 << policy.bits)
        return replace(message, y=pack(vector, policy.bits)).sign(cohort.keys[message.client_id])

    return lie


# --- a dealer that shares something else, consistently ---------------------------------------------------------------


def shares_of(value: int, threshold: int, positions: Iterable[int]) -> list[bytes]:
    """Well-formed shares of any field element, also of one that is no 32-byte secret; the polynomial is value + x."""
    return [((value + x * (threshold > 1)) % PRIME).to_bytes(SHARE_BYTES, "big") for x in positions]


@contextmanager
def dealing(which: int, value: int) -> Iterator[None]:
    """While it lasts, a dealer shares `value` instead of its mask key (which = 0) or its self seed (1)."""
    honest, calls = secagg.client.split, []

    def crooked(secret: bytes, threshold: int, positions: Any) -> list[bytes]:
        calls.append(None)
        if len(calls) == which + 1:
            return shares_of(value, threshold, positions)
        return honest(secret, threshold, positions)

    with mock.patch.object(secagg.client, "split", crooked):
        yield


def deal_otherwise(client: ClientSession, which: int, value: int) -> None:
    """The client deals as in `dealing` when its roster comes."""
    honest = client.receive

    def receive(message: Any) -> Any:
        if not isinstance(message, Roster):
            return honest(message)
        with dealing(which, value):
            return honest(message)

    client.receive = receive  # type: ignore[method-assign]


def lie_about_pair_secrets(client: ClientSession) -> None:
    """The dealer seals, commits to and uses pair secrets that do not follow from its mask key."""
    client._state.mask_key.pair_secret = lambda peer: OTHER_HASH  # type: ignore[attr-defined]


def believe_own_lie(client: ClientSession, said: Any) -> None:
    """The client goes on from what it sent, not from what it would have said."""
    kept = said.header if isinstance(said, EncryptedShares) else said
    names = {AdvertiseKeys: "advertisement", Header: "header", ShareReport: "reported", Attestation: "attestation"}
    name, state = names.get(type(kept)), client._state
    if isinstance(said, MaskedInput):
        name, kept = "mine", said.acceptance()
    if name is not None and hasattr(state, name):
        setattr(state, name, kept)


def lying(play: Play, step: str, liar: str, lie: Lie) -> Play:
    """The liar tells one lie and goes on from it."""

    def up(at: str, who: str, message: Any) -> Any:
        if (at, who) != (step, liar):
            return message
        said = lie(play.cohort, message)
        believe_own_lie(play.clients[liar], said)
        return said

    play.up = up
    return play


# --- bytes ---------------------------------------------------------------------------------------------------------


def varint(number: int) -> bytes:
    """Protobuf's base-128 encoding; a negative number is ten bytes long."""
    number %= 1 << 64
    out = bytearray()
    while True:
        out.append(number & 127 | (128 if number > 127 else 0))
        number >>= 7
        if not number:
            return bytes(out)


GARBLED: Mapping[str, Callable[[bytes], bytes]] = {
    "truncated": lambda data: data[:-1],
    "half": lambda data: data[: len(data) // 2],
    "trailing": lambda data: data + b"\0",
    "doubled": lambda data: data + data,
    "unknown field": lambda data: data + varint(1000 << 3 | 2) + varint(1) + b"x",
    "huge length": lambda data: data[:1] + varint(1 << 40) + data[1:],
    "longest length": lambda data: data[:1] + varint((1 << 64) - 1) + data[1:],
    "negative length": lambda data: data[:1] + varint(-1) + data[2:],
    "short length": lambda data: data[:1] + b"\1" + data[2:],
    "overlong varint": lambda data: data[:1] + b"\x80" * 11 + data[1:],
    "empty": lambda data: b"",
    "zeros": lambda data: bytes(len(data)),
    "ones": lambda data: b"\xff" * len(data),
    "a group": lambda data: b"\x0b" + data,
    "a bit": lambda data: data[: len(data) // 3] + bytes([data[len(data) // 3] ^ 4]) + data[len(data) // 3 + 1 :],
}
"""What may arrive instead of the bytes of a message."""


# --- what a refused message must leave alone -----------------------------------------------------------------------


def fingerprint(thing: Any) -> bytes:
    """Hash of everything that an object holds, so that two moments can be compared byte by byte."""
    hashed = hashlib.sha256()

    def walk(item: Any, path: tuple[int, ...]) -> None:
        if isinstance(item, (bytes, bytearray, memoryview)):
            hashed.update(b"b%d:" % len(item) + bytes(item))
        elif isinstance(item, np.ndarray):
            hashed.update(b"a" + item.dtype.str.encode() + item.tobytes())
        elif item is None or isinstance(item, (str, int, float, type)) or callable(item):
            hashed.update(repr(item).encode() + b";")
        elif id(item) in path or isinstance(item, (Policy, PinnedRoster, SigningKey)):
            hashed.update(b"same;")
        else:
            hashed.update(type(item).__name__.encode() + b"(")
            for value in _parts(item):
                walk(value, (*path, id(item)))
            hashed.update(b")")

    walk(thing, ())
    return hashed.digest()


def _parts(item: Any) -> Iterable[Any]:
    if isinstance(item, Mapping):
        return [part for key in item for part in (key, item[key])]
    if isinstance(item, (set, frozenset)):
        return sorted(item)
    if isinstance(item, (list, tuple)):
        return item
    if is_dataclass(item) and not isinstance(item, State):
        return [getattr(item, part.name) for part in fields(item)]  # a message caches properties: not its fields
    if hasattr(item, "__dict__"):
        return [part for name in sorted(vars(item)) for part in (name, vars(item)[name])]
    return [repr(item)]


def secrets_of(client: ClientSession) -> list[Secret]:
    """The secret objects that a session holds now, to look at them once more when it is over."""
    state, found = client._state, []
    for value in vars(state).values() if isinstance(state, State) else ():
        if isinstance(value, Secret) and not isinstance(value, SigningKey):
            found += [value, *(inner for inner in vars(value).values() if isinstance(inner, Secret))]
    return found


# --- what leaves honest sites --------------------------------------------------------------------------------------


@dataclass
class Witness:
    """Sees every message of every honest client, over the whole life of its store, and objects at once.

    Counting, not algebra: with the corrupt clients' own shares, does the server get t shares of both secrets of an
    honest client, or a second statement on anything that is said once?
    """

    cohort: Cohort
    corrupt: frozenset[str]
    heard: set[tuple[str, bytes]] = field(default_factory=set)
    masked: set[tuple[str, str, int]] = field(default_factory=set)
    released: set[tuple[str, str, int]] = field(default_factory=set)
    attested: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    opened: dict[tuple[str, bytes], bytes] = field(default_factory=dict)
    sets: dict[bytes, tuple[frozenset[str], frozenset[str]]] = field(default_factory=dict)
    shares: dict[tuple[bytes, str, str], set[str]] = field(default_factory=lambda: defaultdict(set))

    def hears(self, client: ClientSession, client_id: str, message: Any) -> None:
        """An honest client said this, just now or (the very same bytes) before."""
        said = (client_id, wire.encode(message))
        if said in self.heard:
            return
        self.heard.add(said)
        own = getattr(client._state, "own", None)
        if isinstance(message, MaskedInput):
            once = (client_id, own.context.training_run, own.context.round_number)
            assert once not in self.masked, f"{client_id} masked two inputs for one round number"
            self.masked.add(once)
            assert len(client._state.sharers) >= self.cohort.policy.min_survivors
        elif isinstance(message, Attestation):
            assert (client_id, own.slot) not in self.attested, f"{client_id} attested two sets"
            self.attested[client_id, own.slot] = message.attested
            self.sets[message.attested] = (frozenset(client._state.included.by_id), client._state.sharers)
        elif isinstance(message, UnmaskingShares):
            once = (client_id, own.context.training_run, own.context.round_number)
            assert once not in self.released, f"{client_id} unmasked twice in one round number"
            self.released.add(once)
            self._releases(own.slot, client_id, message)

    def _releases(self, slot: bytes, client_id: str, message: UnmaskingShares) -> None:
        policy = self.cohort.policy
        included, sharers = self.sets[message.attested]
        signed = {who for (who, at), what in self.attested.items() if (at, what) == (slot, message.attested)}
        assert len(signed | self.corrupt & included) >= policy.threshold, "released without a quorum"
        assert len(included) >= policy.min_survivors
        assert included <= sharers
        assert message.self_seed_shares.keys() == included - {client_id}
        assert message.mask_key_shares.keys() == sharers - included
        self.opened[client_id, slot] = message.attested
        assert len({what for (_, at), what in self.opened.items() if at == slot}) == 1, "two sets were opened"
        for kind, peers in (("b", message.self_seed_shares), ("s", message.mask_key_shares), ("own b", [client_id])):
            for peer in peers:
                self.shares[slot, peer, kind].add(client_id)
        for peer in set(self.cohort.ids) - self.corrupt:
            known = {
                kind for kind in ("b", "s") if len(self.shares[slot, peer, kind] | self.corrupt) >= policy.threshold
            }
            known |= {"b"} if self.shares[slot, peer, "own b"] else set()
            assert known != {"b", "s"}, f"both secrets of {peer} are out"


# --- the attacker's arithmetic -----------------------------------------------------------------------------------


def remove_masks(
    cohort: Cohort,
    roster: Roster,
    round_id: bytes,
    victim: str,
    y: bytes,
    self_seed: bytes | None,
    pairs: Mapping[str, bytes],
) -> np.ndarray:
    """One client's quantised update, from y, the self seed (None: no such mask) and, per peer, what its pair mask is
    derived from."""
    add, subtract = [], []
    if self_seed is not None:
        subtract.append(self_mask_seed(roster.hash, round_id, victim, self_seed))
    for peer, material in pairs.items():
        seed = pair_mask_seed(roster.hash, round_id, (victim, peer), material, b"")
        (subtract if victim < peer else add).append(seed)
    vector = np.array(unpack(y, cohort.length + cohort.policy.slots, cohort.bits))
    apply_masks(vector, add, subtract)
    total: np.ndarray = vector[: cohort.length] & vector.dtype.type((1 << cohort.bits) - 1)
    return total


def pair_material(key: MaskKey, roster: Roster, victim: str, sharers: Iterable[str]) -> dict[str, bytes]:
    """X25519 of the victim's opened mask key with everybody else's public one (X25519 suite)."""
    return {peer: key.exchange(roster.by_id[peer].mask_dh_pk) for peer in sharers if peer != victim}
