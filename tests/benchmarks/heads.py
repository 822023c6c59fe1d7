"""A study that trains the last layer alone, in closed form: many seeds in seconds, where a run takes minutes.

    python tests/benchmarks/heads.py studies/pneumonia-private.toml --data CHEST --seeds 3

A frozen network is asked once for the features of every picture. What remains is softmax regression, whose gradients
for each picture are written down at once. Draws, clipping, sums, momentum, rounds and the noise multiplier are those of
the study's mechanisms; noise is NumPy's Gaussian and not on a grid, and nothing is quantised. So a row here agrees with
one of `fedseg compare` but for chance, and only that command's models have a ledger. Prints Markdown.
"""

import argparse
import json
import time
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from scipy.special import softmax

from fedseg.classes import judged
from fedseg.data.loading import load_cohort
from fedseg.mechanisms.distributed import noise_of
from fedseg.records import Classes
from fedseg.start import starting_model
from fedseg.study import Study, load_study

Values = np.ndarray[Any, np.dtype[np.float64]]
SHOWN = ("accuracy", "balanced accuracy", "AUC")


class Pictures(NamedTuple):
    """Features with a 1 behind them (n, k + 1), classes (n,), numbers of sites (n,)."""

    features: Values
    labels: Values
    sites: Values


class Way(NamedTuple):
    """How a row is trained: `clip` 0 cuts nothing, `noise` is a multiplier of it."""

    title: str
    rounds: int
    steps: int
    lr: float
    clip: float = 0.0
    noise: float = 0.0
    only: int | None = None
    together: bool = False


def pictures(study: Study, folder: Path | None) -> tuple[Values, dict[str, Pictures]]:
    """The last layer's start (classes, k + 1), and everybody in training and held out."""
    model = starting_model(study).eval()
    assert isinstance(model, torch.nn.Sequential)
    last = model[-1]
    first = torch.cat([last.weight, last.bias[:, None]], 1).detach().double().numpy()
    found, cohort = {}, load_cohort(folder, study)
    for part in ("train", "test"):
        cases = [(site, case) for site, data in enumerate(cohort.values()) for case in getattr(data, part)]
        images = torch.from_numpy(np.stack([case.image[..., 0] for _, case in cases]))
        with torch.inference_mode():
            features = torch.cat([model[:-1](some) for some in images.split(256)]).double().numpy()
        labels, sites = np.array([int(case.label) for _, case in cases]), np.array([site for site, _ in cases])
        found[part] = Pictures(np.hstack([features, np.ones((len(features), 1))]), labels, sites)
    return first, found


def step(weights: Values, some: Pictures, way: Way, study: Study, rng: np.random.Generator, parties: int) -> Values:
    """A step's noisy gradient over the pictures that are drawn of these, divided by a public constant."""
    drawn = rng.random(len(some.labels)) < study.privacy.sample_rate
    features, labels = some.features[drawn], some.labels[drawn]
    off = softmax(features @ weights.T, axis=1) - np.eye(len(weights))[labels]
    off *= np.array(study.study.class_weights or [1.0] * len(weights))[labels][:, None]
    lengths = np.linalg.norm(off, axis=1) * np.linalg.norm(features, axis=1)  # of an outer product
    if way.clip:
        off *= np.minimum(1, way.clip / np.maximum(lengths, 1e-12))[:, None]
    noise = way.noise * way.clip * rng.standard_normal(weights.shape)
    return (off.T @ features + noise) / (study.privacy.denominator * parties)


def trained(start: Values, train: Pictures, way: Way, study: Study, seed: int) -> Values:
    """The last layer after all rounds: one sum a step, or sites that step by themselves and are averaged."""
    rng, weights, parties = np.random.default_rng(seed), start.copy(), len(study.site_ids)
    if way.together:
        moving = np.zeros_like(weights)
        for _ in range(way.rounds * way.steps):
            moving = 0.9 * moving + step(weights, train, way, study, rng, parties)
            weights = weights - way.lr * moving
        return weights
    sites = range(parties) if way.only is None else [way.only]
    for _ in range(way.rounds):
        ends = []
        for site in sites:
            own, moving = weights.copy(), np.zeros_like(weights)
            some = Pictures(*(values[train.sites == site] for values in train))
            for _ in range(way.steps):
                moving = 0.9 * moving + step(own, some, way, study, rng, 1)
                own = own - way.lr * moving
            ends.append(own)
        weights = np.mean(ends, axis=0)
    return weights


def ways(study: Study, epsilons: list[float]) -> list[Way]:
    """The rows of a comparison."""
    rounds, steps, lr, clip = (
        study.study.rounds,
        study.study.local_steps,
        study.study.lr,
        study.privacy.clip_norm or 0.0,
    )
    found = [Way("the start, untrained", 0, 0, lr), Way("pooled, no privacy", rounds, steps, lr, together=True)]
    found += [Way(f"{name} alone, no privacy", rounds, steps, lr, only=k) for k, name in enumerate(study.site_ids)]
    found += [
        Way("federated, no privacy", rounds, steps, lr),
        Way("twin of `local`: clipped, no noise", rounds, steps, lr, clip),
        Way("twin of `distributed`: clipped, no noise", rounds, steps, lr, clip, together=True),
    ]
    for epsilon in epsilons:
        one = study.replace(privacy={"mechanism": "local", "epsilon": epsilon})
        noise = one.mechanism.noise_multiplier(one.terms)
        found.append(Way(f"`local`, epsilon {epsilon:g}", rounds, steps, lr, clip, noise))
        many = study.replace(
            privacy={"mechanism": "distributed", "epsilon": epsilon}, study={"rounds": rounds * steps, "local_steps": 1}
        )
        noise = noise_of(many.terms).noise_multiplier(len(study.site_ids))  # all shares are in a sum
        found.append(Way(f"`distributed`, epsilon {epsilon:g}", rounds, steps, lr, clip, noise, together=True))
    return found


def told(weights: Values, test: Pictures, study: Study) -> Classes:
    """Figures with intervals over pictures."""
    names = [str(number) for number in range(len(test.labels))]
    said = softmax(test.features @ weights.T, axis=1)
    return judged(names, [int(label) for label in test.labels], said, study.names)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--epsilon", type=float, nargs="+", default=[8.0, 2.0, 1.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--json", type=Path, help="every training as a line of JSON, too")
    given = parser.parse_args()
    torch.set_num_threads(1)
    began = time.process_time()
    study = load_study(given.study)
    start, found = pictures(study, given.data)
    print(f"n = {len(found['test'].labels)}, {start.size} values trained, delta {study.privacy.delta:g}")
    print(f"| | {' | '.join(SHOWN)} | seeds' AUC |\n|---|---|---|---|---|")
    lines = []
    for way in ways(study, given.epsilon):
        seeds = [
            told(trained(start, found["train"], way, study, s), found["test"], study) for s in range(1, given.seeds + 1)
        ]
        lines += [
            {"row": way.title, "noise": way.noise, "seed": s, **{m: one.measures[m].model_dump() for m in SHOWN}}
            for s, one in enumerate(seeds, 1)
        ]
        cells = []
        for name in SHOWN:
            each = [one.measures[name] for one in seeds]
            mean, low, high = (np.mean([getattr(one, what) for one in each]) for what in ("mean", "low", "high"))
            cells.append(f"{mean:.3f} ({low:.3f}-{high:.3f})")
        spread = [one.measures["AUC"].mean for one in seeds]
        print(f"| {way.title} | {' | '.join(cells)} | {min(spread):.3f}-{max(spread):.3f} |", flush=True)
    print(f"\n{time.process_time() - began:.0f} CPU seconds")
    if given.json:
        given.json.write_text("".join(json.dumps(line) + "\n" for line in lines))


if __name__ == "__main__":
    main()
