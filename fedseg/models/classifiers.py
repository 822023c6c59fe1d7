"""Networks that say one thing of a whole picture: a small one, and ResNet-18 (He et al. 2016)."""

import torch
from monai.networks.nets import ResNet

from fedseg.errors import ConfigError
from fedseg.models.network import GROUPS, Network, Widths, with_group_norm
from fedseg.study import Study

SMALL_PICTURE = 64
"""Pixels a side up to which a ResNet does not shrink the picture in its first layer."""


def _cnn_small(study: Study, outputs: int, widths: Widths) -> torch.nn.Module:
    """A convolution, GroupNorm and half the size for each width; then the mean of each feature, and one layer."""
    layers: list[torch.nn.Module] = []
    for before, width in zip((study.in_channels, *widths), widths, strict=False):
        layers += [torch.nn.Conv2d(before, width, 3, padding=1, bias=False), torch.nn.GroupNorm(GROUPS, width)]
        layers += [torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(widths[-1], outputs)]
    return torch.nn.Sequential(*layers, *head)


def _resnet18(study: Study, outputs: int, widths: Widths) -> torch.nn.Module:
    """Small pictures keep their size at first, as is usual with those of CIFAR."""
    if len(widths) != 4:
        raise ConfigError(f"[model] channels = {list(widths)}: resnet18 takes four, one for each of its stages")
    large = max(study.data.sides) > SMALL_PICTURE
    network: torch.nn.Module = ResNet(
        "basic",
        [2, 2, 2, 2],
        list(widths),
        spatial_dims=2,
        n_input_channels=study.in_channels,
        num_classes=outputs,
        conv1_t_size=7 if large else 3,
        conv1_t_stride=2 if large else 1,
        no_max_pool=not large,
    )
    return with_group_norm(network)  # MONAI's has a norm of one's choice in its first layer only


CNN_SMALL = Network(_cnn_small, (16, 32, 64), task="classification")
RESNET18 = Network(_resnet18, (64, 128, 256, 512), task="classification")
