"""What may be spent at most. Whoever reads a ledger gets it from here, without a study and without torch."""

import math
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from fedseg.errors import ConfigError
from fedseg.files import read_text
from fedseg.ledger import Entry, released
from fedseg.privacy.accounting import epsilon

BUDGET = "budget.toml"
"""In a state folder, where a site gives its data set a budget for life."""


@dataclass(frozen=True)
class Cap:
    """What may be spent: a study's budget, or the one of a data set for life.

    Attributes:
        budget: whose, for people.
        remedy: what allows more.
        epsilon, delta: of it.
        unseeded: a seeded study claims nothing and shows what the same steps would cost without a seed.
    """

    budget: str
    remedy: str
    epsilon: float
    delta: float
    unseeded: bool = False

    def spent(self, entries: Iterable[Entry]) -> float:
        """What these entries of one or more ledgers come to."""
        return epsilon(released(entries, unseeded=self.unseeded), self.delta)


def lifetime(state: Path) -> Cap | None:
    """The budget that a site has given a data set for life: `budget.toml` in its state folder; None where it has none.

    Raises:
        ConfigError: the file is no budget.
    """
    path = state / BUDGET
    if not path.is_file():
        return None
    try:
        given = tomllib.loads(read_text(path, "correct it"))
        most, delta = float(given.pop("epsilon")), float(given.pop("delta"))
        if given or not (0 < most < math.inf and 0 < delta < 1):
            raise ValueError
    except (KeyError, TypeError, ValueError, AttributeError):
        raise ConfigError(
            f"{path}: give two lines, such as `epsilon = 10.0` and `delta = 1e-5`, and nothing else"
        ) from None
    return Cap("the lifetime budget of this data set", f"{path} says it", most, delta)
