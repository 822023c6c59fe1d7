"""One patient's case in memory, its role, and what of it a training step sees.

A case is normalised and on the study's working grid from the start, so that a step only slices it. Nothing
here is ever sent, and no repr shows voxels.
"""

import hashlib
import zlib
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol, Self

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.data.declaration import Declaration
from fedseg.study import Study
from secagg.prg import Stream

FOREGROUND = 3
"""Of so many patches one is centred on a labelled voxel, as in nnU-Net (Isensee et al. 2021)."""


@dataclass(frozen=True, eq=False)
class Case:
    """One image, normalised, with what is known of it.

    Attributes:
        site: the site's id.
        patient: unit of privacy and of the split; never leaves the site.
        name: what a local report calls it.
        image: (C, *spatial) float32, as `[data] normalisation` says; with `percentiles` 0 is background, 1 about the
            brightest tissue, at most 1.5.
        label: what the study's task learns to say of it: with segmentation (*spatial) uint8, a label value a voxel.
            None at prediction.
        affine: (4, 4) float64, voxel to millimetres (RAS+).
        spacing: millimetres per spatial axis.
        axes: 2 for a stack of slices, 3 for a volume.
        slice_axis: the spatial axis along which slices are stacked.
        oriented: whether the affine says where the patient's sides are; where not, no picture may name them.
        kept: of each structure in the label, what the working grid keeps of it; for people at the site.
        tests: whether a data set's own public split holds it out; None where it has none.
        original: the label map as its file has it; None at prediction, of made patients and where a label is no map.
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
    oriented: bool = field(default=True, kw_only=True)
    kept: tuple["Kept", ...] = field(default=(), kw_only=True)
    tests: bool | None = field(default=None, kw_only=True)
    original: "Original | None" = field(default=None, kw_only=True)


@dataclass(frozen=True, eq=False)
class Original:
    """A label map on its file's own grid, which is where a model is judged in the end; packed, because it is large.

    Attributes:
        shape: voxels per axis.
        affine: (4, 4) float64, voxel to millimetres.
        packed: its label values, uint8, compressed.
    """

    shape: tuple[int, ...]
    affine: NDArray[np.float64] = field(repr=False)
    packed: bytes = field(repr=False)

    @classmethod
    def of(cls, label: NDArray[Any], affine: NDArray[np.float64]) -> Self:
        """Of a label map (X, Y, Z) whose values are 0 to 255."""
        return cls(label.shape, affine, zlib.compress(np.ascontiguousarray(label, np.uint8).tobytes(), 1))

    @property
    def label(self) -> NDArray[np.uint8]:
        """Label values (X, Y, Z)."""
        return np.frombuffer(zlib.decompress(self.packed), np.uint8).reshape(self.shape)

    @property
    def spacing(self) -> tuple[float, ...]:
        """Millimetres per axis."""
        return tuple(float(width) for width in np.linalg.norm(self.affine[:3, :3], axis=0))


class Kept(NamedTuple):
    """What the working grid keeps of one structure of one case.

    Attributes:
        structure: its name.
        written: its voxels in the label's file.
        seen: those in the field of view.
        working: its voxels on the working grid.
        share: of the volume in the field of view that the working grid keeps; above 1 where it is grown.
    """

    structure: str
    written: int
    seen: int
    working: int
    share: float


@dataclass(frozen=True, eq=False)
class SiteData:
    """A site's cases, split by patient, and what its index calls structures and channels.

    Attributes:
        site: its id.
        train, test: cases, by the role of their patient.
        unsaid: names that are left out because they could be one person's. Each of them being there decides about
            another one, so that they pay as if they were drawn.
        declared: what its index says.
    """

    site: str
    train: tuple[Case, ...]
    test: tuple[Case, ...]
    unsaid: tuple[str, ...] = ()
    declared: Declaration = field(default_factory=Declaration)

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
    """Each case by its patient's role; there may be nobody in training, and nobody to test.

    The role is that of the data set's own split where it has one, else by `held_out`.
    """
    given: dict[str, bool] = {}
    for case in cases:  # whoever has a picture in both parts of a data set is never trained on
        if case.tests is not None:
            given[case.patient] = given.get(case.patient, False) or case.tests
    kept = [given.get(c.patient, held_out(site, c.patient, study.data.holdout)) for c in cases]
    return SiteData(
        site,
        train=tuple(case for case, tests in zip(cases, kept, strict=True) if not tests),
        test=tuple(case for case, tests in zip(cases, kept, strict=True) if tests),
    )


class View(Protocol):
    """The part of a case that one training step sees: slices of a stack, or a patch of a volume."""

    def __call__(self, values: NDArray[Any]) -> NDArray[Any]:
        """Cut (C, *spatial) to (k, C, *size), k slices or one patch."""


def draw_view(case: Case, study: Study, stream: Stream) -> View:
    """What one sampled patient contributes to one step, drawn anew.

    That is `slices_per_patient` different slices (all, if the case has fewer), or with dims = 3 the volume. Of what is
    larger than `[data] patch` it is a part: at random, and in one of `FOREGROUND` draws around a labelled voxel.
    """
    extents, view = case.image.shape[1:], study.data.view
    if case.axes == 2:
        slices = stream.permutation(extents[case.slice_axis])[: study.data.slices_per_patient]
        plane = _window(case, slices, extents, view, stream)
        return lambda values: np.moveaxis(values, case.slice_axis + 1, 0)[(slices, slice(None), *plane)]
    window = _window(case, None, extents, view, stream)
    return lambda values: values[(None, slice(None), *window)]


def _window(
    case: Case, slices: NDArray[np.int64] | None, extents: tuple[int, ...], view: tuple[int, ...], stream: Stream
) -> tuple[slice, ...]:
    """Where in the case a patch lies, along the axes that are not drawn as slices."""
    if slices is not None:
        extents = tuple(extent for axis, extent in enumerate(extents) if axis != case.slice_axis)
    room = [max(extent - size, 0) for extent, size in zip(extents, view, strict=True)]
    if not any(room):
        return tuple(slice(0, size) for size in view)
    corner = [int(stream.integers(1, free + 1)[0]) for free in room]
    if case.label is not None and case.label.shape == case.image.shape[1:] and stream.integers(1, FOREGROUND)[0] == 0:
        label = case.label if slices is None else np.moveaxis(case.label, case.slice_axis, 0)[slices].max(axis=0)
        labelled = np.flatnonzero(label)
        if len(labelled):
            voxel = np.unravel_index(labelled[int(stream.integers(1, len(labelled))[0])], label.shape)
            middle = (int(place) - size // 2 for place, size in zip(voxel, view, strict=True))
            corner = [min(max(place, 0), free) for place, free in zip(middle, room, strict=True)]
    return tuple(slice(start, start + size) for start, size in zip(corner, view, strict=True))


def mirror_axes(study: Study, slice_axis: int) -> list[int]:
    """Of a batch (k, C, *size) the axes along which the study allows mirror images.

    Args:
        study: gives dims and `[training] mirror`.
        slice_axis: the spatial axis along which slices are stacked; with dims = 2 the batch has none for it.
    """
    axes = [axis for axis in range(3) if study.data.dims == 3 or axis != slice_axis]
    return [axes.index(axis) + 2 for axis, name in enumerate("xyz") if name in study.training.mirror and axis in axes]


def whole(case: Case) -> torch.Tensor:
    """The whole image as one batch for inference: (slices, C, H, W) or (1, C, X, Y, Z), float32."""
    image = np.moveaxis(case.image, case.slice_axis + 1, 0) if case.axes == 2 else case.image[None]
    return torch.from_numpy(np.ascontiguousarray(image))
