"""What a server sees of updates: masked vectors, which have to look like noise, each alone and any two together.

What these statistics cannot see: a self mask or a pair mask that is missing (the other one still hides), shares of
both kinds, or a seed of 32 bits. Attacks, T-11 and the tests of seeds catch those. What they do see is shown beside
them: the same tests on updates without a mask, and on two rounds whose masks are the same, have to fail.
"""

import math
from itertools import combinations
from typing import Any

from audits.base import Result, Task

LENGTH = {"quick": 1 << 15, "full": 1 << 18}
ROUNDS, CLIENTS, BITS = 3, 4, 32
ALARM = 1e-9
"""Chance of a false alarm of one test; there are about 150."""


def run(task: Task) -> Result:
    """Three rounds of the same updates of four clients, as the server has them."""
    length = LENGTH[task.depth]
    task.progress("rounds")
    seen, plain = rounds(length, task.seed)
    tests = statistics(seen)
    worst = min(tests, key=lambda name: tests[name])
    controls = {
        "no mask": min(statistics([[one.copy() for one in plain] for _ in range(ROUNDS)]).values()),
        "one mask for two rounds": min(statistics([seen[0], shifted(seen[0]), seen[2]]).values()),
    }
    figures: dict[str, float | int | str] = {
        "values_in_a_vector": length,
        "vectors": ROUNDS * CLIENTS,
        "tests": len(tests),
        "smallest_p": tests[worst],
        "smallest_p_of": worst,
        **{f"smallest_p_control_{name}": value for name, value in controls.items()},
    }
    if tests[worst] < ALARM:
        what = (
            "two masked vectors of one client differ by the updates"
            if "difference" in worst
            else "vectors are not noise"
        )
        return Result(
            "violated", f"What the server sees is not uniform: {what} ({worst}, p = {tests[worst]:.1e}).", figures
        )
    if blind := [name for name, value in controls.items() if value >= ALARM]:
        return Result("no power", f"The same tests do not see {blind[0]}, so nothing was shown.", figures)
    says = (
        f"{ROUNDS * CLIENTS} masked vectors of {length} values, alone and in pairs, pass {len(tests)} tests of being "
        f"uniform (smallest p {tests[worst]:.2g}); unmasked vectors, and two rounds under one mask, fail them."
    )
    return Result("holds", says, figures)


def rounds(length: int, seed: int) -> tuple[list[list[Any]], list[Any]]:
    """The masked vectors of each round, client by client, and what they hide: (length,) uint32 each."""
    import numpy as np

    from secagg.packing import unpack
    from secagg.prg import Stream
    from secagg.quantize import quantize
    from tests.support.cohort import Cohort, Play

    cohort = Cohort(CLIENTS, length=length, bits=BITS, private=True)
    draw = np.random.default_rng(seed)
    cohort.updates = {who: draw.normal(0, 0.1, length) for who in cohort.ids}
    seen: list[list[Any]] = []
    for number in range(1, ROUNDS + 1):
        play = Play(cohort, context=cohort.context(number)).until("MaskedInputCollection")
        count = cohort.policy.length + cohort.policy.slots
        seen.append([unpack(bytes(play.out[who].y), count, BITS)[:length] for who in cohort.ids])
    plain = [quantize(cohort.updates[who], cohort.policy, who, Stream.seeded(7, who))[0] for who in cohort.ids]
    return seen, plain


def shifted(vectors: list[Any]) -> list[Any]:
    """The same masks over updates that differ a little, as those of the next round do."""
    import numpy as np

    return [vector + np.arange(len(vector), dtype=vector.dtype) % 1000 for vector in vectors]


def statistics(seen: list[list[Any]]) -> dict[str, float]:
    """P of each test: bytes of each vector, bytes of the difference of any two, and correlation of any two."""
    import numpy as np

    found = {}
    vectors = {(number, who): one for number, of_round in enumerate(seen, 1) for who, one in enumerate(of_round)}
    for (number, who), vector in vectors.items():
        found[f"round {number}, client {who}"] = _uniform(vector)
    for one, other in combinations(vectors, 2):
        name = f"round {one[0]}, client {one[1]} and round {other[0]}, client {other[1]}"
        found[f"difference of {name}"] = _uniform(vectors[one] - vectors[other])
        a, b = (vectors[which].view(np.int32) / 2.0**31 for which in (one, other))
        if a.std() and b.std():
            r = float(np.corrcoef(a, b)[0, 1])
            found[f"correlation of {name}"] = math.erfc(abs(r) * math.sqrt(len(a) / 2))
    return found


def _uniform(vector: Any) -> float:
    """Chi-square tests of the bytes of a vector, by their four places in a word: p of too uneven, or too even."""
    import numpy as np
    from scipy.stats import chi2

    words = np.ascontiguousarray(vector).view(np.uint8).reshape(-1, 4)
    smallest = 1.0
    for place in range(4):
        counts = np.bincount(words[:, place], minlength=256)
        expected = len(words) / 256
        statistic = float(((counts - expected) ** 2).sum() / expected)
        smallest = min(smallest, float(chi2.sf(statistic, 255)), float(chi2.cdf(statistic, 255)))
    return min(1.0, 8 * smallest)
