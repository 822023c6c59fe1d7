"""A site's process: one site in one run, from its first connection to its report."""

import asyncio
import copy
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg import dialogue
from fedseg.account import Account, chained
from fedseg.attempt import Facts
from fedseg.budget.charge import charge, charge_metrics
from fedseg.data.cases import SiteData
from fedseg.errors import BudgetExceededError, FedSegError, RoundFailedError
from fedseg.events import Burned, EpsilonSpent, Note, RoundStarted, Trained, Waiting
from fedseg.runfolder import POLICY, RunFolder
from fedseg.site.opening import Opening
from fedseg.site.options import Options
from fedseg.site.round import Round
from fedseg.summary import study_event
from fedseg.train import train_round
from fedseg.update import Update, adopt, model_hash
from secagg import AbortedError, ClientSession, ExposureError, ProtocolError
from secagg.files import policy_text
from secagg.messages import FromClient, MaskedInput, Result, RoundStart, SlotMasks
from secagg.packing import dtype_for
from secagg.writing import write_whole

OWN_MARKS = ("C-03", "C-14", "C-24")
"""Checks that find something in this site's own marks: they end a round here and are nobody's lie."""


class Site(Opening):
    """One process of one site.

    Raises:
        ConfigError: credentials, state folder or study are wrong; nothing was sent.
        LedgerError: the ledger is damaged, another site's or of an earlier version.
    """

    async def run(self) -> Path:
        """Take part until the coordinator says that the study is over.

        Returns:
            The site's own complete run folder, with its local figures; its metrics say where the study is not complete.

        Raises:
            ConfigError, AbortedError: the coordinator refuses this site or is not there.
            RoundFailedError: the coordinator broke the protocol, or has another study.
            FedSegError: own data, ledger or training; the coordinator is told that this site stopped, not why.
        """
        self.folder.emit(study_event(self.study, self.parameters, secure=True, party=self.me))
        write_whole(self.folder.path / POLICY, policy_text(self.policy))
        self.folder.checkpoint(self.model, None)
        async with self.mailbox:
            try:
                await self._connect()
                await self._begin()
                while (reason := await self._next()) is None:
                    pass
            except FedSegError as error:
                await self._failed(error)
                raise
            finally:
                self._end_round()
        self.folder.emit(Note(text=reason))
        return self.figures.finish(self.model, self.parameters, self.options.command, reason)

    async def _next(self) -> str | None:
        """Answer one message, or go on after training; the reason once the study is over."""
        received = await self.mailbox.receive(0.2 if self.round or self.exposed.waiting else None)
        reason = None
        if received is None:
            await self._after_waiting()
        else:
            reason = await self._answer(dialogue.from_coordinator(received.kind, received.payload))
        if reason is None:
            await self._after_training()
        return reason

    async def _answer(self, message: dialogue.FromCoordinator | None) -> str | None:
        match message:
            case dialogue.Opened():
                await self._open(message.start, message.model)
            case dialogue.Protocol() if self.round is not None:
                await self._protocol(self.round, message.data)
            case dialogue.Transcript():
                await asyncio.to_thread(self._replay, message.data)
                await self._after_waiting()
            case dialogue.ToEvaluate():
                await self._evaluated()
                self._take_model(message.start, message.model)
                await self._evaluate(copy.deepcopy(self.model), self.completed)
            case dialogue.Closing():
                await self._evaluated()
                self._close(message.start, message.model)
            case Account():
                self._catch_up(message)
            case dialogue.Awaiting():
                self.folder.emit(Waiting(sites=tuple(message.sites), seconds=message.seconds))
            case dialogue.Refused():
                raise RoundFailedError(message.reason)
            case dialogue.Finished():
                await self._evaluated()
                return message.reason
        return None

    # --- One round ---------------------------------------------------------------------------------------------------

    async def _open(self, start: RoundStart, vector: NDArray[np.float32]) -> None:
        """Verify the round, charge it, advertise keys, and begin to train."""
        self._end_round()
        await self._evaluated()
        try:
            opened = self._verified(start, vector)
            if (last := self._unshown()) is not None:
                what = f"round {last.round_number}, the last finished one, was one of its cohort"
                await self._wait(f"nothing shows this site that {what}", [last.round_id])
                return
            self._adopt(start, vector)
            charge(self.ledger, self.study, self.me, self.federation.training_run, start.round_number)
            if self.ledger.payers is not None and (told := self.ledger.payers.left_out) not in ("", self.told):
                self.told = told
                self.folder.emit(Note(text=told))
            begins = RoundStarted(round=start.round_number, attempt=start.attempt, model_hash=start.model_hash.hex())
            self.folder.emit(begins)
            session = ClientSession(self.policy, self.me, self.key, self.federation.pinned, opened, self.store)
            first = session.start()
            self._refuse_used_name()  # only now has no other process a live attempt (C-24)
        except ExposureError as error:
            await self._wait(str(error), error.round_ids)
            return
        except BudgetExceededError as error:
            await self._tell(dialogue.Leaving.because(error))
            return
        except ProtocolError as error:  # what the own marks say, such as that it was joined before a restart
            self.folder.emit(Note(text=str(error)))
            return
        model, evaluated = copy.deepcopy(self.model), copy.deepcopy(self.model)
        self.round = Round(self.me, session, start.round_number, start.attempt, self.state, self.folder.emit)
        self.round.training = asyncio.create_task(self._train(self.round, model))
        await self._send(self.round, first)
        if self.study.scored_after(self.completed):
            self.evaluation = asyncio.create_task(self._evaluate(evaluated, self.completed))

    async def _train(self, current: Round, model: torch.nn.Module) -> Update:
        loop, epsilon = asyncio.get_running_loop(), self.figures.epsilon()

        def on_step(step: int, steps: int) -> None:
            """Ends the training of a round that is over; tells log and coordinator how far it is."""
            if current.over.is_set():
                raise RoundFailedError("the round is over")
            self.folder.emit(Trained(round=current.number, site=self.me, step=step, steps=steps))
            if step and self.study.trust.claims_epsilon:  # how long a step takes tells how many patients were drawn
                return
            progress = dialogue.Progress(round=current.number, step=step, steps=steps, epsilon=epsilon)
            asyncio.run_coroutine_threadsafe(self._tell(progress), loop)

        def work() -> Update:
            """What the training thread does."""
            return train_round(
                model,
                self.data,
                self.study,
                site=self.me,
                training_run=self.federation.training_run,
                round_number=current.number,
                ledger=self.ledger,
                on_step=on_step,
            )

        on_step(0, self.study.study.local_steps)
        return await asyncio.to_thread(work)

    async def _after_training(self) -> None:
        """Hand a finished update over; a reply may have waited for it."""
        current = self.round
        if current is None or not current.trained or current.training is None:
            return
        # The end of training tells how many patients were drawn, which no epsilon covers, whatever hides the update.
        if self.study.trust.claims_epsilon and current.facts.seconds < self.study.run.hold_seconds:
            return
        update = current.training.result()
        current.provided = True
        if self.options.audit is not None:
            current.quantised = np.zeros(self.policy.length, dtype_for(self.policy.bits))
        given = update.vector, update.event_id, current.rounding(self.study), current.quantised
        await self._guarded(current, lambda: current.session.provide(*given))

    async def _protocol(self, current: Round, data: bytes) -> None:
        try:
            message = current.heard(data)
        except ProtocolError as error:
            raise RoundFailedError(f"round {current.number}: the coordinator broke the protocol: {error}") from error
        await self._guarded(current, lambda: current.session.receive(message))
        if isinstance(message, Result) and current.session.head is not None:
            self._completed(current, message, current.session.head)

    def _completed(self, current: Round, result: Result, head: bytes) -> None:
        total = current.total(result, self.policy)
        following = current.following(total, self.policy, self.study)
        self.following.expect(head, model_hash(following))
        self.state = following
        adopt(self.model, following)
        self.figures.keep(current.number, "total", total)
        ended = current.ended(head)
        if self.study.trust.claims_epsilon:
            self.folder.emit(EpsilonSpent(round=current.number, site=self.me, spent=self.figures.epsilon()))
        self.seen[current.number] = head
        self.folder.end_round(self.model, None, ended)
        self.round = None

    async def _guarded(self, current: Round, step: Callable[[], FromClient | None]) -> None:
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

    def _burned(self, current: Round, reason: str) -> None:
        self.folder.emit(Burned(round=current.number, attempt=current.facts.attempt or 0, reason=reason))
        self._end_round()

    async def _send(self, current: Round, message: FromClient) -> None:
        if isinstance(message, MaskedInput) and current.quantised is not None:
            self.figures.keep(current.number, "update", current.quantised)
        await self._tell(dialogue.Protocol(current.speaks(message)))

    # --- Models and figures ------------------------------------------------------------------------------------------

    async def _evaluated(self) -> None:
        """Wait for the evaluation of the last model, which runs beside training; its errors are this site's."""
        running, self.evaluation = self.evaluation, None
        if running is not None:
            await running

    async def _evaluate(self, model: torch.nn.Module, completed: int) -> None:
        """Dice of the global model on own held-out patients; leaves only where the study says so."""
        metrics = await asyncio.to_thread(self.figures.evaluate, model, completed)
        if self.study.report.share_metrics:
            charge_metrics(self.ledger, self.study, self.me, self.federation.training_run, completed + 1)
            await self._tell(metrics)

    def _close(self, start: RoundStart, vector: NDArray[np.float32]) -> None:
        """The end of the run: the last model, and every receipt."""
        self._end_round()
        self._take_model(start, vector)
        self.receipts = chained(start.missed, self.seen)
        self.folder.tally.burned = start.round_number - 1 - len(self.receipts)

    def _catch_up(self, account: Account) -> None:
        """Write down a round that this process did not see to its end."""
        receipt = account.proved(self.receipts, self.federation.pinned)
        number = receipt.round_number
        if number not in self.seen:
            self.seen[number] = receipt.head
            facts = Facts(number, None, self.folder.emit)
            ended = facts.ended(tuple(account.included.by_id), account.dropped, receipt.head)
            self.folder.end_round(self.model, None, ended)


def take_part(folder: RunFolder, data: SiteData, options: Options) -> Path:
    """Run a site to its end; see `Site`."""
    return asyncio.run(Site(folder, data, options).run())
