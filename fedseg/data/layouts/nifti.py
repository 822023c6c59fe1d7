"""NIfTI files, read through MONAI: an image, and a label map that lies exactly on it.

Every inconsistency is a `CaseError` that names the file. Nothing is guessed: a label map on another grid than its
image is refused, not resampled.
"""

import gzip
import warnings
import zlib
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from monai.transforms import LoadImage
from numpy.typing import NDArray

from fedseg.data.cases import Case
from fedseg.data.scans import Scan, working_case
from fedseg.errors import CaseError
from fedseg.study import Study
from secagg.text import kind_of

SAME_GRID_MM = 1e-3


@dataclass(frozen=True)
class NiftiEntry:
    """A patient's image with all channels in one file, and its label map in another.

    Either may be missing, which is found when the case is loaded.
    """

    patient: str
    image: Path
    label: Path

    @property
    def name(self) -> str:
        """The image's path."""
        return str(self.image)

    def load(self, site: str, study: Study) -> Case:
        """Read both files and bring them onto the study's working grid.

        Raises:
            CaseError: a missing, damaged or inconsistent file.
        """
        image, affine = read_image(self.image, study)
        label = _read_label(self, image.shape[1:], affine)
        oriented = names_sides(self.image)
        return working_case(Scan(self.patient, self.name, image, affine, label, str(self.label), oriented), site, study)


def read_image(path: Path, study: Study) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    """Voxels (C, X, Y, Z) float32 in the file's units and its affine (4, 4).

    Raises:
        CaseError: missing, damaged, not three-dimensional, wrong number of channels, NaN or infinite voxels.
    """
    image, affine = _read_nifti(path)
    if image.ndim != 4 or min(image.shape[1:]) < 1:
        raise CaseError(str(path), f"has {image.ndim - 1} spatial axes; a volume or a stack of slices has three")
    if len(image) != study.in_channels:
        raise CaseError(
            str(path),
            f"has {len(image)} channels and [data] modality lists {study.in_channels}; correct either",
        )
    if bad := int(np.count_nonzero(~np.isfinite(image))):
        raise CaseError(str(path), f"has {bad} voxels that are NaN or infinite; export the image again")
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise CaseError(str(path), "has an affine that is no geometry; correct the header's sform")
    return image, affine


def names_sides(path: Path) -> bool:
    """Whether a NIfTI file says where the patient's sides are, so that a picture may name left and right.

    A header without sform and qform says nothing, and the identity is what converters write that know nothing.
    """
    image = nibabel.load(path)
    said = int(image.header["sform_code"]) > 0 or int(image.header["qform_code"]) > 0
    return said and not np.array_equal(image.affine, np.eye(4))


def _read_label(entry: NiftiEntry, shape: tuple[int, ...], affine: NDArray[np.float64]) -> NDArray[np.float32]:
    """Label values (X, Y, Z) on exactly the image's grid."""
    path = str(entry.label)
    if not entry.label.exists():
        raise CaseError(path, f"the label map of {entry.image.name} is missing; add it or remove the image")
    label, label_affine = _read_nifti(entry.label)
    if label.shape != (1, *shape):
        extents = " x ".join(map(str, label.shape[1:])), " x ".join(map(str, shape))
        raise CaseError(path, f"is {extents[0]} voxels and its image is {extents[1]}; export both on one grid")
    if not np.allclose(label_affine, affine, atol=SAME_GRID_MM):
        worst = float(np.abs(label_affine - affine).max())
        raise CaseError(path, f"has another affine than its image (by up to {worst:.3g} mm); export both on one grid")
    values: NDArray[np.float32] = label[0]
    return values


def _read_nifti(path: Path) -> tuple[NDArray[np.float32], NDArray[np.float64]]:
    if not path.exists():
        foreign = any("\udc80" <= letter <= "\udcff" for letter in str(path))
        why = "; its name is not UTF-8: is the list, or the folder, in an old code page?" if foreign else ""
        raise CaseError(str(path), f"is missing; add it or remove the patient from the list{why}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = LoadImage(image_only=True, ensure_channel_first=True, dtype=np.float32)(path)
    except Exception as error:  # readers raise anything on damaged bytes
        raise CaseError(str(path), f"cannot be read as NIfTI: {_what_is_wrong(path)}") from error
    return np.asarray(image.numpy(), np.float32), np.asarray(image.affine, np.float64)


def _what_is_wrong(path: Path) -> str:
    """Why a file is not read as NIfTI, and what to do: MONAI's own errors do not say."""
    try:
        with path.open("rb") as file:
            start = file.read(512)
        packed, named = start.startswith(b"\x1f\x8b"), path.name.endswith(".gz")
        if not start:
            return "it is empty; copy it again"
        if not packed and (what := kind_of(start)):
            return f"it is {what}; give the image itself"
        if packed != named:
            state, name = ("compressed", ".nii.gz") if packed else ("not compressed", ".nii")
            return f"it is {state}, so its name must end in {name}; rename it"
        image = nibabel.load(path)
        np.asanyarray(image.dataobj)
    except EOFError:
        return "it ends too early; copy it again"
    except (gzip.BadGzipFile, zlib.error):
        return "its compression is damaged; copy it again"
    except MemoryError:
        return "this machine has not enough memory for it"
    except OSError as error:
        return f"{error.strerror}; correct that" if error.strerror else f"{error}; copy it again"
    except Exception as error:
        return f"{error}; export it again"
    return "its header is not what MONAI expects; export it again"
