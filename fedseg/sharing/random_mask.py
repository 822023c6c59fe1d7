"""Method "random-mask": in each round a public draw says which values move at all; only these are trained and sent.

Source: Konečný et al. 2016, section 2 (structured updates). There each client draws its own mask and sends its seed.
Under a secure sum all sites share one: sums of values at other places could not be told apart.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.sharing.method import Method, Place, Sharing, drawn, part_of


class RandomMask(Method):
    """See the module."""

    name = "random-mask"
    uses = ("share", "bits")
    within = True

    def length(self, parameters: int, sharing: Sharing) -> int:
        """See `Method.length`."""
        return part_of(parameters, sharing.share)

    def reduced(self, update: NDArray[Any], sharing: Sharing, place: Place) -> NDArray[Any]:
        """The drawn values."""
        return update[self._places(sharing, place)]

    def restored(self, values: NDArray[np.float64], sharing: Sharing, place: Place) -> NDArray[np.float64]:
        """The drawn values at their places, and 0 elsewhere."""
        whole = np.zeros(place.parameters)
        whole[self._places(sharing, place)] = values
        return whole

    def _places(self, sharing: Sharing, place: Place) -> NDArray[np.int64]:
        return drawn(place.parameters, self.length(place.parameters, sharing), place.seed)
