"""Rows of a comparison held against each other, patient by patient.

The same patients are held out in every row. Seeds of one row are averaged within each patient first, so that intervals
are over patients; how much seeds differ is told beside. A difference is that of the same patients in two rows.
"""

from collections.abc import Mapping, Sequence
from typing import Self

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedseg.compare.cells import Judged
from fedseg.compare.rows import Cell
from fedseg.evaluation import interval
from fedseg.privacy.delta import delta_text
from fedseg.privacy.trust import NO_CLAIM_SEEDED
from fedseg.records import Interval, MaybeInterval, Record
from fedseg.study import Study
from fedseg.tasks.table import task_of

START, FEDERATED = "zero-shot", "federated"
Values = NDArray[np.float64]


class SiteOutcome(Record):
    """One row at one site's held-out patients."""

    mean: MaybeInterval = None
    structures: dict[str, MaybeInterval] = Field(default_factory=dict)


class RowOutcome(Record):
    """One line of the table.

    Attributes:
        name, title: of the row, its epsilon and its site.
        row: its name alone.
        epsilon, delta, unit, trust: of a private row.
        twin: the line that is the same without noise.
        seeds: how many were trained, of `of_seeds`.
        mean: Dice over patients of their mean over structures.
        spread: lowest and highest mean of a seed.
        structures, sites: the same in parts.
        measures: the other measures over all structures.
        minus: paired differences of Dice to the lines "twin", "zero-shot" and "federated", over patients.
        cpu_seconds, bytes_up: of one seed, mean.
        failed: why a seed gave nothing.
    """

    name: str
    title: str
    row: str
    epsilon: float | None = None
    delta: float | None = None
    unit: str = ""
    trust: str = ""
    twin: str = ""
    seeds: int = 0
    of_seeds: int = 0
    mean: MaybeInterval = None
    spread: tuple[float, float] | None = None
    structures: dict[str, MaybeInterval] = Field(default_factory=dict)
    sites: dict[str, SiteOutcome] = Field(default_factory=dict)
    measures: dict[str, MaybeInterval] = Field(default_factory=dict)
    minus: dict[str, MaybeInterval] = Field(default_factory=dict)
    cpu_seconds: float = 0.0
    bytes_up: int = 0
    failed: str = ""

    @property
    def below_start(self) -> bool:
        """Whether training has made the model worse, or no better, on the whole."""
        found = self.minus.get(START)
        return self.row != START and found is not None and found.mean <= 0

    @property
    def claim(self) -> str:
        """What belongs to its epsilon; empty where there is none."""
        if self.epsilon is None:
            return ""
        what = f"epsilon {self.epsilon:g} per {self.unit} at delta {delta_text(self.delta)}"
        return f"{what}; {self.trust}"


class Comparison(Record):
    """comparison.json: means and intervals, and nothing of single patients.

    Attributes:
        study, study_hash: what was compared.
        command: how.
        measure: what the first figures are, such as "Dice".
        grid: on which they were computed, as a sentence.
        structures, sites: names.
        patients: held out at each site.
        seeded: that no single model of these may be published with its epsilon.
        rows: lines of the table, in order.
        missing: cells that are not done yet.
    """

    format: int = 1
    study: str
    study_hash: str
    command: str = ""
    measure: str = "Dice"
    grid: str = ""
    structures: list[str]
    sites: list[str]
    patients: dict[str, int] = Field(default_factory=dict)
    seeded: str = f"every cell has a seed ({NO_CLAIM_SEEDED}); each epsilon is what the same study gives without one"
    rows: list[RowOutcome] = Field(default_factory=list)
    missing: int = 0

    @property
    def below(self) -> list[str]:
        """Titles of private rows that end below their start."""
        return [row.title for row in self.rows if row.epsilon is not None and row.below_start]

    @classmethod
    def of(cls, base: Study, command: str, grid: str, done: Sequence[tuple[Cell, Judged | None]]) -> Self:
        """From all cells, None where one is not done."""
        lines: dict[str, list[tuple[Cell, Judged | None]]] = {}
        for cell, found in done:
            lines.setdefault(cell.name, []).append((cell, found))
        measure = task_of(base).measure
        tables = {
            name: [found.of(measure) for _, found in cells if found and found.values] for name, cells in lines.items()
        }
        rows = [_outcome(cells, tables, base) for cells in lines.values()]
        patients = next((table[0] for table in tables.values() if table), {})
        return cls(
            study=base.study.name,
            study_hash=base.hash().hex(),
            command=command,
            measure=measure,
            grid=grid,
            structures=list(task_of(base).names),
            sites=list(base.site_ids),
            patients={site: len(values) for site, values in patients.items()},
            rows=rows,
            missing=sum(found is None for _, found in done),
        )


Tables = Mapping[str, Sequence[Mapping[str, Values]]]
"""By line, for each seed by site (patients, structures)."""


def _outcome(cells: Sequence[tuple[Cell, Judged | None]], tables: Tables, base: Study) -> RowOutcome:
    first, found = cells[0][0], [result for _, result in cells if result is not None]
    tested = [result for result in found if result.values]
    of_seeds = tables[first.name]
    private = first.row.private
    line = RowOutcome(
        name=first.name,
        title=first.title,
        row=first.row.name,
        epsilon=first.epsilon,
        delta=first.study.privacy.delta if private else None,
        unit=first.study.privacy.unit if private else "",
        trust=first.trust,
        twin=first.row.twin,
        seeds=len(tested),
        of_seeds=len(cells),
        failed=next((result.failed for result in found if result.failed), ""),
    )
    if not tested:
        return line
    names = list(task_of(base).names)
    means = [float(np.nanmean(_patients(table))) for table in of_seeds]
    sites = {site: _seeds([table[site] for table in of_seeds]) for site in of_seeds[0]}
    everybody = np.concatenate(list(sites.values()))
    references = {"twin": line.twin, START: START, FEDERATED: FEDERATED}
    return line.model_copy(
        update={
            "mean": interval(_seeds([_patients(table) for table in of_seeds])),
            "spread": (min(means), max(means)),
            "structures": _by(names, everybody),
            "sites": {
                site: SiteOutcome(mean=interval(_rows(values)), structures=_by(names, values))
                for site, values in sites.items()
            },
            "measures": {
                measure: interval(_seeds([_patients(result.of(measure)) for result in tested]))
                for measure in list(tested[0].values)[1:]
            },
            "minus": {
                name: _paired(of_seeds, tables[other])
                for name, other in references.items()
                if other != line.name and tables.get(other)
            },
            "cpu_seconds": float(np.mean([result.cpu_seconds for result in tested])),
            "bytes_up": round(float(np.mean([result.bytes_up for result in tested]))),
        }
    )


def _by(names: Sequence[str], values: Values) -> dict[str, Interval | None]:
    return {name: interval(column) for name, column in zip(names, values.T, strict=True)}


def _rows(values: Values) -> Values:
    """Of each patient the mean over the structures that it has; NaN where it has none."""
    counts = np.count_nonzero(~np.isnan(values), axis=1)
    return np.where(counts, np.nansum(values, axis=1) / np.maximum(counts, 1), np.nan)


def _patients(table: Mapping[str, Values]) -> Values:
    return np.concatenate([_rows(values) for values in table.values()])


def _seeds(found: Sequence[Values]) -> Values:
    """Mean over seeds of each value, of those that are defined."""
    stacked = np.stack(found)
    counts = np.count_nonzero(~np.isnan(stacked), axis=0)
    return np.where(counts, np.nansum(stacked, axis=0) / np.maximum(counts, 1), np.nan)


def _paired(one: Sequence[Mapping[str, Values]], other: Sequence[Mapping[str, Values]]) -> Interval | None:
    """What each patient gains, with its interval over patients."""
    return interval(_seeds([_patients(table) for table in one]) - _seeds([_patients(table) for table in other]))
