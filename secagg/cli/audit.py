"""`secagg audit`: whether an audit log is what was written, and what is in it."""

from pathlib import Path
from typing import Annotated

import typer

from secagg.cli.terminal import app, sentences
from secagg.errors import ConfigError
from secagg.terminal import COULD_NOT_RUN, AsJson, Verifying, say, say_json


@app.command(cls=Verifying)
def audit(
    file: Annotated[Path, typer.Argument(help="An audit log (audit.jsonl).", show_default=False)],
    head: Annotated[
        str, typer.Option(help="A head that you wrote down: it must be in the chain, or the end was cut off.")
    ] = "",
    last: Annotated[int, typer.Option(help="Show so many of the last entries.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Verify the chain of an audit log.

    Ends with 0 where it holds; 1 where a line was changed or is missing; 3 where the command could not run.
    """
    from secagg.audit import START, entries

    with sentences(1 if file.is_file() else COULD_NOT_RUN):
        found = entries(file)
        if head and head not in {START, *(entry.head for entry in found)}:
            raise ConfigError(f"{file}: {head} is not in the chain: the file was cut off before it, or is another one")
    now = found[-1].head if found else START
    shown = found[len(found) - min(last, len(found)) :]
    if as_json:
        say_json({"entries": len(found), "head": now, "last": [vars(entry) for entry in shown]})
        return
    for entry in shown:
        about = ", ".join(f"{name} {value}" for name, value in entry.about.items())
        say(f"{entry.at} {entry.who}: {entry.what}" + (f" ({about})" if about else ""))
    say(f"{len(found)} entries, and the chain holds; head {now}")
