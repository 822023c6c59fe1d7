"""MONAI's networks with GroupNorm, and models as safetensors files.

A layer that mixes patients would break per-patient clipping, so it is refused by name. Nothing is ever
unpickled.
"""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from monai.networks.nets import ResNet, SegResNet, UNet
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fedseg.errors import ConfigError, UnsupportedModelError
from fedseg.study import Study, parse_study
from fedseg.tasks.table import task_of
from secagg.prg import Stream
from secagg.writing import PUBLIC, write_whole

GROUPS = 4
SMALL_PICTURE = 64
"""Pixels a side up to which a ResNet does not shrink the picture in its first layer."""
METADATA = "fedseg"


def build_model(study: Study) -> torch.nn.Module:
    """The study's network: (k, C, *size) float32 to the task's outputs.

    With segmentation these are (k, structures + 1, *size), with classification (k, classes).

    Every party builds the same initial weights: they depend on the study's name, network and `seed` only.

    Raises:
        ConfigError: the channels do not fit the network, or the network does not do the study's task.
        UnsupportedModelError: a layer mixes patients.
    """
    network = NETWORKS[study.model.name]
    if network.task != study.study.task:
        fit = " or ".join(repr(name) for name, other in NETWORKS.items() if other.task == study.study.task)
        raise ConfigError(
            f"[model] name = '{study.model.name}' does {network.task}, and this study asks for "
            f"{study.study.task}; use {fit}"
        )
    widths = study.model.channels or network.channels
    if any(width % GROUPS for width in widths):
        raise ConfigError(f"[model] channels = {list(widths)}: each must be a multiple of {GROUPS}, the norm's groups")
    start = Stream.seeded(study.study.seed or 0, "weights", study.study.name, study.model.name)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(start.integers(1, 2**62)[0]))
        model = network.make(study, task_of(study).outputs, widths)
    check_model(model)
    return model


def check_model(model: torch.nn.Module) -> None:
    """Accept only networks in which one patient's output does not depend on another patient.

    Raises:
        UnsupportedModelError: any BatchNorm, or an InstanceNorm with running statistics; names the layer.
    """
    for name, layer in model.named_modules():
        if isinstance(layer, _BatchNorm) or (isinstance(layer, _InstanceNorm) and layer.track_running_stats):
            raise UnsupportedModelError(
                f"layer '{name}' is a {type(layer).__name__}, which mixes patients, so no clipping bounds "
                "one patient's influence; use GroupNorm instead"
            )


def _unet(study: Study, outputs: int, widths: tuple[int, ...]) -> torch.nn.Module:
    if len(widths) < 2:
        raise ConfigError(f"[model] channels = {list(widths)}: a U-Net needs at least two levels")
    network: torch.nn.Module = UNet(
        **_ends(study, outputs),
        channels=widths,
        strides=(1, *(2,) * (len(widths) - 2)),
        num_res_units=0,
        act="RELU",
    )
    return network


def _segresnet(study: Study, outputs: int, widths: tuple[int, ...]) -> torch.nn.Module:
    if len(widths) != 1:
        raise ConfigError(f"[model] channels = {list(widths)}: segresnet takes one number, its first width")
    network: torch.nn.Module = SegResNet(
        **_ends(study, outputs), init_filters=widths[0], blocks_down=(1, 1, 2), blocks_up=(1, 1)
    )
    return network


def _cnn_small(study: Study, outputs: int, widths: tuple[int, ...]) -> torch.nn.Module:
    """A convolution, GroupNorm and half the size for each width; then the mean of each feature, and one layer."""
    layers: list[torch.nn.Module] = []
    for before, width in zip((study.in_channels, *widths), widths, strict=False):
        layers += [torch.nn.Conv2d(before, width, 3, padding=1, bias=False), torch.nn.GroupNorm(GROUPS, width)]
        layers += [torch.nn.ReLU(), torch.nn.MaxPool2d(2)]
    head = [torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(widths[-1], outputs)]
    return torch.nn.Sequential(*layers, *head)


def _resnet18(study: Study, outputs: int, widths: tuple[int, ...]) -> torch.nn.Module:
    """ResNet-18 (He et al. 2016); small pictures keep their size at first, as is usual with those of CIFAR."""
    if len(widths) != 4:
        raise ConfigError(f"[model] channels = {list(widths)}: resnet18 takes four, one for each of its stages")
    large = study.data.size > SMALL_PICTURE
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
    for parent in list(network.modules()):  # MONAI's has a norm of one's choice in its first layer only
        for name, layer in parent.named_children():
            if isinstance(layer, _BatchNorm):
                setattr(parent, name, torch.nn.GroupNorm(GROUPS, layer.num_features))
    return network


def _ends(study: Study, outputs: int) -> dict[str, Any]:
    """What every network of MONAI is told: its two ends, and the norm."""
    return {
        "spatial_dims": study.data.dims,
        "in_channels": study.in_channels,
        "out_channels": outputs,
        "norm": ("GROUP", {"num_groups": GROUPS}),
    }


@dataclass(frozen=True)
class Network:
    """A kind of network: how it is made from study, outputs and features per level, its own features, and its task."""

    make: Callable[[Study, int, tuple[int, ...]], torch.nn.Module]
    channels: tuple[int, ...]
    task: str = "segmentation"


NETWORKS: Mapping[str, Network] = {
    "unet-small": Network(_unet, (8, 16, 32)),
    "unet": Network(_unet, (16, 32, 64, 128)),
    "segresnet": Network(_segresnet, (8,)),
    "cnn-small": Network(_cnn_small, (16, 32, 64), "classification"),
    "resnet18": Network(_resnet18, (64, 128, 256, 512), "classification"),
}


def metadata_of(study: Study) -> dict[str, str]:
    """What a model file says about itself: the study's hash, structures and TOML text."""
    return {"study_hash": study.hash().hex(), "structures": ",".join(study.names), "study": study.toml()}


def save_model(model: torch.nn.Module, path: Path, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file; it is whole or absent."""
    values = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
    # One entry, because safetensors writes several in no fixed order, and equal models shall be equal files.
    write_whole(path, save(values, {METADATA: json.dumps(metadata, sort_keys=True)}), PUBLIC)


def load_model(path: Path, study: Study) -> torch.nn.Module:
    """The study's network with the weights of a safetensors file.

    Raises:
        ConfigError: no such file, not safetensors, or weights of another network; names the file.
    """
    model = build_model(study)
    try:
        model.load_state_dict(load_file(path))
    except (OSError, SafetensorError) as error:
        raise ConfigError(f"{path}: cannot be read as a model ({error}); give a .safetensors file") from error
    except RuntimeError as error:
        raise ConfigError(
            f"{path}: its weights do not fit network '{study.model.name}' with {task_of(study).outputs} outputs; "
            "use the study that it was trained with"
        ) from error
    for name, values in model.state_dict().items():
        if bad := int((~torch.isfinite(values)).sum()):
            raise ConfigError(f"{path}: weight '{name}' has {bad} values that are no number; take another model")
    return model


def study_of(path: Path, given: Study | None = None) -> Study:
    """The study that a model file was trained with.

    Args:
        path: the model.
        given: what a person takes for it; needed where the file holds none.

    Raises:
        ConfigError: no such file, it holds no study and none is given, or another one is given.
    """
    try:
        with safe_open(path, framework="pt") as file:
            metadata = json.loads((file.metadata() or {}).get(METADATA, "{}"))
    except (OSError, SafetensorError, ValueError) as error:
        raise ConfigError(f"{path}: cannot be read as a model ({error}); give a .safetensors file") from error
    if "study" not in metadata:
        if given is None:
            raise ConfigError(f"{path}: holds no study; give the study file too")
        return given
    own = parse_study(metadata["study"], str(path))
    if given is not None and given.hash() != own.hash():
        said = f"'{own.study.name}' with {', '.join(own.names)}"
        raise ConfigError(f"{path}: was trained with another study than the one given: {said}; leave --study away")
    return own
