"""A visitor of the front door, and the two ways of its connection, on which bytes of TLS are handed on as they come."""

import asyncio
import socket
import time
from contextlib import suppress
from dataclasses import dataclass, field

from secagg.rpc.server_hello import NEWEST, negotiated

STRANGERS_BYTES = 1 << 16
"""What a stranger may send, and be sent, before it has said who it is: several TLS handshakes."""
STRANGERS_BUFFER = 1 << 14
"""Of it at once."""
BUFFER = 1 << 16
"""What a site may send, or be sent, at once, and what of it waits for a peer that does not take it."""


@dataclass(eq=False)
class Visitor:
    """One connection; its number names gRPC's end of it."""

    number: int
    address: str
    outer: socket.socket
    site: str = ""
    heard: float = field(default_factory=time.monotonic)
    tls: str = ""
    ways: "tuple[Way, ...]" = ()
    clock: asyncio.Timeout | None = None
    task: "asyncio.Task[None] | None" = None


class Way:
    """One direction of a connection: what comes is handed on at once, and no more is read before all of it has gone.

    All directions read into one buffer, one after the other; what a sink does not take at once is copied. It is called
    by the loop, not a task: a busy door would spend most of its time on waking tasks.

    Args:
        loop: of the door.
        visitor: whose connection it is.
        source: where the bytes come from.
        sink: where they go.
        buffer: of all directions.
        named: a connection without TLS 1.3 ends.
        ended: done once either side has ended.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        visitor: Visitor,
        source: socket.socket,
        sink: socket.socket,
        buffer: memoryview,
        named: bool,
        ended: "asyncio.Future[None]",
    ) -> None:
        self._loop, self._visitor, self._source, self._sink = loop, visitor, source, sink
        self._buffer, self._named, self._ended = buffer, named, ended
        self._left = b""
        self._allowance = STRANGERS_BYTES

    def go_on(self) -> None:
        """Read what comes, unless something has to go first."""
        if not self._left and not self._ended.done():
            self._loop.add_reader(self._source, self._read)

    def close(self) -> None:
        """Neither read nor write any more."""
        self._loop.remove_reader(self._source)
        self._loop.remove_writer(self._sink)

    def _end(self) -> None:
        self.close()
        if not self._ended.done():
            self._ended.set_result(None)

    def _read(self) -> None:
        known = bool(self._visitor.site)
        try:
            count = self._source.recv_into(self._buffer, BUFFER if known else STRANGERS_BUFFER)
            came = self._buffer[:count]
            if not count or not self._passes(came):
                self._end()
                return
            self._left = bytes(came[self._taken(came) :])
        except BlockingIOError:
            return
        except OSError:
            self._end()
            return
        self._allowance -= count
        if self._left:
            self._loop.remove_reader(self._source)
            self._loop.add_writer(self._sink, self._write)
        elif not known and self._allowance <= 0:
            self._loop.remove_reader(self._source)  # until it is said whose it is

    def _passes(self, came: memoryview) -> bool:
        """Note what can be read of it; False where the connection has to end."""
        if self._sink is not self._visitor.outer:
            self._visitor.heard = time.monotonic()
        elif not self._visitor.tls:
            self._visitor.tls = said = negotiated(bytes(came))
            return not (self._named and said and not said.startswith(NEWEST))
        return True

    def _taken(self, data: "bytes | memoryview") -> int:
        with suppress(BlockingIOError):
            return self._sink.send(data)
        return 0

    def _write(self) -> None:
        try:
            self._left = self._left[self._taken(self._left) :]
        except OSError:
            self._end()
            return
        if not self._left:
            self._loop.remove_writer(self._sink)
            if self._visitor.site or self._allowance > 0:
                self.go_on()
