"""nnU-Net's raw folders, version 1 and 2: one file for each channel, numbered by its ending."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedseg.data.layouts.channels import chosen
from fedseg.data.layouts.decathlon import INDEX, dataset_json, declared_in, training_of
from fedseg.data.layouts.files import NIFTI, FileEntry, listed, without_ending
from fedseg.data.layouts.layout import Declared
from fedseg.errors import ConfigError
from fedseg.study import Study


class NnUNet:
    """`imagesTr/CASE_0000.nii.gz`, `CASE_0001.nii.gz`, ... beside `labelsTr/CASE.nii.gz`; a case is one image.

    The study's modalities are found in `channel_names` (version 2) or `modality` (version 1); a subset is allowed.
    """

    needs_folder = True
    index = INDEX

    def entries(self, folder: Path, site: str, study: Study) -> Iterator[FileEntry]:
        """An entry for every case of the index's list, or without one for every label map."""
        content = dataset_json(folder, "a folder of nnU-Net has one, or set [data] layout")
        ending = str(content.get("file_ending", NIFTI[0]))
        if ending not in NIFTI:
            raise ConfigError(f"{folder / INDEX}: file_ending = '{ending}', and images are NIfTI here; convert them")
        numbers = chosen(study.data.modality, declared_in(content).channels, str(folder / INDEX))
        for case, places, label in _cases(folder, content, ending):
            numbered = {number: folder / "imagesTr" / f"{case}_{number:04}{ending}" for number in numbers}
            yield FileEntry(case, tuple({**numbered, **places}[number] for number in numbers), label)

    def modalities(self, folder: Path) -> tuple[str, ...]:
        """Those of the index."""
        numbered = listed(folder, "imagesTr/*_0000.nii*")
        if not numbered or not (folder / INDEX).exists():
            return ()
        return declared_in(dataset_json(folder, "a folder of nnU-Net has one")).channels or ()

    def declared(self, folder: Path, study: Study) -> Declared:
        """Labels and channels of the index; of the channels those that the study uses."""
        said = declared_in(dataset_json(folder, "a folder of nnU-Net has one"))
        numbers = chosen(study.data.modality, said.channels, str(folder / INDEX))
        channels = None if said.channels is None else tuple(said.channels[number] for number in numbers)
        return Declared(said.labels, channels)

    def remarks(self, folder: Path, study: Study) -> Sequence[str]:
        """Images without a label map, where the folder itself is the list."""
        content = dataset_json(folder, "a folder of nnU-Net has one")
        if "training" in content or "dataset" in content:
            return ()
        ending = str(content.get("file_ending", NIFTI[0]))
        labelled = {case for case, _, _ in _cases(folder, content, ending)}
        cases = {without_ending(path)[:-5] for path in listed(folder, f"imagesTr/*_[0-9][0-9][0-9][0-9]{ending}")}
        without = sorted(cases - labelled)
        return [f"imagesTr: {', '.join(without)} have no label map in labelsTr: left alone"] if without else ()


def _cases(folder: Path, content: Mapping[str, Any], ending: str) -> Iterator[tuple[str, Mapping[int, Path], Path]]:
    """Names of cases, where the index itself puts their channels, and their label maps."""
    if isinstance(named := content.get("dataset"), dict):  # version 2 may list them, with the channels' files
        for case, item in named.items():
            if not isinstance(item, dict) or not isinstance(item.get("images"), list) or "label" not in item:
                raise ConfigError(f"{folder / INDEX}: 'dataset' must list images and label of every case; correct it")
            places = {number: folder / str(path) for number, path in enumerate(item["images"])}
            yield case, places, folder / str(item["label"])
    elif "training" in content:
        for _, label in training_of(content, folder / INDEX):
            yield without_ending(Path(label)), {}, folder / label
    else:
        for path in listed(folder, f"labelsTr/*{ending}"):
            yield without_ending(path), {}, path
