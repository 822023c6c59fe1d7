"""The ledger that a site appends to: a round is in it, on the disk, before it trains.

So a crash can only overcharge. Two processes never write at once, and nothing here is ever rewritten.
"""

import errno
import fcntl
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from threading import RLock
from typing import Self

from fedseg.errors import EARLIER, LedgerError
from fedseg.ledger.chain import START, Line, next_line, read
from fedseg.ledger.entries import Entry
from fedseg.ledger.payers import Payers
from fedseg.ledger.witness import Witness, head_of, hold
from secagg.keys import SigningKey
from secagg.writing import PRIVATE_FOLDER

FILE = "ledger.jsonl"
_SETTLED_NS = 100_000_000
"""A file that changed less than this ago could change again at what its clock calls the same time."""


class Ledger:
    """The ledger of one site's data set.

    What is on disk is the truth: a file that changed since the last look is read and verified again as a whole.

    Args:
        path: the file; made with the first entry.
        key: signs every line; None in simulations and for readers.
        witnesses: who else knows how far it has come, in the order in which they are told.
        payers: the patients of this run; None where nobody says who they are, which counts for everybody.

    Raises:
        LedgerError: an existing file does not verify, with the line number and the remedy, or its end is missing, or
            it is a copy.
    """

    def __init__(
        self,
        path: Path,
        key: SigningKey | None = None,
        *,
        witnesses: Sequence[Witness] = (),
        payers: Payers | None = None,
    ) -> None:
        self.path, self.payers = path, payers
        self._key, self._witnesses = key, tuple(witnesses)
        self._seen: tuple[tuple[int, ...], list[Line]] = ((), [])
        self._alone = RLock()
        hold(path, self.lines(), self._witnesses)

    @classmethod
    def of_site(
        cls,
        state: Path,
        key: SigningKey | None = None,
        *,
        witnesses: Sequence[Witness] = (),
        payers: Payers | None = None,
    ) -> Self:
        """The one ledger in a site's state folder.

        Raises:
            LedgerError: as the class, or the folder holds a ledger of an earlier version, which had one per run.
        """
        for path in sorted(state.glob("*.jsonl")):
            if path.name != FILE:
                raise LedgerError(f"{path}: {EARLIER}")
        return cls(state / FILE, key, witnesses=witnesses, payers=payers)

    def lines(self) -> list[Line]:
        """All lines, oldest first.

        Raises:
            LedgerError: the file does not verify.
        """
        now = _stamp(self.path)
        if now and now == self._seen[0]:
            return self._seen[1]
        lines = read(self.path)
        settled = now and time.time_ns() - now[-1] > _SETTLED_NS
        self._seen = (now if settled else (), lines)
        return lines

    def entries(self) -> tuple[Entry, ...]:
        """All entries, oldest first; raises as `lines`."""
        return tuple(line.entry for line in self.lines())

    def append(self, entry: Entry) -> str:
        """Make `entry` durable and return its id; raises as what `charging` yields."""
        with self.charging() as charge:
            return charge(entry)

    @contextmanager
    def charging(self) -> Iterator[Callable[[Entry], str]]:
        """Alone with what this site's patients have spent: nobody else charges until the block is left.

        Yields:
            What makes an entry durable and returns its id; a repeat of a round's own entry returns the id that it has.
            It raises `LedgerError` where the round was charged for something else, or nothing can be written.

        Raises:
            LedgerError: the ledger or what lies beside it does not hold, or cannot be written.
        """
        with ExitStack() as stack:
            stack.enter_context(self._alone)
            if self.payers is not None:
                stack.enter_context(self.payers.alone())
            try:
                self.path.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
                descriptor = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600)
            except OSError as error:
                raise self._unwritable(error) from error
            stack.callback(os.close, descriptor)
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            hold(self.path, self.lines(), self._witnesses)
            yield lambda entry: self._append(descriptor, entry)

    def _append(self, descriptor: int, entry: Entry) -> str:
        lines = self.lines()
        repeated = [line for line in lines if line.entry.same_use(entry)]
        for line in repeated:
            if line.entry.patients == entry.patients:
                return line.event_id
        of_series = [
            old for old in self.entries() if (old.training_run, old.series) == (entry.training_run, entry.series)
        ]
        if not repeated and entry.round_number <= max((old.round_number for old in of_series), default=0):
            raise LedgerError(
                f"{self.path}: round {entry.round_number} of site {entry.site} in training run '{entry.training_run}' "
                "is charged already with other settings; a changed study needs a new training run"
            )
        now = datetime.now(UTC).isoformat(timespec="seconds")
        line, data = next_line(head_of(lines).event_id or START, entry.model_copy(update={"charged": now}), self._key)
        size = os.fstat(descriptor).st_size
        try:
            if os.write(descriptor, data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
            _sync_folder(self.path.parent)
        except OSError as error:
            os.ftruncate(descriptor, size)
            raise self._unwritable(error) from error
        head = head_of([*lines, line])
        for witness in self._witnesses:  # in this order: where this process is killed, `hold` knows how that looks
            witness.remember(head)
        return line.event_id

    def _unwritable(self, error: OSError) -> LedgerError:
        return LedgerError(f"{self.path}: the ledger cannot be written ({error.strerror}); nothing was trained")


def _stamp(path: Path) -> tuple[int, ...]:
    """What changes with every change of a file; empty where there is none."""
    try:
        found = path.stat()
    except OSError:
        return ()
    return found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
