"""Replays tests/vectors against the code from the JSON alone, and against the specification without the code.

The first half is what somebody who ports the protocol writes: every hash, seed, share, commitment, mask and packing
once more from docs/spec.md, in plain Python. Nothing here knows how the files were made.
"""

import copy
import hashlib
import hmac
import json
import math
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from functools import cache
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
from blake3 import blake3
from cryptography.hazmat.primitives import hpke
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import ECB
from nacl.signing import VerifyKey

import secagg.client
from secagg import (
    AbortedError,
    ClientSession,
    ExposureError,
    MalformedMessageError,
    MemoryStore,
    PinnedRoster,
    Policy,
    ProtocolError,
    RoundContext,
    SecAggError,
    ServerSession,
    SigningKey,
    Suite,
    accept_exposure,
    encoding,
    keys,
    masking,
    merkle,
    messages,
    open_round,
    packing,
    prg,
    quantize,
    shamir,
    unchecked_round,
    wire,
)
from secagg.complaints import leave_out
from secagg.context import Slot
from secagg.messages import Result, Roster, RoundStart, Signed
from secagg.roster import session_id

ROOT = Path(__file__).parents[2]
VECTORS = ROOT / "tests" / "vectors"
PRIME = 2**256 + 297
CHUNK, BLOCK = 1 << 18, 1 << 16
Json = dict[str, Any]


@cache
def load(name: str) -> Json:
    content: Json = json.loads((VECTORS / f"{name}.json").read_text())
    return content


def names(*prefixes: str) -> list[str]:
    return sorted(path.stem for path in VECTORS.glob("*.json") if path.stem.startswith(prefixes or ("",)))


# --- the protocol once more ----------------------------------------------------------------------------------------


def field_bytes(value: Any) -> bytes:
    if isinstance(value, str):
        value = value.encode("ascii")
    elif isinstance(value, int):
        value = value.to_bytes(8, "big")
    elif isinstance(value, (list, tuple)):
        value = len(value).to_bytes(4, "big") + b"".join(map(field_bytes, value))
    return len(value).to_bytes(4, "big") + bytes(value)


def encode(purpose: str, *values: Any) -> bytes:
    return b"".join(map(field_bytes, (f"secagg/2 {purpose}", *values)))


def H(purpose: str, *values: Any) -> bytes:
    return hashlib.sha256(encode(purpose, *values)).digest()


def root_over(leaves: list[bytes]) -> bytes:
    """RFC 9162, section 2.1.1: the left half is the largest power of two below the number of leaves."""
    if len(leaves) == 1:
        return leaves[0]
    half = max(2**k for k in range(9) if 2**k < len(leaves))
    return H("bundle-node", root_over(leaves[:half]), root_over(leaves[half:]))


def climbed(leaf: bytes, place: int, count: int, path: bytes) -> bytes:
    """RFC 9162, section 2.1.3.2, step by step."""
    above, last = place, count - 1
    for start in range(0, len(path), 32):
        sibling = path[start : start + 32]
        assert last > 0
        if above % 2 or above == last:
            leaf = H("bundle-node", sibling, leaf)
            while not above % 2 and above:
                above, last = above >> 1, last >> 1
        else:
            leaf = H("bundle-node", leaf, sibling)
        above, last = above >> 1, last >> 1
    assert last == 0
    return leaf


def HV(purpose: str, vector: Any) -> bytes:
    return blake3(encode(purpose, vector)).digest()


def hkdf(key: bytes, info: bytes, salt: bytes = b"") -> bytes:
    extracted = hmac.digest(salt or bytes(32), key, "sha256")
    return hmac.digest(extracted, info + b"\1", "sha256")


def keystream(seed: bytes, start: int, length: int) -> bytes:
    """AES-256 of the counter blocks (chunk as 96 bits | 2 + block in the chunk as 32 bits)."""
    first, last = start // 16, (start + length + 15) // 16
    counters = (divmod(block, CHUNK // 16) for block in range(first, last))
    blocks = b"".join(chunk.to_bytes(12, "big") + (2 + inside).to_bytes(4, "big") for chunk, inside in counters)
    return Cipher(AES256(seed), ECB()).encryptor().update(blocks)[start % 16 :][:length]


def words(seed: bytes, count: int, size: int) -> list[int]:
    stream = keystream(seed, 0, count * size)
    return [int.from_bytes(stream[i : i + size], "little") for i in range(0, len(stream), size)]


def masked(values: list[int], bits: int, add: Iterable[bytes], subtract: Iterable[bytes]) -> list[int]:
    size, total = 4 if bits <= 32 else 8, list(values)
    for sign, seeds in ((1, add), (-1, subtract)):
        for seed in seeds:
            total = [t + sign * w for t, w in zip(total, words(seed, len(values), size), strict=True)]
    return [t % 2**bits for t in total]


def rounded(update: list[float], key: bytes, scale: float, clip: float, bits: int) -> list[int]:
    """Clip, scale to units of 2^-32 of a step, add a signed word made odd, round to the nearest step."""
    drawn = [(word - (word >> 31 << 32)) | 1 for word in words(key, len(update), 4)]
    scaled = (max(-clip, min(clip, v)) * (scale * 2.0**32) + word for v, word in zip(update, drawn, strict=True))
    return [round(value / 2.0**32) % 2**bits for value in scaled]


def packed(values: list[int], bits: int) -> bytes:
    """Blocks of 2^16 values; in each, a plane for every bit, in words that hold it of 32 values a row apart."""
    out = []
    for start in range(0, len(values), BLOCK):
        block = values[start : start + BLOCK]
        lanes = math.ceil(len(block) / 32)
        for k in range(bits):
            words = [0] * lanes
            for place, value in enumerate(block):
                words[place % lanes] |= (value >> k & 1) << place // lanes
            out += [word.to_bytes(4, "little") for word in words]
    return b"".join(out)


def evaluated(coefficients: list[str], secret: bytes, x: int) -> bytes:
    """The polynomial at x; coefficients from the highest down, then the secret."""
    value = 0
    for coefficient in (*map(bytes.fromhex, coefficients), secret):
        value = (value * x + int.from_bytes(coefficient, "big")) % PRIME
    return value.to_bytes(33, "big")


def interpolated(shares: Mapping[int, bytes]) -> int:
    total = 0
    for x, share in shares.items():
        weight = math.prod(o * pow(o - x, -1, PRIME) for o in shares if o != x)
        total += weight * int.from_bytes(share, "big")
    return total % PRIME


def xwing(seed: bytes) -> tuple[hpke.MLKEM768X25519PrivateKey, bytes]:
    expanded = hashlib.shake_256(seed).digest(96)
    kem, dh = MLKEM768PrivateKey.from_seed_bytes(expanded[:64]), X25519PrivateKey.from_private_bytes(expanded[64:])
    return hpke.MLKEM768X25519PrivateKey(kem, dh), (
        kem.public_key().public_bytes_raw() + dh.public_key().public_bytes_raw()
    )


def dh_key(seed: bytes) -> X25519PrivateKey:
    return X25519PrivateKey.from_private_bytes(hkdf(seed, encode("mask/dh")))


def kem_key(suite: str, seed: bytes) -> tuple[Any, bytes]:
    """A key pair for envelopes."""
    if suite == "X25519":
        key = X25519PrivateKey.from_private_bytes(seed)
        return key, key.public_key().public_bytes_raw()
    return xwing(seed)


def opened(suite: str, seed: bytes, info: bytes, envelope: bytes) -> bytes:
    kem = hpke.KEM.X25519 if suite == "X25519" else hpke.KEM.MLKEM768_X25519
    return hpke.Suite(kem, hpke.KDF.HKDF_SHA256, hpke.AEAD.AES_256_GCM).decrypt(envelope, kem_key(suite, seed)[0], info)


LABELS = {
    "Receipt": "receipt",
    "RoundStart": "round-start",
    "AdvertiseKeys": "advertise-keys",
    "Header": "header",
    "ShareReport": "share-report",
    "MaskedInput": "masked-input",
    "AcceptedInput": "masked-input",
    "Attestation": "attestation",
    "UnmaskingShares": "unmasking",
    "Confirmation": "confirmation",
    "SlotMasks": "slot-masks",
}


def statement(message: Any) -> bytes:
    """What is signed: every field in its order but the signature; of y the hash."""
    values = []
    for item in fields(message):
        value = getattr(message, item.name)
        if item.name == "y":
            value = HV("masked-vector", value)
        elif item.name == "missed":
            value = [statement(receipt) for receipt in value]
        elif item.name == "exposing":
            value = [claim_fields(claim) for claim in value]
        elif isinstance(value, Mapping):
            value = [[client_id, share] for client_id, share in value.items()]
        if item.name == "excess_seeds" and not value:
            continue
        if item.name != "signature":
            values.append(value)
    return encode(LABELS[type(message).__name__], *values)


CLAIM = ("session", "training_run", "round_number", "attempt", "model_hash", "task_hash", "previous_head", "roster2")
CLAIM += ("sharers_hash", "inputs_hash")


def claim_fields(claim: Any) -> list[Any]:
    signed_by = [[client_id, signature] for client_id, signature in sorted(claim.attestations.items())]
    return [*(getattr(claim, name) for name in CLAIM), signed_by]


def signed_parts(message: Any) -> Iterator[Any]:
    """A message, or the signed messages in it."""
    if isinstance(message, Signed):
        yield message
    for item in fields(message):
        value = getattr(message, item.name)
        for part in value if isinstance(value, tuple) else (value,):
            if isinstance(part, Signed):
                yield part


class Port:
    """One attempt at a round, recomputed from its randomness: everything but the sealing of envelopes."""

    def __init__(self, content: Json, index: int) -> None:
        self.parameters, self.attempt = content["parameters"], content["attempts"][index]
        self.policy, self.context = self.parameters["policy"], self.attempt["context"]
        self.suite, self.hybrid = self.policy["suite"], self.policy["suite"] != "X25519"
        mark = f"@{index}" if index else ""
        self.messages = {
            label.removesuffix(mark): data
            for label, data in content["messages"].items()
            if ("@" in label) == bool(mark)
        }
        said = {
            label.split(".")[1]: wire.decode_from_client(bytes.fromhex(data))
            for label, data in self.messages.items()
            if label.startswith("AdvertiseKeys.")
        }
        self.advertised: list[Any] = [said[i] for i in sorted(said)]
        self.u1 = sorted(said)
        self.x = {client_id: position for position, client_id in enumerate(self.u1, 1)}
        self.draws = self.attempt["randomness"]
        self.roster1 = H("roster1", [[statement(m), m.signature] for m in self.advertised])

    def draw(self, client_id: str, name: str) -> bytes:
        return bytes.fromhex(self.draws[client_id][name])

    def dealer(self, u: str, v: str) -> str:
        even = (self.x[u] - self.x[v]) % 2 == 0
        return max(u, v) if even else min(u, v)

    def pair_secret(self, u: str, v: str) -> bytes:
        dealer = self.dealer(u, v)
        other = v if dealer == u else u
        return hkdf(self.draw(dealer, "mask_key"), encode("pair", other)) if self.hybrid else b""

    def share(self, kind: str, dealer: str, holder: str) -> bytes:
        secret = {"s": "mask_key", "b": "self_seed"}[kind]
        return evaluated(self.draws[dealer][f"{secret}_coefficients"], self.draw(dealer, secret), self.x[holder])

    def session(self) -> bytes:
        policy = self.policy
        numbers = [policy[k] for k in ("clients", "length", "max_corrupt", "min_survivors", "bits", "value_bits")]
        weights = [[i, float(w).hex()] for i, w in sorted(policy["weights"].items())]
        server = bytes.fromhex(self.parameters["server"]["verify_key"])
        hashed = H("policy", policy["project"], numbers, float(policy["clip_range"]).hex(), weights, server)
        assert hashed.hex() == self.parameters["policy_hash"]
        roster = [[entry["id"], bytes.fromhex(entry["verify_key"])] for entry in self.parameters["roster"]]
        return H("session", self.suite, policy["project"], hashed, H("roster", roster))

    def keys(self, client_id: str) -> None:
        """The advertised keys follow from the draws."""
        message = self.advertised[self.u1.index(client_id)]
        seed = self.draw(client_id, "mask_key")
        kem = xwing(hkdf(seed, encode("mask/kem")))[1] if self.hybrid else b""
        expected = (
            kem_key(self.suite, self.draw(client_id, "channel_key_seed"))[1],
            dh_key(seed).public_key().public_bytes_raw(),
            kem,
            self.draw(client_id, "nonce"),
        )
        assert (message.channel_pk, message.mask_dh_pk, message.mask_kem_pk, message.nonce) == expected

    def bundles(self, slot: bytes, dealer: str, message: Any) -> None:
        """Shares and commitments follow from the draws, envelopes open to them, and the header commits to both."""
        header, digests = message.header, list[bytes]()
        assert header.self_commitment == H("self-commit", slot, dealer, self.draw(dealer, "self_seed"))
        for peer, bundle in zip([i for i in self.u1 if i != dealer], message.bundles, strict=True):
            shares = {kind: self.share(kind, dealer, peer) for kind in "sb"}
            info = encode("envelope-shares", slot, self.roster1, dealer, peer)
            plaintext = opened(self.suite, self.draw(peer, "channel_key_seed"), info, bundle.shares)
            assert plaintext == shares["s"] + shares["b"]
            promised = {"s": bundle.mask_key_commitment, "b": bundle.self_seed_commitment}
            for kind, share in shares.items():
                assert promised[kind] == H("share-commit", slot, self.roster1, dealer, peer, kind, share)
            if self.hybrid and self.dealer(dealer, peer) == dealer:
                secret = self.pair_secret(dealer, peer)
                info = encode("envelope-pair", slot, self.roster1, dealer, peer)
                seed = hkdf(self.draw(peer, "mask_key"), encode("mask/kem"))
                assert opened(self.suite, seed, info, bundle.pair) == secret
                assert bundle.pair_commitment == H("pair-commit", slot, dealer, peer, secret)
            else:
                assert (bundle.pair, bundle.pair_commitment) == (b"", b"")
            envelopes = [H("envelope", e) if e else b"" for e in (bundle.shares, bundle.pair)]
            digests.append(H("bundle", *envelopes, promised["s"], promised["b"], bundle.pair_commitment))
        assert header.bundles_root == root_over(digests)

    def behind(self, seed: bytes) -> bytes:
        """The words of a keystream behind the values: what masks the constant slots."""
        bits, length = self.policy["bits"], self.policy["length"]
        size = 4 if bits <= 32 else 8
        return keystream(seed, length * size, math.ceil(64 / bits) * size)

    def recomputed(self) -> Json:
        """What the file calls intermediate."""
        policy, bits, context = self.policy, self.policy["bits"], self.context
        said: dict[str, dict[str, Any]] = {}
        for label, data in self.messages.items():
            kind, _, client_id = label.partition(".")
            if kind in ("EncryptedShares", "ShareReport", "MaskedInput", "UnmaskingShares"):
                said.setdefault(kind, {})[client_id] = wire.decode_from_client(bytes.fromhex(data))
        dealt, reported, inputs = said["EncryptedShares"], said["ShareReport"], said["MaskedInput"]
        slot = H("slot", self.session(), context["training_run"], context["round_number"], context["attempt"])
        for client_id in self.u1:
            self.keys(client_id)
        for dealer, message in dealt.items():
            self.bundles(slot, dealer, message)
        headers = [[statement(dealt[i].header), dealt[i].header.signature] for i in sorted(dealt)]
        roster2, sharers, included = H("roster2", headers), sorted(reported), sorted(inputs)
        hashes = [bytes.fromhex(context[name]) for name in ("model_hash", "task_hash", "previous_head")]
        sharers_hash = H("sharers", sharers)
        round_id = H("round", slot, roster2, sharers_hash, *hashes)
        pairs: dict[tuple[str, str], bytes] = {}
        for u, v in ((u, v) for u in sharers for v in sharers if u < v):
            point = X25519PublicKey.from_public_bytes(self.advertised[self.u1.index(v)].mask_dh_pk)
            material = dh_key(self.draw(u, "mask_key")).exchange(point) + self.pair_secret(u, v)
            pairs[u, v] = hkdf(material, encode("pair-mask", round_id, u, v), self.roster1)
        selves = {i: hkdf(self.draw(i, "self_seed"), encode("self-mask", round_id, i), self.roster1) for i in sharers}
        slots = [
            int.from_bytes(H("constant-slot", round_id, i)[:8], "little") % 2**bits for i in range(math.ceil(64 / bits))
        ]
        largest = max([*policy["weights"].values(), *[1.0][len(policy["weights"]) // policy["clients"] :]])
        integers, y = {}, {}
        for i in included:
            given = self.attempt["inputs"][i]
            weight = policy["weights"].get(i, 1.0)
            scale = 2 ** (policy["value_bits"] - 1) * weight / largest / policy["clip_range"]
            key = bytes.fromhex(given["rounding_key"])
            integers[i] = rounded(given["update"], key, scale, policy["clip_range"], bits)
            add = [selves[i], *(seed for (u, _), seed in pairs.items() if u == i)]
            y[i] = masked(integers[i] + slots, bits, add, [seed for (_, v), seed in pairs.items() if v == i])
            assert bytes(inputs[i].y) == packed(y[i], bits)
        total = [sum(column) % 2**bits for column in zip(*(integers[i] + slots for i in included), strict=True)]
        y_hashes = [HV("masked-vector", packed(y[i], bits)) for i in included]
        inputs_hash = H("inputs", included, y_hashes)
        attested = H("attested", round_id, inputs_hash)
        total_hash, dropped = HV("total", packed(total, bits)), sorted(set(sharers) - set(included))
        for i, message in said["UnmaskingShares"].items():
            assert message.self_seed == self.draw(i, "self_seed")
            assert message.self_seed_shares == {j: self.share("b", j, i) for j in included if j != i}
            assert message.mask_key_shares == {j: self.share("s", j, i) for j in dropped}
            assert message.pair_secrets == {j: self.pair_secret(i, j) for j in dropped if self.hybrid}
        return {
            "session": self.session().hex(),
            "slot": slot.hex(),
            "roster1": self.roster1.hex(),
            "roster2": roster2.hex(),
            "sharers": sharers,
            "sharers_hash": sharers_hash.hex(),
            "round": round_id.hex(),
            "included": included,
            "dropped": dropped,
            "inputs_hash": inputs_hash.hex(),
            "attested": attested.hex(),
            "pair_secrets": {
                f"{u} {v}": {"dealer": self.dealer(u, v), "secret": self.pair_secret(u, v).hex()}
                for u, v in pairs
                if self.hybrid
            },
            "pair_mask_seeds": {f"{u} {v}": seed.hex() for (u, v), seed in pairs.items()},
            "pair_slot_masks": {f"{u} {v}": self.behind(seed).hex() for (u, v), seed in pairs.items()},
            "self_mask_seeds": {i: seed.hex() for i, seed in selves.items()},
            "slots": slots,
            "quantised": integers,
            "masked": y,
            "sum": total,
            "total_hash": total_hash.hex(),
            "head": H("head", hashes[2], round_id, attested, total_hash).hex(),
        }


# --- the code, operation by operation ------------------------------------------------------------------------------

SENDS = {
    "advertise_keys": "AdvertiseKeys",
    "share_keys": "EncryptedShares",
    "report": "ShareReport",
    "mask_input": "MaskedInput",
    "attest": "Attestation",
    "unmask": "UnmaskingShares",
    "conclude": "Confirmation",
    "show_slot_masks": "SlotMasks",
}
OUTCOME = ("success", "error", "check", "culprits", "complaints", "rounds")
DRAWS = ("channel_key_seed", "mask_key", "nonce", "self_seed", "mask_key_coefficients", "self_seed_coefficients")


class Player:
    """Performs the operations of a file and compares what comes of each with what the file says."""

    def __init__(self, name: str) -> None:
        self.content = load(name)
        base = load(self.content["base"]) if "base" in self.content else self.content
        self.base, parameters, self.attempts = base, base["parameters"], base["attempts"]
        given = {k: v for k, v in parameters["policy"].items() if k != "threshold"}
        server_seed = bytes.fromhex(parameters["server"]["signing_seed"])
        self.server_key = SigningKey.from_bytes(server_seed)
        given |= {"suite": Suite(given["suite"]), "server_key": self.server_key.verify_key}
        self.policy = Policy(**given)
        assert self.policy.threshold == parameters["policy"]["threshold"]
        assert self.policy.hash().hex() == parameters["policy_hash"]
        self.keys = {e["id"]: SigningKey.from_bytes(bytes.fromhex(e["signing_seed"])) for e in parameters["roster"]}
        self.roster = PinnedRoster({e["id"]: bytes.fromhex(e["verify_key"]) for e in parameters["roster"]})
        self.stores = {client_id: MemoryStore() for client_id in self.keys}
        self.messages = {k: bytes.fromhex(v) for k, v in {**base["messages"], **self.content["messages"]}.items()}
        self.servers = [
            ServerSession(self.policy, self.roster, self.context(a), self.server_key, a["leave_out"])
            for a in self.attempts
        ]
        self.clients: dict[tuple[int, str], ClientSession] = {}
        self.draws = [{i: self.flat(draws) for i, draws in a["randomness"].items()} for a in self.attempts]

    @staticmethod
    def context(attempt: Json) -> RoundContext:
        unhexed = {k: bytes.fromhex(v) if k.endswith(("hash", "head")) else v for k, v in attempt["context"].items()}
        return RoundContext(**unhexed)

    @staticmethod
    def flat(draws: Json) -> list[bytes]:
        listed = [draws[name] for name in DRAWS if name in draws]
        return [bytes.fromhex(text) for item in listed for text in (item if isinstance(item, list) else [item])]

    def all(self) -> None:
        replayed = self.content.get("replayed", 0)
        for operation in self.base["operations"][:replayed] if "base" in self.content else ():
            self.perform(operation)
        for operation in self.content["operations"]:
            self.perform(operation)
        if self.content.get("resumes"):
            for operation in self.base["operations"][replayed:]:
                self.perform(operation)

    def perform(self, operation: Json) -> None:
        """One operation: right output, or right refusal."""
        handler = getattr(self, "do_" + operation["operation"], None)
        assert handler, f"unknown operation {operation['operation']}"
        party, attempt = operation.get("party", ""), operation.get("attempt", 0)
        outcome: Json = {"success": True}
        try:
            outcome["output"] = handler(operation, party, attempt)
        except SecAggError as error:
            outcome = {"success": False, "error": type(error).__name__}
            if isinstance(error, ExposureError):
                outcome |= {"check": error.check, "culprits": []}
                outcome["rounds"] = [round_id.hex() for round_id in error.round_ids]
            elif isinstance(error, AbortedError):
                complaints = getattr(error, "complaints", ())
                outcome |= {"complaints": [list(pair) for pair in complaints]} if complaints else {}
            else:
                outcome |= {"check": error.check, "culprits": list(error.culprits)}  # type: ignore[attr-defined]
            self.refused(operation["operation"], party, attempt, error)
        if operation["operation"] == "report" and outcome["success"]:
            complaint = wire.decode_from_client(outcome["output"]).complaint  # type: ignore[union-attr]
            if complaint:
                outcome |= {"success": False, "error": "ShareError", "check": "C-12", "culprits": [complaint]}
        expected = {k: operation[k] for k in OUTCOME if k in operation}
        if "output" in operation or operation["success"]:
            expected["output"] = self.expected_output(operation)
        assert outcome == expected, operation

    def refused(self, name: str, party: str, attempt: int, error: SecAggError) -> None:
        """A client that a check of its own stopped is over; one that could not even read what came has seen nothing."""
        if name in SENDS:
            unread = getattr(error, "check", "") in ("M-01", "W-01")
            assert self.clients[attempt, party].finished != unread

    def expected_output(self, operation: Json) -> Any:
        output = operation.get("output")
        if operation["operation"] == "server_close":
            return {client_id: self.messages[label] for client_id, label in output.items()}
        return self.messages[output] if isinstance(output, str) else output

    def heard(self, operation: Json) -> Any:
        return wire.decode_from_server(self.messages[operation["input"]])

    # --- clients
    def do_open_round(self, operation: Json, party: str, attempt: int) -> Json:
        start = self.heard(operation)
        assert isinstance(start, RoundStart)
        given = self.base["parameters"]
        own = {name: bytes.fromhex(given[name]) for name in ("model_hash", "task_hash")}
        store, run = self.stores[party], given["training_run"]
        context = open_round(self.policy, self.roster, run, start, store, **own).context
        values = {item.name: getattr(context, item.name) for item in fields(context)}
        return {name: value.hex() if isinstance(value, bytes) else value for name, value in values.items()}

    def do_mark_replayed(self, operation: Json, party: str, attempt: int) -> None:
        slot = self.context(self.attempts[attempt]).at(session_id(self.policy, self.roster))
        with self.stores[party].transaction() as marks:
            marks.replay(slot, bytes.fromhex(operation["round"]))

    def do_accept_exposure(self, operation: Json, party: str, attempt: int) -> None:
        accept_exposure(self.stores[party], self.keys[party], party, bytes.fromhex(operation["round"]))

    def do_leave_out(self, operation: Json, party: str, attempt: int) -> list[str]:
        complaints = [tuple(pair) for pair in operation["pairs"]]
        return sorted(leave_out(complaints, self.policy.max_corrupt, choose=lambda _: 0).clients)

    def do_advertise_keys(self, operation: Json, party: str, attempt: int) -> bytes:
        opened = unchecked_round(self.context(self.attempts[attempt]))
        client = ClientSession(self.policy, party, self.keys[party], self.roster, opened, self.stores[party])
        given = self.attempts[attempt]["inputs"][party]
        client.provide(np.array(given["update"]), "event", prg.Stream(bytes.fromhex(given["rounding_key"])))
        self.clients[attempt, party] = client
        with self.drawing(attempt, party):
            return wire.encode(client.start())

    def do_share_keys(self, operation: Json, party: str, attempt: int) -> bytes:
        roster = self.heard(operation)
        assert isinstance(roster, Roster)
        recorded = operation.get("output") and wire.decode_from_client(self.messages[operation["output"]])
        with (
            self.drawing(attempt, party),
            mock.patch.object(secagg.client, "seal", self.sealing(recorded, roster, attempt)),
        ):
            return self.said(operation, self.clients[attempt, party].receive(roster))

    def answer(self, operation: Json, party: str, attempt: int) -> bytes:
        return self.said(operation, self.clients[attempt, party].receive(self.heard(operation)))

    do_report = do_mask_input = do_attest = do_unmask = do_conclude = do_show_slot_masks = answer

    def said(self, operation: Json, reply: Any) -> bytes:
        assert type(reply).__name__ == SENDS[operation["operation"]]
        return wire.encode(reply)

    @contextmanager
    def drawing(self, attempt: int, party: str) -> Iterator[None]:
        """While it lasts, `secrets` draws what the file says."""

        def token_bytes(size: int) -> bytes:
            drawn = b""
            while len(drawn) < size:
                drawn += self.draws[attempt][party].pop(0)
            assert len(drawn) == size
            return drawn

        with mock.patch("secrets.token_bytes", token_bytes):
            yield

    def sealing(self, recorded: Any, roster: Roster, attempt: int) -> Any:
        """Gives the recorded envelope after its recipient has opened it to what is to be sealed."""
        suite = self.base["parameters"]["policy"]["suite"]

        def seal(_: Suite, public: bytes, info: bytes, plaintext: bytes) -> bytes:
            peers = [i for i in roster.by_id if i != recorded.header.client_id]
            for peer, bundle in zip(peers, recorded.bundles, strict=True):
                draws, keys_of = self.attempts[attempt]["randomness"][peer], roster.by_id[peer]
                if public == keys_of.channel_pk:
                    seed, envelope = bytes.fromhex(draws["channel_key_seed"]), bundle.shares
                elif public == keys_of.mask_kem_pk:
                    seed, envelope = hkdf(bytes.fromhex(draws["mask_key"]), encode("mask/kem")), bundle.pair
                else:
                    continue
                assert opened(suite, seed, info, envelope) == plaintext
                return bytes(envelope)
            raise AssertionError("sealed to nobody")

        return seal

    # --- the server
    def do_server_receive(self, operation: Json, party: str, attempt: int) -> bytes | None:
        message = wire.decode_from_client(self.messages[operation["input"]])
        reply = self.servers[attempt].receive(party, message)
        return None if reply is None else wire.encode(reply)

    def do_server_close(self, operation: Json, party: str, attempt: int) -> dict[str, bytes]:
        replies = self.servers[attempt].close_step()
        return {client_id: wire.encode(message) for client_id, message in replies.items()}


def unhex(operation: Json, *wanted: str) -> list[bytes]:
    return [bytes.fromhex(operation[name]) for name in wanted]


# --- primitives: the code and the port give what the file says -------------------------------------------------------


def typed(value: Json) -> Any:
    if "bytes" in value:
        return bytes.fromhex(value["bytes"])
    if "list" in value:
        return [typed(item) for item in value["list"]]
    return value.get("text", value.get("integer"))


def check_encode(case: Json) -> None:
    values = [typed(value) for value in case["fields"]]
    if not case["success"]:
        for refuses in (encoding.encode, encoding.digest, encode):
            with pytest.raises((ValueError, OverflowError)):
                refuses(case["purpose"], *values)
        return
    expected = (case["output"], case["sha256"])
    assert (
        encoding.encode(case["purpose"], *values).hex(),
        encoding.digest(case["purpose"], *values).hex(),
    ) == expected
    assert (encode(case["purpose"], *values).hex(), H(case["purpose"], *values).hex()) == expected


def check_keystream(case: Json) -> None:
    for stream in (prg.keystream, keystream):
        assert stream(bytes.fromhex(case["seed"]), case["start"], case["length"]).hex() == case["output"]


def check_apply_masks(case: Json) -> None:
    add, subtract = ([bytes.fromhex(seed) for seed in case[name]] for name in ("add", "subtract"))
    vector = np.arange(case["count"], dtype=case["word"])
    prg.apply_masks(vector, add, subtract)
    bits = 8 * vector.itemsize
    for values in (vector.tolist(), masked(list(range(case["count"])), bits, add, subtract)):
        data = b"".join(value.to_bytes(bits // 8, "little") for value in values)
        assert (values[:5], values[-5:]) == (case["first"], case["last"])
        assert hashlib.sha256(data).hexdigest() == case["sha256"]


def check_quantize(case: Json) -> None:
    bits, value_bits, clip = case["bits"], case["value_bits"], case["clip_range"]
    weight, largest, key = case["weight"], case["largest_weight"], bytes.fromhex(case["rounding_key"])
    policy = Policy(
        project="vectors",
        clients=3,
        length=len(case["update"]),
        bits=bits,
        value_bits=value_bits,
        clip_range=clip,
        weights={"a": weight, "b": largest},
    )
    output, rate = quantize.quantize(np.array(case["update"]), policy, "a", prg.Stream(key))
    assert (output.tolist(), rate) == (case["output"], case["clip_rate"])
    scale = 2 ** (value_bits - 1) * weight / largest / clip
    assert rounded(case["update"], key, scale, clip, bits) == case["output"]


def check_layout(case: Json) -> None:
    table, key = case["policy"], bytes.fromhex(case["rounding_key"])
    policy = Policy.from_table(table)
    assert policy.hash().hex() == case["policy_hash"] == hash_of_layout(table).hex()
    output, rate = quantize.quantize(case["update"], policy, "a", prg.Stream(key))
    total = (output * output.dtype.type(3)) & output.dtype.type(2**policy.bits - 1)
    assert (output.tolist(), rate) == (case["output"], case["clip_rate"])
    assert quantize.dequantize(total, policy).tolist() == case["sum"]
    integers, reals = layout_by_the_specification(table, case["update"], key)
    assert integers == case["output"]
    assert reals == pytest.approx(case["sum"], rel=1e-12)


def hash_of_layout(table: Json) -> bytes:
    """H(policy) of a table without a server key."""
    size = sum(math.prod(field.get("shape", ())) for field in table["layout"])
    numbers = [table["clients"], size, table["max_corrupt"], table["min_survivors"], table["bits"], 0]
    weights = [[i, float(w).hex()] for i, w in sorted(table["weights"].items())]
    layout = [
        [
            field["name"],
            field["kind"],
            field.get("shape", []),
            float(field.get("clip_range") or field.get("largest") or field["step"]).hex(),
            field.get("value_bits") or field.get("bits") or 0,
        ]
        for field in table["layout"]
    ]
    return H("policy", table["project"], numbers, (0.0).hex(), weights, b"", layout)


def layout_by_the_specification(table: Json, update: Json, key: bytes) -> tuple[list[int], list[float]]:
    """One client's integers, and the sum of three such clients."""
    weights = table["weights"]
    share = weights["a"] / max(weights.values()) if weights else 1.0
    largest = max(weights.values()) if weights else 1.0
    for field in table["layout"]:
        if field["kind"] == "weight":
            share, largest = update[field["name"]] / field["largest"], field["largest"]
    drawn, integers, reals, total = words(key, 1000, 4), list[int](), list[float](), 0
    for field in table["layout"]:
        values, steps = np.ravel(update[field["name"]]).tolist(), 2 ** (field.get("value_bits", 1) - 1)
        match field["kind"]:
            case "float":
                clip = field["clip_range"]
                scale, worth = steps * share / clip, largest * clip / steps
            case "weight":
                worth = 2.0 ** math.ceil(math.log2(field["largest"])) / steps
                scale, clip = 1 / worth, field["largest"]
            case _:
                scale, worth, clip = 0.0, field.get("step", 1.0), 0.0
        found = values
        if scale:
            signed = [(word - (word >> 31 << 32)) | 1 for word in drawn[total : total + len(values)]]
            total += len(values)
            scaled = [
                max(-clip, min(clip, v)) * (scale * 2.0**32) + word for v, word in zip(values, signed, strict=True)
            ]
            found = [round(value / 2.0**32) for value in scaled]
        integers += [value % 2 ** table["bits"] for value in found]
        reals += [3 * value * worth for value in found]
    return integers, reals


def check_pack(case: Json) -> None:
    bits, count = case["bits"], case["count"]
    values = [word % 2**bits for word in words(bytes.fromhex(case["values_keystream"]), count, 8)]
    assert values == case.get("values", values)
    vector = np.array(values, packing.dtype_for(bits))
    for data in (packing.pack(vector, bits), packed(values, bits)):
        assert (len(data), hashlib.sha256(data).hexdigest()) == (case["size"], case["sha256"])
        assert data.hex() == case.get("output", data.hex())
    assert packing.unpack(packing.pack(vector, bits), count, bits).tolist() == values


def check_unpack(case: Json) -> None:
    data = bytes.fromhex(case["input"])
    if case["success"]:
        assert packing.unpack(data, case["count"], case["bits"]).tolist() == case["output"]
        assert packed(case["output"], case["bits"]) == data
    else:
        with pytest.raises(ValueError, match=r"padding|do not hold"):
            packing.unpack(data, case["count"], case["bits"])


def check_split(case: Json) -> None:
    secret, drawn = bytes.fromhex(case["secret"]), [bytes.fromhex(text) for text in case["coefficients"]]
    with mock.patch("secrets.token_bytes", lambda size: b"".join(drawn.pop(0) for _ in range(size // 33))):
        shares = shamir.split(secret, case["threshold"], case["positions"])
    assert not drawn
    assert [share.hex() for share in shares] == case["output"]
    assert [evaluated(case["coefficients"], secret, x).hex() for x in case["positions"]] == case["output"]


def check_combine(case: Json) -> None:
    shares, threshold = {int(x): bytes.fromhex(share) for x, share in case["shares"].items()}, case["threshold"]
    if case["success"]:
        assert shamir.combine(shares, threshold).hex() == case["output"]
        assert interpolated(shares) == int(case["output"], 16)
    else:
        assert len(shares) < threshold or interpolated(shares) >> 256
        with pytest.raises(ValueError, match=r"needed|no 32-byte"):
            shamir.combine(shares, threshold)


def check_is_share(case: Json) -> None:
    share = bytes.fromhex(case["input"])
    assert shamir.is_share(share) == case["output"] == (len(share) == 33 and int.from_bytes(share, "big") < PRIME)


def check_keys_of_seed(case: Json) -> None:
    (seed,), suite, peer = unhex(case, "seed"), Suite(case["suite"]), case["pair_secret_with"]
    with mock.patch("secrets.token_bytes", return_value=seed):
        channel = keys.ChannelKey(suite)
    mask = keys.MaskKey(suite, seed)
    expected = unhex(case, "channel_pk", "mask_dh_pk", "mask_kem_pk", "pair_secret")
    assert [channel.public, mask.dh_public, mask.kem_public, mask.pair_secret(peer)] == expected
    hybrid = suite is not Suite.X25519
    assert expected == [
        kem_key(case["suite"], seed)[1],
        dh_key(seed).public_key().public_bytes_raw(),
        xwing(hkdf(seed, encode("mask/kem")))[1] if hybrid else b"",
        hkdf(seed, encode("pair", peer)) if hybrid else b"",
    ]


def check_pair_mask_seed(case: Json) -> None:
    roster1, round_id, exchanged, secret = unhex(case, "roster1", "round", "exchanged", "pair_secret")
    u, v = sorted(case["ids"])
    seed = masking.pair_mask_seed(roster1, round_id, tuple(case["ids"]), exchanged, secret)
    assert seed.hex() == case["output"]
    assert hkdf(exchanged + secret, encode("pair-mask", round_id, u, v), roster1).hex() == case["output"]


def check_self_mask_seed(case: Json) -> None:
    roster1, round_id, seed = unhex(case, "roster1", "round", "self_seed")
    assert masking.self_mask_seed(roster1, round_id, case["id"], seed).hex() == case["output"]
    assert hkdf(seed, encode("self-mask", round_id, case["id"]), roster1).hex() == case["output"]


def check_self_commitment(case: Json) -> None:
    slot, seed = unhex(case, "slot", "self_seed")
    assert masking.self_commitment(slot, case["id"], seed).hex() == case["output"]
    assert H("self-commit", slot, case["id"], seed).hex() == case["output"]


def check_result_hash(case: Json) -> None:
    (total,), seeds = unhex(case, "total"), {i: bytes.fromhex(told) for i, told in case["excess_seeds"].items()}
    assert Result.hash_of(total, seeds).hex() == case["output"]
    plain = HV("total", total)
    assert (H("result", plain, [list(pair) for pair in seeds.items()]) if seeds else plain).hex() == case["output"]


def check_share_commitment(case: Json) -> None:
    slot, roster1, share = unhex(case, "slot", "roster1", "share")
    values = (slot, roster1, case["dealer"], case["holder"], case["kind"], share)
    assert masking.share_commitment(*values).hex() == case["output"] == H("share-commit", *values).hex()


def check_pair_commitment(case: Json) -> None:
    slot, secret = unhex(case, "slot", "pair_secret")
    values = (slot, case["dealer"], case["recipient"], secret)
    assert masking.pair_commitment(*values).hex() == case["output"] == H("pair-commit", *values).hex()


def check_envelope_info(case: Json) -> None:
    slot, roster1 = unhex(case, "slot", "roster1")
    values = (slot, roster1, case["sender"], case["recipient"])
    assert masking.envelope_info(case["purpose"], *values).hex() == case["output"]
    assert encode("envelope-" + case["purpose"], *values).hex() == case["output"]


def check_bundle_tree(case: Json) -> None:
    leaves = [bytes.fromhex(leaf) for leaf in case["leaves"]]
    root, paths = merkle.tree(leaves)
    assert (root.hex(), [path.hex() for path in paths]) == (case["root"], case["paths"])
    assert root == root_over(leaves)
    for place, (leaf, path) in enumerate(zip(leaves, paths, strict=True)):
        assert root == climbed(leaf, place, len(leaves), path)


def check_bundle_digest(case: Json) -> None:
    parts = unhex(case, "shares", "pair", "mask_key_commitment", "self_seed_commitment", "pair_commitment")
    assert messages.Bundle(*parts).digest().hex() == case["output"]
    envelopes = [H("envelope", envelope) if envelope else b"" for envelope in parts[:2]]
    assert H("bundle", *envelopes, *parts[2:]).hex() == case["output"]


def check_slots(case: Json) -> None:
    (round_id,), bits = unhex(case, "round"), case["bits"]
    policy = Policy(project="vectors", clients=3, length=1, bits=bits, value_bits=2, clip_range=1.0)
    assert masking.slot_values(policy, round_id).tolist() == case["output"]
    count = math.ceil(64 / bits)
    slots = [int.from_bytes(H("constant-slot", round_id, i)[:8], "little") % 2**bits for i in range(count)]
    assert slots == case["output"]


def check_slot_mask(case: Json) -> None:
    (seed,), bits, length = unhex(case, "seed"), case["bits"], case["length"]
    policy = Policy(project="vectors", clients=3, length=length, bits=bits, value_bits=2, clip_range=1.0)
    size = 4 if bits <= 32 else 8
    expected = keystream(seed, length * size, math.ceil(64 / bits) * size)
    assert masking.slot_mask(seed, policy).hex() == expected.hex() == case["output"]


def claim_from(given: Json) -> messages.ReleaseClaim:
    values = {name: given[name] for name in ("training_run", "round_number", "attempt")}
    hashes = {name: bytes.fromhex(given[name]) for name in CLAIM if name not in values}
    signatures = {client_id: bytes.fromhex(signature) for client_id, signature in given["attestations"].items()}
    return messages.ReleaseClaim(**values, **hashes, attestations=signatures)


def slot_of(given: Json) -> bytes:
    session = bytes.fromhex(given["session"])
    return H("slot", session, given["training_run"], given["round_number"], given["attempt"])


def round_of(given: Json) -> bytes:
    names_ = ("roster2", "sharers_hash", "model_hash", "task_hash", "previous_head")
    return H("round", slot_of(given), *(bytes.fromhex(given[name]) for name in names_))


def check_release_claim(case: Json) -> None:
    claim = claim_from(case)
    assert claim.round_id.hex() == round_of(case).hex() == case["round"]
    attested = H("attested", round_of(case), bytes.fromhex(case["inputs_hash"]))
    assert claim.attested.hex() == attested.hex() == case["attested"]
    assert encoding.encode("example", claim.fields()).hex() == case["encoded"]
    assert encode("example", claim_fields(claim)).hex() == case["encoded"]


class Machine:
    """The marks of one data set once more, from the specification alone: what a port of the protocol writes."""

    def __init__(self) -> None:
        self.joined: dict[tuple[str, str], tuple[int, int]] = {}
        self.contributed: dict[tuple[str, str], int] = {}
        self.added: set[tuple[str, str, int]] = set()
        self.live: Json = {"slot": b""}
        self.contribution, self.joins = b"", 0
        self.open: Json | None = None
        self.on_model: dict[str, list[Json]] = {}
        self.waiting: dict[tuple[str, str], dict[bytes, Json]] = {}
        self.replayed: dict[bytes, int] = {}
        self.accepted: set[bytes] = set()
        self.used: dict[bytes, dict[bytes, bool]] = {}

    def perform(self, operation: Json) -> Json:
        before = copy.deepcopy(vars(self))
        try:
            exposing = getattr(self, operation["operation"])(operation)
        except RefusedError as refused:
            vars(self).update(before)
            return {"success": False, **refused.args[0]}
        return {"success": True} | ({} if exposing is None else {"exposing": [r.hex() for r in exposing]})

    def exposing(self, slot: Json, model: str) -> dict[bytes, Json]:
        elsewhere = [claim for claim in self.on_model.get(model, []) if run_of(claim) != run_of(slot)]
        own = (*elsewhere, *self.waiting.get(run_of(slot), {}).values(), self.open)
        return {round_of(claim): claim for claim in own if claim is not None}

    def binds(self, slot: Json, claim: Json) -> bool:
        exposes = self.replayed.get(round_of(claim), self.live["join"]) >= self.live["join"] or (
            claim["model_hash"] == self.live["model"] and run_of(claim) != run_of(slot)
        )
        return exposes and (claim["session"] == slot["session"] or number_of(claim) in self.added)

    def refuse(self, check: str, rounds: Iterable[bytes]) -> None:
        if refused := [round_id.hex() for round_id in rounds if round_id not in self.accepted]:
            raise RefusedError({"check": check, "rounds": refused})

    def join(self, operation: Json) -> list[bytes]:
        slot, model = operation["slot"], operation["model"]
        number = (slot["round_number"], slot["attempt"])
        if number <= self.joined.get(run_of(slot), (0, 0)):
            raise RefusedError({"check": "C-03"})
        exposing = self.exposing(slot, model)
        if not operation["private"]:
            self.refuse("C-05", exposing)
        self.joins += 1
        self.joined[run_of(slot)] = number
        self.live = {"slot": slot_of(slot), "model": model, "join": self.joins, "exposing": exposing}
        return list(exposing)

    def require_live(self, slot: Json) -> None:
        if self.live["slot"] != slot_of(slot):
            raise RefusedError({"check": "C-24"})

    def contribute(self, operation: Json) -> None:
        slot = operation["slot"]
        self.require_live(slot)
        if slot["round_number"] <= self.contributed.get(run_of(slot), 0):
            raise RefusedError({"check": "C-14"})
        if not operation["private"]:
            self.refuse("C-05", self.live["exposing"])
            claimed = {round_of(claim): claim for claim in operation["claims"] if self.binds(slot, claim)}
            self.refuse("C-26", claimed)
            used = self.live["exposing"] | claimed
            self.used[slot_of(slot)] = {done: run_of(claim) == run_of(slot) for done, claim in used.items()}
            self.accepted -= used.keys()
            self.added.add(number_of(slot))
        self.contributed[run_of(slot)] = slot["round_number"]
        self.contribution = slot_of(slot)

    def release(self, operation: Json) -> None:
        slot, claim = operation["slot"], operation["claim"]
        self.require_live(slot)
        if self.contribution != slot_of(slot):
            raise RefusedError({"check": "C-24"})
        self.contribution = b""
        if not operation["private"]:
            earlier = self.open and round_of(self.open)
            if earlier and earlier not in self.used.get(slot_of(slot), {}):
                raise RefusedError({"check": "C-05", "rounds": [earlier.hex()]})
            self.on_model.setdefault(claim["model_hash"], []).append(claim)
            self.open = None if round_of(claim) in self.replayed else claim
            if self.open is not None:
                self.waiting.setdefault(run_of(claim), {})[round_of(claim)] = claim

    def replay(self, operation: Json) -> None:
        settled = [done for done, same in self.used.get(slot_of(operation["slot"]), {}).items() if same]
        cleared = [bytes.fromhex(operation["round"]), *settled]
        for done in cleared:
            self.replayed.setdefault(done, self.joins)
            self.waiting.get(run_of(operation["slot"]), {}).pop(done, None)
        if self.open is not None and round_of(self.open) in cleared:
            self.open = None

    def accept_exposure(self, operation: Json) -> None:
        self.accepted.add(bytes.fromhex(operation["round"]))


class RefusedError(Exception):
    """A transition that the machine refuses, with what the file says of it."""


def run_of(given: Json) -> tuple[str, str]:
    return given["session"], given["training_run"]


def number_of(given: Json) -> tuple[str, str, int]:
    return *run_of(given), given["round_number"]


def slot_given(given: Json) -> Slot:
    return Slot(bytes.fromhex(given["session"]), given["training_run"], given["round_number"], given["attempt"])


def in_store(store: MemoryStore, operation: Json) -> Json:
    """The same transition in the code."""
    slot = slot_given(operation["slot"]) if "slot" in operation else None
    private = operation.get("private", False)
    try:
        with store.transaction() as marks:
            match operation["operation"]:
                case "join":
                    exposing = marks.join(slot, bytes.fromhex(operation["model"]), private)
                    return {"success": True, "exposing": [claim.round_id.hex() for claim in exposing]}
                case "contribute":
                    marks.contribute(slot, "event", [claim_from(claim) for claim in operation["claims"]], private)
                case "release":
                    marks.release(slot, claim_from(operation["claim"]), private)
                case "replay":
                    marks.replay(slot, bytes.fromhex(operation["round"]))
                case "accept_exposure":
                    marks.accept_exposure(bytes.fromhex(operation["round"]), bytes(64))
                case unknown:
                    raise AssertionError(unknown)
    except (ProtocolError, ExposureError) as error:
        rounds = [round_id.hex() for round_id in getattr(error, "round_ids", ())]
        return {"success": False, "check": error.check} | ({"rounds": rounds} if rounds else {})
    return {"success": True}


def check_decode(case: Json) -> None:
    decode = {"client": wire.decode_from_client, "server": wire.decode_from_server}[case["from"]]
    with pytest.raises(MalformedMessageError) as caught:
        decode(bytes.fromhex(case["input"]))
    assert caught.value.check == case["check"], case["what"]


# --- tests -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", names("primitive_"))
def test_primitives(name):
    for case in load(name)["operations"]:
        globals()["check_" + case["operation"]](case)


@pytest.mark.parametrize("sequence", load("store_sequences")["sequences"], ids=lambda sequence: sequence["comment"])
def test_a_store_goes_through_every_sequence_as_the_specification_says(sequence):
    """In the code, and in a machine written from the text alone."""
    store, machine = MemoryStore(), Machine()
    for operation in sequence["operations"]:
        expected = {k: operation[k] for k in ("success", "check", "rounds", "exposing") if k in operation}
        assert in_store(store, operation) == expected, operation
        assert machine.perform(operation) == expected, operation


def test_the_sequences_of_a_store_refuse_for_every_reason():
    refused = {
        operation["check"]
        for sequence in load("store_sequences")["sequences"]
        for operation in sequence["operations"]
        if not operation["success"]
    }
    assert refused == {"C-03", "C-05", "C-14", "C-24", "C-26"}


@pytest.mark.parametrize("name", [name for name in names() if not name.startswith(("primitive_", "store_"))])
def test_replay(name):
    player = Player(name)
    player.all()
    if name.startswith("round_"):
        left = [player.draws[attempt][party] for attempt, party in player.clients]
        assert not any(left), "randomness that nobody drew"


@pytest.mark.parametrize("name", names("round_"))
def test_every_value_on_the_way_follows_from_the_specification_alone(name):
    content = load(name)
    for index, attempt in enumerate(content["attempts"]):
        if "intermediate" in attempt:
            assert Port(content, index).recomputed() == attempt["intermediate"]


@pytest.mark.parametrize("name", names("round_"))
def test_every_signature_is_over_the_statement_of_the_specification(name):
    content = load(name)
    verify_keys = {entry["id"]: bytes.fromhex(entry["verify_key"]) for entry in content["parameters"]["roster"]}
    server = bytes.fromhex(content["parameters"]["server"]["verify_key"])
    decoders = {True: wire.decode_from_server, False: wire.decode_from_client}
    for label, data in content["messages"].items():
        kind = label.partition("@")[0].partition(".")[0]
        message = decoders[kind not in SENDS.values()](bytes.fromhex(data))
        assert type(message).__name__ == kind
        for part in signed_parts(message):
            key = verify_keys[part.client_id] if hasattr(part, "client_id") else server
            VerifyKey(key).verify(statement(part), part.signature)


SPEC_ROWS = {
    cells[1].strip(): cells[4]
    for line in (ROOT / "docs/spec.md").read_text().splitlines()
    if re.match(r"\| [CSMW]-\d\d \|", line)
    for cells in [line.split("|")]
}


def test_every_check_of_the_specification_fires_in_some_bad_file():
    fired = {}
    for name in names("bad_"):
        last = load(name)["operations"][-1]
        assert not last["success"], name
        assert last["check"].lower().replace("-", "") == name.split("_")[1], name
        assert last["error"] in SPEC_ROWS[last["check"]], name
        fired.setdefault(last["check"], []).append(name)
    assert fired.keys() == SPEC_ROWS.keys()
    assert sum(map(len, fired.values())) >= 40


def test_bad_operations_stand_in_bad_files_only():
    for name in names("round_", "silent_"):
        for operation in load(name)["operations"]:
            complains = operation.get("check") == "C-12" or operation.get("error") == "ComplaintError"
            assert operation["success"] or (complains and name == "round_n4_complaint"), name


def test_files_are_small():
    assert sum(path.stat().st_size for path in VECTORS.glob("*.json")) < 3_000_000


def test_an_unknown_operation_is_an_error():
    player = Player("round_n3_b32")
    with pytest.raises(AssertionError, match="unknown operation"):
        player.perform({"operation": "shrug"})


def test_the_generator_writes_the_same_bytes(tmp_path):
    command = [sys.executable, str(VECTORS / "generate.py"), "--out", str(tmp_path)]
    subprocess.run(command, check=True, cwd=ROOT)
    assert sorted(path.stem for path in tmp_path.glob("*.json")) == names()
    changed = [
        name for name in names() if (tmp_path / f"{name}.json").read_bytes() != (VECTORS / f"{name}.json").read_bytes()
    ]
    assert not changed
