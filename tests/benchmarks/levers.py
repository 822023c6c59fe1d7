"""What each lever is worth under differential privacy, alone, against the same baseline.

    python tests/benchmarks/levers.py one --set lgg --data ../shared/data/lgg --lever head --seed 1  # one cell
    python tests/benchmarks/levers.py run --set lgg --data ../shared/data/lgg --seeds 3              # what is missing
    python tests/benchmarks/levers.py table

A cell trains twice: at the study's epsilon, and its `twin` with the same clipping and next to no noise, which tells
whether noise or optimisation is the limit. Held-out patients, their division over sites and the learning rates come
from `utility.py`. No rate is chosen by looking at a set: each lever is measured at the study's own and at a third of
it. One JSON line a training goes to `build/levers.jsonl`; a run goes on where it stopped.
"""

import argparse
import json
import time
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
import utility

from fedseg.data.cases import SiteData
from fedseg.evaluation import evaluate, mean_interval, overall_mean
from fedseg.study import Study, load_study
from fedseg.update import flatten

RECORDED = utility.ROOT / "build" / "levers.jsonl"
RATES = (1.0, 1 / 3)
STEPS = 15
LEVERS: dict[str, dict[str, dict[str, object]]] = {
    "baseline": {},
    "head": {"training": {"trainable": "head"}},
    "norm-bias-head": {"training": {"trainable": "norm-bias-head"}},
    "lora:4": {"training": {"trainable": "lora:4"}},
    "augmented": {"training": {"augmentation": "light"}},
    "4 views": {"training": {"augmentation": "light"}, "privacy": {"multiplicity": 4}},
    "standardised": {"training": {"weight_standardisation": True}},
    "few large steps": {"study": {"rounds": STEPS // 3, "local_steps": 1}},
    "tiny clip": {"privacy": {"clip_norm": 0.005}},  # the rate is raised as the clip is lowered
    "fedavgm": {"federation": {"algorithm": "fedavgm", "server_lr": 0.3}},
    "fedadam": {"study": {"rounds": STEPS, "local_steps": 1}, "federation": {"algorithm": "fedadam"}},
    "fedadam corrected": {
        "study": {"rounds": STEPS, "local_steps": 1},
        "federation": {"algorithm": "fedadam", "corrected": True},
    },
}
RAISED = {"tiny clip": 10.0, "few large steps": 3.0}


@contextmanager
def noiseless(wanted: bool):
    """The mechanism `local` as it is, but for noise that is a millionth of the clip."""
    if not wanted:
        yield
        return
    with patch("fedseg.mechanisms.local.noise_multiplier_for", lambda *_: 1e-6):
        yield


def study_of(lever: str, rate: float, seed: int, base: Study, mechanism: str, patients: int) -> Study:
    """The study of a cell."""
    sites = len(base.sites)
    cell = utility.Cell(base.study.name, mechanism, 8.0, sites, STEPS, base.study.lr * rate, seed)
    study = utility.study_of(cell, base, patients)
    return study.replace(**LEVERS[lever]).replace(study={"lr": study.study.lr * RAISED.get(lever, 1.0)})


def measure(lever: str, rate: float, seed: int, base: Study, mechanism: str, data: SiteData) -> None:
    """Both trainings of a cell, as lines of the record."""
    patients = len({case.patient for case in data.train})
    study = study_of(lever, rate, seed, base, mechanism, patients)
    cell = utility.Cell(base.study.name, mechanism, 8.0, len(base.sites), STEPS, rate, seed)
    for twin in (False, True) if mechanism == "local" else (False,):
        began = time.process_time()
        with noiseless(twin):
            model = utility.trained(cell, study, data)
        seconds = time.process_time() - began
        pooled = evaluate(model, {"all": data}, study).pooled()
        found = mean_interval(pooled)
        assert found is not None
        line = {
            "set": base.study.name,
            "dims": base.data.dims,
            "lever": lever,
            "rate": rate,
            "seed": seed,
            "mechanism": mechanism,
            "epsilon": None if twin else 8.0,
            "delta": study.privacy.delta,
            "unit": "patient",
            "dice": overall_mean(pooled),
            "low": found.low,
            "high": found.high,
            "n": found.n,
            "patients": patients,
            "parameters": len(flatten(model)),
            "trained": sum(one.numel() for one in utility.starting_model(study).parameters() if one.requires_grad),
            "cpu_seconds": round(seconds, 1),
        }
        RECORDED.parent.mkdir(exist_ok=True)
        with RECORDED.open("a") as out:
            out.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def recorded() -> list[dict[str, object]]:
    """What was measured."""
    return [json.loads(line) for line in RECORDED.read_text().splitlines()] if RECORDED.exists() else []


def table() -> None:
    """Means over seeds, with Student's interval, and the twin beside."""
    groups: dict[tuple[object, ...], dict[bool, list[float]]] = {}
    for line in recorded():
        key = tuple(line[name] for name in ("set", "dims", "mechanism", "lever", "rate", "n", "trained"))
        groups.setdefault(key, {True: [], False: []})[line["epsilon"] is None].append(float(line["dice"]))  # type: ignore[arg-type]
    for (name, dims, mechanism, lever, rate, n, trained), by in groups.items():
        said = []
        for twin, values in by.items():
            if values:
                spread = f" +- {utility.student(np.array(values)):.3f}" if len(values) > 1 else ""
                said.append(f"{'twin' if twin else 'epsilon 8'} {np.mean(values):.3f}{spread} ({len(values)} seeds)")
        print(f"{name} {dims}D {mechanism}, {lever}, rate {rate:.2g}: {'; '.join(said)}; n = {n}, {trained} trained")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("one", "run", "table"))
    parser.add_argument("--set", default="lgg", help="name of a study in studies/")
    parser.add_argument("--data", type=Path)
    parser.add_argument("--dims", type=int, default=2)
    parser.add_argument("--lever", default="baseline", choices=LEVERS)
    parser.add_argument("--mechanism", default="local", choices=("local", "distributed"))
    parser.add_argument("--rate", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--seeds", type=int, default=3)
    given = parser.parse_args()
    if given.do == "table":
        table()
        return
    torch.set_num_threads(1)
    base = load_study(utility.ROOT / "studies" / f"{given.set}.toml")
    if given.dims != base.data.dims:
        base = base.replace(data={"dims": given.dims, "slices_per_patient": 1})
    data = utility.everybody(base, given.data)
    if given.do == "one":
        measure(given.lever, given.rate, given.seed, base, given.mechanism, data)
        return
    done = {
        (line["set"], line["dims"], line["lever"], line["rate"], line["seed"])
        for line in recorded()
        if line["mechanism"] == given.mechanism
    }
    shared = {"baseline", "augmented", "4 views", "standardised"}  # what 'distributed' takes
    for seed in range(1, given.seeds + 1):
        for lever in LEVERS if given.mechanism == "local" else shared:
            for rate in RATES:
                if (base.study.name, given.dims, lever, rate, seed) not in done:
                    measure(lever, rate, seed, base, given.mechanism, data)


if __name__ == "__main__":
    main()
