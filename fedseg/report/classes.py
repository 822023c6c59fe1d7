"""Charts of a classifier: its ROC curves, and how far its confidence can be relied on."""

from typing import Any

from markupsafe import Markup
from matplotlib import rc_context

from fedseg.palette import DASHES, MARKERS, SERIES, series
from fedseg.report.canvas import STYLE, canvas, colour, short, svg
from fedseg.report.folder import Run

SIDE = 330
_MARGINS = {"left": 40, "right": 150, "top": 14, "bottom": 40}


def roc(run: Run) -> Markup:
    """True against false positive rate of each class against the rest; empty without classes."""
    found = run.metrics.classes
    if found is None or not any(found.roc.values()):
        return Markup()
    with rc_context(STYLE):
        figure, axes = canvas(SIDE + 110, SIDE, **_MARGINS)
        axes.plot([0, 1], [0, 1], color=colour("line"), lw=1)
        for place, (name, points) in enumerate(found.roc.items()):
            if not points:
                continue
            xs, ys = zip(*points, strict=True)
            style = {"color": colour(series(place)), "ls": DASHES[place // len(SERIES) % len(DASHES)], "lw": 1.8}
            axes.plot(
                xs, ys, marker=MARKERS[place % len(MARKERS)], markevery=max(1, len(xs) // 8), ms=5, mew=0, **style
            )
            area = found.auc.get(name)
            text = f"{short(name)} {area.mean:.2f}" if area else short(name)
            axes.plot([1.06], [0.97 - 0.09 * place], marker=MARKERS[place % len(MARKERS)], clip_on=False, **style)
            axes.text(1.1, 0.97 - 0.09 * place, text, color=colour("ink"), va="center", clip_on=False)
        _square(axes, "false positive rate", "true positive rate")
        return svg(figure, "roc", "ROC curves of each class against the rest, named with their areas")


def reliability(run: Run) -> Markup:
    """How often what was said with a confidence was right; empty without classes."""
    found = run.metrics.classes
    if found is None or not found.reliability:
        return Markup()
    with rc_context(STYLE):
        figure, axes = canvas(SIDE, SIDE, left=40, right=16, top=14, bottom=40)
        axes.plot([0, 1], [0, 1], color=colour("line"), lw=1)
        for one in found.reliability:
            axes.bar((one.low + one.high) / 2, one.accuracy, 0.92 * (one.high - one.low), color=colour("accent"), lw=0)
            axes.text((one.low + one.high) / 2, one.accuracy + 0.02, str(one.pictures), ha="center", fontsize=8)
        _square(axes, "confidence", "share that was right")
        return svg(figure, "reliability", "Accuracy in bins of confidence, each with its number of pictures")


def _square(axes: Any, across: str, up: str) -> None:
    axes.set(xlim=(0, 1), ylim=(0, 1))
    axes.set_xlabel(across, color=colour("muted"), labelpad=2)
    axes.set_ylabel(up, color=colour("muted"), labelpad=2)
