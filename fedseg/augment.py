"""Random views of labelled images, so that a network trained on phantoms meets more scanners than it has seen.

Shape: turns, scales, shifts, bends, left and right. Intensity: each tissue's contrast, gamma, an uneven field,
sharpness, noise. Public phantoms only; private training draws slices and changes nothing.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional

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
