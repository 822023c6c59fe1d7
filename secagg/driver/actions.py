"""What a driver asks of its owner, and what it tells: done in order, the ones that matter to nobody passed over."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secagg.errors import SecAggError
from secagg.masking import Vector
from secagg.messages import Receipt


@dataclass(frozen=True, repr=False)
class Send:
    """Send these bytes: of a client to its server, of a server to the client `to`.

    Its representation shows no bytes: they may be released shares.
    """

    data: bytes
    to: str = ""

    def __repr__(self) -> str:
        return f"<Send of {len(self.data)} bytes{' to ' if self.to else ''}{self.to}>"


# --- What a client's driver tells ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Joined:
    """An attempt was joined: training may begin, beside the first steps. `provide` may come any time from here on.

    Attributes:
        round_number, attempt: of the attempt.
        model_hash: 32 bytes, the own one, which the server's start named too.
        provided: the update of an earlier attempt at this round number was never masked, and is used again.
    """

    round_number: int
    attempt: int
    model_hash: bytes
    provided: bool = False


@dataclass(frozen=True)
class NeedInput:
    """Everybody else may be masking: nothing goes on here until `provide` was called."""

    round_number: int
    attempt: int


@dataclass(frozen=True)
class Exposed:
    """This site takes part in no sum until these rounds are settled (C-05, C-26): nobody's fault.

    Hand their transcripts to `receive`, or let the operator accept each by name (`secagg.accept_exposure`), then hand
    the next round start to `receive`; after a transcript the driver opens the start that it refused by itself.

    Attributes:
        reason: for the operator.
        round_ids: 32 bytes each.
    """

    reason: str
    round_ids: tuple[bytes, ...]


# --- What a server's driver tells ---------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Save:
    """Write this to the disk, whole, before the actions behind it: a lost book repeats numbers (C-03).

    Attributes:
        book: `RoundBook.saved`, for `RoundBook.restore`, as JSON; of a resumable driver also who was asked.
        sealed: of a resumable driver the open step; empty where there is none.
        recorded: how far the recording of the round has come; `ServerDriver.sync` brings it to the disk.
    """

    book: Mapping[str, Any]
    sealed: bytes = b""
    recorded: int = 0

    def __repr__(self) -> str:
        return f"<Save of the book and {len(self.sealed)} bytes>"


@dataclass(frozen=True)
class Silent:
    """A step was closed without these clients, of those who were asked."""

    step: str
    clients: tuple[str, ...]


@dataclass(frozen=True)
class Retrying:
    """An attempt ended without a sum, and the next one begins.

    Attributes:
        reason: why.
        told: sentences for the operator: see `RoundBook.failed`.
    """

    reason: str
    told: tuple[str, ...]


@dataclass(frozen=True)
class Published:
    """The recorder of a round has published: `transcript` is what its `publish` returned, for a `Recorder` the path.

    Where updates are not private on their own, send its bytes to every client, which replays it before the next round.
    """

    transcript: Any


# --- What both tell -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, repr=False)
class Completed:
    """The sum is there.

    Attributes:
        total: (d,) float64, the sum over `included`, weighted where there are weights, in the units of each field.
        included: U3, sorted.
        receipt: of the round, signed by the server.
        result: the same sum as (d,) unsigned integers modulo 2^b: `secagg.sums` and `secagg.means` give its fields.
        dropped: U2 without U3, sorted.
        excess_seeds: what clients disclosed for this sum, by client, one behind the other (`Policy.excess_seeds`).
    """

    total: NDArray[np.float64]
    included: tuple[str, ...]
    receipt: Receipt
    result: Vector
    dropped: tuple[str, ...] = ()
    excess_seeds: Mapping[str, bytes] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Completed round {self.receipt.round_number} of {', '.join(self.included)}>"


@dataclass(frozen=True)
class Refused:
    """Something that came was refused and has left no trace; the attempt goes on.

    Attributes:
        reason: why.
        sender: the client whose message it was; "" at a client, of a transcript.
        grave: at a server: no honest client sends this; otherwise it may only be late.
    """

    reason: str
    sender: str = ""
    grave: bool = False


@dataclass(frozen=True)
class Failed:
    """At a client: its part in this attempt is over, and it may join the next one. At a server: no attempt is left.

    Attributes:
        reason: for people.
        error: of a client a `ProtocolError` is the server's lie, unless its check is one of the own marks (C-03, C-14,
            C-24); anything else is nobody's fault.
        told: at a server: sentences for the operator, see `RoundBook.failed`.
    """

    reason: str
    error: SecAggError
    told: tuple[str, ...] = ()


ClientAction: TypeAlias = Send | Joined | NeedInput | Exposed | Completed | Refused | Failed
ServerAction: TypeAlias = Save | Send | Silent | Retrying | Published | Completed | Refused | Failed
