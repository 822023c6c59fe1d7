"""How good a model is: measures on held-out patients, their means and intervals, each with its n.

While a model is trained its Dice is computed on the working grid, which is cheap (`evaluate`). What is said of it in
the end is computed on the grid of each patient's own label map (`assess`).
Shared by the simulation, the coordinator and a site. Figures of several sites are sums over patients, never means of
site means; a figure of nobody is None.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.data.cases import Case, SiteData
from fedseg.data.layouts.table import layout_of
from fedseg.device import on_device
from fedseg.metrics import Measure, bootstrap, by_patient
from fedseg.predict import predict
from fedseg.records import Classes, Dice, Grid, Interval, Measured, SiteDice, SiteMeasure
from fedseg.runfolder import Picture
from fedseg.start import public_phantom
from fedseg.study import Study
from fedseg.tasks.table import task_of
from fedseg.tasks.task import Task

BOOTSTRAP_SEED = 0


@dataclass(frozen=True)
class Scores:
    """Scores of one model: by site, held-out patients and their (patients, structures) values, NaN where undefined.

    Attributes:
        patients: sorted.
        values: Dice, or what the task calls `measure`.
        examples: that of a case over its structures, the case, and what the model says of it on the working grid.
        others: the task's other measures by name, as `values`.
        cases: by site, every case's name and its (measures, names) values, one by one.
        final: whether they are of each case's own file, where it has one.
    """

    patients: Mapping[str, Sequence[str]]
    values: Mapping[str, NDArray[np.float64]]
    examples: tuple[tuple[float, Case, NDArray[np.uint8]], ...] = ()
    others: Mapping[str, Mapping[str, NDArray[np.float64]]] = field(default_factory=dict)
    cases: Mapping[str, Sequence[tuple[str, NDArray[np.float64]]]] = field(default_factory=dict)
    final: bool = False

    def pooled(self) -> NDArray[np.float64]:
        """All patients of all sites: sums over sites, never means of site means."""
        return np.concatenate(list(self.values.values()))


def evaluate(model: torch.nn.Module, cohort: Mapping[str, SiteData], study: Study) -> Scores:
    """Dice on every held-out patient, on the study's working grid: cheap enough for every round."""
    task = task_of(study)

    def one(case: Case) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """The prediction of a case, and its scores as one row."""
        prediction = predict(model, case, study)
        return prediction, task.score(prediction, case)[None]

    with on_device(model, study):
        return _scores(one, cohort, task, task.measures[:1])


def assess(model: torch.nn.Module, cohort: Mapping[str, SiteData], study: Study) -> Scores:
    """Every measure of the task on every held-out patient, on the grid of the patient's own file."""
    task = task_of(study)
    with on_device(model, study):
        return replace(_scores(lambda case: task.measured(model, case), cohort, task, task.measures), final=True)


def _scores(
    judged: Callable[[Case], tuple[NDArray[np.uint8], NDArray[np.float64]]],
    cohort: Mapping[str, SiteData],
    task: Task,
    measures: Sequence[Measure],
) -> Scores:
    """Of every held-out patient, what `judged` gives of a case: a prediction, and (measures, names) values."""
    patients: dict[str, list[str]] = {}
    values: list[dict[str, NDArray[np.float64]]] = [{} for _ in measures]
    cases: dict[str, list[tuple[str, NDArray[np.float64]]]] = {}
    examples = []
    for site, data in cohort.items():
        cases[site] = []
        for case in data.test:
            prediction, found = judged(case)
            cases[site].append((case.name, found))
            if not np.isnan(found[0]).all():
                examples.append((float(np.nanmean(found[0])), case, prediction))
        names = [case.patient for case in data.test]
        patients[site] = sorted(set(names))
        for place, of_measure in enumerate(values):
            rows = [found[place] for _, found in cases[site]]
            of_measure[site] = by_patient(names, rows) if rows else np.empty((0, len(task.names)))
    others = {measure.name: found for measure, found in zip(measures[1:], values[1:], strict=True)}
    return Scores(patients, values[0], tuple(sorted(examples, key=lambda example: example[0])), others, cases)


def joined(parts: Sequence[Scores]) -> Scores:
    """Of several sites, each judged by itself, as where each has a model of its own."""
    names = parts[0].others
    return Scores(
        patients={site: found for part in parts for site, found in part.patients.items()},
        values={site: found for part in parts for site, found in part.values.items()},
        examples=tuple(sorted((one for part in parts for one in part.examples), key=lambda example: example[0])),
        others={name: {site: found for part in parts for site, found in part.others[name].items()} for name in names},
        cases={site: found for part in parts for site, found in part.cases.items()},
        final=parts[0].final,
    )


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
    """Best, median and worst held-out case; none where what is said of a case is no picture."""
    cases = [example for example in scores.examples if example[2].ndim]
    if not cases:
        return []
    picks = {"best": len(cases) - 1, "median": (len(cases) - 1) // 2, "worst": 0}
    return [(rank, cases[i][1], cases[i][2], cases[i][0]) for rank, i in picks.items()]


def shown(model: torch.nn.Module, scores: Scores, study: Study) -> list[Picture]:
    """What a report shows of a model: best, median and worst case, or on made patients what of a picture decides."""
    if found := ranked(scores):
        return found
    task = task_of(study)
    explained = [(case, task.explained(model, case)) for case in public_phantom(study).test]
    return [(words, case, decisive, likely) for case, said in explained if said for words, decisive, likely in [said]]


def classes_of(model: torch.nn.Module, cohort: Mapping[str, SiteData], study: Study) -> Classes | None:
    """What only a whole cohort can be judged by, over the held-out patients of all sites; None for other tasks."""
    return task_of(study).judged(model, [case for data in cohort.values() for case in data.test])


def dice_table(scores: Scores, trained: Mapping[str, int], study: Study) -> Dice:
    """Dice overall and by site, each with interval and n; a site without held-out patients has none."""
    pooled = scores.pooled()
    return Dice(
        measure=task_of(study).measure,
        grid=_grid([case for _, case, _ in scores.examples], study, final=scores.final) if study.structures else None,
        overall=_by_structure(pooled, study),
        mean=mean_interval(pooled),
        sites={
            site: SiteDice(
                n_train=trained.get(site),
                n_test=len(scores.patients[site]),
                mean=mean_interval(values),
                structures=_by_structure(values, study),
            )
            for site, values in scores.values.items()
        },
    )


def measure_tables(scores: Scores, study: Study) -> dict[str, Measured]:
    """The task's other measures, as `dice_table`."""
    dice, found = scores.pooled(), {}
    for measure in task_of(study).measures[1:]:
        if (values := scores.others.get(measure.name)) is None:
            continue
        pooled = np.concatenate(list(values.values()))
        lacking = (~np.isnan(dice) & np.isnan(pooled)).sum(axis=0)
        found[measure.name] = Measured(
            unit=measure.unit,
            tolerance=measure.tolerance,
            overall=_by_structure(pooled, study),
            mean=mean_interval(pooled),
            sites={
                site: SiteMeasure(mean=mean_interval(rows), structures=_by_structure(rows, study))
                for site, rows in values.items()
            },
            undefined={name: int(n) for name, n in zip(task_of(study).names, lacking, strict=True) if n},
        )
    return found


def _by_structure(values: NDArray[np.float64], study: Study) -> dict[str, Interval | None]:
    return {name: interval(column) for name, column in zip(task_of(study).names, values.T, strict=True)}


def grid_of(cohort: Mapping[str, SiteData], study: Study) -> Grid:
    """Where `assess` judges these held-out patients of a segmentation."""
    return _grid([case for data in cohort.values() for case in data.test], study, final=True)


def _grid(cases: Sequence[Case], study: Study, *, final: bool) -> Grid:
    """Where Dice was computed, and how wide its voxels are over the cases that have one."""
    stacked = study.data.dims == 2
    files = [case.original.spacing for case in cases if case.original is not None] if final else []
    if files:
        widths = [mm for spacing in files for mm in spacing]
        return Grid(size=max(study.data.sides), dims=study.data.dims, where="file", spacing=(min(widths), max(widths)))
    inside = [mm for case in cases for axis, mm in enumerate(case.spacing) if not stacked or axis != case.slice_axis]
    apart = [case.spacing[case.slice_axis] for case in cases] if stacked else []
    return Grid(
        size=max(study.data.sides),
        dims=study.data.dims,
        where="working" if layout_of(study).needs_folder else "made",
        spacing=(min(inside), max(inside)) if inside else None,
        apart=(min(apart), max(apart)) if apart else None,
    )
