"""Masks of a server on a local Ray cluster of two workers, against this process; and a table for clusters, computed.

python tests/benchmarks/bench_ray.py [--n 100] [--d 10000000] [--drop 0.1] [--reps 3]   in the environment of Ray
python tests/benchmarks/bench_ray.py --table                                           anywhere
"""

import argparse
import os
import resource
import secrets
import time
from typing import Any

import numpy as np

from secagg.prg import apply_masks

KEYSTREAM = 3.5e9  # bytes a second and core, AES-256-GCM of OpenSSL on the machine of docs/performance.md
LINK = 1e9  # bytes a second between a core's task and the object store
DROPPED = 0.1


def masks(n: int, share: float = DROPPED) -> float:
    """Keystreams of a server: one for each included site, one for each pair of a dropped and an included one."""
    dropped = share * n
    return (n - dropped) + dropped * (n - dropped)


def seconds(n: int, d: int, cores: int) -> float:
    """What the expansion takes, and the ranges on their way there and back where there is more than one core."""
    expansion = masks(n) * d * 4 / KEYSTREAM / cores
    return expansion + (2 * d * 4 / LINK / cores if cores > 1 else 0.0)


def table() -> None:
    cores = (1, 2, 16, 64, 256)
    print("| n | keystreams |" + "".join(f" {c} core{'s' * (c > 1)} |" for c in cores))
    print("|---|---|" + "---|" * len(cores))
    for n in (100, 1_000, 10_000):
        row = "".join(f" {_told(seconds(n, 10**6, c))} |" for c in cores)
        print(f"| {n:,} | {masks(n):,.0f} |{row}")


def _told(value: float) -> str:
    return f"{value / 3600:.1f} h" if value >= 3600 else f"{value / 60:.1f} min" if value >= 60 else f"{value:.2g} s"


def measure(n: int, d: int, drop: float, reps: int) -> None:
    import ray

    from secagg.ray import RayExecutor

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    executor, count = RayExecutor(), round(masks(n, drop))
    seeds = [secrets.token_bytes(32) for _ in range(count)]
    list(executor.map(len, [(1,)] * 4))  # the workers start
    alone, there = [], []
    for _ in range(reps):
        for took, how in ((alone, None), (there, executor)):
            vector, before, began = np.zeros(d, np.uint32), _spent(executor), time.perf_counter()
            apply_masks(vector, seeds, [], how)
            wall = time.perf_counter() - began
            took.append((wall, _spent(executor) - before))
    for name, took in (("one process", alone), ("Ray with two workers", there)):
        wall, cpu = map(min, zip(*took, strict=True))
        rate = 4 * count * d / cpu / 1e9
        print(f"n = {n}, d = {d}, {count} keystreams, {name}: {wall:.2f} s, {cpu:.2f} s of CPU, {rate:.2f} GB/s a core")
    print(f"least of {reps}; load {os.getloadavg()[0]:.1f}; this process at most {_peak():.2f} GB")


def _spent(executor: Any) -> float:
    """CPU seconds of this process and of the workers so far."""
    return time.process_time() + sum(dict(executor.map(_clock, [0.1] * 6)).values())


def _clock(seconds: float) -> tuple[int, float]:
    time.sleep(seconds)  # so that each worker gets one
    return os.getpid(), time.process_time()


def _peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=100)
    parser.add_argument("--d", type=int, default=10**7)
    parser.add_argument("--drop", type=float, default=0.0, help="share of the sites that dropped out; none")
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--table", action="store_true", help="computed, for clusters; needs no Ray")
    options = parser.parse_args()
    if options.table:
        table()
    else:
        measure(options.n, options.d, options.drop, options.reps)


if __name__ == "__main__":
    main()
