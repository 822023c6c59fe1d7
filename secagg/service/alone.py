"""One process of a member in a run: two would turn each other away at the coordinator, and each would lose rounds."""

import asyncio
import fcntl
import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from secagg.encoding import digest
from secagg.errors import ConfigError
from secagg.service.stopping import FAREWELL_SECONDS
from secagg.writing import PRIVATE, PRIVATE_FOLDER

ENDING = ".running"
"""Of the lock in the state folder; what is in it is the process that runs."""

_LOOK_SECONDS = 0.1


@asynccontextmanager
async def alone(folder: Path, run: str) -> AsyncIterator[None]:
    """Be the one process on this folder, made where it is missing, in this run; wait for one that says goodbye.

    Raises:
        ConfigError: another one goes on, or the folder cannot be used; says what to do.
    """
    path = folder / f"{digest('running', run).hex()[:16]}{ENDING}"
    try:
        folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE)
    except OSError as error:
        raise ConfigError(f"state folder {folder}: cannot be used ({error.strerror}); give another folder") from None
    try:
        await _locked(descriptor, folder)
        os.ftruncate(descriptor, 0)
        os.write(descriptor, f"{os.getpid()}\n".encode())
        yield
    finally:
        os.close(descriptor)


async def _locked(descriptor: int, folder: Path) -> None:
    give_up = asyncio.get_running_loop().time() + FAREWELL_SECONDS + 1
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return
        except OSError:
            if asyncio.get_running_loop().time() > give_up:
                other = os.pread(descriptor, 20, 0).decode("ascii", "replace").strip()
                raise ConfigError(
                    f"state folder {folder}: process {other or '?'} takes part in this run with it already; end that "
                    "one first"
                ) from None
        await asyncio.sleep(_LOOK_SECONDS)
