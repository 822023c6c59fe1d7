"""What a round is about, and the identifiers that follow from it: slot, round, attested statement, head.

Every party computes them alone, from what it holds itself. Specification: docs/spec.md, section "Identifiers".
"""

from dataclasses import dataclass
from functools import cached_property

from secagg.arguments import must_be, whole
from secagg.encoding import HASH_BYTES, digest
from secagg.errors import ConfigError

GENESIS = bytes(HASH_BYTES)
"""Head before the first completed round."""

LARGEST_NUMBER = 2**63 - 1
"""Of a round or attempt: what every durable store can hold."""


def is_name(text: str) -> bool:
    """Whether a training run may be called so: 1 to 256 printable ASCII characters, none of which moves a cursor."""
    return 0 < len(text) <= 256 and text.isascii() and text.isprintable()


@dataclass(frozen=True)
class Slot:
    """One attempt of one session: what durable marks are about.

    Attributes:
        session: 32 bytes, `secagg.roster.session_id`.
        training_run, round_number, attempt: as in `RoundContext`.
    """

    session: bytes
    training_run: str
    round_number: int
    attempt: int

    @cached_property
    def hash(self) -> bytes:
        """Slot = H(session | training run | round number | attempt): binds what comes before masking."""
        return digest("slot", self.session, self.training_run, self.round_number, self.attempt)

    def __str__(self) -> str:
        return f"round {self.round_number}, attempt {self.attempt} of run {self.training_run}"


@dataclass(frozen=True, slots=True)
class RoundContext:
    """What one attempt at one round is about; the same for every party, or their masks do not cancel.

    Attributes:
        training_run: name of the run whose rounds are counted, printable ASCII.
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
        must_be(self.training_run, str, "training_run", "give the run's name")
        whole("round_number", self.round_number)
        whole("attempt", self.attempt)
        for name in ("model_hash", "task_hash", "previous_head"):
            must_be(getattr(self, name), bytes, name, "give 32 bytes, such as a digest of hashlib.sha256")
        if not is_name(self.training_run):
            raise ConfigError("training_run: use 1 to 256 printable ASCII characters")
        if not (1 <= self.round_number <= LARGEST_NUMBER and 0 <= self.attempt <= LARGEST_NUMBER):
            raise ConfigError("round numbers start at 1 and attempts at 0, and both stay below 2^63")
        if {len(self.model_hash), len(self.task_hash), len(self.previous_head)} != {HASH_BYTES}:
            raise ConfigError("model_hash, task_hash and previous_head have 32 bytes each")

    def at(self, session: bytes) -> Slot:
        """This attempt with its session, as a site's marks and error messages name it."""
        return Slot(session, self.training_run, self.round_number, self.attempt)

    def slot(self, session: bytes) -> bytes:
        """The hash of this attempt in a session: 32 bytes."""
        return self.at(session).hash

    def round_id(self, slot: bytes, roster2: bytes, sharers: bytes) -> bytes:
        """The identifier of the round, to which every seed and every message from masking on is bound: 32 bytes.

        It is H(slot | roster2 | H(U2) | model | task | previous head).

        Args:
            slot: hash of this attempt, 32 bytes.
            roster2: hash of the signed headers, 32 bytes.
            sharers: H(U2), 32 bytes.
        """
        return digest("round", slot, roster2, sharers, self.model_hash, self.task_hash, self.previous_head)


def attested_statement(round_id: bytes, inputs: bytes) -> bytes:
    """H(round | inputs): the one thing that the clients of U3 attest, with inputs = H(U3 | H(y) of each)."""
    return digest("attested", round_id, inputs)


def next_head(previous: bytes, round_id: bytes, statement: bytes, total: bytes) -> bytes:
    """The head after a round that has a sum: H(previous head | round | attested statement | H(sum)), 32 bytes.

    A burned round leaves the head as it was.

    Args:
        previous: head before the round, 32 bytes.
        round_id: of the round, 32 bytes.
        statement: what U3 attested, 32 bytes.
        total: H(sum), 32 bytes.
    """
    return digest("head", previous, round_id, statement, total)
