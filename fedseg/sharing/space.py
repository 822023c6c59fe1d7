"""A method in one round: what every party makes of an update and of a sum, and how gradients are trained within it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.sharing.method import Method, Place, Sharing, seed_of
from fedseg.sharing.table import METHODS


@dataclass(frozen=True)
class Space:
    """The public map of one round.

    Attributes:
        sharing: of the study.
        place: of the round.
    """

    sharing: Sharing
    place: Place

    @classmethod
    def of(cls, weights: NDArray[np.float32], sharing: Sharing, tensors: Sequence[tuple[str, int]] = ()) -> "Space":
        """Of the round that begins from these (d,) weights."""
        return cls(sharing, Place(len(weights), seed_of(weights), tensors))

    @property
    def method(self) -> Method:
        """Which it is."""
        return METHODS[self.sharing.method]

    @property
    def length(self) -> int:
        """How many values are sent."""
        return self.method.length(self.place.parameters, self.sharing)

    def reduced(self, update: NDArray[Any]) -> NDArray[Any]:
        """(d,) to (length,)."""
        return self.method.reduced(update, self.sharing, self.place)

    def restored(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """(length,) to (d,)."""
        return self.method.restored(values, self.sharing, self.place)


class Within:
    """Gradients of the trained tensors, seen through a space: reduced before they are clipped, restored when noised.

    Args:
        space: of the round.

    Attributes:
        length: values of a reduced gradient.
    """

    def __init__(self, space: Space) -> None:
        self._space, self.length = space, space.length

    def reduced(self, gradient: torch.Tensor) -> torch.Tensor:
        """(t,) of the trained tensors to (length,) float64 on the same device."""
        reduced = self._space.reduced(gradient.detach().to("cpu", torch.float64).numpy())
        return torch.from_numpy(np.asarray(reduced, dtype=np.float64)).to(gradient.device)

    def restored(self, values: torch.Tensor) -> torch.Tensor:
        """(length,) to (t,) float64 on the same device."""
        return torch.from_numpy(self._space.restored(values.detach().to("cpu", torch.float64).numpy())).to(
            values.device
        )
