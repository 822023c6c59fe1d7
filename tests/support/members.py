"""Members over mailboxes without a network, and a coordinator of the test's own that can be killed, lie and forget."""

import asyncio
import threading
from collections.abc import Callable
from functools import partial
from pathlib import Path

from secagg import RoundBook, ServerDriver, wire
from secagg.driver import Completed, Published, Retrying, Save, Send
from secagg.driver import Failed as Burned
from secagg.prg import Stream
from secagg.rpc import frames
from secagg.rpc.frames import Received
from secagg.service import dialogue
from secagg.service.application import Application, Given, LeaveError, Wish
from secagg.service.member import Member
from tests.support.cohort import RUN, SERVER_KEY, Cohort

MODEL, TASK = bytes([1]) * 32, bytes([2]) * 32
HEARD = dialogue.Dialogue(dialogue.FROM_MEMBER)


class Line:
    """A mailbox of one member: what is sent goes to `to` at once, what is put into `box` is received."""

    def __init__(self, to: Callable[[str, bytes], None]) -> None:
        self._to, self.box, self.sent = to, asyncio.Queue(), []
        self.down, self.trouble, self.on_trouble = asyncio.Event(), "", None
        self.down.set()

    async def connect(self) -> None:
        await self.down.wait()

    async def send(self, kind: str, payload: bytes) -> None:
        await self.down.wait()
        self.sent.append((kind, payload))
        self._to(kind, payload)

    async def receive(self, timeout: float | None = None) -> Received:
        return await self.box.get()

    async def __aenter__(self) -> "Line":
        return self

    async def __aexit__(self, *_: object) -> None:
        pass


class Site(Application):
    """Gives its cohort's update once it may; counts what it is told."""

    release = "a test"

    def __init__(self, cohort: Cohort, me: str) -> None:
        self._cohort, self._me = cohort, me
        self.may_train, self.may_evaluate = threading.Event(), threading.Event()
        self.may_train.set()
        self.may_evaluate.set()
        self.trained, self.evaluated, self.sums, self.burnt, self.notes, self.wanted = [], [], [], [], [], Wish.GO_ON
        self.records, self.poor, self.evaluates = [], False, False
        self.met, self.awaited = 0, []

    def about(self, start, content) -> bytes:
        return MODEL

    def joined(self, start, content) -> None:
        if self.poor:
            raise LeaveError("its budget is spent")

    def work(self, number):
        return partial(self._work, number)

    def _work(self, number, over) -> Given:
        self.trained.append(number)
        while not self.may_train.wait(0.01):
            if over.is_set():
                break
        return Given(self._cohort.updates[self._me], f"round {number}", Stream.seeded(7, self._me))

    def beside(self):
        return self._evaluate if self.evaluates else None

    def _evaluate(self) -> None:
        assert self.may_evaluate.wait(10)
        self.evaluated.append(len(self.sums))

    def completed(self, done) -> None:
        self.sums.append(done)

    def burned(self, number, attempt, reason) -> None:
        self.burnt.append((number, attempt, reason))

    def connected(self) -> None:
        self.met += 1

    def awaiting(self, sites, seconds) -> None:
        self.awaited.extend(sites)

    def note(self, text) -> None:
        self.notes.append(text)

    def wish(self) -> Wish:
        return self.wanted

    def sending(self, kind, payload) -> None:
        self.records.append((kind, payload))


class Federation:
    """Members of a cohort, and a coordinator on `ServerDriver` that opens what the test says."""

    def __init__(self, folder: Path, n: int = 4, private: bool = True) -> None:
        self.folder, self.cohort = folder, Cohort(n, length=8, private=private)
        self.save: Save | None = None
        self.driver = self._driver()
        self.heard: dict[str, list[dialogue.Message]] = {me: [] for me in self.cohort.ids}
        self.asleep, self.deaf = (
            set[str](),
            set[str](),
        )  # asleep: nothing reaches it; deaf: the coordinator takes nothing
        self.lines, self.sites, self.tasks = {}, {}, {}
        self.actions: list[object] = []
        for me in self.cohort.ids:
            self.sites[me] = Site(self.cohort, me)

    def _driver(self) -> ServerDriver:
        book = RoundBook(RUN, TASK, SERVER_KEY, self.cohort.policy.max_corrupt)
        return ServerDriver(self.cohort.policy, self.cohort.roster, book, step_seconds=10, resumable=True, attempts=5)

    async def __aenter__(self) -> "Federation":
        for me in self.cohort.ids:
            self.start(me)
        return self

    async def __aexit__(self, *_: object) -> None:
        for site in self.sites.values():
            site.may_train.set()
            site.may_evaluate.set()
        for task in self.tasks.values():
            task.cancel()
        await asyncio.gather(*self.tasks.values(), return_exceptions=True)

    def start(self, me: str) -> None:
        cohort, line = self.cohort, Line(lambda kind, payload: self._take(me, kind, payload))
        self.lines[me] = line
        member = Member(
            *(cohort.policy, me, cohort.keys[me], cohort.roster, cohort.stores[me], line, self.sites[me]),
            training_run=RUN,
            task_hash=TASK,
            private=cohort.private,
            state=self.folder,
            accepting=lambda round_ids: "accept",
        )
        self.tasks[me] = asyncio.create_task(member.run())

    async def kill(self, me: str) -> None:
        self.deaf.add(me)
        self.tasks[me].cancel()
        await asyncio.gather(self.tasks[me], return_exceptions=True)
        self.deaf.discard(me)

    # --- The coordinator ----------------------------------------------------------------------------------------------

    def send(self, me: str, message: dialogue.Message) -> None:
        if me not in self.asleep:
            self.lines[me].box.put_nowait(Received("", message.kind, message.packed()))

    def open(self, *sites: str) -> None:
        self._serve(self.driver.begin(MODEL, sites or None))

    def restart(self, *, keeps: bool = True) -> None:
        """Another process of the coordinator, from what the last one saved, or from nothing."""
        self.driver = self._driver()
        actions = self.driver.resume(self.save) if keeps and self.save is not None else []
        for me, line in self.lines.items():
            while not line.box.empty():
                line.box.get_nowait()
            if me not in self.asleep:
                line.box.put_nowait(Received("", frames.HELLO, b""))
        self._serve(actions)

    def _take(self, me: str, kind: str, payload: bytes) -> None:
        if me in self.deaf:
            return
        message = HEARD.read(kind, payload, me)
        self.heard[me].append(message)
        if isinstance(message, dialogue.Protocolled):
            self._serve(self.driver.receive(me, message.data))

    def _serve(self, actions: list) -> None:
        for action in actions:
            self.actions.append(action)
            match action:
                case Save():
                    self.save = action
                case Send():
                    start = wire.decode_from_server(action.data)
                    opens = type(start).__name__ == "RoundStart"
                    self.send(action.to, dialogue.Opened(start) if opens else dialogue.Protocolled(action.data))
                case Completed() | Published() | Retrying() | Burned():
                    pass

    def of(self, kind: type) -> list:
        return [action for action in self.actions if isinstance(action, kind)]

    def said(self, me: str, kind: type) -> list:
        return [message for message in self.heard[me] if isinstance(message, kind)]

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(10):
            while not condition():
                for task in self.tasks.values():
                    if task.done() and not task.cancelled():
                        task.result()
                await asyncio.sleep(0.005)

    async def all_ready(self) -> None:
        await self.until(lambda: all(self.said(me, dialogue.Ready) for me in self.cohort.ids if me not in self.asleep))
