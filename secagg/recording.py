"""Where the records of a round lie while it runs: in a file without a name, or sealed in one that outlives the process.

Both hold one record after the other, in the order in which they came. Must never: write an envelope, or anything in the
clear under a name. Specification: docs/spec.md, section "Transcripts".
"""

import os
import tempfile
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from secagg.encoding import encode
from secagg.keys import SealingKey
from secagg.writing import PRIVATE

_LENGTH_BYTES = 4


class Passing:
    """A file without a name: a crash takes it along, and a full disk what it should have held.

    Args:
        folder: on whose disk it lies.
    """

    def __init__(self, folder: Path) -> None:
        self._file = tempfile.TemporaryFile(dir=folder)  # noqa: SIM115 - closed by `close`

    @property
    def closed(self) -> bool:
        """Whether it is gone."""
        return self._file.closed

    def append(self, records: Iterable[bytes]) -> int:
        """Add records; returns where the first one lies.

        Raises:
            OSError: the disk is full.
        """
        start = self._file.seek(0, os.SEEK_END)
        for record in records:
            self._file.write(len(record).to_bytes(_LENGTH_BYTES, "big") + record)
        return start

    def read(self, start: int, count: int) -> Iterator[bytes]:
        """So many records, from a place that `append` returned."""
        self._file.seek(start)
        for _ in range(count):
            yield self._file.read(int.from_bytes(self._file.read(_LENGTH_BYTES), "big"))

    def close(self) -> None:
        """Let go of all of it."""
        self._file.close()


class Sealed:
    """A file that another process goes on with: each record sealed under the server's own key, and bound to its place.

    What does not fit on a full disk stays in memory until `sync` has brought it there.

    Args:
        path: the file. It is made or truncated by `rewind`, which comes first.
        key: the server's own.
        about: what it is of: it opens for nothing else.
    """

    def __init__(self, path: Path, key: SealingKey, about: bytes) -> None:
        self.path, self._key, self._about = path, key, about
        self.size = self._written = 0
        self._pending: list[tuple[bytes, bytes]] = []
        self._descriptor = -1
        self.closed = False

    def rewind(self, size: int) -> Iterator[tuple[int, bytes]]:
        """Forget what lies after the first `size` bytes; 0 begins anew.

        Yields:
            Each record that stays, and its place.

        Raises:
            OSError: it does not reach that far, or is damaged.
        """
        self._descriptor = os.open(self.path, os.O_RDWR | (0 if size else os.O_CREAT), PRIVATE)
        if os.fstat(self._descriptor).st_size < size:
            raise OSError(f"{self.path} is shorter than it was")
        os.ftruncate(self._descriptor, size)
        self.size = self._written = size
        place = 0
        while place < size:
            record, end = self._at(place)
            yield place, record
            place = end

    def append(self, records: Iterable[bytes]) -> int:
        """Add records; returns where the first one lies."""
        start = self.size
        for record in records:
            sealed = self._key.seal(self._bound(self.size), record)
            self._pending.append((len(sealed).to_bytes(_LENGTH_BYTES, "big"), sealed))
            self.size += _LENGTH_BYTES + len(sealed)
        with suppress(OSError):
            self._write()
        return start

    def sync(self) -> None:
        """Bring all of it to the disk.

        Raises:
            OSError: it cannot be written now; nothing is lost.
        """
        self._write()
        os.fsync(self._descriptor)

    def read(self, start: int, count: int) -> Iterator[bytes]:
        """So many records, from a place that `append` returned.

        Raises:
            OSError: it cannot be written, or was damaged meanwhile.
        """
        self._write()
        for _ in range(count):
            record, start = self._at(start)
            yield record

    def close(self) -> None:
        """Let go of all of it, and remove the file."""
        self.closed = True
        if self._descriptor >= 0:
            os.close(self._descriptor)
        self._pending.clear()
        self.path.unlink(missing_ok=True)

    def _write(self) -> None:
        while self._pending:
            head, sealed = self._pending[0]
            size = len(head) + len(sealed)
            if os.pwritev(self._descriptor, (head, sealed), self._written) < size:
                raise OSError(f"{self.path} could not be written whole")
            self._written += size
            del self._pending[0]

    def _at(self, place: int) -> tuple[bytes, int]:
        head = os.pread(self._descriptor, _LENGTH_BYTES, place)
        sealed = os.pread(self._descriptor, int.from_bytes(head, "big"), place + _LENGTH_BYTES)
        try:
            record = self._key.open(self._bound(place), sealed)
        except ValueError:
            raise OSError(f"{self.path} is damaged") from None
        return record, place + _LENGTH_BYTES + len(sealed)

    def _bound(self, place: int) -> bytes:
        return encode("recording", self._about, place)
