"""What a run has given its patients after the fact: the noise of the sites that were really in each sum.

A round is charged before anybody knows who will be in its sum, with as few honest shares of the noise as a sum can
have, and a budget stops by that charge. More sites in a sum only hide more. Must never: lower what is charged.
"""

import math
from collections import Counter
from collections.abc import Mapping

from fedseg.budget.plan import plan_of, shown_in
from fedseg.privacy.accounting import epsilon
from fedseg.records import Achieved
from fedseg.study import Study


def achieved(study: Study, in_sums: Mapping[int, int], burned: int, span: tuple[int, int] = (1, 0)) -> Achieved | None:
    """The epsilon of a run whose sums are known.

    Args:
        study: the study.
        in_sums: number of sites in a sum, to how many rounds had such a sum.
        burned: rounds that were charged and of which no sum is known: somebody may hold one of the fewest sites.
        span: numbers of the first and the last round with a sum, 0 where there is none. A study that asks for
            statistics asks in every round up to the first one. Who missed a round may have come after that: then each
            round that may have been either counts as both.

    Returns:
        None where no noise is shared, or no epsilon is claimed.
    """
    plan, terms = plan_of(study), study.terms
    rounds = sum(in_sums.values()) + burned
    if plan.delta is None or study.trust.each_update_private or not rounds:
        return None
    corrupt = terms.max_corrupt
    fewest = terms.min_survivors - corrupt
    first, last = span
    in_vain = 0 if study.asked is None else min(burned, first - 1) if first else burned
    asks = in_vain + bool(study.asked and in_sums)
    came_late = rounds < last
    by_shares = Counter({fewest: burned - (0 if came_late else in_vain)})
    for sites, times in in_sums.items():
        by_shares[sites - corrupt] += times
    # Nobody says here how many were in the sum of statistics: as if it had the fewest shares, and training the most.
    if plan.asked and in_sums and not came_late:
        by_shares[max(shares for shares, times in by_shares.items() if times)] -= 1
    events = [
        study.mechanism.achieved(terms, times * plan.local_steps, shares, shares + corrupt)
        for shares, times in sorted(by_shares.items())
        if times
    ]
    if study.asked is not None:
        events.append(study.asked.released(asks))
    known = [event for event in events if event is not None]
    spent = epsilon(known, plan.delta) if len(known) == len(events) else None
    charged = epsilon(shown_in(study, rounds + (asks if came_late else 0), asks=asks) or [], plan.delta)
    sentence = (
        f"planned for at least {fewest} honest share{'s' if fewest > 1 else ''} of the noise: epsilon {_up(charged)}; "
        f"with the sites that were really in each sum: {'no bound' if spent is None else _up(spent)}, for whoever "
        f"believes that at most {corrupt} of them side{'s' if corrupt == 1 else ''} with the coordinator"
    )
    return Achieved(shares=fewest, colluders=corrupt, charged=charged, epsilon=spent, sentence=sentence)


def _up(value: float) -> str:
    """Rounded to the side of the patient."""
    return f"{math.ceil(100 * value) / 100:.2f}"
