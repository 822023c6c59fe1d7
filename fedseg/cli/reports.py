"""`fedseg report`: a run's report, written again."""

from pathlib import Path
from typing import Annotated

import typer

from fedseg.cli.ending import say_report
from fedseg.cli.terminal import app
from secagg.terminal import say


@app.command()
def report(run: Annotated[Path, typer.Argument(help="A complete run folder.", show_default=False)]) -> None:
    """Write a run's report again.

    It is one HTML file that works offline.
    """
    from fedseg.report import write_report

    say_report(write_report(run))


@app.command()
def track(
    run: Annotated[Path, typer.Argument(help="A complete run folder.", show_default=False)],
    to: Annotated[str, typer.Option(help="MLflow tracking URI: a server's, or sqlite:///FILE.", show_default=False)],
    experiment: Annotated[str, typer.Option(help="Under which name.")] = "fedseg",
) -> None:
    """Send a run to MLflow: settings, figures, report and model.

    Figures of a site's patients go only where its study says share_metrics. Needs the extra `mlflow`.
    """
    from fedseg.watching.tracking import track as send

    say(f"run {send(run, to, experiment)} in {to}")
