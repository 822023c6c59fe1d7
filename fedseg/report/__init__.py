"""Writes a run folder's report: one HTML file that works offline, shows no patient and can be forwarded.

It reads only the run folder and must never fetch anything, run a script, or show a number that the run did not record.
"""

import platform
import re
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from fedseg import palette
from fedseg.events import Dropped, RoundEnded, RoundStarted, StepAccepted, StepClosed, Trained
from fedseg.mechanisms.table import no_claim, trust_in
from fedseg.page import save, template
from fedseg.privacy.delta import delta_text
from fedseg.privacy.trust import NO_CLAIM_SEEDED
from fedseg.records import Interval
from fedseg.report import claims, classes, curves, timeline
from fedseg.report.canvas import mark
from fedseg.report.folder import Run, dropouts, ended, of_kind, read_run
from fedseg.report.pictures import explained, pictures

__all__ = ["PRIVATE", "epsilons_in", "pages", "write_report"]

_PACKAGES = ("secagg", "torch", "monai", "cryptography", "dp-accounting", "numpy")


PRIVATE = "report-private.html"
"""Beside report.html where a run has pictures of patients: the same page with them. It is never to be forwarded."""


def write_report(run: Path) -> Path:
    """Writes `run/report.html`, which shows no patient, and `PRIVATE` where there are pictures of patients.

    Each is written beside and renamed, so that no half report is ever seen, and only its owner can read it.

    Args:
        run: a finished run folder (events.jsonl, metrics.json, study.toml; examples.npz and ledger/ if present).

    Returns:
        The path of the report that may be forwarded.

    Raises:
        ConfigError: a file of the run is missing, truncated or of another run, or the folder cannot be written.
    """
    written = pages(run)
    if run / PRIVATE not in written:
        (run / PRIVATE).unlink(missing_ok=True)
    for target, html in written.items():
        save(target, html)
    return run / "report.html"


def pages(run: Path) -> dict[Path, str]:
    """What `write_report` writes, by path: the same text for the same folder and versions.

    Raises:
        ConfigError: a file of the run is missing, truncated or of another run.
    """
    found = read_run(run)
    written = {run / "report.html": _render(found)}
    if claims.pictures_of_patients(found):
        written[run / PRIVATE] = _render(found, with_patients=True)
    return written


def epsilons_in(html: str) -> list[str]:
    """Every epsilon that a page states, as its letters have it, in order."""
    return re.findall(r"(?:ε|epsilon)[\s\u00a0]*=?[\s\u00a0]*(\d[\d.]*)", html)


def _render(run: Run, *, with_patients: bool = False) -> str:
    hidden = claims.pictures_of_patients(run)
    shown = run.examples if with_patients or not hidden else ()
    zoomed = _zoomed_round(run)
    ends = ended(run)
    page = template(
        Path(__file__).parent,
        "template.html",
        size=_size,
        duration=_duration,
        number=_number,
        epsilon=claims.epsilon_text,
        delta=delta_text,
    )
    return page.render(
        run=run,
        study=run.study,
        metrics=run.metrics,
        command=run.metrics.command if with_patients else claims.without_paths(run.metrics.command),
        dice=run.metrics.dice,
        **_sentences(run),
        shows_patients=with_patients,
        withheld=hidden and not with_patients,
        private_page=PRIVATE,
        grid=claims.grid_sentence(run.metrics.dice, curve=True),
        which_model=claims.which_model(run.metrics),
        measures_said=claims.MEASURES_SAID,
        warnings=list(claims.warnings(run, with_patients=with_patients)),
        dropped=dropouts(run),
        convergence=curves.convergence(run),
        budget=curves.budget(run),
        overview=timeline.overview(run),
        zoom=timeline.zoom(run, zoomed) if zoomed is not None else Markup(),
        zoomed=zoomed,
        steps=timeline.STEPS,
        structures=_structures(run),
        part="class" if run.study.task == "classification" else "structure",
        baselines={**run.metrics.baselines, "this study": run.metrics.dice.mean},
        pictures=[(example, pictures(example, len(run.study.structures))) for example in shown],
        explained=[(one, explained(one)) for one in run.explained],
        roc=classes.roc(run),
        reliability=classes.reliability(run),
        palette=palette,
        mark=mark,
        colour_of=timeline.colour_of,
        costs=list(_costs(run)),
        final_head=ends[-1].head if ends else "",
        versions=run.metrics.versions or _versions(),
    )


def _sentences(run: Run) -> dict[str, Any]:
    """What is claimed and told, the same on the page that shows patients and on the other."""
    return {
        "privacy": claims.privacy(run),
        "seeded": claims.seeded(run),
        "claimed": claims.claimed(run),
        "trust": trust_in(run.study.mechanism, run.study.max_corrupt),
        "no_claim": no_claim(run.study.mechanism),
        "no_claim_seeded": NO_CLAIM_SEEDED,
        "simulated": claims.simulated(run),
        "for_life": claims.life_sentence(run.metrics),
        "summary": claims.summary(run),
        "guarantees": list(claims.guarantees(run)),
        "account": list(claims.account(run)),
        "seen_here": list(claims.seen_here(run)),
        "most_cut": claims.most_cut(run),
    }


def _zoomed_round(run: Run) -> int | None:
    """Of the completed rounds that this party saw, the first in which somebody fell silent, else the last."""
    begun = {begun.round for begun in of_kind(run, RoundStarted)}
    completed = [end.round for end in ended(run) if end.round in begun]
    silent = {drop.round for drop in dropouts(run)} | {drop.round for drop in of_kind(run, Dropped)}
    return min(silent.intersection(completed), default=max(completed, default=None))


def _structures(run: Run) -> list[tuple[str, Interval | None]]:
    return [(name, run.metrics.dice.overall.get(name)) for name in run.study.structures]


@dataclass(frozen=True)
class Cost:
    """What one protocol step, or training, took: bytes over the run, median seconds of a round."""

    step: str
    plain: str
    up: int
    down: int
    seconds: float | None

    @property
    def total(self) -> int:
        """Bytes in both directions."""
        return self.up + self.down


def _costs(run: Run) -> Iterator[Cost]:
    ends = of_kind(run, RoundEnded)
    accepted, closed = of_kind(run, StepAccepted), of_kind(run, StepClosed)
    for step, plain in {"train": "local training, all sites", **timeline.STEPS}.items():
        seconds = _training(run) if step == "train" else [end.seconds[step] for end in ends if step in end.seconds]
        yield Cost(
            step=step,
            plain=plain,
            up=sum(event.bytes for event in accepted if event.step == step),
            down=sum(event.bytes_down for event in closed if event.step == step),
            seconds=median(seconds) if seconds else None,
        )


def _training(run: Run) -> list[float]:
    """Seconds from the start of each completed round to the last local step of its last site."""
    found = []
    for end in of_kind(run, RoundEnded):
        trained = [event for event in of_kind(run, Trained, end.round) if event.step]
        began = of_kind(run, RoundStarted, end.round)
        if trained and began:
            found.append(trained[-1].t - began[-1].t)
    return found


def _versions() -> dict[str, str]:
    """Versions where the report was written, for runs that did not record their own."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            continue
    return found


def _size(count: int) -> str:
    """Bytes such as "1.2 MB"; decimal units, as networks are sold."""
    value = float(count)
    for unit in ("B", "kB", "MB"):
        if value < 999.5:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:,.3g} GB"


def _duration(seconds: float) -> str:
    """Seconds as "3 min 20 s" or "0.42 s"."""
    if seconds < 99.5:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest} s"
    return f"{minutes // 60} h {minutes % 60} min"


def _number(value: float | None, digits: int = 3) -> str:
    return "n/a" if value is None else f"{value:.{digits}g}"
