"""Intensities of different scanners made alike, each image by itself, as the study says for each modality.

No method takes zero for background, and none looks at another patient. `percentiles` and `z-score` give the same for
any scale (above 0) and offset of a scanner; `ct` takes Hounsfield units as they are.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from fedseg.data.background import Background
from fedseg.errors import CaseError
from fedseg.study.sections import BRIGHTEST, FARTHEST, DataSection

Array: TypeAlias = NDArray[np.float32]


def normalised(image: Array, grounds: Sequence[Background], data: DataSection, name: str) -> Array:
    """Each channel as `[data] normalisation` says.

    Args:
        image: (C, X, Y, Z), any units.
        grounds: each channel's background.
        data: gives methods and window.
        name: of the case, for errors.

    Returns:
        (C, X, Y, Z). With `percentiles` the 1st and 99th of what is not background are 0 and 1, and nothing is above
        1.5; with `z-score` its mean and standard deviation are 0 and 1; background is 0. With `ct` the window's ends
        are 0 and 1, also for background.

    Raises:
        CaseError: a channel is the same everywhere, or nothing of it is within the window.
    """
    result = np.empty(image.shape, np.float32)
    for channel, (values, ground, method) in enumerate(zip(image, grounds, data.methods, strict=True)):
        if values.min() == values.max():
            raise CaseError(name, f"channel {channel} is the same everywhere; export the image again")
        METHODS[method](values, ground, data, result[channel])
        if result[channel].min() == result[channel].max():
            raise CaseError(
                name,
                f"channel {channel} is the same everywhere once it is normalised by '{method}'; is it in the units "
                "that [data] normalisation takes it to be in?",
            )
    return result


def masked(image: Array) -> Array:
    """Made images (C, X, Y, Z), whose background is 0, as `normalised` gives them with `percentiles`."""
    result = np.zeros(image.shape, np.float32)
    for channel, values in enumerate(image):
        inside = values != 0
        low, high = np.percentile(values[inside], (1, 99))
        np.clip((values - low) / max(high - low, 1e-6), 0, BRIGHTEST, out=result[channel], where=inside)
    return result


def _percentiles(values: Array, ground: Background, data: DataSection, result: Array) -> None:
    for outside in (ground.outside, None):  # of a mask in two values nothing would be left without its background
        inside = _inside(values, outside)
        for ends in ((1, 99), (0, 100)):
            low, high = map(float, np.percentile(inside, ends))
            if low < high:
                _scaled(values, outside, low, high - low, (0, BRIGHTEST), result)
                return


def _z_score(values: Array, ground: Background, data: DataSection, result: Array) -> None:
    for outside in (ground.outside, None):
        inside = _inside(values, outside).astype(np.float64)
        if inside.min() < inside.max():
            _scaled(values, outside, float(inside.mean()), float(inside.std()), (-FARTHEST, FARTHEST), result)
            return


def _ct(values: Array, ground: Background, data: DataSection, result: Array) -> None:
    low, high = data.window or (0, 1)  # the study has one wherever it says ct
    _scaled(values, None, low, high - low, (0, 1), result)


METHODS: Mapping[str, Callable[[Array, Background, DataSection, Array], None]] = {
    "percentiles": _percentiles,
    "z-score": _z_score,
    "ct": _ct,
}


def _inside(values: Array, outside: NDArray[np.bool_] | None) -> Array:
    return values if outside is None else values[~outside]


def _scaled(
    values: Array,
    outside: NDArray[np.bool_] | None,
    low: float,
    width: float,
    limits: tuple[float, float],
    result: Array,
) -> None:
    """(values - low) / width, cut to the limits, and 0 outside."""
    scaled = (values.astype(np.float64) - low) / width  # of float32 a difference can be infinite
    np.clip(scaled, *limits, out=scaled)
    if outside is not None:
        scaled[outside] = 0
    result[...] = scaled
