"""Lower bounds of epsilon from what an attacker got right: four estimators, each with its source.

All of them answer one question: of a mechanism that claims (epsilon, delta), how surprising are so many right guesses?
A bound is the largest epsilon at which they are too surprising, at an error that is chosen beforehand. It holds with
probability 1 - error, whatever the mechanism does. Nothing here imports the product that is audited.

A *canary* is a patient who was put into the training or left out by a fair coin. `Guesses` counts what an attacker
made of them. The attacker may abstain: of `canaries` it guesses `made`, and `right` of those are right.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy import optimize, stats

LARGEST = 50.0
"""No bound above this is looked for."""


@dataclass(frozen=True)
class Guesses:
    """What an attacker guessed of canaries that a fair coin put in or left out.

    Attributes:
        canaries: m, how many coins were thrown.
        made: r, how many were guessed.
        right: v, how many of these were right.
    """

    canaries: int
    made: int
    right: int

    def __post_init__(self) -> None:
        if not 0 <= self.right <= self.made <= self.canaries:
            raise ValueError(f"{self}: right, made and canaries must rise")

    @property
    def all_right(self) -> "Guesses":
        """The same guesses, as if all were right: what bounds a bound."""
        return Guesses(self.canaries, self.made, self.made)


@dataclass(frozen=True)
class Counts:
    """A test of presence: how often it said "present" where the canary was, and where it was not.

    Attributes:
        found, present: true positives, of so many.
        alarms, absent: false positives, of so many.
    """

    found: int
    present: int
    alarms: int
    absent: int

    @property
    def all_right(self) -> "Counts":
        """The same trials, as if the test had never been wrong."""
        return Counts(self.present, self.present, 0, self.absent)


def clopper_pearson(successes: int, trials: int, error: float) -> tuple[float, float]:
    """The exact interval of a probability; each side fails with probability at most error / 2.

    Source: Clopper and Pearson 1934.
    """
    low = stats.beta.ppf(error / 2, successes, trials - successes + 1) if successes else 0.0
    high = stats.beta.isf(error / 2, successes + 1, trials - successes) if successes < trials else 1.0
    return float(low), float(high)


def from_rates(counts: Counts, delta: float, error: float) -> float:
    """Epsilon from a true and a false positive rate, each at the bad end of its Clopper-Pearson interval.

    (epsilon, delta) means TPR <= e^epsilon FPR + delta, and 1 - FPR <= e^epsilon (1 - TPR) + delta. Trials must be
    independent. Source: Jagielski, Ullman and Oprea 2020.
    """
    tpr, fpr = _rates(counts, error)
    return max(_log_ratio(tpr - delta, fpr), _log_ratio(1 - fpr - delta, 1 - tpr))


def gaussian(counts: Counts, delta: float, error: float) -> float:
    """Epsilon at delta of the Gaussian mechanism that explains the rates best: mu = z(TPR) - z(FPR), z the quantile.

    A bound for what is dominated by Gaussian noise, such as noisy sums over everybody, and much closer there than the
    others; of anything else only an estimate. Trials must be independent.
    Source: Nasr, Hayes, Steinke, Balle, Tramèr, Jagielski, Carlini and Terzis 2023 (section 4.2), Dong et al. 2022.
    """
    tpr, fpr = _rates(counts, error)
    if not 0 < tpr < 1 or not 0 < fpr < 1:
        return LARGEST if tpr == 1 and fpr < 1 else 0.0
    return epsilon_of_mu(float(stats.norm.ppf(tpr) - stats.norm.ppf(fpr)), delta)


def delta_of_mu(mu: float, epsilon: float) -> float:
    """Delta of mu-Gaussian differential privacy at epsilon. Source: Balle and Wang 2018, Theorem 8."""
    if mu <= 0:
        return 0.0
    second = math.exp(epsilon + float(stats.norm.logcdf(-mu / 2 - epsilon / mu)))
    return float(stats.norm.cdf(mu / 2 - epsilon / mu)) - second


def epsilon_of_mu(mu: float, delta: float, largest: float = LARGEST) -> float:
    """Its inverse at delta; 0 where mu is 0 or below, at most `largest`."""
    if mu <= 0 or delta_of_mu(mu, 0.0) <= delta:
        return 0.0
    if delta_of_mu(mu, largest) >= delta:
        return largest
    return float(optimize.brentq(lambda epsilon: delta_of_mu(mu, epsilon) - delta, 0.0, largest, xtol=1e-10))


def mu_of_epsilon(epsilon: float, delta: float) -> float:
    """The mu whose Gaussian has exactly this epsilon at delta."""
    return float(optimize.brentq(lambda mu: delta_of_mu(mu, epsilon) - delta, 1e-9, 100.0, xtol=1e-12))


def one_run_p_value(guesses: Guesses, epsilon: float, delta: float) -> float:
    """How likely so many right guesses are, at most, of a mechanism with (epsilon, delta): one training for all.

    With B ~ Bin(r, e^epsilon / (1 + e^epsilon)): P[B >= v] + 2 m delta max_i (P[B >= v - i] - P[B >= v]) / i. The
    second term is what delta can add; without it the bound is none.
    Source: Steinke, Nasr and Jagielski 2023, Corollary 5.4 and Appendix D.
    """
    m, r, v = guesses.canaries, guesses.made, guesses.right
    chance = 1 / (1 + math.exp(-epsilon))
    least = float(stats.binom.sf(v - 1, r, chance))
    shifts = np.arange(1, v + 1)
    gained = (stats.binom.sf(v - shifts - 1, r, chance) - least) / shifts
    return min(1.0, least + 2 * m * delta * float(gained.max(initial=0.0)))


def one_run(guesses: Guesses, delta: float, error: float) -> float:
    """The largest epsilon that `one_run_p_value` rejects; 0 where it rejects none."""
    return _largest_rejected(lambda epsilon: one_run_p_value(guesses, epsilon, delta) < error)


TradeOff: TypeAlias = Callable[[float], float]
"""The inverse x -> y of 1 - f(y) = x, f the trade-off curve: where a test accepts with probability x at most when the
canary is there, it accepts with probability y at least when it is not."""


def gaussian_trade_off(mu: float) -> TradeOff:
    """Of mu-Gaussian differential privacy: Phi(z(x) - mu)."""
    from scipy.special import ndtr, ndtri  # the functions behind `stats.norm`, without their checks

    return lambda x: float(ndtr(ndtri(x) - mu)) if x > 0 else 0.0


def pure_trade_off(epsilon: float, delta: float) -> TradeOff:
    """Of (epsilon, delta): the inverse of min(1, delta + e^epsilon y, 1 - e^-epsilon (1 - delta - y))."""
    up = math.exp(epsilon)
    return lambda x: min(1.0, max(0.0, (x - delta) / up, 1 - delta - up * (1 - x)))


def f_one_run_rejects(guesses: Guesses, trade_off: TradeOff, error: float) -> bool:
    """Whether so many right guesses are less likely than error under a trade-off curve, with one training for all.

    Walks down from v right guesses to none: if v of them had probability above error, then fewer would need so much
    that all numbers of right guesses together had more than there is, r / m of the coins.
    Source: Mahloujifar, Melis and Chaudhuri 2024, Algorithm 3 and Theorem 3.2, for two outcomes a coin.
    """
    m, r, v = guesses.canaries, guesses.made, guesses.right
    share, wrong = error * v / m, error * (r - v) / m
    for i in range(v - 1, -1, -1):
        grown = max(wrong, trade_off(share))
        if grown == wrong:
            break  # it stays so for the rest of the walk
        share, wrong = min(share + i / (r - i) * (grown - wrong), 1.0), grown
    return share + wrong > r / m


def f_one_run(guesses: Guesses, delta: float, error: float) -> float:
    """Epsilon at delta of the largest mu whose Gaussian trade-off curve `f_one_run_rejects`.

    A bound for what is dominated by Gaussian noise, see `gaussian`; unlike it, also where canaries share one training.
    """
    found = _largest_rejected(lambda mu: f_one_run_rejects(guesses, gaussian_trade_off(mu), error))
    return epsilon_of_mu(found, delta)


def f_one_run_pure(guesses: Guesses, delta: float, error: float) -> float:
    """The largest epsilon whose (epsilon, delta) trade-off curve `f_one_run_rejects`: a bound whatever the noise is."""
    return _largest_rejected(lambda epsilon: f_one_run_rejects(guesses, pure_trade_off(epsilon, delta), error))


def guesses_of(scores: NDArray[np.float64], present: NDArray[np.bool_], made: int) -> Guesses:
    """The attacker says "present" of the made / 2 highest scores and "absent" of as many lowest ones."""
    order, half = np.argsort(scores, kind="stable"), made // 2
    right = int(present[order[len(order) - half :]].sum() + (~present[order[:half]]).sum())
    return Guesses(len(scores), 2 * half, right)


def counts_of(scores: NDArray[np.float64], present: NDArray[np.bool_], threshold: float) -> Counts:
    """A test that says "present" where a score is above a threshold that was chosen without a look at the scores."""
    above = scores > threshold
    return Counts(int(above[present].sum()), int(present.sum()), int(above[~present].sum()), int((~present).sum()))


def _rates(counts: Counts, error: float) -> tuple[float, float]:
    """Lower end of the true positive rate, upper end of the false positive rate; together they fail with `error`."""
    found, _ = clopper_pearson(counts.found, counts.present, error)
    _, alarms = clopper_pearson(counts.alarms, counts.absent, error)
    return found, alarms


def _log_ratio(above: float, below: float) -> float:
    if above <= 0:
        return 0.0
    return LARGEST if below <= 0 else min(LARGEST, max(0.0, math.log(above / below)))


def _largest_rejected(rejects: Callable[[float], bool]) -> float:
    """The end of the rejected values, which begin at 0: from below, to 1e-4."""
    if not rejects(0.0):
        return 0.0
    low, high = 0.0, 1.0
    while rejects(high):
        low, high = high, 2 * high
        if low >= LARGEST:
            return LARGEST
    while high - low > 1e-4:
        middle = (low + high) / 2
        low, high = (middle, high) if rejects(middle) else (low, middle)
    return low
