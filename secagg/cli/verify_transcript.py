"""`secagg verify-transcript`: whether a published round was what it claims, without asking the server."""

from pathlib import Path
from typing import Annotated

import typer
from rich.progress import BarColumn, DownloadColumn, Progress, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from secagg.cli.terminal import app, sentences
from secagg.errors import ConfigError
from secagg.files import load_policy, load_roster
from secagg.terminal import COULD_NOT_RUN, AsJson, Verifying, errors, out, say, say_json
from secagg.transcript import RoundReport, Verdict
from secagg.transcript.checks import WHAT
from secagg.transcript_files import verify

_BIG_BYTES = 1 << 26
_COLOURS = {"held": "green", "violated": "bold red", "incomplete": "yellow", "not checked": "yellow"}

Files = Annotated[list[Path], typer.Argument(help="Transcripts, those of each run in the order of its rounds.")]
OwnRoster = Annotated[Path, typer.Option(help="Your own roster, as `secagg roster` wrote it; never the server's.")]
OwnPolicy = Annotated[Path, typer.Option(help="Your own policy, a file with the table [policy]; never the server's.")]


@app.command(name="verify-transcript", cls=Verifying)
def verify_transcript(
    files: Files,
    roster: OwnRoster,
    policy: OwnPolicy,
    as_json: AsJson = False,
) -> None:
    """Verify the transcripts of rounds, without the server.

    Ends with 0 where everything holds; 1 where something is violated, and names the first such thing; 2 where nothing
    is violated but something is missing or could not be checked (a round that sites speak of is not among the files, a
    round without a sum, masked vectors by hash); 3 where the command could not run at all: a wrong option, an
    unreadable file, no roster or policy, a file that is no transcript.
    """
    with sentences(COULD_NOT_RUN):
        verdict = verified(files, roster, policy, quiet=as_json)
    if as_json:
        say_json(verdict.as_dict())
    else:
        _show(verdict)
    raise typer.Exit(verdict.exit_code)


def verified(files: list[Path], roster: Path, policy: Path, quiet: bool) -> Verdict:
    """Verify transcripts, with a progress bar where it takes a while.

    Args:
        files: the transcripts.
        roster: file of the reader's own roster.
        policy: file of the reader's own policy.
        quiet: never show a bar.

    Raises:
        ConfigError: one is a folder.
    """
    for path in files:
        if path.is_dir():
            raise ConfigError(f"{path} is a folder: name the transcripts in it, such as {path}/*.transcript")
    pinned, pinned_policy = load_roster(roster), load_policy(policy)
    total = sum(path.stat().st_size for path in files)
    columns = (BarColumn(), DownloadColumn(), TimeRemainingColumn())
    hidden = quiet or not errors.is_terminal or total < _BIG_BYTES
    with Progress(*columns, console=errors, transient=True, disable=hidden) as progress:
        task = progress.add_task("", total=total)
        return verify(files, pinned_policy, pinned, lambda count: progress.advance(task, count))


def _show(verdict: Verdict) -> None:
    table = Table()
    for heading in ("check", "it says", "state", "looked at"):
        table.add_column(heading, justify="right" if heading == "looked at" else "left")
    for check, what in WHAT.items():
        state = verdict.state(check)
        looked_at = f"{verdict.items[check]:,}" if check in verdict.items else ""
        table.add_row(check, what, Text(state, _COLOURS[state]), looked_at)
    out.print(table)
    lines = [
        f"Your project {verdict.policy.project}, policy {verdict.policy.hash().hex()}, "
        f"suite {verdict.policy.suite.value}, session {verdict.session.hex()}.",
        *(line for report in verdict.rounds for line in _told(report)),
        *(f"Note: {note}." for note in verdict.notes),
        *(f"Not shown: {sentence}." for sentence in verdict.not_shown),
    ]
    if verdict.violation is not None:
        lines.append(f"Violated: {verdict.violation}.")
    elif verdict.status == "incomplete":
        lines.append("Nothing is violated, but these files are not everything: see what is not shown.")
    elif verdict.status == "no power":
        missing = ", ".join(check for check in WHAT if check not in verdict.items)
        lines.append(f"Nothing is violated, but this could not be checked: {missing}.")
    else:
        lines.append("Everything holds.")
    for line in lines:
        say(line)


def _told(report: RoundReport) -> list[str]:
    name = f"Round {report.round_number}, attempt {report.attempt} of run {report.training_run}"
    hashes = f"  model {report.model_hash.hex()}, task {report.task_hash.hex()}"
    if not report.finished:
        proven = f"no sum was taken, as later statements of {', '.join(report.denied_by)} prove"
        told = proven if report.denied_by else "no sum is published"
        return [f"{name}: {told}; headers of {', '.join(report.sites)}.", f"{hashes}, as the server says."]
    dropped = f", dropped: {', '.join(report.dropped)}" if report.dropped else ""
    told = f"{len(report.included)} included ({', '.join(report.included)}){dropped}"
    return [f"{name}: {told}.", f"  round id {report.round_id.hex()}", f"{hashes}."]
