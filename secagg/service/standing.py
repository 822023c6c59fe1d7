"""What a coordinator has: journal, driver and mailbox, what is known of each member, and how the run stands."""

import asyncio
import json
import shutil
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from typing import TypeVar

from secagg import wire
from secagg.book import RoundBook
from secagg.driver import Failed, Refused, Save, Send, ServerAction, ServerDriver
from secagg.files import Federation
from secagg.keys import SigningKey
from secagg.messages import FromServer, RoundStart
from secagg.policy import Policy
from secagg.roster import session_id
from secagg.rpc.frames import message_limit
from secagg.rpc.proof import TLS, Pinned
from secagg.rpc.server import MailboxServer
from secagg.rpc.tls import ServerTls
from secagg.service import dialogue
from secagg.service.counting import Counting
from secagg.service.dialogue import FROM_MEMBER, Dialogue, Message
from secagg.service.events import Connected, Disconnected, Event, Listener, Note
from secagg.service.journal import Journal
from secagg.service.presence import Presence
from secagg.service.running import Application, Options
from secagg.service.spans import Span
from secagg.service.transcripts import FOLDER, Transcripts

NOTES = 32
"""Of one member that are told between the beginnings of two attempts; and so often that it came or went."""

SLOWEST_BYTES_PER_SECOND = 8 << 10
"""At which the largest message still comes in time; a member that drips more slowly holds a step no longer."""

STALLED_SECONDS = 30.0
"""A message of which nothing has arrived for so long is not on its way any more."""

JOURNAL = "journal.sqlite"
"""In the coordinator's state folder."""

ACCOUNT = "account-"
"""In the journal, before the number of a round: who is in its sum."""

RECEIPT = "receipt-"
"""In the journal, before how many there were with it: what the server signed about a round."""

_T = TypeVar("_T")


class Standing(ABC):
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
        self.transcripts = Transcripts(
            options.state / FOLDER,
            options.transcripts,
            replayed=application.replayed,
            policy=policy,
            pinned=federation.pinned,
            key=key,
            quota=options.quota,
        )
        self.driver = self._driver()
        limit, patience = message_limit(policy) + application.content_bytes, min(1.0, options.grace)
        proven = options.tls == TLS
        pinned = Pinned(federation.server_key, federation.pinned) if proven else None
        self.limit = limit  # bytes of a message
        self._longer: tuple[tuple[int, int, str], float] = ((0, 0, ""), 0.0)  # a step, and until when it may go on
        self._noted, self._moved = Counter[str](), Counter[str]()
        self._there: dict[str, bool] = {}  # who came and who went, as it was told last
        self.mailbox = MailboxServer(self.sites, tls, max_message_bytes=limit, gone_after=patience, pinned=pinned)
        self.presence = Presence(self.sites)
        self._dialogue = Dialogue((*FROM_MEMBER, *application.kinds))
        self._same = {
            "release": (application.release, "release"),
            "run": (federation.training_run, "training run"),
            "task": (task_hash.hex(), "study"),
            "policy": (policy.hash().hex(), "aggregation policy"),
            "roster": (federation.pinned.hash().hex(), "roster"),
        }
        session = session_id(policy, federation.pinned).hex()
        identity = {"run": federation.training_run, "study": task_hash.hex(), "session": session}
        self.journal = Journal(options.state / JOURNAL, identity)
        self._remember()

    def _driver(self) -> ServerDriver:
        return ServerDriver(
            self.policy,
            self.federation.pinned,
            self.book,
            step_seconds=self.options.step_seconds,
            input_seconds=self.options.training_seconds,
            attempts=1,  # who is there is looked at before each
            record=self.transcripts.recorder,
            resumable=True,
            confirmed=self.application.replayed,
        )

    def _remember(self) -> None:
        """What an earlier process wrote down."""
        journal = self.journal
        book, sealed = journal.get_json("book", None), journal.get("sealed") or b""
        receipts = [receipt.hex() for receipt in journal.all(RECEIPT).values()]
        self.receipts_written = len(receipts)
        recorded = int(journal.get("recorded") or b"0")
        self.saved = None if book is None else Save({**book, "receipts": receipts}, sealed, recorded)
        if (begun := journal.get("transcripts")) is not None:
            self.transcripts.begun = begun.decode()
        if (state := journal.get("application")) is not None:
            self.application.restore(state)
        finished = journal.get_json("finished", {"reason": "", "complete": False})
        self.ended, self.complete = str(finished["reason"]), bool(finished["complete"])
        members = journal.get_json("members", {"spent": {}, "joined": {}, "left": {}, "done": []})
        self.spent: dict[str, float] = members["spent"]
        self.joined: dict[str, tuple[int, int]] = {
            site: (found[0], found[1]) for site, found in members["joined"].items()
        }
        self.left_because: dict[str, str] = members["left"]
        self.saw: dict[str, tuple[Span, ...]] = {}  # rounds that each member's present process saw to their end
        self.parting: dict[str, int | None] = {}  # who is told the end, and its next receipt; None after the last word
        self.last_word = self._word(self.ended, self.complete, final=True)
        self._repeated: set[str] = set()  # who was sent the last sum again
        self.done: set[str] = set(members["done"])
        self.presence.left |= self.left_because.keys()
        self.owed: set[str] = set(journal.get_json("owed", []))
        self.facts = Counting.of(journal.get("counted"), self.emit)
        self.failures, self.why = 0, ""
        self.convicted = self.book.convicted
        self._asked_again: dict[str, tuple[int, int]] = {}
        self._last: tuple[bytes, FromServer] | None = None
        if self.ended and self.saved is not None:
            self.book.restore(self.saved.book)

    def counting(self, number: int, attempt: int) -> None:
        """An attempt begins, or goes on."""
        self._noted.clear()
        self._moved.clear()
        there = self.mailbox.connected()
        for site in [site for site, told in self._there.items() if told is not (site in there)]:
            self.came(site, site in there)
        if (self.facts.round, self.facts.attempt) != (number, attempt):
            self.facts = Counting(number, attempt, self.emit)

    def note_of(self, site: str, text: str) -> None:
        """Tell what a member did: so often in an attempt that nobody can fill this computer's disk with it."""
        self._noted[site] += 1
        if self._noted[site] < NOTES:
            self.emit(Note(text))
        elif self._noted[site] == NOTES:
            self.emit(Note(f"what else {site} does before the next round is not told"))

    def came(self, site: str, there: bool) -> None:
        """Tell that a member came or went: so often in an attempt, then how it is when the next one begins."""
        self._moved[site] += 1
        if self._moved[site] <= NOTES:
            self._there[site] = there
            self.emit(Connected(site) if there else Disconnected(site))

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

    def _send(self, sites: Iterable[str], message: Message) -> None:
        payload = message.packed()
        for site in sorted(sites):
            self.mailbox.send(site, message.kind, payload)

    async def _members(self) -> None:
        """Write down what is known of the members."""
        await self._durably(self._known_of_members())

    def _known_of_members(self) -> dict[str, bytes | None]:
        members = {
            "spent": self.spent,
            "joined": self.joined,
            "left": self.left_because,
            "done": sorted(self.done),
        }
        return {"members": json.dumps(members).encode(), "owed": json.dumps(sorted(self.owed)).encode()}

    def account(self, number: int) -> bytes | None:
        """Who is in a round's sum, as `Account.packed` has it.

        It is read where it is told, for a run has many rounds, and a round many members.
        """
        return self.journal.get(f"{ACCOUNT}{number:06d}")

    def _send_transcript(self, round_id: str, sites: Iterable[str]) -> bool:
        """Send a round's transcript to these, to each process of them once; whether there is such a transcript."""
        found = self.transcripts.find(round_id)
        if found is None:
            return False
        fresh = [site for site in sites if round_id not in self.presence.shown[site]]
        if fresh:
            self._send(fresh, dialogue.Transcript(found.read_bytes()))
        for site in fresh:
            self.presence.shown[site].append(round_id)
        return True

    @staticmethod
    def _word(reason: str, complete: bool, *, final: bool) -> dialogue.Finished:
        """The last word, of a reason of any length."""
        return dialogue.Finished(reason=reason[: dialogue.SENTENCE], complete=complete, final=final)

    def _dismiss(self, sites: Iterable[str]) -> None:
        """Give these the last content and all receipts, once; `Parting` has what follows, up to the last word."""
        if fresh := sorted(set(sites) - self.parting.keys()):
            start = self.book.start(self.application.about(self.book))
            self._send(fresh, dialogue.Closing(start, self.application.content()))
            self.parting.update(dict.fromkeys(fresh, 0))

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
        ended = any(isinstance(action, Failed) for action in actions)
        taken = same and session is not None and (closed or ended or (self._open and session.heard > before))
        if site and taken and session is not None and not any(isinstance(action, Refused) for action in actions):
            facts.up(site, step, size)
            context = session.context
            self.joined[site] = max(self.joined.get(site, (0, 0)), (context.round_number, context.attempt))
        if closed:
            facts.closed(step, sum(len(action.data) for action in actions if isinstance(action, Send)))
        await self._do(actions)

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
            """What has to be on disk before anybody is told."""
            self.driver.sync()
            self.journal.commit({"untold": None, **changes})  # what was written before was told by now

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
        """How long what is on its way from or to a member still takes; None where nothing is, or it does not move."""
        link = self.mailbox.link(site)
        left = [
            transfer.seconds_left()
            for transfer in (link.uploading, link.downloading)
            if transfer is not None and transfer.still < STALLED_SECONDS
        ]
        return max(left, default=None)

    def free_bytes(self) -> int:
        """Of the disk with the journal."""
        return shutil.disk_usage(self.options.state).free
