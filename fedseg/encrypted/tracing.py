"""A PyTorch network as a program, with its weights: layer by layer, as PyTorch itself follows a picture through it.

A network is not known by its name here: whatever is made of the layers below can be asked on encrypted pictures, and
what is not is refused with the layer's name. Weights are taken as they are used: standardised convolutions and low-rank
updates are computed before anything is shared.
"""

import operator
from collections.abc import Iterable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import fx, nn

from fedseg.encrypted.program import Program, Step
from fedseg.errors import ConfigError
from fedseg.models.standardising import MEAN, SD
from fedseg.study import Study

Weights = dict[str, NDArray[np.float32]]


def program_of(model: nn.Module, study: Study) -> tuple[Program, Weights]:
    """What a network does and the weights that it does it with.

    Args:
        model: the study's network; it is no longer in training.
        study: says what it is shown: 2D pictures or slices, or squares of them.

    Raises:
        ConfigError: the study is 3D, or a layer has no counterpart among the steps; names the network and the layer.
    """
    if study.data.dims != 2:
        raise ConfigError(f"[data] dims = {study.data.dims}: encrypted inference takes 2D pictures and slices only")
    try:
        traced = fx.symbolic_trace(model.eval())
    except Exception:  # whatever a network's own code says to values that are none
        raise _unfit(study, "code that looks at what it computes") from None
    writer = _Writer(traced, study, model)
    for node in traced.graph.nodes:
        writer.follow(node)
    picture = (study.in_channels, *study.data.view)
    shapes = {name: values.shape for name, values in writer.weights.items()}
    return Program(picture, shapes, _cheaper(writer.steps)), writer.weights  # type: ignore[arg-type]


def _cheaper(steps: Sequence[Step]) -> tuple[Step, ...]:
    """A ReLU that only a pool takes comes after it, on fewer values: the largest of a window is the same value.

    On shares a comparison is what costs most.
    """
    found = list(steps)
    for at, step in enumerate(steps):
        takers = [number for number, other in enumerate(steps) if at + 1 in other.takes]
        if step.does == "relu" and len(takers) == 1 and (pool := steps[takers[0]]).does == "pool":
            found[at] = replace(pool, takes=step.takes)
            found[takers[0]] = replace(step, takes=(at + 1,))
    return tuple(found)


def _unfit(study: Study, why: str) -> ConfigError:
    return ConfigError(
        f"network '{study.model.name}' has {why}, and encrypted inference knows convolutions, GroupNorm, ReLU, pools "
        "and linear layers only; train cnn-small, resnet18, unet-small, unet or dynunet"
    )


class _Writer:
    """Writes one step for each layer that computes; `_at` says which value each node of the graph is."""

    def __init__(self, traced: fx.GraphModule, study: Study, model: nn.Module) -> None:
        self._traced, self._study, self._model = traced, study, model
        self._at: dict[fx.Node, int] = {}
        self.steps: list[Step] = []
        self.weights: Weights = {}

    def follow(self, node: fx.Node) -> None:
        """Write what a node does."""
        match node.op:
            case "placeholder":
                self._at[node] = 0
                if self._study.data.statistics != "none":
                    self._standardise(node)
            case "call_module":
                self._layer(node, self._traced.get_submodule(str(node.target)), str(node.target))
            case "call_function" if node.target in (operator.add, operator.iadd, torch.add):
                self._step(node, "add", node.args[:2])
            case "call_function" if node.target is torch.cat:
                joined: Any = node.args[0]
                if len(joined) != 2 or (node.args[1:] or (node.kwargs.get("dim"),))[0] != 1:
                    raise _unfit(self._study, "values joined in another way than two along their features")
                self._step(node, "join", joined)
            case "call_method" if node.target == "size":
                pass
            case "call_method" if node.target == "view" and node.args[2:] == (-1,):
                self._same(node)  # what `mean` gives is flat already
            case "output":
                if self._at[node.args[0]] != len(self.steps):  # type: ignore[index]
                    raise _unfit(self._study, "several outputs")
            case _:
                raise _unfit(self._study, f"a step '{getattr(node.target, '__name__', node.target)}'")

    def _standardise(self, node: fx.Node) -> None:
        """Each channel less its mean, over its deviation: a hook of the network, which tracing does not see.

        It is a convolution of one pixel, for the next one's edge of zeros is of standardised pictures.
        """
        mean, sd = getattr(self._model, MEAN), getattr(self._model, SD)
        kept = self._kept(MEAN, torch.diag(1 / sd)[:, :, None, None], -mean / sd)
        self._step(node, "conv", (node,), kept, (1, 0))

    def _layer(self, node: fx.Node, layer: nn.Module, name: str) -> None:
        match layer:
            case nn.Conv2d() if layer.groups == 1 and set(layer.dilation) == {1} and layer.padding_mode == "zeros":
                kept = self._kept(name, layer.weight, layer.bias)
                self._step(node, "conv", node.args, kept, self._ones((layer.stride, layer.padding), name))
            case nn.ConvTranspose2d() if layer.groups == 1 and set(layer.dilation) == {1}:
                grown = (layer.stride, layer.padding, layer.output_padding)
                kept = self._kept(name, layer.weight, layer.bias)
                self._step(node, "grow", node.args, kept, self._ones(grown, name))
            case nn.GroupNorm() if layer.affine:
                kept = self._kept(name, layer.weight, layer.bias)
                self._step(node, "norm", node.args, kept, (layer.num_groups, layer.eps))
            case nn.ReLU():
                self._step(node, "relu", node.args, (), (0,))
            case nn.LeakyReLU():
                self._step(node, "relu", node.args, (), (layer.negative_slope,))
            case nn.PReLU():
                self._step(node, "prelu", node.args, self._kept(name, layer.weight))
            case nn.MaxPool2d() if not layer.ceil_mode and self._ones((layer.dilation,), name) == (1,):
                sides = (layer.kernel_size, layer.stride, layer.padding)
                self._step(node, "pool", node.args, (), self._ones(sides, name))
            case nn.AdaptiveAvgPool2d() if self._ones((layer.output_size,), name) == (1,):
                self._step(node, "mean", node.args)
            case nn.Linear():
                self._step(node, "linear", node.args, self._kept(name, layer.weight, layer.bias))
            case nn.Flatten() | nn.Identity() | nn.Dropout():
                self._same(node)
            case _:
                raise _unfit(self._study, f"layer '{name}' ({type(layer).__name__})")

    def _step(
        self,
        node: fx.Node,
        does: str,
        takes: Any,
        weights: tuple[str, ...] = (),
        numbers: tuple[float, ...] = (),
    ) -> None:
        self.steps.append(Step(does, tuple(self._at[value] for value in takes), weights, tuple(map(float, numbers))))
        self._at[node] = len(self.steps)

    def _same(self, node: fx.Node) -> None:
        self._at[node] = self._at[node.args[0]]  # type: ignore[index]

    def _kept(self, layer: str, *values: torch.Tensor | None) -> tuple[str, ...]:
        names = []
        for kind, value in zip(("weight", "bias"), values, strict=False):
            if value is not None:
                names.append(f"{layer}.{kind}")
                self.weights[names[-1]] = np.ascontiguousarray(value.detach().cpu().numpy(), np.float32)
        return tuple(names)

    def _ones(self, numbers: Iterable[Any], name: str) -> tuple[int, ...]:
        """Of each number, or pair of them, the one that both sides have."""
        found = []
        for sides in numbers:
            alike = {sides} if isinstance(sides, int) else set(sides)
            if len(alike) != 1 or not isinstance(one := alike.pop(), int):
                raise _unfit(self._study, f"layer '{name}' with sides that differ")
            found.append(one)
        return tuple(found)
