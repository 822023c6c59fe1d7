"""The mailbox over real sockets and TLS: exactly once, in order, whoever is cut, killed, restarted or refused."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path

import grpc
import numpy as np
import pytest
from grpc_health.v1 import health_pb2, health_pb2_grpc

from secagg.errors import AbortedError, ConfigError, IllegalTransitionError
from secagg.policy import Policy
from secagg.rpc import frames
from secagg.rpc.authority import Authority
from secagg.rpc.client import MailboxClient
from secagg.rpc.demo_authority import make_certificates
from secagg.rpc.frames import Assembler, Message, Received
from secagg.rpc.pace import CHUNK_BYTES, PIECE_BYTES
from secagg.rpc.server import MailboxServer
from secagg.rpc.tls import ClientTls, ServerTls
from secagg.rpc.transport_pb2 import Frame, Greeting, Position, Welcome
from tests.support.tcp_proxy import TcpProxy

SITES = ("a", "b", "c")
LIMIT = 8 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, SITES)
    return folder


def tls_of(folder: Path, name: str = "a") -> ClientTls:
    return ClientTls.load(folder / "authority.pem", folder / f"{name}.pem", folder / f"{name}.key", [name])


def server_tls(folder: Path, name: str = "coordinator") -> ServerTls:
    return ServerTls.load(folder / "authority.pem", folder / f"{name}.pem", folder / f"{name}.key")


@asynccontextmanager
async def serving(folder: Path, allowed=("a", "b"), **options):
    server = MailboxServer(allowed, server_tls(folder), **({"max_message_bytes": LIMIT, "gone_after": 0.2} | options))
    port = await server.start("127.0.0.1", 0)
    try:
        yield server, port
    finally:
        await server.stop(0.0)


@asynccontextmanager
async def site(folder: Path, port: int, name: str = "a", **options):
    client = MailboxClient(f"127.0.0.1:{port}", name, tls_of(folder, name), **({"max_message_bytes": LIMIT} | options))
    try:
        yield client
    finally:
        await client.close()


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(bounded())


async def next_of(server: MailboxServer) -> Received:
    received = await server.receive(20)
    assert received is not None
    return received


async def failure_of(client: MailboxClient, patience: float = 1.0) -> Exception:
    client._patience = patience
    try:
        await client.connect()
    except (ConfigError, AbortedError) as error:
        return error
    finally:
        await client.close()
    raise AssertionError("the client connected")


def test_messages_both_ways_in_order(folder):
    vector = np.random.default_rng(1).bytes(3 * CHUNK_BYTES + 17)

    async def scenario() -> None:
        async with serving(folder) as (server, port), site(folder, port) as a, site(folder, port, "b") as b:
            await asyncio.gather(a.connect(), b.connect())
            assert {(await next_of(server)).sender, (await next_of(server)).sender} == {"a", "b"}
            assert server.connected() == {"a", "b"}
            await a.send("MaskedInputCollection", vector)
            await b.send("empty", b"")
            assert await next_of(server) == Received("a", "MaskedInputCollection", vector)
            assert await next_of(server) == Received("b", "empty", b"")
            for number in range(20):
                server.send("a", "count", bytes([number]))
            server.send("b", "vector", vector)
            assert [(await a.receive(20)).payload for _ in range(20)] == [bytes([n]) for n in range(20)]
            assert await b.receive(20) == Received("", "vector", vector)
            assert await a.receive(0) is None
            assert await server.receive(0) is None

    run(scenario)


def counting_calls(client: MailboxClient) -> list[str]:
    """Names of the calls that it begins from here on."""
    names, plain = [], client._method

    def method(name, *shape):
        names.append(name)
        return plain(name, *shape)

    client._method = method
    return names


def test_a_connection_that_is_made_anew_ends_the_long_poll_of_the_old_one_itself(folder, monkeypatch):
    """gRPC overlooks a call that has just begun as it closes a channel: nothing came to a site for half a minute."""

    async def scenario() -> None:
        async with serving(folder) as (_, port), site(folder, port) as a:
            await a.send("kind", b"1")
            while (poll := a._polling) is None:
                await asyncio.sleep(0.01)

            async def closes_nothing(grace: float | None) -> None:
                """As where it overlooks the call."""

            monkeypatch.setattr(a._channel, "close", closes_nothing)
            await a._reopen()
            assert poll.cancelled()
            while a._polling is poll:
                await asyncio.sleep(0.01)

    run(scenario)


def test_messages_that_follow_one_another_go_in_one_call(folder):
    sent = [bytes([number]) * size for number, size in enumerate((1, 2 * CHUNK_BYTES, 0, PIECE_BYTES, 5 << 20))]

    async def scenario() -> None:
        async with serving(folder) as (server, port), site(folder, port) as a:
            begun = counting_calls(a)
            for payload in sent:
                await a.send("k", payload)
            assert [(await next_of(server)).payload for _ in range(6)] == [b"", *sent], "a hello, then these"
            assert begun.count("Send") == 1

    run(scenario)


def test_a_call_on_which_nothing_follows_is_ended_and_the_next_message_begins_another(folder, monkeypatch):
    monkeypatch.setattr(frames, "POLL_SECONDS", 0.1)

    async def scenario() -> None:
        async with serving(folder) as (server, port), site(folder, port) as a:
            begun = counting_calls(a)
            await a.send("k", b"1")
            while a._sending is not None:
                await asyncio.sleep(0.02)
            await a.send("k", b"2")
            assert [(await next_of(server)).payload for _ in range(3)] == [b"", b"1", b"2"]
            assert begun.count("Send") == 2

    run(scenario)


@asynccontextmanager
async def silent_call(raw, session=bytes(16)):
    """A call for messages, on which none comes."""
    begin = raw.stream_stream(f"/{frames.SERVICE}/Send", Frame.SerializeToString, Position.FromString)
    call = begin(metadata=((frames.SESSION_KEY, session),))
    yield call
    call.cancel()


def test_a_call_on_which_nothing_comes_ends_and_a_newer_one_of_the_same_site_ends_it_at_once(folder, monkeypatch):
    async def scenario() -> None:
        async with serving(folder) as (_, port), channel(folder, port) as raw:
            await hello(raw)
            async with silent_call(raw) as first, silent_call(raw) as second:
                assert (await refusal(first.read()))[1] == "a newer call took over"
                monkeypatch.setattr(frames, "STALL_SECONDS", 0.2)
                await post(raw, Message(1, "kind", b"").frames())
                assert (await refusal(second.read()))[1] == "a newer call took over"
                async with silent_call(raw) as third:
                    assert (await refusal(third.read()))[0] is grpc.StatusCode.DEADLINE_EXCEEDED

    run(scenario)


def test_a_caller_that_is_no_site_is_refused_before_it_sends_anything(folder):
    async def scenario() -> None:
        async with serving(folder) as (_, port), channel(folder, port, "c") as raw, silent_call(raw) as call:
            assert (await refusal(call.read()))[0] is grpc.StatusCode.PERMISSION_DENIED

    run(scenario)


def test_bytes_are_counted_at_both_ends(folder):
    async def scenario() -> None:
        async with serving(folder) as (server, port), site(folder, port) as a:
            await a.send("up", bytes(2 * CHUNK_BYTES))
            await next_of(server)
            server.send("a", "down", bytes(1000))
            await a.receive(20)
            assert a.traffic == server.traffic("a")
            assert 2 * CHUNK_BYTES < a.traffic.up < 2 * CHUNK_BYTES + 2000
            assert 1000 < a.traffic.down < 1100
            assert server.traffic("b") == frames.Traffic()

    run(scenario)


def test_health_service_on_the_same_port(folder):
    async def scenario() -> None:
        async with serving(folder) as (_, port), channel(folder, port) as open_channel:
            stub = health_pb2_grpc.HealthStub(open_channel)
            answer = await stub.Check(health_pb2.HealthCheckRequest(), timeout=10)
            assert answer.status == health_pb2.HealthCheckResponse.SERVING

    run(scenario)


class Cutter:
    """A TCP relay whose cable can be pulled, by hand or after so many bytes for each of the first connections."""

    def __init__(self, target: int, budgets: Sequence[int] = ()) -> None:
        self.target, self.plugged, self.writers, self.budgets = target, True, set(), list(budgets)

    async def start(self) -> int:
        self.server = await asyncio.start_server(self._relay, "127.0.0.1", 0)
        return self.server.sockets[0].getsockname()[1]

    async def _relay(self, reader, writer) -> None:
        if not self.plugged:
            writer.transport.abort()
            return
        back, forth = await asyncio.open_connection("127.0.0.1", self.target)
        self.writers |= {writer, forth}
        budget = self.budgets.pop(0) if self.budgets else float("inf")

        async def pump(source, sink) -> None:
            nonlocal budget
            try:
                while budget > 0 and (data := await source.read(65536)):
                    budget -= len(data)
                    sink.write(data)
                    await sink.drain()
            except OSError:
                pass
            sink.transport.abort()

        await asyncio.gather(pump(reader, forth), pump(back, writer))

    def cut(self, plugged: bool = True) -> None:
        self.plugged = plugged
        for writer in self.writers:
            writer.transport.abort()
        self.writers.clear()


def test_nothing_is_lost_or_doubled_when_the_cable_is_pulled_again_and_again(folder):
    payloads = [np.random.default_rng(n).bytes(1 + n * 150_000) for n in range(12)]
    budgets = [3_000, 200_000, 400_000, 700_000, 900_000, 1_000_000, 4_000, 1_500_000]

    async def scenario() -> None:
        async with serving(folder, gone_after=30) as (server, port):
            cutter = Cutter(port, budgets)
            async with site(folder, await cutter.start()) as a:
                sender = asyncio.gather(*(a.send("up", payload) for payload in payloads))
                assert (await next_of(server)).kind == "hello"
                for payload in payloads:
                    server.send("a", "down", payload)
                assert [(await next_of(server)).payload for _ in payloads] == payloads
                assert [(await a.receive(20)).payload for _ in payloads] == payloads
                await sender
                assert not cutter.budgets
                assert await server.receive(0.3) is None
                assert await a.receive(0) is None
                assert a.traffic.up > sum(map(len, payloads))

    run(scenario)


def test_a_call_that_grpc_cancels_by_itself_is_made_again(folder, monkeypatch):
    """As it does where the connection breaks under a write: nobody asked this site to stop."""

    class Cancelled:
        def __init__(self, **_: object) -> None:
            pass

        async def write(self, _: object) -> None:
            raise asyncio.CancelledError

        def cancel(self) -> None:
            pass

    async def scenario() -> None:
        async with serving(folder) as (server, port), site(folder, port) as a:
            await a.connect()
            method, left = a._method, ["Send", "Send"]

            def broken(name, *rest):
                if name in left:
                    left.remove(name)
                    return Cancelled
                return method(name, *rest)

            monkeypatch.setattr(a, "_method", broken)
            await a.send("up", b"payload")
            assert not left
            assert [(await next_of(server)).kind for _ in range(2)] == ["hello", "up"]

    run(scenario)


def test_gone_and_back(folder):
    """A cable pulled for longer than `gone_after`: the owner hears of it, and nothing sent meanwhile is lost."""

    async def scenario() -> None:
        async with serving(folder) as (server, port):
            cutter = Cutter(port)
            async with site(folder, await cutter.start()) as a:
                await a.connect()
                assert (await next_of(server)).kind == "hello"
                server.send("a", "first", b"")
                assert (await a.receive(20)).kind == "first"
                cutter.cut(plugged=False)
                assert await next_of(server) == Received("a", "gone", b"")
                assert server.connected() == set()
                server.send("a", "second", b"")
                cutter.cut(plugged=True)
                assert await next_of(server) == Received("a", "back", b"")
                assert (await a.receive(20)).kind == "second"
                assert server.connected() == {"a"}

    run(scenario)


CHILD = """
import asyncio, sys
from pathlib import Path
from secagg.rpc.client import MailboxClient
from secagg.rpc.tls import ClientTls
async def main(folder, port):
    tls = ClientTls.load(folder / "authority.pem", folder / "a.pem", folder / "a.key", ["a"])
    async with MailboxClient(f"127.0.0.1:{port}", "a", tls, patience=2) as mailbox:
        await mailbox.send("alive", b"")
        while received := await mailbox.receive():
            await mailbox.send("got", received.payload)
try:
    asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
except Exception as error:
    sys.exit(f"{type(error).__name__}: {error}")
"""


def start_child(folder: Path, port: int) -> subprocess.Popen[str]:
    return subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(port)], stderr=subprocess.PIPE, text=True)


def test_a_killed_process_is_noticed_and_its_successor_starts_clean(folder):
    async def scenario() -> None:
        async with serving(folder) as (server, port):
            first = start_child(folder, port)
            assert [(await next_of(server)).kind for _ in range(2)] == ["hello", "alive"]
            os.kill(first.pid, signal.SIGKILL)
            first.communicate()
            assert await next_of(server) == Received("a", "gone", b"")
            server.send("a", "echo", b"for the dead one")
            second = start_child(folder, port)
            assert (await next_of(server)).kind == "hello"
            server.send("a", "echo", b"for the new one")
            assert [(await next_of(server)).payload for _ in range(2)] == [b"", b"for the new one"]
            second.kill()
            second.communicate()

    run(scenario)


def test_a_new_process_replaces_the_old_one_and_its_queue(folder):
    """What the owner sends before it has read the new process's hello was meant for the old one."""

    async def scenario() -> None:
        async with serving(folder) as (server, port), site(folder, port) as old, site(folder, port) as new:
            await old.connect()
            assert (await next_of(server)).kind == "hello"
            await new.connect()
            server.send("a", "stale", b"")
            assert await new.receive(0.2) is None
            assert (await next_of(server)).kind == "hello"
            server.send("a", "fresh", b"")
            assert (await new.receive(20)).kind == "fresh"
            with pytest.raises(ConfigError, match=r"another process with this certificate.*run one process per site"):
                await old.receive(20)
            with pytest.raises(ConfigError, match="another process"):
                await old.send("late", b"")
            assert await server.receive(0.4) is None
            assert server.connected() == {"a"}

    run(scenario)


def test_a_restarted_coordinator_is_greeted_anew_and_its_owner_told(folder):
    """What `send` has returned for is the old process's; what it has not is the new one's."""

    async def scenario() -> None:
        async with serving(folder) as (first, port), serving(folder) as (second, other):
            with TcpProxy("127.0.0.1", port) as proxy:
                async with site(folder, proxy.port) as a:
                    await a.send("before", b"")
                    assert [(await next_of(first)).kind for _ in range(2)] == ["hello", "before"]
                    first.send("a", "down", b"1")
                    assert (await a.receive(20)).payload == b"1"
                    proxy.refuse()
                    waiting = asyncio.create_task(a.send("after", bytes(LIMIT)))
                    await asyncio.sleep(0.1)
                    proxy.redirect("127.0.0.1", other)
                    proxy.clear()
                    await waiting
                    assert [(await next_of(second)).kind for _ in range(2)] == ["hello", "after"]
                    assert await a.receive(20) == Received("", "hello", b"")
                    second.send("a", "down", b"2")
                    assert (await a.receive(20)).payload == b"2"
                    assert await second.receive(0.2) is None

    run(scenario)


def test_idle_polls_are_renewed_without_news(folder):
    async def scenario() -> None:
        async with serving(folder, poll_seconds=0.8, gone_after=0.0) as (server, port), site(folder, port) as a:
            await a.connect()
            assert (await next_of(server)).kind == "hello"
            assert await server.receive(1.2) is None
            assert server.connected() == {"a"}
            server.send("a", "still-here", b"")
            assert (await a.receive(20)).kind == "still-here"

    run(scenario)


def test_a_client_that_never_polls_is_gone(folder):
    async def scenario() -> None:
        async with serving(folder, poll_seconds=0.1) as (server, port), channel(folder, port) as raw:
            await hello(raw)
            assert [(await next_of(server)).kind for _ in range(2)] == ["hello", "gone"]

    run(scenario)


def test_a_message_sent_and_its_queue_survive_a_cancelled_caller(folder):
    async def scenario() -> None:
        async with serving(folder) as (server, port), site(folder, port) as a:
            await a.connect()
            sending = asyncio.create_task(a.send("cancelled", bytes(CHUNK_BYTES)))
            receiving = asyncio.create_task(a.receive())
            await asyncio.sleep(0)
            await asyncio.sleep(0)
            sending.cancel()
            receiving.cancel()
            await a.send("next", b"")
            assert [(await next_of(server)).kind for _ in range(3)] == ["hello", "cancelled", "next"]
            server.send("a", "kept", b"")
            assert (await a.receive(20)).kind == "kept"

    run(scenario)


def test_a_slow_owner_holds_senders_back(folder):
    """A client cannot make the server hold more unread messages than the limit and a megabyte."""

    async def scenario() -> None:
        async with serving(folder, max_message_bytes=CHUNK_BYTES) as (server, port), site(folder, port) as a:
            sender = asyncio.gather(*(a.send("flood", bytes(CHUNK_BYTES // 2)) for _ in range(8)))
            await asyncio.sleep(0.3)
            assert server._peers["a"].unread <= 2 * CHUNK_BYTES
            assert not sender.done()
            assert (await next_of(server)).kind == "hello"
            assert [len((await next_of(server)).payload) for _ in range(8)] == [CHUNK_BYTES // 2] * 8
            await sender

    run(scenario)


def test_a_slow_site_holds_the_coordinator_back(folder):
    async def scenario() -> None:
        async with serving(folder) as (server, port), site(folder, port) as a:
            await a.connect()
            assert (await next_of(server)).kind == "hello"
            for number in range(60):
                server.send("a", "flood", bytes([number]))
            await asyncio.sleep(0.3)
            assert len(server._peers["a"].queue) > 30
            assert [(await a.receive(20)).payload[0] for _ in range(60)] == list(range(60))

    run(scenario)


# --- refusals -----------------------------------------------------------------------------------------------------


def test_a_name_that_is_not_in_the_study(folder):
    async def scenario() -> None:
        async with serving(folder) as (server, port):
            error = await failure_of(MailboxClient(f"127.0.0.1:{port}", "c", tls_of(folder, "c")))
            assert isinstance(error, ConfigError)
            assert "does not accept this site: the certificate is for 'c'" in str(error)
            assert await server.receive(0.1) is None
            assert server.connected() == set()

    run(scenario)


def test_a_site_certificate_from_another_authority(folder, tmp_path):
    make_certificates(tmp_path, SITES)
    forged = replace(tls_of(tmp_path), authority=(folder / "authority.pem").read_bytes())

    async def scenario() -> None:
        async with serving(folder) as (server, port):
            error = await failure_of(MailboxClient(f"127.0.0.1:{port}", "a", forged))
            assert isinstance(error, AbortedError)
            assert f"refuses certificate {tmp_path}/a.pem" in str(error)
            assert await server.receive(0.1) is None

    run(scenario)


def test_a_coordinator_from_another_authority(folder, tmp_path):
    make_certificates(tmp_path, SITES)

    async def scenario() -> None:
        async with serving(folder) as (_, port):
            error = await failure_of(MailboxClient(f"127.0.0.1:{port}", "a", tls_of(tmp_path)))
            assert isinstance(error, AbortedError)
            assert "shows a certificate that is not trusted here" in str(error)

    run(scenario)


def test_a_site_cannot_pose_as_the_coordinator(folder):
    imposter = ServerTls("a", *(getattr(tls_of(folder), name) for name in ("authority", "certificate", "key", "paths")))

    async def scenario() -> None:
        server = MailboxServer(["b"], imposter)
        port = await server.start("127.0.0.1", 0)
        error = await failure_of(MailboxClient(f"127.0.0.1:{port}", "b", tls_of(folder, "b")))
        await server.stop(0.0)
        assert isinstance(error, AbortedError)
        assert "not trusted here" in str(error)

    run(scenario)


def test_a_coordinator_certificate_for_another_address(folder, tmp_path):
    authority = Authority()
    authority.write(tmp_path)
    authority.issue(tmp_path, "coordinator", ["elsewhere.example"])
    authority.issue(tmp_path, "a")

    async def scenario() -> None:
        async with serving(tmp_path) as (_, port):
            error = await failure_of(MailboxClient(f"127.0.0.1:{port}", "a", tls_of(tmp_path)))
            assert isinstance(error, AbortedError)
            assert "certificate is not valid for '127.0.0.1'" in str(error)

    run(scenario)


def test_nobody_there_and_a_port_that_is_no_coordinator(folder):
    async def plain(reader, writer) -> None:
        writer.write(b"220 welcome to the mail server\r\n" * 10)
        await writer.drain()
        writer.close()

    async def scenario() -> None:
        other = await asyncio.start_server(plain, "127.0.0.1", 0)
        port = other.sockets[0].getsockname()[1]
        error = await failure_of(MailboxClient(f"127.0.0.1:{port}", "a", tls_of(folder)))
        assert isinstance(error, AbortedError)
        assert "does not speak TLS" in str(error)
        other.close()
        await other.wait_closed()
        error = await failure_of(MailboxClient(f"127.0.0.1:{port}", "a", tls_of(folder)), patience=0.3)
        assert isinstance(error, AbortedError)
        assert "has not answered for 0.3 s: Connection refused; check that it runs" in str(error)

    run(scenario)


def test_ports_and_addresses(folder):
    async def scenario() -> None:
        async with serving(folder) as (_, port):
            with pytest.raises(ConfigError, match=f"port {port} on 127.0.0.1 is in use by another program"):
                await MailboxServer(["a"], server_tls(folder)).start("127.0.0.1", port)
        with pytest.raises(ConfigError, match=r"cannot listen on 192.0.2.1 port 0 \(Cannot assign requested address\)"):
            await MailboxServer(["a"], server_tls(folder)).start("192.0.2.1", 0)

    run(scenario)


@pytest.mark.parametrize("address", ["localhost", "localhost:", ":7443", "localhost:0", "localhost:70000", "h:x"])
def test_malformed_addresses(folder, address):
    with pytest.raises(ConfigError, match="write host:port"):
        MailboxClient(address, "a", tls_of(folder))


def test_a_certificate_of_another_site(folder):
    with pytest.raises(ConfigError, match="certificate is for 'b' and this site is 'a'"):
        MailboxClient("localhost:1", "a", tls_of(folder, "b"))


def test_people_see_one_sentence_and_nothing_of_grpc(folder, tmp_path):
    make_certificates(tmp_path, SITES)

    async def scenario() -> None:
        async with serving(folder) as (_, port):
            process = start_child(tmp_path, port)
            _, stderr = await asyncio.to_thread(process.communicate)
            assert stderr.startswith("AbortedError: the coordinator at 127.0.0.1")
            assert stderr.count("\n") == 1

    run(scenario)


def test_sizes_and_kinds(folder):
    async def scenario() -> None:
        async with serving(folder, max_message_bytes=1000) as (server, port), site(folder, port) as a:
            with pytest.raises(ConfigError, match=r"message big has 1001 bytes and .* accepts 1000; .* same study"):
                await a.send("big", bytes(1001))
            await a.send("fits", bytes(1000))
            with pytest.raises(ConfigError, match="limit is 1000; raise max_message_bytes"):
                server.send("a", "big", bytes(1001))
            with pytest.raises(ConfigError, match="client 'x' is not one of a, b"):
                server.send("x", "kind", b"")
            with pytest.raises(ConfigError, match="a kind is 1 to 64"):
                server.send("a", "no kind", b"")
            with pytest.raises(ConfigError, match="refused what this site sent: kind 'hello' is reserved"):
                await a.send("hello", b"")
        async with serving(folder) as (server, port), site(folder, port, max_message_bytes=10) as a:
            await a.connect()
            await next_of(server)
            server.send("a", "big", bytes(11))
            with pytest.raises(AbortedError, match=r"malformed stream \(a message of 11 bytes is larger than"):
                await a.receive(20)

    run(scenario)


def test_a_closed_mailbox_says_so(folder):
    async def scenario() -> None:
        async with serving(folder) as (_, port), site(folder, port) as a:
            await a.connect()
            waiting = asyncio.create_task(a.receive())
            await asyncio.sleep(0)
            await a.close()
            with pytest.raises(IllegalTransitionError, match="was closed"):
                await waiting
            with pytest.raises(IllegalTransitionError, match="was closed"):
                await a.send("late", b"")

    run(scenario)


# --- a client that does not keep to the protocol -------------------------------------------------------------------


@asynccontextmanager
async def channel(folder: Path, port: int, name: str = "a"):
    tls = tls_of(folder, name)
    credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as opened:
        yield opened


async def hello(raw, session=bytes(16), version=frames.VERSION):
    call = raw.unary_unary(f"/{frames.SERVICE}/Hello", Greeting.SerializeToString, Welcome.FromString)
    return await call(Greeting(version=version, session=session), timeout=10)


async def post(raw, sent, session=bytes(16)):
    call = raw.stream_stream(f"/{frames.SERVICE}/Send", Frame.SerializeToString, Position.FromString)
    stream = call(iter(sent), timeout=10, metadata=((frames.SESSION_KEY, session),))
    return [position async for position in stream][-1]


async def refusal(call: Awaitable[object]) -> tuple[grpc.StatusCode, str]:
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call
    return caught.value.code(), caught.value.details()


def test_a_repeated_message_is_acknowledged_and_not_delivered_again(folder):
    async def scenario() -> None:
        async with serving(folder) as (server, port), channel(folder, port) as raw:
            await hello(raw)
            for sequence, payload in ((1, b"one"), (1, b"one"), (1, b"other"), (2, b"two"), (1, b"one")):
                position = await post(raw, Message(sequence, "kind", payload).frames())
                assert position.sequence >= sequence
            assert [(await next_of(server)).payload for _ in range(3)] == [b"", b"one", b"two"]
            assert await server.receive(0.1) is None

    run(scenario)


def test_sessions_and_versions(folder):
    async def scenario() -> None:
        async with serving(folder) as (_, port), channel(folder, port) as raw:
            one = Message(1, "kind", b"").frames
            code = grpc.StatusCode
            assert await refusal(post(raw, one())) == (code.NOT_FOUND, "this session is not known here")
            assert (await refusal(hello(raw, b"short")))[0] is code.INVALID_ARGUMENT
            assert (await refusal(hello(raw, version=1)))[0] is code.FAILED_PRECONDITION
            await hello(raw, bytes(16))
            await hello(raw, bytes(16))
            await hello(raw, b"1" * 16)
            assert (await refusal(hello(raw, bytes(16))))[0] is code.ABORTED
            assert (await refusal(post(raw, one(), bytes(16))))[0] is code.ABORTED
            assert (await refusal(post(raw, one(), b"")))[0] is code.NOT_FOUND
            await post(raw, one(), b"1" * 16)

    run(scenario)


ANNOUNCED = Frame(sequence=1, kind="k", size=CHUNK_BYTES + 1)
OPENING = [ANNOUNCED, Frame(sequence=1, data=bytes(CHUNK_BYTES))]
MALFORMED = {
    "numbered from 1": [Frame(kind="k")],
    "a kind is 1 to 64": [Frame(sequence=1, kind="two words")],
    "larger than the limit": [Frame(sequence=1, kind="k", size=LIMIT + 1, data=b"x")],
    "came after message 0": [Frame(sequence=2, kind="k")],
    "reserved": [Frame(sequence=1, kind="gone")],
    "larger than what is left": [Frame(sequence=1, kind="k", size=1, data=b"xx")],
    "a frame is too small": [ANNOUNCED, Frame(sequence=1, data=bytes(PIECE_BYTES - 1))],
    "is too small, or larger": [*OPENING, Frame(sequence=1, data=b"xx", offset=CHUNK_BYTES)],
    "too small": [*OPENING, Frame(sequence=1, offset=CHUNK_BYTES)],
    "belongs at byte 0": [*OPENING, Frame(sequence=1, data=b"x")],
    f"belongs at byte {CHUNK_BYTES + 1}": [*OPENING, Frame(sequence=1, data=b"x", offset=CHUNK_BYTES + 1)],
    "before the last one was": [*OPENING, Frame(sequence=2, data=b"x")],
    "began before the last": [*OPENING, Frame(sequence=1, kind="k", data=b"x")],
    "ended inside": OPENING,
}


@pytest.mark.parametrize("reason", MALFORMED)
def test_malformed_streams_are_refused(folder, reason):
    async def scenario() -> None:
        async with serving(folder) as (server, port), channel(folder, port) as raw:
            await hello(raw)
            code, details = await refusal(post(raw, MALFORMED[reason]))
            assert code is grpc.StatusCode.INVALID_ARGUMENT
            assert reason in details
            assert (await next_of(server)).kind == "hello"
            assert await server.receive(0) is None
            if reason == "ended inside":  # as by a cut: it may go on, as the same message only
                assert (await refusal(post(raw, Message(1, "good", b"").frames())))[
                    1
                ] == "a message went on as another one"
            await post(raw, Message(1, "good", b"").frames())
            assert (await next_of(server)).kind == "good"

    run(scenario)


def test_a_frame_beyond_the_chunk_size_is_refused(folder):
    async def scenario() -> None:
        async with serving(folder) as (_, port), channel(folder, port) as raw:
            await hello(raw)
            size = 2 * CHUNK_BYTES
            code, _ = await refusal(post(raw, [Frame(sequence=1, kind="k", size=size, data=bytes(size))]))
            assert code is grpc.StatusCode.RESOURCE_EXHAUSTED

    run(scenario)


@pytest.mark.parametrize("size", [0, 1, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 1, 3 * CHUNK_BYTES])
def test_frames_and_their_assembly(size):
    message = Message(7, "kind", np.random.default_rng(size).bytes(size))
    sent = list(message.frames())
    assert max(len(frame.data) for frame in sent) <= CHUNK_BYTES
    assembler = Assembler(size)
    assert [assembler.add(frame) for frame in sent] == [None] * (len(sent) - 1) + [message]


def test_nothing_of_a_message_in_its_repr():
    assert "secret" not in repr(Received("a", "kind", b"secret")) + repr(Message(1, "kind", b"secret"))


def test_the_limit_of_a_policy_covers_its_vector():
    policy = Policy(project="p", clients=256, length=1_000_000, clip_range=1.0, bits=64)
    assert frames.message_limit(policy) > 8 * policy.length
