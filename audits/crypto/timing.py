"""Whether the time of operations on secrets tells what they are: Welch's t of two classes of inputs, as dudect does.

Reported, not gated: Python is not constant-time, and a shared machine adds noise of its own. |t| above 4.5 is what the
authors of dudect call a leak. Source: Reparaz, Balasch, Verbauwhede 2017.
"""

import math
import secrets
import time
from collections.abc import Callable, Sequence

from audits.base import Result, Task

MEASURED = {"quick": 4_000, "full": 40_000}
LEAK = 4.5


def run(task: Task) -> Result:
    """Two classes of inputs for each operation, in random order."""
    count = MEASURED[task.depth]
    rows: list[dict[str, float | int | str]] = []
    for name, (operation, fixed, fresh) in operations().items():
        task.progress(name)
        t, median = welch(operation, fixed, fresh, count)
        rows.append({"operation": name, "t": round(t, 2), "median_ns": round(median), "above_4.5": abs(t) > LEAK})
    above = [str(row["operation"]) for row in rows if row["above_4.5"]]
    says = (
        f"Reported, not gated: of {len(rows)} operations on secrets {len(above)} take times that tell two classes of "
    )
    says += f"inputs apart ({', '.join(above)}): " if above else "inputs apart: "
    says += "Shamir's arithmetic is Python's, and each secret lives for one round."
    return Result(
        "holds", says, {"measurements_each": count, "operations": len(rows), "above": len(above)}, rows=tuple(rows)
    )


def operations() -> dict[str, tuple[Callable[[bytes], object], Callable[[], bytes], Callable[[], bytes]]]:
    """Operation, and how inputs of either class are made."""
    import hmac

    from secagg.keys import SealingKey, SigningKey
    from secagg.masking import share_commitment
    from secagg.shamir import PRIME, combine, is_share, split

    share = split(bytes(32), 3, (1, 2, 3))
    promised = share_commitment(bytes(32), bytes(32), "a", "b", "s", share[0])
    sealing = SealingKey(SigningKey.generate())
    sealed = sealing.seal(b"about", bytes(64))

    def opened(change: bytes) -> object:
        """Opens an envelope, or refuses it."""
        try:
            return sealing.open(
                b"about", bytes(a ^ b for a, b in zip(sealed, change.ljust(len(sealed), b"\0"), strict=True))
            )
        except ValueError:
            return None

    def random_share() -> bytes:
        """A share of a secret drawn for it."""
        return secrets.randbelow(PRIME).to_bytes(33, "big")

    return {
        "is_share": (is_share, lambda: bytes(33), random_share),
        "commitment of a share": (
            lambda one: share_commitment(bytes(32), bytes(32), "a", "b", "s", one) == promised,
            lambda: share[0],
            random_share,
        ),
        "combine": (
            lambda one: _quiet(lambda: combine({1: one, 2: share[1], 3: share[2]}, 3)),
            lambda: share[0],
            random_share,
        ),
        "split": (lambda secret: split(secret, 3, (1, 2, 3)), lambda: bytes(32), lambda: secrets.token_bytes(32)),
        "opening a sealed file": (
            opened,
            lambda: bytes(20) + b"\1",
            lambda: bytes(12 + secrets.randbelow(60)) + b"\1",
        ),
        "control: compare_digest": (
            lambda one: hmac.compare_digest(one, share[0]),
            lambda: share[0],
            random_share,
        ),
    }


def _quiet(operation: Callable[[], object]) -> object:
    try:
        return operation()
    except ValueError:
        return None


def welch(
    operation: Callable[[bytes], object], fixed: Callable[[], bytes], fresh: Callable[[], bytes], count: int
) -> tuple[float, float]:
    """Welch's t of both classes, without the slowest tenth of the measurements; and the median in nanoseconds."""
    classes = [secrets.randbelow(2) for _ in range(count)]
    inputs = [
        bytes(bytearray((fixed, fresh)[which]())) for which in classes
    ]  # none is warmer in the cache than another
    taken = []
    for one in inputs:
        began = time.perf_counter_ns()
        operation(one)
        taken.append(time.perf_counter_ns() - began)
    most = sorted(taken)[int(0.9 * count)]
    groups = [
        [t for t, which in zip(taken, classes, strict=True) if which == wanted and t <= most] for wanted in (0, 1)
    ]
    means, variances = zip(*map(_moments, groups), strict=True)
    spread = math.sqrt(sum(variance / len(group) for variance, group in zip(variances, groups, strict=True)))
    return (means[0] - means[1]) / spread if spread else 0.0, sorted(taken)[count // 2]


def _moments(values: Sequence[float]) -> tuple[float, float]:
    mean = sum(values) / len(values)
    return mean, sum((value - mean) ** 2 for value in values) / (len(values) - 1)
