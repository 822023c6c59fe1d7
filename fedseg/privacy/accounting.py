"""Epsilon of Poisson-subsampled Gaussian steps, recomputed from ledger events and never remembered.

The accountant is the privacy loss distribution (PLD) of `dp-accounting`, which rounds up on a grid of losses; where
every step draws everybody (sample_rate 1) the composition is one Gaussian and is computed exactly. Opacus' PRV
accountant is the second opinion: the two must agree within 1 %. The Gaussian (GDP) limit of subsampling is refused,
because it is *below* the true epsilon (1.618 where PLD says 1.828). Never add an accountant that is not a bound.

Neighbouring data sets differ in one patient, added or removed. Sources: Balle and Wang 2018 (exact Gaussian),
Koskela et al. 2020 and Doroshenko et al. 2022 (PLD), Gopi et al. 2021 (PRV), Gomez et al. 2025 (mu as a summary).
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterable
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np
from dp_accounting import calibrate_dp_mechanism, get_epsilon_gaussian, get_sigma_gaussian
from dp_accounting.dp_event import ComposedDpEvent, GaussianDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.mechanism_calibration import ExplicitBracketInterval
from dp_accounting.pld import PLDAccountant
from scipy.stats import norm

from fedseg.errors import ConfigError, PrivacyError
from fedseg.ledger import Event

LARGEST_NOISE_MULTIPLIER = 1000.0
"""More noise than this leaves nothing of any gradient, so the budget counts as out of reach."""

SMALLEST_NOISE_MULTIPLIER = 0.3
"""Less noise would show a drawn patient plainly, whatever a generous delta or a tiny sample_rate allows on paper."""

AGREEMENT = 0.01
"""Largest relative difference between the two accountants."""


class Release(NamedTuple):
    """Equal noisy sums: noise standard deviation over sensitivity, probability of drawing a patient, their number."""

    noise_multiplier: float
    sample_rate: float
    steps: int


Composition: TypeAlias = tuple[Release, ...]


def epsilon(spent: Release | Iterable[Event | Release], delta: float, accountant: str = "pld") -> float:
    """Epsilon at `delta` of everything in `spent`: 0 for nothing, infinite where a step had no noise.

    Args:
        spent: ledger events or releases; shared validation metrics are not covered and do not count.
        delta: probability, between 0 and 1.
        accountant: ``pld`` (the one that is reported) or ``prv`` (the second opinion).

    Raises:
        ConfigError: an accountant that is no bound or not known, or a delta that is not a probability.
    """
    if accountant not in ("pld", "prv"):
        why = "reports less than the true epsilon" if accountant == "gdp" else "is not one that is checked here"
        raise ConfigError(f"accountant {accountant!r} {why}; use 'pld', or 'prv' to cross-check")
    if not 0 < delta < 1:
        raise ConfigError(f"[privacy] delta = {delta}: choose it between 0 and 1, below 1 / (number of patients)")
    composition = _composed(spent)
    if not composition:
        return 0.0
    if min(release.noise_multiplier for release in composition) == 0:
        return math.inf
    return _pld_epsilon(composition, delta) if accountant == "pld" else _prv_epsilon(composition, delta)


def cross_check(spent: Release | Iterable[Event | Release], delta: float) -> tuple[float, float]:
    """Epsilon by PLD and by PRV.

    Raises:
        PrivacyError: they differ by more than `AGREEMENT` (and by more than 0.001, where both are next to nothing).
    """
    composition = _composed(spent)
    pld, prv = epsilon(composition, delta), epsilon(composition, delta, "prv")
    if not math.isclose(pld, prv, rel_tol=AGREEMENT, abs_tol=1e-3):
        raise PrivacyError(f"two accountants disagree: PLD says epsilon {pld:.4g}, PRV {prv:.4g}; claim nothing")
    return pld, prv


@lru_cache(maxsize=64)
def noise_multiplier_for(budget: float, delta: float, sample_rate: float, steps: int) -> float:
    """Smallest noise multiplier, rounded up to four decimals, that keeps `steps` steps within (budget, delta).

    Never less than `SMALLEST_NOISE_MULTIPLIER`.

    Raises:
        ConfigError: no noise up to `LARGEST_NOISE_MULTIPLIER` meets the budget; says what would.
    """
    least = epsilon(Release(LARGEST_NOISE_MULTIPLIER, sample_rate, steps), delta)
    if not budget > 0 or least > budget:
        raise ConfigError(
            f"[privacy] epsilon = {budget:g} cannot be met: {steps} steps at sample_rate {sample_rate:g} and delta "
            f"{delta:g} spend at least {max(least, 1e-4):.2g}; raise epsilon, or lower rounds, local_steps or "
            "sample_rate"
        )
    # Enough for steps that draw everybody is enough for steps that draw some.
    enough = get_sigma_gaussian(budget, delta) * math.sqrt(steps)
    sigma = enough if sample_rate == 1 else _search(budget, delta, sample_rate, steps, enough)
    return math.ceil(max(sigma, SMALLEST_NOISE_MULTIPLIER) * 1e4 - 1e-9) / 1e4


def gaussian_dp(spent: Release | Iterable[Event | Release], delta: float) -> float:
    """The least mu whose Gaussian mechanism reveals at least as much as `spent`, at every probability above `delta`.

    With sample_rate 1 it is exact, sqrt(steps) / noise_multiplier; below, it is the largest mu over PLD's privacy
    curve and never the central limit.
    """
    composition = _composed(spent)
    if not composition:
        return 0.0
    if min(release.noise_multiplier for release in composition) == 0:
        return math.inf
    if (sigma := _as_one_gaussian(composition)) is not None:
        return 1 / sigma
    losses = np.linspace(0, _pld_epsilon(composition, delta), 32)
    deltas = _accountant(composition).get_delta(losses)
    return float(max(1 / get_sigma_gaussian(loss, chance) for loss, chance in zip(losses, deltas, strict=True)))


def in_words(mu: float, prior: float = 0.01) -> str:
    """What mu means to a patient: Phi(Phi^-1(prior) + mu), the best that an adversary can make of a guess."""
    return (
        f"an adversary whose guess about one patient is right {prior:.0%} of the time without this training is right "
        f"at most {norm.cdf(norm.ppf(prior) + mu):.1%} of the time with it, whatever else they know"
    )


def _composed(spent: Release | Iterable[Event | Release]) -> Composition:
    """Equal steps counted together: what the caches and both accountants work on."""
    counts: Counter[tuple[float, float]] = Counter()
    for item in [spent] if isinstance(spent, Release) else spent:
        if isinstance(item, Release) or item.mechanism != "metrics":
            counts[item.noise_multiplier, item.sample_rate] += item.steps
    return tuple(Release(*kind, steps) for kind, steps in sorted(counts.items()) if steps > 0)


def _as_one_gaussian(composition: Composition) -> float | None:
    """Noise over sensitivity of the Gaussian that full-batch steps compose to; None where steps are sampled."""
    if any(release.sample_rate < 1 for release in composition):
        return None
    return 1 / math.sqrt(sum(release.steps / release.noise_multiplier**2 for release in composition))


def _event(composition: Composition) -> ComposedDpEvent:
    return ComposedDpEvent(
        [
            SelfComposedDpEvent(PoissonSampledDpEvent(rate, GaussianDpEvent(sigma)), steps)
            for sigma, rate, steps in composition
        ]
    )


def _accountant(composition: Composition) -> PLDAccountant:
    return _fresh(min(release.sample_rate for release in composition)).compose(_event(composition))


def _fresh(sample_rate: float) -> PLDAccountant:
    """Any grid gives a bound; rare draws lose little per step and need a fine one to keep it within 1 %."""
    return PLDAccountant(value_discretization_interval=min(max(sample_rate / 125, 1e-4), 1e-3))


@lru_cache(maxsize=256)
def _pld_epsilon(composition: Composition, delta: float) -> float:
    if (sigma := _as_one_gaussian(composition)) is not None:
        return float(get_epsilon_gaussian(sigma, delta))
    return float(_accountant(composition).get_epsilon(delta))


def _prv_epsilon(composition: Composition, delta: float) -> float:
    from opacus.accountants import PRVAccountant  # seconds to import, and only the cross-check needs it

    accountant = PRVAccountant()
    accountant.history = list(composition)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log(0) at sample_rate 1, and the range of RDP orders of its first guess
        rough = float(accountant.get_epsilon(delta))
        return float(accountant.get_epsilon(delta, eps_error=min(0.01, max(rough / 500, 1e-4))))


def _search(budget: float, delta: float, sample_rate: float, steps: int, enough: float) -> float:
    low = enough
    while _pld_epsilon((Release(low, sample_rate, steps),), delta) <= budget:
        if low <= SMALLEST_NOISE_MULTIPLIER:
            return low
        low /= 2
    return float(
        calibrate_dp_mechanism(
            lambda: _fresh(sample_rate),
            lambda sigma: _event((Release(sigma, sample_rate, steps),)),
            budget,
            delta,
            bracket_interval=ExplicitBracketInterval(low, 2 * low),
            tol=1e-4,
        )
    )
