"""The noisy gradient of one step: Poisson draw of patients, clipped gradients, Gaussian noise, public divisor.

The patient is the unit by construction: one backward pass over all of a patient's slices or patches, clipped as a
whole. A `NoisedGradient` is made here and nowhere else, so that types tell what noise protects. Must never: divide by
how many patients were drawn or exist, let one patient's presence reach what another adds, reuse a stream, or draw noise
from a generator that is not cryptographic. Noise is floating point, so its low bits are not ideal (Mironov 2012); what
leaves a site is rounded stochastically to the integers of `secagg.quantize` afterwards.

Source: Abadi et al. 2016, with the patient in place of the example.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import NoReturn, final

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri

from secagg.encoding import digest
from secagg.prg import Stream

CHUNK = 1 << 15
"""Values of noise made at a time: 256 KiB of words stay in the cache."""


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
    parameters: Sequence[torch.Tensor], losses: Iterable[torch.Tensor], protection: Protection, stream: Stream
) -> NoisedGradient:
    """(sum of clipped patient gradients + noise) / denominator.

    Args:
        parameters: trained tensors, d values in all.
        losses: one scalar per drawn patient, made one by one so that one graph lives at a time; may be empty.
        protection: clipping, noise, divisor.
        stream: noise of this step, used here only.
    """
    total = summed(parameters, losses, protection.clip_norm)
    noise = gaussian(len(total), protection.noise_multiplier * protection.clip_norm, stream)
    total += torch.from_numpy(noise).to(total.device)
    return NoisedGradient((total / protection.denominator).float(), _MADE_HERE)


def plain_gradient(
    parameters: Sequence[torch.Tensor], losses: Iterable[torch.Tensor], denominator: int
) -> torch.Tensor:
    """Sum of patient gradients / denominator, for mechanism 'none': nothing is clipped or noised, nobody is protected.

    Args:
        parameters: trained tensors, d values in all.
        losses: one scalar per drawn patient; may be empty.
        denominator: public constant.

    Returns:
        (d,) float32 on the parameters' device.
    """
    return (summed(parameters, losses, None) / denominator).float()


def summed(parameters: Sequence[torch.Tensor], losses: Iterable[torch.Tensor], clip_norm: float | None) -> torch.Tensor:
    """Sum of patient gradients before any noise, (d,) float64: it must not leave this process.

    Args:
        parameters: trained tensors, d values in all.
        losses: one scalar per drawn patient; may be empty.
        clip_norm: L2 bound of one patient's gradient; None adds gradients as they are.
    """
    length = sum(parameter.numel() for parameter in parameters)
    # In double precision: what one patient adds must not round differently because another was added before it.
    total = torch.zeros(length, dtype=torch.float64, device=parameters[0].device)
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        add_clipped(total, torch.cat([gradient.reshape(-1) for gradient in gradients]), clip_norm)
    return total


def add_clipped(total: torch.Tensor, gradient: torch.Tensor, clip_norm: float | None) -> None:
    """Add one patient's (d,) gradient to `total` in place, scaled down to L2 norm `clip_norm` where it is longer.

    A gradient that is not finite adds nothing: stopping would reveal that such a patient was drawn.

    Args:
        total: (d,) float64, changed.
        gradient: (d,) float32 or float64.
        clip_norm: None adds the gradient as it is.
    """
    if clip_norm is None:
        total += gradient
        return
    length = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    if np.isfinite(length):
        total.add_(gradient.double(), alpha=min(1.0, clip_norm / max(length, clip_norm)))


def gaussian(n: int, deviation: float, stream: Stream) -> NDArray[np.float32]:
    """Independent Gaussian values by inversion of cryptographic uniforms, up to 8.2 deviations.

    Args:
        n: how many.
        deviation: their standard deviation.
        stream: read once, for nothing else.

    Returns:
        (n,) float32.
    """
    noise = np.empty(n, dtype=np.float32)
    for start in range(0, n, CHUNK):
        part = noise[start : start + CHUNK]
        part[:] = deviation * ndtri(stream.uniform(len(part)))
    return noise
