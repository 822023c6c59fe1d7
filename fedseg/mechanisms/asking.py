"""Statistics of all patients' images, asked for in one sum before training: what is asked, its noise, and its epsilon.

A patient's summary is one vector of whole numbers: a one, the share of its images of each class or structure, the share
of each size, and of each channel the mean and the mean square. Each of these is between 0 and 1 before it is scaled,
and the shares of one kind add up to at most 1, so that the summary's length is bounded by public constants alone. The
noise is of the mechanism's own kind: the whole of it at each site where nobody is trusted, a share of it where the sum
is. A part of the study's epsilon and delta, `[privacy] statistics`, is set aside for it: by basic composition all
together stays within the study's promise, and the accountant, which composes more closely, says less.
"""

import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from dp_accounting.dp_event import DpEvent
from numpy.typing import NDArray

from fedseg.ledger import Entry, NoisyStatistics, UnprotectedRound
from fedseg.mechanisms.mechanism import Said, Terms
from fedseg.privacy.accounting import smallest_multiplier
from fedseg.privacy.shared_noise import SharedNoise, plan_noise
from fedseg.privacy.trust import NO_CLAIM_SEEDED, Trust

FIELD = "statistics"
"""In the layout of the vector, behind the update."""

SIZES = (32.0, 64.0, 128.0, 256.0, 512.0)
"""Millimetres (pixels, of pictures) between which an image's longest side is counted."""

EXACT = 1 << 14
"""Whole numbers between 0 and 1 in an exact sum."""

LARGEST_SENSITIVITY = 1 << 14
DEVIATION = 1 << 15
"""Of the noise of a sum, at most about: below what samplers draw."""

LEAST_SPREAD = 0.05
"""Of the range of an image's values: a deviation that is found below it, by noise, counts as it."""


@dataclass(frozen=True)
class Statistics:
    """What was found of all patients in training.

    Attributes:
        patients: how many, with noise where there is some.
        shares: of each class or structure, how many patients' images are of it, or how many images it would fill.
        sizes: images' longest sides, how many patients up to each of `SIZES`, and beyond.
        mean: of each channel, in the units of a normalised image.
        sd: the same.
    """

    patients: float
    shares: tuple[float, ...]
    sizes: tuple[float, ...]
    mean: tuple[float, ...]
    sd: tuple[float, ...]


@dataclass(frozen=True)
class Asked:
    """What a study asks for.

    Args:
        names: classes or structures.
        ranges: of each channel the lowest and the highest value that a normalised image can have.
        epsilon: of the one sum; None where nothing is claimed, and the sum is exact.
        delta: the same.
        honest: shares of the noise that count.
        times: sums that the noise is planned for: one, and one for each spare round.
        seeded: whether the study has a seed.
        survivors: sites that a sum has at least; 0 where each site's noise is the whole.
    """

    names: int
    ranges: tuple[tuple[float, float], ...]
    epsilon: float | None
    delta: float | None
    honest: int
    times: int
    seeded: bool
    survivors: int

    @property
    def length(self) -> int:
        """Whole numbers of a summary: 1, names, sizes, and two a channel."""
        return 2 + self.names + len(SIZES) + 2 * len(self.ranges)

    @property
    def kept(self) -> int:
        """Values of a state that hold what was found, behind a 1 that says that it was asked."""
        return 1 + self.length

    @property
    def _norm(self) -> float:
        return math.sqrt(3 + 2 * len(self.ranges))

    @property
    def noise(self) -> SharedNoise | None:
        """A site's share of the noise; None where the sum is exact.

        Raises:
            ConfigError: no reasonable noise meets what is set aside.
        """
        if self.epsilon is None or self.delta is None:
            return None
        return _noise_of(self.epsilon, self.delta, self.honest, self.times, self.length)

    @property
    def sensitivity(self) -> int:
        """L2 norm that one patient's whole numbers never exceed."""
        return math.ceil(EXACT * self._norm) if (noise := self.noise) is None else noise.sensitivity

    @property
    def scale(self) -> int:
        """What 1 becomes."""
        return EXACT if (noise := self.noise) is None else math.floor(noise.sensitivity / self._norm)

    def released(self, times: int, honest: int | None = None) -> DpEvent | None:
        """What so many sums show to somebody for whom so many shares count; None where nothing protects.

        Args:
            times: sums.
            honest: shares; None for as many as planned.
        """
        noise, shares = self.noise, self.honest if honest is None or not self.survivors else honest
        return None if noise is None or shares < 1 else noise.event(shares, 1.0, times)

    def entry(self, said: Said) -> Entry:
        """What one sum costs, as the ledger has it."""
        if (noise := self.noise) is None:
            return UnprotectedRound(**said)
        return NoisyStatistics(
            **said,
            variance=noise.variance,
            sensitivity=noise.sensitivity,
            shares=self.honest,
            survivors=self.survivors,
            generator=NO_CLAIM_SEEDED if self.seeded else "os",
        )

    def bits_needed(self, patients: int, sites: int) -> int:
        """Of a sum that does not wrap with four times as many patients."""
        noise = self.noise
        spread = 0.0 if noise is None else 12 * math.sqrt(sites * noise.variance)
        return math.ceil(4 * patients * self.scale + spread).bit_length() + 1

    def summary(
        self,
        shares: NDArray[np.float64],
        sizes: NDArray[np.float64],
        mean: NDArray[np.float64],
        square: NDArray[np.float64],
    ) -> NDArray[np.int64]:
        """A patient's summary, (length,); every number given is between 0 and 1.

        Args:
            shares: (names,) that add up to at most 1.
            sizes: (sizes,) the same.
            mean: (channels,) in the range's own units.
            square: the same.
        """
        # Shares are cut, so that their length never grows; a mean is no longer than 1 however it is rounded.
        cut = np.floor(self.scale * np.concatenate([[1.0], shares, sizes]))
        near = np.rint(self.scale * np.concatenate([mean, square]))
        return np.concatenate([cut, near]).astype(np.int64)

    def found(self, total: NDArray[np.float64]) -> NDArray[np.float32]:
        """What a sum of summaries says, (kept,), the same bits at every party: 1, patients, shares, sizes, mean, sd."""
        values = total / self.scale
        patients, means = max(float(values[0]), 1.0), 2 * len(self.ranges)
        low, high = (np.array(ends) for ends in zip(*self.ranges, strict=True))
        mean, square = (values[-means:] / patients).clip(0, 1).reshape(2, -1)
        sd = np.sqrt(np.maximum(square - mean * mean, LEAST_SPREAD**2))
        whole = np.rint(values[:-means] * self.scale) / self.scale
        return np.concatenate([[1.0], whole, low + mean * (high - low), sd * (high - low)]).astype(np.float32)

    def read(self, state: NDArray[np.float32]) -> Statistics | None:
        """What a state has of it at its end; None where nobody was asked yet."""
        tail, channels = [float(value) for value in state[-self.kept :]], len(self.ranges)
        if not tail[0]:
            return None
        shares = 2 + self.names
        return Statistics(
            patients=tail[1],
            shares=tuple(tail[2:shares]),
            sizes=tuple(tail[shares : -2 * channels]),
            mean=tuple(tail[-2 * channels : -channels]),
            sd=tuple(tail[-channels:]),
        )


@lru_cache(maxsize=16)
def _noise_of(epsilon: float, delta: float, honest: int, times: int, length: int) -> SharedNoise:
    about = smallest_multiplier(epsilon, delta, 1.0, times)
    return plan_noise(
        "gaussian",
        budget=epsilon,
        delta=delta,
        sample_rate=1.0,
        steps=times,
        honest=honest,
        length=length,
        sensitivity=max(1, min(LARGEST_SENSITIVITY, int(DEVIATION * math.sqrt(honest) / about))),
    )


def asked_by(
    terms: Terms,
    trust: Trust,
    names: int,
    ranges: tuple[tuple[float, float], ...],
    share: float,
) -> Asked:
    """What a study asks for, and what is set aside for it.

    Args:
        terms: of the study, before anything is set aside.
        trust: of its mechanism.
        names: classes or structures.
        ranges: of normalised images.
        share: of epsilon and delta.
    """
    claims, alone = trust.claims_epsilon, trust.each_update_private
    return Asked(
        names=names,
        ranges=ranges,
        epsilon=share * (terms.epsilon or 0.0) if claims else None,
        delta=share * (terms.delta or 0.0) if claims else None,
        honest=1 if alone or not claims else terms.min_survivors - terms.max_corrupt,
        times=1 + terms.spare_rounds,
        seeded=terms.seeded,
        survivors=0 if alone else terms.min_survivors,
    )
