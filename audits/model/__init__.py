"""Models of the protocol whose every state is visited, a proof for all n, and the real machine made to follow."""

import itertools
from collections.abc import Mapping
from typing import Any

from audits.base import Audit, Result, Task, Unable
from audits.model import between, check, replaying, threshold, unmasking

Outcomes = dict[str, tuple[bool, bool, int, str]]
"""By case: attack found, attack wanted, states, the events of the attack."""


def _cases(outcomes: Outcomes, what: str) -> Result:
    """A result of cases."""
    rows = tuple(
        {
            "case": name,
            "outcome": "attack found" if found else "holds",
            "expected": "attack found" if wanted else "holds",
            "states": states,
            "attack": told,
        }
        for name, (found, wanted, states, told) in outcomes.items()
    )
    states = sum(of for _, _, of, _ in outcomes.values())
    wrong = [name for name, (found, wanted, _, _) in outcomes.items() if found != wanted]
    attacks = sum(wanted for _, wanted, _, _ in outcomes.values())
    figures: dict[str, Any] = {"cases": len(outcomes), "attacks_wanted": attacks, "states_visited": states}
    if wrong:
        told = outcomes[wrong[0]]
        says = f"{what}: {wrong[0]}: {'attack found: ' + told[3] if told[0] else 'the attack is not found'}."
        return Result("violated", says, figures, rows=rows)
    says = f"{what}: it holds in all of {states} states, and each of {attacks} attacks is found without its defence."
    return Result("holds", says, figures, rows=rows)


def run_between(task: Task) -> Result:
    """The machine between the rounds by the explorer, and by spin, where it is there: at full depth in every case."""
    cases = {**between.CASES, **(between.LONG if task.depth == "full" else {})}
    outcomes: Outcomes = {}
    for name, case in cases.items():
        task.progress(name)
        found = between.explored(case.rules, case.kinds)
        outcomes[name] = (found.attack is not None, case.attack, found.states, "; ".join(found.attack or ()))
    by_spin = check.CASES if task.depth == "full" else {name: check.CASES[name] for name in check.SECOND_OPINION}
    outcomes |= _by_spin(task, by_spin)
    return _cases(outcomes, "Between the rounds")


def run_unmasking(task: Task) -> Result:
    """Attesting and releasing, by the explorer, and by spin, where it is there."""
    outcomes: Outcomes = {}
    for name, (rules, wanted) in unmasking.CASES.items():
        task.progress(name)
        found = unmasking.explored(rules)
        outcomes[name] = (found.attack is not None, wanted, found.states, "; ".join(found.attack or ()))
    outcomes |= _by_spin(task, check.UNMASKING)
    return _cases(outcomes, "Unmasking")


def _by_spin(task: Task, cases: Mapping[str, check.Case]) -> Outcomes:
    """The second opinion; nothing where spin or gcc is not there."""
    outcomes: Outcomes = {}
    for name, case in cases.items() if check.installed() else ():
        task.progress(f"spin: {name}")
        attack, states, _ = check.check(case)
        if attack is None:
            raise Unable(f"spin came to no end on {name}")
        outcomes[f"spin: {name}"] = (attack, case.attack, states, "")
    return outcomes


def run_replay(task: Task) -> Result:
    """The real machine of marks beside the specification's, over every history of a few round starts."""
    pairs: list[tuple[tuple[replaying.Start, ...], frozenset[int]]]
    pairs = [((replaying.FIRST, second), frozenset[int]()) for second in replaying.KINDS.values()]
    if task.depth == "full":
        pairs += [(starts, frozenset(chosen)) for starts, _ in pairs for chosen in ((0,), (1,), (0, 1))]
        names = ("next round", "new run on the same model", "other project on the same model")
        for two in itertools.combinations(names, 2):
            pairs.append(((replaying.FIRST, *(replaying.KINDS[name] for name in two)), frozenset()))
    rows, states, accepted, refused = [], 0, 0, 0
    checks: dict[str, int] = {}
    for starts, private in pairs:
        task.progress(f"{len(starts)} starts")
        followed = replaying.follow(starts, private)
        if followed.difference:
            return Result("violated", f"The store does not follow the specification: {followed.difference}.", {})
        states, accepted, refused = states + followed.states, accepted + followed.accepted, refused + followed.refused
        checks |= {name: checks.get(name, 0) + count for name, count in followed.checks.items()}
        rows.append({"starts": len(starts), "private": len(private), "states": followed.states})
    figures = {"histories": len(pairs), "states": states, "events_accepted": accepted, "events_refused": refused}
    figures |= {f"refused_by_{name}": count for name, count in sorted(checks.items())}
    says = (
        f"In {states} states of the store the {accepted} events that the specification allows were accepted, and the "
        f"{refused} that it forbids were refused by the check that it names."
    )
    if set(checks) != {"C-03", "C-05", "C-14", "C-24", "C-26"}:
        return Result("no power", f"Only {', '.join(sorted(checks))} ever refused anything.", figures)
    return Result("holds", says, figures, rows=tuple(rows))


AUDITS = (
    Audit(
        "model.between-rounds",
        "every state of two round starts between honest sites and a server that lies",
        (),
        {"quick": 12, "full": 95},
        run_between,
    ),
    Audit(
        "model.unmasking",
        "every way to attest and release: never both kinds of share of one client, one set of inputs",
        (),
        {"quick": 17, "full": 40},
        run_unmasking,
    ),
    Audit(
        "model.threshold",
        "a proof by z3 that 2t > n + c suffices for all n, and what happens without it",
        (),
        {"quick": 1, "full": 1},
        threshold.run,
    ),
    Audit(
        "model.replay",
        "every transition of the specification's machine, made on the real one",
        (),
        {"quick": 4, "full": 60},
        run_replay,
    ),
)
