"""What the commands `secagg` and `fedseg` share: how they are called, where they print, and how they end.

What is said may hold text of others. It is shown as it stands, in one line, and is never read as markup, escape
sequences or several lines; a letter that the terminal lacks is written as an escape. Must never: show a traceback where
a sentence will do.
"""

import errno
import inspect
import json
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from enum import Enum
from functools import wraps
from importlib.metadata import version
from typing import Annotated, Any, TypeVar

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperCommand

from secagg.errors import SecAggError
from secagg.printable import printable

_Function = TypeVar("_Function", bound=Callable[..., Any])

# Neither markup nor emoji: a table's cell "[core]" or ":x:" is data, too.
out = Console(highlight=False, markup=False, emoji=False)
errors = Console(stderr=True, soft_wrap=True, highlight=False, markup=False, emoji=False)

_Quiet = Annotated[
    bool, typer.Option("--quiet", "-q", help="Print nothing but errors: the exit status tells the rest.")
]
AsJson = Annotated[bool, typer.Option("--json", help="One JSON object instead of sentences and tables.")]

COULD_NOT_RUN = 3
"""Exit status of a command that verifies, where it could not begin: 2 is "incomplete" and "no power" there."""

_REMEDIES = {
    errno.ENOSPC: "free some space",
    errno.EDQUOT: "free some of your quota",
    errno.EFBIG: "no file may be so large here: see `ulimit -f`",
    errno.EROFS: "write to another folder: this one is read-only",
    errno.EACCES: "you have no right to it: ask its owner, or use another place",
    errno.EPERM: "you have no right to it: ask its owner, or use another place",
    errno.ENAMETOOLONG: "give a shorter name",
}


class Tls(Enum):
    """Who says who calls: a site's certificate, or its signing key, where a load balancer ends TLS."""

    MTLS = "mtls"
    TLS = "tls"


TlsMode = Annotated[
    Tls, typer.Option("--tls", help="mtls: by certificates. tls: a load balancer ends TLS, signing keys prove it.")
]
Proxy = Annotated[
    str | None,
    typer.Option(
        metavar="URL|none", help="HTTP proxy on the way out. [default: https_proxy, no_proxy]", show_default=False
    ),
]
Host = Annotated[
    str, typer.Option(help="Own address to listen on: 127.0.0.1 for this computer only, 0.0.0.0 or :: for others too.")
]
Farewell = Annotated[
    float | None,
    typer.Option(
        help="Seconds for which the end of the run is offered. [default: 5; the same command again: until all have it]",
        show_default=False,
    ),
]


class App(typer.Typer):
    """An application, or a group of commands in one: `-h`, completion and `--quiet` alike everywhere.

    Help is plain text, which reads at any width, in any code page and on a dumb terminal, and eats no "[brackets]".
    """

    def __init__(self, about: str) -> None:
        super().__init__(
            help=about,
            no_args_is_help=True,
            pretty_exceptions_enable=False,
            rich_markup_mode=None,
            context_settings={"help_option_names": ["-h", "--help"]},
        )

    def command(  # type: ignore[override]
        self, name: str | None = None, *, cls: type[TyperCommand] | None = None
    ) -> Callable[[_Function], _Function]:
        """Adds a command, and `--quiet` to it; see `typer.Typer.command`."""

        def add(function: _Function) -> _Function:
            """Register a function under this name, with --quiet."""

            @wraps(function)
            def hushed(*given: Any, quiet: bool, **named: Any) -> Any:
                """The function, printing or not."""
                out.quiet = quiet
                return function(*given, **named)

            own = inspect.signature(function)
            quiet = inspect.Parameter("quiet", inspect.Parameter.KEYWORD_ONLY, default=False, annotation=_Quiet)
            hushed.__signature__ = own.replace(parameters=[*own.parameters.values(), quiet])  # type: ignore[attr-defined]
            hushed.__annotations__ = {**function.__annotations__, "quiet": _Quiet}
            super(App, self).command(name, cls=cls)(hushed)
            return function

        return add


class Verifying(TyperCommand):
    """A command that verifies: a wrong command line ends with `COULD_NOT_RUN`."""

    def parse_args(self, ctx: typer.Context, args: list[str]) -> list[str]:  # type: ignore[override]
        """See `TyperCommand.parse_args`."""
        try:
            return super().parse_args(ctx, args)
        except Exception as error:
            if getattr(error, "exit_code", None) == 2:
                error.exit_code = COULD_NOT_RUN  # type: ignore[attr-defined]
            raise


def versioned(app: App, command: str, more: Callable[[], str] = str) -> None:
    """Give an application the option `--version`.

    Args:
        app: gets the option.
        command: its name, which is printed first.
        more: called when somebody asks; its text is printed behind the version.
    """

    def tell(wanted: bool) -> None:
        """Print the version and end, where it was asked for."""
        if wanted:
            say(f"{command} {version('secagg')}{more()}")
            raise typer.Exit

    @app.callback()
    def options(
        show: Annotated[
            bool, typer.Option("--version", callback=tell, is_eager=True, help="Print the version and exit.")
        ] = False,
    ) -> None:
        """Options that stand before the command's name."""


def plain(text: object, style: str = "", *, console: Console = out) -> Text:
    """Text of others for a console: shown in one line as it stands, and never read as markup.

    Args:
        text: anything; its `str` is shown.
        style: of rich, such as "bold red".
        console: where it will be printed, which decides the characters that it can show.
    """
    return Text(printable(text, console.encoding), style)


def say(*parts: str | Text, console: Console = out) -> None:
    """Print one line, whatever the terminal's width."""
    shown = [plain(part, console=console) if isinstance(part, str) else part for part in parts]
    console.print(Text.assemble(*shown), soft_wrap=True)


def say_json(content: object) -> None:
    """Print one JSON object, in ASCII: programs read it, whatever the code page and `--quiet`."""
    typer.echo(json.dumps(content, indent=2))


@contextmanager
def sentences(
    command: str,
    status: int = 1,
    expected: tuple[type[Exception], ...] = (SecAggError,),
    extra: str = "",
    statuses: Mapping[type[Exception], int] | None = None,
) -> Iterator[None]:
    """Ends the process with one sentence and this status where something expected went wrong.

    Args:
        command: begins the sentence.
        status: of the exit.
        expected: errors whose text is for people; those of files and of packages that are not there are in any case.
        extra: what `pip install 'secagg[...]'` is to bring where a package is missing.
        statuses: of expected errors that have one of their own.
    """
    try:
        yield
    except expected as error:
        told = str(error)
        status = next((own for kind, own in (statuses or {}).items() if isinstance(error, kind)), status)
    except ModuleNotFoundError as error:
        if not extra or (error.name or "").partition(".")[0] in ("secagg", "fedseg"):
            raise
        told = f"needs {error.name}, which is not installed; run: pip install 'secagg[{extra}]'"
    except OSError as error:
        if error.errno is None:
            raise
        told = about_file(error)
    else:
        return
    say(plain(f"{command}: ", "bold red", console=errors), told, console=errors)
    raise SystemExit(status) from None  # a crash report shows no frame of what went wrong


def about_file(error: OSError) -> str:
    """One sentence on a file that could not be read or written."""
    remedy = f"; {_REMEDIES[error.errno]}" if error.errno in _REMEDIES else ""
    return f"{error.filename or 'a file could not be written'}: {error.strerror}{remedy}"


def any_code_page() -> None:
    """From now on what a stream's code page lacks is written as an escape, never the end of the command."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
