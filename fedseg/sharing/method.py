"""What every method has to say and do."""

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray

from secagg.encoding import digest
from secagg.prg import Stream


@dataclass(frozen=True, kw_only=True)
class Sharing:
    """The numbers of `[sharing]`, all public; see its section of a study."""

    method: str = "full"
    share: float = 1.0
    rank: int = 0
    rotation: bool = False
    bits: int = 0
    error_feedback: bool = False
    leave_out: tuple[str, ...] = ()


class Place(NamedTuple):
    """Where in a study a map is made: all that it may depend on besides `Sharing`.

    Attributes:
        parameters: d, values of an update.
        seed: 32 public bytes of the round.
        tensors: name and size of each tensor, in the order of the update; a site knows them, who adds need not.
    """

    parameters: int
    seed: bytes
    tensors: Sequence[tuple[str, int]] = ()


class Method(ABC):
    """One way to send less than a whole update.

    Attributes:
        name: as `[sharing] method`.
        uses: fields of `[sharing]` that it looks at.
        within: a site trains within what can be sent: each gradient is reduced before it is clipped and noised.
        linear: what a site sends depends on its update by a public map alone. Where it does not, such as where a site
            chooses its largest values, only a whole update that is noised already may go through.
    """

    name: ClassVar[str]
    uses: ClassVar[tuple[str, ...]] = ()
    within: ClassVar[bool] = False
    linear: ClassVar[bool] = True

    def length(self, parameters: int, sharing: Sharing) -> int:
        """How many values are sent of an update of so many."""
        return parameters

    def unfit(self, tensors: Sequence[str], sharing: Sharing) -> str:
        """Why this cannot be done with a network of tensors so called, as one sentence; empty where it can."""
        return ""

    @abstractmethod
    def reduced(self, update: NDArray[Any], sharing: Sharing, place: Place) -> NDArray[Any]:
        """(d,) floats to the (length,) that are sent."""

    @abstractmethod
    def restored(self, values: NDArray[np.float64], sharing: Sharing, place: Place) -> NDArray[np.float64]:
        """(length,) of a sum to the (d,) that they stand for, bit for bit the same at every party."""


def seed_of(weights: NDArray[np.float32]) -> bytes:
    """The public 32 bytes of the round that begins from these weights."""
    return digest("sharing", np.ascontiguousarray(weights, dtype="<f4").tobytes())


def part_of(values: int, share: float) -> int:
    """How many values a share of so many is, at least one."""
    return max(1, math.ceil(values * share - 1e-9))


def drawn(values: int, count: int, seed: bytes) -> NDArray[np.int64]:
    """The places of `count` of so many values, rising: the same to everybody who has the seed, each as likely."""
    order = np.argsort(Stream(seed).words(values), kind="stable")  # stable: ties fall alike in every numpy
    return np.sort(order[:count]).astype(np.int64)
