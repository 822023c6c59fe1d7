"""Epsilon of what was released, recomputed from events of `dp_accounting` and never remembered.

An event says what a release was: a Gaussian, one over a random draw, anything that `dp_accounting` knows. Nothing here
knows mechanisms or ledgers: a new kind of release brings its own event. The accountant is the privacy loss distribution
(PLD) of `dp-accounting`, which rounds up on a grid of losses; Gaussians over everybody compose to one Gaussian, which
is computed exactly. Opacus' PRV accountant is the second opinion on Gaussians, drawn or not: the two must agree within
1 %. Where there is Skellam noise, for which neither exists, it is a Rényi bound (`renyi`), and the second opinion is
`dp-accounting`'s on the Gaussian that reveals no less: two programs, but one theory. The Gaussian (GDP) limit of
subsampling is refused, because it is *below* the true epsilon (1.618 where PLD says 1.828). Never add an accountant
that is not a bound.

Neighbouring data sets differ in one patient, added or removed. Sources: Balle and Wang 2018 (exact Gaussian),
Koskela et al. 2020 and Doroshenko et al. 2022 (PLD), Gopi et al. 2021 (PRV), Gomez et al. 2025 (mu as a summary).
"""

import math
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from dp_accounting import calibrate_dp_mechanism, get_epsilon_gaussian, get_sigma_gaussian
from dp_accounting.dp_event import (
    ComposedDpEvent,
    DpEvent,
    GaussianDpEvent,
    NonPrivateDpEvent,
    PoissonSampledDpEvent,
    SelfComposedDpEvent,
)
from dp_accounting.mechanism_calibration import ExplicitBracketInterval
from dp_accounting.pld import PLDAccountant
from scipy.stats import norm

from fedseg.errors import ConfigError, PrivacyError
from fedseg.privacy import pure, renyi
from fedseg.privacy.delta import delta_text
from fedseg.privacy.prv import prv_accountant

LARGEST_NOISE_MULTIPLIER = 1000.0
"""More noise than this leaves nothing of any gradient, so the budget counts as out of reach."""

SMALLEST_NOISE_MULTIPLIER = 0.3
"""Less noise would show a drawn patient plainly, whatever a generous delta or a tiny sample_rate allows on paper."""

AGREEMENT = 0.01
"""Largest relative difference between the two accountants."""

LARGEST_CHECKED = 200.0
"""The PRV accountant computes exp of a few epsilon, and beyond this one would leave what a float holds."""

LEAST_GUESS = 1e-3
"""The rarest guess of which it is said what it can become at most."""

Composition: TypeAlias = tuple[tuple[DpEvent, int], ...]
"""Each event once, and how often: what the caches and both accountants work on."""


def gaussian_steps(noise_multiplier: float, sample_rate: float, steps: int) -> DpEvent:
    """The event of equal noisy sums.

    Args:
        noise_multiplier: noise standard deviation over what one patient can change.
        sample_rate: probability that a patient is drawn in a step, by a coin of its own.
        steps: their number.
    """
    one: DpEvent = GaussianDpEvent(noise_multiplier)
    return SelfComposedDpEvent(one if sample_rate == 1 else PoissonSampledDpEvent(sample_rate, one), steps)


def epsilon(spent: Iterable[DpEvent], delta: float, accountant: str = "pld") -> float:
    """Epsilon at `delta` of everything in `spent`: 0 for nothing, infinite where something had no noise.

    Args:
        spent: what was released.
        delta: probability, between 0 and 1.
        accountant: ``pld`` (the one that is reported; Rényi where there is Skellam noise) or ``prv`` (the second
            opinion, on Gaussians only and up to `LARGEST_CHECKED`).

    Raises:
        ConfigError: an accountant that is no bound or not known, or a delta that is not a probability.
        PrivacyError: the accountant does not know such a release.
    """
    if accountant not in ("pld", "prv"):
        why = "reports less than the true epsilon" if accountant == "gdp" else "is not one that is checked here"
        raise ConfigError(f"accountant {accountant!r} {why}; use 'pld', or 'prv' to cross-check")
    if not 0 < delta < 1:
        raise ConfigError(f"[privacy] delta = {delta}: choose it between 0 and 1, below 1 / (number of patients)")
    composition = _composed(spent)
    if not composition or _unbounded(composition):
        return math.inf if composition else 0.0
    if accountant == "pld":
        return _first_epsilon(composition, delta)
    second = _prv_epsilon(composition, delta)
    if second is None:
        raise PrivacyError(f"the PRV accountant knows Gaussian noise only, to epsilon {LARGEST_CHECKED:g}; use 'pld'")
    return second


def cross_check(spent: Iterable[DpEvent], delta: float) -> tuple[float, float | None]:
    """Epsilon by two accountants, whose names `accountants` says.

    The second is None where it knows no such release, or where epsilon is above `LARGEST_CHECKED`.

    Raises:
        PrivacyError: they differ by more than `AGREEMENT` (and by more than 0.001, where both are next to nothing).
    """
    spent = list(spent)
    first, composition = epsilon(spent, delta), _composed(spent)
    second = first if not composition or _unbounded(composition) else _second_epsilon(composition, delta)
    if second is not None and not math.isclose(first, second, rel_tol=AGREEMENT, abs_tol=1e-3):
        names = accountants(spent)
        raise PrivacyError(
            f"two accountants disagree at delta {delta_text(delta)}: {names[0]} says epsilon {first:.4g}, {names[1]} "
            f"{second:.4g}; nothing can be claimed; choose delta nearer to 1 / (10 x patients), or another sample_rate "
            "or epsilon"
        )
    return first, second


def accountants(spent: Iterable[DpEvent]) -> tuple[str, str]:
    """Names of the accountant that is reported and of the second one."""
    return ("Rényi", "dp-accounting's Rényi") if renyi.has_skellam(_composed(spent)) else ("PLD", "PRV")


@lru_cache(maxsize=64)
def noise_multiplier_for(budget: float, delta: float, sample_rate: float, steps: int) -> float:
    """Smallest noise multiplier, rounded up to four decimals, that keeps `steps` steps within (budget, delta).

    Never less than `SMALLEST_NOISE_MULTIPLIER`, and never one at which two accountants disagree: no study trains for
    hours to learn at its end that nothing can be claimed.

    Args:
        budget: epsilon that all steps together may spend.
        delta: probability, between 0 and 1.
        sample_rate: probability that a patient is drawn in a step.
        steps: of the whole study.

    Raises:
        ConfigError: no noise up to `LARGEST_NOISE_MULTIPLIER` meets the budget; says what would.
        PrivacyError: the two accountants disagree.
    """
    found = smallest_multiplier(budget, delta, sample_rate, steps)
    cross_check([gaussian_steps(found, sample_rate, steps)], delta)
    return found


@lru_cache(maxsize=64)
def smallest_multiplier(budget: float, delta: float, sample_rate: float, steps: int) -> float:
    """`noise_multiplier_for` before a second accountant has been asked."""
    least = epsilon([gaussian_steps(LARGEST_NOISE_MULTIPLIER, sample_rate, steps)], delta)
    if not budget > 0 or least > budget:
        raise ConfigError(
            f"[privacy] epsilon = {budget:g} cannot be met: {steps} steps at sample_rate {sample_rate:g} and delta "
            f"{delta_text(delta)} spend at least {max(least, 1e-4):.2g}; raise epsilon, or lower rounds, local_steps "
            "or sample_rate"
        )
    # Enough for steps that draw everybody is enough for steps that draw some.
    enough = get_sigma_gaussian(budget, delta) * math.sqrt(steps)
    sigma = enough if sample_rate == 1 else _search(budget, delta, sample_rate, steps, enough)
    found = math.ceil(max(sigma, SMALLEST_NOISE_MULTIPLIER) * 1e4 - 1e-9) / 1e4
    while epsilon([gaussian_steps(found, sample_rate, steps)], delta) > budget:  # near 1e-12 the grid is not monotone
        found = math.ceil(found * 1.0005e4) / 1e4
    return found


def gaussian_dp(spent: Iterable[DpEvent], delta: float) -> float | None:
    """A mu whose Gaussian mechanism reveals at least as much as `spent`, at every false alarm that counts.

    Where everybody is drawn it is exact, sqrt(steps) / noise_multiplier. Elsewhere no finite mu holds for the rarest
    events: a patient who is hardly ever drawn and then shows plainly has a curve that no Gaussian follows. There it is
    large enough for every false alarm between the smaller of `delta` and `LEAST_GUESS` and one less that, and for PLD's
    privacy curve down to `delta`. It is never the central limit. 0 for nothing, infinite where something had no noise,
    None where there is Skellam noise, of which a Rényi bound says too little in likely events, or a release known by
    its pure epsilon only.

    Args:
        spent: what was released.
        delta: below which probabilities the privacy curve is not looked at.
    """
    composition = _composed(spent)
    if not composition or _unbounded(composition):
        return math.inf if composition else 0.0
    if (sigma := _as_one_gaussian(composition)) is not None:
        return 1 / sigma
    if renyi.has_skellam(composition) or any(isinstance(event, pure.PureDpEvent) for event, _ in composition):
        return None
    return _mu_by_curve(composition, delta)


@lru_cache(maxsize=256)
def _mu_by_curve(composition: Composition, delta: float) -> float:
    accountant = _accountant(composition)
    losses = np.linspace(0, _pld_epsilon(composition, delta), 32)
    curve = zip(losses, accountant.get_delta(losses), strict=True)
    by_curve = max(1 / get_sigma_gaussian(loss, chance) for loss, chance in curve)
    # Of each (loss, chance) follows a bound of detection by false alarm; the least of them rises with the false alarm,
    # so that the one at the end of a step holds for all of it.
    losses = np.linspace(0, float(accountant.get_epsilon(1e-9)), 128)
    chances = np.array(accountant.get_delta(losses))
    end = -float(norm.ppf(min(delta, LEAST_GUESS)))
    steps = np.linspace(-end, end, 1024)
    alarms = norm.cdf(steps)[:, None]
    detected = np.minimum(
        alarms * np.exp(np.minimum(losses, 700.0)) + chances, 1 - np.exp(-losses) * (1 - alarms - chances)
    ).min(axis=1)
    return float(max(by_curve, (norm.ppf(np.minimum(detected[1:], 1.0)) - steps[:-1]).max()))


def in_words(mu: float | None, prior: float = 0.01, *, loss: float = math.inf, delta: float = 0.0) -> str:
    """What a guarantee means to a patient: the best that an adversary can make of a guess.

    Args:
        mu: of Gaussian differential privacy; None where only epsilon is known.
        prior: how often the guess is right without the training.
        loss: epsilon, used without mu.
        delta: of that epsilon.
    """
    if mu is None:
        # Whoever accepts with probability prior where the patient is absent, and 1 - the same with exchanged places.
        best = min(prior * math.exp(min(loss, 700.0)) + delta, 1 - math.exp(-loss) * (1 - prior - delta), 1.0)
    else:
        best = float(norm.cdf(norm.ppf(prior) + mu))
    return (
        f"an adversary whose guess about one patient is right {prior:.0%} of the time without this training is right "
        f"at most {math.ceil(1000 * best - 1e-9) / 10:.1f}% of the time with it, whatever else they know"
    )


def _composed(spent: Iterable[DpEvent]) -> Composition:
    counts: Counter[DpEvent] = Counter()
    for event, count in _flat(spent, 1):
        counts[event] += count
    return tuple(sorted(((event, count) for event, count in counts.items() if count > 0), key=repr))


def _flat(spent: Iterable[DpEvent], times: int) -> Iterator[tuple[DpEvent, int]]:
    for event in spent:
        match event:
            case ComposedDpEvent():
                yield from _flat(event.events, times)
            case SelfComposedDpEvent():
                yield from _flat([event.event], times * event.count)
            case _:
                yield event, times


def _unbounded(composition: Composition) -> bool:
    return any(isinstance(event, NonPrivateDpEvent) or (_gaussian(event) or (1, 1))[0] == 0 for event, _ in composition)


def _gaussian(event: DpEvent) -> tuple[float, float] | None:
    """Noise multiplier and probability of being drawn, None where the event is not a Gaussian, drawn or not."""
    match event:
        case GaussianDpEvent():
            return event.noise_multiplier, 1.0
        case PoissonSampledDpEvent(event=GaussianDpEvent()):
            return event.event.noise_multiplier, event.sampling_probability
    return None


def _as_one_gaussian(composition: Composition) -> float | None:
    """Noise over sensitivity of the one Gaussian that Gaussians over everybody compose to; None for anything else."""
    if not all(isinstance(event, GaussianDpEvent) for event, _ in composition):
        return None
    return 1 / math.sqrt(sum(count / event.noise_multiplier**2 for event, count in composition))


def _accountant(composition: Composition) -> PLDAccountant:
    accountant = _fresh(
        min(rate / multiplier for event, _ in composition for multiplier, rate in [_gaussian(event) or (1, 1)])
    )
    for event, count in composition:
        if not accountant.supports(event):
            raise PrivacyError(f"no accountant here knows a release such as {event}; claim nothing")
        accountant.compose(event, count)
    return accountant


def _fresh(typical_loss: float) -> PLDAccountant:
    """Any grid gives a bound; where a step's typical loss, rate / multiplier, is small, a fine one keeps it close."""
    return PLDAccountant(value_discretization_interval=min(max(typical_loss / 12.5, 1e-4), 1e-3))


@lru_cache(maxsize=256)
def _pld_epsilon(composition: Composition, delta: float) -> float:
    if (sigma := _as_one_gaussian(composition)) is not None:
        return float(get_epsilon_gaussian(sigma, delta))
    return float(_accountant(composition).get_epsilon(delta))


def _first_epsilon(composition: Composition, delta: float) -> float:
    if coins := tuple((event, count) for event, count in composition if isinstance(event, pure.PureDpEvent)):
        others = tuple((event, count) for event, count in composition if not isinstance(event, pure.PureDpEvent))
        if not others:
            return pure.epsilon(coins, delta)
        return pure.epsilon(coins, delta / 2) + _first_epsilon(others, delta / 2)
    if not renyi.has_skellam(composition):
        return _pld_epsilon(composition, delta)
    together = tuple((event, count) for event, count in composition if renyi.known(event))
    others = tuple((event, count) for event, count in composition if not renyi.known(event))
    if not others:
        return renyi.epsilon(together, delta)
    return renyi.epsilon(together, delta / 2) + _pld_epsilon(others, delta / 2)  # no accountant knows both


def _second_epsilon(composition: Composition, delta: float) -> float | None:
    if not renyi.has_skellam(composition):
        return _prv_epsilon(composition, delta)
    return renyi.second_opinion(composition, delta) if all(renyi.known(event) for event, _ in composition) else None


def _prv_epsilon(composition: Composition, delta: float) -> float | None:
    history = _history(composition)
    about = _pld_epsilon(composition, delta) if history else math.inf
    if about > LARGEST_CHECKED:
        return None
    accountant = prv_accountant()
    accountant.history = history
    # Its memory grows with epsilon / error: no finer than `AGREEMENT` needs.
    error = max(min(0.01, about / 500), about / 5000, 1e-4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # log(0) at sample_rate 1, and the range of RDP orders of its first guess
        return max(0.0, float(accountant.get_epsilon(delta, eps_error=error)))  # next to nothing may be negative


def _history(composition: Composition) -> list[tuple[float, float, int]] | None:
    """Noise multiplier, sample rate, steps, as PRV takes them; None where it does not know an event.

    Gaussians over everybody are one Gaussian: its memory also grows with the root of the number of steps.
    """
    whole = tuple((event, count) for event, count in composition if isinstance(event, GaussianDpEvent))
    history = [(sigma, 1.0, 1)] if whole and (sigma := _as_one_gaussian(whole)) is not None else []
    for event, count in composition:
        if (known := _gaussian(event)) is None:
            return None
        if not isinstance(event, GaussianDpEvent):
            history.append((*known, count))
    return history


def _search(budget: float, delta: float, sample_rate: float, steps: int, enough: float) -> float:
    low = enough
    while epsilon([gaussian_steps(low, sample_rate, steps)], delta) <= budget:
        if low <= SMALLEST_NOISE_MULTIPLIER:
            return low
        low /= 2
    return float(
        calibrate_dp_mechanism(
            lambda: _fresh(sample_rate / (2 * low)),
            lambda sigma: gaussian_steps(sigma, sample_rate, steps),
            budget,
            delta,
            bracket_interval=ExplicitBracketInterval(low, 2 * low),
            tol=1e-4,
        )
    )
