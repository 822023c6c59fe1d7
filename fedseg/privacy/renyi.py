"""Rényi accounting of integer noise: what Skellam noise reveals, over a random draw, composed, and as epsilon.

PLD knows no Skellam noise in many dimensions, because nobody knows the worst direction of a patient's vector. Its Rényi
divergence has a bound (Agarwal, Kairouz and Liu 2021, Theorem 3.5), at whole orders a and for variance v of the sum:

    a D2^2 / 2v + min(((2a - 1) D2^2 + 6 D1) / 4v^2, 3 D1 / 2v)

Over a Poisson draw, the divergence of (1 - q) P + q Q from P is a binomial sum of the divergences of Q from P at all
orders up to a (Mironov, Talwar and Zhang 2019, section 3.3; Zhu and Wang 2019). It holds for one patient more. For one
less it is an upper bound too, because noise and noise moved by a vector change places under a reflection (Theorem 5 of
the former): without that symmetry a factor of 3 would be needed. What other patients add, and how a patient's vector is
rounded, is independent of the noise, so that the worst case over it bounds all. Epsilon follows by Proposition 12 of
Canonne, Kamath and Steinke 2020. The result is a bound, 5 to 15 % above what PLD says of Gaussian noise of the same
deviation.

Must never: use the bound between whole orders, or leave the symmetry out of sight for another noise.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import TypeAlias

import numpy as np
from dp_accounting.dp_event import DpEvent, GaussianDpEvent, PoissonSampledDpEvent
from dp_accounting.rdp import RdpAccountant
from numpy.typing import NDArray
from scipy.special import gammaln, logsumexp

ORDERS = tuple(dict.fromkeys([*range(2, 65), *(round(64 * 1.08**step) for step in range(1, 37))]))
"""Whole orders from 2 to about 1,000; a large one serves a small epsilon."""


@dataclass(frozen=True)
class SkellamDpEvent(DpEvent):  # type: ignore[misc]  # its package has no types
    """Skellam noise added to integers, of which one patient changes a vector.

    Attributes:
        variance: of the noise of one coordinate, honest sites together.
        l2: L2 norm that the vector never exceeds.
        l1: L1 norm that it never exceeds.

    Raises:
        ValueError: there is no noise.
    """

    variance: float
    l2: float
    l1: float

    def __post_init__(self) -> None:
        if not self.variance > 0:
            raise ValueError(f"{self} protects nobody: the variance must be above 0")

    def divergence(self, order: float) -> float:
        """The bound at a whole order from 2 on."""
        v, square = self.variance, self.l2**2
        rest = min(((2 * order - 1) * square + 6 * self.l1) / (4 * v * v), 3 * self.l1 / (2 * v))
        return order * square / (2 * v) + rest

    def as_gaussian(self) -> float:
        """Noise multiplier of a Gaussian whose divergence is at least the bound at every whole order from 2 on."""
        v, square = self.variance, self.l2**2
        rest = min(square / (2 * v * v) + max(0.0, 6 * self.l1 - square) / (8 * v * v), 3 * self.l1 / (4 * v))
        return 1 / math.sqrt(square / v + 2 * rest)


Counted: TypeAlias = Iterable[tuple[DpEvent, int]]
"""Each event, and how often."""


def known(event: DpEvent) -> bool:
    """Whether an event is Gaussian or Skellam noise, over a Poisson draw or not."""
    return isinstance(_noise_of(event)[0], GaussianDpEvent | SkellamDpEvent)


def has_skellam(composition: Counted) -> bool:
    """Whether anything in it is Skellam noise."""
    return any(isinstance(_noise_of(event)[0], SkellamDpEvent) for event, _ in composition)


def epsilon(composition: Counted, delta: float) -> float:
    """Epsilon at `delta` of `known` events together.

    Args:
        composition: each event, and how often.
        delta: probability, between 0 and 1.
    """
    orders = np.array(ORDERS, dtype=float)
    moments = sum((count * _moments(event) for event, count in composition), np.zeros(len(orders)))
    found = (moments - math.log(delta) - np.log(orders)) / (orders - 1) + np.log1p(-1 / orders)
    return max(0.0, float(found.min()))


def second_opinion(composition: Counted, delta: float) -> float:
    """The same by `dp_accounting`, which knows no Skellam noise: it is given the Gaussian that reveals no less."""
    accountant = RdpAccountant(ORDERS)
    for event, count in composition:
        noise, rate = _noise_of(event)
        multiplier = noise.as_gaussian() if isinstance(noise, SkellamDpEvent) else noise.noise_multiplier
        gaussian = GaussianDpEvent(multiplier)
        accountant.compose(gaussian if rate == 1 else PoissonSampledDpEvent(rate, gaussian), count)
    return float(accountant.get_epsilon(delta))


def _noise_of(event: DpEvent) -> tuple[DpEvent, float]:
    if isinstance(event, PoissonSampledDpEvent):
        return event.event, event.sampling_probability
    return event, 1.0


@lru_cache(maxsize=256)
def _moments(event: DpEvent) -> NDArray[np.float64]:
    """(a - 1) times the divergence at each a of `ORDERS`."""
    noise, rate = _noise_of(event)
    orders = np.arange(ORDERS[-1] + 1)
    if isinstance(noise, SkellamDpEvent):
        moments = np.array([0.0, 0.0, *((order - 1) * noise.divergence(order) for order in orders[2:].tolist())])
    else:
        moments = orders * (orders - 1) / (2 * noise.noise_multiplier**2)
    if rate == 1:
        return moments[list(ORDERS)]
    return np.array([_drawn(moments[: order + 1], rate) for order in ORDERS])


def _drawn(moments: NDArray[np.float64], rate: float) -> float:
    """Log of sum_k C(a, k) (1 - q)^(a - k) q^k exp(moments[k])."""
    order = len(moments) - 1
    k = np.arange(order + 1)
    choose = gammaln(order + 1) - gammaln(k + 1) - gammaln(order - k + 1)
    return float(logsumexp(choose + (order - k) * math.log1p(-rate) + k * math.log(rate) + moments))
