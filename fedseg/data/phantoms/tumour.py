"""Phantom of brain tumours: axial slices of a head, pre-contrast, FLAIR and post-contrast.

Crude on purpose: ellipses, waves and noise, with contrasts as in textbooks (white matter brighter than grey before
contrast, fluid suppressed and lesions bright on FLAIR, rims that take up contrast). It was looked at beside real images
and never fitted to any. Deterministic by seed; no result on it is a clinical result.
"""

from dataclasses import dataclass

import numpy as np
from scipy.special import ndtri

from fedseg.data.cases import Case
from fedseg.data.intensity import masked
from fedseg.data.phantoms.phantom import PUBLIC, Array, Phantom, Profile, by_name, rician, waves
from fedseg.study import Study
from secagg.prg import Stream

CHANNELS = 3  # pre-contrast, FLAIR, post-contrast
SLICES = 5
LEVELS = (-0.25, 0.65)  # of the slices, in half heights of the head
EDGE = 1.4  # width of a tissue border, in pixels
FIELD_MM, THICK_MM = 220.0, 6.0
MISSING = 0.06  # of patients lack a pre-contrast or post-contrast image; FLAIR takes its place, as in public sets
RINGED, HOLLOW = 0.3, 0.35  # of lesions take up contrast, are liquid inside
SIGNAL = {  # white matter before contrast about 0.75
    "scalp": (0.95, 0.75, 1.00),
    "skull": (0.12, 0.10, 0.12),
    "fluid": (0.22, 0.12, 0.24),
    "grey matter": (0.56, 0.60, 0.60),
    "white matter": (0.75, 0.50, 0.78),
    "deep grey matter": (0.60, 0.58, 0.64),
    "ventricles": (0.20, 0.10, 0.22),
    "lesion": (0.50, 0.95, 0.52),
    "rim": (0.52, 0.95, 1.15),
    "core": (0.32, 0.45, 0.34),
}


@dataclass(frozen=True, kw_only=True)
class TumourProfile(Profile):
    """A hospital's scanner and its patients.

    Attributes:
        spread: by how much (log) tissue signals differ between patients.
        contrast: signal of lesions on FLAIR relative to `SIGNAL`.
        scalp: signal of the scalp relative to `SIGNAL`.
        radius: typical radius of a lesion, in half lengths of the head.
    """

    spread: float
    contrast: float
    scalp: float
    radius: float


PROFILES = by_name(
    TumourProfile(name="A", snr=25, bias=0.10, spread=0.06, contrast=0.95, scalp=1.3, radius=0.22),
    TumourProfile(name="B", snr=40, bias=0.20, spread=0.08, contrast=0.80, scalp=0.9, radius=0.28),
    TumourProfile(name="C", snr=18, bias=0.15, spread=0.06, contrast=1.15, scalp=1.1, radius=0.20),
    TumourProfile(name="D", snr=30, bias=0.25, spread=0.10, contrast=0.85, scalp=1.6, radius=0.25),
    TumourProfile(name="E", snr=22, bias=0.05, spread=0.08, contrast=0.75, scalp=0.7, radius=0.32),
    TumourProfile(name="pretrain", snr=30, bias=0.15, spread=0.15, contrast=1.0, scalp=1.0, radius=0.25),
)


def lesion_case(profile: TumourProfile, seed: int, size: int = 64) -> Case:
    """One patient with one lesion, normalised as real cases are.

    Args:
        profile: the hospital.
        seed: 0 to 2^64 - 1; the same arguments give the same case.
        size: pixels along a side; the head fills most of the image.

    Returns:
        Image (3, size, size, SLICES) float32, label 0 or 1 (size, size, SLICES) uint8.
    """
    stream = Stream.seeded(seed, "lesion", profile.name)
    plane = ((np.arange(size) + 0.5) * 2 / size - 1).astype(np.float32)
    gap = (LEVELS[1] - LEVELS[0]) / (SLICES - 1)
    levels = LEVELS[0] + gap * (np.arange(SLICES) + float(stream.uniform(1)[0]) - 0.5)
    points = np.stack(np.meshgrid(plane, plane, levels.astype(np.float32), indexing="ij"))
    surfaces = _anatomy(profile, points, stream)
    image = masked(_scan(profile, surfaces, points, stream))
    label = (surfaces["lesion"] > 0).astype(np.uint8)
    patient = f"{profile.name}-{seed}"
    spacing = (FIELD_MM / size, FIELD_MM / size, THICK_MM)
    return Case(profile.name, patient, patient, image, label, np.diag([*spacing, 1.0]), spacing, 2, 2)


def _fits(study: Study) -> bool:
    channels = [name.lower() for name in study.data.modality]
    flair = len(channels) == CHANNELS and "flair" in channels[1]
    return len(study.structures) == 1 and flair and study.data.dims == 2


TUMOUR = Phantom(
    name="lesion",
    version=1,
    fits=_fits,
    wish="one structure with modality ['pre-contrast', 'FLAIR', 'post-contrast'] and dims = 2",
    profiles=PROFILES,
    public=lambda study: PROFILES[PUBLIC],
    make=lambda profile, seed, study: lesion_case(profile, seed, study.data.cube),
)


def _anatomy(profile: TumourProfile, points: Array, stream: Stream) -> dict[str, Array]:
    """Signed distances of points (3, X, Y, Z), -1 to 1, from tissues: positive inside; each covers those before it."""
    chance = [float(value) for value in stream.uniform(12)]
    x, y, z = _turned(points, chance[:4])
    wide, long = 0.58 + 0.14 * chance[4], 0.76 + 0.14 * chance[5]
    radius = np.sqrt((x / wide) ** 2 + (y / long) ** 2 + z**2) + 0.02 * waves(points, stream, 2, 5)
    head = (1 - radius) * wide
    skull = head - 0.04 - 0.05 * chance[6]
    brain = skull - 0.04 - 0.03 * chance[7]
    folds, side, swollen = waves(points, stream, 12, 26), np.abs(x), 0.6 + 0.8 * chance[8]
    sulci = 0.05 - 0.15 * np.abs(folds)
    deep = 0.1 * (1 - np.sqrt(((side - 0.19) / 0.1) ** 2 + (y / 0.24) ** 2 + ((z - 0.1) / 0.3) ** 2))
    horns = ((side - 0.07 - 0.3 * np.abs(y)) / (0.06 * swollen)) ** 2
    ventricles = 0.06 * (1 - np.sqrt(horns + (y / 0.34) ** 2 + ((z - 0.2) / 0.3) ** 2))
    lesion, depth = _lesion(profile, np.stack([x / wide, y / long, z]), stream)
    lesion = np.minimum(lesion, np.minimum(brain, -ventricles))
    absent = np.full_like(lesion, -1)
    return {
        "scalp": head,
        "skull": skull,
        "fluid": brain,
        "grey matter": np.minimum(brain - np.maximum(sulci, 0), side - 0.01),
        "white matter": np.minimum(brain - 0.08 - 0.035 * folds, side - 0.06),
        "deep grey matter": deep,
        "ventricles": ventricles,
        "lesion": lesion,
        "rim": np.minimum(lesion, depth - 0.05) if chance[9] < RINGED else absent,
        "core": np.minimum(lesion, depth - 0.10) if chance[10] < HOLLOW else absent,
    }


def _turned(points: Array, chance: list[float]) -> Array:
    """Moved to the head's axes: nose along y in any of four directions, a tilt, a shift."""
    x, y, z = points
    angle = (np.pi / 2) * int(4 * chance[0]) + 0.5 * (chance[1] - 0.5)
    x, y = x - np.float32(0.24 * (chance[2] - 0.5)), y - np.float32(0.24 * (chance[3] - 0.5))
    turned: Array = np.stack([np.cos(angle) * x - np.sin(angle) * y, np.sin(angle) * x + np.cos(angle) * y, z])
    return turned.astype(np.float32)


def _lesion(profile: TumourProfile, points: Array, stream: Stream) -> tuple[Array, Array]:
    """Signed distance from a blob with an uneven border, and a smoother one for what lies inside of it."""
    chance = stream.uniform(6)
    size = profile.radius * np.exp(0.35 * ndtri(chance[0]).clip(-1.5, 1.5))
    radii = size * np.exp(0.25 * ndtri(chance[1:4]))
    out, turn = (0.75 - 0.6 * size) * np.sqrt(chance[4]), 2 * np.pi * chance[5]
    centre = (out * np.cos(turn), out * np.sin(turn), 0.2 + 0.5 * (stream.uniform(1)[0] - 0.5))
    far = np.sqrt(
        sum(((p - np.float32(c)) / np.float32(r)) ** 2 for p, c, r in zip(points, centre, radii, strict=True))
    )
    depth = np.float32(size) * (1 - far)
    uneven = np.float32(size) * (0.35 * waves(points, stream, 4, 9) + 0.15 * waves(points, stream, 9, 18))
    return depth + uneven, depth + uneven / 2


def _scan(profile: TumourProfile, surfaces: dict[str, Array], points: Array, stream: Stream) -> Array:
    """Signal (3, X, Y, Z): tissues mixed at their borders, texture, an uneven field, noise."""
    jitter = np.exp(profile.spread * ndtri(stream.uniform(3 * len(surfaces)))).reshape(-1, CHANNELS)
    texture = 1 + 0.08 * waves(points, stream, 6, 24)
    edge = np.float32(EDGE * 2 / points.shape[1])
    signal = np.zeros((CHANNELS, *points.shape[1:]), np.float32)
    for own, (name, distance) in zip(jitter, surfaces.items(), strict=True):
        share = (np.float32(0.5) + distance / edge).clip(0, 1)
        colour = own * SIGNAL[name] * {"scalp": (profile.scalp,) * 3, "lesion": (1, profile.contrast, 1)}.get(name, 1)
        signal += share * (colour.astype(np.float32)[:, None, None, None] * texture - signal)
    field = np.exp(profile.bias * np.stack([waves(points, stream, 0.5, 2) for _ in range(CHANNELS)]))
    image = rician((signal * field).astype(np.float32), 1 / profile.snr, stream)
    missing = stream.uniform(2) < MISSING
    for channel in np.flatnonzero(missing):
        image[2 * channel] = image[1]
    return image
