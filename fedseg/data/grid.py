"""The working grid: the box around a patient's image, on which every case of a study is trained and scored.

Three grids are in play, and each array is on one of them: the file's as it was written; the same voxels *turned* to the
closest canonical orientation (x to the right, y to the front, z upwards); and the working grid, which is cut out of the
turned one and resampled. With dims = 2 slices stay slices: the axis along which they are stacked is never resampled.
"""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.networks.layers import gaussian_1d
from monai.transforms import Orientation, SpatialResample
from numpy.typing import NDArray
from torch.nn import functional

from fedseg.data.background import box_of
from fedseg.study.sections import DataSection

ANISOTROPIC = 1.5  # an axis this much coarser than the others is where slices are stacked


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
    """The working grid of an image: a square or cube (in millimetres) around what is not background.

    Args:
        inside: (X, Y, Z), what is not background, on the turned grid; somewhere true.
        affine: (4, 4) voxel of the turned grid to millimetres.
        file_affine: (4, 4) of the image as it was written.
        data: gives dims and size.
    """
    spacing, slice_axis = np.linalg.norm(affine[:3, :3], axis=0), slices_along(affine)
    stacked = slice_axis if data.dims == 2 else None
    low, high = _field_of_view(inside, spacing, stacked)
    shape = tuple(int(high[axis] - low[axis]) if axis == stacked else data.size for axis in range(3))
    step = (high - low) / np.array(shape)
    grid = affine.copy()
    grid[:3, :3] = affine[:3, :3] * step
    grid[:3, 3] = affine[:3, :3] @ (low + step / 2 - 0.5) + affine[:3, 3]
    voxel = tuple(float(width) for width in spacing * step)
    return WorkingGrid(shape, grid, voxel, slice_axis, stacked, low, high, file_affine)


def turned(values: NDArray[Any], affine: NDArray[np.float64]) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """The same voxels in the closest canonical orientation (RAS), and their affine."""
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


def _field_of_view(
    inside: NDArray[np.bool_], spacing: NDArray[np.float64], stacked: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First voxel and end of the box around the image, equally wide in mm along all axes but `stacked`."""
    box = box_of(inside)
    low, high = np.array([side.start for side in box]), np.array([side.stop for side in box])
    side = max(float((high - low)[axis] * spacing[axis]) for axis in range(3) if axis != stacked)
    for axis in range(3):
        if axis != stacked:
            width = max(round(side / spacing[axis]), int(high[axis] - low[axis]))
            low[axis] -= (width - (high[axis] - low[axis])) // 2
            high[axis] = low[axis] + width
    return low.astype(np.float64), high.astype(np.float64)


def _weights(extent: int, count: int) -> NDArray[np.float32]:
    """(extent, count): what a line's voxels give to each of `count`: linearly, smoothed first where it shrinks."""
    line = torch.eye(extent)[:, None]
    if (sigma := (extent / count - 1) / 2) > 0:
        kernel = gaussian_1d(torch.tensor(sigma))
        line = functional.conv1d(line, kernel[None, None], padding=len(kernel) // 2)
    return np.asarray(functional.interpolate(line, size=count, mode="linear")[:, 0].numpy(), np.float32)
