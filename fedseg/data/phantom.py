"""The embedded cohort: fetal brain MRI made by the package, with FeTA's seven labels.

An anatomy (`fedseg.data.anatomy`) is scanned as a hospital would: T2 decay at its field strength and echo time, voxels
averaging what they hold, a receive bias field, Rician noise, and a brain mask. Deterministic by seed. These are phantoms: no
result on them is a clinical result, and no real image went into them.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import nibabel as nib
import numpy as np
from numpy.typing import NDArray
from scipy.special import ndtri

from fedseg.data.anatomy import OLDEST, YOUNGEST, Anatomy, Surfaces, draw, surfaces
from fedseg.data.cases import Case, SiteData, normalised, split
from fedseg.errors import ConfigError
from fedseg.study import Study
from secagg.prg import Stream

STRUCTURES = (
    "external cerebrospinal fluid",
    "grey matter",
    "white matter",
    "ventricles",
    "cerebellum",
    "deep grey matter",
    "brainstem",
)
COVERING = (1, 2, 3, 6, 4, 5, 7)  # labels in the order of `Surfaces`: each covers the one before
SLICES = 5
SLICE_LEVELS = (-0.62, 0.42)  # of half the cerebrum's length: from pons and cerebellum to above the ventricles
SLAB = 1 << 16  # points at once: the working arrays stay in the processor's cache
LOW_RESOLUTION = 1.5  # blur of a reconstructed voxel, in voxels: motion and thick slices


@dataclass(frozen=True)
class Profile:
    """A scanner and its habits.

    Attributes:
        name: of the profile.
        field_strength: tesla; T2 shortens and the receive field gets less even as it rises.
        voxel_mm: isotropic voxel of the reconstruction.
        echo_time: effective echo time, ms: the T2 contrast.
        snr: white matter signal over the standard deviation of the noise in each quadrature channel.
        bias: relative strength of the receive field.
        mask_mm: how far the brain mask reaches beyond the brain.
        weeks: youngest and oldest gestational age that this hospital sees.
    """

    name: str
    field_strength: float
    voxel_mm: float
    echo_time: float
    snr: float
    bias: float
    mask_mm: float
    weeks: tuple[float, float] = (YOUNGEST, OLDEST)


PROFILES = {
    profile.name: profile
    for profile in (
        Profile("A", field_strength=1.5, voxel_mm=0.8, echo_time=110, snr=22, bias=0.10, mask_mm=1.0),
        Profile("B", field_strength=3.0, voxel_mm=0.5, echo_time=95, snr=30, bias=0.28, mask_mm=0.5),
        Profile("C", field_strength=1.5, voxel_mm=1.1, echo_time=140, snr=13, bias=0.16, mask_mm=2.0, weeks=(23, 36)),
        Profile("D", field_strength=0.55, voxel_mm=1.2, echo_time=120, snr=9, bias=0.05, mask_mm=1.5),
        Profile("E", field_strength=3.0, voxel_mm=0.7, echo_time=125, snr=18, bias=0.35, mask_mm=0.0, weeks=(21, 33)),
        Profile("pretrain", field_strength=1.5, voxel_mm=1.0, echo_time=90, snr=16, bias=0.2, mask_mm=1.0),
    )
}


def phantom_case(
    profile: Profile, seed: int, gestational_age: float | None = None, size: int = 96, dims: int = 3
) -> Case:
    """One patient of a hospital.

    Args:
        profile: the hospital's scanner.
        seed: 0 to 2^64 - 1; same profile, seed and arguments, same case.
        gestational_age: weeks, 21 to 36; drawn from the hospital's range if None.
        size: voxels along each axis of the field of view, which fits the head but is never finer than the scanner.
        dims: 3 for a volume (size, size, size); 2 for `SLICES` axial slices (size, size, SLICES) at their true distance.

    Returns:
        A case with image (1, *shape) float32, label (*shape) uint8, and the affine in millimetres.

    Raises:
        ConfigError: gestational age, size or dims out of range.
    """
    weeks, anatomy, stream = _patient(profile, seed, gestational_age)
    if size < 16 or dims not in (2, 3):
        raise ConfigError(f"phantom: size = {size} and dims = {dims}; use size >= 16 and dims 2 or 3")
    axes, spacing = _grid(profile, anatomy, size, dims)
    signal, label = scan(profile, anatomy, axes, stream)
    affine = np.diag([*spacing, 1.0])
    affine[:3, 3] = [axis[0] for axis in axes]
    patient = f"{profile.name}-{seed}"
    image = normalised(signal[None], patient)
    return Case(
        site=profile.name,
        patient=patient,
        name=f"{patient} ({weeks:.1f} weeks)",
        image=image,
        label=label,
        affine=affine,
        spacing=spacing,
        axes=dims,
        slice_axis=2,
    )


def _patient(profile: Profile, seed: int, weeks: float | None) -> tuple[float, Anatomy, Stream]:
    stream = Stream.seeded(seed, "phantom", profile.name)
    low, high = profile.weeks
    drawn = low + (high - low) * float(stream.uniform(1)[0])
    age = drawn if weeks is None else weeks
    if not YOUNGEST <= age <= OLDEST:
        raise ConfigError(f"phantom: gestational_age = {age}; use {YOUNGEST:.0f} to {OLDEST:.0f} weeks")
    return age, draw(stream, age), stream


def _grid(profile: Profile, anatomy: Anatomy, size: int, dims: int) -> tuple[list[NDArray[np.float32]], tuple[float, ...]]:
    field = 2.16 * anatomy.half_length + 2 * anatomy.fluid + 2
    voxel = max(profile.voxel_mm, field / size)
    centred = (np.arange(size) - (size - 1) / 2) * voxel
    if dims == 3:
        return [centred.astype(np.float32)] * 3, (voxel, voxel, voxel)
    levels = (np.linspace(*SLICE_LEVELS, SLICES) + 0.1) * anatomy.half_length
    return [centred.astype(np.float32)] * 2 + [levels.astype(np.float32)], (voxel, voxel, float(levels[1] - levels[0]))


def scan(
    profile: Profile, anatomy: Anatomy, axes: list[NDArray[np.float32]], stream: Stream
) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
    shape = tuple(len(axis) for axis in axes)
    clean = np.zeros(shape, np.float32)
    label = np.zeros(shape, np.uint8)
    inside = np.zeros(shape, np.bool_)
    voxel = axes[0][1] - axes[0][0]
    blur = np.hypot(voxel, LOW_RESOLUTION * profile.voxel_mm)
    step = max(1, SLAB // (shape[0] * shape[1]))
    for start in range(0, shape[2], step):
        part = (slice(None), slice(None), slice(start, start + step))
        points = np.stack(np.meshgrid(axes[0], axes[1], axes[2][part[2]], indexing="ij")).reshape(3, -1)
        found = surfaces(points, anatomy)
        block = clean[part].shape
        clean[part] = _signal(found, profile, anatomy, blur).reshape(block)
        label[part] = _labels(found).reshape(block)
        inside[part] = (found.intracranial > -profile.mask_mm).reshape(block)
    noisy = _rician(clean * _receive(axes, profile, anatomy, stream), 1 / profile.snr, stream)
    return np.where(inside, noisy, 0), label


def _labels(found: Surfaces) -> NDArray[np.uint8]:
    label = np.zeros(found[0].shape, np.uint8)
    for value, distance in zip(COVERING, found, strict=True):
        label[(distance > 0) & (label > 0 if value > 1 else True)] = value
    return label


def _signal(found: Surfaces, profile: Profile, anatomy: Anatomy, blur: float) -> NDArray[np.float32]:
    age = anatomy.weeks
    tissue = tissue_signal(profile, age)
    depth, wall = found.white_matter, -found.ventricles
    young = float(np.clip((32 - age) / 8, 0, 1))
    white = (
        tissue[3]
        * (1 + 0.06 * young * np.exp(-((depth / 2.0) ** 2)) - 0.10 * np.exp(-((depth - 4.5) / 2.0) ** 2) * young)
        * (1 - 0.16 * (0.3 + 0.7 * young) * np.exp(-((wall / 1.6) ** 2)))
    )
    out = np.full(depth.shape, 0.0, np.float32)
    for value, distance in zip(COVERING, found, strict=True):
        share = (0.5 + distance / np.float32(blur)).clip(0, 1)
        out += share * ((white if value == 3 else tissue[value]) - out)
    return out.astype(np.float32)


def tissue_signal(profile: Profile, weeks: float) -> NDArray[np.float64]:
    age = weeks - YOUNGEST
    shorter = (1.5 / profile.field_strength) ** 0.25
    t2 = np.array([1.0, 900, 160 - 0.3 * age, 250 - 3.5 * age, 1500, 235 - 5.0 * age, 196 - 2.2 * age, 190 - 3.0 * age])
    water = np.array([0.0, 0.98, 0.90, 0.93, 1.0, 0.93, 0.90, 0.89])
    signal = water * np.exp(-profile.echo_time / (t2 * shorter))
    return signal / signal[3]


def _receive(axes, profile, anatomy, stream):
    u, v, w = (axis / np.float32(anatomy.half_length) for axis in axes)
    a = (2 * stream.uniform(6) - 1) * profile.bias
    plane = a[0] * u[:, None] + a[1] * v + a[2] * u[:, None] * v + a[3] * (u[:, None] ** 2 - v**2)
    return np.exp((plane[..., None] + a[4] * w + a[5] * w * v[:, None])).astype(np.float32)


def _rician(signal: NDArray[np.float32], sigma: float, stream: Stream) -> NDArray[np.float32]:
    n = signal.size
    bits = stream.words(2 * n) >> np.uint32(9)
    noise = ndtri((bits.astype(np.float32) + np.float32(0.5)) * np.float32(2.0**-23)) * np.float32(sigma)
    real = signal + noise[:n].reshape(signal.shape)
    return np.hypot(real, noise[n:].reshape(signal.shape))
