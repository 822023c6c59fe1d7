"""One patient's case in memory, and how it becomes a training batch.

A case is normalised and on the study's working grid from the start, so that a step only slices it. Nothing
here is ever sent, and no repr shows voxels.
"""

import hashlib
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import AsDiscrete, Orientation, Resize
from numpy.typing import NDArray

from fedseg.errors import CaseError
from fedseg.study import Study
from secagg.prg import Stream

ANISOTROPIC = 1.5  # an axis this much coarser than the others is where slices are stacked
FOREGROUND = 0.05  # of the 99th percentile: air and padding are below
BRIGHTEST = 1.5


@dataclass(frozen=True, eq=False)
class Case:
    """One image, normalised, with its label map.

    Attributes:
        site: the site's id.
        patient: unit of privacy and of the split; never leaves the site.
        name: what a local report calls it.
        image: (C, *spatial) float32; 0 is background, 1 about the brightest tissue, at most 1.5.
        label: (*spatial) uint8, or None at prediction.
        affine: (4, 4) float64, voxel to millimetres (RAS+).
        spacing: millimetres per spatial axis.
        axes: 2 for a stack of slices, 3 for a volume.
        slice_axis: the spatial axis along which slices are stacked.
    """

    site: str
    patient: str
    name: str
    image: NDArray[np.float32] = field(repr=False)
    label: NDArray[np.uint8] | None = field(repr=False)
    affine: NDArray[np.float64] = field(repr=False)
    spacing: tuple[float, ...]
    axes: int
    slice_axis: int


@dataclass(frozen=True, eq=False)
class SiteData:
    """A site's cases, split by patient."""

    site: str
    train: tuple[Case, ...]
    test: tuple[Case, ...]

    @property
    def patients(self) -> list[str]:
        """Patients that can be drawn in training, sorted."""
        return sorted({case.patient for case in self.train})


def held_out(site: str, patient: str, holdout: float) -> bool:
    """Whether a patient is kept for testing: a keyed hash of its identifier against `holdout`.

    Nothing else has a say, above all not who else is there: where one patient more moves others between training and
    testing, the sum changes by more than one clip norm and epsilon is not true. The key is the site's id, so that a
    patient keeps its role in every study of a site, and with a larger `holdout` those who were kept stay kept.
    """
    identifier = patient.encode("utf-8", "surrogateescape")  # a folder's name need not be text
    value = hashlib.blake2b(identifier, digest_size=8, key=site.encode("ascii"), person=b"fedseg role").digest()
    return int.from_bytes(value, "big") < holdout * 2**64


def split(site: str, cases: list[Case], study: Study) -> SiteData:
    """Each case by its patient's role; there may be nobody in training, and nobody to test."""
    kept = [held_out(site, case.patient, study.data.holdout) for case in cases]
    return SiteData(
        site,
        train=tuple(case for case, tests in zip(cases, kept, strict=True) if not tests),
        test=tuple(case for case, tests in zip(cases, kept, strict=True) if tests),
    )


def working_case(
    site: str,
    patient: str,
    name: str,
    image: NDArray[np.float32],
    label: NDArray[np.uint8] | None,
    affine: NDArray[np.float64],
    study: Study,
) -> Case:
    """Bring a raw image onto the study's working grid.

    Closest canonical orientation (RAS), field of view cut to the square or cube (in millimetres) around the
    non-zero image, resampled to `study.data.size`. With dims = 2 the slice axis is never resampled.

    Args:
        site: the site's id.
        patient: the patient's id.
        name: what errors and local reports call the case.
        image: (C, X, Y, Z), any units; finite.
        label: (X, Y, Z) or None.
        affine: (4, 4) voxel to millimetres.
        study: gives dims and size.

    Raises:
        CaseError: the image is constant.
    """
    turn = Orientation(axcodes="RAS", labels=None)
    turned = turn(MetaTensor(torch.from_numpy(np.ascontiguousarray(image)), affine=torch.from_numpy(affine)))
    given, affine = affine, np.asarray(turned.affine, dtype=np.float64)
    values = normalised(turned.numpy(), name)
    spacing = np.linalg.norm(affine[:3, :3], axis=0)
    slice_axis = int(np.argmax(spacing)) if spacing.max() > ANISOTROPIC * spacing.min() else 2
    stacked = slice_axis if study.data.dims == 2 else None
    low, high = _field_of_view(turned.numpy(), spacing, stacked)
    shape = [int(high[axis] - low[axis]) if axis == stacked else study.data.size for axis in range(3)]
    step = (high - low) / np.array(shape)
    grid = affine.copy()
    grid[:3, :3] = affine[:3, :3] * step
    grid[:3, 3] = affine[:3, :3] @ (low + step / 2 - 0.5) + affine[:3, 3]
    resized = _resized(_window(values, low, high), shape, stacked)
    labels = None
    if label is not None:
        turned_label = turn(
            MetaTensor(torch.from_numpy(np.ascontiguousarray(label[None])), affine=torch.from_numpy(given))
        )
        one_hot = AsDiscrete(to_onehot=len(study.structures) + 1)(_window(turned_label.numpy(), low, high))
        shares = _resized(np.asarray(one_hot, np.float32), shape, stacked)
        labels = shares.argmax(axis=0).astype(np.uint8)
    voxel = tuple(float(width) for width in spacing * step)
    return Case(site, patient, name, resized, labels, grid, voxel, study.data.dims, slice_axis)


def normalised(image: NDArray[np.float32], name: str) -> NDArray[np.float32]:
    """Per channel, the 1st and 99th percentile of the non-zero voxels become 0 and 1; background stays 0.

    Raises:
        CaseError: every voxel has the same value.
    """
    result = np.zeros(image.shape, dtype=np.float32)
    for channel, values in enumerate(image):
        if values.min() == values.max():
            raise CaseError(name, f"channel {channel} is the same everywhere; export the image again")
        inside = values != 0
        low, high = np.percentile(values[inside], (1, 99))
        np.clip((values - low) / max(high - low, 1e-6), 0, BRIGHTEST, out=result[channel], where=inside)
    return result


def batch_of(case: Case, study: Study, stream: Stream) -> tuple[torch.Tensor, torch.Tensor]:
    """What one sampled patient contributes to one step, drawn anew.

    Returns:
        Images (k, C, *size) float32 and labels (k, *size) int64: `slices_per_patient` different slices (all,
        if the case has fewer), or with dims = 3 one patch of the working size.

    Raises:
        CaseError: the case has no label map.
    """
    if case.label is None:
        raise CaseError(case.name, "has no label map and cannot be trained on; add the label file")
    if case.axes == 2:
        slices = stream.permutation(case.label.shape[case.slice_axis])[: study.data.slices_per_patient]
        image = np.moveaxis(case.image, case.slice_axis + 1, 0)[slices]
        label = np.moveaxis(case.label, case.slice_axis, 0)[slices]
    else:
        size = study.data.size
        corner = [int(stream.integers(1, max(extent - size, 0) + 1)[0]) for extent in case.label.shape]
        window = tuple(slice(start, start + size) for start in corner)
        image, label = case.image[(None, slice(None), *window)], case.label[(None, *window)]
    return torch.from_numpy(np.ascontiguousarray(image)), torch.from_numpy(label.astype(np.int64))


def evaluation_slices(case: Case, study: Study) -> torch.Tensor:
    """The whole case as a batch for inference: (slices, C, H, W) or (1, C, X, Y, Z), float32."""
    image = np.moveaxis(case.image, case.slice_axis + 1, 0) if case.axes == 2 else case.image[None]
    return torch.from_numpy(np.ascontiguousarray(image))


def _field_of_view(
    values: NDArray[np.float32], spacing: NDArray[np.float64], stacked: int | None
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """First voxel and end of the box around the image, equally wide in mm along all axes but `stacked`."""
    bright = np.percentile(np.abs(values), 99, axis=(1, 2, 3), keepdims=True)
    inside = np.argwhere((np.abs(values) > FOREGROUND * bright).any(axis=0))
    low, high = inside.min(axis=0), inside.max(axis=0) + 1
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
