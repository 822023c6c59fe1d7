"""FedAdam: every value of the mean is divided by its own usual size.

With `corrected` the noise's own variance is taken from the second moment, which it would otherwise fill.
Sources: Reddi et al. 2021, Algorithm 2; Tang et al. 2024 for the correction.
"""

import numpy as np
from numpy.typing import NDArray

from fedseg.federation.algorithm import Algorithm, Moved, Rules
from fedseg.optimisers import FLOOR, power


class FedAdam(Algorithm):
    """See the module."""

    name = "fedadam"
    server_lr = 0.01

    def kept(self, parameters: int) -> int:
        """Both moments, and the number of rounds so far."""
        return 2 * parameters + 1

    def following(
        self,
        weights: NDArray[np.float64],
        memory: NDArray[np.float64],
        mean: NDArray[np.float64],
        rules: Rules,
        noise: float,
    ) -> Moved:
        """See `Algorithm.following`."""
        first, second = np.split(memory[:-1], 2)
        done, beta = memory[-1] + 1, rules.betas[1]
        first = rules.betas[0] * first + (1 - rules.betas[0]) * mean
        second = self.second(second, mean * mean, beta)
        seen = second
        if rules.corrected:  # of the noise so much has come into the second moment by now
            expected = noise * (1 - power(beta, int(done)))
            seen = np.maximum(second - expected, FLOOR * expected)
        moved = weights + rules.server_lr * first / (np.sqrt(seen) + rules.adaptivity)
        return Moved(moved, np.concatenate([first, second, [done]]))

    def second(self, second: NDArray[np.float64], squared: NDArray[np.float64], beta: float) -> NDArray[np.float64]:
        """The second moment, one round later."""
        return beta * second + (1 - beta) * squared
