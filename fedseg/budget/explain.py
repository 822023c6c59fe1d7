"""What a study promises to each patient, said before any training.

Numbers of patients are shown where the data is and never sent.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedseg.budget.plan import Plan, plan_of, shown_in
from fedseg.mechanisms.distributed import layers_of
from fedseg.privacy.accounting import accountants, cross_check, epsilon, gaussian_dp, in_words
from fedseg.privacy.delta import too_large
from fedseg.privacy.trust import SEEDED
from fedseg.study import Study


@dataclass(frozen=True)
class Guarantee:
    """What the plan is worth.

    Attributes:
        curve: epsilon after some rounds, the last among them.
        epsilon: at the end, by the first accountant.
        epsilon_second: the same by the second one, None where it knows no such mechanism.
        accountants: names of the two.
        mu: Gaussian differential privacy of the whole study, None where only epsilon is known.
        sentence: what that means, in words.
    """

    curve: dict[int, float]
    epsilon: float
    epsilon_second: float | None
    accountants: tuple[str, str]
    mu: float | None
    sentence: str


@dataclass(frozen=True)
class SiteShare:
    """One site's share of the plan: patients in training, and how many of them a step draws on average."""

    site: str
    patients: int
    expected_draw: float


@dataclass(frozen=True)
class Observer:
    """Somebody who watches the whole study.

    Attributes:
        who: in words.
        colluders: sites whose share of the noise they know.
        epsilon: of a patient at another site, by how many sites are in every sum; infinite where no noise is left.
    """

    who: str
    colluders: int
    epsilon: dict[int, float]


@dataclass(frozen=True)
class Explanation:
    """A study's promise.

    Attributes:
        plan: the numbers that the study fixes.
        guarantee: what they are worth, the same at every site; None where no epsilon is claimed.
        observers: what each learns, and what one dropout or one colluder more costs; none where no epsilon is claimed.
        sites: per site, where its patients are known.
        notes: what a reader should know before believing the above.
    """

    plan: Plan
    guarantee: Guarantee | None
    observers: tuple[Observer, ...]
    sites: tuple[SiteShare, ...]
    notes: tuple[str, ...]


def explain(study: Study, cohort: Mapping[str, int] | None = None) -> Explanation:
    """A study's privacy, before any training.

    Args:
        study: the study.
        cohort: patients in training by site id, where known.

    Raises:
        ConfigError: the budget cannot be met.
        PrivacyError: the two accountants disagree.
    """
    plan, known = plan_of(study), cohort or {}
    shares = (SiteShare(site, known[site], known[site] * plan.sample_rate) for site in study.site_ids if site in known)
    notes = _notes(study, plan, sum(known.values()))
    return Explanation(plan, guarantee_of(study), observers_of(study), tuple(shares), tuple(notes))


def observers_of(study: Study) -> tuple[Observer, ...]:
    """What each observer learns, by how many sites are in every sum: from all of them to as few as a sum can have."""
    terms, plan = study.terms, plan_of(study)
    if plan.delta is None:
        return ()
    sites, fewest, corrupt = plan.participation or len(study.sites), terms.min_survivors, terms.max_corrupt
    sums = sorted({fewest, min(fewest + 1, sites), (fewest + sites) // 2, max(sites - 1, fewest), sites}, reverse=True)
    found: dict[tuple[int, int], float] = {}

    def of(number: int, colluders: int) -> float:
        """Epsilon where so many of the sites in each sum tell their noise; each is computed once."""
        # Where the excess stays only the number of shares counts.
        place = number - colluders, number if terms.excess_noise == "removed" else 0
        if place not in found:
            shown = shown_in(study, plan.most_rounds, number - colluders, number)
            found[place] = math.inf if shown is None else epsilon(shown, plan.delta or 0.0)
        return found[place]

    watching = {
        0: "the public, or the coordinator",
        corrupt + 1: "one colluder more than planned for",
        corrupt: f"{corrupt} sites with the coordinator",
        1: "one site, alone or with the coordinator",
    }
    return tuple(
        Observer(watching[colluders], colluders, {number: of(number, colluders) for number in sums})
        for colluders in sorted(watching)
    )


def guarantee_of(study: Study) -> Guarantee | None:
    """What a study's plan is worth; None where it claims no epsilon.

    Raises:
        PrivacyError: the two accountants disagree.
    """
    plan = plan_of(study)
    if plan.delta is None:
        return None
    # One composition takes up to a second, so that a thousand rounds are not all asked.
    rounds = sorted({max(1, round(plan.most_rounds * part / 5)) for part in range(6)})
    spent = {done: shown_in(study, done) or [] for done in rounds}
    everything = spent[plan.most_rounds]
    total, second = cross_check(everything, plan.delta)
    mu = gaussian_dp(everything, plan.delta)
    words = in_words(mu, loss=total, delta=plan.delta)
    curve = {done: epsilon(events, plan.delta) for done, events in spent.items()}
    return Guarantee(curve, total, second, accountants(everything), mu, words)


def _notes(study: Study, plan: Plan, patients: int) -> list[str]:
    notes = []
    if study.study.seed is not None:
        notes.append(SEEDED)
    if not study.trust.claims_epsilon:
        return notes
    if said := too_large(plan.delta, patients):
        notes.append(said)
    if plan.sample_rate * plan.steps < 1:
        notes.append(
            f"a patient is drawn {plan.sample_rate * plan.steps:.2g} times on average over all {plan.steps} steps, so "
            "most never train; raise sample_rate, rounds or local_steps"
        )
    if plan.spare_rounds:
        notes.append(
            f"the noise is planned for {plan.spare_rounds} spare rounds beside the {plan.rounds} that are to complete: "
            "so many may burn without ending the study, and where none does less epsilon is spent"
        )
    if (asked := study.asked) is not None and (noise := asked.noise) is not None:
        spread = math.sqrt(len(study.sites) * noise.variance) / asked.scale
        notes.append(
            f"the first round asks for statistics of all patients: {study.privacy.statistics:g} of epsilon and delta "
            f"is set aside for it, and the noise on a count of all patients has a deviation of {spread:.3g}"
        )
        if spread > study.expected_patients / 10:
            notes.append(
                f"of about {study.expected_patients} patients that noise leaves no mean or deviation, and images are "
                "put on a scale that is mostly noise: use [data] statistics = 'public'"
            )
    if (layers := layers_of(study.terms)) is not None:
        most = plan.participation or layers.sites
        notes.append(
            f"noise that a sum does not need is removed: with {most} sites in it its deviation is "
            f"{layers.gain(most):.2f} of what it would be, and epsilon is what was planned, however many are there"
        )
    if plan.participation:
        notes.append(
            f"{plan.participation} of {plan.sites} sites are in a round: each in at most {plan.most_rounds} rounds, "
            "which the noise is planned for; who is in which is public and hides nobody"
        )
    notes.append("validation metrics, early stopping and tuning on private data are not covered by this epsilon")
    return notes
