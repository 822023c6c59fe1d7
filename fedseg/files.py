"""Files of people: text is read as `secagg.text` reads it, and what may show a patient is its owner's only."""

import os
from collections.abc import Callable
from pathlib import Path

from fedseg.errors import ConfigError
from secagg.errors import ConfigError as NotTextError
from secagg.text import read_text as read_any


def read_text(path: Path, remedy: str, *, names: bool = False) -> str:
    """The text of a file; see `secagg.text.read_text`.

    Raises:
        ConfigError: it is missing, cannot be read, or is not text: one sentence with a remedy.
    """
    try:
        return read_any(path, names=names)
    except NotTextError as error:
        raise ConfigError(str(error)) from None
    except FileNotFoundError:
        raise ConfigError(f"{path} is missing; {remedy}") from None
    except OSError as error:
        raise ConfigError(f"{path} cannot be read ({error.strerror}); {remedy}") from None


PRIVATE_FOLDER = 0o700


def private(path: str, flags: int) -> int:
    """An opener (see `open`) of files that only their owner may read, whatever the umask."""
    return os.open(path, flags, 0o600)


def replace_by(write: Callable[[Path], object], target: Path, ending: str) -> None:
    """Let `write` make a file beside `target`, readable by its owner only, which then takes its place.

    Args:
        write: a library's writer, which goes by the name's ending.
        target: is whole at any time, or not there.
        ending: of its name, such as ".nii.gz".
    """
    beside = target.with_name(f".{os.getpid()}.{target.name.removesuffix(ending)}{ending}")
    try:
        with open(beside, "wb", opener=private):  # writers keep the mode of a file that is there
            pass
        write(beside)
        beside.replace(target)
    finally:
        beside.unlink(missing_ok=True)
