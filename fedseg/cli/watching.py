"""`fedseg status`, and how `fedseg coordinator` and `fedseg site` are seen from outside while they run."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from fedseg.cli.terminal import app
from fedseg.errors import ConfigError
from secagg.terminal import AsJson, out, plain, say, say_json

if TYPE_CHECKING:
    from fedseg.events import Listener
    from fedseg.runfolder import RunFolder
    from fedseg.screen import Screen
    from fedseg.status import Status
    from fedseg.watching.board import Board


class LogFormat(Enum):
    """For people, or for machines."""

    TEXT = "text"
    JSON = "json"


Format = Annotated[
    LogFormat,
    typer.Option("--log-format", help="'json': one object a line on the error output, in place of the table."),
]
File = Annotated[
    Path | None,
    typer.Option("--log-file", help="The log goes there, in its format, beside the table.", show_default=False),
]
Where = Annotated[
    str,
    typer.Option(
        "--watch",
        metavar="[HOST:]PORT",
        help="Serve a status page, /status.json and /metrics there.",
        show_default=False,
    ),
]


@dataclass
class Seen:
    """Who listens to a run, and which run it is once that is known."""

    screen: "Screen"
    listeners: "list[Listener]"
    board: "Board | None" = None
    run: "RunFolder | None" = None

    def show(self, run: "RunFolder") -> None:
        """The run is there: the page and TensorBoard look at its folder."""
        self.run = run
        if self.board is not None:
            self.board.at(run.path)


@contextmanager
def boarded() -> "Iterator[Board | None]":
    """TensorBoard's listener, closed in the end; None where tensorboard is not installed."""
    from fedseg.watching.board import Board, installed

    if not installed():
        yield None
        return
    board = Board()
    try:
        yield board
    finally:
        board.close()


@contextmanager
def seen(log_format: LogFormat, log_file: Path | None, watch: str, audit: Path | None = None) -> Iterator[Seen]:
    """The listeners of a run, as its options ask for them.

    Args:
        log_format: of the log.
        log_file: where it goes; None for a log of a machine on the error output, in place of the screen.
        watch: where the page is served; "" for nowhere.
        audit: the audit log, where this party keeps one.

    Raises:
        ConfigError: a file cannot be written, or nobody can listen there.
    """
    from fedseg.screen import Screen
    from fedseg.status import Folding, asked
    from fedseg.watching import Auditing, Logged, Watch

    with ExitStack() as stack:
        quiet = log_format is LogFormat.JSON and log_file is None
        screen = stack.enter_context(Screen(Console(quiet=True) if quiet else out))
        folding = Folding()
        board = stack.enter_context(boarded())
        found = Seen(screen, [screen, folding, *([board] if board is not None else [])], board)
        if log_format is LogFormat.JSON:
            found.listeners.append(Logged(log_file))
        elif log_file is not None:
            found.listeners.append(stack.enter_context(Screen(stack.enter_context(_lines(log_file)))))
        if audit is not None:
            found.listeners.append(Auditing(audit))
        if watch:
            served = Watch(watch, lambda: asked(folding.status(), found.run.path if found.run else Path()))
            stack.enter_context(served)
            screen.say(f"status page at {served.url}")
        yield found


@contextmanager
def _lines(path: Path) -> Iterator[Console]:
    """A console that appends lines to a file."""
    try:
        file = path.open("a", encoding="utf-8", errors="backslashreplace", buffering=1)
    except OSError as error:
        raise ConfigError(f"{path} cannot be written ({error.strerror}); give --log-file another place") from error
    with file:
        yield Console(file=file, markup=False, emoji=False, highlight=False, color_system=None)


@app.command()
def status(
    run: Annotated[Path, typer.Argument(help="A run folder, of a coordinator or of a site.", show_default=False)],
    page: Annotated[
        Path | None, typer.Option(help="Write the status page to this file (.html).", show_default=False)
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Say how a run stands.

    While it runs, when its process is down, and when it is over: it reads the run folder alone. Ends with 0 whatever it
    finds there; see `running` and `over` in the JSON.
    """
    from fedseg.status import read_status
    from fedseg.watching.words import headline, privacy, warnings

    found = read_status(run)
    if page is not None:
        from fedseg.page import save
        from fedseg.watching.page import render

        save(page, render(found))
    if as_json:
        say_json(found.as_dict())
        return
    for warning in warnings(found):
        say(f"warning: {warning}")
    say(f"{found.study}: {headline(found)}")
    say(privacy(found))
    _show(found)
    for at, text in found.news:
        say(f"{at[:19]} {text}")


def _show(found: "Status") -> None:
    from fedseg.watching.words import ago, rows, size

    shown = rows(found)
    table = _table("name", "connection", "this round", "epsilon", "certificate")
    for row in shown:
        style = "red" if row.tone == "bad" else "bold" if row.awaited else ""
        table.add_row(plain(row.name, style), *map(plain, (row.state, row.doing, row.epsilon, row.certificate)))
    out.print(table)
    if any(row.dice for row in shown):
        table = _table("structure", *(row.name for row in shown if row.dice))
        table.add_row("patients, n", *(row.patients for row in shown if row.dice))
        for place, name in enumerate(found.structures):
            table.add_row(plain(name), *(row.dice[place] for row in shown if row.dice))
        say("what was shared last, Dice or accuracy:")
        out.print(table)
    free = "" if found.free_bytes is None else f"; free disk {size(found.free_bytes)}"
    last = f", the last {ago(found.last_completed, found.asked)} ago" if found.last_completed else ""
    say(f"{found.completed} of {found.rounds} rounds{last}; {found.burned} burned, {found.spare} spare left{free}")


def _table(*headings: str) -> Table:
    table = Table(box=None, pad_edge=False, header_style="dim")
    for heading in headings:
        table.add_column(plain(heading), overflow="fold")
    return table
