"""What happens in a run, one class per kind of event: written to events.jsonl and read from it by the same classes.

Whoever emits an event is held to its fields by mypy and pydantic; a reader skips kinds and fields that its version does
not know. An event holds neither an update nor a secret. Text of others is made fit to be shown as it enters an event
(`Words`), so that whoever reads one has it in one line without anything that acts.
"""

import math
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Literal, Protocol, TypeAlias

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, TypeAdapter

from secagg.printable import dialled, printable


def now() -> str:
    """The time of day as events have it: UTC to the millisecond, ISO 8601."""
    return datetime.now(UTC).isoformat(timespec="milliseconds")


def finite(value: Any) -> Any:
    """The value, or None for NaN and infinity, which Python writes into JSON."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _printable(value: Any) -> Any:
    return printable(value) if isinstance(value, str) else value


Number = Annotated[float | None, BeforeValidator(finite)]
Words = Annotated[str, BeforeValidator(_printable)]
"""Text that others may have written: kept as `secagg.printable` shows it."""


MUCH_CUT = 0.03
"""Share of an update's values cut by `clip_range` from which on people are told."""


class Event(BaseModel):
    """Something that happened `t` seconds after the start of the run; whoever writes it down fills in when.

    Immutable, unknown fields ignored: an older version reads a newer run.

    Attributes:
        t: interruptions left out.
        at: UTC to the millisecond, ISO 8601; "" in runs of 0.5.
    """

    model_config = ConfigDict(frozen=True, extra="ignore")

    t: float = 0.0
    at: Words = ""


class Listening(Event):
    """The coordinator can be reached."""

    kind: Literal["listening"] = "listening"
    host: Words
    port: int

    @property
    def where(self) -> str:
        """As it is given to others."""
        return dialled(self.host, self.port)


class StudyStarted(Event):
    """What the study fixed; the report's first line.

    Attributes:
        party: who writes this down: "coordinator", a site's id, or "" for a simulation.
        spare_rounds: rounds that may burn before the study ends short.
        trust: who is trusted for the epsilon, in one sentence; "" where none is claimed.
        task: "segmentation", or "classification", whose structures are classes.
    """

    kind: Literal["study"] = "study"
    name: Words
    study_hash: Words
    sites: tuple[Words, ...]
    structures: tuple[Words, ...]
    rounds: int
    local_steps: int
    parameters: int
    mechanism: Words
    unit: Words
    delta: Number
    budget: Number
    sample_rate: Number
    clip_norm: Number
    noise_multiplier: Number
    suite: Words
    n: int
    threshold: int
    max_corrupt: int
    min_survivors: int
    bits: int
    seed: int | None
    secure: bool
    start: Words
    party: Words = ""
    spare_rounds: int = 0
    trust: Words = ""
    task: Words = "segmentation"


class Connected(Event):
    """A peer is there: its process has come, or is back after a cut.

    Attributes:
        site: who; "coordinator" at a site.
        version: of its software, where it said so.
    """

    kind: Literal["connected"] = "connected"
    site: Words
    version: Words = ""


class Certificate(Event):
    """When a party's certificate ends, ISO 8601; told as it is known, and again when it was renewed."""

    kind: Literal["certificate"] = "certificate"
    site: Words
    until: Words


class Disconnected(Event):
    """The connection to a peer broke."""

    kind: Literal["disconnected"] = "disconnected"
    site: Words


class Refused(Event):
    """A peer's process can take no part, such as one with another study."""

    kind: Literal["refused"] = "refused"
    site: Words
    reason: Words


class Resumed(Event):
    """An interrupted run goes on after whole round `round`; 0 where there was none."""

    kind: Literal["resumed"] = "resumed"
    round: int


class Waiting(Event):
    """Nothing goes on before these parties are there or have spoken, or `seconds` more have passed; None for ever.

    Attributes:
        step: the protocol step that waits; "" where a round cannot begin, or where the coordinator is not there.
    """

    kind: Literal["waiting"] = "waiting"
    sites: tuple[Words, ...]
    seconds: Number
    step: Words = ""


class RoundStarted(Event):
    """A round, or another attempt at it, begins."""

    kind: Literal["round"] = "round"
    round: int
    attempt: int
    model_hash: Words


class Trained(Event):
    """A site finished local step `step` of `steps`; 0 as it begins, which is all that a coordinator hears with DP."""

    kind: Literal["train"] = "train"
    round: int
    site: Words
    step: int
    steps: int


class StepOpened(Event):
    """The server asks these sites for their message of a step, and closes it after `seconds`; None for never."""

    kind: Literal["open"] = "open"
    round: int
    step: Words
    sites: tuple[Words, ...]
    seconds: Number


class StepAccepted(Event):
    """The server accepted this site's message of a protocol step."""

    kind: Literal["step"] = "step"
    round: int
    site: Words
    step: Words
    bytes: int


class StepClosed(Event):
    """The server closed a protocol step and answered everybody."""

    kind: Literal["close"] = "close"
    round: int
    step: Words
    seconds: float
    bytes_down: int


class Dropped(Event):
    """A site fell silent; `after` is the last step that the server accepted from it, empty where none."""

    kind: Literal["dropped"] = "dropped"
    round: int
    site: Words
    after: Words


class Rejoined(Event):
    """A site that had dropped is back."""

    kind: Literal["rejoined"] = "rejoined"
    round: int
    site: Words


class Left(Event):
    """A site takes part no more, such as one whose budget is spent."""

    kind: Literal["left"] = "left"
    site: Words
    reason: Words


class Burned(Event):
    """An attempt ended without a sum."""

    kind: Literal["burned"] = "burned"
    round: int
    attempt: int
    reason: Words


class EpsilonSpent(Event):
    """What a site has spent once this round is charged."""

    kind: Literal["epsilon"] = "epsilon"
    round: int
    site: Words
    spent: Number


class RoundEnded(Event):
    """A round completed with a sum over `included`.

    Attributes:
        included: U3, the sites in the sum.
        dropped: U2 without U3, the sites that shared their keys and are not in it.
        exact: whether the sum is, bit for bit, that of the included updates; None where not known.
        attempt: None where only the account of the round is known.
        head: of the round, 32 bytes in hexadecimal.
        clip_rate: fraction of clipped values by site; empty where nothing is clipped after the noise.
        bytes_up, bytes_down: wire bytes of the protocol, over all sites or of this one.
        seconds: by protocol step.
    """

    kind: Literal["end_round"] = "end_round"
    round: int
    attempt: int | None
    included: tuple[Words, ...]
    dropped: tuple[Words, ...]
    exact: bool | None
    head: Words
    clip_rate: Mapping[Words, Number]
    bytes_up: int
    bytes_down: int
    seconds: Mapping[Words, float]

    @property
    def much_cut(self) -> dict[str, str]:
        """A sentence with share and remedy for each site of whose update `clip_range` cut more than `MUCH_CUT`."""
        return {
            site: f"round {self.round}: clip_range cut {100 * share:.2g} % of the values of {site}'s update, so that "
            "the sum is not that of what was trained; raise [secagg] clip_range, or lower [study] lr"
            for site, share in self.clip_rate.items()
            if share is not None and share > MUCH_CUT
        }


class Scored(Event):
    """Mean Dice by structure of the model after round `round` over a site's `n` held-out patients."""

    kind: Literal["dice"] = "dice"
    round: int
    site: Words
    values: Mapping[Words, Number]
    n: int


class Audited(Event):
    """Whoever owns all sites (the demonstration) compared a round's total with the plain sum of its inputs."""

    kind: Literal["audit"] = "audit"
    round: int
    exact: bool | None


class Note(Event):
    """A sentence for the operator."""

    kind: Literal["note"] = "note"
    text: Words


class Ended(Event):
    """The run is over after `seconds` of work."""

    kind: Literal["end"] = "end"
    seconds: float


AnyEvent: TypeAlias = Annotated[
    Listening
    | StudyStarted
    | Connected
    | Certificate
    | Disconnected
    | Refused
    | Resumed
    | Waiting
    | RoundStarted
    | Trained
    | StepOpened
    | StepAccepted
    | StepClosed
    | Dropped
    | Rejoined
    | Left
    | Burned
    | EpsilonSpent
    | RoundEnded
    | Scored
    | Audited
    | Note
    | Ended,
    Field(discriminator="kind"),
]
_EVENT: TypeAdapter[AnyEvent] = TypeAdapter(AnyEvent)
_KINDS = frozenset(kind.model_fields["kind"].default for kind in Event.__subclasses__())


def event_of(fields: Any) -> AnyEvent | None:
    """The event of a line of events.jsonl, None where it is of a kind that this version does not know.

    Args:
        fields: the line as `json.loads` gives it.

    Raises:
        AttributeError: it is no JSON object.
        pydantic.ValidationError: the event lacks a field, or one is of another kind.
    """
    return _EVENT.validate_python(fields) if fields.get("kind") in _KINDS else None


class Listener(Protocol):
    """Takes every event as it happens; the screen is one."""

    def __call__(self, event: AnyEvent, /) -> None:
        """Show or store one event; must not block."""


class Audience:
    """All listeners of a run. One that fails is dropped and fails nothing: a screen must not cost a round."""

    def __init__(self, *listeners: Listener) -> None:
        self._listeners = listeners

    def tell(self, event: AnyEvent) -> list[Note]:
        """Tell everybody who is left.

        Returns:
            A sentence for the log for each listener that failed; it hears nothing more.
        """
        failed: dict[Listener, str] = {}
        for listener in self._listeners:
            try:
                listener(event)
            except Exception as error:
                name = getattr(listener, "__qualname__", type(listener).__qualname__)
                why = f"it failed at '{event.kind}' ({type(error).__name__}: {error})"
                failed[listener] = f"{name} hears no more events of this run: {why}"
        self._listeners = tuple(listener for listener in self._listeners if listener not in failed)
        return [Note(text=text) for text in failed.values()]
