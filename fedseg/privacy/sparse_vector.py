"""A few values of an update, chosen and released with noise: the sparse vector technique.

The update is clipped value by value to [-g, g] first, so that nothing at a site, one patient or all of them, changes a
value by more than s = 2g. In a random order each value's magnitude with fresh noise is held against a threshold with
noise of its own, until q have passed or all were asked; no value is asked twice. What passed is released with fresh
noise and clipped again, which places are released is shown, and everything else is 0. With Laplace noise of scales
s / e1 on the threshold, 2 q s / e2 on the magnitudes and q s / e3 on the released values this is (e1 + e2 + e3)-DP,
whatever changes at the site: all values may change at once, and the q that are released change together by q s.

Values and noise are whole numbers of a public step, and the noise is discrete Laplace, for which the same proof holds:
a float's low bits would tell what it was added to (Mironov 2012). Each bit of a geometric count is a coin of its own,
whose probability is right to 2^-53: together they change less than 1e-9, which is far below any delta here.

Must never: look at values before they are clipped, ask one twice, or release one with less noise than for all q.
Sources: Li et al. 2019; Lyu, Su and Li 2017 (Algorithm 1 and the split of epsilon); Balcer and Vadhan 2019.
"""

import math
from dataclasses import dataclass
from typing import Any, final

import numpy as np
from numpy.typing import NDArray

from fedseg.privacy.dpsgd import Unsent
from secagg.prg import Stream

STEPS = 1 << 12
"""Whole numbers from 0 to the clip range."""


@dataclass(frozen=True)
class SparseVector:
    """The public numbers of a release.

    Attributes:
        released: q, how many values at most.
        clip_range: g.
        threshold: what a magnitude has to reach.
        thresholds, queries, values: e1, e2 and e3.

    Raises:
        ValueError: nothing would be released, or something without noise.
    """

    released: int
    clip_range: float
    threshold: float
    thresholds: float
    queries: float
    values: float

    @classmethod
    def of(cls, released: int, clip_range: float, threshold: float, epsilon: float) -> "SparseVector":
        """Half of epsilon is for the values; the other half is split so that choosing is as right as can be."""
        magnitudes = (2 * released) ** (2 / 3)
        first = epsilon / 2 / (1 + magnitudes)
        return cls(released, clip_range, threshold, first, first * magnitudes, epsilon / 2)

    def __post_init__(self) -> None:
        if not (self.released >= 1 and min(self.clip_range, self.thresholds, self.queries, self.values) > 0):
            raise ValueError(f"{self} protects nobody, or releases nothing")

    @property
    def epsilon(self) -> float:
        """Of the whole release, at delta 0."""
        return self.thresholds + self.queries + self.values

    @property
    def _sensitivity(self) -> int:
        return 2 * STEPS

    def release(self, update: NDArray[Any], stream: Stream) -> NDArray[np.float64]:
        """(m,) update to the (m,) that are released, at most q of them not 0; `stream` is used here only."""
        clean = np.nan_to_num(update.astype(np.float64), nan=0.0)
        whole = np.rint(np.clip(clean, -self.clip_range, self.clip_range) / self.clip_range * STEPS).astype(np.int64)
        q, s = self.released, self._sensitivity
        bar = math.ceil(self.threshold / self.clip_range * STEPS) + laplace(1, s / self.thresholds, stream)[0]
        order = np.argsort(stream.uniform(len(whole)), kind="stable")
        passed = np.abs(whole[order]) + laplace(len(whole), 2 * q * s / self.queries, stream) >= bar
        chosen = order[passed][:q]
        out = np.zeros(len(whole))
        noised = whole[chosen] + laplace(len(chosen), q * s / self.values, stream)
        out[chosen] = np.clip(noised, -STEPS, STEPS) * (self.clip_range / STEPS)
        return out


class _Made:
    """Proof that an object was made in this file."""


_MADE_HERE = _Made()


@final
class Release(Unsent):
    """What a sparse vector released; `sparse_release` alone makes one.

    Attributes:
        values: (m,) float64.
    """

    __slots__ = ("values",)

    def __init__(self, values: NDArray[np.float64], made: _Made) -> None:
        if made is not _MADE_HERE:
            raise TypeError("a Release comes from sparse_release only, which clips, chooses and adds the noise")
        self.values = values


def sparse_release(update: NDArray[Any], numbers: SparseVector, stream: Stream) -> Release:
    """Release a few values of an (m,) update."""
    return Release(numbers.release(update, stream), _MADE_HERE)


def laplace(n: int, scale: float, stream: Stream) -> NDArray[np.int64]:
    """(n,) independent integers k with probability proportional to exp(-|k| / scale).

    The difference of two geometric counts, the bits of each of which are independent: bit i is 1 with probability
    1 / (1 + exp(2^i / scale)).
    """
    return _geometric(n, scale, stream) - _geometric(n, scale, stream)


def _geometric(n: int, scale: float, stream: Stream) -> NDArray[np.int64]:
    count = np.zeros(n, np.int64)
    for bit in range(62):
        exponent = 2.0**bit / scale
        if exponent > 45:  # rarer than 2^-64
            break
        count += stream.bernoulli(n, 1 / (1 + math.exp(exponent))).astype(np.int64) << bit
    return count
