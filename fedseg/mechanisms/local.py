"""Mechanism "local": each site's update is private on its own, so that nobody has to be trusted.

Every local step clips each patient's gradient and adds Gaussian noise at the site. Whatever happens to the update
afterwards, rounded, masked, added or shown, is post-processing.
"""

from collections.abc import Sequence

import numpy as np
import torch
from dp_accounting.dp_event import DpEvent
from numpy.typing import NDArray

from fedseg.ledger import Entry, NoisySteps
from fedseg.mechanisms.mechanism import MOMENTUM, Keys, Losses, Mechanism, Said, Steps, Terms
from fedseg.privacy.accounting import gaussian_steps, noise_multiplier_for
from fedseg.privacy.dpsgd import Protection, noisy_gradient
from fedseg.privacy.trust import NO_CLAIM_SEEDED, Trust
from fedseg.sharing.sending import Owed
from fedseg.sharing.table import METHODS
from fedseg.update import NoisedSteps, NoisedUpdate
from secagg.policy import Policy
from secagg.prg import Stream


class LocalSteps(Steps):
    """Steps by noised gradients alone."""

    def __init__(self, model: torch.nn.Module, terms: Terms, protection: Protection) -> None:
        super().__init__(model, terms)
        noise = protection.variance(sum(parameter.numel() for parameter in self._parameters))
        self._taken = NoisedSteps(model, terms.lr, MOMENTUM, **terms.own_steps, noise=noise)
        self._protection = protection

    def at(self, rate: float) -> None:
        """See `Steps.at`."""
        self._taken.rate = rate

    def step(self, losses: Losses, keys: Keys) -> None:
        """See `Steps.step`."""
        each = (loss for _, loss in losses)
        self._taken.step(noisy_gradient(self._parameters, each, self._protection, Stream(keys("noise")), self._within))

    @property
    def diverged(self) -> bool:
        """See `Steps.diverged`."""
        return not self._taken.finite

    @property
    def weights(self) -> NDArray[np.float32]:
        """See `Steps.weights`."""
        return self._taken.weights

    def update(self, site: str, event_id: str, keys: Keys, owed: Owed | None = None) -> NoisedUpdate:
        """See `Steps.update`."""
        return NoisedUpdate(self._taken, site, event_id, self._sending(keys, owed))


class Local(Mechanism):
    """See the module."""

    name = "local"
    trust = Trust(
        claims_epsilon=True,
        each_update_private=True,
        trusted="nobody",
        because="each site's update is private on its own, against the server and the other sites too",
        short="each update is private on its own",
    )
    needs = ("epsilon", "delta", "clip_norm")

    def refusal(self, terms: Terms) -> str:
        """See `Mechanism.refusal`."""
        if terms.local_optimizer != "sgd" and METHODS[terms.sharing.method].within:
            return (
                f"[training] optimizer = '{terms.local_optimizer}' with [sharing] method = '{terms.sharing.method}': "
                "the noise that it is corrected for is another one in each value; use 'sgd'"
            )
        if terms.local_optimizer != "sgd" and terms.federation.corrected:
            return (
                f"[federation] corrected with [training] optimizer = '{terms.local_optimizer}': what is left of the "
                "noise in an update is not known; leave either out"
            )
        return super().refusal(terms)

    def noise_multiplier(self, terms: Terms) -> float:
        """See `Mechanism.noise_multiplier`: the smallest that keeps all planned steps within the budget."""
        return noise_multiplier_for(terms.epsilon or 0.0, terms.delta or 0.0, terms.sample_rate, terms.steps)

    def released(self, terms: Terms, steps: int) -> DpEvent:
        """See `Mechanism.released`."""
        return gaussian_steps(self.noise_multiplier(terms), terms.sample_rate, steps)

    def entry(self, said: Said, terms: Terms) -> Entry:
        """See `Mechanism.entry`."""
        protection = self.protection(terms)
        return NoisySteps(
            **said,
            sample_rate=terms.sample_rate,
            noise_multiplier=protection.noise_multiplier,
            clip_norm=protection.clip_norm,
            denominator=protection.denominator,
            steps=terms.local_steps,
            generator=NO_CLAIM_SEEDED if terms.seeded else "os",
        )

    def begin(self, model: torch.nn.Module, terms: Terms) -> Steps:
        """See `Mechanism.begin`."""
        return LocalSteps(model, terms, self.protection(terms))

    def noise_in_mean(self, parameters: int, included: Sequence[str], policy: Policy, terms: Terms) -> float:
        """See `Mechanism.noise_in_mean`: the noise of each step goes on as its momentum does."""
        protection, steps = self.protection(terms), terms.local_steps
        reach = squared = 0.0
        for _ in range(steps):  # from the last step, whose noise counts once, to the first
            reach = 1.0 + MOMENTUM * reach
            squared += reach * reach
        weight = sum(policy.weight(site) for site in included)
        share = sum((policy.weight(site) / weight) ** 2 for site in included)
        return terms.lr**2 * protection.variance(parameters) * squared * share

    def protection(self, terms: Terms) -> Protection:
        """How each step is protected."""
        return Protection(terms.clip_norm or 0.0, self.noise_multiplier(terms), terms.denominator)
