"""Runs audits one after the other and keeps what came out, so that a run that was broken off goes on.

A result is kept under the folder of a run by name, depth and seed, together with the commit, a hash of all sources, and
the machine with what is installed on it: where one of these differs, the audit is run again.
"""

import fcntl
import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from audits.base import Audit, Depth, Result, Task, Unable, Verdict
from audits.scope import Scope, changed, machine, scope

OUT = Path("build/audits")
_KEPT = "result.json"


@dataclass(frozen=True)
class Record:
    """A result with all that a reader needs to get it again.

    Attributes:
        name: of the audit.
        title: of the audit.
        claims: ids in `claims.yaml`.
        verdict: of the audit.
        says: one sentence.
        figures: numbers by name.
        pictures: files, relative to the folder of all results.
        rows: of a table.
        depth: "quick" or "full".
        seed: of all draws.
        seconds: wall time.
        cpu_seconds: of this process and those that it started.
        began: UTC.
        machine: processor, cores, Python, what is installed.
        scope: which sources.
    """

    name: str
    title: str
    claims: tuple[str, ...]
    verdict: Verdict
    says: str
    figures: Mapping[str, Any]
    pictures: tuple[str, ...]
    rows: tuple[Mapping[str, Any], ...]
    depth: Depth
    seed: int
    seconds: float
    cpu_seconds: float
    began: str
    machine: str
    scope: Scope


def depth_of(audit: Audit, wanted: Depth) -> Depth:
    """The depth at which an audit that was named runs: the wanted one, or the only one that it has."""
    return wanted if wanted in audit.seconds else next(iter(audit.seconds))


def run(
    audits: Iterable[Audit], depth: Depth, seed: int, out: Path, again: bool, progress: Callable[[str, str], None]
) -> Iterator[tuple[Record, bool]]:
    """Run audits in their order.

    Args:
        audits: that have this depth, or one only.
        depth: of the run.
        seed: of the run.
        out: folder of the results; one folder for each audit, depth and seed is made in it.
        again: whether kept results count for nothing.
        progress: called with an audit's name and what it is doing.

    Yields:
        Each result, and whether it was kept from an earlier run.
    """
    for audit in audits:
        task = _task(audit, depth, seed, out, partial(progress, audit.name))
        kept = None if again else _kept(audit, task)
        yield kept or _run(audit, task, out), kept is not None


@contextmanager
def alone(out: Path) -> Iterator[None]:
    """The only run in a folder: two would empty each other's folders.

    Raises:
        BlockingIOError: another one is at work.
    """
    out.mkdir(parents=True, exist_ok=True)
    with (out / ".running").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield


def all_kept(audits: Iterable[Audit], depth: Depth, seed: int, out: Path) -> list[Record]:
    """Results of these sources that were kept, without running anything."""
    found = (_kept(audit, _task(audit, depth, seed, out, str)) for audit in audits)
    return [record for record in found if record]


def _task(audit: Audit, depth: Depth, seed: int, out: Path, progress: Callable[[str], object]) -> Task:
    at = depth_of(audit, depth)
    return Task(at, seed, out / f"{at}-{seed}" / audit.name, progress)


def _kept(audit: Audit, task: Task) -> Record | None:
    try:
        told = json.loads((task.out / _KEPT).read_text())
        record = Record(**{**told, "scope": Scope(**told["scope"])})
    except (OSError, ValueError, TypeError, KeyError):
        return None
    about = (record.name, record.depth, record.seed, record.machine, record.scope)
    same = about == (audit.name, task.depth, task.seed, machine(), scope())
    there = all((task.out.parents[1] / picture).is_file() for picture in record.pictures)
    return record if same and there else None


def _run(audit: Audit, task: Task, out: Path) -> Record:
    shutil.rmtree(task.out, ignore_errors=True)
    task.out.mkdir(parents=True)
    began, clock, work = datetime.now(UTC), time.monotonic(), sum(os.times()[:4])
    result, keep = _result(audit, task)
    record = Record(
        name=audit.name,
        title=audit.title,
        claims=audit.claims,
        verdict=result.verdict,
        says=result.says,
        figures={name: _plain(value) for name, value in result.figures.items()},
        pictures=tuple(str(picture.resolve().relative_to(out.resolve())) for picture in result.pictures),
        rows=tuple({name: _plain(value) for name, value in row.items()} for row in result.rows),
        depth=task.depth,
        seed=task.seed,
        seconds=round(time.monotonic() - clock, 1),
        cpu_seconds=round(sum(os.times()[:4]) - work, 1),
        began=began.isoformat(timespec="seconds"),
        machine=machine(),
        scope=scope(),
    )
    if keep and not changed():
        (task.out / _KEPT).write_text(json.dumps(asdict(record), indent=2))
    return record


def _result(audit: Audit, task: Task) -> tuple[Result, bool]:
    """What came out, and whether it stays true: what a machine lacks may be there the next time."""
    try:
        return audit.run(task), True
    except Unable as missing:
        return Result("no power", f"Could not run here: {missing}", {}), False
    except (Exception, SystemExit) as error:
        return Result("violated", f"Ended with {type(error).__name__}: {error}", {}), False


def _plain(value: Any) -> float | int | str:
    """A number or text as JSON has it, also of numpy's and torch's scalars; what is not finite becomes a word."""
    value = value.item() if hasattr(value, "item") else value
    finite = not isinstance(value, float) or value - value == 0
    return value if finite and isinstance(value, (bool, int, float, str)) else str(value)
