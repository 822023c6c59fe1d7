"""MONAI's SegResNet (Myronenko 2019): residual blocks, `[model] blocks` of them a level."""

import torch
from monai.networks.nets import SegResNet, SegResNetDS

from fedseg.errors import ConfigError
from fedseg.models.network import GROUPS, Network, Widths, ends
from fedseg.study import Study

BLOCKS = (1, 1, 2)
SUPERVISED = 3
"""Sizes that have a loss of their own with deep supervision."""


def _segresnet(study: Study, outputs: int, widths: Widths) -> torch.nn.Module:
    if len(widths) != 1:
        raise ConfigError(f"[model] channels = {list(widths)}: segresnet takes one number, its first width")
    blocks = study.model.blocks or BLOCKS
    given = {**ends(study, outputs), "init_filters": widths[0], "norm": ("GROUP", {"num_groups": GROUPS})}
    given |= {"blocks_down": blocks, "blocks_up": (1,) * (len(blocks) - 1)}
    network: torch.nn.Module
    if study.training.deep_supervision:
        network = SegResNetDS(**given, dsdepth=min(SUPERVISED, len(blocks) - 1))
    else:
        network = SegResNet(**given)
    return network


def _factor(study: Study, widths: Widths) -> int:
    return int(2 ** (len(study.model.blocks or BLOCKS) - 1))


SEGRESNET = Network(_segresnet, (8,), _factor)
