"""A site's mailbox: opaque messages to and from the coordinator, over gRPC with mutual TLS.

Every connection is begun here, so that a hospital opens no port. What is sent arrives exactly once and in order,
however often the connection breaks; what waiting cannot cure (a refused certificate, a name that is not in the study,
a coordinator that was restarted) ends in one sentence within seconds. It must never look into a message, and never
pass a session on to another process.
"""

import asyncio
import secrets
from collections import deque
from collections.abc import Awaitable, Callable, Iterator
from contextlib import suppress
from itertools import chain, repeat
from types import TracebackType
from typing import Any, TypeVar

import grpc
from grpc import aio

from secagg.errors import AbortedError, ConfigError, IllegalTransitionError, SecAggError
from secagg.printable import printable
from secagg.rpc import frames
from secagg.rpc.authority import LOCAL_HOSTS
from secagg.rpc.frames import Assembler, Message, Received, Traffic
from secagg.rpc.tls import ClientTls, diagnose
from secagg.rpc.transport_pb2 import Frame, Greeting, Position, Welcome

_ROUND = "transport"
_HELLO_SECONDS = 10.0
_SILENCE_SECONDS = frames.POLL_SECONDS + 10.0
_PAUSES = (0.05, 0.1, 0.2, 0.5, 1.0)
_UNREAD_MESSAGES = 16
T = TypeVar("T")


class MailboxClient:
    """The mailbox of one process of one site.

    Args:
        address: ``host:port`` of the coordinator.
        client_id: this site's id, which its certificate must name.
        tls: this site's credentials.
        patience: seconds without any answer after which the coordinator is given up.
        max_message_bytes: larger messages from the coordinator are refused; see `frames.message_limit`.

    Raises:
        ConfigError: the address is malformed, or the certificate is another site's.
    """

    def __init__(
        self,
        address: str,
        client_id: str,
        tls: ClientTls,
        *,
        patience: float = 60.0,
        max_message_bytes: int = frames.DEFAULT_LIMIT,
    ) -> None:
        if tls.name != client_id:
            raise ConfigError(f"the certificate is for {tls.name!r} and this site is {client_id!r}; use its own")
        self._host, self._port = _split(address)
        self._where = f"the coordinator at {address}"
        self._client_id = client_id
        self._tls = tls
        self._patience = patience
        self._limit = max_message_bytes
        self._session = secrets.token_bytes(frames.SESSION_BYTES)
        self._metadata = ((frames.SESSION_KEY, self._session),)
        self._server_limit = 0
        self._outbox: deque[Message] = deque()
        self._inbox: deque[Received] = deque()
        self._sequence = self._acknowledged = self._arrived = 0
        self._up = self._down = 0
        self._changed = asyncio.Condition()
        self._failure: Exception | None = None
        self._channel: aio.Channel | None = None
        self._running: asyncio.Task[None] | None = None
        self._last_contact = 0.0

    async def connect(self) -> None:
        """Wait until the coordinator has answered; `send` and `receive` do so by themselves.

        Raises:
            ConfigError: the coordinator refuses this site, or one side the other's certificate; says what to do.
            AbortedError: nothing answers within `patience`, or the coordinator was restarted meanwhile.
        """
        if self._running is None:
            self._check_open()
            self._last_contact = asyncio.get_running_loop().time()
            self._channel = self._open_channel()
            self._running = asyncio.create_task(self._run())
        await self._until(lambda: self._server_limit > 0)

    async def send(self, kind: str, payload: bytes) -> None:
        """Hand a message over; returns when the coordinator has it. A cancelled call still sends.

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
        self._sequence += 1
        sequence = self._sequence
        self._outbox.append(Message(sequence, kind, payload))
        await self._announce()
        await self._until(lambda: self._acknowledged >= sequence)

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

    def _open_channel(self) -> aio.Channel:
        credentials = grpc.ssl_channel_credentials(self._tls.authority, self._tls.key, self._tls.certificate)
        # A proxy of the environment is for the outside world, never for this computer itself.
        through_proxy = 0 if self._host in LOCAL_HOSTS else 1
        host = f"[{self._host}]" if ":" in self._host else self._host
        options = [*_OPTIONS, ("grpc.enable_http_proxy", through_proxy)]
        return aio.secure_channel(f"{host}:{self._port}", credentials, options)

    async def _run(self) -> None:
        try:
            await self._persist(self._greet)
            async with asyncio.TaskGroup() as group:
                group.create_task(self._upload())
                group.create_task(self._listen())
        except ExceptionGroup as errors:
            self._failure = next((error for error in errors.exceptions if isinstance(error, SecAggError)), errors)
        except Exception as error:
            self._failure = error
        finally:
            await self._announce()

    async def _greet(self) -> None:
        hello = self._method("unary_unary", "Hello", Greeting.SerializeToString, Welcome.FromString)
        greeting = Greeting(version=frames.VERSION, session=self._session)
        welcome = await hello(greeting, timeout=_HELLO_SECONDS)
        self._server_limit = max(1, welcome.max_message_bytes)
        await self._announce()

    async def _upload(self) -> None:
        while True:
            await self._until(lambda: bool(self._outbox))
            await self._persist(self._send_first)
            self._acknowledged = self._outbox.popleft().sequence
            await self._announce()

    async def _send_first(self) -> None:
        message = self._outbox[0]
        send = self._method("stream_unary", "Send", Frame.SerializeToString, Position.FromString)
        deadline = frames.transfer_seconds(len(message.payload))
        position = await send(self._counted(message), timeout=deadline, metadata=self._metadata)
        if position.sequence < message.sequence:
            raise AbortedError(_ROUND, f"{self._where} lost a message; start this site again")

    def _counted(self, message: Message) -> Iterator[Frame]:
        for frame in message.frames():
            self._up += frame.ByteSize()
            yield frame

    async def _listen(self) -> None:
        while True:
            await self._persist(self._poll)

    async def _poll(self) -> None:
        """One long poll: acknowledge what has arrived, take what comes, until the server ends it."""
        receive = self._method("stream_stream", "Receive", Position.SerializeToString, Frame.FromString)
        call = receive(timeout=frames.transfer_seconds(self._limit), metadata=self._metadata)
        assembler = Assembler(self._limit)
        try:
            await _acknowledge(call, self._arrived)
            while True:
                async with asyncio.timeout(_SILENCE_SECONDS):
                    frame = await call.read()
                if not isinstance(frame, Frame):
                    return
                self._touch()
                self._down += frame.ByteSize()
                message = assembler.add(frame)
                if message is not None and message.sequence > self._arrived:
                    await self._until(lambda: len(self._inbox) < _UNREAD_MESSAGES)
                    self._arrived = message.sequence
                    self._inbox.append(Received("", message.kind, message.payload))
                    await self._announce()
                    await _acknowledge(call, self._arrived)
        except ValueError as error:
            raise AbortedError(_ROUND, f"{self._where} sent a malformed stream ({error}); this site stops") from None
        finally:
            call.cancel()

    def _method(self, shape: str, name: str, serialise: Callable[[Any], bytes], parse: Callable[[bytes], Any]) -> Any:
        return getattr(self._channel, shape)(f"/{frames.SERVICE}/{name}", serialise, parse)

    async def _persist(self, attempt: Callable[[], Awaitable[T]]) -> T:
        """Repeat a call until it succeeds, waiting cannot help, or nobody has answered for `patience`."""
        pauses = chain(_PAUSES, repeat(_PAUSES[-1]))
        while True:
            try:
                result = await attempt()
            except TimeoutError:
                reason = "it fell silent"
            except asyncio.CancelledError:
                # gRPC also raises it where the connection broke while a request was being written.
                if _cancelled():
                    raise
                reason = "the connection broke"
            except aio.AioRpcError as error:
                reason = await self._judge(error)
            else:
                self._touch()
                return result
            if asyncio.get_running_loop().time() - self._last_contact > self._patience:
                raise AbortedError(
                    _ROUND,
                    f"{self._where} has not answered for {self._patience:g} s ({reason}); "
                    "check that it runs, the address and the firewall, then start this site again",
                )
            await asyncio.sleep(next(pauses))

    def _touch(self) -> None:
        self._last_contact = asyncio.get_running_loop().time()

    async def _judge(self, error: aio.AioRpcError) -> str:
        """Why a call failed, if waiting may help; raises if not."""
        code, details = error.code(), printable(error.details())
        if code is grpc.StatusCode.PERMISSION_DENIED:
            raise ConfigError(f"{self._where} does not accept this site: {details}; ask it which sites it expects")
        if code is grpc.StatusCode.ABORTED:
            raise ConfigError(f"{self._where} turned this process away: {details}; run one process per site")
        if code is grpc.StatusCode.NOT_FOUND:
            raise AbortedError(_ROUND, f"{self._where} was restarted and does not know this site; start it again")
        if code in (grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION):
            raise ConfigError(f"{self._where} refused what this site sent: {details}")
        if code is grpc.StatusCode.UNIMPLEMENTED:
            raise ConfigError(f"{self._where} is another kind of server; check the address and the port")
        if code is grpc.StatusCode.UNAVAILABLE:
            return await asyncio.to_thread(diagnose, self._host, self._port, self._tls) or "the connection broke"
        return details


def _cancelled() -> bool:
    """Tell whether somebody cancelled the current task: then a closed connection is no news."""
    task = asyncio.current_task()
    return task is None or task.cancelling() > 0


async def _acknowledge(call: Any, sequence: int) -> None:
    # A call that has ended meanwhile says why in the next read.
    with suppress(asyncio.InvalidStateError):
        await call.write(Position(sequence=sequence))


def _split(address: str) -> tuple[str, int]:
    host, _, port = address.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    if not (host and port.isdecimal() and 0 < int(port) < 65536):
        raise ConfigError(f"address {address!r}: write host:port, for example localhost:7443")
    return host, int(port)


_OPTIONS = [
    ("grpc.max_receive_message_length", frames.FRAME_BYTES),
    ("grpc.max_send_message_length", frames.FRAME_BYTES),
    # gRPC's own pauses between connection attempts grow to two minutes.
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1_000),
    ("grpc.max_reconnect_backoff_ms", 1_000),
    ("grpc.keepalive_time_ms", 15_000),
    ("grpc.keepalive_timeout_ms", 10_000),
]
