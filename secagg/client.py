"""The client: everything that leaves a site, in the order in which it leaves.

This file is the trust boundary. Each class is what a client holds between two messages; each method checks what the
server sent, makes the next message and gives up its state. The server is assumed to lie: no parameter, identity or
threshold is taken from it. Specification: docs/spec.md, section "Steps of a round"; ids such as C-05, in errors,
docstrings and comments, are the rows of its table "Checks".
"""

import secrets
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, field, replace

from secagg import merkle
from secagg.ahead import KeysAhead, fresh
from secagg.arguments import must_be, must_have
from secagg.context import RoundContext, Slot, next_head
from secagg.encoding import HASH_BYTES, encode
from secagg.errors import (
    AbortedError,
    AuthenticationError,
    ConfigError,
    ExposureError,
    InconsistentViewError,
    MalformedMessageError,
    ShareError,
)
from secagg.keys import ChannelKey, MaskKey, Secret, SigningKey, check_public, seal
from secagg.masking import (
    PAIR_PLAINTEXT_BYTES,
    envelope_info,
    masked_input,
    pair_commitment,
    pair_mask_seed,
    self_commitment,
    self_mask_seed,
    share_commitment,
    slot_mask,
)
from secagg.messages import (
    NONCE_BYTES,
    AcceptedInput,
    AdvertiseKeys,
    Attestation,
    Attestations,
    Bundle,
    Confirmation,
    EncryptedShares,
    Header,
    IncludedSet,
    MaskedInput,
    Receipt,
    ReleaseClaim,
    Reports,
    Result,
    Roster,
    RoundStart,
    ShareInbox,
    ShareReport,
    SlotMasks,
    SlotsFailed,
    UnmaskingShares,
)
from secagg.policy import Policy
from secagg.prg import Executor
from secagg.quantize import Quantised
from secagg.roster import PinnedRoster, session_id
from secagg.shamir import SHARE_BYTES, is_share, split
from secagg.steps import (
    CONSISTENCY_CHECK,
    MASKED_INPUT_COLLECTION,
    ROUND_START,
    SHARE_KEYS,
    SHARE_REPORT,
    State,
    opaque,
)
from secagg.store import Marks, Store

# --- RoundStart: what the server proposes, held against what is pinned -------------------------------------------


LARGEST_STEP = 1024
"""Rounds that may pass between one that a client knows and the next: a server cannot use up all numbers (C-04)."""


@dataclass(frozen=True)
class OpenRound:
    """A round that this client may join: `open_round` makes it, and `unchecked_round` for who knows why.

    Attributes:
        context: what the attempt is about.
        private: whether this client's update is differentially private on its own, and charged: then no sum of it says
            more than was paid for, and C-05 and C-26 have nothing to protect.
        checked: whether it came from a round start that was held against what is pinned and the own log.
    """

    context: RoundContext
    private: bool = False
    checked: bool = False


def unchecked_round(context: RoundContext, private: bool = False) -> OpenRound:
    """A round of which nothing was checked: its start (C-01, C-02, C-04) and model and task (C-23) are the caller's."""
    must_be(context, RoundContext, "context", "give a secagg.RoundContext")
    return OpenRound(context, private)


def open_round(
    policy: Policy,
    pinned: PinnedRoster,
    training_run: str,
    start: RoundStart,
    store: Store,
    *,
    model_hash: bytes,
    task_hash: bytes,
    private: bool = False,
) -> OpenRound:
    """Verify a signed round start, take over the completed rounds that this client missed, and return the round.

    A start that is refused leaves nothing in the store.

    Args:
        policy: own pinned policy with a `server_key`.
        pinned: own pinned roster.
        training_run: the run that this client has agreed to take part in.
        start: the server's message.
        store: durable marks of the data set; missed receipts are appended to its log.
        model_hash: 32 bytes, computed by this client from the model that it will train. Never copy it from `start`.
        task_hash: 32 bytes, computed by this client from its own copy of the study.
        private: whether the update will be differentially private on its own, and charged. One that is not is given
            only while no round lies behind whose sum somebody may hold without saying so.

    Raises:
        ProtocolError: C-01 signature, C-02 another run, C-04 a head that does not follow or a number too far ahead,
            C-23 another model or task.
        ExposureError: C-05, this site sent shares for a round whose transcript was not replayed, or for one of another
            run on this very model.
        ConfigError: the policy names no server key, or policy and roster do not fit together.
    """
    must_be(policy, Policy, "policy", "give a secagg.Policy")
    must_be(pinned, PinnedRoster, "pinned", "give a secagg.PinnedRoster")
    must_be(start, RoundStart, "start", "give the server's message, from secagg.wire.decode_from_server")
    must_have(store, "transaction", "store", "give a secagg.SqliteStore, or a secagg.MemoryStore for a try")
    for name, own in (("model_hash", model_hash), ("task_hash", task_hash)):
        must_be(own, bytes, name, "give 32 bytes, such as a digest of hashlib.sha256")
    if not policy.server_key:
        raise ConfigError("policy.server_key is empty: a round start can only be verified against a pinned server key")
    session = session_id(policy, pinned)
    start.verify(policy.server_key, "C-01")
    if start.training_run != training_run:
        raise InconsistentViewError("C-02", f"the server opened run {start.training_run}, pinned is {training_run}")
    if start.model_hash != model_hash:
        raise InconsistentViewError("C-23", "the server opened a round of another model than this client holds")
    if start.task_hash != task_hash:
        raise InconsistentViewError("C-23", "the server opened a round of another task than this client agreed to")
    context = RoundContext(training_run, start.round_number, start.attempt, model_hash, task_hash, start.previous_head)
    with store.transaction() as marks:
        if not private:
            marks.refuse_exposure(context.at(session), model_hash, ROUND_START)
        marks.finish(session, training_run, _missed(start, policy.server_key, marks, session))
    return OpenRound(context, private, checked=True)


def _missed(start: RoundStart, server_key: bytes, marks: Marks, session: bytes) -> list[Receipt]:
    """The receipts that the own log lacks: C-04, each follows the one before, and the opened round follows the last."""
    number, head = marks.head(session, start.training_run)
    missed = [receipt for receipt in start.missed if receipt.round_number > number]
    for receipt in missed:
        receipt.verify(server_key, "C-01")
        follows = next_head(head, receipt.round_id, receipt.attested, receipt.total_hash)
        near = number < receipt.round_number <= number + LARGEST_STEP
        said = (receipt.training_run, receipt.previous_head, receipt.head, near)
        if said != (start.training_run, head, follows, True):
            raise InconsistentViewError("C-04", f"the receipt of round {receipt.round_number} does not follow our log")
        number, head = receipt.round_number, receipt.head
    if start.previous_head != head or start.round_number <= number:
        raise InconsistentViewError("C-04", f"round {start.round_number} does not follow round {number} of our log")
    known = max(number, marks.joined(session, start.training_run)[0])
    if start.round_number > known + LARGEST_STEP:
        raise InconsistentViewError("C-04", f"round {start.round_number} is too far from round {known}")
    return missed


def accept_exposure(store: Store, signing_key: SigningKey, me: str, round_id: bytes) -> None:
    """An operator's decision to go on after one round, named by its id, whose transcript cannot be replayed.

    It is signed, durable and counts for one contribution. What it means: whoever holds the sum of that round can, with
    the help of enough others who accept as well, subtract a rerun of it and read what one site sent.

    Args:
        store: durable marks of the data set.
        signing_key: the site's own.
        me: the site's id.
        round_id: 32 bytes, of the round that the `ExposureError` named.

    Raises:
        ConfigError: no such id.
    """
    if len(round_id) != HASH_BYTES:
        raise ConfigError("a round id has 32 bytes: 64 hexadecimal digits")
    with store.transaction() as marks:
        marks.accept_exposure(round_id, signing_key.sign(encode("accept-exposure", round_id, me)))


@dataclass(frozen=True, repr=False, eq=False)
class _Own:
    """What does not change within a slot."""

    policy: Policy
    me: str
    signing_key: SigningKey
    pinned: PinnedRoster
    opened: OpenRound
    store: Store
    attempt: Slot
    slot: bytes

    @property
    def context(self) -> RoundContext:
        """What the attempt is about."""
        return self.opened.context

    def enough(self, step: str, have: int) -> None:
        """C-21: every set holds at least min_survivors. An honest server ends the round instead of showing less."""
        need = self.policy.min_survivors
        if have < need:
            raise InconsistentViewError(
                "C-21", f"before {step} the server shows {have} clients; the policy needs {need}"
            )


# --- AdvertiseKeys -----------------------------------------------------------------------------------------------


class Joining(State):
    """Before the first message.

    Raises:
        ConfigError: `me` is not in the pinned roster, or the signing key is not the one pinned for it.
    """

    def __init__(
        self,
        policy: Policy,
        me: str,
        signing_key: SigningKey,
        pinned: PinnedRoster,
        opened: OpenRound,
        store: Store,
        ahead: KeysAhead | None = None,
    ) -> None:
        if me not in pinned:
            raise ConfigError(f"client {me!r} is not in the roster")
        if signing_key.verify_key != pinned[me]:
            raise ConfigError(f"the signing key is not the one that the roster pins for {me}")
        attempt = opened.context.at(session_id(policy, pinned))
        self.own = _Own(policy, me, signing_key, pinned, opened, store, attempt, attempt.hash)
        self._ahead = ahead

    def advertise_keys(self) -> tuple["Advertised", AdvertiseKeys]:
        """Fresh keys for this slot, signed. The slot is marked first: after a crash it is never joined again (C-03).

        What this data set released last goes along, so that everybody sees whether an earlier sum is unaccounted for.

        Raises:
            UnexpectedMessageError: C-03, the attempt does not come after the last one.
            InconsistentViewError: C-04, another round was finished since this one was opened.
            ExposureError: C-05, an earlier release is open.
        """
        self._leave()
        own = self.own
        # C-03: the mark comes before the keys. After a crash the slot is dead, and no second set of keys exists for it.
        # Keys that were drawn ahead are for the one join that is marked here.
        with own.store.transaction() as marks:
            _, head = marks.head(own.attempt.session, own.context.training_run)
            if own.opened.checked and head != own.context.previous_head:
                raise InconsistentViewError("C-04", f"{own.attempt} was opened before the last round of our log ended")
            joins = marks.joins
            exposing = marks.join(own.attempt, own.context.model_hash, own.opened.private)
            released = marks.released(own.attempt.session)
        channel_key, mask_key = fresh(own.policy.suite) if self._ahead is None else self._ahead.take(joins)
        message = AdvertiseKeys(
            own.slot,
            own.me,
            channel_key.public,
            mask_key.dh_public,
            mask_key.kem_public,
            secrets.token_bytes(NONCE_BYTES),
            released,
            exposing,
        ).sign(own.signing_key)
        return Advertised(own, channel_key, mask_key, message), message


# --- ShareKeys ---------------------------------------------------------------------------------------------------


@opaque
class Advertised(State):
    """Holds the two private keys; waits for the roster."""

    own: _Own
    channel_key: ChannelKey
    mask_key: MaskKey
    advertisement: AdvertiseKeys

    def share_keys(self, roster: Roster) -> tuple["Shared", EncryptedShares]:
        """Check U1, then share s_u and a fresh b_u among the others, sealed and committed.

        Raises:
            ProtocolError: C-06 an unknown id or another slot, C-07 unusable or repeated keys, C-08 own entry changed,
                C-21 |U1| < min_survivors, C-25 a claim that nobody attested.
            ExposureError: C-26, another member released shares for a round that is unaccounted for here.
        """
        self._leave()
        own, policy = self.own, self.own.policy
        verify_roster(own, roster, self.advertisement)
        claims = verify_claims(own, roster)
        if not own.opened.private:
            # C-26: contributing looks again. Looked at here as well, because nothing was given away yet, and because
            # only the roster says who makes a claim.
            with own.store.transaction() as marks:
                try:
                    marks.refuse_claims(own.attempt, claims, SHARE_KEYS)
                except ExposureError as error:
                    named = claimants(roster, error.round_ids)
                    verify_advertisements(own, roster, named)  # C-06: the server must not put words in their mouths
                    raise error.said_by(named) from None
        self_seed = secrets.token_bytes(32)
        others = roster.others(own.me)
        positions = [roster.positions[client_id] for client_id in others]
        mask_key_shares = split(self.mask_key.seed, policy.threshold, positions)
        self_seed_shares = split(self_seed, policy.threshold, positions)
        bundles = tuple(
            self._bundle(roster, peer, mask_key_share, self_seed_share)
            for peer, mask_key_share, self_seed_share in zip(others, mask_key_shares, self_seed_shares, strict=True)
        )
        commitment = self_commitment(own.slot, own.me, self_seed)
        root, _ = merkle.tree([bundle.digest() for bundle in bundles])
        header = Header(own.slot, roster.hash, own.me, commitment, root).sign(own.signing_key)
        state = Shared(own, self.channel_key, self.mask_key, self_seed, roster, claims, header)
        return state, EncryptedShares(header, bundles)

    def _bundle(self, roster: Roster, peer: str, mask_key_share: bytes, self_seed_share: bytes) -> Bundle:
        own, keys = self.own, roster.by_id[peer]
        suite, slot, me = own.policy.suite, own.slot, own.me
        info = envelope_info("shares", slot, roster.hash, me, peer)
        shares = seal(suite, keys.channel_pk, info, mask_key_share + self_seed_share)
        pair, committed = b"", b""
        if keys.mask_kem_pk and roster.pair(me, peer).dealer == me:
            secret = self.mask_key.pair_secret(peer)
            committed = pair_commitment(slot, me, peer, secret)
            pair = seal(suite, keys.mask_kem_pk, envelope_info("pair", slot, roster.hash, me, peer), secret)
        return Bundle(
            shares,
            pair,
            share_commitment(slot, roster.hash, me, peer, "s", mask_key_share),
            share_commitment(slot, roster.hash, me, peer, "b", self_seed_share),
            committed,
        )


def verify_roster(own: _Own, roster: Roster, advertisement: AdvertiseKeys) -> None:
    """Checks C-06 to C-08 on U1 and its size, but no signature yet: see `verify_advertisements`."""
    own.enough(SHARE_KEYS, len(roster.by_id))
    if roster.by_id.get(own.me) != advertisement:
        raise InconsistentViewError("C-08", "the roster does not list this client's own keys")
    seen: set[bytes] = set()
    for client_id, entry in roster.by_id.items():
        if client_id not in own.pinned or entry.slot != own.slot:
            raise InconsistentViewError("C-06", f"the roster lists {client_id}, who is unknown or in another slot")
        keys = (entry.channel_pk, entry.mask_dh_pk, entry.mask_kem_pk)
        fresh = {key for key in keys if key}
        if not check_public(own.policy.suite, *keys) or seen & fresh or len(fresh) != sum(map(bool, keys)):
            raise MalformedMessageError("C-07", f"the roster lists unusable or repeated keys for {client_id}")
        seen |= fresh


def verify_advertisements(own: _Own, roster: Roster, client_ids: Iterable[str]) -> None:
    """C-06: these clients signed what the roster says of them.

    Nothing that depends on data leaves before U2 is known, and all secrets until then are of this slot. Who reports on
    this very roster has found its own entry in it (C-08), so that its one signature on the report stands for all that
    it signed before. Verified by themselves are the entries of all others of U1, before anything is masked, and
    whoever is accused or named.
    """
    for client_id in client_ids:
        roster.by_id[client_id].verify(own.pinned[client_id], "C-06")


def verify_claims(own: _Own, roster: Roster) -> tuple[ReleaseClaim, ...]:
    """The claims of U1, own one left out, that concern this cohort: C-25.

    One of this session must carry a quorum. One of another session concerns this cohort where more than c of the
    clients pinned here attested its round; otherwise it binds only who made it.
    """
    concerning = {}
    for client_id, entry in roster.by_id.items():
        for claim in entry.exposing if client_id != own.me else ():
            endorsers, policy = len(claim.endorsers(own.pinned)), own.policy
            same = claim.session == own.attempt.session
            if same and endorsers < policy.threshold:
                raise AuthenticationError("C-25", f"the roster shows a claim of {client_id} that no quorum attested")
            if same or endorsers > policy.max_corrupt:
                concerning[claim.round_id] = claim
    return tuple(concerning.values())


def claimants(roster: Roster, round_ids: Collection[bytes]) -> list[str]:
    """Who claims a release of one of these rounds."""
    return [u for u, entry in roster.by_id.items() if any(claim.round_id in round_ids for claim in entry.exposing)]


# --- ShareReport -------------------------------------------------------------------------------------------------


@opaque
class Shared(State):
    """Has dealt its shares; waits for those of the others."""

    own: _Own
    channel_key: ChannelKey
    mask_key: MaskKey
    self_seed: bytes
    roster: Roster
    claims: Collection[ReleaseClaim]
    header: Header

    def report(self, inbox: ShareInbox) -> tuple["Reported", ShareReport]:
        """Open every envelope now and report ok, or name the first dealer whose bundle does not open.

        Raises:
            ProtocolError: the server's fault. C-06, C-09 what would be complained about was not signed by its dealer,
                or a header is for another slot or roster, C-10 dealers outside U1 or own header changed, C-11 a bundle
                that is not the one in its header, C-21 fewer than min_survivors dealers.
        """
        self._leave()
        own = self.own
        self._verify_headers(inbox)
        held, complaint = _Held(self.mask_key, self.self_seed), ""
        delivered = zip(inbox.bundles, inbox.paths, strict=True)
        for dealer, header in inbox.by_dealer.items():
            if dealer == own.me:
                continue
            bundle, path = next(delivered)
            if not header.covers(bundle, path, own.me, self.roster):
                raise InconsistentViewError("C-11", f"the bundle of {dealer} is not the one in its header")
            try:
                self._open(dealer, bundle, held)
            except ShareError:  # C-12: one complaint ends the attempt; the other bundles still have to pass C-11
                if not complaint:  # C-06, C-09: a server that forges a dealer's words must not make us accuse it
                    verify_advertisements(own, self.roster, [dealer])
                    header.verify(own.pinned[dealer], "C-09")
                complaint = complaint or dealer
        self.channel_key.wipe()
        message = ShareReport(own.slot, self.roster.hash, inbox.roster2, own.me, complaint).sign(own.signing_key)
        return Reported(own, held, self.roster, self.claims, inbox, message), message

    def _verify_headers(self, inbox: ShareInbox) -> None:
        own, roster = self.own, self.roster
        own.enough(SHARE_REPORT, len(inbox.by_dealer))
        for dealer, header in inbox.by_dealer.items():
            if dealer not in roster.by_id:
                raise InconsistentViewError("C-10", f"{dealer} deals without being in the roster")
            if (header.slot, header.roster1) != (own.slot, roster.hash):
                raise InconsistentViewError("C-09", f"the header of {dealer} is for another slot or roster")
        if inbox.by_dealer.get(own.me) != self.header:
            raise InconsistentViewError("C-10", "the server shows a header that this client did not send, or none")
        if not len(inbox.bundles) == len(inbox.paths) == len(inbox.headers) - 1:
            raise InconsistentViewError("C-10", "there is not one bundle with its path for every other dealer")

    def _open(self, dealer: str, bundle: Bundle, held: "_Held") -> None:
        """C-12: the envelopes open, the shares are field elements, and every commitment matches; else `ShareError`."""
        own, roster1, slot = self.own, self.roster.hash, self.own.slot
        try:
            opened = self.channel_key.open(envelope_info("shares", slot, roster1, dealer, own.me), bundle.shares)
            mask_key_share, self_seed_share = opened[:SHARE_BYTES], opened[SHARE_BYTES:]
            expects_pair = bool(self.mask_key.kem_public) and self.roster.pair(dealer, own.me).dealer == dealer
            secret = b""
            if expects_pair:
                secret = self.mask_key.open_pair(envelope_info("pair", slot, roster1, dealer, own.me), bundle.pair)
        except ValueError:
            raise ShareError("C-12", f"an envelope of {dealer} does not open", [dealer]) from None
        committed = (
            share_commitment(slot, roster1, dealer, own.me, "s", mask_key_share),
            share_commitment(slot, roster1, dealer, own.me, "b", self_seed_share),
            pair_commitment(slot, dealer, own.me, secret) if expects_pair else b"",
        )
        promised = (bundle.mask_key_commitment, bundle.self_seed_commitment, bundle.pair_commitment)
        well_formed = is_share(mask_key_share) and is_share(self_seed_share)
        if committed != promised or not well_formed or len(secret) != PAIR_PLAINTEXT_BYTES * expects_pair:
            raise ShareError("C-12", f"a share of {dealer} does not match its commitment", [dealer])
        held.mask_key_shares[dealer] = mask_key_share
        held.self_seed_shares[dealer] = self_seed_share
        if expects_pair:
            held.pair_secrets[dealer] = secret


@opaque
class _Held(Secret):
    """The secrets of a slot after ShareReport: own mask key and self seed, and what the other dealers sent."""

    mask_key: MaskKey
    self_seed: bytes
    mask_key_shares: dict[str, bytes] = field(default_factory=dict)
    self_seed_shares: dict[str, bytes] = field(default_factory=dict)
    pair_secrets: dict[str, bytes] = field(default_factory=dict)
    slot_masks: dict[str, bytes] = field(default_factory=dict)
    excess_seeds: dict[str, bytes] = field(default_factory=dict)

    def pair_secret(self, peer: str) -> bytes:
        """r_uv: received where the peer dealt it, else derived."""
        return self.pair_secrets.get(peer) or self.mask_key.pair_secret(peer)

    def wipe(self) -> None:
        """See `Secret.wipe`."""
        if "mask_key" in vars(self):
            self.mask_key.wipe()
        super().wipe()


# --- MaskedInputCollection ---------------------------------------------------------------------------------------


@opaque
class Reported(State):
    """Has reported on its shares; waits for U2."""

    own: _Own
    held: _Held
    roster: Roster
    claims: Collection[ReleaseClaim]
    inbox: ShareInbox
    reported: ShareReport

    def mask_input(
        self,
        reports: Reports,
        update: Quantised,
        event_id: str = "",
        executor: Executor | None = None,
        excess_seeds: Sequence[bytes] = (),
    ) -> tuple["Masked", MaskedInput]:
        """Mark the contribution durably, then mask the quantised update under every pair of U2 and the self mask.

        Args:
            reports: U2 with its signed reports.
            update: quantised under the own policy, nothing read from it yet.
            event_id: the ledger event that this contribution was charged to.
            executor: what expands the masks, see `secagg.prg.apply_masks`; this thread where not given.
            excess_seeds: of noise in the update, see `ClientSession.provide`.

        Raises:
            ConfigError: an update of another policy, or with values that are not finite.
            ProtocolError: C-06 an entry of U1 that neither its own signature nor a report stands for, C-13 reports that
                are not U2's on this very view, C-14 a second contribution, C-21 |U2| <
                min_survivors, C-24 another attempt was joined meanwhile.
            ExposureError: C-05 or C-26, what changed since the roster was checked.
            AbortedError: this client is not in U2: it contributes nothing.
        """
        self._leave()
        own, policy, context = self.own, self.own.policy, self.own.context
        if update.policy != policy:
            raise ConfigError("the update was quantised under another policy than this client's own")
        self._verify_reports(reports)
        round_id = context.round_id(own.slot, self.inbox.roster2, reports.sharers_hash)
        # C-14, C-24: marked before anything is masked. A crash behind this line costs the round, never a second vector.
        with own.store.transaction() as marks:
            marks.contribute(own.attempt, event_id, self.claims, own.opened.private)
        roster1, held = self.roster.hash, self.held
        add, subtract = [self_mask_seed(roster1, round_id, own.me, held.self_seed)], list[bytes]()
        for peer in reports.by_id:
            if peer != own.me:
                exchanged = held.mask_key.exchange(self.roster.by_id[peer].mask_dh_pk)
                seed = pair_mask_seed(roster1, round_id, (own.me, peer), exchanged, held.pair_secret(peer))
                (add if own.me < peer else subtract).append(seed)
                held.slot_masks[peer] = slot_mask(seed, policy)
        y = masked_input(update, policy, round_id, add, subtract, executor)
        held.excess_seeds.update((f"{place:03d}", seed) for place, seed in enumerate(excess_seeds))
        message = MaskedInput(round_id, roster1, self.inbox.roster2, reports.sharers_hash, own.me, y).sign(
            own.signing_key
        )
        return Masked(own, held, self.inbox, frozenset(reports.by_id), message.acceptance()), message

    def _verify_reports(self, reports: Reports) -> None:
        own = self.own
        if own.me not in reports.by_id:
            raise AbortedError(SHARE_REPORT, "this client is not among the sharers; it may join the next round")
        own.enough(MASKED_INPUT_COLLECTION, len(reports.by_id))
        view = (own.slot, self.roster.hash, self.inbox.roster2, "")
        for client_id, report in reports.by_id.items():
            if client_id not in self.inbox.by_dealer:
                raise InconsistentViewError("C-13", f"{client_id} reports without having dealt shares")
            if (report.slot, report.roster1, report.roster2, report.complaint) != view:
                raise InconsistentViewError("C-13", f"{client_id} reports a complaint or another view of the round")
            report.verify(own.pinned[client_id], "C-13")
        if reports.by_id[own.me] != self.reported:
            raise InconsistentViewError("C-13", "the server shows a report that this client did not send")
        verify_advertisements(own, self.roster, self.roster.by_id.keys() - reports.by_id.keys())


# --- ConsistencyCheck --------------------------------------------------------------------------------------------


@opaque
class Masked(State):
    """Has sent its masked input; waits for U3."""

    own: _Own
    held: _Held
    inbox: ShareInbox
    sharers: frozenset[str]
    mine: AcceptedInput

    def attest(self, included: IncludedSet) -> tuple["Attested", Attestation]:
        """Sign the one U3 that this client accepts; without this step a server names each client another drop list.

        Raises:
            ProtocolError: C-15 an entry that its client did not sign for this round, C-16 U3 outside U2 or own entry
                changed, C-21 |U3| < min_survivors.
            AbortedError: this client is not in U3: it signs nothing more.
        """
        self._leave()
        self._verify_included(included)
        message = Attestation(included.attested, self.own.me).sign(self.own.signing_key)
        return Attested(self.own, self.held, self.inbox, self.sharers, included, message), message

    def _verify_included(self, included: IncludedSet) -> None:
        own, mine = self.own, self.mine
        if own.me not in included.by_id:
            raise AbortedError(MASKED_INPUT_COLLECTION, "this client is not in the sum; it may join the next round")
        own.enough(CONSISTENCY_CHECK, len(included.by_id))
        view = (mine.round_id, mine.roster1, mine.roster2, mine.sharers_hash)
        for client_id, entry in included.by_id.items():
            if client_id not in self.sharers:
                raise InconsistentViewError("C-16", f"{client_id} is included without being a sharer")
            if (entry.round_id, entry.roster1, entry.roster2, entry.sharers_hash) != view:
                raise InconsistentViewError("C-15", f"{client_id} masked for another round, model or set of sharers")
            entry.verify(own.pinned[client_id], "C-15")
        if included.by_id[own.me] != mine:
            raise InconsistentViewError("C-16", "the server shows a masked input that this client did not send")


# --- Unmasking ---------------------------------------------------------------------------------------------------


@opaque
class Attested(State):
    """Has attested one U3; waits to see that a quorum has attested the same."""

    own: _Own
    held: _Held
    inbox: ShareInbox
    sharers: frozenset[str]
    included: IncludedSet
    attestation: Attestation

    def unmask(self, attestations: Attestations) -> tuple["Released", UnmaskingShares]:
        """Release own b_u, b shares of the included, s shares and pair secrets of the dropped: disjoint, once.

        Raises:
            ProtocolError: C-17 fewer than q distinct valid attestations of the included on this client's own statement,
                C-24 another attempt was joined meanwhile.
            ExposureError: C-05, an earlier release is open and this contribution did not accept it.
        """
        self._leave()
        claim = self._claim(self._verify_attestations(attestations))
        own, held = self.own, self.held
        # C-05, C-24: marked with its proof before a share leaves. What was not marked was not released.
        with own.store.transaction() as marks:
            marks.release(own.attempt, claim, own.opened.private)
        dropped = sorted(self.sharers - self.included.by_id.keys())
        message = UnmaskingShares(
            self.included.inputs[0].round_id,
            self.attestation.attested,
            own.me,
            held.self_seed,
            {peer: held.self_seed_shares[peer] for peer in self.included.by_id if peer != own.me},
            {peer: held.mask_key_shares[peer] for peer in dropped},
            {peer: held.pair_secret(peer) for peer in dropped if held.mask_key.kem_public},
            excess_seeds=self._excess_seeds(),
        ).sign(own.signing_key)
        slot_masks = SlotMasks(message.round_id, message.attested, own.me, dict(sorted(held.slot_masks.items())))
        held.wipe()
        included, disclosed = frozenset(self.included.by_id), b"".join(message.excess_seeds)
        return Released(own, message.round_id, message.attested, included, slot_masks, disclosed), message

    def _excess_seeds(self) -> tuple[bytes, ...]:
        """Of the noise that a sum of U3 does not need; C-17 makes U3 the same at everybody who discloses any."""
        seeds = [self.held.excess_seeds[place] for place in sorted(self.held.excess_seeds)]
        return tuple(seeds[-count:]) if seeds and (count := self.own.policy.excess(len(self.included.inputs))) else ()

    def _verify_attestations(self, attestations: Attestations) -> dict[str, bytes]:
        """C-17: a quorum on the own statement, the own one counted, by its signatures."""
        own = self.own
        agreed = {own.me: self.attestation.signature}
        for client_id, entry in attestations.by_id.items():
            if client_id not in self.included.by_id or entry.attested != self.attestation.attested:
                raise InconsistentViewError("C-17", f"{client_id} attests another set of included clients")
            if client_id != own.me and len(agreed) < own.policy.threshold:  # more than a quorum adds nothing
                entry.verify(own.pinned[client_id], "C-17")
                agreed[client_id] = entry.signature
        if len(agreed) < own.policy.threshold:
            raise InconsistentViewError("C-17", f"fewer than {own.policy.threshold} clients attest this included set")
        return dict(sorted(agreed.items()))

    def _claim(self, attestations: dict[str, bytes]) -> ReleaseClaim:
        """What this client says about this round in later ones, until it has replayed its transcript."""
        context, mine = self.own.context, self.included.inputs[0]
        return ReleaseClaim(
            self.own.attempt.session,
            context.training_run,
            context.round_number,
            context.attempt,
            context.model_hash,
            context.task_hash,
            context.previous_head,
            self.inbox.roster2,
            mine.sharers_hash,
            self.included.inputs_hash,
            attestations,
        )

    def conclude(self, result: Result) -> Confirmation:
        """The sum of a round that was unmasked without this client's shares; see `Released.conclude`."""
        self._leave()
        included = self.included
        return conclude(self.own, included.inputs[0].round_id, self.attestation.attested, included.by_id.keys(), result)


# --- Result ------------------------------------------------------------------------------------------------------


@opaque
class Released(State):
    """Has released its unmasking shares and holds no key any more; waits for the sum, or for the search for a liar."""

    own: _Own
    round_id: bytes
    attested: bytes
    included: Collection[str]
    slot_masks: SlotMasks
    disclosed: bytes

    def conclude(self, result: Result) -> Confirmation:
        """Recompute the new head from this client's own statement, append it to the durable log, and sign it.

        Raises:
            ProtocolError: C-18 the receipt is not signed by the pinned server key, C-19 it is about another round, set
                or sum.
        """
        self._leave()
        return conclude(self.own, self.round_id, self.attested, self.included, result, self.disclosed)

    def show_slot_masks(self, failed: SlotsFailed) -> SlotMasks:
        """The constant slots do not add up: show what masked them, which says nothing about values.

        Raises:
            ProtocolError: C-27, about another round.
        """
        self._leave()
        if (failed.round_id, failed.attested) != (self.round_id, self.attested):
            raise InconsistentViewError("C-27", "the server asks for the slot masks of another round")
        return self.slot_masks.sign(self.own.signing_key)


def conclude(
    own: _Own, round_id: bytes, attested: bytes, included: Collection[str], result: Result, disclosed: bytes = b""
) -> Confirmation:
    """Checks C-18 and C-19, then appends the new head to the log and confirms it; `disclosed` are own seeds."""
    _verify_result(own.policy, own.attempt, own.context.previous_head, round_id, attested, result)
    _verify_seeds(own.policy, included, len(included), result)
    if result.excess_seeds.get(own.me, disclosed) != disclosed:
        raise InconsistentViewError("C-19", "the result names seeds of this client that it did not disclose")
    return _confirmed(own.me, own.signing_key, own.store, own.attempt.session, result.receipt)


def conclude_later(
    policy: Policy, me: str, signing_key: SigningKey, pinned: PinnedRoster, store: Store, result: Result
) -> Confirmation | None:
    """Confirm a round whose session is gone, such as by a killed process, out of what the store keeps of its release.

    The claim of a release holds all that C-18 and C-19 compare. Only a release that was not private keeps one: only
    there others wait for confirmations (T-02, C-05).

    Returns:
        None where this data set released nothing in such a round of this session.

    Raises:
        ProtocolError: C-18, C-19 or C-22; nothing was marked.
    """
    receipt, session = result.receipt, session_id(policy, pinned)
    with store.transaction() as marks:
        release = marks.releases.get(receipt.round_id)
    claim = None if release is None else release.claim
    if claim is None or claim.session != session:
        return None
    _verify_result(policy, claim.slot, claim.previous_head, claim.round_id, claim.attested, result)
    # The claim does not say how many were included. So many as the seeds are for can have been.
    count = max((len(seeds) // HASH_BYTES for seeds in result.excess_seeds.values()), default=0)
    _verify_seeds(policy, pinned.keys(), min(policy.min_survivors + count, policy.clients), result)
    return _confirmed(me, signing_key, store, session, receipt)


def _verify_result(
    policy: Policy, slot: Slot, previous_head: bytes, round_id: bytes, attested: bytes, result: Result
) -> None:
    receipt = result.receipt
    if policy.server_key:
        receipt.verify(policy.server_key, "C-18")
    head = next_head(previous_head, round_id, attested, result.total_hash)
    hashes = (round_id, attested, result.total_hash, previous_head, head)
    if replace(receipt, signature=b"") != Receipt(slot.training_run, slot.round_number, *hashes):
        raise InconsistentViewError("C-19", "the result is about another round, set of clients or sum")


def _verify_seeds(policy: Policy, members: Collection[str], included: int, result: Result) -> None:
    """C-19: seeds of excess noise are of members, as many of each as a sum over `included` does not need."""
    for client_id, seeds in result.excess_seeds.items():
        if client_id not in members or len(seeds) != HASH_BYTES * policy.excess(included):
            raise InconsistentViewError("C-19", f"the result names seeds of {client_id} that this sum does not have")
    if len(result.excess_seeds) > included:
        raise InconsistentViewError("C-19", "the result names seeds of more clients than the sum has")


def _confirmed(me: str, signing_key: SigningKey, store: Store, session: bytes, receipt: Receipt) -> Confirmation:
    with store.transaction() as marks:
        marks.finish(session, receipt.training_run, [receipt])
    return Confirmation(receipt.head, me).sign(signing_key)
