"""Numbers that the estimators have to give: printed in papers, or derived by hand from closed forms."""

import math
from collections.abc import Callable
from typing import NamedTuple

from audits.base import Result, Task
from audits.dp.estimators import (
    Counts,
    Guesses,
    clopper_pearson,
    delta_of_mu,
    epsilon_of_mu,
    f_one_run_rejects,
    from_rates,
    gaussian,
    gaussian_trade_off,
    mu_of_epsilon,
    one_run,
    one_run_p_value,
    pure_trade_off,
)

JUO = "Jagielski, Ullman and Oprea 2020"
SNJ = "Steinke, Nasr and Jagielski 2023"


class Known(NamedTuple):
    """A number that is known.

    Attributes:
        what: is computed.
        source: printed where, or derived how.
        value: that it is.
        places: digits after the point that count; papers round or cut the last one, so that one unit of it is allowed.
        found: computes it.
    """

    what: str
    source: str
    value: float
    places: int
    found: Callable[[], float]


def least_error(guesses: Guesses, mu: float) -> float:
    """The smallest error at which the f-DP bound rejects mu; bisected."""
    low, high = 0.0, 1.0
    while high - low > 1e-9:
        middle = (low + high) / 2
        rejected = f_one_run_rejects(guesses, gaussian_trade_off(mu), middle)
        low, high = (low, middle) if rejected else (middle, high)
    return high


def _phi(x: float) -> float:
    return (1 + math.erf(x / math.sqrt(2))) / 2


KNOWN = (
    Known(
        "p-value of 75 right of 100 at epsilon ln 3, delta 0",
        f"{SNJ}, appendix D",
        0.553,
        3,
        lambda: one_run_p_value(Guesses(100, 100, 75), math.log(3), 0.0),
    ),
    Known(
        "one-run, 75 right of 100, delta 0",
        f"{SNJ}, appendix D",
        0.702,
        3,
        lambda: one_run(Guesses(100, 100, 75), 0.0, 0.05),
    ),
    Known(
        "one-run, 75 right of 100, delta 1e-4",
        f"{SNJ}, appendix D",
        0.699,
        3,
        lambda: one_run(Guesses(100, 100, 75), 1e-4, 0.05),
    ),
    Known(
        "one-run, 75 right of 100 guessed of 1,000, delta 1e-4",
        f"{SNJ}, appendix D",
        0.673,
        3,
        lambda: one_run(Guesses(1000, 100, 75), 1e-4, 0.05),
    ),
    Known(
        "one-run, 1,439 right of 1,510 guessed of 100,000, delta 1e-5",
        f"{SNJ}, section 7",
        2.675,
        3,
        lambda: one_run(Guesses(100_000, 1510, 1439), 1e-5, 0.05),
    ),
    Known(
        "one-run, 9,820 right of 10,000, delta 1e-5",
        f"{SNJ}, section 7",
        3.87,
        2,
        lambda: one_run(Guesses(10_000, 10_000, 9820), 1e-5, 0.05),
    ),
    Known(
        "rates, never wrong in 500 trials of each kind, 99 %",
        f"{JUO}: the largest bound",
        4.54,
        2,
        lambda: from_rates(Counts(500, 500, 0, 500), 0.0, 0.01),
    ),
    Known(
        "one-run, all of 16 right, delta 0",
        "derived: -ln(0.05^(-1/16) - 1)",
        -math.log(0.05 ** (-1 / 16) - 1),
        3,
        lambda: one_run(Guesses(16, 16, 16), 0.0, 0.05),
    ),
    Known(
        "one-run, all of 2,000 right, delta 0",
        "derived: ln(r / 3) = 6.50 within 0.01, since ln 20 = 2.9957",
        math.log(2000 / -math.log(0.05)),
        2,
        lambda: one_run(Guesses(2000, 2000, 2000), 0.0, 0.05),
    ),
    Known(
        "delta term alone: p-value of 1 right of 1 at epsilon 0, delta 0.01, 10 canaries",
        "derived: 1/2 + 2 x 10 x 0.01 x (1 - 1/2)",
        0.6,
        9,
        lambda: one_run_p_value(Guesses(10, 1, 1), 0.0, 0.01),
    ),
    Known(
        "upper end of 0 of 20, both sides 5 %",
        "derived: 1 - 0.025^(1/20)",
        1 - 0.025 ** (1 / 20),
        9,
        lambda: clopper_pearson(0, 20, 0.05)[1],
    ),
    Known(
        "upper end of 1 of 2, both sides 5 %",
        "derived: 1 - (1 - x)^2 - 2 x (1 - x) = 0.975, so x = sqrt 0.975",
        math.sqrt(0.975),
        9,
        lambda: clopper_pearson(1, 2, 0.05)[1],
    ),
    Known(
        "delta of 1-GDP at epsilon 0",
        "derived: 2 Phi(1/2) - 1",
        2 * _phi(0.5) - 1,
        9,
        lambda: delta_of_mu(1.0, 0.0),
    ),
    Known(
        "delta of 1-GDP at epsilon 1",
        "Balle and Wang 2018, theorem 8: Phi(-1/2) - e Phi(-3/2)",
        _phi(-0.5) - math.e * _phi(-1.5),
        9,
        lambda: delta_of_mu(1.0, 1.0),
    ),
    Known("epsilon of mu and back", "derived: 2", 2.0, 6, lambda: epsilon_of_mu(mu_of_epsilon(2.0, 1e-5), 1e-5)),
    Known(
        "GDP, never wrong in 500 trials of each kind, 99 %",
        "derived: mu = -2 z(1 - 0.005^(1/500)), turned into epsilon at 1e-5",
        epsilon_of_mu(4.613, 1e-5),
        1,
        lambda: gaussian(Counts(500, 500, 0, 500), 1e-5, 0.01),
    ),
    Known(
        "f-DP, one canary guessed right, mu 1: the error at which it is rejected",
        "derived: the best test of one coin is right Phi(mu / 2) of the time",
        _phi(0.5),
        6,
        lambda: least_error(Guesses(1, 1, 1), 1.0),
    ),
    Known(
        "f-DP, one canary guessed right, mu 3",
        "derived: Phi(3 / 2)",
        _phi(1.5),
        6,
        lambda: least_error(Guesses(1, 1, 1), 3.0),
    ),
    Known(
        "f-DP, both of two canaries guessed right, mu 0",
        "derived: two fair coins; by the walk p, 2 p, 4 p",
        0.25,
        6,
        lambda: least_error(Guesses(2, 2, 2), 0.0),
    ),
    Known(
        "pure trade-off at epsilon ln 3, delta 0: accepts with 3/4 there, so with 1/4 at least elsewhere",
        "derived: min(3 y, 1 - (1 - y) / 3) = 3/4 at y = 1/4",
        0.25,
        9,
        lambda: pure_trade_off(math.log(3), 0.0)(0.75),
    ),
)


def audit(task: Task) -> Result:
    """Each number again."""
    rows, wrong = [], []
    for known in KNOWN:
        found = known.found()
        right = abs(found - known.value) <= 10.0**-known.places
        wrong += [] if right else [known.what]
        rows.append(
            {"what": known.what, "known": f"{known.value:.4g}", "found": f"{found:.4g}", "source": known.source}
        )
    says = f"{len(KNOWN) - len(wrong)} of {len(KNOWN)} published or derived numbers are reproduced"
    says += f"; not: {', '.join(wrong)}" if wrong else " to the last digit that is known."
    printed = sum("derived" not in known.source for known in KNOWN)
    figures = {"numbers": len(KNOWN), "printed in papers": printed, "reproduced": len(KNOWN) - len(wrong)}
    return Result("violated" if wrong else "holds", says, figures, rows=tuple(rows))
