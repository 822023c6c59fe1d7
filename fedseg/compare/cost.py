"""What a comparison will cost, told before it begins: from one step of each mechanism and one judged patient."""

import time
from collections.abc import Iterable
from dataclasses import replace

from fedseg.compare.rows import Cell, Cohort
from fedseg.data.cases import SiteData
from fedseg.evaluation import assess
from fedseg.start import starting_model
from fedseg.train import local_steps

PATIENTS = 2
JUDGED = 3
"""Times that a cell's model is judged: before training, after it, and for the comparison."""


class Prices:
    """CPU seconds, measured on these images and this machine.

    Args:
        cohort: all images.
        cells: what will be trained; one step is timed for each mechanism of them.
    """

    def __init__(self, cohort: Cohort, cells: Iterable[Cell]) -> None:
        self._cohort = cohort
        self._step: dict[str, float] = {}
        largest = max(cohort.values(), key=lambda data: len(data.patients))
        few = set(largest.patients[:PATIENTS])
        self._some = replace(largest, train=tuple(case for case in largest.train if case.patient in few), test=())
        first: Cell | None = None
        for cell in cells:
            first = first or cell
            if cell.row.who != "nobody" and cell.row.mechanism not in self._step:
                self._step[cell.row.mechanism] = self._timed(cell)
        self._judge = self._judged(first) if first else 0.0

    def _timed(self, cell: Cell) -> float:
        """Seconds of one patient in one step, or of a step's whole batch."""
        study = cell.study.replace(privacy={"sample_rate": 1.0}, study={"rounds": 1, "local_steps": 1})
        model = starting_model(study)
        taken = []
        for _ in range(2):  # the first loads what is loaded once
            began = time.process_time()
            local_steps(model, self._some, study, site=self._some.site, round_number=1)
            taken.append(time.process_time() - began)
        return min(taken) / (1 if study.training.batch else max(len(self._some.patients), 1))

    def _judged(self, cell: Cell) -> float:
        case = next((case for data in self._cohort.values() for case in data.test), None)
        if case is None:
            return 0.0
        began = time.process_time()
        assess(starting_model(cell.study), {case.site: SiteData(case.site, (), (case,))}, cell.study)
        return time.process_time() - began

    def of(self, cell: Cell) -> float:
        """Seconds of one cell."""
        tests = sum(len(data.test) for data in self._cohort.values()) * self._judge
        if cell.row.who == "nobody":
            return tests
        training = cell.cohort(self._cohort)
        sites = [cell.options("").alone] if cell.options("").alone else list(training)
        patients = sum(len(training[site].patients) for site in sites)
        steps = cell.study.study.rounds * cell.study.study.local_steps
        drawn = steps * (len(sites) if cell.study.training.batch else patients * cell.study.privacy.sample_rate)
        return drawn * self._step[cell.row.mechanism] + JUDGED * tests
