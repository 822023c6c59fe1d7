"""Prior-aware identification: whose patient is in an update, for an attacker who holds 64 candidates' images.

The attacker knows the model, the code and all candidates, computes what each of them would make the site send, and
names the one that fits best: nobody can know more without having seen the site's disk. One patient trains at each of
eight sites, so that nothing but the product's protection stands between an update and its patient.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls

from audits.attacks import pictures
from audits.attacks.common import (
    MADE,
    Images,
    above,
    alike,
    interval,
    largest_success,
    mu_of,
    one_round,
    promise,
    rate,
    scratch,
    study_of,
    trained,
    update_of,
)
from audits.base import Result, Task, Verdict
from fedseg.data.cases import Case
from fedseg.study import Study
from secagg.prg import Stream

CANDIDATES = 64
SITES = 8
EPSILON = 8.0
STEPS_BEFORE = 50
OTHERS = 16
"""Patients on whom the model was trained before, and who are no candidates."""
POWER = 0.9
"""An attack that finds fewer of the unprotected has no power."""


def run(task: Task) -> Result:
    """See the module."""
    return attacked(task, epsilons=(1.0, 2.0, 4.0, 16.0, 32.0), passes={"quick": 2, "full": 16}[task.depth])


def attacked(
    task: Task,
    *,
    candidates: int = CANDIDATES,
    epsilons: Sequence[float] = (),
    passes: int = 1,
    size: int = 32,
    before: int = STEPS_BEFORE,
    images: Images = MADE,
) -> Result:
    """The audit, of any size.

    Args:
        task: gives seed and folder.
        candidates: whom the attacker holds; a multiple of `SITES`.
        epsilons: of the curve, beside `EPSILON`.
        passes: how often each candidate is identified under differential privacy.
        size: pixels a side.
        before: steps on other patients that the model has made already.
        images: of whom.
    """
    study_with = partial(_study, size, images)
    everybody = images.patients(study_with("none"), candidates + OTHERS, task.seed)
    with scratch() as folder:
        result = _attacked(
            task, everybody[:candidates], everybody[candidates:], sorted({*epsilons, EPSILON}), passes, study_with,
            before, folder,
        )  # fmt: skip
    return replace(result, figures={"images": images.words, **result.figures})


def _study(size: int, images: Images, mechanism: str, epsilon: float = EPSILON) -> Study:
    return images.adapted(study_of(sites=SITES, size=size, mechanism=mechanism, epsilon=epsilon, layout=images.layout))


def _attacked(
    task: Task,
    pool: Sequence[Case],
    others: Sequence[Case],
    epsilons: Sequence[float],
    passes: int,
    study_with: Callable[..., Study],
    before: int,
    folder: Path,
) -> Result:
    plain, private, candidates = study_with("none"), study_with("local"), len(pool)
    task.progress("a model in the middle of its training")
    model = trained(plain, others, before, folder / "before")
    task.progress(f"what each of {candidates} candidates would make a site send")
    known = signatures(plain, model, pool, folder)
    alone, summed, found = _without_noise(task, plain, model, pool, known, folder)
    clipped = signatures(study_with("clipped"), model, pool, folder)
    hits = {}
    for epsilon in epsilons:
        task.progress(f"local differential privacy, epsilon {epsilon:g}")
        hits[epsilon] = _under_privacy(
            study_with("local", epsilon), model, pool, clipped, passes if epsilon == EPSILON else 1, folder
        )
    bounds = {one: largest_success(mu_of(study_with("local", one)), 1 / candidates) for one in epsilons}
    broken = [one for one, (right, tried) in hits.items() if above(right, tried, bounds[one])]
    broken_sum = above(summed, candidates, 1 / SITES)
    verdict: Verdict = "violated" if broken or broken_sum else "holds"
    if interval(alone, candidates)[0] < POWER:
        verdict = "no power"
    right, tried = hits[EPSILON]
    picture = pictures.against_epsilon(
        task.out / "identification.png",
        {one: (right / tried, *interval(right, tried)) for one, (right, tried) in hits.items()},
        bounds,
        lines={
            f"no protection: {alone / candidates:.0%}": alone / candidates,
            f"secure sum of {SITES}: {summed / candidates:.0%}": summed / candidates,
            f"guessing: 1 in {candidates}": 1 / candidates,
        },
    )
    return Result(
        verdict,
        f"Of {candidates} candidates the attacker names the patient in a site's update {alone / candidates:.0%} of the "
        f"time without protection, {summed / candidates:.0%} from the secure sum of {SITES} sites (guessing the site: "
        f"{1 / SITES:.1%}), and {right / tried:.1%} under {promise(private)}; nobody can be right more often than "
        f"{bounds[EPSILON]:.1%} there. Honest limit: the sum still shows that a patient is at one of the sites "
        f"({found / candidates:.0%} of those in it were found): secure aggregation hides whose it is, and noise hides "
        "whether it is there.",
        figures={
            "seed": task.seed,
            "candidates": candidates,
            "sites in the sum": SITES,
            "identified, unprotected": rate(alone, candidates),
            "identified, from the secure sum": rate(summed, candidates),
            "at chance from the sum, 1 / sites": 1 / SITES,
            "found somewhere in the secure sum": rate(found, candidates),
            **{f"identified, local, epsilon {one:g}": rate(*hits[one]) for one in hits},
            **{f"bound at epsilon {one:g}, Phi(Phi^-1(1/{candidates}) + mu)": bounds[one] for one in hits},
            "protection at epsilon 8": promise(private),
            "source of the bound": "Hayes, Mahloujifar, Balle 2023: reconstruction robustness of a Gaussian",
        },
        pictures=(picture,),
    )


def signatures(study: Study, model: torch.nn.Module, pool: Sequence[Case], folder: Path) -> NDArray[np.float32]:
    """What a site would send if this candidate were its only patient: (candidates, d), without noise."""
    site = study.site_ids[0]
    return np.stack(
        [
            update_of(study, model, [case], site, folder / f"{study.privacy.mechanism}-{case.patient}").vector
            for case in pool
        ]
    )


def _without_noise(
    task: Task, study: Study, model: torch.nn.Module, pool: Sequence[Case], known: NDArray[np.float32], folder: Path
) -> tuple[int, int, int]:
    """How many were identified from an update, from a sum, and found to be anywhere in a sum."""
    stream, alone, summed, found = Stream.seeded(task.seed, "dealing"), 0, 0, 0
    order = stream.permutation(len(pool))
    for number in range(len(pool) // SITES):
        task.progress(f"round {number + 1} of {len(pool) // SITES}: updates and their secure sum")
        dealt = dict(zip(study.site_ids, order[number * SITES : (number + 1) * SITES].tolist(), strict=True))
        data = {site: [pool[who]] for site, who in dealt.items()}
        seen = one_round(study, model, data, folder / f"round-{number + 1}")
        alone += sum(int(alike(seen.updates[site], known).argmax()) == who for site, who in dealt.items())
        inside = in_sum(seen.total, known)
        found += len(set(inside) & set(dealt.values()))
        summed += _whose(inside, dealt, stream)
    return alone, summed, found


def in_sum(total: NDArray[np.float64], known: NDArray[np.float32]) -> list[int]:
    """The candidates, as many as there are sites, whose updates add up to the sum best."""
    scale = float(np.abs(known).max())
    weights, _ = nnls(known.T.astype(np.float64) / scale, total / scale)
    return sorted(np.argsort(weights)[-SITES:].tolist())


def _whose(inside: Sequence[int], dealt: Mapping[str, int], stream: Stream) -> int:
    """How many sites are named rightly: the sum is the same whoever sent what, so that order is all that is left."""
    guess = [inside[place] for place in stream.permutation(len(inside))]
    return sum(one == who for one, who in zip(guess, dealt.values(), strict=True))


def _under_privacy(
    study: Study, model: torch.nn.Module, pool: Sequence[Case], known: NDArray[np.float32], passes: int, folder: Path
) -> tuple[int, int]:
    """Hits and trials: the matched filter, which is the best test there is against Gaussian noise."""
    hits = 0
    for again in range(passes):
        for who, case in enumerate(pool):
            place = folder / f"local-{study.privacy.epsilon:g}-{again}-{case.patient}"
            seen = update_of(study, model, [case], study.site_ids[who % SITES], place).vector
            hits += int(alike(seen, known).argmax()) == who
    return hits, passes * len(pool)
