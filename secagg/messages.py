"""The messages of the protocol: what each holds, what its sender signs, and how it enters a hash.

A message checks its own shape when it is built, so that code behind it never meets a short key or an unsorted list.
Nothing here decides whether a message is welcome: that is for `client` and `server`. Specification: docs/spec.md,
section "Messages".
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from types import MappingProxyType
from typing import NamedTuple, NoReturn, Self, TypeAlias

from secagg import merkle
from secagg.context import LARGEST_NUMBER, RoundContext, Slot, attested_statement, is_name
from secagg.encoding import (
    HASH_BYTES,
    Buffer,
    Field,
    begun,
    digest,
    encode,
    named_field,
    size_of_field,
    vector_digest,
)
from secagg.errors import AuthenticationError, MalformedMessageError
from secagg.keys import SigningKey, verify
from secagg.policy import MAX_CLIENTS
from secagg.shamir import is_share

SIGNATURE_BYTES = 64
NONCE_BYTES = 16
LARGEST_CLAIMS = 8
"""Releases that an advertisement proves at most: the last ones."""
LARGEST_REASON = 1000
"""Characters of why a server ended an attempt."""


def _require(condition: bool, what: str) -> None:
    if not condition:
        raise _malformed(what)


def _malformed(what: str) -> MalformedMessageError:
    return MalformedMessageError("M-01", f"a message has {what}")


def _hashes(*values: bytes) -> None:
    for value in values:  # tens of thousands a round: no call for each
        if len(value) != HASH_BYTES:
            raise _malformed("a hash or secret that is not 32 bytes")


def _id(client_id: str) -> None:
    if not (0 < len(client_id) <= 64 and client_id.isascii()):
        raise _malformed("an id that is not 1 to 64 ASCII characters")


def _round(training_run: str, round_number: int, attempt: int = 0) -> None:
    _require(is_name(training_run), "a training run that is not printable ASCII")
    in_range = 1 <= round_number <= LARGEST_NUMBER and 0 <= attempt <= LARGEST_NUMBER
    _require(in_range, "a round number or attempt out of range")


def _sorted_ids(ids: Iterable[str]) -> None:
    listed = list(ids)
    for client_id in listed:
        _id(client_id)
    _require(listed == sorted(set(listed)), "ids that are not sorted and distinct")


@dataclass(frozen=True)
class Signed(ABC):
    """A message with an Ed25519 signature over its canonical statement."""

    @abstractmethod
    def statement(self) -> bytes:
        """The canonical bytes that are signed: every field but the signature."""

    @cached_property
    def stated(self) -> bytes:
        """`statement`, made once: it is signed or verified, and then hashed."""
        return self.statement()

    def sign(self, key: SigningKey) -> Self:
        """A copy that carries `key`'s signature, and what was computed for it already: a vector is hashed once."""
        signed = object.__new__(type(self))
        vars(signed).update(vars(self), stated=self.stated, signature=key.sign(self.stated))
        return signed

    def verify(self, verify_key: bytes, check: str, culprit: str = "") -> None:
        """Return nothing, or raise `AuthenticationError(check)` that blames `culprit` (nobody: the server)."""
        if not verify(verify_key, self.stated, getattr(self, "signature", b"")):
            raise AuthenticationError(
                check,
                f"{type(self).__name__} of {culprit or 'the server'} carries a signature that does not verify",
                [culprit] if culprit else [],
            )


@dataclass(frozen=True)
class Receipt(Signed):
    """What the server signs about a completed round; a rejoiner replays the ones that it missed."""

    training_run: str
    round_number: int
    round_id: bytes
    attested: bytes
    total_hash: bytes
    previous_head: bytes
    head: bytes
    signature: bytes = b""

    def __post_init__(self) -> None:
        _hashes(self.round_id, self.attested, self.total_hash, self.previous_head, self.head)
        _round(self.training_run, self.round_number)

    def statement(self) -> bytes:
        """See `Signed.statement`."""
        hashes = (self.round_id, self.attested, self.total_hash, self.previous_head, self.head)
        return encode("receipt", self.training_run, self.round_number, *hashes)


@dataclass(frozen=True)
class RoundStart(Signed):
    """Opens an attempt: the context of the round and every completed round that its reader may have missed."""

    training_run: str
    round_number: int
    attempt: int
    model_hash: bytes
    task_hash: bytes
    previous_head: bytes
    missed: tuple[Receipt, ...] = ()
    signature: bytes = b""

    def __post_init__(self) -> None:
        _hashes(self.model_hash, self.task_hash, self.previous_head)
        _round(self.training_run, self.round_number, self.attempt)

    def statement(self) -> bytes:
        """See `Signed.statement`."""
        missed = [receipt.stated for receipt in self.missed]
        hashes = (self.model_hash, self.task_hash, self.previous_head)
        return encode("round-start", self.training_run, self.round_number, self.attempt, *hashes, missed)


@dataclass(frozen=True)
class ReleaseClaim:
    """Says that unmasking shares were sent for a round, and proves that a quorum had attested its inputs.

    It holds what the round's identifier and its attested statement are hashes of, so that it says by itself which round
    it is about. One liar cannot make it: `attestations` are those that the client had seen before it released (C-05,
    C-26).
    """

    session: bytes
    training_run: str
    round_number: int
    attempt: int
    model_hash: bytes
    task_hash: bytes
    previous_head: bytes
    roster2: bytes
    sharers_hash: bytes
    inputs_hash: bytes
    attestations: Mapping[str, bytes]

    def __post_init__(self) -> None:
        _hashes(self.session, self.model_hash, self.task_hash, self.previous_head)
        _hashes(self.roster2, self.sharers_hash, self.inputs_hash)
        _round(self.training_run, self.round_number, self.attempt)
        _sorted_ids(self.attestations)
        _require(0 < len(self.attestations) <= MAX_CLIENTS, "a claim without attestations, or with too many")
        _require(
            all(len(signature) == SIGNATURE_BYTES for signature in self.attestations.values()),
            "a signature that is not 64 bytes",
        )

    @property
    def slot(self) -> Slot:
        """The attempt."""
        return Slot(self.session, self.training_run, self.round_number, self.attempt)

    @cached_property
    def round_id(self) -> bytes:
        """The round: 32 bytes."""
        hashes = (self.model_hash, self.task_hash, self.previous_head)
        context = RoundContext(self.training_run, self.round_number, self.attempt, *hashes)
        return context.round_id(self.slot.hash, self.roster2, self.sharers_hash)

    @cached_property
    def attested(self) -> bytes:
        """What the attestations sign: 32 bytes."""
        return attested_statement(self.round_id, self.inputs_hash)

    def fields(self) -> list[Field]:
        """As it enters the advertisement's statement."""
        hashes = (self.model_hash, self.task_hash, self.previous_head, self.roster2, self.sharers_hash)
        numbers: tuple[Field, ...] = (self.training_run, self.round_number, self.attempt)
        return [self.session, *numbers, *hashes, self.inputs_hash, named_field(self.attestations)]

    def endorsers(self, pinned: Mapping[str, bytes]) -> frozenset[str]:
        """Which pinned clients attested the inputs of this round, by signatures that verify."""
        return frozenset(
            client_id
            for client_id, signature in self.attestations.items()
            if client_id in pinned
            and verify(pinned[client_id], Attestation(self.attested, client_id).statement(), signature)
        )


@dataclass(frozen=True)
class AdvertiseKeys(Signed):
    """AdvertiseKeys, up: fresh public keys of this slot, and what this data set last released.

    `mask_kem_pk` is empty in the X25519 suite. `released` is the last round of this session for which unmasking shares
    were sent, zeros where there is none; `exposing` proves, where the updates are not private on their own, the rounds
    of any session whose sums could be of the same updates: shares were sent, and the transcript was not replayed, or it
    was another run on this very model.
    """

    slot: bytes
    client_id: str
    channel_pk: bytes
    mask_dh_pk: bytes
    mask_kem_pk: bytes
    nonce: bytes
    released: bytes
    exposing: tuple[ReleaseClaim, ...] = ()
    signature: bytes = b""

    def __post_init__(self) -> None:
        _hashes(self.slot, self.released)
        _id(self.client_id)
        _require(len(self.nonce) == NONCE_BYTES, "a nonce that is not 16 bytes")
        _require(len(self.exposing) <= LARGEST_CLAIMS, "more claims than an honest client makes")

    def statement(self) -> bytes:
        """See `Signed.statement`."""
        keys = (self.channel_pk, self.mask_dh_pk, self.mask_kem_pk)
        claims = [claim.fields() for claim in self.exposing]
        return encode("advertise-keys", self.slot, self.client_id, *keys, self.nonce, self.released, claims)


class Pair(NamedTuple):
    """Two clients as the post-quantum suite sees them: who deals the pair secret, and who gets it sealed."""

    dealer: str
    recipient: str


@dataclass(frozen=True)
class Roster:
    """AdvertiseKeys, down: U1, every signed advertisement in order of the ids."""

    advertisements: tuple[AdvertiseKeys, ...]

    def __post_init__(self) -> None:
        _sorted_ids(self.by_id)
        _require(len(self.by_id) == len(self.advertisements), "two advertisements of one client")

    @cached_property
    def by_id(self) -> Mapping[str, AdvertiseKeys]:
        """Advertisements by client id."""
        return {entry.client_id: entry for entry in self.advertisements}

    @cached_property
    def positions(self) -> Mapping[str, int]:
        """Shamir x of each client: 1 + position in the roster."""
        return {client_id: i for i, client_id in enumerate(self.by_id, start=1)}

    @cached_property
    def hash(self) -> bytes:
        """roster1 = H(sorted signed AdvertiseKeys)."""
        return digest("roster1", [[entry.stated, entry.signature] for entry in self.advertisements])

    def others(self, client_id: str) -> list[str]:
        """Everybody else, in order: whom the bundles and digests of a client are for."""
        return [peer for peer in self.by_id if peer != client_id]

    def pair(self, first: str, second: str) -> Pair:
        """Who of two derives their pair secret and seals it: of neighbours the smaller id, of next but one the larger.

        And so on, so that every client deals half of its pairs, and uploads and works as much as any other.
        """
        even = (self.positions[first] - self.positions[second]) % 2 == 0
        return Pair(max(first, second), min(first, second)) if even else Pair(min(first, second), max(first, second))


@dataclass(frozen=True, repr=False)
class Bundle:
    """ShareKeys, for one peer: the sealed shares, the sealed pair secret, and commitments to both.

    `pair` and `pair_commitment` are empty where the recipient deals the pair secret, and in the X25519 suite.
    """

    shares: bytes
    pair: bytes
    mask_key_commitment: bytes
    self_seed_commitment: bytes
    pair_commitment: bytes

    def __post_init__(self) -> None:
        _hashes(self.mask_key_commitment, self.self_seed_commitment)
        _require(len(self.pair_commitment) in (0, HASH_BYTES), "a commitment that is not 32 bytes")

    def digest(self) -> bytes:
        """H(H(envelope 1) | H(envelope 2, empty if none) | share commitments | C_uv, empty if none)."""
        return bundle_digest(*self.published())

    def published(self) -> tuple[bytes, bytes, bytes, bytes, bytes]:
        """What may be seen of a bundle: H(envelope 1), H(envelope 2, empty if none), the commitments."""
        return (
            _envelope_digest(self.shares),
            _envelope_digest(self.pair) if self.pair else b"",
            self.mask_key_commitment,
            self.self_seed_commitment,
            self.pair_commitment,
        )


def _envelope_digest(envelope: bytes) -> bytes:
    return hashlib.sha256(begun("envelope") + size_of_field(len(envelope)) + envelope).digest()


def bundle_digest(*published: bytes) -> bytes:
    """The digest of the bundle of which these hashes and commitments are published: 32 bytes."""
    return digest("bundle", *published)


@dataclass(frozen=True)
class Header(Signed):
    """ShareKeys: the dealer's signed commitment to b_u and to every bundle.

    `bundles_root` is the root of the tree over the bundles' digests, in roster order with the dealer left out.
    """

    slot: bytes
    roster1: bytes
    client_id: str
    self_commitment: bytes
    bundles_root: bytes
    signature: bytes = b""

    def __post_init__(self) -> None:
        _hashes(self.slot, self.roster1, self.self_commitment, self.bundles_root)
        _id(self.client_id)

    def __hash__(self) -> int:
        """Of its signature: all headers are looked up together for every reader (`secagg.wire`)."""
        return hash(self.signature)

    def statement(self) -> bytes:
        """See `Signed.statement`."""
        return encode("header", self.slot, self.roster1, self.client_id, self.self_commitment, self.bundles_root)

    def covers(self, bundle: Bundle, path: bytes, peer: str, roster: Roster) -> bool:
        """Whether this is the dealer's bundle for a peer: its path leads from its place in the roster to the root."""
        place = roster.positions[peer] - 1 - (roster.positions[peer] > roster.positions[self.client_id])
        try:
            return merkle.root_of(bundle.digest(), place, len(roster.by_id) - 1, path) == self.bundles_root
        except ValueError:
            return False


@dataclass(frozen=True, repr=False)
class EncryptedShares:
    """ShareKeys, up: a dealer's header and its bundle for every peer, in roster order with itself left out."""

    header: Header
    bundles: tuple[Bundle, ...]

    @cached_property
    def tree(self) -> tuple[bytes, tuple[bytes, ...]]:
        """The root over the digests of the bundles, and the path of each."""
        return merkle.tree([bundle.digest() for bundle in self.bundles])


@dataclass(frozen=True)
class ShareInbox:
    """ShareKeys, down: the headers of all dealers, and from each other dealer the bundle for the reader with its path.

    A path is the concatenation of siblings, 32 bytes each, from the bundle's digest up to the root in the header.
    """

    headers: tuple[Header, ...]
    bundles: tuple[Bundle, ...]
    paths: tuple[bytes, ...]

    def __post_init__(self) -> None:
        _sorted_ids(self.by_dealer)
        _require(len(self.by_dealer) == len(self.headers), "two headers of one dealer")
        _require(not any(len(path) % HASH_BYTES for path in self.paths), "a path that is not of hashes of 32 bytes")

    @cached_property
    def by_dealer(self) -> Mapping[str, Header]:
        """Headers by dealer id."""
        return {header.client_id: header for header in self.headers}

    @cached_property
    def roster2(self) -> bytes:
        """roster2 = H(sorted headers)."""
        return headers_hash(self.headers)


def headers_hash(headers: Iterable[Header]) -> bytes:
    """roster2 = H(sorted signed headers): 32 bytes."""
    return digest("roster2", [[header.stated, header.signature] for header in headers])


@dataclass(frozen=True)
class ShareReport(Signed):
    """ShareReport, up: every envelope opened and every commitment matched, or the id of one dealer whose did not.

    A complaint reveals neither key nor share.
    """

    slot: bytes
    roster1: bytes
    roster2: bytes
    client_id: str
    complaint: str = ""
    signature: bytes = b""

    def __post_init__(self) -> None:
        _hashes(self.slot, self.roster1, self.roster2)
        _id(self.client_id)
        _require(self.complaint.isascii() and len(self.complaint) <= 64, "a complaint that names no id")

    def statement(self) -> bytes:
        """See `Signed.statement`."""
        return encode("share-report", self.slot, self.roster1, self.roster2, self.client_id, self.complaint)


@dataclass(frozen=True)
class Reports:
    """ShareReport, down: U2 is the signers of these reports."""

    reports: tuple[ShareReport, ...]

    def __post_init__(self) -> None:
        _sorted_ids(self.by_id)
        _require(len(self.by_id) == len(self.reports), "two reports of one client")

    @cached_property
    def by_id(self) -> Mapping[str, ShareReport]:
        """Reports by client id."""
        return {report.client_id: report for report in self.reports}

    @cached_property
    def sharers_hash(self) -> bytes:
        """H(U2)."""
        return digest("sharers", list(self.by_id))


@dataclass(frozen=True, repr=False)
class MaskedInput(Signed):
    """MaskedInputCollection, up: y_u, values and slots modulo 2^b as `packing.pack` lays them out; H(y) is signed."""

    round_id: bytes
    roster1: bytes
    roster2: bytes
    sharers_hash: bytes
    client_id: str
    y: Buffer
    signature: bytes = b""

    def __post_init__(self) -> None:
        _hashes(self.round_id, self.roster1, self.roster2, self.sharers_hash)
        _id(self.client_id)

    @cached_property
    def y_hash(self) -> bytes:
        """HV(y)."""
        return vector_digest("masked-vector", self.y)

    def statement(self) -> bytes:
        """See `Signed.statement`."""
        return self.acceptance().statement()

    def acceptance(self) -> "AcceptedInput":
        """What everybody learns about this message: its hash and its signature."""
        hashes = (self.round_id, self.roster1, self.roster2, self.sharers_hash)
        return AcceptedInput(*hashes, self.client_id, self.y_hash, self.signature)


@dataclass(frozen=True)
class AcceptedInput(Signed):
    """MaskedInputCollection, down: a client of U3, the hash of its masked input, and its own signature on both."""

    round_id: bytes
    roster1: bytes
    roster2: bytes
    sharers_hash: bytes
    client_id: str
    y_hash: bytes
    signature: bytes = b""

    def __post_init__(self) -> None:
        _hashes(self.round_id, self.roster1, self.roster2, self.sharers_hash, self.y_hash)
        _id(self.client_id)

    def statement(self) -> bytes:
        """See `Signed.statement`."""
        hashes = (self.round_id, self.roster1, self.roster2, self.sharers_hash)
        return encode("masked-input", *hashes, self.client_id, self.y_hash)


@dataclass(frozen=True)
class IncludedSet:
    """MaskedInputCollection, down: U3 with the signature of each of its clients on its own masked input."""

    inputs: tuple[AcceptedInput, ...]

    def __post_init__(self) -> None:
        _sorted_ids(self.by_id)
        _require(0 < len(self.by_id) == len(self.inputs), "no masked inputs, or two of one client")

    @cached_property
    def by_id(self) -> Mapping[str, AcceptedInput]:
        """Accepted inputs by client id."""
        return {entry.client_id: entry for entry in self.inputs}

    @cached_property
    def inputs_hash(self) -> bytes:
        """H(U3 | H(y) of each): 32 bytes."""
        return digest("inputs", list(self.by_id), [entry.y_hash for entry in self.inputs])

    @cached_property
    def attested(self) -> bytes:
        """H(round | inputs): the thing that clients attest. The round binds roster1, roster2 and U2."""
        return attested_statement(self.inputs[0].round_id, self.inputs_hash)


@dataclass(frozen=True)
class Attestation(Signed):
    """ConsistencyCheck, up: one client's signature on the one U3 that it has seen."""

    attested: bytes
    client_id: str
    signature: bytes = b""

    def __post_init__(self) -> None:
        _hashes(self.attested)
        _id(self.client_id)

    def statement(self) -> bytes:
        """See `Signed.statement`."""
        return encode("attestation", self.attested, self.client_id)


@dataclass(frozen=True)
class Attestations:
    """ConsistencyCheck, down: U4 is the signers."""

    attestations: tuple[Attestation, ...]

    def __post_init__(self) -> None:
        _sorted_ids(self.by_id)
        _require(len(self.by_id) == len(self.attestations), "two attestations of one client")

    @cached_property
    def by_id(self) -> Mapping[str, Attestation]:
        """Attestations by client id."""
        return {entry.client_id: entry for entry in self.attestations}


@dataclass(frozen=True, repr=False)
class UnmaskingShares(Signed):
    """Unmasking, up: own b_u; b shares of U3; s shares of U2 minus U3 and, in the X-Wing suite, pair secrets with them.

    `excess_seeds` are of the own noise that a sum over so many does not need, where the policy says so.
    Shares of both kinds for one peer cannot be held: building the message raises `MalformedMessageError`.
    """

    round_id: bytes
    attested: bytes
    client_id: str
    self_seed: bytes
    self_seed_shares: Mapping[str, bytes]
    mask_key_shares: Mapping[str, bytes]
    pair_secrets: Mapping[str, bytes]
    signature: bytes = b""
    excess_seeds: tuple[bytes, ...] = ()

    def __post_init__(self) -> None:
        _hashes(self.round_id, self.attested, self.self_seed, *self.pair_secrets.values(), *self.excess_seeds)
        distinct = len(set(self.excess_seeds)) == len(self.excess_seeds) <= MAX_CLIENTS
        _require(distinct, "seeds of excess noise that are not distinct, or more than there can be")
        for ids in (self.self_seed_shares, self.mask_key_shares, self.pair_secrets, [self.client_id]):
            _sorted_ids(ids)
        _require(not self.self_seed_shares.keys() & self.mask_key_shares.keys(), "shares of both kinds for one peer")
        _require(self.pair_secrets.keys() <= self.mask_key_shares.keys(), "a pair secret of a client that is included")
        shares = [*self.self_seed_shares.values(), *self.mask_key_shares.values()]
        _require(all(map(is_share, shares)), "a share outside the field")

    def __reduce__(self) -> NoReturn:
        raise TypeError("UnmaskingShares holds shares and is never pickled: use secagg.wire")

    def statement(self) -> bytes:
        """See `Signed.statement`."""
        items = map(named_field, (self.self_seed_shares, self.mask_key_shares, self.pair_secrets))
        excess: list[Field] = [list(self.excess_seeds)] if self.excess_seeds else []
        return encode("unmasking", self.round_id, self.attested, self.client_id, self.self_seed, *items, *excess)


def result_hash(total_hash: bytes, excess_seeds: Mapping[str, bytes]) -> bytes:
    """HV(sum) alone where nobody disclosed a seed, else H(HV(sum) | who | seeds of each): 32 bytes."""
    return digest("result", total_hash, named_field(excess_seeds)) if excess_seeds else total_hash


@dataclass(frozen=True, repr=False)
class Result:
    """Result, down: the packed sum (slots included) and the server's signed receipt with the new head.

    `excess_seeds` are those that clients disclosed for this sum, by client, one behind the other.
    """

    total: Buffer
    receipt: Receipt
    excess_seeds: Mapping[str, bytes] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _sorted_ids(self.excess_seeds)
        _require(all(self.excess_seeds.values()), "a client that discloses seeds of excess noise, and none")

    @staticmethod
    def hash_of(total: Buffer, excess_seeds: Mapping[str, bytes] = MappingProxyType({})) -> bytes:
        """HV(sum) of a packed sum, or the hash of that and of all seeds where there are some: 32 bytes."""
        return result_hash(vector_digest("total", total), excess_seeds)

    @cached_property
    def total_hash(self) -> bytes:
        """What the receipt and the head hold of this result."""
        return self.hash_of(self.total, self.excess_seeds)


@dataclass(frozen=True)
class Confirmation(Signed):
    """Result, up: the client recomputed this head from its own view of the round and the sum that it was shown."""

    head: bytes
    client_id: str
    signature: bytes = b""

    def __post_init__(self) -> None:
        _hashes(self.head)
        _id(self.client_id)

    def statement(self) -> bytes:
        """See `Signed.statement`."""
        return encode("confirmation", self.head, self.client_id)


@dataclass(frozen=True)
class Abort:
    """Any step, down: this attempt has no sum and nothing more comes; why, in one sentence for people.

    It says no more than a server that falls silent, only sooner: it asks for nothing and clears no mark.
    """

    slot: bytes
    reason: str

    def __post_init__(self) -> None:
        _hashes(self.slot)
        well = len(self.reason) <= LARGEST_REASON and self.reason.isascii() and self.reason.isprintable()
        _require(well, "a reason that is not printable ASCII, or too long")

    @classmethod
    def because(cls, slot: bytes, reason: object) -> Self:
        """Of a reason of any text and length."""
        return cls(slot, "".join(c if c.isascii() and c.isprintable() else "?" for c in str(reason))[:LARGEST_REASON])


@dataclass(frozen=True)
class SlotsFailed:
    """Blame, down: the constant slots of this round's sum are wrong; who released shares is to show its slot masks."""

    round_id: bytes
    attested: bytes

    def __post_init__(self) -> None:
        _hashes(self.round_id, self.attested)


@dataclass(frozen=True, repr=False)
class SlotMasks(Signed):
    """Blame, up: by peer of U2, the words that masked the sender's constant slots with that peer.

    They say nothing about values: the slots are public constants, and the words of a keystream that masked values lie
    at other positions.
    """

    round_id: bytes
    attested: bytes
    client_id: str
    masks: Mapping[str, bytes]
    signature: bytes = b""

    def __post_init__(self) -> None:
        _hashes(self.round_id, self.attested)
        _sorted_ids(self.masks)
        _require(len({len(mask) for mask in self.masks.values()}) <= 1, "slot masks of several lengths")
        _id(self.client_id)

    def statement(self) -> bytes:
        """See `Signed.statement`."""
        return encode("slot-masks", self.round_id, self.attested, self.client_id, named_field(self.masks))


FromClient: TypeAlias = (
    AdvertiseKeys
    | EncryptedShares
    | ShareReport
    | MaskedInput
    | Attestation
    | UnmaskingShares
    | Confirmation
    | SlotMasks
)
FromServer: TypeAlias = (
    RoundStart | Roster | ShareInbox | Reports | IncludedSet | Attestations | Result | SlotsFailed | Abort
)
