"""The application of the `secagg` command."""

from contextlib import AbstractContextManager

from secagg import kernel, terminal
from secagg.terminal import App, any_code_page, versioned

app = App("Secure aggregation against a server that lies: vectors are added, and nobody sees any one of them.")
versioned(app, "secagg", lambda: f" (passes over vectors: {'compiled kernel' if kernel.compiled else 'numpy'})")


def main() -> None:
    """Entry point of the `secagg` command."""
    any_code_page()
    with terminal.sentences("secagg", extra="rpc"):
        app()


def sentences(status: int = 1) -> AbstractContextManager[None]:
    """Ends the command with one sentence and this status where something expected went wrong."""
    return terminal.sentences("secagg", status)
