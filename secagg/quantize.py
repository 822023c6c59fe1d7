"""From a float vector to integers modulo 2^b and back, and their packing to b bits on the wire.

Clip range and scale come from the policy, never from the data. Must never: name a value in an error, or round with
randomness that is not cryptographic. Specification: docs/spec.md, section "Encoding".
"""

import math
from collections.abc import Iterator
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secagg.errors import ConfigError
from secagg.policy import Policy

_QUANTIZE_CHUNK = 1 << 15  # values; one chunk of float64 stays in the second-level cache
_PACK_CHUNK = 1 << 17  # values; amortises numpy's call overhead over the columns
_WORD = 64


class Words(Protocol):
    """Source of uniform 32-bit words; `secagg.prg.Stream` is one."""

    def words(self, n: int) -> NDArray[np.uint32]:
        """(n,) uniform uint32."""


def dtype_for(bits: int) -> np.dtype[Any]:
    """The machine word that holds values modulo 2^bits: uint32 up to 32 bits, else uint64."""
    return np.dtype(np.uint32 if bits <= 32 else np.uint64)


def quantize(
    update: NDArray[np.float32] | NDArray[np.float64], policy: Policy, client_id: str, stream: Words
) -> tuple[NDArray[Any], float]:
    """Clips, weights, scales and rounds an update to integers modulo 2^b.

    Rounding is stochastic: v becomes floor(v) or floor(v) + 1, with mean v to within 2^-32 of a step up to 21 value
    bits and to float64's own precision above.

    Args:
        update: (d,) float32 or float64, in the units of `policy.clip_range`.
        policy: gives d, clip range, weights and bits.
        client_id: whose public weight applies.
        stream: fresh randomness, one word a value.

    Returns:
        (d,) unsigned integers below 2^b, and the clip rate: the fraction of values outside the clip range.

    Raises:
        ConfigError: a wrong shape or type, or values that are not finite (their number is named, never a value).
    """
    largest = _check_update(update, policy)
    # largest_value is a power of two, so that clip_range * scale never rounds to more than it.
    scale = policy.largest_value * policy.weight(client_id) / policy.largest_weight / policy.clip_range
    # As many random bits below the point as float64 has left, so that the sum never rounds up to the next integer.
    fraction_bits = min(32, 53 - policy.value_bits)
    surplus, unit = np.uint32(32 - fraction_bits), 2.0**-fraction_bits
    out = np.empty(policy.length, dtype_for(policy.bits))
    signed = out.view(f"i{out.itemsize}")
    clipped = 0
    for start in range(0, policy.length, _QUANTIZE_CHUNK):
        part = update[start : start + _QUANTIZE_CHUNK]
        values = part.astype(np.float64)
        if largest > policy.clip_range:
            clipped += int(np.count_nonzero(np.abs(values) > policy.clip_range))
            np.clip(values, -policy.clip_range, policy.clip_range, out=values)
        values *= scale
        fractions = (stream.words(len(part)) >> surplus).astype(np.float64)
        fractions *= unit
        values += fractions
        # The bit budget of the policy fits every value into the signed word.
        signed[start : start + _QUANTIZE_CHUNK] = np.floor(values, out=values)
    if policy.bits != 8 * out.itemsize:
        out &= out.dtype.type(2**policy.bits - 1)
    return out, clipped / policy.length


def _check_update(update: NDArray[Any], policy: Policy) -> float:
    """The largest magnitude in the update, which is not to leave this module."""
    if update.shape != (policy.length,) or update.dtype not in (np.float32, np.float64):
        raise ConfigError(
            f"the update is {update.dtype} of shape {update.shape}; the policy needs float32 or float64 of shape "
            f"({policy.length},)"
        )
    largest = max(-float(update.min()), float(update.max()))
    if not math.isfinite(largest):
        bad = update.size - np.count_nonzero(np.isfinite(update))
        raise ConfigError(f"{bad} of {update.size} values of the update are NaN or infinite; look at the training")
    return largest


def dequantize(total: NDArray[np.uint32] | NDArray[np.uint64], policy: Policy) -> NDArray[np.float64]:
    """The weighted sum over the included clients: (d,) float64, in the units of `policy.clip_range`.

    Args:
        total: (d,) sum modulo 2^b; read as the representative in -2^(b-1)..2^(b-1)-1, whatever lies above bit b.
        policy: the one that the clients quantised under.

    Raises:
        ConfigError: a wrong shape or type.
    """
    dtype = dtype_for(policy.bits)
    if total.shape != (policy.length,) or total.dtype != dtype:
        raise ConfigError(
            f"the sum is {total.dtype} of shape {total.shape}; the policy says {dtype} of shape ({policy.length},)"
        )
    spare = 8 * dtype.itemsize - policy.bits
    lifted = (total << dtype.type(spare)).view(f"i{dtype.itemsize}")
    lifted >>= spare
    values: NDArray[np.float64] = lifted * (policy.largest_weight * policy.clip_range / policy.largest_value)
    return values


def pack(vector: NDArray[Any], bits: int) -> bytes:
    """The low `bits` bits of every value, little-endian, one after the other; zeros fill the last byte.

    Args:
        vector: (d,) unsigned.
        bits: 8 to 64.

    Returns:
        ceil(d * bits / 8) bytes.
    """
    if bits in (8, 16, 32, 64):
        return vector.astype(f"<u{bits // 8}").tobytes()
    size = math.ceil(len(vector) * bits / 8)
    chunks = (vector[start : start + _PACK_CHUNK] for start in range(0, len(vector), _PACK_CHUNK))
    return b"".join(_pack_chunk(chunk, bits) for chunk in chunks)[:size]


def unpack(data: bytes, count: int, bits: int) -> NDArray[Any]:
    """Inverse of `pack`: (count,) of `dtype_for(bits)`.

    Raises:
        ValueError: another length than `count` values take, or padding bits that are not zero.
    """
    if len(data) != math.ceil(count * bits / 8):
        raise ValueError(f"{len(data)} bytes do not hold exactly {count} values of {bits} bits")
    dtype = dtype_for(bits)
    if bits in (8, 16, 32, 64):
        return np.frombuffer(data, f"<u{bits // 8}").astype(dtype)
    if count * bits % 8 and data[-1] >> (count * bits % 8):
        raise ValueError("the padding bits are not zero")
    out = np.empty(count, dtype)
    octets = np.frombuffer(data, np.uint8)
    for start in range(0, count, _PACK_CHUNK):
        part = out[start : start + _PACK_CHUNK]
        first = start * bits // 8
        part[:] = _unpack_chunk(octets[first : first + _PACK_CHUNK * bits // 8], bits)[: len(part)]
    return out


def _places(bits: int) -> Iterator[tuple[int, int, int, int]]:
    """Where the values of one period go: value, its first word, shift in it, bits that spill into the next word."""
    for value in range(_WORD // math.gcd(bits, _WORD)):
        word, shift = divmod(value * bits, _WORD)
        yield value, word, shift, shift + bits - _WORD


def _pack_chunk(chunk: NDArray[Any], bits: int) -> bytes:
    """One period (the fewest values that fill whole words) per column, so that every numpy call runs along a row."""
    period = _WORD // math.gcd(bits, _WORD)
    padded = np.zeros((math.ceil(len(chunk) / period), period), np.uint64)
    padded.ravel()[: len(chunk)] = chunk
    values = np.ascontiguousarray(padded.T)
    values &= np.uint64(2**bits - 1)
    words = np.zeros((period * bits // _WORD, len(padded)), np.uint64)
    for value, word, shift, spill in _places(bits):
        words[word] |= values[value] << np.uint64(shift)
        if spill > 0:
            words[word + 1] |= values[value] >> np.uint64(bits - spill)
    return np.ascontiguousarray(words.T, "<u8").tobytes()


def _unpack_chunk(octets: NDArray[np.uint8], bits: int) -> NDArray[np.uint64]:
    """At least the values that lie in these bytes, zeros after them."""
    period = _WORD // math.gcd(bits, _WORD)
    columns = math.ceil(len(octets) * 8 / (period * bits))
    padded = np.zeros((columns, period * bits // _WORD), "<u8")
    padded.view(np.uint8).ravel()[: len(octets)] = octets
    words = np.ascontiguousarray(padded.T)
    values = np.empty((period, columns), np.uint64)
    for value, word, shift, spill in _places(bits):
        values[value] = words[word] >> np.uint64(shift)
        if spill > 0:
            values[value] |= words[word + 1] << np.uint64(bits - spill)
    values &= np.uint64(2**bits - 1)
    return values.T.ravel()
