"""What a run folder holds beside its events: the contract between whoever ran a study and the report.

Fields that this version does not know are ignored. It must never turn "nobody" into a number: a mean over no patients,
or one that is not finite, is None.
"""

from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict

from fedseg.data.view import View
from fedseg.events import Number, finite


def _of_somebody(value: Any) -> Any:
    """A mean over no patients, or that is not a number, is absent."""
    if isinstance(value, dict) and (value.get("n") == 0 or finite(value.get("mean")) is None):
        return None
    return value


class Record(BaseModel):
    """Immutable, unknown fields ignored: an older report reads a newer run."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Interval(Record):
    """Mean Dice over `n` patients with its 95 % bootstrap interval."""

    mean: float
    low: Number = None
    high: Number = None
    n: int


MaybeInterval = Annotated[Interval | None, BeforeValidator(_of_somebody)]


class Privacy(Record):
    """The differential privacy guarantee as the accountant states it."""

    epsilon: float
    delta: float
    unit: str
    neighbouring: str = ""
    trust: str = ""
    noise_multiplier: Number = None
    sample_rate: Number = None
    clip_norm: Number = None
    steps: int | None = None
    per_site: dict[str, Number] = {}
    sentence: str = ""


class SiteDice(Record):
    """One site's numbers; `n_test` None: the site did not share its metrics."""

    n_train: int | None = None
    n_test: int | None = None
    mean: MaybeInterval = None
    structures: dict[str, MaybeInterval] = {}


class Grid(Record):
    """Where Dice was computed: `size` pixels (2D) or voxels (3D) a side.

    Attributes:
        spacing: smallest and largest width in millimetres over the cases, in the slice (2D) or on any axis (3D).
        apart: the same between slices (2D).
    """

    size: int
    dims: int
    spacing: tuple[float, float] | None = None
    apart: tuple[float, float] | None = None


class Dice(Record):
    """Dice over all test patients and site by site."""

    overall: dict[str, MaybeInterval] = {}
    mean: MaybeInterval = None
    sites: dict[str, SiteDice] = {}
    grid: Grid | None = None


class Validated(Record):
    """Mean Dice per structure after a round."""

    round: int
    dice: dict[str, Number] = {}
    mean: Number = None


class Protocol(Record):
    """Totals over the run, bytes and seconds."""

    rounds_completed: int
    burned: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: dict[str, float] = {}


class Metrics(Record):
    """metrics.json."""

    format: int = 1
    study: str
    study_hash: str
    seeded_no_privacy_claim: bool = False
    unfinished: str = ""
    command: str = ""
    rounds: int = 0
    started_utc: str = ""
    seconds: float
    mechanism: str
    privacy: Privacy | None = None
    dice: Dice = Dice()
    baselines: dict[str, MaybeInterval] = {}
    history: list[Validated] = []
    protocol: Protocol
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class Example:
    """One picture: image (H, W) float32, truth and prediction (H, W) uint8, and whose it is.

    A case has a name in the file, for its owner; a page says site and slice only.
    """

    image: NDArray[np.float32]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    rank: str
    site: str
    dice: float | None
    view: View | None = None
