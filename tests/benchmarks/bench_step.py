"""One small step of a simulation: n = 5 sites, d = 1e5 values, all in one process, from round start to confirmations.

    python tests/benchmarks/bench_step.py

Prints the median wall time of a step with each kind of store, and the time that one durable mark takes on this disk.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

import secagg
from secagg.sqlite import SqliteStore

SITES = [f"site-{letter}" for letter in "abcde"]
TASK = bytes(32)


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reps", type=int, default=15, help="steps of each kind")
    parser.add_argument("--length", type=int, default=100_000, help="values of a vector")
    asked = parser.parse_args()
    kinds: dict[str, Callable[[Path, str], secagg.Store]] = {
        "in memory": lambda folder, site: secagg.MemoryStore(),
        "SQLite, not synced (simulations)": lambda folder, site: SqliteStore(folder / site, site, synced=False),
        "SQLite, synced (sites)": lambda folder, site: SqliteStore(folder / site, site),
    }
    for suite in secagg.Suite:
        for name, store in kinds.items():
            with tempfile.TemporaryDirectory(dir=".") as folder:
                taken = steps(suite, asked.length, asked.reps, lambda site: store(Path(folder), site))  # noqa: B023
            print(f"{suite.value:16} {name:34} {statistics.median(taken) * 1e3:6.1f} ms a step of {len(SITES)} sites")


def steps(suite: secagg.Suite, length: int, reps: int, store: Callable[[str], secagg.Store]) -> list[float]:
    """Wall seconds of each step, the first one left out; every sum is checked."""
    keys, server_key = {site: secagg.SigningKey.generate() for site in SITES}, secagg.SigningKey.generate()
    pinned = secagg.PinnedRoster({site: key.verify_key for site, key in keys.items()})
    policy = secagg.Policy(
        project="bench", clients=5, length=length, clip_range=1.0, suite=suite, server_key=server_key.verify_key
    )
    stores = {site: store(site) for site in SITES}
    book = secagg.RoundBook("bench", TASK, server_key, policy.max_corrupt)
    updates = {site: np.random.default_rng(i).uniform(-1, 1, length) for i, site in enumerate(SITES)}
    taken = []
    for number in range(1 + reps):
        model = number.to_bytes(32, "big")
        began = time.perf_counter()
        server = secagg.ServerSession(policy, pinned, book.context(model), server_key)
        start, sessions = book.start(model), {}
        for site in SITES:
            opened = secagg.open_round(
                policy, pinned, "bench", start, stores[site], model_hash=model, task_hash=TASK, private=True
            )
            sessions[site] = secagg.ClientSession(policy, site, keys[site], pinned, opened, stores[site])
        mail = {site: session.start() for site, session in sessions.items()}
        for site, session in sessions.items():
            session.provide(updates[site])
        while not server.finished:
            for site, message in mail.items():
                server.receive(site, secagg.wire.decode_from_client(secagg.wire.encode(message)))
            heard = secagg.wire.decode_each(secagg.wire.encode_each(server.close_step()))
            answers = {site: sessions[site].receive(message) for site, message in heard.items()}
            mail = {site: answer for site, answer in answers.items() if answer is not None}
        taken.append(time.perf_counter() - began)
        assert server.result is not None
        assert server.receipt is not None
        book.completed(server.receipt)
        wrong = np.abs(secagg.dequantize(server.result, policy) - sum(updates.values())).max()
        assert wrong < 5 / policy.largest_value, wrong
    return taken[1:]


if __name__ == "__main__":
    main()
