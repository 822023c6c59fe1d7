"""One model on labelled images: its figures with intervals, and case by case, which stays where the images are."""

import math
import warnings
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Self

import torch

from fedseg.compare.cells import complete_run, contents_of
from fedseg.compare.rows import Cohort
from fedseg.data.cases import SiteData
from fedseg.data.layouts.table import entries, layout_of
from fedseg.data.loading import load_cohort, load_site
from fedseg.errors import CaseError, ConfigError, SiteWarning
from fedseg.evaluation import assess, dice_table, measure_tables
from fedseg.records import Dice, Measured, Record
from fedseg.simulate import Options, trainable_without
from fedseg.study import Study
from fedseg.tasks.table import task_of
from secagg.encoding import digest

ELSEWHERE = "elsewhere"
"""What a folder is called that is no site's of the study."""


class CaseFigures(Record):
    """One case.

    Attributes:
        site: its id.
        case: what the layout calls it: it may name the patient.
        values: by measure, a value for each structure.
    """

    site: str
    case: str
    values: dict[str, list[float | None]]


class Judgement(Record):
    """What `fedseg evaluate` says of a model.

    Attributes:
        dice: the first measure of the task.
        measures: the others.
        names: of all measures.
        structures: names.
        cases: one by one.
    """

    dice: Dice
    measures: dict[str, Measured]
    names: list[str]
    structures: list[str]
    cases: list[CaseFigures]

    @classmethod
    def of(cls, model: torch.nn.Module, cohort: Cohort, study: Study) -> Self:
        """Of every held-out patient of a cohort."""
        task, scores = task_of(study), assess(model, cohort, study)
        names = [measure.name for measure in task.measures]
        found = []
        for site, cases in scores.cases.items():
            for case, rows in cases:
                values = {
                    name: [None if math.isnan(value) else float(value) for value in row]
                    for name, row in zip(names, rows, strict=True)
                }
                found.append(CaseFigures(site=site, case=case, values=values))
        return cls(
            dice=dice_table(scores, {}, study),
            measures=measure_tables(scores, study),
            names=names,
            structures=list(task.names),
            cases=found,
        )


def cohort_of(study: Study, data: Path | None, only: str, *, everybody: bool) -> Cohort:
    """The patients that a model is judged on.

    Args:
        study: the model's.
        data: one folder with a subfolder for each site, one site's own with `only`, or any other with the study's
            layout, whose patients are all judged on.
        only: a site of the study.
        everybody: whether those are judged on too that the study trains on.

    Raises:
        ConfigError, CaseError: as `load_site`; or nobody is held out.
    """
    if only:
        cohort: Cohort = {only: load_site(data, only, study)}
    elif data is not None and layout_of(study).needs_folder and not any((data / s).is_dir() for s in study.site_ids):
        return {ELSEWHERE: _elsewhere(data, study)}
    else:
        cohort = load_cohort(data, study)
    if everybody:
        cohort = {site: replace(data, train=(), test=(*data.train, *data.test)) for site, data in cohort.items()}
    if not any(data.test for data in cohort.values()):
        raise ConfigError("nobody is held out by the study; judge on all patients with --everybody")
    return cohort


def _elsewhere(folder: Path, study: Study) -> SiteData:
    """All labelled patients of a hospital that is not in the study."""
    cases = []
    for entry in entries(folder, ELSEWHERE, study):
        case = entry.load(ELSEWHERE, study)
        if case.label is None:
            raise CaseError(case.name, "has no label map to be judged by; add it or remove the patient")
        cases.append(case)
    warnings.warn(
        f"[{folder}] is no site's folder of the study: all its {len(cases)} images are judged on; had the model been "
        "trained on any of them, these figures would be too good",
        SiteWarning,
        stacklevel=2,
    )
    return SiteData(ELSEWHERE, (), tuple(cases))


def left_out(
    study: Study, site: str, data: Path | None, out: Path, command: str, tell: Callable[[str], None]
) -> tuple[Cohort, Path]:
    """Train on all other sites' training patients, or go on with it.

    Args:
        study: what is trained.
        site: whose patients, all of them, are new to the model.
        data: as of a simulation.
        out: where the run goes.
        command: how it was started, for the record.
        tell: where the run is said to be.

    Returns:
        The site's patients, all to be judged on, and the model's file.

    Raises:
        ConfigError, CaseError: as `simulate`.
    """
    trainable_without(study, site)
    whole = load_cohort(data, study)
    tested = replace(whole[site], train=(), test=(*whole[site].train, *whole[site].test))
    cohort = {name: tested if name == site else replace(one, test=()) for name, one in whole.items()}
    told = digest("left out", study.hash(), contents_of(cohort))
    folder = out / f"{study.study.name}-without-{site}-{told.hex()[:8]}"
    folder.mkdir(parents=True, exist_ok=True)
    run = complete_run(folder, study, cohort, Options(plain=True, leave_out=site, command=command))
    tell(f"run {run}")
    return {site: tested}, run / "model.safetensors"
