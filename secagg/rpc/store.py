"""Durable marks of one data set, in one SQLite file shared by all processes that train on it.

It remembers what a crashed client must not do twice: join a round start that is not newer, contribute a
second time to one round number, accept a head that does not follow. It must never hold a key, share, vector
or patient id, never forget a mark and never return before the mark is on the disk. Restoring an old copy of
the file brings old marks back: never do that. Write-ahead logging needs a local disk, not a network share.
Specification: docs/spec.md, section "At most one contribution".
"""

import sqlite3
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any

from secagg.encoding import HASH_BYTES, digest
from secagg.errors import ConfigError, UnexpectedMessageError
from secagg.state import GENESIS

_SCHEMA = (
    "data_set (name TEXT NOT NULL)",
    "joined (training_run TEXT NOT NULL, round_number INTEGER NOT NULL, attempt INTEGER NOT NULL, "
    "PRIMARY KEY (training_run, round_number, attempt))",
    "contributed (training_run TEXT NOT NULL, round_number INTEGER NOT NULL, event_id TEXT NOT NULL, "
    "PRIMARY KEY (training_run, round_number))",
    "released (training_run TEXT NOT NULL, round_number INTEGER NOT NULL, PRIMARY KEY (training_run, round_number))",
    "replayed (training_run TEXT NOT NULL, round_number INTEGER NOT NULL, PRIMARY KEY (training_run, round_number))",
    "heads (entry INTEGER PRIMARY KEY, training_run TEXT NOT NULL, round_number INTEGER NOT NULL, "
    "head BLOB NOT NULL, receipt BLOB NOT NULL, link BLOB NOT NULL)",
)
_SCHEMA_VERSION = 2  # version 1 had no table of replayed rounds
_LOCK_SECONDS = 30.0
_LARGEST_NUMBER = 2**63 - 1


class SqliteStore:
    """The at-most-once marks and the hash-chained log of heads of one data set: a `secagg.state.Store`.

    Safe to share between threads and between processes: every method takes the file's one write lock, and
    returns only when its mark is on the disk.

    Args:
        path: the file; created for its owner only when absent.
        data_set: name of the data set; a file belongs to one data set for good.

    Raises:
        ConfigError: the file cannot be opened, is not a store, is another data set's, or its log was changed.
    """

    def __init__(self, path: Path, data_set: str) -> None:
        self.path = Path(path)
        self._lock = Lock()
        try:
            self.path.touch(mode=0o600)
        except OSError as error:
            raise ConfigError(f"store {path}: cannot be opened ({error.strerror}); choose another file") from None
        self._database = sqlite3.connect(
            self.path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._open(data_set)
            self.verify()
        except BaseException:
            self._database.close()
            raise

    def join(self, training_run: str, round_number: int, attempt: int) -> None:
        """Record a round start before AdvertiseKeys is sent for it.

        Raises:
            UnexpectedMessageError: C-03, (round_number, attempt) is not above the last one of this run.
            ConfigError: the mark could not be written.
        """
        with self._transaction():
            last = self._row(
                "SELECT round_number, attempt FROM joined WHERE training_run = ? "
                "ORDER BY round_number DESC, attempt DESC LIMIT 1",
                training_run,
            )
            if (last and (round_number, attempt) <= last) or max(round_number, attempt) > _LARGEST_NUMBER:
                number, latest = last or (0, 0)
                raise UnexpectedMessageError(
                    "C-03",
                    f"round {round_number} attempt {attempt} of {training_run} does not come after round "
                    f"{number} attempt {latest}, which this site joined; wait for a later round or attempt",
                )
            self._add("joined", training_run, round_number, attempt)

    def contribute(self, training_run: str, round_number: int, event_id: str) -> None:
        """Record the one contribution to a round number, with its ledger event, before the vector is masked.

        Raises:
            UnexpectedMessageError: C-14, this round number or a later one already has its contribution.
            ConfigError: the mark could not be written.
        """
        with self._transaction():
            last = self._highest("contributed", training_run)
            if not last < round_number <= _LARGEST_NUMBER:
                raise UnexpectedMessageError(
                    "C-14",
                    f"this data set already contributed to round {last} of {training_run} and gives nothing "
                    f"more to round {round_number}; it joins again in round {last + 1}",
                )
            self._add("contributed", training_run, round_number, event_id)

    def release(self, training_run: str, round_number: int) -> None:
        """Record that unmasking shares of this round are about to be sent; a repeat changes nothing.

        Raises:
            ConfigError: the mark could not be written.
        """
        with self._transaction():
            if self._highest("released", training_run) < round_number:
                self._add("released", training_run, round_number)

    def released(self, training_run: str) -> int:
        """The highest round number recorded by `release`, 0 at the start."""
        with self._transaction():
            return self._highest("released", training_run)

    def replay(self, training_run: str, round_number: int) -> None:
        """Record that the transcript of this round was replayed and holds; a repeat changes nothing.

        Raises:
            ConfigError: the mark could not be written.
        """
        with self._transaction():
            if self._highest("replayed", training_run) < round_number:
                self._add("replayed", training_run, round_number)

    def replayed(self, training_run: str) -> int:
        """The highest round number recorded by `replay`, 0 at the start."""
        with self._transaction():
            return self._highest("replayed", training_run)

    def head(self, training_run: str) -> tuple[int, bytes]:
        """Round number and head (32 bytes) of the last finished round; (0, GENESIS) at the start."""
        with self._transaction():
            return self._last_head(training_run)

    def finish(self, training_run: str, round_number: int, head: bytes, receipt: bytes) -> None:
        """Append the head of a finished round, and the receipt that proves it, to the hash-chained log; once.

        A round that the log holds with this head changes nothing.

        Raises:
            UnexpectedMessageError: C-22, the head does not follow the last one of this run.
            ConfigError: the entry could not be written.
        """
        with self._transaction():
            last, last_head = self._last_head(training_run)
            logged = "SELECT entry FROM heads WHERE training_run = ? AND round_number = ? AND head = ?"
            if round_number <= last and self._row(logged, training_run, round_number, head):
                return
            if not last < round_number <= _LARGEST_NUMBER or len(head) != HASH_BYTES or head == last_head:
                raise UnexpectedMessageError(
                    "C-22",
                    f"the head offered for round {round_number} of {training_run} does not follow "
                    f"round {last}, the last one in this log; compare the heads with another site first",
                )
            newest = self._row("SELECT entry, link FROM heads ORDER BY entry DESC LIMIT 1")
            entry, previous = newest or (0, GENESIS)
            link = _link(previous, training_run, round_number, head, receipt)
            self._add("heads", entry + 1, training_run, round_number, head, receipt, link)

    def verify(self) -> None:
        """Recompute the hash chain of the log of heads.

        Raises:
            ConfigError: an entry is missing or was changed, with its number.
        """
        with self._transaction():
            link = GENESIS
            rows = self._database.execute("SELECT * FROM heads ORDER BY entry")
            for expected, (entry, run, number, head, receipt, stored) in enumerate(rows, start=1):
                link = _link(link, run, number, head, receipt)
                if entry != expected or link != stored:
                    raise ConfigError(
                        f"store {self.path}: entry {expected} of the log of heads was changed or removed; "
                        "keep the file, compare its heads with another site's and start a new training run"
                    )

    def close(self) -> None:
        """Release the file; the marks stay."""
        self._database.close()

    def __enter__(self) -> "SqliteStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, data_set: str) -> None:
        with self._described_errors():
            self._switch_to_write_ahead_log()
            self._database.execute("PRAGMA synchronous = FULL")
        with self._transaction():
            (version,) = self._row("PRAGMA user_version")
            new = version == 0 and not self._row("SELECT name FROM sqlite_master LIMIT 1")
            if new or 0 < version < _SCHEMA_VERSION:
                for table in _SCHEMA:
                    self._database.execute(f"CREATE TABLE IF NOT EXISTS {table}")
                self._database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")
            elif version != _SCHEMA_VERSION:
                raise ConfigError(f"store {self.path}: not a store of this version of secagg; choose another file")
            if new:
                self._add("data_set", data_set)
            (name,) = self._row("SELECT name FROM data_set")
            if name != data_set:
                raise ConfigError(
                    f"store {self.path}: belongs to data set {name!r}, not {data_set!r}; "
                    "give every data set its own file"
                )

    def _switch_to_write_ahead_log(self) -> None:
        # SQLite ignores the lock timeout here when several processes open a new file at once.
        give_up = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                self._database.execute("PRAGMA journal_mode = WAL")
                return
            except sqlite3.OperationalError:
                if time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _described_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ConfigError(
                f"store {self.path}: cannot be used ({error}); check the disk and the rights of the file"
            ) from None

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._lock, self._described_errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")

    def _row(self, query: str, *values: str | int | bytes) -> Any:
        return self._database.execute(query, values).fetchone()

    def _add(self, table: str, *values: str | int | bytes) -> None:
        places = ", ".join("?" * len(values))
        self._database.execute(f"INSERT INTO {table} VALUES ({places})", values)  # noqa: S608  own table names

    def _highest(self, table: str, training_run: str) -> int:
        query = f"SELECT max(round_number) FROM {table} WHERE training_run = ?"  # noqa: S608  own table names
        return int(self._row(query, training_run)[0] or 0)

    def _last_head(self, training_run: str) -> tuple[int, bytes]:
        query = "SELECT round_number, head FROM heads WHERE training_run = ? ORDER BY entry DESC LIMIT 1"
        number, head = self._row(query, training_run) or (0, GENESIS)
        return number, head


def _link(previous: bytes, training_run: str, round_number: int, head: bytes, receipt: bytes) -> bytes:
    return digest("head-log", previous, training_run, round_number, head, receipt)
