"""What a member computes in threads of its own, which the end of its process does not wait for."""

import asyncio
import contextlib
import threading
from collections.abc import Callable
from typing import Any

from secagg.service.stopping import WORK


class Work:
    """A thread that computes, which the end of its process does not wait for.

    Attributes:
        about: round number and model hash of the update; None for what is beside rounds.
        over: set where nobody wants the outcome any more.
        outcome: what it returned or raised.
    """

    def __init__(self, about: tuple[int, bytes] | None, compute: Callable[[threading.Event], object]) -> None:
        loop = asyncio.get_running_loop()
        self.about, self.over = about, threading.Event()
        self.outcome: asyncio.Future[Any] = loop.create_future()

        def run() -> None:
            """Compute, and hand the outcome to the loop."""
            result: object = None
            error: BaseException | None = None
            try:
                result = compute(self.over)
            except BaseException as raised:
                error = raised
            with contextlib.suppress(RuntimeError):  # the loop is closed: the process ends
                loop.call_soon_threadsafe(self._end, result, error)

        threading.Thread(target=run, name=WORK, daemon=True).start()

    def _end(self, result: object, error: BaseException | None) -> None:
        if self.outcome.done():
            return
        if error is None:
            self.outcome.set_result(result)
        else:
            self.outcome.set_exception(error)
