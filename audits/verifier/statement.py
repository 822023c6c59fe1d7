"""Specification, sections "Identifiers" and "Commitments": what follows from the messages of one file."""

from __future__ import annotations

from functools import cached_property
from typing import Any

from audits.verifier.encoding import HV, H, Value, encode
from audits.verifier.reading import Reader, Transcript

Fields = list[Any]


class Round:
    """One finished round as a file tells it, or the headers of one without a sum.

    The sets are those of the section "Notation". Fields of messages are in the order of `records.KINDS`.
    """

    def __init__(self, transcript: Transcript, reader: Reader) -> None:
        self.file, self.reader, self.policy = transcript, reader, reader.policy
        self.advertised, self.reports = transcript.sent("advertisement"), transcript.sent("report")
        self.inputs, self.attestations = transcript.sent("input"), transcript.sent("attestation")
        self.releases, self.confirmations = transcript.sent("release"), transcript.sent("confirmation")
        shares = transcript.sent("shares")
        self.headers = {u: fields[0] for u, fields in shares.items()} or transcript.sent("header")
        self.bundles: dict[str, list[Fields]] = {u: fields[1] for u, fields in shares.items()}
        self.u1, self.dealers = sorted(self.advertised), sorted(shares)
        self.u2, self.u3 = sorted(self.reports), sorted(self.inputs)
        self.u5 = sorted(self.releases)
        self.dropped = [u for u in self.u2 if u not in self.inputs]
        self.silent = [u for u in self.u3 if u not in self.releases]
        self.post_quantum = self.policy.suite != "X25519"
        receipts = transcript.sent("result")
        self.receipt: Fields = receipts[""] if receipts else []

    @cached_property
    def slot(self) -> bytes:
        """The slot that policy, roster and context make."""
        return H("slot", self.reader.session, self.file.run, self.file.number, self.file.attempt)

    @cached_property
    def roster1(self) -> bytes:
        """Hash over all advertisements with their signatures."""
        return H("roster1", [[signed("advertisement", self.advertised[u]), self.advertised[u][-1]] for u in self.u1])

    @cached_property
    def roster2(self) -> bytes:
        """Hash over the headers of all dealers with their signatures."""
        return H("roster2", [[signed("header", self.headers[u]), self.headers[u][-1]] for u in self.dealers])

    @cached_property
    def sharers(self) -> bytes:
        """H(U2)."""
        return H("sharers", self.u2)

    @cached_property
    def round_id(self) -> bytes:
        """The round id."""
        f = self.file
        return H("round", self.slot, self.roster2, self.sharers, f.model, f.task, f.previous_head)

    @cached_property
    def named(self) -> bytes:
        """The round id that the first input names; T-07 holds it, and every other one, against ours."""
        return bytes(self.inputs[self.u3[0]][0])

    @cached_property
    def attested(self) -> bytes:
        """The one statement of U3 and the inputs' hashes that a quorum signs."""
        return H("attested", self.named, H("inputs", self.u3, [self.inputs[u][5] for u in self.u3]))

    @cached_property
    def total_hash(self) -> bytes:
        """Hash of the published sum; with the seeds of excess noise that its sites released for it, where they did."""
        total = HV("total", self.file.total)
        seeds: list[Value] = [[u, b"".join(self.releases[u][7])] for u in self.u5 if len(self.releases[u]) == 9]
        return H("result", total, seeds) if seeds else total

    @cached_property
    def head(self) -> bytes:
        """The head after this round."""
        return H("head", self.file.previous_head, self.named, self.attested, self.total_hash)

    def place(self, kind: str, u: str = "") -> int | None:
        """Where in the file a record lies."""
        return self.file.place(kind, u)

    def dealer_of(self, u: str, v: str) -> str:
        """Who deals the pair's secret: the smaller id at an odd distance in U1, the larger at an even one."""
        return min(u, v) if (self.u1.index(u) - self.u1.index(v)) % 2 else max(u, v)

    def bundle(self, u: str, v: str) -> Fields:
        """What dealer u put down for v: two hashes of envelopes, commitments to shares of s and b, and to r_uv."""
        peers = [i for i in self.u1 if i != u]
        return self.bundles[u][peers.index(v)]

    def x_of(self, u: str) -> int:
        """Where in the polynomials u holds its shares."""
        return 1 + self.u1.index(u)


PURPOSE = {
    "advertisement": "advertise-keys",
    "header": "header",
    "report": "share-report",
    "input": "masked-input",
    "attestation": "attestation",
    "release": "unmasking",
    "confirmation": "confirmation",
    "result": "receipt",
}


def signed(kind: str, fields: Fields) -> bytes:
    """What the signature of a message covers: all of it but the signature, which is its last field."""
    return encode(PURPOSE[kind], *fields[:-1])


def round_of_claim(c: Fields) -> bytes:
    """The round that a release claim is about."""
    session, run, number, attempt, model, task, previous_head, roster2, sharers = c[:9]
    return H("round", H("slot", session, run, number, attempt), roster2, sharers, model, task, previous_head)
