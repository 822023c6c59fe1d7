"""Poisson sampling: each patient by a coin of its own, in each step anew, whoever else is there."""

import math
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from audits.base import Result, Task
from audits.conformance.testing import Tried, concluded, dispersion, exact, largest
from fedseg.privacy.dpsgd import draw
from secagg.encoding import digest

PATIENTS = [f"patient-{number}" for number in range(40)]
RATE = 0.2

Sampler = Callable[[int], Sequence[str]]
"""Step to who is drawn."""


def audit(task: Task) -> Result:
    """The product's `draw`, under keys as a seeded study has them, against shuffling and its relatives."""
    steps = 6000 if task.depth == "full" else 1500

    def key(step: int) -> bytes:
        """A key of its own for each step, as a seeded study has it."""
        return digest("step", task.seed, "sampling", "site-1", 1, step)

    def product(step: int) -> Sequence[str]:
        """Who is drawn by what sites really call."""
        return draw(PATIENTS, RATE, key(step))

    task.progress(f"{steps} draws of {len(PATIENTS)} patients")
    drawn = drawn_by(product, steps)
    alone = [[patient in draw(PATIENTS[::3], RATE, key(step)) for patient in PATIENTS[::3]] for step in range(100)]
    tried = {**tests(drawn), "who else is there changes no coin": exact(bool((drawn[:100, ::3] == alone).all()))}
    bugs = {
        "shuffled batches": lambda: tests(drawn_by(shuffled(task.seed), steps)),
        "batches of a fixed size, drawn anew": lambda: tests(drawn_by(fixed_size(task.seed), steps)),
        "one coin for neighbours": lambda: tests(drawn[:, np.arange(len(PATIENTS)) // 2]),
        "the coins of every second step again": lambda: tests(drawn[np.arange(steps) // 2]),
        "a rate of 0.21": lambda: tests(drawn_by(lambda step: draw(PATIENTS, 0.21, key(step)), steps)),
    }
    figures = {"draws": steps, "patients": len(PATIENTS), "rate": RATE, "seen rate": float(drawn.mean())}
    return concluded("Coins of the sampler", tried, bugs, {**figures, "seed": task.seed})


def drawn_by(sampler: Sampler, steps: int) -> NDArray[np.bool_]:
    """(steps, patients): who was drawn."""
    taken = (set(sampler(step)) for step in range(steps))
    return np.array([[patient in drawn for patient in PATIENTS] for drawn in taken])


def tests(drawn: NDArray[np.bool_]) -> Tried:
    """Rates of each patient, independence of patients, independence of steps."""
    steps, patients = drawn.shape
    deviation = math.sqrt(RATE * (1 - RATE))
    z = (drawn - RATE) / deviation  # (steps, patients), mean 0 and variance 1 of a right sampler
    rates = z.sum(axis=0) / math.sqrt(steps)
    sizes = z.sum(axis=1) / math.sqrt(patients)
    pairs = (z.T @ z / math.sqrt(steps))[np.triu_indices(patients, 1)]
    lags = range(1, 11)
    later = np.array([(z[lag:] * z[:-lag]).sum(axis=0) / math.sqrt(steps - lag) for lag in lags])
    # Of the squared size, the kurtosis of a coin adds a little to that of a normal value.
    spread = (sizes @ sizes - steps) / math.sqrt(steps * (2 + (1 - 6 * deviation**2) / deviation**2 / patients))
    return {
        "rate of every patient": largest(rates),
        "rate of all patients": largest(np.array([rates.sum() / math.sqrt(patients)])),
        "spread of the rates": dispersion(float(rates @ rates), patients),
        "spread of how many are drawn": largest(np.array([spread])),
        "any two patients": largest(pairs),
        "a patient in two steps, 1 to 10 apart": largest(later),
        "all patients in two steps": largest(later.sum(axis=1) / math.sqrt(patients)),
    }


def shuffled(seed: int) -> Sampler:
    """Epochs in a random order, cut into batches: what is usually called Poisson."""
    draws, size = np.random.default_rng([seed, 7]), round(RATE * len(PATIENTS))
    order: list[int] = []

    def sampler(step: int) -> list[str]:
        """The next batch of this epoch, or the first of the next one."""
        nonlocal order
        order = order or draws.permutation(len(PATIENTS)).tolist()
        taken, order = order[:size], order[size:]
        return [PATIENTS[number] for number in taken]

    return sampler


def fixed_size(seed: int) -> Sampler:
    """As many patients in every step, without replacement."""
    draws, size = np.random.default_rng([seed, 8]), round(RATE * len(PATIENTS))
    return lambda step: [PATIENTS[number] for number in draws.permutation(len(PATIENTS))[:size]]
