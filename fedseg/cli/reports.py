"""`fedseg report`: a run's report, written again."""

from pathlib import Path
from typing import Annotated

import typer

from fedseg.cli.ending import say_report
from fedseg.cli.terminal import app


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A complete run folder.", show_default=False)]) -> None:
    """Write a run's report again.

    It is one HTML file that works offline.
    """
    from fedseg.report import write_report

    say_report(write_report(run))
