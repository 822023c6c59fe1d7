"""A round against Flower's SecAgg: CPU time of a client and of the server of both, on one core, in one run.

python tests/benchmarks/bench_flower.py [--n 100] [--d 1000000] [--drop 0.1 0.3] [--suite both] [--reps 1]

Same n, d, dropouts (before the masked input) and threshold (two thirds of n, or more where no policy of ours has so
little), complete graph; both sums are checked.
Flower runs unmodified in its own environment (flower/setup.sh makes it) and takes turns with ours on the same core.
Ours pays for signatures, commitments, the consistency check and its wire format; Flower has no signatures and no such
check, and its serialisation is not counted. n = 100 takes about seven minutes a repetition, nearly all of it Flower's.
Its figures are kept in build/flower.jsonl; --flower FILE uses such a file in place of running Flower, and says so.
"""

import argparse
import json
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol

from bench_round import SERVER, Meter, one_round, pin, policy_for

import secagg

ROOT = Path(__file__).parents[2]
ENVIRONMENT = ROOT / "build/flowerenv/bin/python"
KEPT = ROOT / "build/flower.jsonl"
SUITES = {"x25519": secagg.Suite.X25519, "xwing": secagg.Suite.MLKEM768_X25519}
CLIENT_LIMITS = {secagg.Suite.X25519: 22, secagg.Suite.MLKEM768_X25519: 15}  # at n = 100 and d = 1e6
SERVER_LIMITS = {0.1: 180, 0.3: 100}  # by share of clients dropped
TOLD = ("client_total_ms", "server_total_ms", "wall_s", "up_total")
FLOWER_ERROR = 1e-3  # its quantisation step is 8 / 2^21, and it divides by rounded weights


class Flower(Protocol):
    """Milliseconds of a round in Flower, whoever measured them."""

    def __call__(self, **request: Any) -> dict[str, Any]:
        """`client_total_ms` (median of those that stayed), `server_total_ms`, `wall_s`, `err`, `up_total`."""


@contextmanager
def running(python: Path) -> Iterator[Flower]:
    """Flower in its own process, asked round by round; it waits while ours runs."""
    KEPT.parent.mkdir(exist_ok=True)
    driver = subprocess.Popen(
        [python, Path(__file__).with_name("flower") / "driver.py"],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )

    def ask(**request: Any) -> dict[str, Any]:
        print(json.dumps(request), file=driver.stdin, flush=True)
        line = driver.stdout.readline()
        if not line:
            raise SystemExit("Flower's process ended; see its message above")
        with KEPT.open("a") as rows:
            rows.write(line)
        answer: dict[str, Any] = json.loads(line)
        return answer

    with driver:
        yield ask
        driver.stdin.close()


@contextmanager
def kept(path: Path) -> Iterator[Flower]:
    """The figures of an earlier run."""
    rows = [json.loads(line) for line in path.read_text().splitlines()]

    def look_up(n: int, d: int, drop: float, **_: Any) -> dict[str, Any]:
        same = [row for row in rows if (row["n"], row["d"], row["drop"]) == (n, d, drop)]
        if not same:
            raise SystemExit(f"{path} has no figures for n = {n}, d = {d}, {drop:.0%} dropped")
        return {key: min(row[key] for row in same) for key in (*TOLD, "err")}

    yield look_up


def agreed(n: int, d: int, suite: secagg.Suite) -> secagg.Policy:
    """With a threshold of two thirds of n, or the least above it."""
    return policy_for(n, d, suite, max_corrupt=max(2 * (round(2 * n / 3) - 1) - n, 1))


def ours(n: int, d: int, drop: float, suite: secagg.Suite) -> tuple[float, float, float, float]:
    """Of the median client that stayed and of the server, milliseconds; of the round, seconds by the clock; upload."""
    meter, began = Meter(), time.perf_counter()
    sent = one_round(agreed(n, d, suite), round(n * drop), meter)
    wall = time.perf_counter() - began
    server = meter.spent.pop(SERVER)
    return 1e3 * statistics.median(meter.spent.values()), 1e3 * server, wall, statistics.median(sent.values())


def compare(flower: Flower, options: argparse.Namespace) -> None:
    suites = list(SUITES.values()) if options.suite == "both" else [SUITES[options.suite]]
    n, d = options.n, options.d
    threshold = agreed(n, d, suites[0]).threshold
    theirs: dict[float, list[tuple[float, ...]]] = {drop: [] for drop in options.drop}
    mine: dict[tuple[float, secagg.Suite], list[tuple[float, ...]]] = {
        (drop, suite): [] for drop in options.drop for suite in suites
    }
    for suite in suites:  # first calls import and allocate; no round that counts should pay for that
        ours(10, 1000, 0.0, suite)
    for seed in range(1, options.reps + 1):
        for drop in options.drop:
            answer = flower(n=n, d=d, drop=drop, threshold=threshold, seed=seed)
            if not 0 <= answer["err"] < FLOWER_ERROR:
                raise SystemExit(f"Flower's mean is off by {answer['err']}: not a fair comparison")
            theirs[drop].append(tuple(answer[key] for key in TOLD))
            for suite in suites:
                mine[drop, suite].append(ours(n, d, drop, suite))
    limits = (n, d) == (100, 10**6)
    for (drop, suite), rounds in mine.items():
        for who, was, now, limit in zip(
            ("client", "server"),
            map(min, zip(*theirs[drop], strict=True)),
            map(min, zip(*rounds, strict=True)),
            (CLIENT_LIMITS[suite], SERVER_LIMITS.get(drop)),
            strict=False,
        ):
            verdict = f", limit {limit} x: {'reached' if was / now >= limit else 'MISSED'}" if limits and limit else ""
            print(
                f"n={n} d={d} {drop:4.0%} dropped, {suite.value:15} {who}: Flower {was:9.1f} ms, ours {now:7.1f} ms, "
                f"{was / now:5.1f} x faster{verdict}"
            )
        for what, was, now in zip(
            ("whole round, all parties in turn", "upload of a client"),
            [min(row[i] for row in theirs[drop]) for i in (2, 3)],
            [min(row[i] for row in rounds) for i in (2, 3)],
            strict=True,
        ):
            unit = "bytes" if now > 1000 else "s by the clock"
            print(
                f"n={n} d={d} {drop:4.0%} dropped, {suite.value:15} {what}: Flower {was:,.1f} {unit}, ours {now:,.1f}"
            )


def main() -> None:
    """Print a line for each party, suite and share of dropouts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=20)
    parser.add_argument("--d", type=int, default=10**6)
    parser.add_argument("--drop", type=float, nargs="+", default=[0.1, 0.3])
    parser.add_argument("--suite", choices=[*SUITES, "both"], default="both")
    parser.add_argument("--reps", type=int, default=1, help="rounds; the least of each is printed")
    parser.add_argument("--core", type=int, help="run on this core only")
    parser.add_argument("--python", type=Path, default=ENVIRONMENT, help="of the environment that has Flower")
    parser.add_argument("--flower", type=Path, help="figures of Flower from an earlier run, as build/flower.jsonl")
    options = parser.parse_args()
    if options.flower:
        print(f"Flower's figures are from {options.flower}: NOT the same run")
        source = kept(options.flower)
    elif options.python.exists():
        source = running(options.python)
    else:
        print("skipped: Flower is not installed; sh tests/benchmarks/flower/setup.sh makes its environment")
        return
    threshold = agreed(options.n, options.d, secagg.Suite.X25519).threshold
    print(f"one core ({pin(options.core)}), CPU time; t = {threshold} in both; both sums checked")
    with source as flower:
        compare(flower, options)


if __name__ == "__main__":
    main()
