"""The whole automaton, client and server, each as one `match`: bytes are elsewhere, time is elsewhere.

A session never half-advances: a message is answered, or the session ends for good. Specification: docs/spec.md,
section "Steps of a round".
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from types import NoneType
from typing import NoReturn

from secagg.ahead import KeysAhead
from secagg.arguments import must_be, must_be_decoded, must_have
from secagg.client import Advertised, Attested, Joining, Masked, OpenRound, Released, Reported, Shared
from secagg.context import RoundContext
from secagg.errors import (
    AbortedError,
    ConfigError,
    IllegalTransitionError,
    InconsistentViewError,
    UnexpectedMessageError,
)
from secagg.keys import SigningKey
from secagg.layout import Values
from secagg.masking import Vector
from secagg.messages import (
    Abort,
    AdvertiseKeys,
    Attestations,
    Confirmation,
    FromClient,
    FromServer,
    IncludedSet,
    Receipt,
    Reports,
    Result,
    Roster,
    ShareInbox,
    SlotMasks,
    SlotsFailed,
)
from secagg.packing import unpack
from secagg.policy import Policy
from secagg.prg import KEY_BYTES, Executor, Stream, check_executor
from secagg.quantize import Quantised
from secagg.roster import PinnedRoster, session_id
from secagg.server import (
    Advertising,
    Attesting,
    Blaming,
    Collecting,
    CollectingInputs,
    Confirming,
    Reporting,
    Round,
    SharingKeys,
    Unmasking,
)
from secagg.steps import STEPS, State
from secagg.store import Store
from secagg.transcript.record import OpenedPair

_STEP_OF = {
    collecting.accepts: collecting.step
    for collecting in (Advertising, SharingKeys, Reporting, CollectingInputs, Attesting, Unmasking, Confirming, Blaming)
}


def _check_types(policy: Policy, pinned: PinnedRoster, executor: Executor | None) -> None:
    """ConfigError for what an importer cannot have meant."""
    must_be(policy, Policy, "policy", "give a secagg.Policy")
    must_be(pinned, PinnedRoster, "pinned", "give a secagg.PinnedRoster")
    check_executor(executor)


class ClientSession:
    """One client in one attempt at one round.

    Args:
        policy: own pinned parameters.
        me: own id in the roster.
        signing_key: own identity.
        pinned: pinned identities of the cohort.
        opened: what the attempt is about: `secagg.open_round` makes it from a signed round start.
        store: durable marks of the data set.
        executor: what expands masks, such as a thread pool (`secagg.prg.apply_masks`); this thread where not given.
        ahead: keys that were drawn before; where not given, or not for this attempt, they are drawn in `start`.

    A session belongs to one thread.

    Raises:
        ConfigError: identity, roster and policy do not fit together.
    """

    def __init__(
        self,
        policy: Policy,
        me: str,
        signing_key: SigningKey,
        pinned: PinnedRoster,
        opened: OpenRound,
        store: Store,
        executor: Executor | None = None,
        ahead: KeysAhead | None = None,
    ) -> None:
        _check_types(policy, pinned, executor)
        must_be(me, str, "me", "give this client's id, a text, as in the roster")
        must_be(signing_key, SigningKey, "signing_key", "give a secagg.SigningKey")
        must_be(opened, OpenRound, "opened", "give what secagg.open_round returns")
        must_have(store, "transaction", "store", "give a secagg.SqliteStore, or a secagg.MemoryStore for a try")
        self._policy, self._me, self._executor = policy, me, executor
        self._state: object = Joining(policy, me, signing_key, pinned, opened, store, ahead)
        self._slot = opened.context.slot(session_id(policy, pinned))
        self._opened = opened
        self._first: AdvertiseKeys | None = None
        self._update: Quantised | None = None
        self._event_id = ""
        self._excess_seeds: tuple[bytes, ...] = ()
        self._waiting: Reports | None = None
        self._provided = False
        self._answered: list[tuple[FromServer, FromClient]] = []
        self._step = STEPS[0]
        self._clip_rate, self._clip_rates = 0.0, dict[str, float]()
        self._result: Result | None = None
        self._included: tuple[str, ...] = ()
        self._dropped: tuple[str, ...] = ()
        self._finished = False

    @property
    def opened(self) -> OpenRound:
        """What the attempt is about."""
        return self._opened

    @property
    def first(self) -> AdvertiseKeys | None:
        """What `start` returned, for a server that opens the same attempt again; None before."""
        return self._first

    @property
    def provided(self) -> bool:
        """Whether it has its update."""
        return self._provided

    @property
    def dropped(self) -> tuple[str, ...]:
        """U2 minus U3, sorted, once this client attested U3."""
        return self._dropped

    @property
    def latest(self) -> FromClient | None:
        """The message that this client sent last, which a server takes again (S-02); None before `start`."""
        return self._answered[-1][1] if self._answered else self._first

    @property
    def step(self) -> str:
        """Name of the step that the latest message of this client belongs to."""
        return self._step

    @property
    def clip_rate(self) -> float:
        """Fraction of the update's floats outside their clip range, once it was provided."""
        return self._clip_rate

    @property
    def clip_rates(self) -> Mapping[str, float]:
        """By field of floats, the fraction of its values outside its clip range, once the update was provided."""
        return self._clip_rates

    @property
    def included(self) -> tuple[str, ...]:
        """U3, sorted, once this client attested it."""
        return self._included

    @property
    def total(self) -> Vector | None:
        """The sum, (d,) unsigned integers modulo 2^b, for `secagg.dequantize`; None until the result is verified.

        It is the sum that this client's confirmation is about: its hash is in the head (C-19).
        """
        if self._result is None:
            return None
        policy = self._policy
        return unpack(self._result.total, policy.length + policy.slots, policy.bits)[: policy.length]

    @property
    def excess_seeds(self) -> Mapping[str, bytes]:
        """What clients disclosed for this sum, by client, one behind the other; as the server says (T-11)."""
        return {} if self._result is None else self._result.excess_seeds

    @property
    def receipt(self) -> Receipt | None:
        """What the server signed about the finished round; None until the result is verified."""
        return None if self._result is None else self._result.receipt

    @property
    def head(self) -> bytes | None:
        """Head of the finished round, 32 bytes; None until the result is verified."""
        return None if self._result is None else self._result.receipt.head

    @property
    def finished(self) -> bool:
        """Whether nothing more will be asked: send the reply to the last message, then stop."""
        return self._finished

    def start(self) -> AdvertiseKeys:
        """The first message: AdvertiseKeys.

        Raises:
            UnexpectedMessageError: C-03, this attempt was joined before.
            ExposureError: C-05, an earlier round of this data set is open.
        """
        if not isinstance(self._state, Joining):
            raise IllegalTransitionError("start() was already called")
        try:
            self._state, self._first = self._state.advertise_keys()
        except BaseException:
            self.close()
            raise
        return self._first

    def provide(
        self,
        update: Values,
        event_id: str = "",
        stream: Stream | None = None,
        copy: Vector | None = None,
        excess_seeds: Sequence[bytes] = (),
    ) -> FromClient | None:
        """Hand over the update, any time before masking: the first steps run while training.

        Args:
            update: (d,) float32 or float64, or what the policy's layout says: arrays by field. It is clipped, weighted,
                stochastically rounded and masked in one pass when the reports are there. Not to be changed until then:
                `step` is "MaskedInputCollection" afterwards.
            event_id: ledger event that the contribution was charged to.
            stream: randomness of the rounding; the operating system's where not given.
            copy: where given, filled with the quantised update as it is masked, see `secagg.quantize.Quantised`.
            excess_seeds: of noise in the update, `policy.excess(clients)` of them, 32 fresh bytes each, or none: the
                first is of what a sum with one client less than all needs more, the last of what only the smallest one
                needs. With its unmasking shares the client discloses those that the agreed sum does not need.

        Returns:
            The masked input, to be sent now, where the reports came before the update; else None.

        Raises:
            ConfigError: wrong field, shape or type, a value that is not finite, a count or weight out of its range.
            IllegalTransitionError: an update was already provided, or the session is over.
            ProtocolError, AbortedError: as `receive`, of reports that came before.
        """
        if self._provided or self._finished:
            raise IllegalTransitionError("this session is over, or has its update")
        if excess_seeds and len(excess_seeds) != self._policy.excess(self._policy.clients):
            needed = self._policy.excess(self._policy.clients)
            raise ConfigError(f"excess_seeds: {len(excess_seeds)} were given, and this policy takes {needed}")
        if len(set(excess_seeds)) != len(excess_seeds) or {len(seed) for seed in excess_seeds} - {KEY_BYTES}:
            raise ConfigError(f"excess_seeds: give fresh ones of {KEY_BYTES} bytes each, such as secrets.token_bytes")
        self._update = Quantised(update, self._policy, self._me, stream or Stream(), copy)
        self._clip_rate, self._clip_rates = self._update.clip_rate, self._update.clip_rates
        self._event_id, self._excess_seeds, self._provided = event_id, tuple(excess_seeds), True
        return None if self._waiting is None else self._answer(self._waiting)

    def receive(self, message: FromServer) -> FromClient | None:
        """Answer a message of the server; None where there is nothing to send (yet).

        Raises:
            ProtocolError: the server is at fault; this session is over.
            AbortedError: nobody's fault; this session is over and the client may join the next round.
            IllegalTransitionError: the session was already over.
        """
        must_be_decoded(message, "decode_from_server")
        for answered, reply in self._answered:
            if message == answered:
                return reply
        if self._finished:
            raise IllegalTransitionError("this session is over")
        early = isinstance(self._state, Reported) and self._update is None
        if early and isinstance(message, Reports) and self._waiting in (None, message):
            self._waiting = message
            return None
        return self._answer(message)

    def _answer(self, message: FromServer) -> FromClient:
        try:
            reply = self._advance(message)
        except BaseException:
            self.close()
            raise
        self._step = _STEP_OF[type(reply)]
        self._answered.append((message, reply))
        return reply

    def _advance(self, message: FromServer) -> FromClient:
        reply: FromClient
        match self._state, message:
            case Advertised() as state, Roster():
                self._state, reply = state.share_keys(message)
            case Shared() as state, ShareInbox():
                self._state, reply = state.report(message)
            case Reported() as state, Reports() if self._update is not None:
                given = (self._update, self._event_id, self._executor, self._excess_seeds)
                self._state, reply = state.mask_input(message, *given)
                self._update, self._excess_seeds = None, ()
            case Masked() as state, IncludedSet():
                sharers = state.sharers
                self._state, reply = state.attest(message)
                self._included = tuple(message.by_id)
                self._dropped = tuple(sorted(sharers - message.by_id.keys()))
            case Attested() as state, Attestations():
                self._state, reply = state.unmask(message)
            case (Attested() | Released()) as state, Result():
                reply = state.conclude(message)
                self._result = message
                self.close()
            case Released() as state, SlotsFailed():
                reply = state.show_slot_masks(message)
                self.close()
            case _, Abort():
                self._abort(message)
            case _:
                raise UnexpectedMessageError("C-20", f"the server sent {type(message).__name__} out of turn")
        return reply

    def _abort(self, message: Abort) -> NoReturn:
        """The attempt is over as after a deadline: every mark stays as it is, so that nothing is given twice."""
        if message.slot != self._slot:
            raise InconsistentViewError("C-28", "the server ended another attempt than this client is in")
        raise AbortedError(self._step, f"the server ended this attempt after {self._step}: {message.reason}")

    def close(self) -> None:
        """End the session and wipe its secrets; safe to call at any time."""
        if isinstance(self._state, State):
            self._state.wipe()
        self._finished = True
        self._state = self._update = self._waiting = None
        self._excess_seeds = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ClientSession holds secrets and is never copied or pickled")


class ServerSession:
    """The server in one attempt at one round.

    Args:
        policy: parameters, the same as every client's.
        pinned: pinned identities of the cohort.
        round_context: what the attempt is about.
        signing_key: key of `policy.server_key`; None where the policy names none.
        leave_out: clients not admitted to this attempt, after complaints or convictions.
        record: called with each message of a client once it is accepted; at the end with every pair secret that the
            server opened in the place of its dealer, then with the result. A `secagg.transcript_files.Recorder` is one.
        executor: what expands masks, such as a thread pool (`secagg.prg.apply_masks`); this thread where not given.

    Raises:
        ConfigError: roster, policy and key do not fit together.
    """

    def __init__(
        self,
        policy: Policy,
        pinned: PinnedRoster,
        round_context: RoundContext,
        signing_key: SigningKey | None = None,
        leave_out: Collection[str] = (),
        record: Callable[[FromClient | OpenedPair | Result], None] | None = None,
        executor: Executor | None = None,
    ) -> None:
        _check_types(policy, pinned, executor)
        must_be(round_context, RoundContext, "round_context", "give RoundBook.context(model_hash)")
        must_be(signing_key, (SigningKey, NoneType), "signing_key", "give the server's secagg.SigningKey")
        if (signing_key.verify_key if signing_key else b"") != policy.server_key:
            raise ConfigError("the server's signing key is not the policy's server_key")
        if not set(leave_out) <= pinned.keys():
            raise ConfigError("leave_out names a client that the roster does not list")
        session = session_id(policy, pinned)
        self._context, self._slot = round_context, round_context.slot(session)
        opened = Round(policy, pinned, round_context, session, self._slot, signing_key, executor)
        self._state: object = Advertising(opened, pinned.keys() - set(leave_out))
        self._closed: Collecting | None = None
        self._replies: Mapping[str, FromServer] = {}
        self.record = record
        self._step = STEPS[0]
        self._result: Vector | None = None
        self._receipt: Receipt | None = None
        self._included: tuple[str, ...] = ()
        self._dropped: tuple[str, ...] = ()
        self._burned = False
        self._finished = False

    @property
    def context(self) -> RoundContext:
        """What the attempt is about."""
        return self._context

    @property
    def step(self) -> str:
        """Name of the step that is being collected."""
        return self._step

    @property
    def included(self) -> tuple[str, ...]:
        """U3, sorted, once it is fixed."""
        return self._included

    @property
    def dropped(self) -> tuple[str, ...]:
        """U2 minus U3, sorted, once U3 is fixed."""
        return self._dropped

    @property
    def result(self) -> Vector | None:
        """The total after the last step: (d,) unsigned integers modulo 2^b."""
        return self._result

    @property
    def excess_seeds(self) -> Mapping[str, bytes]:
        """What clients disclosed for the finished sum, by client, one behind the other."""
        told = next(iter(self._replies.values()), None) if self._result is not None else None
        return told.excess_seeds if isinstance(told, Result) else {}

    @property
    def receipt(self) -> Receipt | None:
        """Of the finished round: what `RoundBook.completed` takes."""
        return self._receipt

    @property
    def head(self) -> bytes | None:
        """Head of the finished round, 32 bytes: what the next round start builds on."""
        return self._receipt.head if self._receipt is not None else None

    @property
    def burned(self) -> bool:
        """Whether the sharers are known and there is no sum: this round number completes or is burned."""
        return self._burned

    @property
    def finished(self) -> bool:
        """Whether the result is there, or never will be. Confirmations of the result are still taken."""
        return self._finished

    @property
    def _collecting(self) -> Collecting:
        if not isinstance(self._state, Collecting):
            raise IllegalTransitionError("this session is over")
        return self._state

    @property
    def expected(self) -> frozenset[str]:
        """Whose messages this step takes."""
        return self._collecting.expected

    @property
    def missing(self) -> tuple[str, ...]:
        """Who has not been heard in this step."""
        state = self._collecting
        return tuple(sorted(state.expected - state.received.keys()))

    @property
    def heard(self) -> int:
        """How many have been heard in this step."""
        return len(self._collecting.received)

    @property
    def needed(self) -> int:
        """With fewer than so many the step cannot be closed; after the sum, its transcript does not hold (T-02)."""
        return self._collecting.needed

    @property
    def told(self) -> Mapping[str, FromServer]:
        """By client, the message that opened this step; empty in the first one, which the round start opens."""
        return dict(self._replies)

    @property
    def ready(self) -> bool:
        """Whether every expected client has been heard; the caller may also close at a deadline."""
        return not self.finished and self._collecting.ready

    def receive(self, sender: str, message: FromClient) -> FromServer | None:
        """Take a message of an authenticated sender; after the result, its confirmation.

        Returns:
            None, or the stored reply where this repeats what the last closed step took: the reply may have been lost.

        Raises:
            ProtocolError: the message was refused and has left no trace; the round goes on without it.
            IllegalTransitionError: the session is over.
        """
        must_be_decoded(message, "decode_from_client")
        if self._closed is not None and self._closed.took(sender, message):
            return self._replies.get(sender)
        new = self._collecting.receive(sender, message)
        if new and self.record is not None and not isinstance(message, SlotMasks):
            self.record(message)
        return None

    def abort(self, reason: object) -> Abort:
        """End the session, if it is not over, and return what tells every client so that it does not wait for ever.

        Args:
            reason: for people: the error that ended it, or a sentence; at most 1000 characters are sent.

        Raises:
            IllegalTransitionError: there is a sum, which every client of U3 may have.
        """
        if self._result is not None:
            raise IllegalTransitionError("this round has its sum")
        self._finished, self._state = True, None
        return Abort.because(self._slot, reason)

    @property
    def confirmations(self) -> Mapping[str, Confirmation]:
        """Who confirmed the head, with its signature; `missing` says who did not."""
        return dict(self._state.received) if isinstance(self._state, Confirming) else {}

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ServerSession holds released shares and is never copied or pickled")

    def close_step(self) -> Mapping[str, FromServer]:
        """Close the step and return the message for each client that takes part in the next one.

        Raises:
            TooFewClientsError: fewer than min_survivors (or t) are left; nothing was opened.
            ComplaintError: open another attempt, or another round where `burned`, without one end of each complaint.
            ProtocolError: a convicted client; the round is burned, and the client stays out for good.
        """
        closed = self._collecting
        if self.finished:
            raise IllegalTransitionError("this session is over")
        try:
            self._replies = self._close()
        except BaseException:
            self._finished, self._state = True, None
            raise
        self._closed = closed
        return self._replies

    def _close(self) -> Mapping[str, FromServer]:
        replies: Mapping[str, FromServer]
        match self._collecting:
            case Advertising() as state:
                self._state, replies = state.close()
            case SharingKeys() as state:
                self._state, replies = state.close()
            case Reporting() as state:
                self._state, replies = state.close()
                self._burned = True
            case CollectingInputs() as state:
                self._state, replies = state.close()
                self._included = tuple(sorted(state.received))
                self._dropped = tuple(sorted(state.expected - state.received.keys()))
            case Attesting() as state:
                self._state, replies = state.close()
            case Unmasking() as state:
                self._state, replies = state.close()
                if isinstance(self._state, Confirming):
                    self._result, self._receipt = self._state.total, self._state.result.receipt
                    self._finished, self._burned = True, False
                    if self.record is not None:
                        for (dealer, dropped), secret in state.opened.items():
                            self.record(OpenedPair(dealer, dropped, secret))
                        self.record(self._state.result)
            case Blaming() as state:
                state.close()
        self._step = self._collecting.step
        return replies
