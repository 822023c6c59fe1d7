"""What of a network is trained, and how its convolutions are written: `[training] trainable`, `weight_standardisation`.

Noise grows with the number of trained values and what they can say does not, so that few of them on a frozen public
start may bear it better. Sources: Hu et al. 2022 (LoRA), Qiao et al. 2019 and De et al. 2022 (weight standardisation
under differential privacy).
"""

import torch
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.utils.parametrize import register_parametrization

from fedseg.models.drawing import weights_from
from fedseg.study import Study
from secagg.prg import Stream

LORA = "lora:"
HEADS = {"head", "heads"}
SMALL = 1e-5


class Standardised(nn.Module):
    """Each filter of a convolution with mean 0 and variance 1 / its inputs, whatever values it is trained to."""

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as it is used: (outputs, inputs, *kernel)."""
        rows = weight.flatten(1)
        centred = rows - rows.mean(1, keepdim=True)
        spread = torch.sqrt(centred.pow(2).mean(1, keepdim=True) * rows.shape[1] + SMALL)
        return (centred / spread).view_as(weight)


class LowRank(nn.Module):
    """A weight that stays, and beside it a product of two thin matrices, 0 at the start."""

    def __init__(self, weight: torch.Tensor, rank: int) -> None:
        super().__init__()
        outputs, inputs = weight.flatten(1).shape
        rank = min(rank, outputs, inputs)
        self.down = nn.Parameter(torch.randn(rank, inputs) / inputs**0.5)
        self.up = nn.Parameter(torch.zeros(outputs, rank))

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        """The weight as it is used."""
        return weight + (self.up @ self.down).view_as(weight)


def standardise(model: nn.Module) -> None:
    """Write every convolution standardised but those that make outputs."""
    for layer in _split(model)[0]:
        register_parametrization(layer, "weight", Standardised())


def train_only(model: nn.Module, study: Study) -> None:
    """Freeze what `[training] trainable` leaves out; with LoRA add the thin matrices, the same at every party."""
    trainable = study.training.trainable
    if trainable == "all":
        return
    inner, heads = _split(model)
    model.requires_grad_(False)
    if trainable == "norm-bias-head":
        for module in model.modules():
            for name, parameter in module.named_parameters(recurse=False):
                parameter.requires_grad_(name == "bias" or isinstance(module, nn.GroupNorm))
    if trainable.startswith(LORA):
        stream = Stream.seeded(study.study.seed or 0, "lora", study.study.name, study.model.name)
        with weights_from(stream):
            for layer in inner:
                low = LowRank(layer.weight, int(trainable.removeprefix(LORA)))
                register_parametrization(layer, "weight", low)
                low.requires_grad_(True)
    for head in heads:
        head.requires_grad_(True)


def _split(model: nn.Module) -> tuple[list[_ConvNd | nn.Linear], list[_ConvNd | nn.Linear]]:
    """Convolutions and linear layers in the order of definition: the inner ones, and those that make outputs.

    Outputs are made by layers that are called heads, of several sizes with deep supervision; else by the last one.
    """
    layers = [(name, module) for name, module in model.named_modules() if isinstance(module, _ConvNd | nn.Linear)]
    named = {name for name, _ in layers if HEADS & set(name.split("."))} or {layers[-1][0]}
    inner = [module for name, module in layers if name not in named]
    return inner, [module for name, module in layers if name in named]
