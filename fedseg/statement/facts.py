"""What a statement says in figures: what a site's patients have paid, in this run and in all that its ledger holds.

Everything is computed from the ledgers' events. Where there is no ledger, what the run states stands there and is said
to be a statement. Must never: hold a patient, a number of patients, or the path of a folder.
"""

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from statistics import NormalDist

from fedseg.budget.achieved import achieved
from fedseg.budget.balance import by_observer
from fedseg.budget.cap import lifetime
from fedseg.errors import ConfigError
from fedseg.evidence import Evidence
from fedseg.ledger import Entry, distinct, released
from fedseg.privacy.accounting import LEAST_GUESS, cross_check, gaussian_dp
from fedseg.records import Achieved
from fedseg.statement.origin import Origin
from fedseg.study import Study
from fedseg.verifying.material import Charged, Material

PRIORS = (LEAST_GUESS, 0.01, 0.1, 0.5)
"""Guesses about one patient of which the statement says what they become."""


@dataclass(frozen=True)
class Spent:
    """What releases together promise: (epsilon, delta), recomputed from their events.

    Attributes:
        epsilon: infinite where something had no noise; 0 for nothing.
        second: by the second accountant, None where it knows no such release.
        mu: of Gaussian differential privacy, None where it is not known.
        best: for each of `PRIORS` the largest probability with which an adversary who guesses so can be right.
    """

    epsilon: float
    second: float | None
    mu: float | None
    best: tuple[float, ...]

    @property
    def bounded(self) -> bool:
        """Whether anything is promised."""
        return math.isfinite(self.epsilon)


@dataclass(frozen=True)
class Use:
    """One training run in a ledger.

    Attributes:
        study: name of the study, or the beginning of its hash.
        run: name of the training run.
        mechanisms: of its entries.
        rounds: that were charged.
        uncovered: releases that epsilon does not speak for, such as validation metrics.
        first, last: when the first and the last were charged, UTC; "" where the ledger does not tell.
        alone: what this run alone comes to.
        together: what it comes to with all before it.
    """

    study: str
    run: str
    mechanisms: str
    rounds: int
    uncovered: int
    first: str
    last: str
    alone: Spent
    together: Spent


@dataclass(frozen=True)
class Account:
    """What one site's patients have paid, at most: as if one of them had been in everything, in all its data sets.

    Attributes:
        site: whose.
        ledgers: how many of its data sets were given.
        uses: oldest first.
        total: over all of them.
        this_run: of the run that the statement is about; None where there is none in the ledger.
        seen: epsilon of this run by who looks (`fedseg.budget.balance`); empty where there is none in the ledger.
        simulated: the ledger is a simulation's, which knows nothing of what was spent elsewhere.
        budgets: (epsilon, delta) that the site has given its data sets for life, where it has.
    """

    site: str
    ledgers: int
    uses: tuple[Use, ...]
    total: Spent
    this_run: Spent | None
    seen: dict[str, float]
    simulated: bool
    budgets: tuple[tuple[float, float], ...]


@dataclass(frozen=True)
class Facts:
    """Everything that the page and its JSON say.

    Attributes:
        study: the study, None where only ledgers were given.
        delta: at which every epsilon is stated.
        plain: whether there was no secure aggregation.
        simulation: whether one process held the data of all sites.
        seeded: whether somebody knows the seed of the noise, so that nothing is claimed.
        accounts: of the sites whose ledgers were given.
        achieved: what the sites that were really in each sum gave; None where no noise is shared or no log tells.
        stated: epsilon by site as the run's own files state it, of sites without a ledger here.
        rounds, planned: with a sum, and of the study.
        evidence: of `verify_run`; None where only ledgers were given.
        broken: sentences: ledgers that do not verify.
        made_utc: when the statement was written.
        origin: by which program.
        inputs: SHA-256 by name of each file that it rests on.
    """

    study: Study | None
    delta: float
    plain: bool
    simulation: bool
    seeded: bool
    accounts: tuple[Account, ...]
    achieved: Achieved | None
    stated: dict[str, float]
    rounds: int
    planned: int
    evidence: Evidence | None
    broken: tuple[str, ...]
    made_utc: str
    origin: Origin
    inputs: dict[str, str]

    @property
    def worst(self) -> Spent | None:
        """Over all studies, of the site whose patients have paid most; None where no ledger tells."""
        totals = [account.total for account in self.accounts]
        return max(totals, key=lambda spent: spent.epsilon, default=None)

    @property
    def worst_of_run(self) -> Spent | None:
        """The same of this run alone."""
        runs = [account.this_run for account in self.accounts if account.this_run is not None]
        return max(runs, key=lambda spent: spent.epsilon, default=None)

    def seen_by(self, observer: str) -> float | None:
        """Epsilon of this run to one of `fedseg.budget.balance.OBSERVERS`; None where no ledger tells."""
        return max((account.seen[observer] for account in self.accounts if account.seen), default=None)


def accounts_of(given: Material, delta: float, *, unseeded: bool) -> tuple[Account, ...]:
    """The accounts of every site of which a ledger verifies.

    Raises:
        PrivacyError: two accountants disagree.
        ConfigError: a data set's budget for life cannot be read.
    """
    whole = [ledger for ledger in given.ledgers if not ledger.broken]
    sites = dict.fromkeys(ledger.site for ledger in whole)
    return tuple(
        _account([ledger for ledger in whole if ledger.site == site], given.run_name, delta, unseeded) for site in sites
    )


def _account(ledgers: Sequence[Charged], run_name: str, delta: float, unseeded: bool) -> Account:
    """One patient may be in several data sets of a site, so that all that they paid counts together."""
    entries = [entry for ledger in ledgers for entry in distinct(ledger.entries.values())]
    uses, before = list[Use](), list[Entry]()
    for run in dict.fromkeys(entry.training_run for entry in entries):
        own = [entry for entry in entries if entry.training_run == run]
        before += own
        uses.append(_use(own, before, delta, unseeded))
    mine = [entry for entry in entries if entry.training_run == run_name]
    caps = [lifetime(ledger.path.parent) for ledger in ledgers if not ledger.simulated]
    return Account(
        site=ledgers[0].site,
        ledgers=len(ledgers),
        uses=tuple(uses),
        total=spent(entries, delta, unseeded),
        this_run=spent(mine, delta, unseeded) if mine else None,
        seen=by_observer(mine, delta, unseeded=unseeded) if mine else {},
        simulated=all(ledger.simulated for ledger in ledgers),
        budgets=tuple((cap.epsilon, cap.delta) for cap in caps if cap is not None),
    )


def _use(own: Sequence[Entry], before: Iterable[Entry], delta: float, unseeded: bool) -> Use:
    covered = [entry for entry in own if entry.dp_event() is not None]
    when = sorted(entry.charged for entry in own if entry.charged)
    return Use(
        study=own[0].study or own[0].study_hash[:12],
        run=own[0].run,
        mechanisms=", ".join(sorted({entry.kind for entry in covered})),
        rounds=len({entry.round_number for entry in covered}),
        uncovered=len(own) - len(covered),
        first=when[0] if when else "",
        last=when[-1] if when else "",
        alone=spent(own, delta, unseeded),
        together=spent(before, delta, unseeded),
    )


def spent(entries: Iterable[Entry], delta: float, unseeded: bool) -> Spent:
    """What these entries come to.

    Raises:
        PrivacyError: two accountants disagree.
    """
    events = released(entries, unseeded=unseeded)
    first, second = cross_check(events, delta)
    mu = gaussian_dp(events, delta)
    return Spent(first, second, mu, tuple(best_guess(prior, mu, first, delta) for prior in PRIORS))


def best_guess(prior: float, mu: float | None, epsilon: float, delta: float) -> float:
    """With which probability an adversary who guesses right with `prior` can be right at most, after the releases.

    By mu where it is known: Phi(Phi^-1(prior) + mu). Else by (epsilon, delta): at most prior e^epsilon + delta, and at
    most 1 - e^-epsilon (1 - prior - delta).
    """
    if not math.isfinite(epsilon):
        return 1.0
    if mu is not None:
        normal = NormalDist()
        return normal.cdf(normal.inv_cdf(prior) + mu)
    return min(prior * math.exp(min(epsilon, 700.0)) + delta, 1 - math.exp(-epsilon) * (1 - prior - delta), 1.0)


def achieved_of(given: Material) -> Achieved | None:
    """Recomputed from the first run's log; a round that it does not know counts as planned."""
    if not given.runs or given.study.study.seed is not None:
        return None
    sums = Counter(len(end.included) for end in given.log.values())
    metrics = given.runs[0].metrics
    burned = metrics.protocol.burned if metrics else max(given.log, default=0) - len(given.log)
    return achieved(given.study, sums, burned, (min(given.log, default=0), max(given.log, default=0)))


def delta_of(given: Material, delta: float | None) -> float:
    """At which delta everything is said: as given, or the study's.

    Raises:
        ConfigError: neither is there.
    """
    chosen = delta if delta is not None else given.study.privacy.delta if given.runs else None
    if chosen is None:
        raise ConfigError("no delta is known: give --delta, a tenth of one over the number of patients")
    return chosen


def as_dict(facts: Facts) -> dict[str, object]:
    """Everything, for machines; keys are only ever added. None stands for "no bound"."""
    study, evidence = facts.study, facts.evidence
    return {
        "format": 1,
        "study": study.study.name if study else None,
        "study_hash": study.hash().hex() if study else None,
        "mechanism": study.privacy.mechanism if study else None,
        "unit": study.privacy.unit if study else "patient",
        "neighbouring": "add or remove one patient",
        "delta": facts.delta,
        "plain_sum": facts.plain,
        "simulation": facts.simulation,
        "seeded_no_privacy_claim": facts.seeded,
        "accounts": [_finite(asdict(account)) for account in facts.accounts],
        "achieved": facts.achieved.model_dump() if facts.achieved else None,
        "stated_without_ledger": facts.stated,
        "priors": list(PRIORS),
        "rounds": facts.rounds,
        "planned": facts.planned,
        "evidence": evidence.as_dict() | {"inputs": facts.inputs} if evidence else None,
        "broken": list(facts.broken),
        "made_utc": facts.made_utc,
        "origin": asdict(facts.origin),
        "inputs": facts.inputs,
    }


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(item) for name, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
