"""What a run says about itself: its first event, and everything in `metrics.json`.

Every epsilon comes with its unit, delta and trust model.
"""

import platform
from collections.abc import Mapping
from importlib.metadata import version

import numpy as np
from numpy.typing import NDArray

from fedseg.budget.achieved import achieved
from fedseg.budget.explain import guarantee_of
from fedseg.budget.plan import plan_of
from fedseg.events import StudyStarted
from fedseg.mechanisms.asking import SIZES
from fedseg.records import Classes, Dice, Measured, Metrics, Privacy, Protocol
from fedseg.runfolder import FORMAT, RunFolder
from fedseg.study import Study

PACKAGES = ("secagg", "torch", "monai", "numpy", "cryptography", "dp-accounting")


STARTS = ("untrained", "zero-shot, before any training here")
"""What the model is called before the first round: of fresh weights, and of any other start."""


def versions() -> dict[str, str]:
    """Of Python and of the packages that decide what a run gives."""
    return {"python": platform.python_version(), **{name: version(name) for name in PACKAGES}}


def before_training(study: Study) -> str:
    """What this study's model is called before the first round: one of `STARTS`."""
    return STARTS[study.model.start != "scratch"]


def found_in(study: Study, state: NDArray[np.float32]) -> str:
    """What the sum of statistics found, as one sentence for people; empty where nobody was asked."""
    found = study.asked.read(state) if study.asked is not None else None
    if found is None:
        return ""
    shares = ", ".join(f"{name} {share:.6g}" for name, share in zip(study.names, found.shares, strict=True))
    ends = [f"to {end:g}" for end in SIZES] + [f"above {SIZES[-1]:g}"]
    sizes = ", ".join(f"{end} {share:.6g}" for end, share in zip(ends, found.sizes, strict=True))
    channels = ", ".join(
        f"{name} {mean:.4f} +- {sd:.4f}"
        for name, mean, sd in zip(study.data.modality, found.mean, found.sd, strict=True)
    )
    noise = "exact" if study.asked is None or study.asked.noise is None else "with noise"
    return (
        f"statistics of {found.patients:.6g} patients in training, {noise}: {shares}; longest side in mm: {sizes}; "
        f"mean and deviation of images: {channels}"
    )


def study_event(study: Study, parameters: int, *, secure: bool, party: str = "") -> StudyStarted:
    """The first event: what the study fixed, and which party writes it down."""
    policy, plan = study.policy(parameters), plan_of(study)
    return StudyStarted(
        name=study.study.name,
        study_hash=study.hash().hex(),
        sites=tuple(study.site_ids),
        structures=tuple(study.names),
        rounds=plan.rounds,
        local_steps=plan.local_steps,
        parameters=parameters,
        mechanism=plan.mechanism,
        unit=plan.unit,
        delta=plan.delta,
        budget=plan.budget,
        sample_rate=plan.sample_rate,
        clip_norm=plan.clip_norm,
        noise_multiplier=plan.noise_multiplier,
        suite=policy.suite.value,
        n=policy.clients,
        threshold=policy.threshold,
        max_corrupt=policy.max_corrupt,
        min_survivors=policy.min_survivors,
        bits=policy.bits,
        seed=study.study.seed,
        secure=secure,
        start=study.model.start,
        party=party,
        spare_rounds=plan.spare_rounds,
        trust=study.trust.sentence if study.trust.claims_epsilon else "",
        task=study.study.task,
    )


def privacy_claim(
    study: Study, per_site: Mapping[str, float], in_sums: Mapping[int, int], burned: int, span: tuple[int, int]
) -> Privacy | None:
    """The guarantee as `metrics.json` states it, epsilon of the site that has spent most; None without a claim.

    Args:
        study: the study.
        per_site: what each site has spent.
        in_sums: as `achieved` takes it.
        burned: the same.
        span: the same.
    """
    plan = plan_of(study)
    guarantee = guarantee_of(study)
    if guarantee is None or plan.delta is None:
        return None
    return Privacy(
        epsilon=max(per_site.values(), default=0.0),
        delta=plan.delta,
        unit=plan.unit,
        neighbouring=plan.neighbouring,
        trust=study.trust.sentence,
        noise_multiplier=plan.noise_multiplier,
        sample_rate=plan.sample_rate,
        clip_norm=plan.clip_norm,
        steps=plan.steps,
        per_site=dict(per_site),
        sentence=guarantee.sentence,
        achieved=achieved(study, in_sums, burned, span),
    )


def metrics_of(
    folder: RunFolder,
    parameters: int,
    command: str,
    table: Dice,
    per_site: Mapping[str, float],
    reason: str,
    measures: Mapping[str, Measured] | None = None,
    classes: Classes | None = None,
) -> Metrics:
    """Everything that `metrics.json` holds; `reason` is why the run ended, kept where the study is not complete."""
    study, tally = folder.study, folder.tally
    charged, span = tally.completed + tally.burned, (tally.first_round, tally.last_round)
    return Metrics(
        format=FORMAT,
        study=study.study.name,
        study_hash=study.hash().hex(),
        seed=study.study.seed,
        seeded_no_privacy_claim=study.study.seed is not None,
        command=command,
        rounds=study.study.rounds,
        unfinished=reason if tally.completed < study.study.rounds else "",
        started_utc=folder.started,
        seconds=folder.seconds,
        parameters=parameters,
        versions=versions(),
        mechanism=study.privacy.mechanism,
        ema=study.federation.ema,
        personal=study.federation.personal,
        privacy=privacy_claim(study, per_site, tally.in_sums, charged - sum(tally.in_sums.values()), span),
        dice=table,
        measures=dict(measures or {}),
        classes=classes,
        baselines=tally.baselines,
        history=tally.history,
        protocol=Protocol(
            rounds_completed=tally.completed,
            burned=tally.burned,
            dropouts=tally.dropouts,
            bytes_up=tally.bytes_up,
            bytes_down=tally.bytes_down,
            seconds=tally.seconds,
        ),
    )
