"""How much noise a study needs for its budget, and what one of its rounds costs."""

from fedseg.ledger import Event
from fedseg.privacy.accounting import noise_multiplier_for
from fedseg.study import Study


def noise_multiplier(study: Study) -> float:
    """The study's noise multiplier: the smallest that meets its budget over all planned steps, 0 without privacy.

    Raises:
        ConfigError: no reasonable noise meets the budget.
    """
    privacy = study.privacy
    if not study.trust.claims_epsilon or privacy.epsilon is None or privacy.delta is None:
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
        mechanism="local" if study.trust.claims_epsilon else "none",
        covered=study.trust.claims_epsilon,
        unit=privacy.unit,
        sample_rate=privacy.sample_rate,
        noise_multiplier=noise_multiplier(study),
        clip_norm=privacy.clip_norm or 0.0 if study.trust.claims_epsilon else 0.0,
        denominator=privacy.denominator,
        steps=study.study.local_steps,
        generator="os" if study.study.seed is None else "seeded: no privacy claim",
    )
