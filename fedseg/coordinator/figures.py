"""What a coordinator may say about its models: what sites shared of their held-out patients, and public phantoms."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.dialogue import Metrics
from fedseg.errors import RoundFailedError
from fedseg.evaluation import Scores, dice_table, evaluate, mean_interval, overall_mean, shown, structure_means
from fedseg.events import Ended, EpsilonSpent, Scored
from fedseg.records import ValidatedBySites
from fedseg.runfolder import RunFolder
from fedseg.start import public_phantom
from fedseg.summary import before_training, metrics_of
from fedseg.tasks.table import task_of

Rows = NDArray[np.float64]
"""(patients, names of the task) scores, NaN where undefined."""


class Figures:
    """The figures of one run.

    Attributes:
        epsilon: what each site has said that its patients spent.
    """

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._study = folder, folder.study
        self._shared: dict[int, dict[str, Rows]] = {}
        self.epsilon: dict[str, float | None] = {}

    def take(self, site: str, metrics: Metrics) -> None:
        """Keep what a site shared, once a round.

        Raises:
            RoundFailedError: of another study, or of a round that is not there: nothing was kept.
        """
        width = len(task_of(self._study).names)
        if any(len(row) != width for row in metrics.rows):
            raise RoundFailedError(f"{site} sent metrics of another study; they were ignored")
        if metrics.round > self._folder.tally.completed:
            raise RoundFailedError(f"{site} sent metrics of a model that is not there yet; they were ignored")
        if site in self._shared.get(metrics.round, {}):
            return  # what was said first stands: nobody fills the log
        rows = [[np.nan if value is None else value for value in row] for row in metrics.rows]
        values = np.array(rows, dtype=np.float64).reshape(-1, width)
        self._shared.setdefault(metrics.round, {})[site] = values
        means = structure_means(values, self._study)
        self._folder.emit(Scored(round=metrics.round, site=site, values=means, n=len(values)))

    def missing(self, sites: set[str]) -> set[str]:
        """Which of these have not shared their figures of the last model."""
        return sites - self._shared.get(self._folder.tally.completed, {}).keys()

    def record(self, number: int) -> None:
        """What is known as round `number` completes; call it before the round is counted."""
        for site, spent in self.epsilon.items():
            if spent is not None:
                self._folder.emit(EpsilonSpent(round=number, site=site, spent=spent))
        self.count(number)

    def count(self, number: int) -> None:
        """The same, where it was told before."""
        known = {site: spent for site, spent in self.epsilon.items() if spent is not None}
        tally = self._folder.tally
        spent_most = max(known.values(), default=None)
        tally.history.append(ValidatedBySites(round=number, completed=tally.completed + 1, epsilon=spent_most))

    def kept(self) -> dict[str, Any]:
        """As JSON."""
        shared = {
            str(number): {
                site: [[None if np.isnan(v) else v for v in row] for row in rows.tolist()]
                for site, rows in of_sites.items()
            }
            for number, of_sites in self._shared.items()
        }
        return {"epsilon": self.epsilon, "shared": shared}

    def restore(self, kept: Mapping[str, Any]) -> None:
        """Go on from what `kept` gave."""
        self.epsilon = dict(kept["epsilon"])
        width = len(task_of(self._study).names)
        for number, of_sites in kept["shared"].items():
            for site, rows in of_sites.items():
                values = np.array([[np.nan if v is None else v for v in row] for row in rows], dtype=np.float64)
                self._shared.setdefault(int(number), {})[site] = values.reshape(-1, width)

    def finish(self, model: torch.nn.Module, parameters: int, command: str, reason: str) -> Path:
        """Write down everything and give the run folder its final name.

        Args:
            model: the last one, which is shown on public phantoms.
            parameters: d.
            command: how the coordinator was started.
            reason: why the run ended.
        """
        folder, tally = self._folder, self._folder.tally
        for place, entry in enumerate(tally.history):  # one a completed round
            pooled = self._pooled(place + 1)
            means = {"dice": structure_means(pooled, self._study), "mean": overall_mean(pooled)}
            tally.history[place] = entry.model_copy(update=means)
        if self._shared.get(0):
            tally.baselines[before_training(self._study)] = mean_interval(self._pooled(0))
        last = self._shared.get(tally.completed, {})
        values = {site: last.get(site, self._nobody) for site in self._study.site_ids}
        scores = Scores({site: [""] * len(rows) for site, rows in values.items()}, values)
        public = evaluate(model, {"public phantom": public_phantom(self._study)}, self._study)
        tally.baselines["this model on public phantom cases"] = mean_interval(public.pooled())
        folder.emit(Ended(seconds=folder.seconds))
        spent: Mapping[str, float] = {site: spent for site, spent in self.epsilon.items() if spent is not None}
        table = dice_table(scores, {}, self._study)
        metrics = metrics_of(folder, parameters, command, table, spent, reason)
        return folder.complete(metrics, shown(model, public, self._study))

    @property
    def _nobody(self) -> Rows:
        return np.empty((0, len(task_of(self._study).names)))

    def _pooled(self, completed: int) -> Rows:
        shared = self._shared.get(completed, {})
        return np.concatenate([shared[site] for site in sorted(shared)] or [self._nobody])  # not as they came
