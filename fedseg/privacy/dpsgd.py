"""The noisy gradient of one step: Poisson draw of patients, clipped gradients, noise on a grid, public divisor.

The patient is the unit by construction: one backward pass over all of a patient's slices or patches, clipped as a
whole. A `NoisedGradient` is made here and nowhere else, so that types tell what noise protects. Must never: divide by
how many patients were drawn or exist, let one patient's presence reach what another adds, reuse a stream, or draw noise
from a generator that is not cryptographic, or in floating point, whose low bits tell what noise was added to (Mironov
2012). Each patient's clipped gradient is rounded to a public grid, whole steps of which are added up and get whole
steps of noise, a discrete Gaussian. Whatever follows sees a number of steps and nothing below.

Source: Abadi et al. 2016, with the patient in place of the example.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn, final

import numpy as np
import torch

from fedseg.privacy.samplers import LARGEST_VARIANCE, discrete_gaussian
from fedseg.privacy.shared_noise import SMOOTHED
from fedseg.sharing.space import Within
from secagg.encoding import digest
from secagg.prg import Stream

FINE = 4
"""Steps in a clip norm, over the root of the number of values: rounding then adds less than 1 % to a squared norm."""

FEWEST_STEPS = 1024
"""In the clip norm of a small gradient."""


@dataclass(frozen=True)
class Grid:
    """Where clipped gradients and their noise live: multiples of a public step, a power of two.

    Attributes:
        step: what one whole number stands for.
        limit: largest squared norm of one patient's whole numbers.
        variance: of the noise of each value, in steps squared.
    """

    step: float
    limit: int
    variance: int

    def rounded(self, gradient: torch.Tensor) -> torch.Tensor:
        """A patient's (d,) float64 gradient in whole steps, never longer than the limit allows.

        Rounding to the nearest may make it a little longer, so it is shortened first by what rounding usually adds;
        where that is not enough it is rounded towards 0, which makes nothing longer.
        """
        usual = len(gradient) / 10 + 4 * math.sqrt(self.limit)
        own = gradient * (math.sqrt(max(1 - usual / self.limit, 0.25)) / self.step)
        whole = torch.round(own)
        if self._too_long(whole):
            whole = torch.trunc(own)
        return torch.zeros_like(whole) if self._too_long(whole) else whole

    def _too_long(self, whole: torch.Tensor) -> bool:
        return float(torch.dot(whole, whole)) > self.limit  # whole numbers: exact in any order


@dataclass(frozen=True)
class Protection:
    """How one step is protected.

    Attributes:
        clip_norm: L2 bound of one patient's gradient, above 0.
        noise_multiplier: noise standard deviation over `clip_norm`, above 0.
        denominator: public constant that divides the noisy sum.

    Raises:
        ValueError: nothing would be clipped, or no noise added.
    """

    clip_norm: float
    noise_multiplier: float
    denominator: int

    def grid(self, length: int) -> Grid:
        """The grid of gradients of so many values: as fine as rounding and the sampler want."""
        steps = min(
            max(FEWEST_STEPS, FINE * math.sqrt(length)), math.sqrt(LARGEST_VARIANCE / 8) / self.noise_multiplier
        )
        step = 2.0 ** math.floor(math.log2(self.clip_norm / steps))
        limit = math.floor((self.clip_norm / step) ** 2 * (1 - 1e-12))
        # See `shared_noise`: of the discrete Gaussian's variance, all but a little is a continuous Gaussian's.
        return Grid(step, limit, math.ceil(self.noise_multiplier**2 * (limit + 1)) + SMOOTHED)

    def variance(self, length: int) -> float:
        """Of the noise in each value of a gradient of so many, divided as it is."""
        grid = self.grid(length)
        return (grid.step / self.denominator) ** 2 * grid.variance

    def __post_init__(self) -> None:
        if not (self.clip_norm > 0 and self.noise_multiplier > 0):
            raise ValueError(f"{self} protects nobody: clip_norm and noise_multiplier must be above 0")


class Unsent:
    """Something of a site's training that is neither copied nor pickled: only the protocol takes it out, masked."""

    __slots__ = ()

    def __reduce__(self) -> NoReturn:
        raise TypeError(f"a {type(self).__name__} is neither copied nor pickled: it leaves a site through secagg only")

    def __reduce_ex__(self, protocol: object) -> NoReturn:
        self.__reduce__()


class _Made:
    """Proof that an object was made in this file."""


_MADE_HERE = _Made()


@final
class NoisedGradient(Unsent):
    """A gradient that epsilon speaks for: clipped patient by patient, and noised. `noisy_gradient` alone makes one.

    Attributes:
        values: (d,) float32, in the order of the trained parameters, on their device.
    """

    __slots__ = ("values",)

    def __init__(self, values: torch.Tensor, made: _Made) -> None:
        if made is not _MADE_HERE:
            raise TypeError("a NoisedGradient comes from noisy_gradient only, which clips and adds the noise")
        self.values = values


def stream_of(patient: str, key: bytes) -> Stream:
    """A patient's own stream under a step's 32-byte key: by its identifier, never by its place among the others."""
    return Stream(digest("patient", key, patient.encode("utf-8", "surrogateescape")))


def draw(patients: Sequence[str], sample_rate: float, key: bytes) -> list[str]:
    """Poisson sampling: each patient with probability `sample_rate`, by a coin of its own; may draw nobody.

    Args:
        patients: identifiers, in any order: who else is there changes nobody's coin.
        sample_rate: between 0 and 1.
        key: 32 bytes, of this step's sampling only.

    Returns:
        The drawn, in the order given.
    """
    return [patient for patient in patients if stream_of(patient, key).bernoulli(1, sample_rate)[0]]


def noisy_gradient(
    parameters: Sequence[torch.Tensor],
    losses: Iterable[torch.Tensor],
    protection: Protection,
    stream: Stream,
    within: Within | None = None,
) -> NoisedGradient:
    """(sum of clipped patient gradients + noise) / denominator.

    Args:
        parameters: trained tensors, d values in all.
        losses: one scalar per drawn patient, made one by one so that one graph lives at a time; may be empty.
        protection: clipping, noise, divisor.
        stream: noise of this step, used here only.
        within: where given, gradients are reduced before they are clipped and noised: no noise is elsewhere.
    """
    length = sum(parameter.numel() for parameter in parameters) if within is None else within.length
    grid = protection.grid(length)
    total = summed(parameters, losses, protection.clip_norm, grid, within)
    total += torch.from_numpy(discrete_gaussian(len(total), grid.variance, stream)).to(total.device)
    total = total * grid.step / protection.denominator
    return NoisedGradient((total if within is None else within.restored(total)).float(), _MADE_HERE)


def plain_gradient(
    parameters: Sequence[torch.Tensor],
    losses: Iterable[torch.Tensor],
    denominator: int,
    within: Within | None = None,
) -> torch.Tensor:
    """Sum of patient gradients / denominator, for mechanism 'none': nothing is clipped or noised, nobody is protected.

    Args:
        parameters: trained tensors, d values in all.
        losses: one scalar per drawn patient; may be empty.
        denominator: public constant.
        within: where given, what of the sum can be sent.

    Returns:
        (d,) float32 on the parameters' device.
    """
    total = summed(parameters, losses, None)
    return ((total if within is None else within.restored(within.reduced(total))) / denominator).float()


def clipped_gradient(
    parameters: Sequence[torch.Tensor],
    losses: Iterable[torch.Tensor],
    clip_norm: float,
    denominator: int,
    within: Within | None = None,
) -> torch.Tensor:
    """Sum of clipped patient gradients / denominator, without noise, for mechanism 'clipped': nobody is protected.

    Args and returns as `plain_gradient`; `clip_norm` is the L2 bound of one patient's gradient, where `within` is given
    of what of it can be sent.
    """
    total = summed(parameters, losses, clip_norm, within=within)
    return ((total if within is None else within.restored(total)) / denominator).float()


def summed(
    parameters: Sequence[torch.Tensor],
    losses: Iterable[torch.Tensor],
    clip_norm: float | None,
    grid: Grid | None = None,
    within: Within | None = None,
) -> torch.Tensor:
    """Sum of patient gradients before any noise, (d,) float64: it must not leave this process.

    Args:
        parameters: trained tensors, d values in all.
        losses: one scalar per drawn patient; may be empty.
        clip_norm: L2 bound of one patient's gradient; None adds gradients as they are.
        grid: where given, each patient's gradient is rounded to it, and the sum is in whole steps.
        within: where given, each patient's gradient is reduced before it is clipped, and the sum is (within.length,).
    """
    length = sum(parameter.numel() for parameter in parameters) if within is None else within.length
    # In double precision: what one patient adds must not round differently because another was added before it.
    total = torch.zeros(length, dtype=torch.float64, device=parameters[0].device)
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        own = torch.cat([gradient.reshape(-1) for gradient in gradients])
        add_clipped(total, own if within is None else within.reduced(own), clip_norm, grid)
    return total


def add_clipped(total: torch.Tensor, gradient: torch.Tensor, clip_norm: float | None, grid: Grid | None = None) -> None:
    """Add one patient's (d,) gradient to `total` in place, scaled down to L2 norm `clip_norm` where it is longer.

    A gradient that is not finite adds nothing: stopping would reveal that such a patient was drawn.

    Args:
        total: (d,) float64, changed.
        gradient: (d,) float32 or float64.
        clip_norm: None adds the gradient as it is.
        grid: where given, whole steps of it are added.
    """
    if clip_norm is None:
        total += gradient
        return
    length = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    if np.isfinite(length):
        own = gradient.double() * min(1.0, clip_norm / max(length, clip_norm))
        total += own if grid is None else grid.rounded(own)
