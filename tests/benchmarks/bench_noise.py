"""What a step's integer noise costs on one core, beside the raw stream of the same run.

Run: taskset -c 1 .venv/bin/python tests/benchmarks/bench_noise.py [values]. CPU time; ratios to the raw stream hold.
"""

import sys
import time
from collections.abc import Callable

from fedseg.privacy.samplers import discrete_gaussian, skellam
from secagg.prg import Stream

REPEATS = 7


def cpu(**actions: Callable[[], object]) -> dict[str, float]:
    """Shortest CPU time of each action in milliseconds; interleaved."""
    times: dict[str, float] = dict.fromkeys(actions, float("inf"))
    for _ in range(REPEATS):
        for name, action in actions.items():
            begin = time.process_time()
            action()
            times[name] = min(times[name], 1e3 * (time.process_time() - begin))
    return times


def main(values: int) -> None:
    stream = Stream()
    for deviation in (3, 100, 1000, 10_000, 65_536):
        begin = time.process_time()
        skellam(1, deviation**2, stream), discrete_gaussian(1, deviation**2, stream)
        tables = time.process_time() - begin
        times = cpu(
            raw=lambda: stream.words64(values),
            skellam=lambda variance=deviation**2: skellam(values, variance, stream),
            gaussian=lambda variance=deviation**2: discrete_gaussian(values, variance, stream),
        )
        print(
            f"{values:,} values, deviation {deviation:,}: raw stream {times['raw']:.1f} ms; Skellam "
            f"{times['skellam']:.1f} ms ({times['skellam'] / times['raw']:.1f} times), discrete Gaussian "
            f"{times['gaussian']:.1f} ms; both tables, once, {tables:.2f} s"
        )


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 1_000_000)
