"""What one client can make the coordinator hold, counted and measured: a budget over all its streams and queues."""

import asyncio
import subprocess
import sys
import tracemalloc
from collections.abc import Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import grpc
import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.rpc import frames
from secagg.rpc import pace as pace_module
from secagg.rpc import turns as turns_module
from secagg.rpc.client import MailboxClient
from secagg.rpc.demo_authority import make_certificates
from secagg.rpc.frames import Assembler, Message
from secagg.rpc.pace import CHUNK_BYTES, PIECE_BYTES, Pace
from secagg.rpc.peer import UNTAKEN
from secagg.rpc.server import MailboxServer
from secagg.rpc.tls import ClientTls, ServerTls
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


def site(folder: Path, port: int) -> MailboxClient:
    return MailboxClient(f"127.0.0.1:{port}", "a", tls_of(folder), max_message_bytes=LIMIT)


async def hello(channel, session: bytes = bytes(16)):
    call = channel.unary_unary(f"/{frames.SERVICE}/Hello", Greeting.SerializeToString, Welcome.FromString)
    return await call(Greeting(version=frames.VERSION, session=session), timeout=20)


def sending(channel, session: bytes = bytes(16)):
    call = channel.stream_stream(f"/{frames.SERVICE}/Send", Frame.SerializeToString, Position.FromString)
    return call(metadata=((frames.SESSION_KEY, session),), timeout=60)


async def post(channel, message: Message) -> grpc.StatusCode:
    call = sending(channel)
    with suppress(grpc.aio.AioRpcError, asyncio.InvalidStateError):
        for frame in message.frames():
            await call.write(frame)
        await call.done_writing()
    return await ended(call)


async def ended(call) -> grpc.StatusCode:
    """How a call ended: its status comes behind what was not read yet."""
    with suppress(grpc.aio.AioRpcError):
        while await call.read() is not grpc.aio.EOF:
            pass
    return await call.code()


async def stall(channel, size: int, chunks: int):
    """An upload that stops in the middle."""
    call = sending(channel)
    await call.write(Frame(sequence=1, kind="k", size=size))
    have = (await call.read()).offset
    for offset in range(have, chunks * CHUNK_BYTES, CHUNK_BYTES):
        await call.write(Frame(sequence=1, data=bytes(CHUNK_BYTES), offset=offset))
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

async def main(folder, limit):
    tls = ServerTls.load(folder / "authority.pem", folder / "coordinator.pem", folder / "coordinator.key")
    mailbox = server.MailboxServer(["a", "b"], tls, max_message_bytes=limit)
    print(await mailbox.start("127.0.0.1", 0), flush=True)
    while True:
        if await asyncio.to_thread(sys.stdin.readline):
            print(resident(), flush=True)

asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2])))
"""


def test_unfinished_uploads_cost_one(folder):
    """120 stalled uploads of one site with 7 MiB each: the coordinator's own memory, in a process of its own."""

    async def scenario() -> None:
        arguments = ("-c", COORDINATOR, str(folder), str(LIMIT))
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
        child = await asyncio.create_subprocess_exec(sys.executable, *arguments, **pipes)

        async def resident() -> int:
            child.stdin.write(b"how much?\n")
            return int(await child.stdout.readline())

        try:
            port = int(await child.stdout.readline())
            async with raw(folder, port) as channel:
                await hello(channel)
                before, calls = await resident(), []
                for _ in range(120):
                    call = await stall(channel, LIMIT, 28)
                    calls.append(asyncio.create_task(ended(call)))
                await asyncio.sleep(0.3)
                held = await resident() - before
                assert [call.done() for call in calls] == [True] * 119 + [False]
                calls[-1].cancel()
                assert held < 64 * MIB
        finally:
            child.kill()
            await child.wait()

    run(scenario)


def test_a_new_session_ends_the_uploads_of_the_old_one(folder):
    async def scenario() -> None:
        async with serving(folder) as (mailbox, port), raw(folder, port) as channel:
            await hello(channel)
            call = await stall(channel, LIMIT, 2)
            await until(lambda: mailbox._peers["a"].upload is not None)
            await hello(channel, b"1" * 16)
            assert await ended(call) is grpc.StatusCode.CANCELLED
            assert mailbox._peers["a"].upload is None

    run(scenario)


def test_a_newer_poll_ends_the_older_one_even_where_it_is_stuck(folder):
    """Whoever polls again and again without reading does not make the coordinator keep a message for each."""

    async def scenario() -> None:
        async with serving(folder) as (mailbox, port), raw(folder, port) as channel:
            await hello(channel)
            await mailbox.receive(20)
            mailbox.send("a", "vector", bytes(LIMIT))
            receive = channel.stream_stream(f"/{frames.SERVICE}/Receive", Position.SerializeToString, lambda data: data)
            ended, push = [], mailbox._push

            async def watched(*rest) -> None:
                try:
                    await push(*rest)
                finally:
                    ended.append(True)

            mailbox._push = watched
            calls = []
            for _ in range(3):
                call = receive(metadata=((frames.SESSION_KEY, bytes(16)),), timeout=60)
                await call.write(Position())
                calls.append(call)
                await asyncio.sleep(0.1)
            await until(lambda: len(ended) == 2)
            for call in calls:
                call.cancel()

    run(scenario)


# --- Messages that wait -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 70_000, 900_000])
def test_unread_messages_of_one_client_stay_within_its_budget(folder, size):
    """Count and bytes: an owner that reads nothing holds the limit and a megabyte, and everything is read later."""
    limit = MIB

    async def scenario() -> None:
        async with serving(folder, limit) as (mailbox, port), raw(folder, port) as channel:
            await hello(channel)
            taken = 0
            while (code := await post(channel, Message(taken + 1, "k", bytes(size)))) is grpc.StatusCode.OK:
                taken += 1
            # A refusal that overtakes frames which are still written may read as the call's own failure.
            assert code in (grpc.StatusCode.RESOURCE_EXHAUSTED, grpc.StatusCode.INTERNAL)
            held = [item[2] for item in mailbox._inbox._queue]
            assert 1 <= taken == len(held) - 1 <= (limit + CHUNK_BYTES) // 4096
            assert sum(len(received.payload) for received in held) <= limit + CHUNK_BYTES
            for _ in held:
                await mailbox.receive(20)
            assert mailbox._peers["a"].unread == 0
            assert await post(channel, Message(taken + 1, "k", bytes(size))) is grpc.StatusCode.OK

    run(scenario)


def test_a_large_message_waits_for_the_one_before(folder):
    async def scenario() -> None:
        async with serving(folder) as (mailbox, port), site(folder, port) as a:
            both = asyncio.gather(a.send("one", bytes(LIMIT)), a.send("two", bytes(LIMIT)))
            await until(lambda: mailbox._peers["a"].arrived == 1)
            await asyncio.sleep(0.3)
            assert mailbox._peers["a"].arrived == 1
            kinds = [await mailbox.receive(20) for _ in range(3)]
            assert [(received.kind, len(received.payload)) for received in kinds] == [
                ("hello", 0),
                ("one", LIMIT),
                ("two", LIMIT),
            ]
            await both

    run(scenario)


def test_who_comes_and_goes_does_not_fill_the_inbox_with_news(folder):
    async def scenario() -> None:
        async with serving(folder, 4096) as (mailbox, port), raw(folder, port) as channel:
            refused = 0
            for number in range(400):
                try:
                    await hello(channel, number.to_bytes(16, "big"))
                except grpc.aio.AioRpcError as error:
                    refused += error.code() is grpc.StatusCode.RESOURCE_EXHAUSTED
            assert refused > 100
            assert mailbox._inbox.qsize() <= (4096 + CHUNK_BYTES) // 4096 + 1

    run(scenario)


@pytest.mark.parametrize(("size", "count"), [(LIMIT, UNTAKEN), (0, (UNTAKEN * LIMIT + CHUNK_BYTES) // 4096)])
def test_a_client_that_takes_nothing_is_gone(folder, size, count):
    """Whatever it makes the owner send it: 600 requests for a transcript once cost 3.6 GB."""
    limit = LIMIT
    payload = bytes(size)

    async def scenario() -> None:
        async with serving(folder, limit) as (mailbox, port), raw(folder, port) as channel:
            await hello(channel)
            assert (await mailbox.receive(20)).kind == "hello"
            for _ in range(count):
                mailbox.send("a", "transcript", payload)
            peer = mailbox._peers["a"]
            assert peer.untaken <= UNTAKEN * limit + CHUNK_BYTES
            assert mailbox.connected() == {"a"}
            mailbox.send("a", "transcript", payload)
            assert (await mailbox.receive(20)).kind == "gone"
            assert (peer.untaken, len(peer.queue), mailbox.connected()) == (0, 0, set())
            assert await post(channel, Message(1, "k", b"")) is grpc.StatusCode.NOT_FOUND
            await hello(channel, b"1" * 16)
            assert (await mailbox.receive(20)).kind == "hello"
            mailbox.send("a", "transcript", payload)
            assert len(peer.queue) == 1

    run(scenario)


def test_a_client_that_is_gone_for_not_reading_begins_anew(folder):
    async def scenario() -> None:
        async with serving(folder) as (mailbox, port), site(folder, port) as a:
            await a.connect()
            assert (await mailbox.receive(20)).kind == "hello"
            mailbox._dismiss(mailbox._peers["a"])
            assert (await a.receive(20)).kind == "hello"
            assert [(await mailbox.receive(20)).kind for _ in range(2)] == ["gone", "hello"]

    run(scenario)


def test_what_is_acknowledged_leaves_the_budget(folder):
    async def scenario() -> None:
        async with serving(folder) as (mailbox, port), site(folder, port) as a:
            await a.connect()
            await mailbox.receive(20)
            for _ in range(3 * UNTAKEN):
                mailbox.send("a", "vector", bytes(LIMIT))
                assert len((await a.receive(20)).payload) == LIMIT
            await until(lambda: mailbox._peers["a"].untaken == 0)

    run(scenario)


# --- Frames -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [LIMIT, LIMIT - 1, 5 * CHUNK_BYTES + 1])
def test_a_stream_takes_its_bytes_an_eighth_more_and_a_frame(size):
    frames_of_it = [frame.SerializeToString() for frame in Message(1, "k", bytes(size)).frames()]
    assembler = Assembler(LIMIT)
    tracemalloc.start()
    try:
        messages = [assembler.add(Frame.FromString(frame)) for frame in frames_of_it]
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert messages[-1].payload == bytes(size)
    assert peak < size * 9 / 8 + 2 * CHUNK_BYTES


@given(st.integers(0, 3 * CHUNK_BYTES + 2), st.lists(st.integers(0, CHUNK_BYTES + 1), max_size=5))
def test_no_frame_but_the_last_is_small(size, sizes):
    """Any other division of a message is refused at its first frame that is too small or too large."""
    assembler, have = Assembler(4 * CHUNK_BYTES), 0
    for number, length in enumerate(sizes):
        head = {"kind": "k", "size": size} if number == 0 else {}
        frame = Frame(sequence=1, data=bytes(length), offset=have, **head)
        if number == 0 and not length and size:  # the announcement
            assert assembler.add(frame) is None
            continue
        if not min(PIECE_BYTES, size - have) <= length <= min(CHUNK_BYTES, size - have):
            with pytest.raises(ValueError, match="a frame is too small, or larger than what is left"):
                assembler.add(frame)
            return
        have += length
        message = assembler.add(frame)
        if have == size:
            assert len(message.payload) == size
            return
        assert message is None


@given(st.integers(1, 3 * CHUNK_BYTES), st.lists(st.integers(0, 3 * CHUNK_BYTES), max_size=4))
def test_a_message_goes_on_where_each_call_was_cut(size, cuts):
    payload = bytes(range(256)) * (size // 256 + 1)
    message, assembler, sent = Message(3, "k", payload[:size]), Assembler(4 * CHUNK_BYTES), 0
    for cut in [*cuts, 4 * CHUNK_BYTES]:
        assembler.begin_call()
        have = assembler.have
        for frame in message.frames(have, Pace()):
            if frame.offset + len(frame.data) > cut and len(frame.data) < size - have:
                break
            assert frame.offset == assembler.have
            sent += len(frame.data)
            if (whole := assembler.add(frame)) is not None:
                assert whole == message
                assert sent == size
                return


def test_an_upload_that_goes_on_as_another_message_is_refused():
    assembler = Assembler(4 * CHUNK_BYTES)
    assembler.add(Frame(sequence=1, kind="k", size=2 * CHUNK_BYTES))
    assembler.add(Frame(sequence=1, data=bytes(CHUNK_BYTES)))
    for other in ({"kind": "other"}, {"size": 3 * CHUNK_BYTES}, {"sequence": 2}):
        assembler.begin_call()
        with pytest.raises(ValueError, match="went on as another one"):
            assembler.add(Frame(**({"sequence": 1, "kind": "k", "size": 2 * CHUNK_BYTES} | other)))


# --- The speed of a line ----------------------------------------------------------------------------------------------


def test_frames_are_a_second_of_the_measured_line(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(pace_module, "monotonic", lambda: now[0])
    pace = Pace()
    assert (pace.rate, pace.piece()) == (0.0, 32 << 10)
    pace.begin()
    for _ in range(40):
        now[0] += 0.5
        pace.progress(50_000)
    assert pace.rate == pytest.approx(100_000)
    assert pace.piece() == 100_000
    pace.broke()
    assert (pace.piece(), pace.rate) == (PIECE_BYTES, pytest.approx(100_000))
    now[0] += 1000.0  # nothing was on its way: no measure
    pace.begin()
    for _ in range(400):
        now[0] += 0.1
        pace.progress(5 << 20)
    assert pace.piece() == CHUNK_BYTES
    transfer = pace.transfer("k", 100 << 20, 50 << 20)
    assert transfer.seconds_left() == pytest.approx(1.0, rel=0.01)
    now[0] += 7.0
    assert pace.transfer("k", 10, 0).still == pytest.approx(7.0)


# --- Large uploads take turns -----------------------------------------------------------------------------------------


def test_large_uploads_take_turns_and_a_slow_one_keeps_nobody_waiting(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(turns_module, "monotonic", lambda: now[0])

    async def scenario() -> None:
        unread = [0]
        turns = turns_module.Turns(100, lambda: unread[0])
        waiting = {who: asyncio.create_task(turns.wait(who, 40)) for who in "abcdef"}

        async def in_turn() -> str:
            await asyncio.sleep(0.25)
            return "".join(who for who, task in waiting.items() if task.done())

        assert await in_turn() == "ab"
        turns.done("a")
        assert await in_turn() == "abc"
        now[0] += turns_module.SECONDS + 0.1  # b and c are slow: they do not count any more
        assert await in_turn() == "abcde"
        unread[0] = 70  # the owner is behind
        turns.done("d"), turns.done("e")
        assert await in_turn() == "abcde"
        unread[0] = 60
        assert await in_turn() == "abcdef"

    run(scenario)


@pytest.mark.parametrize("while_it", ["flushes", "stops"])
def test_a_mailbox_that_is_cancelled_as_it_stops_has_stopped(folder, while_it):
    """A server that was left running could hang the interpreter as it ended."""

    async def scenario() -> None:
        tls = ServerTls.load(folder / "authority.pem", folder / "coordinator.pem", folder / "coordinator.key")
        mailbox = MailboxServer(["a", "b"], tls, max_message_bytes=LIMIT)
        port = await mailbox.start("127.0.0.1", 0)
        async with raw(folder, port) as channel:
            await hello(channel)
            await mailbox.receive()
            mailbox.send("a", "kind", b"which nobody takes")
            stopping = asyncio.create_task(mailbox.stop(60.0 if while_it == "flushes" else 0.0))
            for _ in range(3):
                await asyncio.sleep(0)
            assert not stopping.done()
            stopping.cancel()
            with pytest.raises(asyncio.CancelledError):
                await stopping
        with pytest.raises(ConnectionRefusedError):
            await asyncio.open_connection("127.0.0.1", port)

    asyncio.run(scenario())
