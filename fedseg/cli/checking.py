"""How `--check` of `fedseg coordinator` and `fedseg site` is shown, and how it ends."""

from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from secagg.terminal import out, plain, say_json

if TYPE_CHECKING:
    from fedseg.preflight import Row

Check = Annotated[
    bool, typer.Option("--check", help="Look whether everything is ready, and end; nothing is charged or sent.")
]
CheckJson = Annotated[bool, typer.Option("--json", help="With --check: one JSON object instead of a table.")]
_STYLES = {"ok": "green", "warn": "yellow", "fail": "bold red"}


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
