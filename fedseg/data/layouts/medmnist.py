"""MedMNIST: small pictures with their classes in one npz file, with its parts to train, to choose and to test."""

import hashlib
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedseg.data.cases import Case
from fedseg.data.layouts.layout import Declared
from fedseg.data.layouts.pictures import upright, where
from fedseg.data.scans import Scan, working_case
from fedseg.errors import CaseError, ConfigError
from fedseg.study import Study

PARTS = ("train", "val", "test")


@dataclass(frozen=True)
class RowEntry:
    """One row of a file.

    Attributes:
        path: of the file.
        part: "train", "val" or "test".
        row: its number in that part, from 0.
        pixels: (rows, columns) or (rows, columns, C).
        label: as the file has it.
        patient: the row, until a table says otherwise.
    """

    path: Path
    part: str
    row: int
    pixels: NDArray[np.uint8] = field(repr=False)
    label: NDArray[np.int64] = field(repr=False)
    patient: str = ""

    subject = None

    def __post_init__(self) -> None:
        """Fill in the patient."""
        object.__setattr__(self, "patient", self.patient or self.case)

    @property
    def case(self) -> str:
        """Such as "train-17"."""
        return f"{self.part}-{self.row}"

    @property
    def images(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @property
    def name(self) -> str:
        """The file and the row, in an order of names that is that of numbers."""
        return f"{self.path}/{self.part}-{self.row:06d}"

    def remarks(self) -> Sequence[str]:
        """Nothing."""
        return ()

    def load(self, site: str, study: Study) -> Case:
        """Bring the row onto the study's working grid; the file's own split says whether it is held out."""
        return replace(working_case(self.scan(study), site, study), tests=self.part != "train")

    def scan(self, study: Study) -> Scan:
        """The row as the file has it.

        Raises:
            CaseError: other channels than the study's, several labels, or a class that the study does not have.
        """
        values = self.pixels[None] if self.pixels.ndim == 2 else np.moveaxis(self.pixels, -1, 0)
        if len(values) != study.in_channels:
            said = f"has {len(values)} channels and [data] modality lists {study.in_channels}; correct either"
            raise CaseError(self.name, said)
        if self.label.size != 1:
            raise CaseError(self.name, f"has {self.label.size} labels; a picture is of one class here")
        image, label = upright(values.astype(np.float32)), self.label.reshape(())
        return Scan(self.patient, self.name, image, where(1.0), label, self.name, oriented=False, framed=True)


class MedMnist:
    """One .npz file with `train_images`, `train_labels`, and the same of `val` and `test`; a row is a patient.

    With `[data] rows = 'dealt'` all sites have the same file, and each row is at the site that its pixels say.
    """

    needs_folder = True
    index = ""

    def entries(self, folder: Path, site: str, study: Study) -> Iterator[RowEntry]:
        """An entry for every row of `train`, and of the part that is held out."""
        path = _file(folder)
        found = _opened(path)
        own, sites = study.site_ids.index(site), len(study.sites)
        for part in ("train", study.data.tested):
            images, labels = found[f"{part}_images"], found[f"{part}_labels"]
            for row, pixels in enumerate(images):
                if study.data.rows == "own" or dealt_to(pixels, sites) == own:
                    yield RowEntry(path, part, row, pixels, np.asarray(labels[row], np.int64))

    def modalities(self, folder: Path) -> tuple[str, ...]:
        """Grey or the three colours."""
        if len(list(folder.glob("*.npz"))) != 1:
            return ()
        shape = _opened(_file(folder))["train_images"].shape
        return ("grey",) if len(shape) == 3 else ("red", "green", "blue")

    def classes(self, folder: Path) -> tuple[str, ...]:
        """As many names as there are numbers of classes."""
        labels = _opened(_file(folder))["train_labels"]
        return tuple(f"class-{number}" for number in range(int(labels.max()) + 1))

    def declared(self, folder: Path, study: Study) -> Declared:
        """Nothing."""
        return Declared()

    def remarks(self, folder: Path, study: Study) -> Sequence[str]:
        """That nobody knows who is a patient."""
        return [
            "each row counts as a patient of its own, because the file does not say whose it is: of a person with "
            "several rows epsilon is said for each row; if you know better, say it in patients.csv (file, patient)"
        ]


def dealt_to(pixels: NDArray[np.uint8], sites: int) -> int:
    """Which of so many sites, from 0, has a row of a file that is dealt: its pixels alone say it.

    By its number one row more would move all rows behind it to other sites, and the sum by far more than one clip norm.
    Of two rows with the same picture one site has both.
    """
    value = hashlib.blake2b(np.ascontiguousarray(pixels).tobytes(), digest_size=8, person=b"fedseg dealt").digest()
    return int.from_bytes(value, "big") % sites


def _file(folder: Path) -> Path:
    found = sorted(folder.glob("*.npz"))
    if len(found) != 1:
        raise ConfigError(f"{folder}: has {len(found)} .npz files, and layout 'medmnist' is one; leave one there")
    return found[0]


def _opened(path: Path) -> Mapping[str, NDArray[np.uint8]]:
    """All arrays of a file, held against what MedMNIST has; nothing is unpickled."""
    try:
        with np.load(path, allow_pickle=False) as arrays:
            found = {name: arrays[name] for name in arrays.files if re.fullmatch(r"(train|val|test)_\w+", name)}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path}: cannot be read as .npz ({error}); download it again") from error
    for part in PARTS:
        images, labels = found.get(f"{part}_images"), found.get(f"{part}_labels")
        if images is None or labels is None or len(images) != len(labels) or images.ndim not in (3, 4):
            raise ConfigError(f"{path}: must have {part}_images and as many {part}_labels, as MedMNIST's 2D sets do")
    return found
