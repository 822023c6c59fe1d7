"""A model as a MONAI bundle: `python -m monai.bundle run` segments with it where there is no fedseg.

The network is TorchScript: its graph and weights, so that no class of fedseg is needed, and nothing is unpickled as a
file of `torch.save` would be. What brings an image onto the working grid and back is fedseg's own code, copied into
`scripts`: MONAI's transforms have no working grid around a patient, and a bundle that segments otherwise than the
federation judged it would be another model. A bundle is the model, and promises of it what its study does.
"""

import json
import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

import fedseg
from fedseg.errors import ConfigError
from fedseg.models import load_model, study_of
from fedseg.study import Study
from fedseg.study.sections import BRIGHTEST, FARTHEST
from secagg.writing import PUBLIC, write_whole

COPIED = ("data/background.py", "data/grid.py", "data/intensity.py", "errors.py", "export/segment.py")
SECTIONS = f"BRIGHTEST, FARTHEST, DataSection = {BRIGHTEST!r}, {FARTHEST!r}, object\n"
"""What of a study file's sections the copies need."""
SETTINGS = "configs/settings.json"


def export(model: Path, folder: Path) -> Path:
    """Write a bundle.

    Args:
        model: `model.safetensors` of a run.
        folder: to be made.

    Returns:
        The folder.

    Raises:
        ConfigError: the model is no segmentation, or the folder is there already.
    """
    study = study_of(model)
    if study.study.task != "segmentation":
        raise ConfigError(f"{model}: is a model of classes, and a bundle is of segmentation; use `fedseg predict`")
    if folder.exists() and any(folder.iterdir()):
        raise ConfigError(f"{folder}: is not empty; name a folder that is to be made")
    for part in ("configs", "models", "scripts", "docs"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    _write(folder / "configs/metadata.json", _metadata(study))
    _write(folder / "configs/inference.json", _inference())
    _write(folder / SETTINGS, _settings(study))
    _script(load_model(model, study), study, folder / "models/model.ts")
    write_whole(folder / "scripts/__init__.py", "", PUBLIC)
    write_whole(folder / "scripts/sections.py", SECTIONS, PUBLIC)
    for name in COPIED:
        text = (Path(fedseg.__file__).parent / name).read_text(encoding="utf-8")
        write_whole(folder / "scripts" / Path(name).name, standing_alone(text), PUBLIC)
    write_whole(folder / "docs/README.md", _readme(study), PUBLIC)
    return folder


def standing_alone(text: str) -> str:
    """A file of ours whose imports are of `scripts`."""
    return re.sub(r"from fedseg\.(?:[a-z]+\.)*([a-z]+) import", r"from scripts.\1 import", text)


def _script(model: torch.nn.Module, study: Study, path: Path) -> None:
    example = torch.zeros(2, study.in_channels, *study.data.view)
    with torch.inference_mode():
        traced = torch.jit.trace(model.eval(), example, check_trace=False)  # type: ignore[no-untyped-call]
    traced.save(str(path))


def _settings(study: Study) -> dict[str, Any]:
    data = study.data
    names = ("dims", "size", "spacing", "sides", "methods", "window")
    flips = "".join(study.training.mirror) if study.training.test_flips else ""
    return {"data": {name: getattr(data, name) for name in names}, "view": data.view, "flips": flips}


def _inference() -> dict[str, Any]:
    return {
        "imports": ["$import glob", "$import sys", "$import torch"],
        "bundle_root": ".",
        "images": "$sorted(glob.glob(@bundle_root + '/input/*.nii*'))",
        "output_dir": "$@bundle_root + '/output'",
        "settings": f"$@bundle_root + '/{SETTINGS}'",
        "network": "$torch.jit.load(@bundle_root + '/models/model.ts').eval()",
        "initialize": ["$sys.path.insert(0, @bundle_root)"],
        "segmented": {
            "_target_": "scripts.segment.run",
            "network": "@network",
            "images": "@images",
            "output": "@output_dir",
            "settings": "@settings",
        },
        "run": ["$print(@segmented)"],
    }


def _metadata(study: Study) -> dict[str, Any]:
    size, channels = list(study.data.view), study.in_channels
    labels = {str(number): name for number, name in enumerate(["background", *study.structures])}
    return {
        "schema": "https://github.com/Project-MONAI/MONAI-extra-test-data/releases/download/0.8.1/meta_schema_20220324.json",
        "version": "1.0.0",
        "changelog": {"1.0.0": f"study {study.study.name}, {study.hash().hex()}"},
        "monai_version": version("monai"),
        "pytorch_version": version("torch"),
        "numpy_version": version("numpy"),
        "optional_packages_version": {"nibabel": version("nibabel"), "scipy": version("scipy")},
        "name": study.study.name,
        "task": "segmentation",
        "description": f"trained by federated learning; {study.trust.sentence}",
        "authors": "the sites of the study",
        "copyright": "the sites of the study",
        "network_data_format": {
            "inputs": {
                "image": {
                    "type": "image",
                    "format": "magnitude",
                    "num_channels": channels,
                    "spatial_shape": size,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": bool(study.data.patch),
                    "channel_def": {str(number): name for number, name in enumerate(study.data.modality)},
                }
            },
            "outputs": {
                "pred": {
                    "type": "image",
                    "format": "segmentation",
                    "num_channels": len(labels),
                    "spatial_shape": size,
                    "dtype": "float32",
                    "value_range": [],
                    "is_patch_data": bool(study.data.patch),
                    "channel_def": labels,
                }
            },
        },
    }


def _readme(study: Study) -> str:
    return (
        f"# {study.study.name}\n\nPut NIfTI images into `input/` and run, in this folder,\n\n"
        "    python -m monai.bundle run --config_file configs/inference.json\n\n"
        "Label maps are in `output/`, each on its image's own grid, as `fedseg predict` writes them. It needs monai, "
        "nibabel, scipy and fire.\n"
    )


def _write(path: Path, content: dict[str, Any]) -> None:
    write_whole(path, json.dumps(content, indent=1, ensure_ascii=False) + "\n", PUBLIC)
