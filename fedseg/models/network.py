"""What the table says of each network, and what all of them have in common."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from fedseg.study import Study

GROUPS = 4
NORM = ("GROUP", {"num_groups": GROUPS, "affine": True})
"""As MONAI takes it."""

Widths: TypeAlias = tuple[int, ...]


@dataclass(frozen=True)
class Network:
    """A kind of network.

    Attributes:
        make: the network of a study with so many outputs and these features per level. Raises `ConfigError` where the
            features do not fit.
        channels: its own features.
        factor: of which every side of what it sees is a multiple.
        task: that it does.
    """

    make: Callable[[Study, int, Widths], torch.nn.Module]
    channels: Widths
    factor: Callable[[Study, Widths], int] = lambda study, widths: 1
    task: str = "segmentation"


def ends(study: Study, outputs: int) -> dict[str, Any]:
    """What every network of MONAI is told: dimensions, and its two ends."""
    return {"spatial_dims": study.data.dims, "in_channels": study.in_channels, "out_channels": outputs}


def with_group_norm(model: torch.nn.Module) -> torch.nn.Module:
    """The same network, changed: each BatchNorm becomes a fresh GroupNorm."""
    for name, layer in model.named_children():
        if isinstance(layer, _BatchNorm):
            setattr(model, name, torch.nn.GroupNorm(GROUPS, layer.num_features))
        else:
            with_group_norm(layer)
    return model
