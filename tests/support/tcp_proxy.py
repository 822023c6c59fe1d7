"""A TCP proxy that does to a connection what networks do: cut, delay, throttle, corrupt, swallow, refuse, answer.

In a test::

    with TcpProxy("127.0.0.1", port) as proxy:
        client = MailboxClient(proxy.address, ...)
        proxy.cut_after(300_000)       # cut every connection once so many more bytes have gone up
        proxy.throttle(20_000)         # bytes a second each way, over all connections together
        proxy.clear()                  # an honest wire again

As a command, for other processes: ``python -m tests.support.tcp_proxy HOST:PORT [--port N]`` prints its own port, then
does what each line of its input says (``cut``, ``throttle 20000``, ``answer HTTP/1.1 503 Busy\\r\\n\\r\\n``...; an
underscore of a method may be a hyphen) and answers ``ok``, or the two counters for ``count``.

What is set holds for the connections that are open and for those that come, until it is changed or `clear`. The proxy
keeps little in its own buffers, so that a sender feels the throttle. It runs in a thread of its own.
"""

import argparse
import asyncio
import socket
import sys
from collections.abc import Callable
from contextlib import suppress
from threading import Thread
from typing import Any

_CHUNK = 4096
_BUFFER = 16 << 10
UP, DOWN = "up", "down"


class TcpProxy:
    """Listens on 127.0.0.1 and hands on to one address.

    Attributes:
        port: where it listens; `address` is "127.0.0.1:PORT".
        connections: how many were accepted so far.
        passed: bytes handed on so far, by "up" (towards the target) and "down".
    """

    def __init__(self, host: str, port: int, listen: int = 0) -> None:
        self.target = (host, port)
        self.connections = 0
        self.passed = {UP: 0, DOWN: 0}
        self._loop = asyncio.new_event_loop()
        self._wires: set[_Wire] = set()
        self._clear()
        self._listener = self._listen(listen)
        self.port: int = self._listener.getsockname()[1]
        self.address = f"127.0.0.1:{self.port}"
        self._accepting: asyncio.Task[None] | None = None
        self._ending: asyncio.Task[None] | None = None
        self._thread = Thread(target=self._run, name="tcp proxy", daemon=True)

    def __enter__(self) -> "TcpProxy":
        self._thread.start()
        self._do(self._accept_on)
        return self

    def __exit__(self, *_: object) -> None:
        self._do(self._close)
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    def cut(self) -> None:
        """Cut every open connection (a reset); new ones pass."""
        self._do(self._cut)

    def cut_after(self, size: int, direction: str = UP) -> None:
        """Cut every connection once so many more bytes have been handed on in this direction; it happens once."""
        self._do(lambda: self._allow.update({direction: size}))

    def delay(self, seconds: float) -> None:
        """Hand on every byte so many seconds later, each way."""
        self._do(lambda: setattr(self, "_delay", seconds))

    def throttle(self, rate: float | None, direction: str | None = None) -> None:
        """Hand on so many bytes a second, in one direction or each; None for as fast as it goes."""
        self._do(lambda: self._rate.update(dict.fromkeys([direction] if direction else (UP, DOWN), rate)))

    def corrupt(self, every: int = 1, direction: str = UP) -> None:
        """Flip a bit in one of so many pieces of at most 4 KiB that are handed on."""
        self._do(lambda: self._corrupt.update({direction: every}))

    def swallow(self) -> None:
        """Half-open: take every byte and hand on none, on connections old and new; nobody is told."""
        self._do(lambda: setattr(self, "_mode", "swallow"))

    def freeze(self) -> None:
        """Take no byte any more, so that both ends' buffers fill up."""
        self._do(lambda: setattr(self, "_mode", "freeze"))

    def refuse(self) -> None:
        """Cut every connection and refuse new ones."""
        self._do(self._refuse)

    def answer(self, with_bytes: bytes) -> None:
        """Cut every connection; to each new one say these bytes once it has said something, and close it."""
        self._do(lambda: self._answer_with(with_bytes))

    def redirect(self, host: str, port: int) -> None:
        """Hand new connections on to another address; those that are open stay."""
        self._do(lambda: setattr(self, "target", (host, port)))

    def clear(self) -> None:
        """An honest wire again: connections that are open go on, new ones are accepted."""
        self._do(self._clear)
        self._do(self._accept_on)

    # --- In the thread of the proxy -----------------------------------------------------------------------------------

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_forever()

    def _do(self, action: Callable[[], Any]) -> None:
        async def act() -> None:
            result = action()
            if asyncio.iscoroutine(result):
                await result

        asyncio.run_coroutine_threadsafe(act(), self._loop).result(10)

    def _clear(self) -> None:
        self._mode = "pass"
        self._said = b""
        self._delay = 0.0
        self._rate: dict[str, float | None] = {UP: None, DOWN: None}
        self._free_at = {UP: 0.0, DOWN: 0.0}
        self._corrupt: dict[str, int] = {}
        self._pieces = 0
        self._allow: dict[str, int] = {}

    def _listen(self, port: int) -> socket.socket:
        listener = socket.socket()
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
        listener.bind(("127.0.0.1", port))
        listener.listen(512)
        listener.setblocking(False)
        return listener

    async def _accept_on(self) -> None:
        if self._accepting is None:
            if self._listener.fileno() < 0:
                self._listener = self._listen(self.port)
            self._accepting = asyncio.create_task(self._accept())

    async def _accept(self) -> None:
        while True:
            outer, _ = await self._loop.sock_accept(self._listener)
            self.connections += 1
            wire = _Wire(self, outer)
            self._wires.add(wire)
            wire.task = asyncio.create_task(wire.carry())
            wire.task.add_done_callback(lambda _, wire=wire: self._wires.discard(wire))  # type: ignore[misc]

    async def _cut(self) -> None:
        tasks = [wire.task for wire in self._wires if wire.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def _refuse(self) -> None:
        if self._accepting is not None:
            self._accepting.cancel()
            with suppress(asyncio.CancelledError):
                await self._accepting
            self._accepting = None
        self._listener.close()
        await self._cut()

    async def _answer_with(self, said: bytes) -> None:
        self._mode, self._said = "answer", said
        await self._cut()
        await self._accept_on()

    async def _close(self) -> None:
        await self._refuse()

    async def _turn(self, direction: str, size: int) -> None:
        """Wait until the throttled line has room for so many bytes."""
        rate = self._rate[direction]
        if rate is not None:
            now = self._loop.time()
            self._free_at[direction] = max(now, self._free_at[direction]) + size / rate
            await asyncio.sleep(self._free_at[direction] - now)

    def _spoilt(self, direction: str, piece: bytes) -> bytes:
        every = self._corrupt.get(direction)
        self._pieces += 1
        if not every or self._pieces % every:
            return piece
        middle = len(piece) // 2
        return piece[:middle] + bytes([piece[middle] ^ 1]) + piece[middle + 1 :]


class _Wire:
    """One connection and its other half."""

    def __init__(self, proxy: TcpProxy, outer: socket.socket) -> None:
        self.proxy, self.outer = proxy, outer
        self.task: asyncio.Task[None] | None = None

    async def carry(self) -> None:
        proxy, loop = self.proxy, self.proxy._loop
        with self.outer, socket.socket() as inner, suppress(OSError):
            self.outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            try:
                if proxy._mode == "answer":
                    await loop.sock_recv(self.outer, _CHUNK)
                    await loop.sock_sendall(self.outer, proxy._said)
                    return
                inner.setblocking(False)
                inner.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, _BUFFER)
                inner.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                await loop.sock_connect(inner, proxy.target)
                pumps = [
                    asyncio.create_task(self._pump(UP, self.outer, inner)),
                    asyncio.create_task(self._pump(DOWN, inner, self.outer)),
                ]
                try:
                    await asyncio.wait(pumps, return_when=asyncio.FIRST_COMPLETED)
                finally:
                    for pump in pumps:
                        pump.cancel()
                    await asyncio.gather(*pumps, return_exceptions=True)
            except asyncio.CancelledError:  # cut: no goodbye on either side
                for end in (self.outer, inner):
                    with suppress(OSError):
                        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
                raise

    async def _pump(self, direction: str, source: socket.socket, sink: socket.socket) -> None:
        proxy = self.proxy
        due: asyncio.Queue[tuple[float, bytes]] = asyncio.Queue(1 << 12)
        delivering = asyncio.create_task(self._deliver(direction, due, sink))
        try:
            while True:
                piece = await proxy._loop.sock_recv(source, _CHUNK)
                while proxy._mode == "freeze":
                    await asyncio.sleep(0.02)
                await proxy._turn(direction, len(piece))
                await due.put((proxy._loop.time() + proxy._delay, piece))
                if not piece:
                    await delivering
                    return
                if delivering.done():
                    return
        finally:
            delivering.cancel()

    async def _deliver(self, direction: str, due: "asyncio.Queue[tuple[float, bytes]]", sink: socket.socket) -> None:
        proxy = self.proxy
        while True:
            when, piece = await due.get()
            if (wait := when - proxy._loop.time()) > 0:
                await asyncio.sleep(wait)
            if not piece:
                return
            if proxy._mode == "swallow":
                continue
            left = proxy._allow.get(direction)
            piece = piece[:left]
            if left is not None:
                proxy._allow[direction] = left - len(piece)
            proxy.passed[direction] += len(piece)
            await proxy._loop.sock_sendall(sink, proxy._spoilt(direction, piece))
            if left == len(piece):
                del proxy._allow[direction]
                proxy._ending = proxy._loop.create_task(proxy._cut())
                return


def main() -> None:
    """The command."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("target", help="HOST:PORT")
    parser.add_argument("--port", type=int, default=0)
    options = parser.parse_args()
    host, _, port = options.target.rpartition(":")
    with TcpProxy(host, int(port), options.port) as proxy:
        print(proxy.port, flush=True)
        for line in sys.stdin:
            word, _, rest = line.rstrip("\n").partition(" ")
            name = word.replace("-", "_")
            if name == "count":
                print(proxy.passed[UP], proxy.passed[DOWN], flush=True)
                continue
            if name == "answer":
                proxy.answer(rest.encode("latin-1").decode("unicode_escape").encode("latin-1"))
            else:
                getattr(proxy, name)(*map(_value, rest.split()))
            print("ok", flush=True)


def _value(word: str) -> float | str | None:
    if word == "none":
        return None
    if word.isdecimal():
        return int(word)
    return float(word) if word.replace(".", "", 1).isdecimal() else word


if __name__ == "__main__":
    main()
