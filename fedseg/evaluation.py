"""What a federation does between two aggregations: average, evaluate, and say what it did.

Shared by the simulation and the coordinator. Every figure comes with its n, every epsilon with its unit, delta and
trust model; nothing here sees an update that is not part of a sum.
"""

import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.data.cases import Case, SiteData
from fedseg.events import StudyStarted
from fedseg.metrics import bootstrap, by_patient
from fedseg.predict import predict
from fedseg.privacy.budget import TRUST, explain, noise_multiplier
from fedseg.runfolder import FORMAT, Picture, RunFolder
from fedseg.study import Study
from fedseg.tasks.table import task_of
from secagg.policy import Policy

BOOTSTRAP_SEED = 0
PACKAGES = ("secagg", "torch", "monai", "numpy", "cryptography", "dp-accounting")


def fed_avg(
    model: NDArray[np.float32], total: NDArray[np.float64], included: Sequence[str], policy: Policy
) -> NDArray[np.float32]:
    """The next model: weights are public constants, so the mean is over the included sites' weights.

    Args:
        model: (d,) the global model of the round.
        total: (d,) weighted sum of the included updates.
        included: their sites.
        policy: gives the weights.

    Source: McMahan et al. 2017, Algorithm 1, on differences of weights.
    """
    weight = sum(policy.weight(site) for site in included)
    return (model + total / weight).astype(np.float32)


# --- Evaluation --------------------------------------------------------------------------------------------------


def before_training(study: Study) -> str:
    """What the model is called before the first round."""
    return "untrained" if study.model.start == "scratch" else "zero-shot, before any training here"


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


def interval(values: NDArray[np.float64]) -> dict[str, Any] | None:
    """Bootstrap interval of one score per patient as JSON; None where nobody has one."""
    found = bootstrap(values, BOOTSTRAP_SEED)
    return asdict(found) if found is not None else None


def mean_interval(values: NDArray[np.float64]) -> dict[str, Any] | None:
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


# --- What a run says about itself --------------------------------------------------------------------------------


def study_event(study: Study, parameters: int, *, secure: bool) -> StudyStarted:
    """The first event: what the study fixed."""
    policy, privacy = study.policy(parameters), study.privacy
    return StudyStarted(
        name=study.study.name,
        study_hash=study.hash().hex(),
        sites=tuple(study.site_ids),
        structures=tuple(study.structures),
        rounds=study.study.rounds,
        local_steps=study.study.local_steps,
        parameters=parameters,
        mechanism=privacy.mechanism,
        unit=privacy.unit,
        delta=privacy.delta if study.private else None,
        budget=privacy.epsilon if study.private else None,
        sample_rate=privacy.sample_rate,
        clip_norm=privacy.clip_norm if study.private else None,
        noise_multiplier=noise_multiplier(study),
        suite=policy.suite.value,
        n=policy.clients,
        threshold=policy.threshold,
        max_corrupt=policy.max_corrupt,
        min_survivors=policy.min_survivors,
        bits=policy.bits,
        seed=study.study.seed,
        secure=secure,
        start=study.model.start,
    )


def privacy_claim(study: Study, per_site: Mapping[str, float]) -> dict[str, Any] | None:
    """The guarantee as `metrics.json` states it, epsilon of the site that has spent most; None without a claim."""
    if not study.private:
        return None
    plan = explain(study)
    return {
        "epsilon": max(per_site.values(), default=0.0),
        "delta": plan.delta,
        "unit": plan.unit,
        "neighbouring": plan.neighbouring,
        "trust": TRUST[plan.mechanism],
        "noise_multiplier": plan.noise_multiplier,
        "sample_rate": plan.sample_rate,
        "clip_norm": plan.clip_norm,
        "steps": plan.steps,
        "per_site": dict(per_site),
        "sentence": plan.sentence,
    }


def dice_table(scores: Scores, trained: Mapping[str, int], study: Study) -> dict[str, Any]:
    """Dice overall and by site, each with interval and n; a site without held-out patients has none."""

    def by_structure(values: NDArray[np.float64]) -> dict[str, Any]:
        return {name: interval(column) for name, column in zip(task_of(study).names, values.T, strict=True)}

    pooled = scores.pooled()
    return {
        "overall": by_structure(pooled),
        "mean": mean_interval(pooled),
        "sites": {
            site: {
                "n_train": trained.get(site),
                "n_test": len(scores.patients[site]),
                "mean": mean_interval(values),
                "structures": by_structure(values),
            }
            for site, values in scores.values.items()
        },
    }


def metrics_of(
    folder: RunFolder,
    parameters: int,
    command: str,
    table: Mapping[str, Any],
    per_site: Mapping[str, float],
    reason: str,
) -> dict[str, Any]:
    """Everything that `metrics.json` holds; `reason` is why the run ended, kept where the study is not complete."""
    study, tally = folder.study, folder.tally
    return {
        "format": FORMAT,
        "study": study.study.name,
        "study_hash": study.hash().hex(),
        "seed": study.study.seed,
        "seeded_no_privacy_claim": study.study.seed is not None,
        "command": command,
        "rounds": study.study.rounds,
        "unfinished": reason if tally.completed < study.study.rounds else "",
        "started_utc": folder.started,
        "seconds": folder.seconds,
        "parameters": parameters,
        "versions": {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}},
        "mechanism": study.privacy.mechanism,
        "privacy": privacy_claim(study, per_site),
        "dice": table,
        "baselines": tally.baselines,
        "history": tally.history,
        "protocol": {
            "rounds_completed": tally.completed,
            "burned": tally.burned,
            "dropouts": tally.dropouts,
            "bytes_up": tally.bytes_up,
            "bytes_down": tally.bytes_down,
            "seconds": tally.seconds,
        },
    }
