"""Phantom of a hippocampus in two parts within its temporal lobe, in volumes at a study's own millimetres.

As `hippocampus`, and nearer to what an image has: a thalamus above, a gyrus that goes on from the inner border, a white
rim, a horn of fluid that is wide or closed. Everything is bent at random, the block is cut out now larger and now
smaller, and contrast, sharpness and noise vary widely from patient to patient, as in SynthSeg (Billot et al. 2023), so
that a network learns shapes and not a scanner. Millimetres and contrasts are those of textbooks; where amygdala and
striatum lie, and how steep a hippocampus, was read off a public average brain (MNI152). It was never fitted to a
patient. Deterministic by seed; no result on it is a clinical result.
"""

from dataclasses import dataclass

import numpy as np
from scipy.ndimage import gaussian_filter
from scipy.special import ndtri

from fedseg.data.cases import Case
from fedseg.data.intensity import masked
from fedseg.data.phantoms.hippocampus import BLOCK_MM, EDGE_MM, HIPPOCAMPUS, STRUCTURES, turned
from fedseg.data.phantoms.phantom import PUBLIC, Array, Phantom, Profile, by_name, rician, waves
from fedseg.study import Study
from secagg.prg import Stream

BENT_MM = 2.4  # at most, of a typical bend
SIGNAL = {  # T1w, white matter 1
    "white matter": 1.0,
    "cortex": 0.66,
    "sulci": 0.30,
    "thalamus": 0.82,
    "striatum": 0.76,
    "cistern": 0.25,
    "brain stem": 0.93,
    "gyrus": 0.66,
    "amygdala": 0.68,
    "rim": 0.95,
    "horn": 0.26,
    "anterior": 0.66,
    "posterior": 0.66,
}


@dataclass(frozen=True, kw_only=True)
class LobeProfile(Profile):
    """A hospital's scanner, its patients, and how its raters draw.

    Attributes:
        spread: by how much (log) tissue signals differ between patients.
        shrunk: typical radius of the hippocampus relative to a healthy one.
        parted: by how many mm further to the front its raters end the anterior part.
        loose: within how many mm they agree on that.
        drawn: by how many mm further outside its raters draw the border.
    """

    spread: float
    shrunk: float
    parted: float = 0.0
    loose: float = 2.0
    drawn: float = 0.0


PROFILES = by_name(
    LobeProfile(name="A", snr=22, bias=0.10, spread=0.06, shrunk=1.00, parted=2.5, drawn=0.4),
    LobeProfile(name="B", snr=35, bias=0.20, spread=0.08, shrunk=0.85, parted=2.0, drawn=0.6),
    LobeProfile(name="C", snr=14, bias=0.15, spread=0.10, shrunk=1.10, parted=3.0, drawn=0.2),
    LobeProfile(name="D", snr=28, bias=0.25, spread=0.06, shrunk=0.95, parted=2.5, drawn=0.5),
    LobeProfile(name="E", snr=18, bias=0.05, spread=0.12, shrunk=0.80, parted=2.0, drawn=0.3),
    LobeProfile(name="pretrain", snr=20, bias=0.15, spread=0.15, shrunk=1.0, loose=5.0),
)


def lobe_case(profile: LobeProfile, seed: int, shape: tuple[int, ...], spacing: float) -> Case:
    """One patient, normalised as real cases are.

    Args:
        profile: the hospital.
        seed: 0 to 2^64 - 1; the same arguments give the same case.
        shape: voxels of the working grid, X, Y, Z.
        spacing: millimetres of a voxel.

    Returns:
        Image (1, X, Y, Z) float32, 0 outside of the block; label 0, 1 (anterior) or 2 (posterior), uint8.
    """
    stream = Stream.seeded(seed, "hippocampus", profile.name)
    axes = [(np.arange(side) + 0.5 - side / 2) * spacing for side in shape]
    points = np.stack(np.meshgrid(*axes, indexing="ij")).astype(np.float32)
    block = np.array(BLOCK_MM) * (0.88 + 0.3 * stream.uniform(3))
    inside = np.all(np.abs(points) <= block.astype(np.float32)[:, None, None, None] / 2, axis=0)
    surfaces = _anatomy(profile, points, stream)
    signal = np.where(inside, _scan(profile, surfaces, points, stream), np.float32(0))
    label = np.zeros(signal.shape, np.uint8)
    for value, name in enumerate(STRUCTURES, start=1):
        label[inside & (surfaces[name] > -np.float32(profile.drawn))] = value
    patient, voxel = f"{profile.name}-{seed}", (spacing,) * 3
    where = np.diag([*voxel, 1.0])
    return Case(profile.name, patient, patient, masked(signal[None]), label, where, voxel, 3, 2)


def _fits(study: Study) -> bool:
    return HIPPOCAMPUS.fits(study) and study.data.dims == 3 and len(set(study.data.spacing)) == 1


TEMPORAL_LOBE = Phantom(
    name="temporal lobe",
    version=2,
    fits=_fits,
    wish="the structures ['anterior', 'posterior'] of a hippocampus in volumes of one spacing",
    profiles=PROFILES,
    public=lambda study: PROFILES[PUBLIC],
    make=lambda profile, seed, study: lobe_case(profile, seed, study.data.sides, study.data.spacing[0]),
    at_spacing=True,
)


def _anatomy(profile: LobeProfile, points: Array, stream: Stream) -> dict[str, Array]:
    """Signed distances in mm of points (3, X, Y, Z) from tissues: positive inside; each covers those before it."""
    chance = [float(value) for value in stream.uniform(30)]
    bends = np.stack([waves(points / np.float32(25), stream, 2, 7) for _ in range(3)])
    x, y, z = turned(points + np.float32(BENT_MM * chance[16]) * bends, chance[:6])
    scaled = np.stack([x, y, z]) / np.float32(25)
    length = 15 + 4 * chance[6]
    along = (y / length).clip(-1, 1)  # -1 at the tail, 1 at the head
    # The head lies low and turns inwards, to -x; the tail climbs and turns inwards too. How steep depends on the pose.
    steep = 5 + 9 * chance[8]
    centre_x = 3 + 2 * chance[7] - 6 * along**2
    centre_z = 0.5 - steep * along + 2 * along**2
    size = 1.06 * profile.shrunk * np.exp(0.10 * ndtri(chance[9]))
    thick = size * (4.6 + 0.4 * along - 1.8 * along**4)
    reach = np.maximum(np.abs(y) - length + 1, 0)
    tube = thick - np.sqrt(((x - centre_x) / 1.1) ** 2 + ((z - centre_z) / 0.9) ** 2 + reach**2)
    front, low = y - 0.62 * length, z + 0.62 * steep + 3 * chance[10]
    head = size * 4.2 - np.sqrt(((x + 0.5) / 2.0) ** 2 + ((front - 0.3 * x) / 1.1) ** 2 + (low / 0.95) ** 2)
    whole = np.maximum(tube, head) + 0.9 * waves(scaled, stream, 4, 14)
    parted = y - (2.5 + profile.parted + profile.loose * (chance[11] - 0.5))
    beside = (x - centre_x - thick) ** 2 + ((z - centre_z - 0.7 * thick) / 0.8) ** 2 + reach**2
    horn = 3.0 * chance[12] ** 2 + 0.2 - np.sqrt(beside) / 1.5
    # The amygdala is as dark as the head, and before and above it: where an atlas has it, give or take 3 mm.
    front, above = y - length + 3 - 4 * chance[23], z + steep - 4.5 - 6 * chance[24]
    amygdala = 6 + 2 * chance[25] - np.sqrt(((x + 4 * chance[26]) / 1.2) ** 2 + front**2 + (above / 1.1) ** 2)
    striatum = 5 - np.sqrt((x + 5 * chance[27]) ** 2 + ((y - 17) / 2) ** 2 + (z - 13 - 4 * chance[28]) ** 2)
    # Cortex goes on from the inner lower border of the hippocampus, with white matter between.
    turn = np.hypot(x - centre_x + 5 + 2 * chance[17], z - centre_z + 5 + 2 * chance[18])
    gyrus = 1.6 + 0.5 * chance[19] - np.abs(turn - 4) - 0.5 * np.maximum(x - centre_x, 0)
    thalamus = 8 + 3 * chance[20] - np.sqrt((x + 9) ** 2 + ((y + 8) / 1.3) ** 2 + (z - 13 - 3 * chance[21]) ** 2)
    medial = -x - 8 - 4 * chance[13] + 4 * waves(scaled, stream, 2, 6)
    ribbon = 3 + 2 * chance[14] - 9 * np.abs(waves(scaled, stream, 4, 8))
    outside = np.maximum(x - 6, np.maximum(-z - 6, np.abs(y) - 14)) + 4 * waves(scaled, stream, 2, 5)
    stem = -x - 13 - 3 * chance[15] - (y + 4) ** 2 / 60 + waves(scaled, stream, 2, 5)
    return {
        "white matter": np.full_like(tube, 99),
        "cortex": np.minimum(ribbon, outside),
        "sulci": np.minimum(ribbon - 2.5, outside - 1),
        "thalamus": thalamus + 1.2 * waves(scaled, stream, 2, 6),
        "striatum": striatum + 1.2 * waves(scaled, stream, 2, 6),
        "cistern": np.minimum(medial, 6 - np.abs(z + 4 * waves(scaled, stream, 1, 3)) / 2),
        "brain stem": stem,
        "gyrus": np.minimum(gyrus, 15 - np.abs(y)),
        "amygdala": amygdala + 1.2 * waves(scaled, stream, 2, 6),
        "rim": np.minimum(whole + 0.8 * chance[22], z - centre_z),
        "horn": horn,
        "anterior": np.minimum(whole, parted),
        "posterior": np.minimum(whole, -parted),
    }


def _scan(profile: LobeProfile, surfaces: dict[str, Array], points: Array, stream: Stream) -> Array:
    """Signal (X, Y, Z): tissues mixed at their borders, texture, an uneven field, noise."""
    chance = stream.uniform(len(surfaces) + 2)
    jitter = np.exp(profile.spread * (0.5 + 1.5 * chance[-2]) * ndtri(chance[:-2]))
    scaled = points / np.float32(25)
    texture = 1 + 0.06 * waves(scaled, stream, 6, 24)
    signal = np.zeros(points.shape[1:], np.float32)
    part = jitter[-1]  # both parts are one organ
    for own, (name, distance) in zip(jitter, surfaces.items(), strict=True):
        share = (np.float32(0.5) + distance / np.float32(EDGE_MM)).clip(0, 1)
        colour = np.float32(SIGNAL[name] * (part if name in STRUCTURES else own))
        signal += share * (colour * texture - signal)
    field = np.exp(profile.bias * waves(scaled, stream, 0.5, 2))
    blurred = gaussian_filter((signal * field).astype(np.float32), 0.8 * chance[-1])
    return rician(blurred, 1 / profile.snr, stream)
