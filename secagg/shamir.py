"""Shamir's secret sharing of 32-byte secrets over the prime field of p = 2^256 + 297.

A forged share is not noticed here: the protocol's signed commitments are there for that. Must never: draw a
coefficient from anything but the operating system, or put a secret or a share into an error. Specification:
docs/spec.md, section "Primitives".

Python integers are not constant-time; what is shared here lives for one round and is used a handful of times.
"""

import secrets
from collections.abc import Mapping, Sequence
from functools import lru_cache
from math import prod

PRIME = 2**256 + 297
SECRET_BYTES = 32
SHARE_BYTES = 33
MAX_POSITION = 256
_MULTIPLE = 2 ** (8 * SHARE_BYTES) // PRIME * PRIME
"""The largest multiple of p that 33 bytes can hold. Below it every remainder modulo p is equally likely; a draw at or
above it is thrown away, because it would make small remainders a little more likely."""


def split(secret: bytes, threshold: int, positions: Sequence[int]) -> list[bytes]:
    """Shares of a secret, one per position, any `threshold` of which determine it and fewer say nothing.

    Args:
        secret: 32 bytes, read as a big-endian integer.
        threshold: t, at least 1; the polynomial has degree t - 1. May exceed the number of positions, because nobody
            holds a share of its own secret.
        positions: x coordinates of the holders, distinct, 1 to 256.

    Returns:
        33-byte big-endian shares, in the order of `positions`.

    Raises:
        ValueError: an argument outside these limits.
    """
    if len(secret) != SECRET_BYTES or threshold < 1:
        raise ValueError("split takes a secret of 32 bytes and a threshold of at least 1")
    if len(set(positions)) != len(positions) or not all(1 <= x <= MAX_POSITION for x in positions):
        raise ValueError("positions are distinct and 1 to 256")
    descending = [*_uniform(threshold - 1), int.from_bytes(secret, "big")]
    return [_evaluate(descending, x).to_bytes(SHARE_BYTES, "big") for x in positions]


def is_share(share: bytes) -> bool:
    """Tell whether these bytes can be a share: 33 bytes whose number is below p."""
    return len(share) == SHARE_BYTES and int.from_bytes(share, "big") < PRIME


def combine(shares: Mapping[int, bytes], threshold: int) -> bytes:
    """The secret, by Lagrange interpolation at 0 from `threshold` shares, those at the smallest positions.

    Args:
        shares: position of the holder to its share; one bad share among those used changes the result.
        threshold: t of `split`.

    Returns:
        32 bytes.

    Raises:
        ValueError: fewer than t shares, a share that `is_share` refuses, a position outside 1 to 256, or a result of
            more than 32 bytes, which no honest dealer shared.
    """
    positions = tuple(sorted(shares)[:threshold])
    if len(positions) < max(threshold, 1):
        raise ValueError(f"{len(positions)} shares, and {threshold} are needed")
    if not all(1 <= x <= MAX_POSITION and is_share(shares[x]) for x in positions):
        raise ValueError("a share is malformed")
    values = (int.from_bytes(shares[x], "big") for x in positions)
    secret = sum(map(int.__mul__, _weights_at_zero(positions), values)) % PRIME
    if secret >> (8 * SECRET_BYTES):
        raise ValueError("the shares combine to no 32-byte secret")
    return secret.to_bytes(SECRET_BYTES, "big")


def _uniform(count: int) -> list[int]:
    """Field elements without bias: 33 random bytes modulo p, drawn again where they are not below `_MULTIPLE`.

    `secrets.randbelow(PRIME)` would throw every second draw away and ask the operating system for each alone.
    """
    kept: list[int] = []
    while len(kept) < count:
        fresh = secrets.token_bytes(SHARE_BYTES * (count - len(kept)))
        drawn = (int.from_bytes(fresh[i : i + SHARE_BYTES], "big") for i in range(0, len(fresh), SHARE_BYTES))
        kept += [value % PRIME for value in drawn if value < _MULTIPLE]
    return kept


def _evaluate(descending: Sequence[int], x: int) -> int:
    """Horner's rule, reduced once at the end: x is small, so that the value grows by a byte per coefficient."""
    value = 0
    for coefficient in descending:
        value = value * x + coefficient
    return value % PRIME


@lru_cache(maxsize=64)
def _weights_at_zero(positions: tuple[int, ...]) -> tuple[int, ...]:
    """Lagrange weights prod x_j / (x_j - x_i), j != i: the same for every secret of a survivor set."""
    return tuple(
        prod(others) * pow(prod(x_j - x_i for x_j in others), -1, PRIME) % PRIME
        for x_i in positions
        for others in [[x_j for x_j in positions if x_j != x_i]]
    )
