"""The front door with real sockets: strangers have their own few places, and sites always get in."""

import asyncio
import json
import os
import random
import resource
import socket
import ssl
import subprocess
import sys
from collections.abc import Awaitable, Callable
from contextlib import ExitStack, asynccontextmanager
from pathlib import Path

import pytest

from secagg.errors import AbortedError, ConfigError
from secagg.rpc import door as door_module
from secagg.rpc.client import MailboxClient
from secagg.rpc.demo_authority import make_certificates
from secagg.rpc.door import CONNECTIONS, Door
from secagg.rpc.tls import ClientTls
from secagg.rpc.way import STRANGERS_BYTES

SITES = ("a", "b")
HOST = "127.0.0.1"


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(bounded())


# --- A coordinator that may open 256 files, in a process of its own ---------------------------------------------------

COORDINATOR = """
import asyncio, json, resource, socket, sys
from pathlib import Path
from secagg.rpc import server as server_module
from secagg.rpc.server import MailboxServer
from secagg.rpc.tls import ServerTls

class NoDoor:
    "gRPC listens at the public port itself."
    def __init__(self, host, port, sites, named, silence):
        with socket.create_server((host, port)) as free:
            self.port = free.getsockname()[1]
        self.inner = f"{host}:{self.port}"
    def open(self): pass
    def admit(self, peer, site): pass
    def visit(self, site): return None

async def main(folder, defended, files):
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if not defended:
        server_module.Door = NoDoor
    tls = ServerTls.load(folder / "authority.pem", folder / "coordinator.pem", folder / "coordinator.key")
    server = MailboxServer(["a", "b"], tls, max_message_bytes=8 << 20)
    print(await server.start("127.0.0.1", 0), flush=True)
    while received := await server.receive():
        print(json.dumps([received.sender, received.kind, len(received.payload)]), flush=True)
        if received.kind not in ("hello", "back", "gone"):
            server.send(received.sender, "got", b"")

asyncio.run(main(Path(sys.argv[1]), sys.argv[2] == "defended", int(sys.argv[3])))
"""


@asynccontextmanager
async def coordinator(folder: Path, defended: bool = True, files: int = 256):
    arguments = ("-c", COORDINATOR, str(folder), "defended" if defended else "open", str(files))
    process = await asyncio.create_subprocess_exec(
        sys.executable, *arguments, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL
    )
    try:
        yield process, int(await process.stdout.readline())
    finally:
        process.kill()
        await process.wait()


async def heard(process) -> list:
    return json.loads(await process.stdout.readline())


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, SITES)
    return folder


def mailbox(folder: Path, port: int, name: str, patience: float | None = 30.0) -> MailboxClient:
    tls = ClientTls.load(folder / "authority.pem", folder / f"{name}.pem", folder / f"{name}.key", [name])
    return MailboxClient(f"{HOST}:{port}", name, tls, patience=patience, max_message_bytes=8 << 20)


SILENT = b""
UNFINISHED = b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03"  # the beginning of a TLS handshake


def strangers(port: int, count: int, says: bytes, opened: ExitStack) -> None:
    for _ in range(count):
        try:
            visitor = opened.enter_context(socket.create_connection((HOST, port), timeout=2))
            visitor.sendall(says)
        except OSError:  # sent away already
            continue


@pytest.fixture
def many_files():
    """The strangers are this process's files."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = 2048 if hard == resource.RLIM_INFINITY else min(hard, 2048)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, wanted), hard))
    yield
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))


@pytest.mark.parametrize(
    ("count", "files", "says"),
    [(400, 256, SILENT), (400, 256, UNFINISHED), (1100, 1024, SILENT)],
    ids=["400 silent", "400 unfinished", "1100 silent"],
)
def test_strangers_that_are_more_than_the_files_stop_no_site(folder, many_files, count, files, says):
    async def scenario() -> None:
        async with coordinator(folder, files=files) as (process, port):
            early, late = mailbox(folder, port, "a"), mailbox(folder, port, "b")
            await early.send("first", bytes(1000))
            assert [(await heard(process))[1] for _ in range(2)] == ["hello", "first"]
            with ExitStack() as opened:
                await asyncio.to_thread(strangers, port, count, says, opened)
                assert len(os.listdir(f"/proc/{process.pid}/fd")) < files
                await late.send("upload", bytes(3 << 20))
                assert [await heard(process) for _ in range(2)] == [["b", "hello", 0], ["b", "upload", 3 << 20]]
                await early.send("second", bytes(3 << 20))
                assert await heard(process) == ["a", "second", 3 << 20]  # and no "gone" before it
                assert [(await early.receive(20)).kind for _ in range(2)] == ["got", "got"]
            await early.close()
            await late.close()

    run(scenario)


def test_without_the_door_strangers_stop_a_site(folder, many_files):
    async def scenario() -> None:
        async with coordinator(folder, defended=False) as (_, port):
            with ExitStack() as opened:
                await asyncio.to_thread(strangers, port, 400, SILENT, opened)
                late = mailbox(folder, port, "b", patience=2.0)
                with pytest.raises(AbortedError, match="has not answered"):
                    await late.connect()
                await late.close()

    run(scenario)


def test_a_tls_stranger_without_a_certificate_is_sent_away(folder):
    async def scenario() -> None:
        async with coordinator(folder) as (_, port):
            context = ssl.create_default_context(cafile=str(folder / "authority.pem"))
            context.set_alpn_protocols(["h2"])
            reader, writer = await asyncio.open_connection(HOST, port, ssl=context, server_hostname="localhost")
            assert await ended(reader)
            writer.close()

    run(scenario)


# --- The door alone, before a server that counts bytes ---------------------------------------------------------------


class Inner:
    """What gRPC is to the door: names its visitors, counts their bytes, and answers the first ones with "hi"."""

    def __init__(self) -> None:
        self.bytes: dict[str, int] = {}

    async def serve(self, path: str) -> None:
        self.server = await asyncio.start_unix_server(self._attend, path)

    async def _attend(self, reader, writer) -> None:
        peer = writer.get_extra_info("peername")
        self.bytes[peer] = 0
        writer.write(b"hi")
        while data := await reader.read(1 << 20):
            self.bytes[peer] += len(data)
        writer.close()


@asynccontextmanager
async def opened(sites: int = 2, grpc: type[Inner] = Inner):
    door, inner = Door(HOST, 0, sites), grpc()
    await inner.serve(door.inner.removeprefix("unix:"))
    door.open()
    try:
        yield door, inner
    finally:
        await door.close()
        inner.server.close()


async def visit(door: Door, says: bytes = b"x", address: str = HOST) -> asyncio.StreamReader:
    """A visitor whose connection has reached the inner server."""
    reader, writer = await asyncio.open_connection(HOST, door.port, local_addr=(address, 0))
    reader.writer = writer  # a writer that nobody holds closes its connection
    writer.write(says)
    assert await reader.readexactly(2) == b"hi"
    return reader


async def ended(reader: asyncio.StreamReader) -> bool:
    try:
        return not await reader.read(1)
    except OSError:
        return True


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


def test_the_oldest_stranger_of_the_address_with_most_makes_room():
    async def scenario() -> None:
        async with opened() as (door, _):
            door.strangers = 4
            lonely = await visit(door, address="127.0.0.1")
            crowd = [await visit(door, address="127.0.0.2") for _ in range(10)]
            for reader in crowd[:7]:
                assert await ended(reader)
            assert not any(reader.at_eof() for reader in [*crowd[7:], lonely])
            assert len(door._visitors) == 4

    run(scenario)


def test_a_site_is_no_stranger_any_more():
    async def scenario() -> None:
        async with opened() as (door, inner):
            door.strangers = 3
            site = await visit(door)
            door.admit(f"unix:{next(iter(inner.bytes))}", "a")
            await until(lambda: next(iter(door._visitors.values())).site == "a")
            crowd = [await visit(door) for _ in range(12)]
            for reader in crowd[:9]:
                assert await ended(reader)
            assert not site.at_eof()
            assert len(door._visitors) == 4

    run(scenario)


def test_a_site_keeps_its_newest_connections():
    async def scenario() -> None:
        async with opened() as (door, inner):
            own = [await visit(door) for _ in range(CONNECTIONS + 3)]
            for peer in list(inner.bytes):
                door.admit(f"unix:{peer}", "a")
            for reader in own[:3]:
                assert await ended(reader)
            assert not any(reader.at_eof() for reader in own[3:])
            assert {visitor.site for visitor in door._visitors.values()} == {"a"}

    run(scenario)


def test_strangers_have_a_deadline_and_sites_none(monkeypatch):
    monkeypatch.setattr(door_module, "GREETING_SECONDS", 1.0)

    async def scenario() -> None:
        async with opened() as (door, inner):
            site = await visit(door)
            door.admit(f"unix:{next(iter(inner.bytes))}", "a")
            talker = await visit(door)
            silent, writer = await asyncio.open_connection(HOST, door.port)
            assert await ended(silent)
            assert await ended(talker)
            writer.close()
            assert not site.at_eof()
            assert len(door._visitors) == 1
            assert len(inner.bytes) == 2  # who says nothing never reaches gRPC

    run(scenario)


def test_a_stranger_sends_a_few_bytes_only_until_it_is_known():
    sent = 20 << 20

    async def scenario() -> None:
        async with opened() as (door, inner):
            visitor = await visit(door, bytes(sent))
            (peer,) = inner.bytes
            await asyncio.sleep(0.5)
            assert inner.bytes[peer] <= 2 * STRANGERS_BYTES
            door.admit(f"unix:{peer}", "a")
            await until(lambda: inner.bytes[peer] == sent)
            assert not visitor.at_eof()

    run(scenario)


class Sending(Inner):
    """Answers the second bytes of each visitor with a message, and says how far it has come."""

    message = random.Random(1).randbytes(20 << 20)
    given = 0

    async def _attend(self, reader, writer) -> None:
        self.bytes[writer.get_extra_info("peername")] = 0
        await reader.read(1)
        writer.write(b"hi")
        await reader.read(1)
        for start in range(0, len(self.message), 1 << 16):
            writer.write(self.message[start : start + (1 << 16)])
            await writer.drain()
            self.given = start
        await reader.read()


def test_what_a_site_does_not_take_is_not_read_on_and_comes_whole_and_in_order():
    async def scenario() -> None:
        async with opened(grpc=Sending) as (door, inner):
            reader = await visit(door)
            door.admit(f"unix:{next(iter(inner.bytes))}", "a")
            reader.writer.write(b"y")
            await asyncio.sleep(0.5)
            assert inner.given < len(Sending.message) - (1 << 16)  # the kernel holds some
            assert await reader.readexactly(len(Sending.message)) == Sending.message

    run(scenario)


def test_names_that_are_no_visitors_are_ignored():
    async def scenario() -> None:
        async with opened() as (door, _):
            for peer in ("", "unix:/tmp/x/7", "unix:", "ipv4:127.0.0.1:7", "unix:/tmp/x/-1"):
                door.admit(peer, "a")
            reader = await visit(door)
            assert [visitor.site for visitor in door._visitors.values()] == [""]
            assert not reader.at_eof()

    run(scenario)


@pytest.mark.parametrize(
    ("first", "second", "same"),
    [
        ("192.0.2.1", "192.0.2.2", False),
        ("2001:db8:1:2::3", "2001:db8:1:2:ffff::4", True),
        ("2001:db8:1:2::3", "2001:db8:1:3::3", False),
        ("::ffff:192.0.2.1", "192.0.2.1", True),
        ("fe80::1%eth0", "fe80::2%eth0", True),
    ],
)
def test_what_one_stranger_can_choose_freely_is_one_address(first, second, same):
    assert (door_module._network(first) == door_module._network(second)) == same


@pytest.mark.parametrize(("soft", "hard", "sites"), [(1024, 1024, 100), (256, 256, 2), (256, 4096, 100)])
def test_sites_come_before_strangers(monkeypatch, soft, hard, sites):
    limits = [(soft, hard)]
    monkeypatch.setattr(resource, "getrlimit", lambda _: limits[-1])
    monkeypatch.setattr(resource, "setrlimit", lambda _, new: limits.append(new))
    monkeypatch.setattr(door_module.os, "listdir", lambda _: ["0", "1", "2"])  # whatever other tests left open
    places = door_module._places(sites)
    assert 8 <= places <= 256
    assert 3 * (CONNECTIONS * sites + places) < limits[-1][0] <= hard


def test_too_few_files_for_the_sites_are_refused_at_the_start(monkeypatch):
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 256))
    with pytest.raises(
        ConfigError, match=r"may open 256 files and 100 sites need \d+; raise the limit \(ulimit -n \d+"
    ):
        Door(HOST, 0, 100)
