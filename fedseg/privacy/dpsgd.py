"""The noisy gradient of one step: Poisson draw of patients, clipped gradients, Gaussian noise, public divisor.

The patient is the unit by construction: one backward pass over all of a patient's slices or patches, clipped as a
whole. Must never: divide by how many patients were drawn or exist, let one patient's presence reach what another adds,
reuse a stream, or draw noise from a generator that is not cryptographic. Noise is floating point, so its low bits are
not ideal (Mironov 2012); what leaves a site is rounded stochastically to the integers of `secagg.quantize` afterwards.

Source: Abadi et al. 2016, with the patient in place of the example.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import ndtri

from secagg.encoding import digest
from secagg.prg import Stream

CHUNK = 1 << 15
"""Values of noise made at a time: 256 KiB of words stay in the cache."""


@dataclass(frozen=True)
class Mechanism:
    """How one step is protected.

    Attributes:
        clip_norm: L2 bound of one patient's gradient; None leaves it as it is and protects nobody.
        noise_multiplier: noise standard deviation over `clip_norm`; 0 without protection.
        denominator: public constant that divides the noisy sum.
    """

    clip_norm: float | None
    noise_multiplier: float
    denominator: int


def stream_of(patient: str, key: bytes) -> Stream:
    """A patient's own stream under a step's 32-byte key: by its identifier, never by its place among the others."""
    return Stream(digest("patient", key, patient.encode("utf-8", "surrogateescape")))


def draw(patients: Sequence[str], sample_rate: float, key: bytes) -> list[str]:
    """Poisson sampling: each patient with probability `sample_rate`, by a coin of its own; may draw nobody."""
    return [patient for patient in patients if stream_of(patient, key).bernoulli(1, sample_rate)[0]]


def noisy_gradient(
    parameters: Sequence[torch.Tensor], losses: Iterable[torch.Tensor], mechanism: Mechanism, stream: Stream
) -> torch.Tensor:
    """(sum of clipped patient gradients + noise) / denominator.

    Args:
        parameters: trained tensors, d values in all.
        losses: one scalar per drawn patient, made one by one so that one graph lives at a time; may be empty.
        mechanism: clipping, noise, divisor.
        stream: noise of this step, used here only.

    Returns:
        (d,) float32 on the parameters' device, in the order of `parameters`.
    """
    length = sum(parameter.numel() for parameter in parameters)
    # In double precision: what one patient adds must not round differently because another was added before it.
    total = torch.zeros(length, dtype=torch.float64, device=parameters[0].device)
    for loss in losses:
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True, materialize_grads=True)
        add_clipped(total, torch.cat([gradient.reshape(-1) for gradient in gradients]), mechanism.clip_norm)
    if mechanism.clip_norm is not None and mechanism.noise_multiplier > 0:
        noise = gaussian(len(total), mechanism.noise_multiplier * mechanism.clip_norm, stream)
        total += torch.from_numpy(noise).to(total.device)
    return (total / mechanism.denominator).float()


def add_clipped(total: torch.Tensor, gradient: torch.Tensor, clip_norm: float | None) -> None:
    """Add one patient's (d,) gradient to `total` in place, scaled down to L2 norm `clip_norm` where it is longer.

    A gradient that is not finite adds nothing: stopping would reveal that such a patient was drawn.
    """
    if clip_norm is None:
        total += gradient
        return
    length = float(torch.linalg.vector_norm(gradient, dtype=torch.float64))
    if np.isfinite(length):
        total.add_(gradient.double(), alpha=min(1.0, clip_norm / max(length, clip_norm)))


def gaussian(n: int, deviation: float, stream: Stream) -> NDArray[np.float32]:
    """(n,) independent Gaussian values by inversion of cryptographic uniforms, up to 8.2 deviations."""
    noise = np.empty(n, dtype=np.float32)
    for start in range(0, n, CHUNK):
        part = noise[start : start + CHUNK]
        part[:] = deviation * ndtri(stream.uniform(len(part)))
    return noise
