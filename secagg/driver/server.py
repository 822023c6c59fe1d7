"""A server's rounds: who is asked, how long is waited, what follows on an attempt without a sum."""

from collections.abc import Callable, Collection, Mapping
from typing import NoReturn

from secagg import wire
from secagg.arguments import must_be, must_be_bytes, must_be_hash, positive, whole
from secagg.book import RoundBook
from secagg.context import RoundContext
from secagg.driver.actions import (
    Completed,
    Failed,
    Published,
    Refused,
    Retrying,
    Save,
    Send,
    ServerAction,
    Silent,
)
from secagg.driver.recording import Durable, Recording
from secagg.encoding import Buffer
from secagg.errors import (
    AbortedError,
    ConfigError,
    IllegalTransitionError,
    MalformedMessageError,
    ProtocolError,
    TooFewClientsError,
)
from secagg.masking import Vector
from secagg.messages import Receipt
from secagg.policy import Policy
from secagg.prg import Executor, check_executor
from secagg.quantize import dequantize
from secagg.roster import PinnedRoster, session_id
from secagg.session import ServerSession
from secagg.snapshot import resume_server, snapshot_server
from secagg.steps import ADVERTISE_KEYS, BLAME, MASKED_INPUT_COLLECTION

_DRIVER = "driver"
"""In what is saved, beside the book: who was asked, and how many attempts are left."""


class ServerDriver:
    """The server of the rounds of one run.

    Args:
        policy: parameters, the same as every client's, with a `server_key`.
        pinned: pinned identities of the cohort.
        book: the run's, with the server's key. The driver moves it on.
        step_seconds: how long each step waits for those who were asked, at most.
        input_seconds: the same for the masked inputs, which wait for training; `step_seconds` where None.
        attempts: how often a round is tried, at most, before `begin` has failed; burned round numbers count too.
        record: makes what writes the transcript of an attempt; where updates are not private on their own, clients need
            it (C-05). None for no transcripts.
        executor: what expands masks (`secagg.prg.apply_masks`); the calling thread where not given.
        resumable: every step begins with a `Save` from which `resume` goes on after a crash. What `record` makes is
            `Durable` then; call `sync` before the `Save` is written.
        confirmed: the transcript waits for a quorum of confirmations, also after the step's deadline: without one it
            does not hold (T-02), and clients whose updates are not private would have nothing to replay (C-05).

    Attributes:
        step_seconds, input_seconds: as given; what is set here counts from the next step on.

    It belongs to one thread.

    Raises:
        ConfigError: roster, policy and key do not fit together.
    """

    def __init__(
        self,
        policy: Policy,
        pinned: PinnedRoster,
        book: RoundBook,
        *,
        step_seconds: float = 60.0,
        input_seconds: float | None = None,
        attempts: int = 3,
        record: Callable[[RoundContext], Recording | None] | None = None,
        executor: Executor | None = None,
        resumable: bool = False,
        confirmed: bool = False,
    ) -> None:
        must_be(policy, Policy, "policy", "give a secagg.Policy")
        must_be(pinned, PinnedRoster, "pinned", "give a secagg.PinnedRoster")
        must_be(book, RoundBook, "book", "give the run's secagg.RoundBook")
        if not policy.server_key or book.signing_key.verify_key != policy.server_key:
            raise ConfigError("the book's signing key is not the policy's server_key: every round start is signed")
        session_id(policy, pinned)  # refuses a policy for another number of clients
        check_executor(executor)
        if whole("attempts", attempts) < 1:
            raise ConfigError(f"attempts = {attempts}: a round is tried at least once")
        self.policy, self.pinned, self.book = policy, pinned, book
        self.step_seconds, self._attempts, self._confirmed = positive("step_seconds", step_seconds), attempts, confirmed
        self.input_seconds = self.step_seconds if input_seconds is None else positive("input_seconds", input_seconds)
        self._record, self._executor, self._resumable = record, executor, resumable
        self._session: ServerSession | None = None
        self._recording: Recording | None = None
        self._model_hash, self._left = b"", 0
        self._clients = frozenset[str]()
        self._asked = frozenset[str]()
        self._gone, self._over, self._anew = set[str](), set[str](), set[str]()
        self._spoilt = set[str]()
        self._closes_at: float | None = None
        self._now = 0.0  # a step that is closed by a call without a time lasts from here, and not from 0

    @property
    def session(self) -> ServerSession | None:
        """The session of the latest attempt; to look at."""
        return self._session

    @property
    def running(self) -> bool:
        """Whether a round is under way: neither `Completed` nor `Failed` was told of it."""
        return self._session is not None and not self._session.finished

    @property
    def unpublished(self) -> bool:
        """Whether the round has its sum, and its transcript still waits for confirmations."""
        return self._recording is not None and not self.running

    @property
    def awaited(self) -> frozenset[str]:
        """Who may still speak in this step and is waited for: asked, not gone, and not refused in it."""
        return self._possible - self._gone

    @property
    def _possible(self) -> frozenset[str]:
        """Who may still speak in this step, also once it is back."""
        if not self._open or self._session is None:
            return frozenset()
        return (frozenset(self._session.missing) & self._asked) - self._over - self._spoilt

    @property
    def _open(self) -> bool:
        """Whether a step is open: messages are taken until it is closed."""
        return self.running or self._recording is not None

    @property
    def deadline(self) -> float | None:
        """When to call `tick`; None for never."""
        return self._closes_at

    def begin(self, model_hash: bytes, clients: Collection[str] | None = None, now: float = 0.0) -> list[ServerAction]:
        """Open the next round.

        Args:
            model_hash: 32 bytes, of the model that the updates will belong to; see the model hash in docs/spec.md.
            clients: who is there; everybody of the roster where None. Nobody waits for the others.
            now: seconds.

        Returns:
            Actions; `Failed` at once where too few clients are there, which uses up no number.

        Raises:
            IllegalTransitionError: a round is under way.
            ConfigError: somebody is not in the roster.
        """
        if self.running:
            raise IllegalTransitionError("a round is under way; end it first, with `abort`")
        must_be_hash(model_hash, "model_hash")
        self._clients = frozenset(self.pinned if clients is None else clients)
        if not self._clients <= self.pinned.keys():
            raise ConfigError("clients names somebody whom the roster does not list")
        actions = self._published()
        self._model_hash, self._left = model_hash, self._attempts
        self._gone, self._over, self._anew = set(), set(), set()
        return [*actions, *self._announced(now)]

    def resume(self, save: Save, now: float = 0.0) -> list[ServerAction]:
        """Go on from the last `Save` of a driver that is no more: the first call of a fresh one.

        Returns:
            The messages of the step that was open, to be sent again: clients repeat what they answered, byte for byte.
            Nothing where no step was open: `begin` opens the next round.

        Raises:
            ConfigError: it is not what a driver of this policy, roster and run saved, or is damaged.
        """
        if self._session is not None:
            raise IllegalTransitionError("a driver is resumed before anything else")
        book = self.book
        book.restore(save.book)
        if not book.leave_out <= self.pinned.keys():
            raise ConfigError("the saved book is of another cohort: it names clients whom the roster does not list")
        if not save.sealed:
            return []
        session, replies = resume_server(save.sealed, self.policy, self.pinned, book.signing_key, self._executor)
        context = session.context
        if (context.training_run, context.task_hash) != (book.training_run, book.task_hash):
            raise ConfigError("this snapshot is of another run or task than the book's")
        # A step that was written at another time than the book would be completed into the book a second time.
        there = (context.round_number, context.attempt + 1, context.previous_head)
        counted = session.receipt is not None and book.receipts[-1:] == (session.receipt,)
        if not counted and there != (book.number, book.attempt, book.head):
            raise ConfigError(
                "this snapshot is of another round than the book beside it: write both as one, with `Save`"
            )
        try:
            who = save.book[_DRIVER]
            left, clients, asked = int(who["left"]), frozenset(who["clients"]), frozenset(who["asked"])
            if not asked <= clients <= self.pinned.keys():
                raise ValueError("who was asked is in the roster")
        except (KeyError, TypeError, ValueError):
            raise ConfigError("what is saved beside the book does not say who was asked: it is damaged") from None
        book.attempt = 0 if counted else context.attempt
        self._session, self._model_hash, self._left = session, context.model_hash, left
        self._clients, self._asked = clients, asked
        self._wait(now)
        kept = self._recorded_again(session, save.recorded)
        if counted and self._recording is None:
            self._closes_at = None
            return [Save(book.saved())]
        if not kept and not session.finished:
            return self._failed(session, AbortedError(session.step, "what was recorded of this round is lost"), now)
        if session.step == ADVERTISE_KEYS:
            return self._starts()
        sends: list[ServerAction] = [Send(data, to) for to, data in wire.encode_each(replies).items()]
        if not counted and session.result is not None and session.receipt is not None:
            return [*sends, *self._completed(session, session.result, session.receipt)]
        return sends

    def again(self, client_id: str) -> list[ServerAction]:
        """What opened this step for a client, once more: it says that it is in this attempt, and may have lost it."""
        session = self._session
        if session is None or not self._open or client_id not in self._asked:
            return []
        if session.step == ADVERTISE_KEYS:
            return [Send(wire.encode(self.book.start(self._model_hash)), client_id)]
        said = session.told.get(client_id)
        return [] if said is None else [Send(wire.encode(said), client_id)]

    def sync(self) -> None:
        """Bring what was recorded to the disk, before the `Save` that counts it.

        Raises:
            OSError: it cannot be written now; a later call tries again.
        """
        if isinstance(self._recording, Durable):
            self._recording.sync()

    def receive(self, sender: str, data: Buffer, now: float = 0.0) -> list[ServerAction]:
        """Take a message of a client; rubbish and lies cost their sender the step, and nobody else.

        Args:
            sender: whom the transport authenticated; never from the message.
            data: the bytes, which must not change afterwards.
            now: seconds; the latest that was told where it is not given.
        """
        must_be_bytes(data)
        session = self._session
        if session is None:
            return [Refused("no round is under way", sender)]
        try:
            reply = session.receive(sender, wire.decode_from_client(data))
        except ProtocolError as error:
            grave = sender in error.culprits or isinstance(error, MalformedMessageError)
            if grave:
                self._spoilt.add(sender)  # honest clients send nothing of the kind: nobody waits for more of this
            return [Refused(str(error), sender, grave), *self._closed(now)]
        except IllegalTransitionError:
            return []  # the attempt is over
        self._over.discard(sender)  # it is in the attempt after all
        self._anew.discard(sender)
        repeated: list[ServerAction] = [] if reply is None else [Send(wire.encode(reply), sender)]
        return [*repeated, *self._closed(now)]

    def tick(self, now: float) -> list[ServerAction]:
        """The deadline may have passed: the step is closed where it has."""
        return self._closed(now, due=self._closes_at is not None and now >= self._closes_at)

    def gone(self, client_id: str, now: float = 0.0) -> list[ServerAction]:
        """The transport says that this client is not there any more: nobody waits for it until `back`.

        Only a step without too few waits for all of them up to its deadline: to close it early could only fail.
        """
        self._gone.add(client_id)
        return self._closed(now)

    def back(self, client_id: str) -> None:
        """It is there again."""
        self._gone.discard(client_id)

    def over(self, client_id: str, now: float = 0.0) -> list[ServerAction]:
        """This client is in no attempt any more, such as a new process of it: it says nothing more in this one.

        Once there is a sum, it may still confirm it.
        """
        if self.running:
            self._over.add(client_id)
        return self._closed(now)

    def anew(self, client_id: str, now: float = 0.0) -> list[ServerAction]:
        """Another process of this client is there: it confirms no sum, unless its release was kept to confirm one by.

        Only clients whose updates are not private keep that (`secagg.client.conclude_later`).
        """
        self._anew.add(client_id)
        if self.unpublished and not self._confirmed:
            self._over.add(client_id)
        return self._closed(now)

    def wait_until(self, deadline: float) -> None:
        """Move the deadline of the step that is open: somebody who is waited for gets on."""
        if self._closes_at is not None:
            self._closes_at = max(self._closes_at, deadline)

    def abort(self, reason: str) -> list[ServerAction]:
        """End the round without a sum, and tell every client that was asked.

        Raises:
            IllegalTransitionError: no round is under way.
        """
        if not self.running or self._session is None:
            raise IllegalTransitionError("no round is under way")
        self._left = 0
        return self._failed(self._session, AbortedError(self._session.step, reason), 0.0)

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ServerDriver holds a key and is never copied or pickled: use what `Save` holds")

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _announced(self, now: float) -> list[ServerAction]:
        asked = sorted(self._clients - self.book.leave_out - self._gone)
        if len(asked) < self.policy.min_survivors:
            error = TooFewClientsError(ADVERTISE_KEYS, len(asked), self.policy.min_survivors)
            self._closes_at = None
            return [Failed(str(error), error)]
        context = self.book.context(self._model_hash)
        self._recording = None if self._record is None else self._record(context)
        if self._resumable and isinstance(self._recording, Durable):
            self._recording.rewind(0)
        self._session = ServerSession(
            self.policy,
            self.pinned,
            context,
            self.book.signing_key,
            self.book.leave_out,
            self._recording,
            self._executor,
        )
        self._asked = frozenset(asked)
        self._wait(now)
        return [*self._saved(self._session), *self._starts()]

    def _starts(self) -> list[ServerAction]:
        start = wire.encode(self.book.start(self._model_hash))
        return [Send(start, to) for to in sorted(self._asked)]

    def _saved(self, session: ServerSession, told: Mapping[str, bytes] | None = None) -> list[ServerAction]:
        """What a step begins with, and what it told. Blame has none: whoever goes on from before comes to it again."""
        if not self._resumable:
            return [Save(self.book.saved())] if session.step == ADVERTISE_KEYS else []
        if session.step == BLAME:
            return []
        return [self._sealed(snapshot_server(session, self.book.signing_key, told))]

    def _sealed(self, snapshot: bytes) -> Save:
        who = {"clients": sorted(self._clients), "asked": sorted(self._asked), "left": self._left}
        recorded = self._recording.recorded if isinstance(self._recording, Durable) else 0
        return Save({**self.book.saved(), _DRIVER: who}, snapshot, recorded)

    def _recorded_again(self, session: ServerSession, recorded: int) -> bool:
        """Whether there is what another process recorded, or nothing is: the round goes on with it."""
        if self._record is None:
            return True
        self._recording = recording = self._record(session.context)
        if recording is None:
            return True
        try:
            if not isinstance(recording, Durable):
                raise OSError("it is not durable")
            recording.rewind(recorded)
        except OSError:
            self._recording = None
            return False
        session.record = recording
        return True

    def _wait(self, now: float) -> None:
        self._now, self._spoilt = max(self._now, now), set()
        masking = self._session is not None and self._session.step == MASKED_INPUT_COLLECTION
        self._closes_at = self._now + (self.input_seconds if masking else self.step_seconds)

    def _closed(self, now: float, due: bool = False) -> list[ServerAction]:
        """Close every step in which nobody is waited for any more, the first one in any case where it is due."""
        actions: list[ServerAction] = []
        self._now = max(self._now, now)
        while self._open and self._session is not None and (due or self._over_early(self._session)):
            session, due = self._session, False
            if session.finished and self._confirmed and session.heard < session.needed:
                self._closes_at = None  # the sum is there: nothing is lost by waiting for its transcript
                return actions
            if silent := tuple(sorted(frozenset(session.missing) & self._asked)):
                actions.append(Silent(session.step, silent))
            if session.finished:
                saved: list[ServerAction] = [Save(self.book.saved())] if self._resumable else []
                return [*actions, *self._published(), *saved]
            try:
                replies = session.close_step()
            except (ProtocolError, AbortedError) as error:
                return [*actions, *self._failed(session, error, now)]
            self._wait(now)
            told = wire.encode_each(replies)
            actions += self._saved(session, told)
            actions += [Send(data, to) for to, data in told.items()]
            if session.result is not None and session.receipt is not None:
                actions += self._completed(session, session.result, session.receipt)
        return actions

    def _over_early(self, session: ServerSession) -> bool:
        """Whether waiting up to the deadline changes nothing: all have spoken, or so few can that it fails in any case.

        After the deadline only confirmations are still waited for.
        """
        if self._closes_at is None:
            return session.finished and session.heard >= session.needed
        if self.awaited:
            return False
        return session.heard >= session.needed or session.heard + len(self._possible) < session.needed

    def _completed(self, session: ServerSession, result: Vector, receipt: Receipt) -> list[ServerAction]:
        self.book.completed(receipt)
        self._over = set() if self._confirmed else set(self._anew)  # who is in no attempt may still confirm its sum
        save = Save(self.book.saved())
        if self._recording is None:  # nobody has to wait for confirmations: they are for the transcript
            self._closes_at = None
        elif self._resumable:
            save = self._sealed(snapshot_server(session, self.book.signing_key))
        total = dequantize(result, self.policy)
        disclosed = session.excess_seeds
        return [save, Completed(total, session.included, receipt, result, session.dropped, disclosed)]

    def _failed(self, session: ServerSession, error: ProtocolError | AbortedError, now: float) -> list[ServerAction]:
        burned = session.burned
        abort = wire.encode(session.abort(error))
        published = self._published()
        try:
            told = self.book.failed(error, burned)
        except ProtocolError as stop:  # S-20: the run cannot go on
            told, error, self._left = (), stop, 0
        actions: list[ServerAction] = [Save(self.book.saved())]  # first: nobody goes on with an attempt that was ended
        actions += [*(Send(abort, to) for to in sorted(self._asked)), *published]
        self._left -= 1
        if self._left <= 0:
            return [*actions, Failed(str(error), error, told)]
        return [*actions, Retrying(str(error), told), *self._announced(now)]

    def _published(self) -> list[ServerAction]:
        """The transcript of the attempt that is over, once; who has not confirmed its head by now is not in it."""
        recording, self._recording, self._closes_at = self._recording, None, None
        if recording is None:
            return []
        return [Published(recording.publish())]
