"""Writes the protocol's own known answers next to this file: `make vectors`; the format is in README.md.

Every draw of randomness is derived from the name of its file and written down, so that a second run gives the same
bytes. Sealed envelopes take no randomness from us: one that is already on file is kept if it opens to what is to be
sealed, else a fresh one takes its place. Must never: use a key or a draw of these files for anything else.
Specification: docs/spec.md, section "Test vectors".
"""

import argparse
import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np

import secagg.client
from secagg import (
    ClientSession,
    MemoryStore,
    PinnedRoster,
    Policy,
    RoundContext,
    ServerSession,
    SigningKey,
    Suite,
    wire,
)
from secagg.client import open_round
from secagg.encoding import digest, encode
from secagg.errors import AbortedError, MalformedMessageError, ProtocolError, SecAggError
from secagg.graph import smallest_cover
from secagg.keys import ChannelKey, MaskKey, seal
from secagg.masking import (
    envelope_info,
    pair_commitment,
    pair_mask_seed,
    self_commitment,
    self_mask_seed,
    share_commitment,
    slot_values,
)
from secagg.messages import (
    AdvertiseKeys,
    Bundle,
    EncryptedShares,
    IncludedSet,
    Receipt,
    Reports,
    Roster,
    RoundStart,
    ShareInbox,
    ShareReport,
)
from secagg.policy import session_id
from secagg.prg import CHUNK_BYTES, Stream, apply_masks, keystream
from secagg.quantize import dtype_for, pack, quantize, unpack
from secagg.shamir import PRIME, SHARE_BYTES, combine, is_share, split

HERE = Path(__file__).parent
RUN = "run-1"
SENDS = {
    "advertise_keys": "AdvertiseKeys",
    "share_keys": "EncryptedShares",
    "report": "ShareReport",
    "mask_input": "MaskedInput",
    "attest": "Attestation",
    "unmask": "UnmaskingShares",
    "conclude": "Confirmation",
}
STEPS = list(SENDS)
ANSWERS = {"mask_input": "Reports", "attest": "IncludedSet", "unmask": "Attestations", "conclude": "Result"}
"""What everybody is told before."""
MODEL, TASK = digest("example", "model"), digest("example", "task")
OTHER = bytes([7]) * 32
Json = dict[str, Any]


def drawn(label: str, size: int) -> bytes:
    """Bytes that follow from a label alone."""
    return hashlib.shake_256(label.encode()).digest(size)


def signing_key(who: str) -> SigningKey:
    return SigningKey.from_bytes(drawn(f"signing key of {who}", 32))


SERVER = signing_key("the server")


@contextmanager
def randomness(label: str, draws: list[str]) -> Iterator[None]:
    """While it lasts, `secrets` draws what follows from the label and the number of earlier draws, noted as hex."""

    def draw(size: int, below: int = 0) -> bytes:
        value = drawn(f"{label}, draw {len(draws)}", 64 if below else size)
        value = (int.from_bytes(value, "big") % below).to_bytes(size, "big") if below else value
        draws.append(value.hex())
        return value

    def token_bytes(size: int) -> bytes:
        coefficients = size // SHARE_BYTES  # as `shamir` draws them: all at once, kept if below a multiple of p
        return b"".join(draw(SHARE_BYTES, PRIME) for _ in range(coefficients)) or draw(size)

    with mock.patch("secrets.token_bytes", token_bytes):
        yield


# --- playing rounds ------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Setting:
    """Who takes part, under which policy."""

    n: int = 3
    suite: Suite = Suite.X25519
    length: int = 5
    bits: int = 32
    value_bits: int = 16
    clip_range: float = 1.0
    weights: Mapping[str, float] = field(default_factory=dict)

    @property
    def ids(self) -> list[str]:
        return [f"site-{letter}" for letter in "abcdefgh"[: self.n]]

    @property
    def policy(self) -> Policy:
        return Policy(
            project="vectors",
            clients=self.n,
            length=self.length,
            clip_range=self.clip_range,
            suite=self.suite,
            bits=self.bits,
            value_bits=self.value_bits,
            weights=self.weights,
            server_key=SERVER.verify_key,
        )

    @property
    def roster(self) -> PinnedRoster:
        return PinnedRoster({client_id: signing_key(client_id).verify_key for client_id in self.ids})

    def as_json(self) -> Json:
        policy = self.policy
        names = ("project", "clients", "max_corrupt", "min_survivors", "threshold", "length", "bits", "value_bits")
        return {
            "policy": {name: getattr(policy, name) for name in names}
            | {"clip_range": policy.clip_range, "weights": dict(policy.weights), "suite": policy.suite.value},
            "policy_hash": policy.hash().hex(),
            "server": {"signing_seed": SERVER.export().hex(), "verify_key": SERVER.verify_key.hex()},
            "roster": [
                {"id": i, "signing_seed": signing_key(i).export().hex(), "verify_key": signing_key(i).verify_key.hex()}
                for i in self.ids
            ],
            "training_run": RUN,
        }

    def update(self, client_id: str) -> list[float]:
        """Values inside the clip range, the range itself, and one beyond it."""
        words = np.frombuffer(drawn(f"update of {client_id}", 4 * self.length), "<i4")
        values = [float(word) / 2**31 * self.clip_range for word in words]
        return [0.0, self.clip_range, -1.5 * self.clip_range, *values[3:]][: self.length]


class Run:
    """Sessions of the code under test, fed operation by operation; each one is written down with what came of it.

    Args:
        name: of the file; the randomness follows from it.
        setting: policy and roster.
        envelopes: sealed earlier, to be kept where they still open.
    """

    def __init__(self, name: str, setting: Setting, envelopes: Iterable[bytes]) -> None:
        self.name, self.setting, self.envelopes = name, setting, list(envelopes)
        self.stores = {client_id: MemoryStore() for client_id in setting.ids}
        self.sessions: dict[tuple[int, str], ClientSession] = {}
        self.servers: list[ServerSession] = []
        self.attempts: list[Json] = []
        self.contexts: list[RoundContext] = []
        self.draws: dict[tuple[int, str], list[str]] = {}
        self.openers: dict[bytes, Callable[[bytes, bytes], bytes]] = {}
        self.messages: dict[str, bytes] = {}
        self.views: list[dict[str, Any]] = []
        self.operations: list[Json] = []

    def open(self, number: int = 1, attempt: int = 0, head: bytes = bytes(32), leave_out: Iterable[str] = ()) -> int:
        """A new attempt at a round; returns its index."""
        context = RoundContext(RUN, number, attempt, MODEL, TASK, head)
        self.servers.append(
            ServerSession(self.setting.policy, self.setting.roster, context, SERVER, leave_out=sorted(leave_out))
        )
        self.contexts.append(context)
        self.views.append({})
        self.attempts.append({"context": context_json(context), "leave_out": sorted(leave_out)})
        return len(self.contexts) - 1

    # The eight lines that do the work; everything else only writes down.
    def _session(self, attempt: int, party: str) -> ClientSession:
        setting = self.setting
        session = ClientSession(
            setting.policy, party, signing_key(party), setting.roster, self.contexts[attempt], self.stores[party]
        )
        session.provide(np.array(setting.update(party)), "event", Stream(self.rounding_key(attempt, party)))
        self.sessions[attempt, party] = session
        return session

    def rounding_key(self, attempt: int, party: str) -> bytes:
        return drawn(f"{self.name}, rounding of {party} in attempt {attempt}", 32)

    def perform(self, operation: str, party: str, attempt: int, data: bytes, arguments: Json) -> Any:
        """What the operation gives: bytes, bytes by client, JSON or None."""
        if operation == "open_round":
            start = wire.decode_from_server(data)
            accept = arguments.get("accept_exposure", False)
            return context_json(open_round(self.setting.policy, RUN, start, self.stores[party], accept_exposure=accept))
        if operation == "mark_replayed":
            return self.stores[party].replay(RUN, arguments["round_number"])
        if operation == "leave_out":
            complaints = [tuple(pair) for pair in arguments["pairs"]]
            return sorted(smallest_cover(complaints, self.setting.policy.max_corrupt))
        if operation == "server_receive":
            reply = self.servers[attempt].receive(party, wire.decode_from_client(data))
            return reply and wire.encode(reply)
        if operation == "server_close":
            replies = self.servers[attempt].close_round()
            for message in replies.values():
                self.views[attempt][type(message).__name__] = message
            return {client_id: wire.encode(message) for client_id, message in replies.items()}
        draws = self.draws.setdefault((attempt, party), [])
        label = f"{self.name}, {party} in attempt {attempt}"
        with randomness(label, draws), mock.patch.object(secagg.client, "seal", self.seal):
            if operation == "advertise_keys":
                message = self._session(attempt, party).start()
            else:
                message = self.sessions[attempt, party].receive(wire.decode_from_server(data))
        if operation == "advertise_keys":
            self._remember(message, draws)
        return wire.encode(message)

    def do(
        self, operation: str, party: str = "", attempt: int = 0, data: bytes = b"", name: str = "", **arguments: Any
    ) -> Any:
        """Perform an operation and write it down; returns its output, or the error.

        Args:
            operation: see README.md.
            party: who performs it; for `server_receive` the authenticated sender.
            attempt: index of the attempt.
            data: the message that comes in.
            name: of a message that is not in the file yet.
            arguments: what else the operation takes.
        """
        entry: Json = {"operation": operation} | ({"party": party} if party else {})
        entry |= ({"attempt": attempt} if attempt else {}) | arguments
        if data or name:
            entry["input"] = self.called(data, name)
        result: Any
        try:
            result = self.perform(operation, party, attempt, data, arguments)
        except SecAggError as error:
            entry |= {"success": False, "error": type(error).__name__} | blamed(error)
            result = error
        else:
            entry |= {"success": True, "output": self._written(operation, party, attempt, result)}
            if operation == "report" and (dealer := wire.decode_from_client(result).complaint):
                # Not an error that anybody sees: the complaint is the output.
                entry |= {"success": False, "error": "ShareError", "check": "C-12", "culprits": [dealer]}
        self.operations.append(entry)
        return result

    def _written(self, operation: str, party: str, attempt: int, result: Any) -> Any:
        mark = f"@{attempt}" if attempt else ""
        if operation in SENDS:
            return self.called(result, f"{SENDS[operation]}.{party}{mark}")
        if operation == "server_close":
            same = len(set(result.values())) == 1
            kind = type(wire.decode_from_server(next(iter(result.values())))).__name__
            return {
                i: self.called(data, f"{kind}{mark}" if same else f"{kind}.{i}{mark}") for i, data in result.items()
            }
        if operation == "server_receive" and result:
            return self.called(result, "reply")
        return result

    def called(self, data: bytes, name: str) -> str:
        """The name of a message in this file."""
        for known, message in self.messages.items():
            if message == data:
                return known
        name += " (other)" if name in self.messages else ""
        assert name and name not in self.messages, name
        self.messages[name] = data
        return name

    # --- sealed envelopes
    def _remember(self, message: AdvertiseKeys, draws: list[str]) -> None:
        """How to open what is sealed to these keys."""
        channel_seed, mask_seed = bytes.fromhex(draws[0]), bytes.fromhex(draws[1])
        with mock.patch("secrets.token_bytes", lambda _: channel_seed):
            self.openers[message.channel_pk] = ChannelKey(self.setting.suite).open
        if message.mask_kem_pk:
            self.openers[message.mask_kem_pk] = MaskKey(self.setting.suite, mask_seed).open_pair

    def seal(self, suite: Suite, public: bytes, info: bytes, plaintext: bytes) -> bytes:
        """The envelope on file that opens to this plaintext, or a fresh one."""
        for envelope in self.envelopes:
            with suppress(ValueError):
                if self.openers[public](info, envelope) == plaintext:
                    return envelope
        envelope = seal(suite, public, info, plaintext)
        self.envelopes.append(envelope)
        return envelope

    # --- whole rounds
    def play(
        self,
        attempt: int = 0,
        silent: Mapping[str, str] | None = None,
        lie: Callable[[str, str, Any], Any] = lambda operation, party, message: message,
        corrupt: str = "",
        until: str = "",
        since: str = "",
    ) -> "Run":
        """Everybody in order, step by step.

        Args:
            attempt: its index.
            silent: client to the operation that it never performs.
            lie: what a client sends instead of a message.
            corrupt: whose own operations are not written down, because no honest client performs them.
            until: operation after which to stop, before the server hears of it.
            since: operation to go on from, what the server said before it being in the messages.
        """
        told: Mapping[str, bytes] = {i: b"" for i in self.setting.ids if i not in self.attempts[attempt]["leave_out"]}
        first = STEPS.index(since) if since else 0
        if since:
            told = {i: self.messages[ANSWERS[since]] for i in told}
        for step, operation in enumerate(STEPS[first:], first):
            said = {}
            for party, data in told.items():
                if party in (silent or {}) and STEPS.index((silent or {})[party]) <= step:
                    continue
                message: Any = None
                if party == corrupt:
                    with suppress(ProtocolError):  # a liar may not like what comes of its lie
                        message = self.perform(operation, party, attempt, data, {})
                else:
                    message = self.do(operation, party, attempt, data)
                if isinstance(message, bytes):
                    said[party] = wire.encode(lie(operation, party, wire.decode_from_client(message)))
            if operation == until:
                break
            for party, message in said.items():
                mark = f"@{attempt}" if attempt else ""
                self.do("server_receive", party, attempt, message, f"{SENDS[operation]}.{party}{mark}")
            if operation != STEPS[-1]:
                told = self.do("server_close", attempt=attempt)
                if isinstance(told, SecAggError):
                    break
        return self

    def starts(self, attempt: int, missed: tuple[Receipt, ...] = ()) -> None:
        """Everybody opens the round of this attempt from the server's signed start."""
        context = self.contexts[attempt]
        start = start_message(context.round_number, context.previous_head, missed, attempt=context.attempt)
        for party in self.setting.ids:
            self.do("open_round", party, attempt, start, f"RoundStart@{attempt}")

    # --- files
    def as_json(self, intermediate: bool = True) -> Json:
        attempts = []
        for index, attempt in enumerate(self.attempts):
            taking = [i for i in self.setting.ids if (index, i) in self.draws]
            attempt = attempt | {
                "randomness": {i: named(self.draws[index, i]) for i in taking},
                "inputs": {
                    i: {"update": self.setting.update(i), "rounding_key": self.rounding_key(index, i).hex()}
                    for i in taking
                },
            }
            if intermediate and "Result" in self.views[index]:
                attempt["intermediate"] = intermediates(self, index)
            attempts.append(attempt)
        return {
            "parameters": self.setting.as_json(),
            "attempts": attempts,
            "messages": {name: data.hex() for name, data in self.messages.items()},
            "operations": self.operations,
        }

    def branch(self, replayed: int) -> "Run":
        """The same run again, up to some operation; what follows is written into a file of its own."""
        again = Run(self.name, self.setting, self.envelopes)
        for attempt in self.attempts:
            context = attempt["context"]
            head = bytes.fromhex(context["previous_head"])
            again.open(context["round_number"], context["attempt"], head, attempt["leave_out"])
        again.messages = dict(self.messages)
        for entry in self.operations[:replayed]:
            again.perform(
                entry["operation"],
                entry.get("party", ""),
                entry.get("attempt", 0),
                self.messages.get(entry.get("input", ""), b""),
                entry,
            )
        return again

    def index(self, operation: str, party: str, kind: str = "") -> int:
        """Where an operation stands; for `server_receive`, the one of this kind of message."""
        for index, entry in enumerate(self.operations):
            if (entry["operation"], entry.get("party")) == (operation, party) and entry.get("input", "").startswith(
                kind
            ):
                return index
        raise KeyError(operation, party, kind)

    def input_of(self, index: int) -> bytes:
        return self.messages[self.operations[index]["input"]]


def context_json(context: RoundContext) -> Json:
    values = {item.name: getattr(context, item.name) for item in fields(context)}
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in values.items()}


def blamed(error: SecAggError) -> Json:
    if isinstance(error, ProtocolError):
        return {"check": error.check, "culprits": list(error.culprits)}
    complaints = getattr(error, "complaints", None)
    return {"complaints": [list(pair) for pair in complaints]} if complaints else {}


def named(draws: list[str]) -> Json:
    """Draws of one client in one attempt, in order: two keys, nonce, b_u, then both polynomials."""
    coefficients = draws[4:]
    half = len(coefficients) // 2
    names = ("channel_key_seed", "mask_key", "nonce", "self_seed")
    return dict(zip(names, draws[:4], strict=False)) | (
        {"mask_key_coefficients": coefficients[:half], "self_seed_coefficients": coefficients[half:]} if half else {}
    )


def intermediates(run: Run, index: int) -> Json:
    """What another implementation meets on the way from its draws to the sum."""
    setting, policy, view, context = run.setting, run.setting.policy, run.views[index], run.contexts[index]
    roster, reports, included, result = (view[name] for name in ("Roster", "Reports", "IncludedSet", "Result"))
    session = session_id(policy, setting.roster)
    slot, round_id = context.slot(session), included.inputs[0].round_id
    keys = {i: MaskKey(policy.suite, bytes.fromhex(run.draws[index, i][1])) for i in roster.by_id}
    seeds = {i: bytes.fromhex(run.draws[index, i][3]) for i in reports.by_id}
    pairs, pair_secrets = {}, {}
    for u in reports.by_id:
        for v in reports.by_id:
            if u < v:
                dealer = roster.dealer_of_pair(u, v)
                secret = keys[dealer].pair_secret(v if dealer == u else u)
                exchanged = keys[u].exchange(roster.by_id[v].mask_dh_pk)
                if secret:
                    pair_secrets[f"{u} {v}"] = {"dealer": dealer, "secret": secret.hex()}
                pairs[f"{u} {v}"] = pair_mask_seed(roster.hash, round_id, (u, v), exchanged, secret).hex()
    quantised, masked = {}, {}
    for i in included.by_id:
        stream = Stream(run.rounding_key(index, i))
        quantised[i] = quantize(np.array(setting.update(i)), policy, i, stream)[0].tolist()
        mark = f"@{index}" if index else ""
        y = wire.decode_from_client(run.messages[f"MaskedInput.{i}{mark}"]).y
        masked[i] = unpack(y, policy.length + policy.slots, policy.bits).tolist()
    return {
        "session": session.hex(),
        "slot": slot.hex(),
        "roster1": roster.hash.hex(),
        "roster2": view["ShareInbox"].roster2.hex(),
        "sharers": list(reports.by_id),
        "sharers_hash": reports.sharers_hash.hex(),
        "round": round_id.hex(),
        "included": list(included.by_id),
        "dropped": sorted(reports.by_id.keys() - included.by_id.keys()),
        "attested": included.attested.hex(),
        "pair_secrets": pair_secrets,
        "pair_mask_seeds": pairs,
        "self_mask_seeds": {i: self_mask_seed(roster.hash, round_id, i, b).hex() for i, b in seeds.items()},
        "slots": slot_values(policy, round_id).tolist(),
        "quantised": quantised,
        "masked": masked,
        "sum": unpack(result.total, policy.length + policy.slots, policy.bits).tolist(),
        "total_hash": result.total_hash.hex(),
        "head": result.receipt.head.hex(),
    }


def start_message(
    number: int = 1, head: bytes = bytes(32), missed: tuple[Receipt, ...] = (), run: str = RUN, attempt: int = 0
) -> bytes:
    return wire.encode(RoundStart(run, number, attempt, MODEL, TASK, head, missed).sign(SERVER))


# --- good rounds ---------------------------------------------------------------------------------------------------

HYBRID = Suite.MLKEM768_X25519
WIDTHS = {8: 6, 16: 12, 23: 16, 24: 16, 31: 24, 32: 16, 40: 32, 64: 48}
"""Width of the modulus to value bits."""


class Files:
    """What is written, by name; reads the envelopes that earlier files hold."""

    def __init__(self, recorded: Path | None) -> None:
        self.recorded, self.written, self.runs = recorded, dict[str, Json](), dict[str, Run]()

    def envelopes(self, name: str) -> list[bytes]:
        """Every envelope in a file on disk."""
        path = self.recorded and self.recorded / f"{name}.json"
        if not path or not path.exists():
            return []
        found: dict[bytes, None] = {}
        for text in json.loads(path.read_text())["messages"].values():
            for decode in (wire.decode_from_client, wire.decode_from_server):
                with suppress(ProtocolError):
                    message = decode(bytes.fromhex(text))
                    if isinstance(message, (EncryptedShares, ShareInbox)):
                        found |= {e: None for b in message.bundles for e in (b.shares, b.pair) if e}
        return list(found)

    def run(self, name: str, **setting: Any) -> Run:
        self.runs[name] = run = Run(name, Setting(**setting), self.envelopes(name))
        return run

    def write(self, run: Run, comment: str, intermediate: bool = True) -> Run:
        self.written[run.name] = {"comment": comment} | run.as_json(intermediate)
        return run

    def branch(self, name: str, base: Run, run: Run, replayed: int, comment: str, resumes: bool = False) -> None:
        """A file that goes on from some operation of another; `resumes`: that one then ends as if nothing had been."""
        self.written[name] = {
            "comment": comment,
            "base": base.name,
            "replayed": replayed,
            "messages": {label: data.hex() for label, data in run.messages.items() if label not in base.messages},
            "operations": run.operations,
            "resumes": resumes,
        }


def rounds(files: Files) -> None:
    for bits, value_bits in WIDTHS.items():
        run = files.run(f"round_n3_b{bits:02}", bits=bits, value_bits=value_bits, length=11)
        run.open()
        files.write(run.play(), f"Everybody present, modulo 2^{bits}.")

    run = files.run("round_n3_hybrid", suite=HYBRID, bits=23)
    run.open()
    files.write(run.play(), "Everybody present, post-quantum suite.")

    run = files.run("round_n3_weights", weights={"site-a": 0.5, "site-c": 3.0}, clip_range=0.1, length=20)
    run.open()
    files.write(run.play(), "Public weights; the largest maps to full scale and an absent one is 1.")

    for step in STEPS[:4]:
        run = files.run(f"round_n5_silent_{step}", n=5)
        run.open()
        files.write(run.play(silent={"site-e": step}), f"One of five falls silent before {SENDS[step]}.")

    run = files.run("round_n5", n=5)
    run.open()
    files.write(run.play(), "Everybody present.")
    for step in STEPS[4:]:
        silence(
            files, f"silent_{step}", "round_n5", step, ["site-e"], f"One of five falls silent before {SENDS[step]}."
        )

    run = files.run("round_n6_hybrid", n=6, suite=HYBRID, length=3)
    run.open()
    run.play(silent={"site-e": "mask_input"})
    files.write(run, "One of six falls silent before MaskedInput, post-quantum suite: pair secrets are released.")
    comment = "The pair secret with the dropped site-e is {} where the survivor falls silent too."
    derived, opened = comment.format("derived from its mask key"), comment.format("opened with its mask key")
    silence(files, "silent_recipient", run.name, "unmask", ["site-a", "site-e"], derived)
    silence(files, "silent_dealer", run.name, "unmask", ["site-b", "site-e"], opened)
    comment = "Two of five fall silent, and one is too many: nothing is opened and nobody is to blame."
    silence(files, "abort_too_few", "round_n5", "mask_input", ["site-d", "site-e"], comment)

    complaint(files)
    chained(files)
    repeats(files)
    aborted(files)


def silence(files: Files, name: str, base: str, step: str, who: list[str], comment: str) -> None:
    """From some step on, a round goes on without these clients."""
    replayed = files.runs[base].index(step, "site-a")
    run = files.runs[base].branch(replayed)
    files.branch(name, files.runs[base], run.play(silent=dict.fromkeys(who, step), since=step), replayed, comment)


def complaint(files: Files) -> None:
    """Attempt 0 ends with a complaint, attempt 1 leaves one end of it out."""
    run = files.run("round_n4_complaint", n=4)
    run.open()

    def lie(operation: str, party: str, message: Any) -> Any:
        bundles = getattr(message, "bundles", ())
        if not bundles or party != "site-d":
            return message
        return first_bundle(mask_key_commitment=OTHER)(message)

    run.play(lie=lie, corrupt="site-d")
    gone = run.do("leave_out", pairs=[["site-a", "site-d"]])
    run.open(attempt=1, leave_out=gone)
    run.play(1)
    files.write(
        run, "site-d deals site-a a share that misses its commitment; the next attempt leaves out one of the two."
    )


def chained(files: Files) -> None:
    """Two rounds; site-a missed the result of the first and replays its receipt."""
    run = files.run("round_n3_chained")
    run.open()
    run.starts(0)
    run.play(silent={"site-a": "conclude"})
    receipt = run.views[0]["Result"].receipt
    run.open(2, head=receipt.head)
    for party in run.setting.ids:
        run.do("mark_replayed", party, 1, round_number=1)
    run.starts(1, (receipt,))
    run.play(1)
    files.write(run, "Two rounds; the second builds on the head of the first, whose result site-a never saw.")


def repeats(files: Files) -> None:
    run = files.run("round_n3_repeats")
    run.open()
    run.play(until="share_keys")
    for party in run.setting.ids:
        run.do("server_receive", party, data=run.messages[f"AdvertiseKeys.{party}"])
        run.do("share_keys", party, data=run.messages["Roster"])
    files.write(run, "Repeats, byte for byte, get the stored reply: lost answers are asked for again.", False)


def aborted(files: Files) -> None:
    for before, operation, heard in (
        ("report", "mask_input", "ShareInbox.site-e"),
        ("mask_input", "attest", "Reports"),
    ):
        base = files.runs[f"round_n5_silent_{before}"]
        replayed = base.index(operation, "site-a")
        run = base.branch(replayed)
        run.do(before, "site-e", data=base.messages[heard])
        run.do(operation, "site-e", data=base.input_of(replayed))
        files.branch(f"abort_{operation}", base, run, replayed, "A client that is too late for a set is a dropout.")


# --- bad ones ------------------------------------------------------------------------------------------------------


BASE, HYBRID_BASE, SMALL = "round_n5_silent_mask_input", "round_n3_hybrid", "round_n3_b23"
VICTIM, LIAR = "site-a", "site-d"
Lie = Callable[[Any], Any]


def flip(value: bytes) -> bytes:
    return bytes(value[:-1]) + bytes([value[-1] ^ 1])


def entry(message: Any, name: str, client_id: str) -> Any:
    return next(item for item in getattr(message, name) if item.client_id == client_id)


def listed(message: Any, name: str, *new: Any, without: str = "") -> Any:
    """The list with these entries in the place of their clients' old ones."""
    gone = {without, *(item.client_id for item in new)}
    kept = [item for item in getattr(message, name) if item.client_id not in gone]
    return replace(message, **{name: tuple(sorted([*kept, *new], key=lambda item: item.client_id))})


def forged(name: str, client_id: str = "site-b", **changes: Any) -> Lie:
    """An entry of an honest client, changed after it was signed."""
    return lambda message: listed(message, name, replace(entry(message, name, client_id), **changes))


def colluding(name: str, client_id: str = "", **changes: Any) -> Lie:
    """An entry that the colluding client signed, but not an honest one."""
    who = {"client_id": client_id} if client_id else {}
    key = signing_key(client_id or LIAR)
    gone = "" if client_id else LIAR
    return lambda message: listed(
        message, name, replace(entry(message, name, LIAR), **who, **changes).sign(key), without=gone
    )


def resigned(who: str = LIAR, **changes: Any) -> Lie:
    return lambda message: replace(message, **changes).sign(signing_key(who))


def unsigned(**changes: Any) -> Lie:
    return lambda message: replace(message, **changes)


def dealt(message: EncryptedShares, bundles: Iterable[Bundle]) -> EncryptedShares:
    """Other bundles under a header that commits to them."""
    ordered = tuple(bundles)
    header = replace(message.header, digests=b"".join(bundle.digest() for bundle in ordered))
    return EncryptedShares(header.sign(signing_key(header.client_id)), ordered)


def headed(**changes: Any) -> Lie:
    return lambda message: replace(
        message, header=replace(message.header, **changes).sign(signing_key(message.header.client_id))
    )


def first_bundle(**changes: Any) -> Lie:
    return lambda message: dealt(message, [replace(message.bundles[0], **changes), *message.bundles[1:]])


def inbox_with(bundle: Callable[[Bundle], Bundle], dealer: str = LIAR) -> Lie:
    """The bundle of the liar changed, under a header that commits to it."""

    def lie(message: ShareInbox) -> ShareInbox:
        dealers = [header.client_id for header in message.headers if header.client_id != VICTIM]
        place = dealers.index(dealer)
        changed = bundle(message.bundles[place])
        header = entry(message, "headers", dealer)  # the victim's digest is the first: nobody comes before it
        header = replace(header, digests=changed.digest() + header.digests[32:]).sign(signing_key(dealer))
        bundles = (*message.bundles[:place], changed, *message.bundles[place + 1 :])
        return replace(listed(message, "headers", header), bundles=bundles)

    return lie


def unchecked(message: Any, **changes: Any) -> Any:
    """A copy that could not be built: a lie does not check its own shape before it is sent."""
    copy = object.__new__(type(message))
    for item in fields(message):
        object.__setattr__(copy, item.name, changes.get(item.name, getattr(message, item.name)))
    return copy


def received(result: Any, **changes: Any) -> Any:
    """A result whose receipt the server signed all the same."""
    return replace(result, receipt=replace(result.receipt, **changes).sign(SERVER))


def edited(name: str, change: Callable[[dict[str, bytes]], dict[str, bytes]]) -> Lie:
    return lambda message: resigned(**{name: change(dict(getattr(message, name)))})(message)


def first_flipped(values: dict[str, bytes]) -> dict[str, bytes]:
    (client_id, value), *rest = values.items()
    return {client_id: flip(value), **dict(rest)}


def both_lists(message: Any) -> Any:
    both = dict(sorted({**message.self_seed_shares, **message.mask_key_shares}.items()))
    return unchecked(message, self_seed_shares=both, mask_key_shares=both)


class Liars:
    """Writes one file per lie and insists on the check that has to fire."""

    def __init__(self, files: Files) -> None:
        self.files = files

    def client(
        self, check: str, name: str, operation: str, lie: Lie, comment: str, base: str = BASE, due: str = ""
    ) -> None:
        """The server tells the victim a lie.

        Args:
            check: that fires.
            name: of the file, after the check.
            operation: whose input is the lie.
            lie: changes the honest message.
            comment: one sentence.
            base: the round that is replayed up to this point.
            due: operation before which the lie comes, if another.
        """
        run = self.files.runs[base]
        honest = wire.decode_from_server(run.input_of(run.index(operation, VICTIM)))
        told = lie(honest)
        data = told if isinstance(told, bytes) else wire.encode(told)
        self.told(check, name, run, run.index(due or operation, VICTIM), operation, data, comment)

    def told(
        self, check: str, name: str, base: Run, replayed: int, operation: str, data: bytes, comment: str, **more: Any
    ) -> None:
        run = base.branch(replayed)
        run.do(operation, VICTIM, data=data, name="lie" if data else "", **more)
        self.write(check, name, base, run, replayed, comment)

    def server(
        self, check: str, name: str, kind: str, lie: Lie, comment: str, base: str = BASE, sender: str = "", at: str = ""
    ) -> None:
        """A client tells the server a lie; the round then ends as if nothing had been.

        Args:
            check: that fires.
            name: of the file, after the check.
            kind: of message that is due from the liar.
            lie: changes its honest message.
            comment: one sentence.
            base: the round that is replayed up to this point.
            sender: as the transport authenticated it; the liar itself where empty.
            at: kind of the honest message that is changed, if another.
        """
        run = self.files.runs[base]
        who = min(LIAR, run.setting.ids[-1])
        replayed = run.index("server_receive", who, kind)
        honest = wire.decode_from_client(run.messages[f"{at or kind}.{who}"])
        told = lie(honest)
        again = run.branch(replayed)
        again.do(
            "server_receive", sender or who, data=told if isinstance(told, bytes) else wire.encode(told), name="lie"
        )
        self.write(check, name, run, again, replayed, comment, True)

    def write(
        self, check: str, name: str, base: Run, run: Run, replayed: int, comment: str, resumes: bool = False
    ) -> None:
        fired = run.operations[-1].get("check")
        assert fired == check, f"{name}: {fired} fired instead of {check}"
        self.files.branch(f"bad_{check.lower().replace('-', '')}_{name}", base, run, replayed, comment, resumes)

    def whole(self, check: str, name: str, run: Run, comment: str) -> None:
        """A file of its own: the lie changes everything after it."""
        fired = run.operations[-1].get("check")
        assert fired == check, f"{name}: {fired} fired instead of {check}"
        run.name = f"bad_{check.lower().replace('-', '')}_{name}"
        self.files.write(run, comment, False)


def lying_servers(liars: Liars) -> None:
    files = liars.files
    base, small = files.runs[BASE], files.runs["round_n3_b32"]
    client = liars.client

    # RoundStart and the durable marks
    start, first = wire.decode_from_server(start_message()), base.index("advertise_keys", VICTIM)
    receipt = base.views[0]["Result"].receipt
    second = start_message(2, receipt.head, (receipt,))
    third = replace(receipt, round_number=2, previous_head=receipt.head, head=OTHER)

    def starts(check: str, name: str, data: Any, comment: str, at: int = first) -> None:
        encoded = data if isinstance(data, bytes) else wire.encode(data)
        liars.told(check, name, base, at, "open_round", encoded, comment)

    starts("C-01", "start_forged", replace(start, model_hash=OTHER), "Another model, after it was signed.")
    starts("C-01", "start_by_client", start.sign(signing_key(LIAR)), "A round start that a client signed.")
    forged_receipt = replace(receipt, total_hash=OTHER)
    starts("C-01", "receipt_forged", start_message(2, receipt.head, (forged_receipt,)), "A receipt of another sum.")
    starts("C-02", "other_run", start_message(run="run-2"), "A round of a run that is not pinned.")
    starts("C-04", "other_head", start_message(head=OTHER), "A previous head that is not in the log.")
    starts("C-04", "round_zero", start_message(0), "A round number that does not lie above the log.")
    starts("C-04", "receipt_missing", start_message(2, receipt.head), "A head without the receipt that leads to it.")
    gap = start_message(3, third.head, (third.sign(SERVER),))
    starts("C-04", "receipt_gap", gap, "A receipt that does not continue the log.")
    wrong = replace(receipt, head=OTHER).sign(SERVER)
    starts("C-04", "receipt_head", start_message(2, OTHER, (wrong,)), "A receipt whose head does not follow from it.")
    released = base.index("conclude", VICTIM)
    starts("C-05", "burned", start_message(2), "A round in which the site released shares is called burned.", released)
    starts("C-05", "not_replayed", second, "A round whose transcript the site has not replayed.", released)
    joined = base.index("share_keys", VICTIM)
    liars.told("C-03", "joined_before", base, joined, "advertise_keys", b"", "The same attempt, a second time.")

    run = Run("bad_c14_contributed_before", Setting(), files.envelopes("bad_c14_contributed_before"))
    for attempt in (0, 1):
        run.open(attempt=attempt)
        run.play(attempt, until="mask_input")
    liars.whole("C-14", "contributed_before", run, "A later attempt at a round number that was contributed to.")

    concluding = small.index("conclude", VICTIM)
    run = small.branch(concluding)
    done = small.views[0]["Result"].receipt
    run.do("mark_replayed", VICTIM, round_number=1)
    run.do("open_round", VICTIM, data=start_message(2, done.head, (done,)), name="start")
    run.do("conclude", VICTIM, data=small.input_of(concluding))
    liars.write("C-22", "finished_before", small, run, concluding, "A result of a round that the log already holds.")

    # Roster
    def copied(message: Roster) -> Roster:
        return colluding("advertisements", mask_dh_pk=entry(message, "advertisements", "site-b").mask_dh_pk)(message)

    def doubled(message: Roster) -> Roster:
        return colluding("advertisements", mask_dh_pk=entry(message, "advertisements", LIAR).channel_pk)(message)

    def earlier(message: Roster) -> Roster:
        own, suite = entry(message, "advertisements", VICTIM), base.setting.suite
        with randomness("keys that site-a lost", []):
            channel, mask = ChannelKey(suite), MaskKey(suite)
        new = replace(own, channel_pk=channel.public, mask_dh_pk=mask.dh_public).sign(signing_key(VICTIM))
        return listed(message, "advertisements", new)

    def unreduced(message: Roster) -> Roster:
        theirs = entry(message, "advertisements", "site-c")
        key = b"\xff\xff\xff" + theirs.mask_kem_pk[3:]
        return listed(message, "advertisements", replace(theirs, mask_kem_pk=key).sign(signing_key("site-c")))

    roster: list[tuple[str, str, Lie, str]] = [
        ("C-06", "unpinned", colluding("advertisements", "site-x"), "An id that nobody pinned."),
        ("C-06", "other_slot", colluding("advertisements", slot=OTHER), "An advertisement for another slot."),
        ("C-06", "forged", forged("advertisements", nonce=bytes(16)), "An advertisement changed after it was signed."),
        (
            "C-06",
            "liar_for_honest",
            lambda m: listed(m, "advertisements", entry(m, "advertisements", "site-b").sign(signing_key(LIAR))),
            "An advertisement that somebody else signed.",
        ),
        ("C-07", "zero_point", colluding("advertisements", mask_dh_pk=bytes(32)), "A mask key of low order."),
        (
            "C-07",
            "order_eight",
            colluding(
                "advertisements",
                channel_pk=bytes.fromhex("e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800"),
            ),
            "A channel key of order eight.",
        ),
        (
            "C-07",
            "noncanonical",
            colluding("advertisements", channel_pk=b"\xf6" + b"\xff" * 30 + b"\x7f"),
            "A channel key at or above the prime.",
        ),
        (
            "C-07",
            "high_bit",
            colluding("advertisements", channel_pk=b"\x09" + bytes(30) + b"\x80"),
            "A channel key with the unused bit set.",
        ),
        ("C-07", "other_suite", colluding("advertisements", mask_kem_pk=bytes(1216)), "A key of the other suite."),
        ("C-07", "copied", copied, "The liar advertises another client's key."),
        ("C-07", "doubled", doubled, "One key for two purposes."),
        ("C-08", "absent", lambda m: listed(m, "advertisements", without=VICTIM), "A roster without its reader."),
        ("C-08", "earlier", earlier, "The reader's keys from before its store was lost."),
        ("C-21", "roster", lambda m: Roster(m.advertisements[:3]), "Too few in U1."),
        (
            "M-01",
            "roster_unsorted",
            lambda m: unchecked(m, advertisements=m.advertisements[::-1]),
            "Ids in another order.",
        ),
        (
            "M-01",
            "roster_twice",
            lambda m: unchecked(m, advertisements=(m.advertisements[0], *m.advertisements)),
            "An id twice.",
        ),
        (
            "M-01",
            "nonce_short",
            lambda m: unchecked(m, advertisements=(unchecked(m.advertisements[0], nonce=b"x"), *m.advertisements[1:])),
            "A nonce of one byte.",
        ),
        ("W-01", "server_truncated", lambda m: wire.encode(m)[:-1], "The last byte is missing."),
        ("W-01", "server_client", lambda m: wire.encode(m.advertisements[0]), "A message of the other side."),
        ("W-01", "server_unknown_field", lambda m: wire.encode(m) + b"\xa2\x06\x01x", "A field that no message has."),
        ("W-01", "server_empty", lambda m: b"\x52\x80\x00", "An empty roster whose length is spelt in two bytes."),
    ]
    for check, name, lie, comment in roster:
        client(check, name, "share_keys", lie, comment)
    client("C-07", "unreduced", "share_keys", unreduced, "An ML-KEM key with a coefficient of 4095.", HYBRID_BASE)

    # ShareInbox
    def own_header(message: ShareInbox) -> ShareInbox:
        own = replace(entry(message, "headers", VICTIM), self_commitment=OTHER)
        return listed(message, "headers", own.sign(signing_key(VICTIM)))

    def fewer(message: ShareInbox) -> ShareInbox:
        return colluding("headers", digests=entry(message, "headers", LIAR).digests[:-32])(message)

    def sealed(shares: Callable[[bytes], bytes]) -> Lie:
        """The liar seals something else to the victim, and commits to that."""
        view = base.views[0]["Roster"]
        slot, public = view.by_id[VICTIM].slot, view.by_id[VICTIM].channel_pk
        info = envelope_info("shares", slot, view.hash, LIAR, VICTIM)

        def bundle(old: Bundle) -> Bundle:
            plaintext = shares(base.openers[public](info, old.shares))
            sealing.openers = base.openers
            commitments = {
                "mask_key_commitment": share_commitment(slot, view.hash, LIAR, VICTIM, "s", plaintext[:33]),
                "self_seed_commitment": share_commitment(slot, view.hash, LIAR, VICTIM, "b", plaintext[33:]),
            }
            return replace(old, shares=sealing.seal(base.setting.suite, public, info, plaintext), **commitments)

        return inbox_with(bundle)

    sealing = Run("", base.setting, [])

    def committed(name: str) -> Lie:
        return inbox_with(lambda bundle: replace(bundle, **{name: flip(getattr(bundle, name))}))

    def of_another(message: ShareInbox) -> ShareInbox:
        return inbox_with(lambda bundle: replace(bundle, shares=message.bundles[0].shares))(message)

    inbox: list[tuple[str, str, Lie, str]] = [
        ("C-09", "other_roster", colluding("headers", roster1=OTHER), "A header for another roster."),
        ("C-09", "other_slot", colluding("headers", slot=OTHER), "A header for another slot."),
        ("C-09", "forged", forged("headers", self_commitment=OTHER), "A header changed after it was signed."),
        ("C-10", "outsider", colluding("headers", "site-x"), "A header of a client that is not in the roster."),
        ("C-10", "digests", fewer, "A header with too few digests."),
        ("C-10", "absent", lambda m: ShareInbox(m.headers[1:], m.bundles), "Headers without the reader's own."),
        ("C-10", "own_changed", own_header, "Another header of the reader's own."),
        ("C-10", "bundles", lambda m: replace(m, bundles=m.bundles[1:]), "A bundle too few."),
        (
            "C-11",
            "swapped",
            lambda m: replace(m, bundles=(m.bundles[1], m.bundles[0], *m.bundles[2:])),
            "Two bundles in each other's place.",
        ),
        (
            "C-11",
            "altered",
            lambda m: replace(m, bundles=(replace(m.bundles[0], shares=flip(m.bundles[0].shares)), *m.bundles[1:])),
            "An envelope that the server changed.",
        ),
        (
            "C-12",
            "tampered",
            inbox_with(lambda bundle: replace(bundle, shares=flip(bundle.shares))),
            "An envelope that does not open.",
        ),
        ("C-12", "resent", of_another, "Another dealer's envelope, sent as one's own."),
        ("C-12", "mask_key_commitment", committed("mask_key_commitment"), "A share of s that misses its commitment."),
        ("C-12", "self_seed_commitment", committed("self_seed_commitment"), "A share of b that misses its commitment."),
        (
            "C-12",
            "outside_field",
            sealed(lambda p: PRIME.to_bytes(33, "big") + p[33:]),
            "A share that equals the prime, with its commitment.",
        ),
        ("C-12", "too_long", sealed(lambda p: p + b"\0"), "A share of 34 bytes, with its commitment."),
        ("C-21", "dealers", lambda m: ShareInbox(m.headers[:3], m.bundles[:2]), "Too few dealers."),
        (
            "M-01",
            "digests_uneven",
            lambda m: unchecked(m, headers=(*m.headers[:-1], unchecked(m.headers[-1], digests=bytes(33)))),
            "Digests that are not 32 bytes each.",
        ),
    ]
    for check, name, lie, comment in inbox:
        sealing.envelopes = files.envelopes(f"bad_{check.lower().replace('-', '')}_{name}")
        client(check, name, "report", lie, comment)
    # Positions 1 and 3: the larger id deals.
    pair = inbox_with(lambda bundle: replace(bundle, pair=flip(bundle.pair)), "site-c")
    client("C-12", "pair", "report", pair, "A sealed pair secret that does not open.", HYBRID_BASE)
    pair = inbox_with(lambda bundle: replace(bundle, pair_commitment=flip(bundle.pair_commitment)), "site-c")
    client("C-12", "pair_commitment", "report", pair, "A pair secret that misses its commitment.", HYBRID_BASE)

    # Reports, IncludedSet
    both: list[tuple[str, str, str, Lie, str]] = [
        ("C-13", "outsider", "mask_input", colluding("reports", "site-x"), "A report of a client that dealt nothing."),
        ("C-13", "other_headers", "mask_input", colluding("reports", roster2=OTHER), "A report on other headers."),
        ("C-13", "other_slot", "mask_input", colluding("reports", slot=OTHER), "A report for another slot."),
        ("C-13", "complaint", "mask_input", colluding("reports", complaint="site-b"), "A complaint, sold as a report."),
        ("C-13", "forged", "mask_input", forged("reports", signature=bytes(64)), "A report without its signature."),
        (
            "C-13",
            "own_changed",
            "mask_input",
            forged("reports", VICTIM, signature=bytes(64)),
            "The reader's own report, changed.",
        ),
        ("C-21", "sharers", "mask_input", lambda m: Reports(m.reports[:3]), "Too few sharers."),
        (
            "C-15",
            "other_round",
            "attest",
            colluding("inputs", round_id=OTHER),
            "An input for another round, say another model.",
        ),
        (
            "C-15",
            "other_sharers",
            "attest",
            colluding("inputs", sharers_hash=OTHER),
            "An input for another set of sharers.",
        ),
        ("C-15", "other_roster", "attest", colluding("inputs", roster2=OTHER), "An input for other headers."),
        ("C-15", "forged", "attest", forged("inputs", y_hash=OTHER), "An input whose hash the server changed."),
        ("C-16", "outsider", "attest", colluding("inputs", "site-x"), "An input of a client that is no sharer."),
        (
            "C-16",
            "own_changed",
            "attest",
            lambda m: listed(m, "inputs", replace(m.inputs[0], y_hash=OTHER).sign(signing_key(VICTIM))),
            "Another input of the reader's own.",
        ),
        ("C-21", "included", "attest", lambda m: IncludedSet(m.inputs[:3]), "Too few inputs."),
        ("M-01", "inputs_none", "attest", lambda m: unchecked(m, inputs=()), "No inputs at all."),
        (
            "C-17",
            "too_few",
            "unmask",
            lambda m: replace(m, attestations=m.attestations[:3]),
            "One attestation short of a quorum.",
        ),
        ("C-17", "other_set", "unmask", colluding("attestations", attested=OTHER), "An attestation of another set."),
        (
            "C-17",
            "forged",
            "unmask",
            forged("attestations", signature=bytes(64)),
            "An attestation without its signature.",
        ),
        (
            "C-17",
            "not_included",
            "unmask",
            colluding("attestations", "site-e"),
            "An attestation of a client that dropped out.",
        ),
        (
            "C-18",
            "forged",
            "conclude",
            lambda m: replace(m, receipt=replace(m.receipt, signature=flip(m.receipt.signature))),
            "A receipt with a bit of its signature changed.",
        ),
        (
            "C-18",
            "by_client",
            "conclude",
            lambda m: replace(m, receipt=m.receipt.sign(signing_key(LIAR))),
            "A receipt that a client signed.",
        ),
        (
            "C-19",
            "other_sum",
            "conclude",
            lambda m: replace(m, total=flip(m.total)),
            "A sum that is not the receipt's.",
        ),
        ("C-19", "other_head", "conclude", lambda m: received(m, head=OTHER), "A head that does not follow."),
        ("C-19", "other_set", "conclude", lambda m: received(m, attested=OTHER), "A receipt for another set."),
        (
            "C-19",
            "other_round",
            "conclude",
            lambda m: received(m, round_number=2),
            "A receipt for another round number.",
        ),
    ]
    for check, name, operation, lie, comment in both:
        client(check, name, operation, lie, comment)
    late = lambda m: listed(m, "reports", replace(m.reports[0], client_id="site-e").sign(signing_key("site-e")))  # noqa: E731
    client(
        "C-13",
        "no_dealer",
        "mask_input",
        late,
        "A report of a client in U1 that dealt nothing.",
        "round_n5_silent_share_keys",
    )
    late = lambda m: listed(m, "inputs", replace(m.inputs[0], client_id="site-e").sign(signing_key("site-e")))  # noqa: E731
    client("C-16", "no_sharer", "attest", late, "An input of a dealer that never reported.", "round_n5_silent_report")
    client("C-20", "early", "attest", lambda m: m, "Inputs before the reports.", due="mask_input")
    again = forged("advertisements", nonce=bytes(16))
    client("C-20", "other_roster", "share_keys", again, "A second, different roster.", due="report")


def lying_clients(liars: Liars) -> None:
    files = liars.files
    server = liars.server
    base = files.runs[BASE]

    def others(kind: str) -> Lie:
        return lambda _: base.messages[f"{kind}.site-b"]

    def copied(message: AdvertiseKeys) -> AdvertiseKeys:
        theirs: Any = wire.decode_from_client(base.messages["AdvertiseKeys.site-b"])
        return resigned(mask_dh_pk=theirs.mask_dh_pk)(message)

    def altered(message: EncryptedShares) -> EncryptedShares:
        return replace(message, header=replace(message.header, self_commitment=OTHER))

    def cut(message: Any) -> Any:
        return resigned(y=bytes(message.y)[:-1])(message)

    late = lambda m: replace(m, client_id="site-e").sign(signing_key("site-e"))  # noqa: E731
    lies: list[tuple[str, str, str, Lie, str]] = [
        ("S-03", "keys", "AdvertiseKeys", others("AdvertiseKeys"), "Another client's advertisement."),
        ("S-03", "shares", "EncryptedShares", others("EncryptedShares"), "Another client's bundles."),
        ("S-03", "input", "MaskedInput", others("MaskedInput"), "Another client's masked input."),
        ("S-03", "unmasking", "UnmaskingShares", others("UnmaskingShares"), "Another client's shares."),
        ("S-04", "other_slot", "AdvertiseKeys", resigned(slot=OTHER), "An advertisement for another slot."),
        ("S-04", "forged", "AdvertiseKeys", unsigned(nonce=bytes(16)), "An advertisement changed after it was signed."),
        ("S-05", "zero_point", "AdvertiseKeys", resigned(mask_dh_pk=bytes(32)), "A mask key of low order."),
        (
            "S-05",
            "noncanonical",
            "AdvertiseKeys",
            resigned(channel_pk=b"\xff" * 32),
            "A channel key at or above the prime.",
        ),
        ("S-05", "short", "AdvertiseKeys", resigned(channel_pk=b""), "No channel key."),
        ("S-05", "copied", "AdvertiseKeys", copied, "Another client's key: the copier is to blame."),
        ("S-06", "other_roster", "EncryptedShares", headed(roster1=OTHER), "A header for another roster."),
        ("S-06", "other_slot", "EncryptedShares", headed(slot=OTHER), "A header for another slot."),
        ("S-06", "forged", "EncryptedShares", altered, "A header changed after it was signed."),
        (
            "S-07",
            "swapped",
            "EncryptedShares",
            lambda m: replace(m, bundles=(m.bundles[1], m.bundles[0], *m.bundles[2:])),
            "Bundles in another order than their digests.",
        ),
        ("S-08", "too_few", "EncryptedShares", lambda m: dealt(m, m.bundles[:-1]), "A bundle too few."),
        ("S-08", "too_many", "EncryptedShares", lambda m: dealt(m, [*m.bundles, m.bundles[0]]), "A bundle too many."),
        (
            "S-08",
            "envelope_long",
            "EncryptedShares",
            lambda m: first_bundle(shares=m.bundles[0].shares + b"x")(m),
            "An envelope of the wrong length.",
        ),
        (
            "S-08",
            "pair_unasked",
            "EncryptedShares",
            first_bundle(pair_commitment=OTHER),
            "A pair commitment in the X25519 suite.",
        ),
        ("S-09", "other_headers", "ShareReport", resigned(roster2=OTHER), "A report on other headers."),
        ("S-09", "about_outsider", "ShareReport", resigned(complaint="site-x"), "A complaint about an outsider."),
        ("S-09", "about_itself", "ShareReport", resigned(complaint=LIAR), "A complaint about itself."),
        ("S-09", "forged", "ShareReport", unsigned(complaint="site-b"), "A complaint without a signature over it."),
        (
            "S-10",
            "other_round",
            "MaskedInput",
            resigned(round_id=OTHER),
            "An input for another round, say another model.",
        ),
        ("S-10", "other_sharers", "MaskedInput", resigned(sharers_hash=OTHER), "An input for another set of sharers."),
        ("S-10", "forged", "MaskedInput", lambda m: replace(m, y=flip(m.y)), "An input changed after it was signed."),
        (
            "S-11",
            "long",
            "MaskedInput",
            lambda m: resigned(y=bytes(m.y) + bytes(4))(m),
            "A vector of one value too many.",
        ),
        ("S-11", "short", "MaskedInput", cut, "A vector of one byte too few."),
        ("S-12", "other_set", "Attestation", resigned(attested=OTHER), "An attestation of another set."),
        ("S-12", "forged", "Attestation", unsigned(signature=bytes(64)), "An attestation without its signature."),
        ("S-13", "other_round", "UnmaskingShares", resigned(round_id=OTHER), "Shares for another round."),
        ("S-13", "other_set", "UnmaskingShares", resigned(attested=OTHER), "Shares for another set."),
        ("S-13", "forged", "UnmaskingShares", unsigned(self_seed=OTHER), "Shares changed after they were signed."),
        (
            "S-14",
            "too_few",
            "UnmaskingShares",
            edited("self_seed_shares", lambda d: dict(list(d.items())[1:])),
            "A share of b too few.",
        ),
        (
            "S-14",
            "none_of_the_dropped",
            "UnmaskingShares",
            edited("mask_key_shares", lambda d: {}),
            "No share of the dropped.",
        ),
        (
            "S-14",
            "of_the_dropped",
            "UnmaskingShares",
            lambda m: resigned(self_seed_shares={**m.self_seed_shares, **m.mask_key_shares}, mask_key_shares={})(m),
            "A share of b of the dropped.",
        ),
        ("S-15", "other_seed", "UnmaskingShares", resigned(self_seed=OTHER), "Another b than the one committed to."),
        ("S-16", "self_seed", "UnmaskingShares", edited("self_seed_shares", first_flipped), "A wrong share of b."),
        ("S-16", "mask_key", "UnmaskingShares", edited("mask_key_shares", first_flipped), "A wrong share of s."),
        ("S-21", "other_head", "Confirmation", resigned(head=OTHER), "A confirmation of another head."),
        ("S-21", "forged", "Confirmation", unsigned(signature=bytes(64)), "A confirmation without its signature."),
        ("M-01", "slot_short", "AdvertiseKeys", lambda m: unchecked(m, slot=bytes(31)), "A slot of 31 bytes."),
        (
            "M-01",
            "commitment_short",
            "EncryptedShares",
            lambda m: replace(m, bundles=(unchecked(m.bundles[0], mask_key_commitment=b""), *m.bundles[1:])),
            "A commitment without bytes.",
        ),
        ("M-01", "both_kinds", "UnmaskingShares", both_lists, "Shares of both kinds for one client."),
        (
            "M-01",
            "outside_field",
            "UnmaskingShares",
            lambda m: unchecked(m, mask_key_shares={"site-e": PRIME.to_bytes(33, "big")}),
            "A share that equals the prime.",
        ),
        (
            "M-01",
            "pair_of_the_included",
            "UnmaskingShares",
            lambda m: unchecked(m, pair_secrets={"site-b": OTHER}),
            "A pair secret of an included client.",
        ),
        (
            "M-01",
            "shares_unsorted",
            "UnmaskingShares",
            lambda m: unchecked(m, self_seed_shares=dict(reversed(list(m.self_seed_shares.items())))),
            "Shares in another order.",
        ),
        ("W-01", "truncated", "AdvertiseKeys", lambda m: wire.encode(m)[:-1], "The last byte is missing."),
        ("W-01", "trailing", "ShareReport", lambda m: wire.encode(m) + b"\0", "A byte too many."),
        ("W-01", "twice", "Attestation", lambda m: wire.encode(m) * 2, "The message twice."),
        (
            "W-01",
            "overlong",
            "Confirmation",
            lambda m: b"\x3a\xf0\x80\x00" + wire.encode(m)[2:],
            "A length that is spelt in more bytes than it takes.",
        ),
        ("W-01", "of_the_server", "AdvertiseKeys", lambda m: base.messages["Roster"], "A message of the other side."),
        ("M-01", "empty", "Attestation", lambda m: b"\x2a\x00", "A message without fields."),
        (
            "W-01",
            "no_vector",
            "MaskedInput",
            lambda m: wire.encode(m)[: -2 - len(m.y)],
            "A masked input without its vector.",
        ),
        (
            "W-01",
            "vector_unasked",
            "Attestation",
            lambda m: wire.encode(m) + b"\x42\x01x",
            "A vector where none belongs.",
        ),
    ]
    for check, name, kind, lie, comment in lies:
        server(check, name, kind, lie, comment)
    server("S-01", "stranger", "AdvertiseKeys", lambda m: m, "A client that is not in the roster.", sender="site-x")
    server("S-01", "other_kind", "ShareReport", lambda m: m, "Keys where a report is due.", at="AdvertiseKeys")
    server(
        "S-01",
        "late_input",
        "Attestation",
        late,
        "A masked input after U3 was fixed.",
        sender="site-e",
        at="MaskedInput",
    )
    server("S-01", "dropped", "UnmaskingShares", late, "Shares of a client that dropped out.", sender="site-e")

    def second(kind: str, lie: Lie) -> None:
        """The honest message is in already: the lie is a second, different one."""
        replayed = base.index("server_receive", LIAR, kind) + 1
        run = base.branch(replayed)
        told = lie(wire.decode_from_client(base.messages[f"{kind}.{LIAR}"]))
        run.do("server_receive", LIAR, data=wire.encode(told), name="lie")
        liars.write("S-02", kind.lower(), base, run, replayed, "A second, different message.", True)

    second("AdvertiseKeys", resigned(nonce=bytes(16)))
    second("ShareReport", resigned(complaint="site-b"))
    second("MaskedInput", lambda m: resigned(y=flip(m.y))(m))
    second("UnmaskingShares", resigned(self_seed=OTHER))

    padded = lambda m: resigned("site-c", y=bytes(m.y)[:-1] + bytes([m.y[-1] | 0x80]))(m)  # noqa: E731
    server("S-11", "padding", "MaskedInput", padded, "A bit set in the padding.", SMALL, "site-c")

    # At position 3, site-c deals the pair with 1 (the larger id, for the difference is even) but not the one with 2.
    missing = first_bundle(pair=b"", pair_commitment=b"")
    server("S-08", "pair_missing", "EncryptedShares", missing, "No pair secret where one is due.", HYBRID_BASE)

    def unasked(message: EncryptedShares) -> EncryptedShares:
        due, other = message.bundles
        return dealt(message, [due, replace(other, pair=due.pair, pair_commitment=OTHER)])

    server("S-08", "pair_not_due", "EncryptedShares", unasked, "A pair secret that the peer deals.", HYBRID_BASE)
    hybrid = "round_n6_hybrid"
    without = edited("pair_secrets", lambda d: {})
    server("S-14", "pair_secrets", "UnmaskingShares", without, "No pair secret with the dropped.", hybrid)
    wrong = edited("pair_secrets", first_flipped)
    server("S-17", "pair_secret", "UnmaskingShares", wrong, "A wrong pair secret.", hybrid)


def crooked_dealers(liars: Liars) -> None:
    """A dealer that shares something else, consistently: it shows when its shares are opened."""
    files = liars.files

    def run_of(check: str, name: str, **setting: Any) -> Run:
        full = f"bad_{check.lower().replace('-', '')}_{name}"
        run = Run(full, Setting(**setting), files.envelopes(full))
        run.open()
        return run

    def dealing(which: int, shares: Callable[[int], int]) -> Any:
        """A `split` that deals other shares the first (s) or second (b) time that site-d calls it."""
        calls: list[int] = []

        def crooked(secret: bytes, threshold: int, positions: Iterable[int]) -> list[bytes]:
            honest = split(secret, threshold, list(positions))
            if 4 in positions:
                return honest
            calls.append(1)
            return [shares(x).to_bytes(33, "big") for x in positions] if len(calls) == which + 1 else honest

        return mock.patch.object(secagg.client, "split", crooked)

    cases: list[tuple[str, int, Callable[[int], int], str, str]] = [
        ("mask_key", 0, lambda x: 12345 + x, "mask_input", "The shares of site-d open to another s than its keys."),
        ("self_seed", 1, lambda x: 12345 + x, "unmask", "The shares of site-d open to another b than it committed to."),
        ("too_large", 0, lambda x: 2**256 + x, "mask_input", "The shares of site-d open to no 32-byte secret."),
    ]
    for name, which, shares, silent, comment in cases:
        run = run_of("S-18", name, n=4)
        with dealing(which, shares):
            run.play(corrupt=LIAR, silent={LIAR: silent})
        liars.whole("S-18", name, run, comment)

    run = run_of("S-19", "slots", n=3)
    policy = run.setting.policy

    def lie(operation: str, party: str, message: Any) -> Any:
        if (operation, party) != ("mask_input", "site-c"):
            return message
        y = unpack(message.y, policy.length + policy.slots, policy.bits)
        y[-1] += np.uint32(1)
        said = resigned("site-c", y=pack(y, policy.bits))(message)
        run.sessions[0, "site-c"]._state.mine = said.acceptance()  # type: ignore[attr-defined]
        return said

    run.play(corrupt="site-c", lie=lie)
    liars.whole("S-19", "slots", run, "site-c adds one to its last constant slot.")

    run = run_of("S-20", "complaints", n=5)
    run.do("leave_out", pairs=[["site-a", "site-b"], ["site-c", "site-d"]])
    liars.whole("S-20", "complaints", run, "Two disjoint complaints, and at most one client is corrupt.")


# --- primitives ----------------------------------------------------------------------------------------------------


def succeeds(make: Callable[[], Json]) -> Json:
    """What came out, or that it was refused."""
    try:
        return make() | {"success": True}
    except (ValueError, SecAggError):
        return {"success": False}


def encodings() -> Iterator[Json]:
    def typed(value: Any) -> Json:
        if isinstance(value, bytes):
            return {"bytes": value.hex()}
        if isinstance(value, str):
            return {"text": value}
        return {"integer": value} if isinstance(value, int) else {"list": [typed(item) for item in value]}

    for fields_ in (
        [],
        ["", b"", []],
        ["site-a", b"\0\1", 0, 1, 2**64 - 1],
        [["a", "b"], "ab"],
        [["a"], ["b"], [["a", 7], ["b", bytes(32)]]],
        [bytes(range(256)) * 20, "after a long field"],
        [2**64],
        [-1],
        ["Zürich"],
    ):
        case = {"operation": "encode", "purpose": "example", "fields": [typed(value) for value in fields_]}
        encoded = lambda: {"output": encode("example", *fields_).hex(), "sha256": digest("example", *fields_).hex()}  # noqa: B023, E731
        yield case | succeeds(encoded)


def keystreams() -> Iterator[Json]:
    seed = drawn("keystream", 32)
    for start, length in ((0, 64), (5, 30), (CHUNK_BYTES - 16, 48), (CHUNK_BYTES, 16), (3 * CHUNK_BYTES - 1, 2)):
        output = keystream(seed, start, length).hex()
        yield {"operation": "keystream", "seed": seed.hex(), "start": start, "length": length, "output": output}
    for dtype, count in (("uint32", 5), ("uint64", 5), ("uint32", 2**16 + 3), ("uint64", 2**15 + 3)):
        add, subtract = [drawn(f"mask {i}", 32) for i in (1, 2)], [drawn("mask 3", 32)]
        vector = np.arange(count, dtype=dtype)
        apply_masks(vector, add, subtract)
        yield {
            "operation": "apply_masks",
            "word": dtype,
            "vector": f"0 to {count - 1}",
            "count": count,
            "add": [seed.hex() for seed in add],
            "subtract": [seed.hex() for seed in subtract],
            "first": vector[:5].tolist(),
            "last": vector[-5:].tolist(),
            "sha256": hashlib.sha256(vector.astype(vector.dtype.newbyteorder("<")).tobytes()).hexdigest(),
        }


def quantised() -> Iterator[Json]:
    for bits, value_bits in WIDTHS.items():
        for dtype in (np.float32, np.float64):
            setting = Setting(
                length=12, bits=bits, value_bits=value_bits, clip_range=0.75, weights={"site-a": 1.5, "site-b": 3.0}
            )
            update = np.array(setting.update("site-a")).astype(dtype)
            key = drawn(f"rounding {bits} {np.dtype(dtype)}", 32)
            output, rate = quantize(update, setting.policy, "site-a", Stream(key))
            yield {
                "operation": "quantize",
                "bits": bits,
                "value_bits": value_bits,
                "clip_range": 0.75,
                "weight": 1.5,
                "largest_weight": 3.0,
                "update": update.tolist(),
                "rounding_key": key.hex(),
                "output": output.tolist(),
                "clip_rate": rate,
            }


def packings() -> Iterator[Json]:
    for bits in range(8, 65):
        for count in (7, 2**16 + 5) if bits in (23, 63) else (7,):
            key = drawn(f"packing {bits}", 32)
            vector = (Stream(key).words64(count) & np.uint64(2**bits - 1)).astype(dtype_for(bits))
            packed = pack(vector, bits)
            case = {"operation": "pack", "bits": bits, "count": count, "values_keystream": key.hex()}
            if count < 100:
                case |= {"values": vector.tolist(), "output": packed.hex()}
            yield case | {"size": len(packed), "sha256": hashlib.sha256(packed).hexdigest()}
    for bits in (9, 23, 63):
        good = pack(np.ones(3, dtype_for(bits)), bits)
        for data in (good[:-1], good + b"\0", good[:-1] + bytes([good[-1] | 0x80]), good):
            read = lambda: {"output": unpack(data, 3, bits).tolist()}  # noqa: B023, E731
            yield {"operation": "unpack", "bits": bits, "count": 3, "input": data.hex()} | succeeds(read)


def shamirs() -> Iterator[Json]:
    for threshold, positions in ((1, [1]), (3, [1, 2, 3, 5]), (4, [2, 3, 7, 100, 256])):
        secret, draws = drawn(f"secret {threshold}", 32), []
        with randomness(f"polynomial {threshold}", draws):
            shares = split(secret, threshold, positions)
        yield {
            "operation": "split",
            "secret": secret.hex(),
            "threshold": threshold,
            "positions": positions,
            "coefficients": draws,
            "output": [share.hex() for share in shares],
        }
        held = dict(zip(positions, shares, strict=True))
        for subset in (positions, positions[-threshold:], positions[: threshold - 1]):
            given = {x: held[x] for x in subset}
            yield combined(given, threshold)
    too_large = (2**256).to_bytes(33, "big")
    yield combined({7: too_large}, 1)
    yield combined({7: (2**256 - 1).to_bytes(33, "big")}, 1)
    for share in (bytes(33), (PRIME - 1).to_bytes(33, "big"), PRIME.to_bytes(33, "big"), b"\xff" * 33, bytes(32)):
        yield {"operation": "is_share", "input": share.hex(), "output": is_share(share)}


def combined(shares: Mapping[int, bytes], threshold: int) -> Json:
    given = {str(x): share.hex() for x, share in shares.items()}
    case = {"operation": "combine", "shares": given, "threshold": threshold}
    return case | succeeds(lambda: {"output": combine(shares, threshold).hex()})


def derivations() -> Iterator[Json]:
    for suite in Suite:
        for party in ("site-a", "site-b"):
            seed = drawn(f"mask key of {party}", 32)
            key = MaskKey(suite, seed)
            with mock.patch("secrets.token_bytes", lambda _: seed):  # noqa: B023
                channel = ChannelKey(suite)
            yield {
                "operation": "keys_of_seed",
                "suite": suite.value,
                "seed": seed.hex(),
                "channel_pk": channel.public.hex(),
                "mask_dh_pk": key.dh_public.hex(),
                "mask_kem_pk": key.kem_public.hex(),
                "pair_secret_with": "site-z",
                "pair_secret": key.pair_secret("site-z").hex(),
            }
    slot, roster1, round_id, exchanged, secret = (drawn(name, 32) for name in ("slot", "roster1", "round", "dh", "r"))
    share = split_share()
    both = {"slot": slot.hex(), "roster1": roster1.hex()}
    for pair_secret in (b"", secret):
        for ids in (("site-a", "site-b"), ("site-b", "site-a")):
            yield {
                "operation": "pair_mask_seed",
                "roster1": roster1.hex(),
                "round": round_id.hex(),
                "ids": list(ids),
                "exchanged": exchanged.hex(),
                "pair_secret": pair_secret.hex(),
                "output": pair_mask_seed(roster1, round_id, ids, exchanged, pair_secret).hex(),
            }
    yield {
        "operation": "self_mask_seed",
        "roster1": roster1.hex(),
        "round": round_id.hex(),
        "id": "site-a",
        "self_seed": secret.hex(),
        "output": self_mask_seed(roster1, round_id, "site-a", secret).hex(),
    }
    yield {
        "operation": "self_commitment",
        "slot": slot.hex(),
        "id": "site-a",
        "self_seed": secret.hex(),
        "output": self_commitment(slot, "site-a", secret).hex(),
    }
    for kind in "sb":
        output = share_commitment(slot, roster1, "site-a", "site-b", kind, share).hex()
        ends = {"dealer": "site-a", "holder": "site-b", "kind": kind, "share": share.hex()}
        yield {"operation": "share_commitment"} | both | ends | {"output": output}
    yield {
        "operation": "pair_commitment",
        "slot": slot.hex(),
        "dealer": "site-b",
        "recipient": "site-a",
        "pair_secret": secret.hex(),
        "output": pair_commitment(slot, "site-b", "site-a", secret).hex(),
    }
    for purpose in ("shares", "pair"):
        output = envelope_info(purpose, slot, roster1, "site-a", "site-b").hex()
        ends = {"purpose": purpose, "sender": "site-a", "recipient": "site-b"}
        yield {"operation": "envelope_info"} | both | ends | {"output": output}
    for pair in (b"", b"sealed pair secret"):
        bundle = Bundle(b"sealed shares", pair, slot, roster1, round_id if pair else b"")
        values = {item.name: getattr(bundle, item.name).hex() for item in fields(bundle)}
        yield {"operation": "bundle_digest"} | values | {"output": bundle.digest().hex()}
    for bits in WIDTHS:
        policy = Setting(bits=bits, value_bits=WIDTHS[bits]).policy
        output = slot_values(policy, round_id).tolist()
        yield {"operation": "slots", "bits": bits, "round": round_id.hex(), "output": output}


def split_share() -> bytes:
    return int.from_bytes(drawn("share", 32), "big").to_bytes(33, "big")


PRIMITIVES = {
    "encoding": encodings,
    "keystream": keystreams,
    "quantize": quantised,
    "packing": packings,
    "shamir": shamirs,
    "derivations": derivations,
}


def generate(out: Path, recorded: Path | None) -> None:
    """Write every file.

    Args:
        out: folder to write to.
        recorded: folder whose envelopes are kept; None makes every envelope anew.
    """
    files = Files(recorded)
    for name, cases in PRIMITIVES.items():
        files.written[f"primitive_{name}"] = {"operations": list(cases())}
    rounds(files)
    liars = Liars(files)
    lying_servers(liars)
    lying_clients(liars)
    crooked_dealers(liars)
    for path in out.glob("*.json"):
        path.unlink()
    for name, content in files.written.items():
        (out / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=HERE, help="folder to write to")
    parser.add_argument("--fresh", action="store_true", help="seal every envelope anew")
    arguments = parser.parse_args()
    generate(arguments.out, None if arguments.fresh else HERE)
