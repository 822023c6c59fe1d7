"""nnU-Net's network: two convolutions a level, strided on the way down, transposed on the way up.

Made of the blocks of MONAI's DynUNet. That class itself keeps each layer under two names, which no safetensors file
can hold. Source: Isensee et al. 2021.
"""

import torch
from monai.networks.blocks.dynunet_block import UnetBasicBlock, UnetOutBlock, UnetUpBlock
from torch import Tensor, nn

from fedseg.errors import ConfigError
from fedseg.models.network import NORM, Network, Widths, ends
from fedseg.study import Study

SUPERVISED = 3
"""Sizes that have a loss of their own with deep supervision."""


class DynUNet(nn.Module):
    """See the module.

    Args:
        dims: 2 or 3.
        channels: of the image.
        outputs: of the network.
        widths: features per level, the first at full size; at least two.
        heads: sizes that have an output in training; 1 for the full one only.
    """

    def __init__(self, dims: int, channels: int, outputs: int, widths: Widths, heads: int) -> None:
        super().__init__()
        ins = (channels, *widths)
        self.down = nn.ModuleList(
            UnetBasicBlock(dims, ins[level], width, 3, 1 if level == 0 else 2, NORM)
            for level, width in enumerate(widths)
        )
        self.up = nn.ModuleList(
            UnetUpBlock(dims, widths[level + 1], widths[level], 3, 2, 2, NORM) for level in range(len(widths) - 1)
        )
        self.heads = nn.ModuleList(UnetOutBlock(dims, widths[level], outputs) for level in range(heads))

    def forward(self, image: Tensor) -> Tensor | list[Tensor]:
        """The outputs at full size; in training with several heads a list, of each size from the full one."""
        seen = [image]
        for block in self.down:
            seen.append(block(seen[-1]))
        values, found = seen[-1], []
        for level in reversed(range(len(self.up))):
            values = self.up[level](values, seen[level + 1])
            if level == 0 or (self.training and level < len(self.heads)):
                found.append(self.heads[level](values))
        return found[-1] if len(found) == 1 else found[::-1]


def _dynunet(study: Study, outputs: int, widths: Widths) -> torch.nn.Module:
    if len(widths) < 2:
        raise ConfigError(f"[model] channels = {list(widths)}: dynunet needs at least two levels")
    heads = min(SUPERVISED, len(widths) - 1) if study.training.deep_supervision else 1
    given = ends(study, outputs)
    return DynUNet(given["spatial_dims"], given["in_channels"], outputs, widths, heads)


def _factor(study: Study, widths: Widths) -> int:
    return int(2 ** (len(widths) - 1))


DYNUNET = Network(_dynunet, (16, 32, 64, 128), _factor)
