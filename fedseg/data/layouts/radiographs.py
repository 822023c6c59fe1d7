"""DICOM radiographs: a file a picture, of a class each. Needs the extra `dicom`.

Values are what the device means, after rescale slope and intercept, and bright where the patient is dense, whichever
way the file has it. A series of which images are missing is refused, and burnt-in letters are warned of: they may be a
name.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.data.layouts.layout import Declared
from fedseg.data.layouts.pictures import PictureEntry, classified, files_below, upright
from fedseg.data.layouts.series import modules
from fedseg.errors import CaseError
from fedseg.study import Study

_TAGS = (
    *("PatientID", "Modality", "SeriesInstanceUID", "InstanceNumber", "Rows", "BurnedInAnnotation"),
    *("NumberOfSeriesRelatedInstances", "SOPClassUID"),
)


@dataclass(frozen=True)
class RadiographEntry(PictureEntry):
    """One DICOM file."""

    burnt: bool = False

    def remarks(self) -> Sequence[str]:
        """Letters that are part of the picture."""
        said = "says that annotations are burnt into it: look whether a name can be read, and whether they tell a class"
        return [said] if self.burnt else []


class Radiographs:
    """A folder for each class with DICOM in any subfolders, or anywhere with a table `classes.csv`."""

    needs_folder = True
    index = ""

    def entries(self, folder: Path, site: str, study: Study) -> Iterator[RadiographEntry]:
        """An entry for every DICOM file with pixels; PatientID says whose it is."""
        headers = _headers(folder)
        missing = _missing(headers)
        for path, said in classified(folder, headers.__contains__, study.trust.claims_epsilon):
            header = headers[path]
            burnt = str(header.get("BurnedInAnnotation") or "").upper() == "YES"
            why = missing.get(str(header.get("SeriesInstanceUID") or ""))
            wrong = None if why is None else CaseError(str(path), why)
            person = str(header.get("PatientID") or "") or None
            yield RadiographEntry(path, said, read_radiograph, person, wrong=wrong, burnt=burnt)

    def modalities(self, folder: Path) -> tuple[str, ...]:
        """What the device is, such as DX; none where it gives slices of a volume, or nothing says a class."""
        found = {str(header.get("Modality") or "image") for header in _headers(folder).values()}
        flat = len(found) == 1 and not found & {"CT", "MR", "PT", "NM"}
        return tuple(found) if flat and len(self.classes(folder)) > 1 else ()

    def classes(self, folder: Path) -> tuple[str, ...]:
        """What the folders or the table call the classes, sorted."""
        return tuple(sorted({said for _, said in classified(folder, _headers(folder).__contains__) if said}))

    def declared(self, folder: Path, study: Study) -> Declared:
        """Nothing: DICOM says it image by image."""
        return Declared()

    def remarks(self, folder: Path, study: Study) -> Sequence[str]:
        """Files that are no DICOM, and those that do not say whether letters are burnt into them."""
        headers = _headers(folder)
        others = [
            path.name for path in files_below(folder) if path not in headers and path.suffix not in (".csv", ".tsv")
        ]
        silent = [path for path, header in headers.items() if not header.get("BurnedInAnnotation")]
        said = [f"{len(others)} files have no DICOM picture, such as {others[0]}, and are left alone"] if others else []
        if silent:
            said.append(
                f"{len(silent)} of {len(headers)} files do not say whether annotations are burnt in; look at some"
            )
        return said


def is_radiograph(path: Path) -> bool:
    """Whether a file is DICOM: by its ending, or by what DICOM files begin with."""
    if path.suffix.lower() == ".dcm":
        return True
    with path.open("rb") as file:
        return file.read(132)[128:] == b"DICM"


def read_radiograph(path: Path, study: Study) -> tuple[NDArray[np.float32], float]:
    """A DICOM file as (1, X, Y, frames) float32, dense bright, and millimetres a pixel (1 where it does not say).

    Raises:
        CaseError: damaged, compressed in a way that cannot be read here, colours, or pixels that are not square.
    """
    try:
        return _read(path, study)
    except CaseError:
        raise
    except Exception as error:  # readers raise anything on damaged bytes, also where a tag is looked at
        raise CaseError(str(path), f"cannot be read as DICOM ({error}); export it again") from error


def _read(path: Path, study: Study) -> tuple[NDArray[np.float32], float]:
    _, pydicom = modules()
    header = pydicom.dcmread(path)
    stored = np.asarray(header.pixel_array)
    light = str(header.get("PhotometricInterpretation") or "")
    if light not in ("MONOCHROME1", "MONOCHROME2"):
        raise CaseError(str(path), f"has colours ({light or 'it does not say which'}); export it as grey values")
    if study.in_channels != 1:
        raise CaseError(str(path), f"has 1 channel and [data] modality lists {study.in_channels}; correct either")
    values = stored.astype(np.float32)
    if light == "MONOCHROME1":  # its least value is white
        low, high = _range(header)
        values = low + high - values
    slope, shift = header.get("RescaleSlope"), header.get("RescaleIntercept")
    values = values * float(1 if slope is None else slope) + float(0 if shift is None else shift)
    frames = values[None] if values.ndim == 2 else values
    return np.concatenate([upright(frame[None]) for frame in frames], axis=-1), _pixel(header, path)


def _range(header: Any) -> tuple[float, float]:
    """Least and greatest value that the file's bits can store."""
    bits = int(header.BitsStored)
    signed = int(header.get("PixelRepresentation") or 0) == 1
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1) - 1) if signed else (0.0, 2.0**bits - 1)


def _pixel(header: Any, path: Path) -> float:
    spacing = header.get("PixelSpacing") or header.get("ImagerPixelSpacing")
    if not spacing:
        return 1.0
    high, wide = map(float, spacing)
    if not wide > 0 or abs(high - wide) > 0.01 * wide:
        raise CaseError(str(path), f"has pixels of {high:g} x {wide:g} mm, which are not square; resample it first")
    return wide


def _headers(folder: Path) -> dict[Path, Any]:
    """Every file with pixels, or that ought to have them, by its header."""
    _, pydicom = modules()
    found = {}
    for path in files_below(folder):
        try:
            header = pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS))
        except Exception:  # readers raise anything on what is no DICOM
            if path.suffix.lower() == ".dcm":
                found[path] = pydicom.Dataset()  # reading it says what is wrong
            continue
        if "Rows" in header or "SOPClassUID" not in header:  # without either it was cut off
            found[path] = header
    return found


def _missing(headers: Mapping[Path, Any]) -> dict[str, str]:
    """Series of which images are missing, each with a sentence: by their count, or by a gap in their numbers."""
    series = defaultdict(list)
    for header in headers.values():
        if uid := str(header.get("SeriesInstanceUID") or ""):
            series[uid].append(header)
    found = {}
    for uid, those in series.items():
        counted = max(_number(header, "NumberOfSeriesRelatedInstances") or 0 for header in those)
        numbers = sorted({n for header in those if (n := _number(header, "InstanceNumber")) is not None})
        gaps = [(before + 1, after - before - 1) for before, after in pairwise(numbers) if after > before + 1]
        if counted > len(those):
            found[uid] = f"is of a series with {len(those)} of {counted} images; export the whole series again"
        elif gaps:
            lost = sum(count for _, count in gaps)
            found[uid] = (
                f"is of a series without image {gaps[0][0]} ({lost} are missing); export the whole series again"
            )
    return found


def _number(header: Any, tag: str) -> int | None:
    """A tag's whole number; None where it is missing or is none, which is for nobody else to stop at."""
    try:
        return int(header.get(tag))
    except (TypeError, ValueError, OverflowError):
        return None
