"""The lies about sets, shares and sums, T-07 to T-22 (`negatives` has those about who signed what)."""

from __future__ import annotations

from typing import Any

import numpy as np

from audits.transcripts.negatives import (
    CONTEXT,
    FRESH,
    IDS,
    OTHER,
    SEALED,
    SECOND,
    SIGNED,
    A,
    B,
    C,
    Case,
    E,
    F,
    before,
    drop,
    flipped,
    put,
    put_record,
)  # fmt: skip
from audits.transcripts.play import NONE, Lie, Play, closed, framed, signing
from audits.verifier.encoding import HV, H, encode
from audits.verifier.policy import Field
from audits.verifier.primitives import P
from audits.verifier.records import record

PQ = {"suite": "MLKEM768_X25519"}
FIELDS = (
    Field("weight", "weight", (), 4096.0, 16),
    Field("head", "float", (2, 5), 0.5, 16),
    Field("labels", "count", (4,), 1000, 0),
    Field("own", "integer", (5,), 0.25, 20),
)
LAID_OUT: dict[str, Any] = {"layout": FIELDS, "clip_range": 0.0, "value_bits": 0}


def bundle(u: str, v: str, index: int, value: Any) -> Lie:
    """Another value in a bundle."""

    def lie(play: Play) -> None:
        """Tell it."""
        peers = [i for i in play.u1 if i != u]
        play.bundles[u][peers.index(v)][index] = value(play) if callable(value) else value

    return lie


def share(kind: str, of: str, change: int) -> Lie:
    """A share that site-a releases is another one."""
    at = 4 if kind == "b" else 5

    def lie(play: Play) -> None:
        """Tell it."""
        for entry in play.sent["release"][A][at]:
            if entry[0] == of:
                entry[1] = ((int.from_bytes(entry[1], "big") + change) % 2**264).to_bytes(33, "big")

    return lie


def listed(at: int, name: str, value: bytes | None) -> Lie:
    """An entry more in a list of site-a's release, or without a value one less."""

    def lie(play: Play) -> None:
        """Tell it."""
        entries = [entry for entry in play.sent["release"][A][at] if entry[0] != name]
        play.sent["release"][A][at] = sorted(entries + ([[name, value]] if value is not None else []))

    return lie


def both(*lies: Lie) -> Lie:
    """One lie after the other."""

    def lie(play: Play) -> None:
        """Tell it."""
        for one in lies:
            one(play)

    return lie


def polynomial(kind: str, u: str, secret: int) -> Lie:
    """A dealer shares another secret than it commits to, or advertises keys of."""

    def lie(play: Play) -> None:
        """Tell it."""
        play.polynomials[kind, u][0] = secret

    return lie


def complained(play: Play) -> None:
    """Site f complains."""
    play.sent["report"][F][4] = A


def shifted(play: Play) -> None:
    """The server publishes a sum with one more in a value."""
    play.total[3] += np.uint64(1)


def value(u: str, at: int, number: int) -> Lie:
    """A client sends a value that no honest one does."""

    def lie(play: Play) -> None:
        """Tell it."""
        play.plain[u][at] = np.uint64(number % 2**64)

    return lie


def largest(play: Play) -> None:
    """Everybody sends the most that each kind of field allows."""
    for x in play.plain.values():
        x[:20] = np.array([2**15, *[2**24 - 2**15] * 10, *[1000] * 4, *[2**23 - 1] * 5], dtype=np.uint64)


def signed_padding(play: Play) -> None:
    """Site a signs a vector whose last row is not filled up with zeros."""
    play.blocks[A] = [flipped(play.blocks[A][0], len(play.blocks[A][0]) - 1)]
    play.sent["input"][A][5] = HV("masked-vector", play.blocks[A][0])


SETS = [
    Case("T-07", "context of another model", "context", lambda play: setattr(play, "model", OTHER)),
    Case("T-07", "context of another task", "context", lambda play: setattr(play, "task", OTHER)),
    Case("T-02", "context of another previous head", "context", lambda play: setattr(play, "previous_head", OTHER)),
    Case("T-07", "input for another model", "input", put("input", B, 0, OTHER)),
    Case("T-02", "first input for another model", "input", put("input", A, 0, OTHER)),
    Case("T-08", "envelope that was sent twice", "bundles", lambda p: bundle(A, B, 0, p.bundles[B][1][0])(p)),
    Case("T-08", "share commitment of 31 bytes", "bundles", bundle(A, B, 2, OTHER[:31])),
    Case("T-08", "no share commitment", "bundles", bundle(A, B, 2, b"")),
    Case("T-08", "pair secret where none is due", "bundles", bundle(A, B, 1, OTHER)),
    Case("T-08", "no pair secret where one is due", "bundles", bundle(A, B, 1, b""), rules=PQ),
    Case("T-08", "pair secret that the peer deals", "bundles", bundle(B, A, 1, OTHER), rules=PQ),
    Case("T-08", "pair commitment where none is due", "bundles", bundle(A, B, 4, OTHER)),
    Case("T-09", "one input too few", about={}, rules={"min_survivors": 6}),
    Case("T-09", "complaint", "report", complained),
    Case("T-09", "attestation of a client that dropped out", "attestation",
         lambda play: play.sent["attestation"].update({C: [play.attested, C]})),
    Case("T-09", "report of a client that dealt nothing", "report",
         lambda play: play.sent["report"].update({F: [play.slot, play.roster1, play.roster2, F, ""]}),
         about={"absent": {F: "header"}}),
    Case("T-10", "attestation of another set", "attestation", put("attestation", A, 0, OTHER)),
    Case("T-10", "one attestation short of a quorum", "attestation", drop("attestation", A, B)),
    Case("T-10", "release for another set", "release", put("release", A, 1, OTHER)),
    Case("T-20", "share of b of the dropped beside that of s", "release", listed(4, C, bytes(33))),
    Case("T-11", "share of b of the dropped in place of that of s", "release",
         both(listed(4, C, bytes(33)), listed(5, C, None))),
    Case("T-11", "share of b that is missing", "release", listed(4, B, None)),
    Case("T-11", "share of s of an included client", "release", both(listed(5, B, bytes(33)), listed(4, B, None))),
    Case("T-11", "share of s that is missing", "release", listed(5, C, None)),
    Case("T-11", "pair secret that is missing", "release", listed(6, C, None), rules=PQ),
    Case("T-20", "pair secret with an included client", "release", listed(6, B, OTHER), rules=PQ),
    Case("T-20", "pair secret with nobody", "release", listed(6, "site-g", OTHER), rules=PQ),
    Case("T-11", "pair that did not have to be opened", "release",
         lambda play: play.pairs.append([A, C, play.r(A, C)]), rules=PQ),
    Case("T-11", "pair that had to be opened and was not", "release", lambda play: play.pairs.clear(), rules=PQ),
]  # fmt: skip

OPENED = [
    Case("T-12", "wrong share of b", "release", share("b", E, 1)),
    Case("T-12", "wrong share of s", "release", share("s", C, 1)),
    Case("T-20", "share of b that is larger than the prime", "release", share("b", B, P)),
    Case("T-12", "another self seed than committed to", "release", put("release", A, 3, OTHER)),
    Case("T-12", "wrong pair secret", "release", listed(6, C, OTHER), rules=PQ),
    Case("T-12", "shares of another b than committed to", "advertisement", polynomial("b", E, 7)),
    Case("T-12", "shares of another s than the keys follow from", "advertisement", polynomial("s", C, 7)),
    Case("T-12", "shares of no secret of 32 bytes", "advertisement", polynomial("b", E, 2**256 + 3)),
    Case("T-12", "opened pair that misses its commitment", "release",
         lambda play: play.pairs.__setitem__(0, [*play.pairs[0][:2], OTHER]), rules=PQ),
    Case("T-12", "pair commitment that does not follow from s", "bundles", bundle(C, "site-d", 4, OTHER), rules=PQ,
         about={"absent": {C: "input", "site-d": "release"}}),
    Case("T-13", "sum that is one too large in a value", "total", shifted),
    Case("T-13", "masked vector that is not the signed one", "records",
         put_record("block", A, lambda play, place: flipped(play.records[place], 61))),
    Case("T-14", "value beyond what the included can send", "plain", value(A, 2, 2**22)),
    Case("T-14", "value below what the included can send", "plain", value(A, 2, -(2**22))),
    Case("T-14", "constant slot that is one too large", "plain",
         lambda play: play.plain[A].__setitem__(20, play.plain[A][20] + np.uint64(1) & np.uint64(2**24 - 1))),
    Case("T-14", "count beyond what the included can send", "plain", value(A, 11, 2**22), rules=LAID_OUT),
    Case("T-14", "count below nothing", "plain", value(A, 11, -(2**22)), rules=LAID_OUT),
    Case("T-14", "weight beyond the largest", "plain", value(A, 0, 2**22), rules=LAID_OUT),
    Case("T-18", "bit set in what fills up a masked vector", "records",
         put_record("block", A, lambda play, place: flipped(play.records[place], len(play.records[place]) - 1))),
    Case("T-18", "bit set in what fills up the sum", "records",
         put_record("block", "", lambda play, place: flipped(play.records[place], len(play.records[place]) - 1))),
    Case("T-18", "masked vector without its block", "records", put_record("block", A, lambda play, place: None)),
    Case("T-18", "block that is a word too long", "records",
         put_record("block", A, lambda play, place: record("block", play.blocks[A][0] + bytes(4)))),
    Case("T-18", "bit set in what a client signed", "input", signed_padding),
    Case("T-18", "sum without its block", "records", put_record("block", "", lambda play, place: None)),
]  # fmt: skip


def swapped(kind: str) -> Lie:
    """Two records of a kind in each other's place."""

    def lie(play: Play) -> None:
        """Tell it."""
        i, j = play.place(kind, A), play.place(kind, B)
        play.records[i], play.records[j] = play.records[j], play.records[i]

    return lie


def twice(kind: str) -> Lie:
    """A record that occurs twice."""
    return lambda play: play.records.insert(play.place(kind, A), play.records[play.place(kind, A)])


def at_the_end(kind: str) -> Lie:
    """A record behind those of later kinds."""
    return lambda play: play.records.append(play.records.pop(play.place(kind, F)))


SHAPE = [
    *(Case("T-19", f"two of kind {kind} swapped", "records", swapped(kind))
      for kind in ("advertisement", "shares", "report", "attestation", "release", "confirmation")),
    *(Case("T-19", f"{kind} that occurs twice", "records", twice(kind)) for kind in ("report", "confirmation")),
    Case("T-19", "report behind the confirmations", "records", at_the_end("report")),
    Case("T-19", "round of the same number again", earlier=({},), about={"model": OTHER}),
    Case("T-19", "round of an earlier number", earlier=({**SECOND["about"], "follows": ()},), about={}),
    Case("T-19", "round that does not continue the heads", earlier=({},), about={"number": 2, "previous_head": OTHER}),
    Case("T-20", "bytes behind the closing", file=lambda records: closed(records) + b"\x00\x00"),
    Case("T-20", "record behind the closing", file=lambda records: closed(records) + framed(records[-1])),
    Case("T-20", "last byte missing", file=lambda records: closed(records)[:-1]),
    Case("T-20", "no closing", file=lambda records: b"".join(framed(data) for data in records)),
    Case("T-20", "field more in a record", "records",
         put_record("report", A, lambda play, place: play.records[place] + framed(b""))),
    Case("T-20", "record of an unknown kind", "records",
         lambda play: play.records.insert(1, record("letter", b"hello"))),
    Case("T-20", "share of 34 bytes", "release", listed(4, B, bytes(34))),
    Case("T-20", "self seed of 31 bytes", "release", put("release", A, 3, OTHER[:31])),
    Case("T-20", "nonce of 15 bytes", "advertisement", put("advertisement", A, 5, OTHER[:15])),
    Case("T-20", "pair secret of 31 bytes", "release", listed(6, C, OTHER[:31]), rules=PQ),
    Case("T-20", "second opening", "records", lambda play: play.records.insert(1, play.records[0])),
    Case("T-20", "header beside a sum", "records",
         lambda play: play.records.insert(1, record("header", *play.sent["header"][A]))),
    Case("T-20", "no receipt", "records", lambda play: play.records.__delitem__(
        slice(play.place("result", ""), None))),
    Case("T-20", "no releases", "records", lambda play: play.records.__setitem__(slice(None), [
        data for data in play.records if b"transcript-release" not in data[:40]])),
    Case("T-20", "no shares", "records", lambda play: play.records.__setitem__(slice(None), [
        data for data in play.records if b"transcript-shares" not in data[:40]])),
    Case("T-18", "block where none belongs", "records",
         lambda play: play.records.insert(2, record("block", b"0000"))),
]  # fmt: skip


def claim_of(play: Play, signers: tuple[str, ...], of: Play | None = None) -> list[Any]:
    """A claim that these attested, about a round of the session; about one without a file where none is given."""
    body: list[Any]
    if of is None:
        body = [play.reader.session, "run-0", 9, 0, OTHER, OTHER, NONE, OTHER, OTHER, OTHER]
    else:
        inputs = H("inputs", of.u3, [of.sent["input"][u][5] for u in of.u3])
        about = [of.run, of.number, of.attempt, of.model, of.task, of.previous_head, of.roster2, of.sharers, inputs]
        body = [play.reader.session, *about]
    attested = H("attested", H("round", H("slot", *body[:4]), *body[7:9], *body[4:7]), body[9])
    return [*body, [[u, signing(u).sign(encode("attestation", attested, u))] for u in signers]]


def claims(*signers: str, of_round_1: bool = False) -> Lie:
    """Site a claims that it released in a round that these attested."""

    def lie(play: Play) -> None:
        """Tell it."""
        play.sent["advertisement"][A][7] = [claim_of(play, signers, before(play) if of_round_1 else None)]

    return lie


def not_following(play: Play) -> None:
    """Site c deals a pair secret to site a that does not follow from its mask key; it matches its commitment."""
    play.odd_secrets[C, A] = OTHER


CLAIMS = [
    Case("T-22", "claim that no quorum attested", "advertisement", claims(A, B, C)),
    Case("T-22", "claim of the round before that no quorum attested", "advertisement",
         claims(A, B, C, of_round_1=True), **SECOND),
    Case("T-21", "claim of a round without a file", "advertisement", claims(A, B, C, E)),
    Case("T-21", "release named that no file shows", "advertisement", put("advertisement", A, 6, OTHER)),
]  # fmt: skip

HONEST = [
    Case("", "nobody dropped out", about={"absent": {}}),
    Case("", "one dropped out, one fell silent"),
    Case("", "one dropped out, one fell silent, post-quantum", rules=PQ),
    Case("", "dealer that came too late to report", about={"absent": {A: "report", C: "input"}}),
    Case("", "sharer that came too late to deal", about={"absent": {B: "header"}}, rules=PQ),
    Case("", "masked vectors by hash only", about={"whole": False}),
    Case("", "values of 64 bits", rules={"bits": 64}),
    Case("", "values of 40 bits", rules={"bits": 40}),
    Case("", "vector of two blocks", rules={"length": 2**16}),
    Case("", "public weights", rules={"weights": {u: 1.0 + i / 2 for i, u in enumerate(IDS)}}),
    Case("", "layout of four kinds", rules=LAID_OUT),
    Case("", "layout, largest of all", "plain", largest, rules=LAID_OUT),
    Case("", "two rounds", earlier=({},), about=SECOND["about"]),
    Case("", "claim of the round before", "advertisement", claims(A, B, C, E, of_round_1=True), **SECOND),
    Case("", "round without a sum, and nothing after it", without_sum=True),
    Case("", "round without a sum, then one with", earlier=({"without_sum": True, "number": 1},), about={"number": 2}),
    Case("", "pair secret that does not follow from s", "before", not_following, rules=PQ),
]  # fmt: skip

CASES = (*SEALED, *CONTEXT, *SIGNED, *FRESH, *SETS, *OPENED, *SHAPE, *CLAIMS)
