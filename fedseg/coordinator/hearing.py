"""What a coordinator hears from its sites, and what it answers around the protocol; it opens no round by itself."""

from collections.abc import Iterable

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.attempt import Exchange
from fedseg.coordinator.figures import Figures
from fedseg.coordinator.options import Options
from fedseg.coordinator.transcripts import Transcripts
from fedseg.credentials import coordinator_tls, load_federation, signing_key
from fedseg.dialogue import Metrics, Progress
from fedseg.errors import RoundFailedError
from fedseg.events import Connected, Disconnected, Left, Note, Refused, Trained
from fedseg.models import build_model
from fedseg.runfolder import RunFolder
from fedseg.update import flatten, opened
from secagg import MalformedMessageError, ProtocolError, RoundBook
from secagg.rpc import frames
from secagg.rpc.frames import Received, message_limit
from secagg.rpc.server import MailboxServer
from secagg.rpc.tls import COORDINATOR
from secagg.service import dialogue
from secagg.service.account import Account
from secagg.service.errors import DialogueError
from secagg.service.presence import Presence

HEARD = dialogue.Dialogue((*dialogue.FROM_MEMBER, Progress, Metrics))


class Hearing:
    """The mailbox, and what is known of the sites behind it.

    Raises:
        ConfigError: credentials or study are wrong; nothing was sent.
    """

    def __init__(self, folder: RunFolder, options: Options) -> None:
        self.folder, self.study, self.options = folder, folder.study, options
        self.federation = load_federation(options.credentials, self.study)
        key = signing_key(options.credentials, COORDINATOR)
        torch.set_num_threads(self.study.run.threads)
        self.model = build_model(self.study)
        self.parameters = len(flatten(self.model))
        self.state: NDArray[np.float32] = opened(self.model, self.study.kept(self.parameters))
        self.policy = self.study.policy(self.parameters, key.verify_key)
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
            max_message_bytes=message_limit(self.policy) + 4 * len(self.state),
            gone_after=min(1.0, options.grace),
        )
        self.presence = Presence(self.study.site_ids)
        self.figures = Figures(folder)
        self.accounts: dict[int, Account] = {}
        self.seen: dict[str, set[int]] = {}  # rounds whose result a site's process has confirmed
        self.attempt: Exchange | None = None
        self.over: set[str] = set()  # of whom nothing more is waited for in the attempt that runs

    def _send(self, sites: Iterable[str], message: dialogue.Message) -> None:
        payload = message.packed()
        for site in sorted(sites):
            self.mailbox.send(site, message.kind, payload)

    async def _hear(self, seconds: float) -> None:
        received = await self.mailbox.receive(max(seconds, 0.0))
        if received is not None:
            try:
                self._take(received)
            except (RoundFailedError, DialogueError) as error:
                self.folder.emit(Note(text=str(error)))

    def _take(self, received: Received) -> None:
        site = received.sender
        match received.kind:
            case frames.HELLO:  # a new process
                self.presence.began(site)
                self.folder.emit(Connected(site=site))
                self.seen.pop(site, None)
                self.over.add(site)
            case frames.GONE:
                self.presence.gone(site)
                self.folder.emit(Disconnected(site=site))
            case frames.BACK:
                self.presence.back(site)
                self.folder.emit(Connected(site=site))
            case kind:
                self._answer(site, HEARD.read(kind, received.payload, site))

    def _answer(self, site: str, message: dialogue.Message | None) -> None:
        match message:
            case dialogue.Ready():
                running = self.attempt.facts if self.attempt is not None else None
                # One that was said before this attempt was opened may come after it.
                if running is None or message.joined >= (running.number, running.attempt or 0):
                    self.over.add(site)
                self._take_ready(site, message)
            case Progress():
                self._take_progress(site, message)
            case Metrics() if self.study.report.share_metrics:
                self.figures.take(site, message)
            case dialogue.Leaving():
                self.presence.left.add(site)
                self.folder.emit(Left(site=site, reason=message.reason))
            case dialogue.Failed():
                self.presence.failed(site)
                self.over.add(site)
                if site not in self.presence.refused:  # of whom it was said why
                    self.folder.emit(Note(text=f"{site} stopped: {message.reason}"))
            case dialogue.Protocolled() if self.attempt is not None:
                self._take_protocol(self.attempt, site, message)

    def _take_ready(self, site: str, message: dialogue.Ready) -> None:
        """A site is in no round; it joins the next one if it has this study and waits for nothing."""
        if message.task != self.study.hash().hex():
            if self.presence.refuse(site, "another study file"):
                theirs, ours = message.task[:8], self.study.hash().hex()[:8]
                both = f"{site} was started with another study file ({theirs}) than the coordinator ({ours})"
                reason = f"{both}: compare the two files, and start with the same one"
                self.folder.emit(Refused(site=site, reason=reason))
                self._send([site], dialogue.Refused.because(reason))
            return
        news = self.presence.free(site, message.unreplayed)
        here = [round_id for round_id in message.unreplayed if self._send_transcript(round_id, [site])]
        if news:
            whole = len(here) == len(message.unreplayed)
            there = "which it gets" if whole else "which is not here: its operator decides"
            named = ", ".join(message.unreplayed)
            self.folder.emit(Note(text=f"{site} waits for the transcript of round {named}, {there}"))

    def _take_progress(self, site: str, progress: Progress) -> None:
        self.figures.epsilon[site] = progress.epsilon
        steps = self.study.study.local_steps
        running = self.attempt is not None and progress.round == self.attempt.facts.number
        if running and progress.step <= progress.steps == steps:  # else late, or not true
            self.folder.emit(Trained(round=progress.round, site=site, step=progress.step, steps=steps))

    def _take_protocol(self, attempt: Exchange, site: str, message: dialogue.Protocolled) -> None:
        """Give a site's message to the session; one that is refused leaves no trace but a note."""
        try:
            attempt.take(site, message.data)
        except ProtocolError as error:
            if error.culprits or isinstance(error, MalformedMessageError):
                number = attempt.facts.number
                self.folder.emit(Note(text=f"round {number}: a message of {site} was refused: {error}"))

    def _send_transcript(self, round_id: str, sites: Iterable[str]) -> bool:
        """Send a round's transcript to these sites, to each process of them once.

        Where an update is not private alone, they refuse the next round until they have replayed it (C-05).

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
