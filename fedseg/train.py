"""One site's part of a round: `local_steps` noisy steps from the global model, charged in the ledger before the first.

What comes out is the difference of weights, noised (or let go unprotected with mechanism "none"). Must never: train
before the ledger's event is on disk, or keep anything of one round (optimiser, noise, gradients) for the next.
Each patient has streams of its own in each step: what it adds depends on nobody else's being there.
PyTorch, NumPy and the cipher release the interpreter lock while they compute, so a heartbeat in another thread lives.
"""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import TypeAlias

import torch

from fedseg.augment import viewed
from fedseg.budget.charge import charge
from fedseg.course import Own
from fedseg.data.cases import Case, SiteData
from fedseg.device import asked, on_device
from fedseg.errors import ConfigError
from fedseg.ledger import Ledger
from fedseg.mechanisms.mechanism import Keys, Steps
from fedseg.models import check_model
from fedseg.privacy.dpsgd import draw, stream_of
from fedseg.sharing.sending import Owed
from fedseg.study import Study
from fedseg.tasks.table import batch_of, task_of
from fedseg.update import Update, assign, flatten
from secagg.encoding import digest
from secagg.prg import KEY_BYTES, Stream

OnStep: TypeAlias = Callable[[int, int], None]


def train_round(
    model: torch.nn.Module,
    data: SiteData,
    study: Study,
    *,
    site: str,
    training_run: str,
    round_number: int,
    ledger: Ledger,
    on_step: OnStep | None = None,
    owed: Owed | None = None,
    own: Own | None = None,
) -> Update:
    """Charge the round, train it, and return the difference of weights; `model` is left as it was but for `own`.

    Args:
        model: the global model; tensors that require no gradient stay as they are.
        data: the site's cases; those of `data.train` are drawn by patient.
        study: gives steps, learning rate, privacy and seed.
        site: the site's id.
        training_run: name of the run whose rounds are counted.
        round_number: at least 1.
        ledger: the site's ledger.
        on_step: called after every step with its number and the number of steps.
        owed: what this site's earlier updates owe, with error feedback.
        own: what stays at this site: it is put into the model, and told where the steps lead.

    Raises:
        BudgetExceededError: this round would pass the budget; nothing was trained.
        LedgerError: the ledger is damaged or cannot be written; nothing was trained.
        UnsupportedModelError: the model mixes patients.
        CaseError: a case has no label.
        ConfigError: training diverged.
    """
    check_model(model)
    event_id = charge(ledger, study, site, training_run, round_number)
    payers = ledger.payers
    if payers is not None:  # who has spent too much elsewhere is as if absent
        data = replace(data, train=tuple(case for case in data.train if case.patient in payers.staying))
    if own is not None:
        own.put_into(model)
    steps = local_steps(model, data, study, site=site, round_number=round_number, on_step=on_step)
    if own is not None:
        own.then(round_number, steps.weights)
    return steps.update(site, event_id, partial(_key, study, site, round_number, 0), owed)


def local_steps(
    model: torch.nn.Module,
    data: SiteData,
    study: Study,
    *,
    site: str,
    round_number: int,
    on_step: OnStep | None = None,
) -> Steps:
    """The steps of one round, without a charge: `train_round` charges first, attacks and audits need not.

    Args:
        model: where the steps begin; left as it was.
        data: the site's cases; those of `data.train` are drawn by patient.
        study: gives steps, learning rate, privacy and seed.
        site: the site's id.
        round_number: at least 1.
        on_step: called after every step with its number and the number of steps.

    Raises:
        CaseError: a case has no label.
        ConfigError: training diverged.
    """
    cases: dict[str, list[Case]] = {patient: [] for patient in data.patients}
    for case in data.train:
        cases[case.patient].append(case)
    start = flatten(model)
    model.train()
    try:
        terms = study.terms
        with on_device(model, study):
            taken = study.mechanism.begin(model, terms)
            for step in range(1, study.study.local_steps + 1):
                taken.at(terms.rate(round_number, step))
                _step(taken, model, cases, study, partial(_key, study, site, round_number, step))
                if on_step is not None:
                    on_step(step, study.study.local_steps)
    finally:
        assign(model, start)
    if taken.diverged:
        raise ConfigError(f"[study] lr = {study.study.lr:g}: training diverged in round {round_number}; lower it")
    return taken


def _step(taken: Steps, model: torch.nn.Module, cases: Mapping[str, Sequence[Case]], study: Study, keys: Keys) -> None:
    """Draw patients, and let the mechanism make a step of what each of them gives; or of a batch of single views."""
    if study.training.batch:
        taken.step([("", batch_loss(model, cases, study, Stream(keys("slices"))))] if cases else [], keys)
        return
    drawn, slices = draw(list(cases), study.privacy.sample_rate, keys("sampling")), keys("slices")
    taken.step(
        ((patient, patient_loss(model, cases[patient], study, stream_of(patient, slices))) for patient in drawn), keys
    )


def patient_loss(model: torch.nn.Module, cases: Sequence[Case], study: Study, stream: Stream) -> torch.Tensor:
    """The task's loss of one patient: a scalar over fresh slices or patches of one of the patient's cases.

    With `[privacy] multiplicity` the mean over so many views, each drawn anew (De et al. 2022): one patient, one loss,
    one gradient that is clipped, so that epsilon is what it was.
    """

    def view() -> tuple[torch.Tensor, torch.Tensor]:
        """Slices or patches of one of the patient's cases."""
        case = cases[int(stream.integers(1, len(cases))[0])]
        return viewed(*batch_of(case, study, stream), study, case.slice_axis, stream)

    def once() -> torch.Tensor:
        """The loss of one view, or of two that are mixed."""
        images, targets = view()
        if not study.training.mixup:
            return _loss(model, images, targets, study)
        others, theirs = view()
        return mixed_loss(model, (images, targets), (others, theirs), between(study.training.mixup, stream), study)

    if study.privacy.multiplicity == 1:
        return once()
    return torch.stack([once() for _ in range(study.privacy.multiplicity)]).mean()


def mixed_loss(
    model: torch.nn.Module,
    one: tuple[torch.Tensor, torch.Tensor],
    other: tuple[torch.Tensor, torch.Tensor],
    share: float,
    study: Study,
) -> torch.Tensor:
    """MixUp (Zhang et al. 2018) of two views of one patient: what is said of the mixture is held against both.

    Args:
        model: the network.
        one: images (k, C, *size) and targets (k, ...); of more views than the other has none is mixed.
        other: the same.
        share: of `one`, 0 to 1.
        study: gives the task.
    """
    k = min(len(one[0]), len(other[0]))
    outputs = asked(model, share * one[0][:k] + (1 - share) * other[0][:k], study)
    task, device = task_of(study), next(model.parameters()).device
    first, second = (task.loss(outputs, targets[:k].to(device)) for _, targets in (one, other))
    return share * first + (1 - share) * second


def between(alpha: float, stream: Stream) -> float:
    """A draw of Beta(alpha, alpha), alpha above 0 and at most 1, by Joehnk's way (1964)."""
    while True:
        drawn = stream.uniform(2)
        first, second = (math.pow(one, 1 / alpha) for one in drawn)
        if first + second == 0:  # a small alpha, of which hardly anything but 0 and 1 comes
            return 1.0 if drawn[0] > drawn[1] else 0.0
        if first + second <= 1:
            return first / (first + second)


def batch_loss(
    model: torch.nn.Module, cases: Mapping[str, Sequence[Case]], study: Study, stream: Stream
) -> torch.Tensor:
    """The task's loss of `[training] batch` single slices or patches together, without privacy.

    They are of as many patients, or of all of them in turn.
    """
    single = study.model_copy(update={"data": study.data.model_copy(update={"slices_per_patient": 1})})
    patients, drawn = list(cases), list[str]()
    while len(drawn) < study.training.batch:
        drawn += [patients[number] for number in stream.permutation(len(patients))]
    parts: dict[int, list[tuple[torch.Tensor, torch.Tensor]]] = {}
    for patient in drawn[: study.training.batch]:
        case = cases[patient][int(stream.integers(1, len(cases[patient]))[0])]
        parts.setdefault(case.slice_axis, []).append(batch_of(case, single, stream))
    together = {axis: map(torch.cat, zip(*those, strict=True)) for axis, those in parts.items()}
    seen = [viewed(images, targets, study, axis, stream) for axis, (images, targets) in together.items()]
    images, targets = (torch.cat(those) for those in zip(*seen, strict=True))
    return _loss(model, images, targets, study)


def _loss(model: torch.nn.Module, images: torch.Tensor, targets: torch.Tensor, study: Study) -> torch.Tensor:
    outputs = asked(model, images, study)
    return task_of(study).loss(outputs, targets.to(next(model.parameters()).device))


def _key(study: Study, site: str, round_number: int, step: int, purpose: str) -> bytes:
    """A key that is used once: from the operating system, or reproducible where the study has a seed."""
    seed = study.study.seed
    return secrets.token_bytes(KEY_BYTES) if seed is None else digest("step", seed, purpose, site, round_number, step)
