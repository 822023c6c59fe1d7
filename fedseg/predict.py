"""Prediction: of a case in memory, and of any NIfTI file, back on the file's own grid.

The label file has the input's shape and affine. No gradient is kept, nothing is downloaded, and an existing file is
replaced only by a whole one.
"""

import os
from collections.abc import Callable
from pathlib import Path

import nibabel
import numpy as np
import torch
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from monai.data import MetaTensor
from monai.transforms import SpatialResample
from numpy.typing import NDArray

from fedseg.data.cases import Case
from fedseg.data.layouts.nifti import read_image
from fedseg.data.scans import Scan, working_case
from fedseg.errors import ConfigError
from fedseg.files import private
from fedseg.study import Study
from fedseg.tasks.segmentation import Segmentation
from fedseg.tasks.table import task_of

PANELS = 6
NIFTI = (".nii", ".nii.gz")


def predict(model: torch.nn.Module, case: Case, study: Study) -> NDArray[np.uint8]:
    """What the model says of a case, as the study's task says it."""
    return task_of(study).predict(model, case)


def predict_file(model: torch.nn.Module, image: Path, output: Path, study: Study) -> Path:
    """Segment a NIfTI file: label NIfTI at `output`, overlay PNG beside it.

    Args:
        model: the study's network.
        image: any orientation and spacing, with the study's channels.
        output: ends in .nii or .nii.gz.
        study: what the model was trained with.

    Returns:
        Path of the overlay.

    Raises:
        CaseError: the image cannot be used; names the file and the remedy.
        ConfigError: `output` is no NIfTI name, or its folder is missing.
    """
    for path in (image, output):
        if not path.name.endswith(NIFTI):
            raise ConfigError(f"{path}: images and label maps are NIfTI; give a name that ends in .nii.gz")
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent}: there is no such folder; make it or write elsewhere")
    values, affine = read_image(image, study)
    case = working_case(Scan("", str(image), values, affine), "", study)
    scores = Segmentation(study).probabilities(model, case)
    ending = ".nii.gz" if output.name.endswith(".gz") else ".nii"
    overlay = output.with_name(output.name.removesuffix(ending) + ".png")
    _write(output, ending, _label_map(_on_grid(scores, case, values.shape[1:], affine), image).to_filename)
    with rc_context({"text.parse_math": False}):  # a structure's name may hold "$"
        _write(overlay, ".png", _picture(case, scores.argmax(axis=0), study).savefig)
    return overlay


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


def _picture(case: Case, labels: NDArray[np.int64], study: Study) -> Figure:
    """Slices with the most structure, outlined in one colour per structure."""
    axis = case.slice_axis
    image = np.moveaxis(case.image[case.image.shape[0] // 2], axis, 0)
    stack = np.moveaxis(labels, axis, 0)
    busiest = np.argsort(-np.count_nonzero(stack, axis=(1, 2)), kind="stable")[: max(len(stack) // 2, PANELS)]
    chosen = np.sort(busiest)[np.linspace(0, len(busiest) - 1, min(PANELS, len(busiest))).round().astype(int)]
    figure = Figure(figsize=(3 * len(chosen), 3.4), facecolor="black", layout="constrained")
    colours = colormaps["tab10"](range(10))
    for panel, index in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        panel.imshow(np.rot90(image[index]), cmap="gray", vmin=0, vmax=1.2)
        for value in range(1, len(study.structures) + 1):
            mask = np.rot90(stack[index] == value)
            if mask.any():
                panel.contour(mask, levels=[0.5], colors=[colours[(value - 1) % 10]], linewidths=1.2)
        panel.axis("off")
    handles = [Line2D([], [], color=colours[value % 10], label=name) for value, name in enumerate(study.structures)]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, labelcolor="white", frameon=False, fontsize=9)
    return figure


def _write(target: Path, ending: str, write: Callable[[Path], object]) -> None:
    """Write beside `target`, readable by its owner only, then rename."""
    beside = target.with_name(f".{os.getpid()}.{target.name.removesuffix(ending)}{ending}")
    try:
        with open(beside, "wb", opener=private):  # writers keep the mode of a file that is there
            pass
        write(beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
