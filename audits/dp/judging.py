"""From a game to a verdict: lower bounds with their ceilings, for all canaries and for those of each tensor.

Two errors are used. Figures are at `ERROR`, as papers give them: of a mechanism whose epsilon is exact, one figure in
twenty may lie above it. The verdict is at `SURE`, so that all of `quick` together blames a right mechanism less often
than once in a thousand runs. `NO POWER` is said where even an attacker who is always right would prove less than the
claim at that error: such an audit could not have failed.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from audits.base import Verdict, worst
from audits.dp import estimators
from audits.dp.canary import Played
from audits.dp.estimators import Counts, Guesses

ERROR = 0.05
SURE = 1e-6

MADE = 5
"""One of so many canaries is guessed; the attacker abstains from the others."""

ESTIMATORS = ("one-run", "f-DP", "GDP", "rates")


def bounds(guesses: Guesses, counts: Counts, delta: float, error: float, exact: bool) -> dict[str, float]:
    """The lower bounds by name; those that need Gaussian noise only where there is nothing else."""
    found = {
        "one-run": estimators.one_run(guesses, delta, error),
        "f-DP": estimators.f_one_run(guesses, delta, error)
        if exact
        else estimators.f_one_run_pure(guesses, delta, error),
        "rates": estimators.from_rates(counts, delta, error),
    }
    return {**found, "GDP": estimators.gaussian(counts, delta, error)} if exact else found


@dataclass(frozen=True)
class Judged:
    """One game with its bounds.

    Attributes:
        claim: epsilon.
        canaries, made: how many, and how many of them were guessed.
        bounds, ceilings: at `ERROR`, by estimator, over all canaries.
        sure: the highest bound at `SURE`, over all canaries and over each tensor.
        ceiling: the highest that any of them can reach at `SURE`.
    """

    claim: float
    canaries: int
    made: int
    bounds: Mapping[str, float]
    ceilings: Mapping[str, float]
    sure: float
    ceiling: float

    @property
    def verdict(self) -> Verdict:
        """See the module."""
        if self.sure > self.claim:
            return "violated"
        return "no power" if self.ceiling <= self.claim else "holds"

    @property
    def row(self) -> dict[str, float | int | str]:
        """Of a table on the page."""
        told: dict[str, float | int | str] = {"claimed": f"{self.claim:.2f}", "canaries": self.canaries}
        for name in ESTIMATORS:
            shown = name in self.bounds
            told[name] = f"{self.bounds[name]:.2f} (of {self.ceilings[name]:.2f})" if shown else ""
        verdict = "NO POWER" if self.verdict == "no power" else self.verdict
        return {**told, "at 1e-6": f"{self.sure:.2f} (of {self.ceiling:.2f})", "verdict": verdict}


def judge(played: Played) -> Judged:
    """Bounds and ceilings of one game."""
    m, groups = len(played.scores), [slice(None), *(played.tensors if len(played.tensors) > 1 else ())]
    made = max(2, m // MADE)

    def found(group: slice, error: float, ideal: bool) -> dict[str, float]:
        """The bounds over some of the canaries."""
        scores, present = played.scores[group], played.present[group]
        guesses = estimators.guesses_of(scores, present, max(2, len(scores) // MADE))
        counts = estimators.counts_of(scores, present, played.threshold)
        if ideal:
            guesses, counts = guesses.all_right, counts.all_right
        return bounds(guesses, counts, played.delta, error, played.exact)

    return Judged(
        played.claim,
        m,
        made,
        found(slice(None), ERROR, False),
        found(slice(None), ERROR, True),
        max(max(found(group, SURE, False).values()) for group in groups),
        max(max(found(group, SURE, True).values()) for group in groups),
    )


def together(judged: Iterable[Judged]) -> Verdict:
    """The verdict of several games."""
    return worst(game.verdict for game in judged)


def figures(judged: Sequence[Judged]) -> dict[str, float | int | str]:
    """Every number of these games, by claim."""
    told: dict[str, float | int | str] = {"error of figures": ERROR, "error of each verdict": SURE}
    for game in judged:
        at = f"at claim {game.claim:.2f}"
        told |= {f"{name}, epsilon, {at}": round(bound, 3) for name, bound in game.bounds.items()}
        told |= {f"ceiling of {name}, epsilon, {at}": round(top, 3) for name, top in game.ceilings.items()}
        told |= {f"highest at 1e-6, epsilon, {at}": round(game.sure, 3), f"its ceiling, {at}": round(game.ceiling, 3)}
        told |= {f"canaries, {at}": game.canaries, f"guesses, {at}": game.made}
    return told


def said(judged: Sequence[Judged]) -> str:
    """What came out, in half a sentence."""
    best = {f"{game.claim:.2g}": max(game.bounds.values()) for game in judged}
    parts = [f"{bound:.2f} of the {claim} that is claimed" for claim, bound in best.items()]
    none = [f"{game.claim:.2g} (ceiling {game.ceiling:.2f})" for game in judged if game.verdict == "no power"]
    return f"the attacker proves {', '.join(parts)}" + (f"; NO POWER at {', '.join(none)}" if none else "")


def picture(judged: Sequence[Judged], path: Path, title: str) -> Path:
    """Lower bounds against claims, with the highest that each could be; on a ground of its own."""
    import matplotlib as mpl

    mpl.use("agg")
    from matplotlib import pyplot as plt

    games = sorted(judged, key=lambda game: game.claim)
    names = [name for name in ESTIMATORS if any(name in game.bounds for game in games)]
    colours = dict(zip(ESTIMATORS, ("#2b8cc4", "#a84800", "#00553d", "#7a3f7a"), strict=True))
    figure, axes = plt.subplots(figsize=(6.2, 4.2), layout="constrained")
    top = 1.08 * max(max(*game.bounds.values(), game.claim) for game in games)
    axes.plot([0, top], [0, top], color="#17212b", lw=1.2, label="the claim: nothing may lie above")
    for name, marker in zip(names, "osD^", strict=False):
        shown = [game for game in games if name in game.bounds]
        claims, low = [game.claim for game in shown], [game.bounds[name] for game in shown]
        axes.plot(claims, low, marker=marker, color=colours[name], lw=1.2, label=f"{name}, 95 %")
        highest = [game.ceilings[name] for game in shown]
        if np.array(highest).min() < 2 * top:
            axes.plot(claims, highest, ls=":", lw=1.2, color=colours[name], label=f"ceiling of {name}")
    axes.set(xlabel="claimed epsilon", ylabel="epsilon that an attacker proves", title=title)
    axes.set_xlim(0, 1.08 * games[-1].claim)
    axes.set_ylim(0, None)
    axes.legend(fontsize=8, frameon=False)
    figure.savefig(path, dpi=130, facecolor="white")
    plt.close(figure)
    return path
