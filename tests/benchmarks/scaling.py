"""How a round's cost grows with n and d: CPU time, bytes and memory of a client and of the server, for docs/scaling.md.

python tests/benchmarks/scaling.py [--quick]        measures and fits; writes scaling.json beside this file
python docs/tools/scaling.py                        draws docs/scaling.svg and fills the tables of docs/scaling.md

Nothing is extrapolated here. In every cell the server does all of its work and has a process of its own, and so has
each watched client (three; one where d = 1e7). All others are light clients (light.py), in this process, on nobody's
account. CPU time is the process's, after a small round that imports and allocates: the best of three rounds where n is
at most 30 and d below 1e7, otherwise of one; of the watched clients the median. Peak memory is the resident set above
what the process held before; "above" also leaves out what the party is given and makes. The cheapest cells come first
and the file is written after each: a run that is stopped leaves what it has. Twelve minutes of one quiet core.
"""

import argparse
import json
import os
import platform
import subprocess
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

import numpy as np
from bench_memory import Process, Setting, play
from bench_round import hash_seconds, keystream_seconds, pass_seconds, pin, policy_for
from light import Lightness
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn
from scipy import stats

import secagg
from secagg import kernel, shamir, wire
from secagg.encoding import Buffer
from secagg.policy import Suite

HERE = Path(__file__).parent
CLIENTS, LENGTHS = (10, 30, 100, 256), (10**4, 10**5, 10**6, 10**7)
QUICK_CLIENTS, QUICK_LENGTHS = (5, 10, 20), (10**4, 10**5, 10**6)
REPEATED = 3
HUGE = Setting(5, 10**8, Suite.MLKEM768_X25519.value, 19, dropped=1)
DEALT = (*CLIENTS, 1000, 10_000)
"""Cohorts for which the dealing of shares is timed by itself: its numbers grow, so that no fit would do."""

FITTED = ("client_cpu_s", "server_cpu_s", "client_up_bytes", "client_down_bytes")
CONFIDENCE = 0.95


class Cell(NamedTuple):
    """What is measured together."""

    suite: Suite
    n: int
    d: int
    dropped: int


def cells(clients: Iterable[int], lengths: Iterable[int]) -> Iterator[Cell]:
    """The default suite everywhere; X25519 for the smallest and one long vector: what differs does not depend on d."""
    lengths = list(lengths)
    for n in clients:
        for suite in Suite:
            for d in lengths if suite is Suite.MLKEM768_X25519 else (lengths[0], lengths[-2]):
                yield from (Cell(suite, n, d, dropped) for dropped in (0, max(n // 10, 1)))


# --- One cell ----------------------------------------------------------------------------------------------------


@dataclass
class Cohort:
    """A round between one server, some watched clients and otherwise light ones."""

    cell: Cell
    bytes_up: dict[str, int] = field(default_factory=lambda: defaultdict(int))
    bytes_down: dict[str, int] = field(default_factory=lambda: defaultdict(int))

    def __post_init__(self) -> None:
        self.setting = Setting(self.cell.n, self.cell.d, self.cell.suite.value, bits=0, dropped=self.cell.dropped)
        self.policy, self.roster, self.context = self.setting.round()
        names, (_, n, d, dropped) = self.setting.names, self.cell
        self.gone = {names[i * n // dropped + n // (2 * dropped)] for i in range(dropped)}
        stay = [name for name in names if name not in self.gone]
        watched = stay if d < 10**7 else stay[len(stay) // 2 :][:1]
        self.light = Lightness(self.policy, self.gone)
        self.watched = {
            name: Process(self.setting, name)
            for name in dict.fromkeys((watched[0], watched[len(watched) // 2], watched[-1]))
        }
        self.server = Process(self.setting, "server")
        self.heard: tuple[str, Any] = ("", None)

    def play(self) -> dict[str, Any]:
        """The figures of a whole round."""
        with self.light.installed():
            self._begin()
            closed = {"finished": False}
            while not closed["finished"]:
                closed = self.server.ask("close")
                for name in closed["replies"]:
                    if closed["step"] != "MaskedInputCollection" or name not in self.gone:
                        self._answer(name, closed["step"])
        reports = [process.ask("report") for process in self.watched.values()]
        server = self.server.ask("report")
        for process in (*self.watched.values(), self.server):
            process.end()
        (suite, n, d, dropped), bits = self.cell, self.policy.bits
        packed = len(self.light._packed)
        return {
            "suite": suite.value, "n": n, "d": d, "dropped": dropped, "bits": bits,
            "client_cpu_s": median(report["seconds"] for report in reports),
            "server_cpu_s": server["seconds"],
            "client_up_bytes": max(self.bytes_up[name] for name in self.watched),
            "client_down_bytes": max(self.bytes_down[name] for name in self.watched),
            "vector_bytes": packed,
            "client_peak_bytes": max(report["bytes"] for report in reports),
            "client_above_bytes": max(report["bytes"] for report in reports) - 4 * d - packed,
            "server_peak_bytes": server["bytes"],
            "server_above_bytes": server["bytes"] - 4 * d - packed,
            "watched": len(reports),
        }  # fmt: skip

    def _begin(self) -> None:
        self.sessions = {}
        for name in self.setting.names:
            if name in self.watched:
                data = self.watched[name].answers.read(self.watched[name].ask("begin"))
                said: Any = wire.decode_from_client(data)
                self.light.real_keys |= {said.channel_pk, said.mask_kem_pk}
                self._send(name, [data])
                continue
            opened, store = secagg.unchecked_round(self.context), secagg.MemoryStore()
            key = self.setting.key(name)
            self.sessions[name] = secagg.ClientSession(self.policy, name, key, self.roster, opened, store)
            self._send(name, wire.parts(self.sessions[name].start()))
            self.sessions[name].provide(np.empty(0))

    def _answer(self, name: str, step: str) -> None:
        if name in self.watched:
            size = self.server.ask("give", name=name)
            self.bytes_down[name] += size
            size = self.watched[name].hear(self.server, size)
            if size:
                self._send(name, [self.watched[name].answers.read(size)])
            return
        if step == "ShareReport" or self.heard[0] != step:  # all others get the same message: decoded once
            size = self.server.ask("give", name=name)
            self.heard = (step, wire.decode_from_server(self.server.answers.read(size)))
        self.light.speaker = name
        reply = self.sessions[name].receive(self.heard[1])
        if reply is not None:
            self._send(name, wire.parts(reply))

    def _send(self, name: str, pieces: Sequence[Buffer]) -> None:
        size = sum(map(len, pieces))
        self.bytes_up[name] += size
        self.server.command("hear", size=size, name=name)
        for piece in pieces:
            self.server.commands.write(piece)
        self.server.commands.flush()
        self.server.answer()


def measure(cell: Cell, rounds: int) -> dict[str, Any]:
    """The figures of a cell: the best of so many rounds."""
    played = [Cohort(cell).play() for _ in range(rounds)]
    best = {name: min(found[name] for found in played) for name in played[0] if name.endswith(("_s", "above_bytes"))}
    return {**played[0], **best, "rounds": rounds}


def rounds_of(cell: Cell) -> int:
    """More than one where a round is quick."""
    return REPEATED if cell.n <= 30 and cell.d < 10**7 else 1


def seconds(cell: Cell) -> float:
    """About how long it takes: processes, n^2 envelopes, and keystream. For the order and for the bar."""
    _, n, d, dropped = cell
    return rounds_of(cell) * (2.5 + n * n / 6e3 + n * (1 + dropped) * d / 1e9 + n * d / 2e8)


# --- What follows from the cells ---------------------------------------------------------------------------------


def exponents(found: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Least squares over logarithms: how a figure grows with n at one d, and with d at one n, with its interval."""
    rows = []
    for over, fixed in (("n", "d"), ("d", "n")):
        series = defaultdict(list)
        for cell in found:
            series[cell["suite"], cell["dropped"] > 0, cell[fixed]].append(cell)
        for (suite, drop, at), points in series.items():
            if len(points) < 3:
                continue
            for what in FITTED:
                fit = stats.linregress(np.log([p[over] for p in points]), np.log([p[what] for p in points]))
                half = float(stats.t.ppf((1 + CONFIDENCE) / 2, len(points) - 2) * fit.stderr)
                slope = round(float(fit.slope), 3)
                rows.append(
                    {"what": what, "over": over, fixed: at, "suite": suite, "with_dropouts": drop}
                    | {"exponent": slope, "plus_minus": round(half, 3), "points": len(points)}
                )
    return rows


def dealing_seconds(n: int, positions: int = 32) -> float:
    """CPU seconds in which one client of n makes the shares of its two secrets; above 256 from some positions of n.

    A share is one value of a polynomial, and all take about the same time: up to 256 clients all are made.
    """
    threshold = (n + max(n // 5, 1)) // 2 + 1
    descending = shamir._uniform(threshold)
    chosen = range(1, n) if n <= 256 else [round((i + 0.5) * n / positions) for i in range(positions)]
    began = time.process_time()
    for x in chosen:
        shamir._evaluate(descending, x)
    return 2 * (n - 1) / len(chosen) * (time.process_time() - began)


def machine() -> dict[str, Any]:
    """What this ran on, and what it does in this run."""
    cpu = next(
        (line.split(":")[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines() if "model name" in line),
        platform.processor(),
    )
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=HERE, capture_output=True, text=True)
    policy = policy_for(10, 10**7, Suite.X25519)
    return {
        "cpu": cpu, "cores": os.cpu_count(), "system": platform.system(), "commit": commit.stdout.strip(),
        "python": platform.python_version(), "numpy": version("numpy"), "cryptography": version("cryptography"),
        "kernel": kernel.compiled is not None, "date": time.strftime("%Y-%m-%d %H:%M", time.gmtime()),
        "keystream_gb_per_s": round(1 / keystream_seconds(10**9), 1),
        "blake3_gb_per_s": round(1 / hash_seconds(10**9), 1),
        "numpy_addition_gb_per_s": round(4e-9 * policy.length / pass_seconds(policy), 1),
        "load_before": round(os.getloadavg()[0], 1),
    }  # fmt: skip


def main() -> None:
    """Measure, fit, write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="few and small cells, no d = 1e8: one minute")
    parser.add_argument("--json", type=Path, help="default: scaling.json beside this file; with --quick build/")
    parser.add_argument("--core", type=int, help="run on this core only")
    options = parser.parse_args()
    quick_at = HERE.parents[1] / "build/scaling-quick.json"
    path = options.json or (quick_at if options.quick else HERE / "scaling.json")
    path.parent.mkdir(exist_ok=True)
    pin(options.core)
    began, about = time.perf_counter(), machine()
    planned = sorted(cells(CLIENTS, LENGTHS), key=seconds)
    if options.quick:
        planned = [cell for cell in cells(QUICK_CLIENTS, QUICK_LENGTHS) if cell.suite is Suite.MLKEM768_X25519]
    written: dict[str, Any] = {"machine": about, "dealing_s": {str(n): dealing_seconds(n) for n in DEALT}}
    written |= {"cells": [], "huge": {}}
    columns = (TextColumn("{task.description:44}"), BarColumn(), TextColumn("{task.percentage:3.0f} %"))
    with Progress(*columns, TimeElapsedColumn(), console=Console(stderr=True)) as progress:
        task = progress.add_task("", total=sum(map(seconds, planned)))
        if not options.quick:
            progress.update(task, description=f"n={HUGE.clients} d={HUGE.length:.0e}")
            figures = play(HUGE)
            written["huge"] = {"n": HUGE.clients, "d": HUGE.length, "bits": HUGE.bits, "dropped": HUGE.dropped}
            written["huge"] |= {"client": figures.client, "server": figures.server}
        for cell in planned:
            progress.update(task, description=f"{cell.suite.value} n={cell.n} d={cell.d:.0e} dropped={cell.dropped}")
            written["cells"].append(measure(cell, 1 if options.quick else rounds_of(cell)))
            progress.advance(task, seconds(cell))
            about |= {"load_after": round(os.getloadavg()[0], 1), "took_s": round(time.perf_counter() - began)}
            written["exponents"] = exponents(written["cells"])
            path.write_text(json.dumps(written, indent=1) + "\n")
    print(f"{path}: {len(planned)} cells in {about['took_s']} s, load {about['load_before']} to {about['load_after']}")


if __name__ == "__main__":
    main()
