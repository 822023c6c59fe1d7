"""Dice against bytes up, and against true epsilon: one training a call, one line of JSON each.

    python tests/benchmarks/sharing.py one --set hippocampus --data ../shared/data/hippocampus --lr 0.1 \
        --sharing '{"method": "sketch", "share": 0.1, "rotation": true, "bits": 2}' --clip-range 0.02
    python tests/benchmarks/sharing.py table
    python tests/benchmarks/sharing.py figure --to docs/systems

Held-out patients and their split are those of `utility.py`. Sums are plain, which gives the bit-identical model of the
secure ones; bytes are those of the masked vector of one site over all rounds, as the policy has them, without keys and
signatures, which do not depend on what is shared. Lines go to `build/sharing.jsonl`.
"""

import argparse
import json
import tempfile
import time
from collections import defaultdict
from pathlib import Path
from typing import Any

import numpy as np
import torch

from fedseg.budget.explain import explain
from fedseg.evaluation import evaluate, mean_interval, overall_mean
from fedseg.models import build_model, load_model
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.study import Study, load_study
from fedseg.update import flatten
from tests.benchmarks.utility import divided, everybody, made, student

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "build" / "sharing.jsonl"
KEY = ("data", "mechanism", "epsilon", "sharing", "lr", "rounds", "local_steps", "clip_range", "released", "threshold")


def study_of(base: Study, given: argparse.Namespace, patients: int) -> Study:
    """The study of a cell; delta is a tenth of one patient's share."""
    content = base.model_dump(mode="json")
    sites = len(base.sites)
    content["study"] |= {
        "lr": given.lr,
        "seed": given.seed,
        "rounds": given.rounds or base.study.rounds,
        "local_steps": given.local_steps or base.study.local_steps,
    }
    private = given.mechanism != "none"
    content["privacy"] |= {
        "mechanism": given.mechanism,
        "epsilon": given.epsilon if private else None,
        "delta": 1 / (10 * patients),
        "denominator": max(1, round(patients / sites)),
        "released": given.released,
        "threshold": given.threshold,
    }
    content["sharing"] = json.loads(given.sharing)
    content["secagg"]["clip_range"] = given.clip_range
    content["data"]["layout"] = "decathlon"
    content["run"]["evaluate_every"] = content["study"]["rounds"]
    content["sites"] = [{"id": f"site-{k + 1}"} for k in range(sites)]
    return Study.model_validate_json(json.dumps(content))


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """One line of the record."""
    base = load_study(ROOT / "studies" / f"{given.set}.toml")
    if given.size:
        base = base.replace(data={"size": given.size})
    data = everybody(made(base, given.made) if given.made else base, given.data)
    patients = len({case.patient for case in data.train})
    study = study_of(base, given, patients)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(Path(folder), study) as run:
        done = simulate(run, divided(data, len(base.sites), given.seed), Options(plain=True))
        model = load_model(done / "model.safetensors", study)
    seconds = time.process_time() - began
    pooled = evaluate(model, {"all": data}, study).pooled()
    mean, guarantee = mean_interval(pooled), explain(study).guarantee
    parameters = len(flatten(build_model(study)))
    policy = study.policy(parameters)
    assert mean is not None
    return {
        "data": f"made {given.set}" if given.made else given.set,
        "seed": given.seed,
        "mechanism": given.mechanism,
        "epsilon": None if guarantee is None else guarantee.epsilon,
        "delta": study.privacy.delta if guarantee else None,
        "sharing": json.loads(given.sharing),
        "lr": given.lr,
        "rounds": study.study.rounds,
        "local_steps": study.study.local_steps,
        "clip_range": given.clip_range,
        "released": given.released,
        "threshold": given.threshold,
        "dice": overall_mean(pooled),
        "low": mean.low,
        "high": mean.high,
        "n": mean.n,
        "patients": patients,
        "parameters": parameters,
        "vector": policy.length,
        "bytes_up": study.study.rounds * -(-policy.length * policy.bits // 8),
        "cpu_seconds": round(seconds, 1),
    }


def recorded(path: Path) -> list[dict[str, Any]]:
    """What was measured."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []


def trainings(lines: list[dict[str, Any]]) -> list[tuple[dict[str, Any], np.ndarray]]:
    """Each training with the Dice of its seeds, the most bytes first."""
    seeds: dict[str, list[dict[str, Any]]] = defaultdict(list)
    for line in lines:
        about = {name: line[name] for name in KEY if name != "epsilon"}
        seeds[json.dumps([about, None if line["epsilon"] is None else round(line["epsilon"], 2)])].append(line)
    found = [(same[0], np.array([line["dice"] for line in same])) for same in seeds.values()]
    return sorted(found, key=lambda one: (one[0]["data"], one[0]["mechanism"], -one[0]["bytes_up"]))


def words(sharing: dict[str, Any]) -> str:
    """A method and its numbers, short."""
    rest = [f"{name.replace('_', ' ')} {value}" for name, value in sharing.items() if name != "method"]
    return ", ".join([sharing.get("method", "full"), *rest]).replace(" True", "")


def table(lines: list[dict[str, Any]]) -> None:
    """Markdown: one row a training, with Student's interval over seeds, else the bootstrap over patients of one."""
    print("| set | mechanism | epsilon (delta), per patient | shared | bytes up, a site | Dice | n, seeds | CPU s |")
    print("|---|---|---|---|---|---|---|---|")
    for line, dice in trainings(lines):
        spread = f"+- {student(dice):.3f}" if len(dice) > 1 else f"[{line['low']:.3f}, {line['high']:.3f}]"
        epsilon = "none" if line["epsilon"] is None else f"{line['epsilon']:.3g} ({line['delta']:.2g})"
        about = words(line["sharing"]) + (f", released {line['released']:g}" if line["mechanism"] == "svt" else "")
        print(
            f"| {line['data']} | {line['mechanism']} | {epsilon} | {about} | {line['bytes_up']:,} | "
            f"{dice.mean():.3f} {spread} | {line['n']}, {len(dice)} | {line['cpu_seconds']:g} |"
        )


def figure(lines: list[dict[str, Any]], to: Path) -> None:
    """`bytes.svg` (Dice against bytes up, a curve a method) and `epsilon.svg` (Dice against true epsilon)."""
    import matplotlib as mpl

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "sharing"
    from matplotlib import pyplot as plt

    found = trainings([line for line in lines if not line["data"].startswith("made")])
    for name, across in (("bytes", "bytes_up"), ("epsilon", "epsilon")):
        sets = sorted({one["data"] for one, _ in found})
        drawn, panes = plt.subplots(1, max(1, len(sets)), figsize=(5 * max(1, len(sets)), 3.4), squeeze=False)
        for pane, data in zip(panes[0], sets, strict=False):
            curves: dict[str, list[tuple[float, float]]] = defaultdict(list)
            for one, dice in found:
                if one["data"] == data and one[across]:
                    kind = one["sharing"].get("method", "full") if name == "bytes" else ""
                    curves[f"{one['mechanism']} {kind}".strip()].append((one[across], float(dice.mean())))
            for label, points in sorted(curves.items()):
                pane.plot(*zip(*sorted(points), strict=True), marker="o", markersize=3, linewidth=1, label=label)
            pane.set(title=data, xscale="log", xlabel=across.replace("_", " "), ylabel="Dice")
            pane.legend(fontsize=6)
        drawn.tight_layout()
        drawn.savefig(to / f"{name}.svg", metadata={"Date": None})
        plt.close(drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("one", "table", "figure"))
    parser.add_argument("--set", default="hippocampus", help="name of a study in studies/")
    parser.add_argument("--data", type=Path, help="folder of the set's images")
    parser.add_argument("--made", type=int, help="this many made patients in place of real ones, to choose settings on")
    parser.add_argument("--size", type=int, default=0, help="side of the working grid; 0 for the study's")
    parser.add_argument("--mechanism", default="none")
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--sharing", default="{}", help="[sharing] as JSON")
    parser.add_argument("--clip-range", type=float, default=0.5)
    parser.add_argument("--released", type=float)
    parser.add_argument("--threshold", type=float, default=0.0)
    parser.add_argument("--lr", type=float, default=0.1)
    parser.add_argument("--rounds", type=int, default=0)
    parser.add_argument("--local-steps", type=int, default=0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--record", type=Path, default=RECORDED)
    parser.add_argument("--to", type=Path, default=ROOT / "docs" / "systems")
    given = parser.parse_args()
    if given.do == "table":
        return table(recorded(given.record))
    if given.do == "figure":
        return figure(recorded(given.record), given.to)
    torch.set_num_threads(1)
    line = measured(given)
    given.record.parent.mkdir(parents=True, exist_ok=True)
    with given.record.open("a") as out:
        out.write(json.dumps(line) + "\n")
    print(json.dumps(line))
    return None


if __name__ == "__main__":
    main()
