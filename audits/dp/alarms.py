"""Whether the lower bounds blame right mechanisms, and whether they find bugs that were planted in wrong ones.

Here the studies have seeds, so that each figure is the same in every run.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import stats

from audits.base import Result, Task, worst
from audits.dp import canary, estimators
from audits.dp.canary import DELTA, Planted, Plug, study_of
from audits.dp.judging import ERROR, MADE, SURE, bounds, judge
from fedseg.privacy import dpsgd, samplers
from fedseg.privacy.dpsgd import Grid
from secagg.prg import Stream

CLAIM = 1.0
BUGGY = 4.0
"""The claim of mechanisms with a bug: at 1, 2,000 canaries would not show noise x 0.5 at the error of a verdict."""

RUNS = 100


@contextmanager
def half_the_noise() -> Iterator[None]:
    """The deviation of the noise is half of what is accounted."""
    honest = samplers.discrete_gaussian
    with patch.object(dpsgd, "discrete_gaussian", lambda n, variance, stream: honest(n, variance // 4, stream)):
        yield


@contextmanager
def no_clipping() -> Iterator[None]:
    """Gradients are added as they are; also the grid lets them through."""
    honest = dpsgd.add_clipped

    def add(total: torch.Tensor, gradient: torch.Tensor, clip_norm: float | None, grid: Grid | None = None) -> None:
        """Adds a gradient, however long it is."""
        honest(total, gradient, None if clip_norm is None else 1e30, grid)

    with patch.object(dpsgd, "add_clipped", add), patch.object(Grid, "_too_long", lambda grid, whole: False):
        yield


@contextmanager
def a_tensor_without_noise() -> Iterator[None]:
    """The first tensor of the plug is left out."""
    honest = samplers.discrete_gaussian

    def most(n: int, variance: int, stream: Stream) -> NDArray[np.int64]:
        """Noise as it should be, but for the first tensor."""
        noise = honest(n, variance, stream)
        noise[: Plug(n).tensors[0].stop] = 0
        return noise

    with patch.object(dpsgd, "discrete_gaussian", most):
        yield


PLANTED: Mapping[str, Planted] = {
    "noise x 0.5": half_the_noise,
    "no clipping": no_clipping,
    "one tensor of four without noise": a_tensor_without_noise,
}


def audit(task: Task) -> Result:
    """False alarms of each estimator at 95 %, over seeds; and how often each bug is found at the verdict's error."""
    alarms = _through_the_engine(task) | _by_the_bounds_alone(task)
    found = _bugs(task)
    rows: list[dict[str, float | int | str]] = [
        {"what": f"false alarms of {name}", "runs": runs, "seen": seen, "95 % interval": _interval(seen, runs)}
        for name, (seen, runs) in alarms.items()
    ]
    rows += [
        {"what": f"found: {bug}", "runs": runs, "seen": seen, "95 % interval": _interval(seen, runs)}
        for bug, (seen, runs) in found.items()
    ]
    too_many = [name for name, (seen, runs) in alarms.items() if stats.binom.sf(seen - 1, runs, ERROR) < SURE]
    missed = [bug for bug, (seen, runs) in found.items() if seen < runs]
    most = max(seen / runs for seen, runs in alarms.values())
    often = ", ".join(f"{seen} of {runs} ({bug})" for bug, (seen, runs) in found.items())
    says = (
        f"Of right mechanisms at claim {CLAIM:g}, 95 % bounds lie above the claim in at most {most:.1%} of the runs; "
        f"bugs planted at claim {BUGGY:g} are found in {often}."
    )
    figures: dict[str, float | int | str] = {"error of each bound": ERROR, "error of a verdict": SURE}
    figures |= {f"false alarms, {name}": f"{seen} of {runs}" for name, (seen, runs) in alarms.items()}
    figures |= {f"found, {bug}": f"{seen} of {runs}" for bug, (seen, runs) in found.items()}
    figures |= {"first seed": task.seed}
    verdict = worst(["violated" if too_many else "holds", "no power" if missed else "holds"])
    return Result(verdict, says, figures, rows=tuple(rows))


def _through_the_engine(task: Task) -> dict[str, tuple[int, int]]:
    """Small games on the real code: 200 canaries, one round."""
    seen: dict[str, int] = {}
    for run in range(RUNS):
        if run % 20 == 0:
            task.progress(f"right mechanism, seed {run} of {RUNS}")
        game = judge(_played(task, run, CLAIM, 200, nullcontext))
        for name, bound in game.bounds.items():
            seen[name] = seen.get(name, 0) + (bound > game.claim)
    return {f"{name}, on the engine": (count, RUNS) for name, count in seen.items()}


def _by_the_bounds_alone(task: Task) -> dict[str, tuple[int, int]]:
    """The same with 5,000 canaries whose scores are drawn as the exact mechanism has them."""
    runs = 2000 if task.depth == "full" else 200
    mu, seen = estimators.mu_of_epsilon(CLAIM, DELTA), dict[str, int]()
    for run in range(runs):
        if run % 50 == 0:
            task.progress(f"right scores, seed {run} of {runs}")
        draws = np.random.default_rng([task.seed, run, 5000])
        present = draws.random(5000) < 0.5
        scores = draws.normal(size=5000) + mu * present
        guesses = estimators.guesses_of(scores, present, 5000 // MADE)
        counts = estimators.counts_of(scores, present, mu / 2)
        for name, bound in bounds(guesses, counts, DELTA, ERROR, exact=True).items():
            seen[name] = seen.get(name, 0) + (bound > CLAIM)
    return {f"{name}, 5,000 exact scores": (count, runs) for name, count in seen.items()}


def _bugs(task: Task) -> dict[str, tuple[int, int]]:
    """How often the verdict is "violated" with each bug, at the verdict's own error."""
    runs, found = 20 if task.depth == "full" else 3, {}
    for bug, planted in PLANTED.items():
        task.progress(f"planted: {bug}")
        verdicts = [judge(_played(task, run, BUGGY, 2000, planted)).verdict for run in range(runs)]
        found[bug] = (verdicts.count("violated"), runs)
    return found


def _played(task: Task, run: int, claim: float, m: int, planted: Planted) -> canary.Played:
    seed = task.seed * 1000 + run
    folder = Path(task.out, "games", f"{m}-{run}-{getattr(planted, '__name__', '')}")
    folder.mkdir(parents=True)
    return canary.play_local(study_of("local", claim, rounds=1, seed=seed), m, seed, folder, planted=planted)


def _interval(seen: int, runs: int) -> str:
    low, high = estimators.clopper_pearson(seen, runs, ERROR)
    return f"{low:.1%} to {high:.1%}"
