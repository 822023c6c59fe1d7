"""What an audit is: a name, the claims that it is evidence for, and a function that tries to prove them wrong.

Imports neither secagg nor fedseg, so that the second verifier of transcripts can be an audit, too.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Literal, get_args

Depth = Literal["quick", "full"]
Verdict = Literal["holds", "violated", "no power"]

VERDICTS: tuple[Verdict, ...] = get_args(Verdict)
"""The place of a verdict is the exit status that stands for it."""

_BAD_TO_GOOD: tuple[Verdict, ...] = ("violated", "no power", "holds")


class Unable(Exception):  # noqa: N818  not an error of the audit: this machine lacks what it needs
    """An audit cannot run here, and the text says what is missing. Counts as "no power": nothing was shown."""


@dataclass(frozen=True)
class Task:
    """What one audit is asked to do.

    Attributes:
        depth: "quick" or "full".
        seed: of coins, patients and samples. Keys and noise are the operating system's, where they are in a real study.
        out: an empty folder of its own, for pictures and whatever a reader may want to look at.
        progress: called with one short line on what is being done.
    """

    depth: Depth
    seed: int
    out: Path
    progress: Callable[[str], object]


@dataclass(frozen=True)
class Result:
    """What came out.

    Attributes:
        verdict: "no power" where the audit could not have noticed a violation.
        says: one sentence for a reader: what was tried, and what came out.
        figures: every number, with its unit in its name; seeds and intervals among them.
        pictures: PNG or SVG files in the task's folder, in the order of the page.
        rows: optional table; each row has the same columns.
    """

    verdict: Verdict
    says: str
    figures: Mapping[str, float | int | str]
    pictures: tuple[Path, ...] = ()
    rows: tuple[Mapping[str, float | int | str], ...] = ()


@dataclass(frozen=True)
class Audit:
    """One thing that is tried.

    Attributes:
        name: "room.what", which is also the command: ``python -m audits room.what``.
        title: one line.
        claims: ids in `claims.yaml` that it is evidence for.
        seconds: about how long it takes on one core, per depth. A depth that is missing: not run at it.
        run: does it. What it raises is a violation, except `Unable`.
    """

    name: str
    title: str
    claims: tuple[str, ...]
    seconds: Mapping[Depth, int]
    run: Callable[[Task], Result]


def later(module: str, function: str = "audit") -> Callable[[Task], Result]:
    """A function that is imported when the audit runs, so that the list of audits loads nothing heavy.

    Args:
        module: with its room, below `audits`.
        function: in it.
    """

    def run(task: Task) -> Result:
        """Imports it, and runs it."""
        result: Result = getattr(import_module(f"audits.{module}"), function)(task)
        return result

    return run


def worst(verdicts: Iterable[Verdict]) -> Verdict:
    """The verdict of several: violated before no power before holds. Of nothing at all it is "no power"."""
    return min(verdicts, key=_BAD_TO_GOOD.index, default="no power")
