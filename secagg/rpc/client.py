"""A site's mailbox: opaque messages to and from the coordinator, over gRPC and TLS.

Every connection is begun here, so that a hospital opens no port. What is sent arrives exactly once and in order while
the coordinator's process lives, however often the connection breaks, and goes on at the byte where it broke. Whatever
may pass is waited out, for ever unless told otherwise: a network that is down, a middlebox that answers instead, a
certificate that is being renewed, this process's own suspension, a coordinator that restarts. `trouble` says meanwhile
in a sentence what is wrong. What cannot pass ends in one sentence within seconds: a name that is not in the study,
another release, another process of this site. It must never look into a message.

A coordinator that restarted knows nothing of what was said before. This mailbox greets it anew, repeats what `send` has
not returned for, and delivers a message of kind "hello": the owner says again what the new process must know.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from threading import Thread
from types import TracebackType
from typing import Any, TypeVar

import grpc
from grpc import aio

from secagg.errors import AbortedError, ConfigError, IllegalTransitionError, SecAggError
from secagg.printable import dialled, printable
from secagg.rpc import frames
from secagg.rpc.frames import HELLO, Assembler, Message, Received, Traffic
from secagg.rpc.pace import Pace, Transfer
from secagg.rpc.proof import Prover
from secagg.rpc.proxy import proxy_for
from secagg.rpc.tls import ClientTls, diagnose
from secagg.rpc.transport_pb2 import Frame, Greeting, Position, Welcome

_ROUND = "transport"
_HELLO_SECONDS = 30.0
_SILENCE_SECONDS = frames.STALL_SECONDS
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0, 2.0)
_LATER_PAUSE = 5.0
_TROUBLE_SECONDS = 2.0
_DIAGNOSE_EVERY = 10.0
_LONGEST_ATTEMPT = _SILENCE_SECONDS + _LATER_PAUSE
_UNREAD_MESSAGES = 16
_BROKE = "Internal error from Core"
"""All that gRPC says of a call whose connection broke while something was written to it."""
_random = secrets.SystemRandom()
T = TypeVar("T")


class _ForgottenError(Exception):
    """The coordinator does not know this session: it restarted, or let go of a site that read nothing."""


class MailboxClient:
    """The mailbox of one process of one site.

    Args:
        address: ``host:port`` of the coordinator.
        client_id: this site's id, which its certificate must name.
        tls: this site's credentials; files that are renewed while this runs are read again.
        patience: seconds without any answer after which the coordinator is given up; None for never.
        max_message_bytes: larger messages from the coordinator are refused; see `frames.message_limit`.
        keepalive: after so many seconds without a byte the coordinator is asked for a sign of life; a connection that
            gives none for as long again is broken, though nobody closed it.
        proxy: an HTTP proxy, "" for none, None for what the environment says; see `secagg.rpc.proxy.proxy_for`.
        prover: this site's signing key, for a coordinator behind a load balancer that ends TLS.
        on_trouble: called with a sentence where the coordinator has not answered for two seconds, again where the
            reason is another, and with "" once it answers.

    Raises:
        ConfigError: the address or the proxy's is malformed, or the certificate is another site's.
    """

    def __init__(
        self,
        address: str,
        client_id: str,
        tls: ClientTls,
        *,
        patience: float | None = None,
        max_message_bytes: int = frames.DEFAULT_LIMIT,
        keepalive: float = frames.KEEPALIVE_SECONDS,
        proxy: str | None = None,
        prover: Prover | None = None,
        on_trouble: Callable[[str], None] | None = None,
    ) -> None:
        if tls.name != client_id:
            raise ConfigError(f"the certificate is for {tls.name!r} and this site is {client_id!r}; use its own")
        self._host, self._port = _split(address)
        self._where = f"the coordinator at {address}"
        self._proxy = proxy_for(self._host, proxy)
        self._client_id = client_id
        self.tls = tls
        self.trouble = ""
        self._patience = patience
        self._limit = max_message_bytes
        self._keepalive = keepalive
        self._prover = prover
        self.on_trouble = on_trouble
        self._begin_session()
        self._server_limit = 0
        self._outbox: deque[tuple[int, str, bytes]] = deque()
        self._inbox: deque[Received] = deque()
        self._posted = self._acknowledged = 0
        self._up = self._down = 0
        self._pace_up, self._pace_down = Pace(), Pace()
        self._sent = 0
        self._changed = asyncio.Condition()
        self._failure: Exception | None = None
        self._channel: aio.Channel | None = None
        self._sending: Any = None  # the call for what is sent, while it lasts
        self._polling: Any = None  # the call for what comes
        self._running: asyncio.Task[None] | None = None
        self._silent = self._counted = 0.0
        self._reason, self._diagnosed = "", -_DIAGNOSE_EVERY
        self._diagnosis: asyncio.Future[str] | None = None

    async def connect(self) -> None:
        """Wait until the coordinator has answered; `send` and `receive` do so by themselves.

        Raises:
            ConfigError: the coordinator refuses this site; says what to do.
            AbortedError: nothing answers within `patience`.
        """
        if self._running is None:
            self._check_open()
            self._channel = self._open_channel()
            self._running = asyncio.create_task(self._run())
        await self._until(lambda: self._server_limit > 0)

    async def send(self, kind: str, payload: bytes) -> None:
        """Hand a message over; returns when the coordinator has it. A cancelled call still sends.

        A message that a coordinator took just before it died may come to its successor again.

        Raises:
            ConfigError: as `connect`, or the coordinator accepts no such kind or size.
            AbortedError: as `connect`.
        """
        await self.connect()
        self._check_open()
        if len(payload) > self._server_limit:
            raise ConfigError(
                f"message {kind} has {len(payload)} bytes and {self._where} accepts {self._server_limit}; "
                "site and coordinator must run the same study"
            )
        self._posted += 1
        mine = self._posted
        self._outbox.append((mine, kind, payload))
        await self._announce()
        await self._until(lambda: self._acknowledged >= mine)

    async def receive(self, timeout: float | None = None) -> Received | None:
        """The next message (its sender is ""), or None after `timeout` seconds; None waits for ever.

        Raises:
            ConfigError: as `connect`.
            AbortedError: as `connect`.
        """
        try:
            async with asyncio.timeout(timeout):
                await self.connect()
                await self._until(lambda: bool(self._inbox))
        except TimeoutError:
            return None
        received = self._inbox.popleft()
        await self._announce()
        return received

    async def close(self) -> None:
        """End all connections; what `send` has returned for is with the coordinator."""
        if self._failure is None:
            self._failure = IllegalTransitionError("this mailbox was closed; make a new one")
        if self._running is not None:
            self._running.cancel()
            with suppress(asyncio.CancelledError):
                await self._running
        if self._channel is not None:
            await self._channel.close(None)

    async def __aenter__(self) -> "MailboxClient":
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.close()

    @property
    def traffic(self) -> Traffic:
        """Bytes exchanged with the coordinator so far."""
        return Traffic(self._up, self._down)

    @property
    def uploading(self) -> Transfer | None:
        """The message that is on its way to the coordinator."""
        if not self._outbox:
            return None
        _, kind, payload = self._outbox[0]
        return self._pace_up.transfer(kind, len(payload), self._sent)

    @property
    def downloading(self) -> Transfer | None:
        """The message that is on its way from the coordinator."""
        partial = self._partial
        return self._pace_down.transfer(partial.kind, partial.size, partial.have) if partial.kind else None

    def _check_open(self) -> None:
        if self._failure is not None:
            raise self._failure

    async def _announce(self) -> None:
        async with self._changed:
            self._changed.notify_all()

    async def _until(self, ready: Callable[[], bool]) -> None:
        async with self._changed:
            await self._changed.wait_for(lambda: ready() or self._failure is not None)
        if not ready():
            self._check_open()

    def _begin_session(self) -> None:
        self._session = secrets.token_bytes(frames.SESSION_BYTES)
        self._metadata = ((frames.SESSION_KEY, self._session),)
        self._partial = Assembler(self._limit)
        self._arrived = self._sequence = 0

    def _open_channel(self) -> aio.Channel:
        tls = self.tls
        credentials = grpc.ssl_channel_credentials(tls.authority, tls.key or None, tls.certificate or None)
        milliseconds = int(self._keepalive * 1000)
        options: list[tuple[str, int | str]] = [
            *_OPTIONS,
            ("grpc.use_local_subchannel_pool", 1),  # a channel that is opened anew has a connection of its own
            ("grpc.keepalive_time_ms", milliseconds),
            ("grpc.keepalive_timeout_ms", milliseconds),
            ("grpc.enable_http_proxy", int(self._proxy is not None)),
        ]
        if self._proxy is not None:
            options.append(("grpc.http_proxy", self._proxy.url))
        return aio.secure_channel(dialled(self._host, self._port), credentials, options)

    async def _renew_credentials(self) -> None:
        """Go on with what the files say now; a connection that is open stays, so this is for when none is."""
        fresh = self.tls.renewed()
        if fresh is not self.tls:
            self.tls = fresh
            await self._reopen()

    async def _reopen(self) -> None:
        self._hang_up()
        if self._polling is not None:  # a channel that is closed overlooks a call that has just begun
            self._polling.cancel()
        old, self._channel = self._channel, self._open_channel()
        if old is not None:
            await old.close(None)

    async def _run(self) -> None:
        try:
            while True:
                await self._persist(self._greet)
                try:
                    async with asyncio.TaskGroup() as group:
                        group.create_task(self._upload())
                        group.create_task(self._listen())
                except* _ForgottenError:
                    self._begin_session()
                    self._inbox.append(Received("", HELLO, b""))
                    await self._announce()
                    await asyncio.sleep(_random.uniform(0.0, _PAUSES[1]))
        except ExceptionGroup as errors:
            self._failure = next((error for error in errors.exceptions if isinstance(error, SecAggError)), errors)
        except Exception as error:
            self._failure = error
        finally:
            await self._announce()

    async def _greet(self) -> None:
        call = self._method("Hello", Greeting.SerializeToString, Welcome.FromString)(timeout=_HELLO_SECONDS)
        try:
            client_id = self._client_id if self._prover is not None else ""
            await call.write(Greeting(version=frames.VERSION, session=self._session, client_id=client_id))
            welcome = await _answer(call, Welcome)
            if welcome.challenge:
                proof = self._proof(welcome.challenge)
                await call.write(Greeting(version=frames.VERSION, session=self._session, proof=proof))
                welcome = await _answer(call, Welcome)
        finally:
            call.cancel()
        self._server_limit = max(1, welcome.max_message_bytes)
        await self._announce()

    def _proof(self, challenge: bytes) -> bytes:
        if self._prover is None:
            raise ConfigError(f"{self._where} asks for a proof with the signing key (TLS mode tls); set this mode here")
        try:
            return self._prover.prove(self._client_id, self._session, challenge)
        except ValueError as error:
            raise ConfigError(f"{self._where} asks for something else than a proof: {error}") from None

    async def _upload(self) -> None:
        """Send what there is, in one call for as long as messages follow one another."""
        try:
            while True:
                with suppress(TimeoutError):
                    async with asyncio.timeout(frames.POLL_SECONDS if self._sending is not None else None):
                        await self._until(lambda: bool(self._outbox))
                if not self._outbox:
                    self._hang_up()
                    continue
                await self._persist(self._send_first)
                self._acknowledged, _, _ = self._outbox.popleft()
                self._sequence, self._sent = self._sequence + 1, 0
                await self._announce()
        finally:
            self._hang_up()

    def _hang_up(self) -> None:
        """End the call for what is sent; the next message begins another."""
        if self._sending is not None:
            self._sending.cancel()
            self._sending = None

    async def _send_first(self) -> None:
        """Announce the first message, and send what the coordinator does not have of it."""
        _, kind, payload = self._outbox[0]
        message = Message(self._sequence + 1, kind, payload)
        if self._sending is None:
            self._sending = self._method("Send", Frame.SerializeToString, Position.FromString)(metadata=self._metadata)
        call = self._sending
        writing: asyncio.Task[None] | None = None
        done = False
        try:
            async with asyncio.timeout(_SILENCE_SECONDS):
                await self._write(call, message.head())
            while not done:
                position = await _answer(call, Position)
                self._touch()
                done = position.sequence >= message.sequence
                if not done and position.sequence + 1 != message.sequence:
                    raise AbortedError(_ROUND, f"{self._where} lost a message; start this site again")
                if done or position.waiting:
                    continue
                if writing is None:
                    self._pace_up.begin()
                    rest = message.frames(position.offset, self._pace_up, headed=True)
                    writing = asyncio.create_task(self._write_all(call, rest))
                elif position.offset > self._sent:
                    self._pace_up.progress(position.offset - self._sent)
                self._sent = position.offset
            if writing is not None:
                await writing
        finally:
            if not done:
                self._pace_up.broke()
                self._hang_up()
            if writing is not None:
                writing.cancel()
                await asyncio.gather(writing, return_exceptions=True)

    async def _write_all(self, call: Any, rest: Iterator[Frame]) -> None:
        for frame in rest:
            await self._write(call, frame)
            await asyncio.sleep(0)  # acknowledgements are read meanwhile: they say how large the next frame is

    async def _write(self, call: Any, frame: Frame) -> None:
        self._up += frame.ByteSize()
        await call.write(frame)

    async def _listen(self) -> None:
        while True:
            await self._persist(self._poll)

    async def _poll(self) -> None:
        """One long poll: acknowledge what has arrived, take what comes, until the server ends it."""
        call = self._method("Receive", Position.SerializeToString, Frame.FromString)(metadata=self._metadata)
        self._polling = call
        partial = self._partial
        partial.begin_call()
        try:
            async with asyncio.timeout(3 * self._keepalive):
                await self._acknowledge(call)
            while True:
                async with asyncio.timeout(3 * self._keepalive):
                    frame = await call.read()
                if not isinstance(frame, Frame):
                    return
                self._touch()
                if not frame.sequence:  # a sign of life
                    continue
                self._down += frame.ByteSize()
                if partial.have == 0:
                    self._pace_down.begin()
                message = partial.add(frame)
                self._pace_down.progress(len(frame.data))
                if message is not None and message.sequence > self._arrived:
                    await self._until(lambda: len(self._inbox) < _UNREAD_MESSAGES)
                    self._arrived = message.sequence
                    self._inbox.append(Received("", message.kind, message.payload))
                    await self._announce()
                await self._acknowledge(call)
        except ValueError as error:
            raise AbortedError(_ROUND, f"{self._where} sent a malformed stream ({error}); this site stops") from None
        finally:
            call.cancel()

    async def _acknowledge(self, call: Any) -> None:
        # A call that has ended meanwhile says why in the next read.
        with suppress(asyncio.InvalidStateError):
            await call.write(Position(sequence=self._arrived, offset=self._partial.have))

    def _method(self, name: str, serialise: Callable[[Any], bytes], parse: Callable[[bytes], Any]) -> Any:
        if self._channel is None:
            raise IllegalTransitionError("this mailbox is not connected; call connect first")
        return self._channel.stream_stream(f"/{frames.SERVICE}/{name}", serialise, parse)

    async def _persist(self, attempt: Callable[[], Awaitable[None]]) -> None:
        """Repeat a call until it succeeds, waiting cannot help, or nobody has answered for `patience`.

        Only time in which this process ran and tried counts: who was suspended for a night has not waited a night.
        """
        loop, number = asyncio.get_running_loop(), 0
        while True:
            began = loop.time()
            try:
                await attempt()
            except TimeoutError:
                reason = "it fell silent"
                await self._reopen()  # maybe half-open: nobody closed it, and nothing comes any more
            except asyncio.CancelledError:
                # gRPC also raises it where the connection broke while a request was being written.
                if _cancelled():
                    raise
                reason = ""
            except asyncio.InvalidStateError:
                reason = ""
            except aio.AioRpcError as error:
                reason = await self._judge(error)
            else:
                self._touch()
                return
            if not self._silent:  # a long poll may have lain idle before
                began = loop.time()
            await self._renew_credentials()
            pause = _PAUSES[number] if number < len(_PAUSES) else _LATER_PAUSE
            number += 1
            await asyncio.sleep(pause * _random.uniform(0.5, 1.0))
            now = loop.time()
            self._silent += min(now - max(began, self._counted), _LONGEST_ATTEMPT)
            self._counted = now
            await self._wait_on(reason)

    async def _wait_on(self, reason: str) -> None:
        """Say why nothing answers; end where that has lasted too long."""
        over = self._patience is not None and self._silent > self._patience
        if over and self._diagnosis is not None:
            await self._diagnosis
        reason = reason or self._reason or "the connection broke"
        if over:
            raise AbortedError(
                _ROUND,
                f"{self._where} has not answered for {self._patience:g} s: {reason}; then start this site again",
            )
        if self._silent > _TROUBLE_SECONDS:
            self._say(f"{self._where} does not answer: {reason}; this site goes on trying")

    def _say(self, trouble: str) -> None:
        if trouble != self.trouble:
            self.trouble = trouble
            if self.on_trouble is not None:
                self.on_trouble(trouble)

    def _touch(self) -> None:
        self._silent, self._reason = 0.0, ""
        self._say("")

    async def _judge(self, error: aio.AioRpcError) -> str:
        """Why a call failed, "" if that has to be found out; raises where the coordinator's own word is final."""
        code, details = error.code(), printable(error.details())
        trailers: Any = error.trailing_metadata() or ()
        if any(tuple(trailer) == frames.OURS for trailer in trailers):
            if code is grpc.StatusCode.PERMISSION_DENIED:
                raise ConfigError(f"{self._where} does not accept this site: {details}; ask it which sites it expects")
            if code is grpc.StatusCode.ABORTED:
                raise ConfigError(f"{self._where} turned this process away: {details}; run one process per site")
            if code is grpc.StatusCode.NOT_FOUND:
                raise _ForgottenError
            if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
                raise ConfigError(f"{self._where} refused what this site sent: {details}")
            self._silent = 0.0  # it is there
            return details
        if code is grpc.StatusCode.UNIMPLEMENTED:
            return "what answers there is another kind of server, or another release; check the address and the port"
        if code is not grpc.StatusCode.UNAVAILABLE:
            return "" if details == _BROKE else details
        if self._silent:  # the first failure is tried again at once
            self._diagnose()
        return ""

    def _diagnose(self) -> None:
        """Find out now and then, beside the attempts that go on; no thread is waited for when this process ends."""
        loop = asyncio.get_running_loop()
        if self._diagnosis is not None or loop.time() - self._diagnosed < _DIAGNOSE_EVERY:
            return
        self._diagnosis = diagnosis = loop.create_future()

        def done(reason: str) -> None:
            """Keep what was found out."""
            self._reason, self._diagnosed, self._diagnosis = reason, loop.time(), None
            if not diagnosis.done():
                diagnosis.set_result(reason)

        def work() -> None:
            """Find out, in a thread of its own."""
            reason = diagnose(self._host, self._port, self.tls, self._proxy)
            with suppress(RuntimeError):  # the loop has ended meanwhile
                loop.call_soon_threadsafe(done, reason)

        Thread(target=work, name="secagg diagnosis", daemon=True).start()


def _cancelled() -> bool:
    """Tell whether somebody cancelled the current task: then a closed connection is no news."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def _answer(call: Any, shape: type[T]) -> T:
    """The next message of a call. TimeoutError where none comes; where the call failed, that."""
    async with asyncio.timeout(_SILENCE_SECONDS):
        found = await call.read()
    if isinstance(found, shape):
        return found
    raise asyncio.InvalidStateError  # ended early, and well


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"address {address!r}: write host:port, for example localhost:7443")
    return host, int(port)


_OPTIONS: list[tuple[str, int | str]] = [
    ("grpc.max_receive_message_length", frames.FRAME_BYTES),
    ("grpc.max_send_message_length", frames.FRAME_BYTES),
    # gRPC's own pauses between connection attempts grow to two minutes. One attempt may take as long as the last one
    # says, or the smallest pause if that is more: over a satellite a connection takes several seconds.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.min_reconnect_backoff_ms", 20_000),
    ("grpc.http2.ping_timeout_ms", 600_000),
]
