"""Games where noise is in a sum, and where a site releases a few values; `canary` has the one of noisy updates."""

from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audits.dp.canary import CLIP_NORM, PULL, Planted, Played, Plug, canary, charged_round, claim_of, coins, data_of
from fedseg.data.cases import SiteData
from fedseg.ledger import Ledger
from fedseg.mechanisms.distributed import honest, noise_of, rotation
from fedseg.privacy.shares import Grid
from fedseg.study import Study
from fedseg.update import NoiseShared, Update, assign, flatten


def dealt(m: int, present: NDArray[np.bool_], sites: list[str]) -> dict[str, SiteData]:
    """The canaries that are there, dealt to sites in turn."""
    held: dict[str, list[int]] = {site: [] for site in sites}
    for number in range(m):
        if present[number]:
            held[sites[number % len(sites)]].append(number)
    return {site: data_of(site, (canary(site, number) for number in numbers)) for site, numbers in held.items()}


def gradient_of(total: NDArray[np.int64], plug: Plug, study: Study) -> NDArray[np.float64]:
    """The gradient that a sum of whole numbers stands for at these weights, as every party turns it back."""
    m = len(flatten(plug))
    grid = Grid(m, study.privacy.clip_norm or 0.0, noise_of(study.terms).sensitivity)
    return grid.gradient(total, rotation(flatten(plug)))


def signed(values: NDArray[Any], bits: int) -> NDArray[np.int64]:
    """Numbers modulo 2^bits as the signed numbers nearest to 0."""
    low = values.astype(np.int64) & np.int64((1 << bits) - 1)
    return np.where(low >= 1 << (bits - 1), low - (1 << bits), low)


def play_distributed(
    study: Study,
    m: int,
    seed: int,
    folder: Path,
    *,
    planted: Planted = nullcontext,
    progress: Callable[[str], object] = str,
) -> Played:
    """All rounds of mechanism "distributed", seen by a server with `max_corrupt` colluding sites.

    It knows what those sites sent, and subtracts it: what is left is the sum of as few honest sites as any sum has,
    min_survivors - max_corrupt. The sum is made here, without masks; `pipeline` has the same with the protocol.
    """
    sites = study.site_ids[: honest(study.terms)]
    plug, present = Plug(m), coins(m, seed)
    data = dealt(m, present, sites)
    ledgers = {site: Ledger(folder / f"{site}.jsonl") for site in sites}
    scores = np.zeros(m)
    with planted():
        for number in range(1, study.study.rounds + 1):
            progress(f"epsilon {study.privacy.epsilon:g}, round {number} of {study.study.rounds}")
            updates = {site: charged_round(plug, data[site], study, site, number, ledgers[site]) for site in sites}
            total = np.sum([whole(update, study.secagg.bits) for update in updates.values()], axis=0)
            gradient = gradient_of(total, plug, study)
            scores -= gradient
            assign(plug, (flatten(plug) - gradient).astype(np.float32))
    claim = max(claim_of(ledger, study) for ledger in ledgers.values())
    return game_of_sums(study, scores, present, claim, plug)


def whole(update: Update, bits: int) -> NDArray[np.int64]:
    """A site's whole numbers, as it would mask them, signed again."""
    if not isinstance(update, NoiseShared):
        raise TypeError("only a share of the noise is made of whole numbers")
    return signed(update.vector, bits)


def game_of_sums(
    study: Study, scores: NDArray[np.float64], present: NDArray[np.bool_], claim: float, plug: Plug
) -> Played:
    """A game whose scores are sums of gradients over all rounds."""
    threshold = study.study.rounds * study.privacy.sample_rate * CLIP_NORM / 2
    exact = study.privacy.sample_rate == 1 and study.privacy.noise == "discrete-gaussian"
    return Played(scores, present, claim, study.privacy.delta or 0.0, threshold, plug.tensors, exact)


def two_faced(site: str, *, there: bool) -> SiteData:
    """A site with one weight: somebody always pulls it down, and the canary, where it is there, ten times harder up."""
    cases = [canary(site, 0, -PULL)]
    return data_of(site, [*cases, canary(site, 0, 10 * PULL)] if there else cases)


def play_svt(
    study: Study,
    trials: int,
    seed: int,
    folder: Path,
    *,
    planted: Planted = nullcontext,
    progress: Callable[[str], object] = str,
) -> Played:
    """Many releases of mechanism "svt", each of a study of its own with one round; the canary turns the whole update.

    That is the largest change there is, from one end of the clip range to the other. A round is charged once however
    often it is tried, so the ledger says what each release claims. A score near the upper end says that the canary was
    there.
    """
    plug, present, scores = Plug(1), coins(trials, seed), np.zeros(trials)
    site = study.site_ids[0]
    ledger = Ledger(folder / f"{site}.jsonl")
    data = {there: two_faced(site, there=there) for there in (False, True)}
    with planted():
        for trial, there in enumerate(present.tolist()):
            if trial % 200 == 0:
                progress(f"epsilon {study.privacy.epsilon:g}, release {trial} of {trials}")
            scores[trial] = charged_round(plug, data[there], study, site, 1, ledger).vector[0]
    return game_of_releases(study, scores, present, claim_of(ledger, study))


def game_of_releases(study: Study, scores: NDArray[np.float64], present: NDArray[np.bool_], claim: float) -> Played:
    """A game whose scores are single releases within the clip range."""
    threshold = 0.999 * (study.secagg.clip_range or 0.0)
    return Played(scores, present, claim, study.privacy.delta or 0.0, threshold, (), exact=False)
