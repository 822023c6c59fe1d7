"""The coordinator: opens rounds, relays the protocol, averages, and never sees an update, only their sum.

It holds no secret of any site and no image. A site that goes silent costs the round some seconds, not its result:
the round closes without it, and it may join the next one.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg import dialogue
from fedseg.account import Account
from fedseg.aggregate import Outcome
from fedseg.averaging import fed_avg
from fedseg.credentials import coordinator_tls, load_federation, signing_key
from fedseg.dialogue import SENTENCE, Metrics, Progress, Ready, Said, unpacked
from fedseg.errors import ConfigError, RoundFailedError
from fedseg.evaluation import Scores, dice_table, evaluate, mean_interval, overall_mean, ranked, structure_means
from fedseg.events import (
    Burned,
    Dropped,
    Ended,
    EpsilonSpent,
    Left,
    Listening,
    Note,
    Rejoined,
    RoundStarted,
    Scored,
    StepAccepted,
    StepClosed,
    Trained,
)
from fedseg.models import build_model
from fedseg.runfolder import POLICY, RunFolder
from fedseg.start import public_phantom, starting_model
from fedseg.summary import before_training, metrics_of, study_event
from fedseg.update import assign, flatten, model_hash
from secagg import AbortedError, MalformedMessageError, ProtocolError, RoundBook, ServerSession, dequantize, wire
from secagg.context import RoundContext
from secagg.files import policy_text
from secagg.messages import IncludedSet, Receipt, Reports
from secagg.rpc.frames import BACK, GONE, HELLO, Received, message_limit
from secagg.rpc.server import MailboxServer
from secagg.rpc.tls import COORDINATOR
from secagg.steps import MASKED_INPUT_COLLECTION
from secagg.transcript_files import Recorder


@dataclass(frozen=True)
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

    host: str
    port: int
    credentials: Path
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
        if options.transcripts != "whole" and not self.study.trust.each_update_private:
            raise ConfigError("where an update is not private alone, every site replays whole transcripts: keep them")
        self.federation = load_federation(options.credentials, self.study)
        key = signing_key(options.credentials, COORDINATOR)
        torch.set_num_threads(self.study.run.threads)
        self.model = build_model(self.study)
        self.vector: NDArray[np.float32] = flatten(self.model)
        self.policy = self.study.policy(len(self.vector), key.verify_key)
        self.book = RoundBook(self.federation.training_run, self.study.hash(), key, self.policy.max_corrupt)
        limit = message_limit(self.policy) + 4 * len(self.vector)
        tls = coordinator_tls(options.credentials)
        self.mailbox = MailboxServer(
            self.study.site_ids, tls, max_message_bytes=limit, gone_after=min(1.0, options.grace)
        )
        self.ready: set[str] = set()
        self.waiting: dict[str, tuple[str, ...]] = {}  # rounds that a site must replay first, by their identifiers
        self.shown: dict[str, set[str]] = {}  # those whose transcript it was sent since it connected
        self.left: set[str] = set()
        self.lost: dict[str, float] = {}
        self.epsilon: dict[str, float | None] = {}
        self.shared: dict[int, dict[str, NDArray[np.float64]]] = {}
        self.dropped_before: set[str] = set()
        self.accounts: dict[int, Account] = {}
        self.seen: dict[str, set[int]] = {}  # rounds whose result a site's process has confirmed
        self.attempt: _Attempt | None = None

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
                self.folder.emit(Note(text="the start is trained on a public phantom, or taken from the cache"))
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
        closing = dialogue.pack_round(self.book.start(model_hash(self.vector)), self.vector)
        for site in self.study.site_ids:
            self.mailbox.send(site, dialogue.CLOSING, closing)
            for number, account in self.accounts.items():
                if number not in self.seen.get(site, ()):
                    self.mailbox.send(site, dialogue.ACCOUNT, account.packed())
            self.mailbox.send(site, dialogue.FINISHED, Said(reason=reason[:SENTENCE]).packed())

    async def _rounds(self) -> str:
        tally, failures = self.folder.tally, 0
        while tally.completed < self.study.study.rounds:
            sites = await self._gather()
            if len(sites) < self.policy.min_survivors:
                if not tally.completed or not self.left:
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
                if failures == 5:
                    raise
        return "the study is complete"

    # --- Sites come and go -------------------------------------------------------------------------------------------

    async def _gather(self) -> list[str]:
        """Wait until every site that has budget left is there, or patience ends.

        Patience does not end for sites that wait for a transcript or their operators and without which there is no sum.
        """
        began, later, need = time.monotonic(), bool(self.folder.tally.completed), self.policy.min_survivors
        while missing := self._wanted() - self.ready:
            enough = len(self._wanted() - missing) >= need
            if not enough and len(self._wanted() & (self.ready | self.waiting.keys() - self.lost.keys())) >= need:
                began = time.monotonic()
            patience = self.options.rejoin_seconds if enough and later else self.options.patience
            left = began + patience - time.monotonic()
            if left <= 0:
                break
            await self._hear(min(left, 1.0))
        return sorted(self.ready & self._wanted())

    def _wanted(self) -> set[str]:
        return set(self.study.site_ids) - self.left - self.book.leave_out

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
            case kind if kind in (HELLO, GONE):
                self.ready.discard(site)
                self.lost[site] = time.monotonic()
                if kind == HELLO:  # a new process
                    self.seen.pop(site, None)
                    self.waiting.pop(site, None)
                    self.shown.pop(site, None)
                    self._out_of_attempt(site)
            case kind if kind == BACK:
                self.lost.pop(site, None)
                if site not in self.waiting:
                    self.ready.add(site)
            case dialogue.READY:
                self.lost.pop(site, None)
                self._take_ready(site, unpacked(Ready, received.payload, site).unreplayed)
            case dialogue.PROGRESS:
                progress = unpacked(Progress, received.payload, site)
                self.epsilon[site] = progress.epsilon
                self.folder.emit(Trained(round=progress.round, site=site, step=progress.step, steps=progress.steps))
            case dialogue.METRICS if self.study.report.share_metrics:
                self._take_metrics(site, unpacked(Metrics, received.payload, site))
            case dialogue.LEAVING:
                self.left.add(site)
                self.folder.emit(Left(site=site, reason=unpacked(Said, received.payload, site).reason))
            case dialogue.FAILED:
                self.ready.discard(site)
                self.waiting.pop(site, None)
                self._out_of_attempt(site)
                reason = unpacked(Said, received.payload, site).reason
                self.folder.emit(Note(text=f"{site} stopped: {reason}"))
            case dialogue.PROTOCOL if self.attempt is not None:
                self.attempt.take(site, received.payload)

    def _out_of_attempt(self, site: str) -> None:
        """Nothing more of this site is waited for in the attempt that runs."""
        if self.attempt is not None:
            self.attempt.over.add(site)

    def _take_ready(self, site: str, unreplayed: Sequence[str]) -> None:
        """A site is in no round; it joins the next one if it waits for no transcript and no operator."""
        self._out_of_attempt(site)
        if not unreplayed:
            self.waiting.pop(site, None)
            self.ready.add(site)
            return
        self.ready.discard(site)
        told, self.waiting[site] = site in self.waiting, tuple(unreplayed)
        here = [round_id for round_id in unreplayed if self._send_transcript(round_id, [site])]
        if not told:
            there = "which it gets" if len(here) == len(unreplayed) else "which is not here: its operator decides"
            named = ", ".join(unreplayed)
            self.folder.emit(Note(text=f"{site} waits for the transcript of round {named}, {there}"))

    def _take_metrics(self, site: str, metrics: Metrics) -> None:
        width = len(self.study.structures)
        if any(len(row) != width for row in metrics.rows):
            raise RoundFailedError(f"{site} sent metrics of another study; they were ignored")
        values = _rows(metrics, width)
        self.shared.setdefault(metrics.round, {})[site] = values
        means = structure_means(values, self.study)
        self.folder.emit(Scored(round=metrics.round, site=site, values=means, n=len(values)))

    # --- One round ---------------------------------------------------------------------------------------------------

    async def _round(self, sites: list[str]) -> None:
        book = self.book
        number, attempted = book.number, book.attempt
        started = model_hash(self.vector)
        key, leave_out = book.signing_key, book.leave_out
        context, recorder = book.context(started), self._recorder(book.context(started))
        server = ServerSession(self.policy, self.federation.pinned, context, key, leave_out, recorder)
        self.folder.emit(RoundStarted(round=number, attempt=attempted, model_hash=started.hex()))
        for site in sorted(self.dropped_before & set(sites)):
            self.folder.emit(Rejoined(round=number, site=site))
        self.dropped_before -= set(sites)
        opening = dialogue.pack_round(book.start(started), self.vector)
        for site in sites:
            self.mailbox.send(site, dialogue.ROUND, opening)
        self.attempt = _Attempt(self.folder, server, number, set(sites))
        try:
            while not server.finished:
                await self._step(self.attempt)
            await self._confirmations(self.attempt)
        except (ProtocolError, AbortedError) as error:
            for text in book.failed(error, server.burned):
                self.folder.emit(Note(text=text))
            raise RoundFailedError(str(error)) from error
        finally:
            attempt, self.attempt = self.attempt, None
            self.dropped_before |= attempt.silent
            if recorder is not None:
                self._publish(recorder, server.receipt)
        outcome = attempt.outcome(dequantize(_result(server), self.policy))
        if server.receipt is not None:
            book.completed(server.receipt)
        self.accounts[number] = attempt.account()
        for site in server.confirmations:
            self.seen.setdefault(site, set()).add(number)
        self.vector = fed_avg(self.vector, outcome.total, outcome.included, self.policy)
        assign(self.model, self.vector)
        self._record(number, attempted, outcome)
        if not self.study.trust.each_update_private and server.receipt is not None:
            self._send_transcript(server.receipt.round_id.hex(), sites)

    def _recorder(self, context: RoundContext) -> Recorder | None:
        if self.options.transcripts == "none":
            return None
        path = self.folder.path / "transcripts" / f"{context.round_number:04d}-{context.attempt}.transcript"
        path.parent.mkdir(exist_ok=True)
        whole, key = self.options.transcripts == "whole", self.book.signing_key
        return Recorder(path, self.policy, self.federation.pinned, context, whole, key)

    def _publish(self, recorder: Recorder, receipt: Receipt | None) -> None:
        try:
            path = recorder.publish()
            if path is not None and receipt is not None:  # found by its identifier, by a coordinator of a later run too
                path.replace(path.with_stem(f"{path.stem}-{_short(receipt.round_id.hex())}"))
        except OSError as error:  # the sum is there all the same
            self.folder.emit(Note(text=f"the transcript of this round could not be written: {error}"))

    def _send_transcript(self, round_id: str, sites: Iterable[str]) -> bool:
        """To sites that without differential privacy go on only once they replayed this very round; once a connection.

        Returns:
            Whether there is such a transcript, in this run's folder or in one beside it.
        """
        found = sorted(self.folder.path.parent.glob(f"*/transcripts/*-{_short(round_id)}.transcript"))
        for site in sites if found else ():
            if round_id not in self.shown.setdefault(site, set()):
                self.shown[site].add(round_id)
                self.mailbox.send(site, dialogue.TRANSCRIPT, found[-1].read_bytes())
        return bool(found)

    async def _confirmations(self, attempt: "_Attempt") -> None:
        """Hear who confirms the result; the sum is there, so that nobody is waited for long."""
        deadline = time.monotonic() + self.options.step_seconds
        while self._awaited(attempt) and time.monotonic() < deadline:
            await self._hear(min(0.25, deadline - time.monotonic()))

    async def _step(self, attempt: "_Attempt") -> None:
        """Hear the sites until all have spoken, are gone for good, or the deadline passes; then close."""
        training = attempt.server.step == MASKED_INPUT_COLLECTION
        seconds = self.options.training_seconds if training else self.options.step_seconds
        deadline = time.monotonic() + seconds
        while not attempt.server.ready and time.monotonic() < deadline and self._awaited(attempt):
            await self._hear(min(0.25, deadline - time.monotonic()))
        for site, data in attempt.close().items():
            self.mailbox.send(site, dialogue.PROTOCOL, data)

    def _awaited(self, attempt: "_Attempt") -> set[str]:
        """Who may still speak in this step: asked, there or gone for less than the grace, and not restarted."""
        now = time.monotonic()
        gone = {site for site, since in self.lost.items() if now - since > self.options.grace}
        return (set(attempt.server.missing) & attempt.asked) - self.left - gone - attempt.over

    def _record(self, number: int, attempt: int, outcome: Outcome) -> None:
        tally = self.folder.tally
        for site, spent in self.epsilon.items():
            if spent is not None:
                self.folder.emit(EpsilonSpent(round=number, site=site, spent=spent))
        known = [spent for spent in self.epsilon.values() if spent is not None]
        tally.history.append({"round": number, "completed": tally.completed + 1, "epsilon": max(known, default=None)})
        self.folder.end_round(self.model, self.book, outcome.ended(number, attempt))

    # --- The end -----------------------------------------------------------------------------------------------------

    async def _last_metrics(self) -> None:
        """Where sites share metrics, open the final model to them and wait for their figures."""
        if not self.study.report.share_metrics:
            return
        payload = dialogue.pack_round(self.book.start(model_hash(self.vector)), self.vector)
        awaited = set(self.ready)
        for site in awaited:
            self.mailbox.send(site, dialogue.METRICS, payload)
        deadline = time.monotonic() + self.options.step_seconds
        done = self.folder.tally.completed
        while time.monotonic() < deadline and (awaited & self.ready) - self.shared.get(done, {}).keys():
            await self._hear(0.25)

    def _finish(self, reason: str) -> Path:
        width = len(self.study.structures)
        tally = self.folder.tally
        tally.burned = self.book.number - 1 - tally.completed
        for entry in tally.history:
            known = list(self.shared.get(entry["completed"], {}).values()) or [np.empty((0, width))]
            pooled = np.concatenate(known)
            entry.update(dice=structure_means(pooled, self.study), mean=overall_mean(pooled))
        if self.shared.get(0):
            tally.baselines[before_training(self.study)] = mean_interval(np.concatenate(list(self.shared[0].values())))
        last = self.shared.get(tally.completed, {})
        values = {site: last.get(site, np.empty((0, width))) for site in self.study.site_ids}
        scores = Scores({site: [""] * len(rows) for site, rows in values.items()}, values)
        per_site = {site: spent for site, spent in self.epsilon.items() if spent is not None}
        table = dice_table(scores, {}, self.study)
        public = {"public phantom": public_phantom(self.study)}
        examples = evaluate(self.model, public, self.study)
        tally.baselines["this model on public phantom cases"] = mean_interval(examples.pooled())
        self.folder.emit(Ended(seconds=self.folder.seconds))
        metrics = metrics_of(self.folder, len(self.vector), self.options.command, table, per_site, reason)
        return self.folder.complete(metrics, ranked(examples))


def _short(round_id: str) -> str:
    """Of an identifier in hexadecimal, what a file name has of it."""
    return round_id[:16]


def _rows(metrics: Metrics, width: int) -> NDArray[np.float64]:
    rows = [[np.nan if value is None else value for value in row] for row in metrics.rows]
    return np.array(rows, dtype=np.float64).reshape(-1, width)


def _result(server: ServerSession) -> NDArray[Any]:
    if server.result is None:
        raise RoundFailedError("the round has no result yet")
    return server.result


class _Attempt:
    """One attempt at one round, seen from the mailbox: counts, times and tells."""

    def __init__(self, folder: RunFolder, server: ServerSession, number: int, asked: set[str]) -> None:
        self.folder, self.server, self.number, self.asked = folder, server, number, asked
        self.silent: set[str] = set()
        self.over: set[str] = set()
        self._last: dict[str, str] = {}
        self._up = self._down = 0
        self._seconds: dict[str, float] = {}
        self._since = time.monotonic()
        self._reports: Reports | None = None
        self._included: IncludedSet | None = None

    def take(self, site: str, data: bytes) -> None:
        """Give a site's message to the session; one that is refused leaves no trace but a note."""
        step = self.server.step
        try:
            self.server.receive(site, wire.decode_from_client(data))
        except ProtocolError as error:
            if error.culprits or isinstance(error, MalformedMessageError):
                self.folder.emit(Note(text=f"round {self.number}: a message of {site} was refused: {error}"))
            return
        self._up += len(data)
        self._last[site] = step
        self.folder.emit(StepAccepted(round=self.number, site=site, step=step, bytes=len(data)))

    def close(self) -> Mapping[str, bytes]:
        """Close the step; who was expected and silent has dropped."""
        step = self.server.step
        for site in sorted(set(self.server.missing) - self.silent):
            if site in self.asked:
                self.folder.emit(Dropped(round=self.number, site=site, after=self._last.get(site, "")))
                self.silent.add(site)
        messages = self.server.close_round()
        for message in messages.values():
            if isinstance(message, Reports):
                self._reports = message
            if isinstance(message, IncludedSet):
                self._included = message
        replies = wire.encode_each(messages)
        now = time.monotonic()
        self._seconds[step], self._since = now - self._since, now
        sent = sum(map(len, replies.values()))
        self._down += sent
        self.folder.emit(StepClosed(round=self.number, step=step, seconds=self._seconds[step], bytes_down=sent))
        return replies

    def account(self) -> Account:
        """Of the finished session: who shared keys and who is in the sum, signed by each."""
        if self._reports is None or self._included is None:
            raise RoundFailedError("the round has no result yet")
        return Account(self._reports, self._included)

    def outcome(self, total: NDArray[np.float64]) -> Outcome:
        """What the finished session gives; whether it is exact only the sites could say."""
        server = self.server
        head = server.head or b""
        included, dropped = server.included, server.dropped
        return Outcome(total, included, dropped, head, None, {}, self._up, self._down, self._seconds)


def coordinate(folder: RunFolder, options: Options) -> Path:
    """Run a coordinator to its end; see `Coordinator`."""
    return asyncio.run(Coordinator(folder, options).run())
