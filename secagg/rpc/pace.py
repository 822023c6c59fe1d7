"""How fast a peer's line is, measured by what arrives, and how large the frames are that it makes.

It must never guess a speed: before anything was measured the rate is 0.0, and a deadline that follows it has to wait.
"""

import math
from dataclasses import dataclass
from datetime import datetime
from time import monotonic

PIECE_BYTES = 16 << 10
"""The smallest frame of a message that has more: what a cut costs on a slow line."""
FIRST_PIECE_BYTES = 32 << 10
"""The frame of a line whose speed is not known yet."""
CHUNK_BYTES = 256 << 10
"""The largest."""

_PIECE_SECONDS = 1.0
_SAMPLE_SECONDS = 0.02
_MEMORY_SECONDS = 2.0


@dataclass(frozen=True, slots=True)
class Transfer:
    """A message on its way: its kind, its bytes, how many of them have arrived, and the measured bytes a second.

    Attributes:
        rate: 0.0 before anything was measured.
        still: seconds since the last byte of it arrived, or since it began.
    """

    kind: str
    size: int
    done: int
    rate: float
    still: float

    def seconds_left(self) -> float:
        """How long the rest takes at this rate; infinity where none was measured."""
        return (self.size - self.done) / self.rate if self.rate else math.inf


class Pace:
    """How fast one direction of one peer is, as its acknowledgements show, and how large a frame that makes.

    Attributes:
        rate: bytes a second while something was on its way; 0.0 before anything was measured.
        began: monotonic seconds at which something was last begun; 0.0 for never.
        moved: likewise, at which something arrived.
    """

    def __init__(self) -> None:
        self.rate = self.began = self.moved = self._since = 0.0
        self._bytes = 0
        self._careful = False

    def begin(self) -> None:
        """Something is on its way from now on: what was before is no measure."""
        self.began = self._since = monotonic()
        self._bytes = 0

    def progress(self, count: int) -> None:
        """So many bytes more have arrived."""
        self.moved = now = monotonic()
        self._bytes += count
        elapsed = now - self._since
        if elapsed >= _SAMPLE_SECONDS and self._bytes:
            weight = 1.0 - math.exp(-elapsed / _MEMORY_SECONDS) if self.rate else 1.0
            self.rate += weight * (self._bytes / elapsed - self.rate)
            self._since, self._bytes = now, 0
            self._careful = False

    def broke(self) -> None:
        """A call ended before its time: frames are small until something arrives again."""
        self._careful = True

    def piece(self) -> int:
        """Bytes of the next frame: a second's, within the bounds: each is a call of Python at both ends."""
        if self._careful:
            return PIECE_BYTES
        return min(CHUNK_BYTES, max(PIECE_BYTES, int(self.rate * _PIECE_SECONDS))) if self.rate else FIRST_PIECE_BYTES

    def transfer(self, kind: str, size: int, done: int) -> Transfer:
        """A message of which so many bytes have passed."""
        return Transfer(kind, size, done, self.rate, monotonic() - max(self.began, self.moved))


@dataclass(frozen=True, slots=True)
class Link:
    """What the coordinator's mailbox knows of one site's line, for status pages and deadlines.

    Attributes:
        connected: its process is there: it said hello and is not gone.
        since: unix seconds at which that began or ended; None where it was never there.
        heard: seconds since any byte came from it, over an open connection; None where there is none.
        address: of the other end, which may be a proxy's; "" where there is none.
        rtt: the kernel's estimate of a round trip to that address, in seconds; None where it is not told.
        tls: what was negotiated, such as "TLS 1.3, X25519MLKEM768"; "" where there is no connection.
        certificate_ends: last moment of the certificate that it showed; None where it showed none.
        up: bytes of frames that came from it, repeats included.
        down: bytes of frames that were sent to it, repeats included.
        held: bytes that the mailbox holds for it now, in both directions: never more than its budget.
        rate_up: measured bytes a second from it; 0.0 before anything was measured.
        rate_down: likewise to it.
        uploading: the message that is on its way from it.
        downloading: the message that is on its way to it.
    """

    connected: bool
    since: float | None
    heard: float | None
    address: str
    rtt: float | None
    tls: str
    certificate_ends: datetime | None
    up: int
    down: int
    held: int
    rate_up: float
    rate_down: float
    uploading: Transfer | None
    downloading: Transfer | None
