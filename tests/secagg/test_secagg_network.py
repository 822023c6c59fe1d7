"""The mailbox on networks as they are: cut, slow, far, half-open, behind proxies, load balancers and renewed keys."""

import asyncio
import datetime as dt
import os
import signal
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import numpy as np
import pytest
from cryptography import x509
from typer.testing import CliRunner

from secagg import home
from secagg.cli import app
from secagg.errors import AbortedError, ConfigError
from secagg.field import Field
from secagg.home import Home
from secagg.keys import SigningKey
from secagg.layout import Layout
from secagg.rpc import frames
from secagg.rpc.authority import Authority
from secagg.rpc.client import MailboxClient
from secagg.rpc.demo_authority import make_certificates
from secagg.rpc.frames import Received
from secagg.rpc.pace import CHUNK_BYTES
from secagg.rpc.proof import BALANCER, CHALLENGE_BYTES, TLS, Pinned, Prover
from secagg.rpc.proof import tls_of as tls_of_folder
from secagg.rpc.proxy import proxy_for
from secagg.rpc.server import MailboxServer
from secagg.rpc.server_hello import negotiated
from secagg.rpc.tls import ClientTls, ServerTls
from secagg.rpc.transport_pb2 import Greeting, Welcome
from secagg.service.events import Listening
from secagg.service.joining import join
from secagg.service.running import Options
from secagg.service.serving import serving as serving_of
from tests.support.tcp_proxy import DOWN, UP, TcpProxy

LIMIT = 16 << 20
SIZE = 8 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, ["a", "b"])
    return folder


def server_tls(folder: Path) -> ServerTls:
    paths = (folder / f"{name}" for name in ("authority.pem", "coordinator.pem", "coordinator.key", "revoked.pem"))
    return ServerTls.load(*paths)


def tls_of(folder: Path, name: str = "a") -> ClientTls:
    return ClientTls.load(folder / "authority.pem", folder / f"{name}.pem", folder / f"{name}.key", [name])


@asynccontextmanager
async def serving(folder: Path, **options):
    server = MailboxServer(
        ["a", "b"], server_tls(folder), **({"max_message_bytes": LIMIT, "gone_after": 0.2} | options)
    )
    try:
        yield server, await server.start("127.0.0.1", 0)
    finally:
        await server.stop(0.0)


@asynccontextmanager
async def site(folder: Path, port: int, name: str = "a", tls: ClientTls | None = None, **options):
    tls = tls or tls_of(folder, name)
    client = MailboxClient(f"127.0.0.1:{port}", name, tls, **({"max_message_bytes": LIMIT} | options))
    try:
        yield client
    finally:
        await client.close()


def run(scenario: Callable[[], Awaitable[None]], seconds: float = 20) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(seconds):
            await scenario()

    asyncio.run(bounded())


async def until(condition: Callable[[], object]) -> None:
    while not condition():
        await asyncio.sleep(0.02)


async def kinds(server: MailboxServer, count: int) -> list[str]:
    return [(await server.receive(30)).kind for _ in range(count)]


# --- A transfer goes on where it was cut ------------------------------------------------------------------------------

LOST = 6 * CHUNK_BYTES
"""What a cut may cost: the frame that was under way, and on a fast line what the door and gRPC had not read yet."""


def test_an_upload_goes_on_at_the_byte_where_it_was_cut(folder):
    payload = os.urandom(SIZE)

    async def scenario() -> None:
        async with serving(folder, gone_after=30) as (server, port):
            with TcpProxy("127.0.0.1", port) as proxy:
                async with site(folder, proxy.port) as a:
                    await a.connect()
                    proxy.throttle(6_000_000, UP)  # else megabytes lie in buffers of the kernel when the cut comes
                    sending = asyncio.create_task(a.send("vector", payload))
                    for _ in range(2):
                        connections = proxy.connections
                        proxy.cut_after(SIZE // 3)
                        await until(lambda: sending.done() or proxy.connections > connections)  # noqa: B023
                    await sending
                    assert proxy.connections > 1
                    assert await kinds(server, 1) == ["hello"]
                    assert await server.receive(20) == Received("a", "vector", payload)
                    assert proxy.passed[UP] < SIZE + (proxy.connections - 1) * LOST

    run(scenario)


@pytest.mark.slow
def test_a_download_goes_on_at_the_byte_where_it_was_cut(folder):
    payload = os.urandom(SIZE)

    async def scenario() -> None:
        async with serving(folder, gone_after=30) as (server, port):
            with TcpProxy("127.0.0.1", port) as proxy:
                async with site(folder, proxy.port) as a:
                    await a.connect()
                    assert await kinds(server, 1) == ["hello"]
                    connections = proxy.connections
                    proxy.throttle(6_000_000, DOWN)
                    proxy.cut_after(SIZE // 2, DOWN)
                    server.send("a", "vector", payload)
                    assert await a.receive(30) == Received("", "vector", payload)
                    assert proxy.connections > connections
                    assert (
                        proxy.passed[DOWN] < 1.4 * SIZE
                    )  # from its beginning: 1.5; lost is what lay in the site's own buffers

    run(scenario)


def test_a_slow_line_is_measured_and_not_cut_short(folder):
    """At 100 KB/s: what is under way, how much of it has come and how fast are told while it comes."""

    async def scenario() -> None:
        async with serving(folder) as (server, port):
            with TcpProxy("127.0.0.1", port) as proxy:
                async with site(folder, proxy.port) as a:
                    await a.connect()
                    await kinds(server, 1)
                    proxy.throttle(100_000)
                    sending = asyncio.create_task(a.send("vector", bytes(200_000)))
                    seen = []
                    while not sending.done():
                        await asyncio.sleep(0.05)
                        if (now := server.link("a").uploading) is not None:
                            seen.append(now)
                    done = [transfer.done for transfer in seen]
                    assert done == sorted(done)
                    assert len(set(done)) > 4
                    assert {(transfer.kind, transfer.size) for transfer in seen} == {("vector", 200_000)}
                    assert 30_000 < server.link("a").rate_up < 300_000
                    assert seen[-1].seconds_left() < 5
                    assert server.link("a").uploading is None
                    assert await kinds(server, 1) == ["vector"]

    run(scenario)


def test_what_grpc_says_of_a_call_that_broke_is_put_in_words(folder):
    async def scenario():
        said = []
        broken = MailboxClient("127.0.0.1:1", "a", tls_of(folder), on_trouble=said.append)
        none, details = grpc.aio.Metadata(), "Internal error from Core"
        reason = await broken._judge(grpc.aio.AioRpcError(grpc.StatusCode.INTERNAL, none, none, details))
        broken._silent = 3.0
        await broken._wait_on(reason)
        assert said == [
            "the coordinator at 127.0.0.1:1 does not answer: the connection broke; this site goes on trying"
        ]

    run(scenario)


@pytest.mark.parametrize("one_way", [0.3, pytest.param(1.0, marks=pytest.mark.slow)])
def test_far_away_is_no_trouble(folder, one_way):
    """Round trips of 0.6 s once never connected; now two seconds do."""
    said = []

    async def scenario() -> None:
        async with serving(folder) as (server, port):
            with TcpProxy("127.0.0.1", port) as proxy:
                proxy.delay(one_way)
                async with site(folder, proxy.port, on_trouble=said.append) as a:
                    await a.send("vector", bytes(100_000))
                    assert await kinds(server, 2) == ["hello", "vector"]
                    server.send("a", "back", bytes(100_000))
                    assert len((await a.receive(30)).payload) == 100_000
                assert (proxy.connections, said) == (1, [])

    run(scenario)


# --- What may pass is waited out --------------------------------------------------------------------------------------

ANSWERS = {
    "http": b"HTTP/1.1 503 Busy\r\nContent-Length: 0\r\n\r\n",
    "rubbish": bytes(range(256)),
    "nothing": b"",
}
EXPECTED = {
    "http": "does not speak TLS",
    "rubbish": "does not speak TLS",
    "nothing": "closed the connection",
    "refused": "Connection refused",
    "another TLS": "not trusted here",
    "flipped bits": "",
}


@pytest.mark.parametrize(
    "how", [pytest.param(how, marks=[] if how == "another TLS" else pytest.mark.slow) for how in EXPECTED]
)
def test_a_site_waits_out(folder, tmp_path, how):
    said: list[str] = []

    async def scenario() -> None:
        async with serving(folder, gone_after=60) as (server, port), other(tmp_path) as elsewhere:
            with TcpProxy("127.0.0.1", port) as proxy:
                async with site(folder, proxy.port, on_trouble=said.append) as a:
                    await a.send("before", b"")
                    if how in ANSWERS:
                        proxy.answer(ANSWERS[how])
                    elif how == "refused":
                        proxy.refuse()
                    elif how == "another TLS":
                        proxy.redirect("127.0.0.1", elsewhere)
                        proxy.cut()
                    else:
                        proxy.corrupt(2)
                        proxy.corrupt(2, DOWN)
                        proxy.cut()
                    sending = asyncio.create_task(a.send("after", bytes(100_000)))
                    await until(lambda: a.trouble and EXPECTED[how] in a.trouble)
                    assert not sending.done()
                    assert "does not answer" in a.trouble
                    proxy.redirect("127.0.0.1", port)
                    proxy.clear()
                    await sending
                    assert await kinds(server, 3) == ["hello", "before", "after"]
                    await until(lambda: not a.trouble)

    @asynccontextmanager
    async def other(where: Path):
        if how == "another TLS":
            make_certificates(where, ["a", "b"])
            async with serving(where) as (_, elsewhere):
                yield elsewhere
        else:
            yield 0

    run(scenario)
    assert said[-1] == ""


CHILD = """
import asyncio, sys
from pathlib import Path
from secagg.rpc.client import MailboxClient
from secagg.rpc.tls import ClientTls
async def main(folder, port):
    tls = ClientTls.load(folder / "authority.pem", folder / "a.pem", folder / "a.key", ["a"])
    async with MailboxClient(f"127.0.0.1:{port}", "a", tls, patience=1.5) as mailbox:
        await mailbox.send("alive", b"")
        await mailbox.receive()
        await mailbox.send("still", b"")
asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


@pytest.mark.slow
def test_a_suspended_site_has_not_waited(folder):
    """Stopped for longer than its patience, with its connection cut meanwhile: it goes on as it wakes."""

    async def scenario() -> None:
        async with serving(folder) as (server, port):
            with TcpProxy("127.0.0.1", port) as proxy:
                child = subprocess.Popen([sys.executable, "-c", CHILD, str(folder), str(proxy.port)])
                try:
                    assert await kinds(server, 2) == ["hello", "alive"]
                    os.kill(child.pid, signal.SIGSTOP)
                    proxy.cut()
                    await asyncio.sleep(2.5)
                    os.kill(child.pid, signal.SIGCONT)
                    assert await kinds(server, 2) == ["gone", "back"]
                    server.send("a", "go", b"")
                    assert await kinds(server, 1) == ["still"]
                    assert await asyncio.to_thread(child.wait, 20) == 0
                finally:
                    child.kill()
                    child.wait()

    run(scenario)


@pytest.mark.parametrize("how", ["swallow", pytest.param("freeze", marks=pytest.mark.slow)])
def test_keep_alive_finds_a_half_open_connection_at_both_ends(folder, how):
    """Nobody closes it: both ends ask for a sign of life, give it up, and go on over a new one."""

    async def scenario() -> None:
        async with serving(folder, keepalive=0.3) as (server, port):
            with TcpProxy("127.0.0.1", port) as proxy:
                async with site(folder, proxy.port, keepalive=0.3) as a:
                    await a.send("before", b"")
                    assert await kinds(server, 2) == ["hello", "before"]
                    getattr(proxy, how)()
                    assert await kinds(server, 1) == ["gone"]
                    await until(lambda: "fell silent" in a.trouble)
                    proxy.clear()
                    proxy.cut()
                    assert await kinds(server, 1) == ["back"]
                    await a.send("after", b"")
                    assert await kinds(server, 1) == ["after"]

    run(scenario)


@pytest.mark.slow
def test_keep_alive_lets_idle_connections_be(folder):
    async def scenario() -> None:
        async with serving(folder, keepalive=0.3, poll_seconds=1.0) as (server, port):
            with TcpProxy("127.0.0.1", port) as proxy:
                async with site(folder, proxy.port, keepalive=0.3) as a:
                    await a.connect()
                    await kinds(server, 1)
                    before = proxy.passed[UP]
                    assert await server.receive(2.5) is None
                    assert proxy.connections == 1
                    assert proxy.passed[UP] > before  # the pings

    run(scenario)


# --- Nobody stalls the others -----------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_site_that_stalls_and_one_that_takes_nothing_stall_nobody(folder):
    """Counted: while one upload stands still and one download is not taken, another site's hundred messages pass."""

    async def scenario() -> None:
        async with serving(folder, max_message_bytes=4 << 20) as (server, port):
            with TcpProxy("127.0.0.1", port) as proxy:
                async with site(folder, proxy.port) as slow, site(folder, port, "b") as quick:
                    await asyncio.gather(slow.connect(), quick.connect())
                    await kinds(server, 2)
                    proxy.throttle(1000)
                    stalled = asyncio.create_task(slow.send("large", bytes(4 << 20)))
                    for _ in range(3):
                        server.send("a", "large", bytes(4 << 20))
                    await until(lambda: server.link("a").uploading)
                    for number in range(50):
                        await quick.send("small", bytes(10))
                        await quick.send("large", bytes(200_000))
                        server.send("b", "answer", bytes([number]))
                        assert (await quick.receive(10)).payload == bytes([number])
                        assert await kinds(server, 2) == ["small", "large"]
                    assert not stalled.done()
                    stalled.cancel()

    run(scenario)


# --- TLS: what is negotiated, renewed, revoked ------------------------------------------------------------------------


def test_what_was_negotiated_is_told(folder):
    async def scenario() -> None:
        async with serving(folder) as (server, port), site(folder, port) as a:
            assert server.link("a").connected is False
            await a.connect()
            link = server.link("a")
            assert link.tls == "TLS 1.3, X25519MLKEM768"
            assert (link.connected, link.address) == (True, "127.0.0.1")
            assert 0 < link.rtt < 1
            assert link.heard < 10
            assert link.certificate_ends == tls_of(folder).expires
            assert 29 < a.tls.days_left() < 31

    run(scenario)


def test_nothing_older_than_tls_1_3_is_let_in(folder):
    async def hello_of(port: int, newest: ssl.TLSVersion) -> str:
        context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
        context.load_cert_chain(folder / "a.pem", folder / "a.key")
        context.set_alpn_protocols(["h2"])
        context.maximum_version = newest
        reader, writer = await asyncio.open_connection("127.0.0.1", port, ssl=context, server_hostname="localhost")
        assert await reader.read(1)
        writer.close()
        return writer.get_extra_info("ssl_object").version()

    async def scenario() -> None:
        async with serving(folder) as (_, port):
            assert await hello_of(port, ssl.TLSVersion.TLSv1_3) == "TLSv1.3"
            with pytest.raises((ssl.SSLError, ConnectionResetError)):
                await hello_of(port, ssl.TLSVersion.TLSv1_2)

    run(scenario)


@pytest.mark.parametrize(
    "first", [b"", b"\x16", b"\x16\x03\x03\x00\x05\x02\x00", b"\x15\x03\x03\x00\x02\x02\x28", b"HTTP"]
)
def test_bytes_that_are_no_server_hello_tell_nothing(first):
    assert negotiated(first) == ""


@pytest.mark.slow
def test_certificates_that_expire_while_a_run_goes_on_are_renewed_without_a_restart(tmp_path):
    """Both end while the connection stands; it is cut; the site waits; both are renewed on the disk; it goes on."""
    now = dt.datetime.now(dt.UTC)
    authority = Authority()
    authority.write(tmp_path)
    for name, hosts in (("coordinator", ["127.0.0.1"]), ("a", [])):
        authority.issue(tmp_path, name, hosts, (now - dt.timedelta(days=1), now + dt.timedelta(seconds=3)))

    async def scenario() -> None:
        async with serving(tmp_path, gone_after=60) as (server, port):
            with TcpProxy("127.0.0.1", port) as proxy:
                async with site(tmp_path, proxy.port) as a:
                    await a.send("before", b"")
                    await until(lambda: a.tls.days_left() < 0)
                    await a.send("ended", b"")  # an open connection stays
                    proxy.cut()
                    sending = asyncio.create_task(a.send("after", b""))
                    await until(lambda: "certificate" in a.trouble)
                    authority.issue(tmp_path, "a")
                    authority.issue(tmp_path, "coordinator", ["127.0.0.1"])
                    await sending
                    assert await kinds(server, 4) == ["hello", "before", "ended", "after"]
                    assert a.tls.days_left() > 20
                    assert server.tls.days_left() > 20

    run(scenario)


def test_a_certificate_that_is_revoked_while_a_run_goes_on_is_refused(tmp_path):
    authority = Authority()
    authority.write(tmp_path)
    authority.issue(tmp_path, "coordinator", ["127.0.0.1"])
    authority.issue(tmp_path, "a")

    async def scenario() -> None:
        async with serving(tmp_path) as (server, port), site(tmp_path, port) as a:
            await a.send("before", b"")
            serial = x509.load_pem_x509_certificate((tmp_path / "a.pem").read_bytes()).serial_number
            authority.revoke(tmp_path / "revoked.pem", [serial])

            async def go_on() -> None:
                while True:
                    await a.send("more", b"")
                    await asyncio.sleep(0.1)

            with pytest.raises(ConfigError, match="the certificate was revoked"):
                await go_on()
            assert server.tls.revoked == {serial}

    run(scenario)


# --- Proxies ----------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def http_proxy(refuses: bytes = b""):
    """An HTTP proxy that knows CONNECT, and what it was asked."""
    asked: list[str] = []

    async def attend(reader, writer) -> None:
        request = (await reader.readuntil(b"\r\n\r\n")).decode()
        asked.append(request)
        if refuses:
            writer.write(refuses)
            writer.close()
            return
        host, _, port = request.split()[1].rpartition(":")
        back, forth = await asyncio.open_connection(host, int(port))
        writer.write(b"HTTP/1.1 200 Connection established\r\n\r\n")

        async def pump(source, sink) -> None:
            try:
                while data := await source.read(1 << 16):
                    sink.write(data)
            except OSError:
                pass
            sink.close()

        await asyncio.gather(pump(reader, forth), pump(back, writer))

    server = await asyncio.start_server(attend, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1], asked
    finally:
        server.close()


def test_through_a_proxy_with_a_password(folder):
    async def scenario() -> None:
        async with serving(folder) as (server, port), http_proxy() as (proxy, asked):
            async with site(folder, port, proxy=f"http://user:p%40ss@127.0.0.1:{proxy}") as a:
                await a.send("out", bytes(100_000))
                assert await kinds(server, 2) == ["hello", "out"]
            assert asked[0].startswith(f"CONNECT 127.0.0.1:{port} HTTP/1.")
            assert "Basic dXNlcjpwQHNz" in asked[0]

    run(scenario)


def test_a_proxy_is_named_where_it_is_to_blame(folder, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as free:
        dead = free.getsockname()[1]

    async def trouble(proxy: str | None, host: str = "127.0.0.1") -> str:
        client = MailboxClient(f"{host}:9", "a", tls_of(folder), proxy=proxy, patience=0.2)
        with pytest.raises(AbortedError) as caught:
            await client.connect()
        await client.close()
        return str(caught.value)

    async def scenario() -> None:
        assert f"proxy 127.0.0.1:{dead} (from --proxy) does not let this site out (Connection ref" in (
            await trouble(f"http://u:secret@127.0.0.1:{dead}")
        )
        async with http_proxy(b"HTTP/1.1 407 Proxy Authentication Required\r\n\r\n") as (proxy, _):
            said = await trouble(f"127.0.0.1:{proxy}")
            assert "407 Proxy Authentication Required" in said
            assert "secret" not in said
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{dead}")
        assert "(from https_proxy)" in await trouble(None, "127.0.0.2")
        monkeypatch.setenv("no_proxy", "127.0.0.2")
        assert "proxy" not in await trouble(None, "127.0.0.2")

    run(scenario)


def test_which_proxy(monkeypatch):
    monkeypatch.setenv("https_proxy", "http://proxy.example:3128")
    monkeypatch.setenv("no_proxy", ".inside.example")
    assert str(proxy_for("outside.example", None)) == "proxy proxy.example:3128 (from https_proxy)"
    assert proxy_for("coordinator.inside.example", None) is None
    assert proxy_for("localhost", None) is None
    assert proxy_for("outside.example", "") is proxy_for("outside.example", "none") is None
    assert "pass" not in repr(proxy_for("outside.example", "http://user:pass@other.example:80"))
    for malformed in ("https://proxy.example:1", "socks5://proxy.example:1", "http://:3128", "http://h:port"):
        with pytest.raises(ConfigError, match="names no HTTP proxy"):
            proxy_for("outside.example", malformed)


# --- Mode tls: a load balancer ends TLS, a site proves itself ---------------------------------------------------------

COORDINATOR, A, B = (SigningKey.from_bytes(bytes([n]) * 32) for n in (1, 2, 3))
PINNED = Pinned(COORDINATOR.verify_key, {"a": A.verify_key, "b": B.verify_key})


def prover(key: SigningKey = A, coordinator: SigningKey = COORDINATOR) -> Prover:
    return Prover(key, coordinator.verify_key)


def bare(folder: Path, name: str = "a") -> ClientTls:
    return ClientTls.without_certificate(folder / "authority.pem", name)


def test_sites_without_certificates_prove_themselves(folder):
    async def scenario() -> None:
        async with serving(folder, pinned=PINNED) as (server, port):
            with TcpProxy("127.0.0.1", port) as proxy:
                async with (
                    site(folder, proxy.port, tls=bare(folder), prover=prover()) as a,
                    site(folder, proxy.port, "b", tls=bare(folder, "b"), prover=prover(B)) as b,
                ):
                    await a.send("of-a", bytes(100_000))
                    await b.send("of-b", b"")
                    heard = [await server.receive(20) for _ in range(4)]
                    assert [(each.sender, each.kind) for each in heard] == [
                        ("a", "hello"),
                        ("a", "of-a"),
                        ("b", "hello"),
                        ("b", "of-b"),
                    ]
                    proxy.cut()
                    server.send("a", "down", b"1")
                    assert (await a.receive(20)).kind == "down"

    run(scenario)


@pytest.mark.parametrize(
    ("name", "proof"),
    [("a", prover(B)), ("a", prover(coordinator=B)), ("x", prover())],
    ids=["another key", "meant for another coordinator", "another name"],
)
def test_a_proof_that_does_not_hold_is_refused(folder, name, proof):
    async def scenario() -> None:
        async with serving(folder, pinned=PINNED) as (server, port):
            async with site(folder, port, name, tls=bare(folder, name), prover=proof) as client:
                with pytest.raises(ConfigError, match="did not prove itself with a key that is pinned here"):
                    await client.connect()
            assert await server.receive(0.1) is None

    run(scenario)


def test_a_site_that_was_not_told_of_the_mode_says_so(folder):
    async def scenario() -> None:
        async with serving(folder, pinned=PINNED) as (_, port), site(folder, port, tls=bare(folder)) as client:
            with pytest.raises(ConfigError, match="asks for a proof with the signing key"):
                await client.connect()

    run(scenario)


def test_a_proof_that_was_overheard_proves_nothing(folder):
    """Each call has its own challenge: the answer to an earlier one is refused, and so is a session that is guessed."""

    async def greet(channel, session: bytes, answer: Callable[[bytes], bytes]) -> object:
        call = channel.stream_stream(f"/{frames.SERVICE}/Hello", Greeting.SerializeToString, Welcome.FromString)()
        await call.write(Greeting(version=frames.VERSION, session=session, client_id="a"))
        challenge = (await call.read()).challenge
        assert len(challenge) == CHALLENGE_BYTES
        await call.write(Greeting(version=frames.VERSION, session=session, proof=answer(challenge)))
        return await call.read()

    async def scenario() -> None:
        async with serving(folder, pinned=PINNED) as (server, port):
            credentials = grpc.ssl_channel_credentials((folder / "authority.pem").read_bytes())
            async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials) as channel:
                proofs = []

                def honest(challenge: bytes) -> bytes:
                    proofs.append(prover().prove("a", bytes(16), challenge))
                    return proofs[-1]

                welcome = await greet(channel, bytes(16), honest)
                assert welcome.max_message_bytes == LIMIT
                for session in (bytes(16), b"1" * 16):
                    with pytest.raises(grpc.aio.AioRpcError, match="did not prove itself"):
                        await greet(channel, session, lambda _: proofs[0])
                with pytest.raises(grpc.aio.AioRpcError, match="did not prove itself"):  # for another session
                    await greet(channel, b"1" * 16, lambda challenge: prover().prove("a", bytes(16), challenge))
                assert [received.kind for received in (await server.receive(5),)] == ["hello"]
                assert await server.receive(0.1) is None

    run(scenario)


# --- What an operator says at the commands ----------------------------------------------------------------------------


@pytest.fixture
def parties(tmp_path) -> Path:
    """Folders of a coordinator and three sites, of which no site has a certificate."""
    home.trial(tmp_path, ["a", "b", "c"], Layout({"update": Field.floats(5, clip_range=1.0)}), max_corrupt=1)
    authority = Authority()
    for name in (home.SERVER, "a", "b", "c"):
        authority.write(tmp_path / name)
        np.save(tmp_path / name / "vector.npy", np.full(5, 0.25))
    authority.issue(tmp_path / home.SERVER, "coordinator", ["127.0.0.1"])
    return tmp_path


def test_a_round_in_mode_tls_through_a_proxy(parties):
    """Nobody has a certificate but the coordinator; every site goes out through HTTP CONNECT, one port."""

    async def scenario() -> None:
        at = asyncio.get_running_loop().create_future()

        def told(event) -> None:
            if isinstance(event, Listening):
                at.set_result(event.where)

        folder = parties / home.SERVER
        options = Options(state=folder, tls=TLS)
        running = asyncio.create_task(serving_of(Home.read(folder), 1, folder / "sums", options, told).run())
        address = await at
        async with http_proxy() as (proxy, asked):
            way = {"proxy": f"http://127.0.0.1:{proxy}", "mode": TLS, "patience": 10}
            joined = [
                join(Home.read(own), address, own / "vector.npy", own / "sums", lambda kind, facts: None, **way)
                for own in (parties / "a", parties / "b", parties / "c")
            ]
            ends = await asyncio.gather(*joined)
        assert await running == "the study is complete"
        assert [end.complete for end in ends] == [True] * 3
        assert all(line.startswith(f"CONNECT {address} ") for line in asked)
        assert len(asked) >= 3

    run(scenario, 30)
    sums = [np.load(parties / name / "sums" / "0001.npy") for name in (home.SERVER, "a", "b", "c")]
    assert all(np.allclose(each, 0.75, atol=1e-3) for each in sums)


def test_a_dead_proxy_is_named_by_the_command(parties):
    with socket.create_server(("127.0.0.1", 0)) as free:
        dead = free.getsockname()[1]
    own = parties / "a"
    given = ["join", str(own), "--coordinator", "127.0.0.1:9", "--vector", str(own / "vector.npy"), "--patience", "0.2"]
    told = CliRunner().invoke(app, [*given, "--tls", "tls", "--proxy", f"http://127.0.0.1:{dead}"])
    assert told.exit_code == 1
    assert f"proxy 127.0.0.1:{dead} (from --proxy) does not let this site out" in told.output.replace("\n", " ")


def test_a_load_balancer_has_an_authority_of_its_own(parties):
    own, balancer = parties / "a", Authority()
    assert tls_of_folder(own, "a", ["a"], TLS).authority == (own / "authority.pem").read_bytes()
    (own / BALANCER).write_bytes(balancer.pem)
    assert tls_of_folder(own, "a", ["a"], TLS).authority == balancer.pem


@pytest.mark.parametrize("host", ["127.0.0.1", "::1"])
def test_the_address_that_is_shown_can_be_dialled(folder, host):
    async def scenario() -> None:
        server = MailboxServer(["a", "b"], server_tls(folder))
        try:
            shown = Listening(host, await server.start(host, 0)).where
        except ConfigError:
            pytest.skip(f"this computer has no {host}")
        try:
            client = MailboxClient(shown, "a", tls_of(folder), patience=2)
            await client.connect()
            await client.close()
        finally:
            await server.stop(0.0)

    run(scenario)
