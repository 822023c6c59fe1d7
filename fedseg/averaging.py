"""Federated averaging: the mean of the included updates, from their weighted sum."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from secagg.policy import Policy


def mean_of(total: NDArray[np.float64], included: Sequence[str], policy: Policy) -> NDArray[np.float64]:
    """The mean over the included sites' weights, which are public constants.

    Args:
        total: (d,) weighted sum of the included updates.
        included: their sites.
        policy: gives the weights.
    """
    weight = sum(policy.weight(site) for site in included)
    return total / weight
