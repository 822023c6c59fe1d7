"""How a coordinator runs, and what its run is about."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from secagg.book import RoundBook
from secagg.driver import Completed
from secagg.rpc.proof import MTLS
from secagg.service.dialogue import Message
from secagg.service.events import Summed
from secagg.service.transcripts import QUOTA

FAREWELL_SECONDS = 5.0
"""How long a run that ends waits for members that do not fetch its end and that nothing reaches."""


@dataclass(frozen=True, kw_only=True)
class How:
    """How a coordinator runs, whatever its run is about; none of it changes what a round means.

    Attributes:
        host, port: where to listen; port 0 takes a free one.
        tls: members show a certificate ("mtls"), or a load balancer ends TLS and they prove themselves ("tls").
        patience: seconds to wait for members at the start, and later where too few are there for a sum.
        rejoin_seconds: seconds that a later round waits for a member that is missing, once.
        step_seconds: deadline of a step of the protocol. It moves while somebody who is waited for is sending.
        training_seconds: deadline of the step that waits for vectors.
        grace: seconds after a connection broke until a step that has enough messages closes without its member.
        farewell_seconds: how long the end of a run is offered to members that do not fetch it. None: `FAREWELL_SECONDS`
            as the run ends, and by a later process until everybody has it.
        transcripts: keep each round's public transcript with the masked inputs "whole", as "hashes", or not ("none").
        quota: bytes of all transcripts, at most; the oldest go first.
        command: how it was started, for the record.
    """

    host: str = "127.0.0.1"
    port: int = 0
    tls: str = MTLS
    patience: float = 60.0
    rejoin_seconds: float = 15.0
    step_seconds: float = 60.0
    training_seconds: float = 3600.0
    grace: float = 3.0
    farewell_seconds: float | None = None
    transcripts: str = "whole"
    quota: int = QUOTA
    command: str = ""


@dataclass(frozen=True, kw_only=True)
class Options(How):
    """The same, and where.

    Attributes:
        state: folder of the journal and the transcripts of this run, on a local disk.
        reserve_bytes: free bytes below which no round begins.
    """

    state: Path
    reserve_bytes: int = 64 << 20


class Application(Protocol):
    """What a run is about. Its state lives in the coordinator's journal; it never waits and opens no file of the run.

    Attributes:
        kinds: messages of members that are its own.
        replayed: whether members replay each round before the next: their updates are not private alone (C-05).
        content_bytes: the longest content.
        release: what all parties run.
    """

    kinds: Sequence[type[Message]]
    replayed: bool
    content_bytes: int
    release: str

    async def prepare(self) -> None:
        """Make ready, once, before the first round of this process; `restore` came before."""

    def wants_more(self, book: RoundBook) -> bool:
        """Whether another round is to be opened."""

    @property
    def rounds(self) -> int:
        """How many rounds with a sum are wanted."""

    def about(self, book: RoundBook) -> bytes:
        """The model hash of the next round, 32 bytes."""

    def content(self) -> bytes:
        """What goes to every member with a round start, and at the end."""

    def completed(self, done: Completed, summed: Summed) -> None:
        """Take a sum in; what `state` says then becomes durable with it, before anybody is told."""

    def state(self) -> bytes:
        """Everything that the next process needs."""

    def restore(self, state: bytes) -> None:
        """Go on from what `state` said."""

    def heard(self, site: str, message: Message) -> None:
        """A message of one of `kinds`.

        Raises:
            DialogueError: it is not true, or late; it was ignored.
        """

    def counted(self, summed: Summed) -> None:
        """The sum is durable: write down what others read of it. A process that dies here never comes to it.

        Raises:
            OSError: it cannot be written now; it is called again.
        """
