"""What the patients of a data set have spent over their lives, recomputed from its ledger and never remembered."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fedseg.budget.cap import lifetime
from fedseg.ledger import Entry, distinct, read, released
from fedseg.ledger.home import Home
from fedseg.ledger.patients import FOLDER, PatientSets
from fedseg.privacy.accounting import cross_check, gaussian_dp, in_words
from fedseg.privacy.accounting import epsilon as epsilon_of

OBSERVERS: dict[str, int | None] = {
    "the public": 0,
    "the coordinator": 0,
    "the coordinator with max_corrupt sites": None,
    "one other site": 1,
}
"""Of how many sites they know the noise; None for as many as each study was planned for."""


def by_observer(entries: Sequence[Entry], delta: float, *, unseeded: bool = False) -> dict[str, float]:
    """What these entries reveal at most to each of `OBSERVERS`: epsilon, infinite where no noise is left.

    Every number is counted from as few sites as a sum can have. Where each update is private alone all are equal.
    The public and a coordinator alone rely on every site in a sum to have added its noise.
    """
    of = {known: epsilon_of(released(entries, unseeded=unseeded, known=known), delta) for known in {0, 1, None}}
    return {who: of[known] for who, known in OBSERVERS.items()}


@dataclass(frozen=True)
class Balance:
    """What was spent, epsilon at one delta; infinite where something had no noise.

    Attributes:
        delta: of every epsilon here.
        runs: of each training run alone.
        everything: of all entries, as if each patient had been in all of them: what budgets are held against.
        everything_second: the same by the second accountant, None where it knows no such mechanism.
        most: of the patient who has spent most; it depends on who took part in what, and stays at the site.
        observers: of all entries, by who looks (`by_observer`).
        mu: Gaussian differential privacy of everything, None where only epsilon is known.
        sentence: what that means, in words.
        lifetime, lifetime_delta: the data set's own budget, None where the site has given it none.
        left: of the lifetime budget.
        not_covered: how many releases epsilon does not speak for, by kind.
    """

    delta: float
    runs: dict[str, float]
    everything: float
    everything_second: float | None
    most: float
    observers: dict[str, float]
    mu: float | None
    sentence: str
    lifetime: float | None
    lifetime_delta: float | None
    left: float
    not_covered: dict[str, int]


def balance(path: Path, delta: float) -> Balance:
    """The balance of one data set.

    Args:
        path: its ledger; sets of patients lie beside it.
        delta: at which epsilon is recomputed.

    Raises:
        LedgerError: the ledger does not verify.
        PrivacyError: two accountants disagree.
        ConfigError: the site's home cannot be used, or `budget.toml` is no budget.
    """
    entries = [line.entry for line in read(path)]

    def of(some: Sequence[Entry]) -> float:
        """Epsilon of these entries alone."""
        return epsilon_of(released(some), delta)

    runs: dict[str, list[Entry]] = {}
    for entry in distinct(entries):
        runs.setdefault(entry.run, []).append(entry)
    events = released(distinct(entries))
    total, second = cross_check(events, delta)
    sets = PatientSets(path.parent / FOLDER, Home().salt())
    cap, mu = lifetime(path.parent), gaussian_dp(events, delta)
    bounded = math.isfinite(total)
    return Balance(
        delta=delta,
        runs={run: of(own) for run, own in runs.items()},
        everything=total,
        everything_second=second,
        most=max(map(of, sets.heaviest(entries))),
        observers=by_observer(distinct(entries), delta),
        mu=mu,
        sentence=in_words(mu, loss=total, delta=delta)
        if bounded
        else "no epsilon is promised to these patients any more",
        lifetime=None if cap is None else cap.epsilon,
        lifetime_delta=None if cap is None else cap.delta,
        left=0.0 if cap is None else max(cap.epsilon - cap.spent(distinct(entries)), 0.0),
        not_covered=dict(Counter(entry.kind for entry in entries if entry.dp_event() is None)),
    )
