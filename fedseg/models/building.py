"""A study's network, with initial weights that every party builds alike.

A layer that mixes patients would break per-patient clipping, so it is refused by name.
"""

import torch
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from fedseg.errors import ConfigError, UnsupportedModelError
from fedseg.models.adapting import standardise, train_only
from fedseg.models.drawing import weights_from
from fedseg.models.network import GROUPS
from fedseg.models.standardising import standardise_inputs
from fedseg.models.table import NETWORKS
from fedseg.sharing.table import METHODS
from fedseg.study import Study
from fedseg.tasks.table import task_of
from secagg.prg import Stream


def build_model(study: Study) -> torch.nn.Module:
    """The study's network: (k, C, *size) float32 to the task's outputs.

    With segmentation these are (k, structures + 1, *size), with classification (k, classes).
    Every party builds the same initial weights: they depend on the study's name, network and `seed` only. With deep
    supervision a network in training gives a list: the same at full size, and at half, quarter, ... of it.

    Raises:
        ConfigError: channels, grid or `[sharing]` do not fit the network, or it does not do the study's task.
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
    with weights_from(start):
        model = network.make(study, task_of(study).outputs, widths)
    if study.training.weight_standardisation:
        standardise(model)
    check_model(model)
    sharing = study.terms.sharing  # before any patient is charged
    if said := METHODS[sharing.method].unfit([name for name, _ in model.named_parameters()], sharing):
        raise ConfigError(f"[sharing] {said}")
    factor = network.factor(study, widths)
    if bad := [side for side in study.data.view if side % factor]:
        raise ConfigError(
            f"[data] size or patch = {bad[0]}: network '{study.model.name}' with channels = {list(widths)} takes "
            f"multiples of {factor}; choose {-(-bad[0] // factor) * factor}, or fewer levels"
        )
    train_only(model, study)
    standardise_inputs(model, study)
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
