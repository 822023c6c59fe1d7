"""What a site measures and writes down: Dice on its own held-out patients, its run's figures, an audit where asked."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.budget.charge import spent
from fedseg.course import Own
from fedseg.data.cases import SiteData
from fedseg.dialogue import Metrics
from fedseg.evaluation import (
    assess,
    classes_of,
    dice_table,
    evaluate,
    measure_tables,
    overall_mean,
    shown,
    structure_means,
)
from fedseg.events import Ended, Scored
from fedseg.ledger import Ledger
from fedseg.records import Validated
from fedseg.runfolder import RunFolder
from fedseg.summary import metrics_of
from secagg.writing import PRIVATE_FOLDER, replacing


class Figures:
    """The figures of one site's run.

    Args:
        folder: the run's.
        site: its id.
        data: its images.
        ledger: what its patients have paid.
        audit: where own quantised updates and received totals go; None for nowhere.
        own: what of a model the site trains for itself; None for nothing.
    """

    def __init__(
        self, folder: RunFolder, site: str, data: SiteData, ledger: Ledger, audit: Path | None, own: Own | None = None
    ) -> None:
        self._folder, self._study, self._me, self._data = folder, folder.study, site, data
        self._ledger, self._audit, self._own = ledger, audit, own

    def epsilon(self) -> float | None:
        """What the site's patients have spent; None without a claim."""
        return spent(self._ledger, self._study) if self._study.trust.claims_epsilon else None

    def model(self, shared: torch.nn.Module) -> torch.nn.Module:
        """What this site judges: the shared model, or its own."""
        return shared if self._own is None else self._own.model(shared)

    def evaluate(self, model: torch.nn.Module, completed: int) -> Metrics:
        """Dice of the model after `completed` rounds on own held-out patients, maybe nobody.

        Returns:
            The patients' figures in an order that names nobody; whether they leave is the study's decision.
        """
        values = evaluate(self.model(model), {self._me: self._data}, self._study).values[self._me]
        means = structure_means(values, self._study)
        self._folder.emit(Scored(round=completed, site=self._me, values=means, n=len(values)))
        if completed:
            entry = Validated(round=completed, dice=means, mean=overall_mean(values), epsilon=self.epsilon())
            self._folder.tally.history.append(entry)
        values = values[np.lexsort(values.T[::-1])]  # undefined ones last
        rows = [[None if np.isnan(value) else float(value) for value in row] for row in values]
        return Metrics(round=completed, rows=rows)

    def keep(self, number: int, name: str, values: NDArray[Any]) -> None:
        """Keep, on this site's own disk and only where asked, what an audit of the sum needs."""
        if self._audit is None:
            return
        self._audit.mkdir(parents=True, exist_ok=True, mode=PRIVATE_FOLDER)
        target = self._audit / f"{number:04d}-{self._me}-{name}.npy"
        with replacing(target) as beside:
            np.save(beside, values, allow_pickle=False)

    def finish(self, model: torch.nn.Module, parameters: int, command: str, reason: str) -> Path:
        """Write down everything and give the run folder its final name."""
        judged = self.model(model)
        scores = assess(judged, {self._me: self._data}, self._study)
        table = dice_table(scores, {self._me: len(self._data.patients)}, self._study)
        others = measure_tables(scores, self._study)
        self._folder.emit(Ended(seconds=self._folder.seconds))
        self._folder.checkpoint(model, None)
        per_site = {self._me: spent(self._ledger, self._study)}
        if self._own is not None:
            self._folder.keep_own(self._me, judged)
        classes = classes_of(judged, {self._me: self._data}, self._study)
        metrics = metrics_of(self._folder, parameters, command, table, per_site, reason, others, classes)
        return self._folder.complete(metrics, shown(judged, scores, self._study))
