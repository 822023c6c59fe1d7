"""The Medical Segmentation Decathlon, and lists of MONAI with several files a case."""

import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedseg.data.layouts.files import FileEntry, json_table, without_ending
from fedseg.data.layouts.layout import Declared
from fedseg.data.layouts.nifti import nifti_shape
from fedseg.errors import ConfigError
from fedseg.study import Study

INDEX = "dataset.json"
IGNORE = "ignore"  # nnU-Net's: voxels of which nobody knows what they are
OTHER = "this is a folder of nnU-Net: set [data] layout = 'nnunet'"


class Decathlon:
    """`dataset.json` lists image and label of every case; `image` may be a list, one file for each modality."""

    needs_folder = True
    index = INDEX

    def entries(self, folder: Path, site: str, study: Study) -> Iterator[FileEntry]:
        """An entry for everything in the index's `training`."""
        content = dataset_json(folder, "a Decathlon folder has one, or set [data] layout")
        if "training" not in content and "channel_names" in content:
            raise ConfigError(f"{folder / INDEX}: lists no 'training'; {OTHER}")
        for images, label in training_of(content, folder / INDEX):
            paths = tuple(folder / image for image in images)
            stem = without_ending(paths[0])
            if not paths[0].exists() and paths[0].with_name(f"{stem}_0000.nii.gz").exists():
                raise ConfigError(f"{paths[0]} is missing, and {stem}_0000.nii.gz is there; {OTHER}")
            yield FileEntry(stem, paths, folder / label)

    def modalities(self, folder: Path) -> tuple[str, ...]:
        """Those of the index, or as many numbers as the first image has channels."""
        if not (folder / INDEX).exists():
            return ()
        content = dataset_json(folder, "a Decathlon folder has one")
        listed = training_of(content, folder / INDEX) if "training" in content else []
        if not listed or not (first := folder / listed[0][0][0]).exists():
            return ()
        count = len(listed[0][0]) if len(listed[0][0]) > 1 else math.prod(nifti_shape(first)[3:])
        said = declared_in(content).channels or ()
        return said if len(said) == count else tuple(f"channel-{number}" for number in range(count))

    def declared(self, folder: Path, study: Study) -> Declared:
        """Labels and modalities of the index."""
        return declared_in(dataset_json(folder, "a Decathlon folder has one"))

    def remarks(self, folder: Path, study: Study) -> Sequence[str]:
        """Nothing is left alone without the index saying so."""
        return ()


def dataset_json(folder: Path, remedy: str) -> Mapping[str, Any]:
    """The content of a folder's `dataset.json`.

    Raises:
        ConfigError: it is missing, or no table in JSON.
    """
    return json_table(folder / INDEX, remedy)


def training_of(content: Mapping[str, Any], index: Path) -> list[tuple[list[str], str]]:
    """Images and label of every case that an index lists under `training`, as it writes them.

    Raises:
        ConfigError: the list is missing or malformed.
    """
    try:
        found = [
            (item["image"] if isinstance(item["image"], list) else [item["image"]], item["label"])
            for item in content["training"]
        ]
        if all(images and all(isinstance(path, str) for path in (*images, label)) for images, label in found):
            return found
    except (KeyError, TypeError):
        pass
    raise ConfigError(f"{index}: 'training' must list image and label of every patient; correct it")


def declared_in(content: Mapping[str, Any]) -> Declared:
    """What `dataset.json` says, in the Decathlon's words (and nnU-Net v1's) or nnU-Net v2's.

    There, `labels` is {"1": "left"} or {"left": 1}, in which a region has a list of values; `modality` or
    `channel_names` is {"0": "FLAIR"}; `reference` and what else there is says nothing on voxels.
    """
    labels, channels = content.get("labels"), content.get("channel_names", content.get("modality"))
    return Declared(
        _labels(labels) if isinstance(labels, dict) else None,
        tuple(str(channels[key]) for key in sorted(channels, key=_number)) if isinstance(channels, dict) else None,
    )


def _labels(labels: Mapping[str, Any]) -> Mapping[str, tuple[int, ...]]:
    pairs: list[tuple[str, tuple[int, ...]]] = []
    for key, value in labels.items():
        name, values = (str(value), key) if str(key).isdecimal() and not str(value).isdecimal() else (str(key), value)
        numbers = values if isinstance(values, list) else [values]
        pairs.append((name, tuple(int(number) for number in numbers if str(number).isdecimal())))
    return {name: values for name, values in pairs if values and values != (0,)}


def _number(key: str) -> tuple[int, str]:
    return (int(key), "") if str(key).isdecimal() else (2**31, str(key))
