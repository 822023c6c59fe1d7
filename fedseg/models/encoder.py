"""A U-Net whose encoder is ResNet-18 (He et al. 2016) as MONAI keeps it, every BatchNorm replaced by GroupNorm."""

import torch
from monai.networks.nets import FlexibleUNet

from fedseg.errors import ConfigError
from fedseg.models.network import NORM, Network, Widths, ends, with_group_norm
from fedseg.study import Study

LEVELS = 5


def _unet_resnet18(study: Study, outputs: int, widths: Widths) -> torch.nn.Module:
    if len(widths) != LEVELS:
        raise ConfigError(
            f"[model] channels = {list(widths)}: unet-resnet18 takes the decoder's {LEVELS} widths, or []"
        )
    network = FlexibleUNet(
        **ends(study, outputs), backbone="resnet18", norm=NORM, decoder_channels=widths, pretrained=False, is_pad=False
    )
    return with_group_norm(network)


UNET_RESNET18 = Network(_unet_resnet18, (128, 64, 32, 16, 16), lambda study, widths: 2**LEVELS)
