"""What is known of transcripts once they were judged: round by round, and of the set as a whole.

Specification: docs/spec.md, section "Transcripts".
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from secagg.messages import Receipt
from secagg.policy import Policy
from secagg.transcript.checks import WHAT
from secagg.transcript.facts import Transcript
from secagg.transcript.violation import ViolationError

PUBLISHED, NOT_TAKEN, NOT_SHOWN = "published", "not taken", "not shown"


@dataclass(frozen=True)
class RoundReport:
    """One transcript that held, as far as it could be checked.

    Attributes:
        file: what whoever read it calls it, such as its path.
        training_run, round_number, attempt: which round it is.
        round_id: 32 bytes; empty without a sum, because headers do not give it.
        model_hash, task_hash: 32 bytes each, as the sites signed them; without a sum as the server says.
        next_head: the head after it, 32 bytes; the previous one where there is no sum.
        receipt: the server's, where there is a sum.
        sites: U1, sorted; without a sum, whose headers the file holds.
        included, dropped: U3 and U2 minus U3, sorted.
        unconfirmed: members of U3 that did not confirm the head.
        released: what each site of U1 said about itself: the last round of this session in which it released shares,
            32 bytes, zeros for none.
        unchecked: checks that could not be run on it.
        denied_by: of a round without a sum: the sites whose later signed statements prove that none was taken; empty
            where too few say so.
    """

    file: str
    training_run: str
    round_number: int
    attempt: int
    round_id: bytes
    model_hash: bytes
    task_hash: bytes
    next_head: bytes
    receipt: Receipt | None
    sites: tuple[str, ...]
    included: tuple[str, ...]
    dropped: tuple[str, ...]
    unconfirmed: tuple[str, ...]
    released: Mapping[str, bytes]
    unchecked: tuple[str, ...]
    denied_by: tuple[str, ...] = ()

    @classmethod
    def of(cls, transcript: Transcript, unchecked: Iterable[str]) -> "RoundReport":
        """The report on a transcript that held, with the checks that could not be run on it."""
        context, burned = transcript.context, transcript.burned
        advertised = {u: transcript.advertisements[u] for u in sorted(transcript.advertisements)}
        return cls(
            transcript.file,
            context.training_run,
            context.round_number,
            context.attempt,
            b"" if burned else transcript.round_id,
            context.model_hash,
            context.task_hash,
            context.previous_head if burned else transcript.head,
            None if burned else transcript.result,
            tuple(sorted(transcript.headers)) if burned else tuple(advertised),
            tuple(sorted(transcript.inputs)),
            tuple(transcript.dropped),
            tuple(sorted(transcript.inputs.keys() - transcript.confirmations.keys())),
            {client_id: entry.released for client_id, entry in advertised.items()},
            tuple(unchecked),
        )

    @property
    def finished(self) -> bool:
        """Whether the round has a sum; otherwise the file holds headers only."""
        return self.receipt is not None

    @property
    def place(self) -> tuple[int, int]:
        """Round number and attempt: what the rounds of a run are ordered by."""
        return self.round_number, self.attempt

    @property
    def sum(self) -> str:
        """'published', 'not taken' where that is proven, or 'not shown'."""
        return PUBLISHED if self.finished else NOT_TAKEN if self.denied_by else NOT_SHOWN

    def as_dict(self) -> dict[str, object]:
        """For machines; keys are only ever added."""
        return {
            "file": self.file,
            "training_run": self.training_run,
            "round_number": self.round_number,
            "attempt": self.attempt,
            "finished": self.finished,
            "sum": self.sum,
            "round_id": self.round_id.hex(),
            "model_hash": self.model_hash.hex(),
            "task_hash": self.task_hash.hex(),
            "next_head": self.next_head.hex(),
            "sites": list(self.sites),
            "included": list(self.included),
            "dropped": list(self.dropped),
            "unconfirmed": list(self.unconfirmed),
            "released": {client_id: round_id.hex() for client_id, round_id in self.released.items()},
            "unchecked": list(self.unchecked),
            "denied_by": list(self.denied_by),
        }

    def __str__(self) -> str:
        return f"round {self.round_number}, attempt {self.attempt} of run {self.training_run}"


@dataclass(frozen=True)
class Missing:
    """A round of which no file was given although sites say that they released unmasking shares for it.

    Attributes:
        round_id: 32 bytes.
        said_by: the sites, sorted.
        name: of the round, where one of them tells; else empty.
    """

    round_id: bytes
    said_by: tuple[str, ...]
    name: str

    def __str__(self) -> str:
        named = f" ({self.name})" if self.name else ""
        return f"round {self.round_id.hex()}{named}, for which {', '.join(self.said_by)} released unmasking shares"


@dataclass(frozen=True)
class Verdict:
    """The outcome of verifying some transcripts under the reader's own policy and roster.

    Attributes:
        session: of policy and roster, 32 bytes.
        policy: the reader's.
        rounds: the files that held, in order.
        items: check id to how many things it looked at; missing where it applies to no file, or to one on which it
            could not be run.
        violation: the first thing wrong, or None.
        missing: rounds whose sum somebody may have, and of which there is no file (T-21).
        notes: sentences for the operator; nothing in them is a violation.
        not_shown: sentences: what these files leave open.
    """

    session: bytes
    policy: Policy
    rounds: tuple[RoundReport, ...]
    items: Mapping[str, int]
    violation: ViolationError | None
    missing: tuple[Missing, ...]
    notes: tuple[str, ...]
    not_shown: tuple[str, ...]

    @property
    def status(self) -> str:
        """'holds', 'violated', 'incomplete', or 'no power' where something could not be checked.

        Incomplete is a set that lacks a round of which sites say that they released shares, or that holds a round
        without a sum of which it is not shown that none was taken.
        """
        if self.violation is not None:
            return "violated"
        if self.missing or any(report.sum == NOT_SHOWN for report in self.rounds):
            return "incomplete"
        return "holds" if self.items.keys() == WHAT.keys() else "no power"

    @property
    def exit_code(self) -> int:
        """0 holds, 1 violated, 2 incomplete or no power."""
        return {"holds": 0, "violated": 1}.get(self.status, 2)

    def state(self, check: str) -> str:
        """'held', 'violated', 'incomplete' (T-21 only) or 'not checked'."""
        if self.violation is not None and self.violation.check == check:
            return "violated"
        if check == "T-21" and self.missing:
            return "incomplete"
        return "held" if check in self.items else "not checked"

    def as_dict(self) -> dict[str, object]:
        """Everything, for machines; keys are only ever added."""
        policy = self.policy
        return {
            "status": self.status,
            "exit_code": self.exit_code,
            "session": self.session.hex(),
            "project": policy.project,
            "policy_hash": policy.hash().hex(),
            "suite": policy.suite.value,
            "checks": [
                {"id": check, "what": what, "state": self.state(check), "items": self.items.get(check, 0)}
                for check, what in WHAT.items()
            ],
            "violation": self.violation and self.violation.as_dict(),
            "rounds": [report.as_dict() for report in self.rounds],
            "missing": [
                {"round_id": missing.round_id.hex(), "said_by": list(missing.said_by), "name": missing.name}
                for missing in self.missing
            ],
            "notes": list(self.notes),
            "not_shown": list(self.not_shown),
        }
