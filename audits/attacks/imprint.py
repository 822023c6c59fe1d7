"""Imprint: a malicious coordinator's network in which each patient's image lands in a row of its own.

In front of the real network stands a layer of 512 neurons that all measure how bright an image is, each with another
threshold (Fowl et al. 2022, "Robbing the Fed"). The gradients of two neighbours differ by the images in between: where
that is one, it can be read off, whoever added up. So the *sum* of eight sites gives most of their images away: secure
aggregation alone does not stop this, and is not said to. What stops it is that no site of fedseg trains such a network,
and, where one did, noise.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import norm
from torch import Tensor, nn

from audits.attacks import pictures
from audits.attacks.common import (
    above,
    largest_success,
    mu_of,
    nearest,
    one_round,
    patients,
    pixels,
    promise,
    psnr,
    rate,
    scratch,
    ssim,
    study_of,
    update_of,
)
from audits.attacks.desk import RUN, Desk, tell
from audits.base import Result, Task, Verdict
from fedseg.aggregate import SecureSum
from fedseg.data.cases import Case
from fedseg.dialogue import state_in
from fedseg.errors import ConfigError
from fedseg.models import build_model
from fedseg.parties import Agreed, InProcess, rounding_of
from fedseg.site import Site
from fedseg.site import run as rounds
from fedseg.site.following import Following
from fedseg.study import Study
from fedseg.update import flatten, model_hash
from secagg import RoundBook
from secagg.messages import RoundStart

SITES, EACH = 8, 8
EPSILON = 8.0
RECOVERED_DB = 25.0
"""From here on nobody doubts whose picture it is."""
POWER = 0.5
LR = 2.0
JOINED = "joined"


class Imprint(nn.Module):
    """A coordinator's trap in front of a network.

    Args:
        inner: the study's network, so that there is a loss.
        thresholds: of brightness, rising.
        side: pixels of the image.
    """

    def __init__(self, inner: nn.Module, thresholds: NDArray[np.float64], side: int) -> None:
        super().__init__()
        bins, values = len(thresholds), side * side
        self.measure, self.spread, self.inner = nn.Linear(values, bins), nn.Linear(1, values, bias=False), inner
        self.back = nn.Linear(bins, 1, bias=False)
        with torch.no_grad():
            self.measure.weight.fill_(1 / values)
            self.measure.bias.copy_(torch.from_numpy(-thresholds))
            self.back.weight.fill_(0.02)  # the same for all, so that neighbours differ by images and nothing else

    def forward(self, images: Tensor) -> Tensor:
        """The inner network's outputs for images that a little of a pattern was added to: (k, C, H, W)."""
        brighter = torch.relu(self.measure(images.flatten(1)))
        return torch.as_tensor(self.inner(images + self.spread(self.back(brighter)).view_as(images)))

    def read(self, update: NDArray[np.floating]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """What an update of this network holds of each row's images: (bins, side * side), and of each row's bias."""
        bins, values = self.measure.weight.shape
        rows = np.asarray(update[: bins * values], np.float64).reshape(bins, values)
        bias = np.asarray(update[bins * values : bins * values + bins], np.float64)
        ends = np.zeros((1, values)), np.zeros(1)
        return rows - np.concatenate([rows[1:], ends[0]]), bias - np.concatenate([bias[1:], ends[1]])


def run(task: Task) -> Result:
    """See the module."""
    return attacked(task, size=32, bins={"quick": 512, "full": 1024}[task.depth], each=EACH)


def attacked(task: Task, *, size: int, bins: int, each: int) -> Result:
    """The audit, of any size.

    Args:
        task: gives seed and folder.
        size: pixels a side.
        bins: thresholds.
        each: patients a site.
    """
    with scratch() as folder:
        return _attacked(task, size, bins, each, folder)


def _attacked(task: Task, size: int, bins: int, each: int, folder: Path) -> Result:
    plain = study_of(sites=SITES, size=size, lr=LR)
    private = study_of(sites=SITES, size=size, lr=LR, mechanism="local", epsilon=EPSILON)
    task.progress("thresholds from public patients, and a trap of them")
    trap = trap_for(plain, patients(plain, 64, task.seed + 1), bins)
    pool = patients(plain, SITES * each, task.seed)
    data = {site: pool[number * each : (number + 1) * each] for number, site in enumerate(plain.site_ids)}
    task.progress("a site that trained the trap: the secure sum of eight")
    total = one_round(plain, trap, data, folder / "plain").total
    found = recovered(trap, total, pool)
    task.progress(f"the same under local differential privacy, epsilon {EPSILON:g}")
    noised = recovered(trap, one_round(private, trap, data, folder / "private").total, pool)
    task.progress("what stops it: the real site refuses the trap")
    tried = refusals(folder / "desk")
    truth = [pixels(case) for case in pool]
    read = sum(psnr(one, other) > RECOVERED_DB for one, other in zip(found, truth, strict=True))
    right, chance = (sum(nearest(one, truth) == who for who, one in enumerate(those)) for those in (found, noised))
    bound = largest_success(mu_of(private), 1 / len(pool))
    stopped = all(one.said != JOINED and one.without != one.said for one in tried)
    verdict: Verdict = "holds" if stopped and not above(chance, len(pool), bound) else "violated"
    if read / len(pool) < POWER:
        verdict = "no power"
    return Result(
        verdict,
        f"A malicious network reads {read / len(pool):.0%} of {len(pool)} images off the secure sum of {SITES} sites: "
        f"secure aggregation alone does not stop it. A real site refuses each of {len(tried)} ways to "
        f"have it trained. Had it trained under {promise(private)}, then {chance / len(pool):.1%} of the images would "
        f"be identified, where guessing gives {1 / len(pool):.1%}.",
        figures={
            "seed": task.seed,
            "images in the sum": len(pool),
            "thresholds": bins,
            f"recovered from the sum, PSNR above {RECOVERED_DB:g} dB": rate(read, len(pool)),
            "identified from the sum": rate(right, len(pool)),
            "identified from the sum under local DP": rate(chance, len(pool)),
            "chance": 1 / len(pool),
            f"bound under DP, Phi(Phi^-1(1/{len(pool)}) + mu)": bound,
            "protection": promise(private),
            **_quality("sum", found, truth),
            **_quality("under DP", noised, truth),
        },
        pictures=(_picture(task.out / "imprint.png", truth, found, noised, private),),
        rows=tuple(
            {
                "the coordinator": one.coordinator,
                "check": one.check,
                "the site says": one.said,
                "without it": one.without,
            }
            for one in tried
        ),
    )


def _quality(name: str, found: Sequence[NDArray[Any]], truth: Sequence[NDArray[Any]]) -> dict[str, float]:
    """Medians of how like the pictures are to the patients' images."""
    return {
        f"median {what}, {name}": float(np.median([measure(*pair) for pair in zip(found, truth, strict=True)]))
        for what, measure in (("PSNR in dB", psnr), ("SSIM", ssim))
    }


def trap_for(study: Study, public: Sequence[Case], bins: int) -> Imprint:
    """The study's network behind a layer whose thresholds part the brightness of patients evenly."""
    bright = np.array([pixels(case).mean() for case in public], np.float64)
    levels = norm.ppf((np.arange(bins) + 0.5) / bins, bright.mean(), bright.std())
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(0)
        return Imprint(build_model(study), levels, study.data.view[0])


def recovered(trap: Imprint, total: NDArray[np.float64], pool: Sequence[Case]) -> list[NDArray[np.float64]]:
    """What stands in the row in which each patient's image has to lie: (side, side) each."""
    rows, weights = trap.read(total)
    thresholds = -trap.measure.bias.detach().double().numpy()
    found = []
    for case in pool:
        truth = pixels(case)
        place = max(int(np.searchsorted(thresholds, truth.mean())) - 1, 0)
        scale = weights[place] if abs(weights[place]) > 1e-12 else 1.0
        found.append((rows[place] / scale).reshape(truth.shape))
    return found


class Refusal(NamedTuple):
    """What a real site says to one way of getting a poisoned network trained.

    Attributes:
        coordinator: what it tries.
        check: what refuses.
        said: the site's sentence.
        without: what it says where the check is taken out.
    """

    coordinator: str
    check: str
    said: str
    without: str


def refusals(folder: Path) -> tuple[Refusal, ...]:
    """Every way that is tried, at a site of its own each."""
    study = study_of(sites=SITES, rounds=3, mechanism="local")
    desk = Desk(study, folder)
    state = flatten(build_model(study))
    poison = np.full_like(state, 0.5)
    longer = np.concatenate([poison, poison])
    return (
        Refusal("names another network in the study file", "allow-list of networks", *_in_the_study(study)),
        Refusal(
            "sends a network with a layer more",
            "length of the study's network",
            *_said(desk, 0, desk.start(longer), longer, mock.patch.object(Site, "_right", _whatever)),
        ),
        Refusal(
            "signs one model and sends another",
            "C-23",
            *_said(desk, 1, desk.start(state), poison, mock.patch.object(Site, "about", _as_signed)),
        ),
        Refusal(
            "signs and sends a poisoned model for round 1",
            "the start of the study, recomputed (T-16)",
            *_said(
                desk, 3, desk.start(poison), poison, mock.patch.object(rounds, "same_everywhere", return_value=False)
            ),
        ),
        _poisoned_second_round(desk, state, folder),
    )


def _in_the_study(study: Study) -> tuple[str, str]:
    """The study's own reader knows the networks by name, and no file brings code with it."""
    try:
        study.replace(model={"name": "imprint"})
    except ConfigError as error:
        return f"ConfigError: {error}", "the network above is trained, and the sum gives the images away"
    return JOINED, JOINED


def _said(desk: Desk, number: int, start: RoundStart, state: NDArray[np.float32], out: Any) -> tuple[str, str]:
    """What the site says as it is, and with a check taken out."""
    site = desk.site(desk.study.site_ids[number])
    try:
        said = tell(site, start, state)
        with out:
            return said, tell(site, start, state)
    finally:
        site.store.close()


def _whatever(site: Site, start: RoundStart, content: bytes) -> NDArray[np.float32]:
    return state_in(content)


def _as_signed(site: Site, start: RoundStart, content: bytes) -> bytes:
    return start.model_hash


def _poisoned_second_round(desk: Desk, state: NDArray[np.float32], folder: Path) -> Refusal:
    """An honest first round over the wire; then the coordinator signs and sends a model of its own making."""
    study, model = desk.study, build_model(desk.study)
    policy = study.policy(len(state), desk.server.verify_key)
    agreed = Agreed(policy, desk.pinned, RUN, study.hash(), private=True)
    book = RoundBook(RUN, study.hash(), desk.server, policy.max_corrupt)
    secure = SecureSum(agreed, book, InProcess(agreed, desk.keys, folder / "marks", rounding_of(None)), folder / "sums")
    try:
        train = partial(update_of, study, model, [])
        done = secure.round(model_hash(state), study.site_ids, lambda site: train(site, folder), lambda event: None, {})
    finally:
        secure.close()
    following = study.following(state, done.total, done.ended.included, policy)
    site = desk.site(study.site_ids[2])
    try:
        site.following.expect(book.head, model_hash(following))  # as `Site.completed` does at the end of the round
        poison = following + np.float32(1.0)
        start = desk.start(poison, number=2, head=book.head, missed=book.receipts)
        said = tell(site, start, poison)
        with mock.patch.object(Following, "check", return_value=None):
            without = tell(site, start, poison)
    finally:
        site.store.close()
    return Refusal("signs and sends a poisoned model for round 2", "the next model, recomputed (T-16)", said, without)


def _picture(
    path: Path,
    truth: Sequence[NDArray[Any]],
    found: Sequence[NDArray[Any]],
    noised: Sequence[NDArray[Any]],
    study: Study,
) -> Path:
    """Six patients, best, worst and in between."""
    order = np.argsort([-psnr(one, other) for one, other in zip(found, truth, strict=True)])
    some = order[np.linspace(0, len(order) - 1, 6).round().astype(int)].tolist()

    def panels(those: Sequence[NDArray[Any]], words: bool = True) -> list[pictures.Panel]:
        """A row of the picture."""
        return [
            pictures.Panel(
                those[i], f"{psnr(those[i], truth[i]):.0f} dB, SSIM {ssim(those[i], truth[i]):.2f}" if words else ""
            )
            for i in some
        ]

    return pictures.grid(
        path,
        f"Read off the secure sum of {SITES} sites by a malicious network, which real sites refuse",
        ["best", "", "", "", "", "worst"],
        [
            ("patient's image", panels(truth, words=False)),
            ("from the sum,\nno noise", panels(found)),
            (f"from the sum, local DP,\nepsilon {study.privacy.epsilon:g}", panels(noised)),
        ],
    )
