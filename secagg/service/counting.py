"""The facts of one attempt at a coordinator: bytes, seconds by step, and after which step a member fell silent."""

import json
import time
from collections.abc import Callable

from secagg.driver import Completed
from secagg.service.events import Accepted, Closed, Event, Summed


class Counting:
    """What is counted, told while it happens.

    Args:
        round, attempt: of what.
        emit: takes events.

    Attributes:
        last: by member, the last step of this attempt in which a message of it was accepted.
        since: when the present step began, in monotonic seconds.
    """

    def __init__(self, round: int, attempt: int, emit: Callable[[Event], None]) -> None:
        self.round, self.attempt, self._emit = round, attempt, emit
        self.bytes_up = self.bytes_down = 0
        self.seconds: dict[str, float] = {}
        self.last: dict[str, str] = {}
        self.since = time.monotonic()

    def up(self, site: str, step: str, size: int) -> None:
        """A member's message was accepted in a step."""
        self.bytes_up += size
        self.last[site] = step
        self._emit(Accepted(self.round, site, step, size))

    def closed(self, step: str, size: int) -> None:
        """A step is over, and everybody is answered, with so many bytes in all."""
        now = time.monotonic()
        self.seconds[step] = self.seconds.get(step, 0.0) + now - self.since
        self.bytes_down += size
        self._emit(Closed(self.round, step, now - self.since, size))
        self.since = now

    def summed(self, done: Completed) -> Summed:
        """The round as it completed."""
        included, dropped, head = done.included, done.dropped, done.receipt.head.hex()
        counted = (self.bytes_up, self.bytes_down, dict(self.seconds))
        return Summed(done.receipt.round_number, self.attempt, included, dropped, head, *counted)

    def kept(self) -> dict[str, bytes | None]:
        """For the journal: a later process counts on."""
        counted = [self.round, self.attempt, self.bytes_up, self.bytes_down, self.seconds, self.last]
        return {"counted": json.dumps(counted).encode()}

    @classmethod
    def of(cls, kept: bytes | None, emit: Callable[[Event], None]) -> "Counting":
        """What `kept` gave, or nothing yet."""
        if kept is None:
            return cls(0, 0, emit)
        number, attempt, up, down, seconds, last = json.loads(kept)
        found = cls(number, attempt, emit)
        found.bytes_up, found.bytes_down, found.seconds, found.last = up, down, dict(seconds), dict(last)
        return found
