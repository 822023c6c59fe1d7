"""Of which class pictures are: a model's probabilities for each of them, as a table in CSV or JSON."""

import csv
import io
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.data.layouts.pictures import ENDINGS, files_below, read_picture, where
from fedseg.data.layouts.radiographs import is_radiograph, read_radiograph
from fedseg.data.scans import Scan, working_case
from fedseg.errors import CaseError, ConfigError
from fedseg.study import Study
from fedseg.tasks.classification import Classification
from secagg.writing import write_whole

TABLES = (".csv", ".json")


class Answer(NamedTuple):
    """What a model says of one picture: its path from the source on, and (classes,) probabilities that add up to 1."""

    file: str
    probabilities: NDArray[np.float32]


def pictures_in(source: Path, output: Path) -> list[Path]:
    """The pictures that a source means: itself, or PNG, JPEG and DICOM in a folder and its subfolders.

    Raises:
        ConfigError: the table's name is none, it cannot be written, or there is no picture.
    """
    if output.suffix not in TABLES:
        raise ConfigError(f"{output}: classes are written as a table; give a name that ends in .csv or .json")
    if not output.parent.is_dir():
        raise ConfigError(f"{output.parent}: there is no such folder; make it or write elsewhere")
    if not source.exists():
        raise ConfigError(f"{source}: is missing; give a picture, or a folder of them")
    files = files_below(source) if source.is_dir() else [source]
    found = [path for path in files if path.suffix.lower() in ENDINGS or is_radiograph(path)]
    if not found:
        raise ConfigError(f"{source}: no pictures; give PNG, JPEG or DICOM, or a folder of them")
    if output in found:
        raise ConfigError(f"{output}: is a picture, and would be lost; write elsewhere")
    return found


def answers(
    model: torch.nn.Module, pictures: Sequence[Path], source: Path, study: Study
) -> Iterator[Answer | CaseError]:
    """What the model says of each picture, or why it cannot be used.

    Args:
        model: the study's network.
        pictures: as `pictures_in` gives them.
        source: which they are of.
        study: what the model was trained with.
    """
    task = Classification(study)
    for path in pictures:
        name = path.relative_to(source).as_posix() if source.is_dir() else path.name
        try:
            image, pixel = (read_picture if path.suffix.lower() in ENDINGS else read_radiograph)(path, study)
            scan = Scan("", str(path), image, where(pixel), oriented=False, framed=True)
            found = task.probabilities(model, working_case(scan, "", study))
            if not np.isfinite(found).all():
                raise CaseError(str(path), "the model's answer is no number; it is damaged or was trained otherwise")
            yield Answer(name, found)
        except CaseError as error:
            yield error


def write_answers(found: Sequence[Answer], output: Path, study: Study) -> None:
    """Write the table: a row a picture, with its file, the likeliest class and the probability of each.

    Raises:
        OSError: it cannot be written; an earlier table is as it was.
    """
    rows = [
        {"file": one.file, "said": study.names[int(one.probabilities.argmax())]}
        | {f"p({name})": round(float(likely), 6) for name, likely in zip(study.names, one.probabilities, strict=True)}
        for one in found
    ]
    if output.suffix == ".json":
        write_whole(
            output, json.dumps({"study": study.study.name, "hash": study.hash().hex(), "pictures": rows}, indent=1)
        )
        return
    text = io.StringIO()
    table = csv.DictWriter(text, ["file", "said", *(f"p({name})" for name in study.names)], lineterminator="\n")
    table.writeheader()
    table.writerows(rows)
    write_whole(output, text.getvalue())
