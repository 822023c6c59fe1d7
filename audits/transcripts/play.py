"""A round played from the specification, every message of it, to write a transcript: honest, or with one lie in it.

Nothing here is of the product either. Of sealed envelopes only hashes stand in a transcript, so none is made.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from nacl import bindings

from audits.verifier.encoding import HV, H, encode, root_over
from audits.verifier.policy import Policy
from audits.verifier.primitives import P, exchange, hkdf, keys_of, pair_secret, words, xwing_key
from audits.verifier.reading import Reader
from audits.verifier.records import record
from audits.verifier.statement import PURPOSE
from audits.verifier.vectors import BLOCK, reduced

Lie = Callable[["Play"], None]
NONE = bytes(32)


def _honest(play: Play) -> None:
    """No lie."""


def drawn(label: str, size: int = 32) -> bytes:
    """Bytes that look random and are the same in every run."""
    return hashlib.shake_256(label.encode()).digest(size)


def pack(values: np.ndarray, bits: int) -> list[bytes]:
    """A vector in packed blocks (specification, "Encoding")."""
    packed = []
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        rows = np.concatenate([block, np.zeros(-len(block) % 32, dtype=np.uint64)]).reshape(32, -1)
        planes, places = (np.arange(size, dtype=np.uint64) for size in (bits, 32))
        taken = (rows[None] >> planes[:, None, None] & np.uint64(1)) << places[None, :, None]
        packed.append(taken.sum(axis=1, dtype=np.uint64).astype("<u4").tobytes())
    return packed


@dataclass
class Play:
    """One attempt. A lie is told at a step, after its messages are made and before they are signed."""

    policy: Policy
    label: str  # all keys and secrets follow from it
    ids: Sequence[str]
    run: str = "run-1"
    number: int = 1
    attempt: int = 0
    model: bytes = drawn("model")
    task: bytes = drawn("task")
    previous_head: bytes = NONE
    whole: bool = True
    absent: Mapping[str, str] = field(default_factory=dict)  # client -> the first kind that it does not send
    lies: Mapping[str, Lie] = field(default_factory=dict)
    released: Mapping[str, bytes] = field(default_factory=dict)
    exposing: Mapping[str, list[Any]] = field(default_factory=dict)
    resigned: dict[str, str] = field(default_factory=dict)  # client -> whose key signs for it
    sent: dict[str, dict[str, list[Any]]] = field(default_factory=lambda: {kind: {} for kind in PURPOSE})
    bundles: dict[str, list[list[bytes]]] = field(default_factory=dict)
    y: dict[str, np.ndarray] = field(default_factory=dict)
    follows: Sequence[Mapping[str, Any]] = ()  # the rounds before, whose head this one continues
    odd_secrets: dict[tuple[str, str], bytes] = field(default_factory=dict)
    pairs: list[list[Any]] = field(default_factory=list)
    blocks: dict[str, list[bytes]] = field(default_factory=dict)
    records: list[bytes] = field(default_factory=list)
    plain: dict[str, np.ndarray] = field(default_factory=dict)
    head: bytes = NONE

    def __post_init__(self) -> None:
        for about in self.follows:
            before = {"absent": self.absent, **about}
            self.previous_head = played(Play(self.policy, self.label, self.ids, **before)).head
        self.roster = {u: public(signing(u)) for u in self.ids}
        self.reader = Reader(self.policy, self.roster)
        self.slot = H("slot", self.reader.session, self.run, self.number, self.attempt)
        name = f"{self.label} {self.run} {self.number} {self.attempt}"
        self.s = {u: drawn(f"{name} s {u}") for u in self.ids}
        self.b = {u: drawn(f"{name} b {u}") for u in self.ids}
        self.name = name
        polynomials: dict[tuple[str, str], list[int]] = {}
        for kind, secrets in (("s", self.s), ("b", self.b)):
            for u in self.ids:
                rest = [drawn(f"{name} {kind} {u} {k}", 40) for k in range(1, self.policy.threshold)]
                coefficients = [int.from_bytes(c, "big") % P for c in (secrets[u], *rest)]
                polynomials[kind, u] = coefficients
        self.polynomials = polynomials

    def there(self, kind: str, among: Sequence[str]) -> list[str]:
        """Who of those sends this kind of message."""
        order = list(PURPOSE)
        return [u for u in among if u not in self.absent or order.index(kind) < order.index(self.absent[u])]

    def sign(self, kind: str) -> None:
        """Tell the lie of this step, then sign everybody's message."""
        self.lies.get(kind, _honest)(self)
        for u, fields in self.sent[kind].items():
            key = signing("server" if kind == "result" else self.resigned.get(f"{kind} {u}", u))
            fields.append(key.sign(encode(PURPOSE[kind], *fields)))

    def share(self, kind: str, of: str, holder: str) -> bytes:
        """The share of `of`'s secret that the holder has."""
        x = 1 + self.u1.index(holder)
        value = sum(c * x**k for k, c in enumerate(self.polynomials[kind, of])) % P
        return int(value).to_bytes(33, "big")

    def dealer(self, u: str, v: str) -> str:
        """Who deals the pair."""
        return min(u, v) if (self.u1.index(u) - self.u1.index(v)) % 2 else max(u, v)

    def r(self, u: str, v: str) -> bytes:
        """The pair's secret."""
        dealer = self.dealer(u, v)
        odd = self.odd_secrets.get((u, v)) or self.odd_secrets.get((v, u))
        return odd or pair_secret(self.s[dealer], v if dealer == u else u, self.policy.suite)

    def pair_seed(self, u: str, v: str) -> bytes:
        """The seed of the pair's mask."""
        private = keys_of(self.s[u], "X25519")[0]
        secret = exchange(private, self.sent["advertisement"][v][3]) + self.r(u, v)
        return hkdf(self.roster1, secret, encode("pair-mask", self.round_id, min(u, v), max(u, v)))

    def advertise(self) -> None:
        """AdvertiseKeys."""
        for u in self.there("advertisement", self.ids):
            seed = drawn(f"{self.name} c {u}")
            own = self.policy.suite == "X25519"
            channel = bindings.crypto_scalarmult_base(seed) if own else xwing_key(seed)
            nonce = drawn(f"{self.name} nonce {u}", 16)
            claims = [self.released.get(u, NONE), self.exposing.get(u, [])]
            keys = keys_of(self.s[u], self.policy.suite)[1:]
            self.sent["advertisement"][u] = [self.slot, u, channel, *keys, nonce, *claims]
        self.sign("advertisement")
        self.u1 = sorted(self.sent["advertisement"])
        self.roster1 = self._hash("roster1", "advertisement")

    def deal(self) -> None:
        """ShareKeys."""
        for u in self.there("header", self.u1):
            self.bundles[u] = []
            for v in (v for v in self.u1 if v != u):
                about = (self.slot, self.roster1, u, v)
                due = self.dealer(u, v) == u and self.policy.suite != "X25519"
                self.bundles[u].append([
                    drawn(f"{self.name} envelope {u} {v}"),
                    drawn(f"{self.name} pair {u} {v}") if due else b"",
                    *(H("share-commit", *about, kind, self.share(kind, u, v)) for kind in "sb"),
                    H("pair-commit", self.slot, u, v, self.r(u, v)) if due else b"",
                ])  # fmt: skip
        self.lies.get("bundles", _honest)(self)
        for u, bundles in self.bundles.items():
            root = root_over([H("bundle", *bundle) for bundle in bundles])
            commitment = H("self-commit", self.slot, u, self.b[u])
            self.sent["header"][u] = [self.slot, self.roster1, u, commitment, root]
        self.sign("header")
        self.roster2 = self._hash("roster2", "header")

    def report(self) -> None:
        """ShareReport."""
        for u in self.there("report", sorted(self.bundles)):
            self.sent["report"][u] = [self.slot, self.roster1, self.roster2, u, ""]
        self.sign("report")
        self.u2 = sorted(self.sent["report"])
        self.sharers = H("sharers", self.u2)
        about = (self.model, self.task, self.previous_head)
        self.round_id = H("round", self.slot, self.roster2, self.sharers, *about)

    def mask(self) -> None:
        """MaskedInputCollection."""
        d, slots, bits = self.policy.length, self.policy.slots, self.policy.bits
        width = 4 if bits <= 32 else 8
        constants = [int.from_bytes(H("constant-slot", self.round_id, i)[:8], "little") % 2**bits for i in range(slots)]
        for u in self.there("input", self.u2):
            small = np.frombuffer(drawn(f"{self.name} x {u}", 2 * d), dtype="<i2").astype(np.int64)
            x = np.zeros(d, dtype=np.uint64) if self.policy.layout else small.view(np.uint64)
            self.plain[u] = reduced(np.concatenate([x, np.array(constants, dtype=np.uint64)]), bits)
        self.lies.get("plain", _honest)(self)
        for u, x in self.plain.items():
            seed = hkdf(self.roster1, self.b[u], encode("self-mask", self.round_id, u))
            masked = x + words(seed, d + slots, width)
            for v in (v for v in self.u2 if v != u):
                mask = words(self.pair_seed(u, v), d + slots, width)
                masked = masked + mask if u < v else masked - mask
            self.y[u] = reduced(masked, bits)
            self.blocks[u] = self.packed(masked)
            y_hash = HV("masked-vector", b"".join(self.blocks[u]))
            self.sent["input"][u] = [self.round_id, self.roster1, self.roster2, self.sharers, u, y_hash]
        self.sign("input")
        self.u3 = sorted(self.sent["input"])
        self.dropped = [u for u in self.u2 if u not in self.u3]
        self.attested = H("attested", self.round_id, H("inputs", self.u3, [self.sent["input"][u][5] for u in self.u3]))

    def unmask(self) -> None:
        """ConsistencyCheck and Unmasking."""
        for u in self.there("attestation", self.u3):
            self.sent["attestation"][u] = [self.attested, u]
        self.sign("attestation")
        for u in self.there("release", sorted(self.sent["attestation"])):
            b = [[i, self.share("b", i, u)] for i in self.u3 if i != u]
            s = [[i, self.share("s", i, u)] for i in self.dropped]
            r = [[i, self.r(u, i)] for i in self.dropped if self.policy.suite != "X25519"]
            self.sent["release"][u] = [self.round_id, self.attested, u, self.b[u], b, s, r]
        silent = [u for u in self.u3 if u not in self.sent["release"]]
        pairs = [(u, w) for u in silent for w in self.dropped if self.dealer(u, w) == u]
        self.pairs = [[u, w, self.r(u, w)] for u, w in pairs if self.policy.suite != "X25519"]
        self.sign("release")

    def conclude(self) -> None:
        """Result and confirmations."""
        total = sum((self.plain[u] for u in self.u3), np.zeros(self.policy.length + self.policy.slots, dtype=np.uint64))
        self.total = total
        self.lies.get("total", _honest)(self)
        self.blocks[""] = self.packed(self.total)
        total_hash = HV("total", b"".join(self.blocks[""]))
        self.head = H("head", self.previous_head, self.round_id, self.attested, total_hash)
        about = [self.run, self.number, self.round_id, self.attested, total_hash, self.previous_head, self.head]
        self.sent["result"][""] = about
        self.sign("result")
        for u in self.there("confirmation", self.u3):
            self.sent["confirmation"][u] = [self.head, u]
        self.sign("confirmation")

    def _hash(self, purpose: str, kind: str) -> bytes:
        messages = [self.sent[kind][u] for u in sorted(self.sent[kind])]
        return H(purpose, [[encode(PURPOSE[kind], *fields[:-1]), fields[-1]] for fields in messages])

    def packed(self, vector: np.ndarray) -> list[bytes]:
        """A vector modulo 2^b, in blocks."""
        return pack(reduced(vector, self.policy.bits), self.policy.bits)

    def place(self, kind: str, u: str) -> int:
        """Where in the records a message lies; of a block the first one of a vector."""
        owner = {"block": "input" if u else "result"}.get(kind, kind)
        message = self.sent["header" if owner == "shares" else owner][u]
        fields = (message, self.bundles[u]) if owner == "shares" else message
        return self.records.index(record(owner, *fields)) + (kind == "block")

    def opening(self) -> bytes:
        """The first record."""
        p = self.policy
        of_policy: list[Any] = [
            p.project,
            p.clients,
            p.length,
            p.clip_range.hex(),
            p.max_corrupt,
            p.min_survivors,
            p.suite,
        ]
        of_policy += [p.bits, p.value_bits, p.weight_list, p.server_key, self.reader.roster_hash]
        context = [self.run, self.number, self.attempt, self.model, self.task, self.previous_head, int(self.whole)]
        return record("opening", 2, *of_policy, *context)

    def write(self, path: Path, *, without_sum: bool = False) -> Path:
        """Play what is not played yet, and write the file; the lies "records" and "file" change what is written."""
        self.records = [self.opening()]
        if without_sum:
            self.records += [record("header", *self.sent["header"][u]) for u in sorted(self.bundles)]
        else:
            self._all_records()
        self.lies.get("records", _honest)(self)
        path.write_bytes(closed(self.records))
        return path

    def _all_records(self) -> None:
        sent = self.sent
        for kind in ("advertisement", "shares", "report", "input", "attestation", "release"):
            if kind == "shares":
                headers = sent["header"]
                self.records += [record("shares", headers[u], self.bundles[u]) for u in sorted(headers)]
                continue
            for u in sorted(sent[kind]):
                self.records.append(record(kind, *sent[kind][u]))
                if kind == "input" and self.whole:
                    self.records += [record("block", block) for block in self.blocks[u]]
        self.records += [record("pair", *pair) for pair in sorted(self.pairs)]
        self.records.append(record("result", *sent["result"][""]))
        self.records += [record("block", block) for block in self.blocks[""]]
        self.records += [record("confirmation", *sent["confirmation"][u]) for u in sorted(sent["confirmation"])]


def closed(records: Sequence[bytes], key: str = "server") -> bytes:
    """The bytes of a file of these records, with its closing."""
    link = NONE
    for data in records:
        link = H("transcript-record", link, data)
    closing = record("closing", link, signing(key).sign(encode("transcript", link)))
    return b"".join(framed(data) for data in (*records, closing))


def framed(data: bytes) -> bytes:
    """A record with its length before it."""
    return len(data).to_bytes(4, "big") + data


@cache
def signing(name: str) -> Ed25519PrivateKey:
    """The signing key of this name: the same in every run."""
    return Ed25519PrivateKey.from_private_bytes(drawn(f"signing key of {name}"))


def public(key: Ed25519PrivateKey) -> bytes:
    """Its verify key."""
    return key.public_key().public_bytes_raw()


def played(play: Play, *, without_sum: bool = False) -> Play:
    """All steps, or those before masking."""
    play.lies.get("before", _honest)(play)
    play.advertise()
    play.deal()
    play.report()
    if not without_sum:
        play.mask()
        play.unmask()
        play.conclude()
    return play
