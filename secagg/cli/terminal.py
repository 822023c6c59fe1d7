"""What the commands share: the application, the two consoles, and sentences where something went wrong.

What is said may hold text of others. It is shown as it stands, in one line, and is never read as markup, escape
sequences or several lines.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from typing import Annotated

import typer
from rich.console import Console
from rich.text import Text

from secagg.errors import SecAggError
from secagg.printable import printable
from secagg.quantize import KERNEL

app = typer.Typer(
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    help="Secure aggregation against a server that lies: vectors are added, and nobody sees any one of them.",
)
out = Console()
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False)


def main() -> None:
    """Entry point of the `secagg` command."""
    app()


def plain(text: object, style: str = "", console: Console = out) -> Text:
    """Text, perhaps of others, for a console: shown as it stands."""
    return Text(printable(text, console.encoding), style)


def say(*parts: str | Text, console: Console = out) -> None:
    """Print one line, whatever the terminal's width."""
    shown = [plain(part, console=console) if isinstance(part, str) else part for part in parts]
    console.print(Text.assemble(*shown), soft_wrap=True)


@contextmanager
def sentences(status: int = 1) -> Iterator[None]:
    """Ends the command with one sentence and this status where something expected went wrong."""
    try:
        yield
    except SecAggError as error:
        say(f"secagg: {error}", console=errors)
        raise typer.Exit(status) from None
    except OSError as error:
        what = f"secagg: {error.filename}: {error.strerror}" if error.filename else f"secagg: {error}"
        say(what, console=errors)
        raise typer.Exit(status) from None


def _print_version(wanted: bool) -> None:
    if wanted:
        passes = "compiled kernel" if KERNEL else "numpy"
        say(f"secagg {version('secagg')} (passes over vectors: {passes})")
        raise typer.Exit


@app.callback()
def options(
    show: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Options of every command."""
