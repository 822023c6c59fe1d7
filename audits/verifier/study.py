"""Several files together: T-05 and T-19 over them, T-21 and T-22, and the verdict."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from audits.verifier import checks, opening
from audits.verifier.encoding import H, encode
from audits.verifier.judge import Judge, ViolationError
from audits.verifier.primitives import verifies
from audits.verifier.reading import Reader, Transcript, read
from audits.verifier.statement import Fields, Round, round_of_claim

NONE = bytes(32)
OF_A_SUM: tuple[Callable[[Round, Judge], None], ...] = (
    checks.t06_keys,
    checks.t07_round,
    checks.t08_envelopes,
    checks.t09_sets,
    checks.t10_quorum,
    checks.t11_released,
)


@dataclass
class Verdict:
    """What came out: `violation`, or what is missing or could not be run; else everything holds."""

    violation: ViolationError | None = None
    missing: list[str] = field(default_factory=list)
    no_power: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    rounds: list[Round] = field(default_factory=list)

    @property
    def check(self) -> str:
        """The check that is violated, or nothing."""
        return self.violation.check if self.violation else ""

    @property
    def exit_code(self) -> int:
        """0, 1 or 2, as `secagg verify-transcript` ends."""
        return 1 if self.violation else 2 if self.missing or self.no_power else 0

    @property
    def sentence(self) -> str:
        """The verdict in one sentence."""
        if self.violation:
            return f"Violated: {self.violation}"
        reasons = [*self.missing, *self.no_power]
        return f"Nothing is violated, but {'; '.join(reasons)}." if reasons else "Everything holds."


def verify(paths: Sequence[Path], reader: Reader, without: Collection[str] = ()) -> Verdict:
    """All checks of the section "Transcripts" on the files of a study, those of each run in the order of its rounds.

    Args:
        paths: transcripts.
        reader: the reader's own policy and roster.
        without: checks that are switched off, to see what then gets by.

    Raises:
        UnreadableError: a file is no transcript.
    """
    judge, verdict = Judge(frozenset(without)), Verdict()
    earlier: set[bytes] = set()
    try:
        for path in paths:
            transcript = read(path, reader, judge)
            _follows(transcript, verdict.rounds, judge)
            verdict.rounds.append(_one(Round(transcript, reader), judge, earlier, verdict))
        _claims(verdict, judge)
        for r in verdict.rounds:
            if not r.file.finished and not not_taken(r, verdict.rounds):
                verdict.missing.append(f"{r.file.path.name}: it is not shown that no sum was taken")
    except ViolationError as violation:
        verdict.violation = violation
    verdict.no_power = list(judge.not_run.values())
    return verdict


def _one(r: Round, judge: Judge, earlier: set[bytes], verdict: Verdict) -> Round:
    checks.t01_chain(r, judge)
    if r.file.finished:
        checks.t02_result(r, judge)
    checks.t03_slot(r, judge)
    checks.t04_signatures(r, judge)
    checks.t05_fresh(r, judge, earlier)
    if r.file.finished:
        for check in OF_A_SUM:
            check(r, judge)
        opened = opening.t12_commitments(r, judge)
        opening.t13_sum(r, judge, opened)
        opening.t14_range(r, judge)
    return r


def _follows(transcript: Transcript, before: Sequence[Round], judge: Judge) -> None:
    """T-19: the files of a run are of one later attempt after the other, and continue its chain of heads."""
    same = [r for r in before if r.file.run == transcript.run]
    if not same:
        return
    last = same[-1].file
    later = (transcript.number, transcript.attempt) > (last.number, last.attempt)
    judge.hold("T-19", later, f"{transcript.path.name} is not of a later round or attempt than the file before it", 0)
    heads = [r.head for r in same if r.file.finished]
    follows = not heads or transcript.previous_head == heads[-1]
    judge.hold("T-19", follows, f"{transcript.path.name} does not continue the chain of heads", 0)


def _claims(verdict: Verdict, judge: Judge) -> None:
    """T-22, and T-21: every round that sites say they released in is among the files."""
    finished = {r.round_id for r in verdict.rounds if r.file.finished}
    named: dict[bytes, set[str]] = {}
    for r in verdict.rounds:
        for u, fields in r.advertised.items():
            said = {fields[6]} - {NONE}
            for claim in fields[7]:
                if claim[0] == r.reader.session:
                    judge.hold("T-22", _attested(claim, r), f"no quorum attested {checks.one_claim(claim)}",
                               r.place("advertisement", u), u)  # fmt: skip
                    said.add(round_of_claim(claim))
            for round_id in said - finished:
                named.setdefault(round_id, set()).add(u)
    if "T-21" not in judge.without:
        for round_id, sites in sorted(named.items()):
            who = ", ".join(sorted(sites))
            verdict.missing.append(f"no file is of round {round_id.hex()}, in which {who} released shares (T-21)")


def _attested(claim: Fields, r: Round) -> bool:
    attested = H("attested", round_of_claim(claim), claim[9])
    good = {
        u for u, signature in claim[10]
        if verifies(r.reader.roster.get(u, b""), encode("attestation", attested, u), signature)
    }  # fmt: skip
    return len(good) >= r.policy.threshold


def not_taken(r: Round, rounds: Sequence[Round]) -> bool:
    """Whether enough sites say, in their next advertisement of the run, that they released in no such attempt.

    At most c of them lie, and fewer than t sites can have released where n - t + c + 1 did not.
    """
    of_run = [other for other in rounds if other.file.run == r.file.run and other.file.finished]
    own = (r.file.number, r.file.attempt)
    before = {other.round_id for other in of_run if (other.file.number, other.file.attempt) < own}
    later = sorted((other for other in of_run if (other.file.number, other.file.attempt) > own),
                   key=lambda other: (other.file.number, other.file.attempt))  # fmt: skip
    said: dict[str, bytes] = {}
    for other in later:
        for u, fields in other.advertised.items():
            said.setdefault(u, fields[6])
    policy = r.policy
    elsewhere = sum(released == NONE or released in before for released in said.values())
    return elsewhere >= policy.clients - policy.threshold + policy.max_corrupt + 1
