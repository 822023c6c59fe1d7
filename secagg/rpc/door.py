"""The front door: the one public port, which lets strangers in by a few at a time and sites always.

gRPC listens without a limit, and the limit that its core knows counts strangers and sites alike. So gRPC listens on a
socket in a private folder, and this door hands on the bytes of TLS, of which it can read the first few only. A
connection is a stranger's until `admit` says whose it is. Strangers have a fixed number of places, a deadline and an
allowance of bytes; where all places are taken, the oldest stranger of the address that holds most of them makes room. A
site keeps its newest connections. The door runs in a thread of its own, so that a busy owner keeps no site waiting. It
must never spend on strangers the files that sites need, nor close a site's connection for a stranger's sake.
"""

import asyncio
import errno
import ipaddress
import os
import resource
import socket
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from threading import Thread

from secagg.errors import ConfigError
from secagg.rpc.way import BUFFER, STRANGERS_BUFFER, Visitor, Way

STRANGERS = 256
"""Places for connections that have not said who they are, at most."""
CONNECTIONS = 2
"""Connections of one site at most: its own, and one that replaces it."""
GREETING_SECONDS = 20.0

_FEWEST_STRANGERS = 8
_FILES_EACH = 3  # of a connection: towards the peer, towards gRPC, and gRPC's own end
_FILES_OF_THE_OWNER = 64
_UNHEARD_MILLISECONDS = 30_000
_PAUSE_SECONDS = 0.1
_TCP_INFO_BYTES = 104
_RTT = 68  # tcpi_rtt in struct tcp_info, in microseconds
_NO_ROOM = (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM)


@dataclass(frozen=True, slots=True)
class Visit:
    """A site's newest connection: where from, seconds since it was heard, its round trip if known, and its TLS."""

    address: str
    heard: float
    rtt: float | None
    tls: str


class Door:
    """Listens for a gRPC server that listens at `inner`.

    Where this process may open too few files for its sites, its soft limit is raised as far as the hard one allows.

    Args:
        host: where to listen.
        port: 0 takes a free one; the attribute says which.
        sites: how many sites must always find room.
        named: each connection is one site's, and has TLS 1.3; else load balancers join those of many.
        silence: seconds without a byte after which a site's connection is dead: gRPC's pings make it answer before.

    Raises:
        ConfigError: the address or port cannot be had, or this process may open too few files; says what to do.
    """

    def __init__(self, host: str, port: int, sites: int, named: bool = True, silence: float = 30.0) -> None:
        self.strangers = _places(sites)
        self._listeners = _listen(host, port)
        self.port: int = self._listeners[0].getsockname()[1]
        try:
            self._folder = tempfile.TemporaryDirectory(prefix="secagg-")
        except OSError as error:
            raise ConfigError(f"no folder for temporary files ({error.strerror}); set TMPDIR to one") from None
        self._path = f"{self._folder.name}/grpc"
        self.inner = f"unix:{self._path}"
        self._named, self._silence = named, silence
        self._connections = CONNECTIONS if named else CONNECTIONS * sites
        self._visitors: dict[int, Visitor] = {}
        self._number = 0
        self._buffer = memoryview(bytearray(BUFFER))
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = Thread(target=self._run, name="secagg door", daemon=True)

    def open(self) -> None:
        """Let visitors in; the gRPC server listens by now."""
        self._thread.start()

    async def close(self) -> None:
        """Cut every connection and end the thread; a second call does nothing."""
        if self._thread.is_alive():
            with suppress(RuntimeError):  # the loop has just ended
                self._loop.call_soon_threadsafe(self._stopping.set)
            await asyncio.to_thread(self._thread.join)
        self._loop.close()
        for listener in self._listeners:
            listener.close()
        self._folder.cleanup()

    def admit(self, peer: str, site: str) -> None:
        """A call has shown whose connection it came over; may be called from any thread.

        Args:
            peer: the peer as gRPC names it: a path that ends in the visitor's number.
            site: whom its certificate names.
        """
        number = peer.rpartition("/")[2]
        visitor = self._visitors.get(int(number)) if number.isdecimal() else None
        if visitor is not None and not visitor.site:
            with suppress(RuntimeError):  # the door closes just now
                self._loop.call_soon_threadsafe(self._admit, visitor, site)

    def _admit(self, visitor: Visitor, site: str) -> None:
        visitor.site = site
        for way in visitor.ways:
            way.go_on()
        if visitor.clock is not None and not visitor.clock.expired():
            visitor.clock.reschedule(None)
        own = [other for other in self._visitors.values() if other.site == site or (other.site and not self._named)]
        for older in own[: -self._connections]:
            _send_away(older)

    def visit(self, site: str) -> Visit | None:
        """The newest connection of a site, if there is one; may be called from any thread."""
        for visitor in reversed(list(self._visitors.values())):
            if visitor.site == site:
                rtt = round_trip(visitor.outer)
                return Visit(visitor.address, time.monotonic() - visitor.heard, rtt, visitor.tls)
        return None

    def _run(self) -> None:
        asyncio.set_event_loop(self._loop)
        self._loop.run_until_complete(self._serve())

    async def _serve(self) -> None:
        accepting = [asyncio.create_task(self._accept(listener)) for listener in self._listeners]
        accepting.append(asyncio.create_task(self._watch()))
        await self._stopping.wait()
        tasks = [*accepting, *(visitor.task for visitor in self._visitors.values() if visitor.task is not None)]
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)

    async def _watch(self) -> None:
        """Close what is half-open: nobody closed it, and nothing comes any more."""
        while True:
            await asyncio.sleep(self._silence / 4)
            for visitor in list(self._visitors.values()):
                if visitor.site and time.monotonic() - visitor.heard > self._silence:
                    _send_away(visitor)

    async def _accept(self, listener: socket.socket) -> None:
        while True:
            try:
                outer, address = await self._loop.sock_accept(listener)
            except OSError as error:
                if error.errno in _NO_ROOM:  # the owner has opened more files than it was expected to
                    await self._make_room(self.strangers // 2)
                    await asyncio.sleep(_PAUSE_SECONDS)
                continue
            await self._make_room(self.strangers - 1)
            self._number += 1
            visitor = Visitor(self._number, _network(address[0]), outer)
            self._visitors[visitor.number] = visitor
            visitor.task = asyncio.create_task(self._attend(visitor))
            visitor.task.add_done_callback(partial(self._forget, visitor))

    def _forget(self, visitor: Visitor, _: object) -> None:
        del self._visitors[visitor.number]
        visitor.outer.close()

    async def _make_room(self, places: int) -> None:
        """Send strangers away until at most so many are left."""
        while len(strangers := [visitor for visitor in self._visitors.values() if not visitor.site]) > places:
            ((heaviest, _),) = Counter(visitor.address for visitor in strangers).most_common(1)
            oldest = next(visitor for visitor in strangers if visitor.address == heaviest)
            _send_away(oldest)
            if oldest.task is not None:
                await asyncio.wait([oldest.task])
            await asyncio.sleep(0)  # its place is free once the task's callbacks have run

    async def _attend(self, visitor: Visitor) -> None:
        with suppress(OSError, TimeoutError):
            _prepare(visitor.outer)
            async with asyncio.timeout(GREETING_SECONDS) as visitor.clock:
                first = await self._loop.sock_recv(visitor.outer, STRANGERS_BUFFER)
                if first:  # a stranger that says nothing costs gRPC nothing
                    with socket.socket(socket.AF_UNIX) as inner:
                        await self._dial(inner, visitor.number)
                        await self._loop.sock_sendall(inner, first)
                        await self._relay(visitor, inner)

    async def _dial(self, inner: socket.socket, number: int) -> None:
        own = f"{self._path.removesuffix('grpc')}{number}"
        inner.setblocking(False)
        inner.bind(own)
        try:
            await self._loop.sock_connect(inner, self._path)
        finally:
            os.unlink(own)

    async def _relay(self, visitor: Visitor, inner: socket.socket) -> None:
        """Hand bytes on both ways until one side ends."""
        ended = self._loop.create_future()
        both = ((visitor.outer, inner), (inner, visitor.outer))
        visitor.ways = tuple(Way(self._loop, visitor, *way, self._buffer, self._named, ended) for way in both)
        try:
            for way in visitor.ways:
                way.go_on()
            await ended
        finally:
            for way in visitor.ways:
                way.close()  # before the sockets are


def round_trip(connection: socket.socket) -> float | None:
    """The kernel's estimate in seconds; None where it has none."""
    with suppress(OSError, AttributeError):  # closed just now; not Linux
        told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, _TCP_INFO_BYTES)
        return int.from_bytes(told[_RTT : _RTT + 4], sys.byteorder) / 1e6 or None
    return None


def _send_away(visitor: Visitor) -> None:
    if visitor.task is not None:
        visitor.task.cancel()


def _prepare(outer: socket.socket) -> None:
    outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    if hasattr(socket, "TCP_USER_TIMEOUT"):  # Linux: a peer that takes nothing any more does not stay for ever
        outer.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _UNHEARD_MILLISECONDS)


def _network(address: str) -> str:
    """The part of an address that a stranger cannot choose at will: all of IPv4, the upper half of IPv6."""
    found = ipaddress.ip_address(address.partition("%")[0])
    if isinstance(found, ipaddress.IPv6Address) and found.ipv4_mapped is None:
        return found.exploded[:19]
    return str(getattr(found, "ipv4_mapped", None) or found)


def _places(sites: int) -> int:
    """The number of strangers' connections that fit beside those of the sites and the owner's own files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    reserved = len(os.listdir("/dev/fd")) + _FILES_OF_THE_OWNER + _FILES_EACH * CONNECTIONS * sites
    needed = reserved + _FILES_EACH * _FEWEST_STRANGERS
    if resource.RLIM_INFINITY not in (soft, hard) and hard < needed:
        raise ConfigError(
            f"this process may open {hard} files and {sites} sites need {needed}; raise the limit (ulimit -n {needed}) "
            "and start again"
        )
    if soft == resource.RLIM_INFINITY:
        return STRANGERS
    if soft < needed:
        resource.setrlimit(resource.RLIMIT_NOFILE, (needed, hard))
        soft = needed
    return min(STRANGERS, (soft - reserved) // _FILES_EACH)


def _listen(host: str, port: int) -> list[socket.socket]:
    """A listening socket for each address of the host, all at one port."""
    listeners: list[socket.socket] = []
    problem: OSError | None = None
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except OSError as error:
        found, problem = [], error
    for family, _, _, _, address in dict.fromkeys(found):
        listener = socket.socket(family, socket.SOCK_STREAM)
        try:
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(host != "::"))
            listener.bind((address[0], port, *address[2:]))
            listener.listen(STRANGERS)
        except OSError as error:  # this computer may lack one of the two kinds of address
            listener.close()
            problem = error
            continue
        listener.setblocking(False)
        port = listener.getsockname()[1]
        listeners.append(listener)
    if listeners and (problem is None or problem.errno != errno.EADDRINUSE):
        return listeners
    for listener in listeners:
        listener.close()
    if problem is not None and problem.errno == errno.EADDRINUSE:
        raise ConfigError(
            f"port {port} on {host} is in use by another program; choose another port, or 0 for a free one"
        )
    why = problem.strerror if problem is not None else "no such address"
    raise ConfigError(f"cannot listen on {host} port {port} ({why}); choose an address of this computer")
