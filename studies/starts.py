"""Trains the public starts that come with fedseg again, and holds them against what is shipped: `make starts`.

With `--write` it ships what it trained. Exit code 1 where a start is missing, or has other weights. Bits repeat on one
kind of processor with the pinned torch; elsewhere torch rounds otherwise, and what has to hold is that the start is as
good: the mean Dice on public patients that no start has seen is within `TOLERANCE` of the shipped one's.
"""

import json
import sys
import time
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from fedseg.data.cases import SiteData
from fedseg.data.phantoms.table import find_phantom
from fedseg.evaluation import evaluate, overall_mean
from fedseg.models import load_model, save_model
from fedseg.pretraining import pretrained, public_cases, recipe, recipe_hash
from fedseg.start import SHIPPED, SUMS, checksums
from fedseg.study import Study, load_study
from fedseg.update import flatten

ROOT = Path(__file__).parents[1]
FILES = [*sorted((ROOT / "studies").glob("*.toml")), ROOT / "fedseg" / "demo.toml"]
PATIENTS = 24
TOLERANCE = 0.03


def studies() -> dict[str, Study]:
    """One study for each recipe of the studies that begin with a public start, by the recipe's hash."""
    loaded = [load_study(path) for path in FILES]
    return {recipe_hash(study): study for study in loaded if study.model.start == "phantom"}


def quality(model: torch.nn.Module, study: Study) -> float:
    """Mean Dice on public patients that no start was trained on."""
    phantom = find_phantom(study)
    assert phantom is not None
    cases = tuple(public_cases(phantom, study, "trial", PATIENTS))
    return overall_mean(evaluate(model, {"trial": SiteData("trial", (), cases)}, study).pooled()) or 0.0


def ship(model: torch.nn.Module, name: str, study: Study) -> None:
    path = SHIPPED / f"{name}.safetensors"
    save_model(model, path, {"recipe": json.dumps(recipe(study), sort_keys=True)})
    sums = {path.name: sha256(path.read_bytes()).hexdigest() for path in sorted(SHIPPED.glob("*.safetensors"))}
    (SHIPPED / SUMS).write_text("".join(f"{value}  {name}\n" for name, value in sums.items()), encoding="ascii")


def same(model: torch.nn.Module, name: str, study: Study) -> bool:
    path = SHIPPED / f"{name}.safetensors"
    if path.name not in checksums():
        print("  is not shipped: run with --write")
        return False
    shipped = load_model(path, study)
    mine, theirs = flatten(model), flatten(shipped)
    if np.array_equal(mine, theirs):
        print("  equals the shipped one, bit for bit")
        return True
    ours, other = quality(model, study), quality(shipped, study)
    print(f"  other bits (up to {np.abs(mine - theirs).max():.2g}): Dice {ours:.3f}, the shipped one {other:.3f}")
    return abs(ours - other) <= TOLERANCE


def main(*arguments: str) -> int:
    wanted, good = studies(), True
    for name, study in wanted.items():
        began = time.process_time()
        print(f"{study.study.name}: {recipe(study)['phantom']} phantom, {name}", flush=True)
        model = pretrained(study)
        print(f"  trained in {time.process_time() - began:.0f} s of one core", flush=True)
        if "--write" in arguments:
            ship(model, name, study)
        good &= same(model, name, study)
    for name in sorted(set(checksums()) - {f"{name}.safetensors" for name in wanted}):
        print(f"{name}: no study begins with it; remove it")
        good = False
    return 0 if good else 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
