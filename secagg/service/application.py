"""What a member does beside the protocol: the hooks of `secagg.service.member`."""

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum

from secagg.driver import Completed
from secagg.errors import SecAggError
from secagg.layout import Values
from secagg.masking import Vector
from secagg.messages import Receipt, RoundStart
from secagg.prg import Stream
from secagg.service import dialogue
from secagg.service.account import Account
from secagg.service.errors import RunFailedError, StoppedError
from secagg.service.spans import ALL, Span


class LeaveError(SecAggError):
    """The application takes part in this run no more, such as one whose budget is spent; its text is sent."""


class Wish(Enum):
    """What a member's operator wants."""

    GO_ON = "go on"
    PAUSE = "pause"
    LEAVE = "leave"


@dataclass(frozen=True, repr=False)
class Given:
    """An update, as `ClientDriver.provide` takes it."""

    values: Values
    event_id: str = ""
    stream: Stream | None = None
    copy: Vector | None = None
    excess_seeds: Sequence[bytes] = ()


class Application(ABC):
    """What a member does beside the protocol. All is called in the member's own thread, and is quick.

    Attributes:
        release: what everybody has to run, such as ``secagg 0.6.0``.
        kinds: messages of its own that come from the coordinator, see `dialogue.Dialogue`.
    """

    release = ""
    kinds: tuple[type[dialogue.Message], ...] = ()

    @abstractmethod
    def about(self, start: RoundStart, content: bytes) -> bytes:
        """The model hash, 32 bytes, of what this member would give an update for, computed from what it holds.

        The start is signed by the pinned key, and nothing else in it is verified yet. What is raised ends the member.
        """

    def joined(self, start: RoundStart, content: bytes) -> None:
        """The start was verified and the attempt joined; nothing has left yet.

        Raises:
            LeaveError: nothing will.
        """

    @abstractmethod
    def work(self, number: int) -> Callable[[threading.Event], Given]:
        """What computes the update of a round; it is called in a thread of its own, with what says that it is over.

        It must read nothing that the next attempt changes. What it raises after it is over is nobody's news; a
        `LeaveError` before says that this member takes part no more.
        """

    def beside(self) -> Callable[[], object] | None:
        """What else to compute, in a thread beside `work`, now that an attempt was joined; None for nothing."""
        return None

    def completed(self, done: Completed) -> None:
        """There is a sum."""

    def burned(self, number: int, attempt: int, reason: str) -> None:
        """An attempt is over without a sum."""

    def closing(self, start: RoundStart, content: bytes) -> None:
        """The last content; the start is signed by the pinned key, and holds every receipt."""

    def account(self, account: Account) -> None:
        """Who was in a round that this process did not see to its end; not verified yet."""

    def heard(self, message: dialogue.Message) -> Callable[[], object] | None:
        """A message of the application's own kinds; what to compute for it, beside the rounds, if anything."""
        return None

    def saw(self) -> Sequence[Span]:
        """Spans of the rounds that this process saw to their end; by default all, for it needs no account of any."""
        return ALL

    def ended(self, last: dialogue.Finished) -> None:
        """The run is over for good: write it down, for `secagg.service.ended`. It is called again on a full disk."""

    def again(self) -> Iterable[dialogue.Message]:
        """What another process of the coordinator has to hear again."""
        return ()

    def spent(self) -> float | None:
        """What its people have paid so far; see `dialogue.Ready`."""
        return None

    def says(self) -> str:
        """What it declares before anything is charged; see `dialogue.Ready`."""
        return ""

    def wish(self) -> Wish:
        """What its operator wants by now."""
        return Wish.GO_ON

    def public(self, error: Exception) -> str:
        """What others may read of why this member stops: of its own data and disk nothing."""
        return str(error) if isinstance(error, RunFailedError | StoppedError) else "an error of its own, see its log"

    def sending(self, kind: str, payload: bytes) -> None:
        """This is about to leave; whatever is raised stops it, and the member."""

    def spoke(self, step: str, size: int) -> None:
        """A message of the protocol was handed over."""

    def listened(self, size: int) -> None:
        """A message of the protocol came."""

    def replayed(self, receipt: Receipt, transcript: bytes) -> None:
        """A transcript was replayed, and holds; it counts once this returned, in a thread that the member waits for.

        It comes again where the process ends before it counts.
        """

    def awaiting(self, sites: Iterable[str], seconds: float) -> None:
        """For whom the coordinator waits; for the coordinator itself, where that does not answer."""

    def connected(self) -> None:
        """The coordinator answers: the first time, and after each `lost`."""

    def lost(self, sentence: str) -> None:
        """It has not answered for two seconds, and why; it comes again where the reason is another."""
        self.note(sentence)

    def note(self, text: str) -> None:
        """A sentence for the operator."""
