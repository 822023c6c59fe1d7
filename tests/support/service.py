"""A coordinator of the service and its members in one event loop, over queues: either may be killed anywhere."""

import asyncio
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np

from secagg import ClientDriver, MemoryStore, SigningKey, wire
from secagg.driver import Completed, Joined, Send
from secagg.files import Federation
from secagg.policy import Policy
from secagg.prg import Stream
from secagg.roster import PinnedRoster, session_id
from secagg.rpc import frames
from secagg.rpc.frames import Received, Traffic
from secagg.service import dialogue, sums
from secagg.service.coordinator import Coordinator
from secagg.service.dialogue import FROM_COORDINATOR, Dialogue
from secagg.service.running import Options
from secagg.service.serving import Serving

TASK = bytes([7]) * 32


class Killed(BaseException):
    """The process is no more."""


class Line:
    """The coordinator's end of the mailbox, as `MailboxServer` has it."""

    def __init__(self, hub: "Hub") -> None:
        self.hub, self.inbox = hub, asyncio.Queue()
        self.there: set[str] = set()

    async def start(self, host: str, port: int) -> int:
        self.hub.line = self
        for site, member in self.hub.members.items():
            member.meets()
            self.comes(site)
        return 1

    def comes(self, site: str) -> None:
        self.there.add(site)
        self.inbox.put_nowait(Received(site, frames.HELLO, b""))

    def goes(self, site: str) -> None:
        self.there.discard(site)
        self.inbox.put_nowait(Received(site, frames.GONE, b""))

    async def stop(self, flush_seconds: float = 5.0) -> None:
        if self.hub.line is self:
            self.hub.line = None

    async def receive(self, timeout=None):
        with suppress(TimeoutError):
            async with asyncio.timeout(timeout):
                return await self.inbox.get()
        return None

    def send(self, site: str, kind: str, payload: bytes) -> None:
        if self.hub.line is self and site in self.hub.members and site not in self.hub.deaf:
            self.hub.members[site].inbox.put_nowait((kind, payload))

    def connected(self) -> set[str]:
        return set(self.there)

    def traffic(self, site: str) -> Traffic:
        return Traffic()

    def link(self, site: str):
        return SimpleNamespace(uploading=None, downloading=None, held=0)


class Member:
    """A member that does what is right, in a task of its own."""

    def __init__(self, hub: "Hub", me: str) -> None:
        self.hub, self.me, self.inbox = hub, me, asyncio.Queue()
        self.driver = ClientDriver(
            *(hub.policy, me, hub.keys[me], hub.pinned, hub.stores[me]),
            training_run=hub.run,
            task_hash=TASK,
            private=hub.private,
        )
        self.release, self.policy_hash = hub.release, hub.policy.hash().hex()
        self.spent, self.finished, self.refused, self.asked = None, None, None, (0, 0)
        self._dialogue = Dialogue(FROM_COORDINATOR)
        self.task = asyncio.create_task(self._run())

    def meets(self) -> None:
        """Another process of the coordinator is there: what was under way is gone."""
        while not self.inbox.empty():
            self.inbox.get_nowait()
        self.inbox.put_nowait((frames.HELLO, b""))

    def ready(self) -> None:
        session = self.driver.session
        context = session.opened.context if self.driver.live else None
        with self.hub.stores[self.me].transaction() as marks:
            joined = marks.joined(session_id(self.hub.policy, self.hub.pinned), self.hub.run)
            open_release = marks.open_release
        self.tell(
            dialogue.Ready(
                release=self.release,
                run=self.hub.run,
                task=TASK.hex(),
                policy=self.policy_hash,
                roster=self.hub.pinned.hash().hex(),
                unreplayed=[] if self.hub.private or open_release is None else [open_release.round_id.hex()],
                inside=None if context is None else (context.round_number, context.attempt),
                joined=joined,
                asked=self.asked,
                spent=self.spent,
            )
        )

    def tell(self, message) -> None:
        if self.hub.line is not None and self.me in self.hub.line.there:
            self.hub.line.inbox.put_nowait(Received(self.me, message.kind, message.packed()))

    def _do(self, actions) -> None:
        for action in actions:
            match action:
                case Send():
                    self.hub.sent.setdefault(self.me, []).append(action.data)
                    self.tell(dialogue.Protocolled(action.data))
                case Joined(provided=False):
                    number = action.round_number
                    self._do(
                        self.driver.provide(self.hub.vector(self.me, number), "", Stream.seeded(1, self.me, number))
                    )
                case Completed():
                    self.hub.totals.setdefault(action.receipt.round_number, {})[self.me] = action
        if any(isinstance(action, Completed) for action in actions):
            self.ready()

    async def _run(self) -> None:
        while True:
            kind, payload = await self.inbox.get()
            if kind == frames.HELLO:
                self.ready()
                continue
            match self._dialogue.read(kind, payload):
                case dialogue.Opened(start=start):
                    self.asked = (start.round_number, start.attempt)
                    self.driver.model_hash = sums.about(start.previous_head)
                    self._do(self.driver.receive(wire.encode(start)))
                case dialogue.Protocolled(data=data):
                    self._do(self.driver.receive(data))
                case dialogue.Transcript(data=data):
                    self._do(self.driver.receive(data))
                    self.ready()
                case dialogue.Refused(reason=reason):
                    self.refused = reason
                case dialogue.Finished() as finished:
                    self.finished = finished
                    self.tell(dialogue.Done())


class Hub:
    """A cohort, its stores that outlive processes, and one coordinator after the other over the same folder."""

    def __init__(self, folder: Path, n: int = 3, *, private: bool = True, rounds: int = 1, **options) -> None:
        self.folder, self.private, self.rounds, self.run = folder, private, rounds, "a-run"
        names = [f"site-{chr(97 + i)}" for i in range(n)]
        self.key = SigningKey.generate()
        self.keys = {name: SigningKey.generate() for name in names}
        self.pinned = PinnedRoster({name: key.verify_key for name, key in self.keys.items()})
        server_key = self.key.verify_key
        self.policy = Policy(project="test", clients=n, length=5, clip_range=1.0, max_corrupt=1, server_key=server_key)
        self.stores = {name: MemoryStore() for name in names}
        self.options = {
            "state": folder,
            "patience": 5.0,
            "rejoin_seconds": 0.3,
            "step_seconds": 3.0,
            "training_seconds": 3.0,
            "grace": 0.1,
            "farewell_seconds": 0.5,
            "reserve_bytes": 0,
            **options,
        }
        self.release = f"secagg {version('secagg')}"
        self.line: Line | None = None
        self.members: dict[str, Member] = {}
        self.deaf: set[str] = set()
        self.events: list[object] = []
        self.sent: dict[str, list[bytes]] = {}
        self.totals: dict[int, dict[str, Completed]] = {}
        self.opened: list[Coordinator] = []

    def vector(self, me: str, number: int):
        values = np.arange(self.policy.length) + 10 * number + list(self.keys).index(me)
        return np.asarray(values, dtype=np.float64) / 1000

    def coordinator(self) -> Coordinator:
        home = type("Home", (), {})()
        home.policy, home.task = self.policy, type("Task", (), {"private": self.private})
        application = Serving(home, self.rounds, self.folder / "sums")
        federation = Federation(self.run, self.key.verify_key, self.pinned)
        made = Coordinator(
            *(self.policy, federation, self.key, None, TASK, application, Options(**self.options)), self.events.append
        )
        made.mailbox = Line(self)
        self.opened.append(made)
        return made

    def start(self, *names: str) -> None:
        """New processes of these members, or of all."""
        for name in names or self.keys:
            if name in self.members:
                self.members[name].task.cancel()
            self.members[name] = Member(self, name)
            if self.line is not None:
                self.line.comes(name)
                self.members[name].ready()

    def kill(self, name: str) -> None:
        """A member's process ends."""
        self.members.pop(name).task.cancel()
        if self.line is not None:
            self.line.goes(name)

    def of(self, kind) -> list:
        return [event for event in self.events if isinstance(event, kind)]

    def exact(self, number: int) -> bool:
        """Whether the sum on the disk is that of who is in it, and every member that has it has the same."""
        import json

        told = json.loads((self.folder / "sums" / f"{number:04d}.json").read_text())
        total = np.load(self.folder / "sums" / f"{number:04d}.npy")
        plain = sum(self.vector(name, number) for name in told["included"])
        same = all(np.array_equal(done.total, total) for done in self.totals.get(number, {}).values())
        return bool(np.allclose(total, plain, atol=1e-3)) and same

    def close(self) -> None:
        for member in self.members.values():
            member.task.cancel()
