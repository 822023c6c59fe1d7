"""What a study promises to each patient, said before any training.

Numbers of patients are shown where the data is and never sent.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass

from fedseg.budget.plan import noise_multiplier
from fedseg.privacy.accounting import Release, cross_check, epsilon, gaussian_dp, in_words
from fedseg.privacy.trust import no_claim
from fedseg.study import Study


@dataclass(frozen=True)
class SitePlan:
    """One site's share of the plan.

    Attributes:
        site: id.
        patients: patients in training, None where not known.
        expected_draw: patients per step on average, None where not known.
        epsilon: what its patients will have spent when the study is complete.
    """

    site: str
    patients: int | None
    expected_draw: float | None
    epsilon: float


@dataclass(frozen=True)
class Explanation:
    """What a study promises to each patient, before any training; epsilon is infinite with mechanism 'none'.

    Attributes:
        mechanism: as in the study.
        unit: whose presence is hidden.
        neighbouring: relation between the data sets that cannot be told apart.
        trust: who must be trusted, in words.
        budget: epsilon of the study, None where it has none.
        delta: as in the study.
        sample_rate: probability of each patient to be drawn in a step.
        clip_norm: L2 bound of one patient's gradient.
        noise_multiplier: noise standard deviation over `clip_norm`.
        denominator: public divisor of the noisy sum.
        rounds: completed rounds; a burned round stays charged and takes the place of one.
        local_steps: steps of a round.
        curve: epsilon after each round.
        epsilon: at the end, by PLD.
        epsilon_prv: the same by the second accountant.
        mu: Gaussian differential privacy of the whole study.
        sentence: what mu means, in words.
        sites: per site.
        notes: what a reader should know before believing the above.
    """

    mechanism: str
    unit: str
    neighbouring: str
    trust: str
    budget: float | None
    delta: float | None
    sample_rate: float
    clip_norm: float | None
    noise_multiplier: float
    denominator: int
    rounds: int
    local_steps: int
    curve: tuple[float, ...]
    epsilon: float
    epsilon_prv: float
    mu: float
    sentence: str
    sites: tuple[SitePlan, ...]
    notes: tuple[str, ...]

    @property
    def steps(self) -> int:
        """Steps of the whole study."""
        return self.rounds * self.local_steps


def explain(study: Study, cohort: Mapping[str, int] | None = None) -> Explanation:
    """Epsilon of a study before any training.

    Args:
        study: the study.
        cohort: patients in training by site id, where known.

    Raises:
        ConfigError: the budget cannot be met.
        PrivacyError: the two accountants disagree.
    """
    privacy, rounds, local_steps = study.privacy, study.study.rounds, study.study.local_steps
    sigma = noise_multiplier(study)
    curve, total, second, mu, sentence = (math.inf,) * rounds, math.inf, math.inf, math.inf, no_claim(privacy.mechanism)
    if study.trust.claims_epsilon and privacy.delta is not None:
        releases = [Release(sigma, privacy.sample_rate, done * local_steps) for done in range(1, rounds + 1)]
        curve = tuple(epsilon(release, privacy.delta) for release in releases)
        total, second = cross_check(releases[-1], privacy.delta)
        mu = gaussian_dp(releases[-1], privacy.delta)
        sentence = in_words(mu)
    return Explanation(
        mechanism=privacy.mechanism,
        unit=privacy.unit,
        neighbouring=f"add or remove one {privacy.unit}",
        trust=study.trust.sentence,
        budget=privacy.epsilon if study.trust.claims_epsilon else None,
        delta=privacy.delta if study.trust.claims_epsilon else None,
        sample_rate=privacy.sample_rate,
        clip_norm=privacy.clip_norm if study.trust.claims_epsilon else None,
        noise_multiplier=sigma,
        denominator=privacy.denominator,
        rounds=rounds,
        local_steps=local_steps,
        curve=curve,
        epsilon=total,
        epsilon_prv=second,
        mu=mu,
        sentence=sentence,
        sites=tuple(_site_plan(site, study, cohort, total) for site in study.site_ids),
        notes=tuple(_notes(study, cohort)),
    )


def _site_plan(site: str, study: Study, cohort: Mapping[str, int] | None, total: float) -> SitePlan:
    patients = None if cohort is None else cohort.get(site)
    return SitePlan(site, patients, None if patients is None else patients * study.privacy.sample_rate, total)


def _notes(study: Study, cohort: Mapping[str, int] | None) -> list[str]:
    notes = []
    everybody = sum((cohort or {}).values())
    if study.study.seed is not None:
        notes.append("the study is seeded: whoever knows the seed can recompute the noise, so no privacy is claimed")
    if (
        study.trust.claims_epsilon
        and study.privacy.delta is not None
        and everybody
        and study.privacy.delta >= 1 / everybody
    ):
        notes.append(
            f"delta {study.privacy.delta:g} is not below 1/{everybody} (one over the number of patients): it allows "
            f"one patient to be revealed whole; choose about {1 / (10 * everybody):.1g}"
        )
    if study.trust.claims_epsilon:
        notes.append("validation metrics, early stopping and tuning on private data are not covered by this epsilon")
    return notes
