"""The coordinator's mailbox: opaque messages from and to clients, over gRPC and TLS on one port.

The client is whom its certificate names (or, where a load balancer ends TLS, whom its proof names, see
`secagg.rpc.proof`); a name that is not allowed gets nothing but a refusal. Messages from one client are delivered
exactly once and in order; messages to it are kept until it has acknowledged them. What arrived of a message before a
cut is not sent again. It must never look into a message, wait for one client before serving another, or hold more for a
client than its budget (`secagg.rpc.peer`). A newer call ends the one that it replaces at once. Strangers get places of
their own, see `secagg.rpc.door`; large uploads take turns, see `secagg.rpc.turns`.

A client's process announces itself with fresh bytes, its session. The owner learns of it, and of its end, through
`Received` of three kinds: "hello" (a new process; what was sent to the earlier one is dropped), "gone" (the connection
broke and did not come back) and "back" (the same process returned; nothing was lost).
"""

import asyncio
import time
from collections.abc import AsyncIterator, Collection
from contextlib import suppress
from types import TracebackType
from typing import Any, NoReturn, TypeAlias

import grpc
from grpc import aio
from grpc_health.v1 import health_pb2_grpc

from secagg.errors import ConfigError
from secagg.rpc import frames
from secagg.rpc.door import Door
from secagg.rpc.frames import BACK, GONE, HELLO, Message, Received, Traffic
from secagg.rpc.pace import Link
from secagg.rpc.peer import Peer, cost, end
from secagg.rpc.probe import TellingHealth
from secagg.rpc.proof import MTLS, TLS, Pinned, fresh_challenge
from secagg.rpc.tls import ServerTls, last_moment, site_named_by
from secagg.rpc.transport_pb2 import Frame, Greeting, Position, Welcome
from secagg.rpc.turns import Turns

Context: TypeAlias = "aio.ServicerContext[Any, Any]"

UPLOADS_BYTES = 64 << 20
"""Of large uploads at full speed and unread messages of all sites together, unless two of the largest take more."""

_FLUSH_SECONDS = 5.0
_STOP_SECONDS = 0.2
_LOOK_SECONDS = 1.0
_READ_AHEAD_BYTES = 512 << 10  # of each call; over a round trip of two seconds 256 KB/s
_PROOF_SECONDS = 30.0
_PING_MILLISECONDS = 600_000  # an answer may be behind megabytes; that no byte comes is found by the keep-alive


class MailboxServer:
    """A mailbox for a fixed set of clients.

    Args:
        allowed: client ids, compared with the common name of a client's certificate.
        tls: the coordinator's credentials; files that are renewed while this runs are read again.
        max_message_bytes: larger messages are refused; see `frames.message_limit`.
        gone_after: seconds after a broken connection until the owner is told "gone".
        poll_seconds: seconds after which an idle long poll is renewed; a client that does not renew it for as long
            again is gone, too.
        keepalive: after so many seconds without a byte a client is asked for a sign of life; a connection that gives
            none for as long again is broken, though nobody closed it.
        pinned: the clients prove who they are with these keys, and show no certificate: mode "tls", where a load
            balancer ends TLS. Without it the mode is "mtls".
    """

    def __init__(
        self,
        allowed: Collection[str],
        tls: ServerTls,
        *,
        max_message_bytes: int = frames.DEFAULT_LIMIT,
        gone_after: float = 2.0,
        poll_seconds: float = frames.POLL_SECONDS,
        keepalive: float = frames.KEEPALIVE_SECONDS,
        pinned: Pinned | None = None,
    ) -> None:
        self._peers = {client_id: Peer(client_id, max_message_bytes) for client_id in sorted(allowed)}
        self.tls = tls
        self._limit = max_message_bytes
        self._gone_after = gone_after
        self._poll_seconds = poll_seconds
        self._keepalive = keepalive
        self._pinned = pinned
        self._inbox: asyncio.Queue[tuple[Peer, bytes, Received]] = asyncio.Queue()
        self._unread = 0
        self._turns = Turns(max(UPLOADS_BYTES, 2 * max_message_bytes), lambda: self._unread)
        self._looked = 0.0
        self._server: aio.Server | None = None
        self._door: Door | None = None

    async def start(self, host: str, port: int) -> int:
        """Listen, and return the port (a free one where 0 was given).

        Args:
            host: the address of this computer to listen at; "0.0.0.0" or "::" for all of them.
            port: which.

        Raises:
            ConfigError: the port is in use, the address is not this computer's, or this process may open too few
                files for its sites; says what to do.
        """
        named, silence = self._pinned is None, 3 * self._keepalive
        self._door = Door(host, port, len(self._peers), named, silence)
        credentials = self._credentials()
        self._server = server = aio.server(options=self._options())
        server.add_generic_rpc_handlers([self._handlers()])
        health_pb2_grpc.add_HealthServicer_to_server(TellingHealth(MTLS if named else TLS, self._refusal), server)
        try:
            server.add_secure_port(self._door.inner, credentials)
            await server.start()
            self._door.open()
        except BaseException:
            await self._end()  # one that was not stopped may hang the interpreter
            raise
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
            peer.stay()

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
        peer.unread -= cost(received.payload)
        self._unread -= cost(received.payload)
        if received.kind == HELLO:
            peer.forget()
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
        if not peer.post(kind, payload):
            self._dismiss(peer)

    def forget(self, client_id: str) -> None:
        """Drop every message that is queued for a client and that it has not acknowledged."""
        self._peer(client_id).forget()

    def connected(self) -> set[str]:
        """The clients whose process is there: they said hello and are not gone."""
        return {client_id for client_id, peer in self._peers.items() if peer.present}

    def traffic(self, client_id: str) -> Traffic:
        """Bytes exchanged with a client so far."""
        peer = self._peer(client_id)
        return Traffic(peer.up, peer.down)

    def link(self, client_id: str) -> Link:
        """How a client's line is doing: for status pages, and for deadlines that wait while something moves."""
        peer = self._peer(client_id)
        visit = self._door.visit(client_id) if self._door is not None else None
        return Link(
            connected=peer.present,
            since=peer.since,
            heard=visit.heard if visit else None,
            address=visit.address if visit else "",
            rtt=visit.rtt if visit else None,
            tls=visit.tls if visit else "",
            certificate_ends=peer.certificate_ends,
            up=peer.up,
            down=peer.down,
            held=peer.held,
            rate_up=peer.pace_up.rate,
            rate_down=peer.pace_down.rate,
            uploading=peer.uploading,
            downloading=peer.downloading if peer.present else None,
        )

    def _peer(self, client_id: str) -> Peer:
        if client_id not in self._peers:
            raise ConfigError(f"client {client_id!r} is not one of {', '.join(self._peers)}")
        return self._peers[client_id]

    def _credentials(self) -> grpc.ServerCredentials:
        """Read again, on every handshake, where the files were renewed."""

        def configuration() -> Any:
            """Key and certificate as they are now."""
            return grpc.ssl_server_certificate_configuration([(self.tls.key, self.tls.certificate)], self.tls.authority)

        told = self.tls

        def renewed() -> Any:
            """The configuration for the next connection, None where it is still the same."""
            nonlocal told
            self._renew()
            if told is self.tls:
                return None  # go on with what there is
            told = self.tls
            return configuration()

        return grpc.dynamic_ssl_server_credentials(
            configuration(), renewed, require_client_authentication=self._pinned is None
        )

    def _renew(self) -> None:
        """Look, once a second at most, whether the files of the credentials or the list of revoked ones changed."""
        now = time.monotonic()
        if now - self._looked >= _LOOK_SECONDS:
            self._looked = now
            self.tls = self.tls.renewed()

    def _options(self) -> list[tuple[str, int]]:
        # A client needs three calls: a greeting, an upload and a long poll. A load balancer joins those of many.
        calls = 4 if self._pinned is None else 4 * (len(self._peers) + 1)
        milliseconds = int(self._keepalive * 1000)
        return [
            ("grpc.max_receive_message_length", frames.FRAME_BYTES),
            ("grpc.max_send_message_length", frames.FRAME_BYTES),
            ("grpc.max_concurrent_streams", calls),
            # What gRPC reads ahead for each has a fixed size.
            ("grpc.http2.bdp_probe", 0),
            ("grpc.http2.lookahead_bytes", _READ_AHEAD_BYTES),
            ("grpc.keepalive_time_ms", milliseconds),
            ("grpc.keepalive_timeout_ms", milliseconds),
            ("grpc.http2.ping_timeout_ms", _PING_MILLISECONDS),
            ("grpc.http2.min_recv_ping_interval_without_data_ms", milliseconds // 2),
        ]

    def _handlers(self) -> "grpc.GenericRpcHandler[Any, Any]":
        shape = grpc.stream_stream_rpc_method_handler
        return grpc.method_handlers_generic_handler(
            frames.SERVICE,
            {
                "Hello": shape(self._hello, Greeting.FromString, Welcome.SerializeToString),
                "Send": shape(self._send, Frame.FromString, Position.SerializeToString),
                "Receive": shape(self._receive, Position.FromString, Frame.SerializeToString),
            },
        )

    # --- Who calls ----------------------------------------------------------------------------------------------------

    async def _hello(self, greetings: AsyncIterator[Greeting], context: Context) -> None:
        if self._pinned is None:
            peer = await self._certified(context)
        greeting = await anext(greetings, Greeting())
        if greeting.version != frames.VERSION:
            await _refuse(
                context,
                grpc.StatusCode.FAILED_PRECONDITION,
                f"it speaks transport {frames.VERSION} and this site {greeting.version}; install the same release",
            )
        if len(greeting.session) != frames.SESSION_BYTES:
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, f"a session has {frames.SESSION_BYTES} bytes")
        if self._pinned is not None:
            peer = await self._proven(self._pinned, greeting, greetings, context)
        if greeting.session in peer.retired:
            await _replaced(context)
        if greeting.session != peer.session:
            await self._room(peer, context)
            peer.begin(greeting.session)
            self._deliver(peer, HELLO)
            self._expect(peer, self._poll_seconds)
        await context.write(Welcome(max_message_bytes=self._limit))

    async def _certified(self, context: Context) -> Peer:
        """The allowed client that the certificate names; its connection is a stranger's no longer."""
        pem = _shown_by(context)
        try:
            peer = self._named_by(pem)
        except ValueError as error:
            await _refuse(context, grpc.StatusCode.PERMISSION_DENIED, f"the certificate {error}")
        peer.certificate_ends = last_moment(pem)
        self._admit(peer, context)
        return peer

    def _named_by(self, pem: bytes) -> Peer:
        """The client that a certificate allows; ValueError if it is let in no more: goes on from "the certificate"."""
        self._renew()
        name = site_named_by(pem, self.tls.revoked)
        if name not in self._peers:
            raise ValueError(f"is for {name!r}, which is not one of the sites of this study")
        return self._peers[name]

    def _refusal(self, context: Context) -> str:
        """What a greeting would be refused with, for the certificate that was shown; "" for nothing."""
        try:
            if self._pinned is None:
                self._named_by(_shown_by(context))
        except ValueError as error:
            return f"the certificate {error}"
        return ""

    async def _proven(
        self, pinned: Pinned, greeting: Greeting, greetings: AsyncIterator[Greeting], context: Context
    ) -> Peer:
        """The allowed client that answers a fresh challenge with its pinned key; a claim alone changes nothing."""
        challenge = fresh_challenge()
        await context.write(Welcome(challenge=challenge))
        try:
            async with asyncio.timeout(_PROOF_SECONDS):
                answer = await anext(greetings, Greeting())
        except TimeoutError:
            await _refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, "no proof came")
        peer = self._peers.get(greeting.client_id)
        if peer is None or not pinned.proves(peer.client_id, greeting.session, challenge, answer.proof):
            await _refuse(
                context,
                grpc.StatusCode.PERMISSION_DENIED,
                f"{greeting.client_id!r} did not prove itself with a key that is pinned here",
            )
        self._admit(peer, context)
        return peer

    async def _current(self, context: Context) -> Peer:
        """The caller, if the call comes from its present process."""
        session = dict(context.invocation_metadata() or ()).get(frames.SESSION_KEY, b"")
        if self._pinned is None:
            peer = await self._certified(context)
        else:
            peers = self._peers.values()
            found = next((peer for peer in peers if session and session in (peer.session, *peer.retired)), None)
            peer = found or await _unknown(context)
            self._admit(peer, context)
        if session in peer.retired:
            await _replaced(context)
        if not session or session != peer.session:
            await _unknown(context)
        if not peer.present:
            await self._room(peer, context)
            peer.turn_up(True)
            self._deliver(peer, BACK)
            self._expect(peer, self._poll_seconds)
        return peer

    def _admit(self, peer: Peer, context: Context) -> None:
        if self._door is not None:
            self._door.admit(context.peer(), peer.client_id)

    # --- What comes ---------------------------------------------------------------------------------------------------

    async def _send(self, stream: AsyncIterator[Frame], context: Context) -> None:
        """Messages, one after the other, in one call of a site at a time, which ends where nothing comes for long."""
        peer = await self._current(context)
        mine: asyncio.Timeout | None = None
        try:
            async with asyncio.timeout(frames.STALL_SECONDS) as mine:
                end(peer.upload)
                peer.upload = mine
                async for head in stream:
                    await self._current(context)  # a certificate may have been revoked since the message before
                    _go_on(peer, mine)
                    await self._take(peer, head, stream, context, mine)
                    self._turns.done(mine)
                    await context.write(Position(sequence=peer.arrived))
        except ValueError as error:
            peer.partial.close()
            await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, str(error))
        except TimeoutError:
            if peer.upload is not mine:
                await _refuse(context, grpc.StatusCode.CANCELLED, "a newer call took over")
            await _refuse(context, grpc.StatusCode.DEADLINE_EXCEEDED, "the upload stood still")
        finally:
            self._turns.done(mine)
            if peer.upload is mine:
                peer.upload = None

    async def _take(
        self, peer: Peer, head: Frame, stream: AsyncIterator[Frame], context: Context, mine: asyncio.Timeout
    ) -> None:
        """Read the rest of one message and deliver it, unless it was delivered before or there is no room for it."""
        peer.partial.begin_call()
        peer.up += head.ByteSize()
        if 0 < head.sequence <= peer.arrived:
            return
        message = await self._announced(peer, head, context)
        if message is None:
            await self._turn(peer, context, mine)
            peer.pace_up.begin()
            message = await self._rest(peer, stream, context, mine)
        peer.arrived = message.sequence
        self._deliver(peer, message.kind, message.payload)

    async def _announced(self, peer: Peer, head: Frame, context: Context) -> Message | None:
        """What a call's first frame of a message says: a small one is whole by now."""
        began = peer.partial.have
        message = peer.partial.add(head)
        if head.sequence != peer.arrived + 1:
            raise ValueError(f"message {head.sequence} came after message {peer.arrived}")
        if head.kind in frames.NEWS:
            raise ValueError(f"kind {head.kind!r} is reserved")
        if not began and not peer.has_room(head.size):
            peer.partial.close()
        await self._room(peer, context, head.size)
        return message

    async def _rest(self, peer: Peer, stream: AsyncIterator[Frame], context: Context, mine: asyncio.Timeout) -> Message:
        """The message, once all of it has come; what has come is told after each frame."""
        await context.write(Position(sequence=peer.arrived, offset=peer.partial.have))
        async for frame in stream:
            _go_on(peer, mine)
            peer.up += frame.ByteSize()
            before = peer.partial.have
            if (message := peer.partial.add(frame)) is not None:
                return message
            peer.pace_up.progress(peer.partial.have - before)
            await context.write(Position(sequence=peer.arrived, offset=peer.partial.have))
        # Mostly because the connection broke: what has arrived stays for the next call.
        return await _refuse(context, grpc.StatusCode.INVALID_ARGUMENT, "the stream ended inside a message")

    async def _turn(self, peer: Peer, context: Context, mine: asyncio.Timeout) -> None:
        """Wait until the upload that was announced may begin, and show meanwhile that it is not forgotten."""
        waiting = asyncio.create_task(self._turns.wait(mine, peer.partial.size - peer.partial.have))
        try:
            while not (await asyncio.wait({waiting}, timeout=frames.ALIVE_SECONDS))[0]:
                _go_on(peer, mine)
                await context.write(Position(sequence=peer.arrived, offset=peer.partial.have, waiting=True))
            _go_on(peer, mine)
        finally:
            waiting.cancel()

    async def _room(self, peer: Peer, context: Context, size: int = 0) -> None:
        """Refuse a message that does not fit beside what the owner has not read yet."""
        if not peer.has_room(size):
            await _refuse(context, grpc.StatusCode.RESOURCE_EXHAUSTED, "earlier messages are not read yet")

    def _deliver(self, peer: Peer, kind: str, payload: bytes = b"") -> None:
        received = Received(peer.client_id, kind, payload)
        peer.unread += cost(payload)
        self._unread += cost(payload)
        self._inbox.put_nowait((peer, peer.session, received))

    # --- What goes ----------------------------------------------------------------------------------------------------

    async def _receive(self, positions: AsyncIterator[Position], context: Context) -> None:
        peer = await self._current(context)
        peer.stay()
        mine: asyncio.Timeout | None = None
        reader: asyncio.Task[None] | None = None
        patience = self._gone_after
        try:
            async with asyncio.timeout(None) as mine:
                end(peer.poll)
                peer.poll = mine
                position = await anext(positions, Position())
                peer.acknowledge(position.sequence, position.offset)
                reader = asyncio.create_task(_acknowledge_all(peer, mine, positions))
                await self._push(peer, position, context)
                patience = self._poll_seconds
        except TimeoutError:  # a newer call took over
            pass
        finally:
            if reader is not None:
                reader.cancel()
            if peer.poll is mine:
                peer.poll = None
                self._expect(peer, patience)
                if patience != self._poll_seconds:
                    peer.pace_down.broke()

    async def _push(self, peer: Peer, position: Position, context: Context) -> None:
        """Send what is queued, in order, from where the client is, until the poll is idle for its time."""
        sent, offset = position.sequence, position.offset
        while True:
            peer.changed.clear()
            message = peer.after(sent) if peer.greeted == peer.session else None
            if message is None:
                offset = 0
                if not await self._news(peer, context):
                    return
                continue
            if message.sequence != sent + 1 or offset > len(message.payload):
                offset = 0  # of a message that was dropped meanwhile
            if peer.queue[0] is message:
                peer.pace_down.begin()
            for frame in message.frames(offset, peer.pace_down):
                peer.down += frame.ByteSize()  # before the reader can have it
                await context.write(frame)
            sent, offset = message.sequence, 0

    async def _news(self, peer: Peer, context: Context) -> bool:
        """Wait until there may be something to send; False after the poll's time. Meanwhile signs of life go out."""
        loop = asyncio.get_running_loop()
        over = loop.time() + self._poll_seconds
        while (left := over - loop.time()) > 0:
            with suppress(TimeoutError):
                async with asyncio.timeout(min(left, self._keepalive)):
                    await peer.changed.wait()
                    return True
            await context.write(Frame())
        return False

    def _dismiss(self, peer: Peer) -> None:
        """End the session of a client that does not take what it is sent."""
        peer.forget()
        peer.session = b""
        peer.end_calls()
        peer.stay()
        self._depart(peer)

    def _expect(self, peer: Peer, seconds: float) -> None:
        """Tell the owner that the client is gone unless a long poll of it begins within so many seconds."""
        peer.stay()
        peer.farewell = asyncio.get_running_loop().call_later(seconds, self._depart, peer)

    def _depart(self, peer: Peer) -> None:
        if peer.poll is None and peer.present:
            peer.turn_up(False)
            self._deliver(peer, GONE)


async def _acknowledge_all(peer: Peer, mine: asyncio.Timeout, positions: AsyncIterator[Position]) -> None:
    async for position in positions:
        if peer.poll is not mine:
            return
        peer.acknowledge(position.sequence, position.offset)


def _go_on(peer: Peer, mine: asyncio.Timeout) -> None:
    """The upload moves: it has its time again, unless a newer call took over."""
    if peer.upload is not mine or mine.expired():
        raise TimeoutError
    mine.reschedule(asyncio.get_running_loop().time() + frames.STALL_SECONDS)


def _shown_by(context: Context) -> bytes:
    return b"".join(map(bytes, context.auth_context().get("x509_pem_cert", ())))


async def _refuse(context: Context, code: grpc.StatusCode, why: str) -> NoReturn:
    await context.abort(code, why, (frames.OURS,))
    raise AssertionError("gRPC ends the call")


async def _replaced(context: Context) -> NoReturn:
    await _refuse(context, grpc.StatusCode.ABORTED, "another process with this certificate has connected since")


async def _unknown(context: Context) -> NoReturn:
    await _refuse(context, grpc.StatusCode.NOT_FOUND, "this session is not known here")
