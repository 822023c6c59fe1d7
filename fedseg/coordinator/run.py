"""The coordinator's process: one run of one study, from the first site that connects to the report.

`secagg.service.coordinator` opens rounds, keeps everything in the run's journal and goes on after any end;
`training` says what a sum means, and this what a run folder shows of it.
"""

import asyncio
import math
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import fields
from datetime import datetime
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg import events as told
from fedseg.coordinator.figures import Figures
from fedseg.coordinator.finding import write_identity
from fedseg.coordinator.options import Options
from fedseg.coordinator.training import Training
from fedseg.credentials import coordinator_tls, load_federation, signing_key
from fedseg.data.declaration import Declaration, agree, odd_ones
from fedseg.dialogue import Declares, ToEvaluate, content_of
from fedseg.errors import ConfigError, RoundFailedError, UnfinishedError
from fedseg.models.standardising import follow
from fedseg.runfolder import POLICY, RunFolder
from fedseg.start import starting_model
from fedseg.summary import study_event
from fedseg.update import model_hash
from secagg.errors import ConfigError as SecAggConfigError
from secagg.errors import ProtocolError
from secagg.files import policy_text
from secagg.rpc.tls import COORDINATOR
from secagg.service import events
from secagg.service.coordinator import Coordinator as Engine
from secagg.service.errors import RunFailedError
from secagg.service.memory import tidy
from secagg.service.running import How
from secagg.service.running import Options as Running
from secagg.service.stopping import run_until_stopped
from secagg.writing import write_whole


class Coordinator(Engine):
    """One run of one study.

    Args:
        folder: the run's: new, or of an earlier process of this run, see `finding.folder_of_run`.
        options: how it runs.

    Raises:
        ConfigError: credentials or study are wrong, or another process runs it; nothing was sent.
    """

    def __init__(self, folder: RunFolder, options: Options) -> None:
        self.folder, self.study, self._command = folder, folder.study, options.command
        federation = load_federation(options.credentials, self.study)
        key = signing_key(options.credentials, COORDINATOR)
        torch.set_num_threads(self.study.run.threads)
        self.training = training = Training(folder)
        policy = training.course.policy(key.verify_key)
        training.policy, training.running = policy, lambda: self.facts.round if self.driver.running else 0
        self._tls = tls = coordinator_tls(options.credentials)
        running = Running(state=folder.path, **{how.name: getattr(options, how.name) for how in fields(How)})
        try:
            super().__init__(policy, federation, key, tls, self.study.hash(), training, running, self._told)
        except SecAggConfigError as error:
            raise ConfigError(str(error)) from None
        training.book = self.book
        self.declared: dict[str, Declaration] = {}
        write_identity(folder.path, self.study, federation)

    def odd(self, site: str, says: str) -> Mapping[str, str]:
        """Sites whose files declare labels or channels otherwise than most of those who said so do."""
        try:
            said = Declares.heard(says, self.federation.training_run, site, self.federation.pinned[site])
        except RoundFailedError as error:
            return {site: str(error)}
        self.declared[site] = said
        found = odd_ones(self.declared, self.study)
        return found if len(found) < len(self.declared) else {}  # where no two agree, nobody knows yet who is wrong

    def _wanted(self) -> set[str]:
        """Who is in the next round; the others are not waited for."""
        return super()._wanted() & self.study.in_round(self.book.number)

    async def _begin(self, sites: list[str]) -> None:
        try:
            agree({site: self.declared[site] for site in sites if site in self.declared}, self.study)
        except ConfigError as error:
            raise RunFailedError(str(error)) from None
        await super()._begin(sites)

    @property
    def figures(self) -> Figures:
        """What may be said about the models."""
        return self.training.figures

    @property
    def model(self) -> torch.nn.Module:
        """The last model."""
        return self.training.model

    @property
    def parameters(self) -> int:
        """How many it has."""
        return self.training.parameters

    @property
    def state(self) -> NDArray[np.float32]:
        """The last model's state."""
        return self.training.vector

    @state.setter
    def state(self, vector: NDArray[np.float32]) -> None:
        """The state of the next model."""
        self.training.vector = vector

    async def run(self) -> Path:  # type: ignore[override]
        """Serve until the study is complete or too few sites are left.

        Returns:
            The complete run folder; its metrics say where the study is not complete.

        Raises:
            UnfinishedError: the sites did not come, or rounds failed again and again. The run folder is complete all
                the same where a round was, and the same command goes on.
            ProtocolError: S-20, more than max_corrupt sites are corrupt.
        """
        try:
            reason = await super().run()
        except (RunFailedError, ProtocolError) as error:
            if self.folder.tally.completed:
                self._finish_folder(f"the coordinator gave up: {error}")
            if isinstance(error, RunFailedError):
                raise UnfinishedError(str(error)) from error
            raise
        return self.folder.path if self.folder.finished else self._finish_folder(reason)

    def _offered(self, again: bool) -> float:
        """With a folder that is not finished yet it ends in time to finish it."""
        return super()._offered(again and self.folder.finished)

    def _finish_folder(self, reason: str) -> Path:
        self.folder.tally.burned = self.book.number - 1 - self.folder.tally.completed
        return self.figures.finish(self.training.given_out, self.parameters, self._command, reason)

    async def _resume(self) -> None:
        if self.saved is None:
            self.folder.emit(study_event(self.study, self.parameters, secure=True, party=COORDINATOR))
            write_whole(self.folder.path / POLICY, policy_text(self.policy))
        self._valid(COORDINATOR, self._tls.expires)
        if not self.training.restored:
            if self.study.model.start == "phantom":
                self.folder.emit(told.Note(text="the public start is read, or trained now if fedseg ships none"))
            model = await asyncio.to_thread(starting_model, self.study)  # sites load their images meanwhile
            self.state = self.training.course.opened(model)
            follow(self.model, self.state, self.study)
        await super()._resume()

    async def _rounds(self) -> tuple[str, bool]:
        ended = await super()._rounds()
        await self._last_metrics()
        return ended

    async def _last_metrics(self) -> None:
        """Where sites share metrics, open the final model to them and wait for their figures."""
        if not self.study.report.share_metrics:
            return
        present, evaluating = self.presence, set[str]()
        model = ToEvaluate(self.book.start(model_hash(self.state)), content_of(self.state))
        awaited = (present.ready | present.busy.keys()) & self.mailbox.connected()
        self._send(awaited, model)
        deadline = time.monotonic() + max(self.options.step_seconds, self.options.training_seconds)
        while (missing := self.figures.missing(awaited & self.mailbox.connected())) and time.monotonic() < deadline:
            again = missing & present.ready & evaluating  # another process of a site, which was not asked
            self._send(again, model)
            evaluating = evaluating - again | missing - present.ready
            await self._hear(0.25)

    # --- What the run folder shows ------------------------------------------------------------------------------------

    def _told(self, event: events.Event) -> None:
        shown = _event_of(event)
        if isinstance(event, events.Began):
            self.folder.lasts = True
        if shown is not None:
            with suppress(OSError):  # a full disk costs lines of the log, not the run
                self.folder.emit(shown)
        if isinstance(event, events.Connected):
            self._valid(event.site, self.mailbox.link(event.site).certificate_ends)

    def _valid(self, party: str, until: datetime | None) -> None:
        """Say until when a party's certificate is valid."""
        if until is not None:
            with suppress(OSError):
                self.folder.emit(told.Certificate(site=party, until=until.isoformat()))


def _event_of(event: events.Event) -> told.AnyEvent | None:
    """What the log of a run has of it; None where the run's folder writes it down itself."""
    match event:
        case events.Listening():
            return told.Listening(host=event.host, port=event.port)
        case events.Connected():
            return told.Connected(site=event.site)
        case events.Disconnected():
            return told.Disconnected(site=event.site)
        case events.TurnedAway():
            return told.Refused(site=event.site, reason=event.reason)
        case events.Waiting():
            return told.Waiting(sites=event.sites, seconds=_seconds(event.seconds), step=event.step)
        case events.Began():
            return told.RoundStarted(round=event.round, attempt=event.attempt, model_hash=event.model_hash)
        case events.StepOpened():
            return told.StepOpened(round=event.round, step=event.step, sites=event.sites, seconds=event.seconds)
        case events.Accepted():
            return told.StepAccepted(round=event.round, site=event.site, step=event.step, bytes=event.bytes)
        case events.Closed():
            size = event.bytes_down
            return told.StepClosed(round=event.round, step=event.step, seconds=event.seconds, bytes_down=size)
        case events.Dropped():
            return told.Dropped(round=event.round, site=event.site, after=event.after)
        case events.Rejoined():
            return told.Rejoined(round=event.round, site=event.site)
        case events.Left():
            return told.Left(site=event.site, reason=event.reason)
        case events.Burned():
            return told.Burned(round=event.round, attempt=event.attempt, reason=event.reason)
        case events.Note():
            return told.Note(text=event.text)
        case events.Resumed(step=step) if step:
            said = f"it goes on in round {event.round}, attempt {event.attempt}, in the step {step}"
            return told.Note(text=f"an earlier process ended; {said}")
    return None


def _seconds(given: float | None) -> float:
    """For ever, where nothing ends it."""
    return math.inf if given is None else given


def coordinate(folder: RunFolder, options: Options) -> Path:
    """Run a coordinator to its end, or until SIGTERM or SIGINT; see `Coordinator`.

    Raises:
        StoppedError: a signal came; the same command goes on.
    """
    tidy()
    return run_until_stopped(Coordinator(folder, options).run(), "the same command goes on with this run")
