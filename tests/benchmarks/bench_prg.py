"""What a vector costs on one core: masks, rounding, packing, all of it in one pass; and sharing a secret.

Run: taskset -c 1 .venv/bin/python tests/benchmarks/bench_prg.py [values]. Absolute times are noisy; ratios to the raw
keystream of the same run hold.
"""

import secrets
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import cryptography
import numpy as np

from secagg.masking import masked_input
from secagg.packing import add_packed, dtype_for, pack_into, packed_size, unpack
from secagg.policy import Policy
from secagg.prg import CHUNK_BYTES, Stream, apply_masks, faster_way, zeros
from secagg.quantize import Quantised, dequantize, quantize
from secagg.shamir import combine, split

REPEATS = 15
ROUND = bytes(32)


def fastest(**actions: Callable[[], object]) -> dict[str, float]:
    """Shortest time of each action in seconds; interleaved, so that a busy machine slows all of them."""
    times: dict[str, float] = dict.fromkeys(actions, float("inf"))
    for _ in range(REPEATS):
        for name, action in actions.items():
            begin = time.perf_counter()
            action()
            times[name] = min(times[name], time.perf_counter() - begin)
    return times


def raw_keystream(octets: int) -> None:
    """One seed's chunks, one after the other, into one buffer: the floor below which no mask can be made."""
    plain, target = memoryview(bytes(CHUNK_BYTES)), memoryview(bytearray(CHUNK_BYTES + 16))
    write_chunk, whole = faster_way()(bytes(32)), octets // CHUNK_BYTES
    for index in range(whole):
        write_chunk(index, plain, target)
    write_chunk(whole, plain[: octets % CHUNK_BYTES], target)


def seeds_of(count: int) -> tuple[list[bytes], list[bytes]]:
    drawn = [secrets.token_bytes(32) for _ in range(count)]
    return drawn[: count // 2], drawn[count // 2 :]


def masks(length: int) -> None:
    for count in (16, 100):
        for kind in (np.uint32, np.uint64):
            add, subtract = seeds_of(count)
            vector = zeros(length, kind)
            octets = count * vector.nbytes
            with ThreadPoolExecutor(2) as pool:
                times = fastest(
                    raw=lambda octets=octets: raw_keystream(octets),
                    one=lambda vector=vector, add=add, subtract=subtract: apply_masks(vector, add, subtract),
                    two=lambda vector=vector, add=add, subtract=subtract: apply_masks(vector, add, subtract, pool),
                )
            print(
                f"apply_masks, {count:3} seeds, {np.dtype(kind)}: {octets / times['one'] / 1e9:5.1f} GB/s; raw "
                f"keystream {octets / times['raw'] / 1e9:5.1f} GB/s; ratio {times['raw'] / times['one']:.2f}; "
                f"with two threads {times['raw'] / times['two']:.2f}"
            )


def encoding(length: int) -> None:
    stream = Stream()
    update = (stream.uniform(length) * 1.9 - 0.95).astype(np.float32)
    policy = Policy(project="bench", clients=5, length=length, clip_range=1.0, value_bits=20)
    clipping = Policy(project="bench", clients=5, length=length, clip_range=0.9, value_bits=20)
    total = quantize(update, policy, "a", stream)[0]
    actions: dict[str, Callable[[], object]] = {
        "raw keystream, 32 bits": lambda: raw_keystream(4 * length),
        "Quantised: check only": lambda: Quantised(update, policy, "a", stream),
        "quantize": lambda: quantize(update, policy, "a", stream),
        "quantize, 5 % clipped": lambda: quantize(update, clipping, "a", stream),
        "dequantize": lambda: dequantize(total, policy),
        "Stream.words": lambda: stream.words(length),
        "Stream.uniform": lambda: stream.uniform(length),
    }
    for bits in (18, 20, 23, 24, 25, 32, 40):
        vector = stream.words64(length).astype(dtype_for(bits))
        data = np.empty(packed_size(length, bits), np.uint8)
        pack_into(vector, bits, data)
        actions[f"pack {bits}"] = lambda vector=vector, bits=bits, data=data: pack_into(vector, bits, data)
        actions[f"unpack {bits}"] = lambda data=data, bits=bits: unpack(data.data, length, bits)
        sums = data.copy()
        actions[f"add {bits}"] = lambda sums=sums, data=data, bits=bits: add_packed(sums, data.data, length, bits)
    for name, taken in fastest(**actions).items():
        print(f"{name:26} {taken / length * 1e9:7.2f} ms per 1e6 values")


def one_pass(length: int) -> None:
    """The whole vector work of a client, against the keystream that it cannot do without."""
    stream = Stream()
    update = (stream.uniform(length) * 1.9 - 0.95).astype(np.float32)
    for count, bits in ((10, 20), (100, 23)):
        policy = Policy(project="bench", clients=count, length=length, clip_range=1.0, bits=bits)
        add, subtract = seeds_of(count)

        def client(policy: Policy = policy, add: list[bytes] = add, subtract: list[bytes] = subtract) -> None:
            masked_input(Quantised(update, policy, "a", stream), policy, ROUND, add, subtract)

        times = fastest(raw=lambda count=count: raw_keystream(count * 4 * length), client=client)
        print(
            f"masked_input, {count:3} masks, {bits} bits: {times['client'] * 1e3:6.1f} ms; raw keystream "
            f"{times['raw'] * 1e3:6.1f} ms; {times['client'] / times['raw']:.2f} times"
        )


def sharing() -> None:
    secret, positions = secrets.token_bytes(32), range(1, 101)
    shares = dict(zip(positions, split(secret, 67, positions), strict=True))
    times = fastest(split=lambda: split(secret, 67, positions), combine=lambda: combine(shares, 67))
    print(f"shamir 67 of 100: split {times['split'] * 1e6:.0f} us, combine {times['combine'] * 1e6:.0f} us")


if __name__ == "__main__":
    d = int(sys.argv[1]) if len(sys.argv) > 1 else 10**6
    print(f"numpy {np.__version__}, cryptography {cryptography.__version__}, {d} values")
    masks(d)
    encoding(d)
    one_pass(d)
    sharing()
