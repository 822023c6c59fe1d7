"""Folders that people have on their disks, FeTA/BIDS and Medical Segmentation Decathlon, read through MONAI.

Every inconsistency is a `CaseError` that names the file. Nothing is guessed: a label that does not lie exactly
on its image is refused, not resampled.
"""

import gzip
import json
import warnings
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import nibabel
import numpy as np
from monai.transforms import LoadImage
from numpy.typing import NDArray

from fedseg.data.cases import Case, working_case
from fedseg.errors import CaseError, ConfigError
from fedseg.files import read_text
from fedseg.study import Study
from secagg.text import kind_of

SAME_GRID_MM = 1e-3


@dataclass(frozen=True)
class Entry:
    """Files of one case; `label` may not exist yet, which is found when it is read."""

    patient: str
    image: Path
    label: Path


def entries(folder: Path, study: Study) -> list[Entry]:
    """What the site's folder lists, sorted by image path.

    Raises:
        ConfigError: the folder or its index is missing or malformed, or lists nobody. With differential privacy an
            index may list nobody: refusing would tell that the last patient has left.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: there is no such folder; give --data the folder that holds the site's images")
    listed = sorted(LAYOUTS[study.data.layout](folder, study), key=lambda entry: entry.image)
    if not listed and not (study.trust.claims_epsilon and any((folder / index).exists() for index in INDEXES)):
        raise ConfigError(f"{folder}: no patients in layout '{study.data.layout}'; correct the folder or the layout")
    return listed


def load_case(entry: Entry, site: str, study: Study) -> Case:
    """Read, check and normalise one case.

    Raises:
        CaseError: a missing, damaged or inconsistent file.
    """
    image, affine = read_image(entry.image, study)
    label = _read_label(entry, image.shape[1:], affine, study)
    return working_case(site, entry.patient, str(entry.image), image, label, affine, study)


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


def _read_label(entry: Entry, shape: tuple[int, ...], affine: NDArray[np.float64], study: Study) -> NDArray[np.uint8]:
    """Label values (X, Y, Z) uint8 on exactly the image's grid."""
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
    known = np.arange(len(study.structures) + 1)
    unknown = np.setdiff1d(label, known)
    if len(unknown):
        raise CaseError(
            path,
            f"has label value {unknown[0]:g}, and the study's structures are 0 to {known[-1]}; "
            "correct the label map or [study] structures",
        )
    return np.asarray(label[0], dtype=np.uint8)


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


def _feta(folder: Path, study: Study) -> Iterator[Entry]:
    """`sub-*/anat/*_<modality>.nii.gz` beside `*_dseg.nii.gz`; `participants.tsv`, if there, is the list."""
    ending = f"_{study.data.modality[0]}.nii.gz"
    index = folder / "participants.tsv"
    if index.exists():
        lines = read_text(index, "correct it", names=True).split("\n")
        rows = [line.split("\t") for line in lines if line.strip()]
        if not rows or rows[0][0] != "participant_id":
            raise ConfigError(f"{index}: its first column must be participant_id; correct the header line")
        patients = [row[0] for row in rows[1:]]
    else:
        patients = [path.name for path in folder.glob("sub-*") if path.is_dir()]
    for patient in patients:
        images = sorted((folder / patient / "anat").glob(f"[!.]*{ending}"))  # "._..." is macOS's, beside each file
        for image in images or [folder / patient / "anat" / f"{patient}{ending}"]:
            yield Entry(patient, image, image.with_name(image.name.removesuffix(ending) + "_dseg.nii.gz"))


def _decathlon(folder: Path, study: Study) -> Iterator[Entry]:
    """`dataset.json` lists the image and label of every patient."""
    index = folder / "dataset.json"
    text = read_text(index, "a Decathlon folder has one, or set [data] layout", names=True)
    try:
        listed = json.loads(text)["training"]
        pairs = [(folder / item["image"], folder / item["label"]) for item in listed]
    except json.JSONDecodeError as error:
        raise ConfigError(f"{index}: not valid JSON ({error}); correct that line") from error
    except (KeyError, TypeError) as error:
        raise ConfigError(f"{index}: 'training' must list image and label of every patient; correct it") from error
    for image, label in pairs:
        yield Entry(image.name.removesuffix(".gz").removesuffix(".nii"), image, label)


INDEXES = ("participants.tsv", "dataset.json")
LAYOUTS = {"feta": _feta, "decathlon": _decathlon}
