"""`fedseg epsilon`: what a study promises its patients."""

from dataclasses import asdict

from rich.table import Table

from fedseg.cli.terminal import DataFolder, StudyFile, app, stressed
from fedseg.privacy.delta import delta_text
from secagg.terminal import AsJson, out, say, say_json


@app.command()
def epsilon(
    study: StudyFile,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Explain what a study promises to each patient."""
    from fedseg.budget.explain import explain
    from fedseg.data.loading import load_cohort
    from fedseg.mechanisms.table import no_claim
    from fedseg.study import load_study

    loaded = load_study(study)
    cohort = {site: len(found.patients) for site, found in load_cohort(data, loaded).items()} if data else None
    told = explain(loaded, cohort)
    plan, guarantee = told.plan, told.guarantee
    if as_json:
        worth = {"epsilon": None, "sentence": no_claim(plan.mechanism)} if guarantee is None else asdict(guarantee)
        more = {"trust": loaded.trust.sentence, "sites": [asdict(site) for site in told.sites], "notes": told.notes}
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
        f"noise multiplier {plan.noise_multiplier:.4g}, clip norm {plan.clip_norm:g}, "
        f"sample rate {plan.sample_rate:g}, public denominator {plan.denominator}; "
        f"{_second(guarantee.accountants[1], guarantee.epsilon_second)}",
    )
    say(f"{'' if guarantee.mu is None else f'mu-GDP {guarantee.mu:.3f}: '}{guarantee.sentence}")
    table = Table(title="epsilon after each round")
    shown = sorted({max(1, round(plan.most_rounds * part / 5)) for part in range(6)})
    for number in shown:
        table.add_column(str(number))
    table.add_row(*(f"{guarantee.curve[number - 1]:.2f}" for number in shown))
    out.print(table)
    for site in told.sites:
        say(f"{site.site}: {site.patients} patients in training, {site.expected_draw:.1f} drawn per step")
    for note in told.notes:
        say(f"note: {note}")


def _second(name: str, found: float | None) -> str:
    """What the second accountant says, which does not know every mechanism."""
    return f"second accountant ({name}): {found:.3f}" if found is not None else "no second accountant knows all of this"
