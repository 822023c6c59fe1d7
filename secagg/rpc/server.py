"""The coordinator's mailbox: opaque messages from and to clients, over gRPC with mutual TLS on one port.

The client is whom its certificate names; a name that is not allowed gets nothing but a refusal. Messages from one
client are delivered exactly once and in order; messages to it are kept until it has acknowledged them. It must never
look into a message, wait for one client before serving another, or hold more for a client than its budget: of what it
sent, unread messages and the one upload that is under way, the limit and a megabyte; of what it was sent and does not
take, `UNTAKEN` limits, beyond which it is gone. A newer call ends the one that it replaces at once. Strangers get
places of their own, see `secagg.rpc.door`.

A client's process announces itself with fresh bytes, its session. The owner learns of it, and of its end, through
`Received` of three kinds: "hello" (a new process; what was sent to the earlier one is dropped), "gone" (the connection
broke and did not come back) and "back" (the same process returned; nothing was lost).
"""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Collection
from contextlib import closing, suppress
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, NoReturn, TypeAlias

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2_grpc

from secagg.errors import ConfigError
from secagg.rpc import frames
from secagg.rpc.door import Door
from secagg.rpc.frames import BACK, CHUNK_BYTES, GONE, HELLO, Assembler, Message, Received, Traffic
from secagg.rpc.probe import TellingHealth
from secagg.rpc.tls import ServerTls, site_named_by
from secagg.rpc.transport_pb2 import Frame, Greeting, Position, Welcome

Context: TypeAlias = "aio.ServicerContext[Any, Any]"

UNTAKEN = 4
"""Limits of bytes that wait for a client which does not take them, at most."""

_COST_OF_A_MESSAGE = 4096  # beside its bytes, more than it really takes: it bounds how many there can be
_FLUSH_SECONDS = 5.0
_STOP_SECONDS = 0.2
_REMEMBERED_SESSIONS = 64


@dataclass(eq=False)
class _Peer:
    """The state of one allowed client. The numbers of the messages to it go on over all its sessions."""

    client_id: str
    session: bytes = b""
    greeted: bytes = b""
    retired: deque[bytes] = field(default_factory=lambda: deque(maxlen=_REMEMBERED_SESSIONS))
    present: bool = False
    arrived: int = 0
    unread: int = 0
    sequence: int = 0
    queue: deque[Message] = field(default_factory=deque)
    untaken: int = 0
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    poll: asyncio.Timeout | None = None
    upload: asyncio.Timeout | None = None
    farewell: asyncio.TimerHandle | None = None
    up: int = 0
    down: int = 0


class MailboxServer:
    """A mailbox for a fixed set of clients.

    Args:
        allowed: client ids, compared with the common name of a client's certificate.
        tls: the coordinator's credentials.
        max_message_bytes: larger messages are refused; see `frames.message_limit`.
        gone_after: seconds after a broken connection until the owner is told "gone".
        poll_seconds: seconds after which an idle long poll is renewed; a client that does not renew it for as long
            again is gone, too.
    """

    def __init__(
        self,
        allowed: Collection[str],
        tls: ServerTls,
        *,
        max_message_bytes: int = frames.DEFAULT_LIMIT,
        gone_after: float = 2.0,
        poll_seconds: float = frames.POLL_SECONDS,
    ) -> None:
        self._peers = {client_id: _Peer(client_id) for client_id in sorted(allowed)}
        self._tls = tls
        self._limit = max_message_bytes
        self._gone_after = gone_after
        self._poll_seconds = poll_seconds
        self._inbox: asyncio.Queue[tuple[_Peer, bytes, Received]] = asyncio.Queue()
        self._server: aio.Server | None = None
        self._door: Door | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port (a free one where 0 was given).

        Raises:
            ConfigError: the port is in use, the address is not this computer's, or this process may open too few
                files for its sites; says what to do.
        """
        self._door = Door(host, port, len(self._peers))
        server = aio.server(options=_OPTIONS)
        server.add_generic_rpc_handlers([self._handlers()])
        health_pb2_grpc.add_HealthServicer_to_server(TellingHealth(), server)
        credentials = grpc.ssl_server_credentials(
            [(self._tls.key, self._tls.certificate)], self._tls.authority, require_client_auth=True
        )
        server.add_secure_port(self._door.inner, credentials)
        await server.start()
        self._server = server
        self._door.open()
        return self._door.port

    async def stop(self, flush_seconds: float = _FLUSH_SECONDS) -> None:
        """Wait until connected clients have acknowledged what was sent to them, at most so long, then stop.

        Also where this is cancelled, at once: a server that was not stopped may hang the interpreter as it ends.
        """
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(flush_seconds):
                    for peer in self._peers.values():
                        while peer.present and peer.queue:
                            await asyncio.sleep(0.02)
        finally:
            ending = asyncio.create_task(self._end())
            try:
                await asyncio.shield(ending)
            except asyncio.CancelledError:
                await ending
                raise

    async def _end(self) -> None:
        """Stop in a fraction of a second."""
        if self._server is not None:
            await self._server.stop(_STOP_SECONDS)
        if self._door is not None:
            await self._door.close()
        for peer in self._peers.values():
            _cancel_farewell(peer)

    async def __aenter__(self) -> "MailboxServer":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop(0.0 if error else _FLUSH_SECONDS)

    async def receive(self, timeout: float | None = None) -> Received | None:
        """The next message or piece of news, or None after `timeout` seconds; None waits for ever.

        When a client's "hello" is received here, messages that were queued for it before are dropped: they were meant
        for its previous process.
        """
        try:
            async with asyncio.timeout(timeout):
                peer, session, received = await self._inbox.get()
        except TimeoutError:
            return None
        peer.unread -= _cost(received.payload)
        if received.kind == HELLO:
            self.forget(peer.client_id)
            peer.greeted = session
        return received

    def send(self, client_id: str, kind: str, payload: bytes) -> None:
        """Queue a message; it is kept, and sent again after a cut connection, until the client acknowledges it.

        A client that leaves more than `UNTAKEN` limits of bytes waiting is gone: its queue is dropped, and only a new
        process of it is served.

        Args:
            client_id: one of the allowed clients.
            kind: a short word that says what the payload is.
            payload: at most `max_message_bytes`.

        Raises:
            ConfigError: an unknown client, a kind that is no short word, or more bytes than the limit.
        """
        peer = self._peer(client_id)
        try:
            frames.check_kind(kind)
        except ValueError as error:
            raise ConfigError(f"message for {client_id}: {error}") from None
        if len(payload) > self._limit:
            raise ConfigError(
                f"message {kind} for {client_id} has {len(payload)} bytes and the limit is {self._limit}; "
                "raise max_message_bytes"
            )
        if peer.untaken + _cost(payload) > UNTAKEN * self._limit + CHUNK_BYTES:
            self._dismiss(peer)
            return
        peer.sequence += 1
        peer.queue.append(Message(peer.sequence, kind, payload))
        peer.untaken += _cost(payload)
        peer.changed.set()

    def forget(self, client_id: str) -> None:
        """Drop every message that is queued for a client and that it has not acknowledged."""
        peer = self._peer(client_id)
        peer.queue.clear()
        peer.untaken = 0

    def connected(self) -> set[str]:
        """The clients whose process is there: they said hello and are not gone."""
        return {client_id for client_id, peer in self._peers.items() if peer.present}

    def traffic(self, client_id: str) -> Traffic:
        """Bytes exchanged with a client so far."""
        peer = self._peer(client_id)
        return Traffic(peer.up, peer.down)

    def _peer(self, client_id: str) -> _Peer:
        if client_id not in self._peers:
            raise ConfigError(f"client {client_id!r} is not one of {', '.join(self._peers)}")
        return self._peers[client_id]

    def _handlers(self) -> "grpc.GenericRpcHandler[Any, Any]":
        return grpc.method_handlers_generic_handler(
            frames.SERVICE,
            {
                "Hello": grpc.unary_unary_rpc_method_handler(
                    self._hello, Greeting.FromString, Welcome.SerializeToString
                ),
                "Send": grpc.stream_unary_rpc_method_handler(self._send, Frame.FromString, Position.SerializeToString),
                "Receive": grpc.stream_stream_rpc_method_handler(
                    self._receive, Position.FromString, Frame.SerializeToString
                ),
            },
        )

    async def _hello(self, greeting: Greeting, context: Context) -> Welcome:
        peer = await self._caller(context)
        if greeting.version != frames.VERSION:
            await context.abort(
                grpc.StatusCode.FAILED_PRECONDITION,
                f"it speaks transport {frames.VERSION} and this site {greeting.version}; install the same release",
            )
        if len(greeting.session) != frames.SESSION_BYTES:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, f"a session has {frames.SESSION_BYTES} bytes")
        if greeting.session in peer.retired:
            await _replaced(context)
        if greeting.session != peer.session:
            await self._room(peer, context)
            if peer.session:
                peer.retired.append(peer.session)
            _end_calls(peer)
            peer.session, peer.arrived, peer.present = greeting.session, 0, True
            self._deliver(peer, HELLO)
            self._expect(peer, self._poll_seconds)
        return Welcome(max_message_bytes=self._limit)

    async def _send(self, stream: AsyncIterator[Frame], context: Context) -> Position:
        peer = await self._current(context)
        mine: asyncio.Timeout | None = None
        try:
            async with asyncio.timeout(frames.transfer_seconds(self._limit)) as mine:
                _end(peer.upload)
                peer.upload = mine
                await self._take(peer, stream, context)
        except ValueError as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except TimeoutError:
            if peer.upload is not mine:
                await context.abort(grpc.StatusCode.CANCELLED, "a newer call took over")
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "the message took too long")
        finally:
            if peer.upload is mine:
                peer.upload = None
        return Position(sequence=peer.arrived)

    async def _take(self, peer: _Peer, stream: AsyncIterator[Frame], context: Context) -> None:
        """Read one message and deliver it, unless it was delivered before or there is no room for it yet."""
        with closing(Assembler(self._limit)) as assembler:
            async for frame in stream:
                peer.up += frame.ByteSize()
                if 0 < frame.sequence <= peer.arrived:
                    return
                message = assembler.add(frame)
                if frame.kind:  # only the first frame has one
                    await self._room(peer, context, frame.size)
                if message is not None:
                    self._accept(peer, message)
                    return
        raise ValueError("the stream ended inside a message")

    def _accept(self, peer: _Peer, message: Message) -> None:
        if message.sequence != peer.arrived + 1:
            raise ValueError(f"message {message.sequence} came after message {peer.arrived}")
        if message.kind in frames.NEWS:
            raise ValueError(f"kind {message.kind!r} is reserved")
        peer.arrived = message.sequence
        self._deliver(peer, message.kind, message.payload)

    async def _receive(self, positions: AsyncIterator[Position], context: Context) -> None:
        peer = await self._current(context)
        _cancel_farewell(peer)
        mine: asyncio.Timeout | None = None
        reader: asyncio.Task[None] | None = None
        patience = self._gone_after
        try:
            async with asyncio.timeout(None) as mine:
                _end(peer.poll)
                peer.poll = mine
                position = await anext(positions, Position())
                _acknowledge(peer, position)
                reader = asyncio.create_task(_acknowledge_all(peer, mine, positions))
                await self._push(peer, position.sequence, context)
                patience = self._poll_seconds
        except TimeoutError:  # a newer call took over
            pass
        finally:
            if reader is not None:
                reader.cancel()
            if peer.poll is mine:
                peer.poll = None
                self._expect(peer, patience)

    async def _push(self, peer: _Peer, sent: int, context: Context) -> None:
        """Send what is queued, in order, until the poll is idle for its time."""
        while True:
            peer.changed.clear()
            message = _after(peer, sent) if peer.greeted == peer.session else None
            if message is None:
                try:
                    async with asyncio.timeout(self._poll_seconds):
                        await peer.changed.wait()
                except TimeoutError:
                    return
                continue
            for frame in message.frames():
                peer.down += frame.ByteSize()  # before the reader can have it
                await context.write(frame)
            sent = message.sequence

    async def _caller(self, context: Context) -> _Peer:
        """The allowed client that the certificate names; its connection is a stranger's no longer."""
        certificates = context.auth_context().get("x509_pem_cert", ())
        try:
            name = site_named_by(b"".join(map(bytes, certificates)), self._tls.revoked)
        except ValueError as error:
            return await context.abort(grpc.StatusCode.PERMISSION_DENIED, f"the certificate {error}")
        peer = self._peers.get(name)
        if peer is None:
            return await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"the certificate is for {name!r}, which is not one of the sites of this study",
            )
        if self._door is not None:
            self._door.admit(context.peer(), peer.client_id)
        return peer

    async def _current(self, context: Context) -> _Peer:
        """The caller, if the call comes from its present process."""
        peer = await self._caller(context)
        session = dict(context.invocation_metadata() or ()).get(frames.SESSION_KEY, b"")
        if session in peer.retired:
            await _replaced(context)
        if not session or session != peer.session:
            await context.abort(grpc.StatusCode.NOT_FOUND, "this session is not known here")
        if not peer.present:
            await self._room(peer, context)
            peer.present = True
            self._deliver(peer, BACK)
            self._expect(peer, self._poll_seconds)
        return peer

    async def _room(self, peer: _Peer, context: Context, size: int = 0) -> None:
        """Refuse a message that does not fit beside what the owner has not read yet."""
        if peer.unread and peer.unread + size + _COST_OF_A_MESSAGE > self._limit + CHUNK_BYTES:
            await context.abort(grpc.StatusCode.RESOURCE_EXHAUSTED, "earlier messages are not read yet")

    def _deliver(self, peer: _Peer, kind: str, payload: bytes = b"") -> None:
        received = Received(peer.client_id, kind, payload)
        peer.unread += _cost(payload)
        self._inbox.put_nowait((peer, peer.session, received))

    def _dismiss(self, peer: _Peer) -> None:
        """End the session of a client that does not take what it is sent."""
        self.forget(peer.client_id)
        peer.session = b""
        _end_calls(peer)
        _cancel_farewell(peer)
        self._depart(peer)

    def _expect(self, peer: _Peer, seconds: float) -> None:
        """Tell the owner that the client is gone unless a long poll of it begins within so many seconds."""
        _cancel_farewell(peer)
        peer.farewell = asyncio.get_running_loop().call_later(seconds, self._depart, peer)

    def _depart(self, peer: _Peer) -> None:
        if peer.poll is None and peer.present:
            peer.present = False
            self._deliver(peer, GONE)


def _acknowledge(peer: _Peer, position: Position) -> None:
    while peer.queue and peer.queue[0].sequence <= position.sequence:
        peer.untaken -= _cost(peer.queue.popleft().payload)


async def _acknowledge_all(peer: _Peer, mine: asyncio.Timeout, positions: AsyncIterator[Position]) -> None:
    async for position in positions:
        if peer.poll is not mine:
            return
        _acknowledge(peer, position)


def _after(peer: _Peer, sequence: int) -> Message | None:
    """The queued message that follows; those queued are numbered without a gap."""
    index = max(0, sequence + 1 - peer.queue[0].sequence) if peer.queue else 0
    return peer.queue[index] if index < len(peer.queue) else None


def _end(call: asyncio.Timeout | None) -> None:
    """End a call now, wherever it waits."""
    if call is not None and not call.expired():
        call.reschedule(0.0)


def _end_calls(peer: _Peer) -> None:
    """End the upload and the long poll of a session that is over."""
    for call in (peer.poll, peer.upload):
        _end(call)
    peer.poll = peer.upload = None
    peer.changed.set()


def _cancel_farewell(peer: _Peer) -> None:
    if peer.farewell is not None:
        peer.farewell.cancel()
        peer.farewell = None


def _cost(payload: bytes) -> int:
    return len(payload) + _COST_OF_A_MESSAGE


async def _replaced(context: Context) -> NoReturn:
    await context.abort(grpc.StatusCode.ABORTED, "another process with this certificate has connected since")


_OPTIONS = [
    ("grpc.max_receive_message_length", frames.FRAME_BYTES),
    ("grpc.max_send_message_length", frames.FRAME_BYTES),
    # A client needs three: a greeting, an upload and a long poll. What gRPC reads ahead for each has a fixed size.
    ("grpc.max_concurrent_streams", 4),
    ("grpc.http2.bdp_probe", 0),
    ("grpc.http2.lookahead_bytes", CHUNK_BYTES),
    ("grpc.keepalive_time_ms", 10_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
]
