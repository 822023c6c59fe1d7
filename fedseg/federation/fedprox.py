"""FedProx: FedAvg whose sites do not stray, because each step also pulls them back to the round's weights.

Source: Li et al. 2020, Algorithm 2: mu / 2 times the squared distance is added to a site's loss.
"""

from fedseg.federation.algorithm import Rules
from fedseg.federation.fedavg import FedAvg


class FedProx(FedAvg):
    """See the module."""

    name = "fedprox"

    def pull(self, rules: Rules) -> float:
        """See `Algorithm.pull`."""
        return rules.proximal
