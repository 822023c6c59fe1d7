"""Loopback throughput and latency of the mailbox: two processes, gRPC with mutual TLS.

python tests/benchmarks/bench_rpc.py [MEGABYTES] [REPEATS]
"""

import asyncio
import json
import sys
import tempfile
import time
from pathlib import Path

from secagg.rpc.client import MailboxClient
from secagg.rpc.demo_authority import make_certificates
from secagg.rpc.server import MailboxServer
from secagg.rpc.tls import ClientTls, ServerTls

SITE = "site-a"
ROUND_TRIPS = 300


async def site(folder: Path, port: int) -> None:
    """Send every vector back; echo small messages; leave on the first empty one."""
    tls = ClientTls.load(folder / "authority.pem", folder / f"{SITE}.pem", folder / f"{SITE}.key", [SITE])
    async with MailboxClient(f"127.0.0.1:{port}", SITE, tls, max_message_bytes=1 << 32) as mailbox:
        await mailbox.connect()
        while received := await mailbox.receive():
            if not received.payload:
                return
            await mailbox.send("got", b"")
            await mailbox.send("echo", received.payload)


async def coordinator(folder: Path, size: int, repeats: int) -> None:
    tls = ServerTls.load(folder / "authority.pem", folder / "coordinator.pem", folder / "coordinator.key")
    server = MailboxServer([SITE], tls, max_message_bytes=1 << 32)
    port = await server.start("127.0.0.1", 0)
    process = await asyncio.create_subprocess_exec(sys.executable, __file__, "--site", str(folder), str(port))
    assert (await server.receive(30)).kind == "hello"
    vector, down, up, trips = bytes(size), [], [], []
    for _ in range(repeats):
        start = time.perf_counter()
        server.send(SITE, "vector", vector)
        assert (await server.receive()).kind == "got"
        middle = time.perf_counter()
        assert len((await server.receive()).payload) == size
        down.append(middle - start)
        up.append(time.perf_counter() - middle)
    for _ in range(ROUND_TRIPS):
        start = time.perf_counter()
        server.send(SITE, "ping", b"x")
        await server.receive()
        await server.receive()
        trips.append(time.perf_counter() - start)
    server.send(SITE, "end", b"")
    await process.wait()
    await server.stop(0.0)
    numbers = {
        "megabytes": size / 1e6,
        "down_mb_per_s": round(size / 1e6 / min(down)),
        "up_mb_per_s": round(size / 1e6 / min(up)),
        "down_median_mb_per_s": round(size / 1e6 / sorted(down)[repeats // 2]),
        "up_median_mb_per_s": round(size / 1e6 / sorted(up)[repeats // 2]),
        "message_and_two_replies_ms": round(1e3 * sorted(trips)[ROUND_TRIPS // 2], 2),
    }
    print(json.dumps(numbers))


def main() -> None:
    if sys.argv[1:2] == ["--site"]:
        asyncio.run(site(Path(sys.argv[2]), int(sys.argv[3])))
        return
    megabytes, repeats = (int(value) for value in (sys.argv[1:] + ["100", "5"][len(sys.argv) - 1 :]))
    with tempfile.TemporaryDirectory() as folder:
        make_certificates(Path(folder), [SITE])
        asyncio.run(coordinator(Path(folder), megabytes * 1_000_000, repeats))


if __name__ == "__main__":
    main()
