"""What stays of a round in a run of many: a coordinator and its sites over sockets and TLS, in one process."""

import asyncio
import gc
import json
import subprocess
import sys
from collections import Counter
from pathlib import Path

import numpy as np

from secagg import Suite, home, keys
from secagg.field import Field
from secagg.keys import SigningKey, verify
from secagg.layout import Layout
from secagg.printable import dialled
from secagg.rpc.authority import Authority
from secagg.rpc.tls import COORDINATOR
from secagg.service.events import Listening, Summed
from secagg.service.joining import join
from secagg.service.running import Options
from secagg.service.serving import serving

SITES = ("site-a", "site-b", "site-c")
FIRST, LAST = 6, 36
WATCHED = ("secagg", "grpc", "_asyncio", "re", "pathlib", "sqlite3")
RECEIPT = "secagg.messages.Receipt"


def objects() -> Counter[str]:
    """How many there are of each type of the packages that a round runs through."""
    gc.collect()
    kinds = Counter(map(type, gc.get_objects()))
    named = {f"{kind.__module__}.{kind.__qualname__}": count for kind, count in kinds.items()}
    return Counter({name: count for name, count in named.items() if name.split(".")[0] in WATCHED})


async def run_of_many_rounds(folder):
    """The objects after the sums of rounds `FIRST` and `LAST`."""
    home.trial(folder, SITES, Layout({"update": Field.floats(50, clip_range=1.0)}), max_corrupt=1, suite=Suite.X25519)
    authority = Authority()
    for name, issued in ((home.SERVER, COORDINATOR), *zip(SITES, SITES, strict=True)):
        authority.write(folder / name)
        authority.issue(folder / name, issued, ["127.0.0.1"] if issued == COORDINATOR else [])
    np.save(folder / "vector.npy", np.zeros(50))
    seen, listening = {}, asyncio.get_running_loop().create_future()

    def hear(event):
        match event:
            case Listening(port=port):
                listening.set_result(dialled("127.0.0.1", port))
            case Summed(round=number) if number in (FIRST, LAST):
                seen[number] = objects()

    server = home.Home.read(folder / home.SERVER)
    options = Options(state=server.folder, reserve_bytes=0)
    running = asyncio.create_task(serving(server, LAST + 1, folder / "sums", options, hear).run())
    given = (await listening, folder / "vector.npy", None, lambda kind, facts: None)
    await asyncio.gather(running, *(join(home.Home.read(folder / site), *given) for site in SITES))
    return seen[FIRST], seen[LAST]


def tell(folder):
    """Print the two counts: a process of its own has nothing of other tests in it."""
    print(json.dumps(asyncio.run(run_of_many_rounds(Path(folder)))))


def test_of_a_round_nothing_stays_in_memory_but_its_receipt(tmp_path):
    """Among what stayed were the account of every round and a compiled pattern for each."""
    code = f"from tests.secagg import test_secagg_growth as here; here.tell({str(tmp_path)!r})"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    first, last = (Counter(told) for told in json.loads(ran.stdout.splitlines()[-1]))
    rounds = LAST - FIRST
    assert last[RECEIPT] - first[RECEIPT] <= 2 * rounds  # in the book, and in the start that was told last
    grew = {name: count for name, count in (last - first).items() if count >= rounds and name != RECEIPT}
    assert not grew


def test_a_long_message_is_verified_and_not_remembered():
    """The start of a round holds every receipt: 512 of the last ones were kept, each longer than the one before."""
    key = SigningKey.generate()
    for size, kept in ((100, 1), (keys._KEPT_BYTES + 1, 0)):
        message = bytes(size)
        before = keys._verified.cache_info().misses
        assert verify(key.verify_key, message, key.sign(message))
        assert not verify(key.verify_key, message, bytes(64))
        assert keys._verified.cache_info().misses == before + 2 * kept
