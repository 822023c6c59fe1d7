"""Transcripts that must be refused, each for one check: honest in everything but one lie, told before it is signed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from audits.transcripts.play import Lie, Play, closed, drawn, framed, played, public, signing
from audits.verifier.encoding import encode
from audits.verifier.policy import Policy
from audits.verifier.reading import Reader
from audits.verifier.records import record

IDS = tuple(f"site-{c}" for c in "abcdef")
LATE = {"site-c": "input", "site-e": "release"}  # c drops out, its vector masked; e falls silent after it attested
A, B, C, E, F = "site-a", "site-b", "site-c", "site-e", "site-f"
OTHER = drawn("another hash")


def policy(**changes: Any) -> Policy:
    """A policy for six sites; t = 4."""
    fields: dict[str, Any] = {
        "project": "audit", "clients": 6, "suite": "X25519", "length": 20, "clip_range": 1.0, "max_corrupt": 1,
        "min_survivors": 4, "bits": 24, "value_bits": 16, "server_key": public(signing("server")),
    }  # fmt: skip
    return Policy(**{**fields, **changes})


@dataclass(frozen=True)
class Case:
    """One lie: the check that must fire, the step at which it is told, and what the round is otherwise.

    Steps: "before" all, a kind of message (before it is signed), "bundles", "plain" and "total" (vectors), "context"
    (after all is signed), "records" (before the file is closed). `file` makes the bytes of the file itself.
    """

    check: str
    name: str
    at: str = ""
    lie: Lie = lambda play: None
    file: Callable[[list[bytes]], bytes] = closed
    about: dict[str, Any] = field(default_factory=dict)
    rules: dict[str, Any] = field(default_factory=dict)
    without_sum: bool = False
    earlier: Sequence[dict[str, Any]] = ()  # honest rounds whose files come before

    def write(self, folder: Path) -> tuple[Reader, list[Path]]:
        """What an honest reader brings, and the files."""
        reader = Play(policy(**self.rules), "honest", IDS).reader
        paths = []
        for i, about in enumerate((*self.earlier, self.about)):
            last = i == len(self.earlier)
            lies = {self.at: self.lie} if last else {}
            about = {"absent": LATE, **about}
            without_sum = about.pop("without_sum", last and self.without_sum)
            play = Play(policy(**self.rules), "honest", IDS, **about, lies=lies)
            played(play, without_sum=without_sum)
            if last and self.at == "context":
                self.lie(play)
            path = folder / f"{i}-{self.name.replace(' ', '_')}.transcript"
            play.write(path, without_sum=without_sum)
            if last:
                path.write_bytes(self.file(play.records))
            paths.append(path)
        return reader, paths


def put(kind: str, u: str, index: int, value: Any) -> Lie:
    """Another value in a field of a message."""

    def lie(play: Play) -> None:
        """Tell it."""
        play.sent[kind][u][index] = value(play) if callable(value) else value

    return lie


def drop(kind: str, *clients: str) -> Lie:
    """Messages that are missing."""

    def lie(play: Play) -> None:
        """Tell it."""
        for u in clients:
            del play.sent[kind][u]

    return lie


def forged(kind: str) -> Lie:
    """A message of site-a that site-b signed."""
    return lambda play: play.resigned.update({f"{kind} {A}": B})


def put_record(kind: str, u: str, change: Callable[[Play, int], bytes | None]) -> Lie:
    """Another record in the place of one; None takes it out."""

    def lie(play: Play) -> None:
        """Tell it."""
        place = play.place(kind, u)
        new = change(play, place)
        play.records[place : place + 1] = [] if new is None else [new]

    return lie


def flipped(data: bytes, at: int) -> bytes:
    """One bit changed."""
    return data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]


def chain(records: list[bytes]) -> bytes:
    """A closing that is signed, of a chain that these records are not."""
    size = sum(4 + len(data) for data in records[:-1])
    return closed(records[:-1])[:size] + framed(records[-1]) + closed(records[:-1])[size:]


def receipt(play: Play, place: int) -> bytes:
    """The receipt, signed by a site."""
    fields = play.sent["result"][""][:-1]
    return record("result", *fields, signing(A).sign(encode("receipt", *fields)))


def swapped_bundles(play: Play, place: int) -> bytes:
    """The first two bundles of site-a in each other's place."""
    first, second, *rest = play.bundles[A]
    return record("shares", play.sent["header"][A], [second, first, *rest])


SEALED = [
    Case("T-01", "closing that a site signed", file=lambda records: closed(records, A)),
    Case("T-01", "closing of a chain without the last record", file=chain),
    Case("T-01", "bit flipped in a hash of the first message", file=lambda records: flipped(closed(records), 500)),
    Case("T-01", "record missing from the chain", file=lambda r: closed(r).replace(framed(r[-1]), b"")),
    Case("T-01", "closing that nobody signed", file=lambda records: unsigned(records)),
    Case("T-02", "receipt of another sum", "result", put("result", "", 4, OTHER)),
    Case("T-02", "receipt of another round number", "result", put("result", "", 1, 2)),
    Case("T-02", "receipt of another run", "result", put("result", "", 0, "run-2")),
    Case("T-02", "receipt of another round", "result", put("result", "", 2, OTHER)),
    Case("T-02", "receipt of another statement", "result", put("result", "", 3, OTHER)),
    Case("T-02", "receipt of another previous head", "result", put("result", "", 5, OTHER)),
    Case("T-02", "receipt of another head", "result", put("result", "", 6, OTHER)),
    Case("T-04", "receipt that a site signed", "records", put_record("result", "", receipt)),
    Case("T-02", "confirmation of another head", "confirmation", put("confirmation", A, 0, OTHER)),
    Case("T-02", "one confirmation short of a quorum", "confirmation", drop("confirmation", A, B)),
]


def unsigned(records: list[bytes]) -> bytes:
    """A closing of the right chain without a signature."""
    whole = closed(records)
    size = sum(4 + len(data) for data in records)
    closing = record("closing", *[whole[size + 4 :][-100:-68], b""])
    return whole[:size] + framed(closing)


def another_policy(**changes: Any) -> Callable[[list[bytes]], bytes]:
    """The opening says another policy than the reader's."""

    def file(records: list[bytes]) -> bytes:
        """The file with it."""
        return closed([Play(policy(**changes), "honest", IDS).opening(), *records[1:]])

    return file


CONTEXT = [
    Case("T-03", "context of another attempt", "context", lambda play: setattr(play, "attempt", 1)),
    Case("T-02", "context of another round number", "context", lambda play: setattr(play, "number", 2)),
    Case("T-02", "context of another run", "context", lambda play: setattr(play, "run", "run-2")),
    Case("T-03", "first header for another slot", "header", put("header", A, 0, OTHER)),
    Case("T-03", "headers of another attempt", "context", lambda p: setattr(p, "attempt", 1), without_sum=True),
    *(
        Case("T-03", f"opening with another {next(iter(changes))}", file=another_policy(**changes))
        for changes in (
            {"project": "other"}, {"length": 21}, {"clip_range": 2.0}, {"bits": 25}, {"value_bits": 15},
            {"min_survivors": 5}, {"weights": {A: 2.0}}, {"server_key": OTHER}, {"suite": "MLKEM768_X25519"},
        )
    ),
    Case("T-03", "roster with another key", "context", lambda play: play.roster.update({F: OTHER})),
]  # fmt: skip

SIGNED = [
    *(
        Case("T-04", f"{kind} that somebody else signed", kind, forged(kind))
        for kind in ("advertisement", "header", "report", "input", "attestation", "release", "confirmation")
    ),
    Case("T-04", "header without a sum, not its own", "header", forged("header"), without_sum=True),
    Case("T-04", "advertisement for another slot", "advertisement", put("advertisement", A, 0, OTHER)),
    Case("T-04", "header for another slot", "header", put("header", B, 0, OTHER)),
    Case("T-04", "header for another roster", "header", put("header", A, 1, OTHER)),
    Case("T-04", "report for another slot", "report", put("report", A, 0, OTHER)),
    Case("T-04", "report on another roster", "report", put("report", A, 1, OTHER)),
    Case("T-04", "report on other headers", "report", put("report", A, 2, OTHER)),
    Case("T-04", "input for another roster", "input", put("input", A, 1, OTHER)),
    Case("T-04", "input for other headers", "input", put("input", A, 2, OTHER)),
    Case("T-04", "input for other sharers", "input", put("input", A, 3, OTHER)),
    Case("T-04", "release for another round", "release", put("release", A, 0, OTHER)),
    Case("T-04", "bundles in another order than in the tree", "records", put_record("shares", A, swapped_bundles)),
]


def copied(index: int, to: int, of: str) -> Lie:
    """A field of an advertisement that is another one's."""

    def lie(play: Play) -> None:
        """Tell it."""
        play.sent["advertisement"][A][to] = play.sent["advertisement"][of][index]

    return lie


def same_commitment(play: Play) -> None:
    """One commitment to two shares."""
    play.bundles[A][1][3] = play.bundles[A][0][3]


NEXT = {"number": 2, "model": drawn("model 2")}
SECOND: dict[str, Any] = {"earlier": ({},), "about": {**NEXT, "follows": ({},)}}


def before(play: Play) -> Play:
    """The honest round before."""
    return played(Play(play.policy, "honest", IDS, absent=LATE))


FRESH = [
    Case("T-05", "nonce that another site has too", "advertisement", copied(5, 5, B)),
    Case("T-05", "channel key that another site has too", "advertisement", copied(2, 2, B)),
    Case("T-05", "one key for two purposes", "advertisement", copied(3, 2, A)),
    Case("T-05", "commitment that occurs twice", "bundles", same_commitment),
    Case("T-05", "nonce of the round before", "advertisement",
         put("advertisement", A, 5, lambda play: before(play).sent["advertisement"][A][5]), **SECOND),
    Case("T-05", "channel key of the round before", "advertisement",
         put("advertisement", A, 2, lambda play: before(play).sent["advertisement"][A][2]), **SECOND),
    Case("T-06", "channel key of zero", "advertisement", put("advertisement", A, 2, bytes(32))),
    Case("T-06", "channel key at the prime", "advertisement",
         put("advertisement", A, 2, (2**255 - 19).to_bytes(32, "little"))),
    Case("T-06", "channel key with the unused bit set", "advertisement",
         put("advertisement", A, 2, lambda p: p.sent["advertisement"][A][2][:31] + b"\x80")),
    Case("T-06", "channel key of order eight", "advertisement", put("advertisement", A, 2, bytes.fromhex(
        "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"))),
    Case("T-06", "mask key of the order one", "advertisement", put("advertisement", C, 3, (1).to_bytes(32, "little"))),
    Case("T-06", "key of the other suite", "advertisement", put("advertisement", A, 4, drawn("kem", 1216))),
    Case("T-06", "channel key of 31 bytes", "advertisement", put("advertisement", A, 2, OTHER[:31])),
    Case("T-06", "ML-KEM key with a coefficient of 4095", "advertisement",
         put("advertisement", A, 2, lambda p: b"\xff\xff" + p.sent["advertisement"][A][2][2:]),
         rules={"suite": "MLKEM768_X25519"}),
]  # fmt: skip
