"""Files in any folders, and a table that says which belong together and whose they are."""

import csv
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from fedseg.data.layouts.channels import plain, told_apart
from fedseg.data.layouts.files import FileEntry, without_ending
from fedseg.data.layouts.layout import Declared
from fedseg.data.layouts.nifti import nifti_shape
from fedseg.errors import ConfigError
from fedseg.files import read_text
from fedseg.study import Study

INDEX = "cases.csv"
SEPARATORS = ",;\t"


class Rows:
    """`cases.csv`: a row a case, with the columns `image` (or one for each modality), `label` and `patient`.

    Paths are from the table's folder. `case` may name the case, which is called as its image file otherwise. Without a
    column `patient` there is nothing but file names to say whose an image is.
    """

    needs_folder = True
    index = INDEX

    def entries(self, folder: Path, site: str, study: Study) -> Iterator[FileEntry]:
        """An entry for every row."""
        columns = [["image"], [*study.data.modality]]
        for number, row in enumerate(self._rows(folder), 2):
            images = next((names for names in columns if all(plain(name) in row for name in names)), None)
            if images is None or "label" not in row:
                needs = f"a column image or the columns {', '.join(study.data.modality)}, and label"
                raise ConfigError(f"{folder / INDEX}: needs {needs}; correct the header line")
            said = {name: row[name] for name in (*map(plain, images), "label", *({"patient"} & row.keys()))}
            if empty := [name for name, value in said.items() if not value]:
                raise ConfigError(f"{folder / INDEX} line {number}: {empty[0]} is empty; fill it in or remove the row")
            paths = tuple(folder / row[plain(name)] for name in images)
            case = row.get("case") or without_ending(paths[0])
            yield FileEntry(case, paths, folder / row["label"], subject=row.get("patient"))

    def modalities(self, folder: Path) -> tuple[str, ...]:
        """The table's columns of images, or as many numbers as the first image has channels."""
        if not (folder / INDEX).exists() or not (rows := self._rows(folder)):
            return ()
        if "image" not in rows[0]:
            return tuple(name for name in rows[0] if name not in ("label", "case", "patient"))
        first = folder / rows[0]["image"]
        count = math.prod(nifti_shape(first)[3:]) if first.exists() else 1
        return tuple(f"channel-{number}" for number in range(count))

    def declared(self, folder: Path, study: Study) -> Declared:
        """Nothing but the rows."""
        return Declared()

    def remarks(self, folder: Path, study: Study) -> Sequence[str]:
        """Nothing: what is not in a row is not in the study."""
        return ()

    def _rows(self, folder: Path) -> list[Mapping[str, str]]:
        """Rows by the plain names of their columns."""
        text = read_text(folder / INDEX, "write the table of this folder's cases, or set [data] layout", names=True)
        lines = [line for line in text.splitlines() if line.strip()]
        header = lines[0] if lines else ""
        separator = max(SEPARATORS, key=header.count)
        rows = csv.DictReader(lines, delimiter=separator, restval="")
        told_apart([name for name in rows.fieldnames or () if name], str(folder / INDEX))
        return [{plain(name): (value or "").strip() for name, value in row.items() if name} for row in rows]
