"""The typed records of a run folder: the contract between whoever ran a study and the report.

Fields that this version does not know are ignored. It must never turn "nobody" into a number: a mean over no patients,
or one that is not finite, is None.
"""

import math
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter


def finite(value: Any) -> Any:
    """The value, or None for NaN and infinity, which Python writes into JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of_somebody(value: Any) -> Any:
    """A mean over no patients, or that is not a number, is absent."""
    if isinstance(value, dict) and (value.get("n") == 0 or finite(value.get("mean")) is None):
        return None
    return value


Number = Annotated[float | None, BeforeValidator(finite)]


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


class Event(Record):
    """Something that happened `t` seconds after the start of the run."""

    t: float


class StudyStarted(Event):
    """First line: what the study fixed."""

    kind: Literal["study"]
    name: str
    study_hash: str
    sites: list[str]
    structures: list[str]
    rounds: int
    local_steps: int
    parameters: int
    mechanism: str
    unit: str = "patient"
    delta: Number = None
    budget: Number = None
    sample_rate: Number = None
    clip_norm: Number = None
    noise_multiplier: Number = None
    suite: str = ""
    n: int
    threshold: int
    max_corrupt: int
    min_survivors: int
    bits: int
    seed: int | None = None
    secure: bool
    start: str = ""


class RoundStarted(Event):
    """A round, or another attempt at it, begins."""

    kind: Literal["round"]
    round: int
    attempt: int = 0
    model_hash: str = ""


class Trained(Event):
    """A site finished local step `step` of `steps`; 0 as it begins, which is all that a coordinator hears with DP."""

    kind: Literal["train"]
    round: int
    site: str
    step: int
    steps: int


class StepAccepted(Event):
    """The server accepted this site's message of a protocol step."""

    kind: Literal["step"]
    round: int
    site: str
    step: str
    bytes: int = 0


class StepClosed(Event):
    """The server closed a protocol step and answered everybody."""

    kind: Literal["close"]
    round: int
    step: str
    seconds: float = 0.0
    bytes_down: int = 0


class Dropped(Event):
    """A site fell silent; `after` is the last step that the server accepted from it."""

    kind: Literal["dropped"]
    round: int
    site: str
    after: str = ""


class Rejoined(Event):
    """A site that had dropped is back."""

    kind: Literal["rejoined"]
    round: int
    site: str


class Audited(Event):
    """Whoever owns all sites (the demonstration) compared a round's total with the plain sum of its inputs."""

    kind: Literal["audit"]
    round: int
    exact: bool | None


class EpsilonSpent(Event):
    """What a site has spent once this round is charged."""

    kind: Literal["epsilon"]
    round: int
    site: str
    spent: Number = None


class RoundEnded(Event):
    """A round completed with a sum over `included`."""

    kind: Literal["end_round"]
    round: int
    included: list[str]
    dropped: list[str] = []
    exact: bool | None = None
    head: str = ""
    clip_rate: dict[str, Number] = {}
    seconds: dict[str, float] = {}


AnyEvent = Annotated[
    StudyStarted
    | RoundStarted
    | Trained
    | StepAccepted
    | StepClosed
    | Dropped
    | Rejoined
    | EpsilonSpent
    | RoundEnded
    | Audited,
    Field(discriminator="kind"),
]
EVENT: TypeAdapter[Any] = TypeAdapter(AnyEvent)
KINDS = frozenset(
    [
        "study",
        "round",
        "train",
        "step",
        "close",
        "dropped",
        "rejoined",
        "epsilon",
        "end_round",
        "audit",
    ]  # the rest is for other readers
)


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


class Dice(Record):
    """Dice over all test patients and site by site."""

    overall: dict[str, MaybeInterval] = {}
    mean: MaybeInterval = None
    sites: dict[str, SiteDice] = {}


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
    command: str = ""
    started_utc: str = ""
    seconds: float
    privacy: Privacy | None = None
    dice: Dice = Dice()
    baselines: dict[str, MaybeInterval] = {}
    history: list[Validated] = []
    protocol: Protocol
    versions: dict[str, str] = {}


@dataclass(frozen=True)
class Example:
    """One picture: image (H, W) float32, truth and prediction (H, W) uint8, and whose it is."""

    image: NDArray[np.float32]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    rank: str
    site: str
    case: str
    dice: float | None
