"""How a process of a federation ends when its operator says so: one sentence within seconds, and what is kept, kept."""

import asyncio
import os
import signal
import sys
from collections.abc import Coroutine, Iterator
from contextlib import contextmanager, suppress
from threading import current_thread, main_thread
from typing import Any, NoReturn, TypeVar

from secagg.service.errors import StoppedError

ENDED_EARLY = 75
"""Exit status of a process that ended before its run was complete, and not by an error (EX_TEMPFAIL of sysexits.h)."""

FAREWELL_SECONDS = 3.0
"""How long a process that was told to stop may take to say goodbye."""

WORK = "secagg-work"
"""Name of the threads that compute."""

STOPPED = "stopped by its operator"
"""What a coroutine is cancelled with that may say goodbye."""

T = TypeVar("T")


@contextmanager
def saying_so(told: str) -> Iterator[None]:
    """SIGTERM ends this process with a sentence already here, where no coroutine runs: while it imports, reads, asks.

    Args:
        told: what to say of a stopped process, as of `run_until_stopped`.
    """

    def stop(number: int, frame: object) -> None:
        """A signal outside a loop: say so, and end."""
        _give_up(f"{signal.Signals(number).name} came; {told}\n")

    with _as_before():
        if _hears():
            signal.signal(signal.SIGTERM, stop)
        yield


@contextmanager
def _as_before() -> Iterator[None]:
    """What SIGTERM does behind this is what it did before: an event loop that ends leaves the default."""
    before = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if _hears():
            signal.signal(signal.SIGTERM, before)


def _hears() -> bool:
    """The main thread alone hears signals."""
    return current_thread() is main_thread()


def run_until_stopped(main: Coroutine[Any, Any, T], told: str) -> T:
    """Run a coroutine to its end, or until SIGTERM or SIGINT cancels it; a second signal ends the process at once.

    Args:
        main: what to run; it may say goodbye while it is cancelled, for `FAREWELL_SECONDS`.
        told: what to say of a stopped process, such as how to go on.

    Raises:
        StoppedError: a signal came.
    """
    with _as_before():
        return asyncio.run(_watched(main, told))


async def _watched(main: Coroutine[Any, Any, T], told: str) -> T:
    loop, task, came = asyncio.get_running_loop(), asyncio.create_task(main), list[signal.Signals]()

    def stop(number: signal.Signals) -> None:
        """The first signal takes its leave in time, the second ends at once."""
        if came:
            end_now(ENDED_EARLY)
        came.append(number)
        loop.call_later(FAREWELL_SECONDS + 1, _give_up, f"{number.name} came; {told}\n")
        task.cancel(STOPPED)

    for number in (signal.SIGTERM, signal.SIGINT):
        with suppress(ValueError, RuntimeError):  # only the main thread hears signals
            loop.add_signal_handler(number, stop, number)
    try:
        return await task
    except asyncio.CancelledError:
        if not came:
            task.cancel()
            raise
    except BaseException as error:
        if not came:
            raise
        error.__context__ = None  # what failed while it stopped is no news
    raise StoppedError(f"{came[0].name} came; {told}")


def _give_up(sentence: str) -> NoReturn:
    with suppress(OSError, ValueError):
        sys.stderr.write(sentence)
    end_now(ENDED_EARLY)


def end_now(status: int) -> NoReturn:
    """End this process without waiting for threads that compute: a step of training may take minutes."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status)
