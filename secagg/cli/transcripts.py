"""`secagg verify-transcript`: whether a published round was what it claims, without asking the server."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
from rich.table import Table
from typer.core import TyperCommand

from secagg.cli.identities import read_roster
from secagg.cli.terminal import app, errors, out, say, sentences
from secagg.transcript import Verdict, verify
from secagg.transcript.checks import WHAT

_COULD_NOT_RUN = 3
_BIG_BYTES = 1 << 26
_COLOURS = {"held": "green", "violated": "bold red", "not checked": "yellow"}


class _Verifying(TyperCommand):
    """Leaves 2 to "no power": a wrong command line ends with 3 here."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """See `TyperCommand.parse_args`."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "exit_code", None) == 2:
                error.exit_code = _COULD_NOT_RUN  # type: ignore[attr-defined]
            raise


@app.command(name="verify-transcript", cls=_Verifying)
def verify_transcript(
    files: Annotated[list[Path], typer.Argument(help="Transcripts of one training run, in the order of its rounds.")],
    roster: Annotated[Path, typer.Option(help="Your own roster, as `secagg roster` wrote it; never the server's.")],
    as_json: Annotated[bool, typer.Option("--json", help="One JSON object instead of a table.")] = False,
) -> None:
    """Verify the public transcripts of rounds, without the server.

    Ends with 0 where everything holds; 1 where something is violated, and names the first such thing; 2 where nothing
    is violated but not everything could be checked (masked vectors by hash, or a round that did not finish); 3 where
    the command could not run at all: a wrong option, an unreadable file, no roster.
    """
    with sentences(_COULD_NOT_RUN):
        pinned = read_roster(roster)
        total = sum(path.stat().st_size for path in files)
        columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
        hidden = as_json or not errors.is_terminal or total < _BIG_BYTES
        with Progress(*columns, console=errors, transient=True, disable=hidden) as progress:
            task = progress.add_task("", total=total)
            verdict = verify(files, pinned, lambda count: progress.advance(task, count))
    if as_json:
        typer.echo(json.dumps(verdict.as_dict(), indent=2))
    else:
        _show(verdict)
    raise typer.Exit(verdict.exit_code)


def _show(verdict: Verdict) -> None:
    table = Table()
    for heading in ("check", "it says", "state", "looked at"):
        table.add_column(heading, justify="right" if heading == "looked at" else "left")
    for check, what in WHAT.items():
        state = verdict.state(check)
        looked_at = f"{verdict.items[check]:,}" if check in verdict.items else ""
        table.add_row(check, what, f"[{_COLOURS[state]}]{state}[/]", looked_at)
    out.print(table)
    for report in verdict.rounds:
        told = f"{len(report.included)} included" if report.finished else "did not finish"
        dropped = f", dropped: {', '.join(report.dropped)}" if report.dropped else ""
        say(f"Round {report.round_number}, attempt {report.attempt}: {told}{dropped}.")
    for note in verdict.notes:
        say(f"Note: {note}.")
    if verdict.violation is not None:
        say(f"Violated: {verdict.violation}.")
    elif verdict.status == "no power":
        missing = ", ".join(check for check in WHAT if check not in verdict.items)
        say(f"Nothing is violated, but this could not be checked: {missing}.")
    else:
        say("Everything holds.")
