"""`fedseg report`: a run's report, written again."""

from pathlib import Path
from typing import Annotated

import typer

from fedseg.cli.terminal import app
from secagg.terminal import say


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A complete run folder.", show_default=False)]) -> None:
    """Write a run's report again.

    It is one HTML file that works offline.
    """
    from fedseg.report import write_report

    say(f"report {write_report(run)}")
