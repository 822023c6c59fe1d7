"""One site's part of a step whose noise is in the sum of all sites: integers of each patient, and a share of the noise.

Each drawn patient's gradient is clipped, rotated, scaled and rounded to integers by a stream of the patient's own. So
one patient more adds one integer vector of L2 norm at most `Grid.sensitivity` to the sum and changes nothing else:
the norm is checked on the integers themselves. Rounding the sum of a site instead would let one patient change how all
the others are rounded. A `NoiseShare` alone protects too little: only the sum of enough of them is private, so that one
leaves a site masked or not at all. It is made here and nowhere else.

Must never: let one patient's presence reach how another is rounded, take a scale from data, or hand out integers
without their share of the noise. Sources: Kairouz, Liu and Steinke 2021 (rotation, rounding of bounded norm), Agarwal,
Kairouz and Liu 2021 (Skellam).
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import final

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.errors import ConfigError
from fedseg.privacy.dpsgd import Unsent, stream_of, summed
from fedseg.rotation import block_of, hadamard, padded, signs
from fedseg.sharing.space import Within
from secagg.prg import Stream

RARE = 7.5
"""k: with a chance of exp(-k^2 / 2), below 2^-40, a rounded vector is too long and is rounded towards 0 instead."""


@dataclass(frozen=True)
class Grid:
    """The integers of a step, all public.

    Attributes:
        parameters: d, values of a gradient.
        clip_norm: L2 bound of one patient's gradient.
        sensitivity: L2 norm that the integers of one patient never exceed.

    Raises:
        ConfigError: so few integers cannot hold a gradient of so many values.
    """

    parameters: int
    clip_norm: float
    sensitivity: int

    def __post_init__(self) -> None:
        if self.scale * self.clip_norm < self.sensitivity / 2:
            raise ConfigError(
                f"[privacy] so much noise leaves only {self.sensitivity} steps for a gradient of {self.parameters} "
                "values, which rounding would fill; raise epsilon, lower rounds, or take a smaller model"
            )

    @property
    def length(self) -> int:
        """Integers of a step: d, filled up to whole blocks."""
        return padded(self.parameters)

    @cached_property
    def scale(self) -> float:
        """Integers per unit of gradient: the largest whose roundings are rarely too long.

        A vector of L2 norm r becomes one of squared norm at most r^2 + n/4 + k (r + sqrt(n) / 2), but for a chance of
        exp(-k^2 / 2), and never a longer one than r + sqrt(n).
        """
        n, k = self.length, RARE
        room = self.sensitivity**2 - n / 4 - k * math.sqrt(n) / 2
        rarely = (math.sqrt(k * k + 4 * room) - k) / 2 if room > 0 else 0.0
        return max(rarely, self.sensitivity - math.sqrt(n), 0.0) / self.clip_norm

    def integers(self, gradient: NDArray[np.float64], rotation: bytes, stream: Stream) -> NDArray[np.int64]:
        """What one patient adds.

        Args:
            gradient: (d,) of L2 norm at most `clip_norm`.
            rotation: 32 public bytes.
            stream: of this patient and this step, used here only.

        Returns:
            (length,) of L2 norm at most `sensitivity`: the rotated and scaled gradient, right on average.
        """
        values = np.zeros(self.length)
        values[: self.parameters] = gradient
        values *= signs(rotation, self.length)
        values = hadamard(values, self._block)
        values *= self.scale / math.sqrt(self._block)
        low = np.floor(values)
        rounded = (low + (stream.uniform(len(values)) < values - low)).astype(np.int64)
        if self._too_long(rounded):
            rounded = values.astype(np.int64)  # towards 0: not longer than what was rounded
        return np.zeros_like(rounded) if self._too_long(rounded) else rounded

    def gradient(self, total: NDArray[np.int64], rotation: bytes) -> NDArray[np.float64]:
        """The gradient that a sum of integers stands for, (d,), bit for bit the same at every party.

        Args:
            total: (length,) sum over patients and sites.
            rotation: of the step.
        """
        turned = hadamard(total, self._block) * signs(rotation, self.length)  # whole numbers: nothing is rounded
        return turned[: self.parameters] / (self.scale * math.sqrt(self._block))

    @property
    def _block(self) -> int:
        return block_of(self.parameters)

    def _too_long(self, integers: NDArray[np.int64]) -> bool:
        return int(np.dot(integers, integers)) > self.sensitivity**2


class _Made:
    """Proof that an object was made in this file."""


_MADE_HERE = _Made()


@final
class NoiseShare(Unsent):
    """The clipped integers of a site's patients with the site's share of the noise; `noise_share` alone makes one.

    Attributes:
        values: (length,) int64.
    """

    __slots__ = ("values",)

    def __init__(self, values: NDArray[np.int64], made: _Made) -> None:
        if made is not _MADE_HERE:
            raise TypeError("a NoiseShare comes from noise_share only, which clips and adds the share of the noise")
        self.values = values


def noise_share(
    parameters: Sequence[torch.Tensor],
    losses: Iterable[tuple[str, torch.Tensor]],
    grid: Grid,
    rotation: bytes,
    rounding: bytes,
    noise: Callable[[int], NDArray[np.int64]],
    within: Within | None = None,
) -> NoiseShare:
    """The sum over the drawn patients, and this site's share of the noise.

    Args:
        parameters: trained tensors, d values in all.
        losses: each drawn patient with its loss, made one by one so that one graph lives at a time; may be empty.
        grid: clipping and integers.
        rotation: 32 public bytes of this step.
        rounding: this step's 32-byte key of the patients' own streams.
        noise: so many fresh integers.
        within: where given, gradients are reduced before they are clipped; the grid is of what is left.
    """
    total = noise(grid.length)
    for patient, loss in losses:
        clipped = summed(parameters, [loss], grid.clip_norm, within=within).cpu().numpy()
        total += grid.integers(clipped, rotation, stream_of(patient, rounding))
    return NoiseShare(total, _MADE_HERE)
