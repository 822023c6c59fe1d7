"""One patient moves what leaves a site by at most the clip norm, whatever its images are.

Seeded studies repeat their noise and every other patient's part to the last bit. So what a site sends with a patient
more, less what it sends without, is that patient's part alone: it is compared with the bound as it left the site.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from numpy.typing import NDArray

from audits.base import Result, Task
from audits.conformance.testing import Tried, concluded, exact
from audits.conformance.training import one_more, sent, site_of, studies
from fedseg.data.cases import Case
from fedseg.mechanisms.distributed import noise_of
from fedseg.privacy import dpsgd
from fedseg.privacy.dpsgd import Grid
from fedseg.privacy.shares import Grid as SharedGrid
from fedseg.study import Study

TOLERANCE = 1e-4
"""Of differences of float32 weights."""

Hostile = Callable[[Case], list[Case]]


def _image(change: Callable[[NDArray[np.float32]], NDArray[Any]]) -> Hostile:
    return lambda case: [replace(case, image=change(case.image.copy()).astype(np.float32))]


def _spoiled(value: float) -> Hostile:
    def spoil(image: NDArray[np.float32]) -> NDArray[np.float32]:
        """The image with this value in each seventh place."""
        image.flat[::7] = value
        return image

    return _image(spoil)


PATIENTS: Mapping[str, Hostile] = {
    "an ordinary patient": lambda case: [case],
    "a patient with 12 scans": lambda case: [replace(case, name=f"scan-{number}") for number in range(12)],
    "images 1e6 times as bright": _image(lambda image: 1e6 * image),
    "images 1e30 times as bright": _image(lambda image: 1e30 * image),
    "images 1e-20 times as bright": _image(lambda image: 1e-20 * image),
    "noise for images": _image(lambda image: np.random.default_rng(1).normal(size=image.shape) * 1e3),
    "one bright pixel": _image(lambda image: np.where(np.arange(image.size).reshape(image.shape) == 77, 1e9, 0)),
    "pixels that are no numbers": _spoiled(np.nan),
    "pixels that are infinite": _spoiled(np.inf),
}


def audit(task: Task) -> Result:
    """Every hostile patient at every mechanism with a clip norm."""
    tried, longest = dict[str, float](), dict[str, float]()
    for name, study in studies(task.seed).items():
        for patient, hostile in PATIENTS.items():
            task.progress(f"{name}: {patient}")
            share = longest[f"{name}: {patient}"] = moved(study, hostile)
            tried[f"{name}: {patient}"] = exact(share <= 1 + TOLERANCE)
    tried["most patients are cut to the whole norm"] = exact(sum(share > 0.9 for share in longest.values()) >= 6)
    bugs = {
        "no clipping": lambda: _planted(task.seed, unclipped),
        "clipped at twice the norm": lambda: _planted(task.seed, twice),
        "clipped slice by slice": lambda: _planted(task.seed, by_slice),
    }
    figures: dict[str, float | int | str] = {
        f"{name}, length over clip norm": round(share, 6) for name, share in longest.items()
    }
    figures |= {"tolerance": TOLERANCE, "seed": task.seed}
    return concluded("What one patient moves, against the clip norm", tried, bugs, figures)


def moved(study: Study, hostile: Hostile) -> float:
    """Length of what a site sends because of this patient, over the most that it may have.

    Infinite where what is sent is no number any more.
    """
    data = site_of(study)
    with np.errstate(invalid="ignore", over="ignore"):
        change = sent(study, one_more(data, hostile(data.train[0]))) - sent(study, data)
        length = float(np.linalg.norm(change))
    if study.privacy.mechanism == "distributed":
        return length / noise_of(study.terms).sensitivity
    most = (study.privacy.clip_norm or 0.0) * study.study.lr / study.privacy.denominator
    return length / most if np.isfinite(length) else float("inf")


def _planted(seed: int, bug: Callable[[], object]) -> Tried:
    """The ordinary patient under a bug, at mechanism "local" and "distributed"."""
    with bug():  # type: ignore[attr-defined]
        shares = {name: moved(study, PATIENTS["a patient with 12 scans"]) for name, study in studies(seed).items()}
    return {name: exact(share <= 1 + TOLERANCE) for name, share in shares.items()}


@contextmanager
def unclipped() -> Iterator[None]:
    """Gradients as they are, and grids that let them through."""
    with _clipping_at(1e9):
        yield


@contextmanager
def twice() -> Iterator[None]:
    """The norm is meant for something else."""
    with _clipping_at(2.0):
        yield


@contextmanager
def by_slice() -> Iterator[None]:
    """Each patient counts as several, each of which is clipped."""
    honest = dpsgd.add_clipped

    def add(total: torch.Tensor, gradient: torch.Tensor, clip_norm: float | None, grid: Grid | None = None) -> None:
        """The gradient twice."""
        for part in range(2):
            honest(total, gradient * (1 + part), clip_norm, grid)

    with patch.object(dpsgd, "add_clipped", add), _blind():
        yield


@contextmanager
def _clipping_at(factor: float) -> Iterator[None]:
    honest = dpsgd.add_clipped

    def add(total: torch.Tensor, gradient: torch.Tensor, clip_norm: float | None, grid: Grid | None = None) -> None:
        """Clips at a multiple of the norm."""
        honest(total, gradient, None if clip_norm is None else factor * clip_norm, grid)

    with patch.object(dpsgd, "add_clipped", add), _blind():
        yield


@contextmanager
def _blind() -> Iterator[None]:
    """Neither grid looks at how long whole numbers are."""
    with (
        patch.object(Grid, "_too_long", lambda grid, whole: False),
        patch.object(SharedGrid, "_too_long", lambda grid, whole: False),
    ):
        yield
