"""All audits and commands, in the order of the page.

Each room exports `AUDITS`, and `COMMANDS` where it has commands beside them (typer functions by name). It imports what
is heavy inside `run` only, so that the list prints at once.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any

from audits.base import Audit

ROOMS = (
    *("claims", "supply", "verifier", "transcripts"),
    *("dp", "conformance", "attacks", "model", "crypto", "mutants", "regulatory"),
)


def _rooms() -> Iterator[ModuleType]:
    """Those that are built."""
    return (import_module(f"audits.{room}") for room in ROOMS if find_spec(f"audits.{room}"))


AUDITS: tuple[Audit, ...] = tuple(audit for room in _rooms() for audit in getattr(room, "AUDITS", ()))
COMMANDS: dict[str, Callable[..., Any]] = {
    name: command for room in _rooms() for name, command in getattr(room, "COMMANDS", {}).items()
}


def named(names: list[str]) -> list[Audit]:
    """Audits by name, or all of a room by the room's name. LookupError says which names there are."""
    for name in names:
        if not any(_is(audit, name) for audit in AUDITS):
            raise LookupError(f"no audit or room is called {name}; `python -m audits list` shows them")
    return [audit for audit in AUDITS if any(_is(audit, name) for name in names)]


def _is(audit: Audit, name: str) -> bool:
    return audit.name == name or audit.name.startswith(name + ".")
