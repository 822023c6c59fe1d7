"""FedAvg: the mean of the updates is added to the weights.

Source: McMahan et al. 2017, Algorithm 1, on differences of weights.
"""

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.algorithm import Algorithm, Moved, Rules


class FedAvg(Algorithm):
    """See the module."""

    name = "fedavg"

    def following(
        self,
        weights: NDArray[np.float64],
        memory: NDArray[np.float64],
        mean: NDArray[np.float64],
        rules: Rules,
        noise: float,
    ) -> Moved:
        """See `Algorithm.following`."""
        return Moved(weights + rules.server_lr * mean, memory)
