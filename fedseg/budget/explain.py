"""What a study promises to each patient, said before any training.

Numbers of patients are shown where the data is and never sent.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from fedseg.budget.plan import Plan, plan_of
from fedseg.privacy.accounting import accountants, cross_check, epsilon, gaussian_dp, in_words
from fedseg.privacy.delta import too_large
from fedseg.privacy.trust import SEEDED
from fedseg.study import Study


@dataclass(frozen=True)
class Guarantee:
    """What the plan is worth.

    Attributes:
        curve: epsilon after each round.
        epsilon: at the end, by the first accountant.
        epsilon_second: the same by the second one, None where it knows no such mechanism.
        accountants: names of the two.
        mu: Gaussian differential privacy of the whole study, None where only epsilon is known.
        sentence: what that means, in words.
    """

    curve: tuple[float, ...]
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
class Explanation:
    """A study's promise.

    Attributes:
        plan: the numbers that the study fixes.
        guarantee: what they are worth, the same at every site; None where no epsilon is claimed.
        sites: per site, where its patients are known.
        notes: what a reader should know before believing the above.
    """

    plan: Plan
    guarantee: Guarantee | None
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
    return Explanation(plan, guarantee_of(study), tuple(shares), tuple(_notes(study, plan, sum(known.values()))))


def guarantee_of(study: Study) -> Guarantee | None:
    """What a study's plan is worth; None where it claims no epsilon.

    Raises:
        PrivacyError: the two accountants disagree.
    """
    plan, terms = plan_of(study), study.terms
    if plan.delta is None:
        return None
    spent = [study.mechanism.released(terms, done * plan.local_steps) for done in range(1, plan.most_rounds + 1)]
    total, second = cross_check(spent[-1:], plan.delta)
    mu = gaussian_dp(spent[-1:], plan.delta)
    words = in_words(mu, loss=total, delta=plan.delta)
    curve = tuple(epsilon([event], plan.delta) for event in spent)
    return Guarantee(curve, total, second, accountants(spent[-1:]), mu, words)


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
    notes.append("validation metrics, early stopping and tuning on private data are not covered by this epsilon")
    return notes
