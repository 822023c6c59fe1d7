"""NIfTI files: their voxels, and where they lie in the patient.

Every inconsistency is a `CaseError` that names the file, with the numbers. Nothing is guessed and nothing is dropped.
Where a header tells the geometry more than once, the sform counts if it has a code above 0, else the qform, else the
voxel sizes alone; what cannot be true at once is refused.
"""

import gzip
import warnings
import zlib
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from nibabel.openers import ImageOpener
from nibabel.spatialimages import HeaderDataError
from numpy.typing import NDArray

from fedseg.data.layouts.volume import SAME_GRID, Volume, corner_distance, smallest_voxel
from fedseg.errors import CaseError
from secagg.text import kind_of

_GEOMETRY = (
    *("qform_code", "quatern_b", "quatern_c", "quatern_d", "qoffset_x", "qoffset_y", "qoffset_z"),
    *("sform_code", "srow_x", "srow_y", "srow_z"),
)
SAME_SIZE = 0.01  # voxel sizes that differ by a hundredth contradict each other


class _Header(nibabel.Nifti1Header):  # type: ignore[misc]
    """Scanners write quaternions a rounding above unit length; nibabel allows 4e-7, FSL and ITK more."""

    quaternion_threshold = 1e-4


class _Image(nibabel.Nifti1Image):  # type: ignore[misc]
    header_class = _Header


def read_nifti(path: Path) -> Volume:
    """The whole file.

    Raises:
        CaseError: missing, damaged, not one volume with channels, or with a geometry that cannot be.
    """
    image = _opened(path)
    affine, oriented, remarks = geometry(image, str(path))
    try:
        values = np.asarray(image.dataobj, dtype=np.float32)
    except Exception as error:  # readers raise anything on damaged bytes
        raise CaseError(str(path), f"cannot be read as NIfTI: {_what_is_wrong(path)}") from error
    return Volume(str(path), _channels_first(values, path), affine, oriented, remarks)


def nifti_shape(path: Path) -> tuple[int, ...]:
    """Voxels along each axis of a file, at least three; raises `CaseError` as `read_nifti`, and reads no voxel."""
    return tuple(_opened(path).shape)


def nifti_remarks(path: Path) -> tuple[str, ...]:
    """What of a file's geometry was decided by a rule; raises `CaseError` as `read_nifti`, and reads no voxel."""
    return geometry(_opened(path), str(path))[2]


def geometry(image: Any, name: str) -> tuple[NDArray[np.float64], bool, tuple[str, ...]]:
    """Where a NIfTI image lies.

    Args:
        image: of nibabel.
        name: what errors call it.

    Returns:
        Voxel to millimetres (RAS+), (4, 4) float64; whether the header says where the patient's sides are: without
        sform and qform it says nothing, and the identity is what converters write that know nothing; and sentences on
        what was decided by the rule.

    Raises:
        CaseError: units that are not millimetres, a qform that is no rotation, voxel sizes or sides that contradict
            each other, or no geometry at all.
    """
    header = image.header
    if len(image.shape) < 3:
        raise CaseError(name, f"has {len(image.shape)} spatial axes; a volume or a stack of slices has three")
    if (units := int(header["xyzt_units"]) & 0x07) in (1, 3):
        said = {1: "metres", 3: "micrometres"}[units]
        raise CaseError(name, f"says that its voxels are in {said}; export it in millimetres")
    sform, scode = header.get_sform(coded=True)
    try:
        qform, qcode = header.get_qform(coded=True)
    except (HeaderDataError, ValueError) as error:
        raise CaseError(name, f"has a qform whose quaternion is no rotation ({error}); export it again") from error
    affine = np.asarray(sform if scode else image.affine, np.float64)
    if not np.isfinite(affine).all() or abs(np.linalg.det(affine[:3, :3])) < 1e-9:
        raise CaseError(name, "has an affine that is no geometry; correct the header's sform")
    oriented = bool(scode or qcode) and not np.array_equal(affine, np.eye(4))
    if not scode:
        return affine, oriented, ()
    sizes, stored = np.linalg.norm(affine[:3, :3], axis=0), np.array(header.get_zooms()[:3], np.float64)
    if not np.allclose(sizes, stored, rtol=SAME_SIZE):
        raise CaseError(
            name,
            f"has voxels of {_millimetres(stored)} by its pixdim and {_millimetres(sizes)} by its sform; find out "
            "which is true and write the header again",
        )
    if not qcode:
        return affine, oriented, ()
    if np.linalg.det(qform[:3, :3]) * np.linalg.det(affine[:3, :3]) < 0:
        raise CaseError(name, "has left and right swapped between its qform and its sform; find out which is true")
    apart = corner_distance(affine, qform, image.shape[:3])
    if apart <= SAME_GRID * smallest_voxel(affine):
        return affine, oriented, ()
    remark = f"qform (code {int(qcode)}) and sform (code {int(scode)}) place it up to {apart:.3g} mm apart"
    return affine, oriented, (f"{remark}; the sform counts",)


def _millimetres(sizes: NDArray[np.float64]) -> str:
    return " x ".join(f"{size:.4g}" for size in sizes) + " mm"


def _opened(path: Path) -> Any:
    """The image with its header read, of a kind whose voxels are one number each."""
    if not path.exists():
        foreign = any("\udc80" <= letter <= "\udcff" for letter in str(path))
        why = "; its name is not UTF-8: is the list, or the folder, in an old code page?" if foreign else ""
        raise CaseError(str(path), f"is missing; add it or remove the patient from the list{why}")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            image = _loaded(path)
    except Exception as error:  # readers raise anything on damaged bytes
        raise CaseError(str(path), f"cannot be read as NIfTI: {_what_is_wrong(path)}") from error
    if not isinstance(image, nibabel.Nifti1Pair):  # NIfTI-2 is one too
        raise CaseError(str(path), f"is no NIfTI image but {type(image).__name__}; convert it")
    stored = np.abs(_stored_header(path, image)["pixdim"][1:4])
    if not (stored > 0).all() and int(image.header["sform_code"]) <= 0:  # nibabel would take 1 mm for a 0
        raise CaseError(str(path), f"says that its voxels are {_millimetres(stored)}; correct the header's pixdim")
    kind = image.get_data_dtype()
    if kind.names is not None:
        raise CaseError(str(path), "holds colours (RGB), which are no intensities; export it as grey values")
    if kind.kind == "c":
        raise CaseError(str(path), "holds complex values, of which half would be lost; export the magnitude")
    return image


def _loaded(path: Path) -> Any:
    try:
        return _Image.from_filename(path)
    except Exception:  # NIfTI-2, or what nibabel has to say of it
        return nibabel.load(path)


def _stored_header(path: Path, image: Any) -> Any:
    """The header as it is in the file: what nibabel gives has been repaired."""
    with ImageOpener(path) as file:
        return type(image.header).from_fileobj(file, check=False)


def _channels_first(values: NDArray[np.float32], path: Path) -> NDArray[np.float32]:
    """(C, X, Y, Z): axes of one voxel behind the third are nothing, so that ITK's (X, Y, Z, 1, C) has C channels."""
    if min(values.shape) < 1:
        raise CaseError(str(path), "has no voxels; export it again")
    spatial = values.shape[:3]
    channels = [extent for extent in values.shape[3:] if extent > 1]
    if len(channels) > 1:
        extents = " x ".join(map(str, values.shape))
        raise CaseError(str(path), f"is {extents} voxels: two axes beyond space; export one volume with its channels")
    return np.moveaxis(values.reshape(*spatial, *(channels or [1])), -1, 0)


def _what_is_wrong(path: Path) -> str:
    """Why a file is not read as NIfTI, and what to do: a reader's own errors do not say."""
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
    return "its header is not what nibabel expects; export it again"


def write_label_map(labels: NDArray[np.uint8], image: Path | NDArray[np.float64], output: Path) -> None:
    """Write label values as NIfTI with the geometry of an image's header, and nothing else of it.

    sform and qform are the image's, each with its code; its free text and extensions may name the patient.

    Args:
        labels: (X, Y, Z), the image's grid.
        image: NIfTI; or the affine of what was no NIfTI, which becomes both.
        output: ends in .nii or .nii.gz; replaced if it is there.

    Raises:
        OSError: it cannot be written.
    """
    if not isinstance(image, Path):
        plain = nibabel.Nifti1Image(labels, image)
        plain.set_sform(image, 1)
        plain.set_qform(image, 1)
        plain.to_filename(output)
        return
    source = _opened(image).header
    header = nibabel.Nifti1Header()
    header.set_data_dtype(np.uint8)
    header.set_data_shape(labels.shape)
    header["pixdim"][:4] = source["pixdim"][:4]
    for field in _GEOMETRY:
        header[field] = source[field]
    header.set_xyzt_units("mm")
    nibabel.Nifti1Image(labels, None, header).to_filename(output)
