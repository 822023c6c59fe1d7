"""Whole rounds in one process on one core: CPU time of a client and of the server, bytes sent, and what bounds them.

python tests/benchmarks/bench_round.py [--case N D DROPPED] [--reps REPS] [--core CORE]

Every message goes through its wire bytes, and every sum is compared with that of the quantised updates. The time is the
process's CPU time; a party's is all that runs between its messages, from its keys to the verified result. Next to it
in the same run the floor: raw keystream of the masks and one numpy addition, in memory, for every vector
that the party meets; and, told apart, BLAKE3 of the vectors on the wire. Uploads are held against a plain vector of
16-bit values. The last line of a party is a sampled profile.
"""

import argparse
import linecache
import os
import re
import signal
import statistics
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import numpy as np
from blake3 import blake3
from numpy.typing import NDArray

import secagg
from secagg import keys, wire
from secagg.keys import _public_key
from secagg.prg import CHUNK_BYTES, Stream, apply_masks, faster_way
from secagg.quantize import quantize

UPLOAD_LIMITS = {secagg.Suite.X25519: 1.48, secagg.Suite.MLKEM768_X25519: 1.56}  # x plain, at n = 100 and d = 1e6
FLOOR_LIMIT = 1.5  # x (keystream + one pass a vector), at n = 10 and d = 1e7
VALUE_BITS = 16
SERVER = ""
CASES = [(10, 10**7, 0), (100, 10**6, 0), (100, 10**6, 10), (100, 10**6, 30)]

# --- Where the time goes -----------------------------------------------------------------------------------------

# The first row that fits the innermost frame in secagg: file, pattern over function, colon and source line, stage.
STAGES = [
    ("prg", r"^Stream", "quantise"),
    ("prg", r"into\(", "keystream"),
    ("prg", r"", "add masks"),
    ("packing", r"", "pack, unpack, add"),
    ("quantize", r"", "quantise"),
    ("masking", r"^masked_input", "pack, unpack, add"),
    ("keys", r"^(verify|SigningKey)", "signatures"),
    ("keys", r"^(seal|_open|_hpke)", "envelopes"),
    ("keys", r"^hkdf", "HKDF"),
    ("keys", r"", "key pairs, X25519"),
    ("encoding", r"", "hashes, encoding"),
    ("shamir", r"", "shares"),
    ("wire", r"", "wire"),
]
PACKAGE = str(Path(secagg.__file__).parent)


def stage_of(frame: FrameType | None) -> str:
    """The stage that this stack belongs to."""
    while frame is not None:
        code = frame.f_code
        if code.co_filename.startswith(PACKAGE):
            what = f"{code.co_qualname}:{linecache.getline(code.co_filename, frame.f_lineno or 0)}"
            for module, pattern, stage in STAGES:
                if Path(code.co_filename).stem == module and re.search(pattern, what):
                    return stage
            return "the rest"
        frame = frame.f_back
    return "the rest"


@dataclass
class Meter:
    """CPU seconds by party, and by stage where `sample` runs."""

    spent: Counter[str] = field(default_factory=Counter)
    stages: dict[bool, Counter[str]] = field(default_factory=lambda: {True: Counter(), False: Counter()})
    party: str | None = None
    since: float = 0.0

    @contextmanager
    def of(self, party: str) -> Iterator[None]:
        """On this party's account, which verifies for itself what another party here has verified already."""
        keys._verified.cache_clear()
        began = self.since = time.process_time()
        self.party = party
        yield
        self.party = None
        self.spent[party] += time.process_time() - began

    @contextmanager
    def sample(self, seconds: float = 5e-4) -> Iterator[None]:
        """Look at the stack at this interval; what ran since the last look, a long C call too, is that stack's."""

        def look(_: int, frame: FrameType | None) -> None:
            if self.party is not None:
                now = time.process_time()
                self.stages[self.party == SERVER][stage_of(frame)] += now - self.since
                self.since = time.process_time()

        signal.signal(signal.SIGALRM, look)
        signal.setitimer(signal.ITIMER_REAL, seconds, seconds)
        try:
            yield
        finally:
            signal.setitimer(signal.ITIMER_REAL, 0)


# --- A round -----------------------------------------------------------------------------------------------------


def update_of(index: int, length: int) -> NDArray[np.float32]:
    """What client number `index` contributes: (length,) float32 in -1..1."""
    update = np.random.default_rng(index).random(length, dtype=np.float32)
    update *= 2
    update -= 1
    return update


def policy_for(clients: int, length: int, suite: secagg.Suite, max_corrupt: int = 0, bits: int = 0) -> secagg.Policy:
    """16-bit values and, unless given, no more bits in the modulus than their sum needs."""
    return secagg.Policy(
        project="bench",
        clients=clients,
        length=length,
        clip_range=1.0,
        max_corrupt=max_corrupt or max(clients // 5, 1),
        suite=suite,
        bits=bits or (2 * clients << (VALUE_BITS - 1)).bit_length(),
        value_bits=VALUE_BITS,
    )


def one_round(policy: secagg.Policy, dropped: int, meter: Meter) -> Counter[str]:
    """Bytes sent by each client that stayed to the end; the dropped ones fall silent before their masked input.

    A message for everybody is encoded once. Making the updates, carrying bytes from one party to the other and checking
    the sum is on nobody's account.
    """
    names = [f"site-{i:03d}" for i in range(policy.clients)]
    gone = {names[i * policy.clients // dropped] for i in range(dropped)}
    keys = {name: secagg.SigningKey.generate() for name in names}
    roster = secagg.PinnedRoster({name: key.verify_key for name, key in keys.items()})
    context = secagg.RoundContext("run", 1, 0, bytes(32), bytes(32))
    expected, sent, sessions = 0, Counter[str](), {}

    with meter.of(SERVER):
        server = secagg.ServerSession(policy, roster, context)

    def say(name: str, message: object) -> None:
        if message is None:
            return
        with meter.of(name):
            pieces = wire.parts(message)
        data = b"".join(pieces)
        sent[name] += len(data)
        with meter.of(SERVER):
            server.receive(name, wire.decode_from_client(data))

    for name in names:
        with meter.of(name):
            sessions[name] = secagg.ClientSession(
                policy, name, keys[name], roster, secagg.unchecked_round(context), secagg.MemoryStore()
            )
            first = sessions[name].start()
        say(name, first)
    while not server.finished:
        with meter.of(SERVER):
            replies = server.close_step()
            encoded = {key: wire.parts(message) for key, message in {id(m): m for m in replies.values()}.items()}
        carried = {key: b"".join(pieces) for key, pieces in encoded.items()}
        for name in replies:
            if server.step == "MaskedInputCollection":
                if name in gone:
                    continue
                update = update_of(names.index(name), policy.length)
                expected = expected + quantize(update, policy, name, Stream.seeded(1, name))[0]
                with meter.of(name):
                    sessions[name].provide(update, stream=Stream.seeded(1, name))
            _public_key.cache_clear()  # a client is a process of its own, and parses what others have parsed
            with meter.of(name):
                reply = sessions[name].receive(wire.decode_from_server(carried[id(replies[name])]))
            say(name, reply)
    if not np.array_equal(server.result, expected & expected.dtype.type((1 << policy.bits) - 1)):
        raise SystemExit("the sum is wrong")
    for name in gone:
        del sent[name], meter.spent[name]
    return sent


# --- What the machine can do at best -----------------------------------------------------------------------------


def _cpu(action: Callable[[], object]) -> float:
    began = time.process_time()
    action()
    return time.process_time() - began


def keystream_seconds(octets: int) -> float:
    """So much raw keystream, in chunks that stay in the cache: the floor below which no mask is made."""
    write_chunk, zeros = faster_way()(os.urandom(32)), memoryview(bytes(CHUNK_BYTES))
    target = memoryview(bytearray(CHUNK_BYTES + 16))

    def whole() -> None:
        for index in range(64):
            write_chunk(index, zeros, target)

    return octets / (64 * CHUNK_BYTES) * min(_cpu(whole) for _ in range(9))


def pass_seconds(policy: secagg.Policy) -> float:
    """One vector of words added to another, both in memory."""
    kind = np.uint32 if policy.bits <= 32 else np.uint64
    total, vector = np.zeros(policy.length, kind), np.ones(policy.length, kind)
    return min(_cpu(lambda: np.add(total, vector, out=total)) for _ in range(5))


def hash_seconds(octets: int) -> float:
    """BLAKE3 over so many bytes."""
    data = bytes(1 << 24)
    return octets / len(data) * min(_cpu(lambda: blake3(data).digest()) for _ in range(5))


def rates() -> str:
    """What this machine does in this run."""
    policy = policy_for(10, 10**7, secagg.Suite.X25519)
    return ", ".join(
        f"{name} {size / 1e9 / seconds:.1f} GB/s"
        for name, size, seconds in (
            (f"keystream ({faster_way().__name__})", 10**9, keystream_seconds(10**9)),
            ("BLAKE3", 10**9, hash_seconds(10**9)),
            ("numpy addition in memory", 4 * policy.length, pass_seconds(policy)),
        )
    )


@dataclass(frozen=True)
class Floor:
    """Seconds below which nobody gets: keystream and one pass a vector; BLAKE3 of the vectors on the wire."""

    masks: float
    hashes: float


def floors(policy: secagg.Policy, dropped: int) -> tuple[Floor, Floor]:
    """Of a client and of the server.

    A client expands a mask for every other client and one for itself, reads its update, and hashes y and the sum. The
    server expands a self mask for every input and one for each pair of an input and a dropped client, reads the inputs,
    and hashes them and the sum.
    """
    included = policy.clients - dropped
    words, packed = policy.length * (4 if policy.bits <= 32 else 8), policy.length * policy.bits // 8
    mask, walk, hashed = keystream_seconds(words), pass_seconds(policy), hash_seconds(packed)
    masks = included * (1 + dropped)
    client = Floor(policy.clients * mask + (policy.clients + 1) * walk, 2 * hashed)
    return client, Floor(masks * mask + (masks + included) * walk, (included + 1) * hashed)


# --- Figures -----------------------------------------------------------------------------------------------------


def case(suite: secagg.Suite, clients: int, length: int, dropped: int, reps: int) -> None:
    policy = policy_for(clients, length, suite)
    seconds: dict[str, list[float]] = {"client": [], "server": []}
    bounds: dict[str, list[Floor]] = {"client": [], "server": []}
    uploads: list[int] = []
    for _ in range(reps):
        for who, bound in zip(bounds, floors(policy, dropped), strict=True):
            bounds[who].append(bound)
        meter = Meter()
        uploads = list(one_round(policy, dropped, meter).values())
        seconds["server"].append(meter.spent.pop(SERVER))
        seconds["client"].append(statistics.median(meter.spent.values()))
    plain = policy.length * VALUE_BITS // 8
    print(
        f"{suite.value} n={clients} d={length} dropped={dropped}: sum exact; upload x plain: median "
        f"{statistics.median(uploads) / plain:.3f}, largest {_against(max(uploads) / plain, _upload_limit(policy))}"
    )
    stages = profile(policy, dropped)
    for who, taken in seconds.items():
        time_taken = statistics.median(taken)
        masks = statistics.median(bound.masks for bound in bounds[who])
        hashes = statistics.median(bound.hashes for bound in bounds[who])
        limit = FLOOR_LIMIT if (clients, length, dropped) == (10, 10**7, 0) else None
        print(
            f"    {who} {1e3 * time_taken:7.1f} ms = {_against(time_taken / masks, limit)} x keystream and passes "
            f"({1e3 * masks:.1f} ms) = {time_taken / (masks + hashes):.2f} x these and BLAKE3 ({1e3 * hashes:.1f} ms)"
        )
        print(f"        {stages[who]}")


def _upload_limit(policy: secagg.Policy) -> float | None:
    return UPLOAD_LIMITS[policy.suite] if (policy.clients, policy.length) == (100, 10**6) else None


def _against(value: float, limit: float | None) -> str:
    return f"{value:.3f}" + (f" [limit {limit}: {'reached' if value <= limit else 'MISSED'}]" if limit else "")


def profile(policy: secagg.Policy, dropped: int) -> dict[str, str]:
    """What share of whose time each stage takes, from a round of its own, because looking costs time."""
    meter = Meter()
    with meter.sample():
        one_round(policy, dropped, meter)
    return {
        who: ", ".join(
            f"{stage} {100 * taken / sum(stages.values()):.0f} %"
            for stage, taken in stages.most_common()
            if taken > 0.005 * sum(stages.values())
        )
        for who, stages in (("client", meter.stages[False]), ("server", meter.stages[True]))
    }


def threads(length: int = 10**7, masks: int = 10) -> None:
    """Print how much faster two threads expand masks: wall time, the one figure here that wants two cores."""
    vector, seeds = np.zeros(length, np.uint32), [os.urandom(32) for _ in range(masks)]
    with ThreadPoolExecutor(2) as pool:
        walls: dict[bool, list[float]] = {False: [], True: []}
        for _ in range(5):
            for pooled, taken in walls.items():
                began = time.perf_counter()
                apply_masks(vector, seeds, (), **({"executor": pool} if pooled else {}))
                taken.append(time.perf_counter() - began)
    one, two = (statistics.median(taken) for taken in walls.values())
    print(
        f"{masks} masks of {length} values: {1e3 * one:.1f} ms, with two threads {1e3 * two:.1f} ms: {one / two:.2f} x"
    )


def pin(core: int | None = None) -> int:
    """Keep this process and its children on one core: the given one, or the last that it may use."""
    core = max(os.sched_getaffinity(0)) if core is None else core
    os.sched_setaffinity(0, {core})
    return core


def main() -> None:
    """Print a few lines for each case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", nargs=3, type=int, action="append", metavar=("N", "D", "DROPPED"))
    parser.add_argument("--reps", type=int, default=1, help="rounds; medians are printed")
    parser.add_argument("--core", type=int, help="run on this core only")
    options = parser.parse_args()
    threads()
    print(f"one process on core {pin(options.core)}; CPU time; {rates()}")
    for suite in (secagg.Suite.X25519, secagg.Suite.MLKEM768_X25519):
        for clients, length, dropped in options.case or CASES:
            case(suite, clients, length, dropped, options.reps)


if __name__ == "__main__":
    main()
