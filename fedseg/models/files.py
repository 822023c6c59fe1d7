"""Models as safetensors files. Nothing is ever unpickled."""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save

from fedseg.errors import ConfigError
from fedseg.models.building import build_model
from fedseg.models.standardising import MEAN, SD
from fedseg.study import Study, parse_study
from fedseg.tasks.table import task_of
from secagg.writing import PUBLIC, write_whole

METADATA = "fedseg"


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
        own = {name: value for name, value in model.named_buffers() if name in (MEAN, SD)}
        model.load_state_dict({**own, **load_file(path)})  # a start may have none
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
