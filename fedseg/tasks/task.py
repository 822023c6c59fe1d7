"""What every task answers, so that no other room asks which task a study has."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.data.cases import Case, Kept, View
from fedseg.data.grid import WorkingGrid
from fedseg.metrics import Measure
from fedseg.records import Classes


class Task(Protocol):
    """What a study asks of its patients' images: made from a study, by `task_of`."""

    @property
    def names(self) -> Sequence[str]:
        """What a patient is scored on: one score each, in the order of `score`."""

    @property
    def measure(self) -> str:
        """What the score is called, such as "Dice"."""

    @property
    def measures(self) -> Sequence[Measure]:
        """What a model is judged by in the end; the first is `measure`."""

    @property
    def outputs(self) -> int:
        """Channels of the network's last layer."""

    def read(self, label: NDArray[Any], grid: WorkingGrid, name: str) -> NDArray[np.uint8]:
        """What a layout found as a case's label, checked and brought onto the working grid.

        Args:
            label: as `Scan.label`.
            grid: of the case.
            name: of the case, for errors.

        Raises:
            CaseError: it is none of the study's.
        """

    def kept(self, label: NDArray[Any], working: NDArray[np.uint8], grid: WorkingGrid) -> tuple[Kept, ...]:
        """What the working grid keeps of the label, structure by structure; nothing where a label is not in space.

        Args:
            label: as for `read`.
            working: what `read` gave.
            grid: of the case.
        """

    def shares(self, case: Case) -> NDArray[np.float64]:
        """How much of a case is of each name, (names,) that add up to at most 1; zeros where it has no label."""

    def lost(self, case: Case) -> Sequence[str]:
        """Sentences on what of a case's label is lost, or grows, on the way to the working grid."""

    def odd(self, case: Case) -> Sequence[str]:
        """Sentences on what may be wrong with a case's label though it can be used."""

    def targets(self, case: Case, view: View) -> torch.Tensor:
        """What the network should say of the view: (k, ...) int64.

        Raises:
            CaseError: the case has no label.
        """

    def loss(self, outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
        """One scalar for all of a patient's views together.

        Args:
            outputs: (k, outputs, ...) float32 of the network.
            targets: as `targets` gives them.
        """

    def predict(self, model: torch.nn.Module, case: Case) -> NDArray[np.uint8]:
        """What the model says of the whole case, in the form of `Case.label`."""

    def score(self, prediction: NDArray[np.uint8], case: Case) -> NDArray[np.float64]:
        """(names,) float64 of one case, larger is better; NaN where it is undefined.

        Raises:
            ConfigError: the case has no label.
        """

    def measured(self, model: torch.nn.Module, case: Case) -> tuple[NDArray[np.uint8], NDArray[np.float64]]:
        """What the model says of a case, and how good that is by every measure, where the case's own file has it.

        Returns:
            What `predict` gives, and (measures, names) float64; NaN where a measure is undefined.

        Raises:
            ConfigError: the case has no label.
        """

    def judged(self, model: torch.nn.Module, cases: Sequence[Case]) -> Classes | None:
        """What only a whole cohort can be judged by; None where means over patients say everything.

        Args:
            model: the study's network.
            cases: with their labels, of any patients.
        """

    def explained(self, model: torch.nn.Module, case: Case) -> tuple[str, NDArray[np.float32], float] | None:
        """What of a made patient's picture decides, for all to see; None where what is said is itself a picture.

        Returns:
            What was said of it in words, how much each voxel decides (*spatial) from 0 to 1, and the probability that
            the true class got.
        """

    def write_picture(self, case: Case, prediction: NDArray[np.uint8], output: Path) -> Path:
        """Write a picture of the prediction beside the file `output` that holds it, for the case's owner only.

        Loads matplotlib, which no process that trains or coordinates needs.

        Returns:
            Where the picture is.
        """
