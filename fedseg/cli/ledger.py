"""`fedseg ledger`: what a data set's patients have paid, over all studies; for the site's own eyes."""

import math
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from fedseg.cli.terminal import app
from fedseg.errors import ConfigError
from fedseg.events import finite
from fedseg.privacy.delta import delta_text
from secagg.terminal import App, AsJson, out, plain, say, say_json

if TYPE_CHECKING:
    from fedseg.ledger import Entry

ledger_app = App("What a site's patients have paid.")
app.add_typer(ledger_app, name="ledger")

Book = Annotated[
    Path, typer.Argument(metavar="LEDGER", help="A ledger (.jsonl), or the state folder with it.", show_default=False)
]
Delta = Annotated[float, typer.Option(help="Delta at which epsilon is recomputed.", show_default=False)]


@ledger_app.command()
def show(ledger: Book, as_json: AsJson = False) -> None:
    """Show what was charged: one row a training run."""
    from fedseg.exposure import held

    lines = held(_file(ledger))
    if as_json:
        say_json({"entries": [{**line.entry.model_dump(), "event_id": line.event_id} for line in lines]})
        return
    table = Table(title=f"{len(lines)} entries")
    for heading in ("study", "training run", "kind", "rounds", "steps", "from", "to", "sets of patients"):
        table.add_column(heading, overflow="fold")
    runs: dict[tuple[str, str], list[Entry]] = {}
    for line in lines:
        runs.setdefault((line.entry.run, line.entry.kind), []).append(line.entry)
    for (run, kind), entries in runs.items():
        numbers, days = (
            sorted({entry.round_number for entry in entries}),
            [e.charged[:10] for e in entries if e.charged],
        )
        table.add_row(
            plain(entries[0].study or entries[0].study_hash[:8]),
            plain(run),
            kind,
            f"{numbers[0]} to {numbers[-1]} ({len(numbers)})",
            str(sum(getattr(entry, "steps", 0) for entry in entries)),
            plain(min(days, default="")),
            plain(max(days, default="")),
            str(len({entry.patients for entry in entries if entry.patients}) or "not known"),
        )
    out.print(table)


@ledger_app.command()
def verify(
    ledger: Book,
    delta: Delta,
    as_json: AsJson = False,
) -> None:
    """Verify a ledger, and recompute epsilon from it.

    Every line, every signature and, where the marks lie beside it, that its end is there. Two accountants recompute
    epsilon from its entries.
    """
    from fedseg.exposure import held
    from fedseg.ledger import distinct, released
    from fedseg.privacy.accounting import cross_check

    path = _file(ledger)
    lines = held(path)
    entries = [line.entry for line in lines]
    pld, prv = cross_check(released(distinct(entries)), delta)
    end = "known" if path.with_name("marks.sqlite").is_file() else "not known"
    if as_json:
        figures = {"epsilon_pld": finite(pld), "epsilon_prv": finite(prv)}
        signed = sum(1 for line in lines if line.signer)
        say_json({"entries": len(entries), "signed": signed, "end": end, **figures, "delta": delta})
        return
    told = f"{len(entries)} entries, chain intact"
    if end == "not known":
        told += " (no marks lie beside it: whether its end was cut off cannot be seen)"
    if math.isinf(pld):
        say(f"{told}; no epsilon: a round without noise, or with a seed, is among them")
        return
    second = f"second accountant (PRV): {prv:.3f}" if prv is not None else "no second accountant knows this mechanism"
    say(f"{told}; epsilon {pld:.3f} at delta {delta_text(delta)} (PLD); {second}")


@ledger_app.command()
def epsilon(ledger: Book, delta: Delta, as_json: AsJson = False) -> None:
    """Say what a data set's patients have spent.

    Each run alone, all together, and the patient who has spent most. What is composed over everything decides whether
    a round may be charged. The last depends on who is in which study: it is for this site's eyes.
    """
    from fedseg.budget.balance import balance

    told = balance(_file(ledger), delta)
    if as_json:
        say_json({name: _finite(value) for name, value in asdict(told).items()})
        return
    table = Table(title=f"epsilon at delta {delta_text(delta)}, add or remove one patient")
    for heading in ("what", "epsilon"):
        table.add_column(heading, overflow="fold")
    for name, value in told.runs.items():
        table.add_row(plain(f"run {name}, alone"), _figure(value))
    table.add_row("everything in this ledger, whoever took part", _figure(told.everything), style="bold")
    table.add_row("the patient who has spent most of it", _figure(told.most))
    out.print(table)
    say("seen by whom: " + "; ".join(f"{who} {_figure(value)}" for who, value in told.observers.items()))
    bounded = told.mu is not None and math.isfinite(told.mu)
    say(f"mu-GDP {told.mu:.3f}: {told.sentence}" if bounded else told.sentence)
    if told.lifetime is not None:
        say(f"lifetime budget {told.lifetime:g} at delta {delta_text(told.lifetime_delta)}: {_figure(told.left)} left")
    for name, count in told.not_covered.items():
        say(f"not covered by epsilon: {count} releases of {name}")


@ledger_app.command()
def budget(
    state: Annotated[Path, typer.Argument(help="The data set's state folder.", show_default=False)],
    epsilon: Annotated[float, typer.Option(help="What its patients may spend over all studies.", show_default=False)],
    delta: Delta,
) -> None:
    """Give a data set a budget for life, or another one."""
    from fedseg.site.control import Control

    say(Control(state).cap(epsilon, delta))


@ledger_app.command()
def moved(
    state: Annotated[Path, typer.Argument(help="The state folder at its new place.", show_default=False)],
) -> None:
    """Say that a state folder was moved.

    Nothing may have trained on the old one since. It is refused where its ledger is behind what is known of it, and
    stays on record in the folder.
    """
    from fedseg.exposure import moved as settle

    if not (state / "marks.sqlite").is_file():
        raise ConfigError(f"{state}: holds no marks; give the state folder of a data set that took part")
    settle(state)
    say(f"{state} is taken as the place of this data set's marks and ledger from now on")


def _file(given: Path) -> Path:
    path = given / "ledger.jsonl" if given.is_dir() else given
    if not path.is_file():
        raise ConfigError(f"{path}: no such ledger; it is ledger.jsonl in the data set's state folder")
    return path


def _figure(value: float) -> str:
    return f"{value:.3f}" if math.isfinite(value) else "none (a round without noise, or with a seed)"


def _finite(value: object) -> object:
    if isinstance(value, dict):
        return {name: _finite(each) for name, each in value.items()}
    return finite(value) if isinstance(value, float) else value
