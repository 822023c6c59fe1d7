"""The application of the `fedseg` command, and what its commands share."""

import shlex
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.text import Text

from fedseg.errors import FedSegError, SiteWarning, UnfinishedError
from secagg.errors import SecAggError
from secagg.service.errors import StoppedError
from secagg.service.stopping import WORK, end_now
from secagg.terminal import App, any_code_page, errors, plain, say, sentences, versioned

app = App("Federated training of medical image segmentation, differentially private, through secure aggregation.")
versioned(app, "fedseg")

StudyFile = Annotated[Path, typer.Argument(help="Study file (TOML).", show_default=False)]
StudyOrConfiguration = Annotated[
    Path,
    typer.Argument(
        metavar="STUDY", help="Study file, or a configuration file that names it (TOML).", show_default=False
    ),
]
DataFolder = Annotated[
    Path | None, typer.Option("--data", help="Folder of images: one subfolder per site.", show_default=False)
]
ENDED_EARLY = 75
"""Exit status of a command whose run is not complete, by no error of its own (EX_TEMPFAIL of sysexits.h)."""

Runs = Annotated[Path, typer.Option("--out", help="Where the run folder goes.")]


def main() -> None:
    """Run the command and turn every error that is meant for a person into one sentence."""
    any_code_page()
    warnings.showwarning = _warn  # type: ignore[assignment]
    early = dict.fromkeys((UnfinishedError, StoppedError), ENDED_EARLY)
    try:
        with sentences("fedseg", expected=(FedSegError, SecAggError), extra="fedseg", statuses=early):
            app()
    except SystemExit as ended:
        if any(thread.name == WORK for thread in threading.enumerate()):
            end_now(ended.code if isinstance(ended.code, int) else 1)
        raise


def _warn(message: Warning | str, category: type[Warning], *_: object) -> None:
    """Our own warnings are for people; those of libraries are not."""
    if issubclass(category, SiteWarning):
        say(plain("warning: ", "yellow", console=errors), str(message), console=errors)


@contextmanager
def reading(data: Path | None) -> Iterator[None]:
    """Say that images are read, which may take minutes: while it lasts, and where somebody looks."""
    with errors.status(plain("reading images" if data is None else f"reading images in {data}", console=errors)):
        yield


def command_line() -> str:
    """How this command was called, for the record."""
    return shlex.join(["fedseg", *sys.argv[1:]])


def stressed(first: str, rest: str = "") -> Text:
    """A sentence with its beginning in bold."""
    return Text.assemble(plain(first, "bold"), plain(rest))
