"""A party's folder: its own key, what everybody pinned, and what must outlive a process.

Adapters read everything from here:

    federation.toml   training run, server key, every client's verify key: the same at every party
    policy.toml       [policy] and [task]: the same at every party
    NAME.signing      this party's own key, as `secagg keygen` wrote it
    marks.sqlite      of a site: the marks of its data set
    live.snapshot     of a site between two messages: its secrets of one attempt, sealed (`secagg.snapshot`)
    book.json         of the server: which round is next
    transcripts/      of the server, where updates are not private on their own

Must never: take any of it from a server, or from code that a server ships.
"""

import json
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from secagg import wire
from secagg.book import RoundBook
from secagg.context import RoundContext
from secagg.driver import ClientAction, ClientDriver, Failed, ServerDriver
from secagg.encoding import digest
from secagg.errors import ConfigError, InconsistentViewError, ProtocolError
from secagg.files import (
    Federation,
    federation_text,
    load_key,
    load_policy,
    policy_text,
    read_federation,
    secret_text,
)
from secagg.keys import SigningKey
from secagg.layout import Layout
from secagg.messages import Receipt, RoundStart
from secagg.policy import PinnedRoster, Policy, session_id
from secagg.prg import Executor
from secagg.snapshot_files import kept_in
from secagg.sqlite import SqliteStore
from secagg.text import read_text
from secagg.toml import from_toml
from secagg.transcript_files import Recorder
from secagg.writing import PRIVATE, write_new, write_whole

FEDERATION, POLICY, MARKS, BOOK, TRANSCRIPTS = (
    "federation.toml",
    "policy.toml",
    "marks.sqlite",
    "book.json",
    "transcripts",
)
LIVE = "live.snapshot"
SERVER = "server"
"""Name of the server's key, and of its folder in a trial."""


_TWICE = "the server wants a second sum on a model that this site has trained and seen added up; agree on a new run"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What else all parties agree on: the table [task] of policy.toml. Its hash is the rounds' task hash.

    Attributes:
        private: whether each update is differentially private on its own, and charged. Otherwise every site replays the
            transcript of a round before it joins the next (C-05).
        changes: whether sites send what training changed; otherwise whole weights.
        weighted_by: name of the metric that is a site's weight.
        evaluate: what a site answers where the server asks it to evaluate: "refuse", nothing, or "clear", its metrics.
    """

    private: bool = False
    changes: bool = True
    weighted_by: str = "num-examples"
    evaluate: str = "refuse"

    def __post_init__(self) -> None:
        for field in fields(self):
            if not isinstance(getattr(self, field.name), type(field.default)):
                raise ConfigError(f"[task] {field.name}: must be a {type(field.default).__name__}")
        if self.evaluate not in ("refuse", "clear"):
            raise ConfigError(f'[task] evaluate = "{self.evaluate}": must be "refuse" or "clear"')

    def hash(self) -> bytes:
        """H(task), 32 bytes."""
        return digest("federated-task", [[field.name, str(getattr(self, field.name))] for field in fields(self)])


@dataclass(frozen=True, repr=False)
class Home:
    """What a party's folder holds.

    Attributes:
        folder: where.
        me: the name in the file of the own key.
        signing_key: the own key.
        federation, policy, task: what all parties pinned.
    """

    folder: Path
    me: str
    signing_key: SigningKey
    federation: Federation
    policy: Policy
    task: Task

    @classmethod
    def read(cls, folder: str | Path) -> "Home":
        """Read a party's folder.

        Raises:
            ConfigError: a file is missing or says something else than it should.
        """
        folder = Path(folder)
        keys = sorted(folder.glob("*.signing"))
        if len(keys) != 1:
            raise ConfigError(f"{folder}: needs exactly one key, NAME.signing, as `secagg keygen` writes it")
        for name in (FEDERATION, POLICY):
            if not (folder / name).is_file():
                raise ConfigError(f"{folder}: lacks {name}, which every party of the federation has")
        me, signing_key = load_key(keys[0])
        federation, policy = read_federation(folder / FEDERATION), load_policy(folder / POLICY)
        if federation.server_key != policy.server_key:
            raise ConfigError(f"{folder}: {FEDERATION} and {POLICY} name different server keys")
        return cls(folder, me, signing_key, federation, policy, _task(folder / POLICY))

    def client(self, store: SqliteStore, executor: Executor | None = None) -> ClientDriver:
        """This site's driver.

        Raises:
            ConfigError: the roster does not pin the own key.
        """
        return ClientDriver(
            self.policy,
            self.me,
            self.signing_key,
            self.federation.pinned,
            store,
            training_run=self.federation.training_run,
            task_hash=self.task.hash(),
            private=self.task.private,
            executor=executor,
        )

    def receive(self, driver: ClientDriver, store: SqliteStore, part: bytes) -> list[ClientAction]:
        """What this site's driver makes of a message of the server, where the server sends the model as well.

        The model that a start announces is taken over; whoever trains compares the model that comes with it (C-23).

        Raises:
            InconsistentViewError: an update that is not private was added up on this very model, in this run: a second
                sum with others in it would show the difference.
        """
        with suppress(ProtocolError):  # a transcript, or what the driver refuses
            start = wire.decode_from_server(part)
            if isinstance(start, RoundStart):
                driver.model_hash = start.model_hash
                session = session_id(self.policy, self.federation.pinned)
                with store.transaction() as marks:
                    summed = marks.summed(session, self.federation.training_run, start.model_hash)
                if summed and not self.task.private:
                    return [Failed(_TWICE, InconsistentViewError("C-23", _TWICE))]
        return driver.receive(part)

    def store(self) -> SqliteStore:
        """The marks of this site's data set."""
        return SqliteStore(self.folder / MARKS, self.me)

    def server(self, *, executor: Executor | None = None, **driving: Any) -> ServerDriver:
        """The server's driver, with the book of rounds that an earlier process left here.

        Args:
            executor: what expands masks.
            driving: seconds and attempts, as `ServerDriver` takes them.

        Raises:
            ConfigError: the own key is not the one that all parties pinned, or the book is damaged.
        """
        book = RoundBook(self.federation.training_run, self.task.hash(), self.signing_key, self.policy.max_corrupt)
        if (self.folder / BOOK).is_file():
            try:
                book.restore(json.loads(read_text(self.folder / BOOK)))
            except ValueError as error:  # no JSON; a ConfigError is one, too
                raise ConfigError(f"{self.folder / BOOK}: {error}") from None
        record = None if self.task.private else self._recorder
        return ServerDriver(self.policy, self.federation.pinned, book, record=record, executor=executor, **driving)

    def live(self, driver: ClientDriver) -> AbstractContextManager[list[ClientAction]]:
        """The attempt that an earlier process of this site left here; see `secagg.snapshot_files.kept_in`."""
        return kept_in(self.folder / LIVE, driver)

    def save_book(self, saved: object) -> None:
        """Write the book of rounds: before the next attempt is announced, or it would repeat numbers (C-03)."""
        write_whole(self.folder / BOOK, json.dumps(saved), PRIVATE)

    def transcripts(self, receipts: Iterable[Receipt], round_ids: Iterable[str]) -> list[bytes]:
        """The transcripts of finished rounds that are kept here, for a site that waits for them (C-05).

        Args:
            receipts: of the finished rounds.
            round_ids: in hexadecimal.
        """
        wanted = set(round_ids)
        numbers = [receipt.round_number for receipt in receipts if receipt.round_id.hex() in wanted]
        kept = (path for n in numbers for path in sorted((self.folder / TRANSCRIPTS).glob(f"{n:04d}-*.transcript")))
        return [path.read_bytes() for path in kept]

    def _recorder(self, context: RoundContext) -> Recorder:
        (self.folder / TRANSCRIPTS).mkdir(exist_ok=True)
        path = self.folder / TRANSCRIPTS / f"{context.round_number:04d}-{context.attempt}.transcript"
        return Recorder(path, self.policy, self.federation.pinned, context, signing_key=self.signing_key)


def _task(path: Path) -> Task:
    table = from_toml(read_text(path)).get("task", {})
    known = [field.name for field in fields(Task)]
    for name in table:
        if name not in known:
            raise ConfigError(f"{path}: [task] has the unknown field {name!r}; it may have {', '.join(known)}")
    return Task(**table)


def task_text(task: Task) -> str:
    """The table [task] of a policy file, to go behind `secagg.files.policy_text`."""
    lines = [f"{field.name} = {json.dumps(getattr(task, field.name))}" for field in fields(task)]
    return "\n".join(["[task]", *lines, ""])


def trial(folder: str | Path, sites: Sequence[str], layout: Layout, task: Task | None = None, **policy: Any) -> Path:
    """Folders for a trial on one machine: `folder`/server, and one for each site, with fresh keys.

    In earnest each party makes its own key (`secagg keygen`) and all compare what they pin.

    Args:
        folder: where; must not hold such folders yet.
        sites: names.
        layout: of the vector, such as `secagg.federated.layout_for` makes.
        task: what else is agreed on.
        policy: more fields of `secagg.Policy`.

    Returns:
        The folder.

    Raises:
        ConfigError: no safe policy, or a folder is there already.
    """
    keys = {name: SigningKey.generate() for name in [*sites, SERVER]}
    server_key = keys[SERVER].verify_key
    pinned = PinnedRoster({site: keys[site].verify_key for site in sites})
    agreed = Policy(**{"project": "trial", "clients": len(sites), "layout": layout, "server_key": server_key, **policy})
    for name, key in keys.items():
        home = Path(folder) / name
        home.mkdir(parents=True, exist_ok=False)
        write_new(home / f"{name}.signing", secret_text(name, key), PRIVATE)
        write_new(home / FEDERATION, federation_text(Federation("trial", server_key, pinned)))
        write_new(home / POLICY, policy_text(agreed) + "\n" + task_text(task or Task()))
    return Path(folder)
