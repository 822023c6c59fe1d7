"""A picture of a prediction: slices with the structures outlined. The only room here that loads matplotlib.

Must never: be imported by a process that trains or coordinates.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib import colormaps, rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from fedseg.data.cases import Case
from secagg.writing import replacing

PANELS = 6


def write_overlay(case: Case, labels: NDArray[np.uint8], output: Path, names: Sequence[str]) -> Path:
    """The picture as a PNG beside the label map `output`, readable by its owner only.

    Args:
        case: an image on the working grid.
        labels: (*spatial) label values on it.
        output: name of the label map, which ends in .nii or .nii.gz.
        names: of label values 1, 2, ...

    Returns:
        Where the picture is.
    """
    overlay = output.with_name(output.name.removesuffix(".gz").removesuffix(".nii") + ".png")
    # a structure's name may hold "$"
    with rc_context({"text.parse_math": False}), replacing(overlay) as beside:
        picture(case, labels, names).savefig(beside)
    return overlay


def picture(case: Case, labels: NDArray[np.uint8], names: Sequence[str]) -> Figure:
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
        for value in range(1, len(names) + 1):
            mask = np.rot90(stack[index] == value)
            if mask.any():
                panel.contour(mask, levels=[0.5], colors=[colours[(value - 1) % 10]], linewidths=1.2)
        panel.axis("off")
    handles = [Line2D([], [], color=colours[value % 10], label=name) for value, name in enumerate(names)]
    figure.legend(handles=handles, loc="outside lower center", ncols=8, labelcolor="white", frameon=False, fontsize=9)
    return figure
