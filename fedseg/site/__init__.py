"""A site: trains where its images are, and lets nothing out but noised, masked updates.

What the coordinator may know beside them is in `fedseg.dialogue`: that training began, epsilon spent (which does not
depend on the images), and validation Dice where the study says so; docs/threat-model-fedseg.md has what one patient
changes in it. Training, the protocol's first rounds and the network run at once; a site that is killed comes back as a
dropout and joins the next round.
"""

import asyncio
import contextlib
import copy
import json
import secrets
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg import dialogue
from fedseg.account import Account, chained
from fedseg.aggregate import Outcome
from fedseg.averaging import fed_avg
from fedseg.budget.charge import charge, charge_metrics, spent
from fedseg.credentials import load_federation, signing_key, site_tls
from fedseg.data.cases import SiteData
from fedseg.dialogue import SENTENCE, WAITED_FOR, Metrics, Progress, Ready, Said, unpack_round, unpacked
from fedseg.errors import BudgetExceededError, FedSegError, RoundFailedError
from fedseg.evaluation import Scores, dice_table, evaluate, overall_mean, ranked, structure_means
from fedseg.events import Burned, Dropped, Ended, EpsilonSpent, Note, RoundStarted, Scored, StepAccepted, Trained
from fedseg.exposure import MARKS, replay
from fedseg.ledger import Ledger
from fedseg.models import build_model
from fedseg.runfolder import POLICY, RunFolder
from fedseg.study import Study
from fedseg.summary import metrics_of, study_event
from fedseg.train import train_round
from fedseg.update import NoisedUpdate, assign, flatten, model_hash
from secagg import (
    AbortedError,
    ClientSession,
    ExposureError,
    ProtocolError,
    SecAggError,
    dequantize,
    open_round,
    wire,
)
from secagg.files import policy_text
from secagg.messages import FromClient, Receipt, Reports, Result, RoundStart, SlotMasks
from secagg.packing import unpack
from secagg.policy import session_id
from secagg.prg import Stream
from secagg.quantize import quantize
from secagg.rpc.client import MailboxClient
from secagg.rpc.frames import message_limit
from secagg.sqlite import SqliteStore
from secagg.steps import SHARE_REPORT
from secagg.writing import replacing, write_whole

OWN_MARKS = ("C-03", "C-14", "C-24")
"""Checks that find something in this site's own marks: they end a round here and are nobody's lie."""

FAREWELL_SECONDS = 5.0
"""How long a site that failed tries to say so."""


NEXT_MODELS = "next-models.json"
"""In the state folder: which model follows the last round of each run."""


@dataclass(frozen=True)
class Options:
    """How a site runs; none of it changes what the study means.

    Attributes:
        site: own id.
        address: host:port of the coordinator.
        credentials: folder of `fedseg.credentials`.
        state: the data set's own folder, for good, whatever the study: durable marks and the ledger. Never delete it or
            restore an old copy.
        patience: seconds without an answer after which the coordinator is given up.
        audit: folder for the site's own quantised updates and the totals that it was sent; "" for none.
        command: how it was started, for the record and for sentences that say what to run.
    """

    site: str
    address: str
    credentials: Path
    state: Path
    patience: float = 120.0
    audit: Path | None = None
    command: str = ""


class Site:
    """One process of one site.

    Raises:
        ConfigError: credentials, state folder or study are wrong; nothing was sent.
        LedgerError: the ledger is damaged, another site's or of an earlier version.
    """

    def __init__(self, folder: RunFolder, data: SiteData, options: Options) -> None:
        self.folder, self.data, self.options = folder, data, options
        self.study: Study = folder.study
        self.me = options.site
        torch.set_num_threads(self.study.run.threads)
        self.federation = load_federation(options.credentials, self.study)
        self.key = signing_key(options.credentials, self.me)
        options.state.mkdir(parents=True, exist_ok=True)
        self.store = SqliteStore(options.state / MARKS, self.me)
        self.ledger = Ledger.of_site(options.state)
        self.model = build_model(self.study)
        self.policy = self.study.policy(len(flatten(self.model)), self.federation.server_key)
        # Whole transcripts come, one masked input a site, unless each update is private alone (C-05).
        vectors = 1 if self.study.trust.each_update_private else 1 + self.policy.clients
        limit = vectors * message_limit(self.policy) + 4 * self.policy.length
        tls = site_tls(options.credentials, self.me, self.federation)
        self.mailbox = MailboxClient(options.address, self.me, tls, patience=options.patience, max_message_bytes=limit)
        self.round: _Round | None = None
        self.waiting: dict[bytes, bool] = {}  # rounds that keep this site out, and whether their transcript would help
        self.again: set[bytes] = set()  # rounds that kept this site out of one attempt although they were replayed
        self.evaluation: asyncio.Task[None] | None = None
        self.completed = 0
        self.seen: dict[int, bytes] = {}  # rounds whose end was seen or proved, and their heads
        self.receipts: tuple[Receipt, ...] = ()
        self.session = session_id(self.policy, self.federation.pinned)
        self.run_key = f"{self.session.hex()}/{self.federation.training_run}"
        self.next_model = self._next_models().get(self.run_key, ["", ""])

    async def run(self) -> Path:
        """Take part until the coordinator says that the study is over.

        Returns:
            The site's own complete run folder, with its local figures; its metrics say where the study is not complete.

        Raises:
            ConfigError, AbortedError: the coordinator refuses this site or is not there.
            RoundFailedError: the coordinator broke the protocol.
            FedSegError: own data, ledger or training; the coordinator is told that this site stopped, not why.
        """
        self.folder.emit(study_event(self.study, self.policy.length, secure=True))
        (self.folder.path / POLICY).write_text(policy_text(self.policy), encoding="utf-8")
        self.folder.checkpoint(self.model, None)
        async with self.mailbox:
            try:
                await self._begin()
                while (reason := await self._next()) is None:
                    pass
            except FedSegError as error:
                await self._failed(error)
                raise
            finally:
                self._end_round()
        self.folder.emit(Note(text=reason))
        return self._finish(reason)

    async def _failed(self, error: FedSegError) -> None:
        """Say that this site stops; the coordinator may be gone, and the operator must read what failed here."""
        public = str(error) if isinstance(error, RoundFailedError) else "an error of its own, see its log"
        with contextlib.suppress(AbortedError, TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self.mailbox.send(dialogue.FAILED, Said(reason=public[:SENTENCE]).packed())

    async def _next(self) -> str | None:
        """Answer one message, or go on after training; the reason once the study is over."""
        received = await self.mailbox.receive(0.2 if self.round or self.waiting else None)
        if received is None:
            await self._after_training()
            await self._after_waiting()
            return None
        match received.kind:
            case dialogue.ROUND:
                await self._open(*unpack_round(received.payload))
            case dialogue.PROTOCOL if self.round is not None:
                await self._protocol(self.round, received.payload)
            case dialogue.TRANSCRIPT:
                await asyncio.to_thread(self._replay, received.payload)
                await self._after_waiting()
            case dialogue.METRICS:
                await self._evaluated()
                self._take_model(*unpack_round(received.payload))
                await self._evaluate(copy.deepcopy(self.model), self.completed)
            case dialogue.CLOSING:
                await self._evaluated()
                self._close(*unpack_round(received.payload))
            case dialogue.ACCOUNT:
                self._catch_up(Account.unpacked(received.payload))
            case dialogue.FINISHED:
                await self._evaluated()
                return unpacked(Said, received.payload, "the coordinator").reason
        await self._after_training()
        return None

    # --- Without differential privacy ---------------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Tell the coordinator that this site is there, or which round keeps it out (C-05)."""
        with self.store.transaction() as marks:
            release = None if self.study.trust.each_update_private else marks.open_release
            accepted = release is None or marks.accepted(release.round_id)
        if release is None or accepted:
            await self._ready()
        else:
            said = f"[C-05] this site sent unmasking shares for {release.name} and has not replayed its transcript"
            await self._wait(said, [release.round_id])

    async def _ready(self) -> None:
        unreplayed = [round_id.hex() for round_id in self.waiting][:WAITED_FOR]
        await self.mailbox.send(dialogue.READY, Ready(unreplayed=unreplayed).packed())

    async def _wait(self, said: str, round_ids: Iterable[bytes]) -> None:
        """Stay out until the transcripts of these rounds were replayed or the operator accepts them: nobody's fault."""
        self._end_round()
        with self.store.transaction() as marks:
            known = {round_id: marks.replayed(round_id) for round_id in round_ids if round_id not in self.waiting}
        # One that was replayed after this attempt was joined counts in the next. Where it does not even then, it was on
        # the same model in another run, and only the operator can help.
        fresh = {
            round_id: not replayed for round_id, replayed in known.items() if not replayed or round_id in self.again
        }
        self.again |= known.keys() - fresh.keys()
        self.waiting |= fresh
        if fresh:
            accept = " ".join(f"--accept-exposure {round_id.hex()}" for round_id in fresh)
            command = self.options.command or f"fedseg site STUDY {self.me} ..."
            waits = "This site waits for its operator"
            if any(fresh.values()):
                waits = "This site waits for that transcript, which the coordinator or another site may have"
            asks = "An operator who accepts that risk once has to run beside this process"
            self.folder.emit(Note(text=f"{said}. {waits}. {asks}: {command} {accept}"))
        await self._ready()

    async def _after_waiting(self) -> None:
        """Come back once every round was replayed or accepted, by this process or beside it."""
        if not self.waiting:
            return
        with self.store.transaction() as marks:
            self.waiting = {
                round_id: would_help
                for round_id, would_help in self.waiting.items()
                if not marks.accepted(round_id) and not (would_help and marks.replayed(round_id))
            }
        if not self.waiting:
            self.folder.emit(Note(text="what kept this site out is settled; it takes part in the next round"))
            await self._ready()

    def _replay(self, transcript: bytes) -> None:
        """Recompute the sum of a round from its transcript: a lying coordinator could take it again without a site."""
        came = self.options.state / "refused.transcript"
        came.write_bytes(transcript)
        try:
            receipt = replay(self.store, self.policy, self.federation.pinned, came)
        except SecAggError as error:
            self.folder.emit(Note(text=f"a transcript was refused and settles nothing: {error}; it is kept in {came}"))
            return
        own = receipt.training_run == self.federation.training_run
        kept = (self.folder.path if own else self.options.state) / "transcripts"
        kept.mkdir(exist_ok=True)
        (kept / f"{receipt.round_number:04d}-{receipt.round_id.hex()[:16]}.transcript").write_bytes(transcript)
        came.unlink()

    # --- One round ---------------------------------------------------------------------------------------------------

    async def _open(self, start: RoundStart, vector: NDArray[np.float32]) -> None:
        """Verify the round, charge it, advertise keys, and begin to train."""
        self._end_round()
        await self._evaluated()
        try:
            opened = open_round(
                self.policy,
                self.federation.pinned,
                self.federation.training_run,
                start,
                self.store,
                model_hash=model_hash(vector),
                task_hash=self.study.hash(),
                private=self.study.trust.each_update_private,
            )
        except ExposureError as error:
            await self._wait(str(error), error.round_ids)
            return
        except ProtocolError as error:
            told = "; is the study file the same at every party?" if error.check == "C-23" else ""
            raise RoundFailedError(f"the coordinator's round start was refused: {error}{told}") from error
        if (last := self._unshown()) is not None:
            said = (
                f"nothing shows this site that round {last.round_number}, the last finished one, was one of its cohort"
            )
            await self._wait(said, [last.round_id])
            return
        self._adopt(start, vector)
        try:
            charge(self.ledger, self.study, self.me, self.federation.training_run, start.round_number)
        except BudgetExceededError as error:
            await self.mailbox.send(dialogue.LEAVING, Said(reason=str(error)).packed())
            return
        begins = RoundStarted(round=start.round_number, attempt=start.attempt, model_hash=start.model_hash.hex())
        self.folder.emit(begins)
        session = ClientSession(self.policy, self.me, self.key, self.federation.pinned, opened, self.store)
        try:
            first = session.start()
        except ExposureError as error:
            await self._wait(str(error), error.round_ids)
            return
        except ProtocolError as error:  # what the own marks say, such as that it was joined before a restart
            self.folder.emit(Note(text=str(error)))
            return
        model, evaluated = copy.deepcopy(self.model), copy.deepcopy(self.model)
        self.round = _Round(session, start.round_number, start.attempt, flatten(self.model))
        self.round.training = asyncio.create_task(self._train(self.round, model))
        await self._send(self.round, first)
        self.evaluation = asyncio.create_task(self._evaluate(evaluated, self.completed))

    def _adopt(self, start: RoundStart, vector: NDArray[np.float32]) -> None:
        """Take the coordinator's model, if it is the one it signed and, as far as this site knows, the right one."""
        if vector.shape != (self.policy.length,):
            raise RoundFailedError("the coordinator sent a model of another length than the study's")
        head, expected = self.next_model
        if start.previous_head.hex() == head and start.model_hash.hex() != expected:
            raise RoundFailedError("the coordinator's model is not the last one plus the last sum; compare with others")
        assign(self.model, vector)
        self.completed = len(start.missed)

    def _take_model(self, start: RoundStart, vector: NDArray[np.float32]) -> None:
        """A model that is signed like any other, outside a round."""
        start.verify(self.federation.server_key, "C-01")
        if start.model_hash != model_hash(vector):
            raise RoundFailedError("the coordinator sent another model than its signed round start names")
        self._adopt(start, vector)

    def _unshown(self) -> Receipt | None:
        """The last finished round, where only the coordinator says that it was; its transcript shows a quorum.

        On a round that it invented a coordinator could build any model, and sum the same updates again.
        """
        run = self.federation.training_run
        with self.store.transaction() as marks:
            last = marks.receipt(self.session, run, marks.head(self.session, run)[0])
            known = last is None or marks.replayed(last.round_id) or marks.accepted(last.round_id)
        return None if known or self.study.trust.each_update_private else last

    def _next_models(self) -> dict[str, list[str]]:
        """By run: the head of the last round that this site saw to its end, and the hash of the model that it gives."""
        kept = self.options.state / NEXT_MODELS
        return dict(json.loads(kept.read_text(encoding="utf-8"))) if kept.is_file() else {}

    def _expect(self, head: bytes, following: bytes) -> None:
        """Only this model follows, also after a restart: another could give the last round's updates again."""
        self.next_model = [head.hex(), following.hex()]
        kept = self.options.state / NEXT_MODELS
        write_whole(kept, json.dumps({**self._next_models(), self.run_key: self.next_model}))

    async def _train(self, current: "_Round", model: torch.nn.Module) -> NoisedUpdate:
        loop, number = asyncio.get_running_loop(), current.number
        epsilon = spent(self.ledger, self.study) if self.study.trust.claims_epsilon else None

        def on_step(step: int, steps: int) -> None:
            """Ends the training of a round that is over; tells log and coordinator how far it is."""
            if current.over.is_set():
                raise RoundFailedError("the round is over")
            self.folder.emit(Trained(round=number, site=self.me, step=step, steps=steps))
            if step and self.study.trust.claims_epsilon:  # how long a step takes tells how many patients were drawn
                return
            progress = Progress(round=number, step=step, steps=steps, epsilon=epsilon).packed()
            asyncio.run_coroutine_threadsafe(self.mailbox.send(dialogue.PROGRESS, progress), loop)

        def work() -> NoisedUpdate:
            """What the training thread does."""
            return train_round(
                model,
                self.data,
                self.study,
                site=self.me,
                training_run=self.federation.training_run,
                round_number=number,
                ledger=self.ledger,
                on_step=on_step,
            )

        on_step(0, self.study.study.local_steps)
        return await asyncio.to_thread(work)

    async def _after_training(self) -> None:
        """Hand a finished update over; a reply may have waited for it."""
        current = self.round
        if current is None or current.provided or current.training is None or not current.training.done():
            return
        # The end of training tells how many patients were drawn, which no epsilon covers, whatever hides the update.
        if self.study.trust.claims_epsilon and time.monotonic() - current.since < self.study.run.hold_seconds:
            return
        update = current.training.result()
        current.provided = True
        if self.options.audit is not None:
            values, _ = quantize(update.vector, self.policy, self.me, self._rounding(current))
            self._audit(current.number, "update", values)
        await self._guarded(
            current, lambda: current.session.provide(update.vector, update.event_id, self._rounding(current))
        )

    def _rounding(self, current: "_Round") -> Stream:
        """The stream of a round's stochastic rounding, the same at each call."""
        if self.study.study.seed is not None:
            return Stream.seeded(self.study.study.seed, "rounding", self.me, current.number)
        return Stream(current.rounding_key)

    async def _protocol(self, current: "_Round", payload: bytes) -> None:
        try:
            message = wire.decode_from_server(payload)
        except ProtocolError as error:
            raise RoundFailedError(f"round {current.number}: the coordinator broke the protocol: {error}") from error
        current.bytes_down += len(payload)
        if isinstance(message, Reports):
            current.sharers = frozenset(message.by_id)
        await self._guarded(current, lambda: current.session.receive(message))
        if isinstance(message, Result) and current.session.head is not None:
            length = self.policy.length
            total = unpack(message.total, length + self.policy.slots, self.policy.bits)[:length]
            following = fed_avg(
                current.opened_on, dequantize(total, self.policy), current.session.included, self.policy
            )
            self._expect(current.session.head, model_hash(following))
            assign(self.model, following)
            self._audit(current.number, "total", total)
            self._record(current)
            self.round = None

    async def _guarded(self, current: "_Round", step: Callable[[], FromClient | None]) -> None:
        """Take a step of the protocol: a lie of the server ends this site's part, anything else only the round's."""
        try:
            reply = step()
        except ExposureError as error:
            self._burned(current, str(error))
            await self._wait(str(error), error.round_ids)
            return
        except ProtocolError as error:
            if error.check not in OWN_MARKS:
                raise RoundFailedError(
                    f"round {current.number}: the coordinator broke the protocol: {error}"
                ) from error
            self._burned(current, str(error))
            await self._ready()
            return
        except AbortedError as error:
            self._burned(current, str(error))
            return
        if reply is not None:
            await self._send(current, reply)
        if isinstance(reply, SlotMasks):
            self._burned(current, "the constant slots of the sum do not add up; this site showed what masked its own")

    def _burned(self, current: "_Round", reason: str) -> None:
        self.folder.emit(Burned(round=current.number, attempt=current.attempt, reason=reason))
        self._end_round()

    async def _send(self, current: "_Round", message: FromClient) -> None:
        data = wire.encode(message)
        await self.mailbox.send(dialogue.PROTOCOL, data)
        current.bytes_up += len(data)
        self.folder.emit(StepAccepted(round=current.number, site=self.me, step=current.session.step, bytes=len(data)))

    def _end_round(self) -> None:
        if self.round is not None:
            self.round.over.set()
            self.round.session.close()
            self.round = None

    def _audit(self, number: int, name: str, values: NDArray[Any]) -> None:
        """Keep, on this site's own disk and only where asked, what an audit of the sum needs."""
        if self.options.audit is None:
            return
        self.options.audit.mkdir(parents=True, exist_ok=True, mode=0o700)
        target = self.options.audit / f"{number:04d}-{self.me}-{name}.npy"
        with replacing(target) as beside:
            np.save(beside, values, allow_pickle=False)

    # --- Figures -----------------------------------------------------------------------------------------------------

    def _record(self, current: "_Round") -> None:
        seconds = {"round": time.monotonic() - current.since}
        included = current.session.included
        dropped = sorted(current.sharers - set(included))
        for site in dropped:
            self.folder.emit(Dropped(round=current.number, site=site, after=SHARE_REPORT))
        head = current.session.head or b""
        outcome = Outcome(
            np.zeros(0),
            included,
            tuple(dropped),
            head,
            None,
            {self.me: current.session.clip_rate},
            current.bytes_up,
            current.bytes_down,
            seconds,
        )
        if self.study.trust.claims_epsilon:
            epsilon = spent(self.ledger, self.study)
            self.folder.emit(EpsilonSpent(round=current.number, site=self.me, spent=epsilon))
        self.seen[current.number] = head
        self.folder.end_round(self.model, None, outcome.ended(current.number, current.attempt))

    async def _evaluated(self) -> None:
        """Wait for the evaluation of the last model, which runs beside training; its errors are this site's."""
        running, self.evaluation = self.evaluation, None
        if running is not None:
            await running

    async def _evaluate(self, model: torch.nn.Module, completed: int) -> None:
        """Dice of the global model on own held-out patients, maybe nobody; leaves only where the study says so."""
        scores = await asyncio.to_thread(evaluate, model, {self.me: self.data}, self.study)
        values = scores.values[self.me]
        means = structure_means(values, self.study)
        self.folder.emit(Scored(round=completed, site=self.me, values=means, n=len(values)))
        epsilon = spent(self.ledger, self.study) if self.study.trust.claims_epsilon else None
        entry = {"round": completed, "dice": means, "mean": overall_mean(values), "epsilon": epsilon}
        if completed:
            self.folder.tally.history.append(entry)
        if self.study.report.share_metrics:
            charge_metrics(self.ledger, self.study, self.me, self.federation.training_run, completed + 1)
            rows = sorted([None if np.isnan(v) else float(v) for v in row] for row in values)
            await self.mailbox.send(dialogue.METRICS, Metrics(round=completed, rows=rows).packed())

    def _close(self, start: RoundStart, vector: NDArray[np.float32]) -> None:
        """The end of the run: the last model, and every receipt."""
        self._end_round()
        self._take_model(start, vector)
        self.receipts = chained(start.missed, self.seen)
        self.folder.tally.burned = start.round_number - 1 - len(self.receipts)

    def _catch_up(self, account: Account) -> None:
        """Write down a round that this process did not see to its end."""
        receipt = account.proved(self.receipts, self.federation.pinned)
        if receipt.round_number in self.seen:
            return
        self.seen[receipt.round_number] = receipt.head
        included = tuple(account.included.by_id)
        outcome = Outcome(np.zeros(0), included, account.dropped, receipt.head, None, {})
        self.folder.end_round(self.model, None, outcome.ended(receipt.round_number, None))

    def _finish(self, reason: str) -> Path:
        scores: Scores = evaluate(self.model, {self.me: self.data}, self.study)
        table = dice_table(scores, {self.me: len(self.data.patients)}, self.study)
        per_site = {self.me: spent(self.ledger, self.study)}
        self.folder.emit(Ended(seconds=self.folder.seconds))
        self.folder.checkpoint(self.model, None)
        metrics = metrics_of(self.folder, self.policy.length, self.options.command, table, per_site, reason)
        return self.folder.complete(metrics, ranked(scores))


class _Round:
    """A round that this site takes part in, on the model that it was opened on; `over` stops its training."""

    def __init__(self, session: ClientSession, number: int, attempt: int, opened_on: NDArray[np.float32]) -> None:
        self.session, self.number, self.attempt = session, number, attempt
        self.opened_on = opened_on  # the site's model may be another by the end: one to be evaluated comes at any time
        self.training: asyncio.Task[NoisedUpdate] | None = None
        self.over = threading.Event()
        self.provided = False
        self.rounding_key = secrets.token_bytes(32)
        self.sharers: frozenset[str] = frozenset()
        self.bytes_up = self.bytes_down = 0
        self.since = time.monotonic()


def take_part(folder: RunFolder, data: SiteData, options: Options) -> Path:
    """Run a site to its end; see `Site`."""
    return asyncio.run(Site(folder, data, options).run())
