"""Plays rounds with explicit randomness and writes down every operation; used by generate.py and lies.py.

Every draw follows from the name of the file that it is written to, so that a second run gives the same bytes. Sealed
envelopes take no randomness from us: one that is on file is kept if it opens to what is to be sealed, else a fresh one
takes its place. Must never: use a key or a draw of these files for anything else. The format is in README.md.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, fields
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
    accept_exposure,
    open_round,
    unchecked_round,
    wire,
)
from secagg.complaints import leave_out as meet
from secagg.encoding import digest
from secagg.errors import ExposureError, ProtocolError, SecAggError
from secagg.keys import ChannelKey, MaskKey, seal
from secagg.masking import pair_mask_seed, self_mask_seed, slot_mask, slot_values
from secagg.messages import AdvertiseKeys, EncryptedShares, Receipt, RoundStart, ShareInbox, SlotsFailed
from secagg.packing import unpack
from secagg.prg import Stream
from secagg.quantize import quantize
from secagg.roster import session_id
from secagg.shamir import PRIME, SHARE_BYTES

RUN = "run-1"
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
STEPS = list(SENDS)[:-1]
ANSWERS = {"mask_input": "Reports", "attest": "IncludedSet", "unmask": "Attestations", "conclude": "Result"}
"""What everybody is told before."""
MODEL, TASK = digest("example", "model"), digest("example", "task")
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
            "model_hash": MODEL.hex(),
            "task_hash": TASK.hex(),
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

    @property
    def session(self) -> bytes:
        return session_id(self.setting.policy, self.setting.roster)

    def _session(self, attempt: int, party: str) -> ClientSession:
        setting = self.setting
        opened = unchecked_round(self.contexts[attempt])
        session = ClientSession(setting.policy, party, signing_key(party), setting.roster, opened, self.stores[party])
        session.provide(np.array(setting.update(party)), "event", Stream(self.rounding_key(attempt, party)))
        self.sessions[attempt, party] = session
        return session

    def rounding_key(self, attempt: int, party: str) -> bytes:
        return drawn(f"{self.name}, rounding of {party} in attempt {attempt}", 32)

    def perform(self, operation: str, party: str, attempt: int, data: bytes, arguments: Json) -> Any:
        """What the operation gives: bytes, bytes by client, JSON or None."""
        if operation == "open_round":
            start = wire.decode_from_server(data)
            policy, roster = self.setting.policy, self.setting.roster
            hashes = {"model_hash": MODEL, "task_hash": TASK}
            return context_json(open_round(policy, roster, RUN, start, self.stores[party], **hashes).context)
        if operation == "mark_replayed":
            with self.stores[party].transaction() as marks:
                marks.replay(self.contexts[attempt].at(self.session), bytes.fromhex(arguments["round"]))
            return None
        if operation == "accept_exposure":
            return accept_exposure(self.stores[party], signing_key(party), party, bytes.fromhex(arguments["round"]))
        if operation == "leave_out":
            complaints = [tuple(pair) for pair in arguments["pairs"]]
            return sorted(meet(complaints, self.setting.policy.max_corrupt, choose=lambda _: 0).clients)
        if operation == "server_receive":
            reply = self.servers[attempt].receive(party, wire.decode_from_client(data))
            return reply and wire.encode(reply)
        if operation == "server_close":
            replies = self.servers[attempt].close_step()
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
            entry["success"] = True
            if result is not None:
                entry["output"] = self._written(operation, party, attempt, result)
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
        assert name not in self.messages, name
        self.messages[name] = data
        return name

    # --- sealed envelopes
    def _remember(self, message: AdvertiseKeys, draws: list[str]) -> None:
        """How to open what is sealed to these keys."""
        channel_seed, mask_seed = bytes.fromhex(draws[0]), bytes.fromhex(draws[1])
        with mock.patch("secrets.token_bytes", return_value=channel_seed):
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
            told = dict.fromkeys(told, self.messages[ANSWERS[since]])
        for step, operation in enumerate(STEPS[first:], first):
            said = {}
            if any(isinstance(wire.decode_from_server(data), SlotsFailed) for data in told.values() if data):
                operation = "show_slot_masks"
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
        again.openers = dict(self.openers)
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
            same = (entry["operation"], entry.get("party")) == (operation, party)
            if same and entry.get("input", "").startswith(kind):
                return index
        raise KeyError(operation, party, kind)

    def input_of(self, index: int) -> bytes:
        return self.messages[self.operations[index]["input"]]


def context_json(context: RoundContext) -> Json:
    values = {item.name: getattr(context, item.name) for item in fields(context)}
    return {name: value.hex() if isinstance(value, bytes) else value for name, value in values.items()}


def blamed(error: SecAggError) -> Json:
    if isinstance(error, ExposureError):
        return {"check": error.check, "culprits": [], "rounds": [round_id.hex() for round_id in error.round_ids]}
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
                dealer, recipient = roster.pair(u, v)
                secret = keys[dealer].pair_secret(recipient)
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
        "inputs_hash": included.inputs_hash.hex(),
        "attested": included.attested.hex(),
        "pair_secrets": pair_secrets,
        "pair_mask_seeds": pairs,
        "pair_slot_masks": {ids: slot_mask(bytes.fromhex(seed), policy).hex() for ids, seed in pairs.items()},
        "self_mask_seeds": {i: self_mask_seed(roster.hash, round_id, i, b).hex() for i, b in seeds.items()},
        "slots": slot_values(policy, round_id).tolist(),
        "quantised": quantised,
        "masked": masked,
        "sum": unpack(result.total, policy.length + policy.slots, policy.bits).tolist(),
        "total_hash": result.total_hash.hex(),
        "head": result.receipt.head.hex(),
    }


def start_message(
    number: int = 1,
    head: bytes = bytes(32),
    missed: tuple[Receipt, ...] = (),
    run: str = RUN,
    attempt: int = 0,
    model: bytes = MODEL,
    task: bytes = TASK,
) -> bytes:
    return wire.encode(RoundStart(run, number, attempt, model, task, head, missed).sign(SERVER))


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
