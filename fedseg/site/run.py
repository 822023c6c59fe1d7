"""A site's process: one site in one run, from its first connection to its report, on `secagg.service.member`."""

import copy
import math
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import cached_property, partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg import dialogue
from fedseg.attempt import Facts
from fedseg.budget.charge import affordable, charge, charge_metrics
from fedseg.data.cases import SiteData
from fedseg.errors import BudgetExceededError, RoundFailedError
from fedseg.events import (
    Burned,
    Certificate,
    Connected,
    Disconnected,
    EpsilonSpent,
    Note,
    RoundStarted,
    Trained,
    Waiting,
)
from fedseg.models.standardising import follow
from fedseg.runfolder import PARTIAL, POLICY, RunFolder
from fedseg.sharing.sending import LOST, Owed
from fedseg.site.control import Control
from fedseg.site.ending import name_of
from fedseg.site.options import Options
from fedseg.site.party import Party
from fedseg.site.record import Record
from fedseg.site.round import Round
from fedseg.start import same_everywhere, starting_model
from fedseg.statistics import answer
from fedseg.summary import found_in, study_event
from fedseg.train import train_round
from fedseg.update import Update, model_hash, seeds_of, values_of
from secagg.context import GENESIS
from secagg.driver import Completed
from secagg.files import policy_text
from secagg.messages import Receipt, RoundStart
from secagg.packing import dtype_for
from secagg.rpc.tls import COORDINATOR
from secagg.service.account import Account, chained
from secagg.service.alone import alone
from secagg.service.application import Application, Given, LeaveError, Wish
from secagg.service.dialogue import Finished, Message
from secagg.service.ended import Ended
from secagg.service.errors import DialogueError, RunFailedError
from secagg.service.member import Member
from secagg.service.room import written
from secagg.service.spans import Span, spans
from secagg.service.stopping import run_until_stopped
from secagg.steps import MASKED_INPUT_COLLECTION
from secagg.writing import PRIVATE_FOLDER, write_whole

FOR_EVER = 1e9
"""Seconds that stand in an event for no end of waiting."""


def release() -> str:
    """What all parties of a study have to run."""
    return f"fedseg {version('secagg')}"


class Site(Party, Application):
    """One process of one site.

    Raises:
        ConfigError: credentials, state folder or study are wrong; nothing was sent.
        LedgerError: the ledger is damaged, another site's or of an earlier version.
    """

    kinds = (dialogue.ToEvaluate,)

    def __init__(self, folder: RunFolder, data: SiteData, options: Options) -> None:
        super().__init__(folder, data, options)
        self.release = release()
        self.round: Round | None = None
        self.rounds_done = 0
        self.told = ""  # last of what only the operator is told of patients
        self.seen: dict[int, bytes] = {}  # rounds whose end was seen or proved, and their heads
        self.receipts: tuple[Receipt, ...] = ()
        self._scoring: tuple[torch.nn.Module, int] | None = None
        self._metrics: dialogue.Metrics | None = None
        self._earlier: Account | None = None
        self._place: tuple[int, int] | None = None  # the attempt that was joined last
        self.owed = Owed() if self.study.sharing.error_feedback else None
        self._control = Control(options.state)
        self._record = Record(options.state, self.me, self.federation.training_run)
        self._epsilon = self._spent()
        command = options.command or f"fedseg site STUDY {self.me} ..."
        self.member = Member(
            *(self.policy, self.me, self.key, self.federation.pinned, self.store, self.mailbox, self),
            training_run=self.federation.training_run,
            task_hash=self.study.hash(),
            private=self.study.trust.each_update_private,
            state=options.state,
            accepting=lambda ids: f"{command} {' '.join(f'--accept-exposure {found.hex()}' for found in ids)}",
        )

    async def run(self) -> Path:
        """Take part until the coordinator says that the study is over.

        Returns:
            The site's own complete run folder, with its local figures; its metrics say where the study is not complete.

        Raises:
            ConfigError, AbortedError: the coordinator refuses this site, or patience ended.
            RoundFailedError: the coordinator broke the protocol, or has another study.
            FedSegError: own data, ledger or training; the coordinator is told that this site stopped, not why.
            StoppedError: the operator left the study.
        """
        self.folder.emit(study_event(self.study, self.parameters, secure=True, party=self.me))
        for change in self.changes:
            self.folder.emit(Note(text=change))
        write_whole(self.folder.path / POLICY, policy_text(self.policy))
        self.folder.checkpoint(self.model, None)
        async with alone(self.options.state, f"{self.session.hex()}/{self.federation.training_run}"):
            try:
                finished = await self.member.run()
            except (RunFailedError, DialogueError) as error:
                raise RoundFailedError(str(error)) from error
        return await written(partial(self._written, finished.reason), self.folder.path, self.note)

    def _written(self, reason: str) -> Path:
        self.note(reason)
        return self.figures.finish(self.given_out, self.parameters, self.options.command, reason)

    # --- One round ---------------------------------------------------------------------------------------------------

    def about(self, start: RoundStart, content: bytes) -> bytes:
        """The hash of the coordinator's model, if as far as this site knows it is the right one."""
        return model_hash(self._right(start, content))

    def _right(self, start: RoundStart, content: bytes) -> NDArray[np.float32]:
        state = dialogue.state_in(content)
        if state.shape != self.state.shape:
            raise RoundFailedError("the coordinator sent a model of another length than the study's")
        self.following.check(start)
        # Where the start is not here, or is another one everywhere, it is neither asked for nor trained.
        if start.previous_head == GENESIS and same_everywhere(self.study) and start.model_hash != self._first:
            raise RoundFailedError(
                "the coordinator's first model is not the start of the study; it could be made to give patients away, "
                "so compare study, [model] start and versions with the other sites"
            )
        return state

    @cached_property
    def _first(self) -> bytes:
        """The hash of what the study starts from, computed here: no sum has led to another model yet (T-16)."""
        return model_hash(self.course.opened(starting_model(self.study)))

    def joined(self, start: RoundStart, content: bytes) -> None:
        """Take over the model; leave where the patients of this data set could not pay for the round.

        Raises:
            RoundFailedError: this site is not drawn into this round.
        """
        if self.me not in self.study.in_round(start.round_number):
            raise RoundFailedError(
                f"the coordinator asks for an update in round {start.round_number}, in which this site is not by "
                "[federation] participation; ask the coordinator's operator for the study that it runs"
            )
        self._adopt(start, content)
        if self._earlier is not None:
            self.settle_earlier(self._earlier, chained(start.missed, self.seen))
            self._earlier = None
        try:
            run, asking = self.federation.training_run, self.study.asks(self.state)
            affordable(self.ledger, self.study, self.me, run, start.round_number, asking=asking)
        except BudgetExceededError as error:
            raise LeaveError(str(error)) from error
        begins = RoundStarted(round=start.round_number, attempt=start.attempt, model_hash=start.model_hash.hex())
        self.folder.emit(begins)
        self._place = start.round_number, start.attempt
        self.refuse_used_name()  # only now has no other process a live attempt (C-24)
        if not self.study.trust.each_update_private:
            self.following.opened(self.state)
        self.round = Round(
            *(self.me, start.round_number, start.attempt, self.state, copy.deepcopy(self.model), self.folder.emit)
        )
        if self.owed is not None and self.rounds_done and not self.seen:
            self.folder.emit(Note(text=LOST))
        if self.options.audit is not None:
            self.round.quantised = np.zeros(self.policy.length, dtype_for(self.policy.bits))
        if self.study.scored_after(self.rounds_done):
            self._scoring = copy.deepcopy(self.given_out), self.rounds_done

    def _adopt(self, start: RoundStart, content: bytes) -> None:
        self.state = self._right(start, content)
        follow(self.model, self.state, self.study)
        self.rounds_done = len(start.missed)

    def work(self, number: int) -> Callable[[threading.Event], Given]:
        """Charge the round, then train it."""
        return partial(self._train, self.round)

    def _train(self, current: Round | None, over: threading.Event) -> Given:
        if current is None or over.is_set():  # not charged
            raise RoundFailedError("the round is over")
        number = current.number
        run = self.federation.training_run
        asking = self.study.asks(current.opened_on)
        try:
            charge(self.ledger, self.study, self.me, run, number, asking=asking)
        except BudgetExceededError as error:
            raise LeaveError(str(error)) from error
        if self.ledger.payers is not None and (told := self.ledger.payers.left_out) not in ("", self.told):
            self.told = told
            self.folder.emit(Note(text=told))
        self._epsilon = epsilon = self._spent()

        def on_step(step: int, steps: int) -> None:
            """Ends the training of a round that is over; tells log and coordinator how far it is."""
            if over.is_set():
                raise RoundFailedError("the round is over")
            self.folder.emit(Trained(round=number, site=self.me, step=step, steps=steps))
            if step and self.study.trust.claims_epsilon:  # how long a step takes tells how many patients were drawn
                return
            self.member.tell(dialogue.Progress(round=number, step=step, steps=steps, epsilon=epsilon))

        on_step(0, self.study.study.local_steps)
        try:
            update: Update
            if asking:
                update = answer(
                    *(self.data, self.study),
                    site=self.me,
                    training_run=run,
                    round_number=number,
                    ledger=self.ledger,
                )
            else:
                update = train_round(
                    *(current.model, self.data, self.study),
                    site=self.me,
                    training_run=run,
                    round_number=number,
                    ledger=self.ledger,
                    on_step=on_step,
                    owed=self.owed,
                    own=self.own,
                )
                self.keep_own()
        finally:
            # The end of training tells how many patients were drawn, which no epsilon covers, whatever hides the
            # update: also where the coordinator ended the round meanwhile, and sees when this site is free again.
            if self.study.trust.claims_epsilon and (left := self.study.run.hold_seconds - current.facts.seconds) > 0:
                time.sleep(left)
        stream, seeds = current.rounding(self.study), seeds_of(update)
        return Given(values_of(update, self.policy), update.event_id, stream, current.quantised, seeds)

    def spoke(self, step: str, size: int) -> None:
        """Count a message, and keep what an audit wants of the one that held the update."""
        if self.round is None:
            return
        if step == MASKED_INPUT_COLLECTION and self.round.quantised is not None:
            self.figures.keep(self.round.number, "update", self.round.quantised)
        self.round.facts.spoke(self.me, step, size)

    def listened(self, size: int) -> None:
        """Count a message."""
        if self.round is not None:
            self.round.facts.heard(size)

    def completed(self, done: Completed) -> None:
        """Compute the next model from the sum, and write down the round."""
        current, session = self.round, self.member.driver.session
        if current is None or session is None:
            return
        head = done.receipt.head
        if self.owed is not None:
            self.owed.settle(included=self.me in done.included)
        asked = self.study.asks(current.opened_on)
        self.settle_own(included=self.me in done.included)
        following = current.following(done, self.policy, self.course)
        self.following.expect(head, model_hash(following))
        self.state = following
        if asked:
            self.folder.emit(Note(text=found_in(self.study, following)))
        follow(self.model, following, self.study)
        self.figures.keep(current.number, "total", done.result)
        ended = current.ended(done, session.clip_rate if session.clip_rates else None)
        if self.study.trust.claims_epsilon:
            self.folder.emit(EpsilonSpent(round=current.number, site=self.me, spent=self.figures.epsilon()))
        self.seen[current.number] = head
        self.folder.end_round(self.given_out, None, ended)
        self.round = None

    def burned(self, number: int, attempt: int, reason: str) -> None:
        """Write down that there is no sum."""
        if self.round is not None:
            self.folder.emit(Burned(round=number, attempt=attempt, reason=reason))
            self.round = None

    @property
    def given_out(self) -> torch.nn.Module:
        """The last model, or with `[federation] ema` the average."""
        return self.course.given_out(self.model, self.state)

    # --- Models and figures ------------------------------------------------------------------------------------------

    def beside(self) -> Callable[[], object] | None:
        """Dice of the model that this round was opened on, beside its training."""
        scoring, self._scoring = self._scoring, None
        return None if scoring is None else partial(self._evaluate, *scoring)

    def heard(self, message: Message) -> Callable[[], object] | None:
        """The last model, to be evaluated."""
        if not isinstance(message, dialogue.ToEvaluate):
            return None
        self._take_model(message.start, message.content)
        return partial(self._evaluate, copy.deepcopy(self.given_out), self.rounds_done)

    def _evaluate(self, model: torch.nn.Module, completed: int) -> None:
        """Dice of the global model on own held-out patients; leaves only where the study says so."""
        metrics = self.figures.evaluate(model, completed)
        if self.study.report.share_metrics:
            charge_metrics(self.ledger, self.study, self.me, self.federation.training_run, completed + 1)
            self._metrics = metrics
            self.member.tell(metrics)

    def again(self) -> Iterable[Message]:
        """The last figures, which a coordinator that was restarted may not have."""
        return () if self._metrics is None else (self._metrics,)

    def says(self) -> str:
        """What this site's index declares of labels and channels, signed; no patient changes it."""
        run = self.federation.training_run
        return dialogue.Declares.signed(self.data.declared, run, self.me, self.key).model_dump_json()

    def spent(self) -> float | None:
        """What the patients have spent, as epsilon."""
        return self._epsilon

    def closing(self, start: RoundStart, content: bytes) -> None:
        """The end of the run: the last model, and every receipt."""
        self._take_model(start, content)
        self.receipts = chained(start.missed, self.seen)
        self.folder.tally.burned = start.round_number - 1 - len(self.receipts)

    def _take_model(self, start: RoundStart, content: bytes) -> None:
        """A model that is signed like any other, outside a round."""
        if start.model_hash != self.about(start, content):
            raise RoundFailedError("the coordinator sent another model than its signed round start names")
        self._adopt(start, content)

    def account(self, account: Account) -> None:
        """Write down a round that this process did not see to its end."""
        if not self.receipts:  # they come with the next round start, and at the end
            self._earlier = account
            return
        receipt = self.settle_earlier(account, self.receipts)
        number = receipt.round_number
        if number not in self.seen:
            self.seen[number] = receipt.head
            facts = Facts(number, None, self.folder.emit)
            ended = facts.ended(tuple(account.included.by_id), account.dropped, receipt.head)
            self.folder.end_round(self.given_out, None, ended)

    def saw(self) -> Sequence[Span]:
        """Of these rounds this process needs no account."""
        return spans(self.seen)

    def ended(self, last: Finished) -> None:
        """Keep what a process needs that is started again: this one may be killed before its folder is finished."""
        self.folder.checkpoint(self.given_out, None)
        final = str(self.folder.path.absolute()).removesuffix(PARTIAL)
        Ended(last.reason, last.complete, final).keep(self.options.state, name_of(self.study, self.federation))

    def _spent(self) -> float | None:
        epsilon = self.figures.epsilon()
        return epsilon if epsilon is not None and math.isfinite(epsilon) else None

    def sending(self, kind: str, payload: bytes) -> None:
        """Write down what is about to leave."""
        self._record.keep(kind, payload, self._place, self._epsilon)

    def wish(self) -> Wish:
        """What the operator decided beside this process."""
        return self._control.wish(self.federation.training_run)

    # --- For the operator --------------------------------------------------------------------------------------------

    def replayed(self, receipt: Receipt, transcript: bytes) -> None:
        """Keep a transcript that holds."""
        own = receipt.training_run == self.federation.training_run
        kept = (self.folder.path if own else self.options.state) / "transcripts"
        kept.mkdir(PRIVATE_FOLDER, exist_ok=True)
        path = kept / f"{receipt.round_number:04d}-{receipt.round_id.hex()[:16]}.transcript"
        write_whole(path, transcript)
        self.following.replayed(path, self.course, self.policy)

    def public(self, error: Exception) -> str:
        """A lie of the coordinator is no secret."""
        return str(error) if isinstance(error, RoundFailedError) else super().public(error)

    def awaiting(self, sites: Iterable[str], seconds: float) -> None:
        """Say who is waited for."""
        self.folder.emit(Waiting(sites=tuple(sites), seconds=min(seconds, FOR_EVER)))

    def connected(self) -> None:
        """Say that the coordinator answers, and until when it lets this site in."""
        self.folder.emit(Connected(site=COORDINATOR))
        if (end := self.mailbox.tls.expires) is not None:
            self.folder.emit(Certificate(site=self.me, until=end.isoformat()))

    def lost(self, sentence: str) -> None:
        """Say that it does not, and why."""
        self.folder.emit(Disconnected(site=COORDINATOR))
        self.note(sentence)

    def note(self, text: str) -> None:
        """Say a sentence."""
        self.folder.emit(Note(text=text))


def take_part(folder: RunFolder, data: SiteData, options: Options) -> Path:
    """Run a site to its end, or until its operator stops it; see `Site`."""
    site = Site(folder, data, options)
    return run_until_stopped(site.run(), "nothing is lost: the same command takes part again")
