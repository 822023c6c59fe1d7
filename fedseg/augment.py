"""Random views of labelled images, so that a network meets more scanners than it has seen.

`augmented` is for phantoms, of which every tissue is known. Shape: turns, scales, shifts, bends, left and right.
Intensity: each tissue's contrast, gamma, an uneven field, sharpness, noise.

`viewed` is for patients, by MONAI's transforms and `[training] augmentation`: what nnU-Net does (Isensee et al. 2021).
All randomness is the patient's own, so that its views depend on nobody else's being there.
"""

import math
import threading
from typing import Any

import torch
from monai.transforms import (
    Compose,
    Rand2DElasticd,
    Rand3DElasticd,
    RandAdjustContrastd,
    RandAffined,
    RandGaussianNoised,
    RandGaussianSmoothd,
    RandScaleIntensityd,
    RandSimulateLowResolutiond,
)
from torch import Tensor
from torch.nn import functional

from fedseg.data.cases import mirror_axes
from fedseg.study import Study
from secagg.prg import Stream

TURN = math.radians(4)
SCALE, SHIFT, BEND = 0.03, 0.02, 0.015
CONTRAST, GAMMA, FIELD, NOISE, GAIN = 0.05, 0.10, 0.10, 0.03, 0.10

_THREAD = threading.local()


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
    """One random view of each image of a patient, and of its label map where it has one; as they are without any.

    Args:
        images: (k, C, *size) float32.
        targets: (k, *size) int64, or (k,) where one thing is said of a whole image.
        study: gives `[training] augmentation` and `mirror`.
        slice_axis: of the case.
        stream: the patient's own.

    Returns:
        The same shapes.
    """
    training, maps = study.training, targets.shape[1:] == images.shape[2:]
    flips = mirror_axes(study, slice_axis)
    if training.augmentation == "none" and not flips:
        return images, targets
    transform = _kept(study, maps) if training.augmentation != "none" else None
    seen, said = [], []
    for image, target in zip(images, targets, strict=True):
        pair: dict[str, Any] = {"image": image, "label": target[None].float()} if maps else {"image": image}
        if transform is not None:
            transform.set_random_state(seed=int(stream.integers(1, 2**32)[0]))
            pair = transform(pair)
        turned = [axis - 1 for axis in flips if stream.integers(1, 2)[0]]
        seen.append(torch.as_tensor(pair["image"]).as_subclass(Tensor).flip(turned))
        said.append(
            torch.as_tensor(pair["label"]).as_subclass(Tensor)[0].flip([axis - 1 for axis in turned]).round().long()
            if maps
            else target
        )
    return torch.stack(seen), torch.stack(said)


def _kept(study: Study, maps: bool) -> Compose:
    """The study's transform, one a thread: it holds its generator, which every image sets anew, and is slow to make."""
    asked = study.data.dims, study.training.augmentation == "full", study.data.view, maps
    made: dict[tuple[object, ...], Compose] = _THREAD.__dict__.setdefault("made", {})
    if asked not in made:
        made[asked] = _transform(*asked)
    return made[asked]


def _transform(dims: int, full: bool, view: tuple[int, ...], maps: bool) -> Compose:
    keys, modes = (["image", "label"], ["bilinear", "nearest"]) if maps else (["image"], ["bilinear"])
    same: dict[str, Any] = {"keys": keys, "mode": modes, "padding_mode": "zeros"}
    turn = math.radians(30 if full else 8)
    transforms: list[Any] = [
        RandAffined(
            **same,
            prob=0.5,
            rotate_range=[turn] * (1 if dims == 2 else 3),
            scale_range=[(-0.3, 0.4) if full else (-0.1, 0.1)] * dims,
            translate_range=[0.05 * side for side in view],
        ),
        RandScaleIntensityd("image", 0.25 if full else 0.1, prob=0.3, channel_wise=True),
    ]
    if full and dims == 2:
        transforms.append(Rand2DElasticd(spacing=(24, 24), magnitude_range=(1, 2), prob=0.2, **same))
    if full and dims == 3:
        transforms.append(Rand3DElasticd(sigma_range=(5, 7), magnitude_range=(50, 150), prob=0.2, **same))
    if full:
        finer = "bilinear" if dims == 2 else "trilinear"
        transforms += [
            RandGaussianNoised("image", prob=0.15, std=0.1),
            RandGaussianSmoothd("image", (0.5, 1.0), (0.5, 1.0), (0.5, 1.0), prob=0.2),
            RandSimulateLowResolutiond("image", prob=0.25, zoom_range=(0.5, 1.0), upsample_mode=finer),
            RandAdjustContrastd("image", prob=0.3, gamma=(0.7, 1.5), retain_stats=True),
        ]
    return Compose(transforms)
