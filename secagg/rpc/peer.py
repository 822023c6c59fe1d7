"""What the coordinator's mailbox holds for one site: its session, what it sent, what it is sent, within one budget.

It must never hold more for a site than `budget_of` says, whatever the site does.
"""

import asyncio
import time
from collections import deque
from dataclasses import dataclass, field
from datetime import datetime

from secagg.rpc.frames import Assembler, Message
from secagg.rpc.pace import CHUNK_BYTES, Pace, Transfer

UNTAKEN = 4
"""Limits of bytes that wait for a client which does not take them, at most."""
COST_OF_A_MESSAGE = 4096
"""Of every message beside its bytes, more than it really takes: it bounds how many there can be."""

_REMEMBERED_SESSIONS = 64


def budget_of(limit: int) -> int:
    """Bytes held for one site at most: what it sent and the owner has not read, what it is sent and does not take."""
    return (1 + UNTAKEN) * limit + 2 * CHUNK_BYTES


@dataclass(eq=False)
class Peer:
    """The state of one allowed client. The numbers of the messages to it go on over all its sessions.

    Attributes:
        session: of its present process.
        greeted: the session whose "hello" the owner has read.
        retired: sessions of its earlier processes.
        present: its process is there; `since` when it came or went, in unix seconds.
        arrived: the last message that came whole; `partial` is what there is of the next one.
        unread: cost of what the owner has not read.
        queue: what it has not acknowledged, whose cost is `untaken`; it has `taken` bytes of the first one.
    """

    client_id: str
    limit: int
    session: bytes = b""
    greeted: bytes = b""
    retired: deque[bytes] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_SESSIONS))
    present: bool = False
    since: float | None = None
    arrived: int = 0
    unread: int = 0
    sequence: int = 0
    queue: deque[Message] = field(default_factory=deque)
    untaken: int = 0
    taken: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    poll: asyncio.Timeout | None = None
    upload: asyncio.Timeout | None = None
    farewell: asyncio.TimerHandle | None = None
    up: int = 0
    down: int = 0
    pace_up: Pace = field(default_factory=Pace)
    pace_down: Pace = field(default_factory=Pace)
    certificate_ends: datetime | None = None

    def __post_init__(self) -> None:
        self.partial = Assembler(self.limit)

    def begin(self, session: bytes) -> None:
        """A new process."""
        if self.session:
            self.retired.append(self.session)
        self.end_calls()
        self.partial.close()
        self.session, self.arrived = session, 0
        self.turn_up(True)

    def turn_up(self, present: bool) -> None:
        """It is there, or gone."""
        if self.present != present:
            self.since = time.time()
        self.present = present

    def has_room(self, size: int = 0) -> bool:
        """Whether a message of this size fits beside what the owner has not read yet."""
        return not self.unread or self.unread + size + COST_OF_A_MESSAGE <= self.limit + CHUNK_BYTES

    def post(self, kind: str, payload: bytes) -> bool:
        """Queue a message to it; False where it leaves too much waiting."""
        if self.untaken + cost(payload) > UNTAKEN * self.limit + CHUNK_BYTES:
            return False
        self.sequence += 1
        self.queue.append(Message(self.sequence, kind, payload))
        self.untaken += cost(payload)
        self.changed.set()
        return True

    def forget(self) -> None:
        """Drop what it has not acknowledged."""
        self.queue.clear()
        self.untaken = self.taken = 0

    def acknowledge(self, sequence: int, offset: int) -> None:
        """Everything up to `sequence` has reached it, and so many bytes of the next message."""
        news = 0
        while self.queue and self.queue[0].sequence <= sequence:
            payload = self.queue.popleft().payload
            self.untaken -= cost(payload)
            news += len(payload) - self.taken
            self.taken = 0
        if self.queue and self.queue[0].sequence == sequence + 1:
            offset = min(offset, len(self.queue[0].payload))
            news += max(0, offset - self.taken)
            self.taken = max(offset, self.taken)
        if news:
            self.pace_down.progress(news)

    def after(self, sequence: int) -> Message | None:
        """The queued message that follows; those queued are numbered without a gap."""
        index = max(0, sequence + 1 - self.queue[0].sequence) if self.queue else 0
        return self.queue[index] if index < len(self.queue) else None

    def end_calls(self) -> None:
        """End the upload and the long poll of a session that is over."""
        for call in (self.poll, self.upload):
            end(call)
        self.poll = self.upload = None
        self.changed.set()

    def stay(self) -> None:
        """It need not be said that it is gone."""
        if self.farewell is not None:
            self.farewell.cancel()
            self.farewell = None

    @property
    def held(self) -> int:
        """Bytes that are held for it now."""
        return self.unread + self.partial.have + self.untaken

    @property
    def uploading(self) -> Transfer | None:
        """What is on its way from it."""
        if not self.partial.kind:
            return None
        return self.pace_up.transfer(self.partial.kind, self.partial.size, self.partial.have)

    @property
    def downloading(self) -> Transfer | None:
        """What is on its way to it."""
        if not self.queue:
            return None
        message = self.queue[0]
        return self.pace_down.transfer(message.kind, len(message.payload), self.taken)


def end(call: asyncio.Timeout | None) -> None:
    """End a call now, wherever it waits."""
    if call is not None and not call.expired():
        call.reschedule(0.0)


def cost(payload: bytes) -> int:
    """What a message takes of the budget."""
    return len(payload) + COST_OF_A_MESSAGE
