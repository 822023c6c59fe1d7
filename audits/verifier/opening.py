"""T-12 to T-14: what was opened matches its commitments, and gives the sum."""

from __future__ import annotations

import numpy as np

from audits.verifier.encoding import HV, H, encode
from audits.verifier.judge import Judge
from audits.verifier.primitives import P, combine, exchange, hkdf, keys_of, pair_secret, words
from audits.verifier.statement import Round
from audits.verifier.vectors import largest_of, reduced, signed, unpack


def t12_commitments(r: Round, judge: Judge) -> dict[str, bytes]:
    """Shares, b_u and r match their commitments; t shares give the committed b_u and the advertised keys.

    Returns:
        the opened secrets: "b" + id and "s" + id; "r" + both ids, the included one first.
    """
    opened: dict[str, bytes] = {}
    for u, fields in r.releases.items():
        place = r.place("release", u)
        opened[f"b {u}"] = fields[3]
        _self_seed(r, judge, u, fields[3])
        for at, kind, committed in ((4, "b", 3), (5, "s", 2)):
            for i, value in fields[at]:
                expected = H("share-commit", r.slot, r.roster1, i, u, kind, value)
                known = i in r.bundles and i != u and r.bundle(i, u)[committed] == expected
                sound = known and int.from_bytes(value, "big") < P
                judge.hold("T-12", sound, f"its share of {kind} of {i} is not the committed one", place, u)
        for w, value in fields[6]:
            _pair(r, judge, u, w, value)
            opened[f"r {u} {w}"] = value
    for u, w, value in r.file.sent("pair").values():
        _pair(r, judge, u, w, value)
        opened[f"r {u} {w}"] = value
    for u in r.silent:
        opened[f"b {u}"] = _together(r, judge, u, 4)
        _self_seed(r, judge, u, opened[f"b {u}"])
    for w in r.dropped:
        s = opened[f"s {w}"] = _together(r, judge, w, 5)
        own = keys_of(s, r.policy.suite)[1:] == tuple(r.advertised[w][3:5])
        judge.hold("T-12", own, "its shares of s do not give the keys that it advertised", None, w)
        for u in (u for u in r.silent if r.post_quantum and r.dealer_of(u, w) == w):
            opened[f"r {u} {w}"] = pair_secret(s, u, r.policy.suite)
            _pair(r, judge, u, w, opened[f"r {u} {w}"])
    return opened


def _self_seed(r: Round, judge: Judge, u: str, b: bytes) -> None:
    own = u in r.headers and H("self-commit", r.slot, u, b) == r.headers[u][3]
    judge.hold("T-12", own, "its self seed is not the one that it committed to", r.place("release", u), u)


def _pair(r: Round, judge: Judge, u: str, w: str, value: bytes) -> None:
    dealer = r.dealer_of(u, w)
    recipient = w if dealer == u else u
    own = H("pair-commit", r.slot, dealer, recipient, value) == r.bundle(dealer, recipient)[4]
    judge.hold("T-12", own, f"the pair secret of {u} and {w} is not the committed one", r.place("release", u), u)


def _together(r: Round, judge: Judge, of: str, at: int) -> bytes:
    """The secret that the first t shares give; a number of 2^256 or more is none."""
    shares = {r.x_of(u): value for u in r.u5 for i, value in r.releases[u][at] if i == of}
    chosen = dict(list(shares.items())[: r.policy.threshold])
    judge.hold("T-12", len(chosen) == r.policy.threshold, "there are fewer than t of its shares", None, of)
    secret = combine(chosen)
    judge.hold("T-12", secret < 2**256, "its shares are of no secret of 32 bytes", None, of)
    return (secret % 2**256).to_bytes(32, "big")


def t13_sum(r: Round, judge: Judge, opened: dict[str, bytes]) -> None:
    """Y is as signed, and the sum is that of all y without the masks, values and constant slots, bit for bit."""
    if not r.file.whole:
        judge.not_run["T-13"] = f"{r.file.path.name}: masked vectors were published by hash only"
        return
    count, bits = r.policy.length + r.policy.slots, r.policy.bits
    width = 4 if bits <= 32 else 8
    total = np.zeros(count, dtype=np.uint64)
    for u in r.u3:
        y = r.file.y[u]
        as_signed = HV("masked-vector", y) == r.inputs[u][5]
        judge.hold("T-13", as_signed, "its masked vector is not the one that it signed", r.place("input", u), u)
        seed = hkdf(r.roster1, opened[f"b {u}"], encode("self-mask", r.round_id, u))
        total += unpack(y, r.policy) - words(seed, count, width)
    for w in r.dropped:
        private = keys_of(opened[f"s {w}"], "X25519")[0]
        for u in r.u3:
            secret = exchange(private, r.advertised[u][3]) + opened.get(f"r {u} {w}", b"")
            about = encode("pair-mask", r.round_id, min(u, w), max(u, w))
            mask = words(hkdf(r.roster1, secret, about), count, width)
            total += -mask if u < w else mask
    same = np.array_equal(reduced(total, bits), unpack(r.file.total, r.policy))
    judge.hold("T-13", same, "the published sum is not that of the vectors without masks", r.place("result"))


def t14_range(r: Round, judge: Judge) -> None:
    """The constant slots add up, and values lie within the sum of the largest that the included can send."""
    d, bits, total = r.policy.length, r.policy.bits, unpack(r.file.total, r.policy)
    for i in range(r.policy.slots):
        constant = int.from_bytes(H("constant-slot", r.round_id, i)[:8], "little")
        expected = len(r.u3) * constant % 2**bits
        judge.hold("T-14", int(total[d + i]) == expected, f"constant slot {i} does not add up", r.place("result"))
    for place, lowest, highest in largest_of(r.policy, r.u3):
        values = signed(total[place], bits)
        within = bool(((values >= lowest) & (values <= highest)).all())
        judge.hold("T-14", within, "a value of the sum is larger than the included can make it", r.place("result"))
