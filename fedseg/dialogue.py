"""What a coordinator and a site tell each other around the protocol's own messages.

A round is opened with the signed round start and the model; a site tells that its training begins, without differential
privacy how far it is, and, where the study says so, its validation Dice. Everything that came over the wire is
validated; nothing is unpickled. At the end every site gets the last model, every receipt, and the account (see
`fedseg.account`) of each round that it did not see to its end.

Each class is one kind of message, with the word by which the mailbox knows it.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar, Self, TypeAlias

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedseg.account import Account
from fedseg.errors import RoundFailedError
from secagg import wire
from secagg.errors import MalformedMessageError
from secagg.messages import RoundStart

SENTENCE = 2000
"""Characters of a reason at most."""

WAITED_FOR = 64
"""Rounds at most that a site waits for at once."""

_LENGTH_BYTES = 4
_Hash = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
_Dice = Annotated[float, Field(ge=0, le=1)]


class _Control(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    kind: ClassVar[str]

    def packed(self) -> bytes:
        """As JSON."""
        return self.model_dump_json().encode()

    @classmethod
    def unpacked(cls, payload: bytes, sender: str) -> Self:
        """What `packed` gave.

        Raises:
            RoundFailedError: it is not, with who sent it.
        """
        try:
            return cls.model_validate_json(payload)
        except ValidationError as error:
            raise RoundFailedError(f"{sender} sent a malformed {cls.__name__} message; it was ignored") from error


class Ready(_Control):
    """Site to coordinator: it is there and in no round.

    It takes part in none before it has replayed the transcripts of these rounds, or its operator accepted them: round
    identifiers in hexadecimal, of shares that it sent itself and of those that others in its cohort say they sent.
    """

    kind: ClassVar[str] = "ready"

    study: _Hash = Field(description="of the study that it was started with")
    unreplayed: list[_Hash] = Field(max_length=WAITED_FOR)


class Progress(_Control):
    """Site to coordinator: local step `step` of `steps` is done, and what the site's patients have spent.

    With differential privacy only step 0: the time of a later step would tell how many patients were drawn.
    """

    kind: ClassVar[str] = "progress"

    round: int = Field(ge=1)
    step: int = Field(ge=0)
    steps: int = Field(ge=1)
    epsilon: float | None = Field(ge=0)


class Metrics(_Control):
    """Site to coordinator, only with `share_metrics`: Dice of each held-out patient, in no order that names anybody."""

    kind: ClassVar[str] = "metrics"

    round: int = Field(ge=0, description="completed rounds of the model that was evaluated")
    rows: list[list[_Dice | None]]


class Said(_Control):
    """One sentence on why."""

    reason: str = Field(max_length=SENTENCE)

    @classmethod
    def because(cls, reason: object) -> Self:
        """Of a reason of any length."""
        return cls(reason=str(reason)[:SENTENCE])


class Leaving(Said):
    """Site to coordinator: it takes part no more, such as one whose budget is spent."""

    kind: ClassVar[str] = "leaving"


class Failed(Said):
    """Site to coordinator: this process ends; another one may come."""

    kind: ClassVar[str] = "failed"


class Refused(Said):
    """Coordinator to site: this process can take no part, such as one with another study."""

    kind: ClassVar[str] = "refused"


class Finished(Said):
    """Coordinator to site: the run is over."""

    kind: ClassVar[str] = "finished"


class Awaiting(_Control):
    """Coordinator to a site that is ready: which other sites the next round waits for, at most so many seconds."""

    kind: ClassVar[str] = "awaiting"

    sites: list[str]
    seconds: float = Field(ge=0)


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


class Protocol(_Bytes):
    """Either way: a message of secure aggregation, as `secagg.wire` encodes it."""

    kind: ClassVar[str] = "secagg"


class Transcript(_Bytes):
    """Coordinator to site: the whole transcript of a round, which the site replays."""

    kind: ClassVar[str] = "transcript"


@dataclass(frozen=True)
class _WithModel:
    """A signed round start, and a model.

    Attributes:
        start: with every receipt.
        model: (d,) float32; nobody has held it against the hash in `start` yet.
    """

    start: RoundStart
    model: NDArray[np.float32]

    def packed(self) -> bytes:
        """The round start with its length before it, then the model in little-endian float32."""
        announced = wire.encode(self.start)
        return len(announced).to_bytes(_LENGTH_BYTES, "big") + announced + self.model.astype("<f4").tobytes()

    @classmethod
    def unpacked(cls, payload: bytes, sender: str) -> Self:
        """What `packed` gave.

        Raises:
            RoundFailedError: it is not.
        """
        end = _LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "big")
        try:
            start = wire.decode_from_server(payload[_LENGTH_BYTES:end])
            model = np.frombuffer(payload[end:], dtype="<f4").astype(np.float32)
        except (MalformedMessageError, ValueError) as error:
            raise RoundFailedError(f"{sender} opened a round with a malformed message") from error
        if not isinstance(start, RoundStart):
            raise RoundFailedError(f"{sender} opened a round with another message of the protocol")
        return cls(start, model)


class Opened(_WithModel):
    """Coordinator to site: a round, and the model that it is about."""

    kind: ClassVar[str] = "round"


class ToEvaluate(_WithModel):
    """Coordinator to site, only with `share_metrics`: the last model, whose `Metrics` it waits for."""

    kind: ClassVar[str] = "metrics"


class Closing(_WithModel):
    """Coordinator to site: the last model and, in its round start, every receipt."""

    kind: ClassVar[str] = "closing"


FromSite: TypeAlias = Ready | Progress | Metrics | Leaving | Failed | Protocol
FromCoordinator: TypeAlias = (
    Opened | Protocol | Transcript | ToEvaluate | Closing | Account | Awaiting | Refused | Finished
)
_FROM_SITE: tuple[type[FromSite], ...] = (Ready, Progress, Metrics, Leaving, Failed, Protocol)
_FROM_COORDINATOR: tuple[type[FromCoordinator], ...] = (
    *(Opened, Protocol, Transcript, ToEvaluate, Closing),
    *(Account, Awaiting, Refused, Finished),
)
_OF_SITES = {message.kind: message for message in _FROM_SITE}
_OF_COORDINATORS = {message.kind: message for message in _FROM_COORDINATOR}


def from_site(kind: str, payload: bytes, site: str) -> FromSite | None:
    """A site's message; None where it is of a kind that this version does not know.

    Raises:
        RoundFailedError: malformed, with who sent it.
    """
    message = _OF_SITES.get(kind)
    return message.unpacked(payload, site) if message else None


def from_coordinator(kind: str, payload: bytes) -> FromCoordinator | None:
    """The coordinator's message; None where it is of a kind that this version does not know.

    Raises:
        RoundFailedError: malformed.
    """
    message = _OF_COORDINATORS.get(kind)
    return message.unpacked(payload, "the coordinator") if message else None
