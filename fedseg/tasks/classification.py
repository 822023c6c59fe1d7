"""Classification: of which of the study's classes a picture is."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional

from fedseg.classes import judged
from fedseg.data.cases import Case, Kept, View, whole
from fedseg.data.grid import WorkingGrid
from fedseg.errors import CaseError, ConfigError
from fedseg.metrics import Measure
from fedseg.records import Classes
from fedseg.study import Study
from secagg.prg import Stream

PICTURES_AT_ONCE = 64
COPIES, NOISE = 16, 0.3
"""Of a picture whose saliency is shown, and how far at most their pixels are moved, twice over."""


class Classification:
    """A label is the number of a class, from 0 in the study's order. A score is 1 or 0: the share that is right.

    A picture of several frames is of one class: what the network says of each is averaged.
    """

    measure = "accuracy"
    measures = (Measure(measure),)

    def __init__(self, study: Study) -> None:
        self.names = study.names
        self._weights = torch.tensor(study.study.class_weights or (1.0,) * len(self.names))

    @property
    def outputs(self) -> int:
        """One a class."""
        return len(self.names)

    def read(self, label: NDArray[Any], grid: WorkingGrid, name: str) -> NDArray[np.uint8]:
        """The number of a class, () uint8.

        Args:
            label: the same, of any type.
            grid: has no say.
            name: of what gave the label, for errors.

        Raises:
            CaseError: there is no such class.
        """
        if np.shape(label) or label not in range(self.outputs):
            raise CaseError(name, f"has class {label}, and the study has {self.outputs}; correct it or [study] classes")
        return np.asarray(label, np.uint8)

    def kept(self, label: NDArray[Any], working: NDArray[np.uint8], grid: WorkingGrid) -> tuple[Kept, ...]:
        """Nothing: a class is not in space."""
        return ()

    def shares(self, case: Case) -> NDArray[np.float64]:
        """1 at its class."""
        return np.eye(self.outputs)[int(case.label)] if case.label is not None else np.zeros(self.outputs)

    def lost(self, case: Case) -> Sequence[str]:
        """Nothing."""
        return ()

    def odd(self, case: Case) -> Sequence[str]:
        """A missing class."""
        return ["has no class"] if case.label is None else ()

    def targets(self, case: Case, view: View) -> torch.Tensor:
        """The class of every frame of the view: (k,) int64."""
        if case.label is None:
            raise CaseError(case.name, "has no class and cannot be trained on; say of which class it is")
        return torch.full((len(view(case.image)),), int(case.label), dtype=torch.int64)

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """Cross-entropy times the class's weight, the mean over frames, a scalar.

        It is not divided by the weights: one patient's frames are of one class, and nothing would be left of them.
        """
        weights = self._weights.to(outputs.device)
        return functional.cross_entropy(outputs, targets, weights, reduction="sum") / len(targets)

    def predict(self, model: torch.nn.Module, case: Case) -> NDArray[np.uint8]:
        """The likeliest class, () uint8."""
        return np.asarray(self.probabilities(model, case).argmax(), np.uint8)

    def probabilities(self, model: torch.nn.Module, case: Case) -> NDArray[np.float32]:
        """How likely each class is: (outputs,) float32 that add up to 1, the mean over frames."""
        device = next(model.parameters()).device
        model.eval()
        with torch.inference_mode():
            frames = torch.split(whole(case), PICTURES_AT_ONCE)
            found = torch.cat([model(batch.to(device)).softmax(1).cpu() for batch in frames])
        return np.asarray(found.mean(0).numpy(), np.float32)

    def score(self, prediction: NDArray[np.uint8], case: Case) -> NDArray[np.float64]:
        """1 or 0 at the case's own class, NaN at the others: means over patients are each class's sensitivity."""
        if case.label is None:
            raise ConfigError(f"{case.name} has no class to be held against")
        scores = np.full(self.outputs, np.nan)
        scores[int(case.label)] = float(prediction == case.label)
        return scores

    def measured(self, model: torch.nn.Module, case: Case) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """See `Task.measured`: a class is on no grid."""
        prediction = self.predict(model, case)
        return prediction, self.score(prediction, case)[None]

    def judged(self, model: torch.nn.Module, cases: Sequence[Case]) -> Classes | None:
        """Accuracy, AUC, MCC, calibration and confusion of all pictures; None where there is none."""
        known = [case for case in cases if case.label is not None]
        if not known:
            return None
        said = np.stack([self.probabilities(model, case) for case in known]).astype(np.float64)
        labels = [int(case.label) for case in known if case.label is not None]
        return judged([f"{case.site}/{case.patient}" for case in known], labels, said, self.names)

    def explained(self, model: torch.nn.Module, case: Case) -> tuple[str, NDArray[np.float32], float] | None:
        """Saliency of the class that is said: how steep its score is in each pixel, over noisy copies of the picture.

        That is SmoothGrad (Smilkov et al. 2017). It is for made patients: of a real one it would be a picture.
        """
        if case.label is None:
            return None
        device = next(model.parameters()).device
        likely, frames = self.probabilities(model, case), whole(case)
        said, truth = int(likely.argmax()), int(case.label)
        noise = Stream.seeded(0, "saliency").uniform(COPIES * frames.numel()).reshape(COPIES, *frames.shape)
        total = torch.zeros_like(frames)
        model.eval()
        for one in noise:
            copy = (frames + NOISE * torch.from_numpy((one - 0.5).astype(np.float32))).to(device).requires_grad_()
            (steep,) = torch.autograd.grad(model(copy)[:, said].sum(), copy)
            total += steep.abs().cpu()
        spread = functional.avg_pool2d(total.amax(1, keepdim=True), 3, 1, 1)[:, 0].numpy()
        decisive = np.moveaxis(spread / max(float(spread.max()), 1e-12), 0, case.slice_axis)
        right = "rightly" if said == truth else "wrongly"
        words = f"{self.names[truth]}, {right} said to be {self.names[said]} ({likely[said]:.2f})"
        return words, np.asarray(decisive, np.float32), float(likely[truth])

    def write_picture(self, case: Case, prediction: NDArray[np.uint8], output: Path) -> Path:
        """The picture with what was said of it, as PNG."""
        from fedseg.picture import write_titled

        return write_titled(case, self.names[int(prediction)], output)
