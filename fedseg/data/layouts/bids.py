"""FeTA, and BIDS as far as FeTA uses it."""

from collections.abc import Iterator
from pathlib import Path

from fedseg.data.layouts.nifti import NiftiEntry
from fedseg.errors import ConfigError
from fedseg.files import read_text
from fedseg.study import Study


class Feta:
    """`sub-*/anat/*_<modality>.nii.gz` beside `*_dseg.nii.gz`; a folder `sub-*` is a patient.

    `participants.tsv`, if there, is the list of patients; folders that it does not name are left alone.
    """

    needs_folder = True
    index = "participants.tsv"

    def entries(self, folder: Path, site: str, study: Study) -> Iterator[NiftiEntry]:
        """An entry for every image of every patient; for a patient without images, one that cannot be loaded."""
        ending = f"_{study.data.modality[0]}.nii.gz"
        for patient in self._patients(folder):
            anat = folder / patient / "anat"
            images = sorted(anat.glob(f"[!.]*{ending}"))  # "._..." is macOS's, beside each file
            for image in images or [anat / f"{patient}{ending}"]:
                yield NiftiEntry(patient, image, image.with_name(image.name.removesuffix(ending) + "_dseg.nii.gz"))

    def _patients(self, folder: Path) -> list[str]:
        index = folder / self.index
        if not index.exists():
            return [path.name for path in folder.glob("sub-*") if path.is_dir()]
        lines = read_text(index, "correct it", names=True).split("\n")
        rows = [line.split("\t") for line in lines if line.strip()]
        if not rows or rows[0][0] != "participant_id":
            raise ConfigError(f"{index}: its first column must be participant_id; correct the header line")
        return [row[0] for row in rows[1:]]
