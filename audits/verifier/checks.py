"""The checks of one file but those of shares and sums, each named as in docs/spec.md, section "Transcripts"."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

from audits.verifier.encoding import H, encode, root_over
from audits.verifier.judge import Judge
from audits.verifier.primitives import usable_key, usable_point, verifies
from audits.verifier.statement import Fields, Round, signed


def t01_chain(r: Round, judge: Judge) -> None:
    """The chain ends where the closing record says, sealed by the server key where the policy has one."""
    link = bytes(32)
    for data in r.file.chained:
        link = H("transcript-record", link, data)
    end, signature = r.file.of["closing"][""].fields if r.file.of["closing"] else (b"", b"")
    place = r.place("closing")
    judge.hold("T-01", end == link, "the chain of the records does not end where the closing record says", place)
    key = r.policy.server_key
    sealed = verifies(key, encode("transcript", link), signature) if key else not signature
    judge.hold("T-01", sealed, "the file is not sealed by the server's key", place)


def t02_result(r: Round, judge: Judge) -> None:
    """Receipt and confirmations are of the head recomputed from the file; a quorum of U3 confirmed."""
    f, place = r.file, r.place("result")
    expected = [f.run, f.number, r.named, r.attested, r.total_hash, f.previous_head, r.head]
    judge.hold("T-02", r.receipt[:-1] == expected, "the receipt is not of this round, sum and head", place)
    for u, fields in r.confirmations.items():
        own = u in r.u3 and fields[0] == r.head
        judge.hold("T-02", own, "it confirms another head, or is not included", r.place("confirmation", u), u)
    confirmed = len(r.confirmations)
    judge.hold("T-02", confirmed >= r.policy.threshold, f"only {confirmed} of the included confirmed the result")


def t03_slot(r: Round, judge: Judge) -> None:
    """The sites signed the slot that policy, roster and context make."""
    for u, header in list(r.headers.items())[:1]:  # the others are held against the same slot by T-04
        about = "the sites signed another project, policy, roster, run, number or attempt than the opening says"
        judge.hold("T-03", header[0] == r.slot, about, 0, u)


def t04_signatures(r: Round, judge: Judge) -> None:
    """Every message is signed by its sender, for this slot, roster1, roster2, H(U2) and round."""
    of_round: list[bytes | None] = [r.named] if r.inputs else []
    about: dict[str, list[bytes | None]] = {
        "advertisement": [r.slot],
        "shares": [r.slot, r.roster1],
        "header": [r.slot],
        "report": [r.slot, r.roster1, r.roster2],
        "input": [None, r.roster1, r.roster2, r.sharers],  # its round: T-07
        "attestation": [],
        "release": of_round,
        "confirmation": [],
    }
    for kind, bound in about.items():
        for u, record in r.file.of[kind].items():
            fields = record.fields[0] if kind == "shares" else record.fields
            same = all(want in (None, got) for want, got in zip(bound, fields, strict=False))
            judge.hold("T-04", same, f"its {kind} is of another attempt or view", record.place, u)
            covered = signed("header" if kind == "shares" else kind, fields)
            own = verifies(r.reader.roster.get(u, b""), covered, fields[-1])
            judge.hold("T-04", own, f"its {kind} is not signed by its key in your roster", record.place, u)
    if r.receipt:
        key, signature = r.policy.server_key, r.receipt[-1]
        own = verifies(key, signed("result", r.receipt), signature) if key else not signature
        judge.hold("T-04", own, "the receipt is not signed by the server's key", r.place("result"))
    for u, bundles in r.bundles.items():
        leaves = [H("bundle", *bundle) for bundle in bundles]
        same = len(leaves) == len(r.u1) - 1 and root_over(leaves) == r.headers[u][4]
        judge.hold("T-04", same, "its bundles are not those of its header", r.place("shares", u), u)


def t05_fresh(r: Round, judge: Judge, earlier: set[bytes]) -> None:
    """No key, nonce, commitment, root or y occurs twice; none that is not bound to the slot is of an earlier file."""
    seen: set[bytes] = set()
    for u, value, of_a_file in _must_be_fresh(r):
        judge.hold("T-05", value not in seen, "what should be fresh occurs twice in the file", None, u)
        judge.hold("T-05", not of_a_file or value not in earlier, "what should be fresh is of an earlier file", None, u)
        seen.add(value)
    earlier |= {value for _, value, of_a_file in _must_be_fresh(r) if of_a_file}


def _must_be_fresh(r: Round) -> Iterator[tuple[str, bytes, bool]]:
    """Whose it is, what it is, and whether it must not be of an earlier file either."""
    for u, fields in r.advertised.items():
        yield from ((u, value, True) for value in fields[2:6] if value)
    for u, header in r.headers.items():
        yield u, header[3], True
        yield u, header[4], False
    for u, bundles in r.bundles.items():
        yield from ((u, value, False) for bundle in bundles for value in bundle[2:] if value)
    for u, fields in r.inputs.items():
        yield u, fields[5], True
    for u, fields in r.releases.items():
        yield from ((u, seed, True) for seed in (fields[7] if len(fields) == 9 else []))


def t06_keys(r: Round, judge: Judge) -> None:
    """Every public key is canonical, contributory and of the suite."""
    suite = r.policy.suite
    for u, (_, _, channel, dh, kem, *_) in r.advertised.items():
        of_suite = usable_key(kem, suite) if r.post_quantum else not kem
        sound = usable_key(channel, suite) and usable_point(dh) and of_suite
        judge.hold("T-06", sound, "a key of its advertisement is not sound", r.place("advertisement", u), u)


def t07_round(r: Round, judge: Judge) -> None:
    """One round id, recomputed from model, task and previous head."""
    for u, fields in r.inputs.items():
        judge.hold("T-07", fields[0] == r.round_id, "its input is of another round", r.place("input", u), u)


def t08_envelopes(r: Round, judge: Judge) -> None:
    """Every envelope occurs once, by its hash; a pair secret is sealed exactly where one is due."""
    seen: set[bytes] = set()
    for u in r.dealers:
        for v, bundle in zip((i for i in r.u1 if i != u), r.bundles[u], strict=False):
            place = r.place("shares", u)
            due = r.post_quantum and r.dealer_of(u, v) == u
            sizes = [len(value) for value in bundle]
            as_due = sizes == [32, 32 if due else 0, 32, 32, 32 if due else 0]
            judge.hold("T-08", as_due, f"its bundle for {v} lacks a hash, or has one that is not due", place, u)
            for envelope in filter(None, bundle[:2]):
                judge.hold("T-08", envelope not in seen, "an envelope occurs twice", place, u)
                seen.add(envelope)


def t09_sets(r: Round, judge: Judge) -> None:
    """Sets nest; U1, dealers, U2 and U3 hold at least min_survivors; nobody complained."""
    sets = {"U1": r.u1, "dealers": r.dealers, "U2": r.u2, "U3": r.u3}
    chain = [*sets.items(), ("U4", sorted(r.attestations)), ("U5", r.u5)]
    for (outer, around), (inner, within) in pairwise(chain):
        judge.hold("T-09", set(within) <= set(around), f"{inner} does not lie within {outer}")
    for name, members in sets.items():
        judge.hold("T-09", len(members) >= r.policy.min_survivors, f"{name} has {len(members)} members only")
    for u, fields in r.reports.items():
        judge.hold("T-09", not fields[4], f"it complained about {fields[4]}", r.place("report", u), u)


def t10_quorum(r: Round, judge: Judge) -> None:
    """One U3, attested by a quorum of its members; every release names it."""
    for u, fields in r.attestations.items():
        judge.hold("T-10", fields[0] == r.attested, "it attested another set", r.place("attestation", u), u)
    attested = len(r.attestations.keys() & set(r.u3))
    judge.hold("T-10", attested >= r.policy.threshold, f"only {attested} of the included attested")
    for u, fields in r.releases.items():
        judge.hold("T-10", fields[1] == r.attested, "it released for another set", r.place("release", u), u)


def t11_released(r: Round, judge: Judge) -> None:
    """Released are exactly b shares of U3, s shares and r of the dropped; pairs are opened only where needed."""
    for u, fields in r.releases.items():
        place, b, s, pairs = r.place("release", u), *([i for i, _ in fields[at]] for at in (4, 5, 6))
        judge.hold("T-11", b == [i for i in r.u3 if i != u], "its b shares are not those of U3", place, u)
        judge.hold("T-11", s == r.dropped, "its s shares are not those of the dropped", place, u)
        may = len(r.u3) - r.policy.min_survivors if r.policy.excess_seeds else 0
        disclosed = len(fields[7]) if len(fields) == 9 else 0
        judge.hold("T-11", disclosed in (0, may), "it disclosed seeds of noise that this sum needs", place, u)
        due = r.dropped if r.post_quantum else []
        judge.hold("T-11", pairs == due, "its pair secrets are not those with the dropped", place, u)
    needed = {(u, w) for u in r.silent for w in r.dropped if r.post_quantum and r.dealer_of(u, w) == u}
    opened = {(fields[0], fields[1]) for fields in r.file.sent("pair").values()}
    judge.hold("T-11", opened == needed, "the pair secrets that the server opened are not those that it had to open")


def one_claim(claim: Fields) -> str:
    """A claim in words, for errors."""
    return f"round {claim[2]}, attempt {claim[3]} of run {claim[1]}"
