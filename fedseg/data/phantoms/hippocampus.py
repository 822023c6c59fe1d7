"""Phantom of a hippocampus in two parts: a block of the temporal lobe, as the Decathlon's Task04 cuts it out of T1w.

Crude on purpose: tubes, waves and noise. A bent tube, thick in front and thin behind, lies in white matter beside a
horn of fluid, under an amygdala and above folded cortex; either side of the head. Contrasts are those of textbooks and
vary widely from patient to patient, as in SynthSeg (Billot et al. 2023), so that a network learns shapes and not a
scanner. It was looked at beside real images and never fitted to any. Deterministic by seed; no result on it is a
clinical result.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from fedseg.data.cases import Case
from fedseg.data.intensity import masked
from fedseg.data.phantoms.phantom import PUBLIC, Array, Phantom, Profile, by_name, rician, waves
from fedseg.study import Study
from secagg.prg import Stream

STRUCTURES = ("anterior", "posterior")
BLOCK_MM = (36.0, 50.0, 35.0)  # to the right, to the front, upwards
SLICES, THICK_MM = 9, 1.0
LEVELS = (-13.0, 15.0)  # of the slices, mm
EDGE_MM = 1.2  # width of a tissue border
SIGNAL = {  # T1w, white matter 1
    "white matter": 1.0,
    "cortex": 0.62,
    "sulci": 0.30,
    "cistern": 0.25,
    "brain stem": 0.95,
    "amygdala": 0.64,
    "horn": 0.28,
    "anterior": 0.62,
    "posterior": 0.62,
}


@dataclass(frozen=True, kw_only=True)
class HippocampusProfile(Profile):
    """A hospital's scanner and its patients.

    Attributes:
        spread: by how much (log) tissue signals differ between patients.
        shrunk: typical radius of the hippocampus relative to a healthy one.
    """

    spread: float
    shrunk: float


PROFILES = by_name(
    HippocampusProfile(name="A", snr=22, bias=0.10, spread=0.06, shrunk=1.00),
    HippocampusProfile(name="B", snr=35, bias=0.20, spread=0.08, shrunk=0.85),
    HippocampusProfile(name="C", snr=14, bias=0.15, spread=0.10, shrunk=1.10),
    HippocampusProfile(name="D", snr=28, bias=0.25, spread=0.06, shrunk=0.95),
    HippocampusProfile(name="E", snr=18, bias=0.05, spread=0.12, shrunk=0.75),
    HippocampusProfile(name="pretrain", snr=20, bias=0.15, spread=0.12, shrunk=1.0),
)


def hippocampus_case(profile: HippocampusProfile, seed: int, size: int = 48, dims: int = 3) -> Case:
    """One patient, normalised as real cases are.

    Args:
        profile: the hospital.
        seed: 0 to 2^64 - 1; the same arguments give the same case.
        size: voxels along an axis of the working grid, which is as wide as the block is long.
        dims: 3 for a volume, 2 for a stack of axial slices.

    Returns:
        Image (1, size, size, size or SLICES) float32, 0 outside of the block; label 0, 1 (anterior) or 2 (posterior),
        uint8.
    """
    stream = Stream.seeded(seed, "hippocampus", profile.name)
    side = max(BLOCK_MM)
    across = ((np.arange(size) + 0.5) / size - 0.5) * side
    up = across if dims == 3 else LEVELS[0] + (LEVELS[1] - LEVELS[0]) * (np.arange(SLICES) + 0.5) / SLICES
    points = np.stack(np.meshgrid(across, across, up, indexing="ij")).astype(np.float32)
    surfaces = _anatomy(profile, points, stream)
    inside = np.all(np.abs(points) <= np.array(BLOCK_MM, np.float32)[:, None, None, None] / 2, axis=0)
    signal = np.where(inside, _scan(profile, surfaces, points, stream), np.float32(0))
    label = np.zeros(signal.shape, np.uint8)
    for value, name in enumerate(STRUCTURES, start=1):
        label[inside & (surfaces[name] > 0)] = value
    patient = f"{profile.name}-{seed}"
    spacing = (side / size, side / size, side / size if dims == 3 else THICK_MM)
    image = masked(signal[None])
    return Case(profile.name, patient, patient, image, label, np.diag([*spacing, 1.0]), spacing, dims, 2)


def _fits(study: Study) -> bool:
    return tuple(name.lower() for name in study.structures) == STRUCTURES and study.in_channels == 1


HIPPOCAMPUS = Phantom(
    name="hippocampus",
    version=1,
    fits=_fits,
    wish="the structures ['anterior', 'posterior'] of a hippocampus in one modality",
    profiles=PROFILES,
    public=lambda study: PROFILES[PUBLIC],
    make=lambda profile, seed, study: hippocampus_case(profile, seed, study.data.cube, study.data.dims),
)


def _anatomy(profile: HippocampusProfile, points: Array, stream: Stream) -> dict[str, Array]:
    """Signed distances in mm of points (3, X, Y, Z) from tissues: positive inside; each covers those before it."""
    chance = [float(value) for value in stream.uniform(16)]
    x, y, z = turned(points, chance[:6])
    scaled = np.stack([x, y, z]) / np.float32(25)
    length = 15 + 4 * chance[6]
    along = (y / length).clip(-1, 1)  # -1 at the tail, 1 at the head
    # The head lies low and turns inwards, to -x; the tail climbs and turns inwards too.
    centre_x = 3 + 2 * chance[7] - 6 * along**2
    centre_z = 0.5 - (6 + 4 * chance[8]) * along + 2 * along**2
    size = profile.shrunk * np.exp(0.10 * ndtri(chance[9]))
    thick = size * (4.6 + 0.4 * along - 1.8 * along**4)
    reach = np.maximum(np.abs(y) - length + 1, 0)
    tube = thick - np.sqrt(((x - centre_x) / 1.1) ** 2 + ((z - centre_z) / 0.9) ** 2 + reach**2)
    front, low = y - 0.62 * length, z + 5 + 3 * chance[10]
    head = size * 4.2 - np.sqrt(((x + 0.5) / 2.0) ** 2 + ((front - 0.3 * x) / 1.1) ** 2 + (low / 0.95) ** 2)
    whole = np.maximum(tube, head) + 0.9 * waves(scaled, stream, 4, 14)
    parted = y - (1.5 + 5 * (chance[11] - 0.5))
    beside = (x - centre_x - thick) ** 2 + ((z - centre_z - 0.7 * thick) / 0.8) ** 2 + reach**2
    horn = 2.2 * chance[12] - np.sqrt(beside) / 1.5
    amygdala = 7 - np.sqrt((x / 1.2) ** 2 + (y - length - 1) ** 2 + ((z - 4) / 1.1) ** 2)
    medial = -x - 8 - 4 * chance[13] + 4 * waves(scaled, stream, 2, 6)
    folds = np.abs(waves(scaled, stream, 4, 8))
    outside = np.maximum(x - 6, np.maximum(-z - 6, np.abs(y) - 14)) + 4 * waves(scaled, stream, 2, 5)
    ribbon = 3 + 2 * chance[14] - 9 * folds
    stem = -x - 13 - 3 * chance[15] - (y + 4) ** 2 / 60 + waves(scaled, stream, 2, 5)
    return {
        "white matter": np.full_like(tube, 99),
        "cortex": np.minimum(ribbon, outside),
        "sulci": np.minimum(ribbon - 2.5, outside - 1),
        "cistern": np.minimum(medial, 6 - np.abs(z + 4 * waves(scaled, stream, 1, 3)) / 2),
        "brain stem": stem,
        "amygdala": amygdala + 1.2 * waves(scaled, stream, 2, 6),
        "horn": horn,
        "anterior": np.minimum(whole, parted),
        "posterior": np.minimum(whole, -parted),
    }


def turned(points: Array, chance: list[float]) -> Array:
    """Moved to the hippocampus' axes: the left or the right one, tilted and shifted a little.

    Args:
        points: (3, X, Y, Z) in mm from the middle of the block.
        chance: six numbers from 0 to 1.
    """
    x, y, z = points
    x = (x if chance[0] < 0.5 else -x) - np.float32(4 * (chance[1] - 0.5))
    y, z = y - np.float32(5 * (chance[2] - 0.5)), z - np.float32(4 * (chance[3] - 0.5))
    yaw, pitch = 0.35 * (chance[4] - 0.5), 0.5 * (chance[5] - 0.5)
    x, y = np.cos(yaw) * x - np.sin(yaw) * y, np.sin(yaw) * x + np.cos(yaw) * y
    y, z = np.cos(pitch) * y - np.sin(pitch) * z, np.sin(pitch) * y + np.cos(pitch) * z
    axes: Array = np.stack([x, y, z]).astype(np.float32)
    return axes


def _scan(profile: HippocampusProfile, surfaces: dict[str, Array], points: Array, stream: Stream) -> Array:
    """Signal (X, Y, Z): tissues mixed at their borders, texture, an uneven field, noise."""
    jitter = np.exp(profile.spread * ndtri(stream.uniform(len(surfaces))))
    scaled = points / np.float32(25)
    texture = 1 + 0.06 * waves(scaled, stream, 6, 24)
    signal = np.zeros(points.shape[1:], np.float32)
    part = jitter[-1]  # both parts are one organ
    for own, (name, distance) in zip(jitter, surfaces.items(), strict=True):
        share = (np.float32(0.5) + distance / np.float32(EDGE_MM)).clip(0, 1)
        colour = np.float32(SIGNAL[name] * (part if name in STRUCTURES else own))
        signal += share * (colour * texture - signal)
    field = np.exp(profile.bias * waves(scaled, stream, 0.5, 2))
    return rician((signal * field).astype(np.float32), 1 / profile.snr, stream)
