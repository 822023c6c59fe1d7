"""A program in JAX, written for numbers with few binary places: SPU computes with integers that stand for fractions.

Each step is PyTorch's own up to rounding. What is rewritten: a mean divides in two steps, for 1 / 200704 has hardly any
binary places left; the root in GroupNorm takes a step of Newton's more, which makes answers ten times more exact; a
transposed convolution spreads its input out first; a pool looks along one side, then the other.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from fedseg.encrypted.program import Program

Array = Any
"""(k, features, height, width), or (k, features) after a mean: plain, or shared in SPU."""

_LEAST = -1024.0
"""Less than any value that a network computes, and still far from the ends of SPU's numbers."""


def run(program: Program, weights: Mapping[str, Array], pictures: Array) -> Array:
    """What the network says of pictures.

    Args:
        program: the network.
        weights: by name, as the program lists them.
        pictures: (k, channels, height, width).

    Returns:
        (k, outputs) or (k, outputs, height, width): what a network gives before any softmax.
    """
    values = [pictures]
    for step in program.steps:
        taken = [values[number] for number in step.takes]
        values.append(_DOES[step.does](*taken, *(weights[name] for name in step.weights), *step.numbers))
    return values[-1]


def _conv(values: Array, weight: Array, *others: Any) -> Array:
    *bias, stride, padding = others
    sides = (int(padding), int(padding))
    found = lax.conv_general_dilated(values, weight, (int(stride), int(stride)), (sides, sides))
    return _shifted(found, bias)


def _grow(values: Array, weight: Array, *others: Any) -> Array:
    *bias, stride, padding, more = others
    low = weight.shape[2] - 1 - int(padding)
    spread = lax.pad(values, jnp.float32(0), [(0, 0, 0), (0, 0, 0), *[(low, low + int(more), int(stride) - 1)] * 2])
    turned = jnp.swapaxes(weight[:, :, ::-1, ::-1], 0, 1)
    return _shifted(lax.conv_general_dilated(spread, turned, (1, 1), "VALID"), bias)


def _norm(values: Array, gain: Array, shift: Array, groups: float, small: float) -> Array:
    k, features, height, width = values.shape
    grouped = values.reshape(k, int(groups), -1, height, width)
    centred = grouped - _mean(grouped)
    spread = _mean(centred * centred) + small
    found = lax.rsqrt(spread)
    found = found * (1.5 - 0.5 * spread * found * found)
    scale = found.reshape(k, int(groups), 1) * gain.reshape(1, int(groups), -1)
    return centred.reshape(values.shape) * scale.reshape(k, features, 1, 1) + shift.reshape(1, -1, 1, 1)


def _relu(values: Array, slope: float) -> Array:
    above = jnp.maximum(values, 0.0)
    return above if slope == 0 else above * (1 - slope) + values * slope


def _prelu(values: Array, slope: Array) -> Array:
    above = jnp.maximum(values, 0.0)
    return above + (values - above) * slope.reshape(1, -1, 1, 1)


def _pool(values: Array, side: float, stride: float, padding: float) -> Array:
    edge = (int(padding), int(padding), 0)
    padded = lax.pad(values, jnp.float32(_LEAST), [(0, 0, 0), (0, 0, 0), edge, edge])
    for axis in (2, 3):
        ends = (padded.shape[axis] - int(side)) // int(stride) * int(stride) + 1
        lines = [lax.slice_in_dim(padded, at, at + ends, int(stride), axis) for at in range(int(side))]
        padded = _largest(lines)
    return padded


def _largest(lines: Sequence[Array]) -> Array:
    found, *others = lines
    for other in others:
        found = jnp.maximum(found, other)
    return found


def _linear(values: Array, weight: Array, *bias: Array) -> Array:
    found = values @ weight.T
    return found + bias[0] if bias else found


def _mean(values: Array) -> Array:
    """Over all axes but the first two, which stay: a factor between 1/2 and 1, then a power of two over the others."""
    count = math.prod(values.shape[2:])
    power = math.ceil(math.log2(count))
    values = values.sum(-1, keepdims=True) * (2 ** (power - 1) / count)
    for axis in range(2, values.ndim - 1):
        share = (power - 1) // 2 if axis > 2 else power - 1 - (power - 1) // 2 * (values.ndim - 4)
        values = values.sum(axis, keepdims=True) * 0.5**share
    return values


def _shifted(values: Array, bias: Sequence[Array]) -> Array:
    return values + bias[0].reshape(1, -1, 1, 1) if bias else values


_DOES: dict[str, Callable[..., Array]] = {
    "conv": _conv,
    "grow": _grow,
    "norm": _norm,
    "relu": _relu,
    "prelu": _prelu,
    "pool": _pool,
    "mean": lambda values: _mean(values).reshape(values.shape[:2]),
    "linear": _linear,
    "add": lambda one, other: one + other,
    "join": lambda one, other: jnp.concatenate([one, other], axis=1),
}
