"""The report's figures: theme-aware inline SVG for charts, PNG data URIs for pictures.

Charts are drawn in placeholder colours that become CSS variables, so one drawing serves light, dark and print. It must
never refer to anything outside the page, and never interpret a name as markup or mathematics.
"""

import base64
import io
import re
from collections.abc import Sequence
from typing import Any

import numpy as np
from markupsafe import Markup, escape
from matplotlib import rc_context
from matplotlib.colors import to_rgba
from matplotlib.figure import Figure
from matplotlib.patches import PathPatch
from matplotlib.path import Path as Outline
from numpy.typing import NDArray

from fedseg.events import Dropped, EpsilonSpent, RoundEnded, RoundStarted, StepAccepted, StepClosed, Trained
from fedseg.report.folder import Run, dropouts, of_kind, seen
from fedseg.report.records import Example

STEPS = {
    "AdvertiseKeys": "fresh public keys",
    "ShareKeys": "secrets split and sealed",
    "ShareReport": "all shares open?",
    "MaskedInputCollection": "the update, masked",
    "ConsistencyCheck": "all saw the same set?",
    "Unmasking": "only the sum opens",
}
TINTS = ["#56b4e9", "#f2b134", "#efe36a", "#3f74ff", "#2bc48a", "#ef5a32", "#d08be0", "#c9c9c9"]
WRONG = "#ff3b6b"
_NAMES = ["ink", "muted", "line", "paper", "accent", "alarm", "train"]
_NAMES += [f"s{i}" for i in range(len(TINTS))] + [f"step{i}" for i in range(len(STEPS))]
_STYLE = {
    "svg.fonttype": "none",
    "text.parse_math": False,
    "font.size": 12,
    "hatch.linewidth": 1.0,
    "axes.spines.top": False,
    "axes.spines.right": False,
}
_WHOLE_ROUNDS_ABOVE = 60  # rounds; with more, an overview of single steps is a grey smear of a megabyte


def _colour(name: str) -> str:
    return f"#fe00{_NAMES.index(name):02x}"


def _structure(index: int) -> str:
    return _colour(f"s{index % len(TINTS)}")


def _short(name: str, length: int = 18) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _canvas(width: float, height: float, left: float, right: float, top: float, bottom: float) -> tuple[Any, Any]:
    """A figure whose units are CSS pixels at its natural size, with margins in pixels."""
    figure = Figure(figsize=(width / 72, height / 72), dpi=72)
    axes = figure.add_axes(
        (left / width, bottom / height, (width - left - right) / width, (height - top - bottom) / height)
    )
    axes.patch.set_visible(False)
    axes.tick_params(colors=_colour("muted"), length=0, pad=5)
    axes.spines[:].set_color(_colour("line"))
    return figure, axes


def _svg(figure: Any, name: str, label: str) -> Markup:
    """Inline SVG; ids get the figure's name, because all figures share one page."""
    buffer = io.StringIO()
    with rc_context({**_STYLE, "svg.hashsalt": name}):
        figure.savefig(buffer, format="svg", transparent=True)
    text = buffer.getvalue()
    text = re.sub(r"<metadata>.*?</metadata>", "", text[text.index("<svg") :], flags=re.DOTALL)
    text = re.sub(r'\bid="', f'id="{name}-', text)
    text = re.sub(r'(href="|url\()#', rf"\1#{name}-", text)
    text = re.sub(r"#fe00([0-9a-f]{2})", lambda match: f"var(--{_NAMES[int(match[1], 16)]})", text)
    width, height = (round(inches * 72) for inches in figure.get_size_inches())
    opening = f'<svg class="{name}" viewBox="0 0 {width} {height}" role="img" aria-label="{escape(label)}">'
    return Markup(re.sub(r"^<svg.*?>", lambda _: opening, text, count=1, flags=re.DOTALL))  # noqa: S704


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


def _label_ends(axes: Any, ends: Sequence[tuple[float, float, str, str]], pixels: float) -> None:
    """Names lines at their right end instead of in a legend; ends are (x, y, text, colour)."""
    low, high = axes.get_ylim()
    gap = 15 * (high - low) / pixels
    edge = axes.get_xlim()[1]
    span = edge - axes.get_xlim()[0]
    for (x, y, text, colour), place in zip(
        ends, _spread([end[1] for end in ends], gap, low + gap / 2, high), strict=True
    ):
        axes.plot([x, edge, edge + 0.03 * span], [y, y, place], color=colour, lw=0.7, alpha=0.6, clip_on=False)
        axes.text(edge + 0.04 * span, place, text, color=colour, va="center", clip_on=False)


def convergence(run: Run) -> Markup:
    """Mean Dice per structure after each round; empty when nothing was validated."""
    history = [entry for entry in run.metrics.history if any(value is not None for value in entry.dice.values())]
    if not history:
        return Markup()
    width, height, top, bottom = 480, 330, 14, 34
    rounds = [entry.round for entry in history]
    lines = [
        (_short(name), [entry.dice.get(name) for entry in history], _structure(i), 1.6)
        for i, name in enumerate(run.study.structures)
    ]
    if len(lines) > 1:
        lines.append(("mean", [entry.mean for entry in history], _colour("ink"), 2.8))
    with rc_context(_STYLE):
        figure, axes = _canvas(width, height, 30, 165, top, bottom)
        best = max(value for line in lines for value in line[1] if value is not None)
        axes.set(ylim=(0, min(1.0, 0.1 * (int(10 * best) + 2))), xlim=(min(rounds), max(*rounds, min(rounds) + 1)))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", color=_colour("line"), lw=0.7)
        axes.set_xlabel("round", color=_colour("muted"), labelpad=2)
        ends = []
        for name, values, colour, weight in lines:
            known = [(x, y) for x, y in zip(rounds, values, strict=True) if y is not None]
            if known:
                axes.plot(*zip(*known, strict=True), color=colour, lw=weight, solid_capstyle="round")
                ends.append((*known[-1], f"{name} {known[-1][1]:.2f}", colour))
        _label_ends(axes, ends, height - top - bottom)
        return _svg(figure, "convergence", "Dice of every structure after each round")


def budget(run: Run) -> Markup:
    """Epsilon spent per site after each round against the budget; empty without epsilon events."""
    spent: dict[str, dict[int, float]] = {}
    for event in of_kind(run, EpsilonSpent):
        if event.spent is not None:
            spent.setdefault(event.site, {0: 0.0})[event.round] = event.spent
    if not spent:
        return Markup()
    curves: dict[tuple[tuple[int, float], ...], list[str]] = {}
    for site, points in spent.items():
        curves.setdefault(tuple(sorted(points.items())), []).append(site)
    width, height, top, bottom = 480, 330, 14, 34
    limit = run.study.budget
    highest = max([limit or 0.0] + [points[-1][1] for points in curves])
    with rc_context(_STYLE):
        figure, axes = _canvas(width, height, 30, 165, top, bottom)
        axes.set(ylim=(0, 1.12 * highest), xlim=(0, max(run.study.rounds, max(map(len, spent.values())) - 1)))
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(axis="y", color=_colour("line"), lw=0.7)
        axes.set_xlabel("round", color=_colour("muted"), labelpad=2)
        ends = []
        if limit is not None:
            axes.axhspan(limit, 1.12 * highest, color=_colour("alarm"), alpha=0.12, lw=0)
            axes.axhline(limit, color=_colour("alarm"), lw=1.4)
            ends.append((axes.get_xlim()[1], limit, f"budget {limit:.3g}", _colour("alarm")))
        for curve, sites in curves.items():
            axes.plot(
                *zip(*curve, strict=True),
                color=_colour("accent"),
                lw=2.2,
                marker="o" if len(curve) < 40 else None,
                ms=3,
            )
            if len(sites) == len(spent) > 1:
                who = f"each of {len(sites)} sites"
            else:
                who = _short(sites[0]) if len(sites) == 1 else f"{len(sites)} sites"
            ends.append((*curve[-1], f"{who} {curve[-1][1]:.2f}", _colour("accent")))
        _label_ends(axes, ends, height - top - bottom)
        return _svg(figure, "budget", "Epsilon spent after each round against the budget")


def _bars(axes: Any, boxes: Sequence[tuple[float, float, float, float]], colour: str, **style: Any) -> None:
    """One path for all boxes (x0, x1, y0, y1): a tenth of the bytes of one path each."""
    if boxes:
        corners = [[(x0, y0), (x1, y0), (x1, y1), (x0, y1)] for x0, x1, y0, y1 in boxes]
        outline = Outline.make_compound_path_from_polys(np.array(corners))
        axes.add_patch(PathPatch(outline, facecolor=colour, **{"lw": 0, **style}))


def _lanes(axes: Any, run: Run) -> dict[str, int]:
    """One row per site, the first on top; returns each site's row."""
    sites = seen(run)
    axes.set(ylim=(len(sites) - 0.5, -0.5), yticks=range(len(sites)))
    axes.set_yticklabels([_short(site, 14) for site in sites], color=_colour("ink"))
    axes.spines[["left", "bottom"]].set_visible(False)
    for row in range(len(sites) - 1):
        axes.axhline(row + 0.5, color=_colour("line"), lw=0.7)
    return {site: row for row, site in enumerate(sites)}


def _silence(axes: Any, row: int, begin: float, end: float, text: str) -> None:
    """Marks a dropout: a cross where the site was last heard, hatching until it is back."""
    box = [(begin, end, row - 0.38, row + 0.38)]
    _bars(axes, box, "none", hatch="////", edgecolor=_colour("alarm"), alpha=0.8, zorder=3)
    axes.plot([begin], [row], "X", ms=13, mfc=_colour("alarm"), mec=_colour("paper"), mew=1.4, zorder=7)
    if not text:
        return
    axes.annotate(
        text,
        (begin, row),
        xytext=(13, 0),
        textcoords="offset points",
        va="center",
        color=_colour("alarm"),
        fontweight="bold",
        zorder=6,
        bbox={"fc": _colour("paper"), "ec": "none", "pad": 3},
    )


def _work(run: Run, number: int, begin: float) -> list[tuple[str, str, float, float]]:
    """(site, step or "train", from, to) of a round's last attempt: from when the step opened to the site's message."""
    opened = {"AdvertiseKeys": begin}
    names = list(STEPS)
    for closed in of_kind(run, StepClosed, number):
        if closed.t >= begin and closed.step in names[:-1]:
            opened[names[names.index(closed.step) + 1]] = closed.t
    progress: dict[str, list[float]] = {}
    for event in of_kind(run, Trained, number):
        if event.t >= begin and event.step:
            progress.setdefault(event.site, []).append(event.t)
    trained = {site: times[-1] for site, times in progress.items()}
    work = [(site, "train", _first_step_began(times, begin), times[-1]) for site, times in progress.items()]
    for message in of_kind(run, StepAccepted, number):
        if message.t >= begin and message.step in STEPS:
            start = opened.get(message.step, message.t)
            if message.step == "MaskedInputCollection":
                start = max(start, min(trained.get(message.site, start), message.t))
            work.append((message.site, message.step, start, message.t))
    return work


def _first_step_began(ends: Sequence[float], begin: float) -> float:
    """Only the ends of steps are recorded: the first began one mean step earlier, and not before the round."""
    mean = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0]
    return max(begin, ends[0] - mean)


def overview(run: Run) -> Markup:
    """The whole run on a linear clock: training and protocol per site, dropouts marked."""
    rounds = of_kind(run, RoundStarted)
    if not rounds:
        return Markup()
    height = 58 + 30 * len(seen(run))
    whole = len(rounds) > _WHOLE_ROUNDS_ABOVE
    last = max(event.t for event in run.events)
    boxes: dict[str, list[tuple[float, float, float, float]]] = {"train": [], **{step: [] for step in STEPS}}
    with rc_context(_STYLE):
        figure, axes = _canvas(1080, height, 110, 14, 26, 32)
        rows = _lanes(axes, run)
        axes.set(xlim=(0, last))
        axes.set_xlabel("seconds since the start", color=_colour("muted"), labelpad=1)
        for count, begun in enumerate(rounds):
            axes.axvline(begun.t, color=_colour("line"), lw=0.8)
            if count % (1 + len(rounds) // 30) == 0:
                axes.text(begun.t, -0.62, f" {begun.round}", color=_colour("muted"), fontsize=11, va="bottom")
            for site, step, start, end in _work(run, begun.round, begun.t):
                if site in rows and not (whole and step != "train"):
                    middle, half = rows[site], 0.13 if step == "train" else 0.3
                    width = max(end - start, 0.0016 * last)
                    boxes[step].append((end - width, end, middle - half, middle + half))
        axes.text(-8 / 956 * last, -0.62, "round", color=_colour("muted"), fontsize=11, va="bottom", ha="right")
        for step, found in boxes.items():
            _bars(axes, found, _colour("train" if step == "train" else f"step{list(STEPS).index(step)}"))
        for drop in of_kind(run, Dropped):
            if drop.site in rows:
                alive: list[StepAccepted | Trained] = [
                    *of_kind(run, StepAccepted, drop.round),
                    *of_kind(run, Trained, drop.round),
                ]
                heard = max((event.t for event in alive if event.site == drop.site), default=drop.t)
                later = (event for event in of_kind(run, StepAccepted) if event.round > drop.round)
                back = min((event.t for event in later if event.site == drop.site), default=last)
                _silence(axes, rows[drop.site], heard, back, "")
        return _svg(figure, "overview", "Training and protocol steps of every site over the whole run")


def zoom(run: Run, number: int) -> Markup:
    """One round step by step. Every step has its own scale, or the key exchange would be a hair beside training."""
    begin = max((event.t for event in of_kind(run, RoundStarted, number)), default=None)
    end = max((event.t for event in of_kind(run, RoundEnded, number)), default=None)
    if begin is None or end is None:
        return Markup()
    accepted = [event for event in of_kind(run, StepAccepted, number) if event.t >= begin]
    closed = {event.step: event.t for event in of_kind(run, StepClosed, number) if event.t >= begin}
    times, edges, heard = [begin], [0.0], {}
    for step in STEPS:
        heard[step] = [event.t for event in accepted if event.step == step]
        times.append(max(times[-1], closed.get(step, max(heard[step], default=times[-1]))))
        edges.append(edges[-1] + (1.8 if step == "MaskedInputCollection" else 1.0))
    sites = seen(run)
    pixels = edges[-1] / 956

    def place(t: float) -> float:
        return float(np.interp(t, times, edges))

    with rc_context(_STYLE):
        figure, axes = _canvas(1080, 84 + 40 * len(sites), 110, 14, 50, 34)
        rows = _lanes(axes, run)
        axes.set(xlim=(0, edges[-1]), xticks=[])
        for i, (step, plain) in enumerate(STEPS.items()):
            at = {"x": edges[i] + 8 * pixels, "va": "bottom"}
            axes.axvline(edges[i], color=_colour("line"), lw=0.8)
            axes.text(y=-1.02, s=step, color=_colour(f"step{i}"), fontweight="bold", **at)
            axes.text(y=-0.64, s=plain, color=_colour("muted"), fontsize=11, **at)
            note = f"{len(heard[step])} of {len(sites)} · {times[i + 1] - times[i]:.2f} s"
            axes.text(at["x"], len(sites) - 0.34, note, color=_colour("muted"), fontsize=11, va="top")
        for site, step, start, finish in _work(run, number, begin):
            if site not in rows:
                continue
            row = rows[site]
            if step == "train":
                _bars(axes, [(place(start), place(finish), row + 0.24, row + 0.36)], _colour("train"))
                continue
            i = list(STEPS).index(step)
            right = max(place(finish), edges[i] + 5 * pixels)
            axes.plot([right, edges[i + 1]], [row - 0.04] * 2, color=_colour(f"step{i}"), lw=1, alpha=0.5)
            left = min(max(place(start), edges[i]), right - 5 * pixels)
            _bars(axes, [(left, right, row - 0.26, row + 0.18)], _colour(f"step{i}"))
        again = {drop.site: drop.back for drop in dropouts(run) if drop.round == number}
        for drop in of_kind(run, Dropped, number):
            if drop.site in rows:
                last = max((place(event.t) for event in accepted if event.site == drop.site), default=0.0)
                text = f"dropped after {drop.after}" if drop.after else "absent from this round"
                back = again.get(drop.site)
                text += f"; back in round {back}" if back else ""
                _silence(axes, rows[drop.site], last, edges[-1], text)
        return _svg(figure, "zoom", f"Round {number}, protocol step by protocol step")


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


def _picture(
    image: NDArray[Any], labels: NDArray[Any] | None = None, wrong: NDArray[Any] | None = None, pixels: int = 300
) -> str:
    figure = Figure(figsize=(pixels / 100, pixels / 100), dpi=100, facecolor="black")
    axes = figure.add_axes((0, 0, 1, 1))
    axes.set_axis_off()
    low, high = np.nanpercentile(image, [0.5, 99.7])
    axes.imshow(image, cmap="gray", vmin=low, vmax=max(high, low + 1e-6), interpolation="bicubic")
    if labels is not None:
        y, x = (np.arange(-1, length + 1) for length in labels.shape)
        for label in np.unique(labels[labels > 0]):
            field, tint = np.pad(labels == label, 1).astype(float), TINTS[(label - 1) % len(TINTS)]
            axes.contourf(x, y, field, levels=[0.5, 2], colors=[tint], alpha=0.42)
            axes.contour(x, y, field, levels=[0.5], colors=[tint], linewidths=1.1)
    if wrong is not None:
        axes.imshow(wrong[..., None] * to_rgba(WRONG, 0.8), interpolation="nearest")
    axes.set(xlim=(-0.5, image.shape[1] - 0.5), ylim=(image.shape[0] - 0.5, -0.5))
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", pil_kwargs={"optimize": True})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode()
