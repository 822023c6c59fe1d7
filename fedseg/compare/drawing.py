"""Privacy against utility, drawn: one line for each mechanism, levels for what is trained without privacy."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from markupsafe import Markup
from matplotlib import rc_context

from fedseg.compare.outcome import FEDERATED, START, Comparison, RowOutcome
from fedseg.palette import DASHES, MARKERS, series
from fedseg.records import Interval
from fedseg.report.canvas import STYLE, canvas, colour, svg

WIDTH, HEIGHT = 470, 300
_MARGINS = {"left": 34, "right": 128, "top": 12, "bottom": 36}
LEVELS = (START, FEDERATED, "pooled", "twin-local", "twin-central")
"""Lines of the table that have no epsilon and are drawn as levels, in their order."""

Part: TypeAlias = Callable[[RowOutcome], Interval | None]


@dataclass(frozen=True)
class _Label:
    """What is written at the right end, where it wants to be."""

    text: str
    height: float
    colour: str
    marker: str
    dashes: Any


def drawn(comparison: Comparison, part: Part, name: str, title: str) -> Markup:
    """One chart; empty where no private row has figures.

    Args:
        comparison: the rows.
        part: which of a row's figures, such as those of one structure.
        name: of the drawing in its page: letters and digits.
        title: for people who cannot see it.
    """
    private: dict[str, list[tuple[float, Interval]]] = {}
    for row in comparison.rows:
        found = part(row)
        if row.epsilon is not None and found is not None:
            private.setdefault(row.row, []).append((row.epsilon, found))
    levels = [(row, found) for row in comparison.rows if row.name in LEVELS and (found := part(row)) is not None]
    if not private:
        return Markup()
    epsilons = sorted({epsilon for points in private.values() for epsilon, _ in points})
    top = max(
        [found.high or found.mean for points in private.values() for _, found in points]
        + [found.mean for _, found in levels]
    )
    with rc_context(STYLE):
        figure, axes = canvas(WIDTH, HEIGHT, **_MARGINS)
        low, high = math.log2(epsilons[0]) - 0.4, math.log2(epsilons[-1]) + 0.4
        ceiling = min(1.0, 0.1 * (int(10 * top) + 1)) or 0.1
        axes.set(xlim=(low, high), ylim=(0, ceiling))
        axes.set_xticks([math.log2(epsilon) for epsilon in epsilons], [f"{epsilon:g}" for epsilon in epsilons])
        axes.grid(axis="y", color=colour("line"), lw=0.7)
        axes.set_xlabel("epsilon per patient", color=colour("muted"), labelpad=2)
        labels = []
        for place, (row, found) in enumerate(levels):
            style = DASHES[(place + 1) % len(DASHES)]
            axes.plot([low, high], [found.mean] * 2, color=colour("muted"), lw=1.1, ls=style)
            labels.append(_Label(row.row, found.mean, colour("muted"), "", style))
        for place, (mechanism, points) in enumerate(private.items()):
            _line(axes, points, place, (place - (len(private) - 1) / 2) * 0.09)
            labels.append(
                _Label(mechanism, points[-1][1].mean, colour(series(place)), MARKERS[place % len(MARKERS)], "solid")
            )
        _name(axes, labels, high, ceiling)
        return svg(figure, name, title)


def _line(axes: Any, points: Sequence[tuple[float, Interval]], place: int, aside: float) -> None:
    """Means with their intervals; beside each other, so that none hides another."""
    shade = colour(series(place))
    xs, ys = [math.log2(epsilon) + aside for epsilon, _ in points], [found.mean for _, found in points]
    for x, (_, found) in zip(xs, points, strict=True):
        if found.n > 1 and found.low is not None and found.high is not None:
            axes.plot([x, x], [found.low, found.high], color=shade, lw=1.2, alpha=0.7)
    axes.plot(xs, ys, color=shade, lw=1.8, marker=MARKERS[place % len(MARKERS)], ms=6, mew=0)


def _name(axes: Any, labels: Sequence[_Label], edge: float, ceiling: float) -> None:
    """Names at the right end in ink, at least a line apart."""
    gap = 14 * ceiling / (HEIGHT - _MARGINS["top"] - _MARGINS["bottom"])
    span = axes.get_xlim()[1] - axes.get_xlim()[0]
    ordered = sorted(labels, key=lambda label: label.height)
    places: list[float] = []
    for label in ordered:
        places.append(max(label.height, places[-1] + gap if places else gap / 2))
    limit: float = ceiling
    for k in range(len(places) - 1, -1, -1):
        places[k] = limit = min(places[k], limit)
        limit -= gap
    for label, place in zip(ordered, places, strict=True):
        xs = [edge, edge + 0.03 * span]
        axes.plot(xs, [label.height, place], color=label.colour, lw=0.7, clip_on=False)
        if label.marker:
            axes.plot(
                [edge + 0.05 * span], [place], marker=label.marker, ms=6, color=label.colour, mew=0, clip_on=False
            )
        else:
            axes.plot(
                [edge + 0.035 * span, edge + 0.065 * span],
                [place] * 2,
                color=label.colour,
                lw=1.1,
                ls=label.dashes,
                clip_on=False,
            )
        text = f"{label.text} {label.height:.2f}"
        axes.text(edge + 0.09 * span, place, text, color=colour("ink"), va="center", clip_on=False)
