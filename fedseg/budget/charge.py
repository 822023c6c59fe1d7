"""The charge before each round, and what a site's patients have spent so far.

The charge is on disk before training starts, so no crash, burned round or restart ever trains uncharged.
"""

import math
from collections.abc import Sequence

from fedseg.budget.cap import Cap, lifetime
from fedseg.budget.plan import metrics_entry, round_entry
from fedseg.errors import BudgetExceededError, LedgerError
from fedseg.ledger import Entry, Ledger, distinct, released
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.delta import delta_text
from fedseg.study import Study


def charge(
    ledger: Ledger, study: Study, site: str, training_run: str, round_number: int, *, asking: bool = False
) -> str:
    """Charge a whole round before it trains. Charging the same round again returns the id that it has.

    The budgets, the study's and the data set's own for life, hold for everything in the ledger: earlier training runs
    and other studies too, whoever of the patients was in them. So a stop depends on no patient. What single patients
    have paid in *other* data sets of this site decides for each of them alone whether it may still be drawn
    (`ledger.payers.staying`), and nobody sees that.

    Args:
        ledger: of the site's data set.
        study: gives the mechanism, its numbers and the budget.
        site: the site's id.
        training_run: name of the run whose rounds are counted.
        round_number: at least 1; attempts at one round share its charge.
        asking: whether the round is of statistics.

    Returns:
        The id of the ledger's entry.

    Raises:
        BudgetExceededError: this round would pass a budget; nothing was charged.
        LedgerError: the ledger is damaged, another site's or has this training run of another study, or cannot be
            written.
    """
    entry = round_entry(study, site, training_run, round_number, asking=asking)
    caps = _caps(ledger, study)
    with ledger.charging() as enter:
        _check(ledger, entry, caps)
        return enter(_with_payers(ledger, entry, caps))


def affordable(
    ledger: Ledger, study: Study, site: str, training_run: str, round_number: int, *, asking: bool = False
) -> None:
    """Whether `charge` would charge this round; nothing is charged. Takes and raises what `charge` does."""
    _check(ledger, round_entry(study, site, training_run, round_number, asking=asking), _caps(ledger, study))


def affordable_all(ledger: Ledger, entries: Sequence[Entry], cap: Cap) -> None:
    """Whether `charge_all` would charge these entries; nothing is charged. Takes and raises what `charge_all` does."""
    own = ledger.entries()
    if any(old.site != entry.site for old in own for entry in entries[:1]):
        raise LedgerError(f"{ledger.path}: belongs to another site; every site has a ledger of its own")
    new = [entry for entry in entries if not any(old.same_use(entry) for old in own)]
    for most in _with_lifetime(ledger, cap):
        before, total = most.spent(distinct(own)), most.spent(distinct([*own, *new]))
        if new and total > most.epsilon:
            raise BudgetExceededError(
                f"site {entries[0].site}: {len(new)} rounds would bring epsilon from {before:.3g} to {total:.3g}, "
                f"above {most.budget} of {most.epsilon:g} (delta {delta_text(most.delta)}); nothing was charged: "
                f"{most.remedy}"
            )


def charge_all(ledger: Ledger, entries: Sequence[Entry], cap: Cap) -> None:
    """Charge several rounds at once and before the first, or none of them.

    Args:
        ledger: of the site's data set.
        entries: of one training run.
        cap: holds for everything in the ledger, as the data set's own for life does.

    Raises:
        BudgetExceededError: all of them would pass a budget; nothing was charged.
        LedgerError: the ledger is damaged, another site's, or cannot be written.
    """
    caps = _with_lifetime(ledger, cap)
    with ledger.charging() as enter:
        affordable_all(ledger, entries, cap)
        for entry in entries:
            enter(_with_payers(ledger, entry, caps))


def _with_lifetime(ledger: Ledger, cap: Cap) -> list[Cap]:
    given = lifetime(ledger.path.parent)
    return [cap] if given is None else [given, cap]


def _check(ledger: Ledger, entry: Entry, caps: Sequence["Cap"]) -> None:
    entries = ledger.entries()
    if any(old.site != entry.site for old in entries):
        raise LedgerError(f"{ledger.path}: belongs to another site; every site has a ledger of its own")
    run = entry.training_run
    if any(old.training_run == run and old.study_hash != entry.study_hash for old in entries):
        raise LedgerError(f"{ledger.path}: training run '{run}' is of another study; give this one a new name")
    if not any(old.same_use(entry) for old in entries):
        for cap in caps:
            _refuse(cap, entries, entry, ledger)


def _caps(ledger: Ledger, study: Study) -> list[Cap]:
    caps = [cap for cap in [lifetime(ledger.path.parent)] if cap is not None]
    privacy = study.privacy
    if study.trust.claims_epsilon and privacy.epsilon is not None and privacy.delta is not None:
        more = "more rounds need a study with a larger budget"
        caps.append(Cap("the budget", more, privacy.epsilon, privacy.delta, study.study.seed is not None))
    return caps


def _refuse(cap: Cap, entries: Sequence[Entry], entry: Entry, ledger: Ledger) -> None:
    """BudgetExceededError where one more entry would pass a budget; it tells of no patient and may be sent."""
    total = cap.spent([*distinct(entries), entry])
    if math.isinf(total):
        raise BudgetExceededError(
            f"site {entry.site}: {ledger.path.name} would hold rounds without protection, or seeded ones, so that no "
            f"epsilon can be promised to these patients any more, and {cap.budget} is {cap.epsilon:g}; the site leaves"
        )
    if total > cap.epsilon:
        others = " over all training runs" if any(old.training_run != entry.training_run for old in entries) else ""
        raise BudgetExceededError(
            f"site {entry.site}: round {entry.round_number} would bring epsilon to {total:.3g}{others}, above "
            f"{cap.budget} of {cap.epsilon:g} (delta {delta_text(cap.delta)}, {entry.unit}); the site leaves, and "
            f"{cap.remedy}"
        )


def _with_payers(ledger: Ledger, entry: Entry, caps: Sequence[Cap]) -> Entry:
    """The entry with who pays: all patients but those whose own total, over all data sets here, would pass a budget.

    Each patient is looked at alone, so that leaving one out changes nothing for the others (threat model of fedseg).
    """
    payers = ledger.payers
    if payers is None:
        return entry
    paid, own = payers.elsewhere(), ledger.entries()
    before = [old for old in own if not old.same_use(entry)]

    def may(patient: str) -> bool:
        """Whether one round more keeps this patient, over all data sets here, within every budget."""
        there = paid(patient)
        if not there:
            return True  # the budgets were held against all of this ledger
        events = [*there, *payers.sets.of(patient, before), entry]
        return all(cap.spent(events) <= cap.epsilon for cap in caps)

    payers.staying = frozenset(patient for patient in payers.training if may(patient))
    return entry.model_copy(update={"patients": payers.keep(payers.staying | payers.unsaid)})


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
    entry = metrics_entry(study, site, training_run, round_number)
    if ledger.payers is not None:
        entry = entry.model_copy(update={"patients": ledger.payers.keep(ledger.payers.tested)})
    return ledger.append(entry)


def spent(ledger: Ledger, study: Study) -> float:
    """Epsilon that a site's patients have spent so far at the study's delta, over all runs and studies in the ledger.

    Recomputed from the entries; infinite after unprotected rounds, and after seeded ones where the study has no seed.

    Raises:
        LedgerError: the ledger does not verify.
    """
    # A seeded study claims nothing and shows what the same steps would cost without a seed.
    events = released(distinct(ledger.entries()), unseeded=study.study.seed is not None)
    if study.privacy.delta is None:
        return math.inf if events else 0.0
    return epsilon(events, study.privacy.delta)
