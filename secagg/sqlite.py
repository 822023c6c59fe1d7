"""Durable marks of one data set, in one SQLite file shared by all processes that train on it.

What is marked, and what it stops, is in `secagg.store`; this is where it lies. Must never: forget a mark, return before
it is on the disk, or let two processes look at once. After each transaction all of it is in this one file, which may be
moved, also after its process was killed. Restoring an old copy of it brings old marks back: never do that. It needs a
local disk, whose locks work, not a network share. Specification: docs/spec.md, section "Between the rounds".
"""

import json
import sqlite3
import time
from collections.abc import Iterator, MutableMapping
from contextlib import closing, contextmanager
from pathlib import Path
from threading import RLock
from types import TracebackType

from secagg.arguments import must_be
from secagg.encoding import digest
from secagg.errors import ConfigError
from secagg.store import Marks

_SCHEMA_VERSION = 3  # 1 and 2 are those of protocol version 1, which kept a table a mark and marks a run
_OLD_TABLES = ("joined", "contributed", "released", "replayed", "heads")
_LOCK_SECONDS = 30.0


class SqliteStore:
    """The marks of one data set: a `secagg.store.Store`.

    Safe to share between threads and between processes: a transaction takes the file's one write lock.

    Args:
        path: the file; created for its owner only when absent.
        data_set: name of the data set; a file belongs to one data set for good.
        synced: whether a mark is on the disk when it returns. False is for simulations only, where one process holds
            all sites: a killed process then still loses nothing, but a power cut may lose or damage the file, and the
            latest marks lie in a log beside it.

    Raises:
        ConfigError: the file cannot be opened, is not a store, is another data set's, or its log was changed.
    """

    def __init__(self, path: str | Path, data_set: str, *, synced: bool = True) -> None:
        must_be(path, (str, Path), "path", "give the name of a file")
        must_be(data_set, str, "data_set", "give the data set's name")
        self.path, self.data_set, self._synced = Path(path), data_set, synced
        self._lock = RLock()
        if self.path.is_dir():
            raise ConfigError(f"store {path}: is a folder; name the file that the marks of this data set go to")
        try:
            self.path.touch(mode=0o600)
        except OSError as error:
            raise ConfigError(f"store {path}: cannot be opened ({error.strerror}); choose another file") from None
        self._database = sqlite3.connect(
            self.path, timeout=_LOCK_SECONDS, isolation_level=None, check_same_thread=False
        )
        try:
            self._open(data_set)
            with self.transaction() as marks:
                marks.verify()
        except BaseException as error:
            self._database.close()
            if isinstance(error, ConfigError) and str(self.path) not in str(error):
                raise ConfigError(f"store {self.path}: {error}") from None
            raise

    @classmethod
    def existing(cls, path: Path) -> "SqliteStore":
        """Open a store that is there, whosever it is: for an operator who looks at it, never for training.

        Raises:
            ConfigError: there is no such file, or it is no store.
        """
        if not Path(path).is_file():
            raise ConfigError(f"store {path}: there is no such file; give the store that training writes")
        try:
            with closing(sqlite3.connect(f"{Path(path).resolve().as_uri()}?mode=ro", uri=True)) as database:
                (name,) = database.execute("SELECT name FROM data_set").fetchone()
        except (sqlite3.Error, TypeError):
            raise ConfigError(f"store {path}: not a store of secagg; give the store that training writes") from None
        return cls(path, str(name))

    @contextmanager
    def transaction(self) -> Iterator[Marks]:
        """See `secagg.store.Store.transaction`.

        Raises:
            ConfigError: the file cannot be read or written; nothing was marked.
        """
        with self._exclusive():
            yield Marks(_Entries(self._database))

    def close(self) -> None:
        """Close the database file. The marks in it stay, for the next process."""
        self._database.close()

    def __enter__(self) -> "SqliteStore":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _open(self, data_set: str) -> None:
        with self._described_errors():
            self._keep_journal("DELETE" if self._synced else "WAL")
            self._database.execute(f"PRAGMA synchronous = {'EXTRA' if self._synced else 'OFF'}")
        with self._exclusive():
            (version,) = self._database.execute("PRAGMA user_version").fetchone()
            tables = {name for (name,) in self._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
            if version not in (1, 2, _SCHEMA_VERSION) and (version or tables):
                raise ConfigError(f"store {self.path}: not a store of this version of secagg; choose another file")
            if version != _SCHEMA_VERSION:
                self._create(data_set, tables)
            (name,) = self._database.execute("SELECT name FROM data_set").fetchone()
            if name != data_set:
                raise ConfigError(
                    f"store {self.path}: belongs to data set {name!r}, not {data_set!r}; "
                    "give every data set its own file"
                )

    def _create(self, data_set: str, tables: set[str]) -> None:
        """Makes the tables; of a store of version 1 the old ones are kept, and what it released stays open."""
        self._database.execute("CREATE TABLE marks (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID")
        if "data_set" not in tables:
            self._database.execute("CREATE TABLE data_set (name TEXT NOT NULL)")
            self._database.execute("INSERT INTO data_set VALUES (?)", (data_set,))
        if "released" in tables:
            last = dict(self._database.execute("SELECT training_run, max(round_number) FROM released GROUP BY 1"))
            done = {}
            if "replayed" in tables:
                done = dict(self._database.execute("SELECT training_run, max(round_number) FROM replayed GROUP BY 1"))
            rows = sorted((run, number) for run, number in last.items() if number > done.get(run, 0))
            if rows:
                names = ", ".join(f"round {number} of run {run}" for run, number in rows)
                round_id = digest("released-under-version-1", [[run, number] for run, number in rows])
                opened = {"round_id": round_id.hex(), "name": f"{names} (protocol version 1)", "claim": None}
                self._database.execute("INSERT INTO marks VALUES ('open', ?)", (json.dumps(opened),))
        for table in _OLD_TABLES:
            if table in tables:
                self._database.execute(f"ALTER TABLE {table} RENAME TO version_1_{table}")
        self._database.execute(f"PRAGMA user_version = {_SCHEMA_VERSION}")

    def _keep_journal(self, kind: str) -> None:
        # A write-ahead log holds marks in a second file: whoever moves the first one alone would lose them. It takes a
        # fifth of the time, so that a simulation has one. To leave it (as earlier versions made it), or to begin it, no
        # other process may have the file open; SQLite ignores the lock timeout here.
        give_up = time.monotonic() + _LOCK_SECONDS
        while True:
            try:
                self._database.execute(f"PRAGMA journal_mode = {kind}")
                return
            except sqlite3.OperationalError as error:
                if "locked" not in str(error) or time.monotonic() > give_up:
                    raise
                time.sleep(0.01)

    @contextmanager
    def _described_errors(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise ConfigError(f"store {self.path}: cannot be used ({error}); {_remedy(error)}") from None

    @contextmanager
    def _exclusive(self) -> Iterator[None]:
        with self._lock, self._described_errors():
            self._database.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._database.execute("COMMIT")
            finally:
                if self._database.in_transaction:
                    self._database.execute("ROLLBACK")


def _remedy(error: sqlite3.Error) -> str:
    """What to do about it. A network share without working locks says either of the first two."""
    if "locking protocol" in str(error):
        return "locks do not work here, as on a network share; keep the file on a local disk"
    if "locked" in str(error):
        return "end the other process that uses it, and keep the file on a local disk, not on a network share"
    return "check the disk and the rights of the file"


class _Entries(MutableMapping[str, str]):
    """The table of marks as a mapping; only ever used within a transaction."""

    def __init__(self, database: sqlite3.Connection) -> None:
        self._database = database

    def __getitem__(self, key: str) -> str:
        row = self._database.execute("SELECT value FROM marks WHERE key = ?", (key,)).fetchone()
        if row is None:
            raise KeyError(key)
        return str(row[0])

    def __setitem__(self, key: str, value: str) -> None:
        self._database.execute("INSERT OR REPLACE INTO marks VALUES (?, ?)", (key, value))

    def __delitem__(self, key: str) -> None:
        if not self._database.execute("DELETE FROM marks WHERE key = ?", (key,)).rowcount:
            raise KeyError(key)

    def __iter__(self) -> Iterator[str]:
        return (key for (key,) in self._database.execute("SELECT key FROM marks ORDER BY key").fetchall())

    def __len__(self) -> int:
        return int(self._database.execute("SELECT count(*) FROM marks").fetchone()[0])
