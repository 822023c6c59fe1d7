"""What the commands share: the application, the two consoles, and sentences where something went wrong."""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console

from secagg.errors import SecAggError
from secagg.quantize import KERNEL

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Secure aggregation against a server that lies: vectors are added, and nobody sees any one of them.",
)
out = Console()
say = partial(out.print, soft_wrap=True)  # a sentence is one line, whatever the terminal's width
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def main() -> None:
    """Entry point of the `secagg` command."""
    app()


@contextmanager
def sentences(status: int = 1) -> Iterator[None]:
    """Ends the command with one sentence and this status where something expected went wrong."""
    try:
        yield
    except SecAggError as error:
        errors.print(f"secagg: {error}")
        raise typer.Exit(status) from None
    except OSError as error:
        errors.print(f"secagg: {error.filename}: {error.strerror}" if error.filename else f"secagg: {error}")
        raise typer.Exit(status) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        passes = "compiled kernel" if KERNEL else "numpy"
        out.print(f"secagg {version('secagg')} (passes over vectors: {passes})", highlight=False)
        raise typer.Exit


@app.callback()
def options(
    show: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""
