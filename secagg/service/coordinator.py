"""The coordinator of a run: opens rounds, relays the protocol, and never sees a vector, only their sum.

It waits for members (`hearing` has what they tell it), drives one attempt after the other on a `ServerDriver`, and has
everything in its journal before anybody is told. So the same command goes on at any point: it repeats exactly what was
told, members that are in the attempt answer again, and what cannot be continued costs that attempt only. What a sum
means is the application's. One event loop; whatever takes long happens in a thread.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import asdict
from functools import partial
from itertools import zip_longest

from secagg import wire
from secagg.driver import (
    Completed,
    Failed,
    Published,
    Refused,
    Save,
    Send,
    ServerAction,
    Silent,
)
from secagg.errors import AbortedError, ConfigError, ProtocolError
from secagg.messages import RoundStart
from secagg.service import dialogue
from secagg.service.account import Account
from secagg.service.errors import RunFailedError
from secagg.service.events import (
    Began,
    Burned,
    Dropped,
    Listening,
    Note,
    Rejoined,
    Resumed,
    StepOpened,
    Summed,
    Waiting,
)
from secagg.service.parting import Parting
from secagg.service.spans import within
from secagg.service.standing import ACCOUNT, RECEIPT, SLOWEST_BYTES_PER_SECOND, STALLED_SECONDS
from secagg.service.transcripts import Kept
from secagg.steps import ADVERTISE_KEYS, CONSISTENCY_CHECK, MASKED_INPUT_COLLECTION, RESULT, ROUND_START

FAILURES = 5
"""Attempts that end without a sum, one after the other, after which a coordinator gives up."""

TOLD_SECONDS = 10.0
"""How often it is said who is waited for, at most; somebody who is late by less is not named."""


class Coordinator(Parting):
    """One run; see `Hearing` for what it is made of, and `Parting` for how it ends."""

    async def run(self) -> str:
        """Serve until the run is complete, or as long as enough members are there.

        Returns:
            Why the run is over, where it is complete or nothing more can come of it; `complete` says which.

        Raises:
            RunFailedError: members did not come, or attempts failed again and again. The same command goes on.
            ConfigError: the port, the journal or what it is started with are wrong; nothing was sent.
            ProtocolError: S-20, more than max_corrupt members are corrupt.
        """
        try:
            return await self._serve()
        finally:
            self.journal.close()

    async def _serve(self) -> str:
        port = await self.mailbox.start(self.options.host, self.options.port)
        try:
            self.emit(Listening(self.options.host, port))
            again = bool(self.ended)
            if not again:
                await self.application.prepare()
                await self._resume()
                reason, complete = await self._rounds()
                await self._finish(reason, complete)
            else:
                self.emit(Note(f"this run is finished: {self.ended}"))
            stopped = await self._farewell(self._offered(again))
        except (RunFailedError, ProtocolError) as error:
            await self._give_up(error)
            raise
        except BaseException:
            await self.mailbox.stop(0.5)
            raise
        await self.mailbox.stop(*([0.5] if stopped else []))
        return self.ended

    # --- Rounds -------------------------------------------------------------------------------------------------------

    async def _resume(self) -> None:
        """Go on where an earlier process was."""
        if self.saved is None:
            return
        saved = self.saved
        try:
            actions = await self._call(lambda: self.driver.resume(saved, time.monotonic()))
        except ConfigError as error:
            if self.driver.session is not None or not saved.sealed:
                raise
            said = f"the step that was open cannot be gone on with: {error}"
            self.emit(Note(said))
            self.book.failed(AbortedError(ROUND_START, said), burned=True)
            actions = [Save(self.book.saved())]
        session = self.driver.session
        if session is None:
            self.transcripts.tidy()
        context = session.context if session is not None else None
        number, attempt = (context.round_number, context.attempt) if context else (self.book.number, self.book.attempt)
        self.emit(Resumed(number, attempt, session.step if session is not None and not session.finished else ""))
        if (untold := self.journal.get_json("untold", None)) is not None:
            self.emit(Summed(**{**untold, **{key: tuple(untold[key]) for key in ("included", "dropped")}}))
        if session is not None and not session.finished:
            self.counting(number, attempt)
        await self._do(actions)

    async def _rounds(self) -> tuple[str, bool]:
        while self.driver.running or self.driver.unpublished or self.application.wants_more(self.book):
            if not self.driver.running and not self.driver.unpublished:
                sites = await self._gather()
                if len(sites) < self.policy.min_survivors:
                    said = (
                        f"{len(sites)} of {self.policy.clients} sites are there after {self.options.patience:g} s and "
                        f"a sum needs {self.policy.min_survivors}"
                    )
                    if len(set(self.sites) - self.presence.left) >= self.policy.min_survivors or not self.book.receipts:
                        raise RunFailedError(f"{said}; start the missing sites, or raise --patience")
                    return "too few sites have budget left for another round", False
                await self._begin(sites)
            await self._attempt()
            if self.failures >= FAILURES:
                raise RunFailedError(f"{self.failures} attempts in a row ended without a sum, the last one: {self.why}")
        return "the study is complete", True

    async def _begin(self, sites: list[str]) -> None:
        about = await self._call(lambda: self.application.about(self.book))
        self.counting(self.book.number, self.book.attempt)
        self.transcripts.begin()
        for site in self.presence.rejoining(sites):
            self.emit(Rejoined(self.book.number, site))
        self.emit(Began(self.book.number, self.book.attempt, about.hex(), tuple(sites)))
        self._account_for_the_last(sites)
        await self._driven(lambda: self.driver.begin(about, sites, time.monotonic()))

    def _account_for_the_last(self, sites: list[str]) -> None:
        """Tell who was in the last round of each, where it did not see that to its end, such as one that was killed."""
        for site in sites:
            number, _ = self.joined.get(site, (0, 0))
            if not within(self.saw.get(site, ()), number) and (account := self.account(number)) is not None:
                self.mailbox.send(site, Account.kind, account)

    async def _attempt(self) -> None:
        """Hear the members until the attempt is over and its transcript is there."""
        telling = _Telling()
        while self.driver.running or self.driver.unpublished:
            awaited = set(self.driver.awaited)
            deadline, now = self.driver.deadline, time.monotonic()
            left = None if deadline is None else deadline - now
            if left is not None and left <= 0:
                if not self._postponed(awaited, now):
                    await self._driven(lambda: self.driver.tick(time.monotonic()))
                continue
            if telling.due(awaited):
                step = self.driver.session.step if self.driver.session is not None else ""
                self.emit(Waiting(tuple(sorted(awaited)), left, step))
            await self._hear(min(0.25, left) if left is not None else 0.25)
            for site in sorted(self.presence.away(self.options.grace) & awaited):
                await self._driven(partial(self.driver.gone, site, time.monotonic()))

    def _postponed(self, awaited: Iterable[str], now: float) -> bool:
        """Whether a step goes on beyond its deadline: somebody who is waited for is sending, and gets on with it."""
        longest = max(filter(None, map(self.seconds_left, awaited)), default=None)
        if longest is None:
            return False
        step = (self.facts.round, self.facts.attempt, self.driver.session.step if self.driver.session else "")
        if self._longer[0] != step:
            self._longer = step, now + self.limit / SLOWEST_BYTES_PER_SECOND
        end = self._longer[1]
        if now >= end:
            return False
        self.driver.wait_until(min(now + min(longest, STALLED_SECONDS), end))
        return True

    # --- What the driver says -----------------------------------------------------------------------------------------

    async def _do(self, actions: list[ServerAction]) -> None:
        """Do it, in order; what is durable together is written together."""
        for action, following in zip_longest(actions, actions[1:]):
            match action:
                case Save():
                    if isinstance(following, Completed):
                        await self._completed(action, following)
                    else:
                        await self._durably({**self._kept(action), **self.facts.kept(), **self._known_of_members()})
                        self._step_opened(action)
                case Send():
                    self._relay(action)
                case Silent():
                    self._silent(action)
                case Refused(grave=True):
                    said = f"round {self.facts.round}: a message of {action.sender} was refused: {action.reason}"
                    self.note_of(action.sender, said)
                case Published():
                    await self._publish(action.transcript)
                case Failed():
                    await self._failed(action)

    def _kept(self, save: Save) -> dict[str, bytes | None]:
        told = dict(self.driver.session.told) if self.driver.session is not None else {}
        step = self.driver.session.step if save.sealed and self.driver.session is not None else ""
        receipts, written = save.book["receipts"], self.receipts_written
        self.receipts_written = len(receipts)
        fresh = enumerate(receipts[written:], written + 1)
        changes: dict[str, bytes | None] = {
            "book": json.dumps({**save.book, "receipts": []}).encode(),  # they are rows of their own, each written once
            **{f"{RECEIPT}{place:06d}": bytes.fromhex(receipt) for place, receipt in fresh},
            "sealed": save.sealed,
            "recorded": str(save.recorded).encode(),
            "transcripts": self.transcripts.begun.encode(),
        }
        if step in (MASKED_INPUT_COLLECTION, CONSISTENCY_CHECK):
            changes["reports" if step == MASKED_INPUT_COLLECTION else "included"] = wire.encode(
                next(iter(told.values()))
            )
        return changes

    async def _completed(self, save: Save, done: Completed) -> None:
        """The sum, what the application makes of it, and who still has to hear of it, in one transaction."""
        receipt, session = done.receipt, self.driver.session
        account = Account.of(self.journal.get("reports") or b"", self.journal.get("included") or b"")
        summed = self.facts.summed(done)
        await self._call(lambda: self.application.completed(done, summed))
        result = wire.encode(next(iter(session.told.values()))) if session is not None else b""
        self.owed, self.failures = set(done.included), 0
        self._repeated.clear()
        changes = {
            **self._kept(save),
            **self.facts.kept(),
            **self._known_of_members(),
            "application": await self._call(self.application.state),
            f"{ACCOUNT}{receipt.round_number:06d}": account.packed(),
            "result": result,
            "untold": json.dumps(asdict(summed)).encode(),
        }
        await self._durably(changes)
        await self._until_written(lambda: self.application.counted(summed), "the record of this round")
        self.emit(summed)

    def _step_opened(self, save: Save) -> None:
        session, deadline = self.driver.session, self.driver.deadline
        if save.sealed and session is not None and deadline is not None:
            asked = tuple(sorted(self.driver.awaited))
            self.emit(
                StepOpened(self.facts.round, self.facts.attempt, session.step, asked, deadline - time.monotonic())
            )

    def _relay(self, send: Send) -> None:
        """Send on; a round start goes with what the application sends along."""
        session = self.driver.session
        if session is not None and session.step == ADVERTISE_KEYS and not session.finished:
            message = self._decoded(send.data)
            if isinstance(message, RoundStart):
                self._send([send.to], self._with_content(message))
                return
        self._send([send.to], dialogue.Protocolled(send.data))

    def _silent(self, silent: Silent) -> None:
        """Who owed a message of a step dropped; who owes a confirmation only has given all that a sum needs."""
        if silent.step == RESULT:
            return
        for site in silent.clients:
            if site not in self.presence.dropped:
                self.emit(Dropped(self.facts.round, site, self.facts.last.get(site, "")))
                self.presence.dropped.add(site)

    async def _failed(self, failed: Failed) -> None:
        self.failures, self.why = self.failures + 1, failed.reason
        number, attempt = self.facts.round, self.facts.attempt
        convicted, self.convicted = self.book.convicted - self.convicted, self.book.convicted
        said = [f"{site} is left out of every later round: {failed.reason}" for site in sorted(convicted)]
        self.emit(Burned(number, attempt, failed.reason))
        for text in [*said, *failed.told]:
            self.emit(Note(text))
        if isinstance(failed.error, ProtocolError) and failed.error.check == "S-20":
            raise failed.error

    async def _publish(self, kept: Kept) -> None:
        """Write the transcript, and send it to everybody who replays it before the next round (C-05)."""
        gone = await self._until_written(lambda: self.transcripts.write(kept), "the transcript of this round")
        if gone:
            self.emit(Note(f"transcripts keep to their quota: {', '.join(gone)} went"))
        if kept.receipt is not None and self.application.replayed:
            self._send_transcript(kept.receipt.round_id.hex(), self.presence.known)

    # --- Members come and go ------------------------------------------------------------------------------------------

    async def _gather(self) -> list[str]:
        """Wait until every member that can take part is there, or patience ends.

        A member that is missing is waited for once: not again before it was back (row 15 of the trials). Patience does
        not end for members that wait for a transcript or their operators, and without which there is no sum.
        """
        began, later, need = time.monotonic(), bool(self.book.receipts), self.policy.min_survivors
        telling = _Telling()
        while missing := self._wanted() - self.presence.ready:
            enough = len(self._wanted() - missing) >= need
            if enough:
                missing -= self.presence.missed | self.presence.busy.keys()
                if not missing:
                    break
            elif len(self._wanted() & (self.presence.there() | self.presence.busy.keys())) >= need:
                began = time.monotonic()
            patience = self.options.rejoin_seconds if enough and later else self.options.patience
            left = began + patience - time.monotonic()
            if left <= 0:
                self.presence.missed |= missing
                break
            if telling.due(missing, soon=True):
                self.emit(Waiting(tuple(sorted(missing)), left))
                self._send(self.presence.ready, dialogue.Awaiting(sites=sorted(missing), seconds=left))
            await self._hear(min(left, 0.5))
        await self._room_on_the_disk()
        return sorted(self.presence.ready & self._wanted())

    def _wanted(self) -> set[str]:
        return set(self.sites) - self.presence.left - self.book.leave_out - self.presence.refused.keys()

    # --- The disk -----------------------------------------------------------------------------------------------------

    async def _room_on_the_disk(self) -> None:
        said = False
        while (free := self.free_bytes()) < self.options.reserve_bytes:
            if not said:
                self.emit(
                    Note(
                        f"{free / 1e6:.0f} MB are free in {self.journal.path.parent} and a round needs up to "
                        f"{self.options.reserve_bytes / 1e6:.0f} MB; this coordinator waits, and goes on by itself"
                    )
                )
                said = True
            await self._hear(0.5)


class _Telling:
    """When to say who is waited for: not at once, not too often, and not the same again."""

    def __init__(self) -> None:
        self._since, self._named = time.monotonic(), set[str]()

    def due(self, names: set[str], *, soon: bool = False) -> bool:
        """Whether these are to be named now; `soon`: the first time, after a second."""
        pause = 1.0 if soon and not self._named else TOLD_SECONDS
        if not names or names == self._named or time.monotonic() - self._since < pause:
            return False
        self._since, self._named = time.monotonic(), set(names)
        return True
