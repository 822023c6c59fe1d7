"""Releases whose epsilon needs no delta, and what many of them come to.

Of two releases with pure epsilon e, nothing reveals more than the answer of one coin that tells the truth with odds of
e^e to 1. The privacy loss distribution of such coins composes exactly, so that many rounds may come to less than the
sum of theirs at a delta above 0 (Kairouz, Oh and Viswanath 2017); never to more.
"""

from collections.abc import Iterable
from dataclasses import dataclass

from dp_accounting.dp_event import DpEvent
from dp_accounting.pld import common
from dp_accounting.pld.privacy_loss_distribution import from_privacy_parameters

LARGEST_COMPOSED = 60.0
"""A sum above this promises nothing, however it is composed, and is told as it is."""

_GRID = 1e-3


@dataclass(frozen=True)
class PureDpEvent(DpEvent):  # type: ignore[misc]  # its package has no types
    """Something that is `epsilon`-differentially private at delta 0.

    Attributes:
        epsilon: above 0.
    """

    epsilon: float


def epsilon(composition: Iterable[tuple[PureDpEvent, int]], delta: float) -> float:
    """Epsilon at `delta` of such releases, each so often."""
    counted = [(event, count) for event, count in composition]
    total = sum(event.epsilon * count for event, count in counted)
    if total > LARGEST_COMPOSED:
        return total
    composed = None
    for event, count in counted:
        coin = common.DifferentialPrivacyParameters(event.epsilon, 0.0)
        one = from_privacy_parameters(coin, value_discretization_interval=min(_GRID, event.epsilon / 20))
        many = one.self_compose(count)
        composed = many if composed is None else composed.compose(many)
    return total if composed is None else min(total, float(composed.get_epsilon_for_delta(delta)))
