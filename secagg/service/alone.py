"""One process a state folder: two would turn each other away at the coordinator, and each would lose rounds."""

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from secagg.errors import ConfigError
from secagg.writing import PRIVATE, PRIVATE_FOLDER

LOCK = "running.lock"
"""In the state folder; what is in it is the process that runs on it."""


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Be the one process that runs on this folder, which is made where it is missing.

    Raises:
        ConfigError: another one does, or the folder cannot be used; says what to do.
    """
    try:
        folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        descriptor = os.open(folder / LOCK, os.O_RDWR | os.O_CREAT, PRIVATE)
    except OSError as error:
        raise ConfigError(
            f"state folder {folder}: cannot be used ({error.strerror}); give a folder of your own"
        ) from None
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            other = os.read(descriptor, 20).decode("ascii", "replace").strip()
            raise ConfigError(
                f"state folder {folder}: process {other or '?'} runs on it already; one data set takes part once at a "
                "time: end that process first"
            ) from None
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)
