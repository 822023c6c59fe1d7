"""Files that are written whole or not at all, and secrets that only their owner can read.

A file is written beside its place under another name, brought to the disk, and takes its place in one rename: whoever
reads it finds what was there before or all of the new, also after a power cut or on a full disk. Must never: widen the
rights of a file that is there, or show what is written in an error.
"""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from secagg.errors import ConfigError

PUBLIC, PRIVATE, PRIVATE_FOLDER = 0o644, 0o600, 0o700


@contextmanager
def replacing(path: Path, mode: int = PRIVATE, *, synced: bool = True) -> Iterator[Path]:
    """A file beside `path` to write into, which takes its place when the block ends well; else `path` stays as it was.

    Args:
        path: may exist, unless it is a folder; its folder must exist.
        mode: rights of the file at its end, whatever the umask; its owner's only while it is written.
        synced: whether it is on the disk when the block is left. False is for what nobody needs after a power cut.

    Yields:
        The path to write to, with the ending of `path`: libraries go by it. An empty file is there already.

    Raises:
        OSError: it cannot be written; nothing is left of it.
    """
    descriptor, beside = tempfile.mkstemp(dir=path.parent, prefix=".", suffix=f".{path.name}")
    try:
        os.close(descriptor)
        yield Path(beside)
        os.chmod(beside, mode)
        if synced:
            _synced(Path(beside))
        os.replace(beside, path)
    except BaseException:
        with suppress(FileNotFoundError):
            os.unlink(beside)
        raise
    if synced:
        _synced(path.parent)


def abandoned(path: Path) -> list[Path]:
    """What processes that were killed within `replacing` have left beside `path`, or are writing just now."""
    ending = f".{path.name}"
    length = len(".12345678" + ending)  # `mkstemp` draws eight characters
    named = (beside for beside in path.parent.iterdir() if beside.name.startswith(".") and beside.name.endswith(ending))
    return sorted(beside for beside in named if len(beside.name) == length)


def write_whole(path: Path, data: bytes | str, mode: int = PRIVATE) -> Path:
    """Write a file in one piece; see `replacing`.

    Args:
        path: may exist, unless it is a folder; its folder must exist.
        data: all of it; text is written as UTF-8.
        mode: rights of the file, whatever the umask.

    Returns:
        The path.

    Raises:
        OSError: it cannot be written; what was there is untouched.
    """
    with replacing(path, mode) as beside:
        beside.write_bytes(data.encode("utf-8") if isinstance(data, str) else data)
    return path


def write_new(path: Path, data: bytes | str, mode: int = PUBLIC) -> Path:
    """Write a file that must not exist yet.

    Args:
        path: its folder must exist.
        data: all of it; text is written as UTF-8.
        mode: rights of the file, whatever the umask.

    Raises:
        ConfigError: it exists; nothing was overwritten.
        OSError: it cannot be written; nothing is left of it.
    """
    try:
        os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, PRIVATE))  # the name is ours from here on
    except FileExistsError:
        raise ConfigError(f"{path} exists already; move it away first, nothing was overwritten") from None
    try:
        return write_whole(path, data, mode)
    except BaseException:
        path.unlink(missing_ok=True)
        raise


def erase(path: Path) -> None:
    """Overwrite a file with zeros and remove it, where it is there.

    Best effort: a disk that writes elsewhere, a journal or a backup may keep what was in it.

    Raises:
        OSError: it cannot be written or removed.
    """
    if not path.exists():
        return
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
        file.flush()
        os.fsync(file.fileno())
    path.unlink()
    _synced(path.parent)


def owners_only(path: Path) -> None:
    """ConfigError where others can read a secret; OSError where it is not there."""
    if path.stat().st_mode & 0o077:
        raise ConfigError(f"{path}: others can read this private key; run: chmod 600 {path}")


def _synced(path: Path) -> None:
    """Bring a file's content, or the names in a folder, to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
