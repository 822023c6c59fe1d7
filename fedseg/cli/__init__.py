"""The `fedseg` command. Every mistake of a person ends in one sentence and exit code 1, never in a traceback.

Each command has its module, which `terminal` gives the application. Heavy libraries are loaded by the commands that
need them, so that `--help` answers at once, without them, too. How things are said and shown is `secagg.terminal`, for
both commands.
"""

from fedseg.cli import (  # noqa: F401
    comparing,
    credentials,
    demonstration,
    encrypted,
    federation,
    images,
    ledger,
    prediction,
    privacy,
    reports,
    searching,
    simulation,
    stating,
    verifying,
    watching,
)
from fedseg.cli.terminal import app, main
from secagg.cli.enrol import enrol_app

app.add_typer(enrol_app, name="enrol")

ORDER = (
    *("new", "plan", "epsilon"),
    *("simulate", "predict", "evaluate", "compare", "search"),
    *("demo", "credentials", "coordinator", "site"),
    *("status", "report", "statement", "verify-run"),
)
"""Commands as people come to them: a study, one machine, many machines, what is left of a run; others follow."""


def _place(name: str) -> int:
    """Where a command stands in `--help`."""
    return ORDER.index(name) if name in ORDER else len(ORDER)


app.registered_commands.sort(key=lambda one: _place(one.name or one.callback.__name__ if one.callback else ""))

__all__ = ["app", "main"]
