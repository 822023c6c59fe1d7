"""The `secagg` command: keys, enrolment, what a policy means, a demonstration, a federation, transcripts, marks, logs.

Each command has the module of its name; `terminal` gives them the application and the consoles. Must never: print a
signing key, or show a traceback where a sentence will do.
"""

from secagg.cli import keygen, roster, policy, demo, serve, join, verify_transcript, marks, audit  # noqa: F401, I001
from secagg.cli.enrol import enrol_app
from secagg.cli.terminal import app, main

app.add_typer(enrol_app, name="enrol")

__all__ = ["app", "main"]
