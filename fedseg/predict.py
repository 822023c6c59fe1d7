"""Prediction: of a case in memory, and of any NIfTI file, back on the file's own grid.

The label file has the input's shape and affine. No gradient is kept, nothing is downloaded, and an existing file is
replaced only by a whole one.
"""

from pathlib import Path

import nibabel
import numpy as np
import torch
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from numpy.typing import NDArray

from fedseg.data.cases import Case
from fedseg.data.layouts.files import read_image
from fedseg.data.scans import Scan, working_case
from fedseg.errors import ConfigError
from fedseg.study import Study
from fedseg.tasks.segmentation import Segmentation
from fedseg.tasks.table import task_of
from secagg.writing import replacing

NIFTI = (".nii", ".nii.gz")


def predict(model: torch.nn.Module, case: Case, study: Study) -> NDArray[np.uint8]:
    """What the model says of a case, as the study's task says it."""
    return task_of(study).predict(model, case)


def predict_file(model: torch.nn.Module, image: Path, output: Path, study: Study) -> tuple[Case, NDArray[np.uint8]]:
    """Segment a NIfTI file: a label map in NIfTI at `output`.

    Args:
        model: the study's network.
        image: any orientation and spacing, with the study's channels.
        output: ends in .nii or .nii.gz.
        study: what the model was trained with.

    Returns:
        The image as a case on the working grid, and its label values there: what `fedseg.picture` shows.

    Raises:
        CaseError: the image cannot be used; names the file and the remedy.
        ConfigError: `output` is no NIfTI name, or its folder is missing.
    """
    for path in (image, output):
        if not path.name.endswith(NIFTI):
            raise ConfigError(f"{path}: images and label maps are NIfTI; give a name that ends in .nii.gz")
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent}: there is no such folder; make it or write elsewhere")
    volume = read_image([image], study)
    case = working_case(Scan("", str(image), volume.values, volume.affine, oriented=volume.oriented), "", study)
    scores = Segmentation(study).probabilities(model, case)
    labels = _label_map(_on_grid(scores, case, volume.shape, volume.affine), image)
    with replacing(output) as beside:
        labels.to_filename(beside)
    return case, np.asarray(scores.argmax(axis=0), dtype=np.uint8)


def _on_grid(
    scores: NDArray[np.float32], case: Case, shape: tuple[int, ...], affine: NDArray[np.float64]
) -> NDArray[np.uint8]:
    """Label values on the file's grid; outside the working grid's field of view there is only background."""
    back = SpatialResample(mode="bilinear", padding_mode="zeros", dtype=torch.float32)
    source = MetaTensor(torch.from_numpy(scores), affine=torch.from_numpy(case.affine))
    result = back(source, dst_affine=torch.from_numpy(affine), spatial_size=shape)
    return np.asarray(result.numpy().argmax(axis=0), dtype=np.uint8)


def _label_map(labels: NDArray[np.uint8], image: Path) -> nibabel.Nifti1Image:
    """A fresh header with the input's geometry: its free text and extensions may name the patient."""
    source = nibabel.load(image)
    sform, qform = int(source.header["sform_code"]), int(source.header["qform_code"])
    result = nibabel.Nifti1Image(labels, source.affine)
    result.set_sform(source.affine, sform or qform or 1)
    result.set_qform(source.affine, qform)
    result.header.set_xyzt_units("mm")
    return result
