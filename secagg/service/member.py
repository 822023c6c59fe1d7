"""The engine of one member: its rounds on `ClientDriver`, over a mailbox, around what its application does.

It waits out whatever may pass. Where it meets another process of its coordinator it introduces itself again, says which
attempt it is in, and repeats its last message, byte for byte. It trains for an attempt only once that is known to go on
(its roster came): so an old start, found after a suspension, costs nothing. While it computes for something that is
over it says that it is busy. Must never: send anything that `Application.sending` was not told before, or train for an
attempt that it has not joined.
"""

import asyncio
import contextlib
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any, TypeAlias

from secagg import wire
from secagg.driver import ClientAction, ClientDriver, Completed, Exposed, Failed, Joined, Send
from secagg.errors import ProtocolError, SecAggError
from secagg.keys import SigningKey
from secagg.layout import Values
from secagg.masking import Vector
from secagg.messages import Receipt, RoundStart
from secagg.policy import PinnedRoster, Policy, session_id
from secagg.prg import Stream
from secagg.rpc import frames
from secagg.rpc.client import MailboxClient
from secagg.rpc.frames import Received
from secagg.service import dialogue, exposed
from secagg.service.account import Account
from secagg.service.errors import DialogueError, RunFailedError, StoppedError
from secagg.service.stopping import FAREWELL_SECONDS
from secagg.steps import SHARE_KEYS
from secagg.store import Store

OWN_MARKS = ("C-03", "C-14", "C-24")
"""Checks that find something in a member's own marks: they end an attempt here and are nobody's lie."""

TICK_SECONDS = 0.2
"""How often a member looks at what its operator did beside it."""


class LeaveError(SecAggError):
    """The application takes part in this run no more, such as one whose budget is spent; its text is sent."""


class Wish(Enum):
    """What a member's operator wants."""

    GO_ON = "go on"
    PAUSE = "pause"
    LEAVE = "leave"


@dataclass(frozen=True, repr=False)
class Given:
    """An update, as `ClientDriver.provide` takes it."""

    values: Values
    event_id: str = ""
    stream: Stream | None = None
    copy: Vector | None = None


class Application:
    """What a member does beside the protocol. All but `work` is called in the member's own thread, and is quick.

    Attributes:
        release: what everybody has to run, such as ``secagg 0.6.0``.
        kinds: messages of its own that come from the coordinator, see `dialogue.Dialogue`.
    """

    release = ""
    kinds: tuple[type[dialogue.Message], ...] = ()

    def about(self, start: RoundStart, content: bytes) -> bytes:
        """The model hash, 32 bytes, of what this member would give an update for, computed from what it holds.

        The start is signed by the pinned key, and nothing else in it is verified yet. What is raised ends the member.
        """
        raise NotImplementedError

    def joined(self, start: RoundStart, content: bytes) -> None:
        """The start was verified and the attempt joined; nothing has left yet.

        Raises:
            LeaveError: nothing will.
        """

    def work(self, number: int, over: threading.Event) -> Given:
        """The update of a round, in a thread of its own; what is raised after `over` was set is nobody's news.

        Raises:
            LeaveError: this member takes part no more.
        """
        raise NotImplementedError

    def beside(self) -> Callable[[], object] | None:
        """What else to compute, in a thread beside `work`, now that an attempt was joined; None for nothing."""
        return None

    def completed(self, done: Completed) -> None:
        """There is a sum."""

    def burned(self, number: int, attempt: int, reason: str) -> None:
        """An attempt is over without a sum."""

    def closing(self, start: RoundStart, content: bytes) -> None:
        """The last content; the start is signed by the pinned key, and holds every receipt."""

    def account(self, account: Account) -> None:
        """Who was in a round that this process did not see to its end; not verified yet."""

    async def heard(self, message: dialogue.Message) -> None:
        """A message of the application's own kinds."""

    def again(self) -> Iterable[dialogue.Message]:
        """What another process of the coordinator has to hear again."""
        return ()

    def spent(self) -> float | None:
        """What its people have paid so far; see `dialogue.Ready`."""
        return None

    def wish(self) -> Wish:
        """What its operator wants by now."""
        return Wish.GO_ON

    def sending(self, kind: str, payload: bytes) -> None:
        """This is about to leave; whatever is raised stops it, and the member."""

    def spoke(self, step: str, size: int) -> None:
        """A message of the protocol was handed over."""

    def listened(self, size: int) -> None:
        """A message of the protocol came."""

    def replayed(self, receipt: Receipt, transcript: bytes) -> None:
        """A transcript was replayed, and holds."""

    def awaiting(self, sites: Iterable[str], seconds: float) -> None:
        """For whom the coordinator waits."""

    def note(self, text: str) -> None:
        """A sentence for the operator."""


class _Work:
    """A thread that computes, which the end of its process does not wait for.

    Attributes:
        number: of the round that it is for; 0 for what is beside rounds.
        over: set where nobody wants the outcome any more.
        outcome: what it returned or raised.
    """

    def __init__(self, number: int, compute: Callable[[threading.Event], object]) -> None:
        loop = asyncio.get_running_loop()
        self.number, self.over, self.outcome = number, threading.Event(), loop.create_future()

        def run() -> None:
            try:
                result, error = compute(self.over), None
            except BaseException as raised:  # noqa: BLE001  whoever waits gets it
                result, error = None, raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(self._end, result, error)

        threading.Thread(target=run, name="secagg-work", daemon=True).start()

    def _end(self, result: object, error: BaseException | None) -> None:
        if self.outcome.done():
            return
        if error is None:
            self.outcome.set_result(result)
        else:
            self.outcome.set_exception(error)


_Task: TypeAlias = "asyncio.Task[Any]"


class Member:
    """One process of one member in one run.

    Args:
        policy, me, signing_key, pinned, store, training_run, task_hash, private: as `ClientDriver` takes them.
        mailbox: to the coordinator; not connected yet.
        application: what this member does.
        state: the folder where a transcript that settles nothing is kept.
        accepting: the command that accepts rounds; see `exposed.Exposed`.

    Raises:
        ConfigError: identity, roster and policy do not fit together; nothing was sent.
    """

    def __init__(
        self,
        policy: Policy,
        me: str,
        signing_key: SigningKey,
        pinned: PinnedRoster,
        store: Store,
        mailbox: MailboxClient,
        application: Application,
        *,
        training_run: str,
        task_hash: bytes,
        private: bool,
        state: Path,
        accepting: Callable[[Iterable[bytes]], str],
    ) -> None:
        self.driver = ClientDriver(
            *(policy, me, signing_key, pinned, store),
            training_run=training_run,
            task_hash=task_hash,
            private=private,
        )
        self._policy, self._me, self._pinned, self._store = policy, me, pinned, store
        self._session, self._run, self._task, self._private = session_id(policy, pinned), training_run, task_hash, private
        self._mailbox, self._app = mailbox, application
        self._exposed = exposed.Exposed(store, state, accepting)
        self._dialogue = dialogue.Dialogue((*dialogue.FROM_COORDINATOR, *application.kinds))
        self._outgoing: asyncio.Queue[dialogue.Message] = asyncio.Queue()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._receiving: asyncio.Task[Received | None] | None = None
        self._opened: dialogue.Opened | None = None
        self._training: _Work | None = None
        self._beside: _Work | None = None
        self._idle = False  # it said that it is ready, or busy
        self._left = False
        self._wish = Wish.GO_ON

    def tell(self, message: dialogue.Message) -> None:
        """Send a message, from any thread, behind all that are sent before."""
        if self._loop is not None:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody hears it
                self._loop.call_soon_threadsafe(self._outgoing.put_nowait, message)

    async def run(self) -> dialogue.Finished:
        """Take part until the coordinator says that the run is over.

        Returns:
            Its last word; whether the run is complete is in it.

        Raises:
            RunFailedError: the coordinator refuses this member, or broke the protocol.
            StoppedError: the operator left the run.
            SecAggError: of the mailbox, the marks or the application; the coordinator is told that this member stopped.
        """
        self._loop = asyncio.get_running_loop()
        async with self._mailbox:
            sending = asyncio.create_task(self._send_all())
            try:
                self._begin()
                while (finished := await self._next(sending)) is None:
                    pass
                await self._say_goodbye(dialogue.Done(), sending)
                return finished
            except asyncio.CancelledError:
                await self._say_goodbye(dialogue.Failed.because("its operator stopped it"), sending)
                raise
            except Exception as error:
                await self._say_goodbye(dialogue.Failed.because(_public(error)), sending)
                raise
            finally:
                for task in (sending, self._receiving):
                    if task is not None:
                        task.cancel()
                for work in self._works():
                    work.over.set()
                self.driver.close()

    # --- What comes and goes ------------------------------------------------------------------------------------------

    async def _send_all(self) -> None:
        while True:
            message = await self._outgoing.get()
            payload = message.packed()
            self._app.sending(message.kind, payload)
            await self._mailbox.send(message.kind, payload)
            self._outgoing.task_done()

    async def _say_goodbye(self, last: dialogue.Message, sending: _Task) -> None:
        """The coordinator may be gone, and then nobody hears it."""
        if sending.done():
            return
        self._outgoing.put_nowait(last)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await asyncio.wait({sending, asyncio.ensure_future(self._outgoing.join())}, return_when="FIRST_COMPLETED")

    async def _next(self, sending: _Task) -> dialogue.Finished | None:
        """Answer one message, or go on after some work; the coordinator's last word once the run is over."""
        if self._receiving is None:
            self._receiving = asyncio.create_task(self._mailbox.receive())
        works = [work for work in self._works()]
        waited = {sending, self._receiving, *(work.outcome for work in works)}
        await asyncio.wait(waited, timeout=TICK_SECONDS, return_when=asyncio.FIRST_COMPLETED)
        if sending.done():
            await sending
        finished = None
        if self._receiving.done():
            received, self._receiving = self._receiving.result(), None
            if received is not None:
                finished = await self._take(received)
        for work in works:
            if work.outcome.done():
                self._worked(work)
        self._look()
        return finished

    def _begin(self) -> None:
        before = None if self._private else self._exposed.since_before()
        if before is not None:
            said, round_id = before
            self._wait(said, [round_id])
        else:
            self._introduce()

    def _introduce(self) -> None:
        """Say who this is, and again what another process of the coordinator may never have had."""
        while not self._outgoing.empty():
            self._outgoing.get_nowait()
            self._outgoing.task_done()
        if self._left:
            return
        self._idle = False
        self._free()
        self._send(self.driver.repeat())
        for message in self._app.again():
            self._outgoing.put_nowait(message)

    async def _take(self, received: Received) -> dialogue.Finished | None:
        if received.kind == frames.HELLO:
            self._introduce()
            return None
        try:
            message = self._dialogue.read(received.kind, received.payload)
        except DialogueError as error:
            self._app.note(str(error))
            return None
        match message:
            case None:
                pass
            case dialogue.Opened():
                self._open(message)
            case dialogue.Protocolled():
                self._app.listened(len(message.data))
                self._do(self.driver.receive(message.data))
            case dialogue.Transcript():
                await self._replay(message.data)
            case dialogue.Closing():
                await self._settled_down("the run is over")
                message.start.verify(self._policy.server_key, "C-01")
                self._app.closing(message.start, message.content)
            case Account():
                self._compare(message)
                self._app.account(message)
            case dialogue.Awaiting():
                self._app.awaiting(message.sites, message.seconds)
            case dialogue.Refused():
                raise RunFailedError(message.reason)
            case dialogue.Finished():
                await self._settled_down("the run is over")
                return message
            case _:
                await self._app.heard(message)
        return None

    # --- Rounds -------------------------------------------------------------------------------------------------------

    def _open(self, message: dialogue.Opened) -> None:
        """Join an attempt; nothing but its keys leaves before its roster came."""
        start = message.start
        try:
            start.verify(self._policy.server_key, "C-01")
        except ProtocolError as error:
            raise self._lied(error) from error
        inside, named = self._inside(), (start.round_number, start.attempt)
        if self._left or (inside is not None and named < inside):
            return
        if inside != named:
            if inside is not None:
                self._over("the coordinator opened another attempt")
            if self._training is not None and self._training.number != start.round_number:
                self._training.over.set()
            if self._occupied(start):
                self._free()
                return
            self._opened, self._idle = message, False
            self.driver.model_hash = self._app.about(start, message.content)
        self._do(self.driver.receive(wire.encode(start)))

    def _do(self, actions: list[ClientAction]) -> None:
        joined = next((action for action in actions if isinstance(action, Joined)), None)
        if joined is not None and self._opened is not None:
            try:
                self._app.joined(self._opened.start, self._opened.content)
            except LeaveError as error:
                self._leave(error)
                return
        self._send(actions)
        for action in actions:
            match action:
                case Exposed():
                    self._burned(action.reason)
                    self._wait(action.reason, action.round_ids)
                case Completed():
                    self._opened = None
                    self._app.completed(action)
                    self._free()
                case Failed():
                    self._failed(action.error)
        self._train()

    def _send(self, actions: list[ClientAction]) -> None:
        for action in actions:
            if isinstance(action, Send):
                session = self.driver.session
                self._app.spoke(session.step if session is not None else "", len(action.data))
                self._outgoing.put_nowait(dialogue.Protocolled(action.data))

    def _train(self) -> None:
        """Begin to train once the roster came, unless an update is there or on its way."""
        session = self.driver.session
        if session is None or session.finished or session.step != SHARE_KEYS or session.provided:
            return
        if self._training is None:
            number = session.opened.context.round_number
            self._training = _Work(number, lambda over: self._app.work(number, over))
        if self._beside is None and (compute := self._app.beside()) is not None:
            self._beside = _Work(0, lambda over: compute())

    def _worked(self, work: _Work) -> None:
        """Some work is done: hand an update over, a reply may have waited for it."""
        if work is self._beside:
            self._beside = None
            work.outcome.result()
        elif work is self._training:
            self._training = None
            try:
                given = work.outcome.result()
            except LeaveError as error:
                self._leave(error)
                return
            except BaseException:
                if not work.over.is_set():
                    raise
                given = None
            if given is not None and not work.over.is_set() and self.driver.wanted == work.number:
                self._do(self.driver.provide(given.values, given.event_id, given.stream, given.copy))
        if self._inside() is None and not self._occupied():
            self._free()

    def _failed(self, error: SecAggError) -> None:
        """An attempt is over here: a lie of the server ends this member, anything else only the attempt."""
        if isinstance(error, ProtocolError) and error.check not in OWN_MARKS:
            raise self._lied(error) from error
        self._burned(str(error))
        self._free()

    def _lied(self, error: ProtocolError) -> RunFailedError:
        told = "; is what is computed, such as the study file, the same at every party?" if error.check == "C-23" else ""
        if error.check == "C-04":
            told = "; where the coordinator's own records were lost, bring them back, or agree on a new run"
        return RunFailedError(f"the coordinator broke the protocol: {error}{told}")

    def _over(self, reason: str) -> None:
        """End the attempt that is live, if one is."""
        if self._inside() is not None:
            self._burned(reason)
        self.driver.close()

    def _burned(self, reason: str) -> None:
        if self._opened is not None:
            self._app.burned(self._opened.start.round_number, self._opened.start.attempt, reason)
            self._opened = None

    def _leave(self, error: LeaveError) -> None:
        self._over(str(error))
        self._left = True
        self._outgoing.put_nowait(dialogue.Leaving.because(error))

    def _inside(self) -> tuple[int, int] | None:
        """The live attempt."""
        session = self.driver.session
        if session is None or session.finished:
            return None
        return session.opened.context.round_number, session.opened.context.attempt

    # --- Between rounds -----------------------------------------------------------------------------------------------

    def _works(self) -> Iterator[_Work]:
        return (work for work in (self._training, self._beside) if work is not None)

    def _occupied(self, start: RoundStart | None = None) -> str:
        """Why this member joins no attempt now; "" where it does. Training for the round that starts goes on in it."""
        if self._wish is not Wish.GO_ON:
            return "its operator paused it"
        if self._beside is not None:
            return "it computes beside the rounds, such as an evaluation"
        if self._training is not None and (start is None or self._training.over.is_set()):
            return "it still trains for a round that is over"
        return ""

    def _free(self) -> None:
        """Say that this member is in no round, or in which, and whether it can join the next one."""
        if self._left:
            return
        inside, reason = self._inside(), self._occupied()
        if inside is None and reason and not self._may_go_on():
            self._outgoing.put_nowait(dialogue.Busy.because(reason))
            return
        with self._store.transaction() as marks:
            joined = marks.joined(self._session, self._run)
        self._outgoing.put_nowait(
            dialogue.Ready(
                release=self._app.release,
                run=self._run,
                task=self._task.hex(),
                policy=self._policy.hash().hex(),
                roster=self._pinned.hash().hex(),
                unreplayed=self._exposed.unreplayed,
                inside=inside,
                joined=joined,
                spent=self._app.spent(),
            )
        )

    def _may_go_on(self) -> bool:
        """Whether all that is computed is for a round that may be tried again."""
        return self._wish is Wish.GO_ON and self._beside is None and self.driver.wanted is not None

    async def _settled_down(self, reason: str) -> None:
        """End the attempt and its training; wait for what is computed beside it, whose outcome may still be wanted."""
        self._over(reason)
        if self._training is not None:
            self._training.over.set()
        if self._beside is not None:
            work, self._beside = self._beside, None
            await work.outcome

    def _look(self) -> None:
        """See what the operator did beside this process."""
        wish = self._app.wish()
        if wish is not self._wish:
            self._wish = wish
            if self._inside() is None and wish is not Wish.LEAVE:
                self._free()
        if wish is Wish.LEAVE and self._inside() is None:
            if not self._left:
                self._leave(LeaveError("its operator left the run"))
            raise StoppedError("this site left the run, as its operator said; the coordinator was told")
        if self._exposed.settled():
            self._app.note("what kept this site out is settled; it takes part in the next round")
            self._free()

    def _wait(self, said: str, round_ids: Iterable[bytes]) -> None:
        """Stay out until these rounds are settled: nobody's fault."""
        self.driver.close()
        if news := self._exposed.wait(said, round_ids):
            self._app.note(news)
        self._free()

    async def _replay(self, transcript: bytes) -> None:
        receipt = await asyncio.to_thread(self._exposed.replay, transcript, self._policy, self._pinned)
        if isinstance(receipt, str):
            self._app.note(receipt)
        else:
            self._app.replayed(receipt, transcript)

    def _compare(self, account: Account) -> None:
        """Find that the marks here are not those of this site: its own signature is in a sum that they do not know.

        Raises:
            RunFailedError: they were wiped, or an old copy was put back.
        """
        mine = account.included.by_id.get(self._me)
        if mine is None:
            return
        try:
            mine.verify(self._pinned[self._me], "C-16", self._me)
        except ProtocolError as error:
            raise RunFailedError(f"the coordinator shows an input that this site did not sign: {error}") from error
        with self._store.transaction() as marks:
            known = mine.round_id in marks.inputs(self._session, self._run)
        if not known:
            raise RunFailedError("...")


def _public(error: Exception) -> str:
    """What others may read of why this member stopped: of its own data and disk nothing."""
    return str(error) if isinstance(error, RunFailedError | StoppedError) else "an error of its own, see its log"
