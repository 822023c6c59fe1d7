"""What operators and peers did, as a file that shows when it was changed: every line holds the hash of the one before.

Several processes may append to one file. A chain shows lines that were edited, moved or taken out of the middle; that
its end was not cut off shows only against a head that somebody wrote down elsewhere. Must never: hold a secret, or take
text of others as it comes (`secagg.printable`).
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import UTC, datetime
from getpass import getuser
from pathlib import Path
from typing import Any

from secagg.encoding import digest
from secagg.errors import ConfigError
from secagg.printable import printable
from secagg.writing import PRIVATE

AUDIT = "audit.jsonl"
"""A coordinator's audit log, in the folder of its credentials: one for all its runs."""

START = "0" * 64
LONGEST = 1000
"""Characters of a text in an entry."""

_MOST = 8
_TAIL = 256 * 1024
"""Bytes at the end of a file that hold its last line: `_MOST` + 2 texts, of a character JSON makes at most 12 bytes."""


@dataclass(frozen=True)
class Entry:
    """One line.

    Attributes:
        at: UTC to the millisecond, ISO 8601.
        who: did it: a site, "coordinator", or "operator NAME".
        what: was done, in one word or two.
        about: more of it, by name.
        head: hash of this line and, through it, of all before it, in hexadecimal.
    """

    at: str
    who: str
    what: str
    about: dict[str, str]
    head: str


def operator() -> str:
    """Who runs this process, for an audit log; a uid without a name is told as a number."""
    try:
        return f"operator {getuser()}"
    except (KeyError, OSError):
        return f"operator uid {os.getuid()}"


class AuditLog:
    """One file of entries, which is made with the first.

    Args:
        path: its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def append(self, who: str, what: str, **about: object) -> Entry:
        """Add an entry, and bring it to the disk before this returns.

        Args:
            who: did it.
            what: was done.
            about: more of it; texts of any length, of which the first `LONGEST` characters are kept.

        Raises:
            OSError: it cannot be written; the file is as it was.
        """
        said = {name: _text(value) for name, value in list(about.items())[:_MOST]}
        now = datetime.now(UTC).isoformat(timespec="milliseconds")
        with _locked(self.path) as file:
            previous, size = _end(file)
            body: dict[str, Any] = {"at": now, "who": _text(who), "what": _text(what), "about": said}
            body["previous"] = previous
            head = _hash(body)
            line = _canonical({**body, "head": head}) + b"\n"
            try:
                os.ftruncate(file, size)  # a piece of a line that a crash cut off was never told to anybody
                if os.pwrite(file, line, size) != len(line):
                    raise OSError("the line was cut off")
                os.fsync(file)
            except OSError:
                os.ftruncate(file, size)
                raise
        return Entry(now, body["who"], body["what"], said, head)


def entries(path: Path) -> list[Entry]:
    """Every entry of a file, in order, its chain verified.

    Raises:
        ConfigError: it cannot be read, or a line was changed, is missing or cut off; names the line.
    """
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise ConfigError(
            f"{path}: cannot be read ({error.strerror}); give an audit log, such as audit.jsonl"
        ) from None
    found, previous = list[Entry](), START
    for number, line in enumerate(lines, start=1):
        entry = _entry(line, previous)
        if entry is None:
            raise ConfigError(
                f"{path}, line {number}: the line was changed or cut off, or one before it is missing; "
                f"the {number - 1} lines before it hold"
            )
        found.append(entry)
        previous = entry.head
    return found


def _entry(line: bytes, previous: str) -> Entry | None:
    """What a line says; None where it is not what follows the line with the head `previous`."""
    try:
        fields = json.loads(line)
        body = {name: fields[name] for name in ("at", "who", "what", "about", "previous")}
        whole = _canonical({**body, "head": _hash(body)}) + b"\n"
    except (ValueError, KeyError, TypeError):
        return None
    if line != whole or body["previous"] != previous:
        return None
    return Entry(body["at"], body["who"], body["what"], body["about"], fields["head"])


def _end(file: int) -> tuple[str, int]:
    """The head of the last whole line, and where it ends."""
    size = os.fstat(file).st_size
    tail = os.pread(file, _TAIL, max(0, size - _TAIL))
    whole = tail[: tail.rfind(b"\n") + 1]
    if not whole:
        return START, size - len(tail)
    try:
        return str(json.loads(whole.splitlines()[-1])["head"]), size - len(tail) + len(whole)
    except (ValueError, KeyError, TypeError):  # a line that was changed shows when the chain is verified
        return START, size - len(tail) + len(whole)


@contextmanager
def _locked(path: Path) -> Iterator[int]:
    file = os.open(path, os.O_RDWR | os.O_CREAT, PRIVATE)
    try:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield file
    finally:
        os.close(file)


def _text(value: object) -> str:
    return printable(str(value)[:LONGEST])[:LONGEST]


def _hash(body: dict[str, Any]) -> str:
    return digest("audit-entry", _canonical(body)).hex()


def _canonical(body: dict[str, Any]) -> bytes:
    return json.dumps(body, sort_keys=True, separators=(",", ":")).encode("ascii")
