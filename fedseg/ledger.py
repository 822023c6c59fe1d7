"""What a data set's patients have paid: one append-only, hash-chained, fsynced JSON line per charged round.

A site has one ledger for good, across training runs and studies, because what is spent composes over all of them.

An entry is on disk before its round trains, so that a crash can only overcharge. It holds all that is needed to
recompute epsilon: each kind of entry knows its event for `fedseg.privacy.accounting`. The spent epsilon itself is never
stored and never trusted. A ledger outlives versions: lines of fedseg 0.3 are read for good. The chain
shows edited, reordered and missing lines; a cut-off tail shows against the ids that the durable store of
`secagg` keeps. Nothing here is ever rewritten, and no patient, image or key is ever named.
"""

import fcntl
import json
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, TypeAlias

from dp_accounting.dp_event import DpEvent, NonPrivateDpEvent
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

from fedseg.errors import EARLIER, LedgerError
from fedseg.privacy.accounting import gaussian_steps
from secagg.encoding import digest
from secagg.writing import PRIVATE_FOLDER

FILE = "ledger.jsonl"
START = "0" * 64
Generator: TypeAlias = Literal["os", "seeded: no privacy claim"]
_RESTORE = "restore the ledger from a backup, because what this site's patients have spent is no longer known"


class _Entry(BaseModel, ABC):
    """What every line says: of which study, site, run and round something was released.

    Attributes:
        format: of the line; those of fedseg 0.1 and 0.2 have none, and their epsilon was not true.
        study_hash: hash of the study, hexadecimal.
        site: site id.
        training_run: name of the run whose rounds are counted.
        round_number: at least 1; a round of a training run has one entry of its `series`, however often it is tried.
        unit: whose presence is hidden, or is not.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    series: ClassVar[Literal["training", "metrics"]]
    """Whose rounds are counted together: the round numbers of a series only rise."""

    format: Literal[3] = 3
    study_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    site: str
    training_run: str
    round_number: int = Field(ge=1)
    unit: str

    @abstractmethod
    def dp_event(self, *, unseeded: bool = False) -> DpEvent | None:
        """What was released, for the accountant; None where epsilon does not cover it.

        Args:
            unseeded: as if nobody knew a seed, which is what a seeded study shows.
        """


class NoisySteps(_Entry):
    """A round of mechanism "local": `steps` noisy releases of a sum of clipped patient gradients.

    Attributes:
        neighbouring: relation between the data sets that an adversary cannot tell apart.
        sample_rate: probability of each unit to be drawn in a step, independently (Poisson).
        noise_multiplier: standard deviation of the noise on the sum, over `clip_norm`.
        clip_norm: largest L2 norm of one unit's gradient, the sensitivity of the sum.
        denominator: public constant that divides the noisy sum.
        steps: draws in this round.
        generator: where sampling and noise come from. Whoever knows a seed can recompute both.
    """

    series = "training"

    kind: Literal["local"] = "local"
    neighbouring: Literal["add or remove one"] = "add or remove one"
    sample_rate: float = Field(gt=0, le=1)
    noise_multiplier: float = Field(ge=0)
    clip_norm: float = Field(ge=0)
    denominator: float = Field(gt=0)
    steps: int = Field(ge=0)
    generator: Generator

    def dp_event(self, *, unseeded: bool = False) -> DpEvent:
        """Gaussian noise on the sum over a random draw; nothing protects where a seed is known."""
        if self.generator != "os" and not unseeded:
            return NonPrivateDpEvent()
        return gaussian_steps(self.noise_multiplier, self.sample_rate, self.steps)


class NoisySum(_Entry):
    """A round of mechanism "distributed": one release of the sum over all sites, with integer noise.

    Attributes:
        neighbouring: relation between the data sets that an adversary cannot tell apart.
        sample_rate: probability of each unit to be drawn, independently (Poisson).
        noise: distribution of each site's share of the noise.
        sensitivity: L2 norm that the integers of one unit never exceed.
        share_variance: of one site's share.
        shares: how many shares count: of the honest sites that every sum has at least.
        clip_norm: largest L2 norm of one unit's gradient, which becomes integers.
        denominator: public constant that divides the sum, times the sites.
        generator: where sampling and noise come from. Whoever knows a seed can recompute both.
    """

    series = "training"

    kind: Literal["distributed"] = "distributed"
    neighbouring: Literal["add or remove one"] = "add or remove one"
    sample_rate: float = Field(gt=0, le=1)
    noise: Literal["skellam", "discrete-gaussian"]
    sensitivity: int = Field(ge=1)
    share_variance: float = Field(gt=0)
    shares: int = Field(ge=1)
    clip_norm: float = Field(gt=0)
    denominator: float = Field(gt=0)
    generator: Generator

    def dp_event(self, *, unseeded: bool = False) -> DpEvent:
        """The noise of all shares that count, on the sum over a random draw; nothing protects where a seed is known."""
        if self.generator != "os" and not unseeded:
            return NonPrivateDpEvent()
        return gaussian_steps((self.shares * self.share_variance) ** 0.5 / self.sensitivity, self.sample_rate, 1)


class UnprotectedRound(_Entry):
    """A round of mechanism "none": after it no epsilon is promised to these patients any more."""

    series = "training"

    kind: Literal["none"] = "none"

    def dp_event(self, *, unseeded: bool = False) -> DpEvent:
        """No noise, with or without a seed."""
        return NonPrivateDpEvent()


class MetricsRelease(_Entry):
    """Validation metrics that were sent: not covered by epsilon, which speaks for training."""

    series = "metrics"

    kind: Literal["metrics"] = "metrics"

    def dp_event(self, *, unseeded: bool = False) -> None:
        """Not covered."""
        return


Entry: TypeAlias = NoisySteps | NoisySum | UnprotectedRound | MetricsRelease
"""A line of the ledger. A new kind is one more class here, with an event of its own."""

_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])
_KINDS: dict[str, type[BaseModel]] = {"local": NoisySteps, "none": UnprotectedRound, "metrics": MetricsRelease}
"""Of format 2, by what it called the mechanism."""


def released(entries: Iterable[Entry], *, unseeded: bool = False) -> list[DpEvent]:
    """Everything in `entries` that epsilon has to speak for; `unseeded` as in `dp_event`."""
    return [event for entry in entries if (event := entry.dp_event(unseeded=unseeded)) is not None]


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

    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first.

        Raises:
            LedgerError: the file does not verify.
        """
        return tuple(verify(self.path).values())

    def append(self, entry: Entry) -> str:
        """Make `entry` durable and return its id; a repeat of a round's own entry returns the id that it has.

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
            return self._append_locked(descriptor, entry)
        finally:
            os.close(descriptor)

    def _append_locked(self, descriptor: int, entry: Entry) -> str:
        chain = verify(self.path)
        for event_id, old in chain.items():
            if old == entry:
                return event_id
        same = [old for old in chain.values() if (old.training_run, old.series) == (entry.training_run, entry.series)]
        if entry.round_number <= max((old.round_number for old in same), default=0):
            raise LedgerError(
                f"{self.path}: round {entry.round_number} of site {entry.site} in training run '{entry.training_run}' "
                "is charged already with other settings; a changed study needs a new training run"
            )
        event_id, line = _line(next(reversed(chain), START), entry.model_dump())
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


def verify(path: Path) -> dict[str, Entry]:
    """Id to entry of every line, in order; empty where there is no file. The id is the line's link in the chain.

    Raises:
        LedgerError: a line is cut off, no entry, edited or out of its place, or of a later version, with its number.
    """
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise LedgerError(f"{path}: the ledger cannot be read ({error.strerror})") from error
    chain: dict[str, Entry] = {}
    previous = START
    for number, line in enumerate(data.splitlines(keepends=True), start=1):
        where = f"{path}, line {number}"
        if not line.endswith(b"\n"):
            raise LedgerError(
                f"{where}: the line is cut off, as by a crash while writing; its round did not train, so "
                "delete this line and go on"
            )
        fields, entry = _parse(line, where)
        event_id, expected = _line(previous, fields)
        if line != expected:
            raise LedgerError(f"{where}: the line was edited, or one before it is missing; {_RESTORE}")
        chain[event_id] = entry
        previous = event_id
    return chain


def _line(previous: str, fields: dict[str, Any]) -> tuple[str, bytes]:
    """Id and canonical line: `previous` and an entry's fields, sorted, and the id, which hashes all of them."""
    body = {"previous": previous, **fields}
    event_id = digest("ledger-event", _canonical(body)).hex()
    return event_id, _canonical({**body, "event_id": event_id}) + b"\n"


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")


def _parse(line: bytes, where: str) -> tuple[dict[str, Any], Entry]:
    """A line's own fields, which the chain covers, and the entry that they are today."""
    try:
        body = json.loads(line, parse_constant=_refused)
        if not isinstance(body, dict):
            raise ValueError("not an object")
        if "study_hash" in body and "format" not in body:
            raise LedgerError(f"{where}: {EARLIER}")
        if isinstance(body.get("format"), int) and body["format"] > _Entry.model_fields["format"].default:
            raise LedgerError(f"{where}: was written by a later version of fedseg; use that one for this data set")
        fields = {name: body[name] for name in body if name not in ("previous", "event_id")}
        return fields, _ENTRY.validate_python(_of_format_2(fields) if fields.get("format") == 2 else fields)
    except ValueError as error:  # of JSON, UTF-8 or the entry's fields
        raise LedgerError(f"{where}: this is not an entry of a ledger; {_RESTORE}") from error


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is not a number")


def _of_format_2(fields: dict[str, Any]) -> dict[str, Any]:
    """A line of fedseg 0.3, whose kinds had all fields alike and two that nobody read, as today's entry."""
    kept = _KINDS.get(fields.get("mechanism", ""), NoisySteps).model_fields
    return {"kind": fields.get("mechanism"), **{name: fields[name] for name in fields if name in kept}, "format": 3}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
