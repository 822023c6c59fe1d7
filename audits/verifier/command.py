"""`python -m audits verify-transcript`: the second opinion, with the arguments of `secagg verify-transcript`."""

from pathlib import Path
from typing import Annotated

import numpy as np
import typer

from audits.verifier import runs
from audits.verifier.judge import ViolationError
from audits.verifier.policy import UnreadableError, load_policy, load_roster
from audits.verifier.reading import Reader
from audits.verifier.study import verify

Files = Annotated[list[Path], typer.Argument(help="Transcripts, those of each run in the order of its rounds.")]
Roster = Annotated[Path, typer.Option(help="Your own roster; never the server's.")]
PolicyFile = Annotated[Path, typer.Option("--policy", help="Your own policy; never the server's.")]

Start = Annotated[
    Path | None, typer.Option(help="Weights that the study begins with: float32 in the network's order, as .npy.")
]


def verify_transcript(files: Files, roster: Roster, policy: PolicyFile) -> None:
    """Verify transcripts with the second verifier, which shares no line with secagg.

    Ends with 0 where everything holds, 1 where something is violated, 2 where something is missing or could not be
    checked, 3 where nothing could be read.
    """
    try:
        verdict = verify(files, Reader(load_policy(policy), load_roster(roster)))
    except (UnreadableError, OSError) as error:
        typer.echo(f"verify-transcript: {error}", err=True)
        raise typer.Exit(3) from None
    typer.echo(verdict.sentence)
    for note in verdict.notes:
        typer.echo(f"Note: {note}.")
    raise typer.Exit(verdict.exit_code)


def verify_run(folder: Path, roster: Roster, start: Start = None) -> None:
    """Hold ledgers and models of a run folder against its transcripts: T-15 to T-17.

    Ends with 0 where everything holds, 1 where something is violated, 2 where something was not checked, 3 where
    nothing could be read.
    """
    try:
        reader = Reader(load_policy(folder / "policy.toml"), load_roster(roster))
        held, unchecked = runs.verify_run(folder, reader, None if start is None else np.load(start))
    except ViolationError as violation:
        typer.echo(f"Violated: {violation}")
        raise typer.Exit(1) from None
    except (UnreadableError, OSError, KeyError, ValueError, NotImplementedError) as error:
        typer.echo(f"verify-run: {folder} cannot be looked at: {error}", err=True)
        raise typer.Exit(3) from None
    for sentence in (*held, *(f"Not checked: {one}" for one in unchecked)):
        typer.echo(sentence)
    raise typer.Exit(2 if unchecked else 0)
