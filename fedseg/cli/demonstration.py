"""`fedseg demo`: real processes on this machine."""

from pathlib import Path
from typing import Annotated

import typer

from fedseg.cli.ending import conclude
from fedseg.cli.terminal import app
from secagg.terminal import out


@app.command()
def demo(
    runs: Annotated[Path, typer.Option("--out", help="Where the demo's folders go.")] = Path(".demo"),
    study: Annotated[Path | None, typer.Option(help="Another phantom study.", show_default=False)] = None,
) -> None:
    """Five sites and a coordinator as real processes here.

    They speak over TLS, and one site is killed in the middle of a round.
    """
    from fedseg.demo import STUDY, Demo
    from fedseg.screen import Screen
    from fedseg.start import starting_model
    from fedseg.study import load_study

    loaded = load_study(study or STUDY)
    with Screen(out) as screen:
        starting_model(loaded, screen.starting)  # once, for all six processes
        demonstration = Demo(runs, loaded, screen)
        run = demonstration.run()
    conclude(run, demonstration.folder / "credentials")
