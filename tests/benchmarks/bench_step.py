"""One gradient step of a simulation of mechanism "distributed": five sites, d = 1e5 whole numbers, all in one process.

    python tests/benchmarks/bench_step.py

It is `SecureSum.round` itself with everything that it does but training: all seven steps over wire bytes, durable
marks, the check of the sum, and the replay of the round's transcript (C-05). In turns with it the raw primitives: as
many signatures, verifications, key pairs, exchanges and envelopes as a step makes, each by itself, and the keystream
of its masks. Median and least, wall and CPU time, of one step.
"""

import argparse
import statistics
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from bench_round import keystream_seconds
from reach import COUNTED, unit_seconds

import secagg
from fedseg.aggregate import SecureSum
from fedseg.parties import Agreed, InProcess
from fedseg.privacy.shares import Grid, noise_share
from fedseg.update import NoiseShared
from secagg.layout import Field, Layout
from secagg.prg import Stream

SITES = [f"site-{letter}" for letter in "abcde"]
TASK = bytes(32)
BITS = 32


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--reps", type=int, default=15, help="steps of each kind")
    parser.add_argument("--length", type=int, default=100_000, help="values of a vector")
    asked = parser.parse_args()
    print(f"{'':16} {'':24} {'wall':>8} {'least':>8} {'CPU':>8} {'least':>8}   ms a step of {len(SITES)} sites")
    for suite in secagg.Suite:
        rows: dict[str, list[tuple[float, float]]] = {}
        turns = {
            "with replay": step(suite, asked.length, private=False),
            "without": step(suite, asked.length, private=True),
            "raw primitives": raw(suite, asked.length),
        }
        for _ in range(asked.reps):
            for name, taken in turns.items():
                rows.setdefault(name, []).append(next(taken))
        for name, spent in rows.items():
            wall, cpu = ([1e3 * one for one in times] for times in zip(*spent, strict=True))
            shown = (statistics.median(wall), min(wall), statistics.median(cpu), min(cpu))
            print(f"{suite.value:16} {name:24} " + " ".join(f"{value:8.1f}" for value in shown))


def step(suite: secagg.Suite, length: int, *, private: bool) -> Iterator[tuple[float, float]]:
    """(wall, CPU) seconds of one step after the other; every sum is checked. The first one warms up."""
    with tempfile.TemporaryDirectory(dir=".") as folder:
        aggregator, updates = federation(suite, length, Path(folder), private)
        rounds = 0
        try:
            while True:
                began = time.perf_counter(), time.process_time()
                outcome = one(aggregator, updates, rounds)
                ended = time.perf_counter(), time.process_time()
                assert outcome.ended.exact
                assert len(outcome.ended.included) == len(SITES)
                if rounds:
                    yield ended[0] - began[0], ended[1] - began[1]
                rounds += 1
        finally:
            aggregator.close()


def federation(
    suite: secagg.Suite, length: int, folder: Path, private: bool
) -> tuple[SecureSum, dict[str, NoiseShared]]:
    """Five sites, and what each adds: its share of the noise, to no patient's gradient."""
    keys, server_key = {site: secagg.SigningKey.generate() for site in SITES}, secagg.SigningKey.generate()
    policy = secagg.Policy(
        project="bench",
        clients=len(SITES),
        layout=Layout({"gradient": Field.integers(length, bits=BITS)}),
        bits=BITS,
        suite=suite,
        server_key=server_key.verify_key,
    )
    book = secagg.RoundBook("bench", TASK, server_key, policy.max_corrupt)
    pinned = secagg.PinnedRoster({site: key.verify_key for site, key in keys.items()})
    agreed = Agreed(policy, pinned, "bench", TASK, private)
    aggregator = SecureSum(agreed, book, InProcess(agreed, keys, folder, lambda site, number: Stream()), folder)

    def noise(n: int) -> Any:
        drawn = np.random.default_rng(n).integers(-(1 << 15), 1 << 15, length + n)
        return drawn[:n]

    grid = Grid(length, 1.0, 1 << 13)
    share = noise_share([], [], grid, bytes(32), bytes(32), noise)
    share.values = share.values[:length]
    return aggregator, {site: NoiseShared(share, BITS, site, "event") for site in SITES}


def one(aggregator: SecureSum, updates: dict[str, NoiseShared], number: int) -> Any:
    """One step."""
    return aggregator.round(number.to_bytes(32, "big"), SITES, updates.__getitem__, lambda event: None, {})


def raw(suite: secagg.Suite, length: int) -> Iterator[tuple[float, float]]:
    """(wall, CPU) seconds of the primitives of a step, as often as it uses them; CPU time is the only one that is."""
    counted = Counter[str]()

    def look(frame: FrameType, event: str, _: Any) -> None:
        if event == "call" and (what := COUNTED.get(frame.f_code)):
            counted[what] += 1

    with tempfile.TemporaryDirectory(dir=".") as folder:
        aggregator, updates = federation(suite, length, Path(folder), private=True)
        one(aggregator, updates, 0)
        sys.setprofile(look)
        try:
            one(aggregator, updates, 1)
        finally:
            sys.setprofile(None)
        aggregator.close()
    masks = len(SITES) * len(SITES) + len(SITES)  # each site's pairs and itself, and the self masks at the server
    while True:
        units = unit_seconds(suite)
        taken = sum(units[what] * number for what, number in counted.items()) + masks * keystream_seconds(4 * length)
        yield taken, taken


if __name__ == "__main__":
    main()
