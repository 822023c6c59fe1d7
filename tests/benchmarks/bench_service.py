"""The coordinator's process alone, with many sites: peak memory, CPU time, longest block of its event loop.

python tests/benchmarks/bench_service.py [--case N D DROPPED] [--spread] [--json FILE]
python tests/benchmarks/bench_service.py --calls N [--bytes B] [--bare]

The coordinator is `secagg serve`, a process of its own. All sites live in one other process, each with a mailbox and
TLS of its own; `DROPPED` of them end where their masked input is due. All masked inputs are made first and sent at the
same moment, which is the worst for memory; with `--spread` each is sent when it is made. Memory is the kernel's
high-water mark of the whole process; CPU time is counted from when it listens, and held against a bare server session
over the same bytes (`bench_round.py`); the event loop is looked at every 100 ms. `--calls` tells what gRPC alone takes
for a call: a server of its own that takes B bytes in the largest frames, answers each, sends B bytes back, over TLS,
and does nothing else; with `--bare` the same without gRPC, a connection each: what any server pays that speaks TLS.
"""

import argparse
import asyncio
import json
import os
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Coroutine
from dataclasses import replace
from pathlib import Path
from typing import Any

import grpc
import numpy as np
from bench_round import SERVER, Meter, one_round

from secagg import Suite, home, wire
from secagg.cli import main as main_of_secagg
from secagg.errors import ProtocolError
from secagg.field import Field
from secagg.layout import Layout
from secagg.messages import MaskedInput
from secagg.printable import dialled
from secagg.rpc.client import MailboxClient
from secagg.rpc.demo_authority import make_certificates
from secagg.rpc.frames import Message, Received
from secagg.rpc.server import MailboxServer
from secagg.rpc.transport_pb2 import Frame
from secagg.service.joining import join

CASES = [(100, 10**5, 10), (100, 10**6, 10), (30, 10**6, 3)]
GOAL_MB, GOAL_CPU = 400, 1.3
LOOK_SECONDS = 0.1


# --- The coordinator's process ----------------------------------------------------------------------------------------


def measured(said: Path, arguments: list[str]) -> None:
    """Run the command, and say as JSON what its process took."""
    seen = {"blocked": 0.0, "cpu": 0.0}
    plain_run, plain_start = asyncio.run, MailboxServer.start

    async def look(main: Coroutine[Any, Any, Any]) -> Any:
        async def beat() -> None:
            while True:
                since = time.perf_counter()
                await asyncio.sleep(LOOK_SECONDS)
                seen["blocked"] = max(seen["blocked"], time.perf_counter() - since - LOOK_SECONDS)

        beating = asyncio.create_task(beat())
        try:
            return await main
        finally:
            beating.cancel()

    async def start(self: MailboxServer, host: str, port: int) -> int:
        found = await plain_start(self, host, port)
        seen["cpu"], seen["blocked"] = time.process_time(), 0.0
        return found

    asyncio.run = lambda main, **options: plain_run(look(main), **options)  # type: ignore[assignment]
    MailboxServer.start = start  # type: ignore[method-assign]
    sys.argv = ["secagg", *arguments]
    try:
        main_of_secagg()
    finally:
        status = Path("/proc/self/status").read_text().splitlines()
        peak = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
        seen["cpu"] = time.process_time() - seen["cpu"]
        said.write_text(json.dumps({"peak_mb": peak / 1024, **seen}))


# --- All sites --------------------------------------------------------------------------------------------------------


async def sites(folder: Path, address: str, names: list[str], dropped: set[str], spread: bool) -> None:
    """Every site to its end."""
    made, all_made = set[str](), asyncio.Event()
    plain_send, plain_receive, turn = MailboxClient.send, MailboxClient.receive, asyncio.Lock()

    async def receive(self: MailboxClient, timeout: float | None = None) -> Received | None:
        received = await plain_receive(self, timeout)
        async with turn:  # all mailboxes are served before the next site computes
            await asyncio.sleep(0)
        return received

    async def send(self: MailboxClient, kind: str, payload: bytes) -> None:
        if _is_input(payload):
            me = self._client_id
            if me in dropped:
                tasks[me].cancel()
                await asyncio.Event().wait()
            made.add(me)
            if len(made) == len(names) - len(dropped):
                all_made.set()
            if not spread:
                await all_made.wait()
        await plain_send(self, kind, payload)

    MailboxClient.send, MailboxClient.receive = send, receive  # type: ignore[method-assign]
    vector = folder / "vector.npy"
    tasks = {
        name: asyncio.create_task(join(home.Home.read(folder / name), address, vector, None, _not_said))
        for name in names
    }
    for ended in await asyncio.gather(*tasks.values(), return_exceptions=True):
        if isinstance(ended, Exception):  # those that were dropped were cancelled
            raise ended


def _not_said(kind: str, facts: dict[str, Any]) -> None:
    """Nobody listens to these sites."""


def _is_input(payload: bytes) -> bool:
    if len(payload) < 200:
        return False
    try:
        return isinstance(wire.decode_from_client(payload), MaskedInput)
    except ProtocolError:
        return False


# --- gRPC alone -------------------------------------------------------------------------------------------------------


def echoing(folder: Path) -> None:
    """Serve calls until the input ends, and say what a call took of this process's CPU time."""

    async def echo(frames: AsyncIterator[Frame], context: Any) -> None:
        data, size = list[bytes](), 0
        async for frame in frames:
            data.append(frame.data)
            size = max(size, frame.size)  # the first one says it
            if sum(map(len, data)) >= size:
                break
            await context.write(Frame(sequence=frame.sequence))
        for piece in data:
            await context.write(Frame(sequence=frame.sequence, data=piece))

    async def serve() -> None:
        server = grpc.aio.server()
        handler = grpc.stream_stream_rpc_method_handler(echo, Frame.FromString, Frame.SerializeToString)
        server.add_generic_rpc_handlers([grpc.method_handlers_generic_handler("echo", {"Echo": handler})])
        pair = ((folder / "coordinator.key").read_bytes(), (folder / "coordinator.pem").read_bytes())
        port = server.add_secure_port("127.0.0.1:0", grpc.ssl_server_credentials([pair]))
        await server.start()
        print(port, flush=True)
        await asyncio.to_thread(sys.stdin.readline)  # a first call was made
        began = time.process_time()
        calls = int(await asyncio.to_thread(sys.stdin.readline))
        print((time.process_time() - began) / calls, flush=True)
        await server.stop(0)

    asyncio.run(serve())


def of_a_call(calls: int, size: int) -> float:
    """CPU seconds of a server for one call with so many bytes each way."""
    message = Message(1, "secagg", bytes(size))

    async def ask(folder: Path, process: subprocess.Popen[str]) -> float:
        def said(text: str = "") -> str:
            assert process.stdin is not None
            assert process.stdout is not None
            process.stdin.write(text)
            process.stdin.flush()
            return process.stdout.readline() if not text.isspace() else ""

        port = int(said())
        credentials = grpc.ssl_channel_credentials((folder / "authority.pem").read_bytes())
        async with grpc.aio.secure_channel(dialled("127.0.0.1", port), credentials) as channel:
            echo = channel.stream_stream("/echo/Echo", Frame.SerializeToString, Frame.FromString)
            for number in range(calls + 1):
                call = echo(message.frames())
                async for _ in call:
                    pass
                if not number:
                    said("\n")
        return float(said(f"{calls}\n"))

    with tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        make_certificates(folder, ["site-a"])
        command = [sys.executable, __file__, "--echoing", str(folder)]
        with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
            return asyncio.run(ask(folder, process))


def of_bare_tls(calls: int, size: int) -> float:
    """CPU seconds of a server without gRPC that reads so many bytes over TLS, and sends as many back."""
    with tempfile.TemporaryDirectory() as made, socket.create_server(("127.0.0.1", 0)) as listener:
        folder = Path(made)
        make_certificates(folder, ["site-a"])
        asks = "import bench_service, sys; bench_service.ask_bare(*sys.argv[1:])"
        given = [str(folder / "authority.pem"), *map(str, (listener.getsockname()[1], calls, size))]
        here = Path(__file__).parent
        with subprocess.Popen([sys.executable, "-c", asks, *given], cwd=here):
            context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            context.load_cert_chain(folder / "coordinator.pem", folder / "coordinator.key")
            first, _ = listener.accept()
            began = time.process_time()
            for number in range(calls):
                plain = first if not number else listener.accept()[0]
                with context.wrap_socket(plain, server_side=True) as connection:
                    _read(connection, size)
                    connection.sendall(bytes(size))
            return (time.process_time() - began) / calls


def ask_bare(authority: str, port: str, calls: str, size: str) -> None:
    """The other end of `of_bare_tls`."""
    context = ssl.create_default_context(cafile=authority)
    for _ in range(int(calls)):
        with (
            socket.create_connection(("127.0.0.1", int(port))) as plain,
            context.wrap_socket(plain, server_hostname="localhost") as connection,
        ):
            connection.sendall(bytes(int(size)))
            _read(connection, int(size))


def _read(connection: ssl.SSLSocket, size: int) -> None:
    buffer = bytearray(1 << 20)
    while size > 0:
        size -= connection.recv_into(buffer, min(size, len(buffer)))


# --- One case ---------------------------------------------------------------------------------------------------------


def case(clients: int, length: int, dropped: int, spread: bool) -> dict[str, float]:
    """Run a federation of one round, and the bare session."""
    names = [f"site-{i:03d}" for i in range(clients)]
    gone = {names[i * clients // dropped] for i in range(dropped)}
    layout = Layout({"update": Field.floats(length, clip_range=32768.0)})
    policy = {"max_corrupt": max(clients // 5, 1), "suite": Suite.MLKEM768_X25519}
    with tempfile.TemporaryDirectory() as made:
        folder = home.trial(Path(made) / "trial", names, layout, home.Task(private=True), **policy)
        make_certificates(Path(made) / "pem", names)
        for party in [*names, home.SERVER]:
            own = "coordinator" if party == home.SERVER else party
            for name in ("authority.pem", f"{own}.pem", f"{own}.key"):
                os.link(Path(made) / "pem" / name, folder / party / name)
        np.save(folder / "vector.npy", np.ones(length))
        said, events = folder / "said", folder / "events"
        command = [sys.executable, __file__, "--measured", str(said), "serve", str(folder / home.SERVER)]
        command += [
            "--out",
            str(folder / "sums"),
            "--step-seconds",
            "600",
            "--patience",
            "600",
            "--events",
            str(events),
        ]
        with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
            while not events.is_file() or not (listening := events.read_text()).endswith("\n"):
                time.sleep(0.05)
            began = time.perf_counter()
            port = json.loads(listening.splitlines()[0])["port"]
            asyncio.run(sites(folder, f"127.0.0.1:{port}", names, gone, spread))
        if process.returncode:
            raise SystemExit("the coordinator did not complete the round")
        found = json.loads(said.read_text())
        wall = time.perf_counter() - began
        total = np.load(folder / "sums" / "0001.npy")
        if not np.array_equal(total, np.full(length, clients - dropped)):
            raise SystemExit("the sum is wrong")
        agreed = replace(home.Home.read(folder / home.SERVER).policy, server_key=b"")
    meter = Meter()
    one_round(agreed, dropped, meter)

    bare = meter.spent[SERVER]
    return {
        "clients": clients,
        "length": length,
        "dropped": dropped,
        "wall_s": wall,
        "peak_mb": found["peak_mb"],
        "cpu_s": found["cpu"],
        "bare_cpu_s": bare,
        "cpu_ratio": found["cpu"] / bare,
        "blocked_ms": 1e3 * found["blocked"],
    }


def main() -> None:
    if sys.argv[1:2] == ["--measured"]:
        measured(Path(sys.argv[2]), sys.argv[3:])
        return
    if sys.argv[1:2] == ["--echoing"]:
        echoing(Path(sys.argv[2]))
        return
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--case", nargs=3, type=int, action="append", metavar=("N", "D", "DROPPED"))
    parser.add_argument("--spread", action="store_true", help="send each masked input when it is made")
    parser.add_argument("--calls", type=int, help="measure so many calls of gRPC alone instead")
    parser.add_argument("--bytes", type=int, default=200, help="of each of these calls, each way")
    parser.add_argument("--bare", action="store_true", help="without gRPC")
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    if given.calls:
        spent = round(1e3 * (of_bare_tls if given.bare else of_a_call)(given.calls, given.bytes), 3)
        print(json.dumps({"calls": given.calls, "bytes": given.bytes, "cpu_ms_a_call": spent}))
        return
    rows = []
    for setting in given.case or CASES:
        rows.append(case(*setting, given.spread))
        print(json.dumps({key: round(value, 2) for key, value in rows[-1].items()}), flush=True)
    if given.json:
        given.json.write_text(json.dumps(rows, indent=2) + "\n")


if __name__ == "__main__":
    main()
