"""The Medical Segmentation Decathlon."""

import json
from collections.abc import Iterator
from pathlib import Path

from fedseg.data.layouts.nifti import NiftiEntry
from fedseg.errors import ConfigError
from fedseg.files import read_text
from fedseg.study import Study


class Decathlon:
    """`dataset.json` lists image and label of every patient; the image's file name is the patient."""

    needs_folder = True
    index = "dataset.json"

    def entries(self, folder: Path, site: str, study: Study) -> Iterator[NiftiEntry]:
        """An entry for everything in the index's `training`."""
        index = folder / self.index
        text = read_text(index, "a Decathlon folder has one, or set [data] layout", names=True)
        try:
            listed = json.loads(text)["training"]
            pairs = [(folder / item["image"], folder / item["label"]) for item in listed]
        except json.JSONDecodeError as error:
            raise ConfigError(f"{index}: not valid JSON ({error}); correct that line") from error
        except (KeyError, TypeError) as error:
            raise ConfigError(f"{index}: 'training' must list image and label of every patient; correct it") from error
        for image, label in pairs:
            yield NiftiEntry(image.name.removesuffix(".gz").removesuffix(".nii"), image, label)
