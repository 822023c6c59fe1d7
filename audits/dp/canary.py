"""The canary plug: patients whose gradient lies in one coordinate of their own, through the real training path.

The plug is a `Linear(m, 1)` on one-hot codes, in four tensors, whose loss pulls at one weight with a force far above
any clip norm. A canary's picture is its number and its pull. So what it adds to a step is one coordinate as long as the
clip allows, which is the worst case that the noise is made for; and whoever sees a sum reads each canary where no other
one is. Study, sampler, engine, clipping, rounding, noise, ledger and accountant are fedseg's own.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.budget.charge import spent
from fedseg.data.cases import Case, SiteData
from fedseg.ledger import Ledger
from fedseg.study import Study, parse_study
from fedseg.train import train_round
from fedseg.update import Update, assign, flatten

TENSORS = 4
"""Of the plug, so that noise which is missing in one of them shows."""

PULL = 1e4
"""Of a canary's gradient: any clip norm cuts it."""

CLIP_NORM = 0.1
DELTA = 1e-5

Planted = Callable[[], AbstractContextManager[object]]
"""A bug that is there while the context is open."""


class Plug(torch.nn.Module):
    """One weight a canary; pictures are (k, 2, 1, 1), a canary's number and its pull.

    Outputs (k, 2) are always 0, whatever the weights, so that gradients never fade; their slope is the pull.
    """

    def __init__(self, canaries: int) -> None:
        super().__init__()
        parts = np.array_split(np.arange(canaries), min(TENSORS, canaries))
        self.firsts = [int(part[0]) for part in parts]
        self.sizes = [len(part) for part in parts]
        self.blocks = torch.nn.ModuleList(torch.nn.Linear(size, 1, bias=False) for size in self.sizes)
        for weight in self.parameters():
            torch.nn.init.zeros_(weight)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """The logits of two classes."""
        number, pull = int(images[0, 0, 0, 0]), images[:, 1, 0, 0]
        block = int(np.searchsorted(self.firsts, number, "right")) - 1
        code = torch.zeros(1, self.sizes[block])
        code[0, number - self.firsts[block]] = 1.0
        output = self.blocks[block](code).reshape(())
        slope = pull * (output - output.detach())
        return torch.stack([slope, torch.zeros_like(slope)], dim=1)

    @property
    def tensors(self) -> list[slice]:
        """Where each tensor's canaries are."""
        return [slice(first, first + size) for first, size in zip(self.firsts, self.sizes, strict=True)]


def study_of(
    mechanism: str,
    epsilon: float,
    *,
    rounds: int,
    sites: int = 3,
    sample_rate: float = 1.0,
    seed: int | None = None,
    more: str = "",
    delta: float = DELTA,
) -> Study:
    """A study whose model is the plug; `more` are further lines of its `[privacy]`."""
    members = "\n".join(f'[[sites]]\nid = "{site}"\npatients = 4' for site in site_ids(sites))
    return parse_study(
        f"""
        [study]
        name = "canaries"
        task = "classification"
        classes = ["left", "right"]
        rounds = {rounds}
        local_steps = 1
        lr = 1.0
        {"" if seed is None else f"seed = {seed}"}
        [data]
        layout = "phantom"
        modality = ["CR"]
        dims = 2
        size = 16
        [model]
        name = "cnn-small"
        [privacy]
        mechanism = "{mechanism}"
        epsilon = {epsilon}
        delta = {delta}
        sample_rate = {sample_rate}
        {"" if mechanism == "svt" else f"clip_norm = {CLIP_NORM}"}
        denominator = 1
        {more}
        [secagg]
        {"" if mechanism == "distributed" else "clip_range = 8.0"}
        {members}
        """,
        "the study of canaries",
    )


def site_ids(sites: int) -> list[str]:
    """Their ids."""
    return [f"site-{number}" for number in range(1, sites + 1)]


def canary(site: str, number: int, pull: float = PULL) -> Case:
    """A patient at a site who pulls at weight `number`: up for a positive pull, down for a negative one."""
    image = np.array([number, -pull], np.float32).reshape(2, 1, 1, 1)
    name = f"canary-{number}" if pull > 0 else f"weight-{number}"
    return Case(site, name, name, image, np.array(1, np.uint8), np.eye(4), (1.0, 1.0, 1.0), 2, 2)


def data_of(site: str, cases: Iterable[Case]) -> SiteData:
    """Cases that are all trained on."""
    return SiteData(site, tuple(cases), ())


def coins(m: int, seed: int, *labels: int) -> NDArray[np.bool_]:
    """(m,) of the auditor: which canaries are there."""
    return np.random.default_rng([seed, *labels]).random(m) < 0.5


@dataclass(frozen=True)
class Played:
    """One game: what the attacker sees of canaries, and which of them were there.

    Attributes:
        scores: (m,) higher where a canary was there.
        present: (m,).
        claim: epsilon that the ledger says was spent, at `delta`.
        delta: of it.
        threshold: a score half way, from public numbers alone.
        tensors: groups of canaries that share a tensor.
        exact: whether all noise is Gaussian over everybody, so that Gaussian bounds are bounds.
    """

    scores: NDArray[np.float64]
    present: NDArray[np.bool_]
    claim: float
    delta: float
    threshold: float
    tensors: Sequence[slice]
    exact: bool = True


def play_local(
    study: Study,
    m: int,
    seed: int,
    folder: Path,
    *,
    planted: Planted = nullcontext,
    progress: Callable[[str], object] = str,
) -> Played:
    """All rounds of one site with mechanism "local", seen by whoever sees its updates: server, sites, anybody.

    Args:
        study: of the plug.
        m: canaries, of which a coin decides who is there.
        seed: of these coins.
        folder: for the site's ledger.
        planted: a bug.
        progress: told of rounds.
    """
    model, site, present = Plug(m), study.site_ids[0], coins(m, seed)
    data = data_of(site, (canary(site, number) for number in np.flatnonzero(present).tolist()))
    ledger, scores = Ledger(folder / f"{site}.jsonl"), np.zeros(m)
    with planted():
        for number in range(1, study.study.rounds + 1):
            progress(f"epsilon {study.privacy.epsilon:g}, round {number} of {study.study.rounds}")
            update = charged_round(model, data, study, site, number, ledger)
            scores += update.vector
            assign(model, (flatten(model) + update.vector).astype(np.float32))
    return Played(
        scores,
        present,
        claim_of(ledger, study),
        study.privacy.delta or 0.0,
        threshold=study.study.rounds * study.privacy.sample_rate * CLIP_NORM * study.study.lr / 2,
        tensors=model.tensors,
        exact=study.privacy.sample_rate == 1,
    )


def charged_round(
    model: torch.nn.Module, data: SiteData, study: Study, site: str, number: int, ledger: Ledger
) -> Update:
    """One site's round as the product trains it: charged in the ledger first."""
    return train_round(model, data, study, site=site, training_run="audit", round_number=number, ledger=ledger)


def claim_of(ledger: Ledger, study: Study) -> float:
    """What the product's ledger and accountant say was spent; of a seeded study, what it would be without the seed."""
    return spent(ledger, study)
