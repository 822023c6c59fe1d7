"""What a study starts from: fresh weights, a public start, or a file.

A public start is trained on a phantom: on patients that the package makes, with a hospital ("pretrain") that is no
site's. No image of a person is in it, and it costs no privacy. The starts of the studies in `studies/` and of the
demonstration come with the package (`starts/`), each under the hash of its recipe. Any other is trained once and kept
in the user's cache. Must never: see a site's images, or take weights that are not whole.
"""

import copy
import os
from contextlib import suppress
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import torch

from fedseg.data.cases import SiteData
from fedseg.data.phantoms.table import find_phantom
from fedseg.errors import ConfigError
from fedseg.models import build_model, load_model, metadata_of, save_model
from fedseg.models.adapting import train_only
from fedseg.models.standardising import begin
from fedseg.pretraining import Progress, pretrained, public_cases, recipe_hash
from fedseg.study import Study
from secagg.writing import PRIVATE_FOLDER

SHOWN = 3  # cases that a coordinator looks at
SHIPPED = Path(__file__).parent / "starts"
SUMS = "SHA256SUMS"

_unkept: dict[str, torch.nn.Module] = {}  # starts of this process, by recipe, where there is no cache to keep them


def starting_model(study: Study, progress: Progress | None = None) -> torch.nn.Module:
    """The model before the first round.

    Args:
        study: its [model] start is 'scratch', 'phantom' or the path of a .safetensors file.
        progress: called with steps done and in all while a public start is trained; not at all where it is there.

    Raises:
        ConfigError: no phantom fits the study, the file does not hold a model of the study, or the start that came with
            the package is not the one that was shipped.
        UnsupportedModelError: the network mixes patients.
    """
    match study.model.start:
        case "scratch":
            return build_model(study)
        case "phantom":
            model = _public_start(_whole(study), progress)
        case path:
            model = load_model(Path(path), _whole(study))
            begin(model, study)  # the file's mean and deviation are of other patients
    train_only(model, study)
    return model


def same_everywhere(study: Study) -> bool:
    """Whether everybody has the same start, bit for bit: not one that each trains for itself, nor a file not here."""
    if study.model.start == "phantom":
        return f"{recipe_hash(study)}.safetensors" in checksums()
    return study.model.start == "scratch" or Path(study.model.start).is_file()


def _whole(study: Study) -> Study:
    """The study as if all were trained: starts have no thin matrices."""
    return study.model_copy(update={"training": study.training.model_copy(update={"trainable": "all"})})


def public_phantom(study: Study) -> SiteData:
    """Made patients that a coordinator may look at, as test cases; none where no phantom fits the study."""
    phantom, name = find_phantom(study), "public phantom"
    cases = public_cases(phantom, study, "public", SHOWN) if phantom is not None else []
    return SiteData(name, (), tuple(replace(case, site=name) for case in cases))


def _public_start(study: Study, progress: Progress | None) -> torch.nn.Module:
    name = recipe_hash(study)
    if (shipped := _shipped(name)) is not None:
        return load_model(shipped, study)
    # Other versions of torch round elsewhere, so each keeps its own.
    kept, folder = f"phantom-{name}-torch-{torch.__version__}.safetensors", _cache_folder()
    if name in _unkept:
        return copy.deepcopy(_unkept[name])
    if folder is not None:
        with suppress(ConfigError):  # absent or damaged
            return load_model(folder / kept, study)
    model = pretrained(study, progress)
    try:
        if folder is None:
            raise FileNotFoundError
        folder.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        save_model(model, folder / kept, metadata_of(study))
    except OSError:  # a cache that cannot be written costs time only
        _unkept[name] = copy.deepcopy(model)
    return model


def _shipped(name: str) -> Path | None:
    """The start that came with the package under this recipe, its SHA-256 checked; None where there is none.

    Raises:
        ConfigError: it is not the one that was shipped, or cannot be read.
    """
    path = SHIPPED / f"{name}.safetensors"
    wanted = checksums().get(path.name)
    if wanted is None:
        return None
    try:
        found = sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); install fedseg again") from error
    if found != wanted:
        raise ConfigError(f"{path}: is not the start that came with fedseg: another SHA-256; install fedseg again")
    return path


def checksums() -> dict[str, str]:
    """SHA-256 of each start that came with the package, by file name."""
    lines = (SHIPPED / SUMS).read_text(encoding="ascii").splitlines()
    return {name: value for value, name in (line.split() for line in lines)}


def _cache_folder() -> Path | None:
    """Where the user's caches are, by the XDG convention; None for a user without a home."""
    given = os.environ.get("XDG_CACHE_HOME")
    try:
        return Path(given) / "fedseg" if given else Path.home() / ".cache" / "fedseg"
    except RuntimeError:  # neither HOME nor an entry in passwd
        return None
