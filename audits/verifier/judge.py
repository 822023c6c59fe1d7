"""How a check says that it does not hold, and how one is switched off to see that something then gets by."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

CHECKS = (
    *(f"T-{i:02}" for i in range(1, 15)),
    *("T-18", "T-19", "T-20", "T-21", "T-22"),
)


class ViolationError(Exception):
    """A check that does not hold."""

    def __init__(self, check: str, sentence: str, place: int | None = None, site: str = "") -> None:
        self.check, self.place, self.site = check, place, site
        where = (f", record {place}" if place is not None else "") + (f", {site}" if site else "")
        super().__init__(f"{check}{where}: {sentence}.")


@dataclass
class Judge:
    """Counts what was looked at by each check; a check in `without` is switched off."""

    without: frozenset[str] = frozenset()
    looked_at: Counter[str] = field(default_factory=Counter)
    not_run: dict[str, str] = field(default_factory=dict)

    def hold(self, check: str, holds: bool, sentence: str, place: int | None = None, site: str = "") -> bool:
        """That it holds.

        Raises:
            ViolationError: it does not, and the check is on.
        """
        self.looked_at[check] += 1
        if not holds and check not in self.without:
            raise ViolationError(check, sentence, place, site)
        return holds
