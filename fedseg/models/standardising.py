"""Images on the scale that all sites have alike, as part of the network: so that it goes with the model, wherever used.

Mean and deviation of each channel are public constants of the study, or what a sum over all patients said before
training; they are no weights, and nothing trains them.
"""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.study import Study
from fedseg.update import adopt

MEAN, SD = "input_mean", "input_sd"
"""Buffers of the network, a value a channel; they are in its file."""


def standardise_inputs(model: torch.nn.Module, study: Study) -> None:
    """Let a network see each channel less its mean, over its deviation, where the study says so; changed in place.

    Before anybody was asked, the mean is 0 and the deviation 1.
    """
    data = study.data
    if data.statistics == "none":
        return
    public = data.statistics == "public"
    model.register_buffer(MEAN, torch.tensor(data.mean if public else (0.0,) * study.in_channels))
    model.register_buffer(SD, torch.tensor(data.sd if public else (1.0,) * study.in_channels))
    model.register_forward_pre_hook(_standardised)


def follow(model: torch.nn.Module, state: NDArray[np.float32], study: Study) -> None:
    """Take over a state: all weights, and the mean and deviation that were found, where somebody was asked."""
    adopt(model, state)
    if (asked := study.asked) is not None and (found := asked.read(state)) is not None:
        for name, values in ((MEAN, found.mean), (SD, found.sd)):
            buffer = getattr(model, name)
            buffer.copy_(torch.tensor(values, device=buffer.device))


def _standardised(model: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *others = inputs
    each = (1, -1, *(1,) * (images.ndim - 2))
    mean, sd = (getattr(model, name).view(each) for name in (MEAN, SD))
    return ((images - mean) / sd, *others)
