"""Sums of plain vectors: what `secagg serve` and `secagg join` agree on beside the policy, and vectors as files."""

import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.driver import Completed
from secagg.encoding import digest
from secagg.errors import ConfigError
from secagg.layout import Values
from secagg.policy import Policy
from secagg.text import read_text
from secagg.writing import PRIVATE, PRIVATE_FOLDER, replacing, write_whole

KINDS = (".npy", ".csv", ".json")
"""How a file with a vector may end."""


def about(previous_head: bytes) -> bytes:
    """What stands for the model hash where there is no model, 32 bytes: each sum is a question of its own.

    Args:
        previous_head: of the round start, which every member holds against its own log (C-04).
    """
    return digest("sum", previous_head)


def file_of(given: Path, number: int) -> Path | None:
    """The file with the vector for a round: the one given, or the round's in a folder; None while there is none.

    Args:
        given: a file, or a folder of files such as ``0001.npy``.
        number: of the round.
    """
    if not given.is_dir():
        return given
    return next((path for kind in KINDS if (path := given / f"{number:04d}{kind}").is_file()), None)


def read_vector(path: Path) -> Values:
    """A vector, or values by field, from a file.

    Args:
        path: ``.npy``: an array; ``.csv``: numbers; ``.json``: a list, or an object of fields.

    Raises:
        ConfigError: it cannot be read as what it is; names the file.
    """
    try:
        match path.suffix:
            case ".npy":
                array: NDArray[Any] = np.load(path, allow_pickle=False)
                return array
            case ".csv":
                rows = csv.reader(read_text(path).splitlines())
                return np.array([float(cell) for row in rows for cell in row if cell.strip()])
            case ".json":
                told = json.loads(read_text(path))
                return told if isinstance(told, dict) else np.asarray(told, dtype=np.float64)
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror})") from None
    except (ValueError, TypeError):
        raise ConfigError(f"{path}: holds no vector; give numbers, as .npy, .csv or .json") from None
    raise ConfigError(f"{path}: its name has to end with {', '.join(KINDS[:-1])} or {KINDS[-1]}")


def keep_sum(folder: Path, policy: Policy, done: Completed) -> Path:
    """Write the sum of a round, (d,) float64, and what it is of.

    Args:
        folder: gets ``0001.npy`` and ``0001.json`` for round 1.
        policy: of the round.
        done: what the driver told.

    Returns:
        The file with the sum.
    """
    folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
    number = done.receipt.round_number
    with replacing(folder / f"{number:04d}.npy") as beside:
        np.save(beside, done.total, allow_pickle=False)
    told = {
        "round": number,
        "included": list(done.included),
        "dropped": list(done.dropped),
        "head": done.receipt.head.hex(),
    }
    write_whole(folder / f"{number:04d}.json", json.dumps(told, indent=1) + "\n", PRIVATE)
    return folder / f"{number:04d}.npy"
