"""Pictures of attacks: on paper of their own, so that they are as legible on a dark page as on a light one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from numpy.typing import NDArray

from fedseg.palette import DASHES, LIGHT

INK, MUTED, PAPER, LINE = (LIGHT[name] for name in ("ink", "muted", "paper", "line"))
STYLE = {"font.size": 10, "text.color": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK}
DPI = 130


class Panel(NamedTuple):
    """One small picture with its words below it.

    Attributes:
        pixels: (rows, columns), or (rows, columns, 3).
        words: a line or a few.
    """

    pixels: NDArray[Any]
    words: str = ""


def against_epsilon(
    path: Path,
    measured: Mapping[float, tuple[float, float, float]],
    bounds: Mapping[float, float],
    lines: Mapping[str, float],
) -> Path:
    """How often an attack is right, by epsilon: rates with intervals, the bound, and what it is without noise.

    Args:
        path: of the PNG.
        measured: rate, and the two ends of its interval, by epsilon.
        bounds: by epsilon.
        lines: rates that do not depend on epsilon, by what they are.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.2), facecolor=PAPER, layout="constrained", dpi=DPI)
        axes = figure.subplots()
        epsilons = sorted(measured)
        rates, low, high = (np.array([measured[one][i] for one in epsilons]) for i in range(3))
        axes.errorbar(
            epsilons,
            rates,
            yerr=[rates - low, high - rates],
            fmt="o",
            capsize=4,
            color=LIGHT["s0"],
            label="measured, with noise (bars: 99 % intervals)",
        )
        axes.plot(
            epsilons, [bounds[one] for one in epsilons], color=LIGHT["s5"], lw=2, label="nobody can be above this"
        )
        for (words, value), dashes in zip(lines.items(), DASHES, strict=False):
            axes.axhline(value, color=MUTED, lw=1.2, ls=dashes)
            axes.annotate(
                words, (1.0, value), (-4, 3), ("axes fraction", "data"), "offset points", ha="right", color=MUTED
            )
        axes.set_xscale("log", base=2)
        axes.set_xticks(epsilons, [f"{one:g}" for one in epsilons])
        axes.set(xlabel="epsilon: less is more noise", ylabel="the right patient is named", ylim=(-0.03, 1.1))
        axes.set_yticks([0, 0.25, 0.5, 0.75, 1], ["never", "25 %", "50 %", "75 %", "always"])
        axes.legend(frameon=False, loc="upper left", bbox_to_anchor=(0, 0.92))
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path)
    return path


def grid(path: Path, title: str, columns: Sequence[str], rows: Sequence[tuple[str, Sequence[Panel]]]) -> Path:
    """Pictures in rows and columns, words under each.

    Args:
        path: of the PNG.
        title: above all.
        columns: above each column.
        rows: what stands left of each row, and its panels.
    """
    with rc_context({**STYLE, "font.size": 8}):
        figure = Figure(
            figsize=(1.75 * len(columns) + 0.8, 2.25 * len(rows) + 0.9), facecolor=PAPER, layout="constrained", dpi=DPI
        )
        figure.suptitle(title, fontsize=11, color=INK)
        cells = figure.subplots(len(rows), len(columns), squeeze=False)
        for cell in cells.flat:
            cell.set_axis_off()
        for line, (name, panels) in zip(cells, rows, strict=True):
            line[0].text(
                -0.12, 0.5, name, transform=line[0].transAxes, rotation=90, va="center", ha="right", fontsize=9
            )
            for cell, panel in zip(line, panels, strict=False):
                cell.imshow(panel.pixels, cmap="gray", vmin=0, vmax=1.2, interpolation="nearest")
                cell.text(0.5, -0.04, panel.words, transform=cell.transAxes, va="top", ha="center", fontsize=8)
        for cell, name in zip(cells[0], columns, strict=True):
            cell.set_title(name, fontsize=9, fontweight="bold")
        figure.savefig(path)
    return path


def detection(
    path: Path,
    curves: Mapping[str, tuple[NDArray[Any], NDArray[Any]]],
    bound: tuple[NDArray[Any], NDArray[Any]],
    alarms: float,
) -> Path:
    """How many members are detected, by how many others are taken for members.

    Args:
        path: of the PNG.
        curves: false alarms and detections, by what was attacked.
        bound: of the last curve.
        alarms: where detections are counted.
    """
    with rc_context(STYLE):
        figure = Figure(figsize=(7.2, 4.4), facecolor=PAPER, layout="constrained", dpi=DPI)
        axes = figure.subplots()
        for number, (name, (x, y)) in enumerate(curves.items()):
            axes.plot(x, y, color=LIGHT[f"s{number}"], lw=2, ls=DASHES[number % len(DASHES)], label=name)
        axes.plot(*bound, color=LIGHT["s5"], lw=2, label="with noise nobody can be above this")
        axes.plot(bound[0], bound[0], color=MUTED, lw=1, label="guessing")
        axes.axvline(alarms, color=LINE, lw=1)
        axes.set(
            xscale="log",
            xlabel="share of others who are taken for members (false alarms)",
            ylabel="share of members who are detected",
            ylim=(-0.02, 1.05),
        )
        axes.legend(frameon=False, loc="upper left")
        axes.spines[["top", "right"]].set_visible(False)
        figure.savefig(path)
    return path
