"""`fedseg verify-run`: transcripts, ledgers, model, figures and report of a run, held against each other."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from fedseg.cli.terminal import app
from fedseg.errors import FedSegError
from secagg.errors import SecAggError
from secagg.terminal import COULD_NOT_RUN, AsJson, Verifying, out, plain, say, say_json, sentences

if TYPE_CHECKING:
    from fedseg.evidence import Evidence

_COLOURS = {"held": "green", "violated": "bold red", "not checked": "yellow", "does not apply": "dim"}

Folders = Annotated[
    list[Path],
    typer.Argument(help="Run folders, state folders and ledgers of one run.", show_default=False),
]
OwnRoster = Annotated[
    Path | None,
    typer.Option(help="Your own federation.toml; never one that came with the folders.", show_default=False),
]


@app.command(name="verify-run", cls=Verifying)
def verify_run(folders: Folders, roster: OwnRoster = None, as_json: AsJson = False) -> None:
    """Hold everything that is left of a run against each other.

    Ends with 0 where everything holds; 1 where something is violated; 2 where nothing is violated and something could
    not be looked at, which is said; 3 where the command could not run at all.
    """
    with sentences("fedseg", COULD_NOT_RUN, (FedSegError, SecAggError), extra="fedseg"):
        from fedseg.verifying import verify_run as verified

        evidence = verified(folders, roster)
    if as_json:
        say_json(evidence.as_dict())
    else:
        _show(evidence)
    raise typer.Exit(evidence.exit_code)


def _show(evidence: "Evidence") -> None:
    table = Table()
    for heading in ("check", "state", "whose", "what was held against what"):
        table.add_column(heading, overflow="fold")
    for check, what in evidence.claims.items():
        table.add_row(check, Text(evidence.state(check), _COLOURS[evidence.state(check)]), "", plain(what, "bold"))
        for finding in evidence.of(check):
            state = Text(finding.state, _COLOURS[finding.state])
            table.add_row("", state, plain(finding.subject), plain(finding.sentence))
    out.print(table)
    match evidence.status:
        case "violated":
            say(f"Violated: {evidence.violations[0]}.")
        case "no power":
            say("Nothing is violated, but not everything could be looked at: see what was not checked.")
        case _:
            say("Everything holds.")
