"""Anatomy of the fetal phantom: a brain of 21 to 36 weeks as implicit surfaces, evaluated wherever it is asked.

Every structure is a signed distance (positive inside) of a point in millimetres, so a few slices cost a few slices.
Lengths are in units of half the cerebrum's length, x to the right, y to the front, z upwards, with the proportions of
fetal atlases; folds, cortex and cerebrospinal fluid are in millimetres, because they do not scale with the head. It
describes no real person and must never be fitted to one.
"""

from dataclasses import dataclass
from functools import reduce
from itertools import pairwise
from typing import NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from fedseg.data.phantoms.phantom import Array
from secagg.prg import Stream

Point: TypeAlias = tuple[float, float, float]

YOUNGEST, OLDEST = 21.0, 36.0  # weeks
BASE = np.float32(0.17)  # the middle of the head lies below the middle of the cerebrum, because of the hindbrain
WAVES = 14  # in the pattern of folds
CAPSULE = np.float32(0.45)  # radius on which that pattern is drawn
FLAT = np.float32(1.35)  # a lateral ventricle is higher than wide, and leans outwards by
LEAN = np.float32(0.2)
BODY = (  # its middle and half height, from the frontal to the occipital horn
    ((0.15, 0.52, 0.03), 0.065),
    ((0.13, 0.28, 0.14), 0.110),
    ((0.18, -0.08, 0.19), 0.115),
    ((0.27, -0.38, 0.06), 0.165),
    ((0.29, -0.66, -0.05), 0.080),
)
HORN = (((0.27, -0.38, 0.06), 0.120), ((0.42, -0.22, -0.24), 0.060), ((0.42, 0.15, -0.36), 0.040))  # the temporal one


class Surfaces(NamedTuple):
    """Signed distances in mm, positive inside, float32 (n,); each structure covers the ones before it."""

    intracranial: Array
    cortex: Array
    white_matter: Array
    deep_grey: Array
    ventricles: Array
    cerebellum: Array
    brainstem: Array


@dataclass(frozen=True)
class Anatomy:
    """One fetus. Weeks, millimetres, radians, and numbers without a unit.

    Attributes:
        weeks: gestational age.
        half_length: half the front-to-back length of the cerebrum, mm.
        proportions: (3,) individual stretch of x, y, z.
        fluid: width of the fluid around the brain, mm.
        ventricles: scale of the lateral ventricles, left and right; above 1.5 is ventriculomegaly.
        cerebellum: scale of the cerebellum.
        sylvian: openness of the Sylvian fissure.
        warp: (3, 2) phases of the smooth deformation of the whole head.
        folds: (WAVES,) phases of the pattern of folds.
        fold_asymmetry: (WAVES,) by how much the phases of the two sides differ.
        fold_depth: typical depth of a sulcus, mm.
        turn: (3, 3) rotation of the head in the scanner.
        shift: (3,) where the head lies, mm.
    """

    weeks: float
    half_length: float
    proportions: Array
    fluid: float
    ventricles: tuple[float, float]
    cerebellum: float
    sylvian: float
    warp: Array
    folds: Array
    fold_asymmetry: Array
    fold_depth: float
    turn: Array
    shift: Array


def draw(stream: Stream, weeks: float) -> Anatomy:
    """One individual of a gestational age (weeks, `YOUNGEST` to `OLDEST`), drawn from the stream.

    Growth follows published fetal biometry: fronto-occipital length 54 to 104 mm, transverse cerebellum 20 to 42 mm,
    fluid widest near 27 weeks, ventricles that do not grow, folds that deepen fastest near 30 weeks.
    """
    normal = ndtri(stream.uniform(17 + WAVES)).clip(-2.5, 2.5)
    phase = (2 * np.pi * stream.uniform(6 + WAVES)).astype(np.float32)
    age = weeks - YOUNGEST
    wide = np.exp(0.2 * normal[0] + 0.1 * max(0.0, normal[1]) ** 2) * (1.25 - 0.013 * age)
    return Anatomy(
        weeks=weeks,
        half_length=float((27 + 2.2 * age - 0.035 * age**2) * (1 + 0.025 * normal[2])),
        proportions=(np.array([1.02, 1.0, 1.05]) * (1 + 0.025 * normal[3:6])).astype(np.float32),
        fluid=float((1.0 + 2.4 * np.exp(-(((weeks - 27) / 6) ** 2))) * (1 + 0.15 * normal[6])),
        ventricles=(float(wide * (1 + 0.05 * normal[7])), float(wide * (1 - 0.05 * normal[7]))),
        cerebellum=float((0.86 + 0.011 * age) * (1 + 0.05 * normal[8])),
        sylvian=float(max(0.045, 0.21 - 0.0125 * age) * (1 + 0.12 * normal[9])),
        warp=phase[:6].reshape(3, 2),
        folds=phase[6:],
        fold_asymmetry=(0.5 * normal[17:]).astype(np.float32),
        fold_depth=float(9.5 / (1 + np.exp(-(weeks - 29.5) / 2.5)) * (1 + 0.1 * normal[10])),
        turn=_rotation(np.radians(3) * normal[11:14]),
        shift=(0.5 * normal[14:17]).astype(np.float32),
    )


def surfaces(points: Array, anatomy: Anatomy) -> Surfaces:
    """The signed distances (mm) of points (3, n) in mm from the centre of the scanner's field of view, float32."""
    mm = np.float32(anatomy.half_length)
    head = _to_head(points, anatomy)
    side = np.sign(head[0])
    h = np.stack([np.abs(head[0]), head[1], head[2]])
    fluid = np.float32(anatomy.fluid) / mm
    thickness = np.float32(1.55 + 0.025 * (anatomy.weeks - YOUNGEST)) / mm
    cerebellum, brainstem, fossa = _hindbrain(h, anatomy)
    envelope, hull = _cerebrum(h, fossa, anatomy)
    intracranial = _union(hull + fluid, np.maximum(fossa, brainstem + fluid / 2), 0.1)
    pial, cortical_depth = _folded(h, side, envelope, anatomy)
    deep_grey = _deep_grey(h)
    return Surfaces(
        intracranial=intracranial * mm,
        cortex=np.minimum(pial, intracranial) * mm,
        white_matter=(cortical_depth - thickness) * mm,
        deep_grey=deep_grey * mm,
        ventricles=_ventricles(h, side, deep_grey, anatomy) * mm,
        cerebellum=cerebellum * mm,
        brainstem=brainstem * mm,
    )


def _to_head(points: Array, anatomy: Anatomy) -> Array:
    """Straightened, centred on the cerebrum, in units of its half length, the individual's shape undone."""
    p: Array = (anatomy.turn @ (points - anatomy.shift[:, None])) / (anatomy.half_length * anatomy.proportions)[:, None]
    p[2] -= BASE
    bend = [
        np.sin(np.float32(2.2) * p[(i + 1) % 3] + one) + np.sin(np.float32(2.8) * p[(i + 2) % 3] + two)
        for i, (one, two) in enumerate(anatomy.warp)
    ]
    p += np.float32(0.018) * np.stack(bend)
    p[0] *= 1 + np.float32(0.12) * (p[1] + np.float32(0.15))  # narrower in front
    return p


def _cerebrum(h: Array, fossa: Array, anatomy: Anatomy) -> tuple[Array, Array]:
    """The smooth outside of the two hemispheres without folds, and the same with the fissures filled."""
    vault = _ellipsoid(h, (0.0, 0.0, 0.12), (0.78, 0.97, 0.60))
    occipital = _ellipsoid(h, (0.24, -0.55, -0.15), (0.36, 0.42, 0.36))
    temporal = _capsule(h, (0.41, 0.26, -0.34), (0.43, -0.28, -0.28), 0.20, 0.25)
    rectus = _ellipsoid(h, (0.14, 0.55, -0.17), (0.19, 0.36, 0.20))
    upper = _union(_union(vault, occipital, 0.12), rectus, 0.1)
    cistern = _ellipsoid(h, (0.0, 0.02, -0.66), (0.24, 0.42, 0.36))
    slanted = np.stack([h[0], h[1], h[2] + 0.25 * (h[1] - 0.1)])
    fissure = _ellipsoid(slanted, (0.92, 0.16, -0.10), (0.43, 0.44, anatomy.sylvian))
    brain = _without(_without(_union(upper, temporal, 0.05), fossa, 0.06), cistern, 0.08)
    return _without(brain, fissure, 0.06), _union(upper, temporal, 0.15)


def _hindbrain(h: Array, anatomy: Anatomy) -> tuple[Array, Array, Array]:
    """Cerebellum, brainstem, and the posterior fossa that holds them."""
    size = anatomy.cerebellum
    lobe = _ellipsoid(h, (0.19 * size, -0.43, -0.56), (0.22 * size, 0.20 * size, 0.19 * size))
    vermis = _ellipsoid(h, (0.0, -0.40, -0.53), (0.10, 0.17 * size, 0.20 * size))
    cerebellum = _union(lobe, vermis, 0.06)
    midbrain = _capsule(h, (0.08, 0.02, -0.27), (0.05, -0.08, -0.40), 0.13, 0.12)
    pons = _ellipsoid(h, (0.0, -0.06, -0.52), (0.17, 0.14, 0.15))
    medulla = _capsule(h, (0.0, -0.14, -0.58), (0.0, -0.26, -0.98), 0.095, 0.07)
    brainstem = _union(_union(midbrain, pons, 0.05), medulla, 0.05)
    fossa = _union(cerebellum + 0.05, _ellipsoid(h, (0.0, -0.36, -0.57), (0.42, 0.36, 0.27)), 0.05)
    return cerebellum, brainstem, fossa


def _deep_grey(h: Array) -> Array:
    """Thalamus, lentiform nucleus and head of the caudate as one."""
    thalamus = _ellipsoid(h, (0.155, -0.02, -0.10), (0.16, 0.225, 0.175))
    lentiform = _ellipsoid(h, (0.30, 0.16, -0.10), (0.14, 0.245, 0.175))
    caudate = _ellipsoid(h, (0.19, 0.32, 0.00), (0.10, 0.17, 0.14))
    return _union(_union(thalamus, lentiform, 0.1), caudate, 0.08)


def _ventricles(h: Array, side: Array, deep_grey: Array, anatomy: Anatomy) -> Array:
    """Lateral ventricles with their horns, indented by the deep grey matter; cavum, third and fourth ventricle."""
    left, right = anatomy.ventricles
    wide = np.where(side < 0, left, right).astype(np.float32)
    flat = np.stack([FLAT * (h[0] - LEAN * h[2]), h[1], h[2]])
    tubes = [
        _capsule(flat, _flattened(a), _flattened(b), ra * wide, rb * wide)
        for (a, ra), (b, rb) in (*pairwise(BODY), *pairwise(HORN))
    ]
    lateral = reduce(lambda one, other: _union(one, other, 0.04), tubes) / FLAT
    septum = np.float32(0.02)
    lateral = np.minimum(_without(lateral, deep_grey, 0.02), h[0] - septum)
    early = 1 - 0.02 * (anatomy.weeks - YOUNGEST)
    cavum = _ellipsoid(h, (0.0, 0.18, 0.09), (0.04 * early, 0.28 * early, 0.08))
    third = _ellipsoid(h, (0.0, 0.06, -0.13), (0.022, 0.22, 0.15))
    fourth = _ellipsoid(h, (0.0, -0.24, -0.55), (0.06, 0.05, 0.11))
    together: Array = np.maximum(np.maximum(lateral, cavum), np.maximum(third, fourth))
    return together


def _flattened(point: Point) -> Point:
    x, y, z = point
    return float(FLAT * (x - LEAN * z)), y, z


def _folded(h: Array, side: Array, envelope: Array, anatomy: Anatomy) -> tuple[Array, Array]:
    """Distance below the folded surface of the brain, and the same counting only surface that carries cortex."""
    mm = anatomy.half_length
    medial = h[0] - np.float32((0.35 + 0.15 * anatomy.fluid) / mm)
    core = _ellipsoid(h, (0.0, 0.05, -0.08), (0.5, 0.46, 0.35))  # joins the hemispheres; corpus callosum on top
    surface = np.minimum(envelope, np.maximum(medial, core))
    cortical = np.minimum(envelope, np.maximum(medial, core + np.float32(3.5 / mm)))
    near = np.flatnonzero((surface < (1.2 * anatomy.fold_depth + 4) / mm) & (surface > -4 / mm))
    sulci = _sulci(h[:, near], side[near], surface[near], anatomy)
    surface[near] = np.minimum(surface[near], sulci)
    cortical[near] = np.minimum(cortical[near], sulci)
    return surface, cortical


def _sulci(h: Array, side: Array, depth: Array, anatomy: Anatomy) -> Array:
    """Distance from the sulci: sheets under the zero lines of a random field on a capsule inside each hemisphere.

    The distance is the field over its slope along the surface; so the cortex has the same thickness on both banks.
    """
    mm = anatomy.half_length
    along = h[1].clip(-0.5, 0.5)
    ray = np.stack([h[0] - np.float32(0.32), h[1] - along, h[2] - np.float32(0.02)])
    radius: Array = np.sqrt(np.einsum("ij,ij->j", ray, ray)) + np.float32(1e-3)
    ray /= radius
    foot = CAPSULE * ray
    foot[1] += along
    waves = _directions(WAVES) * np.linspace(8.0, 17.0, WAVES, dtype=np.float32)[:, None]
    angle = waves @ foot + anatomy.folds[:, None] + anatomy.fold_asymmetry[:, None] * side
    slope = waves.T @ np.cos(angle)
    steepness = np.einsum("ij,ij->j", slope, slope) - np.einsum("ij,ij->j", slope, ray) ** 2
    away = np.abs(np.sin(angle).sum(0)) / np.sqrt(np.maximum(steepness, 0) + 40) * np.minimum(radius / CAPSULE, 1)
    uneven = np.float32(0.8) + np.float32(0.3) * np.sin(4 * foot.sum(0) + anatomy.folds[0])
    reach = np.float32(anatomy.fold_depth / mm) * uneven
    open_ = (1 - depth / reach).clip(0, 1)
    half_width = (0.2 + 1.1 * min(1.0, anatomy.fold_depth / 3) * open_) / mm * open_
    distance: Array = np.hypot(away, np.maximum(depth - reach, 0)) - half_width
    return distance


def _ellipsoid(p: Array, centre: Point, radii: Point) -> Array:
    """Signed distance to first order."""
    q = [(p[i] - np.float32(centre[i])) * np.float32(1 / radii[i]) for i in range(3)]
    x, y, z = (part * part for part in q)
    a, b, c = (np.float32(1 / radius**2) for radius in radii)
    near, slope = np.sqrt(x + y + z), np.sqrt(x * a + y * b + z * c)
    distance: Array = near * (1 - near) / (slope + np.float32(1e-6))
    return distance


def _capsule(p: Array, a: Point, b: Point, ra: float | Array, rb: float | Array) -> Array:
    """A tube from a to b whose radius goes from ra to rb."""
    axis = [np.float32(end - start) for start, end in zip(a, b, strict=True)]
    q = [p[i] - np.float32(a[i]) for i in range(3)]
    length = np.float32(sum(float(x) ** 2 for x in axis))
    t = ((q[0] * axis[0] + q[1] * axis[1] + q[2] * axis[2]) / length).clip(0, 1)
    x, y, z = (q[i] - t * axis[i] for i in range(3))
    distance: Array = ra + (rb - ra) * t - np.sqrt(x * x + y * y + z * z)
    return distance


def _union(a: Array, b: Array, blend: float) -> Array:
    """The greater of two distances, rounded where they are closer than `blend`."""
    overlap = (1 - np.abs(a - b) * np.float32(1 / blend)).clip(0, None)
    rounded: Array = np.maximum(a, b) + overlap * overlap * np.float32(blend / 4)
    return rounded


def _without(a: Array, b: Array, blend: float) -> Array:
    return -_union(-a, b, blend)


def _directions(n: int) -> Array:
    """(n, 3) unit vectors spread evenly over the sphere (Fibonacci lattice)."""
    i = np.arange(n) + 0.5
    z, turn = 1 - 2 * i / n, i * np.pi * (1 + 5**0.5)
    ring = np.sqrt(1 - z**2)
    return np.stack([ring * np.cos(turn), ring * np.sin(turn), z], 1).astype(np.float32)


def _rotation(angles: NDArray[np.float64]) -> Array:
    """(3, 3): turns by three angles (radians) about x, y, z, in this order."""
    turn = np.eye(3)
    for axis, angle in enumerate(angles):
        i, j = (axis + 1) % 3, (axis + 2) % 3
        one = np.eye(3)
        one[i, i] = one[j, j] = np.cos(angle)
        one[i, j], one[j, i] = -np.sin(angle), np.sin(angle)
        turn = one @ turn
    return turn.astype(np.float32)
