"""Segmentation: one of the study's structures, or background, for every voxel."""

from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.losses import DeepSupervisionLoss, DiceCELoss
from monai.transforms import AsDiscrete
from monai.utils import BlendMode
from numpy.typing import NDArray

from fedseg.data.cases import Case, Kept, View, mirror_axes, whole
from fedseg.data.grid import WorkingGrid, likeliest_on
from fedseg.errors import CaseError, ConfigError
from fedseg.metrics import Measure, dice, overlaps
from fedseg.study import Study

SLICES_AT_ONCE = 16
OVERLAP = 0.5
"""Of neighbouring windows, as in nnU-Net, which like this weighs a window's middle more than its sides."""
LOSS = DiceCELoss(to_onehot_y=True, softmax=True, batch=True)
"""Dice over all of a patient's slices at once: a slice without the structure is no loss of its own."""
DEEP = DeepSupervisionLoss(LOSS)


class Segmentation:
    """Label values 1, 2, ... are the study's structures, 0 is background. A score is Dice, one a structure.

    A structure that contains others (`[data] labels`) is scored whole: with them.
    """

    measure = "Dice"

    def __init__(self, study: Study) -> None:
        self._study = study
        self.names, self._size, self._regions = study.structures, study.data.view, study.regions
        self._tolerance = study.report.tolerance
        nsd = Measure("NSD", tolerance=self._tolerance)
        self.measures = (Measure(self.measure), Measure("HD95", "mm"), nsd, Measure("volume similarity"))

    @property
    def outputs(self) -> int:
        """Background and every structure."""
        return len(self.names) + 1

    def read(self, label: NDArray[Any], grid: WorkingGrid, name: str) -> NDArray[np.uint8]:
        """Label values on the working grid: in each voxel what fills most of it.

        A structure that fills most of no voxel keeps the one that it fills most of: none is lost to a coarse grid.

        Args:
            label: (X, Y, Z) on the file's grid.
            grid: of the case.
            name: of the case, for errors.

        Raises:
            CaseError: a value that is no structure.
        """
        known = np.arange(self.outputs)
        unknown = np.setdiff1d(label, known)
        if len(unknown):
            raise CaseError(
                name,
                f"has label value {unknown[0]:g}, and the study's structures are 0 to {known[-1]}; "
                "correct the label map or [study] structures",
            )
        one_hot = np.asarray(
            AsDiscrete(to_onehot=self.outputs)(grid.cut(np.asarray(label[None], np.uint8))), np.float32
        )
        shares = grid.resampled(one_hot)
        result = np.asarray(shares.argmax(axis=0), np.uint8)
        for value in range(1, self.outputs):
            if one_hot[value].any() and not (result == value).any():
                place = np.unravel_index(shares[value].argmax(), result.shape)
                result[place], shares[:, *place] = value, 0
        return result

    def kept(self, label: NDArray[Any], working: NDArray[np.uint8], grid: WorkingGrid) -> tuple[Kept, ...]:
        """Voxels of each structure that the label has: in the file, in the field of view, on the working grid."""
        written, seen, left = (
            np.bincount(np.asarray(values, np.uint8).ravel(), minlength=self.outputs)
            for values in (label, grid.cut(np.asarray(label[None], np.uint8)), working)
        )
        grown = float(abs(np.linalg.det(grid.affine[:3, :3]) / np.linalg.det(grid.file_affine[:3, :3])))
        found = []
        for name, region in zip(self.names, map(list, self._regions), strict=True):
            file, view, grid_voxels = (int(counts[region].sum()) for counts in (written, seen, left))
            if file:
                found.append(Kept(name, file, view, grid_voxels, grid_voxels * grown / max(view, 1)))
        return tuple(found)

    def shares(self, case: Case) -> NDArray[np.float64]:
        """The share of its voxels that each label value has."""
        if case.label is None:
            return np.zeros(len(self.names))
        found = np.bincount(case.label.ravel(), minlength=self.outputs)[1 : self.outputs]
        return np.asarray(found / case.label.size, np.float64)

    def lost(self, case: Case) -> Sequence[str]:
        """Voxels outside the field of view, and structures that keep less than half or more than twice their volume."""
        said = []
        for kept in case.kept:
            if out := kept.written - kept.seen:
                said.append(f"{out} of {kept.written} voxels of {kept.structure} are as dark as background and cut off")
            if kept.seen and not 0.5 <= kept.share <= 2:
                said.append(
                    f"{kept.structure} has {kept.seen} voxels in the file and {kept.working} on the working grid, "
                    f"{100 * kept.share:.0f} % of its volume; raise [data] size"
                )
        return said

    def odd(self, case: Case) -> Sequence[str]:
        """What is lost, and structures that the label map lacks."""
        if case.label is None:
            return ["has no label map"]
        present = {kept.structure for kept in case.kept}
        absent = [name for name in self.names if name not in present]
        if len(absent) == len(self.names):
            return ["the label map is empty; is that so?"]
        return [*self.lost(case), *(f"has no {name}" for name in absent)]

    def targets(self, case: Case, view: View) -> torch.Tensor:
        """Label values of the view: (k, *size) int64."""
        if case.label is None:
            raise CaseError(case.name, "has no label map and cannot be trained on; add the label file")
        return torch.from_numpy(view(case.label[None])[:, 0].astype(np.int64))

    def loss(self, outputs: torch.Tensor | list[torch.Tensor], targets: torch.Tensor) -> torch.Tensor:
        """Dice and cross-entropy, a scalar; with deep supervision the weighted mean over sizes.

        Args:
            outputs: (k, outputs, *size); with deep supervision a list of such, each at half the last one's size.
            targets: (k, *size) int64.
        """
        if isinstance(outputs, torch.Tensor):
            loss: torch.Tensor = LOSS(outputs, targets[:, None])
            return loss
        deep: torch.Tensor = DEEP(outputs, targets[:, None].float())
        return torch.as_tensor(deep / sum(DEEP.get_weights(len(outputs))))

    def predict(self, model: torch.nn.Module, case: Case) -> NDArray[np.uint8]:
        """Label values on the working grid: (*spatial) uint8."""
        return np.asarray(self.probabilities(model, case).argmax(axis=0), dtype=np.uint8)

    def probabilities(self, model: torch.nn.Module, case: Case) -> NDArray[np.float32]:
        """How likely each voxel of the working grid is background or a structure: (outputs, *spatial) float32."""
        inputs = whole(case)
        device = next(model.parameters()).device
        model.eval()
        with torch.inference_mode():
            batches = [
                self._asked(model, batch.to(device), case.slice_axis).cpu()
                for batch in torch.split(inputs, SLICES_AT_ONCE)
            ]
        found = torch.cat(batches).numpy()
        return np.asarray(found[0] if case.axes == 3 else np.moveaxis(found, 0, case.slice_axis + 1), np.float32)

    def _asked(self, model: torch.nn.Module, images: torch.Tensor, slice_axis: int) -> torch.Tensor:
        """Probabilities of a batch: the mean over its mirror images, if the study says so."""
        axes = mirror_axes(self._study, slice_axis) if self._study.training.test_flips else []
        flips = [list(some) for count in range(len(axes) + 1) for some in combinations(axes, count)]
        found = torch.stack([self._seen(model, images.flip(flip)).softmax(1).flip(flip) for flip in flips])
        return found[0] if len(flips) == 1 else found.mean(0)

    def _seen(self, model: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """The network's outputs: of the whole at once where it is of the size trained on, else window by window."""
        if tuple(images.shape[2:]) == self._size:
            return torch.as_tensor(model(images))
        windows = sliding_window_inference(images, self._size, SLICES_AT_ONCE, model, OVERLAP, BlendMode.GAUSSIAN)
        return torch.as_tensor(windows)

    def score(self, prediction: NDArray[np.uint8], case: Case) -> NDArray[np.float64]:
        """Dice of every structure."""
        truth = _truth(case)
        if max(map(len, self._regions)) == 1:
            return dice(prediction, truth, len(self.names))
        scores = [
            dice(np.isin(prediction, region).astype(np.uint8), np.isin(truth, region).astype(np.uint8), 1)
            for region in self._regions
        ]
        return np.concatenate(scores)

    def measured(self, model: torch.nn.Module, case: Case) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """See `Task.measured`: on the label map's own grid, where the prediction is brought as `fedseg predict` does.

        A made patient's own grid is the working grid.
        """
        scores, truth, spacing = self.probabilities(model, case), _truth(case), case.spacing
        prediction = labels = np.asarray(scores.argmax(axis=0), dtype=np.uint8)
        if case.original is not None:
            truth, spacing = case.original.label, case.original.spacing
            labels = likeliest_on(scores, case.affine, case.original.shape, case.original.affine)
        found = [
            overlaps(np.isin(labels, region), np.isin(truth, region), spacing, self._tolerance)
            for region in self._regions
        ]
        return prediction, np.stack(found, axis=1)

    def judged(self, model: torch.nn.Module, cases: Sequence[Case]) -> None:
        """Nothing: Dice is a patient's."""

    def explained(self, model: torch.nn.Module, case: Case) -> None:
        """Nothing: outlines show themselves."""

    def write_picture(self, case: Case, prediction: NDArray[np.uint8], output: Path) -> Path:
        """Slices with the structures outlined, as PNG."""
        from fedseg.picture import write_overlay

        return write_overlay(case, prediction, output, self.names)


def _truth(case: Case) -> NDArray[np.uint8]:
    if case.label is None:
        raise ConfigError(f"{case.name} has no label map to be held against")
    return case.label
