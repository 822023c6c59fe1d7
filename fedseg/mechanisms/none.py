"""Mechanism "none": nothing is clipped or noised, nobody is protected, and every output says so."""

from typing import ClassVar

import numpy as np
import torch
from dp_accounting.dp_event import DpEvent, NonPrivateDpEvent
from numpy.typing import NDArray

from fedseg.ledger import Entry, UnprotectedRound
from fedseg.mechanisms.mechanism import MOMENTUM, Keys, Losses, Mechanism, Said, Steps, Terms
from fedseg.privacy.dpsgd import plain_gradient
from fedseg.privacy.trust import Trust
from fedseg.sharing.sending import Owed
from fedseg.update import NoisedUpdate, PlainSteps


class UnprotectedSteps(Steps):
    """Steps by gradients as they are."""

    def __init__(self, model: torch.nn.Module, terms: Terms, trust: Trust) -> None:
        super().__init__(model, terms)
        self._taken, self._trust = PlainSteps(model, terms.lr, MOMENTUM, **terms.own_steps), trust

    def at(self, rate: float) -> None:
        """See `Steps.at`."""
        self._taken.rate = rate

    def step(self, losses: Losses, keys: Keys) -> None:
        """See `Steps.step`."""
        each = (loss for _, loss in losses)
        divisor = 1 if self._terms.batch else self._terms.denominator  # a batch's loss is a mean already
        self._taken.step(plain_gradient(self._parameters, each, divisor, self._within))

    @property
    def diverged(self) -> bool:
        """See `Steps.diverged`."""
        return not self._taken.finite

    @property
    def weights(self) -> NDArray[np.float32]:
        """See `Steps.weights`."""
        return self._taken.weights

    def update(self, site: str, event_id: str, keys: Keys, owed: Owed | None = None) -> NoisedUpdate:
        """See `Steps.update`; nothing was charged that an update could name."""
        return NoisedUpdate.unprotected(self._sending(keys, owed)(self._taken.difference), site, self._trust)


class Unprotected(Mechanism):
    """See the module."""

    name = "none"
    trust = Trust(
        claims_epsilon=False,
        each_update_private=False,
        trusted="whoever sees an update or the model",
        because="updates are neither clipped nor noised",
        short="no privacy",
    )
    needs: ClassVar[tuple[str, ...]] = ()

    def noise_multiplier(self, terms: Terms) -> float:
        """None."""
        return 0.0

    def released(self, terms: Terms, steps: int) -> DpEvent:
        """Everything."""
        return NonPrivateDpEvent()

    def entry(self, said: Said, terms: Terms) -> Entry:
        """See `Mechanism.entry`."""
        return UnprotectedRound(**said)

    def begin(self, model: torch.nn.Module, terms: Terms) -> Steps:
        """See `Mechanism.begin`."""
        return UnprotectedSteps(model, terms, self.trust)
