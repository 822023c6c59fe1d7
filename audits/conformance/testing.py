"""What all conformance tests share: many p-values, one error, and a planted bug that has to be found each time.

A statistical test of a right product gives a small p-value by chance. `ERROR` is how often one audit may blame a right
product, shared equally by its tests (Bonferroni), so that the room does so less than once in 10,000 runs. Draws are the
seed's, so that a run can be repeated. An exact test has p = 0 or 1. Every audit also runs on planted bugs: where one is
not found, the audit could not have failed, and says "no power".
"""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import stats

from audits.base import Result, Verdict

ERROR = 1e-5
"""Of one audit: the chance that a right product is blamed."""

Tried = Mapping[str, float]
"""Tests of one product by name, each with its p-value."""


def blamed(tried: Tried) -> list[str]:
    """The tests that fail."""
    return [name for name, p in tried.items() if not p >= ERROR / len(tried)]


def exact(right: bool) -> float:
    """The p-value of a test that leaves nothing to chance."""
    return float(right)


def largest(z: NDArray[Any]) -> float:
    """The p-value of the largest of so many standard normal values, in either direction."""
    count = z.size
    return float(min(1.0, count * 2 * stats.norm.sf(np.abs(z).max()))) if count else 1.0


def dispersion(squares: float, degrees: int) -> float:
    """The p-value of a chi-square value, in either direction."""
    return float(min(1.0, 2 * min(stats.chi2.cdf(squares, degrees), stats.chi2.sf(squares, degrees))))


def concluded(
    what: str, tried: Tried, planted: Mapping[str, Callable[[], Tried]], figures: Mapping[str, float | int | str]
) -> Result:
    """A verdict on the product, after the same tests have been made on every planted bug.

    Args:
        what: was tested, to begin a sentence with.
        tried: tests of the product.
        planted: by name of a bug, the same tests with the bug in place.
        figures: of the tests.
    """
    wrong, missed, rows = blamed(tried), list[str](), list[dict[str, float | int | str]]()
    rows += [{"tested": name, "on": "the product", "p": f"{p:.2g}"} for name, p in tried.items()]
    for bug, tests in planted.items():
        found = tests()
        caught = blamed(found)
        missed += [] if caught else [bug]
        rows.append(
            {"tested": ", ".join(caught) or "nothing", "on": f"planted: {bug}", "p": f"{min(found.values()):.2g}"}
        )
    verdict: Verdict = "violated" if wrong else "no power" if missed else "holds"
    says = f"{what}: {len(tried) - len(wrong)} of {len(tried)} tests hold"
    says += f"; not: {', '.join(wrong)}" if wrong else ""
    says += f"; {len(planted) - len(missed)} of {len(planted)} planted bugs are found"
    says += f"; NO POWER against {', '.join(missed)}." if missed else "."
    told = {"tests": len(tried), "error of all tests together": ERROR, "smallest p": float(min(tried.values()))}
    return Result(verdict, says, {**told, **figures}, rows=tuple(rows))
