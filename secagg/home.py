"""A party's folder: its own key, what everybody pinned, and what must outlive a process.

Adapters read everything from here:

    federation.toml   training run, server key, every client's verify key: the same at every party
    policy.toml       [policy] and [task]: the same at every party
    NAME.signing      this party's own key, as `secagg keygen` wrote it
    marks.sqlite      of a site: the marks of its data set
    live.snapshot     of a site between two messages: its secrets of one attempt, sealed (`secagg.snapshot`)
    model.npz         of a site, where updates are not private on their own: the global model that it trained last
    next.json         the same: what the model after that is, computed by the site
    book.json         of the server: which round is next
    transcripts/      of the server, where updates are not private on their own
    evaluation/       the last five, of sums of evaluations

Must never: take any of it from a server, or from code that a server ships.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any

from secagg import wire
from secagg.arguments import must_be, positive
from secagg.book import RoundBook
from secagg.context import RoundContext
from secagg.driver import ClientAction, ClientDriver, Completed, Failed, ServerDriver
from secagg.encoding import digest
from secagg.errors import ConfigError, InconsistentViewError, ProtocolError
from secagg.federated import METRICS, WEIGHT, Arrays
from secagg.field import Field
from secagg.files import (
    Federation,
    federation_text,
    load_key,
    load_policy,
    policy_text,
    read_federation,
    secret_text,
)
from secagg.following import Following
from secagg.keys import SigningKey
from secagg.layout import Layout
from secagg.messages import Receipt, RoundStart
from secagg.policy import Policy
from secagg.prg import Executor
from secagg.roster import PinnedRoster, session_id
from secagg.snapshot_files import kept_in
from secagg.sqlite import SqliteStore
from secagg.text import read_text
from secagg.toml import from_toml, to_toml
from secagg.transcript_files import Recorder
from secagg.writing import PRIVATE, write_new, write_whole

FEDERATION, POLICY, MARKS, BOOK, TRANSCRIPTS = (
    "federation.toml",
    "policy.toml",
    "marks.sqlite",
    "book.json",
    "transcripts",
)
LIVE, EVALUATION = "live.snapshot", "evaluation"
SERVER = "server"
"""Name of the server's key, and of its folder in a trial."""


_TWICE = "the server wants a second sum on a model that this site has trained and seen added up; agree on a new run"
_OTHER = "the server sent another model or config than the one that it opened the round for"


@dataclass(frozen=True, kw_only=True)
class Task:
    """What else all parties agree on: the table [task] of policy.toml. Its hash is the rounds' task hash.

    Attributes:
        private: whether each update is differentially private on its own, and charged. Otherwise every site replays the
            transcript of a round before it joins the next (C-05).
        changes: whether sites send what training changed; otherwise whole weights.
        weighted_by: name of the metric that is a site's weight.
        next: what the next model is: "mean", the last one and the mean of the sum, which each site computes and demands
            where updates are not private; or "server", whatever the server makes of it, which no site can check.
        evaluate: what a site answers where the server asks it to evaluate: "refuse", nothing; "sum", its metrics, in a
            sum of their own; "clear", its metrics for the server to read.
        evaluation: name and clip range of each metric of an evaluation, for "sum".
    """

    private: bool = False
    changes: bool = True
    weighted_by: str = "num-examples"
    next: str = "mean"
    evaluate: str = "refuse"
    evaluation: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for each in fields(self):
            if each.name != EVALUATION and not isinstance(getattr(self, each.name), type(each.default)):
                raise ConfigError(f"[task] {each.name}: must be a {type(each.default).__name__}")
        if not isinstance(self.evaluation, Mapping):
            raise ConfigError("[task.evaluation]: must be a table of a clip range for each metric")
        if self.next not in ("mean", "server"):
            raise ConfigError(f'[task] next = "{self.next}": must be "mean" or "server"')
        if self.evaluate not in ("refuse", "sum", "clear"):
            raise ConfigError(f'[task] evaluate = "{self.evaluate}": must be "refuse", "sum" or "clear"')
        if (self.evaluate == "sum") != bool(self.evaluation):
            raise ConfigError('[task] evaluate = "sum" and [task.evaluation] belong together: name a clip range each')
        for name in self.evaluation:
            must_be(name, str, f"[task.evaluation] {name!r}", "give the metric's name, a text")
        named = sorted(self.evaluation.items())
        ranges = {name: positive(f"[task.evaluation] {name}", bound) for name, bound in named}
        object.__setattr__(self, "evaluation", ranges)

    def hash(self) -> bytes:
        """H(task), 32 bytes."""
        return digest("federated-task", [[each.name, ascii(getattr(self, each.name))] for each in fields(self)])


@dataclass(frozen=True, repr=False)
class Home:
    """What a party's folder holds.

    Attributes:
        folder: where.
        me: the name in the file of the own key.
        signing_key: the own key.
        federation, policy, task: what all parties pinned.
        following: what the site knows of the next model; None where it takes any.
        evaluates: whether these are the sums of evaluations.
    """

    folder: Path
    me: str
    signing_key: SigningKey
    federation: Federation
    policy: Policy
    task: Task
    following: Following | None
    evaluates: bool = False

    @classmethod
    def read(cls, folder: str | Path) -> "Home":
        """Read a party's folder.

        Raises:
            ConfigError: a file is missing or says something else than it should.
        """
        must_be(folder, (str, Path), "folder", "give the name of a party's folder")
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
        task = _task(folder / POLICY)
        computes = task.next == "mean" and not task.private
        following = Following(folder, policy, task.changes) if computes else None
        return cls(folder, me, signing_key, federation, policy, task, following)

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
        actions = driver.receive(part)
        for action in actions:
            if isinstance(action, Completed) and self.following and not self.evaluates and driver.session:
                self.following.concluded(action, driver.session.opened.context.model_hash)
        return actions

    def takes(self, driver: ClientDriver, model: Arrays, told: bytes) -> None:
        """Hold the model that came with a message against this attempt and, without privacy, against the last sum.

        Args:
            driver: this site's, in the attempt that wants an update.
            model: that came.
            told: 32 bytes, of all that came with it, as every site computes it.

        Raises:
            InconsistentViewError: C-23, it is another one.
        """
        session = driver.session
        if session is None or session.opened.context.model_hash != told:
            raise InconsistentViewError("C-23", _OTHER)
        if self.following is None:
            return
        if self.evaluates:
            self.following.demand(model)
        else:
            self.following.demand(model, session.opened.context.previous_head)
            self.following.trains(model, told)

    @property
    def evaluation(self) -> "Home":
        """The same party in sums of evaluations: a session, a run and a book of their own, the same key and marks.

        Raises:
            ConfigError: the policy's layout has no private weight.
        """
        if not isinstance(weight := self.policy.fields.get(WEIGHT), Field):
            raise ConfigError("the policy's layout has no private weight; make it with secagg.federated.layout_for")
        metrics = {
            f"{METRICS}/{name}": Field.floats(clip_range=bound, value_bits=20)
            for name, bound in self.task.evaluation.items()
        }
        (self.folder / EVALUATION).mkdir(mode=0o700, exist_ok=True)
        return replace(
            self,
            evaluates=True,
            folder=self.folder / EVALUATION,
            policy=replace(self.policy, layout=Layout({WEIGHT: weight, **metrics}), length=0, bits=0),
            federation=replace(self.federation, training_run=f"{self.federation.training_run} {EVALUATION}"),
        )

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
    known = [each.name for each in fields(Task)]
    for name in table:
        if name not in known:
            raise ConfigError(f"{path}: [task] has the unknown field {name!r}; it may have {', '.join(known)}")
    return Task(**table)


def task_text(task: Task) -> str:
    """The table [task] of a policy file, to go behind `secagg.files.policy_text`."""
    table = {each.name: getattr(task, each.name) for each in fields(task)}
    return to_toml({"task": {name: value for name, value in table.items() if value != {}}})


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
        ConfigError: no safe policy, a name or type that cannot be meant, or a folder is there already.
    """
    must_be(folder, (str, Path), "folder", "give the name of a folder")
    must_be(sites, (list, tuple), "sites", "give the names of the sites, as a list")
    must_be(layout, Layout, "layout", "make it with secagg.federated.layout_for")
    must_be(task or Task(), Task, "task", "give a secagg.home.Task")
    names = [*sites, SERVER]
    for name in names:
        must_be(name, str, f"site {name!r}", "give its name, a text")
        if names.count(name) > 1:
            raise ConfigError(f"two parties have the name {name!r}: give each its own, and no site the server's")
        if (Path(folder) / name).exists():
            raise ConfigError(f"{Path(folder) / name} is there already: choose another folder, or remove it")
    keys = {name: SigningKey.generate() for name in names}
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
