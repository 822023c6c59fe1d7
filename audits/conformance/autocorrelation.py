"""Noise of one value, step, round or site tells nothing of another one's."""

import math
from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from audits.base import Result, Task
from audits.conformance.testing import Tried, concluded, largest
from audits.dp.canary import Plug, data_of, study_of
from audits.dp.games import whole
from fedseg.study import Study
from fedseg.train import local_steps
from fedseg.update import NoiseShared
from secagg.encoding import digest

VALUES = 4000
LAGS = (*range(1, 17), 64, 1024)


def audit(task: Task) -> Result:
    """Updates of sites without patients: what leaves them is noise alone, as `local_steps` makes it."""
    rounds = 120 if task.depth == "full" else 40
    tried: dict[str, float] = {}
    for mechanism, study in studies(task.seed).items():
        task.progress(f"{mechanism}: {rounds} rounds of two sites")
        tried |= {f"{mechanism}: {name}": p for name, p in tests(noise(study, rounds)).items()}
    seen = noise(studies(task.seed)["local"], rounds)
    bugs = {
        "the same noise in every round": lambda: tests(np.broadcast_to(seen[:, :1], seen.shape)),
        "the same noise in every second round": lambda: tests(seen[:, np.arange(rounds) // 2]),
        "the same noise at all sites": lambda: tests(np.broadcast_to(seen[:1], seen.shape)),
        "a stream that starts again after 1,024 values": lambda: tests(np.tile(seen[..., :1024], 4)[..., :VALUES]),
        "every value a tenth of its neighbour": lambda: tests(0.995 * seen + 0.1 * np.roll(seen, 1, axis=-1)),
    }
    figures: dict[str, float | int | str] = {
        "values of an update": VALUES,
        "rounds": rounds,
        "sites": 2,
        "lags": ", ".join(map(str, LAGS)),
    }
    return concluded("Noise of values, rounds and sites apart", tried, bugs, {**figures, "seed": task.seed})


def studies(seed: int) -> Mapping[str, Study]:
    """One of each mechanism with Gaussian noise."""
    return {
        "local": study_of("local", 4.0, rounds=10, seed=seed),
        "distributed": study_of("distributed", 4.0, rounds=10, sites=4, seed=seed),
    }


def noise(study: Study, rounds: int) -> NDArray[np.float64]:
    """(2, rounds, VALUES): what two sites without patients send, in deviations."""
    plug, sites = Plug(VALUES), study.site_ids[:2]
    rows = np.empty((2, rounds, VALUES))
    for place, site in enumerate(sites):
        for number in range(1, rounds + 1):
            steps = local_steps(plug, data_of(site, ()), study, site=site, round_number=number)
            update = steps.update(site, "audit", lambda purpose: digest("unused", purpose))
            sent = whole(update, study.secagg.bits) if isinstance(update, NoiseShared) else update.vector
            rows[place, number - 1] = sent[:VALUES]
    scale: float = rows.std()
    return rows / scale


def tests(seen: NDArray[np.float64]) -> Tried:
    """Products of values that ought to have nothing in common, as standard normal values."""
    rounds = seen.shape[1]
    own = [_correlated(seen[..., lag:], seen[..., :-lag]) for lag in LAGS]
    sizes = [_correlated(_size(seen)[..., lag:], _size(seen)[..., :-lag]) for lag in LAGS]
    later = [_correlated(seen[:, lag:], seen[:, :-lag]) for lag in range(1, min(9, rounds))]
    pairs = np.array([_correlated(a, b) for site in seen for place, a in enumerate(site) for b in site[:place]])
    between = np.array([_correlated(seen[0, a], seen[1, b]) for a in range(rounds) for b in range(rounds)])
    return {
        "two values of an update": largest(np.array(own)),
        "how large two values of an update are": largest(np.array(sizes)),
        "a value in two rounds": largest(np.array(later)),
        "any two rounds of a site": largest(pairs),
        "any two rounds of two sites": largest(between),
    }


def _size(seen: NDArray[np.float64]) -> NDArray[np.float64]:
    return (seen**2 - 1) / math.sqrt(2)


def _correlated(a: NDArray[np.float64], b: NDArray[np.float64]) -> float:
    return float((a * b).sum() / math.sqrt(a.size))
