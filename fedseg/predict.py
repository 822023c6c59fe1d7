"""Prediction: of a case in memory, and of any image file, back on the file's own grid.

A label map has its image's shape and geometry. No gradient is kept, nothing is downloaded, an image is never
overwritten, and an existing file is replaced only by a whole one.
"""

import os
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.data.cases import Case
from fedseg.data.grid import likeliest_on
from fedseg.data.layouts.channels import plain
from fedseg.data.layouts.dicom import chosen_series
from fedseg.data.layouts.files import NIFTI, joined, listed, read_image, without_ending
from fedseg.data.layouts.nifti import write_label_map
from fedseg.data.layouts.series import read_series, write_segments
from fedseg.data.layouts.table import entries, layout_of
from fedseg.data.scans import Scan, working_case
from fedseg.errors import CaseError, ConfigError
from fedseg.study import Study
from fedseg.tasks.segmentation import Segmentation
from fedseg.tasks.table import task_of
from secagg.writing import replacing

DICOM = ".dcm"
_DERIVED = re.compile(r"_(mask|dseg|probseg)$")
_CHANNEL, _NUMBER = re.compile(r"(?P<case>.+)[-_](?P<channel>[A-Za-z0-9]+)"), re.compile(r"\d{4}")


@dataclass(frozen=True)
class Asked:
    """What is to be segmented: the files of one image, and where its label map goes."""

    images: tuple[Path, ...]
    output: Path


def predict(model: torch.nn.Module, case: Case, study: Study) -> NDArray[np.uint8]:
    """What the model says of a case, as the study's task says it."""
    return task_of(study).predict(model, case)


def asked_of(source: Path, output: Path, study: Study) -> list[Asked]:
    """What a source and an output mean: one image, or a folder of images and a folder for their label maps.

    A folder whose output is named as a file is one image: a DICOM series.

    A folder's images are its NIfTI files, those of one case together where their names end in the study's modalities or
    in nnU-Net's `_0000`, `_0001`, ...; without any file, the cases that the study's layout finds in it.

    Raises:
        ConfigError: a name that is no NIfTI, a folder that is missing or cannot be written, an output that is an input,
            or nothing to do.
    """
    several = source.is_dir() and not output.name.endswith((*NIFTI, DICOM))
    if several:
        asked = [
            Asked(images, output / f"{case}{DICOM if images[0].is_dir() else NIFTI[0]}")
            for case, images in _cases(source, study)
        ]
        if not asked:
            raise ConfigError(f"{source}: no images in it; give a NIfTI file, or a folder of them")
    else:
        asked = [Asked((source,), output)]
        for path in () if source.is_dir() else (source, output):
            if not path.name.endswith(NIFTI):
                why = "images and label maps are NIfTI, and DICOM SEG is of the folder of a series"
                raise ConfigError(f"{path}: {why}; give a name that ends in .nii.gz")
    inputs = [image for one in asked for image in one.images]
    for one in asked:
        _refuse_inputs(one.output, inputs, source)
    folder = output if several else output.parent
    there = folder.parent if several and not folder.is_dir() else folder
    if not there.is_dir():
        raise ConfigError(f"{there}: there is no such folder; make it or write elsewhere")
    if not os.access(there, os.W_OK | os.X_OK):
        raise ConfigError(f"{there}: nothing can be written there; write elsewhere")
    return asked


def predict_file(model: torch.nn.Module, image: Path, output: Path, study: Study) -> tuple[Case, NDArray[np.uint8]]:
    """Segment a NIfTI file: a label map in NIfTI at `output`; see `predict_asked`. Raises also as `asked_of`."""
    (asked,) = asked_of(image, output, study)
    return predict_asked(model, asked, study)


def predict_asked(model: torch.nn.Module, asked: Asked, study: Study) -> tuple[Case, NDArray[np.uint8]]:
    """Segment one image and write its label map.

    Args:
        model: the study's network.
        asked: any orientation and spacing, with the study's channels.
        study: what the model was trained with.

    Returns:
        The image as a case on the working grid, and its label values there: what `fedseg.picture` shows.

    Raises:
        CaseError: the image cannot be used, or the model's answer is no number; names the file and the remedy.
        OSError: the label map cannot be written; nothing is left of it.
    """
    name = str(asked.images[0])
    series = chosen_series(asked.images[0], study) if asked.images[0].is_dir() else []
    image = joined([read_series(files, name) for files in series], study) if series else read_image(asked.images, study)
    case = working_case(Scan("", name, image.values, image.affine, oriented=image.oriented), "", study)
    scores = Segmentation(study).probabilities(model, case)
    if not np.isfinite(scores).all():
        raise CaseError(name, "the model's answer is no number; it was trained on other intensities or is damaged")
    labels = likeliest_on(scores, case.affine, image.shape, image.affine)
    asked.output.parent.mkdir(parents=True, exist_ok=True)
    with replacing(asked.output) as beside:
        if asked.output.name.endswith(DICOM):
            write_segments(labels, series[0], dict(zip(study.structures, study.regions, strict=True)), beside)
        else:
            write_label_map(labels, image.affine if series else asked.images[0], beside)
    return case, np.asarray(scores.argmax(axis=0), dtype=np.uint8)


def _cases(folder: Path, study: Study) -> Iterator[tuple[str, tuple[Path, ...]]]:
    """Names and files of a folder's images."""
    files = [path for path in listed(folder, "*.nii*") if path.name.endswith(NIFTI)]
    stems = [without_ending(path) for path in files]
    # A mask or a label map in BIDS' names, of an image that is there: raw stacks come with masks of the brain.
    files = [
        path
        for path, stem in zip(files, stems, strict=True)
        if not (_DERIVED.search(stem) and any(stem != other and stem.startswith(f"{other}_") for other in stems))
    ]
    if not files and layout_of(study).needs_folder:
        yield from ((entry.case, entry.images) for entry in entries(folder, "", study))
    grouped: dict[str, dict[int, Path]] = {}
    others: list[Path] = []
    for path in files:
        stem = without_ending(path)
        named, modalities = _CHANNEL.fullmatch(stem), [plain(name) for name in study.data.modality]
        if named and len(modalities) > 1 and plain(named["channel"]) in modalities:
            grouped.setdefault(named["case"], {})[modalities.index(plain(named["channel"]))] = path
        elif named and _NUMBER.fullmatch(named["channel"]):
            grouped.setdefault(named["case"], {})[int(named["channel"])] = path
        else:
            others.append(path)
    for case, paths in grouped.items():
        if sorted(paths) == list(range(len(study.data.modality))) or not all(map(_numbered, paths.values())):
            yield case, tuple(path for _, path in sorted(paths.items()))
        else:  # the numbers are those of images, not of channels
            yield from ((without_ending(path), (path,)) for _, path in sorted(paths.items()))
    for path in others:  # but a case's label map, or a modality that is not the study's
        if not path.name.startswith(tuple(f"{case}{mark}" for case in grouped for mark in "-_.")):
            yield without_ending(path), (path,)


def _numbered(path: Path) -> bool:
    named = _CHANNEL.fullmatch(without_ending(path))
    return named is not None and _NUMBER.fullmatch(named["channel"]) is not None


def _refuse_inputs(output: Path, inputs: Sequence[Path], source: Path) -> None:
    """Nothing that is there in a folder of images is replaced: it may be a slice, or a label map drawn by hand."""
    if output.exists() and any(image.exists() and output.samefile(image) for image in inputs):
        raise ConfigError(f"{output}: is an image to be segmented, and would be lost; write elsewhere")
    if output.is_file() and source.is_dir() and output.resolve().is_relative_to(source.resolve()):
        raise ConfigError(f"{output}: is there already, in the folder of the images; write elsewhere")
