"""`fedseg credentials`: the keys and certificates of a trial."""

from pathlib import Path
from typing import Annotated

import typer

from fedseg.cli.terminal import StudyFile, app
from fedseg.errors import ConfigError
from secagg.terminal import say


@app.command()
def credentials(
    study: StudyFile,
    folder: Annotated[Path, typer.Argument(help="New folder for them.", show_default=False)],
    training_run: Annotated[str, typer.Option(help="Name of the run whose rounds are counted.")] = "trial",
    host: Annotated[
        list[str] | None,
        typer.Option(help="Name or address under which other computers reach the coordinator.", show_default=False),
    ] = None,
    port: Annotated[int, typer.Option(help="Port on which it listens.")] = 50051,
) -> None:
    """For a trial: make all parties' keys and certificates.

    They lie in one folder, with federation.toml.

    Whoever runs this holds all keys. For patients' data each party makes its own, with `fedseg enrol`: see
    docs/howto/operate.md.
    """
    from fedseg.credentials import make_credentials
    from fedseg.study import load_study

    if folder.exists():
        raise ConfigError(f"{folder}: is there already; name a new folder, so that no key is replaced")
    make_credentials(folder, load_study(study), training_run, host or (), port)
    say(f"credentials of all parties in {folder}; give each party its own files only")
