"""What writes the transcripts of a driven server's rounds, such as `secagg.transcript_files.Recorder`."""

from typing import Any, Protocol, runtime_checkable

from secagg.messages import FromClient, Result
from secagg.transcript.record import OpenedPair


class Recording(Protocol):
    """What writes a transcript, of one attempt."""

    def __call__(self, message: FromClient | OpenedPair | Result) -> None:
        """Take what `ServerSession(record=...)` tells."""

    def publish(self) -> Any:
        """The attempt is over: make of it what may be seen."""


@runtime_checkable
class Durable(Recording, Protocol):
    """What a recording has besides, so that its round can be resumed; a `Recorder(durable=True)` has it."""

    @property
    def recorded(self) -> int:
        """How far it has come."""

    def sync(self) -> None:
        """Bring all of it to the disk.

        Raises:
            OSError: it cannot be written now; nothing is lost, and a later call tries again.
        """

    def rewind(self, recorded: int) -> None:
        """In another process: forget everything after this; 0 begins anew.

        Raises:
            OSError: that much is not there.
        """
