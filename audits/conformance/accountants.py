"""Epsilon by several accountants, over a grid of studies: they agree within 1 %, and a ledger adds up to them.

Steps with everybody are one Gaussian, whose epsilon is computed here by a closed form. Of steps that draw patients the
PLD of `dp-accounting`, which the product reports, is held against the PRV of Opacus and below the Rényi bound.
"""

import math
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from unittest.mock import patch

from dp_accounting import dp_event
from dp_accounting.rdp import RdpAccountant

from audits.base import Result, Task
from audits.conformance.testing import Tried, concluded, exact
from audits.dp.canary import study_of
from audits.dp.estimators import epsilon_of_mu
from fedseg.budget import charge as charging
from fedseg.errors import BudgetExceededError, PrivacyError
from fedseg.ledger import Entry, Ledger
from fedseg.ledger import released as ledger_released
from fedseg.privacy.accounting import epsilon, gaussian_steps
from fedseg.study import Study

WITHIN = 0.01

QUICK = (
    *((rate, steps, sigma, 1e-5) for rate, steps, sigma in ((0.01, 1000, 1.0), (0.1, 200, 1.5), (0.5, 60, 4.0))),
    *((1.0, steps, sigma, delta) for steps, sigma, delta in ((15, 5.0, 1e-3), (60, 8.0, 1e-5), (1, 0.5, 1e-6))),
    *((0.25, 30, 1.2, delta) for delta in (1e-3, 1e-6)),
)
FULL = tuple(product((0.01, 0.05, 0.2, 0.5, 0.9, 1.0), (1, 30, 300), (0.8, 1.5, 4.0), (1e-3, 1e-6)))

Point = tuple[float, int, float, float]


def audit(task: Task) -> Result:
    """The grid, and the ledgers of whole studies."""
    grid = FULL if task.depth == "full" else QUICK
    tried, furthest = dict[str, float](), 0.0
    for rate, steps, sigma, delta in grid:
        name = f"rate {rate:g}, {steps} steps, noise {sigma:g}, delta {delta:g}"
        task.progress(name)
        apart, right = compared((rate, steps, sigma, delta))
        furthest = max(furthest, apart)
        tried[name] = exact(right)
    tried |= ledgers(task.out)
    bugs = {
        "a rate of half": lambda: _grid_with(lambda rate, steps: (rate / 2, steps)),
        "an epoch left out": lambda: _grid_with(lambda rate, steps: (rate, steps - max(1, steps // 10))),
        "a ledger that charges every second round": lambda: _forgetful(task.out),
    }
    figures = {"studies of the grid": len(grid), "furthest apart": furthest, "allowed": WITHIN}
    return concluded("Accountants and ledgers", tried, bugs, figures)


def compared(point: Point, reported: Callable[[Point], float] | None = None) -> tuple[float, bool]:
    """How far two accountants are apart, relatively, and whether all of them agree; epsilons below 0.001 do."""
    rate, steps, sigma, delta = point
    spent = [gaussian_steps(sigma, rate, steps)]
    first = epsilon(spent, delta) if reported is None else reported(point)
    if rate == 1:
        second, most = epsilon_of_mu(math.sqrt(steps) / sigma, delta, largest=1000.0), math.inf
    else:
        try:
            second = epsilon(spent, delta, "prv")
        except PrivacyError:  # beyond what it can compute
            second = first
        rdp = RdpAccountant()
        rdp.compose(dp_event.PoissonSampledDpEvent(rate, dp_event.GaussianDpEvent(sigma)), steps)
        most = float(rdp.get_epsilon(delta))
    near = math.isclose(first, second, rel_tol=WITHIN, abs_tol=1e-3)
    return abs(first - second) / max(second, 1e-3), near and first <= most * (1 + 1e-6) + 1e-6


def studies() -> dict[str, Study]:
    """Whole studies whose ledgers are filled."""
    return {
        "local, everybody": study_of("local", 2.0, rounds=6),
        "local, a fifth drawn": study_of("local", 4.0, rounds=6, sample_rate=0.2),
        "distributed": study_of("distributed", 2.0, rounds=6, sites=4),
        "distributed, Skellam": study_of("distributed", 4.0, rounds=6, sites=4, more='noise = "skellam"'),
        "svt": study_of("svt", 3.0, rounds=6, more="released = 0.1"),
    }


def ledgers(folder: Path) -> Tried:
    """A study's rounds come to its budget, within 1 % of it and never above, and one round more is refused."""
    tried = {}
    for name, study in studies().items():
        budget = study.privacy.epsilon or 0.0
        spent, refused = charged(study, _path(folder, name))
        tried[f"ledger of {name} comes to its budget"] = exact((1 - WITHIN) * budget <= spent <= budget)
        tried[f"ledger of {name} refuses one round more"] = exact(refused)
    return tried


def charged(study: Study, path: Path) -> tuple[float, bool]:
    """What a ledger says after all rounds of a study, and whether it refuses one more."""
    ledger = Ledger(path)
    for number in range(1, study.study.rounds + 1):
        charging.charge(ledger, study, "site-1", "audit", number)
    spent = charging.spent(ledger, study)
    try:
        charging.charge(ledger, study, "site-1", "audit", study.study.rounds + 1)
    except BudgetExceededError:
        return spent, True
    return spent, False


def _path(folder: Path, name: str) -> Path:
    taken = len(list(folder.glob("*.jsonl")))
    return folder / f"{taken}-{name.split(',')[0]}.jsonl"


def _grid_with(wrong: Callable[[float, int], tuple[float, int]]) -> Tried:
    """The grid where what is reported belongs to other numbers."""

    def reported(point: Point) -> float:
        """Epsilon of those numbers."""
        rate, steps, sigma, delta = point
        rate, steps = wrong(rate, steps)
        return epsilon([gaussian_steps(sigma, rate, steps)], delta) if steps else 0.0

    return {str(point): exact(compared(point, reported)[1]) for point in QUICK[:2]}


def _forgetful(folder: Path) -> Tried:
    with _every_second():
        spent, _ = charged(study_of("local", 2.0, rounds=6), _path(folder, "forgetful"))
    return {"ledger comes to its budget": exact((1 - WITHIN) * 2.0 <= spent <= 2.0)}


@contextmanager
def _every_second() -> Iterator[None]:
    honest = ledger_released

    def half(entries: Iterable[Entry], **kwargs: bool) -> object:
        """Every second line."""
        return honest(list(entries)[::2], **kwargs)

    with patch.object(charging, "released", half):
        yield
