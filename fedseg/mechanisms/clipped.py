"""Mechanism "clipped": each patient's gradient is cut as where noise follows, and none does; nobody is protected.

The noiseless twin of a private study. Held against it, a model tells whether noise or optimisation is its limit.
"""

import torch

from fedseg.mechanisms.mechanism import Keys, Losses, Steps, Terms
from fedseg.mechanisms.none import Unprotected, UnprotectedSteps
from fedseg.privacy.dpsgd import clipped_gradient
from fedseg.privacy.trust import Trust


class ClippedSteps(UnprotectedSteps):
    """Steps by gradients that are cut patient by patient."""

    def step(self, losses: Losses, keys: Keys) -> None:
        """See `Steps.step`."""
        norm, each = self._terms.clip_norm or 0.0, (loss for _, loss in losses)
        self._taken.step(clipped_gradient(self._parameters, each, norm, self._terms.denominator, self._within))


class Clipped(Unprotected):
    """See the module."""

    name = "clipped"
    trust = Trust(
        claims_epsilon=False,
        each_update_private=False,
        trusted="whoever sees an update or the model",
        because="gradients are clipped and nothing is noised",
        short="no privacy: clipped without noise, to compare with",
    )
    needs = ("clip_norm",)

    def refusal(self, terms: Terms) -> str:
        """See `Mechanism.refusal`."""
        if terms.batch:
            return (
                f"[training] batch = {terms.batch} with mechanism = 'clipped': a batch of several patients has one "
                "gradient, and what is cut is each patient's; leave it at 0"
            )
        return super().refusal(terms)

    def begin(self, model: torch.nn.Module, terms: Terms) -> Steps:
        """See `Mechanism.begin`."""
        return ClippedSteps(model, terms, self.trust)
