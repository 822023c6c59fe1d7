"""Method "full": everything is sent as it is."""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.sharing.method import Method, Place, Sharing


class Full(Method):
    """See the module."""

    name = "full"

    def reduced(self, update: NDArray[Any], sharing: Sharing, place: Place) -> NDArray[Any]:
        """As it is."""
        return update

    def restored(self, values: NDArray[np.float64], sharing: Sharing, place: Place) -> NDArray[np.float64]:
        """As it is."""
        return values
