"""What privacy costs in Dice: one epsilon, one network, one split of patients, and four ways to be private.

    python tests/benchmarks/utility.py run --set hippocampus --data ../shared/data    # every missing cell of the plan
    python tests/benchmarks/utility.py table                                        # what was measured, paired by seed

`central` is DP-SGD by one trusted party that holds all patients. `local` and `distributed` train through
`fedseg.simulate` with a plain sum, which gives the bit-identical model of the secure one. `twin` is `central` and
`twin-local` is `local`, clipped and without noise: they tell whether noise or optimisation is the limit. `start` is the
model before any training. Held-out patients are the same in every cell of a set, however many sites share the others.
Each cell is one line of `build/utility.jsonl`; a run goes on where it stopped.
"""

import argparse
import json
import tempfile
import time
from dataclasses import asdict, dataclass, replace
from itertools import product
from pathlib import Path

import numpy as np
import torch
from scipy import stats

from fedseg.data.cases import SiteData
from fedseg.data.layouts.table import entries
from fedseg.evaluation import assess, evaluate, mean_interval, overall_mean
from fedseg.models import load_model
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.start import starting_model
from fedseg.study import Study, load_study
from fedseg.train import local_steps
from fedseg.update import assign, flatten, moving
from secagg.prg import Stream

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "build" / "utility.jsonl"
TRAINED_AS = {"central": "local", "twin": "clipped", "twin-local": "clipped", "start": "none"}
RATES = (0.25, 1.0)  # none is chosen by looking at a set: everybody is measured with both


@dataclass(frozen=True)
class Cell:
    """One training.

    Attributes:
        data: name of the study file.
        mechanism: 'central', 'twin', 'start', 'local', 'twin-local' or 'distributed'.
        epsilon: of the whole training, per patient; 0 where nothing is claimed.
        sites: how many share the training patients; 1 where one party holds them all.
        steps: gradient steps in all.
        lr: learning rate.
        seed: of sampling, noise and division.
    """

    data: str
    mechanism: str
    epsilon: float
    sites: int
    steps: int
    lr: float
    seed: int


def plan(data: str, sites: int, steps: int, seeds: int) -> list[Cell]:
    """Every cell of a set, the comparison at epsilon 8 first, with every learning rate for everybody."""
    mechanisms = ("central", "distributed", "local", "twin")
    cells = [Cell(data, "start", 0.0, 1, 0, 0.0, 1)]
    for epsilon, seed, rate, mechanism in product((8.0, 2.0), range(1, seeds + 1), RATES, mechanisms):
        private = mechanism != "twin"
        of = 1 if mechanism in ("central", "twin") else sites
        cells.append(Cell(data, mechanism, epsilon if private else 0.0, of, steps, rate, seed))
    for (epsilon, of), rate, mechanism in product(
        ((8.0, 3), (8.0, 20), (1.0, sites), (32.0, sites)), RATES, mechanisms[:-1]
    ):
        cells.append(Cell(data, mechanism, epsilon, 1 if mechanism == "central" else of, steps, rate, 1))
    return list(dict.fromkeys(cells))


def everybody(study: Study, folder: Path | None) -> SiteData:
    """All patients of a set in one place, each with the role that it has for good; `folder` is whole or one a site."""
    places: dict[str, Path | None] = dict.fromkeys(study.site_ids)
    if folder is not None:
        whole = not (folder / study.site_ids[0]).is_dir()
        places = {study.site_ids[0]: folder} if whole else {site: folder / site for site in study.site_ids}
    read = (entry.load(site, study) for site, place in places.items() for entry in entries(place, site, study))
    cases = [replace(case, patient=f"{case.site}/{case.patient}") for case in read]  # two sites may use one name
    name = study.study.name.partition("-")[0]  # one split for all studies of a set
    kept = Stream.seeded(11, "utility", name).uniform(len(cases)) < study.data.holdout
    return SiteData(
        "all",
        tuple(case for case, tests in zip(cases, kept, strict=True) if not tests),
        tuple(case for case, tests in zip(cases, kept, strict=True) if tests),
    )


def divided(data: SiteData, sites: int, seed: int) -> dict[str, SiteData]:
    """The training patients over so many sites at random; all held-out ones at the first."""
    order = [int(k) for k in Stream.seeded(seed, "division").permutation(len(data.train))]
    shares = [tuple(data.train[k] for k in order[first::sites]) for first in range(sites)]
    return {f"site-{k + 1}": SiteData(f"site-{k + 1}", share, () if k else data.test) for k, share in enumerate(shares)}


def study_of(cell: Cell, base: Study, patients: int) -> Study:
    """The study of a cell; a step's sum is divided by about all patients that are drawn, whoever divides."""
    content = base.model_dump(mode="json")
    content["study"] |= {
        "lr": cell.lr or 1.0,
        "seed": cell.seed,
        "rounds": max(cell.steps // base.study.local_steps, 1),
        "local_steps": base.study.local_steps,
    }
    if cell.sites == 1:
        content["study"] |= {"rounds": 1, "local_steps": max(cell.steps, 1)}
    if cell.mechanism == "distributed":
        content["study"] |= {"rounds": cell.steps, "local_steps": 1}
    content["privacy"] |= {
        "mechanism": TRAINED_AS.get(cell.mechanism, cell.mechanism),
        "epsilon": cell.epsilon or None,
        "delta": 1 / (10 * patients),
        "denominator": max(1, round(base.privacy.sample_rate * patients / cell.sites)),
    }
    content["data"]["layout"] = "decathlon"
    content["run"]["evaluate_every"] = max(cell.steps, 1)
    content["sites"] = [{"id": f"site-{k + 1}"} for k in range(max(cell.sites, 3))]
    return Study.model_validate_json(json.dumps(content))


def trained(cell: Cell, study: Study, data: SiteData) -> torch.nn.Module:
    """The model of a cell."""
    if cell.mechanism == "start":
        return starting_model(study)
    if cell.sites == 1:
        model = starting_model(study)
        taken = local_steps(model, SiteData("site-1", data.train, ()), study, site="site-1", round_number=1)
        weights = flatten(model)
        weights[moving(model)] += taken.update("site-1", "not charged", lambda purpose: bytes(32)).vector
        assign(model, weights)
        return model
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(Path(folder), study) as run:
        done = simulate(run, divided(data, cell.sites, cell.seed), Options(plain=True))
        return load_model(done / "model.safetensors", study)


def measure(cell: Cell, base: Study, data: SiteData) -> dict[str, object]:
    """One line of the record."""
    patients = len({case.patient for case in data.train})
    study = study_of(cell, base, patients)
    began = time.process_time()
    model = trained(cell, study, data)
    seconds = time.process_time() - began
    scores, own = evaluate(model, {"all": data}, study), assess(model, {"all": data}, study).pooled()
    mean, files = mean_interval(scores.pooled()), mean_interval(own)
    assert mean is not None
    assert files is not None
    return asdict(cell) | {
        "dice": overall_mean(scores.pooled()),
        "low": mean.low,
        "high": mean.high,
        "n": mean.n,
        "on the files' grids": [files.mean, files.low, files.high],
        "patients": patients,
        "delta": study.privacy.delta,
        "parameters": len(flatten(model)),
        "trained": int(moving(starting_model(study)).sum()),
        "cpu_seconds": round(seconds, 1),
    }


def recorded() -> list[dict[str, object]]:
    """What was measured."""
    return [json.loads(line) for line in RECORDED.read_text().splitlines()] if RECORDED.exists() else []


def run(cells: list[Cell], base: Study, data: SiteData) -> None:
    """Measure the cells that are missing."""
    fields = Cell.__dataclass_fields__
    known = [Cell(**{name: line[name] for name in fields}) for line in recorded()]  # type: ignore[arg-type]
    RECORDED.parent.mkdir(exist_ok=True)
    for cell in cells:
        if cell in known:
            continue
        line = measure(cell, base, data)
        with RECORDED.open("a") as out:
            out.write(json.dumps(line) + "\n")
        print(json.dumps(line), flush=True)


def table() -> None:
    """Means over seeds with Student's interval, one line for each training."""
    by_training: dict[Cell, list[dict[str, object]]] = {}
    for line in recorded():
        cell = Cell(**{name: line[name] for name in Cell.__dataclass_fields__})  # type: ignore[arg-type]
        by_training.setdefault(replace(cell, seed=0), []).append(line)
    for cell, lines in by_training.items():
        values = np.array([line["dice"] for line in lines], dtype=float)
        spread = f" +- {student(values):.3f}" if len(values) > 1 else ""
        print(
            f"{cell.data}: epsilon {cell.epsilon:g}, {cell.mechanism}, {cell.sites} sites, {cell.steps} steps, lr "
            f"{cell.lr:g}: Dice {values.mean():.3f}{spread} ({len(values)} seeds, n = {lines[0]['n']} held out, delta "
            f"{lines[0]['delta']:.2g})"
        )


def student(values: np.ndarray) -> float:
    """Half of the 95 % interval of a mean."""
    return float(stats.t.ppf(0.975, len(values) - 1) * values.std(ddof=1) / np.sqrt(len(values)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("run", "one", "table"))
    parser.add_argument("--set", default="hippocampus", help="name of a study in studies/")
    parser.add_argument("--data", type=Path, help="folder of the set's images")
    parser.add_argument("--made", type=int, help="this many made patients in place of real ones, to choose settings on")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--mechanism", default="distributed")
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--sites", type=int, default=8)
    parser.add_argument("--steps", type=int, default=45)
    parser.add_argument("--lr", type=float, default=1.0)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    if given.do == "table":
        return table()
    torch.set_num_threads(1)
    base = load_study(ROOT / "studies" / f"{given.set}.toml")
    loaded = made(base, given.made) if given.made else base
    data = everybody(loaded, given.data)
    name = f"made {given.set}" if given.made else given.set
    one = Cell(name, given.mechanism, given.epsilon, given.sites, given.steps, given.lr, given.seed)
    run([one] if given.do == "one" else plan(name, len(base.sites), given.steps, given.seeds), base, data)
    return None


def made(base: Study, patients: int) -> Study:
    """The study with made patients, of the hospitals that no start has seen."""
    content = base.model_dump(mode="json")
    content["data"]["layout"] = "phantom"
    content["sites"] = [{"id": site["id"], "patients": -(-patients // len(base.sites))} for site in content["sites"]]
    return Study.model_validate_json(json.dumps(content))


if __name__ == "__main__":
    main()
