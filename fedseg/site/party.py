"""What a site has before it connects: its keys, its marks and ledger, its model, and its line to the coordinator."""

from collections.abc import Sequence

import numpy as np
import torch

from fedseg.course import Course, own_of
from fedseg.credentials import load_federation, signing_key, site_tls
from fedseg.data.cases import SiteData
from fedseg.data.roles import FOLDER as ROLES
from fedseg.data.roles import going_on
from fedseg.device import device_of
from fedseg.errors import ConfigError
from fedseg.exposure import MARKS, data_set_ledger
from fedseg.models import build_model
from fedseg.runfolder import RunFolder
from fedseg.site.figures import Figures
from fedseg.site.following import Following
from fedseg.site.options import Options
from fedseg.study import Study
from secagg.encoding import digest
from secagg.messages import Receipt
from secagg.roster import session_id
from secagg.rpc.client import MailboxClient
from secagg.rpc.frames import message_limit
from secagg.rpc.proof import prover_of
from secagg.service.account import Account
from secagg.sqlite import SqliteStore
from secagg.writing import PRIVATE_FOLDER, replacing

OWN = ".own.npy"
"""How a file in the state folder ends that holds what of a run's model stays at the site."""


class Party:
    """A site's keys, marks and connection.

    Raises:
        ConfigError: credentials, state folder or study are wrong; nothing was sent.
        LedgerError: the ledger is damaged, another site's or of an earlier version.
    """

    def __init__(self, folder: RunFolder, data: SiteData, options: Options) -> None:
        self.folder, self.options = folder, options
        self.study: Study = folder.study
        self.me = options.site
        torch.set_num_threads(self.study.run.threads)
        device_of(self.study)
        self.federation = load_federation(options.credentials, self.study)
        self.key = signing_key(options.credentials, self.me)
        try:
            options.state.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"state folder {options.state}: {error.strerror}; give --state a folder") from error
        record = options.state / ROLES / f"{digest('roles', self.federation.training_run).hex()}.json"
        self.data, self.changes = going_on(record, data)
        self.store = SqliteStore(options.state / MARKS, self.me)
        self.ledger = data_set_ledger(options.state, self.store, self.key, self.data)
        self.model = build_model(self.study)
        self.course = Course(self.study, self.model)
        self.parameters = self.course.parameters
        self.state = self.course.opened(self.model)
        self.policy = self.course.policy(self.federation.server_key)
        # Whole transcripts come, one masked input a site, unless each update is private alone (C-05).
        vectors = 1 if self.study.trust.each_update_private else 1 + self.policy.clients
        limit = vectors * message_limit(self.policy) + 4 * len(self.state)
        tls = site_tls(options.credentials, self.me, self.federation, options.tls)
        self.mailbox = MailboxClient(
            options.address,
            self.me,
            tls,
            patience=options.patience,
            max_message_bytes=limit,
            proxy=options.proxy,
            prover=prover_of(self.key, self.federation.server_key, options.tls),
        )
        self.session = session_id(self.policy, self.federation.pinned)
        self.refuse_used_name()
        self.following = Following(options.state, f"{self.session.hex()}/{self.federation.training_run}")
        self.own = own_of(self.study, self.model)
        self._own_path = options.state / f"{digest('own', self.session, self.federation.training_run).hex()[:16]}{OWN}"
        if self.own is not None and self._own_path.is_file():
            try:
                self.own.whole = np.load(self._own_path, allow_pickle=False)
            except (OSError, EOFError, ValueError) as error:
                raise ConfigError(
                    f"{self._own_path}: cannot be read ({error}); restore it or remove it: then the site's own values "
                    "begin again as the shared model's"
                ) from error
        self.figures = Figures(folder, self.me, self.data, self.ledger, options.audit, self.own)

    def keep_own(self) -> None:
        """Write down what of a model stays at this site; of a round that is not over before its update is sent."""
        if self.own is not None:
            with replacing(self._own_path) as beside:
                np.save(beside, self.own.whole, allow_pickle=False)

    def settle_own(self, *, included: bool) -> None:
        """Take over what of a model stays at this site, with the round that it was trained in."""
        if self.own is not None:
            self.own.settle(included=included)
            self.keep_own()

    def settle_earlier(self, account: Account, receipts: Sequence[Receipt]) -> Receipt:
        """Take it over where this site did not see that round to its end, such as a process that was killed.

        Returns:
            The receipt of the round.

        Raises:
            DialogueError: it is not what sites signed.
        """
        receipt = account.proved(receipts, self.federation.pinned)
        if self.own is not None and self.own.round == receipt.round_number:
            self.settle_own(included=self.me in account.included.by_id)
        return receipt

    def refuse_used_name(self) -> None:
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
