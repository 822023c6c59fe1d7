"""Any bytes, and any message that bytes can make, into everything that listens: a message or a typed refusal.

Three levels: bytes into `wire`, decoded but arbitrary messages into both sessions at every step, and what else reads
what others wrote (frames, key files). `corpus/accepted` holds one message of every kind and suite, `corpus/refused`
what a coverage-guided run found to be interesting; both must be known by their folder.

    python tests/secagg/test_secagg_fuzz.py seeds                 writes corpus/accepted anew: the format has changed
    python tests/secagg/test_secagg_fuzz.py fuzz SECONDS FOLDER   runs atheris (libFuzzer) on `wire`, from the corpus
    python tests/secagg/test_secagg_fuzz.py keep FOLDER           adds to corpus/refused what it lacks
"""

import contextlib
import dataclasses
import resource
import subprocess
import sys
import tracemalloc
from collections.abc import Iterator, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st

from secagg import (
    ComplaintError,
    ExposureError,
    MalformedMessageError,
    RoundContext,
    SecAggError,
    Suite,
    accept_exposure,
    open_round,
    wire,
)
from secagg.client import LARGEST_STEP
from secagg.context import GENESIS
from secagg.errors import ConfigError, IllegalTransitionError, ProtocolError
from secagg.files import load_public_key
from secagg.messages import Abort, AdvertiseKeys, RoundStart, Signed, SlotMasks, SlotsFailed, UnmaskingShares
from secagg.roster import session_id
from secagg.rpc.frames import Assembler
from secagg.rpc.pace import CHUNK_BYTES
from secagg.rpc.transport_pb2 import Frame
from secagg.steps import BLAME, RESULT
from secagg.store import MemoryStore
from tests.support.cohort import RUN, SENDING, SERVER_KEY, Cohort, Play, signing_key

HERE = Path(__file__).parent
ACCEPTED, REFUSED = HERE / "corpus" / "accepted", HERE / "corpus" / "refused"
DECODERS = {"up": wire.decode_from_client, "down": wire.decode_from_server}
CLAIMING = {"up": "up-AdvertiseKeys", "down": "down-Roster"}
SLOW_SECONDS = 600
quick = settings(deadline=None, suppress_health_check=list(HealthCheck))
many = settings(quick, max_examples=1500)
some = settings(quick, max_examples=250)

# --- The property ------------------------------------------------------------------------------------------------


def decoded(data: bytes) -> tuple[str, object] | None:
    """What these bytes are, to which side; fails unless they are a message to one side or malformed to both."""
    found = None
    for side, decode in DECODERS.items():
        try:
            message = decode(data)
        except MalformedMessageError as error:
            assert (error.check in ("M-01", "W-01"), error.culprits) == (True, ())  # noqa: PT017
            continue
        assert found is None, "the word of both sides"
        assert wire.encode(message) == data
        assert b"".join(wire.parts(message)) == data
        found = side, message
    return found


# --- Seeds -------------------------------------------------------------------------------------------------------


@cache
def everything_said(suite: Suite) -> Mapping[str, object]:
    """One message of every kind: shares released for a dropout from a round of four whose slots then do not add up, the
    rest from a round of three in which everybody announces an earlier one."""
    said: dict[str, object] = {}

    def note(side: str):
        def hook(step, who, message):
            said.setdefault(f"{side}-{type(message).__name__}-{suite.value}", message)
            return message

        return hook

    spoilt = Play(Cohort(4, suite=suite), silent={"site-c": "MaskedInputCollection"}, up=note("up"), down=note("down"))
    spoil(spoilt).to_the_end()
    kinds = (UnmaskingShares, SlotsFailed, SlotMasks)
    kept = {name: message for name, message in said.items() if isinstance(message, kinds)}
    said.clear()
    said.update(kept)
    cohort = Cohort(3, suite=suite)
    play = cohort.play(context=exposed(cohort), up=note("up"), down=note("down"))
    note("down")("", "", round_start(play))
    note("down")("", "", Abort(bytes(32), "the server goes off"))
    return said


def spoil(play: Play) -> Play:
    """A round whose constant slots do not add up, by an accident in the server's memory."""
    play.until("Unmasking").damage_the_sum()
    return play


def exposed(cohort: Cohort) -> RoundContext:
    """What follows on a round that everybody released shares in, nobody replayed and everybody accepts."""
    receipt = cohort.play().server.receipt
    for client_id, store in cohort.stores.items():
        accept_exposure(store, cohort.keys[client_id], client_id, receipt.round_id)
    return cohort.context(2, head=receipt.head)


def round_start(play: Play) -> RoundStart:
    """What opens the round after a completed one."""
    receipt = play.server.receipt
    return RoundStart(RUN, receipt.round_number + 1, 1, bytes(32), bytes(32), receipt.head, (receipt,)).sign(SERVER_KEY)


def write_seeds() -> None:
    ACCEPTED.mkdir(parents=True, exist_ok=True)
    for old in ACCEPTED.iterdir():
        old.unlink()
    for suite in Suite:
        for name, message in everything_said(suite).items():
            (ACCEPTED / f"{name}.bin").write_bytes(wire.encode(message))


def keep(folder: Path) -> None:
    """Add what is refused and takes a way through the code that nothing before it took, the shortest first."""
    REFUSED.mkdir(parents=True, exist_ok=True)
    taken = set().union(*map(arcs, seeds()))
    for data in sorted((path.read_bytes() for path in folder.iterdir()), key=len):
        if decoded(data) is None and not arcs(data) <= taken:
            taken |= arcs(data)
            (REFUSED / f"{sha256(data).hexdigest()[:12]}.bin").write_bytes(data)


def arcs(data: bytes) -> set[tuple[str, int, int]]:
    """Steps from line to line in `wire` and `messages` that decoding these bytes takes."""
    steps, last = set(), {}

    def trace(frame, event, _):
        if not frame.f_code.co_filename.endswith(("wire.py", "messages.py")):
            return None
        steps.add((frame.f_code.co_name, last.get(frame, 0), frame.f_lineno))
        last[frame] = frame.f_lineno
        return trace

    sys.settrace(trace)
    try:
        decoded(data)
    finally:
        sys.settrace(None)
    return steps


def files(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.bin"))


@cache
def seeds() -> list[bytes]:
    return [path.read_bytes() for path in files(ACCEPTED) + files(REFUSED)]


@pytest.mark.parametrize("path", files(ACCEPTED), ids=lambda path: path.stem)
def test_the_seeds_are_messages(path):
    side, message = decoded(path.read_bytes())
    assert path.stem.split("-")[:2] == [side, type(message).__name__], "run this file with: seeds"


@pytest.mark.parametrize("path", files(REFUSED), ids=lambda path: path.stem)
def test_what_was_once_interesting_is_still_refused(path):
    assert decoded(path.read_bytes()) is None


def test_there_is_a_seed_of_every_kind_and_suite():
    kinds = len(wire._CLIENT_FIELDS) + len(wire._SERVER_FIELDS)
    assert len(files(ACCEPTED)) == kinds * len(Suite)
    for suite in Suite:
        shares = (ACCEPTED / f"up-UnmaskingShares-{suite.value}.bin").read_bytes()
        assert wire.decode_from_client(shares).mask_key_shares
        assert bool(wire.decode_from_client(shares).pair_secrets) == (suite is Suite.MLKEM768_X25519)
        for kind, decode in DECODERS.items():
            message = decode((ACCEPTED / f"{CLAIMING[kind]}-{suite.value}.bin").read_bytes())
            assert all(entry.exposing for entry in getattr(message, "advertisements", [message]))
    assert max(map(len, seeds())) < 16_000


# --- A mutator that knows protobuf -------------------------------------------------------------------------------

VARINT, FIXED64, BYTES, OPEN, CLOSE, FIXED32 = range(6)
NUMBERS = (*range(18), 31, 2047, 2**29 - 1, 2**29)
INTEGERS = (0, 1, 2, 127, 128, 2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**63 - 1, 2**63, 2**64 - 1, 2**64)
RUBBISH = (b"", b"\0", b"\x80", b"\xff" * 11, b"\xc3\x28", "\u00e9".encode(), b"a" * 65, bytes(31), bytes(33))


@dataclasses.dataclass
class Field:
    """One field as it is spelled: `padding` needless bytes in tag and length, a length that may be a lie."""

    number: int
    kind: int
    value: "int | bytes | list[Field]"
    padding: tuple[int, int] = (0, 0)
    claims: int | None = None

    def spelled(self) -> bytes:
        tag = varint(self.number << 3 | self.kind, self.padding[0])
        if self.kind in (OPEN, CLOSE):
            return tag
        if isinstance(self.value, int):
            size = {FIXED64: 8, FIXED32: 4}.get(self.kind)
            value = self.value & 2**64 - 1
            return tag + (varint(value, self.padding[1]) if size is None else value.to_bytes(8, "little")[:size])
        body = spell(self.value) if isinstance(self.value, list) else self.value
        if self.kind != BYTES:
            return tag + body
        return tag + varint(len(body) if self.claims is None else self.claims, self.padding[1]) + body


def varint(value: int, padding: int = 0) -> bytes:
    groups = []
    while value >= 0x80 or padding:
        padding -= value < 0x80
        groups.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*groups, value])


def spell(fields: list[Field]) -> bytes:
    return b"".join(field.spelled() for field in fields)


def parse(data: bytes, depth: int = 0) -> list[Field] | None:
    """The fields of clean protobuf bytes, and theirs down to some depth; None for anything else."""
    fields, at = [], 0
    try:
        while at < len(data):
            tag, at = read_varint(data, at)
            value, at = read_varint(data, at)
            if tag & 7 == BYTES:
                body, at = data[at : at + value], at + value
                value = (depth < 60 and parse(body, depth + 1)) or body
            elif tag & 7 != VARINT:
                return None
            fields.append(Field(tag >> 3, tag & 7, value))
    except IndexError:
        return None
    return fields if spell(fields) == data else None


def read_varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        value |= (data[at] & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if data[at - 1] < 0x80:
            return value, at


def flat(fields: list[Field]) -> Iterator[Field]:
    for field in fields:
        yield field
        if isinstance(field.value, list):
            yield from flat(field.value)


def mutate(data: bytes, other: bytes, random: Random) -> bytes:
    """One change to a message, perhaps with a part of another one."""
    fields = parse(data)
    if not fields or random.random() < 0.1:
        return damage(data, other, random)
    level = fields
    while (inner := [f.value for f in level if isinstance(f.value, list) and f.value]) and random.random() < 0.7:
        level = random.choice(inner)
    at = random.randrange(len(level))
    field, donors = level[at], list(flat(parse(other) or parse(data)))
    match random.randrange(14):
        case 0:
            del level[at]
        case 1:
            level.insert(random.randrange(len(level) + 1), field)
        case 2:
            level.insert(random.randrange(len(level)), level.pop(at))
        case 3:
            level.insert(at, random.choice(donors))
        case 4:
            field.value, field.kind = (donor := random.choice(donors)).value, donor.kind
        case 5:
            field.number = random.choice(NUMBERS)
        case 6:
            field.kind = random.randrange(8)
        case 7:
            field.padding = random.choice([(1, 0), (0, 1), (9, 0), (0, 9), (0, 10)])
        case 8:
            size = len(field.spelled())
            field.claims = random.choice([0, 1, size - 1, size, size + 1, *INTEGERS])
        case 9:
            field.value = random.choice(INTEGERS)
        case 10:
            field.value, field.kind = random.choice(RUBBISH), BYTES
        case 11 if isinstance(field.value, bytes):
            field.value = damage(field.value, b"", random)
        case 12:
            for _ in range(random.choice([1, 2, 50, 99, 101, 150])):
                field = Field(field.number, BYTES, [field])
            level[at] = field
        case _:
            depth = random.choice([1, 2, 101])
            level[at : at + 1] = [Field(3, OPEN, 0)] * depth + [field] + [Field(3, CLOSE, 0)] * random.randint(0, depth)
    return spell(fields)


def damage(data: bytes, other: bytes, random: Random) -> bytes:
    """One change that knows nothing."""
    at, size = random.randint(0, len(data)), random.randint(1, 40)
    match random.randrange(5):
        case 0 if at < len(data):
            return data[:at] + bytes([data[at] ^ 1 << random.randrange(8)]) + data[at + 1 :]
        case 1:
            return data[:at] + data[at + size :]
        case 2:
            return data[:at] + random.randbytes(size) + data[at:]
        case 3:
            return data[:at] + data[at : at + size] + data[at:]
        case _:
            return data[:at] + other[random.randint(0, len(other)) :]


# --- Bytes into wire ---------------------------------------------------------------------------------------------


@given(st.binary(max_size=200))
@quick
def test_any_bytes_are_a_message_or_malformed(data):
    decoded(data)


@given(st.randoms(use_true_random=False), st.data())
@many
def test_mutations_of_messages_are_other_messages_or_malformed(random, data):
    mutant, other = data.draw(st.sampled_from(seeds())), data.draw(st.sampled_from(seeds()))
    for _ in range(random.randint(1, 4)):
        mutant = mutate(mutant, other, random)
        decoded(mutant)


def test_the_mutator_makes_messages_too():
    """Or the test above would only show that rubbish is refused."""
    random, kinds = Random(1), set()
    for seed in seeds()[: len(files(ACCEPTED))] * 40:
        mutant = mutate(seed, random.choice(seeds()), random)
        if mutant != seed and (found := decoded(mutant)):
            kinds.add(type(found[1]).__name__)
    assert len(kinds) == len(wire._CLIENT_FIELDS) + len(wire._SERVER_FIELDS)


MEBIBYTE = 1 << 20


def message_of(number: int, body: bytes) -> bytes:
    return varint(number << 3 | BYTES) + varint(len(body)) + body


def entries(number: int, inner: int, entry: bytes = b"") -> bytes:
    one = message_of(inner, entry)
    return message_of(number, one * (MEBIBYTE // len(one)))


def named(client_id: str, size: int) -> bytes:
    return message_of(1, client_id.encode()) + message_of(2, bytes(size))


GREEDY = {
    "a roster of empty advertisements": entries(9, 1),
    "empty bundles": entries(2, 2),
    "an inbox of empty headers": entries(10, 1),
    "an inbox of empty bundles": entries(10, 2),
    "empty reports": entries(11, 1),
    "empty inputs": entries(12, 1),
    "empty attestations": entries(13, 1),
    "empty missed receipts": entries(8, 7),
    "empty shares": entries(6, 5),
    "shares of one byte": entries(6, 6, b"\x0a\x01a"),
    "empty pair secrets": entries(6, 7),
    "many shares": message_of(6, b"".join(message_of(5, named(f"{i:06d}", 33)) for i in range(MEBIBYTE // 45))),
    "many small attestations": message_of(
        13, b"".join(message_of(1, named(f"{i:06d}", 0)) for i in range(MEBIBYTE // 10))
    ),
    "empty claims": entries(1, 8),
    "claims that nobody attested": message_of(1, entries(8, 11)[:MEBIBYTE]),
    "empty slot masks": entries(16, 4),
    "slot masks of one byte": entries(16, 4, b"\x0a\x01a"),
    "one kind after the other": (message_of(1, b"") + message_of(2, b"")) * (MEBIBYTE // 4),
    "unknown fields": message_of(500, b"") * (MEBIBYTE // 3),
    "unknown fields within": entries(1, 500),
    "unknown numbers": b"\x78\x00" * (MEBIBYTE // 2),
    "groups": b"\x7b" * MEBIBYTE,
    "an endless varint": b"\x80" * MEBIBYTE,
    "a length of 2^31 - 1": varint(1 << 3 | BYTES) + varint(2**31 - 1) + bytes(MEBIBYTE),
    "a length of 2^63 - 1": varint(4 << 3 | BYTES) + varint(2**63 - 1) + bytes(MEBIBYTE),
    "a long id": message_of(1, message_of(2, b"a" * MEBIBYTE)),
    "a long hash": message_of(1, message_of(1, bytes(MEBIBYTE))),
    "no utf-8": message_of(1, message_of(2, b"\xff" * MEBIBYTE)),
    "one within another": message_of(2, b"\x0a" * MEBIBYTE),
    "vectors": message_of(18, b"") * (MEBIBYTE // 3),
    "a vector of nobody": message_of(18, bytes(MEBIBYTE)),
}


def greed(name: str) -> int:
    """Bytes by which the high-water mark of this process has grown; the library's memory is not Python's."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    decoded(GREEDY[name])
    return 1024 * (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before)


def test_a_message_never_takes_more_than_a_few_times_its_size():
    """Each in a process of its own: what one has taken hides what the next one takes."""
    script = (
        "import os\n"
        "from tests.secagg.test_secagg_fuzz import GREEDY, greed\n"
        "for name in GREEDY:\n"
        "    if not os.fork():\n"
        "        print(name, greed(name), sep='=', flush=True); os._exit(0)\n"
        "    os.wait()\n"
    )
    told = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout
    taken = {name: int(size) for name, size in (line.split("=") for line in told.splitlines())}
    assert taken.keys() == GREEDY.keys()
    assert {name: size for name, size in taken.items() if size > 10 * MEBIBYTE} == {}


def test_a_vector_is_not_copied():
    for name, seed in (("up-MaskedInput", wire.decode_from_client), ("down-Result", wire.decode_from_server)):
        message = seed((ACCEPTED / f"{name}-X25519.bin").read_bytes())
        field = wire._VECTORS[type(message)]
        data = wire.encode(dataclasses.replace(message, **{field: bytes(8 * MEBIBYTE)}))
        tracemalloc.start()
        vector = getattr(seed(data), field)
        _, peak = tracemalloc.get_traced_memory()
        tracemalloc.stop()
        assert len(vector) == 8 * MEBIBYTE
        assert peak < MEBIBYTE


# --- Messages into sessions --------------------------------------------------------------------------------------


def vary(thing, pool: list[object], random: Random):
    """Another value of the same type: a message with one part changed, maybe by a part of a message of `pool`."""
    if dataclasses.is_dataclass(thing):
        twin = random.choice([other for other in pool if type(other) is type(thing)] or [thing])
        name = random.choice([field.name for field in dataclasses.fields(thing)])
        other = getattr(twin, name)
        value = other if other != getattr(thing, name) and random.random() < 0.5 else vary(other, pool, random)
        return dataclasses.replace(thing, **{name: value})
    if isinstance(thing, Mapping):
        listed = dict(vary(tuple(thing.items()), pool, random))
        return {i: damage(v, b"", random) if random.random() < 0.3 else v for i, v in sorted(listed.items())}
    if isinstance(thing, tuple):
        items = list(thing)
        at = random.randrange(len(items) or 1)
        match random.randrange(5):
            case 0:
                del items[at : at + 1]
            case 1:
                items += items[at : at + 1]
            case 2:
                random.shuffle(items)
            case _ if items and dataclasses.is_dataclass(items[at]):
                items[at] = vary(items[at], pool, random)
        return tuple(items)
    if isinstance(thing, str):
        return random.choice(["", "a", "site-a", "site-b", "site-e", "nobody", RUN, "x" * 64])
    if isinstance(thing, int):
        return random.choice([0, 1, 2, thing + 1, 2**63 - 1, 2**63, 2**64 - 1])
    data = bytes(thing)
    return random.choice(
        [damage(data, b"", random), bytes(len(data)), b"\xff" * len(data), random.randbytes(len(data))]
    )


def signed(message, random: Random):
    """Signed by the corrupt client, by the server, by an outsider, or left with what it has."""
    key = random.choice([signing_key(1), signing_key(1), SERVER_KEY, signing_key(200), None])
    if key is None:
        return message
    if isinstance(message, Signed):
        return message.sign(key)
    for field in dataclasses.fields(message):
        part = getattr(message, field.name)
        if isinstance(part, Signed):
            return dataclasses.replace(message, **{field.name: part.sign(key)})
    return message


def lie(truth, pool: list[object], random: Random):
    """What a decoder can hand over in place of `truth`: of any kind, varied and maybe signed; None if nothing."""
    message = truth if random.random() < 0.7 else random.choice(pool)
    try:
        for _ in range(random.randint(0, 3)):
            message = vary(message, pool, random)
        _, arbitrary = decoded(wire.encode(signed(message, random)))
    except MalformedMessageError:
        return None
    return arbitrary


@cache
def pools() -> tuple[list[object], list[object]]:
    """What the two sides say in rounds of the same size, of another size and of the other suite, with the end of each;
    in the last one the slots do not add up and everybody announces an earlier round."""
    up: list[object] = []
    down: list[object] = []
    hooks = {"up": lambda step, who, m: up.append(m) or m, "down": lambda step, who, m: down.append(m) or m}
    hooks["silent"] = {"site-d": "MaskedInputCollection"}
    for cohort in (Cohort(4), Cohort(4, suite=Suite.MLKEM768_X25519), Cohort(5)):
        play = cohort.play(**hooks)
        up += play.out.values()
        down.append(Abort(cohort.context().slot(session_id(cohort.policy, cohort.roster)), "the server goes off"))
    other = Cohort(5)
    spoil(Play(other, context=exposed(other), **hooks)).to_the_end()
    return up, [*down, round_start(play)]


@given(st.randoms(use_true_random=False), st.sampled_from((*SENDING, BLAME)), st.booleans())
@some
def test_a_server_survives_any_message_and_finishes_with_the_others(random, step, instead):
    """site-b says something arbitrary in `step`, before what it should say or in its place."""
    accepted = []

    def told(at, who, message):
        if (at, who) != (step, "site-b"):
            return message
        for arbitrary in filter(None, [lie(message, pools()[0], random) for _ in range(3)]):
            try:
                play.server.receive("site-b", arbitrary)
            except ProtocolError as error:
                assert set(error.culprits) <= {"site-b"}  # noqa: PT017
            else:
                accepted.append(arbitrary)
        return None if instead else message

    play = Play(Cohort(4), up=told)
    if step == BLAME:
        spoil(play)
    play.to_the_end()
    for message in filter(None, [lie(play.out["site-a"], pools()[0], random) for _ in range(3)]):
        with contextlib.suppress(SecAggError):
            play.server.receive("site-b", message)
    honest = {"site-a", "site-c", "site-d"}
    if held_up := honest & play.errors.keys():  # by a round of five that these clients attested: a true claim (C-26)
        assert all(isinstance(play.errors[who], ExposureError) for who in held_up)
        assert any(isinstance(message, AdvertiseKeys) and message.exposing for message in accepted)
    elif isinstance(play.failure, ComplaintError):
        assert all("site-b" in pair for pair in play.failure.complaints)
    elif play.failure is not None:
        assert accepted or step == BLAME
        assert play.failure.check == "S-19"
        assert set(play.failure.culprits) <= {"site-b"}
    else:
        assert honest <= {*play.server.included}
        assert play.exact or accepted


@given(st.randoms(use_true_random=False), st.sampled_from((*SENDING[1:], RESULT, BLAME)))
@some
def test_a_client_survives_any_message(random, step):
    """site-a is told something arbitrary in `step`: it answers, or it ends, wipes and says nothing more."""
    ended = []

    def told(at, who, message):
        if (at, who) != (step, "site-a"):
            return message
        client = play.clients["site-a"]
        for arbitrary in filter(None, [lie(message, pools()[1], random) for _ in range(3)]):
            try:
                client.receive(arbitrary)
            except SecAggError as error:
                ended.append(error)
                assert client.finished
                assert client._state is client._update is None
        return message

    play = Play(Cohort(4), down=told)
    if step == BLAME:
        spoil(play)
    play.to_the_end()
    assert all(isinstance(error, IllegalTransitionError) for error in ended[1:])
    assert not play.refusals
    assert not {"site-b", "site-c", "site-d"} & play.errors.keys()


@given(st.randoms(use_true_random=False))
@some
def test_any_round_start_is_opened_or_refused(random):
    """A peer's bytes are a peer's fault: never an error of ours, and nothing is left behind where it is refused."""
    start, store, cohort = pools()[1][-1], MemoryStore(), Cohort(4)
    arbitrary = lie(start, [start], random)
    if not isinstance(arbitrary, RoundStart):
        return
    own = {"model_hash": bytes(32), "task_hash": bytes(32)}
    try:
        context = open_round(cohort.policy, cohort.roster, RUN, arbitrary, store, **own).context
    except ProtocolError:
        assert store._entries == {}
        return
    with store.transaction() as marks:
        number, head = marks.head(session_id(cohort.policy, cohort.roster), RUN)
    assert (number, head) in ((0, GENESIS), (1, context.previous_head))
    assert number < context.round_number <= number + LARGEST_STEP


# --- What else reads what others wrote ---------------------------------------------------------------------------

DATA = st.binary(max_size=4) | st.just(bytes(99))
FIRST = st.builds(
    Frame,
    sequence=st.sampled_from([1, 1, 0, 2, 2**64 - 1]),
    kind=st.sampled_from(["a", "a", "A.b-c_9", "hello", "", "9", "\u00e9", "x" * 65]),
    size=st.integers(0, 6) | st.sampled_from([100, 101, CHUNK_BYTES, 2**64 - 1]),
    data=DATA,
)
FRAMES = FIRST | st.builds(Frame, sequence=st.just(1), data=DATA)


@given(st.lists(FRAMES, max_size=12))
@settings(quick, max_examples=500)
@example([Frame(sequence=1, kind="a", size=3, data=b"ab"), Frame(sequence=1, data=b"c")])
def test_any_frames_are_messages_or_refused(frames):
    assembler, held = Assembler(limit=100), b""
    for frame in frames:
        try:
            message = assembler.add(frame)
        except ValueError:
            return
        held += frame.data
        assert len(held) <= 100
        if message is not None:
            assert bytes(message.payload) == held
            assert list(map(Assembler(limit=100).add, message.frames())) == [message]
            held = b""


TOML = ["id", "verify_key", "signing_key", "=", ".", ",", "#", "[", "]", "[[", "{", "}", "1", "nan", "1979-05-27"]
TOML += ["\\u", "\0", '"', "'", '"a"', '"' * 3, "'" * 3, "\n", f'"{bytes(32).hex()}"', "9" * 5000, "[" * 3000]


@given(st.lists(st.sampled_from(TOML), max_size=14).map("".join).map(str.encode) | st.binary(max_size=40))
@settings(quick, max_examples=400)
@example(b"a = " + b"[" * 5000)
@example(b'id = "a"\nverify_key = 3')
@example(b'id = ["a"]\nverify_key = "00"')
def test_any_key_file_is_a_key_or_refused_in_one_sentence(tmp_path, data):
    path = tmp_path / "any.pub"
    path.write_bytes(data)
    try:
        client_id, key = load_public_key(path)
    except ConfigError as error:
        assert "\n" not in str(error)  # noqa: PT017
    else:
        assert (type(client_id), len(key)) == (str, 32)


# --- The long run ------------------------------------------------------------------------------------------------


def fuzz(seconds: int, folder: Path) -> None:
    """Coverage-guided, in this process, for so many seconds; new inputs are written to `folder`. Does not return."""
    import atheris

    for module in [name for name in sys.modules if name.startswith("secagg.") or name == "secagg"]:
        del sys.modules[module]
    with atheris.instrument_imports(include=["secagg.wire", "secagg.messages"]):
        from secagg import wire as instrumented
        from secagg.errors import MalformedMessageError as Malformed

    def one(data: bytes) -> None:
        for decode in (instrumented.decode_from_client, instrumented.decode_from_server):
            try:
                message = decode(data)
            except Malformed:
                continue
            assert instrumented.encode(message) == data

    def change(data: bytes, largest: int, seed: int) -> bytes:
        random = Random(seed)
        if random.random() < 0.2:
            return atheris.Mutate(data, largest)
        return mutate(data, random.choice(seeds()), random)[:largest]

    options = [
        f"-max_total_time={seconds}",
        "-max_len=16384",
        "-timeout=10",
        "-rss_limit_mb=1024",
        "-print_final_stats=1",
    ]
    atheris.Setup([sys.argv[0], *options, str(folder), str(ACCEPTED), str(REFUSED)], one, custom_mutator=change)
    atheris.Fuzz()


@pytest.mark.slow
def test_ten_minutes_of_coverage_guided_fuzzing(tmp_path):
    pytest.importorskip("atheris", reason="atheris is not installed: pip install -c constraints.txt '.[fuzz]'")
    command = [sys.executable, __file__, "fuzz", str(SLOW_SECONDS), str(tmp_path)]
    run = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False)
    assert run.returncode == 0, run.stderr[-4000:]
    assert "stat::number_of_executed_units" in run.stderr


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["seeds"]:
            write_seeds()
        case ["keep", folder]:
            keep(Path(folder))
        case ["fuzz", seconds, folder]:
            fuzz(int(seconds), Path(folder))
