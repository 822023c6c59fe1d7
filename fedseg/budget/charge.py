"""The charge before each round, and what a site's patients have spent so far.

The charge is on disk before training starts, so no crash, burned round or restart ever trains uncharged.
"""

import math
from collections.abc import Iterable

from fedseg.budget.plan import metrics_entry, round_entry
from fedseg.errors import BudgetExceededError, LedgerError
from fedseg.ledger import Entry, Ledger, released
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.delta import delta_text
from fedseg.study import Study


def charge(ledger: Ledger, study: Study, site: str, training_run: str, round_number: int) -> str:
    """Charge a whole round before it trains. Charging the same round again returns the id that it has.

    The budget holds for everything in the ledger: earlier training runs and other studies on the same patients too.

    Args:
        ledger: of the site's data set.
        study: gives the mechanism, its numbers and the budget.
        site: the site's id.
        training_run: name of the run whose rounds are counted.
        round_number: at least 1; attempts at one round share its charge.

    Returns:
        The id of the ledger's entry.

    Raises:
        BudgetExceededError: this round would pass the study's epsilon; nothing was charged.
        LedgerError: the ledger is damaged, another site's or has this training run of another study, or cannot be
            written.
    """
    entry = round_entry(study, site, training_run, round_number)
    entries = ledger.entries()
    if any(old.site != site for old in entries):
        raise LedgerError(f"{ledger.path}: belongs to another site; every site has a ledger of its own")
    if any(old.training_run == training_run and old.study_hash != entry.study_hash for old in entries):
        raise LedgerError(f"{ledger.path}: training run '{training_run}' is of another study; give this one a new name")
    budget = study.privacy.epsilon if study.trust.claims_epsilon else None
    if budget is not None and not any(old.same_use(entry) for old in entries):
        total = _total([*entries, entry], study)
        if math.isinf(total):
            raise BudgetExceededError(
                f"site {site}: {ledger.path.name} holds rounds without protection, or seeded ones, so that no epsilon "
                "can be promised to these patients any more; the site leaves"
            )
        if total > budget:
            others = " over all training runs" if any(old.training_run != training_run for old in entries) else ""
            raise BudgetExceededError(
                f"site {site}: round {round_number} would bring epsilon to {total:.3g}{others}, above the budget of "
                f"{budget:g} (delta {delta_text(study.privacy.delta)}, {entry.unit}); the site leaves, and more rounds "
                "need a study with a larger budget"
            )
    return ledger.append(entry)


def charge_metrics(ledger: Ledger, study: Study, site: str, training_run: str, round_number: int) -> str:
    """Enter a release of validation metrics, which epsilon does not cover, and return its entry's id.

    Args:
        ledger: of the site's data set.
        study: whose.
        site: the site's id.
        training_run: name of the run whose rounds are counted.
        round_number: of the round that the metrics come before.

    Raises:
        LedgerError: the ledger is damaged or cannot be written.
    """
    return ledger.append(metrics_entry(study, site, training_run, round_number))


def spent(ledger: Ledger, study: Study) -> float:
    """Epsilon that a site's patients have spent so far at the study's delta, over all runs and studies in the ledger.

    Recomputed from the entries; infinite after unprotected rounds, and after seeded ones where the study has no seed.

    Raises:
        LedgerError: the ledger does not verify.
    """
    return _total(ledger.entries(), study)


def _total(entries: Iterable[Entry], study: Study) -> float:
    # A seeded study claims nothing and shows what the same steps would cost without a seed.
    events = released(entries, unseeded=study.study.seed is not None)
    if study.privacy.delta is None:
        return math.inf if events else 0.0
    return epsilon(events, study.privacy.delta)
