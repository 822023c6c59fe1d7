"""`fedseg epsilon`: what a study promises its patients."""

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.table import Table

from fedseg.cli.terminal import DataFolder, StudyFile, app, stressed
from fedseg.events import finite
from fedseg.privacy.delta import delta_text
from secagg.terminal import AsJson, out, say, say_json

if TYPE_CHECKING:
    from pathlib import Path

    from fedseg.budget.explain import Observer
    from fedseg.study import Study


@app.command()
def epsilon(
    study: StudyFile,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Explain what a study promises to each patient."""
    from fedseg.budget.explain import explain
    from fedseg.mechanisms.table import no_claim
    from fedseg.study import load_study

    loaded = load_study(study)
    told = explain(loaded, _patients(data, loaded) if data else None)
    plan, guarantee = told.plan, told.guarantee
    if as_json:
        worth = {"epsilon": None, "sentence": no_claim(plan.mechanism)} if guarantee is None else asdict(guarantee)
        watching = [
            {**asdict(observer), "epsilon": {number: finite(found) for number, found in observer.epsilon.items()}}
            for observer in told.observers
        ]
        sites = [asdict(site) for site in told.sites]
        more = {"trust": loaded.trust.sentence, "observers": watching, "sites": sites, "notes": told.notes}
        say_json({**asdict(plan), **worth, **more})
        return
    if guarantee is None:
        say(stressed(no_claim(plan.mechanism)))
        return
    say(
        stressed(f"epsilon {guarantee.epsilon:.3f}"),
        f" of {plan.budget:g} per {plan.unit} at delta {delta_text(plan.delta)} after "
        f"{plan.rounds} rounds{f' and {plan.spare_rounds} spare ones' if plan.spare_rounds else ''} of "
        f"{plan.local_steps} steps ({plan.neighbouring})",
    )
    say(f"who is trusted: {loaded.trust.trusted}; {loaded.trust.because}")
    say(
        f"noise multiplier {plan.noise_multiplier:.4g}, "
        f"{'' if plan.clip_norm is None else f'clip norm {plan.clip_norm:g}, '}"
        f"sample rate {plan.sample_rate:g}, public denominator {plan.denominator}; "
        f"{_second(guarantee.accountants[1], guarantee.epsilon_second)}",
    )
    say(f"{'' if guarantee.mu is None else f'mu-GDP {guarantee.mu:.3f}: '}{guarantee.sentence}")
    table = Table(title="epsilon after each round")
    for number in guarantee.curve:
        table.add_column(str(number))
    table.add_row(*(f"{found:.2f}" for found in guarantee.curve.values()))
    out.print(table)
    _say_observers(told.observers)
    for site in told.sites:
        say(f"{site.site}: {site.patients} patients in training, {site.expected_draw:.1f} drawn per step")
    for note in told.notes:
        say(f"note: {note}")


def _patients(data: "Path", study: "Study") -> dict[str, int]:
    """How many patients each site has; reading images takes libraries that a study alone does not."""
    from fedseg.data.loading import load_cohort

    return {site: len(found.patients) for site, found in load_cohort(data, study).items()}


def _say_observers(observers: Sequence["Observer"]) -> None:
    """What one dropout or one colluder more costs: nothing, where each update is private alone."""
    if len({found for observer in observers for found in observer.epsilon.values()}) == 1:
        say("dropouts and colluding sites cost nothing: each update is private alone, whoever else is there")
        return
    table = Table(title="epsilon at the end, by who watches and how many sites are in every sum")
    table.add_column("who watches")
    for number in observers[0].epsilon:
        table.add_column(f"{number} sites")
    for observer in observers:
        cells = ("no bound" if math.isinf(found) else f"{found:.2f}" for found in observer.epsilon.values())
        table.add_row(observer.who, *cells)
    out.print(table)
    say("a sum of fewer sites is never opened; beyond max_corrupt, secure aggregation itself promises nothing")


def _second(name: str, found: float | None) -> str:
    """What the second accountant says, which does not know every mechanism."""
    return f"second accountant ({name}): {found:.3f}" if found is not None else "no second accountant knows all of this"
