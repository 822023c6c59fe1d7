"""One transcript file, read: T-03 of the opening, T-18, T-19 and T-20 are checked on the way."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audits.verifier.encoding import H, MalformedError, Value, encode, split
from audits.verifier.judge import Judge
from audits.verifier.policy import Policy, UnreadableError
from audits.verifier.records import FORMAT, Cut, Record, cut, parsed
from audits.verifier.vectors import block_sizes, padding_is_zero

ORDER = (
    *("opening", "header", "advertisement", "shares", "report", "input", "attestation", "release", "pair", "result"),
    *("confirmation", "closing"),
)
OF_A_SUM = ("advertisement", "shares", "report", "input", "attestation", "release", "result")
OPENING: dict[str, type] = {
    "format": int,
    "project": str,
    "clients": int,
    "length": int,
    "clip range": str,
    "max corrupt": int,
    "min survivors": int,
    "suite": str,
    "bits": int,
    "value bits": int,
    "weights": list,
    "server key": bytes,
    "roster": bytes,
    "run": str,
    "round": int,
    "attempt": int,
    "model": bytes,
    "task": bytes,
    "previous head": bytes,
    "whole": int,
}
SENDER_AT = {
    "header": 2,
    "advertisement": 1,
    "report": 3,
    "input": 4,
    "attestation": 1,
    "release": 2,
    "confirmation": 1,
}


@dataclass(frozen=True)
class Reader:
    """What the reader of transcripts brings: the policy and the roster's verify keys."""

    policy: Policy
    roster: Mapping[str, bytes]

    @property
    def roster_hash(self) -> bytes:
        """H(roster)."""
        return H("roster", [[name, key] for name, key in sorted(self.roster.items())])

    @property
    def session(self) -> bytes:
        """The session of this policy and roster."""
        return H("session", self.policy.suite, self.policy.project, self.policy.hash, self.roster_hash)


@dataclass
class Transcript:
    """One file: its context and its records by kind and sender. Vectors stay packed."""

    path: Path
    run: str
    number: int
    attempt: int
    model: bytes
    task: bytes
    previous_head: bytes
    whole: bool  # masked vectors are published, not only their hashes
    chained: list[bytes] = field(default_factory=list)  # every record before the closing one, blocks included
    records: list[Record] = field(default_factory=list)
    of: dict[str, dict[str, Record]] = field(default_factory=lambda: {kind: {} for kind in ORDER})
    y: dict[str, bytes] = field(default_factory=dict)
    total: bytes = b""

    @property
    def finished(self) -> bool:
        """Whether it is of a round with a sum."""
        return bool(self.of["result"])

    def sent(self, kind: str) -> dict[str, list[Any]]:
        """The fields of a kind's records, by sender."""
        return {sender: record.fields for sender, record in self.of[kind].items()}

    def place(self, kind: str, sender: str) -> int | None:
        """Where a record lies in the file."""
        return self.of[kind][sender].place if sender in self.of[kind] else None


def sender_of(record: Record) -> str:
    """Whose the record is; of a pair secret both ids, of an opening, a result or a closing nobody's."""
    if record.kind == "shares":
        return str(record.fields[0][2])
    if record.kind == "pair":
        return " ".join(record.fields[:2])
    return str(record.fields[SENDER_AT[record.kind]]) if record.kind in SENDER_AT else ""


def read(path: Path, reader: Reader, judge: Judge) -> Transcript:
    """The file's records, in their order.

    Raises:
        UnreadableError: it does not begin with an opening of this format.
        ViolationError: T-03, T-04 (who is not in the roster), T-18, T-19 or T-20.
    """
    end = Cut()
    pieces = list(cut(path.read_bytes(), end))
    transcript = _opened(path, pieces, reader, judge)
    transcript.chained = pieces[:-1]
    vector: list[Record] = []  # the blocks of what was read last
    for place, piece in enumerate(pieces[1:], 1):
        try:
            record = parsed(place, piece)
        except MalformedError as error:
            judge.hold("T-20", False, str(error), place)
            continue
        judge.hold("T-20", True, "")
        if record.kind == "block":
            vector.append(record)
            _follows_a_vector(transcript, place, judge)
            continue
        _end_of_vector(transcript, vector, reader.policy, judge)
        vector = []
        _in_order(transcript, record, judge)
        for name in sender_of(record).split():
            judge.hold("T-04", name in reader.roster, "whose it is does not stand in your roster", place, name)
        transcript.records.append(record)
        transcript.of[record.kind].setdefault(sender_of(record), record)
    _end_of_vector(transcript, vector, reader.policy, judge)
    _is_whole(transcript, end.rest, judge)
    return transcript


def _opened(path: Path, pieces: list[bytes], reader: Reader, judge: Judge) -> Transcript:
    """T-20 and T-03: the opening has its one encoding, and is about the reader's own policy and roster."""
    try:
        label, *fields = split(pieces[0])
        told = _told(fields)
    except (IndexError, ValueError, MalformedError):
        label, told = b"", {}
    if label != b"secagg/2 transcript-opening" or told["format"] != FORMAT:
        raise UnreadableError(f"{path} is no transcript: it does not begin with an opening of format {FORMAT}.")
    again = split(encode("", *told.values()))[1:]
    judge.hold("T-20", again == fields, "the opening is not in its one encoding", 0)
    run, number, attempt, model, task, previous_head, whole = list(told.values())[-7:]
    hashes = (model, task, previous_head)
    sound = 0 < len(run) <= 256 and run.isprintable() and {32} == set(map(len, hashes))
    judge.hold("T-03", sound, "the name of the run, or a hash of the context, is none that can be", 0)
    possible = 1 <= number < 2**63 and attempt < 2**63
    judge.hold("T-03", possible, "round numbers start at 1, attempts at 0, and both stay below 2^63", 0)
    judge.hold("T-20", whole <= 1, "vectors are published whole (1) or by hash (0)", 0)
    p = reader.policy
    own: list[Value] = [FORMAT, p.project, p.clients, p.length, p.clip_range.hex(), p.max_corrupt, p.min_survivors]
    own += [p.suite, p.bits, p.value_bits, p.weight_list, p.server_key, reader.roster_hash]
    judge.hold("T-03", again[: len(own)] == split(encode("", *own))[1:], "policy and roster are not yours", 0)
    opened = Transcript(path, run, number, attempt, *hashes, bool(whole))
    opened.records.append(Record(0, "opening", pieces[0], fields))
    return opened


def _told(fields: list[bytes]) -> dict[str, Any]:
    """What an opening says, however it is spelt. ValueError or MalformedError where it cannot be read at all."""
    if len(fields) < len(OPENING):
        raise ValueError("a field is missing")
    told: dict[str, Any] = {}
    for (name, kind), data in zip(OPENING.items(), fields, strict=False):
        if kind is list:
            pairs = [split(item[4:]) for item in split(data[4:])]
            told[name] = [list(pair) for pair in {_text(pair[0]): _text(pair[1]) for pair in pairs}.items()]
        else:
            told[name] = int.from_bytes(data[:8], "big") if kind is int else _text(data) if kind is str else data
    return told


def _text(data: bytes) -> str:
    return data.decode("ascii")


def _in_order(transcript: Transcript, record: Record, judge: Judge) -> None:
    """T-19: kinds in their order, within a kind by sender, each once."""
    last = transcript.records[-1]
    once = record.kind != "opening" and last.kind != "closing"
    judge.hold("T-20", once, "a transcript opens once, and ends with its closing record", record.place)
    before, now = ((ORDER.index(one.kind), sender_of(one)) for one in (last, record))
    judge.hold("T-19", before < now, "it stands in the wrong place, or a second time", record.place, now[1])


def _follows_a_vector(transcript: Transcript, place: int, judge: Judge) -> None:
    owner = transcript.records[-1].kind
    judge.hold("T-18", owner in ("input", "result"), "a block belongs to no vector", place)


def _end_of_vector(transcript: Transcript, blocks: list[Record], policy: Policy, judge: Judge) -> None:
    """T-18: a vector has its d + slots values of b bits, and zeros behind them."""
    owner = transcript.records[-1]
    if owner.kind not in ("input", "result"):
        return
    sizes = block_sizes(policy) if owner.kind == "result" or transcript.whole else []
    found = [record.fields[0] for record in blocks]
    as_due = [len(block) for block in found] == [size for _, size in sizes]
    judge.hold("T-18", as_due, "its vector has another length", owner.place, sender_of(owner))
    if as_due and sizes:
        zero = padding_is_zero(found[-1], sizes[-1][0], policy.bits)
        judge.hold("T-18", zero, "what fills up its last row is not zero", owner.place, sender_of(owner))
    if owner.kind == "result":
        transcript.total = b"".join(found)
    elif sizes:
        transcript.y[sender_of(owner)] = b"".join(found)


def _is_whole(transcript: Transcript, rest: int, judge: Judge) -> None:
    """T-20: the file is whole, of a round with a sum or of one without."""
    kinds = {record.kind for record in transcript.records[1:]}
    last = transcript.records[-1]
    judge.hold("T-20", not rest, f"{rest} bytes at the end are no record", last.place)
    judge.hold("T-20", last.kind == "closing", "there is no closing record", last.place)
    complete = kinds >= set(OF_A_SUM) and "header" not in kinds
    without = kinds <= {"header", "closing"}
    judge.hold("T-20", complete or without, "it is neither of a round with a sum nor of one without", last.place)
