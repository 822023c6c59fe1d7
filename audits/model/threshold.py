"""2t > n + c forbids both kinds of share, for all n at once: a proof by z3, and the counterexample without it.

Two sets U3 that are both released need t attestations each. Clients are counted, not listed: each kind of client
(honest or not; attests the first set, the second, both, none) is a number of clients, so the proof is one of linear
arithmetic and holds for every n.
"""

from typing import Any

from audits.base import Result, Task, Unable

LARGEST = 256


def run(task: Task) -> Result:
    """Prove, refute without the condition, and hold the code's formula against it."""
    try:
        import z3
    except ImportError:
        raise Unable("z3-solver is not installed; pip install z3-solver") from None
    from secagg.policy import Policy

    task.progress("z3")
    rows, found = [], {}
    for name, (formulas, wanted) in claims(z3).items():
        solver = z3.Solver()
        solver.add(*formulas)
        outcome = str(solver.check())
        model = ""
        if outcome == "sat":
            values = solver.model()
            named = {str(one): values[one].as_long() for one in values.decls()}
            model = ", ".join(
                f"{one} = {named[one]}" for one in dict.fromkeys(("n", "c", "t", *sorted(named))) if named[one]
            )
        found[name] = outcome == wanted
        rows.append({"statement": name, "z3 says": outcome, "expected": wanted, "example": model})
    formula = all(
        Policy.threshold.fget(_Sizes(n, c)) == (n + c) // 2 + 1  # type: ignore[attr-defined]
        for n in range(3, LARGEST + 1)
        for c in range(1, n)
    )
    example = next(row["example"] for row in rows if row["expected"] == "sat")
    figures = {
        "statements": len(rows),
        "as_expected": sum(found.values()),
        "n_and_c_compared": LARGEST * (LARGEST - 1) // 2,
    }
    if not all(found.values()) or not formula:
        bad = next((name for name, right in found.items() if not right), "the policy's threshold is another formula")
        return Result("violated", f"Not so: {bad}.", figures, rows=tuple(rows))
    says = (
        "For all n, c and t with 2t > n + c no two sets are released, and of no client both kinds of share are known; "
        f"without it: {example}. The policy's t is the least such number."
    )
    return Result("holds", says, figures, rows=tuple(rows))


class _Sizes:
    """What `Policy.threshold` reads."""

    def __init__(self, clients: int, max_corrupt: int) -> None:
        self.clients, self.max_corrupt = clients, max_corrupt


def claims(z3: Any) -> dict[str, tuple[list[Any], str]]:
    """Formulas, each with what z3 has to say: unsat for what must not be, sat for what has an example."""
    n, c, t = z3.Ints("n c t")
    first, second, both, none = z3.Ints("honest_first honest_second honest_both honest_none")
    corrupt_first, corrupt_second = z3.Ints("corrupt_first corrupt_second")
    sizes = [n >= 3, c >= 1, c < n, t >= 1, t <= n, first >= 0, second >= 0, both >= 0, none >= 0]
    sizes += [first + second + both + none == n - c]
    sizes += [corrupt_first >= 0, corrupt_first <= c, corrupt_second >= 0, corrupt_second <= c]
    quorums = [first + both + corrupt_first >= t, second + both + corrupt_second >= t]
    once = [both == 0]
    safe, least = 2 * t > n + c, t == (n + c) / 2 + 1  # of integers: the division rounds down
    # b of u: t shares, or its own release; s of u: t shares. The corrupt hold theirs of both. Each release follows a
    # quorum of attestations, and one client releases for one set.
    b, s = z3.Ints("honest_release_b honest_release_s")
    shares = [b >= 0, s >= 0, b <= first + both, s <= second + both, b >= 1, s + c >= t]
    return {
        "two quorums, and no honest client in both, with 2t > n + c": ([*sizes, *quorums, *once, safe], "unsat"),
        "both kinds of share of an honest client, with 2t > n + c": (
            [*sizes, *quorums, *once, *shares, safe],
            "unsat",
        ),
        "two groups of t - c honest members are disjoint, with 2t > n + c": (
            [n >= 3, c >= 1, c < n, t <= n, safe, 2 * (t - c) <= n - c],
            "unsat",
        ),
        "t = floor((n + c) / 2) + 1 does not fulfil it": ([n >= 3, c >= 1, c < n, least, z3.Not(safe)], "unsat"),
        "a smaller t fulfils it": ([n >= 3, c >= 1, c < n, least, 2 * (t - 1) > n + c], "unsat"),
        "both kinds of share of one honest client, with a majority t, but 2t <= n + c": (
            [*sizes, *quorums, *once, *shares, z3.Not(safe), n <= 4, 2 * t > n],
            "sat",
        ),
        "two quorums where a client signs both, with 2t > n + c": ([*sizes, *quorums, safe, n <= 4, both >= 1], "sat"),
    }
