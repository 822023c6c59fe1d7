"""The verdict on transcripts: every check on every file, the first thing wrong, and what an operator should know.

Must never: take a key from a file. Specification: docs/spec.md, section "Transcripts".
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from secagg.messages import Receipt
from secagg.policy import PinnedRoster, Policy, session_id
from secagg.state import Slot
from secagg.store import Store
from secagg.transcript.checks import CHECKS, OF_BURNED, WHAT
from secagg.transcript.participation import isolated
from secagg.transcript.reading import Past, Round, ViolationError, read_round


@dataclass(frozen=True)
class RoundReport:
    """One file that held, as far as it could be checked.

    Attributes:
        path: the file.
        training_run, round_number, attempt: which round it is.
        finished: whether there is a sum; otherwise the file holds headers only.
        next_head: the head after it, 32 bytes; the previous one where it did not finish.
        receipt: the server's, of a finished round.
        included, dropped: U3 and U2 minus U3, sorted.
        unconfirmed: members of U3 that did not confirm the head.
    """

    path: Path
    training_run: str
    round_number: int
    attempt: int
    finished: bool
    next_head: bytes
    receipt: Receipt | None
    included: tuple[str, ...]
    dropped: tuple[str, ...]
    unconfirmed: tuple[str, ...]

    @classmethod
    def of(cls, path: Path, round: Round) -> "RoundReport":
        """What stays of a round once it is verified."""
        context = round.context
        return cls(
            path,
            context.training_run,
            context.round_number,
            context.attempt,
            not round.burned,
            context.previous_head if round.burned else round.head,
            None if round.burned else round.result,
            tuple(sorted(round.inputs)),
            tuple(round.dropped),
            tuple(sorted(round.inputs.keys() - round.confirmations.keys())),
        )


@dataclass(frozen=True)
class Verdict:
    """What is known of some transcripts.

    Attributes:
        rounds: the files that held, in order.
        items: check id to how many things it looked at; missing where it was not run on every file.
        violation: the first thing wrong, or None.
        notes: sentences for the operator; nothing in them is a violation.
        session: of the reader's own policy and roster, 32 bytes.
    """

    rounds: tuple[RoundReport, ...]
    items: Mapping[str, int]
    violation: ViolationError | None
    notes: tuple[str, ...]
    session: bytes

    @property
    def status(self) -> str:
        """'holds', 'violated', or 'no power' where something could not be checked."""
        if self.violation is not None:
            return "violated"
        return "holds" if self.items.keys() == WHAT.keys() else "no power"

    @property
    def exit_code(self) -> int:
        """0 holds, 1 violated, 2 no power."""
        return ("holds", "violated", "no power").index(self.status)

    def state(self, check: str) -> str:
        """'held', 'violated' or 'not checked'."""
        if self.violation is not None and self.violation.check == check:
            return "violated"
        return "held" if check in self.items else "not checked"

    def as_dict(self) -> dict[str, object]:
        """Everything, for machines; keys are only ever added."""
        violation = self.violation
        return {
            "status": self.status,
            "exit_code": self.exit_code,
            "checks": [
                {"id": check, "what": what, "state": self.state(check), "items": self.items.get(check, 0)}
                for check, what in WHAT.items()
            ],
            "violation": violation
            and {
                "check": violation.check,
                "file": str(violation.path),
                "record": violation.record,
                "sender": violation.sender,
                "sentence": violation.sentence,
            },
            "rounds": [
                {
                    "file": str(report.path),
                    "training_run": report.training_run,
                    "round_number": report.round_number,
                    "attempt": report.attempt,
                    "finished": report.finished,
                    "next_head": report.next_head.hex(),
                    "included": list(report.included),
                    "dropped": list(report.dropped),
                    "unconfirmed": list(report.unconfirmed),
                }
                for report in self.rounds
            ],
            "notes": list(self.notes),
        }


def verify(
    paths: Iterable[str | Path],
    policy: Policy,
    roster: PinnedRoster,
    progress: Callable[[int], object] | None = None,
) -> Verdict:
    """Verify transcripts of one training run, in the order of its rounds; stops at the first thing wrong.

    Args:
        paths: the files.
        policy: the reader's own, with the server's key.
        roster: the reader's own, never one that came with the files.
        progress: told how many bytes were read, now and then.

    Returns:
        The verdict: it never raises for what a file says.

    Raises:
        OSError: a file cannot be read.
    """
    files, past, reports, notes = [Path(path) for path in paths], Past(), list[RoundReport](), list[str]()
    counts: dict[str, list[int]] = {check: [] for check in WHAT}
    violation, max_corrupt = None, 1
    for path in files:
        try:
            round = read_round(path, roster, past, progress)
            if round.policy != policy:
                raise ViolationError("T-03", "the transcript is of another policy than yours", 0)
            for check in ("T-18", "T-20"):
                if not (check == "T-18" and round.burned):
                    counts[check].append(round.blocks if check == "T-18" else len(round.numbers) + round.blocks)
            for check, run in CHECKS.items():
                held = None if round.burned and check not in OF_BURNED else run(round)
                if held is not None:
                    counts[check].append(held)
        except ViolationError as error:
            error.path, violation = path, error
            break
        reports.append(RoundReport.of(path, round))
        past.context, past.head, max_corrupt = round.context, reports[-1].next_head, round.policy.max_corrupt
        notes += [f"{path}: {note}" for note in _notes(round, reports[-1])]
    items = {check: sum(held) for check, held in counts.items() if held and len(held) == len(files)}
    session = session_id(policy, roster)
    return Verdict(tuple(reports), items, violation, (*notes, *_participation(reports, max_corrupt)), session)


def _notes(round: Round, report: RoundReport) -> Iterator[str]:
    yield from round.notes
    if round.burned:
        yield "the round did not finish: only headers are published, and nothing was opened that they would show"
    elif not round.opening.vectors:
        yield "masked vectors are published by their hashes: whether the sum is theirs could not be checked"
    if not round.policy.server_key:
        yield "the policy names no server key: receipt and file are not signed"
    if report.unconfirmed:
        yield f"no confirmation of {', '.join(report.unconfirmed)}"


def _participation(reports: Sequence[RoundReport], max_corrupt: int) -> Iterator[str]:
    finished = [report for report in reports if report.finished]
    isolation = isolated([report.included for report in finished], max_corrupt)
    for client_id, way in isolation.found.items():
        sums = " ".join(
            f"{'-' if times < 0 else '+'} {abs(times)} x round {finished[i].round_number}"
            for i, times in sorted(way.rounds.items())
        )
        told = f" with what {', '.join(way.coalition)} would tell" if way.coalition else ""
        yield f"the sums isolate {client_id}{told} ({sums}); where updates change slowly that is close to its own"
    if not isolation.decided:
        left = sorted(set(isolation.undecided) - isolation.found.keys())
        yield f"whether the sums isolate {', '.join(left)} was not decided: it takes too long"


def accept(verdict: Verdict, store: Store) -> None:
    """Mark the rounds of a verdict as replayed, so that a client that released shares in them may take part again.

    A client that fell silent before a result learns it here: rounds that continue its log are appended to it.

    Args:
        verdict: in which everything held, under the client's own policy and roster.
        store: the client's durable marks.

    Raises:
        ViolationError: something is violated or could not be checked.
        UnexpectedMessageError: C-22, a round that is neither in the client's log nor continues it.
    """
    if verdict.violation is not None:
        raise verdict.violation
    for check, what in WHAT.items():
        if check not in verdict.items:
            raise ViolationError(check, f"it could not be checked that {what}")
    with store.transaction() as marks:
        for report in verdict.rounds:
            if report.receipt is not None:
                slot = Slot(verdict.session, report.training_run, report.round_number, report.attempt)
                marks.finish(verdict.session, report.training_run, [report.receipt])
                marks.replay(slot, report.receipt.round_id)
