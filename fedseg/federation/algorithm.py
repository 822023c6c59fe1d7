"""What every algorithm has to say and do."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, kw_only=True)
class Rules:
    """The numbers of `[federation]`, all public.

    Attributes:
        algorithm: its name.
        server_lr: what every party multiplies its step by.
        momentum: of FedAvgM.
        betas, adaptivity: of FedAdam and FedYogi: how fast both moments forget, and tau, which is added to the root.
        corrected: whether FedAdam takes the noise's variance from its second moment.
        proximal: mu of FedProx.
        participation: sites of a round; 0 for all.
        personal: what stays at its site; see `fedseg.update.moving`.
    """

    algorithm: str = "fedavg"
    server_lr: float = 1.0
    momentum: float = 0.9
    betas: tuple[float, float] = (0.9, 0.99)
    adaptivity: float = 1e-3
    corrected: bool = False
    proximal: float = 0.0
    participation: int = 0
    personal: str = "none"


class Moved(NamedTuple):
    """The next weights and what is remembered beside them, float64."""

    weights: NDArray[np.float64]
    memory: NDArray[np.float64]


class Algorithm(ABC):
    """One way to learn from the mean of the sites' updates.

    Only sums, products, quotients and square roots of float64 in a fixed order: every machine gets the same bits.

    Attributes:
        name: as `[federation] algorithm`.
        server_lr: where a study gives none.
    """

    name: ClassVar[str]
    server_lr: ClassVar[float] = 1.0

    def pull(self, rules: Rules) -> float:
        """Factor of what pulls a site's weights back to the round's: the gradient of factor / 2 times their distance.

        It is no gradient of a patient, so that nothing of it is clipped or noised.
        """
        return 0.0

    def kept(self, parameters: int) -> int:
        """How many values are remembered for so many weights, all 0 at the start."""
        return 0

    @abstractmethod
    def following(
        self,
        weights: NDArray[np.float64],
        memory: NDArray[np.float64],
        mean: NDArray[np.float64],
        rules: Rules,
        noise: float,
    ) -> Moved:
        """What every party does with the mean.

        Args:
            weights: (d,) of the round.
            memory: (kept(d),).
            mean: (d,) weighted mean of the included updates.
            rules: of the study.
            noise: variance of the noise in each value of the mean, public; 0 where there is none.
        """
