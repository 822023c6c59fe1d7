"""Both verifiers on the same files: verdict and named check have to be the same."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

import secagg
from audits.transcripts.golden import VECTORS, vector
from audits.transcripts.lies import PQ
from audits.transcripts.negatives import IDS, LATE, Case, policy
from audits.transcripts.play import Play, closed, played
from audits.verifier.policy import BITS_OF, NUMBER_OF, Policy, UnreadableError, load_policy, load_roster
from audits.verifier.reading import Reader
from audits.verifier.study import verify
from secagg import files, transcript_files

WEIGHTED = {"weights": {u: 2.0 if u == IDS[0] else 1.0 for u in IDS}}


@dataclass(frozen=True)
class Said:
    """What a verifier said: its exit status, and the check that it names or nothing."""

    status: int
    check: str


@dataclass(frozen=True)
class Comparison:
    """Both on the files of one case. `expected` is the check that was lied about, None where none is known."""

    name: str
    ours: Said
    theirs: Said
    expected: str | None

    @property
    def agree(self) -> bool:
        """The same verdict and check, and the expected one. T-21 is no violation: then the set is incomplete."""
        as_due = self.expected in (None, self.ours.check) or (self.expected == "T-21" and self.ours == Said(2, ""))
        return self.ours == self.theirs and as_due


def compared(name: str, reader: Reader, paths: Sequence[Path], folder: Path, expected: str | None) -> Comparison:
    """Ask both; each reads policy and roster from files, as a user has them."""
    rules, roster = folder / "policy.toml", folder / "roster.toml"
    rules.write_text(policy_text(reader.policy))
    roster.write_text("[clients]\n" + "".join(f'"{u}" = "{key.hex()}"\n' for u, key in reader.roster.items()))
    try:
        verdict = verify(paths, Reader(load_policy(rules), load_roster(roster)))
        ours = Said(verdict.exit_code, verdict.check)
    except UnreadableError:
        ours = Said(3, "")
    try:
        answer = transcript_files.verify(list(paths), files.load_policy(rules), secagg.PinnedRoster(reader.roster))
        theirs = Said(answer.exit_code, answer.violation.check if answer.violation else "")
    except secagg.ConfigError:
        theirs = Said(3, "")
    return Comparison(name, ours, theirs, expected)


def policy_text(policy: Policy) -> str:
    """The policy as a file."""
    lines = ["[policy]"]
    names = ["project", "clients", "suite", "max_corrupt", "min_survivors", "bits"]
    if not policy.layout:
        names += ["length", "clip_range", "value_bits"]
    for name in names:
        value = getattr(policy, name)
        lines.append(f'{name} = "{value}"' if isinstance(value, str) else f"{name} = {value!r}")
    lines += [f'server_key = "{policy.server_key.hex()}"', "[policy.weights]"]
    lines += [f'"{u}" = {weight!r}' for u, weight in policy.weights.items()]
    for one in policy.layout:
        lines += ["[[policy.layout]]", f'name = "{one.name}"', f'kind = "{one.kind}"']
        lines += [f"shape = {list(one.shape)}"] if one.shape else []
        number = int(one.number) if one.kind == "count" else one.number
        lines.append(f"{NUMBER_OF[one.kind]} = {number!r}")
        lines += [f"{BITS_OF[one.kind]} = {one.bits}"] if one.kind in BITS_OF else []
    return "\n".join(lines) + "\n"


def of_lies(cases: Sequence[Case], folder: Path) -> Iterator[Comparison]:
    """Both on honest transcripts and on those with one lie."""
    for case in cases:
        reader, paths = case.write(folder)
        yield compared(case.name, reader, paths, folder, case.check)


def of_vectors(folder: Path) -> Iterator[Comparison]:
    """Both on the rounds of tests/vectors, and on those rounds with the lie of a vector that its server refused."""
    for path in sorted(VECTORS.glob("*.json")):
        if path.stem.startswith(("round_", "silent_", "abort_", "bad_")):
            made = vector(path.stem)
            if made and (paths := made.write(folder)):
                yield compared(path.stem, made.reader, paths, folder, None)


def of_flips(folder: Path, count: int, seed: int) -> Iterator[Comparison]:
    """Both on a round in which one bit of one record is another one, the chain closed over it by the server.

    Every 40th bit of two openings, and so many drawn ones.
    """
    draw = np.random.default_rng(seed)
    plays = [played(Play(policy(**rules), "flips", IDS, absent=LATE)) for rules in (WEIGHTED, PQ)]
    path = folder / "flipped.transcript"
    for play in plays:
        play.write(path)
    flips = [(i, 0, bit) for i, play in enumerate(plays) for bit in range(0, 8 * len(play.records[0]), 40)]
    for i in range(count):
        record = int(draw.integers(len(plays[i % 2].records)))
        flips.append((i % 2, record, int(draw.integers(8 * len(plays[i % 2].records[record])))))
    for i, record, bit in flips:
        play = plays[i]
        changed = bytearray(play.records[record])
        changed[bit // 8] ^= 1 << bit % 8
        path.write_bytes(closed([*play.records[:record], bytes(changed), *play.records[record + 1 :]]))
        yield compared(f"bit {bit} of record {record} of round {i}", play.reader, [path], folder, None)
