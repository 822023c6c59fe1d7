"""Trains the cells of a comparison, each in a folder of its own, and remembers what came out.

A cell's folder is named after everything that it depends on: what it trains, its study's hash, who is trained on and
held out, and their images and labels. It holds an ordinary run folder and, once that is complete and judged, its mark
`scores.json`. So a command that was killed anywhere goes on with what is missing, and one with other settings trains
anew beside it.
"""

import hashlib
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedseg.compare.rows import Cell, Cohort
from fedseg.course import Course
from fedseg.data.cases import Case
from fedseg.errors import FedSegError
from fedseg.evaluation import Scores, assess
from fedseg.events import Listener
from fedseg.models import build_model, load_model
from fedseg.records import Metrics, Record
from fedseg.runfolder import PARTIAL, RunFolder
from fedseg.simulate import Options, simulate
from fedseg.start import starting_model
from fedseg.study import Study
from fedseg.tasks.table import task_of
from secagg.encoding import digest
from secagg.writing import PRIVATE_FOLDER, write_whole

MARK = "scores.json"


class Judged(Record):
    """What came out of one cell; it tells of single patients and stays beside the run.

    Attributes:
        values: by measure and site, of every held-out patient in the order of their names, one value a structure.
        cpu_seconds: of the training and judging that was not interrupted.
        bytes_up: of masked vectors, all sites and rounds together.
        epsilon, delta: of the site that has spent most; None without a claim.
        failed: why there is nothing.
    """

    values: dict[str, dict[str, list[list[float | None]]]] = Field(default_factory=dict)
    cpu_seconds: float = 0.0
    bytes_up: int = 0
    epsilon: float | None = None
    delta: float | None = None
    failed: str = ""

    def of(self, measure: str) -> dict[str, NDArray[np.float64]]:
        """By site (patients, structures), NaN where undefined; a site that holds nobody out has no rows."""
        sites = self.values.get(measure, {})
        structures = max((len(row) for rows in sites.values() for row in rows), default=1)
        return {
            site: np.array([[np.nan if v is None else v for v in row] for row in rows], np.float64).reshape(
                len(rows), structures
            )
            for site, rows in sites.items()
        }


def folders_of(cells: Iterable[Cell], cohort: Cohort, out: Path) -> dict[Cell, Path]:
    """Where each cell's run and its mark are."""
    contents, found = contents_of(cohort), {}
    for cell in cells:
        told = digest("cell", cell.study.hash(), cell.row.name, cell.site, contents)
        found[cell] = out / "cells" / f"{cell.name.replace(' ', '-')}-seed{cell.seed}-{told.hex()[:8]}"
    return found


def contents_of(cohort: Cohort) -> bytes:
    """Digest of who is trained on and held out, and of their images and labels, 32 bytes: a corrected file counts."""
    return digest(
        "cohort",
        [
            [site, role, case.patient, *map(_digest, _arrays(case))]
            for site, data in sorted(cohort.items())
            for role, cases in (("train", data.train), ("test", data.test))
            for case in cases
        ],
    )


def _arrays(case: Case) -> list[NDArray[Any] | None]:
    return [case.image, case.label, None if case.original is None else case.original.label]


def _digest(values: NDArray[Any] | None) -> bytes:
    return b"" if values is None else hashlib.sha256(np.ascontiguousarray(values).data).digest()


def judged(folder: Path) -> Judged | None:
    """What is known of a cell; None where it is not done."""
    mark = folder / MARK
    return Judged.model_validate_json(mark.read_text(encoding="utf-8")) if mark.is_file() else None


def train(cell: Cell, cohort: Cohort, folder: Path, command: str, *listeners: Listener) -> Judged:
    """Train and judge a cell, or go on with it, and leave its mark.

    A study that cannot be trained is a result too: the reason is kept in place of figures, until it is tried again.
    """
    folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    began = time.process_time()
    try:
        found = _train(cell, cohort, folder, command, *listeners)
    except FedSegError as error:
        found = Judged(failed=str(error))
    found = found.model_copy(update={"cpu_seconds": time.process_time() - began})
    write_whole(folder / MARK, found.model_dump_json())
    return found


def _train(cell: Cell, cohort: Cohort, folder: Path, command: str, *listeners: Listener) -> Judged:
    if cell.row.who == "nobody":
        return Judged(values=values_of(assess(starting_model(cell.study), cohort, cell.study), cell.study))
    run = complete_run(folder, cell.study, cell.cohort(cohort), cell.options(command), *listeners)
    metrics = Metrics.model_validate_json((run / "metrics.json").read_text(encoding="utf-8"))
    model = load_model(run / "model.safetensors", cell.study)
    private = metrics.privacy if cell.row.private else None
    federated = cell.row.who == "federation"
    return Judged(
        values=values_of(assess(model, cohort, cell.study), cell.study),
        bytes_up=(metrics.protocol.bytes_up or _vectors(cell.study, metrics)) if federated else 0,
        epsilon=private.epsilon if private else None,
        delta=private.delta if private else None,
        failed=f"the study did not finish: {metrics.unfinished}" if metrics.unfinished else "",
    )


def complete_run(folder: Path, study: Study, cohort: Cohort, options: Options, *listeners: Listener) -> Path:
    """The complete run in `folder`: the one that is there, the one that was interrupted, or a new one."""
    for path in sorted(folder.iterdir()):
        if (path / "metrics.json").is_file() and not path.name.endswith(PARTIAL):
            return path
    broken = [path for path in sorted(folder.glob(f"*{PARTIAL}")) if (path / "state.json").is_file()]
    run = RunFolder.reopen(broken[-1], *listeners) if broken else RunFolder.create(folder, study, *listeners)
    with run:
        return simulate(run, cohort, options)


def values_of(scores: Scores, study: Study) -> dict[str, dict[str, list[list[float | None]]]]:
    """Scores as JSON, by measure and site."""
    first = task_of(study).measures[0].name
    of_measures: Mapping[str, Mapping[str, NDArray[np.float64]]] = {first: scores.values, **scores.others}
    return {
        measure: {site: [[_known(value) for value in row] for row in rows] for site, rows in of_sites.items()}
        for measure, of_sites in of_measures.items()
    }


def _known(value: Any) -> float | None:
    return None if np.isnan(value) else float(value)


def _vectors(study: Study, metrics: Metrics) -> int:
    """Bytes of the masked vectors that the rounds of a plain sum stand for."""
    policy = Course(study, build_model(study)).policy()
    return metrics.protocol.rounds_completed * len(study.site_ids) * policy.length * policy.bits // 8
