"""What there is to look at: run folders, state folders and ledgers, each told by what lies in it; nothing is believed.

A folder that cannot be read as what it is ends the look; what is wrong within it is for the checks to find. Must never:
write anything into a folder that is looked at, or into a store of marks.
"""

import hashlib
import json
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ValidationError

from fedseg.course import Course
from fedseg.errors import ConfigError, LedgerError
from fedseg.events import Event, Listening, RoundEnded, StudyStarted, Trained, event_of
from fedseg.ledger import FILE, Entry, Line, read, verify
from fedseg.models import build_model
from fedseg.records import Metrics
from fedseg.runfolder import LIFETIME, POLICY, read_state
from fedseg.study import Study, load_study
from secagg.files import Federation, load_policy, read_federation
from secagg.policy import Policy
from secagg.sqlite import SqliteStore
from secagg.store import Marks
from secagg.transcript_files import Published, context_of, published

COORDINATOR, SITE, SIMULATION = "coordinator", "site", "simulation"
MARKS = "marks.sqlite"
LEDGERS = "ledger"
"""In the run folder of a simulation: one for each site."""
E = TypeVar("E", bound=Event)


@dataclass(frozen=True)
class Run:
    """One party's run folder, complete or broken off.

    Attributes:
        path: of the folder.
        study: parsed anew from the folder's study.toml.
        events: of the log, up to the last whole round where the run broke off.
        metrics: None where the run broke off.
        model: the file with the last model.
        transcripts: in the order of their rounds.
    """

    path: Path
    study: Study
    events: tuple[Event, ...]
    metrics: Metrics | None
    model: Path
    transcripts: tuple[Path, ...]

    def of_kind(self, kind: type[E]) -> list[E]:
        """The events of one kind, in order."""
        return [event for event in self.events if isinstance(event, kind)]

    @cached_property
    def first(self) -> StudyStarted:
        """What the log says that the study fixed."""
        return self.of_kind(StudyStarted)[0]

    @cached_property
    def ended(self) -> dict[int, RoundEnded]:
        """The completed rounds of the log by number, sorted."""
        return {end.round: end for end in sorted(self.of_kind(RoundEnded), key=lambda end: end.round)}

    @property
    def role(self) -> str:
        """Whose folder it is."""
        if (self.path / LEDGERS).is_dir() or (self.path / LIFETIME).is_file():
            return SIMULATION
        return COORDINATOR if self.of_kind(Listening) else SITE

    @property
    def plain(self) -> bool:
        """Whether there was no secure aggregation, so that there can be no transcript."""
        return not self.first.secure

    def __str__(self) -> str:
        trained = {event.site for event in self.of_kind(Trained)}
        return trained.pop() if self.role == SITE and len(trained) == 1 else self.role


@dataclass(frozen=True)
class Charged:
    """One site's ledger as it was given.

    Attributes:
        path: of the file.
        site: whose; "" for an empty or unreadable one.
        lines: in order; none where it does not verify.
        broken: why it does not verify; "" where it does.
    """

    path: Path
    site: str
    lines: tuple[Line, ...]
    broken: str

    @classmethod
    def read(cls, path: Path) -> "Charged":
        """A ledger, whether it verifies or not."""
        try:
            verify(path)
            lines = tuple(read(path))
        except LedgerError as error:
            return cls(path, path.stem, (), str(error))
        return cls(path, next((line.entry.site for line in lines), path.stem), lines, "")

    @cached_property
    def entries(self) -> dict[str, Entry]:
        """Id to entry, in order."""
        return {line.event_id: line.entry for line in self.lines}

    @property
    def simulated(self) -> bool:
        """Whether it lies in the run folder of a simulation, and is no data set's own."""
        return self.path.parent.name == LEDGERS

    def __str__(self) -> str:
        return f"ledger of {self.site}"


@dataclass(frozen=True)
class Material:
    """Everything that was given, and what the reader brings.

    Attributes:
        runs, ledgers: what was found in the folders.
        federation: the reader's own roster, run name and server key; None where none was given.
        run_name: the training run whose rounds are looked at; "" where nothing tells.
    """

    runs: tuple[Run, ...]
    ledgers: tuple[Charged, ...]
    federation: Federation | None
    run_name: str

    @property
    def study(self) -> Study:
        """Of the first run."""
        return self.runs[0].study

    @cached_property
    def charged_by_simulations(self) -> frozenset[Path]:
        """The ledgers for life that a simulation among the runs has charged, resolved."""
        return frozenset(path.resolve() for run in self.runs for path in _for_life(run.path))

    @cached_property
    def policy(self) -> Policy:
        """What every aggregation had to be under: computed from the study, with the reader's server key."""
        if self.federation is not None:
            server_key = self.federation.server_key
        else:
            path = next((run.path / POLICY for run in self.runs if (run.path / POLICY).is_file()), None)
            server_key = load_policy(path).server_key if path else b""
        return self.course.policy(server_key)

    @cached_property
    def course(self) -> Course:
        """How the study's model goes from round to round."""
        return Course(self.study, build_model(self.study))

    @cached_property
    def rounds(self) -> dict[int, tuple[Path, Published]]:
        """The transcripts with a sum of this run, one a round number, sorted; where they lie.

        Raises:
            ConfigError: one is not a transcript of this policy.
        """
        found: dict[int, tuple[Path, Published]] = {}
        for run in self.runs:
            for path in run.transcripts:
                told = published(path, self.policy)
                if told is not None and told.context.training_run == self.run_name:
                    found.setdefault(told.context.round_number, (path, told))
        return dict(sorted(found.items()))

    @cached_property
    def log(self) -> dict[int, RoundEnded]:
        """The completed rounds as the first run's log has them."""
        return self.runs[0].ended

    def is_of_run(self, path: Path) -> bool:
        """Whether a transcript says that it is of this training run."""
        return context_of(path).training_run == self.run_name

    def inputs(self) -> dict[str, str]:
        """SHA-256 of every file that is looked at, by path."""
        files = [path for run in self.runs for path in sorted(run.path.iterdir()) if path.is_file()]
        files += [path for run in self.runs for path in run.transcripts]
        files += [ledger.path for ledger in self.ledgers if ledger.path.is_file()]
        return {str(path): sha256(path) for path in files}


def sha256(path: Path) -> str:
    """SHA-256 of a file, hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def gather(paths: Iterable[Path], roster: Path | None, *, runs: bool = True) -> Material:
    """Tell what lies in each of these folders and files.

    Args:
        paths: run folders, state folders and ledgers.
        roster: the reader's own federation.toml.
        runs: whether there has to be a run folder among them.

    Raises:
        ConfigError: one is none of these, or cannot be read as what it is; or they are of several studies.
    """
    folders, ledgers = list[Run](), list[Charged]()
    for path in paths:
        if (path / "study.toml").is_file():
            folders.append(read_run(path))
            ledgers += map(Charged.read, [*sorted((path / LEDGERS).glob("*.jsonl")), *_for_life(path)])
        elif (path / FILE).is_file():
            ledgers.append(Charged.read(path / FILE))
        elif path.is_file() and path.suffix == ".jsonl":
            ledgers.append(Charged.read(path))
        else:
            raise ConfigError(f"{path}: neither a run folder, nor a site's state folder, nor a ledger")
    if runs and not folders:
        raise ConfigError("no run folder was given; name one that `fedseg simulate`, `coordinator` or `site` wrote")
    ledgers = list({ledger.path.resolve(): ledger for ledger in ledgers}.values())  # one may be given and named
    federation = read_federation(roster) if roster is not None else None
    return Material(tuple(folders), tuple(ledgers), federation, _run_name(folders, ledgers, federation))


def _for_life(run: Path) -> list[Path]:
    """The ledgers in which a simulation was charged, as far as they are here."""
    path = run / LIFETIME
    if not path.is_file():
        return []
    try:
        found = [Path(state) / FILE for state in json.loads(path.read_text(encoding="utf-8")).values()]
    except (OSError, ValueError, AttributeError, TypeError):
        raise ConfigError(f"{path}: is cut off or not what a run writes") from None
    return [ledger for ledger in found if ledger.is_file()]


def _run_name(runs: list[Run], ledgers: list[Charged], federation: Federation | None) -> str:
    """The run as the reader's federation names it; else the only one that transcripts or ledgers of the study name."""
    if federation is not None:
        return federation.training_run
    named = {context_of(path).training_run for run in runs for path in run.transcripts}
    if not named and runs:
        study = runs[0].study.hash().hex()
        entries = [entry for ledger in ledgers for entry in ledger.entries.values()]
        named = {entry.training_run for entry in entries if entry.study_hash == study}
    return named.pop() if len(named) == 1 else ""


def read_run(folder: Path) -> Run:
    """One party's run folder.

    Raises:
        ConfigError: its study, log, metrics or state cannot be read, or there is no model.
    """
    complete = (folder / "metrics.json").is_file()
    if not complete and not (folder / "state.json").is_file():
        raise ConfigError(f"{folder}: has neither metrics.json nor state.json: the run was over before a whole round")
    state = {} if complete else read_state(folder)
    metrics = _metrics(folder / "metrics.json") if complete else None
    events = tuple(_events(folder / "events.jsonl", state.get("events")))
    if not any(isinstance(event, StudyStarted) for event in events):
        raise ConfigError(f"{folder / 'events.jsonl'}: nothing in it says which study was begun")
    model = folder / str(state.get("model", "model.safetensors"))
    found = (folder / "transcripts").glob("*.transcript")
    transcripts = sorted(found, key=lambda path: (*_place(path), path.name))
    return Run(folder, load_study(folder / "study.toml"), events, metrics, model, tuple(transcripts))


def _place(path: Path) -> tuple[str, int, int]:
    context = context_of(path)
    return context.training_run, context.round_number, context.attempt


def _metrics(path: Path) -> Metrics:
    try:
        return Metrics.model_validate_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"{path}: is cut off or not what a run writes") from error


def _events(path: Path, whole: int | None) -> Iterator[Event]:
    """The events of the log; of a broken run those of its first `whole` bytes."""
    try:
        for line in path.read_bytes()[:whole].splitlines():
            fields: Any = json.loads(line)
            if event := event_of(fields):
                yield event
    except (OSError, ValueError, AttributeError, ValidationError) as error:
        raise ConfigError(f"{path}: is cut off or not what a run writes") from error


@contextmanager
def marks_of(ledger: Charged) -> Iterator[Marks | None]:
    """The marks beside a ledger, None where there are none: a copy is opened, so that nothing here can change them.

    Raises:
        ConfigError: it is no store, or its log was changed.
    """
    path = ledger.path.parent / MARKS
    if not path.is_file():
        yield None
        return
    with tempfile.TemporaryDirectory() as folder:
        copy = shutil.copy(path, folder)
        with SqliteStore.existing(Path(copy)) as store, store.transaction() as marks:
            yield marks
