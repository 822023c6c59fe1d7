"""Phantom of fetal brain MRI, with FeTA's seven labels.

An anatomy (`fetal_brain`) is scanned as a hospital would: T2 decay at its field strength and echo time, voxels
that average what they hold, an uneven receive field, Rician noise, a brain mask. Deterministic by seed. These are
phantoms: no result on them is a clinical result, and no real image ever enters them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from fedseg.data.cases import Case
from fedseg.data.intensity import masked
from fedseg.data.phantoms.fetal_brain import BASE, OLDEST, YOUNGEST, Anatomy, Surfaces, draw, surfaces
from fedseg.data.phantoms.phantom import PUBLIC, Array, Phantom, Profile, by_name, rician
from fedseg.errors import ConfigError
from fedseg.study import Study
from secagg.prg import Stream

COVERING = (1, 2, 3, 6, 4, 5, 7)  # FeTA's labels in the order of `Surfaces`: each covers the one before
SLICES = 5
LEVELS = (
    -0.55,
    0.45,
)  # of the slices, in half lengths of the cerebrum: from pons and cerebellum to above the ventricles
POINTS = 1 << 16  # at once: the working arrays stay in the processor's cache
NEAR_TERM = (34.0, 36.0)
"""Weeks that the public hospital sees where the study's sites are made too. One generator makes both: drawing the
sites' own weeks would pretrain on the very distribution that the study is tested on."""
BLUR = 1.5  # of a reconstructed voxel, in voxels: motion and thick slices
SKULL = 0.4  # signal within the mask but outside the brain, relative to white matter


@dataclass(frozen=True, kw_only=True)
class Scanner(Profile):
    """A hospital's scanner, its habits and its patients.

    Attributes:
        field_strength: tesla; a higher field shortens T2.
        voxel_mm: isotropic voxel of the reconstruction, mm.
        echo_time: effective echo time, ms: the T2 contrast.
        mask_mm: how far the brain mask reaches beyond the brain, mm.
        weeks: the youngest and oldest gestational age that the hospital sees.
    """

    field_strength: float
    voxel_mm: float
    echo_time: float
    mask_mm: float
    weeks: tuple[float, float] = (YOUNGEST, OLDEST)


PROFILES = by_name(
    Scanner(name="A", field_strength=1.5, voxel_mm=0.8, echo_time=110, snr=22, bias=0.10, mask_mm=0.5),
    Scanner(name="B", field_strength=3.0, voxel_mm=0.5, echo_time=95, snr=30, bias=0.28, mask_mm=0.0),
    Scanner(name="C", field_strength=1.5, voxel_mm=1.1, echo_time=140, snr=15, bias=0.16, mask_mm=1.5, weeks=(23, 36)),
    Scanner(name="D", field_strength=0.55, voxel_mm=1.2, echo_time=120, snr=11, bias=0.05, mask_mm=1.0),
    Scanner(name="E", field_strength=3.0, voxel_mm=0.7, echo_time=125, snr=20, bias=0.35, mask_mm=0.0, weeks=(21, 33)),
    Scanner(name="pretrain", field_strength=1.5, voxel_mm=1.0, echo_time=90, snr=17, bias=0.20, mask_mm=0.5),
)


@dataclass(frozen=True, eq=False)
class PhantomCase(Case):
    """A case that knows its gestational age, in weeks."""

    weeks: float


def phantom_case(
    profile: Scanner, seed: int, gestational_age: float | None = None, size: int = 96, dims: int = 3
) -> PhantomCase:
    """One patient of a hospital, normalised as real cases are.

    Args:
        profile: the hospital.
        seed: 0 to 2^64 - 1; the same arguments give the same case.
        gestational_age: weeks, 21 to 36; drawn from the hospital's range if None.
        size: voxels along an axis; the field of view fits the head, with voxels never finer than the scanner's.
        dims: 3 for a volume (size, size, size); 2 for a stack of axial slices (size, size, SLICES).

    Raises:
        ConfigError: gestational age, size or dims out of range.
    """
    if size < 16 or dims not in (2, 3):
        raise ConfigError(f"phantom: size = {size}, dims = {dims}; use a size of at least 16, and 2 or 3 dims")
    stream = Stream.seeded(seed, "phantom", profile.name)
    drawn, offset = stream.uniform(2)
    low, high = profile.weeks
    weeks = low + (high - low) * float(drawn) if gestational_age is None else gestational_age
    if not YOUNGEST <= weeks <= OLDEST:
        raise ConfigError(f"phantom: gestational_age = {weeks}; use {YOUNGEST:.0f} to {OLDEST:.0f} weeks")
    anatomy = draw(stream, weeks)
    axes = _axes(profile, anatomy, size, float(offset) if dims == 2 else None)
    signal, label = scan(profile, anatomy, axes, stream)
    spacing = tuple(float(axis[1] - axis[0]) for axis in axes)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    patient = f"{profile.name}-{seed}"
    image = masked(signal[None])
    return PhantomCase(profile.name, patient, patient, image, label, affine, spacing, dims, 2, weeks)


def scan(profile: Scanner, anatomy: Anatomy, axes: Sequence[Array], stream: Stream) -> tuple[Array, NDArray[np.uint8]]:
    """What the scanner makes of a fetus.

    Args:
        profile: the scanner.
        anatomy: the fetus.
        axes: voxel positions along x, y and z, mm from the centre of the field of view; float32.
        stream: of the receive field and the noise.

    Returns:
        Signal (X, Y, Z) float32, white matter about 1 and 0 outside the mask; FeTA's labels (X, Y, Z) uint8.
    """
    shape = tuple(len(axis) for axis in axes)
    clean, label, inside = np.empty(shape, np.float32), np.empty(shape, np.uint8), np.empty(shape, np.bool_)
    step = max(1, POINTS // (shape[0] * shape[1]))
    for start in range(0, shape[2], step):
        slab = (slice(None), slice(None), slice(start, start + step))
        grid = np.stack(np.meshgrid(axes[0], axes[1], axes[2][slab[2]], indexing="ij"))
        found = surfaces(grid.reshape(3, -1), anatomy)
        voxel = float(axes[0][1] - axes[0][0])
        clean[slab] = _signal(found, profile, anatomy, voxel).reshape(grid.shape[1:])
        label[slab] = _labels(found).reshape(grid.shape[1:])
        inside[slab] = (found.intracranial > -profile.mask_mm).reshape(grid.shape[1:])
    received = clean * _receive_field(profile, anatomy, axes, stream)
    return np.where(inside, rician(received, 1 / profile.snr, stream), np.float32(0)), label


def tissue_signal(profile: Scanner, weeks: float) -> list[float]:
    """T2w signal by label, 0 to 7, white matter 1: water content times T2 decay at the effective echo time.

    Fetal T2 is long and shortens as water leaves the brain; it falls with the field about as its fourth root. Values at
    1.5 T are chosen so that the ratios between tissues, and how they move with age, are those of fetal T2w atlases.
    """
    age = weeks - YOUNGEST
    t2 = np.array([1, 900, 160 - 0.3 * age, 250 - 3.2 * age, 1500, 250 - 3 * age, 196 - 1.8 * age, 192 - 2 * age])
    water = np.array([0, 0.98, 0.90, 0.93, 1.0, 0.93, 0.90, 0.89])
    signal = water * np.exp(-profile.echo_time / (t2 * (1.5 / profile.field_strength) ** 0.25))
    return [float(value) for value in signal / signal[3]]


def _fits(study: Study) -> bool:
    channels = [name.lower() for name in study.data.modality]
    return len(study.structures) == len(COVERING) and channels in (["t2w"], ["t2"])


def _public(study: Study) -> Scanner:
    profile = PROFILES[PUBLIC]
    return replace(profile, weeks=NEAR_TERM) if study.data.layout == "phantom" else profile


def _make(profile: Scanner, seed: int, study: Study) -> Case:
    return phantom_case(profile, seed, size=study.data.cube, dims=study.data.dims)


FETAL = Phantom(
    name="phantom",
    version=1,
    fits=_fits,
    wish="FeTA's seven structures with modality ['T2w']",
    profiles=PROFILES,
    public=_public,
    make=_make,
)


def _axes(profile: Scanner, anatomy: Anatomy, size: int, offset: float | None) -> list[Array]:
    """Voxel positions, mm: a volume, or axial slices, moved by up to half their distance (offset 0 to 1)."""
    field = (2.08 * anatomy.half_length + 3) * float(anatomy.proportions.max()) + 2 * anatomy.fluid
    voxel = max(profile.voxel_mm, field / size)
    plane = ((np.arange(size) - (size - 1) / 2) * voxel).astype(np.float32)
    if offset is None:
        return [plane] * 3
    gap = (LEVELS[1] - LEVELS[0]) / (SLICES - 1)
    levels = LEVELS[0] + gap * (np.arange(SLICES) + offset - 0.5) + BASE
    return [plane, plane, (levels * anatomy.half_length).astype(np.float32)]


def _labels(found: Surfaces) -> NDArray[np.uint8]:
    label = np.zeros(found.intracranial.shape, np.uint8)
    for value, distance in zip(COVERING, found, strict=True):
        label[(distance > 0) & (found.intracranial > 0)] = value
    return label


def _signal(found: Surfaces, profile: Scanner, anatomy: Anatomy, voxel: float) -> Array:
    """Noiseless signal: each voxel mixes the tissues on both sides of a surface by its distance from it."""
    tissue = tissue_signal(profile, anatomy.weeks)
    edge = np.float32(np.hypot(voxel, BLUR * profile.voxel_mm))
    signal = np.full(found.intracranial.shape, SKULL, np.float32)
    for value, distance in zip(COVERING, found, strict=True):
        share = (np.float32(0.5) + distance / edge).clip(0, 1)
        colour = _white_matter(found, anatomy.weeks) if value == 3 else np.float32(tissue[value])
        signal += share * (colour - signal)
    return signal


def _white_matter(found: Surfaces, weeks: float) -> Array:
    """The layers that fade until 32 weeks: bright subplate, darker intermediate zone, dark germinal matrix."""
    young = np.float32(np.clip((32 - weeks) / 8, 0, 1))
    subplate = np.exp(-(((found.white_matter - np.float32(1.5)) / 2) ** 2))
    intermediate = np.exp(-(((found.white_matter - np.float32(6.5)) / np.float32(2.5)) ** 2))
    germinal = np.exp(-((found.ventricles / np.float32(1.6)) ** 2))
    fading = np.float32(0.16) * (np.float32(0.3) + np.float32(0.7) * young)
    layers: Array = (1 + np.float32(0.1) * young * (subplate - intermediate)) * (1 - fading * germinal)
    return layers


def _receive_field(profile: Scanner, anatomy: Anatomy, axes: Sequence[Array], stream: Stream) -> Array:
    """Smooth and positive: the exponential of a quadratic, broadcast over the grid."""
    x, y, z = (axis / np.float32(anatomy.half_length) for axis in axes)
    x, y = x[:, None, None], y[None, :, None]
    a = ((2 * stream.uniform(6) - 1) * profile.bias).astype(np.float32)
    field: Array = np.exp(a[0] * x + a[1] * y + a[2] * x * y + a[3] * (x * x - y * y) + a[4] * z + a[5] * y * z)
    return field
