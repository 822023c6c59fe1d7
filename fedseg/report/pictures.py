"""Pictures of cases in the report, as PNG data URIs: the image, the truth, the prediction, and where they differ."""

import base64
import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray
from scipy.ndimage import distance_transform_edt

from fedseg.report.palette import WRONG, tint
from fedseg.report.records import Example

PIXELS = 300
_ROOM = 1.6
"""Least distance in pixels of a structure's innermost point to its edge, for its number to be written there."""


def pictures(example: Example) -> list[tuple[str, str]]:
    """(caption, PNG data URI) of the image, the truth, the prediction, and where they differ."""
    box = _interesting(example)
    image, truth, prediction = (array[box] for array in (example.image, example.truth, example.prediction))
    return [
        ("Image", _picture(image)),
        ("Truth", _picture(image, truth)),
        ("Prediction", _picture(image, prediction)),
        ("Where they differ", _picture(image, wrong=truth != prediction)),
    ]


def _interesting(example: Example) -> tuple[slice, slice]:
    """A square around everything that is not background, as far as the picture reaches."""
    low, high = np.nanmin(example.image), np.nanmax(example.image)
    background = np.abs(example.image - example.image[0, 0]) <= 0.06 * (high - low)
    seen = ~background | (example.truth > 0) | (example.prediction > 0)
    if not seen.any():
        return slice(None), slice(None)
    ends = [(int(where[0]), int(where[-1]) + 1) for where in (np.flatnonzero(seen.any(axis=a)) for a in (1, 0))]
    side = 1.08 * max(b - a for a, b in ends)
    first, second = (
        slice(max(0, round((a + b - side) / 2)), min(length, round((a + b + side) / 2)))
        for (a, b), length in zip(ends, seen.shape, strict=True)
    )
    return first, second


def _picture(image: NDArray[Any], labels: NDArray[Any] | None = None, wrong: NDArray[Any] | None = None) -> str:
    figure = Figure(figsize=(PIXELS / 100, PIXELS / 100), dpi=100, facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    low, high = np.nanpercentile(image, [0.5, 99.7])
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="bicubic")
    if labels is not None:
        for label in np.unique(labels[labels > 0]):
            _outline(axes, labels == label, int(label))
    if wrong is not None:
        axes.imshow(wrong[..., None] * to_rgba(WRONG, 0.85), interpolation="nearest")
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    buffer = io.BytesIO()
    with rc_context({"text.parse_math": False}):
        figure.savefig(buffer, format="png", pil_kwargs={"optimize": True})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()


def _outline(axes: Any, where: NDArray[np.bool_], label: int) -> None:
    """A structure's area, its edge, and its number where there is room for it: colour is not the only sign."""
    y, x = (np.arange(-1, length + 1) for length in where.shape)
    field = np.pad(where, 1).astype(float)
    axes.contourf(x, y, field, levels=[0.5, 2], colors=[tint(label)], alpha=0.42)
    axes.contour(x, y, field, levels=[0.5], colors=[tint(label)], linewidths=1.1)
    depth = distance_transform_edt(field)
    row, column = np.unravel_index(int(depth.argmax()), depth.shape)
    if depth[row, column] >= _ROOM:
        halo = [withStroke(linewidth=1.8, foreground="black")]
        place = {"ha": "center", "va": "center", "fontsize": 8, "fontweight": "bold"}
        axes.text(x[column], y[row], str(label), color="white", path_effects=halo, **place)
