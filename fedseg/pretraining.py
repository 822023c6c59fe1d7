"""Training on a public phantom: the recipe of every public start.

A public start is fully given by what `recipe` says of it, because phantom, order, views and initial weights are seeded.
One thread trains it, so that on one kind of processor the bits repeat. Must never: see a site's images.
"""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from typing import Any, TypeAlias

import numpy as np
import torch

from fedseg.augment import augmented
from fedseg.data.cases import Case, View
from fedseg.data.phantoms.phantom import Phantom
from fedseg.data.phantoms.table import phantom_of
from fedseg.models import build_model
from fedseg.study import Study
from fedseg.tasks.table import task_of
from secagg.encoding import digest
from secagg.prg import Stream

Progress: TypeAlias = Callable[[int, int], None]

VERSION = 1  # raised whenever this file, the views or the networks change so that other weights come out
SEED = 1
RATE = 0.01
Amounts: TypeAlias = Mapping[int | tuple[str, int], int]
"""By dims, or by phantom and dims."""

POOL: Amounts = {2: 160, 3: 12, ("temporal lobe", 3): 4800}  # patients
STEPS: Amounts = {2: 480, 3: 200, ("temporal lobe", 3): 9000}
BATCH: Amounts = {2: 16, 3: 1, ("temporal lobe", 3): 4}  # slices or volumes of a step


def recipe(study: Study) -> dict[str, Any]:
    """What the weights of a study's public start come from; of the study nothing else matters, such as its name.

    Raises:
        ConfigError: no phantom fits the study.
    """
    phantom, dims = _phantom(study), study.data.dims
    options: dict[str, Any] = {"blocks": list(study.model.blocks), "deep": study.training.deep_supervision}
    options["standardised"] = study.training.weight_standardisation
    options["grid"] = [*study.data.sides, *study.data.spacing] if phantom.at_spacing else []
    options["classes"] = "weigh alike" if study.study.task == "classification" else ""
    return {name: value for name, value in options.items() if value} | {
        "phantom": phantom.name,
        "phantom version": phantom.version,
        "hospital": asdict(phantom.public(study)),
        "pretraining version": VERSION,
        "patients": _amount(POOL, phantom, dims),
        "steps": _amount(STEPS, phantom, dims),
        "batch": _amount(BATCH, phantom, dims),
        "task": study.study.task,
        "structures": len(study.names),
        "channels": study.in_channels,
        "dims": dims,
        "size": study.data.cube,
        "network": study.model.name,
        "features": list(study.model.channels),
    }


def recipe_hash(study: Study) -> str:
    """32 hexadecimal digits that name a study's public start: no path, no source file, no version of torch."""
    return digest("public start", json.dumps(recipe(study), sort_keys=True)).hex()[:32]


def public_cases(phantom: Phantom[Any], study: Study, purpose: str, patients: int) -> list[Case]:
    """Patients of the public hospital; other purposes get other patients."""
    seeds = [int(seed) for seed in Stream.seeded(SEED, "public phantom", purpose).words64(patients)]
    return phantom.public_cases(seeds, study)


def pretrained(study: Study, progress: Progress | None = None) -> torch.nn.Module:
    """Train a study's public start: a minute or two of one core, seven for volumes of temporal lobes.

    Args:
        study: gives network, grid and phantom.
        progress: called with steps done and in all.

    Raises:
        ConfigError: no phantom fits the study.
        UnsupportedModelError: the network mixes patients.
    """
    # What the recipe does not name has no part in it: made classes are not as frequent as the study's.
    study = study.replace(study={"name": "phantom", "seed": None, "class_weights": []}, training={"trainable": "all"})
    phantom = _phantom(study)
    cases = public_cases(phantom, study, "pretraining", _amount(POOL, phantom, study.data.dims))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        return _trained(study, cases, progress)
    finally:
        torch.set_num_threads(threads)


def _trained(study: Study, cases: Sequence[Case], progress: Progress | None) -> torch.nn.Module:
    """The study's network after `STEPS` steps on random views of the cases."""
    images, labels = _stacked(cases, study)
    phantom, dims = _phantom(study), study.data.dims
    steps, batch = _amount(STEPS, phantom, dims), _amount(BATCH, phantom, dims)
    generator = torch.Generator().manual_seed(int(Stream.seeded(SEED, "pretraining").integers(1, 2**62)[0]))
    model, task = build_model(study), task_of(study)
    model.train()
    optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
    for step in range(1, steps + 1):
        drawn = torch.randint(len(images), (batch,), generator=generator)
        image, label = _view(images[drawn], labels[drawn].long(), study, generator)
        optimiser.zero_grad()
        loss = task.loss(model(image), label)
        loss.backward()  # type: ignore[no-untyped-call]
        optimiser.step()
        schedule.step()
        if progress is not None:
            progress(step, steps)
    return model


def _amount(amounts: Amounts, phantom: Phantom[Any], dims: int) -> int:
    return amounts.get((phantom.name, dims), amounts[dims])


def _phantom(study: Study) -> Phantom[Any]:
    return phantom_of(study, "[model] start = 'phantom'", "use start = 'scratch' or give a .safetensors file")


def _view(
    images: torch.Tensor, labels: torch.Tensor, study: Study, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """A random view of each image with its label, which is a map or a class: a class stays what it is."""
    if labels.ndim > 1:
        return augmented(images, labels, len(study.structures), generator)
    return augmented(images, torch.zeros_like(images[:, 0], dtype=torch.int64), 0, generator)[0], labels


def _stacked(cases: Sequence[Case], study: Study) -> tuple[torch.Tensor, torch.Tensor]:
    """All slices (2D) or volumes: images (k, C, *size) float32, labels (k, *size) uint8, or (k,) of a class each."""
    task = task_of(study)

    def everything(case: Case) -> View:
        """The view that leaves nothing out."""
        return lambda values: np.moveaxis(values, case.slice_axis + 1, 0) if case.axes == 2 else values[None]

    images = [everything(case)(case.image) for case in cases]
    labels = [task.targets(case, everything(case)).to(torch.uint8) for case in cases]
    return torch.from_numpy(np.concatenate(images)), torch.cat(labels)
