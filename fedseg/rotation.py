"""Signed Hadamard rotations: they spread a vector evenly, and turn back to the same bits on every machine.

Walsh and Hadamard's transform adds in one fixed order, so of whole numbers nothing is rounded and of floats the same
everywhere. The signs in front of it follow from a public key.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.prg import Stream

BLOCK = 1 << 12
"""Values that are rotated together at most: enough to spread a vector evenly, and the padding stays small."""


def block_of(values: int) -> int:
    """Of so many values how many are rotated together: a power of two."""
    return min(BLOCK, 1 << (values - 1).bit_length())


def padded(values: int) -> int:
    """So many values, filled up to whole blocks."""
    block = block_of(values)
    return -(-values // block) * block


def signs(key: bytes, n: int) -> NDArray[np.int64]:
    """(n,) of 1 and -1 that 32 public bytes decide."""
    bits = np.unpackbits(Stream(key).words(-(-n // 32)).view(np.uint8))
    return 1 - 2 * bits[:n].astype(np.int64)


def hadamard(values: NDArray[Any], block: int) -> NDArray[Any]:
    """Walsh and Hadamard's transform of each block, a power of two, not normalised: additions in one fixed order."""
    half = 1
    while half < block:
        pairs = values.reshape(-1, 2, half)
        values = np.stack((pairs[:, 0] + pairs[:, 1], pairs[:, 0] - pairs[:, 1]), axis=1)
        half *= 2
    return values.reshape(-1)
