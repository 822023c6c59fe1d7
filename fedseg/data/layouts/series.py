"""DICOM: a series of images as one volume, and label maps as DICOM SEG. Needs the extra `dicom`.

A series whose slices are missing, doubled or irregularly spaced is refused with numbers: no volume is made up. Values
are what the scanner means, after rescale slope and intercept: Hounsfield units with CT.
"""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.data.layouts.volume import Volume
from fedseg.errors import CaseError, ConfigError

SPACING_MM = 0.01  # or a hundredth of the spacing, if that is more
LPS = np.diag([-1.0, -1.0, 1.0, 1.0])  # DICOM points to the left and to the back
_SEG = "1.2.840.10008.5.1.4.1.1.66.4"
_BARE = re.compile(rb"[\x02\x08]\x00..(?:[A-Z]{2}|.\x00\x00\x00)", re.DOTALL)  # what old archives write without DICM
_REPEATED = (
    *("PatientName", "PatientBirthDate", "PatientSex", "PatientID", "AccessionNumber", "StudyID", "StudyDate"),
    *("StudyTime", "ReferringPhysicianName"),
)
_COUNTS = ("NumberOfSeriesRelatedInstances", "ImagesInAcquisition")
_NEEDED = ("SOPClassUID", "Modality", "SeriesInstanceUID", "SeriesDescription", "PatientID", "Rows", "NumberOfFrames")


def modules() -> tuple[Any, Any]:
    """The libraries highdicom and pydicom.

    Raises:
        ConfigError: they are not installed.
    """
    try:
        import highdicom
        import pydicom
    except ModuleNotFoundError as error:
        raise ConfigError(
            f"DICOM needs {error.name}, which is not installed; run: pip install 'secagg[dicom]'"
        ) from None
    return highdicom, pydicom


def series_in(folder: Path) -> Mapping[str, tuple[Any, tuple[Path, ...]]]:
    """Every series of images below a folder: one header of it and its files, by its identifier.

    Files that are no DICOM, and DICOM that has no pixels or is a segmentation, are left alone.
    """
    _, pydicom = modules()
    found: dict[str, tuple[Any, list[Path]]] = {}
    cut: list[tuple[Path, Any]] = []
    for path in sorted(folder.rglob("*")):
        if path.name.startswith(".") or not path.is_file():
            continue
        header = _header(path, pydicom)
        if header is None or "Rows" not in header:
            stored = header.file_meta.get("MediaStorageSOPClassUID") if header is not None else None
            if stored or path.suffix.lower() == ".dcm":
                cut.append((path, stored))
        elif header.get("SOPClassUID") != _SEG:
            found.setdefault(str(header.get("SeriesInstanceUID", "")), (header, []))[1].append(path)
    for path, stored in cut:  # a slice that was copied in part belongs to its neighbours, which are no series without
        for header, paths in found.values():
            if path.parent == paths[0].parent and stored in (None, header.get("SOPClassUID")):
                paths.append(path)
    return {uid: (header, tuple(paths)) for uid, (header, paths) in found.items()}


def numbered(files: Sequence[Path]) -> tuple[int, int] | None:
    """First and last number of a series' slices; None where they say none."""
    _, pydicom = modules()
    headers = [pydicom.dcmread(path, force=True, specific_tags=["InstanceNumber"]) for path in files]
    numbers = [int(header.InstanceNumber) for header in headers if header.get("InstanceNumber") is not None]
    return (min(numbers), max(numbers)) if numbers else None


def read_series(files: Sequence[Path], name: str) -> Volume:
    """The files of one series as one volume.

    Args:
        files: one slice each in any order, or one file with all of them.
        name: what errors call it: the folder.

    Raises:
        CaseError: damaged, compressed in a way that cannot be read here, colours, slices that do not make a volume.
    """
    highdicom, pydicom = modules()
    try:
        slices = [pydicom.dcmread(path, force=True) for path in files]
    except Exception as error:  # readers raise anything on damaged bytes
        raise CaseError(name, f"cannot be read as DICOM ({error}); export the series again") from error
    if any(int(one.get("SamplesPerPixel", 1)) != 1 for one in slices):
        raise CaseError(name, "holds colours, which are no intensities; export the series as grey values")
    options = {"dtype": np.float32, "apply_real_world_transform": False, "apply_presentation_lut": False}
    try:
        if len(slices) == 1 and "NumberOfFrames" in slices[0]:
            volume = highdicom.Image.from_dataset(slices[0]).get_volume(**options)
        else:
            _refuse_gaps(slices, name)
            volume = highdicom.get_volume_from_series(slices, **options)
    except CaseError:
        raise
    except Exception as error:
        raise CaseError(name, f"is no regular volume: {error}; export the series again") from error
    order = [2, 1, 0, 3]  # columns, rows, slices, as NIfTI has them
    return Volume(name, np.transpose(volume.array)[None], (LPS @ volume.affine)[:, order])


def read_segments(path: Path, image: Volume, structures: Sequence[str]) -> NDArray[np.float32]:
    """Label values (X, Y, Z) of a DICOM SEG on its image's grid: of the study's structures, by the segments' labels.

    Raises:
        CaseError: damaged, a structure that is no segment, or another grid than the image's.
    """
    highdicom, _ = modules()
    try:
        seg = highdicom.seg.segread(path)
        if seg.segmentation_type == highdicom.seg.SegmentationTypeValues.FRACTIONAL:
            raise CaseError(str(path), "says how likely each voxel is (FRACTIONAL); export it as a BINARY segmentation")
        called = [(str(seg.get_segment_description(number).segment_label), number) for number in seg.segment_numbers]
        named = {name: [number for label, number in called if label == name] for name, _ in called}
        missing = [name for name in structures if name not in named]
        if missing:
            raise CaseError(str(path), f"has the segments {', '.join(named)}, and the study asks for {missing[0]}")
        numbers = [number for name in structures for number in named[name]]  # lesions may have one name
        values = [value for value, name in enumerate(structures, 1) for _ in named[name]]
        place = highdicom.VolumeGeometry(LPS @ image.affine[:, [2, 1, 0, 3]], image.shape[::-1], "PATIENT")
        segments = seg.get_volume(segment_numbers=numbers).match_geometry(place).array
        if segments.shape[:3] != image.shape[::-1]:
            raise CaseError(str(path), "has another grid than its image; draw it on the image's own")
    except CaseError:
        raise
    except Exception as error:
        raise CaseError(str(path), f"cannot be read as DICOM SEG ({error}); export it again") from error
    labels = np.zeros(image.shape, np.float32)
    for number, value in enumerate(values):
        labels[segments[..., number].T > 0] = value
    return labels


def segments_in(path: Path) -> list[str]:
    """What the segments of a DICOM SEG are called, in order; raises `CaseError` where it is none."""
    highdicom, _ = modules()
    try:
        seg = highdicom.seg.segread(path)
    except Exception as error:
        raise CaseError(str(path), f"cannot be read as DICOM SEG ({error}); export it again") from error
    return [str(seg.get_segment_description(number).segment_label) for number in seg.segment_numbers]


def write_segments(
    labels: NDArray[np.uint8], files: Sequence[Path], structures: Mapping[str, Sequence[int]], output: Path
) -> None:
    """Write label values as DICOM SEG of a series, with its patient and study: it belongs to that patient's record.

    Args:
        labels: (X, Y, Z), on the grid that `read_series` gives of these files.
        files: the series.
        structures: label values that make up each segment, by its name.
        output: the file; replaced if it is there.

    Raises:
        CaseError: the series lacks what a DICOM SEG has to repeat.
    """
    import importlib.metadata

    highdicom, pydicom = modules()
    slices = [_complete(pydicom.dcmread(path, force=True)) for path in files]
    version = importlib.metadata.version("secagg")
    made_by = highdicom.AlgorithmIdentificationSequence(
        name="fedseg", version=version, family=highdicom.sr.CodedConcept("123110", "DCM", "Artificial Intelligence")
    )
    tissue = highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")
    descriptions = [
        highdicom.seg.SegmentDescription(
            segment_number=number,
            segment_label=name,
            segmented_property_category=tissue,
            segmented_property_type=highdicom.sr.CodedConcept(f"fedseg-{number}", "99FEDSEG", name),
            algorithm_type=highdicom.seg.SegmentAlgorithmTypeValues.AUTOMATIC,
            algorithm_identification=made_by,
        )
        for number, name in enumerate(structures, 1)
    ]
    volume = _geometry_of(slices, highdicom)
    segments = np.stack([np.isin(labels.T, values) for values in structures.values()], -1).astype(np.uint8)
    try:
        segmentation = highdicom.seg.Segmentation(
            source_images=slices,
            pixel_array=volume.with_array(segments, channels={"SegmentNumber": list(range(1, len(structures) + 1))}),
            segmentation_type=highdicom.seg.SegmentationTypeValues.BINARY,
            segment_descriptions=descriptions,
            series_instance_uid=highdicom.UID(),
            series_number=int(slices[0].get("SeriesNumber") or 0) + 1000,
            sop_instance_uid=highdicom.UID(),
            instance_number=1,
            manufacturer="fedseg",
            manufacturer_model_name="fedseg",
            software_versions=version,
            device_serial_number="0",
            series_description="fedseg segmentation, not for diagnosis",
        )
    except (AttributeError, ValueError) as error:
        why = f"cannot be what a DICOM SEG is of ({error}); write NIfTI instead, a name that ends in .nii.gz"
        raise CaseError(str(files[0].parent), why) from error
    segmentation.save_as(output)


def _geometry_of(slices: Sequence[Any], highdicom: Any) -> Any:
    if len(slices) == 1 and "NumberOfFrames" in slices[0]:
        return highdicom.Image.from_dataset(slices[0]).get_volume()
    return highdicom.get_volume_from_series(slices)


def _complete(one: Any) -> Any:
    """With everything that a DICOM SEG has to repeat: what was taken out of a series is there, and empty."""
    for keyword in _REPEATED:
        if keyword not in one:
            setattr(one, keyword, "")
    return one


def _header(path: Path, pydicom: Any) -> Any:
    try:
        with path.open("rb") as file:
            bare = _BARE.match(file.read(8)) is not None
        return pydicom.dcmread(path, stop_before_pixels=True, specific_tags=list(_NEEDED), force=bare)
    except Exception:  # readers raise anything on damaged bytes
        return None


def _refuse_gaps(slices: Sequence[Any], name: str) -> None:
    """Refuse slices that do not lie evenly behind each other, or of which the scanner has counted more."""
    try:
        turns = np.array([one.ImageOrientationPatient for one in slices], np.float64)
        places = np.array([one.ImagePositionPatient for one in slices], np.float64)
    except (AttributeError, TypeError, ValueError) as error:
        raise CaseError(name, "does not say where its slices lie; export the original series") from error
    if np.abs(turns - turns[0]).max() > 1e-3:
        raise CaseError(name, "has slices in several directions: is it a localiser? leave one stack in the series")
    along = np.sort(places @ np.cross(turns[0, :3], turns[0, 3:]))
    series, acquired = (max(int(one.get(field) or 0) for one in slices) for field in _COUNTS)
    if len(slices) > 1 and acquired % len(slices) == 0:  # one acquisition can give several series: echoes, kernels
        acquired = 0
    if (counted := series or acquired) > len(slices):
        raise CaseError(name, f"has {len(slices)} of {counted} slices; export the whole series again")
    steps = np.diff(along)
    if not len(steps):
        return
    usual = float(np.median(steps))
    allowed = max(SPACING_MM, 0.01 * usual)
    if steps.min() < allowed:
        raise CaseError(name, "has several images at one place: echoes, phases or time points; leave one of them")
    if steps.max() - steps.min() > allowed:
        worst = int(np.argmax(np.abs(steps - usual)))
        where = f"between {along[worst]:.1f} and {along[worst + 1]:.1f} mm"
        if steps[worst] > 1.5 * usual:
            lost = round(float(steps[worst]) / usual) - 1
            raise CaseError(name, f"has about {lost} slices missing {where}; export the whole series again")
        said = f"slices are {steps.min():.2f} to {steps.max():.2f} mm apart"
        raise CaseError(name, f"is spaced irregularly: {said}, such as {where}; resample it first")
