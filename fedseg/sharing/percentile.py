"""Method "percentile": each site sends its largest values and zeros; it hides nothing and claims nothing.

Which values are the largest is another choice at each site, and it tells of patients as much as the values do. Under a
secure sum the zeros are masked like all others, so that not one byte is saved.

Source: Shokri and Shmatikov 2015, whose largest updates NVFlare's `PercentilePrivacy` sends.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.sharing.method import Method, Place, Sharing, part_of


class Percentile(Method):
    """See the module."""

    name = "percentile"
    uses = ("share", "error_feedback")
    linear = False

    def reduced(self, update: NDArray[Any], sharing: Sharing, place: Place) -> NDArray[Any]:
        """The `share` of values that is largest in magnitude, where they are, and 0 elsewhere."""
        largest = np.argsort(-np.abs(update), kind="stable")[: part_of(len(update), sharing.share)]
        kept = np.zeros_like(update)
        kept[largest] = update[largest]
        return kept

    def restored(self, values: NDArray[np.float64], sharing: Sharing, place: Place) -> NDArray[np.float64]:
        """As they are."""
        return values
