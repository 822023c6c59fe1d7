"""How `--check` of `fedseg coordinator` and `fedseg site` is shown, and how it ends."""

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from threading import Event, Thread
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from secagg.errors import SecAggError
from secagg.terminal import out, plain, say_json

if TYPE_CHECKING:
    from fedseg.events import AnyEvent
    from fedseg.preflight import Row

Check = Annotated[
    bool, typer.Option("--check", help="Look whether everything is ready, and end; nothing is charged or sent.")
]
CheckJson = Annotated[bool, typer.Option("--json", help="With --check: one JSON object instead of a table.")]
_FIRST, _DAY = 5.0, 86_400.0
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


@contextmanager
def told_of_expiry(emit: "Callable[[AnyEvent], object]", credentials: Path, name: str) -> Iterator[None]:
    """While a party runs: says soon and then once a day where its certificate expires within a month.

    Args:
        emit: of the run.
        credentials: the party's folder.
        name: the party.
    """
    from fedseg.credentials import expiring
    from fedseg.events import Note

    over = Event()

    def watch() -> None:
        """Look once soon, then once a day, until it is over."""
        pause = _FIRST
        while not over.wait(pause):
            pause = _DAY
            with suppress(SecAggError):  # unreadable just now: whoever connects with it says so
                if said := expiring(credentials, name):
                    emit(Note(text=said))

    thread = Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def tell(rows: Iterable["Row"], as_json: bool) -> None:
    """Show every row; the exit status is 1 where one failed."""
    found = list(rows)
    failed = [row for row in found if row.state == "fail"]
    if as_json:
        say_json({"ready": not failed, "checks": [asdict(row) for row in found]})
    else:
        table = Table(box=None, padding=(0, 2, 0, 0), show_header=False)
        for _ in range(3):
            table.add_column(overflow="fold")
        for row in found:
            table.add_row(plain(row.state, _STYLES[row.state]), plain(row.name), plain(row.said))
        out.print(table)
    if failed:
        raise typer.Exit(1)
