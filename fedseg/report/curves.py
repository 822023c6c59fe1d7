"""Charts over the rounds of a run: Dice, and epsilon against its budget."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup
from matplotlib import rc_context

from fedseg.events import EpsilonSpent
from fedseg.palette import DASHES, MARKERS, SERIES, series
from fedseg.report.canvas import STYLE, canvas, colour, short, svg
from fedseg.report.folder import Run, of_kind

WIDTH, HEIGHT = 480, 330
_MARGINS = {"left": 30, "right": 165, "top": 14, "bottom": 34}
_MARKS = 12
"""A curve has about so many markers, however many rounds there are."""


@dataclass(frozen=True)
class _Curve:
    """One line of a chart, named at its right end."""

    name: str
    points: Sequence[tuple[float, float]]
    colour: str
    weight: float = 1.8
    marker: str = ""
    dashes: Any = "solid"


def convergence(run: Run) -> Markup:
    """The mean score of each structure or class after each round; empty when nothing was validated."""
    history = [entry for entry in run.metrics.history if any(value is not None for value in entry.dice.values())]
    if not history:
        return Markup()
    curves = [
        _Curve(
            name,
            [(entry.round, value) for entry in history if (value := entry.dice.get(name)) is not None],
            colour(series(i)),
            marker=MARKERS[i % len(MARKERS)],
            dashes=DASHES[i // len(SERIES) % len(DASHES)],
        )
        for i, name in enumerate(run.study.structures)
    ]
    if len(curves) > 1:
        means = [(entry.round, entry.mean) for entry in history if entry.mean is not None]
        curves.append(_Curve("mean", means, colour("ink"), 3.2))
    best = max((y for curve in curves for _, y in curve.points), default=0.0)
    rounds = [entry.round for entry in history]
    with rc_context(STYLE):
        figure, axes = _over_rounds(min(rounds), max(*rounds, min(rounds) + 1), min(1.0, 0.1 * (int(10 * best) + 2)))
        _draw(axes, curves)
        return svg(figure, "convergence", f"{run.metrics.dice.measure} of every structure or class after each round")


def budget(run: Run) -> Markup:
    """Epsilon spent per site after each round against the budget; empty without epsilon events."""
    curves = _spent(run)
    if not curves:
        return Markup()
    limit = run.study.budget
    highest = 1.12 * max([limit or 0.0] + [y for curve in curves for _, y in curve.points])
    last = max(run.study.rounds, *(int(curve.points[-1][0]) for curve in curves))
    with rc_context(STYLE):
        figure, axes = _over_rounds(0, last, highest)
        if limit is not None:
            axes.axhspan(limit, highest, color=colour("alarm"), alpha=0.12, lw=0)
            curves = [*curves, _Curve("budget", [(0, limit), (last, limit)], colour("alarm"), 1.4, dashes=DASHES[1])]
        _draw(axes, curves)
        return svg(figure, "budget", f"Epsilon spent per {run.study.unit} after each round against the budget")


def _spent(run: Run) -> list[_Curve]:
    """What sites spent; those that spent the same share a curve."""
    spent: dict[str, dict[int, float]] = {}
    for event in of_kind(run, EpsilonSpent):
        if event.spent is not None:
            spent.setdefault(event.site, {0: 0.0})[event.round] = event.spent
    alike: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for site, points in spent.items():
        alike.setdefault(tuple(sorted(points.items())), []).append(site)

    def who(sites: list[str]) -> str:
        """Whose a curve is."""
        if len(sites) == 1:
            return short(sites[0])
        return f"each of {len(sites)} sites" if len(sites) == len(spent) else f"{len(sites)} sites"

    return [_Curve(who(sites), points, colour("accent"), 2.2, "o") for points, sites in alike.items()]


def _over_rounds(first: int, last: int, highest: float) -> tuple[Any, Any]:
    figure, axes = canvas(WIDTH, HEIGHT, **_MARGINS)
    axes.set(ylim=(0, highest), xlim=(first, last))
    axes.xaxis.get_major_locator().set_params(integer=True)
    axes.grid(axis="y", color=colour("line"), lw=0.7)
    axes.set_xlabel("round", color=colour("muted"), labelpad=2)
    return figure, axes


def _draw(axes: Any, curves: Sequence[_Curve]) -> None:
    """Draws curves and names them at their right end, in ink: no legend, and no coloured letters."""
    low, high = axes.get_ylim()
    gap = 15 * (high - low) / (HEIGHT - _MARGINS["top"] - _MARGINS["bottom"])
    first, edge = axes.get_xlim()
    span = edge - first
    shown = [curve for curve in curves if curve.points]
    places = _spread([curve.points[-1][1] for curve in shown], gap, low + gap / 2, high)
    for curve, place in zip(shown, places, strict=True):
        style = {"color": curve.colour, "ls": curve.dashes, "solid_capstyle": "round", "clip_on": False}
        every = max(1, len(curve.points) // _MARKS)
        xs, ys = zip(*curve.points, strict=True)
        axes.plot(xs, ys, lw=curve.weight, marker=curve.marker, ms=5, markevery=every, mew=0, **style)
        axes.plot([xs[-1], edge, edge + 0.03 * span], [ys[-1], ys[-1], place], **{**style, "lw": 0.7, "alpha": 0.7})
        axes.plot([edge + 0.06 * span], [place], marker=curve.marker or "_", ms=7, color=curve.colour, clip_on=False)
        text = f"{short(curve.name)} {ys[-1]:.2f}"
        axes.text(edge + 0.1 * span, place, text, color=colour("ink"), va="center", clip_on=False)


def _spread(wanted: Sequence[float], gap: float, low: float, high: float) -> list[float]:
    """Positions nearest to the wanted ones, in their order, at least `gap` apart."""
    order = sorted(range(len(wanted)), key=lambda i: wanted[i])
    placed = [0.0] * len(wanted)
    floor = low
    for i in order:
        placed[i] = floor = max(wanted[i], floor)
        floor += gap
    ceiling = high
    for i in reversed(order):
        placed[i] = ceiling = min(placed[i], ceiling)
        ceiling -= gap
    return placed
