"""Mutants tried against their detectors, in a copy of the tree: `python -m audits mutants [NAME...]`."""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from audits.mutants.patches import ROOT, Mutant, PatchError, mutants

LEFT_OUT = shutil.ignore_patterns(
    ".git", ".venv", "build", "dist", "runs", "shared", ".mypy_cache", ".ruff_cache", ".hypothesis", "*.egg-info"
)
PATIENCE = 600.0
"""Seconds of wall time that a detector may take, on a machine that is shared."""


@dataclass(frozen=True)
class Outcome:
    """What became of one mutant, or of a detector on the unmutated tree (mutant None).

    Attributes:
        mutant: whose.
        detector: what ran.
        as_it_should: the mutant was killed by it, for its reason; without one, it passed.
        says: the failing line and its error, or why there is none.
        took: seconds of one core.
        late: it was ended before it had an answer, which says nothing of the code: a busy machine does that.
    """

    mutant: Mutant | None
    detector: str
    as_it_should: bool
    says: str
    took: float
    late: bool = False


class Bench:
    """A copy of the tree, and the process that tries mutants in it."""

    def __init__(self, folder: Path) -> None:
        self.tree, self._scratch = folder / "tree", folder / "scratch"
        shutil.copytree(ROOT, self.tree, ignore=LEFT_OUT)
        self._scratch.mkdir()
        environment = {
            **os.environ,
            "PYTHONPATH": str(self.tree),
            "PYTHONDONTWRITEBYTECODE": "1",
            "OMP_NUM_THREADS": "1",
            "FEDSEG_DATA": os.environ.get("FEDSEG_DATA", str(ROOT.parent / "shared" / "data")),
        }
        self._worker = subprocess.Popen(
            [sys.executable, "-m", "audits.mutants.worker", str(self._scratch)],
            cwd=self.tree,
            env=environment,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._asked, self._answers = cast(IO[str], self._worker.stdin), cast(IO[str], self._worker.stdout)

    def close(self) -> None:
        """End the process."""
        self._worker.communicate()

    def detected(self, detector: str, mutant: Mutant | None = None) -> dict[str, Any]:
        """Run a detector, on the tree as it is or mutated.

        Raises:
            PatchError: the mutant does not apply.
        """
        job = {
            "texts": mutant.patched(self.tree) if mutant else {},
            "detector": detector,
            "seconds": PATIENCE,
            "heavy": "tests/fedseg" in detector,
        }
        print(json.dumps(job), file=self._asked, flush=True)
        answer: dict[str, Any] = json.loads(self._answers.readline() or '{"outcome": "error", "says": "gone"}')
        return answer


@contextmanager
def bench() -> Iterator[Bench]:
    """A bench in a folder that is removed again."""
    with tempfile.TemporaryDirectory(prefix="mutants-") as folder:
        made = Bench(Path(folder))
        try:
            yield made
        finally:
            made.close()


def tried(chosen: Sequence[Mutant], told: Callable[[Outcome], None] = lambda outcome: None) -> list[Outcome]:
    """Each detector on the tree as it is, then each mutant under its detector.

    Args:
        chosen: the mutants.
        told: called with every outcome as it comes.
    """
    outcomes: list[Outcome] = []

    def note(outcome: Outcome) -> None:
        """Keep it, and tell."""
        outcomes.append(outcome)
        told(outcome)

    with bench() as on:
        for detector in dict.fromkeys(mutant.detector for mutant in chosen):
            answer = on.detected(detector)
            passed, late = (answer["outcome"] == one for one in ("passed", "late"))
            note(Outcome(None, detector, passed, _said(answer), answer.get("took", 0.0), late))
        for mutant in chosen:
            try:
                answer = on.detected(mutant.detector, mutant)
            except PatchError as error:
                note(Outcome(mutant, mutant.detector, False, str(error), 0.0))
                continue
            said = _said(answer)
            killed = answer["outcome"] == "failed" and mutant.shows in said
            late = answer["outcome"] == "late"
            note(Outcome(mutant, mutant.detector, killed, said, answer.get("took", 0.0), late))
    return outcomes


def _said(answer: dict[str, Any]) -> str:
    if answer["outcome"] == "passed":
        return "passes"
    return " | ".join(filter(None, [answer.get("line", ""), answer.get("says", "")])) or answer["outcome"]


def main(names: Sequence[str]) -> int:
    """`python -m audits mutants [NAME...]`: 0 where each mutant is killed by its detector, else 1; 2: no such name."""
    every = mutants()
    if unknown := [name for name in names if name not in every]:
        print(f"no mutant is called {unknown[0]}; there are {', '.join(every)}")
        return 2

    def tell(outcome: Outcome) -> None:
        """A line of an outcome."""
        what = "unmutated" if outcome.mutant is None else f"{outcome.mutant.number:2} {outcome.mutant.name}"
        right = "passes" if outcome.mutant is None else "killed"
        print(f"{right if outcome.as_it_should else 'WRONG'}  {what:34} {outcome.took:5.1f} s  {outcome.detector}")
        if outcome.mutant is not None or not outcome.as_it_should:
            print(f"        {outcome.says}", flush=True)

    outcomes = tried([every[name] for name in names or every], tell)
    wrong = [outcome for outcome in outcomes if not outcome.as_it_should]
    print(f"{len(outcomes) - len(wrong)} of {len(outcomes)} as they should be, {sum(o.took for o in outcomes):.0f} s")
    return int(bool(wrong))


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
