"""What one client can make the coordinator hold, counted and measured: a budget over all its streams and queues."""

import asyncio
import json
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.errors import AbortedError
from secagg.rpc import frames, server
from secagg.rpc.client import MailboxClient
from secagg.rpc.frames import CHUNK_BYTES, Assembler, Message
from secagg.rpc.server import UNTAKEN, MailboxServer
from secagg.rpc.tls import ClientTls, ServerTls, make_certificates
from secagg.rpc.transport_pb2 import Frame, Greeting, Position, Welcome

LIMIT = 8 << 20
MIB = 1 << 20


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("certificates")
    make_certificates(folder, ["a", "b"])
    return folder


def tls_of(folder: Path, name: str = "a") -> ClientTls:
    return ClientTls.load(folder / "authority.pem", folder / f"{name}.pem", folder / f"{name}.key", [name])


@asynccontextmanager
async def serving(folder: Path, limit: int = LIMIT):
    tls = ServerTls.load(folder / "authority.pem", folder / "coordinator.pem", folder / "coordinator.key")
    mailbox = MailboxServer(["a", "b"], tls, max_message_bytes=limit, gone_after=0.2)
    try:
        yield mailbox, await mailbox.start("127.0.0.1", 0)
    finally:
        await mailbox.stop(0.0)


@asynccontextmanager
async def raw(folder: Path, port: int):
    tls = tls_of(folder)
    credentials = grpc.ssl_channel_credentials(tls.authority, tls.key, tls.certificate)
    options = [("grpc.use_local_subchannel_pool", 1)]
    async with grpc.aio.secure_channel(f"127.0.0.1:{port}", credentials, options) as channel:
        yield channel


async def hello(channel, session: bytes = bytes(16)):
    call = channel.unary_unary(f"/{frames.SERVICE}/Hello", Greeting.SerializeToString, Welcome.FromString)
    return await call(Greeting(version=frames.VERSION, session=session), timeout=20)


def sending(channel, session: bytes = bytes(16)):
    call = channel.stream_unary(f"/{frames.SERVICE}/Send", Frame.SerializeToString, Position.FromString)
    return call(metadata=((frames.SESSION_KEY, session),), timeout=60)


async def post(channel, message: Message) -> grpc.StatusCode:
    call = sending(channel)
    for frame in message.frames():
        await call.write(frame)
    await call.done_writing()
    return await call.code()


async def stall(channel, size: int, chunks: int):
    """An upload that stops in the middle."""
    call = sending(channel)
    await call.write(Frame(sequence=1, kind="k", size=size, data=bytes(CHUNK_BYTES)))
    for _ in range(chunks - 1):
        await call.write(Frame(sequence=1, data=bytes(CHUNK_BYTES)))
    return call


def run(scenario: Callable[[], Awaitable[None]]) -> None:
    async def bounded() -> None:
        async with asyncio.timeout(60):
            await scenario()

    asyncio.run(bounded())


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.01)


# --- Uploads that are superseded --------------------------------------------------------------------------------------

COORDINATOR = """
import asyncio, sys
from pathlib import Path
from secagg.rpc import server
from secagg.rpc.tls import ServerTls

def resident():
    status = Path("/proc/self/status").read_text()
    return int(status.split("VmRSS:")[1].split()[0]) << 10

async def main(folder, limit, defended):
    if not defended:
        server._end = lambda call: None
        server._OPTIONS = [option for option in server._OPTIONS if option[0] != "grpc.max_concurrent_streams"]
    tls = ServerTls.load(folder / "authority.pem", folder / "coordinator.pem", folder / "coordinator.key")
    mailbox = server.MailboxServer(["a", "b"], tls, max_message_bytes=limit)
    print(await mailbox.start("127.0.0.1", 0), flush=True)
    async def measure():
        for line in iter(await asyncio.to_thread(sys.stdin.readline), ""):
            print(resident(), flush=True)
            line = await asyncio.to_thread(sys.stdin.readline)
    while True:
        if await asyncio.to_thread(sys.stdin.readline):
            print(resident(), flush=True)

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3] == "defended"))
"""
