"""What an importer writes runs as written, in a process that loads neither torch nor grpc nor asyncio."""

import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "grpc", "asyncio", "monai", "typer", "rich", "sqlite3", "ssl", "socket")

IMPORTER = """
import collections, queue, threading
import numpy as np
import secagg
from secagg import wire

Message = collections.namedtuple("Message", "sender data")
keys = {name: secagg.SigningKey.generate() for name in "abcd"}
server_key = secagg.SigningKey.generate()
pinned = secagg.PinnedRoster({name: key.verify_key for name, key in keys.items()})
policy = secagg.Policy(project="p", clients=4, length=3, clip_range=1.0, server_key=server_key.verify_key)
run, mine, task = "run", bytes(32), bytes(32)
book = secagg.RoundBook(run, task, server_key, policy.max_corrupt)
start = wire.decode_from_server(wire.encode(book.start(mine)))
mail, boxes = queue.Queue(), {name: queue.Queue() for name in "abcd"}

def poll():
    return mail.get()

def deadline_passed():
    return False

def site(me):
    signing_key, store, update = keys[me], secagg.MemoryStore(), np.full(3, 0.25)
    def send(data):
        mail.put(Message(me, data))
    recv = boxes[me].get

    opened = secagg.open_round(policy, pinned, run, start, store, model_hash=mine, task_hash=task)
    client = secagg.ClientSession(policy, me, signing_key, pinned, opened, store)
    send(wire.encode(client.start()))
    client.provide(update)
    while not client.finished:
        if reply := client.receive(wire.decode_from_server(recv())):
            send(wire.encode(reply))

sites = [threading.Thread(target=site, args=(name,), daemon=True) for name in "abcd"]
for thread in sites:
    thread.start()

def send(client_id, data):
    boxes[client_id].put(data)

server = secagg.ServerSession(policy, pinned, book.context(mine), server_key)
while not server.finished:
    if message := poll():
        server.receive(message.sender, wire.decode_from_client(message.data))
    if server.ready or deadline_passed():
        for client_id, reply in server.close_step().items():
            send(client_id, wire.encode(reply))
total = secagg.dequantize(server.result, policy)

assert np.array_equal(total, np.full(3, 1.0)), total
for thread in sites:
    thread.join(10)
"""


def run_alone(code: str, heavy: tuple[str, ...]) -> None:
    """Run `code` in a fresh interpreter and check what it loaded."""
    check = f"\nimport sys\nloaded = sorted(set({heavy!r}) & set(sys.modules))\nassert not loaded, loaded\n"
    done = subprocess.run([sys.executable, "-c", code + check], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr


def blocks(page: Path) -> list[str]:
    """The Python blocks of a page that use secagg."""
    found = re.findall(r"^```python\n(.*?)^```", page.read_text(), re.MULTILINE | re.DOTALL)
    return [block for block in found if "secagg" in block]


def test_the_importers_lines_run_without_the_heavy_libraries():
    run_alone(IMPORTER, HEAVY)


def test_the_lines_of_the_howto_run_as_written():
    code = "\n".join(blocks(ROOT / "docs/howto/embed.md"))
    assert "ClientSession" in code
    run_alone(code, ("torch", "grpc", "asyncio"))


def test_the_readme_shows_the_importers_lines_and_nothing_else():
    def statements(code: str) -> list[str]:
        return [bare for line in code.splitlines() if (bare := line.split("  #")[0].strip())]

    (shown,) = (block for block in blocks(ROOT / "README.md") if "ClientSession" in block)
    assert len(statements(shown)) > 12
    assert set(statements(shown)) <= set(statements(IMPORTER))
