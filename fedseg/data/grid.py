"""The working grid: the box around a patient's image, on which every case of a study is trained and scored.

Three grids are in play, and each array is on one of them: the file's as it was written; the same voxels *turned* to the
closest canonical orientation (x to the right, y to the front, z upwards); and the working grid, which is cut out of the
turned one and resampled. With dims = 2 slices stay slices: the axis along which they are stacked is never resampled.
"""

import math
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.layers import gaussian_1d
from monai.transforms import Orientation, SpatialResample
from nibabel.orientations import aff2axcodes
from numpy.typing import NDArray
from torch.nn import functional

from fedseg.data.background import box_of
from fedseg.study.sections import DataSection

ANISOTROPIC = 1.5  # an axis this much coarser than the others is where slices are stacked

MULTIPLE = 8
"""Of which the working grid's sides are: a network halves them three times."""

Box: TypeAlias = tuple[NDArray[np.float64], NDArray[np.float64], tuple[int, ...]]
"""First voxel and end on the turned grid, and the working grid's voxels in between."""


@dataclass(frozen=True, eq=False)
class WorkingGrid:
    """Where the working grid of one image lies.

    Attributes:
        shape: voxels per axis.
        affine: (4, 4) float64, its voxels to millimetres.
        spacing: millimetres per axis.
        slice_axis: the axis along which slices are stacked.
        stacked: that axis with dims = 2, None with dims = 3.
        low: first voxel of the box, on the turned grid.
        high: its end.
        file_affine: (4, 4), of the image as it was written.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64] = field(repr=False)
    spacing: tuple[float, ...]
    slice_axis: int
    stacked: int | None
    low: NDArray[np.float64]
    high: NDArray[np.float64]
    file_affine: NDArray[np.float64] = field(repr=False)

    def cut(self, values: NDArray[Any]) -> NDArray[Any]:
        """Turn (C, X, Y, Z) of the file's grid and cut it to what of the box lies within the image."""
        return self.window(turned(values, self.file_affine)[0])

    def window(self, values: NDArray[Any]) -> NDArray[Any]:
        """Cut (C, X, Y, Z) of the turned grid to what of the box lies within the image."""
        x, y, z = (slice(max(int(first), 0), int(end)) for first, end in zip(self.low, self.high, strict=True))
        return values[:, x, y, z]

    def resampled(self, cut: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resample what was cut to (C, *shape), with 0 where the box reaches beyond the image.

        Axis by axis, what shrinks most first, and without the part beyond: the cube around a long thin scan would take
        many times its memory.
        """
        axes = [axis for axis in range(3) if axis != self.stacked]
        for axis in sorted(axes, key=lambda axis: self.shape[axis] / cut.shape[axis + 1]):
            before = int(max(-self.low[axis], 0))
            weights = _weights(int(self.high[axis] - self.low[axis]), self.shape[axis])
            part = weights[before : before + cut.shape[axis + 1]]
            cut = np.moveaxis(np.matmul(np.moveaxis(cut, axis + 1, -1), part), -1, axis + 1)
        return np.ascontiguousarray(cut, dtype=np.float32)


def slices_along(affine: NDArray[np.float64]) -> int:
    """The axis along which slices are stacked: the coarsest, or the last where voxels are about cubes."""
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    return int(np.argmax(spacing)) if spacing.max() > ANISOTROPIC * spacing.min() else 2


def grid_around(
    inside: NDArray[np.bool_], affine: NDArray[np.float64], file_affine: NDArray[np.float64], data: DataSection
) -> WorkingGrid:
    """The working grid of an image, around what is not background.

    A box of the study's proportions in millimetres (with one size: a square or cube), stretched to its size; or, where
    the study says a spacing, as many voxels of it as the image needs.

    Args:
        inside: (X, Y, Z), what is not background, on the turned grid; somewhere true.
        affine: (4, 4) voxel of the turned grid to millimetres.
        file_affine: (4, 4) of the image as it was written.
        data: gives dims, size and spacing.
    """
    spacing, slice_axis = np.linalg.norm(affine[:3, :3], axis=0), slices_along(affine)
    stacked = slice_axis if data.dims == 2 else None
    low, high, shape = (_at_spacing if data.spacing else _stretched)(inside, spacing, stacked, data)
    step = (high - low) / np.array(shape)
    grid = affine.copy()
    grid[:3, :3] = affine[:3, :3] * step
    grid[:3, 3] = affine[:3, :3] @ (low + step / 2 - 0.5) + affine[:3, 3]
    voxel = tuple(float(width) for width in spacing * step)
    return WorkingGrid(shape, grid, voxel, slice_axis, stacked, low, high, file_affine)


def turned(values: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The same voxels in the closest canonical orientation (RAS), and their affine."""
    if aff2axcodes(affine) == ("R", "A", "S"):  # as pictures are, thousands of them
        return values, affine
    turn = Orientation(axcodes="RAS", labels=None)
    result = turn(MetaTensor(torch.from_numpy(np.ascontiguousarray(values)), affine=torch.from_numpy(affine)))
    return result.numpy(), np.asarray(result.affine, dtype=np.float64)


def likeliest_on(
    scores: NDArray[np.float32], affine: NDArray[np.float64], shape: tuple[int, ...], file_affine: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """The likeliest label value of each voxel of a file's grid; outside the working grid there is only background.

    One label after the other: all of them on a large scan would not fit into memory.

    Args:
        scores: (labels, *spatial) on the working grid, how likely each label value is.
        affine: (4, 4) of the working grid.
        shape: voxels per axis of the file's grid.
        file_affine: (4, 4) of it.
    """
    back = SpatialResample(mode="bilinear", padding_mode="zeros", dtype=torch.float32)
    labels, best = np.zeros(shape, np.uint8), np.full(shape, -np.inf, np.float32)
    for value, one in enumerate(scores):
        source = MetaTensor(torch.from_numpy(one[None]), affine=torch.from_numpy(affine))
        likely = back(source, dst_affine=torch.from_numpy(file_affine), spatial_size=shape).numpy()[0]
        better = likely > best
        labels[better], best[better] = value, likely[better]
    return labels


def _stretched(inside: NDArray[np.bool_], spacing: NDArray[np.float64], stacked: int | None, data: DataSection) -> Box:
    """A box equally wide in mm along all axes but `stacked`, which is stretched to the study's size."""
    low, high = _ends(inside)
    sides = _along(data.sides, stacked)
    share = {axis: side / max(data.sides) for axis, side in sides.items()}
    longest = max(float((high - low)[axis] * spacing[axis]) / part for axis, part in share.items())
    for axis, part in share.items():
        width = max(round(longest * part / spacing[axis]), int(high[axis] - low[axis]))
        low[axis] -= (width - (high[axis] - low[axis])) // 2
        high[axis] = low[axis] + width
    shape = tuple(sides.get(axis, int(high[axis] - low[axis])) for axis in range(3))
    return low.astype(np.float64), high.astype(np.float64), shape


def _at_spacing(inside: NDArray[np.bool_], spacing: NDArray[np.float64], stacked: int | None, data: DataSection) -> Box:
    """A box in voxels of the study's spacing: as many as the image needs, a multiple of 8, and at least the size."""
    ends = _ends(inside)
    low, high = (end.astype(np.float64) for end in ends)
    wanted = _along(data.spacing * (data.dims if len(data.spacing) == 1 else 1), stacked)
    shape = [int(end - start) for start, end in zip(low, high, strict=True)]
    for axis, side in _along(data.sides, stacked).items():
        step = wanted[axis] / spacing[axis]  # voxels of the image in one of the grid
        shape[axis] = max(math.ceil(float(high[axis] - low[axis]) / step / MULTIPLE) * MULTIPLE, side)
        # Whole voxels of the image, so that spacing is met but for one of them over the whole box.
        width = math.ceil(shape[axis] * step - 1e-6)
        low[axis] -= (width - (high[axis] - low[axis])) // 2
        high[axis] = low[axis] + width
    return low, high, tuple(shape)


def _ends(inside: NDArray[np.bool_]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    box = box_of(inside)
    return np.array([side.start for side in box]), np.array([side.stop for side in box])


def _along(values: tuple[Any, ...], stacked: int | None) -> dict[int, Any]:
    """What is given for each axis that is resampled, by the axis' number."""
    return dict(zip((axis for axis in range(3) if axis != stacked), values, strict=True))


def _weights(extent: int, count: int) -> NDArray[np.float32]:
    """(extent, count): what a line's voxels give to each of `count`: linearly, smoothed first where it shrinks."""
    line = torch.eye(extent)[:, None]
    if (sigma := (extent / count - 1) / 2) > 0:
        kernel = gaussian_1d(torch.tensor(sigma))
        line = functional.conv1d(line, kernel[None, None], padding=len(kernel) // 2)
    return np.asarray(functional.interpolate(line, size=count, mode="linear")[:, 0].numpy(), np.float32)
