"""Charts as inline SVG that follow the page's theme: drawn in placeholder colours that become CSS variables.

It must never refer to anything outside the page, and never interpret a name as markup or mathematics.
"""

import io
import re
from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline

from fedseg.palette import LIGHT, MARKERS, series

Box: TypeAlias = tuple[float, float, float, float]
"""x from and to, y from and to."""

STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 12,
    "hatch.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_NAMES = list(LIGHT)


def colour(name: str) -> str:
    """The placeholder of a colour of `palette`."""
    return f"#fe00{_NAMES.index(name):02x}"


def short(name: str, length: int = 18) -> str:
    """A name cut to a number of letters."""
    return name if len(name) <= length else name[: length - 1] + "…"


def canvas(width: float, height: float, left: float, right: float, top: float, bottom: float) -> tuple[Any, Any]:
    """A figure and its axes; units are CSS pixels at its natural size, margins too."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    axes.patch.set_visible(False)
    axes.tick_params(colors=colour("muted"), length=0, pad=5)
    axes.spines[:].set_color(colour("line"))
    return figure, axes


def svg(figure: Any, name: str, label: str) -> Markup:
    """Inline SVG; ids get the figure's name, because all figures share one page."""
    buffer = io.StringIO()
    with rc_context({**STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    text = re.sub(r"#fe00([0-9a-f]{2})", lambda match: f"var(--{_NAMES[int(match[1], 16)]})", text)
    width, height = (round(inches * 72) for inches in figure.get_size_inches())
    opening = f'<svg class="{name}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return Markup(re.sub(r"^<svg.*?>", lambda _: opening, text, count=1, flags=re.DOTALL))  # noqa: S704


def bars(axes: Any, boxes: Sequence[Box], fill: str, **style: Any) -> None:
    """One path for all boxes: a tenth of the bytes of one path each."""
    if boxes:
        corners = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, x1, y0, y1 in boxes]
        outline = Outline.make_compound_path_from_polys(np.array(corners))
        axes.add_patch(PathPatch(outline, facecolor=fill, **{"lw": 0, **style}))


_SHAPES = {
    "o": "M6 1a5 5 0 1 0 .01 0z",
    "s": "M1.5 1.5h9v9h-9z",
    "^": "M6 1l5 9.5H1z",
    "D": "M6 .5 11.5 6 6 11.5 .5 6z",
    "v": "M1 1.5h10L6 11z",
    "P": "M4 .5h4V4h3.5v4H8v3.5H4V8H.5V4H4z",
    "X": "M3 1l3 3 3-3 2 2-3 3 3 3-2 2-3-3-3 3-2-2 3-3-3-3z",
}


def mark(index: int) -> Markup:
    """The marker of a structure's curve, for tables."""
    fill, shape = series(index), _SHAPES[MARKERS[index % len(MARKERS)]]
    path = f'<path fill="var(--{fill})" d="{shape}"/>'
    return Markup(f'<svg class="mark" viewBox="0 0 12 12" aria-hidden="true">{path}</svg>')  # noqa: S704
