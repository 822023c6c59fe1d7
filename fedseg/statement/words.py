"""The statement's sentences. Read this file to check what it claims: it must never claim more than the evidence gives.

It never calls data by a word that a law defines, and never says that a law is kept: that is for the reader to decide.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import NamedTuple

from fedseg.evidence import VIOLATED
from fedseg.privacy.delta import delta_text
from fedseg.privacy.trust import SEEDED
from fedseg.statement.facts import Facts, Spent
from fedseg.study import Study

UNIT = (
    "One patient, with everything of that patient that a site has: all visits, scans and slices together. The promise "
    "compares two worlds that differ in one patient, who is in the data set of a site or is not (add or remove one "
    "patient). Who sees what is listed below can hardly tell the two apart; how hardly, epsilon and delta say. A "
    "patient is what the layout of the data calls one: two entries for one person are protected as two."
)

COVERED = (
    "The updates that sites send, their sums, and every model of the run, for all time and whatever else is known.",
    "Who of a site's patients is drawn in a step, and how many.",
    "Order, role, normalisation and noise of all other patients: one patient more or less changes none of them.",
    "Everything that is computed from sums and models later.",
)

LIMITS = (
    "Epsilon bounds what can be learned about one patient. What can be learned about all of them together, such as "
    "that a disease shows in a certain way, is what the training is for, and is not bounded.",
    "A ledger says what was charged. That a site really drew its noise is its own word, as is who its patients are.",
    "One person at two sites, or under two identifiers, has paid at both: the figures add up.",
    "Choices that people made by looking at patients, such as which study to run, are in no epsilon.",
    "This is our own software's account of itself. Nobody outside has reviewed it.",
)

READING = (
    "Epsilon 0 would mean that nothing can be learned about a patient. Below 1 is strong. Up to 10 is common for "
    "models trained on images; look at the table of guesses. Above 10 says little by itself. Delta is the probability "
    "with which the promise may fail altogether; it belongs well below one over the number of patients. Epsilons of "
    "several studies on the same patients add up, to a little less than their plain sum."
)


class Row(NamedTuple):
    """What one observer gets, learns at most about one patient, and what that rests on."""

    who: str
    sees: str
    learns: str
    rests: str


def epsilon_text(value: float) -> str:
    """Epsilon with two decimals, rounded up, because it is a bound; "no bound" where it is infinite."""
    if value == float("inf"):
        return "no bound"
    hundredths = -(-value * 100 // 1)
    return f"{hundredths / 100:.2f}"


def percent(value: float) -> str:
    """A probability in per cent, rounded up."""
    tenths = -(-value * 1000 // 1)
    return f"{tenths / 10:.1f} %"


def pair(spent: Spent, delta: float) -> str:
    """(epsilon, delta) as one says it; "no bound" where something had no noise."""
    if not spent.bounded:
        return "no bound"
    return f"ε = {epsilon_text(spent.epsilon)} at δ = {delta_text(delta)}"


def warnings(facts: Facts) -> Iterator[str]:
    """What a reader must know before any figure."""
    evidence, study = facts.evidence, facts.study
    if evidence is not None and evidence.violations:
        yield f"something is violated, so nothing below can be relied on: {evidence.violations[0]}"
    yield from (f"a ledger does not verify: {said}" for said in facts.broken)
    if facts.seeded:
        yield f"{SEEDED}; figures below are those of the same steps without a seed"
    if study is not None and not study.trust.claims_epsilon:
        yield f"no differential privacy is claimed: mechanism '{study.privacy.mechanism}', {study.trust.because}"
    elif any(not account.total.bounded for account in facts.accounts):
        why = "their ledger holds rounds without noise, or seeded ones"
        yield f"no bound can be promised to some patients any more: {why}"


def summary(facts: Facts) -> str:
    """The whole page in two sentences."""
    worst = facts.worst
    if facts.study is None:
        if worst is None:
            return "No ledger here verifies."
        return f"Over all studies in these ledgers, {_whose(facts)} has paid at most {pair(worst, facts.delta)}."
    if not facts.study.trust.claims_epsilon or facts.seeded:
        return "The model was trained without a promise to the patients; what it can reveal about them is not bounded."
    if worst is None:
        return "No ledger was given, so what these patients have paid was not recomputed; below is what the run says."
    run = facts.worst_of_run
    this = f"This study cost {_whose(facts)} at most {pair(run, facts.delta)}. " if run else ""
    return f"{this}Over all studies in these ledgers it is at most {pair(worst, facts.delta)}."


def _whose(facts: Facts) -> str:
    """For whom a figure speaks that was recomputed: patients of the sites whose ledgers were given."""
    return (
        f"each patient of {', '.join(account.site for account in facts.accounts)}" if facts.stated else "each patient"
    )


def observers(facts: Facts) -> Iterator[Row]:
    """What each observer learns, one row each; nothing where only ledgers were given."""
    study = facts.study
    if study is None:
        return
    rests, whoever = study.trust.sentence, "the coordinator with max_corrupt sites"
    public, coordinator, learns, site = (
        _learned(facts, study, who) for who in ("the public", "the coordinator", whoever, "one other site")
    )
    policy, alone = study.policy(1), study.trust.each_update_private and study.trust.claims_epsilon
    c, least = policy.max_corrupt, policy.min_survivors
    yield Row(
        "The public: whoever has the model, now or later", "every model of the run, the transcripts", public, rests
    )
    unmasked = (
        "and if the secure sum were broken, the same bound would hold for each site's update by itself"
        if alone
        else f"at most {c} of {policy.clients} sites work with it, and at least {least} are in each sum"
    )
    honest = "each update is private by itself" if alone else "the noise of honest sites alone counts"
    if facts.plain:
        sees, because = "every site's update, one by one: this was a plain sum", "nothing hides an update"
        yield Row("The coordinator", sees, learns if alone else "no bound", because if not alone else rests)
        return
    yield Row(
        "The coordinator, even one that lies",
        f"of each round the sum of at least {least} updates, who took part, and sizes and times of messages",
        coordinator,
        f"{rests}; {unmasked}",
    )
    yield Row(
        f"The coordinator together with up to {c} site{'' if c == 1 else 's'}",
        f"the same sums without what those sites added themselves: of at least {least - c} honest sites",
        learns,
        honest,
    )
    yield Row("Another site", "the same sums and models, and its own patients", site, rests)
    yield Row(
        "The site itself",
        "everything of its own patients, its ledger, its logs and its own report",
        "no bound: it has the images",
        "what stays in its folders is its own to guard",
    )
    later = "also" if policy.suite.value.startswith("MLKEM") else "but not"
    yield Row(
        "Somebody who listens on the network",
        "who talks to whom, when, and how much",
        f"while TLS holds, nothing of any update; else at most what the coordinator learns: {coordinator}",
        f"single updates stay sealed under {policy.suite.value}: {later} against a quantum computer that comes later",
    )


def _learned(facts: Facts, study: Study, who: str) -> str:
    """What of one patient an observer can learn of this run at most; over all studies the account says."""
    if not study.trust.claims_epsilon or facts.seeded:
        return "no bound"
    run, stated = facts.worst_of_run, max(facts.stated.values(), default=0.0)
    if run is not None and run.epsilon >= stated:
        seen = facts.seen_by(who)
        return pair(run if seen is None else replace(run, epsilon=seen), facts.delta)
    if facts.stated:
        return f"ε = {epsilon_text(stated)} at δ = {delta_text(facts.delta)}, as sites said; not recomputed here"
    return "not known: no site has said what it spent"


def not_covered(facts: Facts) -> Iterator[str]:
    """What epsilon does not speak for."""
    metrics = sum(use.uncovered for account in facts.accounts for use in account.uses)
    shared = facts.study is not None and facts.study.report.share_metrics
    if shared or metrics:
        told = f", {metrics} times in these ledgers" if metrics else ""
        yield f"Validation figures of held-out patients were shared{told}: one row a patient, and so their number."
    else:
        yield "Validation figures of held-out patients: this study shares none. Each site knows its own."
    yield "Early stopping, tuning and search by looking at patients: no entry of a ledger stands for them."
    yield "Who takes part, how many sites there are, and that a site takes part at all."
    yield "When messages come, and how large they are; training time tells a little of how many patients a site has."
    yield "What people do with reports at a site. The page report-private.html shows patients and is never to be sent."


def rounds(facts: Facts) -> str:
    """Rounds, and whether they were verified, as one sentence."""
    evidence = facts.evidence
    if evidence is None:
        return "Only ledgers were given: no round was looked at."
    done = f"{facts.rounds} of {facts.planned} planned rounds have a sum"
    if evidence.status == VIOLATED:
        return f"{done}. The files contradict each other: see below."
    if evidence.status == "holds":
        return f"{done}; transcripts, ledgers, models, figures and reports were held against each other, and all hold."
    return f"{done}; nothing contradicts, and part of it could not be looked at: see below."
