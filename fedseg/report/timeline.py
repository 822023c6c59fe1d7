"""Charts over time: who trained, sent and fell silent when, over the whole run and step by step within one round."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from markupsafe import Markup
from matplotlib import rc_context

from fedseg.events import Dropped, RoundEnded, RoundStarted, StepAccepted, StepClosed, Trained
from fedseg.palette import series
from fedseg.report.canvas import STYLE, Box, bars, canvas, colour, short, svg
from fedseg.report.folder import Run, dropouts, of_kind, seen
from secagg import steps

STEPS = {
    steps.ADVERTISE_KEYS: "fresh public keys",
    steps.SHARE_KEYS: "secrets split and sealed",
    steps.SHARE_REPORT: "all shares open?",
    steps.MASKED_INPUT_COLLECTION: "the update, masked",
    steps.CONSISTENCY_CHECK: "all saw the same set?",
    steps.UNMASKING: "only the sum opens",
}
"""The protocol's steps in order, each in words."""

TRAIN = "train"
_ORDER = {step: i for i, step in enumerate(STEPS)}
_WHOLE_ROUNDS_ABOVE = 60  # rounds; with more, an overview of single steps is a grey smear of a megabyte
_WIDTH, _LEFT, _RIGHT = 1080, 110, 14
_PLOT = _WIDTH - _LEFT - _RIGHT


def colour_of(step: str) -> str:
    """The name of a step's colour; "train" is none of the protocol's."""
    return TRAIN if step == TRAIN else series(_ORDER[step])


@dataclass(frozen=True)
class _Work:
    """What a site did from one second to another: a step of the protocol, or "train"."""

    site: str
    step: str
    start: float
    end: float


def _work(run: Run, number: int, begin: float) -> list[_Work]:
    """Of a round's last attempt: a step lasts from when it opened to the site's message."""
    opened, names = {steps.ADVERTISE_KEYS: begin}, list(STEPS)
    for closed in of_kind(run, StepClosed, number):
        if closed.t >= begin and closed.step in names[:-1]:
            opened[names[_ORDER[closed.step] + 1]] = closed.t
    trained: dict[str, list[float]] = {}
    for event in of_kind(run, Trained, number):
        if event.t >= begin and event.step:
            trained.setdefault(event.site, []).append(event.t)
    work = [_Work(site, TRAIN, _first_step_began(times, begin), times[-1]) for site, times in trained.items()]
    for message in of_kind(run, StepAccepted, number):
        if message.t >= begin and message.step in STEPS:
            start = opened.get(message.step, message.t)
            if message.step == steps.MASKED_INPUT_COLLECTION:
                start = max(start, min(trained.get(message.site, [start])[-1], message.t))
            work.append(_Work(message.site, message.step, start, message.t))
    return work


def _first_step_began(ends: Sequence[float], begin: float) -> float:
    """Only the ends of steps are recorded: the first began one mean step earlier, and not before the round."""
    mean = (ends[-1] - ends[0]) / (len(ends) - 1) if len(ends) > 1 else ends[0]
    return max(begin, ends[0] - mean)


def _lanes(axes: Any, run: Run) -> dict[str, int]:
    """One row per site, the first on top; returns each site's row."""
    sites = seen(run)
    axes.set(ylim=(len(sites) - 0.5, -0.5), yticks=range(len(sites)))
    axes.set_yticklabels([short(site, 14) for site in sites], color=colour("ink"))
    axes.spines[["left", "bottom"]].set_visible(False)
    for row in range(len(sites) - 1):
        axes.axhline(row + 0.5, color=colour("line"), lw=0.7)
    return {site: row for row, site in enumerate(sites)}


def _silence(axes: Any, row: int, begin: float, end: float, text: str = "") -> None:
    """Marks a dropout: a cross where the site was last heard, hatching until it is back."""
    box = [(begin, end, row - 0.38, row + 0.38)]
    bars(axes, box, "none", hatch="////", edgecolor=colour("alarm"), alpha=0.8, zorder=3)
    axes.plot([begin], [row], "X", ms=13, mfc=colour("alarm"), mec=colour("paper"), mew=1.4, zorder=7)
    if text:
        axes.annotate(
            text,
            (begin, row),
            xytext=(13, 0),
            textcoords="offset points",
            va="center",
            color=colour("alarm"),
            fontweight="bold",
            zorder=6,
            bbox={"fc": colour("paper"), "ec": "none", "pad": 3},
        )


# --- The whole run ---------------------------------------------------------------------------------------------------


def overview(run: Run) -> Markup:
    """The whole run on a linear clock: training and protocol per site, dropouts marked."""
    rounds = of_kind(run, RoundStarted)
    if not rounds:
        return Markup()
    last = max(event.t for event in run.events)
    with rc_context(STYLE):
        figure, axes = canvas(_WIDTH, 58 + 36 * len(seen(run)), _LEFT, _RIGHT, 26, 32)
        rows = _lanes(axes, run)
        axes.set(xlim=(0, last))
        axes.set_xlabel("seconds since the start", color=colour("muted"), labelpad=1)
        axes.text(-8 / _PLOT * last, -0.62, "round", color=colour("muted"), fontsize=11, va="bottom", ha="right")
        for count, begun in enumerate(rounds):
            axes.axvline(begun.t, color=colour("line"), lw=0.8)
            if count % (1 + len(rounds) // 30) == 0:
                axes.text(begun.t, -0.62, f" {begun.round}", color=colour("muted"), fontsize=11, va="bottom")
        for step, found in _overview_boxes(run, rounds, rows, last).items():
            bars(axes, found, colour(colour_of(step)))
        for drop in of_kind(run, Dropped):
            if drop.site in rows:
                _silence(axes, rows[drop.site], *_silent(run, drop, last))
        return svg(figure, "overview", "Training and protocol steps of every site over the whole run")


def _overview_boxes(
    run: Run, rounds: Sequence[RoundStarted], rows: Mapping[str, int], last: float
) -> dict[str, list[Box]]:
    """By step: each has its own height in its row, like stairs, so that colour is not the only sign."""
    boxes: dict[str, list[Box]] = {TRAIN: [], **{step: [] for step in STEPS}}
    for begun in rounds:
        for work in _work(run, begun.round, begun.t):
            if work.site not in rows or (len(rounds) > _WHOLE_ROUNDS_ABOVE and work.step != TRAIN):
                continue
            low = rows[work.site] + (0.27 if work.step == TRAIN else -0.4 + 0.11 * _ORDER[work.step])
            width = max(work.end - work.start, 0.0022 * last)
            boxes[work.step].append((work.end - width, work.end, low, low + 0.11))
    return boxes


def _silent(run: Run, drop: Dropped, last: float) -> tuple[float, float]:
    """From when a site was last heard in the round to its first message in a later one."""
    alive: list[StepAccepted | Trained] = [*of_kind(run, StepAccepted, drop.round), *of_kind(run, Trained, drop.round)]
    heard = max((event.t for event in alive if event.site == drop.site), default=drop.t)
    later = (event for event in of_kind(run, StepAccepted) if event.round > drop.round)
    return heard, min((event.t for event in later if event.site == drop.site), default=last)


# --- One round -------------------------------------------------------------------------------------------------------


class _Scale:
    """Every step of a round has its own scale, or the key exchange would be a hair beside training."""

    def __init__(self, begin: float, accepted: Sequence[StepAccepted], closed: Mapping[str, float]) -> None:
        self.heard = {step: [event.t for event in accepted if event.step == step] for step in STEPS}
        self.times, self.edges = [begin], [0.0]
        for step, heard in self.heard.items():
            self.times.append(max(self.times[-1], closed.get(step, max(heard, default=self.times[-1]))))
            self.edges.append(self.edges[-1] + (1.8 if step == steps.MASKED_INPUT_COLLECTION else 1.0))
        self.pixel = self.edges[-1] / _PLOT

    def place(self, t: float) -> float:
        """Where a time is drawn."""
        return float(np.interp(t, self.times, self.edges))


def zoom(run: Run, number: int) -> Markup:
    """One round step by step; empty where this party did not see it to its end."""
    begin = max((event.t for event in of_kind(run, RoundStarted, number)), default=None)
    if begin is None or not of_kind(run, RoundEnded, number):
        return Markup()
    accepted = [event for event in of_kind(run, StepAccepted, number) if event.t >= begin]
    closed = {event.step: event.t for event in of_kind(run, StepClosed, number) if event.t >= begin}
    scale, sites = _Scale(begin, accepted, closed), len(seen(run))
    with rc_context(STYLE):
        figure, axes = canvas(_WIDTH, 84 + 40 * sites, _LEFT, _RIGHT, 50, 34)
        rows = _lanes(axes, run)
        axes.set(xlim=(0, scale.edges[-1]), xticks=[])
        _columns(axes, scale, sites)
        for work in _work(run, number, begin):
            if work.site in rows:
                _block(axes, scale, work, rows[work.site])
        back = {
            drop.site: f"; back in round {drop.back}" for drop in dropouts(run) if drop.round == number and drop.back
        }
        for drop in of_kind(run, Dropped, number):
            if drop.site in rows:
                heard = max((scale.place(event.t) for event in accepted if event.site == drop.site), default=0.0)
                text = f"dropped after {drop.after}" if drop.after else "absent from this round"
                _silence(axes, rows[drop.site], heard, scale.edges[-1], text + back.get(drop.site, ""))
        return svg(figure, "zoom", f"Round {number}, protocol step by protocol step")


def _columns(axes: Any, scale: _Scale, sites: int) -> None:
    """A heading for each step, and below it how many sites spoke in how many seconds."""
    for i, (step, words) in enumerate(STEPS.items()):
        at = {"x": scale.edges[i] + 8 * scale.pixel, "va": "bottom"}
        axes.axvline(scale.edges[i], color=colour("line"), lw=0.8)
        axes.text(y=-1.02, s=step, color=colour("ink"), fontweight="bold", **at)
        axes.text(y=-0.64, s=words, color=colour("muted"), fontsize=11, **at)
        note = f"{len(scale.heard[step])} of {sites} · {scale.times[i + 1] - scale.times[i]:.2f} s"
        axes.text(at["x"], sites - 0.34, note, color=colour("muted"), fontsize=11, va="top")


def _block(axes: Any, scale: _Scale, work: _Work, row: int) -> None:
    """A site's work in a step, and a line for the time that it waited for the others; training is thin and below."""
    start, end = scale.place(work.start), scale.place(work.end)
    if work.step == TRAIN:
        bars(axes, [(start, end, row + 0.24, row + 0.36)], colour(TRAIN))
        return
    i, least = _ORDER[work.step], 5 * scale.pixel
    right = max(end, scale.edges[i] + least)
    axes.plot([right, scale.edges[i + 1]], [row - 0.04] * 2, color=colour(series(i)), lw=1, alpha=0.5)
    left = min(max(start, scale.edges[i]), right - least)
    bars(axes, [(left, right, row - 0.26, row + 0.18)], colour(series(i)))
