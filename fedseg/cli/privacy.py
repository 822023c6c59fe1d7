"""`fedseg epsilon` and `fedseg ledger`: what a study promises its patients, and what they have paid."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from fedseg.cli.terminal import DataFolder, StudyFile, app, stressed
from fedseg.errors import ConfigError
from fedseg.privacy.trust import delta_text
from secagg.terminal import App, AsJson, out, say, say_json

ledger_app = App("What a site's patients have paid.")
app.add_typer(ledger_app, name="ledger")


@app.command()
def epsilon(
    study: StudyFile,
    data: DataFolder = None,
    as_json: AsJson = False,
) -> None:
    """Explain what a study promises to each patient."""
    from fedseg.budget.explain import explain
    from fedseg.data.loading import load_cohort
    from fedseg.study import load_study

    loaded = load_study(study)
    cohort = {site: len(found.patients) for site, found in load_cohort(data, loaded).items()} if data else None
    plan = explain(loaded, cohort)
    if as_json:
        claim = asdict(plan) if loaded.trust.claims_epsilon else {"epsilon": None, "sentence": plan.sentence}
        say_json(claim)
        return
    if not loaded.trust.claims_epsilon:
        say(stressed(plan.sentence))
        return
    say(
        stressed(f"epsilon {plan.epsilon:.3f}"),
        f" of {plan.budget:g} per {plan.unit} at delta {delta_text(plan.delta)} after "
        f"{plan.rounds} rounds of {plan.local_steps} steps ({plan.neighbouring})",
    )
    say(f"who is trusted: {loaded.trust.trusted}; {loaded.trust.because}")
    say(
        f"noise multiplier {plan.noise_multiplier:.4g}, clip norm {plan.clip_norm:g}, "
        f"sample rate {plan.sample_rate:g}, public denominator {plan.denominator}; "
        f"second accountant (PRV): {plan.epsilon_prv:.3f}",
    )
    say(f"mu-GDP {plan.mu:.3f}: {plan.sentence}")
    table = Table(title="epsilon after each round")
    shown = sorted({max(1, round(plan.rounds * part / 5)) for part in range(6)})
    for number in shown:
        table.add_column(str(number))
    table.add_row(*(f"{plan.curve[number - 1]:.2f}" for number in shown))
    out.print(table)
    if cohort:
        for site in plan.sites:
            say(f"{site.site}: {site.patients} patients in training, {site.expected_draw:.1f} drawn per step")
    for note in plan.notes:
        say(f"note: {note}")


@ledger_app.command("verify")
def ledger_verify(
    ledger: Annotated[Path, typer.Argument(help="A site's ledger (.jsonl).", show_default=False)],
    delta: Annotated[float, typer.Option(help="Delta at which epsilon is recomputed.", show_default=False)],
    as_json: AsJson = False,
) -> None:
    """Verify a ledger, and recompute epsilon from it.

    Two accountants do so, from the events.
    """
    from fedseg.ledger import verify
    from fedseg.privacy.accounting import cross_check

    if not ledger.is_file():
        raise ConfigError(f"{ledger}: no such ledger; it is ledger.jsonl in the site's --state folder")
    events = list(verify(ledger).values())
    pld, prv = cross_check(events, delta)
    if as_json:
        say_json({"events": len(events), "epsilon_pld": pld, "epsilon_prv": prv, "delta": delta})
        return
    say(f"{len(events)} events, chain intact; epsilon {pld:.3f} (PLD), {prv:.3f} (PRV) at delta {delta_text(delta)}")
