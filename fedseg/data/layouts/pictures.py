"""Pictures: flat images of a class each, in PNG or JPEG, and whose and of which class they are.

The class is that of the folder in which a picture lies, or as a table says. A picture's whole frame is looked at:
unlike a scan it is not cut to what is brighter than its sides.
"""

import csv
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from io import StringIO
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from fedseg.data.cases import Case
from fedseg.data.layouts.layout import Declared
from fedseg.data.scans import Scan, working_case
from fedseg.errors import CaseError, ConfigError, SiteWarning
from fedseg.files import read_text
from fedseg.study import Study

ENDINGS = (".png", ".jpg", ".jpeg")
INDEX = "classes.csv"
GREY = 2
"""Channels of one pixel that differ by no more are grey: JPEG rounds."""


@dataclass(frozen=True)
class PictureEntry:
    """One picture, found and not read yet.

    Attributes:
        path: of its file.
        said: what its folder or the table calls its class; None where nothing does.
        read: from a path to (C, X, Y, frames) float32 and millimetres a pixel, as `picture_of`.
        subject: whose it is, where the file says so.
    """

    path: Path
    said: str | None
    read: Callable[[Path, Study], tuple[NDArray[np.float32], float]] = field(repr=False)
    subject: str | None = None
    patient: str = field(default="", kw_only=True)
    wrong: CaseError | None = field(default=None, kw_only=True)

    def __post_init__(self) -> None:
        """Fill in the patient."""
        if not self.patient:
            object.__setattr__(self, "patient", self.subject or self.case)

    @property
    def case(self) -> str:
        """The file's name without its ending."""
        return self.path.stem

    @property
    def images(self) -> tuple[Path, ...]:
        """The file."""
        return (self.path,)

    @property
    def name(self) -> str:
        """The file's path."""
        return str(self.path)

    def remarks(self) -> Sequence[str]:
        """Nothing."""
        return ()

    def load(self, site: str, study: Study) -> Case:
        """Bring the picture onto the study's working grid; raises as `scan`."""
        return working_case(self.scan(study), site, study)

    def scan(self, study: Study) -> Scan:
        """Read the picture.

        Raises:
            CaseError: it is damaged or in other colours than the study's, or its class is none of the study's.
        """
        if self.wrong:
            raise self.wrong
        label = class_number(self.said, self.name, study)
        image, pixel = self.read(self.path, study)
        return Scan(self.patient, self.name, image, where(pixel), label, self.name, oriented=False, framed=True)


class Images:
    """A folder for each class with PNG or JPEG in any subfolders, or anywhere with a table `classes.csv`."""

    needs_folder = True
    index = ""

    def entries(self, folder: Path, site: str, study: Study) -> Iterator[PictureEntry]:
        """An entry for every picture."""
        going_on = study.trust.claims_epsilon
        for path, said in classified(folder, lambda path: path.suffix.lower() in ENDINGS, going_on):
            yield PictureEntry(path, said, read_picture)

    def modalities(self, folder: Path) -> tuple[str, ...]:
        """Grey or the three colours, as the first picture has it."""
        first = next((path for path in files_below(folder) if path.suffix.lower() in ENDINGS), None)
        if first is None or not self.classes(folder):
            return ()
        return ("grey",) if len(_pixels(first)) == 1 else ("red", "green", "blue")

    def classes(self, folder: Path) -> tuple[str, ...]:
        """What the folders or the table call the classes, sorted."""
        found = classified(folder, lambda path: path.suffix.lower() in ENDINGS)
        return tuple(sorted({said for _, said in found if said}))

    def declared(self, folder: Path, study: Study) -> Declared:
        """Nothing: each picture says it by where it lies."""
        return Declared()

    def remarks(self, folder: Path, study: Study) -> Sequence[str]:
        """Other files."""
        others = [path.name for path in files_below(folder) if path.suffix.lower() not in (*ENDINGS, ".csv", ".tsv")]
        return [f"{len(others)} files are neither PNG nor JPEG, such as {others[0]}, and left alone"] if others else ()


def files_below(folder: Path) -> list[Path]:
    """Files in a folder and its subfolders, sorted; without what systems leave behind."""
    return sorted(
        path
        for path in folder.rglob("*")
        if path.is_file() and not any(part.startswith(".") for part in path.relative_to(folder).parts)
    )


def classified(folder: Path, wanted: Callable[[Path], bool], going_on: bool = False) -> list[tuple[Path, str | None]]:
    """Pictures and what their class is called: by `classes.csv` where it is there, else by their first folder.

    A file's name alone says nothing of several files that are called so: one line would be about several patients.

    Args:
        folder: the site's own.
        wanted: which files are pictures.
        going_on: as of `rows_of`.

    Raises:
        ConfigError: the table is malformed.
    """
    files = [path for path in files_below(folder) if wanted(path)]
    if not (folder / INDEX).is_file():
        parts = [(path, path.relative_to(folder).parts) for path in files]
        return [(path, part[0] if len(part) > 1 else None) for path, part in parts]
    rows = rows_of(folder / INDEX, going_on)
    places = {path: path.relative_to(folder).as_posix() for path in files}
    named = Counter(path.name for path, place in places.items() if place not in rows)
    return [
        (path, rows.get(place, rows.get(path.name) if named[path.name] == 1 else None))
        for path, place in places.items()
    ]


def rows_of(table: Path, going_on: bool = False) -> Mapping[str, str]:
    """File to class, as a table says, whose columns are `file` and `class`.

    Args:
        table: the file.
        going_on: with differential privacy a line leaves out whom it is about, with a warning, and nobody else: one
            that lacks something, and both of a file with two classes, of which no study has the two as one.

    Raises:
        ConfigError: a column is missing, a row is not filled in, or a file has two classes.
    """
    text = read_text(table, "it says of which class each file is")
    header = text.partition("\n")[0]
    rows = list(csv.DictReader(StringIO(text), delimiter=max(",;\t", key=header.count), restval=""))
    found: dict[str, str] = {}
    for number, row in enumerate(rows, 2):
        plain = {(name or "").strip().casefold(): (value or "").strip() for name, value in row.items() if name}
        if "file" not in plain or "class" not in plain:
            raise ConfigError(f"{table}: its first line must name the columns 'file' and 'class'; correct it")
        if not plain["file"] or not plain["class"]:
            _told(f"{table}: line {number} lacks its file or its class; fill it in or remove it", going_on)
            continue
        name = plain["file"].replace("\\", "/").removeprefix("./")
        if found.setdefault(name, plain["class"]) != plain["class"]:
            said = f"{table}: line {number} gives {name} another class than a line before; correct either"
            _told(said, going_on)
            found[name] = f"{found[name]} and {plain['class']}"
    return found


def _told(said: str, going_on: bool) -> None:
    if not going_on:
        raise ConfigError(said)
    warnings.warn(said, SiteWarning, stacklevel=2)


def class_number(said: str | None, name: str, study: Study) -> NDArray[np.uint8]:
    """The number of a class by what it is called, letters' case aside.

    Raises:
        CaseError: nothing says it, or the study has no such class.
    """
    if said is None:
        raise CaseError(name, f"is in no folder of a class and not in {INDEX}; put it into one, or add its path")
    names = [known.casefold() for known in study.names]
    if said.casefold() not in names:
        raise CaseError(name, f"is of class '{said}', and [study] classes are {', '.join(study.names)}; correct either")
    return np.asarray(names.index(said.casefold()), np.uint8)


def read_picture(path: Path, study: Study) -> tuple[NDArray[np.float32], float]:
    """A PNG or JPEG as (C, X, Y, 1) float32, and 1 for millimetres a pixel, which it does not say.

    Raises:
        CaseError: it is damaged, or has other channels than the study's.
    """
    values = _pixels(path)
    if len(values) != study.in_channels:
        raise CaseError(
            str(path), f"has {len(values)} channels and [data] modality lists {study.in_channels}; correct either"
        )
    return upright(values), 1.0


def upright(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """(C, rows, columns) from the top as (C, X, Y, 1), x to the right and y upwards, as pictures are drawn here."""
    return np.ascontiguousarray(np.swapaxes(values[:, ::-1], 1, 2)[..., None], np.float32)


def where(pixel: float) -> NDArray[np.float64]:
    """The affine of a picture: pixels as wide as high."""
    return np.diag([pixel, pixel, pixel, 1.0])


def _pixels(path: Path) -> NDArray[np.float32]:
    """(1 or 3, rows, columns): colours only where there are some."""
    try:
        with Image.open(path) as opened:
            picture = ImageOps.exif_transpose(opened)
            if picture.mode in ("P", "CMYK", "YCbCr", "LA", "PA", "RGBA"):
                bands = picture.convert("RGBA")
                if np.asarray(bands)[..., 3].min() < 255:
                    raise CaseError(str(path), "is transparent in places; export it without an alpha channel")
                picture = bands.convert("RGB")
            values = np.asarray(picture, np.float32)
    except CaseError:
        raise
    except Exception as error:  # readers raise anything on damaged bytes
        raise CaseError(str(path), f"cannot be read as a picture ({error}); copy or export it again") from error
    if values.ndim == 2:
        return values[None]
    channels = np.moveaxis(values, -1, 0)
    return channels[:1] if np.abs(channels - channels[:1]).max() <= GREY else channels
