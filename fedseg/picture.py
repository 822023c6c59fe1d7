"""Slices with structures drawn on them, for the report and beside predictions. Loads matplotlib.

Must never: be imported by a process that trains or coordinates, or show a patient's name.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from fedseg.data.cases import Case
from fedseg.data.view import View, busiest, pixels
from fedseg.palette import tint
from secagg.writing import replacing

PANELS = 6
LEGIBLE = {"color": "white", "fontweight": "bold", "path_effects": [withStroke(linewidth=1.8, foreground="black")]}
"""Letters on any image."""
_ROOM = 1.6
"""Least distance in pixels of a structure's innermost point to its edge, for its number to be written there."""


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
    overlay = _beside(output)
    # a structure's name may hold "$"
    with rc_context({"text.parse_math": False}), replacing(overlay) as beside:
        picture(case, labels, names).savefig(beside)
    return overlay


def write_titled(case: Case, words: str, output: Path) -> Path:
    """The case's first frame under a few words, as a PNG beside `output`, readable by its owner only.

    Returns:
        Where the picture is.
    """
    figure = Figure(figsize=(4, 4.3), facecolor="black", layout="constrained")
    panel = figure.subplots()
    panel.imshow(pixels(case.image[case.image.shape[0] // 2], case, 0), cmap="gray")
    panel.set_title(words, color="white", fontsize=11)
    panel.axis("off")
    with rc_context({"text.parse_math": False}), replacing(_beside(output)) as beside:
        figure.savefig(beside)
    return _beside(output)


def _beside(output: Path) -> Path:
    """The name of a picture that goes with a file."""
    return output.with_name(output.name.removesuffix(".gz").removesuffix(".nii").removesuffix(".dcm") + ".png")


def picture(case: Case, labels: NDArray[np.uint8], names: Sequence[str]) -> Figure:
    """Slices with the most structure, each with its plane, number and sides; the legend is below them."""
    ranked = busiest(labels, case)
    some = sorted(ranked[: max(len(ranked) // 2, PANELS)])
    chosen = [some[i] for i in np.linspace(0, len(some) - 1, min(PANELS, len(some))).round().astype(int)]
    figure = Figure(figsize=(3 * len(chosen), 3.9), facecolor="black", layout="constrained")
    channel = case.image[case.image.shape[0] // 2]
    for panel, index in zip(figure.subplots(1, len(chosen), squeeze=False)[0], chosen, strict=True):
        view = View.of_slice(case, index)
        panel.imshow(pixels(channel, case, index), cmap="gray", vmin=0, vmax=1.2)
        draw_labels(panel, pixels(labels, case, index), len(names))
        draw_edges(panel, view)
        panel.set_title(view.words, color="white", fontsize=10)
        panel.axis("off")
    handles = [
        Line2D([], [], color=tint(value), lw=2.5, label=f"{value} {name}") for value, name in enumerate(names, start=1)
    ]
    place = {"loc": "outside lower center", "ncols": min(8, 2 * len(chosen))}
    figure.legend(handles=handles, labelcolor="white", frameon=False, fontsize=9, **place)
    return figure


def draw_labels(axes: Any, labels: NDArray[np.uint8], structures: int, fill: float = 0.0) -> None:
    """Outlines each structure and writes its number where there is room, because colour must not be the only sign.

    Args:
        axes: show the image that the labels belong to.
        labels: (rows, columns) label values.
        structures: how many the study has; one needs no number.
        fill: opacity of its area.
    """
    y, x = (np.arange(-1, length + 1) for length in labels.shape)
    for label in np.unique(labels[labels > 0]).tolist():
        field = np.pad(labels == label, 1).astype(float)
        if fill:
            axes.contourf(x, y, field, levels=[0.5, 2], colors=[tint(label)], alpha=fill)
        axes.contour(x, y, field, levels=[0.5], colors=[tint(label)], linewidths=1.2)
        depth = distance_transform_edt(field)
        row, column = np.unravel_index(int(depth.argmax()), depth.shape)
        if structures > 1 and depth[row, column] >= _ROOM:
            axes.text(x[column], y[row], str(label), ha="center", va="center", fontsize=8, **LEGIBLE)


def draw_edges(axes: Any, view: View) -> None:
    """The patient's sides at the edges of a picture."""
    sides, ends = ((0.02, 0.5, "left", "center"), (0.98, 0.5, "right", "center")), ((0.5, 0.98, "center", "top"),)
    if not view.edges:
        return
    for letter, (x, y, ha, va) in zip(view.edges, (*sides, *ends, (0.5, 0.02, "center", "bottom")), strict=True):
        axes.text(x, y, letter, ha=ha, va=va, fontsize=9, transform=axes.transAxes, **LEGIBLE)
