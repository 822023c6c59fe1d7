"""What a coordinator and a site tell each other around the protocol's own messages.

A round is opened with the signed round start and the model; a site tells that its training begins, without differential
privacy how far it is, and, where the study says so, its validation Dice. Everything that came over the wire is
validated; nothing is unpickled. At the end every site gets the last model, every receipt, and the account (see
`fedseg.account`) of each round that it did not see to its end.
"""

from typing import Annotated, TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedseg.errors import RoundFailedError
from secagg import wire
from secagg.errors import MalformedMessageError
from secagg.messages import RoundStart

READY = "ready"
ROUND = "round"
PROTOCOL = "secagg"
PROGRESS = "progress"
METRICS = "metrics"
LEAVING = "leaving"
FAILED = "failed"
CLOSING = "closing"
ACCOUNT = "account"
FINISHED = "finished"
TRANSCRIPT = "transcript"

SENTENCE = 2000
"""Characters of a reason at most."""

WAITED_FOR = 64
"""Rounds at most that a site waits for at once."""

_LENGTH_BYTES = 4


class _Control(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)

    def packed(self) -> bytes:
        """As JSON."""
        return self.model_dump_json().encode()


class Ready(_Control):
    """Site to coordinator: it is there and in no round.

    It takes part in none before it has replayed the transcripts of these rounds, or its operator accepted them: round
    identifiers in hexadecimal, of shares that it sent itself and of those that others in its cohort say they sent.
    """

    unreplayed: list[Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]] = Field(max_length=WAITED_FOR)


class Progress(_Control):
    """Site to coordinator: local step `step` of `steps` is done, and what the site's patients have spent.

    With differential privacy only step 0: the time of a later step would tell how many patients were drawn.
    """

    round: int = Field(ge=1)
    step: int = Field(ge=0)
    steps: int = Field(ge=1)
    epsilon: float | None = Field(ge=0)


class Metrics(_Control):
    """Site to coordinator, only with `share_metrics`: Dice of each held-out patient, in no order that names anybody."""

    round: int = Field(ge=0, description="completed rounds of the model that was evaluated")
    rows: list[list[float | None]]


class Said(_Control):
    """Why a site leaves or failed, or why the coordinator is done: one sentence."""

    reason: str = Field(max_length=SENTENCE)


C = TypeVar("C", bound=_Control)


def unpacked(kind: type[C], payload: bytes, sender: str) -> C:
    """A control message.

    Raises:
        RoundFailedError: not what `kind` says, with who sent it.
    """
    try:
        return kind.model_validate_json(payload)
    except ValidationError as error:
        raise RoundFailedError(f"{sender} sent a malformed {kind.__name__} message; it was ignored") from error


def pack_round(start: RoundStart, model: NDArray[np.float32]) -> bytes:
    """The signed round start and the model, flat little-endian float32."""
    announced = wire.encode(start)
    return len(announced).to_bytes(_LENGTH_BYTES, "big") + announced + model.astype("<f4").tobytes()


def unpack_round(payload: bytes) -> tuple[RoundStart, NDArray[np.float32]]:
    """What `pack_round` packed; the model is not yet held against the hash in the round start.

    Raises:
        RoundFailedError: malformed.
    """
    end = _LENGTH_BYTES + int.from_bytes(payload[:_LENGTH_BYTES], "big")
    try:
        start = wire.decode_from_server(payload[_LENGTH_BYTES:end])
        model = np.frombuffer(payload[end:], dtype="<f4").astype(np.float32)
    except (MalformedMessageError, ValueError) as error:
        raise RoundFailedError("the coordinator opened a round with a malformed message") from error
    if not isinstance(start, RoundStart):
        raise RoundFailedError("the coordinator opened a round with another message of the protocol")
    return start, model
