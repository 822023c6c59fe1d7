"""The anatomy of the phantom: a fetal brain of 21 to 36 weeks as implicit surfaces, evaluated wherever it is asked.

Every structure is a signed distance (positive inside) of a point in millimetres, so a few slices cost a few slices. Lengths
are written in units of half the cerebrum's length, x to the right, y to the front, z upwards, as measured on fetal atlases;
folds, cortex and cerebrospinal fluid are in millimetres, because those do not scale with the head. It models no real person
and must never be fitted to one.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from secagg.prg import Stream

Array = NDArray[np.float32]

YOUNGEST, OLDEST = 21.0, 36.0
WAVES = 14
CAPSULE = np.float32(0.45)  # radius on which the pattern of folds is drawn


class Surfaces(NamedTuple):
    """Signed distances in mm, positive inside, float32 (n,), in the order in which one structure covers the one before."""

    intracranial: Array
    cortex: Array
    white_matter: Array
    deep_grey: Array
    ventricles: Array
    cerebellum: Array
    brainstem: Array


@dataclass(frozen=True)
class Anatomy:
    """One fetus. Weeks, millimetres, and numbers without a unit; phases in radians.

    Attributes:
        weeks: gestational age.
        half_length: half the front-to-back length of the cerebrum, mm.
        proportions: (3,) individual stretch of x, y, z.
        fluid: width of the fluid around the brain, mm.
        ventricle: scale of the lateral ventricles, left and right; 1 is typical, above 1.5 is ventriculomegaly.
        cerebellum: scale of the cerebellum.
        sylvian: openness of the Sylvian fissure.
        warp: (3, 3) phases of the smooth deformation of the whole head.
        folds: (WAVES,) phases of the secondary folds, and `fold_asymmetry` (WAVES,) how the two sides differ.
        fold_depth: depth of the secondary folds, mm.
        turn: (3, 3) rotation matrix of the head in the scanner.
        shift: (3,) where the head lies, mm.
    """

    weeks: float
    half_length: float
    proportions: Array
    fluid: float
    ventricle: tuple[float, float]
    cerebellum: float
    sylvian: float
    warp: Array
    folds: Array
    fold_asymmetry: Array
    fold_depth: float
    turn: Array
    shift: Array


def draw(stream: Stream, weeks: float) -> Anatomy:
    """One individual of this gestational age (weeks), drawn from the stream."""
    normal = ndtri(stream.uniform(24 + WAVES)).clip(-2.5, 2.5)
    phase = 2 * np.pi * stream.uniform(9 + WAVES)
    age = weeks - YOUNGEST
    ventricle = np.exp(0.2 * normal[0] + 0.1 * max(0.0, normal[1]) ** 2) * (1 - 0.008 * age)
    return Anatomy(
        weeks=weeks,
        half_length=float((27 + 2.2 * age - 0.04 * age**2) * (1 + 0.025 * normal[2])),
        proportions=(1 + 0.025 * normal[3:6]).astype(np.float32),
        fluid=float((1.0 + 2.4 * np.exp(-(((weeks - 27) / 6) ** 2))) * (1 + 0.15 * normal[6])),
        ventricle=(float(ventricle * (1 + 0.05 * normal[7])), float(ventricle * (1 - 0.05 * normal[7]))),
        cerebellum=float(1 + 0.05 * normal[8]),
        sylvian=float(1 + 0.12 * normal[9]),
        warp=phase[:9].reshape(3, 3).astype(np.float32),
        folds=phase[9:].astype(np.float32),
        fold_asymmetry=(0.5 * normal[24:]).astype(np.float32),
        fold_depth=float(11.0 / (1 + np.exp(-(weeks - 31) / 2.2)) * (1 + 0.1 * normal[10])),
        turn=_rotation(np.radians(5) * normal[11:14]),
        shift=(1.5 * normal[14:17]).astype(np.float32),
    )


def surfaces(points: Array, anatomy: Anatomy) -> Surfaces:
    """The signed distances (mm) of scanner points (3, n) in mm from the centre of the field of view."""
    mm = anatomy.half_length
    p = _to_head(points, anatomy)
    side = np.sign(p[0])
    h = np.stack([np.abs(p[0]), p[1], p[2]])
    fluid = anatomy.fluid / mm
    cerebellum, brainstem, fossa = _hindbrain(h, anatomy)
    envelope, hull = _cerebral_envelope(h, fossa, anatomy)
    deep_grey = _deep_grey(h)
    ventricles = _ventricles(h, side, anatomy)
    pial, cortical_depth = _pial(h, side, envelope, anatomy)
    intracranial = _union(hull + fluid, np.maximum(fossa, brainstem + 0.6 * fluid), 0.1)
    thickness = (1.7 + 0.04 * (anatomy.weeks - YOUNGEST)) / mm
    return Surfaces(
        intracranial * mm,
        np.minimum(pial, intracranial) * mm,
        (cortical_depth - thickness) * mm,
        deep_grey * mm,
        ventricles * mm,
        cerebellum * mm,
        brainstem * mm,
    )


def _to_head(points: Array, anatomy: Anatomy) -> Array:
    scale = 1 / (anatomy.half_length * anatomy.proportions[:, None])
    p: Array = (anatomy.turn @ (points - anatomy.shift[:, None])) * scale
    p[2] -= np.float32(0.1)
    a = anatomy.warp
    bend = [np.sin(2.2 * p[(i + 1) % 3] + a[i, 0]) + np.sin(2.8 * p[(i + 2) % 3] + a[i, 1]) for i in range(3)]
    p += np.float32(0.018) * np.stack(bend)
    p[0] *= 1 + np.float32(0.12) * (p[1] + np.float32(0.15))
    return p


def _cerebral_envelope(h: Array, fossa: Array, anatomy: Anatomy) -> tuple[Array, Array]:
    """The smooth outside of the two hemispheres without folds, and the same with the fissures filled."""
    vault = _ellipsoid(h, (0.0, 0.0, 0.08), (0.76, 0.97, 0.60))
    occipital = _ellipsoid(h, (0.24, -0.55, -0.15), (0.36, 0.42, 0.36))
    temporal = _capsule(h, (0.42, 0.26, -0.39), (0.46, -0.28, -0.30), 0.19, 0.25)
    rectus = _ellipsoid(h, (0.14, 0.56, -0.20), (0.19, 0.36, 0.22))
    upper = _union(_union(vault, occipital, 0.12), rectus, 0.1)
    cistern = _ellipsoid(h, (0.0, 0.02, -0.66), (0.24, 0.42, 0.36))
    open_ = max(0.05, 0.25 - 0.0145 * (anatomy.weeks - YOUNGEST)) * anatomy.sylvian
    slanted = np.stack([h[0], h[1], h[2] + 0.25 * (h[1] - 0.1)])
    fissure = _ellipsoid(slanted, (0.90, 0.16, -0.14), (0.44, 0.44, open_))
    brain = _without(_without(_union(upper, temporal, 0.05), fossa, 0.06), cistern, 0.08)
    return _without(brain, fissure, 0.06), _union(upper, temporal, 0.15)


def _hindbrain(h: Array, anatomy: Anatomy) -> tuple[Array, Array, Array]:
    """Cerebellum, brainstem, and the posterior fossa that holds them."""
    size = anatomy.cerebellum * (0.86 + 0.011 * (anatomy.weeks - YOUNGEST))
    lobe = _ellipsoid(h, (0.19 * size, -0.43, -0.56), (0.22 * size, 0.20 * size, 0.19 * size))
    vermis = _ellipsoid(h, (0.0, -0.40, -0.53), (0.10, 0.17 * size, 0.20 * size))
    cerebellum = _union(lobe, vermis, 0.06)
    midbrain = _capsule(h, (0.08, 0.02, -0.27), (0.05, -0.08, -0.40), 0.13, 0.12)
    pons = _ellipsoid(h, (0.0, -0.06, -0.52), (0.17, 0.14, 0.15))
    medulla = _capsule(h, (0.0, -0.14, -0.58), (0.0, -0.26, -0.98), 0.085, 0.06)
    brainstem = _union(_union(midbrain, pons, 0.05), medulla, 0.05)
    fossa = _union(cerebellum + 0.05, _ellipsoid(h, (0.0, -0.36, -0.60), (0.42, 0.36, 0.30)), 0.05)
    return cerebellum, brainstem, fossa


def _deep_grey(h: Array) -> Array:
    thalamus = _ellipsoid(h, (0.14, -0.03, -0.11), (0.14, 0.20, 0.15))
    lentiform = _ellipsoid(h, (0.27, 0.16, -0.10), (0.12, 0.22, 0.16))
    caudate = _ellipsoid(h, (0.16, 0.34, -0.01), (0.10, 0.14, 0.13))
    return _union(_union(thalamus, lentiform, 0.1), caudate, 0.08)


def _ventricles(h: Array, side: Array, anatomy: Anatomy) -> Array:
    """Lateral ventricles with frontal, occipital and temporal horns; cavum septi pellucidi, third and fourth ventricle."""
    left, right = anatomy.ventricle
    wide = np.where(side < 0, np.float32(left), np.float32(right))
    path = (
        ((0.13, 0.50, 0.03), 0.045),
        ((0.11, 0.28, 0.15), 0.080),
        ((0.18, -0.08, 0.20), 0.085),
        ((0.28, -0.38, 0.06), 0.140),
        ((0.28, -0.66, -0.05), 0.070),
    )
    horn = (((0.28, -0.38, 0.06), 0.110), ((0.41, -0.22, -0.24), 0.055), ((0.41, 0.15, -0.38), 0.035))
    lateral = _capsule(h, path[0][0], path[1][0], path[0][1] * wide, path[1][1] * wide)
    for chain in (path[1:], horn):
        for (a, ra), (b, rb) in zip(chain, chain[1:], strict=False):
            lateral = _union(lateral, _capsule(h, a, b, ra * wide, rb * wide), 0.04)
    early = 1 - 0.02 * (anatomy.weeks - YOUNGEST)
    cavum = _ellipsoid(h, (0.0, 0.32, 0.08), (0.045 * early, 0.15, 0.07))
    third = _ellipsoid(h, (0.0, 0.06, -0.14), (0.022, 0.20, 0.13))
    fourth = _ellipsoid(h, (0.0, -0.24, -0.55), (0.06, 0.05, 0.11))
    return np.maximum(np.maximum(lateral, cavum), np.maximum(third, fourth))


def _pial(h: Array, side: Array, envelope: Array, anatomy: Anatomy) -> tuple[Array, Array]:
    """Distance below the folded surface, and the same counting only surface that carries cortex."""
    mm = anatomy.half_length
    gap = (0.5 + 0.25 * anatomy.fluid) / mm
    core = _ellipsoid(h, (0.0, 0.05, -0.08), (0.5, 0.46, 0.35))
    medial = h[0] - gap
    smooth = np.minimum(envelope, np.maximum(medial, core))
    bare = np.minimum(envelope, np.maximum(medial, core + 3.5 / mm))
    near = np.flatnonzero((smooth < (anatomy.fold_depth + 5) / mm) & (smooth > -4 / mm))
    fold = _folds(h[:, near], side[near], smooth[near], anatomy)
    smooth[near] = np.minimum(smooth[near], fold)
    bare[near] = np.minimum(bare[near], fold)
    return smooth, bare


def _folds(h: Array, side: Array, depth: Array, anatomy: Anatomy) -> Array:
    """Distance from the sulci: sheets under the zero lines of a random field on a capsule inside each hemisphere."""
    mm = anatomy.half_length
    along = h[1].clip(-0.5, 0.5)
    ray = np.stack([h[0] - np.float32(0.32), h[1] - along, h[2] - np.float32(0.02)])
    radius = np.sqrt(np.einsum("ij,ij->j", ray, ray)) + np.float32(1e-3)
    ray /= radius
    foot = CAPSULE * ray
    foot[1] += along
    waves = _sphere(WAVES) * np.linspace(7.0, 15.0, WAVES, dtype=np.float32)[:, None]
    angle = waves @ foot + anatomy.folds[:, None] + anatomy.fold_asymmetry[:, None] * side
    field = np.sin(angle).sum(0)
    slope = waves.T @ np.cos(angle)
    tangential = np.einsum("ij,ij->j", slope, slope) - np.einsum("ij,ij->j", slope, ray) ** 2
    distance = np.abs(field) * np.minimum(radius * np.float32(1 / CAPSULE), 1) / np.sqrt(np.maximum(tangential, 0) + 100)
    reach = anatomy.fold_depth / mm
    below = np.maximum(depth - reach, 0)
    open_ = (1 - depth / max(reach, 1e-3)).clip(0, 1)
    half_width = (0.25 + 0.10 * anatomy.fold_depth * open_) / mm * open_
    return np.sqrt(distance**2 + below**2) - half_width


def _ellipsoid(p: Array, centre: tuple[float, float, float], radii: tuple[float, float, float]) -> Array:
    q = [(p[i] - np.float32(centre[i])) * np.float32(1 / radii[i]) for i in range(3)]
    squares = [x * x for x in q]
    k0 = np.sqrt(squares[0] + squares[1] + squares[2]) + np.float32(1e-6)
    k1 = np.sqrt(sum(s * np.float32(1 / r**2) for s, r in zip(squares, radii, strict=True))) + np.float32(1e-6)
    return k0 * (1 - k0) / k1


def _capsule(p: Array, a: tuple[float, ...], b: tuple[float, ...], ra: float | Array, rb: float | Array) -> Array:
    axis = [b[i] - a[i] for i in range(3)]
    length = sum(x * x for x in axis)
    q = [p[i] - np.float32(a[i]) for i in range(3)]
    t = ((q[0] * axis[0] + q[1] * axis[1] + q[2] * axis[2]) * np.float32(1 / length)).clip(0, 1)
    square = sum((q[i] - t * np.float32(axis[i])) ** 2 for i in range(3))
    return ra + (rb - ra) * t - np.sqrt(square)


def _union(a: Array, b: Array, blend: float) -> Array:
    overlap = (1 - np.abs(a - b) * np.float32(1 / blend)).clip(0, None)
    return np.maximum(a, b) + overlap * overlap * np.float32(blend / 4)


def _without(a: Array, b: Array, blend: float) -> Array:
    return -_union(-a, b, blend)


def _sphere(n: int) -> Array:
    i = np.arange(n) + 0.5
    z, turn = 1 - 2 * i / n, i * np.pi * (1 + 5**0.5)
    ring = np.sqrt(1 - z**2)
    return np.stack([ring * np.cos(turn), ring * np.sin(turn), z], 1).astype(np.float32)


def _rotation(angles: NDArray[np.float64]) -> Array:
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turn = turn @ one
    return turn.astype(np.float32)
