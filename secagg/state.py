"""One-shot states, the identifiers of a round, and the store of durable marks.

A `State` is used up by the step that leaves it, even when that step fails, so that no message can be answered twice
with different secrets. Specification: docs/spec.md, sections "Identifiers" and "At most one contribution".
"""

from dataclasses import dataclass, field
from typing import Protocol, TypeVar, dataclass_transform

from secagg.encoding import HASH_BYTES, digest
from secagg.errors import ConfigError, IllegalTransitionError, UnexpectedMessageError
from secagg.keys import Secret

ADVERTISE_KEYS = "AdvertiseKeys"
SHARE_KEYS = "ShareKeys"
SHARE_REPORT = "ShareReport"
MASKED_INPUT_COLLECTION = "MaskedInputCollection"
CONSISTENCY_CHECK = "ConsistencyCheck"
UNMASKING = "Unmasking"
RESULT = "Result"
STEPS = (
    ADVERTISE_KEYS,
    SHARE_KEYS,
    SHARE_REPORT,
    MASKED_INPUT_COLLECTION,
    CONSISTENCY_CHECK,
    UNMASKING,
    RESULT,
)

GENESIS = bytes(HASH_BYTES)
"""Head before the first completed round."""

LARGEST_NUMBER = 2**63 - 1
"""Of a round or attempt: what every durable store can hold."""


_Held = TypeVar("_Held")


@dataclass_transform(eq_default=False, field_specifiers=(field,))
def holder(kind: type[_Held]) -> type[_Held]:
    """A dataclass without repr that `dataclasses.replace` does not copy: a copy of a state would be unspent."""
    kind = dataclass(repr=False, eq=False)(kind)
    del kind.__dataclass_fields__  # type: ignore[attr-defined]
    return kind


class State:
    """A state that can be left exactly once; `_leave` is the first line of every step."""

    __spent = False

    def _leave(self) -> None:
        if self.__spent:
            raise IllegalTransitionError(f"{type(self).__name__} was already used: every step happens at most once")
        self.__spent = True

    def wipe(self) -> None:
        """Use the state up and overwrite the secrets that it holds (best effort; see `Secret.wipe`)."""
        self.__spent = True
        for value in vars(self).values():
            if isinstance(value, Secret):
                value.wipe()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce__(self) -> str:
        raise TypeError(f"{type(self).__name__} holds secrets and cannot be copied or serialised")


@dataclass(frozen=True, slots=True)
class RoundContext:
    """What one attempt at one round is about; the same for every party, or their masks do not cancel.

    Attributes:
        training_run: name of the run whose rounds are counted, ASCII.
        round_number: 1, 2, ...; a burned round uses up its number.
        attempt: 0, 1, ...; repeats of a round number before anybody knew the sharers.
        model_hash: 32 bytes, hash of the model that the updates belong to.
        task_hash: 32 bytes, hash of everything else that defines the task (the study).
        previous_head: 32 bytes, head of the last completed round.

    Raises:
        ConfigError: a field of the wrong size or range.
    """

    training_run: str
    round_number: int
    attempt: int
    model_hash: bytes
    task_hash: bytes
    previous_head: bytes = GENESIS

    def __post_init__(self) -> None:
        if not (0 < len(self.training_run) <= 256 and self.training_run.isascii()):
            raise ConfigError("training_run: use 1 to 256 ASCII characters")
        if not (1 <= self.round_number <= LARGEST_NUMBER and 0 <= self.attempt <= LARGEST_NUMBER):
            raise ConfigError("round numbers start at 1 and attempts at 0, and both stay below 2^63")
        if {len(self.model_hash), len(self.task_hash), len(self.previous_head)} != {HASH_BYTES}:
            raise ConfigError("model_hash, task_hash and previous_head have 32 bytes each")

    def slot(self, session: bytes) -> bytes:
        """Slot = H(session | training run | round number | attempt): binds rounds 0 and 1, which carry no data."""
        return digest("slot", session, self.training_run, self.round_number, self.attempt)

    def round_id(self, slot: bytes, roster2: bytes, sharers: bytes) -> bytes:
        """Round = H(slot | roster2 | H(U2) | model | task | previous head): binds seeds and rounds 2 to 5."""
        return digest("round", slot, roster2, sharers, self.model_hash, self.task_hash, self.previous_head)


def next_head(previous: bytes, round_id: bytes, statement: bytes, total: bytes) -> bytes:
    """Head = H(previous head | round | H(attested statement) | H(sum)); burned rounds do not advance it."""
    return digest("head", previous, round_id, statement, total)


class Store(Protocol):
    """Durable marks of one data set. Every method returns only when its mark would survive a power cut.

    One store serves one data set on one site, whatever project, attempt or hash a server claims: that is what makes
    "at most one contribution per round number" true. `secagg.rpc.store.SqliteStore` is the one to use.
    """

    def join(self, training_run: str, round_number: int, attempt: int) -> None:
        """Mark (round number, attempt) before AdvertiseKeys; strictly increasing, or `UnexpectedMessageError` C-03."""

    def contribute(self, training_run: str, round_number: int, event_id: str) -> None:
        """Mark the one contribution to a round number before masking, with its ledger event, or raise C-14."""

    def release(self, training_run: str, round_number: int) -> None:
        """Mark that unmasking shares of this round are about to be sent."""

    def released(self, training_run: str) -> int:
        """The highest round number marked by `release`, 0 at the start."""

    def replay(self, training_run: str, round_number: int) -> None:
        """Mark that the transcript of this round was replayed and holds; see `secagg.transcript.accept`."""

    def replayed(self, training_run: str) -> int:
        """The highest round number marked by `replay`, 0 at the start."""

    def head(self, training_run: str) -> tuple[int, bytes]:
        """The last finished round number and its head; (0, GENESIS) at the start."""

    def finish(self, training_run: str, round_number: int, head: bytes, receipt: bytes) -> None:
        """Append a finished round to the hash-chained log; strictly increasing round numbers, or raise C-22.

        A round that the log holds with the same head changes nothing: a result may come after the receipts of its own
        and of later rounds.
        """


@dataclass(slots=True)
class _Marks:
    joined: tuple[int, int] = (0, 0)
    contributed: int = 0
    released: int = 0
    replayed: int = 0
    log: list[tuple[int, bytes]] = field(default_factory=lambda: [(0, GENESIS)])


class MemoryStore:
    """A `Store` for tests and simulations in one process: its marks do not survive the process."""

    def __init__(self) -> None:
        self._runs: dict[str, _Marks] = {}

    def _marks(self, training_run: str) -> _Marks:
        return self._runs.setdefault(training_run, _Marks())

    def join(self, training_run: str, round_number: int, attempt: int) -> None:
        """See `Store.join`."""
        marks = self._marks(training_run)
        if (round_number, attempt) <= marks.joined and marks.joined != (0, 0):
            raise UnexpectedMessageError(
                "C-03",
                f"round {round_number} attempt {attempt} of {training_run} was already joined; "
                "wait for a later round or attempt",
            )
        marks.joined = (round_number, attempt)

    def contribute(self, training_run: str, round_number: int, event_id: str) -> None:
        """See `Store.contribute`."""
        marks = self._marks(training_run)
        if round_number <= marks.contributed:
            raise UnexpectedMessageError(
                "C-14",
                f"this data set already contributed to round {marks.contributed} of {training_run}; "
                f"it joins again in round {marks.contributed + 1}",
            )
        marks.contributed = round_number

    def release(self, training_run: str, round_number: int) -> None:
        """See `Store.release`."""
        marks = self._marks(training_run)
        marks.released = max(marks.released, round_number)

    def released(self, training_run: str) -> int:
        """See `Store.released`."""
        return self._marks(training_run).released

    def replay(self, training_run: str, round_number: int) -> None:
        """See `Store.replay`."""
        marks = self._marks(training_run)
        marks.replayed = max(marks.replayed, round_number)

    def replayed(self, training_run: str) -> int:
        """See `Store.replayed`."""
        return self._marks(training_run).replayed

    def head(self, training_run: str) -> tuple[int, bytes]:
        """See `Store.head`."""
        return self._marks(training_run).log[-1]

    def finish(self, training_run: str, round_number: int, head: bytes, receipt: bytes) -> None:
        """See `Store.finish`."""
        log = self._marks(training_run).log
        if (round_number, head) in log:
            return
        if round_number <= log[-1][0] or head == log[-1][1] or len(head) != HASH_BYTES:
            raise UnexpectedMessageError(
                "C-22", f"the head of round {round_number} of {training_run} does not follow the log"
            )
        log.append((round_number, head))
