"""MoNet: two halvings only, and dilated convolutions for a wide view: few weights, which bear noise well.

Each level repeats convolutions of dilation 4, 3, 2 and 1 beside a shortcut. Source: Knolle et al. 2020; trained with
differential privacy over several hospitals by Ziller et al. 2021. GroupNorm in place of their BatchNorm.
"""

import torch
from monai.networks.layers import Conv
from torch import Tensor, nn
from torch.nn import functional

from fedseg.errors import ConfigError
from fedseg.models.network import GROUPS, Network, Widths, ends
from fedseg.study import Study

DILATIONS = (4, 3, 2, 1)


class Dilated(nn.Module):
    """Convolutions of falling dilation, and the shortcut around them.

    Args:
        dims: 2 or 3.
        ins: features that come in.
        width: features that go out.
    """

    def __init__(self, dims: int, ins: int, width: int) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, dims]
        layers: list[nn.Module] = []
        for number, dilation in enumerate(DILATIONS):
            layers += [
                conv(ins if number == 0 else width, width, 3, padding=dilation, dilation=dilation, bias=False),
                nn.GroupNorm(GROUPS, width),
                nn.ELU(),
            ]
        self.path, self.shortcut = nn.Sequential(*layers), conv(ins, width, 1)

    def forward(self, values: Tensor) -> Tensor:
        """(k, ins, *size) to (k, width, *size)."""
        return torch.as_tensor(self.path(values) + self.shortcut(values))


class MoNet(nn.Module):
    """See the module.

    Args:
        dims: 2 or 3.
        channels: of the image.
        outputs: of the network.
        widths: features of the levels at full, half and quarter size.
    """

    def __init__(self, dims: int, channels: int, outputs: int, widths: Widths) -> None:
        super().__init__()
        conv = Conv[Conv.CONV, dims]
        first, second, third = widths
        self.down = nn.ModuleList([Dilated(dims, channels, first), Dilated(dims, first, second)])
        self.halved = nn.ModuleList(conv(width, width, 3, stride=2, padding=1) for width in (first, second))
        self.bottom = Dilated(dims, second, third)
        self.up = nn.ModuleList([Dilated(dims, third + second, second), Dilated(dims, second + first, first)])
        self.head = conv(first, outputs, 1)

    def forward(self, image: Tensor) -> Tensor:
        """(k, channels, *size) to (k, outputs, *size)."""
        values, seen = image, []
        for block, halved in zip(self.down, self.halved, strict=True):
            seen.append(block(values))
            values = halved(seen[-1])
        values = self.bottom(values)
        for block, beside in zip(self.up, reversed(seen), strict=True):
            grown = functional.interpolate(values, size=beside.shape[2:], mode="nearest")
            values = block(torch.cat([grown, beside], 1))
        return torch.as_tensor(self.head(values))


def _monet(study: Study, outputs: int, widths: Widths) -> torch.nn.Module:
    if len(widths) != 3:
        raise ConfigError(f"[model] channels = {list(widths)}: monet has three levels; give three numbers, or []")
    given = ends(study, outputs)
    return MoNet(given["spatial_dims"], given["in_channels"], outputs, widths)


MONET = Network(_monet, (16, 32, 64), lambda study, widths: 4)
