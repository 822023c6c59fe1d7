"""How good a model is: Dice on held-out patients, their means and intervals, each with its n.

Shared by the simulation, the coordinator and a site. Figures of several sites are sums over patients, never means of
site means; a figure of nobody is None.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.data.cases import Case, SiteData
from fedseg.metrics import bootstrap, by_patient
from fedseg.predict import predict
from fedseg.records import Dice, Grid, Interval, SiteDice
from fedseg.runfolder import Picture
from fedseg.study import Study
from fedseg.tasks.table import task_of

BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Scores:
    """Dice of one model: by site, held-out patients and their (patients, structures) scores, NaN where undefined."""

    patients: Mapping[str, Sequence[str]]
    values: Mapping[str, NDArray[np.float64]]
    examples: tuple[tuple[float, Case, NDArray[np.uint8]], ...] = ()

    def pooled(self) -> NDArray[np.float64]:
        """All patients of all sites: sums over sites, never means of site means."""
        return np.concatenate(list(self.values.values()))


def evaluate(model: torch.nn.Module, cohort: Mapping[str, SiteData], study: Study) -> Scores:
    """Dice on every held-out patient, on the study's working grid."""
    task = task_of(study)
    patients, values, examples = {}, {}, []
    for site, data in cohort.items():
        scores = []
        for case in data.test:
            prediction = predict(model, case, study)
            scores.append(task.score(prediction, case))
            if not np.isnan(scores[-1]).all():
                examples.append((float(np.nanmean(scores[-1])), case, prediction))
        names = [case.patient for case in data.test]
        patients[site] = sorted(set(names))
        values[site] = by_patient(names, scores) if scores else np.empty((0, len(task.names)))
    return Scores(patients, values, tuple(sorted(examples, key=lambda example: example[0])))


def interval(values: NDArray[np.float64]) -> Interval | None:
    """Bootstrap interval of one score per patient; None where nobody has one."""
    return bootstrap(values, BOOTSTRAP_SEED)


def mean_interval(values: NDArray[np.float64]) -> Interval | None:
    """Interval of each patient's mean over the structures that it has."""
    return interval(_patient_means(values))


def _patient_means(values: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.array([np.nanmean(row) for row in values if not np.isnan(row).all()])


def structure_means(scores: NDArray[np.float64], study: Study) -> dict[str, float | None]:
    """Mean Dice of each structure over patients, None where no patient has it."""
    return {
        name: float(np.nanmean(column)) if not np.isnan(column).all() else None
        for name, column in zip(task_of(study).names, scores.T, strict=True)
    }


def overall_mean(scores: NDArray[np.float64]) -> float | None:
    """Mean over patients of their mean over structures, None without patients."""
    means = _patient_means(scores)
    return float(means.mean()) if len(means) else None


def ranked(scores: Scores) -> list[Picture]:
    """Best, median and worst held-out case."""
    cases = scores.examples
    if not cases:
        return []
    picks = {"best": len(cases) - 1, "median": (len(cases) - 1) // 2, "worst": 0}
    return [(rank, cases[i][1], cases[i][2], cases[i][0]) for rank, i in picks.items()]


def dice_table(scores: Scores, trained: Mapping[str, int], study: Study) -> Dice:
    """Dice overall and by site, each with interval and n; a site without held-out patients has none."""

    def by_structure(values: NDArray[np.float64]) -> dict[str, Interval | None]:
        return {name: interval(column) for name, column in zip(task_of(study).names, values.T, strict=True)}

    pooled = scores.pooled()
    return Dice(
        grid=_grid(scores, study),
        overall=by_structure(pooled),
        mean=mean_interval(pooled),
        sites={
            site: SiteDice(
                n_train=trained.get(site),
                n_test=len(scores.patients[site]),
                mean=mean_interval(values),
                structures=by_structure(values),
            )
            for site, values in scores.values.items()
        },
    )


def _grid(scores: Scores, study: Study) -> Grid:
    """Where Dice was computed, and how wide its voxels are over the cases that have one."""
    cases = [case for _, case, _ in scores.examples]
    stacked = study.data.dims == 2
    inside = [mm for case in cases for axis, mm in enumerate(case.spacing) if not stacked or axis != case.slice_axis]
    apart = [case.spacing[case.slice_axis] for case in cases] if stacked else []
    return Grid(
        size=max(study.data.sides),
        dims=study.data.dims,
        spacing=(min(inside), max(inside)) if inside else None,
        apart=(min(apart), max(apart)) if apart else None,
    )
