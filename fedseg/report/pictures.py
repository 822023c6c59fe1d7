"""Pictures of cases in the report, as PNG data URIs: the image, the truth, the prediction, and where they differ."""

import base64
import io
from typing import Any

import numpy as np
from matplotlib import rc_context
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedseg.palette import WRONG
from fedseg.picture import draw_edges, draw_labels
from fedseg.report.folder import Example, Explained

PIXELS = 300


def pictures(example: Example, structures: int) -> list[tuple[str, str]]:
    """(caption, PNG data URI) of the image, the truth, the prediction, and where they differ."""
    box = _interesting(example)
    image, truth, prediction = example.image[box], example.truth[box], example.prediction[box]

    def drawn(labels: NDArray[np.uint8] | None = None, wrong: NDArray[np.bool_] | None = None) -> str:
        """The image with what is given drawn over it, as a drawing of the page."""
        figure, axes = _shown(image)
        if labels is not None:
            draw_labels(axes, labels, structures, fill=0.42)
        if wrong is not None:
            axes.imshow(wrong[..., None] * to_rgba(WRONG, 0.85), interpolation="nearest")
        if example.view is not None:
            draw_edges(axes, example.view)
        axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
        return _png(figure)

    return [
        ("Image", drawn()),
        ("Truth", drawn(truth)),
        ("Prediction", drawn(prediction)),
        ("Where they differ", drawn(wrong=truth != prediction)),
    ]


def explained(one: Explained) -> list[tuple[str, str]]:
    """(caption, PNG data URI) of a picture, and of what of it decided its class, the brighter the more."""
    figure, axes = _shown(one.image)
    axes.imshow(one.decisive[..., None] * to_rgba(WRONG, 0.85), interpolation="bilinear")
    return [("Picture", _png(_shown(one.image)[0])), ("What decided", _png(figure))]


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


def _shown(image: NDArray[np.float32]) -> tuple[Figure, Any]:
    figure = Figure(figsize=(PIXELS / 100, PIXELS / 100), dpi=100, facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    low, high = np.nanpercentile(image, [0.5, 99.7])
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="bicubic")
    return figure, axes


def _png(figure: Figure) -> str:
    buffer = io.BytesIO()
    with rc_context({"text.parse_math": False}):
        figure.savefig(buffer, format="png", pil_kwargs={"optimize": True})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
