"""What a data set's patients have paid: one append-only, hash-chained, fsynced JSON line per charged round.

A site has one ledger for good, across training runs and studies, because what is spent composes over all of them.

An event is on disk before its round trains, so that a crash can only overcharge. It holds all that is needed to
recompute epsilon (`fedseg.privacy.accounting`); the spent epsilon itself is never stored and never trusted. The chain
shows edited, reordered and missing lines; a cut-off tail shows against the event ids that the durable store of
`secagg` keeps. Nothing here is ever rewritten, and no patient, image or key is ever named.
"""

import fcntl
import json
import os
from pathlib import Path
from typing import Literal, Self, TypeAlias

from pydantic import BaseModel, ConfigDict, Field

from fedseg.errors import EARLIER, LedgerError
from secagg.encoding import digest
from secagg.writing import PRIVATE_FOLDER

FILE = "ledger.jsonl"
START = "0" * 64
Generator: TypeAlias = Literal["os", "seeded: no privacy claim"]
_RESTORE = "restore the ledger from a backup, because what this site's patients have spent is no longer known"


class Event(BaseModel):
    """One charged round of one site: `steps` noisy releases of a sum of clipped patient gradients.

    Attributes:
        format: of the event; those of fedseg 0.1 and 0.2 have none, and their epsilon was not true.
        study_hash: hash of the study, hexadecimal.
        site: site id.
        training_run: name of the run whose rounds are counted.
        round_number: at least 1; a round of a training run has one event, whatever the number of its attempts.
        mechanism: ``local`` or ``none``; ``metrics`` is a release of validation metrics.
        covered: whether epsilon speaks for this release; shared metrics and unprotected rounds are not covered.
        unit: whose presence is hidden.
        neighbouring: relation between the data sets that an adversary cannot tell apart.
        sample_rate: probability of each unit to be drawn in a step, independently (Poisson).
        noise_multiplier: standard deviation of the noise on the sum, over `clip_norm`.
        clip_norm: largest L2 norm of one unit's gradient, the sensitivity of the sum.
        denominator: public constant that divides the noisy sum.
        steps: draws in this round.
        generator: where sampling and noise come from; a seeded run claims no privacy.
        transcript_root: root of the round's transcript; null until transcripts exist.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    format: Literal[2] = 2
    study_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    site: str
    training_run: str
    round_number: int = Field(ge=1)
    mechanism: Literal["local", "none", "metrics"]
    covered: bool
    unit: str
    neighbouring: Literal["add or remove one"] = "add or remove one"
    sample_rate: float = Field(gt=0, le=1)
    noise_multiplier: float = Field(ge=0)
    clip_norm: float = Field(ge=0)
    denominator: float = Field(gt=0)
    steps: int = Field(ge=0)
    generator: Generator
    transcript_root: str | None = None


class Ledger:
    """The ledger of one site's data set.

    Every call reads and verifies the whole file again: it has one line per round, and what is on disk is the truth.

    Raises:
        LedgerError: an existing file does not verify, with the line number and the remedy.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        verify(path)

    @classmethod
    def of_site(cls, state: Path) -> Self:
        """The one ledger in a site's state folder.

        Raises:
            LedgerError: it does not verify, or the folder holds a ledger of an earlier version, which had one per run.
        """
        for path in sorted(state.glob("*.jsonl")):
            if path.name != FILE:
                raise LedgerError(f"{path}: {EARLIER}")
        return cls(state / FILE)

    def events(self) -> tuple[Event, ...]:
        """All events, oldest first.

        Raises:
            LedgerError: the file does not verify.
        """
        return tuple(verify(self.path).values())

    def append(self, event: Event) -> str:
        """Make `event` durable and return its event id; a repeat of a round's own event returns the id it has.

        Raises:
            LedgerError: the file does not verify or cannot be written, or the round was charged for something else.
        """
        try:
            self.path.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
        except OSError as error:
            raise self._unwritable(error) from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            return self._append_locked(descriptor, event)
        finally:
            os.close(descriptor)

    def _append_locked(self, descriptor: int, event: Event) -> str:
        chain = verify(self.path)
        for event_id, old in chain.items():
            if old == event:
                return event_id
        same = [old for old in chain.values() if old.training_run == event.training_run]
        metrics = event.mechanism == "metrics"
        charged = [old.round_number for old in same if (old.mechanism == "metrics") == metrics]
        if event.round_number <= max(charged, default=0):
            raise LedgerError(
                f"{self.path}: round {event.round_number} of site {event.site} in training run '{event.training_run}' "
                "is charged already with other settings; a changed study needs a new training run"
            )
        event_id, line = _line(next(reversed(chain), START), event)
        size = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, line) != len(line):
                raise OSError(0, "disk full")
            os.fsync(descriptor)
            _sync_folder(self.path.parent)
        except OSError as error:
            os.ftruncate(descriptor, size)
            raise self._unwritable(error) from error
        return event_id

    def _unwritable(self, error: OSError) -> LedgerError:
        return LedgerError(f"{self.path}: the ledger cannot be written ({error.strerror}); nothing was trained")


def verify(path: Path) -> dict[str, Event]:
    """Event id to event of every line, in order; empty where there is no file. The id is the line's link in the chain.

    Raises:
        LedgerError: a line is cut off, not an event, edited or out of its place, with its number.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise LedgerError(f"{path}: the ledger cannot be read ({error.strerror})") from error
    chain: dict[str, Event] = {}
    previous = START
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        if not line.endswith(b"\n"):
            raise LedgerError(
                f"{path}, line {number}: the line is cut off, as by a crash while writing; its round did not train, so "
                "delete this line and go on"
            )
        event = _parse(line, f"{path}, line {number}")
        event_id, expected = _line(previous, event)
        if line != expected:
            raise LedgerError(f"{path}, line {number}: the line was edited, or one before it is missing; {_RESTORE}")
        chain[event_id] = event
        previous = event_id
    return chain


def _line(previous: str, event: Event) -> tuple[str, bytes]:
    """Event id and canonical line: `previous` and the event's fields, sorted, and the id, which hashes all of them."""
    body = {"previous": previous, **event.model_dump()}
    event_id = digest("ledger-event", _canonical(body)).hex()
    return event_id, _canonical({**body, "event_id": event_id}) + b"\n"


def _canonical(body: dict[str, object]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _parse(line: bytes, where: str) -> Event:
    try:
        body = json.loads(line)
        if not isinstance(body, dict):
            raise ValueError("not an object")
        if "study_hash" in body and "format" not in body:
            raise LedgerError(f"{where}: {EARLIER}")
        return Event.model_validate({name: body[name] for name in body if name not in ("previous", "event_id")})
    except ValueError as error:  # of JSON, UTF-8 or the event's fields
        raise LedgerError(f"{where}: this is not a ledger event; {_RESTORE}") from error


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
