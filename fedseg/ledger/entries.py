"""What a line of the ledger can say, and what it released: one class a kind, each with its event for the accountant.

An entry holds all that is needed to recompute epsilon. The spent epsilon itself is never stored and never trusted.
A ledger outlives versions: lines of fedseg 0.3 and 0.4 are read for good.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from operator import attrgetter
from typing import TYPE_CHECKING, Annotated, Any, ClassVar, Literal, Self, TypeAlias, get_args

from pydantic import BaseModel, ConfigDict, Field, TypeAdapter

if TYPE_CHECKING:  # events import the accountants' libraries, which whoever only reads lines need not wait for
    from dp_accounting.dp_event import DpEvent

Generator: TypeAlias = Literal["os", "seeded: no privacy claim"]

FORMAT: Literal[4] = 4


class _Entry(BaseModel, ABC):
    """What every line says: of which study, site, run and round something was released, and from whom.

    Attributes:
        format: of the line; those of fedseg 0.1 and 0.2 have none, and their epsilon was not true.
        study_hash: hash of the study, hexadecimal.
        study: its name, for people; "" in lines of 0.3 and 0.4.
        site: site id.
        training_run: name of the run whose rounds are counted.
        round_number: at least 1; a round of a training run has one entry of its `series`, however often it is tried.
        unit: whose presence is hidden, or is not.
        patients: id of the set of patients that paid (`fedseg.ledger.patients`); "" where it is not known, which counts
            for everybody.
        charged: when, UTC to the second; "" in lines of 0.3 and 0.4.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)

    series: ClassVar[Literal["training", "metrics"]]
    """Whose rounds are counted together: the round numbers of a series only rise."""

    format: Literal[4] = FORMAT
    study_hash: str = Field(pattern=r"^[0-9a-f]{64}$")
    study: str = ""
    site: str
    training_run: str
    round_number: int = Field(ge=1)
    unit: str
    patients: str = Field(default="", pattern=r"^([0-9a-f]{64})?$")
    charged: str = ""

    @property
    def run(self) -> str:
        """The training run for people: a simulation's is called as its folder was before it was whole."""
        return self.training_run.removesuffix(".partial")

    @abstractmethod
    def dp_event(self, *, unseeded: bool = False, known: int | None = None) -> "DpEvent | None":
        """What was released, for the accountant; None where epsilon does not cover it.

        Args:
            unseeded: as if nobody knew a seed, which is what a seeded study shows.
            known: to somebody who knows the noise of so many sites; None for as many as the study was planned for,
                which is what budgets are held against. It matters where sites share the noise.
        """

    def same_use(self, other: "_Entry") -> bool:
        """Whether both are one use of the data: all is the same but when it was entered, its name, and who paid."""
        return self._use() == other._use()

    def _use(self) -> Self:
        return self.model_copy(update={"charged": "", "study": "", "patients": ""})


class NoisySteps(_Entry):
    """A round of mechanism "local": `steps` noisy releases of a sum of clipped patient gradients.

    Attributes:
        neighbouring: relation between the data sets that an adversary cannot tell apart.
        sample_rate: probability of each unit to be drawn in a step, independently (Poisson).
        noise_multiplier: standard deviation of the noise on the sum, over `clip_norm`.
        clip_norm: largest L2 norm of one unit's gradient, the sensitivity of the sum.
        denominator: public constant that divides the noisy sum.
        steps: draws in this round.
        generator: where sampling and noise come from. Whoever knows a seed can recompute both.
    """

    series = "training"

    kind: Literal["local"] = "local"
    neighbouring: Literal["add or remove one"] = "add or remove one"
    sample_rate: float = Field(gt=0, le=1)
    noise_multiplier: float = Field(ge=0)
    clip_norm: float = Field(ge=0)
    denominator: float = Field(gt=0)
    steps: int = Field(ge=0)
    generator: Generator

    def dp_event(self, *, unseeded: bool = False, known: int | None = None) -> "DpEvent":
        """Gaussian noise on the sum over a random draw; nothing protects where a seed is known."""
        from dp_accounting.dp_event import NonPrivateDpEvent

        from fedseg.privacy.accounting import gaussian_steps

        if self.generator != "os" and not unseeded:
            return NonPrivateDpEvent()
        return gaussian_steps(self.noise_multiplier, self.sample_rate, self.steps)


class NoisySum(_Entry):
    """A round of mechanism "distributed": one release of the sum over all sites, with integer noise.

    Attributes:
        neighbouring: relation between the data sets that an adversary cannot tell apart.
        sample_rate: probability of each unit to be drawn, independently (Poisson).
        noise: distribution of each site's share of the noise.
        variance: of one site's share.
        sensitivity: L2 norm that the integers of one unit never exceed.
        shares: how many shares count: of the honest sites that every sum has at least.
        survivors: sites that every sum has at least, honest or not; 0 where the line does not tell.
        clip_norm: largest L2 norm of one unit's gradient, which becomes integers.
        denominator: public constant that divides the sum, times the sites.
        generator: where sampling and noise come from. Whoever knows a seed can recompute both.
    """

    series = "training"
    steps: ClassVar[int] = 1

    kind: Literal["distributed"] = "distributed"
    neighbouring: Literal["add or remove one"] = "add or remove one"
    sample_rate: float = Field(gt=0, le=1)
    noise: Literal["skellam", "gaussian"]
    variance: int = Field(ge=1)
    sensitivity: int = Field(ge=1)
    shares: int = Field(ge=1)
    survivors: int = Field(default=0, ge=0)
    clip_norm: float = Field(gt=0)
    denominator: float = Field(gt=0)
    generator: Generator

    def dp_event(self, *, unseeded: bool = False, known: int | None = None) -> "DpEvent":
        """The noise of all shares that count, on the sum over a random draw; nothing protects where a seed is known."""
        return _shared(self, self.noise, self.sample_rate, unseeded, known)


class NoisyStatistics(_Entry):
    """Statistics of all patients in training: one release of one sum, in which nobody is drawn and everybody is.

    Attributes:
        neighbouring: relation between the data sets that an adversary cannot tell apart.
        variance: of one site's discrete Gaussian noise.
        sensitivity: L2 norm that the whole numbers of one unit never exceed.
        shares: how many sites' noise counts; 1 where each site's is the whole.
        survivors: sites that every sum has at least; 0 where each site's noise is the whole.
        generator: where the noise comes from. Whoever knows a seed can recompute it.
    """

    series = "training"

    kind: Literal["statistics"] = "statistics"
    neighbouring: Literal["add or remove one"] = "add or remove one"
    variance: int = Field(ge=1)
    sensitivity: int = Field(ge=1)
    shares: int = Field(ge=1)
    survivors: int = Field(ge=0)
    generator: Generator

    def dp_event(self, *, unseeded: bool = False, known: int | None = None) -> "DpEvent":
        """The noise of all shares that count, on a sum over everybody; nothing protects where a seed is known."""
        return _shared(self, "gaussian", 1.0, unseeded, known)


class SparseRelease(_Entry):
    """A round of mechanism "svt": a few values of an update, chosen and noised, after which nothing else is shown.

    Attributes:
        neighbouring: relation between the data sets that an adversary cannot tell apart; any other change of the
            site's data is hidden alike.
        epsilon: of the round at delta 0: of choosing and of what was chosen together.
        released: share of the values that are released at most.
        clip_range: to which each value of the update is cut first.
        threshold: what a magnitude has to reach.
        generator: where the noise comes from. Whoever knows a seed can recompute it.
    """

    series = "training"

    kind: Literal["svt"] = "svt"
    neighbouring: Literal["add or remove one"] = "add or remove one"
    epsilon: float = Field(gt=0)
    released: float = Field(gt=0, le=1)
    clip_range: float = Field(gt=0)
    threshold: float = Field(ge=0)
    generator: Generator

    def dp_event(self, *, unseeded: bool = False, known: int | None = None) -> "DpEvent":
        """So much at delta 0; nothing protects where a seed is known."""
        from dp_accounting.dp_event import NonPrivateDpEvent

        from fedseg.privacy.pure import PureDpEvent

        if self.generator != "os" and not unseeded:
            return NonPrivateDpEvent()
        return PureDpEvent(self.epsilon)


class UnprotectedRound(_Entry):
    """A round of mechanism "none": after it no epsilon is promised to these patients any more."""

    series = "training"

    kind: Literal["none"] = "none"

    def dp_event(self, *, unseeded: bool = False, known: int | None = None) -> "DpEvent":
        """No noise, with or without a seed."""
        from dp_accounting.dp_event import NonPrivateDpEvent

        return NonPrivateDpEvent()


class MetricsRelease(_Entry):
    """Validation metrics that were sent: not covered by epsilon, which speaks for training."""

    series = "metrics"

    kind: Literal["metrics"] = "metrics"

    def dp_event(self, *, unseeded: bool = False, known: int | None = None) -> None:
        """Not covered."""
        return


def _shared(
    entry: NoisySum | NoisyStatistics,
    noise: Literal["skellam", "gaussian"],
    sample_rate: float,
    unseeded: bool,
    known: int | None,
) -> "DpEvent":
    """The event of one sum in which all shares of the noise that count are."""
    from dp_accounting.dp_event import NonPrivateDpEvent

    from fedseg.privacy.shared_noise import SharedNoise

    shares = entry.shares if known is None or not entry.survivors else entry.survivors - known
    if shares <= 0 or (entry.generator != "os" and not unseeded):
        return NonPrivateDpEvent()
    # Of whole numbers none is larger than its square, so that a longer vector has no larger L1 norm.
    shared = SharedNoise(noise, entry.variance, entry.sensitivity, length=entry.sensitivity**2)
    return shared.event(shares, sample_rate, 1)


Entry: TypeAlias = NoisySteps | NoisySum | NoisyStatistics | SparseRelease | UnprotectedRound | MetricsRelease
"""A line of the ledger. A new kind is one more class here, with an event of its own."""

_OWN: dict[type[Entry], Callable[[Entry], Any]] = {
    kind: attrgetter(*sorted(kind.model_fields.keys() - _Entry.model_fields.keys())) for kind in get_args(Entry)
}
"""What an entry says beyond what all do: its event depends on nothing else."""

_ENTRY: TypeAdapter[Entry] = TypeAdapter(Annotated[Entry, Field(discriminator="kind")])
_KINDS: dict[str, type[BaseModel]] = {"local": NoisySteps, "none": UnprotectedRound, "metrics": MetricsRelease}
"""Of format 2, by what it called the mechanism."""


def entry_of(fields: dict[str, Any]) -> Entry:
    """The entry that a line's fields are today; raises `ValueError` (pydantic's) where they are none."""
    match fields.get("format"):
        case 2:  # of 0.3, whose kinds had all fields alike and two that nobody read
            kept = _KINDS.get(fields.get("mechanism", ""), NoisySteps).model_fields
            fields = {"kind": fields.get("mechanism"), **{name: fields[name] for name in fields if name in kept}}
            return _ENTRY.validate_python({**fields, "format": FORMAT})
        case 3:  # of 0.4, which knew no sets of patients
            return _ENTRY.validate_python({**fields, "format": FORMAT})
    return _ENTRY.validate_python(fields)


def distinct(entries: Iterable[Entry]) -> list[Entry]:
    """Each use of one ledger once.

    A round has two entries where its patients changed between two attempts at it; only one of these gave anything.
    """
    uses: dict[tuple[str, str, int], Entry] = {}
    for entry in entries:
        uses.setdefault((entry.training_run, entry.series, entry.round_number), entry)
    return list(uses.values())


def released(entries: Iterable[Entry], *, unseeded: bool = False, known: int | None = None) -> "list[DpEvent]":
    """Everything in `entries` that epsilon has to speak for; `unseeded` and `known` as in `dp_event`.

    Entries that differ only in who, when and which round are one event, so many times.
    """
    from dp_accounting.dp_event import SelfComposedDpEvent

    alike: dict[tuple[type[Entry], Any], list[Entry]] = {}
    for entry in entries:
        alike.setdefault((type(entry), _OWN[type(entry)](entry)), []).append(entry)
    events = ((same[0].dp_event(unseeded=unseeded, known=known), len(same)) for same in alike.values())
    return [SelfComposedDpEvent(event, count) if count > 1 else event for event, count in events if event is not None]
