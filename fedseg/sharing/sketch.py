"""Method "sketch": a site trains all values and sends a public sample of them, right on average, rotated or not.

A rotation by signs and Hadamard's transform first spreads an update evenly over its values. That makes each value as
small as its neighbours, so that few bits hold it (`levels`), and each sample as good as another.

Source: Konečný et al. 2016, section 3 (sketched updates). Under a secure sum both are the same at all sites.
"""

import math
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.rotation import block_of, hadamard, padded, signs
from fedseg.sharing.method import Method, Place, Sharing, drawn, part_of
from secagg.encoding import digest


class Sketch(Method):
    """See the module."""

    name = "sketch"
    uses = ("share", "rotation", "bits", "error_feedback")

    def length(self, parameters: int, sharing: Sharing) -> int:
        """See `Method.length`: a share of the update's values; all of them with what fills up the rotated blocks."""
        return _spread(parameters, sharing) if sharing.share == 1 else part_of(parameters, sharing.share)

    def reduced(self, update: NDArray[Any], sharing: Sharing, place: Place) -> NDArray[Any]:
        """The sample of the rotated update, its values as they are."""
        spread = update
        if sharing.rotation:
            spread = np.zeros(padded(place.parameters))
            spread[: place.parameters] = update
            block = block_of(place.parameters)
            spread = hadamard(spread * _signs(place), block) / math.sqrt(block)
        return spread[self._places(sharing, place)]

    def restored(self, values: NDArray[np.float64], sharing: Sharing, place: Place) -> NDArray[np.float64]:
        """Right on average over all samples; with error feedback as close as can be, for the rest is sent later."""
        spread = np.zeros(_spread(place.parameters, sharing))
        spread[self._places(sharing, place)] = (
            values if sharing.error_feedback else values * (len(spread) / len(values))
        )
        if not sharing.rotation:
            return spread
        block = block_of(place.parameters)
        turned = hadamard(spread, block) * _signs(place) / math.sqrt(block)
        return np.asarray(turned[: place.parameters])

    def _places(self, sharing: Sharing, place: Place) -> NDArray[np.int64]:
        return drawn(
            _spread(place.parameters, sharing), self.length(place.parameters, sharing), digest("sample", place.seed)
        )


def _spread(parameters: int, sharing: Sharing) -> int:
    return padded(parameters) if sharing.rotation else parameters


def _signs(place: Place) -> NDArray[np.int64]:
    return signs(digest("signs", place.seed), padded(place.parameters))
