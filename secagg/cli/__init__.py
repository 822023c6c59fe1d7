"""The `secagg` command: keys, a roster, what a policy means, a demonstration, a federation, transcripts, marks, logs.

Each command has the module of its name; `terminal` gives them the application and the consoles. Must never: print a
signing key, or show a traceback where a sentence will do.
"""

from secagg.cli import keygen, roster, policy, demo, serve, join, verify_transcript, marks, audit  # noqa: F401, I001
from secagg.cli.terminal import app, main

__all__ = ["app", "main"]
