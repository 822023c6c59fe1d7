"""Rates of the mask generator, quantiser and packing on one core, against raw AES-256-GCM in the same run.

Run: .venv/bin/python tests/benchmarks/bench_prg.py [values]. Absolute times are noisy, ratios hold.
"""

import secrets
import sys
import time
from collections.abc import Callable

import cryptography
import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import GCM

from secagg.policy import Policy
from secagg.prg import CHUNK_BYTES, Stream, apply_masks
from secagg.quantize import dequantize, dtype_for, pack, quantize, unpack
from secagg.shamir import combine, split

SEEDS = 16
REPEATS = 15


def fastest(*actions: Callable[[], object]) -> list[float]:
    """Shortest time of each action in seconds; interleaved, so that a busy machine slows all of them."""
    times: list[list[float]] = [[] for _ in actions]
    for _ in range(REPEATS):
        for action, taken in zip(actions, times, strict=True):
            begin = time.perf_counter()
            action()
            taken.append(time.perf_counter() - begin)
    return [min(taken) for taken in times]


def raw_gcm(octets: int) -> None:
    """AES-256-GCM over zeros, one context, preallocated buffers: the floor below which no mask can be made."""
    zeros, target = bytes(CHUNK_BYTES), memoryview(bytearray(CHUNK_BYTES))
    context = Cipher(AES256(bytes(32)), GCM(bytes(12))).encryptor()
    for _ in range(octets // CHUNK_BYTES):
        context.update_into(zeros, target)


def masks(length: int) -> None:
    seeds = [secrets.token_bytes(32) for _ in range(SEEDS)]
    print(f"numpy {np.__version__}, cryptography {cryptography.__version__}, {length} values")
    for kind in (np.uint32, np.uint64):
        vector = np.zeros(length, kind)
        octets = SEEDS * vector.nbytes
        whole = octets // CHUNK_BYTES * CHUNK_BYTES
        raw, masked = fastest(
            lambda octets=octets: raw_gcm(octets),
            lambda vector=vector: apply_masks(vector, seeds[: SEEDS // 2], seeds[SEEDS // 2 :]),
        )
        floor, reached = whole / raw / 1e9, octets / masked / 1e9
        print(
            f"apply_masks {np.dtype(kind)}: {reached:.1f} GB/s ({masked / SEEDS / length * 1e9:.3f} ms per 1e6 values "
            f"and seed); raw AES-256-GCM {floor:.1f} GB/s; ratio {reached / floor:.2f}"
        )


def encoding(length: int) -> None:
    stream = Stream()
    update = (stream.uniform(length) * 1.9 - 0.95).astype(np.float32)
    policy = Policy(project="bench", clients=5, length=length, clip_range=1.0, value_bits=20)
    clipping = Policy(project="bench", clients=5, length=length, clip_range=0.9, value_bits=20)
    total = quantize(update, policy, "a", stream)[0]
    actions = {
        "quantize": lambda: quantize(update, policy, "a", stream),
        "quantize, 5 % clipped": lambda: quantize(update, clipping, "a", stream),
        "dequantize": lambda: dequantize(total, policy),
        "Stream.words": lambda: stream.words(length),
        "Stream.uniform": lambda: stream.uniform(length),
    }
    for bits in (18, 20, 24, 25, 32, 40):
        vector = stream.words64(length).astype(dtype_for(bits))
        data = pack(vector, bits)
        actions[f"pack {bits}"] = lambda vector=vector, bits=bits: pack(vector, bits)
        actions[f"unpack {bits}"] = lambda data=data, bits=bits: unpack(data, length, bits)
    for name, action in actions.items():
        print(f"{name:22} {fastest(action)[0] / length * 1e9:7.2f} ms per 1e6 values")


def sharing() -> None:
    secret = secrets.token_bytes(32)
    shares = dict(zip(range(1, 101), split(secret, 67, range(1, 101)), strict=True))
    times = fastest(lambda: split(secret, 67, range(1, 101)), lambda: combine(shares, 67))
    print(f"shamir 67 of 100: split {times[0] * 1e6:.0f} us, combine {times[1] * 1e6:.0f} us")


if __name__ == "__main__":
    d = int(sys.argv[1]) if len(sys.argv) > 1 else 10**6
    masks(d)
    encoding(d)
    sharing()
