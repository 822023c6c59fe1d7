"""What metrics.json says of a run: written and read by the same classes.

Whoever reads ignores fields that its version does not know. It must never turn "nobody" into a number: a mean over no
patients, or one that is not finite, is None.
"""

from typing import Annotated, Any

from pydantic import BaseModel, BeforeValidator, ConfigDict, SerializeAsAny

from fedseg.events import Number, Words, finite


def _of_somebody(value: Any) -> Any:
    """A mean over no patients, or that is not a number, is absent."""
    if isinstance(value, dict) and (value.get("n") == 0 or finite(value.get("mean")) is None):
        return None
    return value


class Record(BaseModel):
    """Immutable, unknown fields ignored: an older report reads a newer run."""

    model_config = ConfigDict(frozen=True, extra="ignore")


class Interval(Record):
    """Mean of a measure over `n` patients with its 95 % bootstrap interval."""

    mean: float
    low: Number = None
    high: Number = None
    n: int


MaybeInterval = Annotated[Interval | None, BeforeValidator(_of_somebody)]


class Achieved(Record):
    """What the sites that were really in each sum gave, beside what was charged before the rounds.

    Attributes:
        shares: of the noise that were planned for: of the fewest honest sites of any sum.
        colluders: sites at most that side with the coordinator and so know their own shares.
        charged: epsilon of the same rounds by the plan.
        epsilon: by the sums as they were; None without a bound.
        sentence: the two, for people.
    """

    shares: int
    colluders: int
    charged: float
    epsilon: Number = None
    sentence: Words = ""


class Privacy(Record):
    """The differential privacy guarantee as the accountant states it."""

    epsilon: float
    delta: float
    unit: Words
    neighbouring: Words = ""
    trust: Words = ""
    noise_multiplier: Number = None
    sample_rate: Number = None
    clip_norm: Number = None
    steps: int | None = None
    per_site: dict[Words, Number] = {}
    sentence: Words = ""
    achieved: Achieved | None = None


class SiteDice(Record):
    """One site's numbers; `n_test` None: the site did not share its metrics."""

    n_train: int | None = None
    n_test: int | None = None
    mean: MaybeInterval = None
    structures: dict[Words, MaybeInterval] = {}


class Grid(Record):
    """Where Dice was computed.

    Attributes:
        size: of the working grid, pixels (2D) or voxels (3D) a side.
        dims: of the study.
        where: "file", on which each label map was drawn; "working", or "made" where patients are made on that.
        spacing: smallest and largest width in millimetres over the cases, in the slice (2D) or on any axis (3D).
        apart: the same between slices (2D).
    """

    size: int
    dims: int
    where: Words = "working"
    spacing: tuple[float, float] | None = None
    apart: tuple[float, float] | None = None


class Dice(Record):
    """What the study's task is scored by, over all test patients and site by site.

    Attributes:
        measure: what that is called: "Dice", or "accuracy" of a classification, whose "structures" are its classes.
    """

    measure: Words = "Dice"
    grid: Grid | None = None
    overall: dict[Words, MaybeInterval] = {}
    mean: MaybeInterval = None
    sites: dict[Words, SiteDice] = {}


class SiteMeasure(Record):
    """One measure at one site."""

    mean: MaybeInterval = None
    structures: dict[Words, MaybeInterval] = {}


class Measured(Record):
    """One measure over all test patients and site by site, on the grid of `Metrics.dice`.

    Attributes:
        unit: of its values, "mm" or none.
        tolerance: millimetres that a surface may be off.
        undefined: patients by structure who have a Dice and not this: truth or prediction lacks the structure.
    """

    unit: Words = ""
    tolerance: Number = None
    overall: dict[Words, MaybeInterval] = {}
    mean: MaybeInterval = None
    sites: dict[Words, SiteMeasure] = {}
    undefined: dict[Words, int] = {}


class Reliability(Record):
    """Pictures of one bin of confidence: the probability of the class that was said; how often it was right."""

    low: float
    high: float
    pictures: int
    confidence: float
    accuracy: float


class Classes(Record):
    """How good a classifier is on all test patients; intervals are over patients, with all of their pictures.

    Attributes:
        names: of the classes.
        pictures: how many were judged.
        measures: accuracy of pictures, balanced accuracy, AUC (mean over classes, each against the rest), MCC, ECE.
        auc: of each class against the rest.
        confusion: pictures by true class and by the class that was said.
        roc: of each class the false and true positive rates.
        reliability: bins of confidence that have a picture.
    """

    names: list[Words] = []
    pictures: int = 0
    measures: dict[Words, MaybeInterval] = {}
    auc: dict[Words, MaybeInterval] = {}
    confusion: list[list[int]] = []
    roc: dict[Words, list[tuple[float, float]]] = {}
    reliability: list[Reliability] = []


class Validated(Record):
    """Mean Dice per structure on the working grid after a round, and what the site that has spent most has spent."""

    round: int
    dice: dict[Words, Number] = {}
    mean: Number = None
    epsilon: Number = None


class ValidatedBySites(Validated):
    """The same at a coordinator: `completed` rounds have a sum after this one."""

    completed: int


class Drop(Record):
    """A site that shared its keys in a completed round and is not in its sum."""

    round: int
    site: Words


class Protocol(Record):
    """Totals over the run, bytes and seconds."""

    rounds_completed: int
    burned: int = 0
    dropouts: list[Drop] = []
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: dict[Words, float] = {}


class Metrics(Record):
    """metrics.json; `format` 1, which was not written down, is of fedseg 0.1 and 0.2.

    Attributes:
        charged_for_life: of a simulation on real images: whether it was charged in the ledgers that these have for
            life. None elsewhere: sites always charge, and made patients are nobody's.
        ema, personal: of `[federation]`: which model was given out, and what of it is each site's own.
    """

    format: int = 1
    study: Words
    study_hash: Words
    seed: int | None = None
    seeded_no_privacy_claim: bool = False
    command: Words = ""
    rounds: int = 0
    unfinished: Words = ""
    started_utc: Words = ""
    seconds: float
    parameters: int = 0
    versions: dict[Words, Words] = {}
    mechanism: Words
    privacy: Privacy | None = None
    charged_for_life: bool | None = None
    ema: float = 0.0
    personal: Words = "none"
    dice: Dice = Dice()
    measures: dict[Words, Measured] = {}
    classes: Classes | None = None
    baselines: dict[Words, MaybeInterval] = {}
    history: list[SerializeAsAny[Validated]] = []
    protocol: Protocol
