"""No secret in anything that the process says: known secrets are planted and everything that comes out is searched.

What is planted: every draw from the operating system, every derived key, shared secret and share, signing keys, and the
clients' updates as floats and as quantised integers. What is searched: wire bytes, exceptions with their chains,
attributes and tracebacks, logs, warnings, standard output and error, reprs, pickles, the SQLite file and the
transcript; in raw bytes and in every spelling that a careless line of code could give them. Half a secret counts.

Allowed is what the protocol publishes: in the message of the Unmasking round a client's own self seed and the shares
and pair secrets that it releases there, and in the answer to Blame its slot masks. Those are no secrets, yet they are
not shown before. Specification: docs/spec.md, section "Security considerations".
"""

import base64
import contextlib
import copy
import dataclasses
import hashlib
import logging
import pickle
import secrets
import subprocess
import sys
import traceback
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

import secagg.client
import secagg.keys
import secagg.masking
import secagg.shamir
import tests.support.cohort
from secagg import (
    ClientSession,
    ConfigError,
    MemoryStore,
    SecAggError,
    ServerSession,
    SigningKey,
    Suite,
    accept_exposure,
    wire,
)
from secagg.cli import app
from secagg.keys import ChannelKey, MaskKey, Secret
from secagg.merkle import tree
from secagg.messages import EncryptedShares, SlotMasks, UnmaskingShares
from secagg.prg import Stream
from secagg.quantize import quantize
from secagg.rpc.frames import Message, Received
from secagg.shamir import SHARE_BYTES
from secagg.sqlite import SqliteStore
from secagg.steps import BLAME, State
from secagg.store import Marks
from secagg.transcript_files import Recorder
from tests.support.cohort import SENDING, SERVER_KEY, Cohort, Play, alone
from tests.support.hostile import flip

# --- Spellings ---------------------------------------------------------------------------------------------------

HALF = 16


def spellings(secret: bytes) -> Iterator[bytes]:
    """Every way in which these bytes are likely to be written, but for the ends that depend on what is around them."""
    number, mirrored = int.from_bytes(secret, "big"), int.from_bytes(secret, "little")
    yield secret
    yield secret[::-1]
    for text in (secret.hex(), secret.hex(":"), secret.hex(" ")):
        yield text.encode()
        yield text.upper().encode()
    for encode in (base64.b64encode, base64.urlsafe_b64encode):
        for before in range(3):
            text = encode(bytes(before) + secret)
            yield text[4 if before else 0 : len(text) // 4 * 4 - 4]
    yield base64.b32encode(secret)[: len(secret) * 8 // 5]
    yield repr(secret)[2:-1].encode()
    yield repr(bytearray(secret))[12:-2].encode()
    yield str(number).encode()
    yield str(mirrored).encode()
    yield f"{number:x}".encode()
    yield ", ".join(map(str, secret)).encode()
    yield ",".join(map(str, secret)).encode()
    yield " ".join(f"{byte:3d}" for byte in secret).strip().encode()


def needles(secret: bytes) -> set[bytes]:
    """What must not be found: the secret and either half of it. Constant halves are no secrets."""
    parts = [secret, secret[:HALF], secret[-HALF:]]
    return {spelling for part in parts if len(set(part)) > 5 for spelling in spellings(part) if len(spelling) >= 8}


def numbers(values: np.ndarray) -> set[bytes]:
    """Needles of an update: its bytes, a value to eight digits or more, and neighbours to six."""
    rounded = [[f"{v:.6f}", f"{v:.7g}"] for v in values.tolist()]
    pairs = {
        f"{a}{gap}{b}" for x, y in pairwise(rounded) for a, b in zip(x, y, strict=True) for gap in (", ", ",", " ")
    }
    alone = {text for v in values.tolist() for text in (repr(v), f"{v:.8f}", v.hex())}
    return {text.encode() for text in pairs | alone} | needles(values.tobytes())


def find(wanted: Mapping[bytes, str], said: bytes) -> set[str]:
    """Labels of the needles that occur: a look at every window of 8 bytes at once, then at what begins like one."""
    starts = {}
    for needle, label in wanted.items():
        starts.setdefault(int.from_bytes(needle[:8], "little"), []).append((needle, label))
    keys = np.array(sorted(starts), np.uint64)
    found = set()
    for shift in range(8):
        windows = np.frombuffer(said, "<u8", (len(said) - shift) // 8, shift) if len(said) >= 8 + shift else keys[:0]
        places = np.minimum(np.searchsorted(keys, windows), len(keys) - 1)
        for at in np.flatnonzero(keys[places] == windows):
            for needle, label in starts[int(windows[at])]:
                if said.startswith(needle, 8 * int(at) + shift):
                    found.add(f"{label}: {said[max(8 * at + shift - 60, 0) : 8 * at + shift]!r}...")
    return found


# --- Planting and listening --------------------------------------------------------------------------------------


class Watch:
    """Knows the planted secrets and keeps everything that was said, with what was allowed to be said there."""

    def __init__(self) -> None:
        self.planted: dict[bytes, str] = {}
        self.updates: dict[bytes, str] = {}
        self.released: set[bytes] = set()
        self.said: set[bytes] = set()
        self.said_after_release: set[bytes] = set()

    def plant(self, label: str, value: object) -> None:
        if isinstance(value, int):
            value = value.to_bytes(SHARE_BYTES, "big")
        if isinstance(value, bytes) and len(value) == 2 * SHARE_BYTES:
            value = [value[:SHARE_BYTES], value[SHARE_BYTES:]]
        if isinstance(value, bytes):
            if len(value) > HALF:  # nonces are public
                self.planted.setdefault(value, label)
                self.planted.setdefault(hashlib.shake_256(value).digest(64), f"ML-KEM seed of {label}")
        elif isinstance(value, Iterable):
            for item in value:
                self.plant(label, item)

    def plant_slot_mask(self, value: bytes) -> None:
        self.planted.setdefault(value, "a slot mask")

    def update(self, label: str, values: np.ndarray) -> None:
        self.updates |= dict.fromkeys(numbers(values), label)

    def hear(self, *things: object, released: bool = False) -> None:
        """Keep bytes and texts; `released`: said where released shares may show."""
        for thing in things:
            data = bytes(thing) if isinstance(thing, bytes | bytearray | memoryview) else str(thing).encode()
            (self.said_after_release if released else self.said).add(data)

    def send(self, message: object) -> None:
        """Hear a message as bytes; what Unmasking and Blame publish in it is allowed there and nowhere before."""
        if isinstance(message, UnmaskingShares):
            lists = (message.self_seed_shares, message.mask_key_shares, message.pair_secrets)
            self.released |= {message.self_seed, *(value for entries in lists for value in entries.values())}
        if isinstance(message, SlotMasks):
            self.released |= set(message.masks.values())
        self.hear(wire.encode(message), released=isinstance(message, UnmaskingShares | SlotMasks))

    def error(self, error: BaseException) -> None:
        """Everything that shows when an exception is printed, logged or sent to a collector, locals included."""
        told = traceback.TracebackException.from_exception(error, capture_locals=True)
        self.hear("".join(told.format()), released=True)  # the server checks what was released to it
        self.hear(*traceback.format_exception(error))
        while error is not None:
            self.hear(repr(error), str(error), error.args, vars(error), getattr(error, "__notes__", ""))
            error = error.__cause__ or error.__context__

    def look_at(self, *roots: object) -> None:
        """The texts, copies and pickles of every object of ours that hangs on these."""
        for thing in reachable(roots):
            self.hear(repr(thing), str(thing), f"{thing}", ascii(thing))
            for name, copying in COPYING.items():
                if isinstance(thing, SlotMasks) or (isinstance(thing, UnmaskingShares) and name in APART):
                    continue  # whoever takes these messages apart asks for what is in them
                with contextlib.suppress(*REFUSALS):
                    copied = copying(thing)
                    self.hear(copied if isinstance(copied, bytes) else repr(copied))

    def leaks(self) -> set[str]:
        wanted = dict(self.updates)
        for secret, label in self.planted.items():
            wanted |= dict.fromkeys(needles(secret), label)
        public = set().union(*map(needles, self.released)) if self.released else set()
        some = {needle: label for needle, label in wanted.items() if needle not in public}
        return find(wanted, b"\n".join(self.said)) | find(some, b"\n".join(self.said_after_release))


def reachable(roots: Iterable[object]) -> Iterator[object]:
    """Every object of our own types that can be reached over attributes and containers."""
    seen: set[int] = set()
    kept, waiting = [], list(roots)
    while waiting:
        thing = waiting.pop()
        if id(thing) in seen or isinstance(thing, type | str | bytes | int | float | np.ndarray | Callable):
            continue
        seen.add(id(thing))
        kept.append(thing)
        if isinstance(thing, Mapping):
            waiting += [*thing.keys(), *thing.values()]
        elif isinstance(thing, list | tuple | set | frozenset):
            waiting += thing
        waiting += vars(thing).values() if hasattr(thing, "__dict__") else ()
        if type(thing).__module__.startswith("secagg"):
            yield thing


COPYING = {
    "copy": copy.copy,
    "deepcopy": copy.deepcopy,
    **{f"pickle{protocol}": lambda t, protocol=protocol: pickle.dumps(t, protocol) for protocol in range(6)},
    "replace": dataclasses.replace,
    "asdict": dataclasses.asdict,
    "astuple": dataclasses.astuple,
    "copy.replace": getattr(copy, "replace", dataclasses.replace),
}
APART = ("asdict", "astuple")
REFUSALS = (TypeError, AttributeError, pickle.PicklingError)


@pytest.fixture
def watch(monkeypatch, capfd):
    """Plants at every source of secrets, listens to everything, and fails the test that leaked one."""
    watch = Watch()

    def tap(owner, name: str, label: str) -> None:
        source = getattr(owner, name)

        def tapped(*arguments, **options):
            drawn = source(*arguments, **options)
            if label == "a slot mask":
                watch.plant_slot_mask(drawn)
            else:
                watch.plant(label, drawn)
            return drawn

        monkeypatch.setattr(owner, name, tapped)

    tap(secrets, "token_bytes", "a draw")
    tap(secagg.shamir, "_uniform", "a coefficient")
    tap(secagg.keys, "hkdf", "a derived key")
    tap(secagg.masking, "hkdf", "a mask seed")
    tap(secagg.client, "slot_mask", "a slot mask")
    tap(MaskKey, "exchange", "a shared secret")
    tap(MaskKey, "open_pair", "a pair secret")
    tap(ChannelKey, "open", "a share")

    def key(index: int) -> SigningKey:
        seed = hashlib.sha256(b"signing key %d" % index).digest()
        watch.plant("a signing key", seed)
        return SigningKey.from_bytes(seed)

    monkeypatch.setattr(tests.support.cohort, "signing_key", key)
    handler = logging.Handler(0)
    handler.emit = lambda record: watch.hear(handler.format(record), vars(record))
    root = logging.getLogger()
    level = root.level
    root.setLevel(0)
    root.addHandler(handler)
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        yield watch
    root.removeHandler(handler)
    root.setLevel(level)
    watch.hear(*warned, *capfd.readouterr())
    assert watch.planted
    assert watch.leaks() == set()


# --- Rounds ------------------------------------------------------------------------------------------------------


def cohort_of(watch: Watch, folder: Path | None = None, n: int = 4, suite: Suite = Suite.MLKEM768_X25519) -> Cohort:
    """A cohort with recognisable updates, on SQLite stores where there is a folder."""
    cohort = Cohort(n, suite=suite)
    for i, client_id in enumerate(cohort.ids):
        values = np.sin(np.arange(1, cohort.length + 1) * (i + 1.2345678))
        cohort.updates[client_id] = values
        watch.update(f"update of {client_id}", values)
        watch.update(f"update of {client_id}", values.astype(np.float32))
        integers = quantize(values, cohort.policy, client_id, Stream.seeded(7, client_id))[0]
        watch.updates |= dict.fromkeys(needles(integers.tobytes()), f"quantised update of {client_id}")
        if folder is not None:
            cohort.stores[client_id] = SqliteStore(folder / f"{client_id}.sqlite", client_id)
    return cohort


def play(watch: Watch, cohort: Cohort, **options) -> Play:
    """A round in which everything is watched; `up` and `down` may lie."""
    up, down = options.pop("up", lambda step, who, m: m), options.pop("down", lambda step, who, m: m)

    def heard(hook):
        def watched(step, who, message):
            watch.send(message)
            changed = hook(step, who, message)
            if changed is not None:
                watch.send(changed)
            return changed

        return watched

    record, slots_fail = options.pop("record", None), options.pop("slots_fail", False)
    playing = Play(cohort, up=heard(up), down=heard(down), **options)
    playing.server.record = record
    for step in (*SENDING, "nowhere"):
        watch.look_at(playing.server, *playing.clients.values(), *playing.out.values())
        if playing.failure is None:
            playing.until(step)
        if slots_fail and step == "Unmasking":
            fail_slots(playing)
    watch.look_at(playing.server, *playing.clients.values(), *playing.out.values())
    for error in (*playing.errors.values(), *playing.refusals.values(), playing.failure):
        if error is not None:
            watch.error(error)
    return playing


def fail_slots(playing: Play) -> None:
    """An accident in the server's memory, so that it asks everybody for its slot masks."""
    playing.until("Unmasking").damage_the_sum()


@pytest.mark.parametrize("suite", list(Suite))
def test_a_round_with_a_dropout_says_nothing_that_it_should_not(watch, suite, tmp_path):
    cohort = cohort_of(watch, tmp_path, suite=suite)
    played = play(watch, cohort, silent={"site-b": "MaskedInputCollection"})
    assert played.exact
    for store in cohort.stores.values():
        store.close()
    files = [path.read_bytes() for path in tmp_path.iterdir()]
    assert len(files) >= 4
    watch.hear(*files)
    kinds = {"a draw", "a derived key", "a mask seed", "a shared secret", "a share", "a signing key", "a slot mask"}
    assert kinds <= set(watch.planted.values())
    assert watch.released


@pytest.mark.parametrize("suite", list(Suite))
def test_nor_does_the_search_for_poisoned_slots(watch, suite):
    played = play(watch, cohort_of(watch, suite=suite), silent={"site-b": "MaskedInputCollection"}, slots_fail=True)
    assert played.failure.check == "S-19"
    shown = {value for value in watch.released if watch.planted.get(value) == "a slot mask"}
    assert len(shown) == 6, "three pairs among the included, and each of them with the dropped one"


def test_nor_does_a_file_of_marks_that_holds_everything_a_store_can_hold(watch, tmp_path):
    """A round that was released and not replayed, its acceptance, its claim and a second round that was replayed."""
    cohort = cohort_of(watch, tmp_path, suite=Suite.X25519)
    first = play(watch, cohort)
    for client_id, store in cohort.stores.items():
        accept_exposure(store, cohort.keys[client_id], client_id, first.server.receipt.round_id)
    context = cohort.context(2, head=first.server.head)
    second = play(watch, cohort, context=context)
    cohort.replay(second)
    play(watch, cohort, context=cohort.context(3, head=second.server.head), slots_fail=True)
    kept = set()
    for store in cohort.stores.values():
        with store.transaction() as marks:
            kept |= {key.partition("/")[0] for key in marks._entries}
            watch.hear(*marks._entries.keys(), *marks._entries.values())
        store.close()
    assert kept == KEPT
    watch.hear(*(path.read_bytes() for path in tmp_path.iterdir()))


KEPT = {"joins", "joined", "live", "contributed", "released", "model", "open", "used", "accepted", "waiting"}
KEPT |= {"replayed", "log", "round", "head"}
"""Every kind of mark."""


@pytest.mark.parametrize("step", [*SENDING, "Result"])
def test_nor_do_two_rounds_that_end_because_too_many_fall_silent(watch, step):
    play(watch, cohort_of(watch), silent=dict.fromkeys(("site-a", "site-b"), step))


def flipped(value) -> bytes:
    return bytes(value[:-1]) + bytes([value[-1] ^ 1])


def spoilt(message) -> Iterator:
    """The same message with one byte of one field changed, for every field, and no new signature."""
    for field in dataclasses.fields(message):
        value = getattr(message, field.name)
        if isinstance(value, bytes | memoryview) and len(value):
            changed = [flipped(value)]
        elif isinstance(value, Mapping):
            changed = [{**value, name: flipped(item)} for name, item in [*value.items()][:1]]
        elif isinstance(value, tuple):
            firsts = ([flipped(part)] if isinstance(part, bytes) else spoilt(part) for part in value[:1])
            changed = [(other, *value[1:]) for first in firsts for other in first]
        else:
            changed = spoilt(value) if dataclasses.is_dataclass(value) else ()
        for other in changed:
            yield dataclasses.replace(message, **{field.name: other})


@pytest.mark.parametrize("step", [*SENDING, BLAME])
def test_nor_does_a_server_that_is_lied_to(watch, step):
    cohort, refused = cohort_of(watch), []

    def lie(message):
        watch.send(message)
        for wrong in spoilt(message):
            for said in [wrong] if isinstance(wrong, EncryptedShares) else [wrong, wrong.sign(cohort.keys["site-b"])]:
                try:
                    playing.server.receive("site-b", said)
                except SecAggError as error:
                    watch.error(error)
                    refused.append(error)
        return message

    playing = Play(cohort, silent={"site-c": "MaskedInputCollection"}, up=alone(step, "site-b", lie))
    if step == BLAME:
        fail_slots(playing)
    playing.to_the_end()
    watch.look_at(playing.server)
    assert len(refused) >= 3


@pytest.mark.parametrize("step", [*SENDING[1:], "Result", BLAME])
def test_nor_does_a_client_that_is_lied_to(watch, step):
    """Each client is told another lie, until there is none left."""
    lies: list = []

    def lie(at, who, message):
        if at != step:
            return message
        lies[:] = lies or spoilt(message)
        return lies.pop()

    def again() -> Play:
        return play(watch, cohort_of(watch, suite=Suite.X25519), down=lie, slots_fail=step == BLAME)

    while not (played := again()).errors or lies:
        pass
    assert played.errors


def test_nor_does_a_complaint(watch):
    cohort = cohort_of(watch)

    def reseal(message: EncryptedShares) -> EncryptedShares:
        bundles = [dataclasses.replace(bundle, shares=flip(bundle.shares)) for bundle in message.bundles]
        root, _ = tree([bundle.digest() for bundle in bundles])
        header = dataclasses.replace(message.header, bundles_root=root).sign(cohort.keys["site-b"])
        return EncryptedShares(header, tuple(bundles))

    assert play(watch, cohort, up=alone("ShareKeys", "site-b", reseal)).failure is not None


@pytest.mark.parametrize("method", ["join", "contribute", "release", "finish"])
def test_nor_does_a_store_that_crashes(watch, method, monkeypatch):
    cohort = cohort_of(watch)

    def crash(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Marks, method, crash)
    with pytest.raises(OSError, match="No space") as caught:
        play(watch, cohort)
    watch.error(caught.value)


@pytest.mark.parametrize(
    "wrong",
    [
        lambda update: np.append(update[1:], np.nan),
        lambda update: np.append(update[1:], np.inf),
        lambda update: np.append(update, update),
        lambda update: update.astype(np.complex128),
        lambda update: update.reshape(1, -1),
        lambda update: 1e300 * update,
    ],
)
def test_nor_does_a_bad_update(watch, wrong):
    cohort = cohort_of(watch)
    client = cohort.client("site-a")
    client.start()
    try:
        client.provide(wrong(cohort.updates["site-a"]), "event", Stream.seeded(7, "site-a"))
    except ConfigError as error:
        watch.hear(*traceback.format_exception(error), error.args, vars(error))
    watch.look_at(client)


def test_nor_do_wrong_keys_and_calls_out_of_order(watch):
    cohort = cohort_of(watch)
    played = Play(cohort).until("MaskedInputCollection")
    client, other = played.clients["site-a"], cohort.keys["site-b"]
    calls = (
        client.start,
        lambda: cohort.provide(client, "site-a"),
        lambda: client.receive(played.out["site-a"]),
        lambda: client.receive(object()),
        lambda: played.server.receive("site-a", None),
        lambda: ClientSession(cohort.policy, "site-a", other, cohort.roster, cohort.context(), MemoryStore()),
        lambda: ServerSession(cohort.policy, cohort.roster, cohort.context(), other),
        lambda: SigningKey.from_bytes(other.export()[:31]),
        lambda: MaskKey(Suite.X25519, bytes(31)),
        lambda: ChannelKey(Suite.X25519).open(b"info", b"short"),
        lambda: UnmaskingShares(*[b""] * 7),
    )
    for call in calls:
        with pytest.raises((SecAggError, ValueError, TypeError, AttributeError)) as caught:
            call()
        watch.hear(repr(caught.value), str(caught.value), *traceback.format_exception(caught.value))


def test_nor_does_the_transport(watch):
    cohort = cohort_of(watch)
    message = Play(cohort).until("Unmasking").out["site-a"]
    payload = wire.encode(message)
    watch.hear(
        repr(message),
        str(message),
        Received("site-a", "UnmaskingShares", payload),
        Message(1, "UnmaskingShares", payload),
    )


@pytest.mark.parametrize(
    "silent", [{}, {"site-b": "MaskedInputCollection"}, dict.fromkeys(("site-a", "site-b"), "Unmasking")]
)
def test_nor_does_a_transcript(watch, silent, tmp_path):
    """What a finished round released is in it and nothing else; what a burned one released is not."""
    cohort, path = cohort_of(watch, n=5), tmp_path / "transcript"
    with Recorder(path, cohort.policy, cohort.roster, cohort.context(), signing_key=SERVER_KEY) as record:
        played = play(watch, cohort, record=record, silent=silent)
        watch.look_at(record)
    assert (played.failure is None) == (len(silent) < 2)
    assert [*tmp_path.iterdir()] == [path]
    watch.hear(path.read_bytes(), released=played.failure is None)


# --- Copies ------------------------------------------------------------------------------------------------------


def test_nothing_that_holds_a_secret_is_ever_copied():
    """A copy of a one-shot state would be unspent, and two answers with one state open what one answer hides."""
    refused: set[str] = set()
    playing = Play(Cohort(4, suite=Suite.MLKEM768_X25519), silent={"site-b": "MaskedInputCollection"})
    for step in (*SENDING, "nowhere"):
        for thing in reachable([playing.server, *playing.clients.values(), *playing.out.values(), Stream()]):
            if isinstance(thing, State | Secret | ClientSession | ServerSession | Stream):
                for name, copying in COPYING.items():
                    with contextlib.suppress(*REFUSALS):
                        copying(thing)
                        raise AssertionError(f"{name} copies a {type(thing).__name__}")
                refused.add(type(thing).__name__)
            elif isinstance(thing, UnmaskingShares):
                for copying in (pickle.dumps, copy.copy, copy.deepcopy):
                    with pytest.raises(TypeError):
                        copying(thing)
        playing.until(step)
    assert refused >= {"ClientSession", "ServerSession", "Stream", "SigningKey", "ChannelKey", "MaskKey"}
    assert refused >= {"Advertised", "Shared", "Reported", "Masked", "Attested", "Released", "CollectingInputs"}


# --- Commands and processes --------------------------------------------------------------------------------------


def test_the_commands_print_no_secret(watch, tmp_path):
    run = CliRunner()
    key = SigningKey.generate()
    watch.plant("a signing key", key.export())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(SigningKey, "generate", classmethod(lambda _: key))
        told = run.invoke(app, ["keygen", "bern", "--folder", str(tmp_path)])
        again = run.invoke(app, ["keygen", "bern", "--folder", str(tmp_path)])
        wrong = run.invoke(app, ["roster", str(tmp_path / "bern.signing"), "--out", str(tmp_path / "roster.toml")])
    demo = run.invoke(app, ["demo", "--clients", "4", "--drop", "1", "--length", "9"])
    burnt = run.invoke(app, ["demo", "--clients", "4", "--drop", "2", "--length", "9"])
    assert [result.exit_code for result in (told, again, wrong, demo, burnt)] == [0, 1, 1, 0, 1]
    for result in (told, again, wrong, demo, burnt):
        watch.hear(result.output, result.stdout_bytes, result.stderr)
        watch.error(result.exception) if result.exception else None
    watch.hear((tmp_path / "bern.pub").read_bytes())


PROCESS = """
import hashlib, itertools, logging, secrets, sys
from pathlib import Path
folder = Path(sys.argv[1])
count = itertools.count()
secrets.token_bytes = lambda n: hashlib.shake_256(b"planted %d" % next(count)).digest(n)
logging.basicConfig(filename=folder / "log", level=0)
logging.captureWarnings(True)
from tests.support.cohort import Cohort
from secagg.sqlite import SqliteStore
cohort = Cohort(4)
for client_id in cohort.ids:
    cohort.stores[client_id] = SqliteStore(folder / f"{client_id}.sqlite", client_id)
play = cohort.play(silent={"site-b": "MaskedInputCollection"})
assert play.exact
print(play, play.server, play.clients, play.out, file=open(folder / "printed", "w"))
print("drawn", next(count))
play.server.receive("site-a", play.out["site-c"])
"""


def test_a_real_process_that_dies_leaves_no_secret_behind(watch, tmp_path):
    """Its draws are known beforehand; what it printed, logged, stored and died with is searched."""
    command = [sys.executable, "-X", "dev", "-X", "faulthandler", "-c", PROCESS, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "[S-0" in done.stderr
    drawn = int(done.stdout.split()[-1])
    assert drawn > 12
    for i in range(drawn):
        watch.plant("a draw", hashlib.shake_256(b"planted %d" % i).digest(32))
    for values in Cohort(4).updates.values():
        watch.update("an update", values)
    watch.hear(done.stdout, done.stderr, *(path.read_bytes() for path in tmp_path.iterdir()))


# --- The search itself -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "careless",
    [
        lambda s: s,
        lambda s: f"key {s.hex()}",
        lambda s: f"key {s.hex().upper()}",
        lambda s: f"{s!r}",
        lambda s: f"{s[:16]!r}...",
        lambda s: f"{bytearray(s)}",
        lambda s: f"{[*s]}",
        lambda s: f"{np.frombuffer(s, np.uint8)[:16]}",
        lambda s: f"{int.from_bytes(s, 'big')}",
        lambda s: f"{int.from_bytes(s, 'little')}",
        lambda s: f"{int.from_bytes(s, 'big'):#x}",
        lambda s: base64.b64encode(s),
        lambda s: base64.b64encode(b"a" + s + b"b"),
        lambda s: base64.urlsafe_b64encode(b"ab" + s + b"c"),
        lambda s: {"secret": s},
        lambda s: b"prefix" + s[16:],
    ],
)
def test_the_search_finds_a_careless_line(careless):
    watch = Watch()
    for i in range(20):
        secret = hashlib.sha256(b"secret %d" % i).digest()
        watch.plant("it", secret)
        watch.said.clear()
        watch.hear(b"x" * (i % 8), careless(secret), "more")
        assert watch.leaks()
    watch.said.clear()
    watch.hear(hashlib.sha256(b"another").hexdigest())
    assert not watch.leaks()


def test_the_search_finds_an_update():
    watch, values = Watch(), np.sin(np.arange(5) + 0.5)
    watch.update("update", values)
    for text in (
        str(values.tolist()),
        values.tobytes(),
        values.tobytes().hex(),
        f"{values[0]:.6f} {values[1]:.6f}",
        {0: values[3]},
    ):
        watch.said.clear()
        watch.hear(text)
        assert watch.leaks()


def test_what_unmasking_publishes_is_allowed_there_and_only_there(monkeypatch):
    watch, cohort = Watch(), Cohort(4)
    message = Play(cohort, silent={"site-b": "MaskedInputCollection"}).until("Unmasking").out["site-a"]
    watch.plant("its own seed", message.self_seed)
    watch.send(message)
    assert not watch.leaks()
    watch.plant("another secret", next(iter(message.mask_key_shares.values()))[::-1])
    watch.hear(message.self_seed.hex())
    assert len(watch.leaks()) > 0
