"""What all attacks share: made patients of one slice, and what the product's own sites send and its own server hears.

Every update here is made by `fedseg.train.train_round`, charged and, where the study says so, clipped and noised; every
sum is made by `fedseg.aggregate.SecureSum`, over the wire bytes of real client sessions. Attacks begin where the
product ends: at a vector that somebody saw.
"""

import math
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import beta, binom, norm

from fedseg.aggregate import SecureSum
from fedseg.budget.plan import plan_of
from fedseg.data.cases import Case, SiteData
from fedseg.data.phantoms.table import phantom_of
from fedseg.ledger import Ledger
from fedseg.models import build_model
from fedseg.parties import Agreed, InProcess, rounding_of
from fedseg.privacy.accounting import gaussian_dp
from fedseg.privacy.delta import delta_text
from fedseg.study import Study, parse_study
from fedseg.train import train_round
from fedseg.update import Update, assign, flatten, model_hash
from secagg import PinnedRoster, RoundBook, SigningKey
from secagg.policy import Policy

STRUCTURES = (
    "external CSF",
    "grey matter",
    "white matter",
    "ventricles",
    "cerebellum",
    "deep grey matter",
    "brainstem",
)
DELTA = 1e-5
CERTAINTY = 0.99
"""Of every interval that is shown."""
SURE = 1e-6
"""Of a verdict, which CI acts on: the chance that one comparison blames a product that keeps its promise."""


@contextmanager
def scratch() -> Iterator[Path]:
    """A folder for ledgers and marks, gone afterwards; one thread, as audits are timed on one core."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(prefix="audit-") as folder:
        yield Path(folder)


def study_of(
    *,
    sites: int = 8,
    size: int = 32,
    channels: Sequence[int] = (4, 8),
    mechanism: str = "none",
    epsilon: float = 8.0,
    rounds: int = 1,
    steps: int = 1,
    lr: float = 0.1,
    clip_norm: float = 0.1,
    clip_range: float = 4.0,
    layout: str = "phantom",
) -> Study:
    """A study on made fetal brains: every patient is drawn in every step, the divisor is 1, and there is no seed.

    Args:
        sites: n.
        size: pixels a side.
        channels: of the small U-Net.
        mechanism: of `[privacy]`.
        epsilon: for all rounds, with delta 1e-5 and one patient more or less.
        rounds: of `[study]`.
        steps: of a site in a round.
        lr: learning rate.
        clip_norm: of a patient's gradient, where it is clipped.
        clip_range: of a value of an update.
        layout: of the images.
    """
    names = ", ".join(f'"{name}"' for name in STRUCTURES)
    made = "patients = 1" if layout == "phantom" else ""
    members = "\n".join(f'[[sites]]\nid = "site-{number:02d}"\n{made}' for number in range(1, sites + 1))
    return parse_study(
        f"""
        [study]
        name = "attacked"
        structures = [{names}]
        rounds = {rounds}
        local_steps = {steps}
        lr = {lr}
        [data]
        layout = "{layout}"
        modality = ["T2w"]
        dims = 2
        size = {size}
        holdout = 0.0
        [model]
        name = "unet-small"
        channels = {list(channels)}
        [privacy]
        mechanism = "{mechanism}"
        epsilon = {epsilon!r}
        delta = {DELTA!r}
        sample_rate = 1.0
        clip_norm = {clip_norm}
        denominator = 1
        [secagg]
        clip_range = {clip_range}
        {members}
        """,
        "the study of an attack",
    )


def patients(study: Study, count: int, seed: int) -> list[Case]:
    """Made patients of all hospitals in turn, each with its slice that shows most structure.

    Who knows a patient of one slice knows its gradient.
    """
    phantom, ids, found = phantom_of(study, "layout", "use 'phantom'"), study.site_ids, list[Case]()
    for number, made in enumerate(phantom.site_seeds("attack", count, seed)):
        found.append(one_slice(phantom.site_case(ids[number % len(ids)], f"sub-{number:04d}", made, study)))
    return found


class Images(NamedTuple):
    """Whose images are attacked.

    Attributes:
        words: what they are, for the page.
        layout: of `study_of`.
        adapted: from the study of an attack to the same on these images.
        patients: (adapted study, how many, seed) to so many patients of one slice each.
    """

    words: str
    layout: str
    adapted: Callable[[Study], Study]
    patients: Callable[[Study, int, int], list[Case]]


MADE = Images(
    "made fetal brains: the real ones at hand are averages, on which no claim about a patient may rest; "
    "`python -m audits real` does the same on real patients",
    "phantom",
    lambda study: study,
    patients,
)


def one_slice(case: Case) -> Case:
    """The same patient with its slice that shows most structure, and no other."""
    if case.label is None:
        raise ValueError(f"{case.name} has no label map")
    along = case.slice_axis
    counts = (case.label > 0).sum(axis=tuple(axis for axis in range(3) if axis != along))
    chosen = [int(counts.argmax())]
    return replace(
        case, image=case.image.take(chosen, axis=along + 1), label=case.label.take(chosen, axis=along), original=None
    )


def pixels(case: Case) -> NDArray[np.float32]:
    """The slice of the first channel: (H, W) float32, 0 background and 1 about the brightest tissue."""
    return np.asarray(np.moveaxis(case.image, case.slice_axis + 1, 0)[0, 0], np.float32)


@dataclass(frozen=True)
class Seen:
    """What left in one round.

    Attributes:
        updates: by site (d,) float32: what a server without secure aggregation would read.
        total: (d,) float64, their sum: all that a server with it reads.
        policy: under which it was made.
    """

    updates: Mapping[str, NDArray[np.float32]] = field(repr=False)
    total: NDArray[np.float64] = field(repr=False)
    policy: Policy


def one_round(study: Study, model: torch.nn.Module, data: Mapping[str, Sequence[Case]], folder: Path) -> Seen:
    """One whole round of the product: each site charges, trains and masks; the server adds what it cannot read.

    Args:
        study: of the round.
        model: where it begins; left as it was.
        data: each site's patients.
        folder: empty; marks and ledgers go into it.
    """
    updates: dict[str, NDArray[np.float32]] = {}

    def train(site: str) -> Update:
        """What the site sends, which is kept."""
        update = update_of(study, model, data[site], site, folder)
        updates[site] = np.array(update.vector, np.float32)
        return update

    total, policy = secure_sum(study, model, list(data), train, folder)
    return Seen(updates, total, policy)


def secure_sum(
    study: Study, model: torch.nn.Module, sites: Sequence[str], train: Any, folder: Path
) -> tuple[NDArray[np.float64], Policy]:
    """What the server reads of one round, and the policy: the sum of what `train(site)` gives, masked and unmasked."""
    server, run = SigningKey.generate(), folder.name
    keys = {site: SigningKey.generate() for site in study.site_ids}
    policy = study.policy(len(flatten(model)), server.verify_key)
    pinned = PinnedRoster({site: key.verify_key for site, key in keys.items()})
    agreed = Agreed(policy, pinned, run, study.hash(), study.trust.each_update_private)
    parties = InProcess(agreed, keys, folder / "marks", rounding_of(None))
    secure = SecureSum(agreed, RoundBook(run, study.hash(), server, policy.max_corrupt), parties, folder / "sums")
    try:
        outcome = secure.round(model_hash(flatten(model)), sites, train, lambda event: None, {})
    finally:
        secure.close()
    return outcome.total, policy


def update_of(
    study: Study, model: torch.nn.Module, cases: Sequence[Case], site: str, folder: Path, round_number: int = 1
) -> Update:
    """What a site with these patients would send of a round, charged in a ledger of its own."""
    data = SiteData(site, tuple(cases), ())
    ledger = Ledger(folder / "ledgers" / f"{site}.jsonl")
    return train_round(
        model, data, study, site=site, training_run=folder.name, round_number=round_number, ledger=ledger
    )


def trained(study: Study, cases: Sequence[Case], steps: int, folder: Path, lr: float = 0.02) -> torch.nn.Module:
    """The study's network after so many steps without privacy on these patients, who are nobody's.

    Later in a run two patients' gradients are less alike than at its start, which is the better moment for an attack.
    """
    own = study.replace(
        study={"local_steps": steps, "lr": lr},
        privacy={"mechanism": "none"},
        training={"batch": 8, "optimizer": "adamw"},
    )
    model = build_model(own)
    assign(model, flatten(model) + update_of(own, model, cases, own.site_ids[0], folder).vector)
    return model


def interval(hits: int, trials: int, certainty: float = CERTAINTY) -> tuple[float, float]:
    """Two-sided interval of a rate by Clopper and Pearson (1934)."""
    tail = (1 - certainty) / 2
    low = float(beta.ppf(tail, hits, trials - hits + 1)) if hits else 0.0
    high = float(beta.ppf(1 - tail, hits + 1, trials - hits)) if hits < trials else 1.0
    return low, high


def above(hits: int, trials: int, bound: float) -> bool:
    """Whether there are more hits than any product has that keeps them below this rate, but for a chance of `SURE`."""
    return float(binom.sf(hits - 1, trials, bound)) < SURE


def rate(hits: int, trials: int) -> str:
    """A rate with its interval, for people."""
    low, high = interval(hits, trials)
    return f"{hits} of {trials} = {100 * hits / trials:.1f} % (99 % interval {100 * low:.1f} to {100 * high:.1f} %)"


def mu_of(study: Study) -> float:
    """Mu of Gaussian differential privacy of one site's whole part in a study, by the product's own accountant."""
    terms = study.terms
    mu = gaussian_dp([study.mechanism.released(terms, terms.steps)], terms.delta or 0.0)
    return math.inf if mu is None else mu


def largest_success(mu: float, prior: float) -> float:
    """How often anybody can be right about one patient whose guess is right with `prior` without the training.

    Reconstruction robustness: Hayes, Mahloujifar and Balle 2023, "Bounding training data reconstruction in DP-SGD",
    theorem 2 for a Gaussian whose batches are whole: Phi(Phi^-1(prior) + mu). It holds for every attack and whatever
    else is known.
    """
    return float(norm.cdf(norm.ppf(prior) + mu))


def promise(study: Study) -> str:
    """Epsilon with unit, delta and trust model: what has to stand beside every "fails"."""
    if not study.trust.claims_epsilon:
        return f"no privacy ({study.privacy.mechanism}), no epsilon"
    return (
        f"epsilon {study.privacy.epsilon:g}, delta {delta_text(study.privacy.delta)}, unit: one {plan_of(study).unit} "
        f"added or removed, mechanism {study.privacy.mechanism}: {study.trust.sentence}"
    )


def alike(values: NDArray[Any], candidates: NDArray[Any]) -> NDArray[np.float64]:
    """Cosine of a vector (d,) and each row of (m, d); 0 where either is 0."""
    lengths = np.linalg.norm(candidates, axis=1) * np.linalg.norm(values)
    products = candidates.astype(np.float64) @ values.astype(np.float64)
    return np.asarray(np.divide(products, lengths, out=np.zeros_like(products), where=lengths > 0))


def nearest(picture: NDArray[Any], candidates: Sequence[NDArray[Any]]) -> int:
    """Which candidate a reconstructed picture shows: the highest correlation."""
    flat = np.stack([one.ravel() - one.mean() for one in candidates])
    return int(alike(picture.ravel() - picture.mean(), flat).argmax())


def psnr(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """Peak signal-to-noise ratio in dB, of pictures whose range is that of the truth."""
    error = float(np.mean((np.asarray(found, np.float64) - truth) ** 2))
    peak = float(truth.max() - truth.min())
    return math.inf if error == 0 else 10 * math.log10(peak * peak / error)


def ssim(found: NDArray[Any], truth: NDArray[Any]) -> float:
    """Structural similarity (Wang et al. 2004) as MONAI computes it, window 7: 1 for the same picture."""
    from monai.metrics.regression import compute_ssim_and_cs

    pair = [torch.from_numpy(np.asarray(one, np.float32))[None, None] for one in (found, truth)]
    value, _ = compute_ssim_and_cs(
        *pair, spatial_dims=2, kernel_size=(7, 7), kernel_sigma=(1.5, 1.5), data_range=float(truth.max() - truth.min())
    )
    return float(value.mean())
