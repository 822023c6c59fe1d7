"""What a coordinator hears from its members, and what it answers around the protocol; it opens no round by itself."""

import asyncio
import json
import shutil
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol, TypeVar

from secagg import wire
from secagg.book import RoundBook
from secagg.driver import Completed, Refused, Save, ServerAction, ServerDriver
from secagg.errors import ProtocolError
from secagg.files import Federation
from secagg.keys import SigningKey
from secagg.messages import Confirmation, FromServer, RoundStart
from secagg.policy import Policy, session_id
from secagg.rpc import frames
from secagg.rpc.frames import Received, message_limit
from secagg.rpc.server import MailboxServer
from secagg.rpc.tls import ServerTls
from secagg.service import dialogue
from secagg.service.account import Account
from secagg.service.counting import Counting
from secagg.service.dialogue import FROM_MEMBER, Dialogue, Message
from secagg.service.errors import DialogueError
from secagg.service.events import Connected, Disconnected, Event, Left, Listener, Note, Summed, TurnedAway
from secagg.service.journal import Journal
from secagg.service.presence import Presence
from secagg.service.status import SiteStatus, Status
from secagg.service.transcripts import FOLDER, QUOTA, Transcripts
from secagg.steps import ADVERTISE_KEYS

JOURNAL = "journal.sqlite"
"""In the coordinator's state folder."""

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a coordinator runs; none of it changes what a round means.

    Attributes:
        state: folder of the journal and the transcripts of this run, on a local disk.
        host, port: where to listen; port 0 takes a free one.
        patience: seconds to wait for members at the start, and later where too few are there for a sum.
        rejoin_seconds: seconds that a later round waits for a member that is missing, once.
        step_seconds: deadline of a step of the protocol. It moves while somebody who is waited for is sending.
        training_seconds: deadline of the step that waits for vectors.
        grace: seconds after a connection broke until a step that has enough messages closes without its member.
        farewell_seconds: how long the end of a run is offered to members that do not fetch it.
        transcripts: keep each round's public transcript with the masked inputs "whole", as "hashes", or not ("none").
        quota: bytes of all transcripts, at most; the oldest go first.
        reserve_bytes: free bytes below which no round begins.
        command: how it was started, for the record.
    """

    state: Path
    host: str = "127.0.0.1"
    port: int = 0
    patience: float = 60.0
    rejoin_seconds: float = 15.0
    step_seconds: float = 60.0
    training_seconds: float = 3600.0
    grace: float = 3.0
    farewell_seconds: float = 5.0
    transcripts: str = "whole"
    quota: int = QUOTA
    reserve_bytes: int = 64 << 20
    command: str = ""


class Application(Protocol):
    """What a run is about. Its state lives in the coordinator's journal; it never waits and opens no file of the run.

    Attributes:
        kinds: messages of members that are its own.
        replayed: whether members replay each round before the next: their updates are not private alone (C-05).
        content_bytes: the longest content.
        release: what all parties run.
    """

    kinds: Sequence[type[Message]]
    replayed: bool
    content_bytes: int
    release: str

    async def prepare(self) -> None:
        """Make ready, once, before the first round of this process; `restore` came before."""

    def wants_more(self, book: RoundBook) -> bool:
        """Whether another round is to be opened."""

    @property
    def rounds(self) -> int:
        """How many rounds with a sum are wanted."""

    def about(self, book: RoundBook) -> bytes:
        """The model hash of the next round, 32 bytes."""

    def content(self) -> bytes:
        """What goes to every member with a round start, and at the end."""

    def completed(self, done: Completed, summed: Summed) -> None:
        """Take a sum in; what `state` says then becomes durable with it, before anybody is told."""

    def state(self) -> bytes:
        """Everything that the next process needs."""

    def restore(self, state: bytes) -> None:
        """Go on from what `state` said."""

    def heard(self, site: str, message: Message) -> None:
        """A message of one of `kinds`.

        Raises:
            DialogueError: it is not true, or late; it was ignored.
        """

    async def conclude(self, hearing: "Hearing") -> None:
        """Whatever is left to ask members after the last round."""


class Hearing(ABC):
    """The mailbox, the journal, and what is known of the members behind it.

    Args:
        policy: of the run, with the coordinator's key.
        federation: run, coordinator's key and roster, as everybody pins them.
        key: the coordinator's signing key.
        tls: the coordinator's.
        task_hash: 32 bytes, of what is computed.
        application: what the run is about.
        options: how it runs.
        listeners: hear every event.

    Attributes:
        ended: why the run is over; "" while it is not.

    Raises:
        ConfigError: these do not fit together, or the journal is another run's; nothing was sent.
    """

    def __init__(
        self,
        policy: Policy,
        federation: Federation,
        key: SigningKey,
        tls: ServerTls,
        task_hash: bytes,
        application: Application,
        options: Options,
        *listeners: Listener,
    ) -> None:
        self.policy, self.federation, self.application, self.options = policy, federation, application, options
        self._listeners = list(listeners)
        self.sites = tuple(federation.pinned)
        self.book = RoundBook(federation.training_run, task_hash, key, policy.max_corrupt)
        session = session_id(policy, federation.pinned)
        self.transcripts = Transcripts(
            options.state / FOLDER,
            options.transcripts,
            replayed=application.replayed,
            policy=policy,
            pinned=federation.pinned,
            key=key,
            quota=options.quota,
        )
        self.driver = ServerDriver(
            policy,
            federation.pinned,
            self.book,
            step_seconds=options.step_seconds,
            input_seconds=options.training_seconds,
            attempts=1,
            record=self.transcripts.recorder,
            resumable=True,
            confirmed=application.replayed,
        )
        self.mailbox = MailboxServer(
            self.sites,
            tls,
            max_message_bytes=message_limit(policy) + application.content_bytes,
            gone_after=min(1.0, options.grace),
        )
        self.presence = Presence(self.sites)
        self._dialogue = Dialogue((*FROM_MEMBER, *application.kinds))
        self._same = {
            "release": (application.release, "release"),
            "run": (federation.training_run, "training run"),
            "task": (task_hash.hex(), "study"),
            "policy": (policy.hash().hex(), "aggregation policy"),
            "roster": (federation.pinned.hash().hex(), "roster"),
        }
        identity = {"run": federation.training_run, "study": task_hash.hex(), "session": session.hex()}
        self.journal = Journal(options.state / JOURNAL, identity)
        self._remember()

    def _remember(self) -> None:
        """What an earlier process wrote down."""
        journal = self.journal
        book, sealed = journal.get_json("book", None), journal.get("sealed") or b""
        self.saved = None if book is None else Save(book, sealed, int(journal.get("recorded") or b"0"))
        if (state := journal.get("application")) is not None:
            self.application.restore(state)
        finished = journal.get_json("finished", {"reason": "", "complete": False})
        self.ended, self.complete = str(finished["reason"]), bool(finished["complete"])
        members = journal.get_json("members", {"spent": {}, "joined": {}, "left": {}, "seen": {}, "done": []})
        self.spent: dict[str, float] = members["spent"]
        self.joined: dict[str, tuple[int, int]] = {
            site: (found[0], found[1]) for site, found in members["joined"].items()
        }
        self.left_because: dict[str, str] = members["left"]
        self.seen: dict[str, set[int]] = {site: set(rounds) for site, rounds in members["seen"].items()}
        self.done: set[str] = set(members["done"])
        self.presence.left |= self.left_because.keys()
        self.owed: set[str] = set(journal.get_json("owed", []))
        accounts = journal.all("account-").items()
        self.accounts = {int(key.removeprefix("account-")): Account.unpacked(data) for key, data in accounts}
        self.facts = Counting.of(journal.get("counted"), self.emit)
        self.failures, self.why = 0, ""
        self.convicted = self.book.convicted
        self.awaited: set[str] = set()
        self.since = time.monotonic()
        self._asked_again: dict[str, tuple[int, int]] = {}
        self._last: tuple[bytes, FromServer] | None = None
        if self.ended and self.saved is not None:
            self.book.restore(self.saved.book)

    def counting(self, number: int, attempt: int) -> None:
        """An attempt begins, or goes on."""
        if (self.facts.round, self.facts.attempt) != (number, attempt):
            self.facts = Counting(number, attempt, self.emit)

    def listen(self, listener: Listener) -> None:
        """Tell somebody else of every event from here on."""
        self._listeners.append(listener)

    def emit(self, event: Event) -> None:
        """Tell every listener; one that fails hears nothing more, and costs no round."""
        for listener in tuple(self._listeners):
            try:
                listener(event)
            except Exception as error:
                self._listeners.remove(listener)
                self.emit(Note(f"a listener failed and hears no more ({type(error).__name__}: {error})"))

    def status(self) -> Status:
        """How the run stands now."""
        session, now = self.driver.session, time.monotonic()
        step = session.step if session is not None and (self.driver.running or self.driver.unpublished) else ""
        deadline = self.driver.deadline if step else None
        awaited = set(self.driver.awaited) if step else self.awaited
        return Status(
            run=self.federation.training_run,
            task=self.book.task_hash.hex(),
            completed=len(self.book.receipts),
            rounds=self.application.rounds,
            round=self.facts.round if step else self.book.number,
            attempt=self.facts.attempt if step else self.book.attempt,
            step=step,
            since=now - (self.facts.since if step else self.since),
            deadline=None if deadline is None else max(0.0, deadline - now),
            ended=self.ended,
            complete=self.complete,
            sites=tuple(self._status_of(site, awaited) for site in self.sites),
        )

    def _status_of(self, site: str, awaited: set[str]) -> SiteStatus:
        presence, session = self.presence, self.driver.session
        connected, traffic = site in self.mailbox.connected(), self.mailbox.traffic(site)
        inside = self.driver.running and session is not None and site in session.expected and connected
        why = presence.refused.get(site) or self.left_because.get(site) or presence.busy.get(site) or ""
        states = {
            "done": site in self.done,
            "left": site in presence.left,
            "left out": site in self.book.leave_out,
            "refused": site in presence.refused,
            "busy": site in presence.busy,
            "waiting": site in presence.waiting,
            "in the round": inside,
            "ready": site in presence.ready,
        }
        state = next((name for name, holds in states.items() if holds), "away")
        spent = self.spent.get(site)
        return SiteStatus(site, state, why, connected, site in awaited, spent, traffic.up, traffic.down)

    # --- Messages -----------------------------------------------------------------------------------------------------

    def _send(self, sites: Iterable[str], message: Message) -> None:
        payload = message.packed()
        for site in sorted(sites):
            self.mailbox.send(site, message.kind, payload)

    async def _hear(self, seconds: float) -> None:
        received = await self.mailbox.receive(max(seconds, 0.0))
        if received is not None:
            try:
                await self._take(received)
            except DialogueError as error:
                self.emit(Note(str(error)))

    async def _take(self, received: Received) -> None:
        site = received.sender
        match received.kind:
            case frames.HELLO:  # a new process, or this one is new: it introduces itself
                self.presence.began(site)
                self._asked_again.pop(site, None)
                self.emit(Connected(site))
            case frames.GONE:
                self.presence.gone(site)
                self.emit(Disconnected(site))
            case frames.BACK:
                self.presence.back(site)
                self.driver.back(site)
                self.emit(Connected(site))
            case dialogue.Ready.kind:
                await self._introduced(site, received.payload)
            case kind:
                await self._answer(site, self._dialogue.read(kind, received.payload, site))

    async def _answer(self, site: str, message: Message | None) -> None:
        match message:
            case dialogue.Busy():
                self.presence.away_with(site, message.reason)
                await self._over(site)
            case dialogue.Leaving():
                await self._left(site, message.reason)
            case dialogue.Failed():
                self.presence.failed(site)
                await self._over(site)
                if site not in self.presence.refused:  # of whom it was said why
                    self.emit(Note(f"{site} stopped: {message.reason}"))
            case dialogue.Done() if self.ended and site not in self.done:
                self.done.add(site)
                await self._members()
            case dialogue.Protocolled():
                await self._protocol(site, message.data)
            case None | dialogue.Done():
                pass
            case _:
                self.application.heard(site, message)

    async def _protocol(self, site: str, data: bytes) -> None:
        if self._open:
            await self._driven(lambda: self.driver.receive(site, data, time.monotonic()), (site, len(data)))
        if site in self.owed and self._confirms(site, data):
            self.owed.discard(site)
            self.seen.setdefault(site, set()).add(self.book.receipts[-1].round_number)

    def _confirms(self, site: str, data: bytes) -> bool:
        """Whether this is the member's confirmation of the last sum."""
        try:
            message = wire.decode_from_client(data)
            if not isinstance(message, Confirmation) or (message.client_id, message.head) != (site, self.book.head):
                return False
            message.verify(self.federation.pinned[site], "S-21", site)
        except ProtocolError:
            return False
        return True

    async def _over(self, site: str) -> None:
        """A member is in no attempt any more."""
        await self._driven(lambda: self.driver.over(site, time.monotonic()))

    async def _left(self, site: str, reason: str) -> None:
        news = site not in self.presence.left
        self.presence.left.add(site)
        self.left_because[site] = reason
        await self._members()
        if news:
            self.emit(Left(site, reason))
        await self._over(site)

    async def _members(self) -> None:
        """Write down what is known of the members."""
        await self._durably(self._known_of_members())

    def _known_of_members(self) -> dict[str, bytes | None]:
        members = {
            "spent": self.spent,
            "joined": self.joined,
            "left": self.left_because,
            "seen": {site: sorted(rounds) for site, rounds in self.seen.items()},
            "done": sorted(self.done),
        }
        return {"members": json.dumps(members).encode(), "owed": json.dumps(sorted(self.owed)).encode()}

    # --- A member introduces itself -----------------------------------------------------------------------------------

    async def _introduced(self, site: str, payload: bytes) -> None:
        """A member says what it runs and where it is; it takes part if that fits, and is told what it lacks."""
        try:
            ready = dialogue.Ready.unpacked(payload, site)
        except DialogueError:
            await self._refuse(site, f"{site} runs another version than the coordinator ({self.application.release})")
            return
        if why := self._unlike(site, ready) or self._yesterday(site, ready):
            await self._refuse(site, why)
            return
        if ready.spent is not None and ready.spent != self.spent.get(site):
            self.spent[site] = ready.spent
            await self._members()
        self.presence.refused.pop(site, None)
        news = self.presence.free(site, ready.unreplayed)
        if self.ended:
            self._dismiss([site], self.ended, complete=self.complete)
            return
        self.driver.back(site)
        await self._placed(site, ready)
        if site in self.owed and (result := self.journal.get("result")):
            self._send([site], dialogue.Protocolled(result))
        self._show_transcripts(site, ready.unreplayed, news)

    async def _placed(self, site: str, ready: dialogue.Ready) -> None:
        """A member that is in the attempt that runs is told again what it may have lost; any other is not waited for.

        What it said before it had the round start says nothing of the attempt: it is asked once more, while that helps.
        """
        session, now = self.driver.session, (self.facts.round, self.facts.attempt)
        late = ready.inside is None and not ready.unreplayed and ready.joined < now
        begins = session is not None and session.step == ADVERTISE_KEYS and self.driver.running
        late = late and begins and self._asked_again.get(site) != now
        if self.driver.running and (ready.inside == now or late):
            self._asked_again[site] = now
            await self._driven(lambda: self.driver.again(site))
        else:
            await self._over(site)

    def _unlike(self, site: str, ready: dialogue.Ready) -> str:
        """What makes this member the odd one out: it is named to both, before anything is charged."""
        for name, (ours, what) in self._same.items():
            theirs = getattr(ready, name)
            if theirs != ours:
                shown = [text if name in ("release", "run") else text[:8] for text in (theirs, ours)]
                both = f"{site} was started with another {what} ({shown[0]}) than the coordinator ({shown[1]})"
                return f"{both}: compare the two, and start with the same one"
        return ""

    def _yesterday(self, site: str, ready: dialogue.Ready) -> str:
        """Marks or spending that fell: a store that was wiped, or restored from a copy."""
        seen, told = self.joined.get(site, (0, 0)), self.spent.get(site, 0.0)
        remedy = "bring back the newest state folder; its patients paid what they paid"
        if ready.joined < seen:
            return (
                f"{site} took part in round {seen[0]} (attempt {seen[1]}) and its marks know nothing of it: its state "
                f"folder was wiped, or restored from a copy; {remedy}"
            )
        if ready.spent is not None and ready.spent < told - 1e-9:
            return (
                f"{site} says that epsilon {ready.spent:.4g} was spent, and said {told:.4g} before: its state folder "
                f"was wiped, or restored from a copy; {remedy}"
            )
        return ""

    async def _refuse(self, site: str, reason: str) -> None:
        if self.presence.refuse(site, reason):
            self.emit(TurnedAway(site, reason))
        self._send([site], dialogue.Refused.because(reason))
        await self._over(site)

    def _show_transcripts(self, site: str, unreplayed: Sequence[str], news: bool) -> None:
        """What a member has to replay before its next round (C-05), and the last round in any case."""
        if self.application.replayed and self.book.receipts and not self.driver.unpublished:
            self._send_transcript(self.book.receipts[-1].round_id.hex(), [site])
        here = [round_id for round_id in unreplayed if self._send_transcript(round_id, [site])]
        if news:
            whole = len(here) == len(unreplayed)
            there = "which it gets" if whole else "which is not here: its operator decides"
            self.emit(Note(f"{site} waits for the transcript of round {', '.join(unreplayed)}, {there}"))

    def _send_transcript(self, round_id: str, sites: Iterable[str]) -> bool:
        """Send a round's transcript to these, to each process of them once; whether there is such a transcript."""
        found = self.transcripts.find(round_id)
        if found is None:
            return False
        fresh = [site for site in sites if round_id not in self.presence.shown.setdefault(site, set())]
        if fresh:
            self._send(fresh, dialogue.Transcript(found.read_bytes()))
        for site in fresh:
            self.presence.shown[site].add(round_id)
        return True

    def _dismiss(self, sites: Iterable[str], reason: str, *, complete: bool) -> None:
        """Give these the last content, all receipts and the accounts that they lack, and say why this is the end."""
        sites = sorted(sites)
        start = self.book.start(self.application.about(self.book))
        self._send(sites, dialogue.Closing(start, self.application.content()))
        for number, account in self.accounts.items():
            self._send([site for site in sites if number not in self.seen.get(site, ())], account)
        self._send(sites, dialogue.Finished(reason=reason[: dialogue.SENTENCE], complete=complete))

    # --- What the rest of the coordinator needs -----------------------------------------------------------------------

    @abstractmethod
    async def _do(self, actions: list[ServerAction]) -> None:
        """What the driver says, in order."""

    async def _driven(self, work: Callable[[], list[ServerAction]], of: tuple[str, int] = ("", 0)) -> None:
        """Have the driver take a call, and do what it says.

        Args:
            work: the call.
            of: whose message it takes, and its bytes; "" where it takes none.
        """
        (site, size), session, facts = of, self.driver.session, self.facts
        step, before = (session.step, session.heard) if session is not None and self._open else ("", 0)
        actions = await self._call(work)
        same = self.driver.session is session and session is not None
        closed = same and session is not None and bool(step) and session.step != step
        taken = same and session is not None and (closed or (self._open and session.heard > before))
        if site and taken and session is not None and not any(isinstance(action, Refused) for action in actions):
            facts.up(site, step, size)
            context = session.context
            self.joined[site] = max(self.joined.get(site, (0, 0)), (context.round_number, context.attempt))
        await self._do(actions)
        if closed:
            facts.closed(step)

    @property
    def _open(self) -> bool:
        """Whether the driver takes messages."""
        return self.driver.running or self.driver.unpublished

    async def _call(self, work: Callable[[], _T]) -> _T:
        """In a thread, one at a time: the event loop serves everybody meanwhile."""
        return await asyncio.to_thread(work)

    async def _durably(self, changes: Mapping[str, bytes | None]) -> None:
        """Write a change before anybody is told of it, however long the disk takes to have room for it."""

        def write() -> None:
            self.driver.sync()
            self.journal.commit(changes)

        await self._until_written(write, "what happened")

    async def _until_written(self, write: Callable[[], _T], what: str) -> _T:
        """Waits out a full disk: nothing was told that is not written."""
        said = False
        while True:
            try:
                return await self._call(write)
            except OSError as error:
                if not said:
                    self.emit(
                        Note(f"{what} cannot be written ({error}); this coordinator waits, and goes on by itself")
                    )
                    said = True
                await asyncio.sleep(0.5)

    def _decoded(self, data: bytes) -> FromServer:
        """A message that goes to many is decoded once."""
        if self._last is None or self._last[0] is not data:
            self._last = data, wire.decode_from_server(data)
        return self._last[1]

    def _with_content(self, start: RoundStart) -> dialogue.Opened:
        return dialogue.Opened(start, self.application.content())

    def seconds_left(self, site: str) -> float | None:
        """How long what a member sends just now still takes; None where nothing is under way."""
        return None

    def free_bytes(self) -> int:
        """Of the disk with the journal."""
        return shutil.disk_usage(self.options.state).free
