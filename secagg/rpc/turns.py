"""Uploads take turns, so that the memory of all sites together stays small however many send at once.

A large upload begins when it fits beside those that began in the last `SECONDS` and what the owner has not read yet.
One that takes longer than that does not count any more: a site that is slow, or stalls, holds its own budget and keeps
nobody waiting for longer. Who waits is served in the order of coming; a site has one upload at a time, so that a site
that floods waits in line like the others.
"""

import asyncio
from collections.abc import Callable
from time import monotonic

SECONDS = 5.0
_LOOK_SECONDS = 0.1


class Turns:
    """The line of large uploads.

    Args:
        budget: bytes of uploads under way and of unread messages together.
        unread: how many bytes the owner has not read.
    """

    def __init__(self, budget: int, unread: Callable[[], int]) -> None:
        self._budget, self._unread = budget, unread
        self._line = asyncio.Lock()  # first come, first served
        self._under_way: dict[object, tuple[int, float]] = {}

    async def wait(self, who: object, size: int) -> None:
        """Return when it is this upload's turn; `done` ends it."""
        async with self._line:
            while not self._fits(size):
                await asyncio.sleep(_LOOK_SECONDS)
            self._under_way[who] = size, monotonic()

    def done(self, who: object) -> None:
        """The upload has ended, or never began."""
        self._under_way.pop(who, None)

    def _fits(self, size: int) -> bool:
        recently = monotonic() - SECONDS
        young = [other for other, since in self._under_way.values() if since > recently]
        return (not young and not self._unread()) or sum(young) + self._unread() + size <= self._budget
