"""The facts of one attempt at one round, counted in one place: bytes, seconds, and who fell silent after which step.

A coordinator, a site and the simulation count with the same `Facts`. `Exchange` is the server's end of an attempt: wire
bytes go into its session and come out of it, and each is counted and told.
"""

import time
from collections.abc import Callable, Collection, Mapping
from typing import Any

from numpy.typing import NDArray

from fedseg.errors import RoundFailedError
from fedseg.events import AnyEvent, Dropped, RoundEnded, StepAccepted, StepClosed
from secagg import ServerSession, wire
from secagg.messages import IncludedSet, Receipt, Reports
from secagg.service.account import Account

Emit = Callable[[AnyEvent], None]


class Facts:
    """What one party knows of an attempt, told as events while it happens.

    Args:
        number: of the round.
        attempt: None where only the account of the round is known.
        emit: takes `StepAccepted`, `StepClosed` and `Dropped`.
    """

    def __init__(self, number: int, attempt: int | None, emit: Emit) -> None:
        self.number, self.attempt, self._emit = number, attempt, emit
        self._bytes_up = self._bytes_down = 0
        self._last: dict[str, str] = {}
        self._seconds: dict[str, float] = {}
        self._since = time.monotonic()

    @property
    def seconds(self) -> float:
        """Since the last step was closed, or since the attempt began."""
        return time.monotonic() - self._since

    def spoke(self, site: str, step: str, size: int) -> None:
        """A site's message of a step, on its way up, of `size` bytes."""
        self._bytes_up += size
        self._last[site] = step
        self._emit(StepAccepted(round=self.number, site=site, step=step, bytes=size))

    def silent(self, site: str, after: str = "") -> None:
        """A site fell silent after a step, by default the last one that it spoke in."""
        self._emit(Dropped(round=self.number, site=site, after=after or self._last.get(site, "")))

    def heard(self, size: int) -> None:
        """`size` bytes came down."""
        self._bytes_down += size

    def took(self, name: str) -> float:
        """What began with the last step, or with the attempt, is over; how many seconds it took."""
        self._seconds[name] = seconds = self.seconds
        self._since = time.monotonic()
        return seconds

    def closed(self, step: str, size: int) -> None:
        """The server closed a step and answered everybody, with `size` bytes in all."""
        self.heard(size)
        self._emit(StepClosed(round=self.number, step=step, seconds=self.took(step), bytes_down=size))

    def ended(
        self,
        included: Collection[str],
        dropped: Collection[str],
        head: bytes,
        *,
        exact: bool | None = None,
        clip_rate: Mapping[str, float] | None = None,
    ) -> RoundEnded:
        """The completed round as the log has it; see `RoundEnded`."""
        return RoundEnded(
            round=self.number,
            attempt=self.attempt,
            included=tuple(included),
            dropped=tuple(dropped),
            exact=exact,
            head=head.hex(),
            clip_rate=clip_rate or {},
            bytes_up=self._bytes_up,
            bytes_down=self._bytes_down,
            seconds=self._seconds,
        )


class Exchange:
    """The server's end of an attempt.

    Args:
        server: its session.
        facts: what is counted.
        asked: the sites that were sent the round start; of others nobody says that they fell silent.

    Attributes:
        quiet: who fell silent so far.
    """

    def __init__(self, server: ServerSession, facts: Facts, asked: Collection[str]) -> None:
        self.server, self.facts, self.asked = server, facts, frozenset(asked)
        self.quiet: set[str] = set()
        self._reports: Reports | None = None
        self._included: IncludedSet | None = None

    def take(self, site: str, data: bytes) -> None:
        """Give a site's message to the session.

        Raises:
            ProtocolError: it was refused and has left no trace.
        """
        step = self.server.step
        self.server.receive(site, wire.decode_from_client(data))
        self.facts.spoke(site, step, len(data))

    def close(self) -> Mapping[str, bytes]:
        """Close the step; who was asked and has not spoken has fallen silent.

        Returns:
            By site, the bytes of the message that opens the next step.

        Raises:
            AbortedError, ProtocolError: as `ServerSession.close_step`; there is no sum.
        """
        step = self.server.step
        for site in sorted((set(self.server.missing) & self.asked) - self.quiet):
            self.facts.silent(site)
            self.quiet.add(site)
        messages = self.server.close_step()
        for message in messages.values():
            if isinstance(message, Reports):
                self._reports = message
            if isinstance(message, IncludedSet):
                self._included = message
        replies = wire.encode_each(messages)
        self.facts.closed(step, sum(map(len, replies.values())))
        return replies

    @property
    def total(self) -> NDArray[Any]:
        """The sum of the finished session, (d,) integers modulo 2^b."""
        if self.server.result is None:
            raise RoundFailedError("the round has no result yet")
        return self.server.result

    @property
    def receipt(self) -> Receipt:
        """The receipt of the finished session, signed where the server has a key."""
        if self.server.receipt is None:
            raise RoundFailedError("the round has no result yet")
        return self.server.receipt

    @property
    def account(self) -> Account:
        """Who shared keys and who is in the sum of the finished session, signed by each."""
        if self._reports is None or self._included is None:
            raise RoundFailedError("the round has no result yet")
        return Account(self._reports, self._included)

    def ended(self, *, exact: bool | None = None, clip_rate: Mapping[str, float] | None = None) -> RoundEnded:
        """The finished session as the log has it; see `Facts.ended`."""
        server = self.server
        return self.facts.ended(server.included, server.dropped, self.receipt.head, exact=exact, clip_rate=clip_rate)
