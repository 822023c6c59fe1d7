"""A disk that is full at a member: it takes part in nothing meanwhile, says so, and goes on by itself.

What a full disk ends in the middle of a round is begun anew, as by a process that was killed and started again: its
marks are as the last transaction left them, and its coordinator is told nothing that is not in them.
"""

import asyncio
import errno
import shutil
import sqlite3
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from secagg.service.errors import StoppedError
from secagg.service.stopping import run_until_stopped

RESERVE_BYTES = 64 << 20
"""Free bytes of the disk with its marks below which a member joins no round."""

_LOOK_SECONDS = 0.5
_AGAIN_SECONDS = 5.0
"""Between two lives at least: what is full may be another disk than the one that is looked at."""

_T = TypeVar("_T")


def lacks_room(folder: Path) -> bool:
    """Whether less than `RESERVE_BYTES` are free where this folder is."""
    return shutil.disk_usage(folder).free < RESERVE_BYTES


def outlasting(live: Callable[[], _T], folder: Path, say: Callable[[str], None], told: str) -> _T:
    """Call this, and where a full disk ends it, again once there is room.

    Args:
        live: a whole life of a member's process.
        folder: on the disk.
        say: takes a sentence for the operator; what it writes may fail as well.
        told: what to say to an operator who ends the wait; see `run_until_stopped`.

    Raises:
        StoppedError: a signal came while this waited.
    """
    while True:
        try:
            return live()
        except StoppedError:
            raise
        except Exception as error:
            if not _of_a_full_disk(error):
                raise
            sentence = _waits(error, folder)
        with suppress(OSError):
            say(sentence)
        run_until_stopped(_room(folder), told)


async def written(write: Callable[[], _T], folder: Path, say: Callable[[str], None]) -> _T:
    """Write the last of a run, which no other life could write: where a full disk is in the way, again with room.

    Args:
        write: may be called again after it failed.
        folder: as of `outlasting`.
        say: the same.
    """
    while True:
        try:
            return write()
        except Exception as error:
            if not _of_a_full_disk(error):
                raise
            sentence = _waits(error, folder)
        with suppress(OSError):
            say(sentence)
        await _room(folder)


def _waits(error: Exception, folder: Path) -> str:
    return (
        f"the disk is full ({error}); free some space there: this site waits for {RESERVE_BYTES >> 20} MB in "
        f"{folder}, and goes on by itself"
    )


async def _room(folder: Path) -> None:
    await asyncio.sleep(_AGAIN_SECONDS)
    while lacks_room(folder):
        await asyncio.sleep(_LOOK_SECONDS)


def _of_a_full_disk(error: BaseException | None) -> bool:
    while error is not None:
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            return True
        if isinstance(error, sqlite3.Error) and error.sqlite_errorcode == sqlite3.SQLITE_FULL:
            return True
        error = error.__cause__ or error.__context__
    return False
