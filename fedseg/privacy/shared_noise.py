"""Noise that sites add together: one share a site, which protects little alone, and its epsilon in the sum.

Only shares of honest sites whose update is in the sum count: m = survivors - max_corrupt, and never fewer than
min_survivors - max_corrupt, because a smaller sum is not opened. A study is planned for that fewest number; what was
achieved follows from the sites that were there.

"skellam": shares add up to Skellam noise of the summed variance, exactly. Its epsilon is a Rényi bound (`renyi`).

"gaussian": shares are discrete Gaussians, and their sum is one too but for a factor within 1 +- tau a coordinate, tau
at most 10 m exp(-pi^2 sigma^2) (Kairouz, Liu and Steinke 2021, Theorem 5); of shares in layers (`excess`) m is the
number of layers in the sum and sigma the smallest one's. That one is, but for a factor within
1 +- 4 exp(-2 pi^2 s^2), a post-processing of the *continuous* Gaussian of variance m sigma^2 - s^2: draw y from it,
then an integer from the discrete Gaussian of variance s^2 around y. The integral over y is the Gaussian of variance
m sigma^2 at the integer, and only the second draw's normalisation depends on y: by Poisson's sum it lies within
1 +- 2.1 exp(-2 pi^2 s^2). With s = 3, sigma >= `SMALLEST_DEVIATION` and as many coordinates and steps as anybody has,
all factors together change epsilon and the logarithm of delta by less than 1e-60, less than any figure here shows. So
everything that is known of Gaussian noise holds: PLD, PRV and mu, drawn or not.
"""

import math
from dataclasses import dataclass
from typing import Literal, TypeAlias

import numpy as np
from dp_accounting.dp_event import DpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from numpy.typing import NDArray

from fedseg.errors import ConfigError
from fedseg.privacy.accounting import (
    LARGEST_NOISE_MULTIPLIER,
    cross_check,
    epsilon,
    gaussian_steps,
    smallest_multiplier,
)
from fedseg.privacy.delta import delta_text
from fedseg.privacy.renyi import SkellamDpEvent
from fedseg.privacy.samplers import LARGEST_VARIANCE, discrete_gaussian, skellam
from secagg.prg import Stream

Kind: TypeAlias = Literal["skellam", "gaussian"]

SMALLEST_DEVIATION = 6
"""Of a discrete Gaussian share: less would let the sum differ visibly from a discrete Gaussian."""

SMOOTHED = 9
"""s^2: variance that a discrete Gaussian has beyond the continuous one whose post-processing it is."""

FINE = 16
"""Integers in a patient's vector, over the root of its length: rounding then adds 0.1 % to its square."""


@dataclass(frozen=True)
class SharedNoise:
    """Each site's share of the noise of a step, and what one patient changes in the sum.

    Attributes:
        kind: distribution of a share.
        variance: of one site's share of one coordinate.
        sensitivity: L2 norm that the integers of one patient never exceed.
        length: integers of a step.

    Raises:
        ValueError: a share that is too small to be accounted for, or a sensitivity that is none.
    """

    kind: Kind
    variance: int
    sensitivity: int
    length: int

    def __post_init__(self) -> None:
        least = 1 if self.kind == "skellam" else SMALLEST_DEVIATION**2
        if not (least <= self.variance <= LARGEST_VARIANCE and self.sensitivity >= 1 and self.length >= 1):
            raise ValueError(f"{self}: a share has a variance of {least} to {LARGEST_VARIANCE}, and what it hides 1")

    def draw(self, n: int, stream: Stream) -> NDArray[np.int64]:
        """One site's share, (n,) int64; `stream` is this step's, read here only."""
        return (skellam if self.kind == "skellam" else discrete_gaussian)(n, self.variance, stream)

    def noise_multiplier(self, honest: int) -> float:
        """Deviation of so many shares over what one patient can change."""
        return math.sqrt(honest * self.variance) / self.sensitivity

    def event(self, honest: int, sample_rate: float, steps: int) -> DpEvent:
        """What so many steps reveal with the noise of `honest` sites, at least 1, in each.

        Args:
            honest: survivors - max_corrupt.
            sample_rate: probability that a patient is drawn in a step, by a coin of its own.
            steps: their number.
        """
        total = honest * self.variance
        if self.kind == "gaussian":
            return gaussian_steps(math.sqrt(total - SMOOTHED) / self.sensitivity, sample_rate, steps)
        # Integers: no entry is smaller than its square, so that the L1 norm is at most the square of the L2 norm.
        l1 = self.sensitivity * min(math.sqrt(self.length), self.sensitivity)
        one: DpEvent = SkellamDpEvent(total, self.sensitivity, l1)
        return SelfComposedDpEvent(one if sample_rate == 1 else PoissonSampledDpEvent(sample_rate, one), steps)


def plan_noise(
    kind: Kind,
    *,
    budget: float,
    delta: float,
    sample_rate: float,
    steps: int,
    honest: int,
    length: int,
    sensitivity: int | None = None,
) -> SharedNoise:
    """The smallest shares that keep all steps within (budget, delta).

    Args:
        kind: distribution of a share.
        budget: epsilon that all steps together may spend.
        delta: probability, between 0 and 1.
        sample_rate: probability that a patient is drawn in a step.
        steps: of the whole study.
        honest: the fewest honest sites in any sum, min_survivors - max_corrupt.
        length: integers of a step.
        sensitivity: L2 norm that one patient's integers never exceed; where not given, the one at which rounding adds
            next to nothing, or the largest for which shares can be drawn.

    Raises:
        ConfigError: no reasonable noise meets the budget.
        PrivacyError: two accountants disagree.
    """
    if honest < 1:
        raise ConfigError(
            "[secagg] min_survivors must be above max_corrupt: without an honest site in every sum there is no noise "
            "that protects; raise min_survivors"
        )
    multiplier = smallest_multiplier(budget, delta, sample_rate, steps)
    widest = math.isqrt(honest * LARGEST_VARIANCE)
    if sensitivity is None:
        sensitivity = max(1, min(math.ceil(FINE * math.sqrt(length)), int(widest / (1.3 * multiplier))))

    def shares(multiplier: float) -> SharedNoise:
        """The smallest shares that reach a noise multiplier together."""
        total = (multiplier * sensitivity) ** 2 + (SMOOTHED if kind == "gaussian" else 0)
        share = max(math.ceil(total / honest), SMALLEST_DEVIATION**2)
        return SharedNoise(kind, min(share, LARGEST_VARIANCE), sensitivity, length)

    def meets(noise: SharedNoise) -> bool:
        """Whether all steps stay within the budget."""
        return epsilon([noise.event(honest, sample_rate, steps)], delta) <= budget

    low, high = multiplier, multiplier  # of a Gaussian, which Skellam noise never undercuts
    while not meets(shares(high)):
        low, high = high, 1.1 * high
        if high > LARGEST_NOISE_MULTIPLIER or high * sensitivity > widest:
            raise ConfigError(
                f"[privacy] epsilon = {budget:g} cannot be met: so much noise over {steps} steps at sample_rate "
                f"{sample_rate:g} and delta {delta_text(delta)} leaves no integers to the gradient; raise epsilon, or "
                "lower rounds or sample_rate"
            )
    while high - low > 1e-4 * high:
        middle = (low + high) / 2
        low, high = (low, middle) if meets(shares(middle)) else (middle, high)
    noise = shares(high)
    cross_check([noise.event(honest, sample_rate, steps)], delta)
    return noise
