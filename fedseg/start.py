"""What a study starts from: fresh weights, weights trained on a public phantom, or a file.

The phantom is made by the package with a profile ("pretrain") that no site has, so it is nobody's data and costs no
privacy. Every process on a machine gets the same weights; they are kept in the user's cache under the hash of all that
shapes them, the code of the phantoms included. Must never: see a site's images, or take weights that are not whole.
"""

import copy
import json
import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch

from fedseg import augment
from fedseg.augment import augmented
from fedseg.data.cases import Case, SiteData
from fedseg.data.phantoms import fetal_brain, fetal_scan, tumour
from fedseg.data.phantoms.phantom import Phantom
from fedseg.data.phantoms.table import find_phantom, phantom_of
from fedseg.errors import ConfigError
from fedseg.models import build_model, load_model, metadata_of, save_model
from fedseg.study import Study
from fedseg.tasks.table import task_of
from secagg.encoding import digest
from secagg.prg import Stream
from secagg.writing import PRIVATE_FOLDER

Progress: TypeAlias = Callable[[int, int], None]

SEED = 1
PUBLIC = 3  # cases that a coordinator looks at
RATE = 0.01
POOL = {2: 160, 3: 12}  # patients, by dims
STEPS = {2: 480, 3: 200}
BATCH = {2: 16, 3: 1}  # slices or volumes of a step

_unkept: dict[str, torch.nn.Module] = {}  # starts of this process, by file name, where there is no cache to keep them


def starting_model(study: Study, progress: Progress | None = None) -> torch.nn.Module:
    """The model before the first round.

    Args:
        study: its [model] start is 'scratch', 'phantom' or the path of a .safetensors file.
        progress: called with steps done and in all while a phantom start is trained; not at all from the cache.

    Raises:
        ConfigError: no phantom fits the study, or the file does not hold a model of the study.
        UnsupportedModelError: the network mixes patients.
    """
    match study.model.start:
        case "scratch":
            return build_model(study)
        case "phantom":
            return _phantom_model(study, progress)
        case path:
            return load_model(Path(path), study)


def public_cases(study: Study) -> SiteData:
    """Phantoms that a coordinator may look at, as test cases; none where no phantom fits the study."""
    phantom, name = find_phantom(study), "public phantom"
    cases = _cases(phantom, study, "public", PUBLIC) if phantom is not None else []
    return SiteData(name, (), tuple(replace(case, site=name) for case in cases))


def _cases(phantom: Phantom[Any], study: Study, purpose: str, patients: int) -> list[Case]:
    seeds = [int(seed) for seed in Stream.seeded(SEED, "public phantom", purpose).words64(patients)]
    return phantom.public_cases(seeds, study)


# --- Pretraining -------------------------------------------------------------------------------------------------


def _phantom_model(study: Study, progress: Progress | None) -> torch.nn.Module:
    phantom = phantom_of(study, "[model] start = 'phantom'", "use start = 'scratch' or give a .safetensors file")
    study = study.replace(study={"name": "phantom", "seed": None})  # the same start whatever a study's name and seed
    name, folder = f"phantom-{_content_hash(study)}.safetensors", _cache_folder()
    if name in _unkept:
        return copy.deepcopy(_unkept[name])
    if folder is not None:
        with suppress(ConfigError):  # absent or damaged
            return load_model(folder / name, study)
    model = _pretrained(study, _cases(phantom, study, "pretraining", POOL[study.data.dims]), progress)
    try:
        if folder is None:
            raise FileNotFoundError
        folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        save_model(model, folder / name, metadata_of(study))
    except OSError:  # a cache that cannot be written costs time only
        _unkept[name] = copy.deepcopy(model)
    return model


def _pretrained(study: Study, cases: Sequence[Case], progress: Progress | None) -> torch.nn.Module:
    """The study's network after `STEPS` steps on random views of the cases; one thread, so that bits repeat."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        images, labels = _stacked(cases)
        steps, batch = STEPS[study.data.dims], BATCH[study.data.dims]
        generator = torch.Generator().manual_seed(int(Stream.seeded(SEED, "pretraining").integers(1, 2**62)[0]))
        model, task = build_model(study), task_of(study)
        model.train()
        optimiser = torch.optim.AdamW(model.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, RATE, total_steps=steps)
        for step in range(1, steps + 1):
            drawn = torch.randint(len(images), (batch,), generator=generator)
            image, label = augmented(images[drawn], labels[drawn].long(), len(study.structures), generator)
            optimiser.zero_grad()
            loss = task.loss(model(image), label)
            loss.backward()  # type: ignore[no-untyped-call]
            optimiser.step()
            schedule.step()
            if progress is not None:
                progress(step, steps)
        return model
    finally:
        torch.set_num_threads(threads)


def _stacked(cases: Sequence[Case]) -> tuple[torch.Tensor, torch.Tensor]:
    """All slices (2D) or volumes: images (k, C, *size) float32, labels (k, *size) uint8."""
    images, labels = [], []
    for case in cases:
        assert case.label is not None  # noqa: S101  phantoms are born labelled
        images.append(np.moveaxis(case.image, 3, 0) if case.axes == 2 else case.image[None])
        labels.append(np.moveaxis(case.label, 2, 0) if case.axes == 2 else case.label[None])
    return torch.from_numpy(np.concatenate(images)), torch.from_numpy(np.concatenate(labels))


def _content_hash(study: Study) -> str:
    """Of everything that shapes the weights: the network, the working grid, this code and the numerics below it."""
    modules = (fetal_brain, fetal_scan, tumour, augment)
    code = [Path(str(module.__file__)).read_bytes() for module in modules] + [Path(__file__).read_bytes()]
    shape = {
        "structures": len(study.structures),
        "channels": study.in_channels,
        "dims": study.data.dims,
        "size": study.data.size,
        "phantom hospitals": study.data.layout == "phantom",
        "model": study.model.model_dump(mode="json", exclude={"start"}),
        "torch": torch.__version__,
    }
    return digest("phantom start", json.dumps(shape, sort_keys=True), *code).hex()[:32]


def _cache_folder() -> Path | None:
    """Where the user's caches are, by the XDG convention; None for a user without a home."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given) / "fedseg" if given else Path.home() / ".cache" / "fedseg"
    except RuntimeError:  # neither HOME nor an entry in passwd
        return None
