"""The noise is as large as the ledger says, within 1 %, in every tensor, share and release.

Of n values a standard deviation is known to about 4.9 / sqrt(2 n) at the error used here, 0.55 % of 400,000, and
sqrt(5 / 2) times that of Laplace noise. The product lies well within 1 % of what is accounted, and never below it.
"""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from audits.base import Result, Task
from audits.conformance.testing import ERROR, Tried, concluded, exact
from audits.dp.canary import CLIP_NORM, DELTA, study_of
from audits.dp.estimators import mu_of_epsilon
from fedseg.budget.plan import round_entry
from fedseg.ledger import NoisySteps, NoisySum, SparseRelease
from fedseg.mechanisms import distributed
from fedseg.privacy import dpsgd, samplers, shared_noise, sparse_vector
from fedseg.privacy.dpsgd import Protection, noisy_gradient
from fedseg.privacy.sparse_vector import SparseVector
from fedseg.study import Study
from secagg.prg import Stream

WITHIN = 0.01
VALUES = 400_000
ROUNDS = 10
Sampler = Callable[[int, int, Stream], NDArray[np.int64]]


def audit(task: Task) -> Result:
    """Local noise by tensor, shares of both kinds and their sum, and all three noises of a sparse vector."""
    task.progress("Gaussian noise, local and shared")
    ratios, tails = gaussian(task.seed)
    task.progress("Skellam and Laplace noise")
    ratios |= others(task.seed)
    planted = partial(_with, task.seed)
    bugs = {
        "noise x 0.98": lambda: planted(partial(_scaled, 0.98)),
        "noise x 1.02": lambda: planted(partial(_scaled, 1.02)),
        "a tail cut off at 3 deviations": lambda: planted(_cut),
        "shares planned for all survivors, colluding ones too": lambda: _for_too_many(task.seed),
    }
    figures: dict[str, float | int | str] = {f"{name}, measured / accounted": ratio for name, ratio in ratios.items()}
    half = float(stats.norm.isf(ERROR / len(ratios) / 2)) / math.sqrt(2 * VALUES)
    figures |= {"half width of the interval of a ratio, Gaussian": half, "values": VALUES, "seed": task.seed}
    tried = {**tests(ratios, tails), **_sparse_scales(task.seed)}
    return concluded("Deviation of the noise within 1 % of what is accounted", tried, bugs, figures)


def tests(ratios: dict[str, float], tails: dict[str, int]) -> Tried:
    """Whether each ratio is 1 within 1 %, and as many values lie beyond 4 deviations as ought to."""
    beyond = 2 * stats.norm.sf(4.0)
    seen = {name: stats.binomtest(count, VALUES, beyond).pvalue for name, count in tails.items()}
    return {name: exact(abs(ratio - 1) <= WITHIN) for name, ratio in ratios.items()} | {
        f"{name}: values beyond 4 deviations": float(p) for name, p in seen.items()
    }


def gaussian(seed: int) -> tuple[dict[str, float], dict[str, int]]:
    """Measured deviations over those that the claimed epsilon needs, and how many values lie in the tails.

    What it needs is computed here: steps with everybody are one Gaussian, whose noise follows from epsilon and delta.
    """
    found: dict[str, tuple[NDArray[Any], float]] = {}
    for claim in (0.5, 4.0):
        study = study_of("local", claim, rounds=ROUNDS)
        needed = math.sqrt(ROUNDS) / mu_of_epsilon(claim, study.privacy.delta or 0.0)
        entry = round_entry(study, "site-1", "audit", 1)
        if not (isinstance(entry, NoisySteps) and abs(entry.noise_multiplier / needed - 1) <= WITHIN):
            raise ValueError(f"the ledger says {entry}, and epsilon {claim:g} needs noise x {needed:.4f}")
        for tensor, values in enumerate(_local(study, seed, round(10 * claim))):
            found[f"local, epsilon {claim:g}, tensor {tensor + 1}"] = values, needed * CLIP_NORM
    study = study_of("distributed", 4.0, rounds=ROUNDS, sites=5)
    terms, noise = study.terms, distributed.noise_of(study.terms)
    needed = math.sqrt(ROUNDS) / mu_of_epsilon(4.0, DELTA) * noise.sensitivity
    count = terms.min_survivors - terms.max_corrupt
    each = [noise.draw(VALUES, Stream.seeded(seed, "shares", site)) for site in range(count)]
    found["discrete Gaussian, one share"] = each[0], math.sqrt(noise.variance)
    found[f"discrete Gaussian, the {count} shares that count"] = np.sum(each, axis=0), needed
    ratios = {name: float(values.std() / accounted) for name, (values, accounted) in found.items()}
    tails = {name: int((np.abs(values) > 4 * accounted).sum()) for name, (values, accounted) in found.items()}
    return ratios, tails


def others(seed: int) -> dict[str, float]:
    """The same of Skellam shares, by what the accountant gets, and of Laplace noise by its scale."""
    ratios: dict[str, float] = {}
    study = study_of("distributed", 4.0, rounds=ROUNDS, sites=5, more='noise = "skellam"')
    entry = round_entry(study, "site-1", "audit", 1)
    if not isinstance(entry, NoisySum):
        raise TypeError(f"the ledger says {entry}")
    noise = distributed.noise_of(study.terms)
    each = [noise.draw(VALUES, Stream.seeded(seed, "skellam", site)) for site in range(entry.shares)]
    accounted = study.mechanism.noise_multiplier(study.terms) * entry.sensitivity
    ratios["Skellam, one share"] = float(each[0].std() / math.sqrt(entry.variance))
    ratios[f"Skellam, the {entry.shares} shares that count"] = float(np.sum(each, axis=0).std() / accounted)
    for scale in (3.0, 8192.0):
        values = sparse_vector.laplace(2 * VALUES, scale, Stream.seeded(seed, "laplace", int(scale)))
        ratios[f"Laplace, scale {scale:g}"] = float(values.std() / laplace_deviation(scale))
    return ratios


def laplace_deviation(scale: float) -> float:
    """Of whole numbers k with probability proportional to exp(-|k| / scale)."""
    return 1 / (math.sqrt(2) * math.sinh(1 / (2 * scale)))


def _with(seed: int, sampler: Sampler) -> Tried:
    """The tests with another sampler of the discrete Gaussian."""
    with _planted(sampler):
        return tests(*gaussian(seed))


def _for_too_many(seed: int) -> Tried:
    """The tests where a share is as small as if no site colluded."""
    distributed.noise_of.cache_clear()
    try:
        with patch.object(distributed, "honest", lambda terms: terms.min_survivors):
            return tests(*gaussian(seed))
    finally:
        distributed.noise_of.cache_clear()


@contextmanager
def _planted(sampler: Sampler) -> Iterator[None]:
    with patch.object(dpsgd, "discrete_gaussian", sampler), patch.object(shared_noise, "discrete_gaussian", sampler):
        yield


def _scaled(factor: float, n: int, variance: int, stream: Stream) -> NDArray[np.int64]:
    return samplers.discrete_gaussian(n, round(factor**2 * variance), stream)


def _cut(n: int, variance: int, stream: Stream) -> NDArray[np.int64]:
    most = round(3 * math.sqrt(variance))
    return np.clip(samplers.discrete_gaussian(n, variance, stream), -most, most)


def _local(study: Study, seed: int, label: int) -> list[NDArray[np.float32]]:
    """The step of a site where nobody was drawn: noise alone, by tensor."""
    parameters = [torch.zeros(VALUES, requires_grad=True) for _ in range(2)]
    terms = study.terms
    protection = Protection(CLIP_NORM, study.mechanism.noise_multiplier(terms), terms.denominator)
    values = noisy_gradient(parameters, [], protection, Stream.seeded(seed, "local", label)).values.numpy()
    return np.split(values, 2)


def _sparse_scales(seed: int) -> Tried:
    """Exact: which scales a release asks for, and that what it claims in the ledger is the sum of its parts."""
    study = study_of("svt", 2.0, rounds=4, more="released = 0.1")
    entry = round_entry(study, "site-1", "audit", 1)
    if not isinstance(entry, SparseRelease):
        raise TypeError(f"the ledger says {entry}")
    numbers = SparseVector.of(7, entry.clip_range, entry.threshold, entry.epsilon)
    asked: list[tuple[int, float]] = []

    def recorded(n: int, scale: float, stream: Stream) -> NDArray[np.int64]:
        """No noise; what was asked for is kept."""
        asked.append((n, scale))
        return np.zeros(n, np.int64)

    with patch.object(sparse_vector, "laplace", recorded):
        numbers.release(np.full(50, entry.clip_range), Stream.seeded(seed, "release"))
    change, q = 2 * sparse_vector.STEPS, 7
    wanted = [
        (1, change / numbers.thresholds),
        (50, 2 * q * change / numbers.queries),
        (q, q * change / numbers.values),
    ]
    close = partial(math.isclose, rel_tol=1e-12)
    return {
        "scales of a sparse vector": exact(
            len(asked) == 3 and all(a[0] == w[0] and close(a[1], w[1]) for a, w in zip(asked, wanted, strict=True))
        ),
        "epsilon of a sparse vector is the sum of its parts": exact(close(numbers.epsilon, entry.epsilon)),
    }
