"""Files of people: text is read as `secagg.text` reads it, and what may show a patient is its owner's only."""

import errno
import fcntl
import os
from pathlib import Path
from typing import BinaryIO

from fedseg.errors import ConfigError
from secagg.errors import ConfigError as NotTextError
from secagg.text import read_text as read_any
from secagg.writing import PRIVATE


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


def private(path: str, flags: int) -> int:
    """An opener (see `open`) of files that only their owner may read, whatever the umask."""
    return os.open(path, flags, PRIVATE)


def append_line(path: Path, text: str) -> None:
    """Append a line to a log that its owner alone may read: all of it or, where the disk is full, nothing.

    Raises:
        OSError: it cannot be written; the log is as it was.
    """
    line = text.encode() + b"\n"
    descriptor = os.open(path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, PRIVATE)
    try:
        size = os.fstat(descriptor).st_size
        if os.write(descriptor, line) != len(line):  # half a line would spoil the next one, too
            os.ftruncate(descriptor, size)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    finally:
        os.close(descriptor)


def hold(path: Path, alone: bool = False) -> BinaryIO:
    """Show others that this process works on a file, until what is returned is closed or the process ends, killed too.

    A file system without locks shows nothing, and keeps nobody away.

    Args:
        path: the file, made where it is missing.
        alone: whether another process that holds it keeps this one away; otherwise nothing is kept from anybody.

    Raises:
        BlockingIOError: another process holds it, and this one would be alone.
        OSError: the file cannot be written.
    """
    file = open(path, "ab", opener=private)  # noqa: SIM115 - open as long as the process works on it
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if alone and isinstance(error, BlockingIOError):
            file.close()
            raise
    return file


def held(path: Path) -> bool:
    """Whether some process holds a file; see `hold`."""
    try:
        with path.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False
