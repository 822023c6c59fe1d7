"""What trainings differ by on the same patients: `python tests/benchmarks/paired.py LINES [LINES ...]`.

LINES are files of what `models.py` printed. Lines of one study, WHO and settings are one training with several seeds; a
patient's Dice is the mean over them. Each training is held against each one before it, seeds and patients that both
have: the mean difference with its 95 % bootstrap interval over patients.
"""

import json
import sys
from itertools import combinations
from pathlib import Path

import numpy as np

from fedseg.evaluation import interval


def main(*paths: str) -> None:
    """All pairs; see the module."""
    trainings: dict[str, dict[int, dict[str, float | None]]] = {}
    for path in paths:
        for line in Path(path).read_text().splitlines():
            one = json.loads(line)
            name = " ".join([one["study"], one["who"], *one["set"], one["scored"]])
            trainings.setdefault(name, {})[one["seed"]] = one["patients"]
    for name, seeds in trainings.items():
        print(f"{_of(seeds, sorted(seeds)):.3f}, seeds {', '.join(map(str, sorted(seeds)))}: {name}")
    for (one, first), (other, second) in combinations(trainings.items(), 2):
        if both := sorted(set(first) & set(second)):
            print(f"{_less(second, first, both)}, seeds {both}: {other} less {one}")


def _of(seeds: dict[int, dict[str, float | None]], of: list[int]) -> float:
    """The mean over patients and seeds."""
    return float(np.mean([value for seed in of for value in seeds[seed].values() if value is not None]))


def _less(one: dict[int, dict[str, float | None]], other: dict[int, dict[str, float | None]], seeds: list[int]) -> str:
    """One training less the other, of patients whom both have scored."""
    known = [name for name, value in one[seeds[0]].items() if value is not None and name in other[seeds[0]]]
    gained = np.array([[one[seed][name] - other[seed][name] for name in known] for seed in seeds], float)  # type: ignore[operator]
    found = interval(gained.mean(axis=0))
    return (
        "no patients" if found is None else f"{found.mean:+.3f} ({found.low:+.3f} to {found.high:+.3f}), n = {found.n}"
    )


if __name__ == "__main__":
    main(*sys.argv[1:])
