"""Judges transcripts: every check on every one, the first thing wrong, what was not shown, and what may be accepted.

Must never: take a key or a policy from a transcript. Specification: docs/spec.md, section "Transcripts".
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from itertools import pairwise

from secagg.context import Slot
from secagg.errors import UnexpectedMessageError
from secagg.messages import ReleaseClaim
from secagg.policy import Policy
from secagg.roster import PinnedRoster
from secagg.store import NEVER, Store
from secagg.transcript.checks import CHECKS, OF_BURNED, WHAT
from secagg.transcript.facts import Past, Reader, Transcript
from secagg.transcript.participation import isolated
from secagg.transcript.reading import read_transcript
from secagg.transcript.verdict import NOT_SHOWN, Missing, RoundReport, Verdict
from secagg.transcript.violation import ViolationError


def judge(transcripts: Iterable[tuple[str, Iterable[bytes]]], policy: Policy, pinned: PinnedRoster) -> Verdict:
    """Judge transcripts of one session, each run in the order of its rounds; stops at the first thing wrong.

    `secagg.transcript_files.verify` does so for files.

    Args:
        transcripts: of each what to call it, such as its path, and its encoded records in order.
        policy: the reader's own, with the server key; never one that came with the transcripts.
        pinned: the reader's own pinned roster.

    Returns:
        The verdict: it never raises for what a transcript says.

    Raises:
        ConfigError: policy and roster do not fit together, or there is no transcript in what is called one.
    """
    reader, past, reports, notes = Reader(policy, pinned), Past(), list[RoundReport](), list[str]()
    session, counts, unchecked, claimed = reader.session, dict[str, int](), set[str](), list[tuple[str, ReleaseClaim]]()
    violation = None
    for file, records in transcripts:
        try:
            transcript = read_transcript(file, records, reader, past)
            held, left = _checked(transcript)
        except ViolationError as error:
            error.file, violation = file, error
            break
        counts = {check: counts.get(check, 0) + held.get(check, 0) for check in counts.keys() | held.keys()}
        unchecked |= left
        report = RoundReport.of(transcript, sorted(left))
        reports.append(report)
        past.last[report.training_run] = transcript.context, report.next_head
        own = ((u, claim) for u, entry in transcript.advertisements.items() for claim in entry.exposing)
        claimed += [(client_id, claim) for client_id, claim in own if claim.session == session]
        notes += [f"{file}: {note}" for note in _notes(transcript, report)]
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


def _checked(transcript: Transcript) -> tuple[dict[str, int], set[str]]:
    """Run every check that applies to this transcript.

    Returns:
        Check id to how many things it looked at; and the checks that could not be run.
    """
    held = {"T-20": len(transcript.numbers) + transcript.vectors.blocks}
    if not transcript.burned:
        held["T-18"] = transcript.vectors.blocks
    unchecked = set()
    for check, run in CHECKS.items():
        if not transcript.burned or check in OF_BURNED:
            looked_at = run(transcript)
            if looked_at is None:
                unchecked.add(check)
            else:
                held[check] = looked_at
    return held, unchecked


def _notes(transcript: Transcript, report: RoundReport) -> Iterator[str]:
    yield from transcript.notes
    if not transcript.policy.server_key:
        yield "the policy names no server key: receipt and file are not signed"
    if report.unconfirmed:
        yield f"no confirmation of {', '.join(report.unconfirmed)}"
    for client_id, advertised in transcript.advertisements.items():
        for claim in advertised.exposing:
            if claim.session != transcript.reader.session:
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
    """The sites that prove that no sum was taken at this (round number, attempt) of a run; empty unless they suffice.

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


def accept(
    verdict: Verdict, store: Store, before: Callable[[tuple[RoundReport, ...]], None] | None = None
) -> tuple[RoundReport, ...]:
    """Mark rounds as replayed: those of the verdict that have a sum and in which everything was checked.

    So a site may take part again after it released shares for one of them, or for one that another site names: in
    attempts of the same run that it joins from here on. A client that fell silent before a result learns it here:
    rounds that continue its log are appended to it. All or nothing.

    Args:
        verdict: under the site's own policy and roster.
        store: the site's durable marks.
        before: takes these rounds, and does what has to be durable before their marks are; it may come to it again.

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
        if before is not None:
            before(accepted)
    return accepted


def _contradiction(report: RoundReport) -> ViolationError:
    sentence = (
        f"{report} does not follow this site's log of heads: give the files of all rounds that it missed; where it "
        "holds another head for this round, the server told two histories: keep both and ask another site"
    )
    error = ViolationError("T-02", sentence)
    error.file = report.file
    return error
