"""What a site keeps of all that it ever sent: one hash-chained, fsynced JSON line a message, in its state folder.

A line is on the disk before its message leaves. It holds what a message was and the hash of its bytes, never the bytes.
Of a message of the protocol it also holds the signature, by which `fedseg verify-run` finds it in public transcripts
(R-09): one of this site that is not here was not sent from here.
"""

import errno
import fcntl
import hashlib
import json
import os
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedseg.errors import LedgerError
from secagg import wire
from secagg.encoding import digest
from secagg.errors import ProtocolError
from secagg.messages import EncryptedShares
from secagg.service.dialogue import Protocolled

FILE = "sent.record"
START = "0" * 64
_LONGEST = 4096  # bytes of a line at most


class Record:
    """The record of one site.

    Args:
        state: its state folder, which may serve several studies.
        site: its id.
        run: the training run.
    """

    def __init__(self, state: Path, site: str, run: str) -> None:
        self.path, self._site, self._run = state / FILE, site, run

    def keep(self, kind: str, payload: bytes, place: tuple[int, int] | None, epsilon: float | None) -> None:
        """Write down a message that is about to leave.

        Args:
            kind: of the message.
            payload: its bytes.
            place: round number and attempt that the site joined last; None before.
            epsilon: what its patients have spent by now; None without a claim.

        Raises:
            LedgerError: it cannot be written; then nothing leaves.
        """
        what, signature = _said(payload) if kind == Protocolled.kind else ("", "")
        entry = {
            "at": datetime.now(UTC).isoformat(timespec="seconds"),
            "site": self._site,
            "run": self._run,
            "round": place[0] if place else 0,
            "attempt": place[1] if place else 0,
            "kind": kind,
            "message": what,
            "bytes": len(payload),
            "sha256": hashlib.sha256(payload).hexdigest(),
            "signature": signature,
            "epsilon": epsilon,
        }
        try:
            self._append(entry)
        except OSError as error:
            raise LedgerError(f"{self.path}: cannot be written ({error.strerror}); nothing was sent") from error

    def _append(self, entry: dict[str, Any]) -> None:
        descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            size = os.fstat(descriptor).st_size
            last, _, cut = os.pread(descriptor, _LONGEST, max(size - _LONGEST, 0)).rpartition(b"\n")
            size -= len(cut)  # of a line that a crash cut off; its message never left
            previous = json.loads(last.rpartition(b"\n")[2])["link"] if last else START
            line = json.dumps({**entry, "link": _link(previous, entry)}).encode() + b"\n"
            os.ftruncate(descriptor, size)
            if os.pwrite(descriptor, line, size) != len(line):
                os.ftruncate(descriptor, size)
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def read(path: Path) -> Iterator[dict[str, Any]]:
    """The lines of a record, oldest first.

    Raises:
        LedgerError: one is missing, or was changed; names it.
    """
    previous = START
    try:
        lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    except (OSError, UnicodeError) as error:
        raise LedgerError(f"{path}: cannot be read as a record of what was sent") from error
    for number, line in enumerate(lines, 1):
        if number == len(lines) and not line.endswith("\n"):
            return  # cut off by a crash, before its message left
        try:
            entry = dict(json.loads(line))
            link = entry.pop("link")
        except (ValueError, TypeError, KeyError):
            raise LedgerError(f"{path}, line {number}: is not what a site writes; bring the file back") from None
        if link != _link(previous, entry):
            raise LedgerError(f"{path}, line {number}: a line was changed or is missing before it; bring the file back")
        previous = link
        yield entry


def _link(previous: str, entry: dict[str, Any]) -> str:
    return digest("sent", previous, json.dumps(entry, sort_keys=True)).hex()


def _said(payload: bytes) -> tuple[str, str]:
    """Which message of the protocol this is, and its signature."""
    try:
        message = wire.decode_from_client(payload)
    except ProtocolError:
        return "", ""
    signed = message.header if isinstance(message, EncryptedShares) else message
    return type(message).__name__, signed.signature.hex()
