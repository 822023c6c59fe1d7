"""Images on the scale that all sites have alike, as part of the network: so that it goes with the model, wherever used.

Mean and deviation of each channel are public constants of the study, or what a sum over all patients said before
training; they are no weights, and nothing trains them.
"""

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.study import Study
from fedseg.update import adopt

MEAN, SD = "input_mean", "input_sd"
"""Buffers of the network, a value a channel; they are in its file."""


def standardise_inputs(model: torch.nn.Module, study: Study) -> None:
    """Let a network see each channel less its mean, over its deviation, where the study says so; changed in place."""
    if study.data.statistics == "none":
        return
    for name in (MEAN, SD):
        model.register_buffer(name, torch.empty(study.in_channels))
    begin(model, study)
    model.register_forward_pre_hook(_standardised)


def begin(model: torch.nn.Module, study: Study) -> None:
    """Set what a study begins with: its constants, or mean 0 and deviation 1 before anybody was asked."""
    if study.data.statistics == "none":
        return
    data, channels = study.data, study.in_channels
    _set(model, data.mean or (0.0,) * channels, data.sd or (1.0,) * channels)


def follow(model: torch.nn.Module, state: NDArray[np.float32], study: Study) -> None:
    """Take over a state: all weights, and the mean and deviation that were found, where somebody was asked."""
    adopt(model, state)
    if (asked := study.asked) is not None and (found := asked.read(state)) is not None:
        _set(model, found.mean, found.sd)


def _set(model: torch.nn.Module, mean: Sequence[float], sd: Sequence[float]) -> None:
    for name, values in ((MEAN, mean), (SD, sd)):
        buffer = getattr(model, name)
        buffer.copy_(torch.tensor(values, device=buffer.device))


def _standardised(model: torch.nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
    images, *others = inputs
    each = (1, -1, *(1,) * (images.ndim - 2))
    mean, sd = (getattr(model, name).view(each) for name in (MEAN, SD))
    return ((images - mean) / sd, *others)
