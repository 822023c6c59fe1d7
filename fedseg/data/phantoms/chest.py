"""Phantom of chest radiographs: a picture of two lungs between ribs, with or without what is to be found in them.

Crude on purpose: ellipses, waves and noise. Lungs are dark and soft tissue is bright, as radiographs are shown. The
first of a study's classes is a clear chest, the second has one cloudy patch, the third small round spots, the fourth
fluid at the bottom of one side. It was never fitted to a real image. Deterministic by seed; no result on it is a
clinical result.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.data.cases import Case
from fedseg.data.intensity import masked
from fedseg.data.phantoms.phantom import PUBLIC, Array, Phantom, Profile, by_name, rician, waves
from fedseg.study import Study
from secagg.prg import Stream

CLASSES = 4
FIELD_MM = 350.0
EDGE = 0.03  # width of a border, in half sides of the picture


@dataclass(frozen=True, kw_only=True)
class ChestProfile(Profile):
    """A hospital's device and its patients.

    Attributes:
        clear: share of its patients with a clear chest; the others are as often of one class as of another.
        dense: by how much a finding is brighter than lung; soft tissue is 1 brighter.
    """

    clear: float
    dense: float


PROFILES = by_name(
    ChestProfile(name="A", snr=30, bias=0.10, clear=0.5, dense=0.55),
    ChestProfile(name="B", snr=45, bias=0.20, clear=0.3, dense=0.45),
    ChestProfile(name="C", snr=20, bias=0.15, clear=0.6, dense=0.60),
    ChestProfile(name="D", snr=35, bias=0.25, clear=0.4, dense=0.50),
    ChestProfile(name="E", snr=25, bias=0.05, clear=0.7, dense=0.40),
    ChestProfile(name="pretrain", snr=30, bias=0.15, clear=0.5, dense=0.50),
)


def chest_case(profile: ChestProfile, seed: int, classes: int = 2, size: int = 64) -> Case:
    """One patient's picture, normalised as real ones are.

    Args:
        profile: the hospital.
        seed: 0 to 2^64 - 1; the same arguments give the same case.
        classes: of the study, 2 to 4.
        size: pixels along a side.

    Returns:
        Image (1, size, size, 1) float32, and the number of its class, () uint8.
    """
    stream = Stream.seeded(seed, "chest", profile.name)
    chance = [float(value) for value in stream.uniform(12)]
    found = 0 if chance[0] < profile.clear else 1 + int((classes - 1) * chance[1])
    plane = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
    points = np.stack(np.meshgrid(plane, plane, np.zeros(1, np.float32), indexing="ij"))
    x, y, _ = points
    x, y = x - np.float32(0.1 * (chance[2] - 0.5)), y - np.float32(0.1 * (chance[3] - 0.5))
    wide, high = 0.30 + 0.08 * chance[4], 0.60 + 0.15 * chance[5]
    lungs = [_blob(x, y, side * (0.12 + wide), 0.02, wide, high) for side in (-1, 1)]
    lungs[0] = np.minimum(lungs[0], -_blob(x, y, -0.14, -0.35, 0.22 + 0.08 * chance[6], 0.30))  # the heart
    body = _blob(x, y, 0, -0.1, 0.95, 1.3)
    signal = 0.05 + 0.95 * _share(body)
    signal -= 0.75 * _share(np.maximum(*lungs))
    ribs = np.sin((9 + 2 * chance[7]) * (y + 0.25 * x**2) * np.pi / 2 + 6 * chance[8])
    signal += np.float32(0.12) * ribs.clip(0, 1) * _share(np.maximum(*lungs))
    inside = lungs[int(2 * chance[9])]
    signal += np.float32(0.75 * profile.dense) * _finding(found, x, y, inside, points, stream)
    signal *= 1 + np.float32(0.05) * waves(points, stream, 8, 30)
    signal *= np.exp(np.float32(profile.bias) * waves(points, stream, 0.5, 2))
    image = masked(rician(signal[None], 1 / profile.snr, stream))
    patient, pixel = f"{profile.name}-{seed}", FIELD_MM / size
    where = np.diag([pixel, pixel, pixel, 1.0])
    return Case(profile.name, patient, patient, image, np.asarray(found, np.uint8), where, (pixel,) * 3, 2, 2)


def _fits(study: Study) -> bool:
    return study.study.task == "classification" and len(study.names) <= CLASSES and study.in_channels == 1


CHEST = Phantom(
    name="chest",
    version=1,
    fits=_fits,
    wish="2 to 4 classes of chest radiographs in one modality",
    profiles=PROFILES,
    public=lambda study: PROFILES[PUBLIC],
    make=lambda profile, seed, study: chest_case(profile, seed, len(study.names), study.data.cube),
)


def _blob(x: Array, y: Array, across: float, up: float, wide: float, high: float) -> Array:
    """Signed distance from an ellipse, about in half sides of the picture: positive inside."""
    radius = np.sqrt(
        ((x - np.float32(across)) / np.float32(wide)) ** 2 + ((y - np.float32(up)) / np.float32(high)) ** 2
    )
    return ((1 - radius) * np.float32(min(wide, high))).astype(np.float32)


def _share(distance: NDArray[np.floating[Any]]) -> Array:
    """1 inside, 0 outside, and in between at the border."""
    share: Array = (np.float32(0.5) + distance / np.float32(EDGE)).clip(0, 1).astype(np.float32)
    return share


def _finding(found: int, x: Array, y: Array, lung: Array, points: Array, stream: Stream) -> Array:
    """How much of each pixel the class's finding fills, within one lung."""
    chance = stream.uniform(12)
    there = np.argwhere(lung > np.float32(0.08))
    match found:
        case 0:
            return np.zeros_like(lung)
        case 1:
            row, column, _ = there[int(chance[0] * len(there))]
            size = 0.18 + 0.14 * chance[1]
            patch = _blob(
                x, y, float(x[row, column, 0]), float(y[row, column, 0]), size, size * (0.7 + 0.6 * chance[2])
            )
            cloudy = _share(patch + np.float32(0.08) * waves(points, stream, 6, 14))
        case 2:
            places = there[(chance[:5] * len(there)).astype(int)]
            spots = [_blob(x, y, float(x[i, j, 0]), float(y[i, j, 0]), 0.07, 0.07) for i, j, _ in places]
            cloudy = _share(np.maximum.reduce(spots))
        case _:
            level = np.float32(float(y[lung > 0].min()) + 0.25 + 0.25 * float(chance[0]))
            cloudy = _share(level - y + np.float32(0.05) * np.abs(x))
    return cloudy * _share(lung)
