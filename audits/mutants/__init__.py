"""Planted bugs, each killed by the test or audit that is named for it; a survivor is a finding.

The lists are data: privacy.toml and protocol.toml are those of the design, between_rounds.toml is the project's own. An
edit that does not apply any more is an error, so that they stay edits of the code that is there.
"""

from collections.abc import Sequence
from hashlib import sha256
from typing import Annotated

import typer

from audits.base import Audit, Result, Task
from audits.mutants.patches import Mutant, mutants
from audits.mutants.running import Outcome, main, tried

CHEAP, BUDGET = 3.0, 45.0
"""Seconds of one core: of a detector in the sample, and of all of it."""


def sample(seed: int) -> list[Mutant]:
    """Some of the cheap ones, in an order that follows from a seed."""
    cheap = [mutant for mutant in mutants().values() if mutant.seconds <= CHEAP]
    chosen, left = [], BUDGET
    for mutant in sorted(cheap, key=lambda one: sha256(f"{seed}/{one.name}".encode()).digest()):
        left -= 2 * mutant.seconds  # once without it
        if left < 0:
            break
        chosen.append(mutant)
    return sorted(chosen, key=lambda one: one.number)


def run_sample(task: Task) -> Result:
    """A seeded sample of the cheap ones."""
    return _result(sample(task.seed), task)


def run_all(task: Task) -> Result:
    """Every one."""
    return _result(list(mutants().values()), task)


def _result(chosen: Sequence[Mutant], task: Task) -> Result:
    def told(outcome: Outcome) -> None:
        """Say what is tried."""
        task.progress(outcome.mutant.name if outcome.mutant else outcome.detector.split("::")[-1])

    outcomes = tried(chosen, told)
    late = [one for one in outcomes if one.late]
    wrong = [one for one in outcomes if not one.as_it_should and not one.late]
    survived = [one for one in wrong if one.mutant is not None]
    broken = [one for one in wrong if one.mutant is None]
    rows = tuple(
        {
            "number": one.mutant.number,
            "mutant": one.mutant.says,
            "file": one.mutant.file,
            "detector": one.detector.split("/")[-1],
            "killed": "yes" if one.as_it_should else "NO",
            "failing line": one.says[:300],
        }
        for one in outcomes
        if one.mutant is not None
    )
    every = len(mutants())
    figures = {
        "mutants": len(chosen),
        "of": every,
        "killed": len(chosen) - len(survived),
        "detectors": len({one.detector for one in outcomes}),
        "detectors_that_pass_unmutated": sum(one.mutant is None and one.as_it_should for one in outcomes),
        "seconds_of_one_core": round(sum(one.took for one in outcomes), 1),
        "seed": task.seed,
    }
    if broken:
        says = f"A detector fails on the code as it is: {broken[0].detector}: {broken[0].says[:200]}"
        return Result("violated", says, figures, rows=rows)
    if survived:
        first = survived[0]
        says = f"{len(survived)} of {len(chosen)} planted bugs survive, the first: {first.detector} on "
        says += f"{first.mutant.name if first.mutant else ''}: {first.says[:200]}"
        return Result("violated", says, figures, rows=rows)
    if late:
        says = f"The machine was too busy to tell: {late[0].detector} {late[0].says}; run it again when it is not."
        return Result("no power", says, figures, rows=rows)
    says = (
        f"{len(chosen)} of {every} planted bugs are each killed by the detector that is named for it, for its reason."
    )
    return Result("holds", says, figures, rows=rows)


def command(
    names: Annotated[
        list[str] | None, typer.Argument(metavar="NAME...", help="Mutants; all where none is named.")
    ] = None,
) -> None:
    """Planted bugs and whether each is killed by its detector, with the failing line."""
    raise typer.Exit(main(names or []))


AUDITS = (
    Audit(
        "mutants.sample",
        "a seeded sample of planted bugs, each killed by its named detector",
        (),
        {"quick": 60},
        run_sample,
    ),
    Audit("mutants.all", "every planted bug is killed by its named detector", (), {"full": 300}, run_all),
)
COMMANDS = {"mutants": command}
