"""The verdict on transcripts: every check on every file, the first thing wrong, and what was not shown.

Must never: take a key or a policy from a file. Specification: docs/spec.md, section "Transcripts".
"""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path

from secagg.context import Slot
from secagg.errors import UnexpectedMessageError
from secagg.messages import Receipt, ReleaseClaim
from secagg.policy import PinnedRoster, Policy
from secagg.store import NEVER, Store
from secagg.transcript.checks import CHECKS, OF_BURNED, WHAT
from secagg.transcript.participation import isolated
from secagg.transcript.reading import Past, Reader, Round, ViolationError, read_round

PUBLISHED, NOT_TAKEN, NOT_SHOWN = "published", "not taken", "not shown"


@dataclass(frozen=True)
class RoundReport:
    """One file that held, as far as it could be checked.

    Attributes:
        path: the file.
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

    path: Path
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
    def of(cls, path: Path, round: Round, unchecked: Iterable[str]) -> "RoundReport":
        """What stays of a round once it is verified."""
        context, burned = round.context, round.burned
        advertised = {u: round.advertisements[u] for u in sorted(round.advertisements)}
        return cls(
            path,
            context.training_run,
            context.round_number,
            context.attempt,
            b"" if burned else round.round_id,
            context.model_hash,
            context.task_hash,
            context.previous_head if burned else round.head,
            None if burned else round.result,
            tuple(sorted(round.headers)) if burned else tuple(advertised),
            tuple(sorted(round.inputs)),
            tuple(round.dropped),
            tuple(sorted(round.inputs.keys() - round.confirmations.keys())),
            {client_id: entry.released for client_id, entry in advertised.items()},
            tuple(unchecked),
        )

    @property
    def finished(self) -> bool:
        """Whether there is a sum; otherwise the file holds headers only."""
        return self.receipt is not None

    @property
    def place(self) -> tuple[int, int]:
        """Round number and attempt: what the rounds of a run are ordered by."""
        return self.round_number, self.attempt

    @property
    def sum(self) -> str:
        """'published', 'not taken' where that is proven, or 'not shown'."""
        return PUBLISHED if self.finished else NOT_TAKEN if self.denied_by else NOT_SHOWN

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
    """What is known of some transcripts, under the reader's own policy and roster.

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
        violation, policy = self.violation, self.policy
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
                    "sum": report.sum,
                    "round_id": report.round_id.hex(),
                    "model_hash": report.model_hash.hex(),
                    "task_hash": report.task_hash.hex(),
                    "next_head": report.next_head.hex(),
                    "sites": list(report.sites),
                    "included": list(report.included),
                    "dropped": list(report.dropped),
                    "unconfirmed": list(report.unconfirmed),
                    "released": {client_id: round_id.hex() for client_id, round_id in report.released.items()},
                    "unchecked": list(report.unchecked),
                    "denied_by": list(report.denied_by),
                }
                for report in self.rounds
            ],
            "missing": [
                {"round_id": missing.round_id.hex(), "said_by": list(missing.said_by), "name": missing.name}
                for missing in self.missing
            ],
            "notes": list(self.notes),
            "not_shown": list(self.not_shown),
        }


def verify(
    paths: Iterable[str | Path],
    policy: Policy,
    pinned: PinnedRoster,
    progress: Callable[[int], object] | None = None,
) -> Verdict:
    """Verify transcripts of one session, each run in the order of its rounds; stops at the first thing wrong.

    Args:
        paths: the files.
        policy: the reader's own, with the server key; never one that came with the files.
        pinned: the reader's own pinned roster.
        progress: told how many bytes were read, now and then.

    Returns:
        The verdict: it never raises for what a transcript says.

    Raises:
        ConfigError: policy and roster do not fit together, or a file is no transcript.
        OSError: a file cannot be read.
    """
    reader, past, reports, notes = Reader(policy, pinned), Past(), list[RoundReport](), list[str]()
    session, counts, unchecked, claimed = reader.session, dict[str, int](), set[str](), list[tuple[str, ReleaseClaim]]()
    violation = None
    for path in map(Path, paths):
        try:
            round = read_round(path, reader, past, progress)
            held, left = _checked(round)
        except ViolationError as error:
            error.path, violation = path, error
            break
        counts = {check: counts.get(check, 0) + held.get(check, 0) for check in counts.keys() | held.keys()}
        unchecked |= left
        report = RoundReport.of(path, round, sorted(left))
        reports.append(report)
        past.last[report.training_run] = round.context, report.next_head
        own = ((u, claim) for u, entry in round.advertisements.items() for claim in entry.exposing)
        claimed += [(client_id, claim) for client_id, claim in own if claim.session == session]
        notes += [f"{path}: {note}" for note in _notes(round, report)]
    for i, report in enumerate(reports):
        if not report.finished:
            reports[i] = replace(report, denied_by=_denied_by(report.training_run, report.place, reports, policy))
    missing = tuple(_missing(reports, claimed))
    if any(report.finished for report in reports) and not missing and violation is None:
        counts["T-21"] = sum(len(report.released) for report in reports)
    items = {check: counts[check] for check in WHAT if check in counts and check not in unchecked}
    return Verdict(
        session,
        policy,
        tuple(reports),
        items,
        violation,
        missing,
        (*notes, *_participation(reports, policy.max_corrupt)),
        tuple(_not_shown(reports, missing, policy)),
    )


def _checked(round: Round) -> tuple[dict[str, int], set[str]]:
    """What each check that applies to this round looked at, and which could not be run."""
    held = {"T-20": len(round.numbers) + round.blocks}
    if not round.burned:
        held["T-18"] = round.blocks
    unchecked = set()
    for check, run in CHECKS.items():
        if not round.burned or check in OF_BURNED:
            looked_at = run(round)
            if looked_at is None:
                unchecked.add(check)
            else:
                held[check] = looked_at
    return held, unchecked


def _notes(round: Round, report: RoundReport) -> Iterator[str]:
    yield from round.notes
    if not round.policy.server_key:
        yield "the policy names no server key: receipt and file are not signed"
    if report.unconfirmed:
        yield f"no confirmation of {', '.join(report.unconfirmed)}"
    for client_id, advertised in round.advertisements.items():
        for claim in advertised.exposing:
            if claim.session != round.reader.session:
                told = "and says that its sum may be of the same updates"
                yield f"{client_id} released shares in another session ({claim.slot}), {told}"


def _participation(reports: Sequence[RoundReport], max_corrupt: int) -> Iterator[str]:
    finished = [report for report in reports if report.finished]
    several = len({report.training_run for report in finished}) > 1
    names = [f"round {r.round_number}" + (f" of run {r.training_run}" if several else "") for r in finished]
    isolation = isolated([report.included for report in finished], max_corrupt)
    for client_id, way in isolation.found.items():
        sums = " ".join(
            f"{'-' if times < 0 else '+'} {abs(times)} x {names[i]}" for i, times in sorted(way.rounds.items())
        )
        told = f" with what {', '.join(way.coalition)} would tell" if way.coalition else ""
        yield f"the sums isolate {client_id}{told} ({sums}); where updates change slowly that is close to its own"
    if not isolation.decided:
        left = sorted(set(isolation.undecided) - isolation.found.keys())
        yield f"whether the sums isolate {', '.join(left)} was not decided: it takes too long"


# --- What the set as a whole shows --------------------------------------------------------------------------------


def _missing(reports: Sequence[RoundReport], claimed: Sequence[tuple[str, ReleaseClaim]]) -> Iterator[Missing]:
    """T-21: rounds in which a site says that it released shares, last or ever, and that are not among the files."""
    known = {report.round_id for report in reports} | {NEVER}
    named = {claim.round_id: str(claim.slot) for _, claim in claimed}
    last = {(round_id, client_id) for report in reports for client_id, round_id in report.released.items()}
    said = sorted(last | {(claim.round_id, client_id) for client_id, claim in claimed})
    for round_id in dict.fromkeys(round_id for round_id, _ in said if round_id not in known):
        yield Missing(round_id, tuple(u for other, u in said if other == round_id), named.get(round_id, ""))


def _denied_by(
    training_run: str, place: tuple[int, int], reports: Sequence[RoundReport], policy: Policy
) -> tuple[str, ...]:
    """Who proves that no sum was taken at this (round number, attempt) of a run: empty unless they are enough.

    A site that released shares there says so, or names a later round, in its next advertisement; and it releases none
    there once it advertised for a later attempt (C-03, C-24). Of m sites that name an earlier round, or none, at most c
    lie, so that at most n - m + c released: fewer than t where m >= n - t + c + 1.
    """
    need = policy.clients - policy.threshold + policy.max_corrupt + 1
    run = [report for report in reports if report.training_run == training_run and report.finished]
    before = [report for report in run if report.place < place]
    earlier = {report.round_id for report in before} | {NEVER}
    said: dict[str, bytes] = {}
    for report in run[len(before) :]:
        said = {**report.released, **said}
        denying = tuple(sorted(client_id for client_id, round_id in said.items() if round_id in earlier))
        if len(denying) >= need:
            return denying
    return ()


def _not_shown(reports: Sequence[RoundReport], missing: Sequence[Missing], policy: Policy) -> Iterator[str]:
    for gone in missing:
        yield f"{gone}: it is not among these files"
    for report in reports:
        if "T-13" in report.unchecked:
            yield f"{report}: whether its sum is that of the masked vectors, which are published by their hashes"
        if report.sum == NOT_SHOWN:
            yield (
                f"{report}: whether its sum was taken; the file shows that {len(report.sites)} of {policy.clients} "
                f"sites signed headers ({', '.join(report.sites)}), and nothing else"
            )
    for run in dict.fromkeys(report.training_run for report in reports):
        files = [report for report in reports if report.training_run == run]
        numbers = [0, *dict.fromkeys(report.round_number for report in files)]
        for last, following in pairwise(numbers):
            if following > last + 1 and not _denied_by(run, (last + 1, 0), files, policy):
                told = f"round {last + 1}" if following == last + 2 else f"rounds {last + 1} to {following - 1}"
                yield f"{told} of run {run}: there is no file, and whether a sum was taken is open"
        yield f"run {run} after round {numbers[-1]}: nothing is known of what came later"


# --- A client that accepts ----------------------------------------------------------------------------------------


def accept(verdict: Verdict, store: Store) -> tuple[RoundReport, ...]:
    """Mark rounds as replayed: those of the verdict that have a sum and in which everything was checked.

    So a site may take part again after it released shares for one of them, or for one that another site names: in
    attempts of the same run that it joins from here on. A client that fell silent before a result learns it here:
    rounds that continue its log are appended to it. All or nothing.

    Args:
        verdict: under the site's own policy and roster.
        store: the site's durable marks.

    Returns:
        The rounds that are now marked as replayed.

    Raises:
        ViolationError: something is violated, no round was checked completely, or a round contradicts the log.
    """
    if verdict.violation is not None:
        raise verdict.violation
    accepted = tuple(report for report in verdict.rounds if report.finished and not report.unchecked)
    if not accepted:
        check = next((check for report in verdict.rounds for check in report.unchecked), "T-13")
        raise ViolationError(check, f"there is no round of which it could be checked that {WHAT[check]}")
    with store.transaction() as marks:
        for report in verdict.rounds:
            if report.receipt is not None:
                try:
                    marks.finish(verdict.session, report.training_run, [report.receipt])
                except UnexpectedMessageError:
                    raise _contradiction(report) from None
        for report in accepted:
            slot = Slot(verdict.session, report.training_run, report.round_number, report.attempt)
            marks.replay(slot, report.round_id)
    return accepted


def _contradiction(report: RoundReport) -> ViolationError:
    sentence = (
        f"{report} does not follow this site's log of heads: give the files of all rounds that it missed; where it "
        "holds another head for this round, the server told two histories: keep both and ask another site"
    )
    error = ViolationError("T-02", sentence)
    error.path = report.path
    return error
