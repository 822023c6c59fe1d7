"""Federated averaging: the next model from the last one and the weighted sum of the included updates."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secagg.policy import Policy


def fed_avg(
    model: NDArray[np.float32], total: NDArray[np.float64], included: Sequence[str], policy: Policy
) -> NDArray[np.float32]:
    """The next model: weights are public constants, so the mean is over the included sites' weights.

    Args:
        model: (d,) the global model of the round.
        total: (d,) weighted sum of the included updates.
        included: their sites.
        policy: gives the weights.

    Source: McMahan et al. 2017, Algorithm 1, on differences of weights.
    """
    weight = sum(policy.weight(site) for site in included)
    return (model + total / weight).astype(np.float32)
