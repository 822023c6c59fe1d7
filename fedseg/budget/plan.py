"""What a study plans for its patients: how much noise each step has, and what one of its rounds costs."""

from dataclasses import dataclass

from dp_accounting.dp_event import DpEvent

from fedseg.federation.draw import rounds_of_a_site
from fedseg.ledger import Entry, MetricsRelease
from fedseg.mechanisms.mechanism import Said
from fedseg.study import Study


@dataclass(frozen=True)
class Plan:
    """The numbers that a study fixes.

    Attributes:
        mechanism: as in the study.
        unit: whose presence is hidden.
        neighbouring: relation between the data sets that cannot be told apart.
        budget: epsilon of the study, None where it claims none.
        delta: as in the study, None where it claims no epsilon.
        sample_rate: probability of each patient to be drawn in a step.
        clip_norm: L2 bound of one patient's gradient, None where nothing is clipped.
        noise_multiplier: noise standard deviation over `clip_norm`, 0 where there is none.
        denominator: public divisor of the noisy sum.
        rounds: completed rounds.
        spare_rounds: rounds more that the noise is planned for; a burned round stays charged and takes one of them.
        local_steps: steps of a round.
        sites, participation: of the study, and those of a round; 0 for all.
        asked: rounds among them that are of statistics and not of training.
    """

    mechanism: str
    unit: str
    neighbouring: str
    budget: float | None
    delta: float | None
    sample_rate: float
    clip_norm: float | None
    noise_multiplier: float
    denominator: int
    rounds: int
    local_steps: int
    spare_rounds: int = 0
    sites: int = 0
    participation: int = 0
    asked: int = 0

    @property
    def most_rounds(self) -> int:
        """Rounds that a site may be charged: of those that complete and the spare ones, the ones that it is in."""
        return rounds_of_a_site(self.rounds + self.spare_rounds, self.sites, self.participation)

    @property
    def steps(self) -> int:
        """Steps of a site in the whole study, those of spare rounds included."""
        return (self.most_rounds - self.asked) * self.local_steps


def plan_of(study: Study) -> Plan:
    """A study's plan.

    Raises:
        ConfigError: no reasonable noise meets the budget.
    """
    privacy, claimed = study.privacy, study.trust.claims_epsilon
    return Plan(
        mechanism=privacy.mechanism,
        unit=privacy.unit,
        neighbouring=f"add or remove one {privacy.unit}",
        budget=privacy.epsilon if claimed else None,
        delta=privacy.delta if claimed else None,
        sample_rate=privacy.sample_rate,
        clip_norm=privacy.clip_norm if claimed else None,
        noise_multiplier=noise_multiplier(study),
        denominator=privacy.denominator,
        rounds=study.study.rounds,
        local_steps=study.study.local_steps,
        spare_rounds=study.study.spare_rounds,
        sites=len(study.sites),
        participation=study.federation.participation,
        asked=int(study.asked is not None),
    )


def noise_multiplier(study: Study) -> float:
    """The study's noise multiplier: the smallest that meets its budget over all planned steps, 0 without a claim.

    Raises:
        ConfigError: no reasonable noise meets the budget.
    """
    return study.mechanism.noise_multiplier(study.terms)


def shown_in(
    study: Study, rounds: int, honest: int | None = None, sites: int = 0, asks: int = 1
) -> list[DpEvent] | None:
    """What so many of a site's rounds show of its patients, the sum of statistics among them.

    Args:
        study: the study.
        rounds: of the first ones.
        honest: sites whose noise is not known to whoever looks; None for as many as planned.
        sites: in each sum, where `honest` is given.
        asks: those among them that are of statistics, where the study asks for any: 1, and each that burned before it.

    Returns:
        None where no noise is left.
    """
    terms, asked = study.terms, study.asked
    steps = max(rounds - (0 if asked is None else asks), 0) * terms.local_steps
    mechanism = study.mechanism
    training = mechanism.released(terms, steps) if honest is None else mechanism.achieved(terms, steps, honest, sites)
    events = [] if asked is None else [asked.released(asks, honest)]
    events += [training] if steps else []
    shown = [event for event in events if event is not None]
    return shown if len(shown) == len(events) else None


def planned_entries(study: Study, site: str, training_run: str) -> list[Entry]:
    """What the rounds of a site cost, one after the other, where none is burned; arguments of `round_entry`."""
    plan = plan_of(study)
    return [
        round_entry(study, site, training_run, number, asking=number <= plan.asked)
        for number in range(1, plan.most_rounds + 1)
    ]


def round_entry(study: Study, site: str, training_run: str, round_number: int, *, asking: bool = False) -> Entry:
    """What one round of `site` costs, as the ledger has it.

    Args:
        study: gives the mechanism and its numbers.
        site: the site's id.
        training_run: name of the run whose rounds are counted.
        round_number: at least 1.
        asking: whether the round is of statistics.
    """
    if asking and study.asked is not None:
        return study.asked.entry(_said(study, site, training_run, round_number))
    return study.mechanism.entry(_said(study, site, training_run, round_number), study.terms)


def metrics_entry(study: Study, site: str, training_run: str, round_number: int) -> Entry:
    """A release of validation metrics before round `round_number`, as the ledger has it; arguments of `round_entry`."""
    return MetricsRelease(**_said(study, site, training_run, round_number))


def _said(study: Study, site: str, training_run: str, round_number: int) -> Said:
    """What every entry says."""
    return {
        "study_hash": study.hash().hex(),
        "study": study.study.name,
        "site": site,
        "training_run": training_run,
        "round_number": round_number,
        "unit": study.privacy.unit,
    }
