"""FedAvgM: FedAvg with momentum over the rounds.

Source: Hsu et al. 2019; Reddi et al. 2021 call it FedAvgM too.
"""

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.algorithm import Algorithm, Moved, Rules


class FedAvgM(Algorithm):
    """See the module."""

    name = "fedavgm"

    def kept(self, parameters: int) -> int:
        """The velocity."""
        return parameters

    def following(
        self,
        weights: NDArray[np.float64],
        memory: NDArray[np.float64],
        mean: NDArray[np.float64],
        rules: Rules,
        noise: float,
    ) -> Moved:
        """See `Algorithm.following`."""
        velocity = rules.momentum * memory + mean
        return Moved(weights + rules.server_lr * velocity, velocity)
