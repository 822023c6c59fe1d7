"""What a coordinator must not forget: one SQLite file, one transaction for each change, on the disk before it is told.

It holds the run's book, the step that is open (sealed under the coordinator's own key), the application's state, and
what each member still has to get. The same command opens the file again and goes on with what it finds. Must never: be
restored from an old copy while members go on (they refuse the rounds of the copy, C-03), or hold a member's vector in
the clear.
"""

import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from threading import Lock
from typing import Any

from secagg.errors import ConfigError
from secagg.writing import PRIVATE, PRIVATE_FOLDER

_VERSION = 2


class Journal:
    """The journal of one run.

    Args:
        path: the file; made for its owner only where it is absent, with its folder.
        identity: what the run is: a journal of another one is refused.

    It belongs to one process at a time, and to one of its threads: SQLite does not survive that a file is closed while
    another thread, whose coroutine was cancelled, still writes to it.

    Raises:
        ConfigError: another process has it open, it is another run's, or it is no journal.
    """

    def __init__(self, path: Path, identity: Mapping[str, str]) -> None:
        self.path, self._turn = path, Lock()
        try:
            path.parent.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            path.touch(mode=PRIVATE)
        except OSError as error:
            raise ConfigError(f"journal {path}: cannot be opened ({error.strerror}); choose another folder") from None
        self._database = sqlite3.connect(path, timeout=0.0, isolation_level=None, check_same_thread=False)
        try:
            self._open(dict(identity))
        except BaseException as error:
            self._database.close()
            if isinstance(error, sqlite3.Error):
                raise ConfigError(_told(path, error)) from None
            raise

    def get(self, key: str) -> bytes | None:
        """What was last put there."""
        with self._turn:
            row = self._database.execute("SELECT value FROM state WHERE key = ?", (key,)).fetchone()
        return None if row is None else bytes(row[0])

    def get_json(self, key: str, default: Any) -> Any:
        """The same of JSON."""
        found = self.get(key)
        return default if found is None else json.loads(found)

    def all(self, prefix: str) -> dict[str, bytes]:
        """Everything whose key begins so, sorted."""
        wanted = "SELECT key, value FROM state WHERE key GLOB ? ORDER BY key"
        with self._turn:
            return {key: bytes(value) for key, value in self._database.execute(wanted, (f"{prefix}*",)).fetchall()}

    def commit(self, changes: Mapping[str, bytes | None]) -> None:
        """One change, whole and on the disk when this returns.

        Args:
            changes: by key what is put there; None removes it.

        Raises:
            OSError: it cannot be written now, such as on a full disk, or was closed; nothing of it was.
        """
        with self._turn:
            try:
                self._write(changes)
            except sqlite3.Error as error:
                raise OSError(_told(self.path, error)) from None

    def close(self) -> None:
        """Close the file: another process may open it."""
        with self._turn:
            self._database.close()

    def _write(self, changes: Mapping[str, bytes | None]) -> None:
        database = self._database
        database.execute("BEGIN IMMEDIATE")
        try:
            for key, value in changes.items():
                if value is None:
                    database.execute("DELETE FROM state WHERE key = ?", (key,))
                else:
                    database.execute("INSERT OR REPLACE INTO state VALUES (?, ?)", (key, value))
            database.execute("COMMIT")
        except BaseException:
            if database.in_transaction:
                database.execute("ROLLBACK")
            raise

    def _open(self, identity: dict[str, str]) -> None:
        database = self._database
        database.execute("PRAGMA page_size = 32768")  # a step of many members is one value of many megabytes
        database.execute("PRAGMA locking_mode = EXCLUSIVE")
        database.execute("PRAGMA journal_mode = WAL")
        database.execute("PRAGMA synchronous = FULL")
        database.execute("PRAGMA wal_autocheckpoint = 125")  # pages: 4 MB, as with SQLite's own pages
        database.execute("PRAGMA auto_vacuum = INCREMENTAL")
        database.execute("BEGIN IMMEDIATE")  # the lock stays with this connection from here on
        (version,) = database.execute("PRAGMA user_version").fetchone()
        if version == 0 and not database.execute("SELECT count(*) FROM sqlite_master").fetchone()[0]:
            database.execute("CREATE TABLE state (key TEXT PRIMARY KEY, value BLOB NOT NULL) WITHOUT ROWID")
            database.execute("INSERT INTO state VALUES ('identity', ?)", (json.dumps(identity).encode(),))
            database.execute(f"PRAGMA user_version = {_VERSION}")
        elif version != _VERSION:
            raise ConfigError(
                f"journal {self.path}: it is no journal, or one of another version of secagg; finish its run with the "
                "version that began it, or choose another folder for a new run"
            )
        database.execute("COMMIT")
        found = self.get_json("identity", {})
        for name, value in identity.items():
            if found.get(name) != value:
                raise ConfigError(
                    f"journal {self.path}: it is of a run with another {name} ({_short(found.get(name))}, and this one "
                    f"is {_short(value)}); start with what that run was started with, or choose another folder"
                )


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:16]}..."


def _told(path: Path, error: sqlite3.Error) -> str:
    if "locked" in str(error):
        return f"journal {path}: another coordinator has it open; end that one first"
    if "locking protocol" in str(error):
        return f"journal {path}: locks do not work here, as on a network share; keep the folder on a local disk"
    return f"journal {path}: cannot be used ({error}); check the disk and the rights of the file"
