"""Where a party computes: `[run] device`, and how fast. Models lie on the CPU between rounds, and their sums are there.

Nothing of it changes what leaves a site, but for rounding: each patient's gradient is clipped in double precision
whatever it was computed in.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch

from fedseg.errors import ConfigError
from fedseg.study import Study


def device_of(study: Study) -> torch.device:
    """The study's device.

    Raises:
        ConfigError: it is not here.
    """
    if study.run.device == "cuda" and not torch.cuda.is_available():
        why = "was built without CUDA" if torch.version.cuda is None else "finds no GPU here"
        raise ConfigError(f"[run] device = 'cuda': torch {torch.__version__} {why}; set device = 'cpu' in [run]")
    return torch.device(study.run.device)


@contextmanager
def on_device(model: torch.nn.Module, study: Study) -> Iterator[None]:
    """The model on the study's device, and back where it was.

    Raises:
        ConfigError: see `device_of`.
    """
    home = next(model.parameters()).device
    model.to(device_of(study))
    try:
        yield
    finally:
        model.to(home)


def asked(model: torch.nn.Module, images: torch.Tensor, study: Study) -> Any:
    """What a model says of images, computed where the model is and as `[run]` says.

    Args:
        model: the network.
        images: (k, C, *size) float32 on the CPU.
        study: gives `mixed_precision` and `channels_last`.

    Returns:
        Its float32 outputs on its device; a list of them with deep supervision.
    """
    device = next(model.parameters()).device
    images = images.to(device)
    if study.run.channels_last:
        last = torch.channels_last if images.ndim == 4 else torch.channels_last_3d
        images = images.contiguous(memory_format=last)
    with torch.autocast(study.run.device, torch.bfloat16, enabled=study.run.mixed_precision):
        outputs = model(images)
    return [output.float() for output in outputs] if isinstance(outputs, list) else outputs.float()
