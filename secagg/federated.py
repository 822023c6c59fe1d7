"""What federated learning sends, as the fields of one vector: a model's arrays, a number of examples, and metrics.

A site sends w, and w times each change of the model and each metric, w being its number of examples: the sums give the
weighted mean that federated averaging takes, and the total of w, and nobody sees one site's. Pure functions of arrays:
the adapters for Flower and NVFlare share them. Must never: average anything by itself before it is a sum.
"""

import hashlib
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.arguments import kind_of, must_be, positive
from secagg.encoding import digest
from secagg.errors import ConfigError
from secagg.field import as_array
from secagg.layout import Field, Layout
from secagg.policy import Policy
from secagg.quantize import means, sums

Arrays = Mapping[str, NDArray[Any]]
"""A model's arrays by name, integer buffers among them."""

WEIGHT, ARRAYS, BUFFERS, METRICS = "weight", "arrays", "buffers", "metrics"
"""Names of the fields: a model's array `conv.bias` is the field ``arrays/conv.bias``, and among the buffers where it
holds whole numbers, whose mean is rounded."""


def layout_for(
    arrays: Arrays,
    *,
    clip_range: float,
    largest_weight: float,
    metrics: Mapping[str, float] | None = None,
    buffer_range: float = 2.0**15,
    value_bits: int = 20,
) -> Layout:
    """The layout of a policy for sites that train this model.

    Args:
        arrays: of the model; only names, shapes and types count.
        clip_range: of each change of a float array (of each value, where whole weights are sent); 0.1 is much for one
            round of local training.
        largest_weight: no site has more examples; one that has more is refused. Precision is lost to the ratio of the
            two: `Layout.lost_bits`.
        metrics: name and clip range of each metric that a site may report.
        buffer_range: clip range of the change of integer arrays, such as a counter of batches. Their mean is rounded.
        value_bits: of every float; more than the 16 of a plain vector, because a site of few examples loses bits.

    Raises:
        ConfigError: no arrays by name, an array that a sum cannot hold, or a bound that is no positive number.
    """
    fields: dict[str, Any] = {}
    for name, array in _arrays(arrays).items():
        kind, bound = (ARRAYS, clip_range) if array.dtype.kind == "f" else (BUFFERS, buffer_range)
        fields[f"{kind}/{name}"] = Field.floats(array.shape, clip_range=bound, value_bits=value_bits)
    if not fields:
        raise ConfigError("the model has no arrays")
    for name, clip in _metrics({} if metrics is None else metrics).items():
        clip = positive(f"clip range of the metric {name!r}", clip)
        fields[f"{METRICS}/{name}"] = Field.floats(clip_range=clip, value_bits=value_bits)
    largest_weight = positive("largest_weight", largest_weight)
    exact = int(largest_weight).bit_length() + 1  # of a whole number of examples, so that it is exact in the sum
    return Layout({WEIGHT: Field.weight(largest=largest_weight, value_bits=max(16, exact)), **fields})


def _arrays(given: Arrays) -> dict[str, NDArray[Any]]:
    """As numpy, whatever holds them: torch's state_dict too. Their types say which of them hold whole numbers."""
    must_be(given, Mapping, "the model", "give arrays by name, such as a state_dict")
    found = {}
    for name, value in given.items():
        must_be(name, str, f"the array's name {name!r}", "give a text")
        if not hasattr(value, "dtype"):
            raise ConfigError(f"the model's {name!r} is {kind_of(value)}: give a numpy array or a torch tensor")
        found[name] = as_array(value, f"the model's {name!r}")
        if found[name].dtype.kind == "c":
            raise ConfigError(
                f"the model's {name!r} holds complex numbers; give real and imaginary parts as two arrays"
            )
    return found


def _metrics(given: Mapping[str, Any]) -> Mapping[str, Any]:
    must_be(given, Mapping, "metrics", "give numbers by name")
    for name in given:
        must_be(name, str, f"the metric's name {name!r}", "give a text")
    return given


def model_hash(arrays: Arrays, *about: str) -> bytes:
    """H over a model's names, types, shapes and bytes, and over what is done with it: 32 bytes."""
    described = [
        [name, array.dtype.str, list(array.shape), hashlib.sha256(np.ascontiguousarray(array).data).digest()]
        for name, array in _arrays(arrays).items()
    ]
    return digest("federated-model", list(about), described)


def values_hash(arrays: Arrays) -> bytes:
    """H over a model's names, shapes and values as float64, 32 bytes: frameworks turn whole numbers into floats."""
    described = [
        [name, list(array.shape), hashlib.sha256(np.ascontiguousarray(array, np.float64).data).digest()]
        for name, array in sorted(arrays.items())
    ]
    return digest("federated-values", described)


def values_for(
    layout: Layout, arrays: Arrays, weight: float, metrics: Mapping[str, float], base: Arrays | None = None
) -> dict[str, Any]:
    """One site's values, as a layout of `layout_for` takes them.

    Args:
        layout: of the policy.
        arrays: after local training.
        weight: the site's number of examples.
        metrics: by name.
        base: the model before training, where changes are sent; None where whole weights are.

    Raises:
        ConfigError: the model before and after training have other arrays, or there are no arrays or metrics by name.
    """
    arrays, metrics = _arrays(arrays), _metrics(metrics)
    base = None if base is None else _arrays(base)
    if base is not None and {n: a.shape for n, a in base.items()} != {n: a.shape for n, a in arrays.items()}:
        raise ConfigError("the model after training has other arrays than the one that came: send the same ones back")
    values: dict[str, Any] = {WEIGHT: weight}
    for name, array in arrays.items():
        change = _exact(array) if base is None else np.asarray(_exact(array) - _exact(base[name]))
        values[f"{_kind(layout, name)}/{name}"] = change if change.dtype.kind == "f" else change.astype(np.float64)
    return values | {f"{METRICS}/{name}": value for name, value in metrics.items()}


def _exact(array: NDArray[Any]) -> NDArray[Any]:
    """Floats as they are; whole numbers as int64: a difference in uint8 would wrap, one in float64 lose digits."""
    return array if array.dtype.kind == "f" else array.astype(np.int64)


def _in_type(array: NDArray[Any], dtype: np.dtype[Any]) -> NDArray[Any]:
    """In a type that may be narrow: what it cannot hold becomes its nearest number, and does not wrap."""
    if dtype.kind in "iu":
        array = np.clip(array, max(np.iinfo(dtype).min, -(1 << 63)), min(np.iinfo(dtype).max, (1 << 63) - 1))
    return np.asarray(array, dtype)


def _kind(layout: Layout, name: str) -> str:
    """Frameworks turn a mean of whole numbers into floats: what an array holds, the layout knows."""
    return BUFFERS if f"{BUFFERS}/{name}" in layout else ARRAYS


@dataclass(frozen=True)
class Mean:
    """What a round gives.

    Attributes:
        arrays: of the model, in the types that it has.
        weight: the total number of examples.
        metrics: weighted means by name.
    """

    arrays: dict[str, NDArray[Any]]
    weight: float
    metrics: dict[str, float]


def mean_of(
    total: NDArray[Any], policy: Policy, included: Collection[str], model: Arrays, *, changes: bool = True
) -> Mean:
    """The weighted mean of a round.

    Args:
        total: `ServerSession.result`, (d,) modulo 2^b.
        policy: with the layout of `layout_for`.
        included: `ServerSession.included`.
        model: that the sites began with: it gives types, and what the changes are added to.
        changes: whether the sites sent changes.

    Raises:
        ConfigError: the policy has another layout, or the weights add up to nothing.
    """
    if policy.fields.weight != WEIGHT:
        raise ConfigError("the policy's layout has no private weight; make it with secagg.federated.layout_for")
    found, weight = means(total, policy, included), float(sums(total, policy)[WEIGHT])
    arrays = {}
    for name, before in _arrays(model).items():
        kind = _kind(policy.fields, name)
        mean = np.rint(found[kind][name]).astype(np.int64) if kind == BUFFERS else found[kind][name]
        arrays[name] = _in_type(mean + _exact(before) if changes else mean, before.dtype)
    return Mean(arrays, weight, {name: float(value) for name, value in found.get(METRICS, {}).items()})
