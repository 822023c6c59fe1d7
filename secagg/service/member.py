"""The engine of one member: its rounds on `ClientDriver`, over a mailbox, around what its application does.

It waits out whatever may pass. Where it meets another process of its coordinator it introduces itself again, says which
attempt it is in, and repeats its last message, byte for byte. It trains for an attempt only once that is known to go on
(its roster came): so an old start, found after a suspension, costs nothing. While it computes for something that is
over it says that it is busy. Must never: send anything that `Application.sending` was not told before, or train for an
attempt that it has not joined.
"""

import asyncio
import contextlib
import math
import threading
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from typing import Any, TypeAlias

from secagg import wire
from secagg.driver import ClientAction, ClientDriver, Completed, Exposed, Failed, Joined, Send
from secagg.errors import ProtocolError, SecAggError
from secagg.keys import SigningKey
from secagg.messages import RoundStart
from secagg.policy import Policy
from secagg.roster import PinnedRoster, session_id
from secagg.rpc import frames
from secagg.rpc.client import MailboxClient
from secagg.rpc.frames import Received
from secagg.rpc.tls import COORDINATOR
from secagg.service import dialogue, exposed
from secagg.service.account import Account
from secagg.service.application import Application, LeaveError, Wish
from secagg.service.errors import DialogueError, RunFailedError, StoppedError
from secagg.service.room import lacks_room, written
from secagg.service.stopping import FAREWELL_SECONDS, STOPPED
from secagg.service.working import Work
from secagg.steps import SHARE_KEYS
from secagg.store import Store

OWN_MARKS = ("C-03", "C-14", "C-24")
"""Checks that find something in a member's own marks: they end an attempt here and are nobody's lie."""

UNANSWERED_SECONDS = 2.0
"""After which it is said that the coordinator does not answer yet."""

LEFT = "this site left the run, as its operator said; the coordinator was told"
LEFT_UNHEARD = (
    "this site left the run, as its operator said; the coordinator does not answer: the same command tells it later"
)

TOLD_SECONDS = 30.0
"""How long a member that has the end of its run tries to say so: a coordinator that was killed as it told the end comes
back within that, and would wait for this member for ever."""

TICK_SECONDS = 0.2
"""How often a member looks at what its operator did beside it."""


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
        self._session, self._run = session_id(policy, pinned), training_run
        self._task, self._private = task_hash, private
        self._mailbox, self._app = mailbox, application
        self._exposed = exposed.Exposed(store, state, accepting)
        self._state, self._full = state, False
        self._dialogue = dialogue.Dialogue((*dialogue.FROM_COORDINATOR, *application.kinds))
        self._outgoing: asyncio.Queue[dialogue.Message] = asyncio.Queue()
        mailbox.on_trouble = self._troubled
        self._reached = False  # whether the coordinator ever answered
        self._loop: asyncio.AbstractEventLoop | None = None
        self._receiving: asyncio.Task[Received | None] | None = None
        self._opened: dialogue.Opened | None = None
        self._asked = (0, 0)
        self._training: Work | None = None
        self._besides: list[Work] = []
        self._in_turn = threading.Lock()
        self._put_off: list[dialogue.Message] = []  # the end of the run, which waits for what is computed beside it
        self._left: LeaveError | None = None
        self._wish = Wish.GO_ON
        self._met = self._joined_with = 0  # how many processes of the coordinator it met, and as it joined an attempt

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
                await self._connect()
                self._begin()
                while (finished := await self._next(sending)) is None:
                    pass
                if finished.final:
                    await written(partial(self._app.ended, finished), self._state, self._app.note)
                await self._say_goodbye(dialogue.Done(), sending, TOLD_SECONDS if finished.final else FAREWELL_SECONDS)
                return finished
            except asyncio.CancelledError as stopped:
                if STOPPED in stopped.args:
                    await self._say_goodbye(dialogue.Failed.because("its operator stopped it"), sending)
                raise
            except Exception as error:
                await self._say_goodbye(dialogue.Failed.because(self._app.public(error)), sending)
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

    async def _say_goodbye(self, last: dialogue.Message, sending: _Task, seconds: float = FAREWELL_SECONDS) -> None:
        """The coordinator may be gone, and then nobody hears it."""
        if sending.done():
            return
        self._outgoing.put_nowait(last)
        heard = asyncio.create_task(self._outgoing.join())
        try:  # what sends ends by itself where nothing can be sent any more
            await asyncio.wait({heard, sending}, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
        finally:
            heard.cancel()

    async def _next(self, sending: _Task) -> dialogue.Finished | None:
        """Answer one message, or go on after some work; the coordinator's last word once the run is over."""
        if self._receiving is None:
            self._receiving = asyncio.create_task(self._mailbox.receive())
        if self._outgoing.empty():
            self.driver.rest()
        works = list(self._works())
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
        while self._put_off and not self._besides and finished is None:
            finished = await self._answer(self._put_off.pop(0))
        self._look()
        return finished

    async def _connect(self) -> None:
        """Wait for the coordinator's first answer, or until the operator leaves.

        Raises:
            StoppedError: the operator left.
        """
        connecting = asyncio.create_task(self._mailbox.connect())
        try:
            await asyncio.wait({connecting}, timeout=UNANSWERED_SECONDS)
            if not connecting.done():
                self._app.awaiting((COORDINATOR,), math.inf)
            while not connecting.done():
                if self._app.wish() is Wish.LEAVE:
                    raise StoppedError(LEFT_UNHEARD)
                await asyncio.wait({connecting}, timeout=TICK_SECONDS)
            await connecting
        finally:
            connecting.cancel()
        self._reached = True
        self._app.connected()
        self._wish = self._app.wish()  # who was paused before it came, or left, joins nothing

    def _troubled(self, sentence: str) -> None:
        """The coordinator does not answer, and why; "" where it does again."""
        if sentence:
            self._app.lost(sentence)
        elif self._reached:
            self._app.connected()

    def _begin(self) -> None:
        before = None if self._private else self._exposed.since_before()
        if before is not None:
            said, round_id = before
            self._wait(said, [round_id])
        else:
            self._introduce()

    def _introduce(self) -> None:
        """Say who this is, and again what another process of the coordinator may never have had."""
        self._put_off.clear()
        while not self._outgoing.empty():
            self._outgoing.get_nowait()
            self._outgoing.task_done()
        self._free()
        self._send(self.driver.repeat())
        for message in self._app.again():
            self._outgoing.put_nowait(message)

    async def _take(self, received: Received) -> dialogue.Finished | None:
        if received.kind == frames.HELLO:
            self._met += 1
            self._introduce()
            return None
        try:
            message = self._dialogue.read(received.kind, received.payload)
        except DialogueError as error:
            self._app.note(str(error))
            return None
        if message is None:
            return None
        if self._put_off or (self._besides and isinstance(message, dialogue.Closing | dialogue.Finished)):
            self._put_off.append(message)
            return None
        return await self._answer(message)

    async def _answer(self, message: dialogue.Message) -> dialogue.Finished | None:
        match message:
            case dialogue.Opened():
                self._open(message)
            case dialogue.Protocolled():
                self._app.listened(len(message.data))
                self._do(self.driver.receive(message.data))
            case dialogue.Transcript():
                await self._replay(message.data)
            case dialogue.Closing():
                self._verify(message.start)
                self._end_attempt()
                self._app.closing(message.start, message.content)
            case Account():
                self._app.account(message)
            case dialogue.Awaiting():
                self._app.awaiting(message.sites, message.seconds)
            case dialogue.Refused():
                raise RunFailedError(message.reason)
            case dialogue.Finished():
                self._end_attempt()
                return message
            case _:
                self._compute(self._app.heard(message))
                if self._besides and self._inside() is None:
                    self._free()
        return None

    # --- Rounds -------------------------------------------------------------------------------------------------------

    def _open(self, message: dialogue.Opened) -> None:
        """Join an attempt; nothing but its keys leaves before its roster came."""
        start = message.start
        self._verify(start)
        inside, named = self._inside(), (start.round_number, start.attempt)
        if self._left is not None or (inside is not None and named < inside):
            return
        if inside == named and self._met == self._joined_with:  # the mailbox delivers the answer to the first one, once
            return
        self._joined_with = self._met
        if inside != named:
            if inside is not None:
                self._burned("the coordinator opened another attempt")
            if self._training is not None and self._training.about != (start.round_number, start.model_hash):
                self._training.over.set()
            if self._occupied():
                self._free()
                return
            self._opened, self._asked = message, named
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
            context = session.opened.context
            about = (context.round_number, context.model_hash)
            self._training = Work(about, self._app.work(context.round_number))
            self._compute(self._app.beside())

    def _compute(self, what: Callable[[], object] | None) -> None:
        """Compute something beside the rounds, one thing at a time."""

        def in_turn(over: threading.Event) -> None:
            """Do it when the turn comes, unless all is over by then."""
            with self._in_turn:
                if what is not None and not over.is_set():
                    what()

        if what is not None:
            self._besides.append(Work(None, in_turn))

    def _worked(self, work: Work) -> None:
        """Some work is done: hand an update over, a reply may have waited for it."""
        if work in self._besides:
            self._besides.remove(work)
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
            if given is not None and not work.over.is_set() and self.driver.wanted == work.about:
                self._do(
                    self.driver.provide(given.values, given.event_id, given.stream, given.copy, given.excess_seeds)
                )
        if self._inside() is None and not self._occupied():
            self._free()

    def _failed(self, error: SecAggError) -> None:
        """An attempt is over here: a lie of the server ends this member, anything else only the attempt."""
        if isinstance(error, ProtocolError) and error.check not in OWN_MARKS:
            raise _lied(error) from error
        self._burned(str(error))
        self._free()

    def _verify(self, start: RoundStart) -> None:
        """RunFailedError where the pinned key has not signed this."""
        try:
            start.verify(self._policy.server_key, "C-01")
        except ProtocolError as error:
            raise _lied(error) from error

    def _end_attempt(self) -> None:
        """The run is over here, and with it the attempt that is live, if one is."""
        if self._inside() is not None:
            self._burned("the run is over")
            self.driver.close()
        if self._training is not None:
            self._training.over.set()

    def _burned(self, reason: str) -> None:
        if self._opened is not None:
            self._app.burned(self._opened.start.round_number, self._opened.start.attempt, reason)
            self._opened = None

    def _leave(self, error: LeaveError) -> None:
        self._end_attempt()
        self._left = error
        self._outgoing.put_nowait(dialogue.Leaving.because(error))

    def _inside(self) -> tuple[int, int] | None:
        """The live attempt."""
        session = self.driver.session
        if session is None or session.finished:
            return None
        return session.opened.context.round_number, session.opened.context.attempt

    # --- Between rounds -----------------------------------------------------------------------------------------------

    def _works(self) -> Iterator[Work]:
        return iter([*self._besides, *([] if self._training is None else [self._training])])

    def _occupied(self) -> str:
        """Why this member joins no attempt now; "" where it does. An update of a round that may go on is no reason."""
        if self._wish is not Wish.GO_ON:
            return "its operator paused it"
        if self._full:
            return "its disk is full"
        if self._besides:
            return "it computes beside the rounds, such as an evaluation"
        if self._training is not None and self._training.over.is_set():
            return "it still trains for a round that is over"
        return ""

    def _free(self) -> None:
        """Say in which attempt this member is, or whether it can join the next one."""
        if self._left is not None:
            self._outgoing.put_nowait(dialogue.Leaving.because(self._left))
            return
        inside = self._inside()
        if inside is None and (reason := self._occupied()):
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
                asked=self._asked,
                saw=list(self._app.saw()[-dialogue.SPANS :]),
                spent=self._app.spent(),
                says=self._app.says(),
            )
        )

    def _look(self) -> None:
        """See what the operator did beside this process."""
        wish = self._app.wish()
        if wish is not self._wish:
            self._wish = wish
            if self._inside() is None and wish is not Wish.LEAVE:
                self._free()
        if wish is Wish.LEAVE and self._inside() is None:
            if self._left is None:
                self._leave(LeaveError("its operator left the run"))
            raise StoppedError(LEFT_UNHEARD if self._mailbox.trouble else LEFT)
        if self._full is not lacks_room(self._state):
            self._full = not self._full
            if self._full:
                self._app.note(f"the disk with {self._state} is full; this site joins no round until it has room")
            if self._inside() is None:
                self._free()
        if self._exposed.settled():
            self._app.note("what kept this site out is settled; it takes part in the next round")
            self._free()

    def _wait(self, said: str, round_ids: Iterable[bytes]) -> None:
        """Stay out until these rounds are settled: nobody's fault."""
        if news := self._exposed.wait(said, round_ids):
            self._app.note(news)
        self._free()

    async def _replay(self, transcript: bytes) -> None:
        given = transcript, self._policy, self._pinned, lambda receipt: self._app.replayed(receipt, transcript)
        if isinstance(found := await asyncio.to_thread(self._exposed.replay, *given), str):
            self._app.note(found)


def _lied(error: ProtocolError) -> RunFailedError:
    told = ""
    if error.check == "C-04":
        told = "; where the coordinator's own records were lost, bring them back, or agree on a new run"
    if error.check == "C-23":
        told = "; is what is computed, such as the study file, the same at every party?"
    return RunFailedError(f"the coordinator broke the protocol: {error}{told}")
