"""A method in one round: what every party makes of an update and of a sum, and how gradients are trained within it."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.errors import UnsupportedModelError
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
        trained: for each tensor of the model whether it is trained, and its size.

    Attributes:
        length: values of a reduced gradient.

    Raises:
        UnsupportedModelError: some tensors are fixed, and the space knows no single values that could be left alone.
    """

    def __init__(self, space: Space, trained: Sequence[tuple[bool, int]]) -> None:
        if not all(moves for moves, _ in trained) and space.sharing.method != "random-mask":
            raise UnsupportedModelError(
                f"[sharing] method = '{space.sharing.method}' moves all weights, and some of this model are fixed; use "
                "'random-mask', or train all"
            )
        self._space, self.length = space, space.length
        self._moves = np.repeat([moves for moves, _ in trained], [size for _, size in trained])

    def reduced(self, gradient: torch.Tensor) -> torch.Tensor:
        """(t,) of the trained tensors to (length,) float64 on the same device."""
        whole = np.zeros(len(self._moves))
        whole[self._moves] = gradient.detach().to("cpu", torch.float64).numpy()
        return torch.from_numpy(np.asarray(self._space.reduced(whole), dtype=np.float64)).to(gradient.device)

    def restored(self, values: torch.Tensor) -> torch.Tensor:
        """(length,) to (t,) float64 on the same device."""
        whole = self._space.restored(values.detach().to("cpu", torch.float64).numpy())
        return torch.from_numpy(whole[self._moves]).to(values.device)
