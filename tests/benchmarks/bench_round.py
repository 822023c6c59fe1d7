"""A whole round in one process on one core: milliseconds of a client and of the server, and bytes sent by a client.

Run: python tests/benchmarks/bench_round.py [CLIENTS ...]. Times are held against the time that the raw AES-256-GCM
keystream of the same masks takes in the same run, which is what bounds a round with long vectors.
"""

import os
import statistics
import sys
import time

import numpy as np
from cryptography.hazmat.primitives.ciphers.aead import AESGCM

import secagg
from secagg import wire

LENGTH = 1_000_000
BITS = 23


def keystream_ms(vectors: int) -> float:
    """Milliseconds of raw AES-256-GCM over `vectors` vectors of LENGTH 32-bit words."""
    cipher, zeros = AESGCM(os.urandom(32)), bytes(1 << 18)
    began = time.perf_counter()
    chunks = 4 * LENGTH // len(zeros)
    for i in range(chunks):
        cipher.encrypt(i.to_bytes(12, "big"), zeros, None)
    return (time.perf_counter() - began) * 1e3 * vectors


def one_round(clients: int, dropped: int, suite: secagg.Suite) -> tuple[float, float, int]:
    """Median client milliseconds, server milliseconds, bytes sent by one client."""
    policy = secagg.Policy(
        project="bench",
        clients=clients,
        length=LENGTH,
        clip_range=1.0,
        max_corrupt=max(clients // 5, 1),
        suite=suite,
        bits=BITS,
    )
    keys = {f"site-{i:03d}": secagg.SigningKey.generate() for i in range(clients)}
    roster = secagg.PinnedRoster({name: key.verify_key for name, key in keys.items()})
    context = secagg.RoundContext("run", 1, 0, bytes(32), bytes(32))
    update = np.random.default_rng(0).uniform(-1, 1, LENGTH).astype(np.float32)
    gone = set(list(keys)[:dropped])
    spent, sent, serving = dict.fromkeys(keys, 0.0), dict.fromkeys(keys, 0), 0.0

    server = secagg.ServerSession(policy, roster, context)
    sessions = {}
    for name in keys:
        began = time.perf_counter()
        sessions[name] = secagg.ClientSession(policy, name, keys[name], roster, context, secagg.MemoryStore())
        data = wire.encode(sessions[name].start())
        spent[name] += time.perf_counter() - began
        sent[name] += len(data)
        server.receive(name, wire.decode_from_client(data))
    while not server.finished:
        began = time.perf_counter()
        replies = {name: wire.encode(reply) for name, reply in server.close_round().items()}
        serving += time.perf_counter() - began
        for name, data in replies.items():
            if name in gone and server.step == "MaskedInputCollection":
                continue
            began = time.perf_counter()
            if server.step == "MaskedInputCollection":
                sessions[name].provide(update)
            answer = sessions[name].receive(wire.decode_from_server(data))
            encoded = wire.encode(answer) if answer else b""
            spent[name] += time.perf_counter() - began
            sent[name] += len(encoded)
            if encoded:
                began = time.perf_counter()
                server.receive(name, wire.decode_from_client(encoded))
                serving += time.perf_counter() - began
    stayed = [name for name in keys if name not in gone]
    return statistics.median(spent[n] for n in stayed) * 1e3, serving * 1e3, max(sent.values())


def main() -> None:
    """Print one line per case."""
    sizes = [int(word) for word in sys.argv[1:]] or [10, 50]
    print(f"d = {LENGTH}, {BITS} bits, plain 16-bit vector {2 * LENGTH / 1e6:.1f} MB, one process")
    for suite in secagg.Suite:
        for clients in sizes:
            for dropped in (0, clients // 10):
                client, server, size = one_round(clients, dropped, suite)
                print(
                    f"{suite.value:15} n={clients:3} dropped={dropped:2}: client {client:6.1f} ms "
                    f"({client / keystream_ms(clients):4.1f} x keystream), server {server:8.1f} ms, "
                    f"upload {size / 1e6:.2f} MB ({size / (2 * LENGTH):.3f} x plain)"
                )


if __name__ == "__main__":
    main()
