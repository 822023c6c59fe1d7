"""A slice of a case as a picture: which plane and slice it is, and what lies at the picture's edges."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Self

import numpy as np
from nibabel import aff2axcodes
from numpy.typing import NDArray

from fedseg.data.cases import Case

_PLANES = {"L": "sagittal", "R": "sagittal", "A": "coronal", "P": "coronal", "S": "axial", "I": "axial"}
_ACROSS = dict(zip("LRAPSI", "RLPAIS", strict=True))


@dataclass(frozen=True)
class View:
    """One slice of a case on its working grid.

    Attributes:
        plane: "axial", "coronal" or "sagittal": the nearest one, where the image lies obliquely; empty where the
            file does not say where the patient's sides are.
        number, of: the slice's number, from 1, and how many there are.
        edges: letters of left, right, top and bottom of the picture: the patient's L(eft), R(ight), A(nterior),
            P(osterior), S(uperior) and I(nferior); empty likewise.
    """

    plane: str
    number: int
    of: int
    edges: tuple[str, ...]

    @classmethod
    def of_slice(cls, case: Case, index: int) -> Self:
        """The view that `pixels` gives of slice `index`, from 0, by the case's affine."""
        slices = case.image.shape[1 + case.slice_axis]
        if not case.oriented:
            return cls("", index + 1, slices, ())
        codes = [str(code) for code in aff2axcodes(case.affine)]
        right, top = (codes[axis] for axis in range(3) if axis != case.slice_axis)
        edges = (_ACROSS[right], right, top, _ACROSS[top])
        return cls(_PLANES[codes[case.slice_axis]], index + 1, slices, edges)

    @property
    def words(self) -> str:
        """Such as "axial slice 12 of 24"."""
        where = f"slice {self.number} of {self.of}"
        return f"{self.plane} {where}" if self.plane else f"{where}, sides not in the file"


def pixels(volume: NDArray[Any], case: Case, index: int) -> NDArray[Any]:
    """Slice `index` of a case's (*spatial) volume as a picture, (rows, columns), rows from the top."""
    return np.rot90(np.moveaxis(volume, case.slice_axis, 0)[index])


def busiest(labels: NDArray[np.uint8], case: Case) -> Sequence[int]:
    """Slices by how many voxels have a label, most first."""
    stack = np.moveaxis(labels, case.slice_axis, 0)
    return [int(index) for index in np.argsort(-np.count_nonzero(stack, axis=(1, 2)), kind="stable")]
