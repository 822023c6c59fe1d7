"""What a site is between rounds: there, or kept out of the next one (C-05, C-26); and how it says so."""

import asyncio
import contextlib
from collections.abc import Iterable

import torch

from fedseg import dialogue
from fedseg.credentials import load_federation, signing_key, site_tls
from fedseg.data.cases import SiteData
from fedseg.errors import ConfigError, FedSegError, RoundFailedError
from fedseg.events import Connected, Note, Waiting
from fedseg.exposure import MARKS, data_set_ledger
from fedseg.models import build_model
from fedseg.runfolder import RunFolder
from fedseg.site.figures import Figures
from fedseg.site.following import Following
from fedseg.site.options import Options
from fedseg.site.round import Round
from fedseg.study import Study
from fedseg.update import flatten, opened
from secagg import AbortedError
from secagg.messages import Receipt
from secagg.policy import session_id
from secagg.rpc.client import MailboxClient
from secagg.rpc.frames import message_limit
from secagg.rpc.tls import COORDINATOR
from secagg.service.exposed import Exposed
from secagg.sqlite import SqliteStore
from secagg.writing import PRIVATE_FOLDER, write_whole

FAREWELL_SECONDS = 5.0
"""How long a site that failed tries to say so."""

UNANSWERED_SECONDS = 2.0
"""After which it is said that the coordinator does not answer yet."""


class Party:
    """A site's keys, marks and connection.

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
        options.state.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        self.store = SqliteStore(options.state / MARKS, self.me)
        self.ledger = data_set_ledger(options.state, self.store, self.key, data)
        self.model = build_model(self.study)
        self.parameters = len(flatten(self.model))
        self.state = opened(self.model, self.study.kept(self.parameters))
        self.policy = self.study.policy(self.parameters, self.federation.server_key)
        # Whole transcripts come, one masked input a site, unless each update is private alone (C-05).
        vectors = 1 if self.study.trust.each_update_private else 1 + self.policy.clients
        limit = vectors * message_limit(self.policy) + 4 * len(self.state)
        tls = site_tls(options.credentials, self.me, self.federation)
        self.mailbox = MailboxClient(options.address, self.me, tls, patience=options.patience, max_message_bytes=limit)
        self.session = session_id(self.policy, self.federation.pinned)
        self._refuse_used_name()
        self.following = Following(options.state, f"{self.session.hex()}/{self.federation.training_run}")
        command = options.command or f"fedseg site STUDY {self.me} ..."
        self.exposed = Exposed(self.store, options.state, lambda round_ids: _accepting(command, round_ids))
        self.figures = Figures(folder, self.me, data, self.ledger, options.audit)
        self.round: Round | None = None
        self.evaluation: asyncio.Task[None] | None = None
        self.completed = 0
        self.told = ""  # last of what only the operator is told of patients
        self.seen: dict[int, bytes] = {}  # rounds whose end was seen or proved, and their heads
        self.receipts: tuple[Receipt, ...] = ()

    def _refuse_used_name(self) -> None:
        """Refuse a run whose rounds the ledger would take for those of an earlier one, and would not charge.

        One charge pays for one contribution to a round (C-14), and the marks count those by federation and name.

        Raises:
            ConfigError: this data set contributed to a run of this name in another federation.
        """
        run = self.federation.training_run
        with self.store.transaction() as marks:
            used = self.study.trust.claims_epsilon and any(
                marks.contributed(session, name)
                for session, name in marks.runs
                if name == run and session != self.session
            )
        if used:
            raise ConfigError(
                f"training run '{run}': this data set took part in one of this name, with other keys or another study, "
                "and its charges do not pay for a second; give all parties new credentials with another --training-run"
            )

    def _end_round(self) -> None:
        if self.round is not None:
            self.round.close()
            self.round = None

    async def _connect(self) -> None:
        waiting = Waiting(sites=(COORDINATOR,), seconds=max(self.options.patience - UNANSWERED_SECONDS, 0.0))
        late = asyncio.get_running_loop().call_later(UNANSWERED_SECONDS, self.folder.emit, waiting)
        try:
            await self.mailbox.connect()
        finally:
            late.cancel()
        self.folder.emit(Connected(site=COORDINATOR))

    async def _failed(self, error: FedSegError) -> None:
        """Say that this site stops; the coordinator may be gone, and the operator must read what failed here."""
        public = str(error) if isinstance(error, RoundFailedError) else "an error of its own, see its log"
        with contextlib.suppress(AbortedError, TimeoutError):
            async with asyncio.timeout(FAREWELL_SECONDS):
                await self._tell(dialogue.Failed.because(public))

    async def _tell(self, message: dialogue.FromSite) -> None:
        await self.mailbox.send(message.kind, message.packed())

    # --- Where an update is not private alone -------------------------------------------------------------------------

    async def _begin(self) -> None:
        """Tell the coordinator that this site is there, or which round keeps it out (C-05)."""
        if not self.study.trust.each_update_private and (before := self.exposed.since_before()) is not None:
            said, round_id = before
            await self._wait(said, [round_id])
        else:
            await self._ready()

    async def _ready(self) -> None:
        await self._tell(dialogue.Ready(study=self.study.hash().hex(), unreplayed=self.exposed.unreplayed))

    async def _wait(self, said: str, round_ids: Iterable[bytes]) -> None:
        """Stay out until these rounds are settled: nobody's fault."""
        self._end_round()
        if news := self.exposed.wait(said, round_ids):
            self.folder.emit(Note(text=news))
        await self._ready()

    async def _after_waiting(self) -> None:
        """Come back once everything is settled."""
        if self.exposed.settled():
            self.folder.emit(Note(text="what kept this site out is settled; it takes part in the next round"))
            await self._ready()

    def _replay(self, transcript: bytes) -> None:
        receipt = self.exposed.replay(transcript, self.policy, self.federation.pinned)
        if isinstance(receipt, str):
            self.folder.emit(Note(text=receipt))
            return
        own = receipt.training_run == self.federation.training_run
        kept = (self.folder.path if own else self.options.state) / "transcripts"
        kept.mkdir(PRIVATE_FOLDER, exist_ok=True)
        write_whole(kept / f"{receipt.round_number:04d}-{receipt.round_id.hex()[:16]}.transcript", transcript)


def _accepting(command: str, round_ids: Iterable[bytes]) -> str:
    return f"{command} {' '.join(f'--accept-exposure {round_id.hex()}' for round_id in round_ids)}"
