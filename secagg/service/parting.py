"""How a coordinator ends its run: everybody gets its end, now or from the same command later, as it takes it."""

import asyncio
import json
import math
import time
from functools import lru_cache
from typing import Any

from secagg.service.account import Account
from secagg.service.events import Ended, Note
from secagg.service.hearing import Hearing
from secagg.service.running import FAREWELL_SECONDS
from secagg.service.spans import within
from secagg.service.standing import SLOWEST_BYTES_PER_SECOND
from secagg.service.stopping import STOPPED

ACCOUNTS_AT_ONCE = 32
"""That a member is sent before it is looked whether it takes them; those of 100 members have 2 MB together."""

WAITING_BYTES = 1 << 20
"""Of messages that a member did not take yet: with more it is sent no account."""


class Parting(Hearing):
    """The end of a run; see `Standing` for what it is made of."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self._row = lru_cache(2 * ACCOUNTS_AT_ONCE)(self.account)  # members lack the same ones, mostly at once

    async def _give_up(self, error: Exception) -> None:
        """Tell whoever is there that nothing more comes from this process."""
        self.last_word = self._word(f"the coordinator gave up: {error}", False, final=False)
        self._dismiss(self.mailbox.connected() & self.presence.heard())
        began = time.monotonic()
        try:
            while self._taking() and time.monotonic() - began < FAREWELL_SECONDS:
                if not await self._part():
                    await asyncio.sleep(0.02)
        except BaseException:  # such as a signal; a server that was not stopped may hang the interpreter
            await self.mailbox.stop(0.5)
            raise
        await self.mailbox.stop()  # once everybody who is there has it

    async def _finish(self, reason: str, complete: bool) -> None:
        self.ended, self.complete = reason, complete
        self.last_word = self._word(reason, complete, final=True)
        await self._durably({"finished": json.dumps({"reason": reason, "complete": complete}).encode()})
        self.emit(Ended(reason, complete))

    @property
    def _lacking(self) -> set[str]:
        """Who did not say yet that it has the end of the run."""
        return set(self.sites) - self.done - self.presence.left

    def _offered(self, again: bool) -> float:
        """Seconds for which the end is offered to members that nothing reaches; `again`: it was before."""
        if self.options.farewell_seconds is not None:
            return self.options.farewell_seconds
        return math.inf if again else FAREWELL_SECONDS

    async def _farewell(self, seconds: float) -> bool:
        """Give everybody the end of the run; who does not come for it gets it from the same command, later.

        Returns:
            Whether the operator stopped it, which is no failure: the run is over.
        """
        if (lacking := self._lacking) and math.isinf(seconds):
            said = "it is offered until everybody has it, or this command is stopped"
            self.emit(Note(f"{', '.join(sorted(lacking))} did not fetch the end of the run: {said}"))
        stopped = False
        try:
            await self._dismissed(seconds)
        except asyncio.CancelledError as error:
            task = asyncio.current_task()
            if STOPPED not in error.args or task is None:
                raise
            task.uncancel()
            stopped = True
        if lacking := self._lacking:
            self.emit(
                Note(f"{', '.join(sorted(lacking))} did not fetch the end of the run: the same command gives it later")
            )
        return stopped

    async def _dismissed(self, seconds: float) -> None:
        """Wait until everybody has the end of the run, or nobody comes for it and nobody takes any of it."""
        began, before = time.monotonic(), 0
        longest = began + seconds + self.limit / SLOWEST_BYTES_PER_SECOND
        while time.monotonic() < longest:
            self._dismiss(self.mailbox.connected() & self.presence.heard())  # also who was cut off as the run ended
            lacking = self._lacking | self._taking().keys()  # who left is told, and not waited for
            if not lacking:
                break
            there = lacking & self.mailbox.connected()
            taken = sum(self.mailbox.traffic(site).down for site in there)
            if taken != before:
                began, before = time.monotonic(), taken
            if time.monotonic() - began > (seconds if there else seconds / 2):
                break
            await self._hear(0.0 if await self._part() else 0.25)

    async def _part(self) -> bool:
        """Give those who are told the end more of the accounts that they lack, or the last word; whether any took it.

        Nobody is sent more than it takes: an account of 100 members has 70 KB, and a run a thousand of them.
        """
        taking = {site: place for site, place in self._taking().items() if self._takes(site)}
        for site, place in taking.items():
            await self._part_from(site, place)
        return bool(taking)

    def _taking(self) -> dict[str, int]:
        """Who is there and did not get the last word yet, and its next receipt."""
        there = self.mailbox.connected()
        return {site: place for site, place in self.parting.items() if site in there and place is not None}

    def _takes(self, site: str) -> bool:
        return self.mailbox.link(site).held < WAITING_BYTES

    async def _part_from(self, site: str, place: int) -> None:
        saw, receipts = self.saw.get(site, ()), self.book.receipts
        numbers: list[int] = []
        while place < len(receipts) and len(numbers) < ACCOUNTS_AT_ONCE:
            if not within(saw, number := receipts[place].round_number):
                numbers.append(number)
            place += 1
        for account in await self._call(lambda: [self._row(number) for number in numbers]):
            if account is not None:
                self.mailbox.send(site, Account.kind, account)
        self.parting[site] = place
        if place == len(receipts):
            self.parting[site] = None
            self._send([site], self.last_word)
