"""The coordinator's process: one run of one study, from the first site that connects to the report."""

import asyncio
import time
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from fedseg.attempt import Exchange, Facts
from fedseg.coordinator.hearing import Hearing
from fedseg.coordinator.options import Options
from fedseg.dialogue import ToEvaluate, content_of
from fedseg.errors import RoundFailedError
from fedseg.events import Burned, Listening, Note, Rejoined, RoundEnded, RoundStarted, StepOpened, Waiting
from fedseg.runfolder import POLICY, RunFolder
from fedseg.start import starting_model
from fedseg.summary import study_event
from fedseg.update import adopt, model_hash, opened
from secagg import AbortedError, ProtocolError, ServerSession, dequantize
from secagg.files import policy_text
from secagg.rpc.tls import COORDINATOR
from secagg.service import dialogue
from secagg.steps import MASKED_INPUT_COLLECTION
from secagg.writing import write_whole

FAILURES = 5
"""Rounds that end without a sum, one after the other, after which a coordinator gives up."""

TOLD_SECONDS = 10.0
"""How often it is said who is waited for, at most; somebody who is late by less is not named."""


class Coordinator(Hearing):
    """One run of one study.

    Raises:
        ConfigError: credentials, port or study are wrong; nothing was sent.
    """

    async def run(self) -> Path:
        """Serve until the study is complete or too few sites are left.

        Returns:
            The complete run folder; its metrics say where the study is not complete.

        Raises:
            RoundFailedError: the sites did not come, or rounds failed again and again. The run folder is complete all
                the same where a round was.
            ProtocolError: S-20, more than max_corrupt sites are corrupt.
        """
        port = await self.mailbox.start(self.options.host, self.options.port)
        self.folder.emit(Listening(host=self.options.host, port=port))
        self.folder.emit(study_event(self.study, self.parameters, secure=True, party=COORDINATOR))
        write_whole(self.folder.path / POLICY, policy_text(self.policy))
        async with self.mailbox:
            if self.study.model.start == "phantom":
                self.folder.emit(Note(text="the public start is read, or trained now if fedseg ships none"))
            self.model = await asyncio.to_thread(starting_model, self.study)  # sites load their images meanwhile
            self.state = opened(self.model, self.study.kept(self.parameters))
            try:
                reason = await self._rounds()
                await self._last_metrics()
            except (RoundFailedError, ProtocolError) as error:  # S-20 ends a run too
                reason = f"the coordinator gave up: {error}"
                self._dismiss(reason)
                await self.mailbox.stop()
                if self.folder.tally.completed:
                    self._finish(reason)
                raise
            self._dismiss(reason)
        return self._finish(reason)

    def _dismiss(self, reason: str) -> None:
        """Give every site the last model, all receipts and the accounts that it lacks, and say why this is the end."""
        self._send(
            self.study.site_ids, dialogue.Closing(self.book.start(model_hash(self.state)), content_of(self.state))
        )
        for number, account in self.accounts.items():
            lacking = [site for site in self.study.site_ids if number not in self.seen.get(site, ())]
            self._send(lacking, account)
        complete = self.folder.tally.completed >= self.study.study.rounds
        last = dialogue.Finished(reason=reason[: dialogue.SENTENCE], complete=complete)
        self._send(self.study.site_ids, last)

    def _finish(self, reason: str) -> Path:
        self.folder.tally.burned = self.book.number - 1 - self.folder.tally.completed
        return self.figures.finish(self.model, self.parameters, self.options.command, reason)

    async def _rounds(self) -> str:
        tally, failures = self.folder.tally, 0
        while tally.completed < self.study.study.rounds:
            sites = await self._gather()
            if len(sites) < self.policy.min_survivors:
                if not tally.completed or not self.presence.left:
                    raise RoundFailedError(
                        f"{len(sites)} of {self.policy.clients} sites are there after {self.options.patience:g} s and "
                        f"a sum needs {self.policy.min_survivors}; start the missing sites, or raise --patience"
                    )
                return "too few sites have budget left for another round"
            number, attempt, convicted = self.book.number, self.book.attempt, self.book.convicted
            try:
                await self._round(sites)
                failures = 0
            except RoundFailedError as error:
                failures += 1
                self.folder.emit(Burned(round=number, attempt=attempt, reason=str(error)))
                for site in sorted(self.book.convicted - convicted):
                    self.folder.emit(Note(text=f"{site} is left out of every later round: {error}"))
                if failures == FAILURES:
                    raise
        return "the study is complete"

    # --- Sites come and go -------------------------------------------------------------------------------------------

    async def _gather(self) -> list[str]:
        """Wait until every site that has budget left is there, or patience ends.

        Patience does not end for sites that wait for a transcript or their operators and without which there is no sum.
        """
        began, later, need = time.monotonic(), bool(self.folder.tally.completed), self.policy.min_survivors
        telling = _Telling()
        while missing := self._wanted() - self.presence.ready:
            enough = len(self._wanted() - missing) >= need
            if not enough and len(self._wanted() & self.presence.there()) >= need:
                began = time.monotonic()
            patience = self.options.rejoin_seconds if enough and later else self.options.patience
            left = began + patience - time.monotonic()
            if left <= 0:
                break
            if telling.due(missing, soon=True):
                self.folder.emit(Waiting(sites=tuple(sorted(missing)), seconds=left))
                self._send(self.presence.ready, dialogue.Awaiting(sites=sorted(missing), seconds=left))
            await self._hear(min(left, 1.0))
        return sorted(self.presence.ready & self._wanted())

    def _wanted(self) -> set[str]:
        return set(self.study.site_ids) - self.presence.left - self.book.leave_out

    # --- One round ---------------------------------------------------------------------------------------------------

    async def _round(self, sites: list[str]) -> None:
        book, started = self.book, model_hash(self.state)
        context = book.context(started)
        recorder = self.transcripts.recorder(context)
        server = ServerSession(self.policy, self.federation.pinned, context, book.signing_key, book.leave_out, recorder)
        self.folder.emit(RoundStarted(round=book.number, attempt=book.attempt, model_hash=started.hex()))
        for site in self.presence.rejoining(sites):
            self.folder.emit(Rejoined(round=book.number, site=site))
        self._send(sites, dialogue.Opened(book.start(started), content_of(self.state)))
        attempt = Exchange(server, Facts(book.number, book.attempt, self.folder.emit), sites)
        self.attempt, self.over = attempt, set()
        try:
            while not server.finished:
                await self._step(attempt)
            await self._until_silent(attempt, self.options.step_seconds)  # for confirmations: the sum is there
        except (ProtocolError, AbortedError) as error:
            for text in book.failed(error, server.burned):
                self.folder.emit(Note(text=text))
            raise RoundFailedError(str(error)) from error
        finally:
            self.attempt = None
            self.presence.dropped |= attempt.quiet
            if recorder is not None and (failed := self.transcripts.publish(recorder, server.receipt)):
                self.folder.emit(Note(text=failed))
        self._completed(attempt)
        if not self.study.trust.each_update_private:
            self._send_transcript(attempt.receipt.round_id.hex(), sites)

    async def _step(self, attempt: Exchange) -> None:
        """Hear the sites until all have spoken, are gone for good, or the deadline passes; then close."""
        step, asked = attempt.server.step, sorted(set(attempt.server.missing) & attempt.asked)
        training = step == MASKED_INPUT_COLLECTION
        seconds = self.options.training_seconds if training else self.options.step_seconds
        opened = StepOpened(round=attempt.facts.number, step=step, sites=tuple(asked), seconds=seconds)
        self.folder.emit(opened)
        await self._until_silent(attempt, seconds)
        for site, data in attempt.close().items():
            self._send([site], dialogue.Protocolled(data))

    async def _until_silent(self, attempt: Exchange, seconds: float) -> None:
        deadline, telling = time.monotonic() + seconds, _Telling()
        while (awaited := self._awaited(attempt)) and (left := deadline - time.monotonic()) > 0:
            if telling.due(awaited):
                step = attempt.server.step
                self.folder.emit(Waiting(sites=tuple(sorted(awaited)), seconds=left, step=step))
            await self._hear(min(0.25, left))

    def _awaited(self, attempt: Exchange) -> set[str]:
        """Who may still speak in this step: asked, there or gone for less than the grace, and not restarted."""
        silent = self.presence.left | self.presence.away(self.options.grace) | self.over
        return (set(attempt.server.missing) & attempt.asked) - silent

    def _completed(self, attempt: Exchange) -> None:
        total, ended = dequantize(attempt.total, self.policy), attempt.ended()
        self.book.completed(attempt.receipt)
        self.accounts[ended.round] = attempt.account
        for site in attempt.server.confirmations:
            self.seen.setdefault(site, set()).add(ended.round)
        self.state = self.study.following(self.state, total, ended.included, self.policy)
        adopt(self.model, self.state)
        self._record(total, ended)

    def _record(self, total: NDArray[np.float64], ended: RoundEnded) -> None:
        self.figures.record(ended.round)
        self.folder.end_round(self.model, self.book, ended)

    async def _last_metrics(self) -> None:
        """Where sites share metrics, open the final model to them and wait for their figures."""
        if not self.study.report.share_metrics:
            return
        awaited = set(self.presence.ready)
        self._send(awaited, ToEvaluate(self.book.start(model_hash(self.state)), content_of(self.state)))
        deadline = time.monotonic() + self.options.step_seconds
        while time.monotonic() < deadline and self.figures.missing(awaited & self.presence.ready):
            await self._hear(0.25)


class _Telling:
    """When to say who is waited for: not at once, not too often, and not the same again."""

    def __init__(self) -> None:
        self._since, self._named = time.monotonic(), set[str]()

    def due(self, names: set[str], *, soon: bool = False) -> bool:
        """Whether these are to be named now; `soon`: the first time, after a second."""
        pause = 1.0 if soon and not self._named else TOLD_SECONDS
        if names == self._named or time.monotonic() - self._since < pause:
            return False
        self._since, self._named = time.monotonic(), set(names)
        return True


def coordinate(folder: RunFolder, options: Options) -> Path:
    """Run a coordinator to its end; see `Coordinator`."""
    return asyncio.run(Coordinator(folder, options).run())
