"""Transcripts of the rounds in tests/vectors: their messages, put down as the specification says a server does it."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from audits.transcripts.play import framed
from audits.transcripts.wire import decode, values
from audits.verifier.encoding import HV, H, encode
from audits.verifier.policy import Policy
from audits.verifier.primitives import pair_secret
from audits.verifier.reading import Reader
from audits.verifier.records import record
from audits.verifier.vectors import block_sizes

VECTORS = Path(__file__).parents[2] / "tests" / "vectors"
KINDS = {
    "advertise_keys": "advertisement", "encrypted_shares": "shares", "share_report": "report",
    "masked_input": "input", "attestation": "attestation", "unmasking_shares": "release",
    "confirmation": "confirmation",
}  # fmt: skip
ORDER = ("advertisement", "shares", "report", "input", "attestation", "release", "result", "confirmation")


@dataclass
class Attempt:
    """The messages that the server accepted in one attempt, by kind and sender."""

    context: dict[str, Any]
    sent: dict[str, dict[str, tuple[Any, bytes]]] = field(default_factory=lambda: {kind: {} for kind in ORDER})

    def take(self, data: bytes, sender: str) -> None:
        """A client's message."""
        envelope = decode("FromClient", data)
        for name, kind in KINDS.items():
            if envelope.get(name) is not None:
                self.sent[kind].setdefault(sender, (envelope[name], envelope["vector"]))


@dataclass
class Vector:
    """One file of tests/vectors, of a round or a branch of one."""

    name: str
    parameters: dict[str, Any]
    attempts: list[Attempt]

    @property
    def reader(self) -> Reader:
        """Whoever holds the policy and roster of the round."""
        fields = {k: v for k, v in self.parameters["policy"].items() if k != "threshold"}
        key = bytes.fromhex(self.parameters["server"]["verify_key"])
        roster = {one["id"]: bytes.fromhex(one["verify_key"]) for one in self.parameters["roster"]}
        return Reader(Policy(**fields, server_key=key), roster)

    def write(self, folder: Path) -> list[Path]:
        """A transcript of each attempt of which the server fixed the headers."""
        paths = []
        for i, attempt in enumerate(self.attempts):
            if attempt.sent["result"] or attempt.sent["shares"]:
                paths.append(folder / f"{self.name}-{i}.transcript")
                paths[-1].write_bytes(self._file(attempt))
        return paths

    def _file(self, attempt: Attempt) -> bytes:
        records = [self._opening(attempt)]
        if not attempt.sent["result"]:
            headers = sorted(attempt.sent["shares"].items())
            records += [record("header", *values(message["header"])) for _, (message, _) in headers]
        else:
            for kind in ORDER:
                if kind == "result":
                    records += [record("pair", *pair) for pair in self._pairs(attempt)]
                for _, (message, vector) in sorted(attempt.sent[kind].items()):
                    records.append(record(kind, *_fields(kind, message, vector)))
                    records += self._blocks(vector)
        link = bytes(32)
        for data in records:
            link = H("transcript-record", link, data)
        key = Ed25519PrivateKey.from_private_bytes(bytes.fromhex(self.parameters["server"]["signing_seed"]))
        return b"".join(map(framed, [*records, record("closing", link, key.sign(encode("transcript", link)))]))

    def _opening(self, attempt: Attempt) -> bytes:
        p, c = self.reader.policy, attempt.context
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
        hashes = [bytes.fromhex(c[name]) for name in ("model_hash", "task_hash", "previous_head")]
        return record("opening", 2, *of_policy, c["training_run"], c["round_number"], c["attempt"], *hashes, 1)

    def _blocks(self, vector: bytes) -> Iterator[bytes]:
        at = 0
        for _, size in block_sizes(self.reader.policy) if vector else ():
            yield record("block", vector[at : at + size])
            at += size

    def _pairs(self, attempt: Attempt) -> list[list[Any]]:
        """What the server opened with the mask keys of the dropped: secrets that a silent dealer had sealed to them."""
        u1, included = sorted(attempt.sent["advertisement"]), attempt.sent["input"]
        dropped = [u for u in sorted(attempt.sent["report"]) if u not in included]
        silent = [u for u in sorted(included) if u not in attempt.sent["release"]]
        pairs = []
        for u in silent if self.reader.policy.suite != "X25519" else ():
            for w in dropped:
                odd = (u1.index(u) - u1.index(w)) % 2
                if (min(u, w) if odd else max(u, w)) == u:
                    s = bytes.fromhex(attempt.context["randomness"][u]["mask_key"])
                    pairs.append([u, w, pair_secret(s, w, self.reader.policy.suite)])
        return pairs


def _fields(kind: str, message: dict[str, Any], vector: bytes) -> list[Any]:
    fields = values(message)
    if kind == "result":
        return list(fields[0])
    if kind == "input":
        return [*fields[:-1], HV("masked-vector", vector), fields[-1]]
    if kind == "release" and not fields[-1]:
        return list(fields[:-1])  # no seeds of excess noise
    if kind == "shares":
        for bundle in fields[1]:
            bundle[:2] = [H("envelope", envelope) if envelope else b"" for envelope in bundle[:2]]
    return list(fields)


def load(name: str) -> dict[str, Any]:
    """The JSON of a file of tests/vectors."""
    return dict(json.loads((VECTORS / f"{name}.json").read_text()))


def vector(name: str) -> Vector | None:
    """The rounds of a file: what the server accepted. Of a lie that a server refused, the round with the lie in it.

    None where the file is of something else, or of a lie that no transcript could hold.
    """
    own = load(name)
    base = own
    while "base" in base:
        base = load(base["base"])
    messages = {**base["messages"], **own["messages"]}
    operations = own["operations"]
    if name.startswith("bad_") and (operations[-1]["operation"] != "server_receive" or "_w01_" in name):
        return None
    lies = [o for o in operations if not o.get("success", True) and o["operation"] == "server_receive"]
    if base is not own:
        operations = [*lies, *base["operations"]] if lies else [*base["operations"][: own["replayed"]], *operations]
    attempts = [Attempt({**a["context"], "randomness": a["randomness"]}) for a in base["attempts"]]
    for o in operations:
        attempt = attempts[o.get("attempt", 0)]
        if o["operation"] == "server_receive" and (o.get("success", True) or o in lies):
            attempt.take(bytes.fromhex(messages[o["input"]]), o["party"])
        elif o["operation"] == "conclude" and o.get("success", True):
            result = decode("FromServer", bytes.fromhex(messages[o["input"]]))
            attempt.sent["result"] = {"": (result["result"], result["vector"])}
    return Vector(name, base["parameters"], attempts)
