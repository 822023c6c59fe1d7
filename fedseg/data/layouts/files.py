"""A case that lies in files: its channels in one file or in one each, and its label map in another."""

import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.data.cases import Case
from fedseg.data.layouts.labels import translated, whole_numbers
from fedseg.data.layouts.nifti import nifti_remarks, read_nifti
from fedseg.data.layouts.volume import Volume
from fedseg.data.scans import Scan, working_case
from fedseg.errors import CaseError, ConfigError
from fedseg.files import read_text
from fedseg.study import Study

NIFTI = (".nii.gz", ".nii")
REMEDY = "export both on one grid"


@dataclass(frozen=True)
class FileEntry:
    """A case whose files were listed; any may be missing, which is found when it is loaded.

    Attributes:
        case: what it is called within its site.
        images: one file with all channels, or one for each modality of the study.
        label: its label map.
        subject: whose it is, where the layout says so.
        patient: the unit of privacy; the subject, or else the case, until somebody decides otherwise.
        wrong: why it cannot be used, found while it was listed: this case only is left out for it, not the site.
    """

    case: str
    images: tuple[Path, ...]
    label: Path
    subject: str | None = None
    patient: str = field(default="", kw_only=True)
    wrong: CaseError | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Fill in the patient."""
        if not self.patient:
            object.__setattr__(self, "patient", self.subject or self.case)

    @property
    def name(self) -> str:
        """The first image's path."""
        return str(self.images[0])

    def remarks(self) -> Sequence[str]:
        """What of its geometry was decided by a rule; nothing for files that cannot be read."""
        return [f"{path.name}: {said}" for path in (*self.images, self.label) for said in _remarks(path)]

    def scan(self, site: str, study: Study) -> Scan:
        """Read the files, on their own grid; raises as `load`."""
        if self.wrong:
            raise self.wrong
        image = read_image(self.images, study)
        label = labelled(self.label, image, site, study)
        return Scan(self.patient, self.name, image.values, image.affine, label, str(self.label), image.oriented)

    def load(self, site: str, study: Study) -> Case:
        """Read the files and bring them onto the study's working grid.

        Raises:
            CaseError: a missing, damaged or inconsistent file.
        """
        return working_case(self.scan(site, study), site, study)


def read_image(paths: Sequence[Path], study: Study) -> Volume:
    """An image with the study's channels: of one file, or one file for each modality.

    Raises:
        CaseError: missing, damaged, on several grids, wrong number of channels, NaN or infinite voxels.
    """
    return joined([read_nifti(path) for path in paths], study)


def joined(volumes: Sequence[Volume], study: Study) -> Volume:
    """Volumes of one channel each, or one with all, as the study's image; raises `CaseError` as `read_image`."""
    first, *others = volumes
    if others:
        for volume in (first, *others):
            if len(volume.values) != 1:
                raise CaseError(volume.name, f"has {len(volume.values)} channels, where a file has one modality")
        channels = [first.values, *(volume.on_grid_of(first, "export all modalities on one grid") for volume in others)]
        first = Volume(first.name, np.concatenate(channels), first.affine, first.oriented, first.remarks)
    if len(first.values) != study.in_channels:
        raise CaseError(
            first.name,
            f"has {len(first.values)} channels and [data] modality lists {study.in_channels}; correct either",
        )
    if bad := int(np.count_nonzero(~np.isfinite(first.values))):
        raise CaseError(first.name, f"has {bad} voxels that are NaN or infinite; export the image again")
    return first


def find_nifti(path: Path) -> Path:
    """A file as it is on disk, with either ending of NIfTI; the path as it was given where there is none.

    Args:
        path: without the ending, or with one.

    Raises:
        CaseError: there are both, and nobody knows which one counts.
    """
    stem = without_ending(path)
    there = [found for ending in NIFTI if (found := path.with_name(stem + ending)).exists()]
    if len(there) > 1 and path not in there:
        raise CaseError(str(there[0]), f"{there[1].name} is there too; remove the one that does not count")
    if path in there or not there:
        return path if path.name.endswith(NIFTI) else path.with_name(stem + NIFTI[0])
    return there[0]


def without_ending(path: Path) -> str:
    """The file's name without .nii or .nii.gz."""
    return next((path.name.removesuffix(ending) for ending in NIFTI if path.name.endswith(ending)), path.name)


def json_table(path: Path, remedy: str) -> dict[str, Any]:
    """The content of a file that says something of a whole folder; `remedy` is for one that is missing.

    Raises:
        ConfigError: it is missing, or no table in JSON.
    """
    text = read_text(path, remedy, names=True)
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path}: not valid JSON ({error}); correct that line") from error
    if not isinstance(content, dict):
        raise ConfigError(f"{path}: must be a table with names such as 'training'; correct it")
    return content


def listed(folder: Path, pattern: str) -> list[Path]:
    """Files and folders of a pattern, sorted; without what systems leave behind, which begins with a dot."""
    return sorted(path for path in folder.glob(pattern) if not path.name.startswith("."))  # ._NAME, .DS_Store


def labelled(path: Path, image: Volume, site: str, study: Study) -> NDArray[np.float32]:
    """The study's label values (X, Y, Z) of a label map on exactly the image's grid.

    Raises:
        CaseError: missing, damaged, on another grid, several values a voxel, or one that the study does not list.
    """
    if not path.exists():
        raise CaseError(str(path), f"the label map of {Path(image.name).name} is missing; add it or remove the image")
    label = read_nifti(path)
    if len(label.values) != 1:
        raise CaseError(
            str(path),
            f"has {len(label.values)} channels, and a label map has one value a voxel; write 0 for background "
            "and 1, 2, ... for the structures",
        )
    values = whole_numbers(label.on_grid_of(image, REMEDY)[0])
    return translated(values, study.labels_of(site), str(path))


def _remarks(path: Path) -> tuple[str, ...]:
    try:
        return nifti_remarks(path)
    except CaseError:  # loading says so
        return ()
