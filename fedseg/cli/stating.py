"""`fedseg statement`: the privacy statement of a run, or of ledgers."""

from pathlib import Path
from typing import Annotated

import typer

from fedseg.cli.terminal import app
from fedseg.cli.verifying import OwnRoster
from fedseg.errors import ConfigError
from secagg.terminal import AsJson, say, say_json

What = Annotated[
    list[Path],
    typer.Argument(help="Run folders, state folders and ledgers; ledgers alone do, too.", show_default=False),
]


@app.command()
def statement(
    what: What,
    roster: OwnRoster = None,
    delta: Annotated[
        float | None, typer.Option(help="In place of the study's; ledgers alone need it.", show_default=False)
    ] = None,
    target: Annotated[Path, typer.Option("--out", help="The page; its JSON goes beside it.")] = Path("statement.html"),
    as_json: AsJson = False,
) -> None:
    """Write one page for a data protection officer.

    The privacy statement, computed from ledgers and transcripts; it says what was verified.
    """
    from fedseg.statement import write_statement
    from fedseg.statement.facts import as_dict
    from fedseg.statement.words import rounds, summary, warnings

    if target.suffix != ".html":
        raise ConfigError(f"{target}: the page is HTML; give --out a name that ends in .html")
    facts = write_statement(what, target, roster, delta)
    if as_json:
        say_json(as_dict(facts))
        return
    for warning in warnings(facts):
        say(f"warning: {warning}")
    say(summary(facts))
    say(rounds(facts))
    say(f"statement {target}, the same for machines {target.with_suffix('.json')}")
