"""An image or a label map as its file has it, and whether two of them lie on one grid."""

from dataclasses import dataclass, field
from itertools import product

import nibabel
import numpy as np
from numpy.typing import NDArray

from fedseg.errors import CaseError

SAME_GRID = 0.05
"""Two grids are one where no corner lies further apart than this part of the smallest voxel: tools round headers."""


@dataclass(frozen=True, eq=False)
class Volume:
    """What a file holds.

    Attributes:
        name: what errors call it: the path.
        values: (C, X, Y, Z) float32, in the file's units.
        affine: (4, 4) float64, voxel to millimetres (RAS+).
        oriented: whether the file says where the patient's sides are, so that a picture may name left and right.
        remarks: sentences on what was decided by a rule because the file contradicts itself.
    """

    name: str
    values: NDArray[np.float32] = field(repr=False)
    affine: NDArray[np.float64] = field(repr=False)
    oriented: bool = True
    remarks: tuple[str, ...] = ()

    @property
    def shape(self) -> tuple[int, int, int]:
        """Voxels per spatial axis."""
        _, x, y, z = self.values.shape
        return x, y, z

    def on_grid_of(self, image: "Volume", remedy: str) -> NDArray[np.float32]:
        """The values (C, X, Y, Z) in the image's order of axes: voxels may be stored otherwise, never resampled.

        Args:
            image: whose grid it has to be.
            remedy: ends the error.

        Raises:
            CaseError: it is another grid.
        """
        turn = nibabel.io_orientation(np.linalg.inv(image.affine) @ self.affine)
        values = np.stack([nibabel.apply_orientation(channel, turn) for channel in self.values])
        affine = self.affine @ nibabel.orientations.inv_ornt_aff(turn, self.shape)
        if values.shape[1:] != image.shape:
            extents = " x ".join(map(str, values.shape[1:])), " x ".join(map(str, image.shape))
            raise CaseError(self.name, f"is {extents[0]} voxels and its image is {extents[1]}; {remedy}")
        apart = corner_distance(affine, image.affine, image.shape)
        if apart > SAME_GRID * smallest_voxel(image.affine):
            raise CaseError(self.name, f"has another affine than its image (by up to {apart:.3g} mm); {remedy}")
        return values


def smallest_voxel(affine: NDArray[np.float64]) -> float:
    """Length of a voxel along its shortest side, in millimetres."""
    return float(np.linalg.norm(affine[:3, :3], axis=0).min())


def corner_distance(one: NDArray[np.float64], other: NDArray[np.float64], shape: tuple[int, ...]) -> float:
    """How far apart two affines place the corners of a grid at most, in millimetres."""
    corners = np.array([(*corner, 1) for corner in product(*((0, extent - 1) for extent in shape))])
    return float(np.linalg.norm((corners @ (one - other).T)[:, :3], axis=1).max())
