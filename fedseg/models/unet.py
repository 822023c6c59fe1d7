"""MONAI's U-Net (Ronneberger et al. 2015), whose first two levels have full size: two small widths of it."""

import torch
from monai.networks.nets import UNet

from fedseg.errors import ConfigError
from fedseg.models.network import GROUPS, Network, Widths, ends
from fedseg.study import Study


def _unet(study: Study, outputs: int, widths: Widths) -> torch.nn.Module:
    if len(widths) < 2:
        raise ConfigError(f"[model] channels = {list(widths)}: a U-Net needs at least two levels")
    network: torch.nn.Module = UNet(
        **ends(study, outputs),
        norm=("GROUP", {"num_groups": GROUPS}),
        channels=widths,
        strides=(1, *(2,) * (len(widths) - 2)),
        num_res_units=0,
        act="RELU",
    )
    return network


def _factor(study: Study, widths: Widths) -> int:
    return int(2 ** (len(widths) - 2))


UNET_SMALL = Network(_unet, (8, 16, 32), _factor)
UNET = Network(_unet, (16, 32, 64, 128), _factor)
