"""What happens at a coordinator, one class for each kind: for logs, screens and whoever counts.

No event holds a vector, a secret or a patient. Sentences may be text of others: whoever shows them makes them fit for
that (`secagg.printable`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TypeAlias

from secagg.printable import dialled


@dataclass(frozen=True)
class Listening:
    """The coordinator can be reached there."""

    host: str
    port: int

    @property
    def where(self) -> str:
        """As it is given to others."""
        return dialled(self.host, self.port)


@dataclass(frozen=True)
class Connected:
    """A member's process is there, for the first time or again."""

    site: str


@dataclass(frozen=True)
class Disconnected:
    """A member's connection broke and did not come back at once."""

    site: str


@dataclass(frozen=True)
class TurnedAway:
    """A member can take no part: another study, version or policy, or marks of yesterday."""

    site: str
    reason: str


@dataclass(frozen=True)
class Resumed:
    """It goes on with an earlier process's run, in this round and attempt, in this step; "" between two rounds."""

    round: int
    attempt: int
    step: str


@dataclass(frozen=True)
class Waiting:
    """Nothing goes on before these are there or have spoken, or `seconds` more have passed; None for ever.

    Attributes:
        step: the protocol's step; "" where a round cannot begin.
    """

    sites: tuple[str, ...]
    seconds: float | None
    step: str = ""


@dataclass(frozen=True)
class Began:
    """An attempt at a round."""

    round: int
    attempt: int
    model_hash: str
    sites: tuple[str, ...]


@dataclass(frozen=True)
class StepOpened:
    """A step waits for these members, at most so many seconds."""

    round: int
    attempt: int
    step: str
    sites: tuple[str, ...]
    seconds: float


@dataclass(frozen=True)
class Accepted:
    """A member's message of a step, of so many bytes."""

    round: int
    site: str
    step: str
    bytes: int


@dataclass(frozen=True)
class Closed:
    """A step was closed after so many seconds and everybody answered, with so many bytes in all."""

    round: int
    step: str
    seconds: float
    bytes_down: int


@dataclass(frozen=True)
class Dropped:
    """A member fell silent after a step, "" where it never spoke in this attempt."""

    round: int
    site: str
    after: str


@dataclass(frozen=True)
class Rejoined:
    """A member that had dropped takes part again."""

    round: int
    site: str


@dataclass(frozen=True)
class Left:
    """A member takes part no more."""

    site: str
    reason: str


@dataclass(frozen=True)
class Burned:
    """An attempt ended without a sum."""

    round: int
    attempt: int
    reason: str


@dataclass(frozen=True)
class Summed:
    """A round completed: it is durable, whatever happens next.

    Attributes:
        included, dropped: U3, and U2 without U3, sorted.
        head: of the round, in hexadecimal.
        seconds: by step.
    """

    round: int
    attempt: int
    included: tuple[str, ...]
    dropped: tuple[str, ...]
    head: str
    bytes_up: int
    bytes_down: int
    seconds: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Note:
    """A sentence for the operator."""

    text: str


@dataclass(frozen=True)
class Ended:
    """The run is over; `complete` where everything that was agreed was done."""

    reason: str
    complete: bool


Event: TypeAlias = (
    Listening
    | Connected
    | Disconnected
    | TurnedAway
    | Resumed
    | Waiting
    | Began
    | StepOpened
    | Accepted
    | Closed
    | Dropped
    | Rejoined
    | Left
    | Burned
    | Summed
    | Note
    | Ended
)
Listener: TypeAlias = Callable[[Event], None]
