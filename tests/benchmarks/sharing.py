"""Dice against bytes up, and against true epsilon: one training a call, one line of JSON each.

    python tests/benchmarks/sharing.py one --set hippocampus --data ../shared/data/hippocampus --lr 0.1 \
        --sharing '{"method": "sketch", "share": 0.1, "rotation": true, "bits": 2}' --clip-range 0.02
    python tests/benchmarks/sharing.py plan --data ../shared/data | python tests/benchmarks/sharing.py many
    python tests/benchmarks/sharing.py table
    python tests/benchmarks/sharing.py figure --to docs/systems

Held-out patients and their split are those of `utility.py`. Sums are plain, which gives the bit-identical model of the
secure ones; bytes are those of the masked vector of one site over all rounds, as the policy has them, without keys and
signatures, which do not depend on what is shared. Lines go to `build/sharing.jsonl`. `plan` prints a line of arguments
for each training of docs/systems, `many` trains those that are not recorded yet: 15 to 30 CPU seconds each.
"""

import argparse
import io
import json
import shlex
import sys
import tempfile
import time
from collections import defaultdict
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from fedseg.budget.explain import explain
from fedseg.course import Course
from fedseg.data.cases import SiteData
from fedseg.evaluation import evaluate, mean_interval, overall_mean
from fedseg.models import load_model
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.study import Study, load_study
from tests.benchmarks.utility import divided, everybody, made, student

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "build" / "sharing.jsonl"
KEY = (
    *("data", "mechanism", "epsilon", "sharing", "training", "lr", "rounds", "local_steps", "clip_range", "released"),
    "threshold",
)


PLAIN = {
    "hippocampus": """--rounds 30 --local-steps 4 --lr 0.005 --training '{"optimizer": "adamw", "batch": 8%s}'""",
    "lgg-plain": """--rounds 20 --local-steps 5 --lr 0.003 --size 64 --training '{"batch": 4}'""",
}
"""How the sets are trained without privacy; the second begins with fresh weights."""
PRIVATE = {
    "hippocampus": "--mechanism local --rounds 15 --local-steps 3 --lr 0.25 --clip-range 0.5",
    "lgg": "--mechanism local --rounds 5 --local-steps 3 --lr 1.0 --clip-range 0.5",
}
"""How they are trained with DP-SGD, both from their made starts."""
SPARSE = {
    "hippocampus": "--mechanism svt --rounds 15 --local-steps 3 --lr 0.1 --clip-range 0.005",
    "lgg": "--mechanism svt --rounds 5 --local-steps 3 --lr 0.4 --clip-range 0.02",
}
"""With the sparse vector technique: values of an update are as much smaller as lr is."""
MASK = '{"method": "random-mask", "share": %g}'
SKETCH = '{"method": "sketch", "share": %g, "rotation": true, "bits": %d, "error_feedback": true}'
WAYS = (
    ("{}", 2.0),
    (MASK % 0.1, 2.0),
    ('{"method": "low-rank", "rank": 1}', 2.0),
    (SKETCH % (0.05, 2), 0.05),
    ('{"method": "low-rank", "rank": 12}', 2.0),
    (MASK % 0.01, 2.0),
    (SKETCH % (0.1, 4), 0.1),
)
"""[sharing] and the range of what is sent."""

VOLUMES = "--set hippocampus-private --mechanism local --rounds 12 --local-steps 1 --lr 3.0"
SMALL = (
    ("{}", 0.5),
    (MASK % 0.1, 0.5),
    (MASK % 0.01, 0.5),
    ('{"method": "low-rank", "rank": 3}', 0.5),
)
"""The same of the volumes, from their better start."""
FEW_ROUNDS = 10
WHOLE = '{"method": "sketch", "share": %g, "rotation": true, "bits": %d}'
FEW = {
    "hippocampus": (
        (30, 8, "{}", 2.0),
        *((rounds, 120 // rounds, "{}", 2.0) for rounds in (5, 2, 1)),
        *((1, 120, WHOLE % (1, bits), 0.2) for bits in (4, 3, 2)),
        (10, 12, SKETCH % (0.15, 2), 0.05),
        (5, 24, SKETCH % (0.35, 2), 0.05),
        (2, 60, SKETCH % (0.7, 2), 0.1),
        *((1, 240, way, ends) for way, ends in (("{}", 2.0), (WHOLE % (1, 3), 0.2))),
    ),
    "lgg-plain": (
        *((rounds, 100 // rounds, "{}", 2.0) for rounds in (2, 1)),
        (1, 100, WHOLE % (1, 2), 0.1),
        (2, 50, SKETCH % (0.5, 2), 0.1),
    ),
}
"""Rounds, local steps, [sharing] and its range: as many steps in fewer rounds, then twice as many."""

Curves: TypeAlias = dict[str, list[tuple[float, float]]]


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
    content["training"] |= json.loads(given.training)
    content["secagg"]["clip_range"] = given.clip_range
    content["data"]["layout"] = "decathlon"
    content["run"]["evaluate_every"] = content["study"]["rounds"]
    content["sites"] = [{"id": f"site-{k + 1}"} for k in range(sites)]
    return Study.model_validate_json(json.dumps(content))


@lru_cache(maxsize=2)
def read(name: str, folder: Path | None, patients: int, size: int) -> tuple[Study, SiteData]:
    """The study of a set and everybody in it."""
    base = load_study(ROOT / "studies" / f"{name}.toml")
    if size:
        base = base.replace(data={"size": size})
    return base, everybody(made(base, patients) if patients else base, folder)


def measured(given: argparse.Namespace) -> dict[str, Any]:
    """One line of the record."""
    base, data = read(given.set, given.data, given.made, given.size)
    patients = len({case.patient for case in data.train})
    study = study_of(base, given, patients)
    began = time.process_time()
    with tempfile.TemporaryDirectory() as folder, RunFolder.create(Path(folder), study) as run:
        done = simulate(run, divided(data, len(base.sites), given.seed), Options(plain=True))
        model = load_model(done / "model.safetensors", study)
    seconds = time.process_time() - began
    pooled = evaluate(model, {"all": data}, study).pooled()
    mean, guarantee = mean_interval(pooled), explain(study).guarantee
    course = Course(study, model)
    policy = course.policy()
    assert mean is not None
    return {
        "cell": told(given),
        "data": f"made {given.set}" if given.made else given.set,
        "size": given.size or base.data.size,
        "seed": given.seed,
        "mechanism": given.mechanism,
        "epsilon": None if guarantee is None else guarantee.epsilon,
        "delta": study.privacy.delta if guarantee else None,
        "sharing": json.loads(given.sharing),
        "training": json.loads(given.training),
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
        "parameters": course.parameters,
        "vector": policy.length,
        "bytes_up": study.study.rounds * -(-policy.length * policy.bits // 8),
        "cpu_seconds": round(seconds, 1),
    }


def told(given: argparse.Namespace) -> str:
    """What a cell is, but for where images and records lie."""
    return json.dumps({k: v for k, v in sorted(vars(given).items()) if k not in ("do", "data", "record", "to")})


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


def words(line: dict[str, Any]) -> str:
    """A method and its numbers, short."""
    rest = [f"{name.replace('_', ' ')} {value}" for name, value in line["sharing"].items() if name != "method"]
    return ", ".join([method(line), *rest]).replace(" True", "")


def method(line: dict[str, Any]) -> str:
    """How an update is made small: by what is sent of it, or by what is trained."""
    trained = line["training"].get("trainable", "all")
    return str(line["sharing"].get("method", "full" if trained == "all" else trained))


def table(lines: list[dict[str, Any]], planned: list[str]) -> None:
    """Markdown: one row a training, with Student's interval over seeds, else the bootstrap over patients of one.

    Its number is the line of `plan` that trains the first of its seeds.
    """
    heads = ("line", "set", "mechanism", "epsilon (delta)", "shared", "rounds x steps", "bytes up, a site", "Dice")
    print("| " + " | ".join((*heads, "n, seeds", "CPU s")) + " |")
    print("|---" * (len(heads) + 2) + "|")
    for line, dice in trainings(lines):
        spread = f"+- {student(dice):.3f}" if len(dice) > 1 else f"[{line['low']:.3f}, {line['high']:.3f}]"
        spent = line["epsilon"]
        epsilon = "none" if spent is None else f"{spent:{'.3g' if spent < 100 else ',.0f'}} ({line['delta']:.2g})"
        about = words(line) + (f", released {line['released']:g}" if line["mechanism"] == "svt" else "")
        number = 1 + planned.index(line["cell"]) if line["cell"] in planned else "none"
        print(
            f"| {number} | {line['data']} | {line['mechanism']} | {epsilon} | {about} | "
            f"{line['rounds']} x {line['local_steps']} | {line['bytes_up']:,} | "
            f"{dice.mean():.3f} {spread} | {line['n']}, {len(dice)} | {line['cpu_seconds']:g} |"
        )


def bytes_curves(found: list[tuple[dict[str, Any], np.ndarray]]) -> Curves:
    """Dice against bytes up, without privacy and at epsilon 8: a curve a method, of `local` where private."""
    curves: Curves = defaultdict(list)
    for one, dice in found:
        if one["mechanism"] == "none" or (one["mechanism"] == "local" and round(one["epsilon"]) == 8):
            how = "no privacy" if one["mechanism"] == "none" else "epsilon 8"
            few = " in few rounds" if one["mechanism"] == "none" and one["rounds"] <= FEW_ROUNDS else ""
            curves[f"{method(one).partition(':')[0]}{few}, {how}"].append((one["bytes_up"], float(dice.mean())))
    return curves


def epsilon_curves(found: list[tuple[dict[str, Any], np.ndarray]]) -> Curves:
    """Dice against true epsilon, where whole updates are sent: a curve a mechanism and share released."""
    curves: Curves = defaultdict(list)
    for one, dice in found:
        if one["epsilon"] and method(one) == "full":
            name = "local (DP-SGD)" if one["mechanism"] == "local" else f"svt with {one['released']:g} released"
            curves[name].append((one["epsilon"], float(dice.mean())))
    return curves


def figure(lines: list[dict[str, Any]], to: Path) -> None:
    """`bytes.svg` and `epsilon.svg`: sets are one above the other, so that a narrow page shows them whole."""
    found = trainings(lines)
    sets = sorted({one["data"] for one, _ in found})
    for name, across, curves_of in (
        ("bytes", "bytes up of a site, all rounds", bytes_curves),
        ("epsilon", "true epsilon of the run, of a patient", epsilon_curves),
    ):
        panes = {data: curves_of([one for one in found if one[0]["data"] == data]) for data in sets}
        panes = {data: curves for data, curves in panes.items() if curves}
        whole = {data: next((float(d.mean()) for one, d in found if _whole(one, data)), None) for data in panes}
        if name == "epsilon":
            whole = dict.fromkeys(panes)  # without privacy it is another training, and no twin
        (to / f"{name}.svg").write_text(drawn(panes, whole, across), encoding="utf-8")


def _whole(one: dict[str, Any], data: str) -> bool:
    return one["data"] == data and one["mechanism"] == "none" and method(one) == "full"


def drawn(panes: dict[str, Curves], whole: dict[str, float | None], across: str) -> str:
    """SVG on its own ground; on dark pages its colours change.

    A way has one colour in all panes, and is hollow with privacy. Points of different rounds are not joined.
    """
    import matplotlib as mpl

    mpl.use("svg")
    from matplotlib import pyplot

    from fedseg.palette import DARK, DASHES, LIGHT, MARKERS, SERIES

    colours = {name: LIGHT[name] for name in ("ink", "line", "paper", "muted", *SERIES)}
    ways = sorted({curve.partition(", ")[0] for curves in panes.values() for curve in curves})
    rows = max(1, len(panes))
    with mpl.rc_context({"svg.fonttype": "none", "svg.hashsalt": "sharing", "font.family": "sans-serif"}):
        sheet, axes = pyplot.subplots(
            rows, figsize=(6.0, 4.6 * rows), squeeze=False, layout="constrained", facecolor=colours["paper"]
        )
        for axis, (data, curves) in zip(axes[:, 0], panes.items(), strict=False):
            if whole[data] is not None:
                axis.axhline(whole[data], color=colours["muted"], linewidth=1, label="full update, no privacy")
            for curve, points in sorted(curves.items()):
                way, _, privacy = curve.partition(", ")
                kind = ways.index(way) % len(SERIES)
                private = "epsilon" in privacy
                line = "none" if way.endswith("rounds") or len(dict(points)) < len(points) else DASHES[private]
                axis.plot(*zip(*sorted(points), strict=True), color=colours[SERIES[kind]], marker=MARKERS[kind],
                          markerfacecolor=colours["paper" if private else SERIES[kind]], linestyle=line,
                          label=curve)  # fmt: skip
            axis.set(xscale="log", title=data, xlabel=across, ylabel="Dice", facecolor=colours["paper"])
            axis.grid(color=colours["line"])
            axis.tick_params(which="both", colors=colours["ink"])
            for text in (axis.title, axis.xaxis.label, axis.yaxis.label):
                text.set_color(colours["ink"])
            for side in axis.spines.values():
                side.set_color(colours["muted"])
            axis.legend(loc="upper center", bbox_to_anchor=(0.5, -0.16), ncols=2, fontsize=8, frameon=False,
                        labelcolor=colours["ink"])  # fmt: skip
        page = io.StringIO()
        sheet.savefig(page, format="svg", metadata={"Date": None, "Creator": None})
        pyplot.close(sheet)
    rules = "".join(
        f'[style*="{way}: {value}"]{{{way}:{DARK[name]} !important}}'
        for name, value in colours.items()
        for way in ("fill", "stroke")
    )
    style = f"<style>@media (prefers-color-scheme: dark){{{rules}}}</style>\n </defs>"
    return page.getvalue().replace("</defs>", style, 1)


def plan(folder: Path) -> list[str]:
    """Arguments of every training of the pages in docs/systems, first those that say most."""
    lines = []
    for seed in (1, 2, 3):
        at = f"--seed {seed} --data {folder}"
        for name, how in PLAIN.items():
            each, lora = (how % "", how % ', "trainable": "lora:2"') if "%s" in how else (how, "")
            data = f"--set {name} {at}/{name.partition('-')[0]}"
            lines += [f"{data} {each} --sharing '{way}' --clip-range {ends}" for way, ends in WAYS]
            lines += [f"{data} {lora} --clip-range 2.0"] if lora else []
        for name, how in PRIVATE.items():
            dense, sparse = (f"--set {name} {given} {at}/{name}" for given in (how, SPARSE[name]))
            lines += [f"{dense} --epsilon 8 --sharing '{way}'" for way, _ in (*WAYS[:3], WAYS[5])]
            lines += [f"""{dense} --epsilon 8 --training '{{"trainable": "lora:2"}}'"""]
            lines += [f"{sparse} --epsilon {epsilon} --released 0.01" for epsilon in (8, 1000, 100000)]
            lines += [f"{dense} --epsilon {epsilon}" for epsilon in (2, 32)]
            lines += [f"{sparse} --epsilon {epsilon} --released 0.1" for epsilon in (10000, 1000000)]
        lines += [f"{VOLUMES} {at}/hippocampus --sharing '{way}' --clip-range {ends}" for way, ends in SMALL]
        for name, ways in FEW.items():
            how = PLAIN[name] % "" if "%s" in PLAIN[name] else PLAIN[name]
            data = f"--set {name} {at}/{name.partition('-')[0]} {how}"
            lines += [
                f"{data} --rounds {rounds} --local-steps {steps} --sharing '{way}' --clip-range {ends}"
                for rounds, steps, way, ends in ways
            ]
    return lines


def once(given: argparse.Namespace) -> None:
    """Train a cell and record it, unless it is recorded."""
    if told(given) in {line.get("cell") for line in recorded(given.record)}:
        return
    line = measured(given)
    given.record.parent.mkdir(parents=True, exist_ok=True)
    with given.record.open("a") as out:
        out.write(json.dumps(line) + "\n")
    print(json.dumps(line), flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("do", choices=("one", "plan", "many", "table", "figure"))
    parser.add_argument("--set", default="hippocampus", help="name of a study in studies/")
    parser.add_argument("--data", type=Path, help="folder of the set's images")
    parser.add_argument("--made", type=int, help="this many made patients in place of real ones, to choose settings on")
    parser.add_argument("--size", type=int, default=0, help="side of the working grid; 0 for the study's")
    parser.add_argument("--mechanism", default="none")
    parser.add_argument("--epsilon", type=float, default=8.0)
    parser.add_argument("--sharing", default="{}", help="[sharing] as JSON")
    parser.add_argument("--training", default="{}", help="fields of [training] as JSON")
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
    torch.set_num_threads(1)
    match given.do:
        case "table":
            planned = [parser.parse_args(["one", *shlex.split(cell)]) for cell in plan(Path())]
            table(recorded(given.record), [told(cell) for cell in planned])
        case "figure":
            figure(recorded(given.record), given.to)
        case "plan":
            print("\n".join(plan(given.data)))
        case "one":
            once(given)
        case _:
            for cell in sys.stdin:
                once(parser.parse_args([*sys.argv[1:], *shlex.split(cell)]))  # a line's own options count for more


if __name__ == "__main__":
    main()
