"""What a coordinator and a member tell each other around the protocol's own messages.

A member introduces itself with `Ready`: what it runs and with whom, so that the odd one out is named before anything is
charged; which attempt it is in, so that a coordinator that was restarted goes on with it; how far its marks and its
spending have come, so that a store from an old copy is found. A round is opened with the signed round start and what
the application sends along. At the end everybody gets the last content, every receipt, and the account (see
`secagg.service.account`) of each round that it did not see to its end.

Each class is one kind of message, with the word by which the mailbox knows it. Everything that came over the wire is
validated; nothing is unpickled. An application adds kinds of its own, see `Dialogue`.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar, Protocol, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError

from secagg import wire
from secagg.errors import ProtocolError
from secagg.messages import RoundStart
from secagg.printable import printable
from secagg.service.account import Account
from secagg.service.errors import DialogueError

SENTENCE = 2000
"""Characters of a reason at most."""

SPANS = 64
"""Spans at most in which a member says what it saw."""

WAITED_FOR = 64
"""Rounds at most that a member waits for at once."""

_LENGTH_BYTES = 4


def _sentence(text: str) -> str:
    return printable(text)[:SENTENCE]


Words = Annotated[str, Field(max_length=SENTENCE), AfterValidator(_sentence)]
"""Text of the other side, made fit to be shown as it enters (`secagg.printable`): it comes in one line."""

Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
"""32 bytes in hexadecimal."""
_Name = Annotated[str, Field(max_length=256), AfterValidator(printable)]
_Id = Annotated[str, Field(pattern=r"^[A-Za-z0-9._-]{1,64}$")]
_Number = Annotated[int, Field(ge=0, le=2**53)]
_Attempt = tuple[Annotated[int, Field(ge=0)], Annotated[int, Field(ge=0)]]


class Message(Protocol):
    """One kind of message."""

    kind: ClassVar[str]

    def packed(self) -> bytes:
        """As bytes for the mailbox."""

    @classmethod
    def unpacked(cls, payload: bytes, sender: str) -> Self:
        """What `packed` gave.

        Raises:
            DialogueError: it is not, with who sent it.
        """


class Control(BaseModel):
    """A message that is JSON: a subclass lists its fields, and gives its `kind`."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: ClassVar[str]

    def packed(self) -> bytes:
        """As JSON."""
        return self.model_dump_json().encode()

    @classmethod
    def unpacked(cls, payload: bytes, sender: str) -> Self:
        """What `packed` gave.

        Raises:
            DialogueError: it is not, with who sent it.
        """
        try:
            return cls.model_validate_json(payload)
        except ValidationError:
            raise DialogueError(f"{sender} sent a malformed {cls.__name__} message; it was ignored") from None


class Said(Control):
    """One sentence on why."""

    reason: Words

    @classmethod
    def because(cls, reason: object) -> Self:
        """Of a reason of any length."""
        return cls(reason=str(reason)[:SENTENCE])


# --- Member to coordinator ----------------------------------------------------------------------------------------


class Ready(Control):
    """It is there: in no round, or in the attempt `inside`, which it can go on with.

    It takes part in no round before it has replayed the transcripts of `unreplayed`, or its operator accepted them.
    Sent after every greeting, also of a coordinator that was restarted, and whenever a round is over for the member.

    Attributes:
        release: what it runs, such as ``secagg 0.6.0``: everybody runs the same.
        run: the training run that it agreed to.
        task, policy, roster: hashes of what is computed, of the policy and of the pinned roster.
        unreplayed: round identifiers in hexadecimal, of shares that it sent itself and of those that others say they
            sent.
        inside: (round number, attempt) of its live attempt: it was joined and is not over here. None where there is
            none, such as in a new process.
        joined: the last (round number, attempt) that its durable marks know of this run; (0, 0) for none. Where the
            coordinator has seen a later one of it, the marks were wiped or restored from a copy.
        asked: the last (round number, attempt) that this process was asked to join and was not too busy for; (0, 0)
            for none. What it said before it was asked says nothing of an attempt.
        saw: spans of the rounds that this process saw to their end, or of which it needs no account: it is sent none.
        spent: what its people have paid so far, such as epsilon; it never falls. None where nothing is paid.
        says: what its application declares, for the coordinator's to hold against the others'.
    """

    kind: ClassVar[str] = "ready"

    release: _Name
    run: _Name
    task: Hash
    policy: Hash
    roster: Hash
    unreplayed: list[Hash] = Field(default=[], max_length=WAITED_FOR)
    inside: _Attempt | None = None
    joined: _Attempt = (0, 0)
    asked: _Attempt = (0, 0)
    saw: list[tuple[_Number, _Number]] = Field(default=[], max_length=SPANS)
    spent: float | None = Field(default=None, ge=0)
    says: str = Field(default="", max_length=2**16)


class Busy(Said):
    """It is there and does something else, or its operator paused it: not to be waited for. `Ready` ends this."""

    kind: ClassVar[str] = "busy"


class Leaving(Said):
    """It takes part in this run no more, such as one whose budget is spent."""

    kind: ClassVar[str] = "leaving"


class Failed(Said):
    """This process ends; another one may come."""

    kind: ClassVar[str] = "failed"


class Done(Control):
    """It has the end of the run: `Finished`, and everything before it."""

    kind: ClassVar[str] = "done"


# --- Coordinator to member ----------------------------------------------------------------------------------------


class Awaiting(Control):
    """To a member that is ready: which others the next round waits for, at most so many seconds."""

    kind: ClassVar[str] = "awaiting"

    sites: list[_Id] = Field(max_length=1000)
    seconds: float = Field(ge=0)


class Refused(Said):
    """This process can take no part, such as one with another study, version or policy."""

    kind: ClassVar[str] = "refused"


class Finished(Said):
    """The run is over. Answered with `Done`.

    Attributes:
        complete: whether everything that was agreed was done; else the member's command is no success either.
        final: whether nothing of the run follows; else the coordinator gave up, and the same commands go on.
    """

    kind: ClassVar[str] = "finished"

    complete: bool = False
    final: bool = False


@dataclass(frozen=True)
class _Bytes:
    data: bytes

    def packed(self) -> bytes:
        """As they are."""
        return self.data

    @classmethod
    def unpacked(cls, payload: bytes, sender: str) -> Self:
        """As they are: nobody has looked into them yet."""
        return cls(payload)


class Protocolled(_Bytes):
    """Either way: a message of secure aggregation, as `secagg.wire` encodes it."""

    kind: ClassVar[str] = "secagg"


class Transcript(_Bytes):
    """The whole transcript of a round, which the member replays."""

    kind: ClassVar[str] = "transcript"


@dataclass(frozen=True)
class WithContent:
    """A signed round start, and what the application sends along, such as a model.

    Attributes:
        start: with every receipt.
        content: nobody has looked into it yet, nor held it against the model hash in `start`.
    """

    start: RoundStart
    content: bytes = b""

    def packed(self) -> bytes:
        """The round start with its length before it, then the content."""
        announced = wire.encode(self.start)
        return len(announced).to_bytes(_LENGTH_BYTES, "big") + announced + self.content

    @classmethod
    def unpacked(cls, payload: bytes, sender: str) -> Self:
        """What `packed` gave.

        Raises:
            DialogueError: it is not.
        """
        end = _LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "big")
        try:
            start = wire.decode_from_server(payload[_LENGTH_BYTES:end])
        except ProtocolError:
            raise DialogueError(f"{sender} sent a malformed {cls.__name__} message; it was ignored") from None
        if not isinstance(start, RoundStart):
            raise DialogueError(f"{sender} sent another message of the protocol in place of a round start")
        return cls(start, payload[end:])


class Opened(WithContent):
    """A round, and what it is about."""

    kind: ClassVar[str] = "round"


class Closing(WithContent):
    """The last content and, in its round start, every receipt."""

    kind: ClassVar[str] = "closing"


FROM_MEMBER: tuple[type[Message], ...] = (Ready, Busy, Leaving, Failed, Done, Protocolled)
FROM_COORDINATOR: tuple[type[Message], ...] = (
    *(Opened, Protocolled, Transcript, Closing),
    *(Account, Awaiting, Refused, Finished),
)


class Dialogue:
    """Reads what comes from one side.

    Args:
        kinds: `FROM_MEMBER` or `FROM_COORDINATOR`, and the application's own.
    """

    def __init__(self, kinds: Iterable[type[Message]]) -> None:
        self._kinds = {message.kind: message for message in kinds}

    def read(self, kind: str, payload: bytes, sender: str = "the coordinator") -> Message | None:
        """A message; None where it is of a kind that this version does not know.

        Raises:
            DialogueError: malformed, with who sent it.
        """
        message = self._kinds.get(kind)
        return message.unpacked(payload, sender) if message else None
