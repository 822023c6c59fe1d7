"""What a coordinator and a site of a study tell each other beside `secagg.service.dialogue`.

A site tells that its training begins, without differential privacy how far it is, and, where the study says so, its
validation Dice. A model travels as the content of a round start.
"""

from dataclasses import asdict
from typing import Annotated, ClassVar, Self

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from fedseg.data.declaration import Declaration
from fedseg.errors import RoundFailedError
from secagg.encoding import encode
from secagg.keys import SigningKey, verify
from secagg.service.dialogue import Control, WithContent

_Dice = Annotated[float, Field(ge=0, le=1)]
_Declared = Annotated[str, Field(max_length=200, pattern=r"^[^\W_]*$")]


class Progress(Control):
    """Site to coordinator: local step `step` of `steps` is done, and what the site's patients have spent.

    With differential privacy only step 0: the time of a later step would tell how many patients were drawn.
    """

    kind: ClassVar[str] = "progress"

    round: int = Field(ge=1)
    step: int = Field(ge=0)
    steps: int = Field(ge=1)
    epsilon: float | None = Field(ge=0)


class Metrics(Control):
    """Site to coordinator, only with `share_metrics`: Dice of each held-out patient, in no order that names anybody."""

    kind: ClassVar[str] = "metrics"

    round: int = Field(ge=0, description="completed rounds of the model that was evaluated")
    rows: list[list[_Dice | None]]


class Declares(BaseModel):
    """What a site's index calls structures and channels, signed by the site: what `Ready.says` holds, as JSON.

    No patient's presence changes it: see `fedseg.data.declaration`.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    structures: Annotated[tuple[_Declared, ...], Field(max_length=254)] | None
    channels: Annotated[tuple[_Declared, ...], Field(max_length=254)] | None
    space: _Declared | None
    signature: Annotated[str, Field(pattern=r"^[0-9a-f]{128}$")]

    @classmethod
    def signed(cls, declared: Declaration, run: str, site: str, key: SigningKey) -> Self:
        """Of a site, for one training run."""
        return cls(**asdict(declared), signature=key.sign(_stated(declared, run, site)).hex())

    @classmethod
    def heard(cls, text: str, run: str, site: str, verify_key: bytes) -> Declaration:
        """What a site said of itself.

        Raises:
            RoundFailedError: it is malformed, or not signed by the site.
        """
        try:
            found = cls.model_validate_json(text)
        except ValidationError:
            raise RoundFailedError(f"{site} sent a malformed declaration of its labels and channels") from None
        declared = Declaration(found.structures, found.channels, found.space)
        if not verify(verify_key, _stated(declared, run, site), bytes.fromhex(found.signature)):
            raise RoundFailedError(f"{site} did not sign its declaration of labels and channels")
        return declared


class ToEvaluate(WithContent):
    """Coordinator to site, only with `share_metrics`: the last model, whose `Metrics` it waits for."""

    kind: ClassVar[str] = "metrics"


def content_of(state: NDArray[np.float32]) -> bytes:
    """A model's state, (d,) float32, as it travels: little-endian."""
    return state.astype("<f4").tobytes()


def state_in(content: bytes) -> NDArray[np.float32]:
    """What `content_of` gave; nobody has held it against a hash yet.

    Raises:
        RoundFailedError: it is no such state.
    """
    try:
        return np.frombuffer(content, dtype="<f4").astype(np.float32)
    except ValueError:
        raise RoundFailedError("the coordinator sent a model that is cut off") from None


def _stated(declared: Declaration, run: str, site: str) -> bytes:
    return encode("declared", run, site, declared.digest)
