"""Packed vectors (specification, "Encoding"), and the sum without its masks: T-13 and T-14."""

from __future__ import annotations

import math

import numpy as np

from audits.verifier.policy import Policy

BLOCK = 2**16  # values


def block_sizes(policy: Policy) -> list[tuple[int, int]]:
    """Of each block of a vector: how many values, how many bytes."""
    count = policy.length + policy.slots
    lengths = [min(BLOCK, count - start) for start in range(0, count, BLOCK)]
    return [(length, policy.bits * 4 * math.ceil(length / 32)) for length in lengths]


def planes(block: bytes, bits: int) -> np.ndarray:
    """A block as its rows: uint64 of shape (32 * L,), value r * L + l being bit r of word l in each plane."""
    packed = np.frombuffer(block, dtype="<u4").reshape(bits, 1, -1).astype(np.uint64)
    k, r = (np.arange(size, dtype=np.uint64) for size in (bits, 32))
    taken = (packed >> r[None, :, None] & np.uint64(1)) << k[:, None, None]
    return np.asarray(taken.sum(axis=0, dtype=np.uint64).reshape(-1))


def padding_is_zero(block: bytes, values: int, bits: int) -> bool:
    """Whether what fills up the last row is zero."""
    return not planes(block, bits)[values:].any()


def unpack(packed: bytes, policy: Policy) -> np.ndarray:
    """All values of a packed vector, constant slots behind them: uint64 of shape (d + slots,)."""
    found, at = [], 0
    for values, size in block_sizes(policy):
        found.append(planes(packed[at : at + size], policy.bits)[:values])
        at += size
    return np.concatenate(found)


def reduced(values: np.ndarray, bits: int) -> np.ndarray:
    """Modulo 2^bits."""
    return values if bits == 64 else values & np.uint64(2**bits - 1)


def signed(values: np.ndarray, bits: int) -> np.ndarray:
    """The same numbers, those of the upper half as negative ones: int64."""
    return (values << np.uint64(64 - bits)).view(np.int64) >> np.int64(64 - bits)


def largest_of(policy: Policy, included: list[str]) -> list[tuple[slice, int, int]]:
    """T-14: of each field that is bounded its place, and the lowest and highest that its sum can be."""
    found, at = [], 0
    top = max(policy.weights.values(), default=1.0)
    for one in policy.fields:
        place = slice(at, at + one.size)
        at += one.size
        most = one.magnitude()
        if most is None:
            continue
        if one.kind == "float":
            shares = [policy.weights.get(name, 1.0) / top if policy.weights else 1.0 for name in included]
            bound = sum(math.ceil(most * share) for share in shares)
            found.append((place, -bound, bound))
        else:
            found.append((place, 0, most * len(included)))
    return found
