"""Gradient inversion of a segmentation network: a picture that makes the gradient which a site has sent.

As in Ziller et al. 2021, "Differentially private federated deep learning for multi-site medical image segmentation", on
the product's own small U-Net: the attacker looks for the image whose gradient is the update, by L-BFGS in double
precision, and is even told the label map. That alone tells who somebody is, whatever the update: so a patient counts as
recognised by what the picture shows *within* the structures of that label map, each structure less its mean, and one
candidate in so many is right by chance. A sum of 5 sites with 4 patients each is held against another one that the
patient is not in. An attacker who is not told the label map, and looks for it too, recognised nobody, in a site's bare
update either: a limit of this attack, and no protection.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from audits.attacks import pictures
from audits.attacks.common import (
    MADE,
    Images,
    above,
    largest_success,
    mu_of,
    nearest,
    one_round,
    pixels,
    promise,
    psnr,
    rate,
    scratch,
    ssim,
    study_of,
    update_of,
)
from audits.base import Result, Task, Verdict
from fedseg.data.cases import Case
from fedseg.models import build_model
from fedseg.study import Study
from fedseg.tasks.table import task_of
from fedseg.update import flatten

SITES, EACH, SIZE, CHANNELS = 5, 4, 32, (16, 32)
CANDIDATES = 64
LR = 1.0
SMOOTH = 1e-6
"""Weight of the picture's total variation against the misfit, which is 1 for a gradient of 0."""
POWER = 0.5


class Found(NamedTuple):
    """What an attack came to on several patients.

    Attributes:
        images: one a patient.
        told: how many of them are more like their patient than like any other candidate, label map and all.
        hits: how many still are within the structures of the label map that the attacker was told.
        psnr: median, dB.
        ssim: median.
    """

    images: list[NDArray[np.float64]]
    told: int
    hits: int
    psnr: float
    ssim: float

    @classmethod
    def of(cls, images: list[NDArray[np.float64]], pool: Sequence[Case]) -> "Found":
        """Held against the patients: the first so many of the candidates."""
        truth = [pixels(case) for case in pool]
        pairs = list(zip(images, truth, strict=False))
        told, hits = 0, 0
        for who, image in enumerate(images):
            told += nearest(image, truth) == who
            hits += nearest(within(image, pool[who]), [within(one, pool[who]) for one in truth]) == who
        middle = [float(np.median([measure(*pair) for pair in pairs])) for measure in (psnr, ssim)]
        return cls(images, told, hits, *middle)

    def figures(self, name: str, candidates: int) -> dict[str, float | str]:
        """For the page."""
        return {
            f"{name}: recognised among {candidates} beyond the label map": rate(self.hits, len(self.images)),
            f"{name}: nearest among {candidates}, label map and all": rate(self.told, len(self.images)),
            f"{name}: median PSNR in dB": self.psnr,
            f"{name}: median SSIM": self.ssim,
        }


def within(image: NDArray[Any], case: Case) -> NDArray[np.float64]:
    """A picture (H, W) less its mean in each structure of the case's label map: what the label map does not tell."""
    label, left = label_of(case)[0], np.array(image, np.float64)
    for value in np.unique(label):
        left[label == value] -= left[label == value].mean()
    return left


def label_of(case: Case) -> NDArray[np.int64]:
    """The label map: (1, H, W)."""
    if case.label is None:
        raise ValueError(f"{case.name} has no label map")
    return np.moveaxis(case.label, case.slice_axis, 0).astype(np.int64)


def run(task: Task) -> Result:
    """See the module."""
    if task.depth == "full":
        return attacked(task, targets=12, private=12, epsilon=8.0, iterations=150)
    return attacked(task, targets=2, private=5, epsilon=2.0, iterations=80)


def attacked(
    task: Task,
    *,
    targets: int,
    private: int,
    epsilon: float,
    iterations: int,
    candidates: int = CANDIDATES,
    size: int = SIZE,
    images: Images = MADE,
) -> Result:
    """The audit, of any size.

    Args:
        task: gives seed and folder.
        targets: how many patients are attacked in every way.
        private: how many under differential privacy: of too few, not even all recognised would show a violation.
        epsilon: of it.
        iterations: of L-BFGS for each.
        candidates: among whom a picture is looked up.
        size: pixels a side.
        images: of whom.
    """
    plain = images.adapted(study_of(sites=SITES, size=size, channels=CHANNELS, lr=LR, layout=images.layout))
    noised = plain.replace(privacy={"mechanism": "local", "epsilon": epsilon})
    pool = images.patients(plain, candidates, task.seed)
    with scratch() as folder:
        found = _found(task, plain, pool, targets, iterations, folder)
        found[f"local DP, epsilon {epsilon:g}"] = _under_dp(task, noised, pool, private, iterations, folder)
    result = _judged(task, found, noised, pool, iterations)
    return replace(result, figures={"images": images.words, **result.figures})


def _found(
    task: Task, study: Study, pool: Sequence[Case], targets: int, iterations: int, folder: Path
) -> dict[str, Found]:
    """What is seen of the first so many patients without noise: their site's update, a sum, and one without them."""
    model, count = build_model(study), SITES * EACH
    attack = Inversion(study, model, iterations)
    names = "unprotected", f"from the secure sum of {SITES} x {EACH}", "from a sum without the patient"
    images: dict[str, list[NDArray[np.float64]]] = {name: [] for name in names}
    for number in range(targets):
        task.progress(f"patient {number + 1} of {targets}: from the update, from the sum")
        case, *others = [pool[(number + i) % len(pool)] for i in range(count)]
        held = {site: [case, *others][i * EACH : (i + 1) * EACH] for i, site in enumerate(study.site_ids)}
        total = one_round(study, model, held, folder / f"plain-{number}").total
        own = update_of(study, model, [case], study.site_ids[0], folder / f"alone-{number}").vector
        for name, seen in zip(names, (own, total / count, (total - own) / (count - 1)), strict=True):
            images[name].append(attack(seen, case))
    return {name: Found.of(those, pool) for name, those in images.items()}


def _under_dp(task: Task, study: Study, pool: Sequence[Case], count: int, iterations: int, folder: Path) -> Found:
    """The same of updates under differential privacy, whose only patient is attacked."""
    model, images = build_model(study), []
    attack = Inversion(study, model, iterations)
    for number, case in enumerate(pool[:count]):
        task.progress(f"patient {number + 1} of {count}: under privacy")
        update = update_of(study, model, [case], study.site_ids[0], folder / f"private-{number}")
        images.append(attack(update.vector, case))
    return Found.of(images, pool)


def _judged(task: Task, found: dict[str, Found], private: Study, pool: Sequence[Case], iterations: int) -> Result:
    """A violation is more than the promise of differential privacy allows; a sum has promised nothing about this."""
    one, total, other, dp = found.values()
    candidates, count = len(pool), len(dp.images)
    bound = largest_success(mu_of(private), 1 / candidates)
    verdict: Verdict = "violated" if above(dp.hits, count, bound) else "holds"
    if one.hits / len(one.images) < POWER or not above(count, count, bound):
        verdict = "no power"
    figures: dict[str, float | int | str] = {"seed": task.seed, "chance": 1 / candidates}
    for name, those in found.items():
        figures |= those.figures(name, candidates)
    figures |= {
        f"bound under DP, Phi(Phi^-1(1/{candidates}) + mu)": bound,
        "protection": promise(private),
        "sites in the sum": SITES,
        "patients in the sum": SITES * EACH,
        "parameters of the network": len(flatten(build_model(private))),
        "iterations of L-BFGS": iterations,
    }
    return Result(
        verdict,
        f"L-BFGS on a small U-Net's gradient, told the label map: of {len(one.images)} patients {one.hits} are "
        f"recognised among {candidates} by what the label map does not tell, from their bare update (median "
        f"{one.psnr:.0f} dB, SSIM {one.ssim:.2f}), {total.hits} from the secure sum of {SITES} sites with {EACH} "
        f"patients each ({total.psnr:.0f} dB, SSIM {total.ssim:.2f}), {other.hits} from a sum that they are not in "
        f"({other.psnr:.0f} dB) and {dp.hits} of {count} from an update under {promise(private)} ({dp.psnr:.0f} dB, "
        f"SSIM {dp.ssim:.2f}). The noise is what promises it; a sum of many only makes it hard.",
        figures,
        pictures=(_picture(task.out / "inversion.png", pool, found, private),),
    )


class Inversion:
    """The attacker: a study, the round's model, and an optimiser.

    Args:
        study: gives the loss.
        model: where the round began.
        iterations: of L-BFGS.
    """

    def __init__(self, study: Study, model: torch.nn.Module, iterations: int) -> None:
        self._model, self._task, self._iterations = build_model(study).double(), task_of(study), iterations
        self._model.load_state_dict(model.state_dict())
        self._model.double().train()
        self._parameters = list(self._model.parameters())

    def __call__(self, update: NDArray[Any], case: Case) -> NDArray[np.float64]:
        """A picture whose gradient is most like the update: (H, W). Of the case the label map and the size are known.

        Args:
            update: (d,) minus the learning rate times the gradient; its length does not matter.
            case: whose label map the attacker is told.
        """
        label = torch.from_numpy(label_of(case))
        target = torch.from_numpy(-np.asarray(update, np.float64) / LR)
        start = torch.Generator().manual_seed(0)
        shape = (1, case.image.shape[0], *label.shape[1:])
        image = (0.3 + 0.05 * torch.randn(shape, dtype=torch.float64, generator=start)).requires_grad_()
        optimiser = torch.optim.LBFGS(
            [image], lr=1, max_iter=self._iterations, history_size=50, line_search_fn="strong_wolfe"
        )

        def misfit() -> torch.Tensor:
            """How far the picture's gradient is from the update; leaves its own gradient at the picture."""
            optimiser.zero_grad()
            loss = self._task.loss(self._model(image), label)
            own = torch.cat([one.reshape(-1) for one in torch.autograd.grad(loss, self._parameters, create_graph=True)])
            apart = ((own - target) ** 2).sum() / (target**2).sum() + SMOOTH * _variation(image)
            (image.grad,) = torch.autograd.grad(apart, image)
            return apart

        optimiser.step(misfit)  # type: ignore[no-untyped-call]
        found = np.nan_to_num(image.detach().numpy()[0, 0], nan=0.0)
        return np.asarray(np.clip(found, 0.0, 1.5))


def _variation(image: torch.Tensor) -> torch.Tensor:
    down, right = image[..., 1:, :] - image[..., :-1, :], image[..., 1:] - image[..., :-1]
    return down.abs().mean() + right.abs().mean()


def _picture(path: Path, pool: Sequence[Case], found: dict[str, Found], study: Study) -> Path:
    """A row a patient: the original, and what each attack came to."""
    rows = []
    shown = min(4, *(len(those.images) for those in found.values()))
    for number, case in enumerate(pool[:shown]):
        truth = pixels(case)
        panels = [pictures.Panel(truth)]
        for those in found.values():
            image = those.images[number]
            words = f"{psnr(image, truth):.0f} dB, SSIM {ssim(image, truth):.2f}"
            panels.append(pictures.Panel(image, words))
        rows.append((f"patient {number + 1}", panels))
    heads = [
        f"{name.replace(' sum', chr(10) + 'sum')}\nrecognised: {those.hits} of {len(those.images)}"
        for name, those in found.items()
    ]
    title = (
        f"What L-BFGS makes of a gradient; recognised among {len(pool)} beyond the label map\n"
        f"(delta {study.privacy.delta:g}, unit: one patient, nobody is trusted)"
    )
    return pictures.grid(path, title, ["original", *heads], rows)
