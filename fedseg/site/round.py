"""One round that a site takes part in, on the model that it was opened on."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.attempt import Emit, Facts
from fedseg.course import Course
from fedseg.events import RoundEnded
from fedseg.study import Study
from secagg.driver import Completed
from secagg.policy import Policy
from secagg.prg import Stream
from secagg.steps import SHARE_REPORT


class Round:
    """What a site holds of a round.

    Args:
        me: the site's id.
        number, attempt: of the round.
        opened_on: its state, weights and what is kept behind them.
        model: to be trained, a copy of its own.
        emit: takes events.

    Attributes:
        quantised: what an audit wants of its update, filled as it is masked; None where there is no audit.
    """

    def __init__(
        self,
        me: str,
        number: int,
        attempt: int,
        opened_on: NDArray[np.float32],
        model: torch.nn.Module,
        emit: Emit,
    ) -> None:
        self.me, self.number, self.opened_on, self.model = me, number, opened_on, model
        self.facts = Facts(number, attempt, emit)
        self.quantised: NDArray[Any] | None = None

    def rounding(self, study: Study) -> Stream:
        """The stream of stochastic rounding."""
        if study.study.seed is not None:
            return Stream.seeded(study.study.seed, "rounding", self.me, self.number)
        return Stream()

    def following(self, done: Completed, policy: Policy, course: Course) -> NDArray[np.float32]:
        """The state that this sum gives."""
        return course.following(self.opened_on, done.total, done.included, policy, done.excess_seeds)

    def ended(self, done: Completed, clip_rate: float | None) -> RoundEnded:
        """The round as this site saw it to its end; says who dropped out of it."""
        for site in done.dropped:
            self.facts.silent(site, SHARE_REPORT)
        self.facts.took("round")
        rates = {} if clip_rate is None else {self.me: clip_rate}
        return self.facts.ended(done.included, done.dropped, done.receipt.head, clip_rate=rates)
