"""What a coordinator and a site of a study tell each other beside `secagg.service.dialogue`.

A site tells that its training begins, without differential privacy how far it is, and, where the study says so, its
validation Dice. A model travels as the content of a round start.
"""

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from fedseg.errors import RoundFailedError
from secagg.service.dialogue import Control, WithContent

_Dice = Annotated[float, Field(ge=0, le=1)]


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
