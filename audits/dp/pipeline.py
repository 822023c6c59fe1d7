"""The same canaries through everything: real rounds of secure aggregation, read from the sums of verified transcripts.

The server of these rounds keeps each round's public transcript. When all are done, the transcripts are verified as
anybody could, and the attacker reads the integer sums in them. Sites that collude tell it what they masked.
"""

from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from audits.dp.canary import (
    CLIP_NORM,
    Planted,
    Played,
    Plug,
    canary,
    charged_round,
    claim_of,
    coins,
    data_of,
)
from audits.dp.games import dealt, game_of_releases, game_of_sums, gradient_of, signed, two_faced
from fedseg.aggregate import SecureSum
from fedseg.data.cases import SiteData
from fedseg.ledger import Ledger
from fedseg.mechanisms.distributed import honest
from fedseg.parties import Agreed, InProcess, Train, rounding_of
from fedseg.study import Study
from fedseg.update import Update, adopt, flatten, model_hash, opened
from secagg import PinnedRoster, RoundBook, SigningKey, dequantize
from secagg.packing import dtype_for
from secagg.steps import MASKED_INPUT_COLLECTION
from secagg.transcript_files import published, verify

RUN = "audit"


class Rounds:
    """A server and the sites of a study in this process, and what a reader of the transcripts finds.

    Args:
        study: gives the policy.
        plug: gives the length of an update.
        folder: for marks and transcripts.
        colluding: sites that tell the server what they masked.
        silent: sites that share their keys in every round and fall silent before their masked input.
    """

    def __init__(
        self, study: Study, plug: Plug, folder: Path, colluding: Sequence[str], silent: Sequence[str] = ()
    ) -> None:
        key = SigningKey.generate()
        keys = {site: SigningKey.generate() for site in study.site_ids}
        self.policy = study.policy(len(flatten(plug)), key.verify_key)
        self.pinned = PinnedRoster({site: own.verify_key for site, own in keys.items()})
        agreed = Agreed(self.policy, self.pinned, RUN, study.hash(), study.trust.each_update_private)
        self._sites, self._silent = study.site_ids, dict.fromkeys(silent, MASKED_INPUT_COLLECTION)
        self._parties = InProcess(agreed, keys, folder / "marks", rounding_of(study.study.seed))
        self._kept = folder / "transcripts"
        self._kept.mkdir()
        book = RoundBook(RUN, study.hash(), key, self.policy.max_corrupt)
        self._sum = SecureSum(agreed, book, self._parties, folder / "marks", self._kept)
        self._colluding, self._told = colluding, list[NDArray[Any]]()

    def round(self, state: NDArray[np.float32], train: Train) -> tuple[NDArray[np.float64], tuple[str, ...]]:
        """One round from a state; the sum that everybody gets, and who is in it."""
        outcome = self._sum.round(model_hash(state), self._sites, train, lambda event: None, self._silent)
        known = np.zeros(self.policy.length, dtype_for(self.policy.bits))
        for site in self._colluding:
            known += self._parties.quantised[site]
        self._told.append(known)
        return outcome.total, outcome.ended.included

    def seen(self) -> list[NDArray[Any]]:
        """By round, the sum in its verified transcript less what the colluding sites told, modulo 2^b.

        Raises:
            RuntimeError: a transcript does not hold, or there are not as many as rounds.
        """
        self._sum.close()
        paths = sorted(self._kept.glob("*.transcript"))
        verdict = verify(paths, self.policy, self.pinned)
        if verdict.status != "holds" or len(paths) != len(self._told):
            raise RuntimeError(
                f"{len(paths)} transcripts of {len(self._told)} rounds: {verdict.status}, {verdict.violation}"
            )
        found = [published(path, self.policy) for path in paths]
        return [one.total - told for one, told in zip(found, self._told, strict=True) if one is not None]


def play_local(
    study: Study,
    m: int,
    seed: int,
    folder: Path,
    *,
    planted: Planted = nullcontext,
    progress: Callable[[str], object] = str,
) -> Played:
    """Mechanism "local" as the server sees it when all sites but one collude: an update is private against them all."""
    plug, present, victim = Plug(m), coins(m, seed), study.site_ids[0]
    cases = data_of(victim, (canary(victim, number) for number in np.flatnonzero(present).tolist()))
    data = {site: cases if site == victim else data_of(site, ()) for site in study.site_ids}
    rounds = Rounds(study, plug, folder, study.site_ids[1:])
    with planted():
        claim = _trained(study, plug, rounds, data, folder, progress)
    scores = np.sum([dequantize(seen, rounds.policy) for seen in rounds.seen()], axis=0)
    threshold = study.study.rounds * study.privacy.sample_rate * CLIP_NORM / 2
    exact = study.privacy.sample_rate == 1
    return Played(scores, present, claim, study.privacy.delta or 0.0, threshold, plug.tensors, exact)


def play_distributed(
    study: Study,
    m: int,
    seed: int,
    folder: Path,
    *,
    planted: Planted = nullcontext,
    progress: Callable[[str], object] = str,
) -> Played:
    """Mechanism "distributed" with as few sites in each sum as it allows, of whom `max_corrupt` collude."""
    plug, present, sites = Plug(m), coins(m, seed), study.site_ids
    least, most = study.terms.min_survivors, study.terms.max_corrupt
    colluding, silent = sites[least - most : least], sites[least:]
    held = dealt(m, present, sites[: honest(study.terms)])
    data = {site: held.get(site, data_of(site, ())) for site in sites}
    rounds = Rounds(study, plug, folder, colluding, silent)
    states: list[NDArray[np.float32]] = []
    with planted():
        claim = _trained(study, plug, rounds, data, folder, progress, states)
    scores = np.zeros(m)
    for state, seen in zip(states, rounds.seen(), strict=True):
        at = _at(plug, state)
        scores -= gradient_of(signed(seen, rounds.policy.bits), at, study)
    return game_of_sums(study, scores, present, claim, plug)


def play_svt(
    study: Study,
    trials: int,
    seed: int,
    folder: Path,
    *,
    planted: Planted = nullcontext,
    progress: Callable[[str], object] = str,
) -> Played:
    """Mechanism "svt" as the server sees it when all sites but one collude: one release a round."""
    plug, present, victim = Plug(1), coins(trials, seed), study.site_ids[0]
    rounds = Rounds(study, plug, folder, study.site_ids[1:])
    ledgers = {site: Ledger(folder / f"{site}.jsonl") for site in study.site_ids}
    others = {site: two_faced(site, there=False) for site in study.site_ids[1:]}
    sides = {there: two_faced(victim, there=there) for there in (False, True)}
    state = opened(plug, study.kept(1))
    with planted():
        for trial, there in enumerate(present.tolist()):
            if trial % 20 == 0:
                progress(f"epsilon {study.privacy.epsilon:g}, round {trial} of {trials}")
            data = {victim: sides[there], **others}
            rounds.round(state, _training(study, plug, data, 1, ledgers))
    scores = np.array([dequantize(seen, rounds.policy)[0] for seen in rounds.seen()])
    return game_of_releases(study, scores, present, claim_of(ledgers[victim], study))


def _trained(
    study: Study,
    plug: Plug,
    rounds: Rounds,
    data: Mapping[str, SiteData],
    folder: Path,
    progress: Callable[[str], object],
    states: list[NDArray[np.float32]] | None = None,
) -> float:
    """All rounds of a study as the product goes on from sum to sum; the claim of the site that has spent most."""
    ledgers = {site: Ledger(folder / f"{site}.jsonl") for site in study.site_ids}
    state = opened(plug, study.kept(len(flatten(plug))))
    for number in range(1, study.study.rounds + 1):
        progress(f"epsilon {study.privacy.epsilon:g}, round {number} of {study.study.rounds}")
        if states is not None:
            states.append(state)
        total, included = rounds.round(state, _training(study, _at(plug, state), data, number, ledgers))
        state = study.following(state, total, included, rounds.policy)
    return max(claim_of(ledger, study) for ledger in ledgers.values())


def _training(
    study: Study, plug: Plug, data: Mapping[str, SiteData], number: int, ledgers: Mapping[str, Ledger]
) -> Train:
    def train(site: str) -> Update:
        """What the site sends of this round."""
        return charged_round(plug, data[site], study, site, number, ledgers[site])

    return train


def _at(plug: Plug, state: NDArray[np.float32]) -> Plug:
    """A plug with the weights of a state."""
    moved = Plug(len(flatten(plug)))
    adopt(moved, state)
    return moved
