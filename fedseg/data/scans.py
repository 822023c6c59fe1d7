"""A scan as its files have it, and how it becomes a case of the study."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.data.background import background_of, foreground
from fedseg.data.cases import Case, Kept, Original
from fedseg.data.grid import grid_around, slices_along, turned
from fedseg.data.intensity import normalised
from fedseg.study import Study
from fedseg.tasks.table import task_of


@dataclass(frozen=True, eq=False)
class Scan:
    """One image on its file's own grid.

    Attributes:
        patient: unit of privacy and of the split.
        name: what errors and local reports call it; usually the file's path.
        image: (C, X, Y, Z) float32 in the file's units, finite.
        affine: (4, 4) float64, voxel to millimetres.
        label: as the layout found it: with segmentation (X, Y, Z), a value a voxel. None at prediction.
        label_name: what errors call the label.
        oriented: whether the affine says where the patient's sides are.
        framed: whether all of it is the field of view, as of a photograph; else what is dark around is cut off.
    """

    patient: str
    name: str
    image: NDArray[np.float32] = field(repr=False)
    affine: NDArray[np.float64] = field(repr=False)
    label: NDArray[Any] | None = field(default=None, repr=False)
    label_name: str = ""
    oriented: bool = True
    framed: bool = False


def working_case(scan: Scan, site: str, study: Study) -> Case:
    """Bring a scan onto the study's working grid, normalised, with its label as the study's task takes it.

    Raises:
        CaseError: the image is constant or not in the units that the study takes it to be in, or the label is none of
            the study's.
    """
    image, affine = turned(scan.image, scan.affine)
    slice_axis = slices_along(affine)
    grounds = [background_of(channel, slice_axis) for channel in image]
    values = normalised(image, grounds, study.data, scan.name)
    seen = np.logical_or.reduce([foreground(*channel) for channel in zip(image, grounds, strict=True)]) | scan.framed
    grid = grid_around(seen, affine, scan.affine, study.data)
    task, label = task_of(study), None
    kept: tuple[Kept, ...] = ()
    original = None
    if scan.label is not None:
        label = task.read(scan.label, grid, scan.label_name)
        kept = task.kept(scan.label, label, grid)
        if scan.label.shape == scan.image.shape[1:]:
            original = Original.of(scan.label, scan.affine)
    resampled = grid.resampled(grid.window(values))
    where = grid.affine, grid.spacing, study.data.dims, grid.slice_axis
    return Case(
        site, scan.patient, scan.name, resampled, label, *where, oriented=scan.oriented, kept=kept, original=original
    )
