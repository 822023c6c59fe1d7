"""What an importer writes runs as written, in a process that loads neither torch nor grpc nor asyncio."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np

import secagg
from secagg.prg import Stream
from secagg.quantize import quantize
from tests.support.typing_errors import complaints

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "grpc", "asyncio", "monai", "typer", "rich", "sqlite3", "ssl", "socket")

IMPORTER = """
import collections, queue, threading
import numpy as np
import secagg

Message = collections.namedtuple("Message", "sender data")
names = "abcdef"
keys = {name: secagg.SigningKey.generate() for name in names}
server_key = secagg.SigningKey.generate()
pinned = secagg.PinnedRoster({name: key.verify_key for name, key in keys.items()})
policy = secagg.Policy(project="p", clients=6, length=3, clip_range=1.0, server_key=server_key.verify_key)
run, mine, task = "run", bytes(32), bytes(32)
book = secagg.RoundBook(run, task, server_key, policy.max_corrupt)
mail, boxes = queue.Queue(), {name: queue.Queue() for name in names}
clock, heard = [0.0], []
STRAGGLER, RUBBISH = "e", "f"

def now():
    return clock[-1]

def poll(deadline):
    if server.awaited <= {STRAGGLER}:
        clock.append(deadline)
        return None
    return mail.get()

def site(me):
    signing_key, store, update = keys[me], secagg.MemoryStore(), np.full(3, 0.25)
    recv, done = boxes[me].get, None
    def send(data):
        mail.put(Message(me, data))

    client = secagg.ClientDriver(policy, me, signing_key, pinned, store, training_run=run, task_hash=task)
    client.model_hash = mine
    while not done:
        actions = client.receive(recv(), now())
        for action in actions:
            match action:
                case secagg.Send():
                    send(action.data)
                case secagg.NeedInput():
                    actions += client.provide(update)
                case secagg.Completed() | secagg.Failed():
                    done = action
    heard.append(done)

def rubbish():
    while True:
        boxes[RUBBISH].get()
        mail.put(Message(RUBBISH, b"rubbish"))

sites = [threading.Thread(target=site, args=(name,), daemon=True) for name in "abcd"]
for thread in [*sites, threading.Thread(target=rubbish, daemon=True)]:
    thread.start()

def send(client_id, data):
    boxes[client_id].put(data)

outcome = None
server = secagg.ServerDriver(policy, pinned, book, step_seconds=30)
actions = server.begin(mine, now=now())
while True:
    for action in actions:
        match action:
            case secagg.Send():
                send(action.to, action.data)
            case secagg.Completed() | secagg.Failed():
                outcome = action
    if outcome:
        break
    message = poll(server.deadline)
    actions = server.receive(message.sender, message.data, now()) if message else server.tick(now())

assert outcome.included == tuple("abcd"), outcome
assert np.array_equal(outcome.total, np.full(3, 1.0)), outcome.total
for thread in sites:
    thread.join(10)
assert [told.included for told in heard] == [outcome.included] * 4, heard
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


def test_the_importers_lines_survive_a_straggler_and_rubbish_without_the_heavy_libraries():
    run_alone(IMPORTER, HEAVY)


def test_the_lines_of_the_howto_run_as_written():
    code = "\n".join(blocks(ROOT / "docs/howto/embed.md"))
    assert "ClientDriver" in code
    run_alone(code, ("torch", "grpc", "asyncio"))


README_NAMES = """
from collections.abc import Callable
from typing import Any, NamedTuple
import numpy as np
import secagg

class Message(NamedTuple):
    sender: str
    data: bytes

me: str
mine: bytes
run: str
task: bytes
pinned: secagg.PinnedRoster
store: secagg.Store
signing_key: secagg.SigningKey
server_key: secagg.SigningKey
book: secagg.RoundBook
recv: Callable[[], bytes]
now: Callable[[], float]
send: Callable[..., None]
poll: Callable[[float | None], Message | None]
done: secagg.Completed | secagg.Failed | None = None
outcome: secagg.Completed | secagg.Failed | None = None
policy: secagg.Policy
update: Any
"""
"""What an importer has before README's lines begin, with its types."""


def test_the_importers_lines_are_clean_for_a_strict_type_checker(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    (readme,) = (block for block in blocks(ROOT / "README.md") if "ClientDriver" in block)
    (fields,) = (block for block in blocks(ROOT / "README.md") if "Layout" in block)
    client, server = readme.split("\nserver = ")
    for code in (client, f"server = {server}", fields):
        assert complaints(README_NAMES + code, tmp_path) == ""
    assert complaints("\n".join(blocks(ROOT / "docs/howto/embed.md")), tmp_path) == ""
    assert "arg-type" in complaints("import secagg\nsecagg.Policy(project=3, clients=3)\n", tmp_path)


def test_the_readmes_fields_give_a_policy_that_takes_its_update():
    (shown,) = (block for block in blocks(ROOT / "README.md") if "Layout" in block)
    names: dict[str, Any] = {"np": np, "secagg": secagg, "server_key": secagg.SigningKey.generate()}
    exec(shown, names)
    result = quantize(names["update"], names["policy"], "a", Stream())[0]
    assert int(secagg.sums(result, names["policy"])["seen"]) == 12_345


def test_the_readme_shows_the_importers_lines_and_nothing_else():
    def statements(code: str) -> list[str]:
        return [bare for line in code.splitlines() if (bare := line.split("  #")[0].strip())]

    (shown,) = (block for block in blocks(ROOT / "README.md") if "ClientDriver" in block)
    assert len(statements(shown)) > 12
    assert set(statements(shown)) <= set(statements(IMPORTER))
