"""FedYogi: FedAdam whose second moment grows and shrinks by as much, so that one small round does not speed it up.

Source: Reddi et al. 2021, Algorithm 2.
"""

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.fedadam import FedAdam


class FedYogi(FedAdam):
    """See the module."""

    name = "fedyogi"

    def second(self, second: NDArray[np.float64], squared: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
        """See `FedAdam.second`."""
        return second - (1 - beta) * squared * np.sign(second - squared)
