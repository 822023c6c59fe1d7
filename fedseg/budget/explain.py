"""A study's privacy plan in numbers: how much noise, what a round costs, and the charge before each round.

The charge is on disk before training starts, so no crash, burned round or restart ever trains uncharged. Nothing here
reads patients' data; numbers of patients are shown where the data is and never sent.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from fedseg.errors import BudgetExceededError, LedgerError
from fedseg.ledger import Event, Ledger
from fedseg.privacy.accounting import Release, cross_check, epsilon, gaussian_dp, in_words, noise_multiplier_for
from fedseg.study import Study

TRUST = {
    "local": "nobody is trusted: each site's update is private on its own, against the server and the other sites too",
    "none": "whoever sees an update or the model is trusted",
}
UNPROTECTED = "no privacy is claimed: mechanism = 'none' trains without clipping and without noise"


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


def noise_multiplier(study: Study) -> float:
    """The study's noise multiplier: the smallest that meets its budget over all planned steps, 0 without privacy.

    Raises:
        ConfigError: no reasonable noise meets the budget.
    """
    privacy = study.privacy
    if not study.private or privacy.epsilon is None or privacy.delta is None:
        return 0.0
    steps = study.study.rounds * study.study.local_steps
    return noise_multiplier_for(privacy.epsilon, privacy.delta, privacy.sample_rate, steps)


def round_event(study: Study, site: str, training_run: str, round_number: int) -> Event:
    """What one round of `site` costs, as the ledger's event."""
    privacy = study.privacy
    return Event(
        study_hash=study.hash().hex(),
        site=site,
        training_run=training_run,
        round_number=round_number,
        mechanism=privacy.mechanism,
        covered=study.private,
        unit=privacy.unit,
        sample_rate=privacy.sample_rate,
        noise_multiplier=noise_multiplier(study),
        clip_norm=privacy.clip_norm or 0.0 if study.private else 0.0,
        denominator=privacy.denominator,
        steps=study.study.local_steps,
        generator="os" if study.study.seed is None else "seeded: no privacy claim",
    )


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
    if study.private and event not in events and budget is not None:
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
    curve, total, second, mu, sentence = (math.inf,) * rounds, math.inf, math.inf, math.inf, UNPROTECTED
    if study.private and privacy.delta is not None:
        releases = [Release(sigma, privacy.sample_rate, done * local_steps) for done in range(1, rounds + 1)]
        curve = tuple(epsilon(release, privacy.delta) for release in releases)
        total, second = cross_check(releases[-1], privacy.delta)
        mu = gaussian_dp(releases[-1], privacy.delta)
        sentence = in_words(mu)
    return Explanation(
        mechanism=privacy.mechanism,
        unit=privacy.unit,
        neighbouring=f"add or remove one {privacy.unit}",
        trust=TRUST[privacy.mechanism],
        budget=privacy.epsilon if study.private else None,
        delta=privacy.delta if study.private else None,
        sample_rate=privacy.sample_rate,
        clip_norm=privacy.clip_norm if study.private else None,
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
    if study.private and study.privacy.delta is not None and everybody and study.privacy.delta >= 1 / everybody:
        notes.append(
            f"delta {study.privacy.delta:g} is not below 1/{everybody} (one over the number of patients): it allows "
            f"one patient to be revealed whole; choose about {1 / (10 * everybody):.1g}"
        )
    if study.private:
        notes.append("validation metrics, early stopping and tuning on private data are not covered by this epsilon")
    return notes
