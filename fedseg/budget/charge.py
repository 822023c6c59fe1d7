"""The charge before each round, and what a site's patients have spent so far.

The charge is on disk before training starts, so no crash, burned round or restart ever trains uncharged.
"""

import math
from collections.abc import Sequence

from fedseg.budget.plan import round_event
from fedseg.errors import BudgetExceededError, LedgerError
from fedseg.ledger import Event, Ledger
from fedseg.privacy.accounting import epsilon
from fedseg.study import Study


def charge(ledger: Ledger, study: Study, site: str, training_run: str, round_number: int) -> str:
    """Charge a whole round before it trains, and return its event id; a second attempt of a round costs nothing more.

    The budget holds for everything in the ledger: earlier training runs and other studies on the same patients too.

    Raises:
        BudgetExceededError: this round would pass the study's epsilon; nothing was charged.
        LedgerError: the ledger is damaged, another site's or has this training run of another study, or cannot be
            written.
    """
    event = round_event(study, site, training_run, round_number)
    events = ledger.events()
    if any(old.site != site for old in events):
        raise LedgerError(f"{ledger.path}: belongs to another site; every site has a ledger of its own")
    if any(old.training_run == training_run and old.study_hash != event.study_hash for old in events):
        raise LedgerError(f"{ledger.path}: training run '{training_run}' is of another study; give this one a new name")
    budget, delta = study.privacy.epsilon, study.privacy.delta
    if study.trust.claims_epsilon and event not in events and budget is not None:
        total = _total([*events, event], study)
        if math.isinf(total):
            raise BudgetExceededError(
                f"site {site}: {ledger.path.name} holds rounds without protection, or seeded ones, so that no epsilon "
                "can be promised to these patients any more; the site leaves"
            )
        if total > budget:
            others = any(old.training_run != training_run for old in events)
            raise BudgetExceededError(
                f"site {site}: round {round_number} would bring epsilon to {total:.3g}"
                f"{' over all training runs' if others else ''}, above the budget of {budget:g} (delta {delta:g}, "
                f"{event.unit}); the site leaves, and more rounds need a study with a larger budget"
            )
    return ledger.append(event)


def charge_metrics(ledger: Ledger, study: Study, site: str, training_run: str, round_number: int) -> str:
    """Enter a release of validation metrics, which epsilon does not cover, and return its event id.

    Raises:
        LedgerError: the ledger is damaged or cannot be written.
    """
    plan = round_event(study, site, training_run, round_number)
    return ledger.append(plan.model_copy(update={"mechanism": "metrics", "covered": False, "steps": 0}))


def spent(ledger: Ledger, study: Study) -> float:
    """Epsilon that a site's patients have spent so far at the study's delta, over all runs and studies in the ledger.

    Recomputed from the events; infinite after unprotected rounds, and after seeded ones where the study has no seed.

    Raises:
        LedgerError: the ledger does not verify.
    """
    return _total(ledger.events(), study)


def _total(events: Sequence[Event], study: Study) -> float:
    releases = [event for event in events if event.mechanism != "metrics"]
    seeded = study.study.seed is None and any(event.generator != "os" for event in releases)
    unprotected = seeded or any(event.mechanism == "none" for event in releases)
    if unprotected or study.privacy.delta is None:
        return math.inf if unprotected else 0.0
    return epsilon(events, study.privacy.delta)
