"""What lies beside a ledger and knows how far it has come, so that a cut-off end and an old copy are found.

There are two: the marks (`secagg.store`) in the same folder, and the record in the site's home (`fedseg.ledger.home`)
outside it. A charge writes the ledger, then the marks, then the record. So each is at most as far as the one before,
and the marks are at most one entry behind, where a process was killed in between. Anything else is an old copy of one.

The marks also know which files they are about: a copy has other inodes, and another machine another id. What no file
can know: that all of a machine's disk was set back. Must never: let a ledger go on that is not the one last written.
"""

import array
import fcntl
import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Protocol

from fedseg.errors import LedgerError
from fedseg.ledger.chain import Line
from secagg.encoding import digest
from secagg.store import Store

KEPT = "ledger"
"""Under which name the marks keep it."""
_GENERATION = 0x80087601
"""FS_IOC_GETVERSION of Linux: how often an inode number was used before, where the file system counts."""


@dataclass(frozen=True)
class Head:
    """How far a ledger has come: `count` lines, the last with this id ("" where there is none)."""

    count: int = 0
    event_id: str = ""


class Witness(Protocol):
    """Somebody who remembers a ledger's head durably."""

    @property
    def name(self) -> str:
        """What it is, for people."""

    def head(self) -> Head | None:
        """What it remembers; None where it was never told."""

    def remember(self, head: Head) -> None:
        """Remember a head from now on, durably."""


class MarksWitness:
    """The marks in the state folder, which also remember which files and machine they belong to.

    Args:
        store: the data set's.
        files: of the state folder that belong together, the ledger first.
    """

    def __init__(self, store: Store, files: Sequence[Path]) -> None:
        self._store, self._files = store, tuple(files)

    @property
    def name(self) -> str:
        """See `Witness.name`."""
        return "the marks beside it"

    def head(self) -> Head | None:
        """See `Witness.head`.

        Raises:
            LedgerError: the folder is a copy, or another machine's.
        """
        with self._store.transaction() as marks:
            kept = marks.kept(KEPT)
        if kept is None:
            return None
        if strange := _differs(kept["place"], _place(self._files)):
            raise LedgerError(
                f"{self._files[0].parent}: {strange}. Only the folder that trained last knows what its patients have "
                "spent: use that one. If this is that one, moved, and nothing trained on the old one since, say so: "
                f"fedseg ledger moved {self._files[0].parent}"
            )
        return Head(kept["count"], kept["event_id"])

    def remember(self, head: Head) -> None:
        """See `Witness.remember`."""
        with self._store.transaction() as marks:
            before = marks.kept(KEPT) or {}
            marks.keep(KEPT, {**before, **asdict(head), "place": _place(self._files)})

    def moved(self, when: str) -> None:
        """Take this place as theirs from now on, as their operator says; it stays on record."""
        with self._store.transaction() as marks:
            kept = marks.kept(KEPT)
            if kept is not None:
                moves = [*kept.get("moves", []), {"when": when, "from": kept["place"]}]
                marks.keep(KEPT, {**kept, "place": _place(self._files), "moves": moves})


def hold(path: Path, lines: Sequence[Line], witnesses: Sequence[Witness]) -> None:
    """Hold a ledger against its witnesses, which catch up where they are behind as a killed process leaves them.

    Args:
        path: of the ledger, for people.
        lines: all that it has.
        witnesses: who is told first comes first.

    Raises:
        LedgerError: the end of the ledger was cut off, or it or a witness is an old copy.
    """
    remembered = [(witness, witness.head()) for witness in witnesses]
    least = len(lines)
    if remembered and remembered[0][1] is None and any(head is not None and head.count for _, head in remembered):
        raise LedgerError(
            f"{path}: {remembered[0][0].name} are gone, which another record of this site knows of. Bring back the "
            "state folder as it was last; without it, start on new data"
        )
    for place, (witness, head) in enumerate(remembered):
        if head is None:
            continue
        known = head.count <= len(lines) and (not head.count or lines[head.count - 1].event_id == head.event_id)
        if not known:
            raise LedgerError(
                f"{path}: holds {len(lines)} entries, and {witness.name} know of {head.count}, the last one with the "
                f"id {head.event_id[:16]}: its end was cut off, or an old copy was put back. Bring back the ledger "
                "that has them; without it nobody knows what these patients have spent"
            )
        if head.count > least or (place == 0 and head.count < len(lines) - 1):
            older = remembered[0][0].name
            raise LedgerError(
                f"{path}: {older} are older than the ledger ({len(lines)} entries, {head.count} known to "
                f"{witness.name}): an old copy of them was put back, and would allow a second contribution to a round. "
                "Bring back the state folder as it was last; without it, start on new data"
            )
        least = min(least, head.count)
    newest = head_of(lines)
    for witness, head in remembered:
        if head != newest and (head is not None or lines):
            witness.remember(newest)


def head_of(lines: Sequence[Line]) -> Head:
    """How far these lines go."""
    return Head(len(lines), lines[-1].event_id if lines else "")


def _place(files: Sequence[Path]) -> dict[str, Any]:
    """Which files these are, on which machine, and since when it runs."""
    known = [found for path in files if (found := _file(path)) is not None]
    device = known[0][0] if known else 0
    inodes = {path.name: list(found[1:]) for path in files if (found := _file(path)) is not None}
    return {"machine": _said("/etc/machine-id"), "boot": _said("/proc/sys/kernel/random/boot_id"), "device": device,
            "inodes": inodes}  # fmt: skip


def _differs(then: dict[str, Any], now: dict[str, Any]) -> str:
    """What shows that these are not the same files; empty where nothing does."""
    if then["machine"] and now["machine"] and then["machine"] != now["machine"]:
        return "it was written on another machine"
    before, after = then["inodes"], now["inodes"]
    if changed := sorted(name for name in before.keys() & after.keys() if before[name] != after[name]):
        return f"{' and '.join(changed)} in it {'is' if len(changed) == 1 else 'are'} a copy, not the file last written"
    if then["boot"] and then["boot"] == now["boot"] and then["device"] != now["device"]:
        return "it is on another disk than before"  # numbers of disks may change when a machine starts
    return ""


def _file(path: Path) -> tuple[int, int, int] | None:
    """Device, inode and its generation (0 where the file system counts none)."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
    except OSError:
        return None
    try:
        found, generation = os.fstat(descriptor), array.array("l", [0])
        with suppress(OSError):
            fcntl.ioctl(descriptor, _GENERATION, generation, True)
        return found.st_dev, found.st_ino, generation[0] & 0xFFFFFFFF
    finally:
        os.close(descriptor)


def _said(file: str) -> str:
    """A hash of what the machine says of itself, as it should not be known outside; empty where it says nothing."""
    try:
        return digest("machine", Path(file).read_bytes().strip()).hex()[:32]
    except OSError:
        return ""
