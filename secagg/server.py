"""The server: collects each step's messages, drops culprits, and opens nothing but the sum.

It runs every check that a client would, first, so that an honest server never makes an honest client abort. It draws
no randomness and holds no secret but what clients release in Unmasking. Specification: docs/spec.md, section
"Steps of a round", in the same order; ids such as S-16 are rows of its table of checks.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from itertools import chain
from operator import attrgetter
from typing import Any, ClassVar, NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from secagg.context import RoundContext, next_head
from secagg.errors import (
    AuthenticationError,
    ComplaintError,
    InconsistentViewError,
    MalformedMessageError,
    ProtocolError,
    ShareError,
    TooFewClientsError,
    UnexpectedMessageError,
)
from secagg.keys import MaskKey, SigningKey, check_public, envelope_length
from secagg.masking import (
    PAIR_PLAINTEXT_BYTES,
    SHARES_PLAINTEXT_BYTES,
    Vector,
    envelope_info,
    pair_commitment,
    pair_mask_seed,
    self_commitment,
    self_mask_seed,
    share_commitments,
    slot_mask,
    slot_values,
    without_masks,
)
from secagg.messages import (
    AdvertiseKeys,
    Attestation,
    Attestations,
    Bundle,
    Confirmation,
    EncryptedShares,
    FromClient,
    IncludedSet,
    MaskedInput,
    Receipt,
    Reports,
    Result,
    Roster,
    ShareInbox,
    ShareReport,
    SlotMasks,
    SlotsFailed,
    UnmaskingShares,
    headers_hash,
)
from secagg.packing import add_packed, modulo, pack_into, packed_size, unpack, values_at
from secagg.policy import Policy, Suite
from secagg.prg import Executor, apply_masks, begin_masks, zeros
from secagg.roster import PinnedRoster
from secagg.shamir import combine
from secagg.steps import (
    ADVERTISE_KEYS,
    BLAME,
    CONSISTENCY_CHECK,
    MASKED_INPUT_COLLECTION,
    RESULT,
    SHARE_KEYS,
    SHARE_REPORT,
    UNMASKING,
    State,
)


@dataclass(frozen=True, eq=False)
class Round:
    """What does not change within a slot."""

    policy: Policy
    pinned: PinnedRoster
    context: RoundContext
    session: bytes
    slot: bytes
    signing_key: SigningKey | None
    executor: Executor | None


class Promised(NamedTuple):
    """What is kept of a bundle that was delivered: the commitments, and the pair secret's envelope.

    The envelope is needed only where a dropped client's key has to open it, because the dealer fell silent too.
    """

    mask_key_commitment: bytes
    self_seed_commitment: bytes
    pair_commitment: bytes
    pair: bytes

    @classmethod
    def of(cls, bundle: Bundle) -> "Promised":
        """Of a whole bundle."""
        return cls._make(_PROMISED(bundle))


@dataclass(frozen=True, eq=False, repr=False)
class Dealt:
    """What ShareKeys fixed: U1, H(headers), and by dealer its promise to every holder and its self commitment."""

    roster: Roster
    roster2: bytes
    bundles: Mapping[str, Mapping[str, Promised]]
    self_commitments: Mapping[str, bytes]

    def without_envelopes(self, but_to: Collection[str]) -> "Dealt":
        """Keeps the sealed pair secrets of these clients alone: nobody else's key will be opened."""
        bundles = {
            dealer: {
                peer: kept._replace(pair=b"") if kept.pair and peer not in but_to else kept
                for peer, kept in sent.items()
            }
            for dealer, sent in self.bundles.items()
        }
        return replace(self, bundles=bundles)


@dataclass(frozen=True, eq=False, repr=False)
class Collected:
    """What MaskedInputCollection fixed: the round, U2, U3, the packed sum of all y, and the constant slots of each."""

    round_id: bytes
    sharers: frozenset[str]
    included: IncludedSet
    planes: NDArray[np.uint8]
    slots: Mapping[str, Vector]

    @property
    def dropped(self) -> list[str]:
        """U2 minus U3, sorted."""
        return sorted(self.sharers - self.included.by_id.keys())


class Collecting(State, ABC):
    """One step's worth of messages: at most one from each expected client, checked on arrival.

    `step` is its name; `expected` is who may still send; `received` is whose message was accepted.
    """

    step: ClassVar[str]
    accepts: ClassVar[type]

    def __init__(self, round: Round, expected: Iterable[str]) -> None:
        self.round = round
        self.expected = frozenset(expected)
        self.received: dict[str, Any] = {}

    def receive(self, sender: str, message: FromClient) -> bool:
        """Accept a message or raise; a byte-identical repeat changes nothing, a refused message leaves no trace.

        Returns:
            Whether the message was new.

        Raises:
            ProtocolError: S-01 out of turn, S-02 a second and different message, or what the step's own checks find.
        """
        if sender not in self.expected or not isinstance(message, self.accepts):
            raise UnexpectedMessageError("S-01", f"{type(message).__name__} of {sender} is out of turn in {self.step}")
        if self.took(sender, message):
            return False
        if sender in self.received:
            raise UnexpectedMessageError("S-02", f"{sender} sent two different messages in {self.step}", [sender])
        self._check(sender, message)
        self.received[sender] = self._kept(message)
        return True

    def took(self, sender: str, message: FromClient) -> bool:
        """Whether this very message of this sender was accepted."""
        known = sender in self.received and isinstance(message, self.accepts)
        return known and self.received[sender] == self._kept(message)

    @property
    def ready(self) -> bool:
        """Whether every expected client has been heard."""
        return len(self.received) == len(self.expected)

    @property
    def needed(self) -> int:
        """With fewer messages than this the step cannot be closed, or says nothing."""
        return self.round.policy.min_survivors

    def _kept(self, message: Any) -> Any:
        return message

    @abstractmethod
    def _check(self, sender: str, message: Any) -> None:
        """The step's own checks on a first message of `sender`; takes in what it accepts."""

    def _in_order(self) -> list[Any]:
        return [self.received[client_id] for client_id in sorted(self.received)]

    def _enough(self) -> None:
        if len(self.received) < self.needed:
            raise TooFewClientsError(self.step, len(self.received), self.needed)

    def _elsewhere(self, check: str, what: str) -> ProtocolError:
        """No culprit where the signature is good and the subject another: a late message of an honest client."""
        return InconsistentViewError(check, what)

    def _own(self, sender: str, claimed: str) -> None:
        if claimed != sender:
            raise AuthenticationError("S-03", f"{sender} sent a message in the name of {claimed}", [sender])


def _repeats(seen: set[bytes], values: Iterable[bytes]) -> bool:
    """Whether one of these values, empty ones aside, is among the others or was seen before in this slot."""
    given = [value for value in values if value]
    return len(set(given)) != len(given) or not seen.isdisjoint(given)


# --- AdvertiseKeys -----------------------------------------------------------------------------------------------


class Advertising(Collecting):
    """Collects fresh public keys: U1."""

    step = ADVERTISE_KEYS
    accepts = AdvertiseKeys

    def __init__(self, round: Round, expected: Iterable[str]) -> None:
        super().__init__(round, expected)
        self._seen: set[bytes] = set()

    def _check(self, sender: str, message: AdvertiseKeys) -> None:
        self._own(sender, message.client_id)
        message.verify(self.round.pinned[sender], "S-04", sender)
        if message.slot != self.round.slot:
            raise self._elsewhere("S-04", f"{sender} joins another slot: it is late, or its study or roster differs")
        keys = (message.channel_pk, message.mask_dh_pk, message.mask_kem_pk)
        if not check_public(self.round.policy.suite, *keys) or _repeats(self._seen, (*keys, message.nonce)):
            raise MalformedMessageError("S-05", f"{sender} advertises keys that are unusable or not fresh", [sender])
        for claim in message.exposing:
            same = claim.session == self.round.session
            if same and len(claim.endorsers(self.round.pinned)) < self.round.policy.threshold:
                raise AuthenticationError("S-22", f"{sender} claims a release that no quorum attested", [sender])
        self._seen.update(filter(None, (*keys, message.nonce)))

    def close(self) -> tuple["SharingKeys", Mapping[str, Roster]]:
        """Fix U1 and tell it to its members."""
        self._leave()
        self._enough()
        roster = Roster(tuple(self._in_order()))
        return SharingKeys(self.round, roster), dict.fromkeys(self.received, roster)


# --- ShareKeys ---------------------------------------------------------------------------------------------------


_SAID = attrgetter("shares", "pair", "mask_key_commitment", "self_seed_commitment", "pair_commitment")
_PROMISED = attrgetter(*Promised._fields)


class SharingKeys(Collecting):
    """Collects sealed shares; the dealers are the signers of complete, well-formed bundles."""

    step = SHARE_KEYS
    accepts = EncryptedShares

    def __init__(self, round: Round, roster: Roster) -> None:
        super().__init__(round, roster.by_id)
        self.roster = roster
        self._seen = {key for u in roster.by_id.values() for key in (u.channel_pk, u.mask_dh_pk, u.mask_kem_pk) if key}

    def _check(self, sender: str, message: EncryptedShares) -> None:
        header, suite = message.header, self.round.policy.suite
        hybrid = suite is Suite.MLKEM768_X25519
        self._own(sender, header.client_id)
        header.verify(self.round.pinned[sender], "S-06", sender)
        if (header.slot, header.roster1) != (self.round.slot, self.roster.hash):
            raise self._elsewhere("S-06", f"the header of {sender} is for another slot or roster")
        if header.bundles_root != message.tree[0]:
            raise InconsistentViewError("S-07", f"the bundles of {sender} do not match its signed header", [sender])
        peers = self.roster.others(sender)
        sealed = envelope_length(suite, SHARES_PLAINTEXT_BYTES)
        for peer, bundle in zip(peers, message.bundles, strict=False):
            paired = hybrid and self.roster.pair(sender, peer).dealer == sender
            pair = envelope_length(suite, PAIR_PLAINTEXT_BYTES) if paired else 0
            if (len(bundle.shares), len(bundle.pair), bool(bundle.pair_commitment)) != (sealed, pair, paired):
                raise MalformedMessageError("S-08", f"{sender} sends envelopes of the wrong size", [sender])
        if len(peers) != len(message.bundles):
            raise MalformedMessageError("S-08", f"{sender} does not send one bundle to every peer", [sender])
        # Nobody opens what is for a silent peer: a liar's repetition would show first in this server's transcript.
        said = [header.self_commitment, header.bundles_root, *chain.from_iterable(map(_SAID, message.bundles))]
        if _repeats(self._seen, said):
            raise MalformedMessageError("S-08", f"{sender} sends an envelope or a commitment twice", [sender])
        self._seen.update(filter(None, said))

    def close(self) -> tuple["Reporting", Mapping[str, ShareInbox]]:
        """Fix the dealers and relay to each the bundles for it, with all headers."""
        self._leave()
        self._enough()
        dealt = {dealer: self._by_peer(dealer) for dealer in sorted(self.received)}
        headers = tuple(message.header for message in self._in_order())
        inboxes = {}
        for reader in dealt:
            bundles, paths = zip(*(sent[reader] for dealer, sent in dealt.items() if dealer != reader), strict=True)
            inboxes[reader] = ShareInbox(headers, bundles, paths)
        kept = {
            dealer: {peer: Promised.of(bundle) for peer, (bundle, _) in sent.items()} for dealer, sent in dealt.items()
        }
        commitments = {header.client_id: header.self_commitment for header in headers}
        return Reporting(self.round, Dealt(self.roster, headers_hash(headers), kept, commitments)), inboxes

    def _by_peer(self, dealer: str) -> dict[str, tuple[Bundle, bytes]]:
        message = self.received[dealer]
        return dict(zip(self.roster.others(dealer), zip(message.bundles, message.tree[1], strict=True), strict=True))


# --- ShareReport -------------------------------------------------------------------------------------------------


class Reporting(Collecting):
    """Collects share reports: U2, unless somebody complains, which ends the attempt."""

    step = SHARE_REPORT
    accepts = ShareReport

    def __init__(self, round: Round, dealt: Dealt) -> None:
        super().__init__(round, dealt.bundles)
        self.dealt = dealt

    def _check(self, sender: str, message: ShareReport) -> None:
        self._own(sender, message.client_id)
        message.verify(self.round.pinned[sender], "S-09", sender)
        view = (self.round.slot, self.dealt.roster.hash, self.dealt.roster2)
        if (message.slot, message.roster1, message.roster2) != view:
            raise self._elsewhere("S-09", f"{sender} reports on another round")
        if message.complaint and message.complaint not in self.expected - {sender}:
            raise MalformedMessageError("S-09", f"{sender} complains about somebody who dealt nothing", [sender])

    def close(self) -> tuple["CollectingInputs", Mapping[str, Reports]]:
        """Fix U2 and tell it to its members; from here the round completes or burns.

        Raises:
            ComplaintError: a client could not open what a dealer sealed for it.
            TooFewClientsError: |U2| < min_survivors.
        """
        self._leave()
        complaints = [(sender, m.complaint) for sender, m in self.received.items() if m.complaint]
        if complaints:
            raise ComplaintError(self.step, complaints)
        self._enough()
        reports = Reports(tuple(self._in_order()))
        return CollectingInputs(self.round, self.dealt, reports), dict.fromkeys(self.received, reports)


# --- MaskedInputCollection ---------------------------------------------------------------------------------------


class CollectingInputs(Collecting):
    """Adds masked inputs as they come: U3. Memory: one accumulator, whatever the number of clients."""

    step = MASKED_INPUT_COLLECTION
    accepts = MaskedInput

    def __init__(self, round: Round, dealt: Dealt, reports: Reports) -> None:
        super().__init__(round, reports.by_id)
        self.dealt, policy = dealt, round.policy
        self.round_id = round.context.round_id(round.slot, dealt.roster2, reports.sharers_hash)
        self._view = (self.round_id, dealt.roster.hash, dealt.roster2, reports.sharers_hash)
        self._planes = zeros(packed_size(policy.length + policy.slots, policy.bits), np.uint8)
        self._slots: dict[str, Vector] = {}

    def _kept(self, message: MaskedInput) -> Any:
        return message.acceptance()

    def _check(self, sender: str, message: MaskedInput) -> None:
        self._own(sender, message.client_id)
        message.verify(self.round.pinned[sender], "S-10", sender)
        if (message.round_id, message.roster1, message.roster2, message.sharers_hash) != self._view:
            raise self._elsewhere("S-10", f"{sender} masked for another round, model or set of sharers")
        if any(message.y_hash == accepted.y_hash for accepted in self.received.values()):
            raise MalformedMessageError("S-11", f"{sender} sends the masked input of another client", [sender])
        policy = self.round.policy
        count = policy.length + policy.slots
        try:
            add_packed(self._planes, message.y, count, policy.bits)
        except ValueError as error:
            raise MalformedMessageError("S-11", f"the masked input of {sender}: {error}", [sender]) from None
        # Whose they are is only asked where their sum is wrong (S-19).
        self._slots[sender] = values_at(message.y, slice(policy.length, count), count, policy.bits)

    def close(self) -> tuple["Attesting", Mapping[str, IncludedSet]]:
        """Fix U3 and show each of its members every signature on it."""
        self._leave()
        self._enough()
        included = IncludedSet(tuple(self._in_order()))
        collected = Collected(self.round_id, self.expected, included, self._planes, self._slots)
        kept = self.dealt.without_envelopes(but_to=collected.dropped)
        return Attesting(self.round, kept, collected), dict.fromkeys(self.received, included)


# --- ConsistencyCheck --------------------------------------------------------------------------------------------


class Attesting(Collecting):
    """Collects signatures on the one U3: U4."""

    step = CONSISTENCY_CHECK
    accepts = Attestation

    def __init__(self, round: Round, dealt: Dealt, collected: Collected) -> None:
        super().__init__(round, collected.included.by_id)
        self.dealt, self.collected = dealt, collected

    @property
    def needed(self) -> int:
        """A quorum."""
        return self.round.policy.threshold

    def _check(self, sender: str, message: Attestation) -> None:
        self._own(sender, message.client_id)
        message.verify(self.round.pinned[sender], "S-12", sender)
        if message.attested != self.collected.included.attested:
            raise self._elsewhere("S-12", f"{sender} attests another set of included clients")

    def close(self) -> tuple["Unmasking", Mapping[str, Attestations]]:
        """Show the quorum to those who formed it."""
        self._leave()
        self._enough()
        attestations = Attestations(tuple(self._in_order()))
        unmasking = Unmasking(self.round, self.dealt, self.collected, self.received)
        return unmasking, dict.fromkeys(self.received, attestations)


# --- Unmasking ---------------------------------------------------------------------------------------------------


class Unmasking(Collecting):
    """Collects released shares: U5; reconstructs each self seed of U3 and each mask key of U2 minus U3.

    With an executor the work begins at the t-th message: U3 and the dropped are fixed, and every share that was taken
    is the one that its dealer committed to (S-16). `close` decides everything with the shares that it has then.

    Attributes:
        opened: (dealer, dropped) to the pair secret that was opened with the key of the dropped: its dealer is silent.
    """

    step = UNMASKING
    accepts = UnmaskingShares

    def __init__(self, round: Round, dealt: Dealt, collected: Collected, attesters: Iterable[str]) -> None:
        super().__init__(round, attesters)
        self.dealt, self.collected, self.dropped = dealt, collected, collected.dropped
        self.opened: dict[tuple[str, str], bytes] = {}
        self._keys: dict[str, MaskKey] = {}
        self._pair_seeds: dict[tuple[str, str], bytes] = {}
        self._ahead: _Ahead | None = None

    @property
    def needed(self) -> int:
        """Shares of t clients give every secret."""
        return self.round.policy.threshold

    def _check(self, sender: str, message: UnmaskingShares) -> None:
        self._own(sender, message.client_id)
        message.verify(self.round.pinned[sender], "S-13", sender)
        included, roster, slot = self.collected.included, self.dealt.roster, self.round.slot
        if (message.round_id, message.attested) != (self.collected.round_id, included.attested):
            raise self._elsewhere("S-13", f"{sender} unmasks another round")
        paired = [peer for peer in self.dropped if roster.by_id[peer].mask_kem_pk]
        lists = (list(message.self_seed_shares), list(message.mask_key_shares), list(message.pair_secrets))
        if lists != (sorted(included.by_id.keys() - {sender}), self.dropped, paired):
            raise InconsistentViewError("S-14", f"{sender} releases shares for the wrong clients", [sender])
        if len(message.excess_seeds) not in (0, self.round.policy.excess(len(included.inputs))):
            raise InconsistentViewError("S-14", f"{sender} discloses seeds of noise that this sum needs", [sender])
        if any(seed in known.excess_seeds for known in self.received.values() for seed in message.excess_seeds):
            raise InconsistentViewError("S-14", f"{sender} discloses a seed of another client", [sender])
        if self_commitment(slot, sender, message.self_seed) != self.dealt.self_commitments[sender]:
            raise ShareError("S-15", f"{sender} releases a self seed that it never committed to", [sender])
        for kind, released in (("s", message.mask_key_shares), ("b", message.self_seed_shares)):
            for dealer, commitment in share_commitments(slot, roster.hash, sender, kind, released).items():
                bundle = self.dealt.bundles[dealer][sender]
                if commitment != (bundle.mask_key_commitment if kind == "s" else bundle.self_seed_commitment):
                    raise ShareError("S-16", f"{sender} releases a share of {dealer} that does not match", [sender])
        for peer, secret in message.pair_secrets.items():
            pair = roster.pair(sender, peer)
            promised = self.dealt.bundles[pair.dealer][pair.recipient].pair_commitment
            if pair_commitment(slot, *pair, secret) != promised:
                raise ShareError("S-17", f"{sender} releases a pair secret with {peer} that does not match", [sender])

    def receive(self, sender: str, message: FromClient) -> bool:
        """See `Collecting.receive`; where there is an executor it begins to expand masks when t messages are there."""
        new = super().receive(sender, message)
        if new and self.round.executor is not None and len(self.received) >= self.round.policy.threshold:
            # A dealer lied, or the executor fails: `close` does it all again, with the shares that are there then, and
            # says so. The message was good and was taken.
            with suppress(Exception):
                self._go_ahead(self.round.executor, sender)
        return new

    def _go_ahead(self, executor: Executor, sender: str) -> None:
        if self._ahead is None:
            masks = self._masks(self._self_mask_seeds(), self.received)  # first: a lie costs no pass over the sum
            self._ahead = _Ahead(self._total(), masks, executor)
        else:
            for dropped, key in self._keys.items():  # the exchanges are done when `close` wants the seeds
                self._pair_seed(key, dropped, sender)

    def close(self) -> tuple["Confirming", Mapping[str, Result]] | tuple["Blaming", Mapping[str, SlotsFailed]]:
        """Remove the masks that did not cancel, and tell the sum to every included client.

        Where the constant slots do not add up there is no sum, and whoever released shares is asked for its slot masks.

        Raises:
            TooFewClientsError: fewer than t clients released their shares; the round is burned.
            ShareError: S-18 a dealer whose shares miss what it committed to.
        """
        self._leave()
        policy, included = self.round.policy, self.collected.included
        self._enough()
        own = self._self_mask_seeds()
        masks = self._masks(own, included.by_id)
        if self._ahead is None:
            total = self._total()
            apply_masks(total, *masks, self.round.executor)
        else:
            total = self._ahead.finish(masks)
        modulo(total, policy.bits)
        expected = slot_values(policy, self.collected.round_id) * total.dtype.type(len(included.by_id))
        if not np.array_equal(total[policy.length :], modulo(expected, policy.bits)):
            blaming = Blaming(self.round, self.collected, self.received, own, self._pair_seeds)
            return blaming, dict.fromkeys(self.received, SlotsFailed(self.collected.round_id, included.attested))
        result = self._result(total)
        confirming = Confirming(self.round, included.by_id, total[: policy.length], result)
        return confirming, dict.fromkeys(included.by_id, result)

    def _total(self) -> Vector:
        """The sum of the masked inputs as integers."""
        policy = self.round.policy
        return unpack(self.collected.planes.data, policy.length + policy.slots, policy.bits)

    def _result(self, total: Vector) -> Result:
        bits, context, planes = self.round.policy.bits, self.round.context, self.collected.planes
        pack_into(total, bits, planes)  # the inputs' own sum is not needed any more
        packed = planes.data.toreadonly()
        disclosed = {u: b"".join(seeds) for u in sorted(self.received) if (seeds := self.received[u].excess_seeds)}
        total_hash = Result.hash_of(packed, disclosed)
        round_id, attested = self.collected.round_id, self.collected.included.attested
        head = next_head(context.previous_head, round_id, attested, total_hash)
        receipt = Receipt(
            context.training_run, context.round_number, round_id, attested, total_hash, context.previous_head, head
        )
        return Result(packed, receipt.sign(self.round.signing_key) if self.round.signing_key else receipt, disclosed)

    def _self_mask_seeds(self) -> dict[str, bytes]:
        """By included client. ShareError S-18 where its shares give another b_u than it committed to."""
        roster1, round_id = self.dealt.roster.hash, self.collected.round_id
        return {u: self_mask_seed(roster1, round_id, u, self._self_seed(u)) for u in self.collected.included.by_id}

    def _self_seed(self, client_id: str) -> bytes:
        if client_id in self.received:
            own: bytes = self.received[client_id].self_seed
            return own
        seed = self._combine(client_id, "self_seed_shares")
        if self_commitment(self.round.slot, client_id, seed) != self.dealt.self_commitments[client_id]:
            raise self._convict(client_id)
        return seed

    def _mask_key(self, client_id: str) -> MaskKey:
        """The key that the shares that are here give: made once, for they may be others than before."""
        seed = self._combine(client_id, "mask_key_shares")
        known = self._keys.get(client_id)
        if known is not None and known.seed == seed:
            return known
        key = MaskKey(self.round.policy.suite, seed)
        advertised = self.dealt.roster.by_id[client_id]
        if (key.dh_public, key.kem_public) != (advertised.mask_dh_pk, advertised.mask_kem_pk):
            raise self._convict(client_id)
        self._keys[client_id] = key
        return key

    def _combine(self, dealer: str, kind: str) -> bytes:
        positions = self.dealt.roster.positions
        held = {
            positions[holder]: getattr(message, kind)[dealer]
            for holder, message in self.received.items()
            if holder != dealer
        }
        try:
            return combine(held, self.round.policy.threshold)
        except ValueError:
            raise self._convict(dealer) from None

    def _convict(self, dealer: str) -> ProtocolError:
        return ShareError("S-18", f"{dealer} dealt shares of something else than it committed to", [dealer])

    def _masks(self, own: Mapping[str, bytes], survivors: Iterable[str]) -> tuple[list[bytes], list[bytes]]:
        """Seeds of the masks to add and to subtract: the given self masks, and between each survivor and each dropped.

        The included u added the mask that it shares with w where u < w.
        """
        survivors = list(survivors)
        keys = {dropped: self._mask_key(dropped) for dropped in self.dropped}
        pairs = {(u, w): self._pair_seed(key, w, u) for w, key in keys.items() for u in survivors}
        add = [seed for (u, w), seed in pairs.items() if w < u]
        return add, [seed for (u, w), seed in pairs.items() if u < w] + [*own.values()]

    def _pair_seed(self, key: MaskKey, dropped: str, client_id: str) -> bytes:
        seed = self._pair_seeds.get((client_id, dropped))
        if seed is None:
            roster = self.dealt.roster
            exchanged = key.exchange(roster.by_id[client_id].mask_dh_pk)
            secret = self._pair_secret(key, dropped, client_id) if key.kem_public else b""
            seed = pair_mask_seed(roster.hash, self.collected.round_id, (client_id, dropped), exchanged, secret)
            self._pair_seeds[client_id, dropped] = seed
        return seed

    def _pair_secret(self, key: MaskKey, dropped: str, client_id: str) -> bytes:
        """r_uv as the survivor released it (S-17), which a corrupt dealer that dropped out cannot spoil.

        Where the survivor fell silent: derived from the dropped key, or opened with it from u's envelope.
        """
        if client_id in self.received:
            released: bytes = self.received[client_id].pair_secrets[dropped]
            return released
        pair = self.dealt.roster.pair(dropped, client_id)
        bundle = self.dealt.bundles[pair.dealer][pair.recipient]
        if pair.dealer == dropped:
            secret = key.pair_secret(pair.recipient)
        else:
            info = envelope_info("pair", self.round.slot, self.dealt.roster.hash, *pair)
            try:
                secret = key.open_pair(info, bundle.pair)
            except ValueError:
                raise self._convict(pair.dealer) from None
        if pair_commitment(self.round.slot, *pair, secret) != bundle.pair_commitment:
            raise self._convict(pair.dealer)
        if pair.dealer == client_id:
            self.opened[client_id, dropped] = secret
        return secret


class _Ahead:
    """Masks that an executor takes off the sum while the last shares come in."""

    def __init__(self, total: Vector, masks: tuple[list[bytes], list[bytes]], executor: Executor) -> None:
        self._total, self._begun, self._executor = total, masks, executor
        self._wait = begin_masks(total, *masks, executor)

    def finish(self, masks: tuple[list[bytes], list[bytes]]) -> Vector:
        """Takes off those of `masks` that it did not begin with: the sum of the inputs."""
        self._wait()
        (add, subtract), begun = masks, {seed for seeds in self._begun for seed in seeds}
        left = ([seed for seed in add if seed not in begun], [seed for seed in subtract if seed not in begun])
        apply_masks(self._total, *left, self._executor)
        return self._total


# --- Blame, in place of Result -----------------------------------------------------------------------------------


class Blaming(Collecting):
    """Constant slots that do not add up (S-19): collects what masked them, to find out whose are wrong.

    Nothing here tells anything about values: only words of keystreams that masked the public constants are shown.
    """

    step = BLAME
    accepts = SlotMasks

    def __init__(
        self,
        round: Round,
        collected: Collected,
        asked: Iterable[str],
        own: Mapping[str, bytes],
        pairs: Mapping[tuple[str, str], bytes],
    ) -> None:
        super().__init__(round, asked)
        self.collected = collected
        self._own_masks = {client_id: slot_mask(seed, round.policy) for client_id, seed in own.items()}
        self._opened = {ids: slot_mask(seed, round.policy) for ids, seed in pairs.items()}

    @property
    def needed(self) -> int:
        """None: whoever does not answer is suspected."""
        return 0

    def _check(self, sender: str, message: SlotMasks) -> None:
        self._own(sender, message.client_id)
        message.verify(self.round.pinned[sender], "S-23", sender)
        if (message.round_id, message.attested) != (self.collected.round_id, self.collected.included.attested):
            raise self._elsewhere("S-23", f"{sender} shows the slot masks of another round")
        lengths, peers = {len(mask) for mask in message.masks.values()}, sorted(self.collected.sharers - {sender})
        if list(message.masks) != peers or lengths != {len(self._own_masks[sender])}:
            raise InconsistentViewError("S-23", f"{sender} does not show one slot mask for every peer", [sender])

    def close(self) -> NoReturn:
        """Name who is at fault; the round is burned in any case.

        Raises:
            ShareError: S-19, with whoever is convicted: its own masks do not give the constants, or contradict one that
                an opened key gives. Nobody where only clients that did not answer are left to suspect.
            ComplaintError: two clients name different masks for their pair: one of them lies.
        """
        self._leave()
        burned = "the constant slots do not add up and the round is burned"
        if convicted := [client_id for client_id in sorted(self.received) if not self._sound(client_id)]:
            raise ShareError("S-19", f"{burned}: those of {', '.join(convicted)} are wrong", convicted)
        answers = {client_id: message.masks for client_id, message in self.received.items()}
        pairs = [(u, v) for u in sorted(answers) for v in sorted(answers) if u < v and answers[u][v] != answers[v][u]]
        if pairs:
            raise ComplaintError(self.step, pairs)
        silent = ", ".join(sorted(self.collected.included.by_id.keys() - self.received.keys()))
        suspect = f"{silent} did not show any slot masks" if silent else "the fault is in this server's own memory"
        raise ShareError("S-19", f"{burned}: {suspect}, and no client is convicted")

    def _sound(self, client_id: str) -> bool:
        """Whether this client's slots are the constants under the masks that it shows itself."""
        policy, masks = self.round.policy, self.received[client_id].masks
        if any(masks[peer] != self._opened.get((client_id, peer), masks[peer]) for peer in masks):
            return False
        added = [self._own_masks[client_id], *(mask for peer, mask in masks.items() if client_id < peer)]
        subtracted = [mask for peer, mask in masks.items() if peer < client_id]
        plain = without_masks(self.collected.slots[client_id], policy, added, subtracted)
        return np.array_equal(plain, slot_values(policy, self.collected.round_id))


# --- Result ------------------------------------------------------------------------------------------------------


class Confirming(Collecting):
    """Has the sum; collects the clients' signatures on the head that each recomputed.

    `total` is (d,) unsigned integers modulo 2^b.
    """

    step = RESULT
    accepts = Confirmation

    def __init__(self, round: Round, included: Iterable[str], total: Vector, result: Result) -> None:
        super().__init__(round, included)
        self.total, self.result = total, result

    @property
    def needed(self) -> int:
        """A quorum, without which its transcript does not hold (T-02)."""
        return self.round.policy.threshold

    def _check(self, sender: str, message: Confirmation) -> None:
        self._own(sender, message.client_id)
        message.verify(self.round.pinned[sender], "S-21", sender)
        if message.head != self.result.receipt.head:
            raise self._elsewhere("S-21", f"{sender} confirms another head")
