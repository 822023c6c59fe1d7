"""The coordinator's process: one run of one study, from the first site that connects to the report."""

import asyncio
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg import dialogue
from fedseg.account import Account
from fedseg.attempt import Exchange, Facts
from fedseg.averaging import fed_avg
from fedseg.coordinator.figures import Figures
from fedseg.coordinator.presence import Presence
from fedseg.coordinator.transcripts import Transcripts
from fedseg.credentials import coordinator_tls, load_federation, signing_key
from fedseg.errors import RoundFailedError
from fedseg.events import Burned, Left, Listening, Note, Rejoined, RoundEnded, RoundStarted, Trained, Waiting
from fedseg.models import build_model
from fedseg.runfolder import POLICY, RunFolder
from fedseg.start import starting_model
from fedseg.summary import study_event
from fedseg.update import assign, flatten, model_hash
from secagg import AbortedError, MalformedMessageError, ProtocolError, RoundBook, ServerSession, dequantize
from secagg.files import policy_text
from secagg.rpc import frames
from secagg.rpc.frames import Received, message_limit
from secagg.rpc.server import MailboxServer
from secagg.rpc.tls import COORDINATOR
from secagg.steps import MASKED_INPUT_COLLECTION

FAILURES = 5
"""Rounds that end without a sum, one after the other, after which a coordinator gives up."""

TOLD_SECONDS = 10.0
"""How often it is said who is waited for, at most; somebody who is late by less is not named."""


@dataclass(frozen=True, kw_only=True)
class Options:
    """How a coordinator runs; none of it changes what the study means.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        credentials: folder of `fedseg.credentials`.
        patience: seconds to wait for sites at the start, and later where too few are there for a sum.
        rejoin_seconds: seconds that a later round waits for a site that is missing.
        step_seconds: deadline of a protocol step, training excepted.
        training_seconds: deadline of the step that waits for training.
        grace: seconds after a site's connection broke until a step closes without it.
        transcripts: keep each round's public transcript with the masked inputs "whole", as "hashes", or not ("none").
        command: how it was started, for the record.
    """

    credentials: Path
    host: str = "127.0.0.1"
    port: int = 0
    patience: float = 60.0
    rejoin_seconds: float = 15.0
    step_seconds: float = 60.0
    training_seconds: float = 3600.0
    grace: float = 3.0
    transcripts: str = "whole"
    command: str = ""


class Coordinator:
    """One run of one study.

    Raises:
        ConfigError: credentials, port or study are wrong; nothing was sent.
    """

    def __init__(self, folder: RunFolder, options: Options) -> None:
        self.folder, self.study, self.options = folder, folder.study, options
        self.federation = load_federation(options.credentials, self.study)
        key = signing_key(options.credentials, COORDINATOR)
        torch.set_num_threads(self.study.run.threads)
        self.model = build_model(self.study)
        self.vector: NDArray[np.float32] = flatten(self.model)
        self.policy = self.study.policy(len(self.vector), key.verify_key)
        self.book = RoundBook(self.federation.training_run, self.study.hash(), key, self.policy.max_corrupt)
        self.transcripts = Transcripts(
            folder.path,
            options.transcripts,
            replayed=not self.study.trust.each_update_private,
            policy=self.policy,
            pinned=self.federation.pinned,
            key=key,
        )
        self.mailbox = MailboxServer(
            self.study.site_ids,
            coordinator_tls(options.credentials),
            max_message_bytes=message_limit(self.policy) + 4 * len(self.vector),
            gone_after=min(1.0, options.grace),
        )
        self.presence = Presence(self.study.site_ids)
        self.figures = Figures(folder)
        self.accounts: dict[int, Account] = {}
        self.seen: dict[str, set[int]] = {}  # rounds whose result a site's process has confirmed
        self.attempt: Exchange | None = None
        self.over: set[str] = set()  # of whom nothing more is waited for in the attempt that runs

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
        self.folder.emit(study_event(self.study, len(self.vector), secure=True))
        (self.folder.path / POLICY).write_text(policy_text(self.policy), encoding="utf-8")
        async with self.mailbox:
            if self.study.model.start == "phantom":
                self.folder.emit(Note(text="the public start is read, or trained now if fedseg ships none"))
            self.model = await asyncio.to_thread(starting_model, self.study)  # sites load their images meanwhile
            self.vector = flatten(self.model)
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
        self._send(self.study.site_ids, dialogue.Closing(self.book.start(model_hash(self.vector)), self.vector))
        for number, account in self.accounts.items():
            lacking = [site for site in self.study.site_ids if number not in self.seen.get(site, ())]
            self._send(lacking, account)
        self._send(self.study.site_ids, dialogue.Finished.because(reason))

    def _finish(self, reason: str) -> Path:
        self.folder.tally.burned = self.book.number - 1 - self.folder.tally.completed
        return self.figures.finish(self.model, len(self.vector), self.options.command, reason)

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

    def _send(self, sites: Iterable[str], message: dialogue.FromCoordinator) -> None:
        payload = message.packed()
        for site in sorted(sites):
            self.mailbox.send(site, message.kind, payload)

    async def _hear(self, seconds: float) -> None:
        received = await self.mailbox.receive(max(seconds, 0.0))
        if received is not None:
            try:
                self._take(received)
            except RoundFailedError as error:
                self.folder.emit(Note(text=str(error)))

    def _take(self, received: Received) -> None:
        site = received.sender
        match received.kind:
            case frames.HELLO:  # a new process
                self.presence.began(site)
                self.seen.pop(site, None)
                self.over.add(site)
            case frames.GONE:
                self.presence.gone(site)
            case frames.BACK:
                self.presence.back(site)
            case kind:
                self._answer(site, dialogue.from_site(kind, received.payload, site))

    def _answer(self, site: str, message: dialogue.FromSite | None) -> None:
        match message:
            case dialogue.Ready():
                self.over.add(site)
                self._take_ready(site, message)
            case dialogue.Progress():
                self._take_progress(site, message)
            case dialogue.Metrics() if self.study.report.share_metrics:
                self.figures.take(site, message)
            case dialogue.Leaving():
                self.presence.left.add(site)
                self.folder.emit(Left(site=site, reason=message.reason))
            case dialogue.Failed():
                self.presence.failed(site)
                self.over.add(site)
                if site not in self.presence.refused:  # of whom it was said why
                    self.folder.emit(Note(text=f"{site} stopped: {message.reason}"))
            case dialogue.Protocol() if self.attempt is not None:
                self._take_protocol(self.attempt, site, message)

    def _take_ready(self, site: str, message: dialogue.Ready) -> None:
        """A site is in no round; it joins the next one if it has this study and waits for nothing."""
        if message.study != self.study.hash().hex():
            if self.presence.refuse(site):
                theirs, ours = message.study[:8], self.study.hash().hex()[:8]
                both = f"{site} was started with another study file ({theirs}) than the coordinator ({ours})"
                reason = f"{both}: compare the two files, and start with the same one"
                self.folder.emit(Note(text=reason))
                self._send([site], dialogue.Refused.because(reason))
            return
        news = self.presence.free(site, message.unreplayed)
        here = [round_id for round_id in message.unreplayed if self._send_transcript(round_id, [site])]
        if news:
            whole = len(here) == len(message.unreplayed)
            there = "which it gets" if whole else "which is not here: its operator decides"
            named = ", ".join(message.unreplayed)
            self.folder.emit(Note(text=f"{site} waits for the transcript of round {named}, {there}"))

    def _take_progress(self, site: str, progress: dialogue.Progress) -> None:
        self.figures.epsilon[site] = progress.epsilon
        steps = self.study.study.local_steps
        running = self.attempt is not None and progress.round == self.attempt.facts.number
        if running and progress.step <= progress.steps == steps:  # else late, or not true
            self.folder.emit(Trained(round=progress.round, site=site, step=progress.step, steps=steps))

    def _take_protocol(self, attempt: Exchange, site: str, message: dialogue.Protocol) -> None:
        """Give a site's message to the session; one that is refused leaves no trace but a note."""
        try:
            attempt.take(site, message.data)
        except ProtocolError as error:
            if error.culprits or isinstance(error, MalformedMessageError):
                number = attempt.facts.number
                self.folder.emit(Note(text=f"round {number}: a message of {site} was refused: {error}"))

    def _send_transcript(self, round_id: str, sites: Iterable[str]) -> bool:
        """To sites that without differential privacy go on only once they replayed this very round; once a connection.

        Returns:
            Whether there is such a transcript.
        """
        found = self.transcripts.find(round_id)
        if found is None:
            return False
        fresh = [site for site in sites if round_id not in self.presence.shown.setdefault(site, set())]
        if fresh:
            self._send(fresh, dialogue.Transcript(found.read_bytes()))
        for site in fresh:
            self.presence.shown[site].add(round_id)
        return True

    # --- One round ---------------------------------------------------------------------------------------------------

    async def _round(self, sites: list[str]) -> None:
        book, started = self.book, model_hash(self.vector)
        context = book.context(started)
        recorder = self.transcripts.recorder(context)
        server = ServerSession(self.policy, self.federation.pinned, context, book.signing_key, book.leave_out, recorder)
        self.folder.emit(RoundStarted(round=book.number, attempt=book.attempt, model_hash=started.hex()))
        for site in self.presence.rejoining(sites):
            self.folder.emit(Rejoined(round=book.number, site=site))
        self._send(sites, dialogue.Opened(book.start(started), self.vector))
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
        training = attempt.server.step == MASKED_INPUT_COLLECTION
        await self._until_silent(attempt, self.options.training_seconds if training else self.options.step_seconds)
        for site, data in attempt.close().items():
            self._send([site], dialogue.Protocol(data))

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
        self.vector = fed_avg(self.vector, total, ended.included, self.policy)
        assign(self.model, self.vector)
        self._record(total, ended)

    def _record(self, total: NDArray[np.float64], ended: RoundEnded) -> None:
        self.figures.record(ended.round)
        self.folder.end_round(self.model, self.book, ended)

    async def _last_metrics(self) -> None:
        """Where sites share metrics, open the final model to them and wait for their figures."""
        if not self.study.report.share_metrics:
            return
        awaited = set(self.presence.ready)
        self._send(awaited, dialogue.ToEvaluate(self.book.start(model_hash(self.vector)), self.vector))
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
