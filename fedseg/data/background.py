"""What of an image is background: found at the image's own sides, never taken for zero.

Air is -1000 in CT, the mean in an image that was z-scored, and 0 where a mask was laid on. Nothing but the image itself
is looked at, so that no other patient changes what is found; scale (above 0) and offset of the intensities do not.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import label as connected

FLAT = 0.25
"""Share of the voxels at the sides that one value has at least, where it is what somebody filled in."""
MASKED = 0.9
"""Share of that value among what is dark, from which on everything else is tissue, however dark."""
FOREGROUND = 0.05
"""Of the 99th percentile of all distances from the background: air is below."""


@dataclass(frozen=True, eq=False)
class Background:
    """The background of one channel.

    Attributes:
        level: its value; the median of the sides where it is not flat.
        outside: (X, Y, Z), the voxels that are background; None where no value stands out, as in a crop of tissue.
    """

    level: float
    outside: NDArray[np.bool_] | None = field(repr=False)


def background_of(values: NDArray[np.float32], slice_axis: int) -> Background:
    """The background of one channel (X, Y, Z).

    The two ends of the slice axis are not looked at: there a patient is cut off.
    """
    sides = [axis for axis in range(3) if axis != slice_axis]
    rim = np.concatenate([np.moveaxis(values, axis, 0)[[0, -1]].ravel() for axis in sides])
    found, counts = np.unique(rim, return_counts=True)
    if counts.max() < FLAT * rim.size:
        return Background(float(np.median(rim)), None)
    level = found[counts.argmax()]
    same = values == level
    # What is darker than anything else can be nothing else. Any other value may be tissue's too: water is 0 in CT.
    return Background(float(level), same if values.min() == level else _reached(same, slice_axis))


def foreground(values: NDArray[np.float32], ground: Background) -> NDArray[np.bool_]:
    """Voxels (X, Y, Z) of one channel that the field of view has to hold."""
    away = np.abs(values - np.float32(ground.level))
    far: NDArray[np.bool_] = away > FOREGROUND * np.percentile(away, 99)
    if ground.outside is None:
        return far
    dark = np.ones(values.shape, np.bool_)
    dark[box_of(far)] = False
    masked = np.count_nonzero(ground.outside & dark) >= MASKED * np.count_nonzero(dark)
    return ~ground.outside if masked else far


def box_of(mask: NDArray[np.bool_]) -> tuple[slice, ...]:
    """The smallest box around what is true; everything where nothing is."""
    result = []
    for axis in range(mask.ndim):
        there = np.flatnonzero(mask.any(axis=tuple(other for other in range(mask.ndim) if other != axis)))
        result.append(slice(int(there[0]), int(there[-1]) + 1) if len(there) else slice(0, mask.shape[axis]))
    return tuple(result)


def _reached(same: NDArray[np.bool_], slice_axis: int) -> NDArray[np.bool_]:
    """Of these voxels those that are connected to a side, within one slice."""
    near: NDArray[Any] = np.ones((3, 3, 3), np.bool_)
    np.moveaxis(near, slice_axis, 0)[[0, 2]] = False
    parts, _ = connected(same, near)
    sides = [axis for axis in range(3) if axis != slice_axis]
    ends = np.unique(np.concatenate([np.moveaxis(parts, axis, 0)[[0, -1]].ravel() for axis in sides]))
    return np.isin(parts, ends[ends > 0])
