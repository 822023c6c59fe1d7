"""Membership inference: was this patient in the training of a finished model? By LiRA, with few shadow models.

Carlini et al. 2022: of each patient the losses of models that were trained with it, and of others that were not, say
how likely a model's own loss is either way. The patients are dealt to pairs of models, one half to each; a model is
judged by the others but its pair, so that as many of them had the patient as had not. A model that learned its patients
by heart is the positive control: where it is not seen through, nothing is shown of the others.
"""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm

from audits.attacks import pictures
from audits.attacks.common import (
    MADE,
    Images,
    above,
    interval,
    mu_of,
    promise,
    rate,
    scratch,
    study_of,
    trained,
    update_of,
)
from audits.base import Result, Task, Verdict
from fedseg.aggregate import PlainSum
from fedseg.data.cases import Case
from fedseg.models import build_model
from fedseg.parties import rounding_of
from fedseg.study import Study
from fedseg.tasks.table import task_of
from fedseg.update import adopt, flatten, model_hash, opened
from secagg.prg import Stream

SITES, EPSILON, SIZE, CHANNELS = 8, 8.0, 16, (8, 16)
ALARMS = 0.01
"""False alarms at which detections are counted."""
POWER = 0.1


class Judged(NamedTuple):
    """What LiRA says of models of one kind.

    Attributes:
        members: its score of each (model, patient that was in it): higher is more likely so.
        others: of each (model, patient that was not).
    """

    members: NDArray[np.float64]
    others: NDArray[np.float64]

    @property
    def detected(self) -> int:
        """Members above the score that at most 1 % of the others pass."""
        return int((self.members > np.sort(self.others)[-1 - int(ALARMS * len(self.others))]).sum())


def run(task: Task) -> Result:
    """See the module."""
    full = task.depth == "full"
    return attacked(
        task, models=16 if full else 8, pool=96 if full else 64, steps=400 if full else 200, rounds=15 if full else 8
    )


def attacked(
    task: Task, *, models: int, pool: int, steps: int, rounds: int, size: int = SIZE, images: Images = MADE
) -> Result:
    """The audit, of any size.

    Args:
        task: gives seed and folder.
        models: of each kind; even, at least 4.
        pool: patients, of whom each model has half; a multiple of 16.
        steps: of the models that learn by heart.
        rounds: of the federations.
        size: pixels a side.
        images: of whom.
    """
    made = study_of(sites=SITES, size=size, channels=CHANNELS, rounds=rounds, layout=images.layout)
    plain = images.adapted(made)
    everybody = images.patients(plain, pool, task.seed)
    with scratch() as folder:
        result = _attacked(task, plain, everybody, models, steps, folder)
    return replace(result, figures={"images": images.words, **result.figures})


def _attacked(task: Task, plain: Study, everybody: list[Case], models: int, steps: int, folder: Path) -> Result:
    private = plain.replace(privacy={"mechanism": "local", "epsilon": EPSILON})
    pool, dealt = len(everybody), _dealt(models, len(everybody), task.seed)

    def by_heart(members: list[Case], place: Path) -> torch.nn.Module:
        """So many steps on few patients, and nobody else."""
        return trained(plain, members, steps, place, lr=0.01)

    kinds: dict[str, Callable[[list[Case], Path], torch.nn.Module]] = {
        "learned by heart (control)": by_heart,
        "federated, no privacy": lambda members, place: federated(plain, members, place),
        f"federated, local, epsilon {EPSILON:g}": lambda members, place: federated(private, members, place),
    }
    judged = {}
    for name, make in kinds.items():
        losses = []
        for number, inside in enumerate(dealt):
            task.progress(f"{name}: model {number + 1} of {models}")
            members = [case for case, has in zip(everybody, inside, strict=True) if has]
            losses.append(losses_of(plain, make(members, folder / f"{name[:12]}-{number}"), everybody))
        judged[name] = lira(np.array(losses), dealt)
    control, ours, noised = judged.values()
    bound = float(norm.cdf(norm.ppf(ALARMS) + mu_of(private)))
    verdict: Verdict = "violated" if above(noised.detected, len(noised.members), bound) else "holds"
    if interval(control.detected, len(control.members))[0] < POWER:
        verdict = "no power"
    shares = [one.detected / len(one.members) for one in (control, ours, noised)]
    return Result(
        verdict,
        f"At 1 % false alarms LiRA with {models - 2} shadow models detects {shares[0]:.0%} of those whom a model "
        f"learned by heart (control), {shares[1]:.1%} in a federated model without privacy, which promises "
        f"nothing, and {shares[2]:.1%} under {promise(private)}; nobody can detect more than {bound:.1%} there.",
        figures={
            "seed": task.seed,
            "patients": pool,
            "models of each kind": models,
            **{f"{name}: detected": rate(one.detected, len(one.members)) for name, one in judged.items()},
            "false alarms at which it is counted": ALARMS,
            "bound under DP, Phi(Phi^-1(0.01) + mu)": bound,
            "protection": promise(private),
            "note": "intervals take the patients of several models for independent",
        },
        pictures=(_picture(task.out / "membership.png", judged, mu_of(private)),),
    )


def _dealt(models: int, pool: int, seed: int) -> NDArray[np.bool_]:
    """Who is in which model: (models, pool); the next model of a pair has those whom the first has not."""
    stream, rows = Stream.seeded(seed, "membership"), []
    for _ in range(models // 2):
        inside = stream.permutation(pool) < pool // 2
        rows += [inside, ~inside]
    return np.array(rows)


def federated(study: Study, members: Sequence[Case], folder: Path) -> torch.nn.Module:
    """A model as the product trains it: members over eight sites, one step a round, the product's own mean."""
    model, sites = build_model(study), study.site_ids
    data = {site: members[number :: len(sites)] for number, site in enumerate(sites)}
    state = opened(model, study.kept(len(flatten(model))))
    policy = study.policy(len(flatten(model)))
    plain = PlainSum(policy, rounding_of(None))
    for number in range(1, study.study.rounds + 1):
        done = plain.round(
            model_hash(state),
            sites,
            lambda site, number=number: update_of(study, model, data[site], site, folder, number),  # type: ignore[misc]
            lambda event: None,
            {},
        )
        state = study.following(state, done.total, done.ended.included, policy)
        adopt(model, state)
    return model


def losses_of(study: Study, model: torch.nn.Module, cases: Sequence[Case]) -> NDArray[np.float64]:
    """The task's loss of every patient alone: (patients,)."""
    task, found = task_of(study), []
    model.eval()
    with torch.inference_mode():
        for case in cases:
            image = torch.from_numpy(np.moveaxis(case.image, case.slice_axis + 1, 0).copy())
            label = torch.from_numpy(np.moveaxis(np.asarray(case.label), case.slice_axis, 0).astype(np.int64))
            found.append(float(task.loss(model(image), label)))
    return np.array(found)


def lira(losses: NDArray[np.float64], dealt: NDArray[np.bool_]) -> Judged:
    """The likelihood ratio of each model's loss of each patient, by the other models; the variance is everybody's.

    Args:
        losses: (models, patients), above 0.
        dealt: the same shape: who was in which.
    """
    told = -np.log(losses)
    scores = np.empty_like(told)
    for model in range(len(told)):
        others = [other for other in range(len(told)) if other // 2 != model // 2]
        known, inside = told[others], dealt[others]
        means = [np.where(which, known, 0).sum(0) / which.sum(0) for which in (inside, ~inside)]
        rest = known - np.where(inside, *means)
        variance = float((rest**2).sum() / max(rest.size - 2 * rest.shape[1], 1)) + 1e-12
        scores[model] = ((told[model] - means[1]) ** 2 - (told[model] - means[0]) ** 2) / (2 * variance)
    return Judged(scores[dealt], scores[~dealt])


def _picture(path: Path, judged: dict[str, Judged], mu: float) -> Path:
    alarms = np.geomspace(2e-3, 1, 60)
    curves = {}
    for name, one in judged.items():
        cuts = np.quantile(one.others, 1 - alarms)
        curves[name] = (alarms, np.array([(one.members > cut).mean() for cut in cuts]))
    bound = (alarms, norm.cdf(norm.ppf(alarms) + mu))
    return pictures.detection(path, curves, bound, ALARMS)
