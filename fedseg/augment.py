"""Random views of labelled images, so that a network meets more scanners than it has seen.

`augmented` is for phantoms, of which every tissue is known. Shape: turns, scales, shifts, bends, left and right.
Intensity: each tissue's contrast, gamma, an uneven field, sharpness, noise.

`viewed` is for patients, by `[training] augmentation`: what nnU-Net does (Isensee et al. 2021), all images at once.
Ranges and probabilities are those that MONAI's transforms had here, to which a test holds them. All randomness is the
patient's own, so that its views depend on nobody else's being there.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional

from fedseg.data.cases import mirror_axes
from fedseg.study import Study
from secagg.prg import Stream

TURN = math.radians(4)
SCALE, SHIFT, BEND = 0.03, 0.02, 0.015
CONTRAST, GAMMA, FIELD, NOISE, GAIN = 0.05, 0.10, 0.10, 0.03, 0.10


def augmented(images: Tensor, labels: Tensor, structures: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """One random view of each image; background that is exactly 0 stays 0.

    Args:
        images: (k, C, *size) float32, two or three spatial axes of which the first is left to right.
        labels: (k, *size) int64, 0 to `structures`.
        structures: how many; each has a contrast of its own in a view.
        generator: of all randomness.

    Returns:
        Images (k, C, *size) float32 and labels (k, *size) int64.
    """
    grid = _grid(images, generator)
    label = functional.grid_sample(labels[:, None].float(), grid, mode="nearest", align_corners=False).long()
    image = functional.grid_sample(images, grid, mode="bilinear", align_corners=False)
    return torch.where(image != 0, _scanned(image, label, structures, generator), 0.0), label[:, 0]


def _grid(images: Tensor, generator: torch.Generator) -> Tensor:
    """Where each pixel of the view lies in the image, as `grid_sample` takes it: (k, *size, axes)."""
    k, axes = len(images), images.ndim - 2
    angle = TURN * torch.randn(k, generator=generator)
    turn = torch.eye(axes).repeat(k, 1, 1)
    turn[:, 0, 0] = turn[:, 1, 1] = angle.cos()
    turn[:, 0, 1], turn[:, 1, 0] = -angle.sin(), angle.sin()
    scale = torch.exp(SCALE * torch.randn(k, 1, axes, generator=generator))
    scale[:, :, -1] *= 1 - 2 * torch.randint(2, (k, 1), generator=generator)
    shift = SHIFT * torch.randn(k, axes, 1, generator=generator)
    grid = functional.affine_grid(torch.cat([turn * scale, shift], 2), list(images.shape), align_corners=False)
    return grid + BEND * _smooth((k, axes), 5, images, generator).movedim(1, -1)


def _scanned(image: Tensor, label: Tensor, structures: int, generator: torch.Generator) -> Tensor:
    """The same anatomy from another scanner."""
    axes = image.ndim - 2
    each = (*image.shape[:2], *(1,) * axes)
    mean = functional.avg_pool2d if axes == 2 else functional.avg_pool3d
    contrast = torch.exp(CONTRAST * torch.randn(*image.shape[:2], structures + 1, generator=generator))
    tissue = contrast.gather(2, label.flatten(2).expand(*image.shape[:2], -1)).view_as(image)
    image = image.clamp(min=1e-4) * mean(tissue, 3, 1, 1, count_include_pad=False)
    image = image ** torch.exp(GAMMA * torch.randn(each, generator=generator))
    field = _smooth(image.shape[:2], 3, image, generator)
    image = image * torch.exp(FIELD * torch.rand(each, generator=generator) * field)
    image = torch.lerp(image, mean(image, 3, 1, 1), torch.rand(each, generator=generator))
    noise = torch.randn(image.shape, generator=generator)
    image = image + NOISE * torch.rand(each, generator=generator) * noise
    return image * torch.exp(GAIN * torch.randn(each, generator=generator))


def _smooth(fields: tuple[int, ...], knots: int, images: Tensor, generator: torch.Generator) -> Tensor:
    """Random fields (*fields, *size) that bend between `knots` values along each axis."""
    coarse = torch.randn(*fields, *(knots,) * (images.ndim - 2), generator=generator)
    mode = "bilinear" if images.ndim == 4 else "trilinear"
    return functional.interpolate(coarse, size=images.shape[2:], mode=mode, align_corners=True)


def viewed(images: Tensor, targets: Tensor, study: Study, slice_axis: int, stream: Stream) -> tuple[Tensor, Tensor]:
    """One random view of each image, and of its label map where it has one; as they are without any.

    Args:
        images: (k, C, *size) float32: one patient's, or without privacy a batch's.
        targets: (k, *size) int64, or (k,) where one thing is said of a whole image.
        study: gives `[training] augmentation` and `mirror`.
        slice_axis: of the cases.
        stream: the patient's own, or the batch's.

    Returns:
        The same shapes.
    """
    training, maps = study.training, targets.shape[1:] == images.shape[2:]
    if training.augmentation != "none":
        generator = torch.Generator().manual_seed(int(stream.integers(1, 2**62)[0]))
        full = training.augmentation == "full"
        images, moved = _moved(images, targets if maps else None, full, generator)
        images, targets = _shaded(images, full, generator), targets if moved is None else moved
    for axis in mirror_axes(study, slice_axis):
        turned = torch.from_numpy(stream.integers(len(images), 2) == 1)
        images = torch.where(_each(turned, images), images.flip(axis), images)
        if maps:
            targets = torch.where(_each(turned, targets), targets.flip(axis - 1), targets)
    return images, targets


def _moved(
    images: Tensor, labels: Tensor | None, full: bool, generator: torch.Generator
) -> tuple[Tensor, Tensor | None]:
    """Half of the images turned, scaled and shifted about their middle, with `full` a fifth bent; one resampling."""
    k, size = len(images), images.shape[2:]
    axes, half = len(size), torch.tensor(size) / 2
    turned = _some(k, 0.5, generator)
    turn, room = (math.radians(30), (0.7, 1.4)) if full else (math.radians(8), (0.9, 1.1))
    angles = _between(-turn, turn, (k, 1 if axes == 2 else 3), generator)
    zoom, shift = _between(*room, (k, 1, axes), generator), _between(-0.1, 0.1, (k, axes, 1), generator)
    rotation = _rotation(angles, axes)
    bent = _some(k, 0.2, generator) if full else torch.zeros(k, dtype=torch.bool)
    if not (moving := (turned | bent).nonzero()[:, 0]).numel():
        return images, labels
    same = torch.eye(axes).expand(k, -1, -1)
    matrix = torch.where(turned[:, None, None], rotation * zoom, same)[moving]
    shift = torch.where(turned[:, None, None], rotation @ (shift * half[:, None]), 0.0)[moving]
    there = functional.affine_grid(torch.eye(axes, axes + 1)[None], [1, 1, *size], align_corners=False)
    points = (there.flip(-1) * half).reshape(1, -1, axes).expand(len(moving), -1, -1)  # voxels from the middle
    if bent.any():
        offsets = torch.zeros(len(images), points.shape[1], axes)
        offsets[bent] = _bends(int(bent.sum()), size, generator).flatten(2).movedim(1, 2)
        points = points + offsets[moving]
    points = torch.baddbmm(shift.movedim(1, 2), points, matrix.movedim(1, 2))
    grid = (points / half).flip(-1).reshape(len(moving), *size, axes)
    seen = images.clone()
    seen[moving] = functional.grid_sample(images[moving], grid, mode="bilinear", align_corners=False)
    if labels is None:
        return seen, None
    said, those = labels.clone(), labels[moving, None].float()
    said[moving] = functional.grid_sample(those, grid, mode="nearest", align_corners=False)[:, 0].long()
    return seen, said


def _rotation(angles: Tensor, axes: int) -> Tensor:
    """(k, axes, axes) rotations by (k, 1) angles in the plane, or (k, 3) about each axis in turn."""
    whole = torch.eye(axes).expand(len(angles), -1, -1)
    planes = [(0, 1)] if axes == 2 else [(1, 2), (2, 0), (0, 1)]
    for angle, (one, other) in zip(angles.T, planes, strict=True):
        turn = torch.eye(axes).repeat(len(angles), 1, 1)
        turn[:, one, one] = turn[:, other, other] = angle.cos()
        turn[:, one, other], turn[:, other, one] = -angle.sin(), angle.sin()
        whole = whole @ turn
    return whole


def _bends(k: int, size: Sequence[int], generator: torch.Generator) -> Tensor:
    """How far each voxel is moved, (k, axes, *size) in voxels: slices by knots 24 pixels apart, else smooth noise."""
    if len(size) == 2:
        strength = _between(1, 2, (k, 1, 1, 1), generator)
        knots = torch.randn(k, 2, *(2 * (side // 48) + 4 for side in size), generator=generator)
        fields = functional.interpolate(knots, scale_factor=24, mode="bicubic", align_corners=False)
        for axis, side in enumerate(size, 2):
            fields = fields.narrow(axis, (fields.shape[axis] - side) // 2, side)
        return strength * fields
    strength, reach = _between(50, 150, (k, 1, 1, 1, 1), generator), _between(5, 7, (k, 1), generator)
    return strength * _smoothed(_between(-1, 1, (k, 3, *size), generator), reach.expand(k, 3))


def _shaded(images: Tensor, full: bool, generator: torch.Generator) -> Tensor:
    """Other intensities: scale, and with `full` noise, blur, low resolution and gamma, each for some of the images."""
    k, channels, *size = images.shape
    scale = 0.25 if full else 0.1
    factors = 1 + _between(-scale, scale, (k, channels), generator)
    images = images * _each(torch.where(_some(k, 0.3, generator)[:, None], factors, 1.0), images)
    if not full:
        return images
    if (those := _some(k, 0.15, generator)).any():
        strength = _each(_between(0, 0.1, (int(those.sum()),), generator), images)
        images[those] += strength * torch.randn(images[those].shape, generator=generator)
    if (those := _some(k, 0.2, generator)).any():
        images[those] = _smoothed(images[those], _between(0.5, 1, (int(those.sum()), len(size)), generator))
    finer = "bilinear" if len(size) == 2 else "trilinear"
    for one in _some(k, 0.25, generator).nonzero()[:, 0]:
        zoom = float(_between(0.5, 1, (), generator))
        small = functional.interpolate(images[one][None], size=[max(round(side * zoom), 1) for side in size])
        images[one] = functional.interpolate(small, size=size, mode=finer, align_corners=False)[0]
    if (those := _some(k, 0.3, generator)).any():
        images[those] = _gamma(images[those], _between(0.7, 1.5, (int(those.sum()),), generator))
    return images


def _gamma(images: Tensor, gamma: Tensor) -> Tensor:
    """Intensities to a power (k,), between the image's own least and greatest; mean and deviation stay."""
    flat = images.flatten(1)
    low, high, mean, spread = (f(flat, 1)[:, None] for f in (torch.amin, torch.amax, torch.mean, torch.std))
    bent = ((flat - low) / (high - low + 1e-7)) ** gamma[:, None]
    return (mean + spread * (bent - bent.mean(1, True)) / (bent.std(1, keepdim=True) + 1e-8)).view_as(images)


def _smoothed(images: Tensor, sigma: Tensor) -> Tensor:
    """Images (k, C, *size) after a Gaussian of (k, axes) voxels; outside is 0."""
    k, channels, *size = images.shape
    several = images.reshape(1, k * channels, *size)
    convolve = functional.conv2d if len(size) == 2 else functional.conv3d
    for axis in range(len(size)):
        reach = math.ceil(3 * float(sigma[:, axis].max()))
        kernel = torch.exp(-0.5 * (torch.arange(-reach, reach + 1) / sigma[:, axis : axis + 1]) ** 2)
        kernel = (kernel / kernel.sum(1, keepdim=True)).repeat_interleave(channels, 0)
        shape = [2 * reach + 1 if other == axis else 1 for other in range(len(size))]
        margin = [reach if other == axis else 0 for other in range(len(size))]
        several = convolve(several, kernel.view(-1, 1, *shape), padding=margin, groups=k * channels)
    return several.view_as(images)


def _some(k: int, share: float, generator: torch.Generator) -> Tensor:
    """(k,) bool: each with this probability."""
    return torch.rand(k, generator=generator) < share


def _between(low: float, high: float, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Uniform values of this shape."""
    return low + (high - low) * torch.rand(shape, generator=generator)


def _each(values: Tensor, images: Tensor) -> Tensor:
    """Values that begin as `images` does, made to be multiplied with it."""
    return values.view(*values.shape, *(1,) * (images.ndim - values.ndim))
