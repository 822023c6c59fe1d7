"""A client's rounds, one after the other: from the server's bytes to what is sent, asked and told."""

from collections.abc import Callable, Sequence
from typing import NoReturn

from secagg import wire
from secagg.ahead import KeysAhead
from secagg.arguments import must_be, must_be_bytes, must_be_hash, must_have, positive
from secagg.client import conclude_later, open_round
from secagg.context import RoundContext
from secagg.driver.actions import ClientAction, Completed, Exposed, Failed, Joined, NeedInput, Refused, Send
from secagg.encoding import Buffer
from secagg.errors import (
    AbortedError,
    ConfigError,
    ExposureError,
    IllegalTransitionError,
    ProtocolError,
    SecAggError,
    UnexpectedMessageError,
)
from secagg.keys import SigningKey
from secagg.layout import Values
from secagg.masking import Vector
from secagg.messages import Abort, FromClient, FromServer, MaskedInput, Reports, Result, RoundStart, SlotMasks
from secagg.policy import Policy
from secagg.prg import Executor, Stream, check_executor
from secagg.quantize import Quantised, dequantize
from secagg.roster import PinnedRoster, session_id
from secagg.session import ClientSession
from secagg.snapshot import resume, suspend
from secagg.steps import ROUND_START
from secagg.store import Store
from secagg.transcript import ViolationError, accept, judge
from secagg.transcript.record import looks_like, records_in

_Given = tuple[Values, str, Stream | None, Vector | None, Sequence[bytes]]


class ClientDriver:
    """One client in the rounds of one run.

    Args:
        policy: own pinned parameters, with a `server_key`.
        me: own id in the roster.
        signing_key: own identity.
        pinned: pinned identities of the cohort.
        store: durable marks of the data set.
        training_run: the run that this client agreed to take part in.
        task_hash: 32 bytes, computed by this client from its own copy of what defines the task.
        private: whether each update is differentially private on its own, and charged; all of a cohort agree on it.
        patience: seconds without a word of the server after which an attempt is given up; None for never.
        executor: what expands masks (`secagg.prg.apply_masks`); the calling thread where not given.

    Attributes:
        model_hash: 32 bytes, of the model that this client will train, or of whatever else its vector is about. Set it
            before each round start comes in, from what the client holds itself; never copy it from the server.

    It belongs to one thread.

    Raises:
        ConfigError: identity, roster and policy do not fit together, or the policy names no server key.
    """

    def __init__(
        self,
        policy: Policy,
        me: str,
        signing_key: SigningKey,
        pinned: PinnedRoster,
        store: Store,
        *,
        training_run: str,
        task_hash: bytes,
        private: bool = False,
        patience: float | None = None,
        executor: Executor | None = None,
    ) -> None:
        must_be(policy, Policy, "policy", "give a secagg.Policy")
        must_be(pinned, PinnedRoster, "pinned", "give a secagg.PinnedRoster")
        must_be(me, str, "me", "give this client's id, a text, as in the roster")
        must_be(signing_key, SigningKey, "signing_key", "give a secagg.SigningKey")
        must_have(store, "transaction", "store", "give a secagg.SqliteStore, or a secagg.MemoryStore for a try")
        must_be(training_run, str, "training_run", "give the run's name")
        must_be_hash(task_hash, "task_hash")
        check_executor(executor)
        if not policy.server_key:
            raise ConfigError("policy.server_key is empty: a driver takes only round starts that a pinned key signed")
        if me not in pinned or signing_key.verify_key != pinned[me]:
            raise ConfigError(f"the roster does not pin this signing key for {me!r}")
        self._policy, self._me, self._signing_key, self._pinned, self._store = policy, me, signing_key, pinned, store
        self._training_run, self._task_hash, self._private = training_run, task_hash, private
        self._patience = None if patience is None else positive("patience", patience)
        self._executor, self._ahead = executor, KeysAhead(policy.suite, store)
        self._own_session = session_id(policy, pinned)
        self.model_hash: bytes | None = None
        self._session: ClientSession | None = None
        self._refused: RoundStart | None = None
        self._about: tuple[int, bytes] | None = None  # round number and model of the attempt that waits for an update
        self._given: tuple[tuple[int, bytes], _Given] | None = None  # not masked yet
        self._now = self._heard = 0.0

    @property
    def live(self) -> bool:
        """Whether an attempt was joined that is not over here."""
        return self._session is not None and not self._session.finished

    @property
    def session(self) -> ClientSession | None:
        """The session of the attempt that was joined last; to look at."""
        return self._session

    @property
    def wanted(self) -> tuple[int, bytes] | None:
        """Round number and model hash of the update that `provide` takes, now or in the next attempt; None for none."""
        return None if self.live and self._session is not None and self._session.provided else self._about

    @property
    def deadline(self) -> float | None:
        """When to call `tick`; None for never."""
        return self._heard + self._patience if self.live and self._patience is not None else None

    def receive(self, data: Buffer, now: float = 0.0) -> list[ClientAction]:
        """Take a message of the server, or the transcript of a round.

        Args:
            data: the bytes, which must not change afterwards.
            now: seconds; the latest that was told where it is not given.

        Raises:
            IllegalTransitionError: a round start came and `model_hash` was not set.
            ConfigError: the store cannot be used.
        """
        must_be_bytes(data)
        if looks_like(data):
            return self._replay(data, now)
        self._heard = self._at(now)
        try:
            message = wire.decode_from_server(data)
        except ProtocolError as error:
            return self._over(error)
        if isinstance(message, RoundStart):
            return self._open(message, now)
        session = self._session
        number = 0 if session is None or session.finished else session.opened.context.round_number
        if isinstance(message, Result) and (not number or message.receipt.round_number < number):  # brought twice
            return self._later(message)
        if session is None or (
            isinstance(message, Abort) and message.slot != session.opened.context.slot(self._own_session)
        ):
            return []  # late: of an attempt that is over here
        done = session.finished
        return self._take(lambda: session.receive(message), None if done else message)

    def provide(
        self,
        update: Values,
        event_id: str = "",
        stream: Stream | None = None,
        copy: Vector | None = None,
        excess_seeds: Sequence[bytes] = (),
    ) -> list[ClientAction]:
        """Hand over the update of the attempt that was joined; see `ClientSession.provide`.

        It is kept until it is masked: where the attempt ended before that, the next one at this round number uses it.

        Raises:
            ConfigError: wrong shape, or a value that is not finite.
            IllegalTransitionError: no attempt was joined, it has its update, or an update of its was masked.
        """
        if self._about is None:
            raise IllegalTransitionError("no round waits for an update: it is provided once, after `Joined`")
        given, session = (update, event_id, stream, copy, excess_seeds), self._session
        if session is None or session.finished:
            Quantised(update, self._policy, self._me, stream or Stream())  # ConfigError now, not when a start comes in
            self._given = self._about, given
            return []
        before, self._given = self._given, (self._about, given)
        try:
            return self._take(lambda: session.provide(*given), None)
        except BaseException:
            self._given = before
            raise

    def repeat(self) -> list[ClientAction]:
        """What this client sent last in the attempt that is live, or that has its sum: the same bytes again.

        For a server that may not have it: one that was restarted, or from which the connection was cut.
        """
        session = self._session
        if session is None or session.latest is None or (session.finished and session.receipt is None):
            return []
        return [Send(wire.encode(session.latest))]

    def tick(self, now: float) -> list[ClientAction]:
        """The deadline may have passed: the attempt is given up where it has. Its marks stay."""
        self._at(now)
        deadline = self.deadline
        if self._session is None or deadline is None or now < deadline:
            return []
        step = self._session.step
        return self._over(AbortedError(step, f"the server has said nothing for {self._patience:g} s after {step}"))

    def rest(self) -> None:
        """Draw the keys of the next attempt, where none is under way: call it when there is nothing else to do."""
        if not self.live:
            self._ahead.draw()

    def suspend(self) -> bytes:
        """Seal the attempt that is under way, for another process: here it is over. See `secagg.snapshot.suspend`.

        Returns:
            What `resume` takes, once; nothing where no attempt is under way. Write it whole to a disk before the last
            actions are done: `secagg.snapshot_files.kept_in` does.

        Raises:
            IllegalTransitionError: an update was provided that is not masked yet; it is never written down.
        """
        session = self._session
        if session is None or session.finished:
            self.close()
            return b""
        try:
            sealed = suspend(session)
        except UnexpectedMessageError:  # C-24: another process has joined another attempt, and this one is over
            sealed = b""
        self.close()
        return sealed

    def resume(self, sealed: Buffer, now: float = 0.0) -> list[ClientAction]:
        """Go on with the attempt that another process suspended: the first call of a fresh driver.

        Args:
            sealed: what `suspend` gave.
            now: seconds, from which the server's silence is measured.

        Returns:
            `Failed` where it cannot be used: used already, older than the last, damaged, or of another store, key,
            policy, roster or run. The attempt is then over for this client, which goes on with the next start.
        """
        if self._session is not None:
            raise IllegalTransitionError("a driver is resumed before anything else")
        try:
            session = resume(
                *(sealed, self._policy, self._me, self._signing_key, self._pinned, self._store, self._executor)
            )
        except (ConfigError, ProtocolError) as error:
            return self._over(error)
        context = session.opened.context
        if (context.training_run, context.task_hash) != (self._training_run, self._task_hash):
            session.close()
            return self._over(ConfigError("this snapshot is of another run or task than this driver's"))
        self._session, self._heard = session, self._at(now)
        self._about = (context.round_number, context.model_hash)
        return []

    def close(self) -> None:
        """End the attempt that is under way, and wipe its secrets and the keys of the next."""
        self._ahead.wipe()
        if self._session is not None:
            self._session.close()
        self._session = self._about = self._given = self._refused = None

    def __reduce__(self) -> NoReturn:
        raise TypeError("a ClientDriver holds secrets and is never copied or pickled: use `suspend`")

    # --- Inside -------------------------------------------------------------------------------------------------------

    def _at(self, now: float) -> float:
        """The latest time that was told: a call without one says nothing about the clock."""
        self._now = max(self._now, now)
        return self._now

    def _open(self, start: RoundStart, now: float) -> list[ClientAction]:
        running = self._session if self.live else None
        if running is not None:
            context = running.opened.context
            if (start.round_number, start.attempt) < (context.round_number, context.attempt):
                return []  # late
            if _context_of(start) == context and running.first is not None:
                return [Send(wire.encode(running.first))]  # it may have been lost
            running.close()
        self._session, self._refused = None, None
        if self.model_hash is None:
            raise IllegalTransitionError("set `model_hash`, of the model that this client holds, before a round starts")
        try:
            opened = open_round(
                self._policy,
                self._pinned,
                self._training_run,
                start,
                self._store,
                model_hash=self.model_hash,
                task_hash=self._task_hash,
                private=self._private,
            )
            self._settled()
            session = ClientSession(
                *(self._policy, self._me, self._signing_key, self._pinned, opened, self._store),
                executor=self._executor,
                ahead=self._ahead,
            )
            first = session.start()
        except ExposureError as error:
            self._refused = start
            return [Exposed(str(error), error.round_ids)]
        except (ProtocolError, AbortedError) as error:
            return self._over(error)
        self._session, self._heard = session, self._at(now)
        return [Send(wire.encode(first)), *self._joined(session)]

    def _joined(self, session: ClientSession) -> list[ClientAction]:
        context, kept = session.opened.context, self._given
        self._about = (context.round_number, context.model_hash)
        again = kept is not None and kept[0] == self._about
        if kept is not None and again:
            try:
                session.provide(*kept[1])
            except ConfigError:  # it was changed since: the first message is not lost for it, and another one is asked
                again = False
        if not again:
            self._given = None
        return [Joined(context.round_number, context.attempt, context.model_hash, again)]

    def _settled(self) -> None:
        """C-05: of the last finished round only the server says that it was one of this cohort, until it was replayed.

        On a round that it invented it could build any model, and sum the same updates again.
        """
        if self._private:
            return
        with self._store.transaction() as marks:
            number, _ = marks.head(self._own_session, self._training_run)
            last = marks.receipt(self._own_session, self._training_run, number)
            if last is None or marks.replayed(last.round_id) or marks.accepted(last.round_id):
                return
        reason = f"nothing shows this site that round {number}, the last finished one, was one of its cohort"
        raise ExposureError("C-05", ROUND_START, reason, [last.round_id])

    def _take(self, call: Callable[[], FromClient | None], message: FromServer | None) -> list[ClientAction]:
        session = self._session
        if session is None:
            return []
        try:
            reply = call()
        except ExposureError as error:
            self._session = None
            return [Exposed(str(error), error.round_ids)]
        except (ProtocolError, AbortedError) as error:
            return self._over(error)
        except IllegalTransitionError:
            if session.finished:  # late, or unwanted
                return []
            raise
        actions: list[ClientAction] = [] if reply is None else [Send(wire.encode(reply))]
        context = session.opened.context
        if isinstance(reply, MaskedInput):
            self._about = self._given = None
        if isinstance(message, Reports) and reply is None:
            actions.append(NeedInput(context.round_number, context.attempt))
        if isinstance(message, Result) and session.total is not None and session.receipt is not None:
            total = dequantize(session.total, self._policy)
            told = (session.included, session.receipt, session.total, session.dropped, session.excess_seeds)
            actions.append(Completed(total, *told))
        if isinstance(reply, SlotMasks):
            said = "the constant slots of the sum do not add up; this site showed what masked its own"
            actions.append(Failed(said, AbortedError(session.step, said)))
        return actions

    def _later(self, result: Result) -> list[ClientAction]:
        """A sum whose attempt is over here: confirmed again, or for the first time, and told to nobody else."""
        session = self._session
        if session is not None and session.receipt is not None and session.receipt.head == result.receipt.head:
            return self.repeat()
        try:
            found = conclude_later(self._policy, self._me, self._signing_key, self._pinned, self._store, result)
        except ProtocolError as error:
            return self._over(error) if self.live else [Failed(str(error), error)]
        return [] if found is None else [Send(wire.encode(found))]

    def _over(self, error: SecAggError) -> list[ClientAction]:
        if self._session is not None:
            self._session.close()
        self._session = None
        return [Failed(str(error), error)]

    def _replay(self, transcript: Buffer, now: float) -> list[ClientAction]:
        """C-05: recompute a round's sum from its transcript; then the start that was refused is looked at again."""
        try:
            accept(judge([("the transcript", records_in(transcript))], self._policy, self._pinned), self._store)
        except (ViolationError, ConfigError) as error:
            return [Refused(f"a transcript settles nothing: {error}")]
        refused = self._refused
        return [] if refused is None else self._open(refused, now)


def _context_of(start: RoundStart) -> RoundContext:
    hashes = (start.model_hash, start.task_hash, start.previous_head)
    return RoundContext(start.training_run, start.round_number, start.attempt, *hashes)
