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
from monai.transforms import Orientation, Resize
from numpy.typing import NDArray

from fedseg.data.background import box_of
from fedseg.study import DataSection

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
        """Turn (C, X, Y, Z) of the file's grid and cut it to the box; 0 where the box reaches beyond the image."""
        return self.window(turned(values, self.file_affine)[0])

    def window(self, values: NDArray[Any]) -> NDArray[Any]:
        """Cut (C, X, Y, Z) of the turned grid to the box; 0 where the box reaches beyond the image."""
        return _window(values, self.low, self.high)

    def resampled(self, cut: NDArray[np.float32]) -> NDArray[np.float32]:
        """Resample what was cut to (C, *shape)."""
        return _resized(cut, list(self.shape), self.stacked)


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


def _window(values: NDArray[Any], low: NDArray[np.float64], high: NDArray[np.float64]) -> NDArray[Any]:
    """Cut (C, X, Y, Z) to [low, high), with zeros where the box reaches beyond the image."""
    extent = np.array(values.shape[1:])
    x, y, z = (slice(max(int(first), 0), int(end)) for first, end in zip(low, high, strict=True))
    beyond = np.stack([np.maximum(-low, 0), np.maximum(high - extent, 0)], axis=1)
    return np.pad(values[:, x, y, z], [(0, 0), *beyond.astype(int).tolist()])


def _resized(values: NDArray[np.float32], shape: list[int], slice_axis: int | None) -> NDArray[np.float32]:
    """Resample (C, X, Y, Z) linearly to `shape`, smoothed first where it shrinks; slices one by one."""
    if slice_axis is None:
        volume = Resize(spatial_size=shape, mode="trilinear", anti_aliasing=True)
        return np.asarray(volume(values), dtype=np.float32)
    plane = [extent for axis, extent in enumerate(shape) if axis != slice_axis]
    stack = np.moveaxis(values, slice_axis + 1, 1)
    flat = stack.reshape(-1, *stack.shape[2:])
    resized = np.asarray(Resize(plane, mode="bilinear", anti_aliasing=True)(flat), dtype=np.float32)
    return np.moveaxis(resized.reshape(*stack.shape[:2], *plane), 1, slice_axis + 1)
