"""All audits and commands, in the order of the page.

Each room exports `AUDITS`, or `COMMANDS` (typer functions by name), or both. It imports what is heavy in `run` only,
so that the list prints at once.
"""

from collections.abc import Callable, Iterator
from importlib import import_module
from types import ModuleType
from typing import Any

from audits.base import Audit, Depth

ROOMS = (
    *("claims", "supply", "verifier", "transcripts"),
    *("dp", "conformance", "attacks", "model", "crypto", "mutants", "regulatory"),
)


def _rooms() -> Iterator[ModuleType]:
    return (import_module(f"audits.{room}") for room in ROOMS)


AUDITS: tuple[Audit, ...] = tuple(audit for room in _rooms() for audit in getattr(room, "AUDITS", ()))
COMMANDS: dict[str, Callable[..., Any]] = {
    name: command for room in _rooms() for name, command in getattr(room, "COMMANDS", {}).items()
}


def at(depth: Depth) -> list[Audit]:
    """All audits that are run at a depth."""
    return [audit for audit in AUDITS if depth in audit.seconds]


def named(names: list[str], depth: Depth = "full") -> list[Audit]:
    """Audits by name, and those of a room by the room's name that are run at this depth.

    LookupError where there is none of a name.
    """
    chosen = [audit for name in names for audit in _of(name, depth)]
    return [audit for audit in AUDITS if audit in chosen]


def _of(name: str, depth: Depth) -> list[Audit]:
    found = [audit for audit in AUDITS if audit.name == name] or [
        audit for audit in at(depth) if audit.name.startswith(name + ".")
    ]
    if not found:
        raise LookupError(f"no audit or room is called {name}; `python -m audits list` shows them")
    return found
