"""How near to the machine's limit a round comes: goal, measured, limit and share, for docs/performance.md.

python tests/benchmarks/reach.py [--clients 100] [--length 1000000] [--wide 10 10000000] [--reps 3] [--json FILE]

Limit of a party: keystream of its masks at the machine's raw rate (fused with the addition: no second
pass), its signatures, key pairs, exchanges and envelopes as often as it really makes them, each measured singly in this
run, and every byte of the vectors that it is given read once. CPU time of one core; the waiting time is wall time with
two threads.
`--json` is what `gate.py` compares. Small numbers prove that the script works; figures come from a quiet machine.
"""

import argparse
import json
import os
import statistics
import sys
import time
import tracemalloc
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
from bench_round import SERVER, Meter, keystream_seconds, one_round, pin, policy_for, update_of

import secagg
from secagg import keys, wire
from secagg.policy import Policy, Suite
from secagg.prg import Stream, apply_masks

GOALS = {  # at most; as in issue 9
    "client": 1.3,
    "client, wide": 2.0,
    "server, wide": 2.5,
    "last input to result": 0.270,
    "masks against raw keystream": 0.80,
}
COUNTED = {
    keys._verified.__wrapped__.__code__: "verify",
    keys.SigningKey.sign.__code__: "sign",
    keys.ChannelKey.__init__.__code__: "channel key",
    keys.MaskKey.__init__.__code__: "mask key",
    keys.MaskKey.exchange.__code__: "exchange",
    keys.seal.__code__: "seal",
    keys._open.__code__: "open",
}


class Counted(Meter):
    """Counts what each party does with keys instead of taking time."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: Counter[tuple[bool, str]] = Counter()

    @contextmanager
    def of(self, party: str) -> Iterator[None]:
        keys._verified.cache_clear()

        def look(frame: FrameType, event: str, _: Any) -> None:
            if event == "call" and (what := COUNTED.get(frame.f_code)):
                self.calls[party == SERVER, what] += 1

        sys.setprofile(look)
        try:
            yield
        finally:
            sys.setprofile(None)
        self.spent[party] += 0.0


def unit_seconds(suite: Suite) -> dict[str, float]:
    """CPU seconds of each operation with keys, singly."""
    signer, channel, mask = keys.SigningKey.generate(), keys.ChannelKey(suite), keys.MaskKey(suite)
    text = bytes(200)
    signature, sealed = signer.sign(text), keys.seal(suite, channel.public, text, bytes(66))
    return {
        "verify": _fastest(lambda: keys._verified.__wrapped__(signer.verify_key, text, signature)),
        "sign": _fastest(lambda: signer.sign(text)),
        "channel key": _fastest(lambda: keys.ChannelKey(suite)),
        "mask key": _fastest(lambda: keys.MaskKey(suite)),
        "exchange": _fastest(lambda: mask.exchange(mask.dh_public)),
        "seal": _fastest(lambda: keys.seal(suite, channel.public, text, bytes(66))),
        "open": _fastest(lambda: channel.open(text, sealed)),
    }


def read_seconds(octets: int) -> float:
    """So many bytes read once, from memory."""
    data = np.ones(1 << 23, np.uint64)
    return octets / data.nbytes * _fastest(lambda: np.bitwise_or.reduce(data), 5)


def limits(policy: Policy, dropped: int) -> tuple[float, float]:
    """Seconds of a client and of the server below which nobody gets on this machine."""
    counted, units = Counted(), unit_seconds(policy.suite)
    one_round(policy_for(policy.clients, 1000, policy.suite), dropped, counted)
    spent = [
        sum(units[what] * number for (server, what), number in counted.calls.items() if server is side)
        for side in (False, True)
    ]
    included = policy.clients - dropped
    words, packed = policy.length * (4 if policy.bits <= 32 else 8), policy.length * policy.bits // 8
    client = policy.clients * keystream_seconds(words) + read_seconds(4 * policy.length + packed)
    server = included * (1 + dropped) * keystream_seconds(words) + read_seconds(included * packed)
    return client + spent[0] / policy.clients, server + spent[1]


def measured(policy: Policy, dropped: int, reps: int) -> tuple[float, float]:
    """CPU seconds of a client (the median one) and of the server: the best of some rounds, sums checked."""
    clients, servers = [], []
    for _ in range(reps):
        meter = Meter()
        one_round(policy, dropped, meter)
        servers.append(meter.spent.pop(SERVER))
        clients.append(statistics.median(meter.spent.values()))
    return min(clients), min(servers)


def last_input_to_result(policy: Policy, dropped: int, threads: int = 2) -> float:
    """Wall seconds of the server's own work from the last masked input to the sum; what clients say comes in bursts."""
    names = [f"site-{i:03d}" for i in range(policy.clients)]
    signers = {name: secagg.SigningKey.generate() for name in names}
    roster = secagg.PinnedRoster({name: key.verify_key for name, key in signers.items()})
    context, gone = secagg.RoundContext("run", 1, 0, bytes(32), bytes(32)), set(names[:dropped])
    with ThreadPoolExecutor(threads) as pool:
        server = secagg.ServerSession(policy, roster, context, executor=pool)
        sessions = {
            name: secagg.ClientSession(policy, name, signers[name], roster, secagg.unchecked_round(context), store)
            for name, store in ((name, secagg.MemoryStore()) for name in names)
        }
        said = {name: wire.encode(session.start()) for name, session in sessions.items()}
        for name, session in sessions.items():
            session.provide(update_of(names.index(name), policy.length), stream=Stream.seeded(1, name))
        waited = 0.0
        while not server.finished:
            step = server.step
            began = time.perf_counter()
            for name, data in said.items():
                if step != "MaskedInputCollection" or name not in gone:
                    server.receive(name, wire.decode_from_client(data))
            if step == "MaskedInputCollection":  # the last input is there: what follows is waited for
                began = time.perf_counter()
            replies = server.close_step()
            encoded = wire.encode_each(replies)
            if step in ("MaskedInputCollection", "ConsistencyCheck", "Unmasking"):
                waited += time.perf_counter() - began
            heard = {name: wire.decode_from_server(data) for name, data in encoded.items()}
            answers = {name: sessions[name].receive(message) for name, message in heard.items()}
            said = {name: wire.encode(answer) for name, answer in answers.items() if answer is not None}
    return waited


def last_input_limit(policy: Policy, dropped: int, threads: int = 2) -> float:
    """Wall seconds below which nobody gets there: keystream on all threads, the other work with keys on one."""
    included, units = policy.clients - dropped, unit_seconds(policy.suite)
    words = policy.length * (4 if policy.bits <= 32 else 8)
    masks, exchanges = included * (1 + dropped) * keystream_seconds(words), included * dropped * units["exchange"]
    return masks / threads + 2 * included * units["verify"] + exchanges


def masks_share(length: int) -> float:
    """Speed of expanding and adding masks over that of the keystream alone."""
    vector, seeds = np.zeros(length, np.uint32), [os.urandom(32) for _ in range(20)]
    return keystream_seconds(20 * vector.nbytes) / _fastest(lambda: apply_masks(vector, seeds, ()), 5)


def peak_mib(policy: Policy) -> float:
    """What a whole round holds at its peak in this process, all parties together, in MiB."""
    tracemalloc.start()
    try:
        one_round(policy, 0, Meter())
        return tracemalloc.get_traced_memory()[1] / 2**20
    finally:
        tracemalloc.stop()


def _fastest(action: Callable[[], object], times: int = 30) -> float:
    best = float("inf")
    for _ in range(times):
        began = time.process_time()
        action()
        best = min(best, time.process_time() - began)
    return best


def rows(
    clients: int, length: int, wide: tuple[int, int], reps: int
) -> Iterator[tuple[str, float | None, float, float]]:
    """(what, goal, measured, limit): seconds, but for the share of the masks, whose limit is 1."""
    share = masks_share(length)
    yield "masks against raw keystream", GOALS["masks against raw keystream"], share, 1.0
    for suite in (Suite.X25519, Suite.MLKEM768_X25519):
        policy = policy_for(clients, length, suite)
        for dropped in (0, clients // 10, clients * 3 // 10):
            taken, least = measured(policy, dropped, reps), limits(policy, dropped)
            where = f"{suite.value}, n = {clients}, d = {length}, {dropped} dropped"
            if dropped == 0:
                yield f"client, {where}", GOALS["client"] * least[0], taken[0], least[0]
            yield f"server, {where}", None, taken[1], least[1]
    policy = policy_for(*wide, Suite.X25519)
    taken, least = measured(policy, 0, reps), limits(policy, 0)
    for who, mine, bound in zip(("client", "server"), taken, least, strict=True):
        yield f"{who}, X25519, n = {wide[0]}, d = {wide[1]}", GOALS[f"{who}, wide"] * bound, mine, bound


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--length", type=int, default=10**6)
    parser.add_argument("--wide", nargs=2, type=int, default=(10, 10**7), metavar=("N", "D"))
    parser.add_argument("--reps", type=int, default=3)
    parser.add_argument("--json", type=Path, help="write the ratios here, for gate.py")
    options = parser.parse_args()
    policy, dropped = policy_for(options.clients, options.length, Suite.X25519), options.clients // 10
    waited = min(last_input_to_result(policy, dropped) for _ in range(options.reps))
    pin()
    shortest = last_input_limit(policy, dropped)
    print("| what | goal | measured | limit | share of the limit |\n|---|---|---|---|---|")
    ratios = {}
    for what, goal, taken, limit in rows(options.clients, options.length, tuple(options.wide), options.reps):
        share = taken if limit == 1.0 else limit / taken
        ratios[what] = round(share, 4)
        unit = "" if limit == 1.0 else " ms"
        shown = [f"{(1 if not unit else 1e3) * x:.2f}{unit}" if x is not None else "" for x in (goal, taken, limit)]
        print(f"| {what} | {' | '.join(shown)} | {share:.2f} |")
    ratios["last input to result"] = round(shortest / waited, 4)
    print(
        f"| last input to result, wall, two threads | {1e3 * GOALS['last input to result']:.0f} ms | "
        f"{1e3 * waited:.0f} ms | {1e3 * shortest:.0f} ms | {shortest / waited:.2f} |"
    )
    small = policy_for(min(options.clients, 10), options.length, Suite.X25519)
    print(f"| memory of a whole round in one process, n = {small.clients} | | {peak_mib(small):.0f} MiB | | |")
    if options.json:
        options.json.write_text(json.dumps(ratios, indent=1) + "\n")


if __name__ == "__main__":
    main()
