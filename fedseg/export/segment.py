"""What a bundle runs: an image file to a label map on its own grid, as `fedseg predict` makes it.

This file and those beside it in a bundle's `scripts` are copies of fedseg's own, so that a bundle needs MONAI, nibabel
and SciPy, and no fedseg.
"""

import json
from collections.abc import Sequence
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import nibabel
import numpy as np
import torch
from monai.inferers import sliding_window_inference
from monai.utils import BlendMode
from numpy.typing import NDArray

from fedseg.data.background import background_of, foreground
from fedseg.data.grid import grid_around, likeliest_on, slices_along, turned
from fedseg.data.intensity import normalised

AT_ONCE, OVERLAP = 16, 0.5


def run(network: Any, images: Sequence[str], output: str, settings: str) -> list[str]:
    """Segment each image, and write label maps of the same name into a folder.

    Args:
        network: (k, C, *view) float32 to (k, labels, *view).
        images: NIfTI files, each with the channels that the model was trained with.
        output: folder.
        settings: JSON file of the bundle.

    Returns:
        The label maps' paths.
    """
    read, written = json.loads(Path(settings).read_text(encoding="utf-8")), []
    Path(output).mkdir(parents=True, exist_ok=True)
    for path in images:
        found = nibabel.load(path)
        values = np.asarray(found.dataobj, dtype=np.float32)
        channels = np.moveaxis(values, -1, 0) if values.ndim == 4 else values[None]
        labels = segment(network, channels, np.asarray(found.affine, dtype=np.float64), read, path)
        target = Path(output) / Path(path).name
        nibabel.Nifti1Image(labels, found.affine).to_filename(target)
        written.append(str(target))
    return written


def segment(
    network: Any, image: NDArray[np.float32], file_affine: NDArray[np.float64], settings: dict[str, Any], name: str
) -> NDArray[np.uint8]:
    """Label values (X, Y, Z) on the grid of an image (C, X, Y, Z)."""
    data: Any = SimpleNamespace(**settings["data"])
    values, affine = turned(image, file_affine)
    axis = slices_along(affine)
    grounds = [background_of(channel, axis) for channel in values]
    seen = np.logical_or.reduce([foreground(*channel) for channel in zip(values, grounds, strict=True)])
    grid = grid_around(seen, affine, file_affine, data)
    case = grid.resampled(grid.window(normalised(values, grounds, data, name)))
    batch = np.moveaxis(case, axis + 1, 0) if data.dims == 2 else case[None]
    inputs = torch.from_numpy(np.ascontiguousarray(batch))
    flips = _flips(settings["flips"], data.dims, axis)
    with torch.inference_mode():
        parts = [_asked(network, part, tuple(settings["view"]), flips) for part in torch.split(inputs, AT_ONCE)]
    found = torch.cat(parts).numpy()
    scores = np.asarray(found[0] if data.dims == 3 else np.moveaxis(found, 0, axis + 1), np.float32)
    return likeliest_on(scores, grid.affine, image.shape[1:], file_affine)


def _flips(names: str, dims: int, slice_axis: int) -> list[list[int]]:
    axes = [axis for axis in range(3) if dims == 3 or axis != slice_axis]
    own = [axes.index(axis) + 2 for axis, name in enumerate("xyz") if name in names and axis in axes]
    return [list(some) for count in range(len(own) + 1) for some in combinations(own, count)]


def _asked(network: Any, images: torch.Tensor, view: tuple[int, ...], flips: list[list[int]]) -> torch.Tensor:
    def once(flipped: torch.Tensor) -> torch.Tensor:
        """The network's answer to one view of the image."""
        if tuple(flipped.shape[2:]) == view:
            return torch.as_tensor(network(flipped))
        return torch.as_tensor(sliding_window_inference(flipped, view, AT_ONCE, network, OVERLAP, BlendMode.GAUSSIAN))

    found = torch.stack([once(images.flip(flip)).softmax(1).flip(flip) for flip in flips])
    return found[0] if len(flips) == 1 else found.mean(0)
