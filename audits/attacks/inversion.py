"""Gradient inversion of a segmentation network: a picture that makes the gradient which a site has sent.

As in Ziller et al. 2021, "Differentially private federated deep learning for multi-site medical image segmentation", on
the product's own small U-Net: the attacker looks for the image whose gradient is the update, by L-BFGS in double
precision, and is even told the label map. From one site's update the patient is recognisable, from an update under
differential privacy nobody is. A sum of eight sites is held against another one that the patient is not in: what both
show comes from the label map and from what all patients have in common, and not from the patient's part of the sum.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from audits.attacks import pictures
from audits.attacks.common import (
    interval,
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
from audits.base import Result, Task, Verdict
from fedseg.data.cases import Case
from fedseg.models import build_model
from fedseg.study import Study
from fedseg.tasks.table import task_of

SITES, EPSILON, SIZE, CHANNELS = 8, 8.0, 32, (8, 16)
CANDIDATES = 64
LR = 1.0
SMOOTH = 1e-6
"""Weight of the picture's total variation against the misfit, which is 1 for a gradient of 0."""
POWER = 0.5
IMAGES = "made fetal brains: the real ones at hand are averages, on which no claim about a patient may rest"


class Found(NamedTuple):
    """What an attack came to on several patients.

    Attributes:
        images: one a patient.
        hits: how many of them are more like their patient than like any other candidate.
        psnr: median, dB.
        ssim: median.
    """

    images: list[NDArray[np.float64]]
    hits: int
    psnr: float
    ssim: float

    @classmethod
    def of(cls, images: list[NDArray[np.float64]], pool: Sequence[Case]) -> "Found":
        """Held against the patients: the first so many of the candidates."""
        truth = [pixels(case) for case in pool]
        pairs = list(zip(images, truth, strict=False))
        hits = sum(nearest(image, truth) == who for who, image in enumerate(images))
        middle = [float(np.median([measure(*pair) for pair in pairs])) for measure in (psnr, ssim)]
        return cls(images, hits, *middle)

    def figures(self, name: str, candidates: int) -> dict[str, float | str]:
        """For the page."""
        return {
            f"{name}: identified among {candidates}": rate(self.hits, len(self.images)),
            f"{name}: median PSNR in dB": self.psnr,
            f"{name}: median SSIM": self.ssim,
        }


def run(task: Task) -> Result:
    """See the module."""
    full = task.depth == "full"
    return attacked(task, targets=12 if full else 2, private=12 if full else 5, iterations=300 if full else 80)


def attacked(
    task: Task, *, targets: int, private: int, iterations: int, candidates: int = CANDIDATES, size: int = SIZE
) -> Result:
    """The audit, of any size.

    Args:
        task: gives seed and folder.
        targets: how many patients are attacked in every way.
        private: how many under differential privacy, at least as many: of two, even two hits would show nothing.
        iterations: of L-BFGS for each.
        candidates: among whom a picture is looked up.
        size: pixels a side.
    """
    with scratch() as folder:
        return _attacked(task, targets, private, iterations, candidates, size, folder)


def _attacked(
    task: Task, targets: int, under_dp: int, iterations: int, candidates: int, size: int, folder: Path
) -> Result:
    plain = study_of(sites=SITES, size=size, channels=CHANNELS, lr=LR)
    private = study_of(sites=SITES, size=size, channels=CHANNELS, lr=LR, mechanism="local", epsilon=EPSILON)
    model = build_model(plain)
    pool = patients(plain, candidates, task.seed)
    attack = Inversion(plain, model, iterations)
    alone, summed, absent, noised = [], [], [], []
    for number in range(targets):
        task.progress(f"patient {number + 1} of {targets}: from the update, from the sum")
        case, others = pool[number], [pool[(number + i) % candidates] for i in range(1, SITES)]
        data = {site: [one] for site, one in zip(plain.site_ids, [case, *others], strict=True)}
        seen = one_round(plain, model, data, folder / f"plain-{number}")
        alone.append(attack(seen.updates[plain.site_ids[0]], case))
        summed.append(attack(seen.total / SITES, case))
        without = seen.total - seen.updates[plain.site_ids[0]]
        absent.append(attack(without / (SITES - 1), case))
    for number, case in enumerate(pool[:under_dp]):
        task.progress(f"patient {number + 1} of {under_dp}: under privacy")
        update = update_of(private, model, [case], plain.site_ids[0], folder / f"private-{number}")
        noised.append(attack(update.vector, case))
    found = {
        "unprotected": Found.of(alone, pool),
        f"from the secure sum of {SITES}": Found.of(summed, pool),
        "from a sum without the patient": Found.of(absent, pool),
        f"local DP, epsilon {EPSILON:g}": Found.of(noised, pool),
    }
    one, total, other, dp = found.values()
    bound = largest_success(mu_of(private), 1 / candidates)
    verdict: Verdict = "violated" if interval(dp.hits, under_dp)[0] > bound else "holds"
    if one.hits / targets < POWER or interval(under_dp, under_dp)[0] <= bound:
        verdict = "no power"
    figures: dict[str, float | int | str] = {"seed": task.seed, "images": IMAGES}
    for name, those in found.items():
        figures |= those.figures(name, candidates)
    figures |= {
        f"bound under DP, Phi(Phi^-1(1/{candidates}) + mu)": bound,
        "protection": promise(private),
        "parameters of the network": len(seen.total),
        "iterations of L-BFGS": iterations,
    }
    return Result(
        verdict,
        f"L-BFGS on a small U-Net's gradient: of {targets} patients {one.hits} are recognised among {candidates} from "
        f"a site's update (median {one.psnr:.0f} dB, SSIM {one.ssim:.2f}), {total.hits} from the secure sum of {SITES} "
        f"({total.psnr:.0f} dB, SSIM {total.ssim:.2f}), {other.hits} from a sum that they are not in "
        f"({other.psnr:.0f} dB: what the label map tells, which the attacker has) and {dp.hits} of {under_dp} from an "
        f"update under {promise(private)} ({dp.psnr:.0f} dB, SSIM {dp.ssim:.2f}). A sum alone promises nothing "
        "against this; noise does.",
        figures,
        pictures=(_picture(task.out / "inversion.png", pool, found, candidates, private),),
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
        if case.label is None:
            raise ValueError(f"{case.name} has no label map")
        label = torch.from_numpy(np.moveaxis(case.label, case.slice_axis, 0).astype(np.int64))
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


def _picture(path: Path, pool: Sequence[Case], found: dict[str, Found], candidates: int, study: Study) -> Path:
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
        f"What L-BFGS makes of a gradient, recognised among {candidates}\n"
        f"(delta {study.privacy.delta:g}, unit: one patient, nobody is trusted)"
    )
    return pictures.grid(path, title, ["original", *heads], rows)
