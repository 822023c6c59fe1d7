"""Mechanism "svt": each site sends a few values of its update, chosen and released by the sparse vector technique.

A site trains without noise, and its whole update is clipped value by value before anything else: so the epsilon speaks
for every change at a site, of one patient or of all of them, and costs as much. It is what the mechanism truly spends.
Published settings of it spend thousands to millions a round, which a study may ask for, and every output then says.
`fedseg.privacy.sparse_vector` has the argument, `docs/systems/svt.md` the comparison.
"""

import math
from functools import lru_cache

import torch
from dp_accounting.dp_event import DpEvent, SelfComposedDpEvent

from fedseg.ledger import Entry, SparseRelease
from fedseg.mechanisms.mechanism import Keys, Mechanism, Said, Steps, Terms
from fedseg.mechanisms.none import UnprotectedSteps
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.pure import LARGEST_COMPOSED, PureDpEvent
from fedseg.privacy.sparse_vector import SparseVector, sparse_release
from fedseg.privacy.trust import NO_CLAIM_SEEDED, Trust
from fedseg.sharing.method import part_of
from fedseg.sharing.sending import Owed
from fedseg.sharing.table import METHODS
from fedseg.update import NoisedUpdate
from secagg.prg import Stream

FITTING = ("full", *(name for name, method in METHODS.items() if method.within))
"""Methods of `[sharing]` that go with it: the noise comes after them."""


@lru_cache(maxsize=64)
def epsilon_of_a_round(budget: float, delta: float, rounds: int) -> float:
    """The largest epsilon of one round with which so many stay within (budget, delta)."""
    low = budget / rounds * (1 - 1e-12)  # a sum of so many is rounded
    if budget > LARGEST_COMPOSED or rounds == 1:
        return low
    high = budget
    while high - low > 1e-3 * low:
        middle = (low + high) / 2
        fits = epsilon([SelfComposedDpEvent(PureDpEvent(middle), rounds)], delta) <= budget
        low, high = (middle, high) if fits else (low, middle)
    return low


def _each(terms: Terms) -> float:
    return epsilon_of_a_round(terms.epsilon or 0.0, terms.delta or 0.0, terms.steps // terms.local_steps)


class SparseSteps(UnprotectedSteps):
    """Steps by gradients as they are; what leaves of them is noised in the end."""

    @property
    def diverged(self) -> bool:
        """Never: values that are no numbers count as 0, for stopping would tell of a patient."""
        return False

    def update(self, site: str, event_id: str, keys: Keys, owed: Owed | None = None) -> NoisedUpdate:
        """See `Steps.update`."""
        terms, reduced = self._terms, self._space.reduced(self._taken.difference)
        released = part_of(len(reduced), terms.released or 0.0)
        numbers = SparseVector.of(released, terms.clip_range or 0.0, terms.threshold, _each(terms))
        release = sparse_release(reduced, numbers, Stream(keys("noise")))
        return NoisedUpdate.released(release, site, event_id)


class SparseVectorTechnique(Mechanism):
    """See the module."""

    name = "svt"
    trust = Trust(
        claims_epsilon=True,
        each_update_private=True,
        trusted="nobody",
        because="each site noises the few values that it sends, so that they hide any change at the site",
        short="a few values of each update, chosen and noised",
    )
    needs = ("epsilon", "delta", "released")
    largest_epsilon = math.inf
    asks = False

    def refusal(self, terms: Terms) -> str:
        """See `Mechanism.refusal`."""
        if terms.federation.personal != "none":
            return (
                f"[federation] personal = '{terms.federation.personal}' with mechanism = 'svt': a site trains without "
                "noise, so that nothing would protect what stays there once it is shown; leave it away, or use 'local'"
            )
        if terms.sharing.method not in FITTING:
            return (
                f"[sharing] method = '{terms.sharing.method}' with mechanism = 'svt', which chooses what is sent: use "
                f"{' or '.join(map(repr, FITTING))}"
            )
        if terms.sharing.bits:
            return "[sharing] bits with mechanism = 'svt': zeros would become noise; leave bits out"
        return super().refusal(terms)

    def noise_multiplier(self, terms: Terms) -> float:
        """Deviation of the noise of the released values over their L1 norm's change: sqrt(2) / e3."""
        return 2 * math.sqrt(2) / _each(terms)

    def released(self, terms: Terms, steps: int) -> DpEvent:
        """See `Mechanism.released`: by rounds, however many steps each has."""
        return SelfComposedDpEvent(PureDpEvent(_each(terms)), math.ceil(steps / terms.local_steps))

    def entry(self, said: Said, terms: Terms) -> Entry:
        """See `Mechanism.entry`."""
        return SparseRelease(
            **said,
            epsilon=_each(terms),
            released=terms.released or 0.0,
            clip_range=terms.clip_range or 0.0,
            threshold=terms.threshold,
            generator=NO_CLAIM_SEEDED if terms.seeded else "os",
        )

    def begin(self, model: torch.nn.Module, terms: Terms) -> Steps:
        """See `Mechanism.begin`."""
        return SparseSteps(model, terms, self.trust)
