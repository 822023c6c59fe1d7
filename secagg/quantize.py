"""From a float vector to integers modulo 2^b and back, and their packing to b bits on the wire.

Clip range and scale come from the policy, never from the data. The numpy here is the reference; where the compiled
kernel is there (`KERNEL`), it does the same passes to the same bytes. Must never: name a value in an error, or round
with randomness that is not cryptographic. Specification: docs/spec.md, section "Encoding".
"""

import math
from collections.abc import Iterator
from importlib import import_module
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secagg.encoding import Buffer
from secagg.errors import ConfigError
from secagg.policy import Policy

_kernel: Any
try:
    _kernel = import_module("secagg._kernel")
except ImportError:  # installed without a compiler
    _kernel = None

KERNEL = _kernel is not None
"""Whether the compiled kernel is in use: the same bytes in less time (docs/performance.md)."""

BLOCK = 1 << 16
"""Values that are packed together: the wire format's blocks, and few enough for the cache."""

_WIDTHS = (64, 32, 16, 8, 4, 2, 1)
_LANE_MASKS = {4: 0x0F0F, 2: 0x03030303}
_QUANTIZE_CHUNK = 1 << 16  # values: few enough for the cache, enough to outweigh the calls
_STEP = 2.0**32  # one integer, in units of the last random bit
# A float64 has 52 bits behind the leading one. From 2^52 to 2^53 (times _STEP) the last of them is worth one integer:
# adding this number rounds the fraction away, and the low bits of the sum are the integer in two's complement. It lies
# in the middle (1.5), so that up to 2^51 integers can be added or taken away without leaving that range.
_MAGIC = 1.5 * 2.0**52 * _STEP
_MAGIC_BITS = np.float64(_MAGIC).view(np.int64)


class Words(Protocol):
    """Source of uniform 32-bit words; `secagg.prg.Stream` is one."""

    def words(self, n: int) -> NDArray[np.uint32]:
        """(n,) uniform uint32, in memory that the caller may change."""


def dtype_for(bits: int) -> np.dtype[Any]:
    """The machine word that holds values modulo 2^bits: uint32 up to 32 bits, else uint64."""
    return np.dtype(np.uint32 if bits <= 32 else np.uint64)


class Quantised:
    """An update as integers modulo 2^b, made piece by piece as they are read: once, in order.

    It clips, weights, scales and rounds. Rounding is stochastic: v becomes the integer nearest to v + u, u uniform
    among the odd multiples of 2^-32 between -1/2 and 1/2 (of 2^(value_bits - 53) above 21 value bits), and so one of
    its neighbours, with mean v to within 2^-32 of a step up to 21 value bits and to float64's own precision above. No
    value leaves `policy.bound(client_id)`.

    Args:
        update: (d,) float32 or float64, in the units of `policy.clip_range`; not to be changed until it has been read.
        policy: gives d, clip range, weights and bits.
        client_id: whose public weight applies.
        stream: fresh randomness, one word a value.

    Attributes:
        policy: as given.
        clip_rate: fraction of the values outside the clip range.

    Raises:
        ConfigError: a wrong shape or type, or values that are not finite (their number is named, never a value).
    """

    def __init__(
        self, update: NDArray[np.float32] | NDArray[np.float64], policy: Policy, client_id: str, stream: Words
    ) -> None:
        if update.shape != (policy.length,) or update.dtype not in (np.float32, np.float64):
            raise ConfigError(
                f"the update is {update.dtype} of shape {update.shape}; the policy needs float32 or float64 of shape "
                f"({policy.length},)"
            )
        self._update, self._stream, self._read = update, stream, 0
        self.policy, self._clip_range = policy, policy.clip_range
        self._scale = policy.scale(client_id) * _STEP
        # So coarse that words add without rounding to values of any magnitude; finer up to 21 value bits.
        self._coarse = np.int32(max(policy.value_bits - 21, 0))
        # Fresh memory for every piece would cost more than the arithmetic.
        self._floats = np.empty((2, min(_QUANTIZE_CHUNK, policy.length)))
        outside = 0
        for start in range(0, policy.length, _QUANTIZE_CHUNK):
            part = update[start : start + _QUANTIZE_CHUNK]
            if self._largest(part) > self._clip_range:
                outside += int(np.count_nonzero(np.abs(part, dtype=np.float64) > self._clip_range))
        self.clip_rate = outside / policy.length

    def __repr__(self) -> str:
        return "<Quantised>"

    def read_into(self, out: NDArray[Any]) -> None:
        """Fills `out` with the next len(out) integers, of which the low b bits count.

        Args:
            out: (k,) of `dtype_for(bits)`, contiguous.

        Raises:
            ConfigError: the update now holds values that are not finite.
            ValueError: more than is left.
        """
        if self._read + len(out) > len(self._update):
            raise ValueError("an update is read once, and not beyond its end")
        for start in range(0, len(out), _QUANTIZE_CHUNK):
            self._round(out[start : start + _QUANTIZE_CHUNK])

    def _round(self, out: NDArray[Any]) -> None:
        """Rounds the next values stochastically into `out`: adds a random fraction, then lets `_MAGIC` round.

        All values here are in units of 2^-32 of an integer, so that a random 32-bit word is a random fraction.
        """
        part = self._update[self._read : self._read + len(out)]
        self._read += len(out)
        largest = self._largest(part)
        drawn = self._stream.words(len(part)).view(np.int32)
        if self._coarse:
            drawn >>= self._coarse
        drawn |= np.int32(1)  # odd: never half a step, which could take the largest value one too far
        if self._coarse:
            drawn <<= self._coarse
        if _kernel is not None and part.flags.c_contiguous and out.flags.c_contiguous:
            _kernel.quantise(part, drawn, out, self._clip_range, self._scale, part.itemsize, out.itemsize)
            return
        values, words = self._floats[:, : len(part)]
        values[:] = part
        if largest > self._clip_range:
            np.clip(values, -self._clip_range, self._clip_range, out=values)
        values *= self._scale
        words[:] = drawn
        values += words
        values += _MAGIC
        mantissas = values.view(np.int64)
        if out.itemsize > 4:
            mantissas -= _MAGIC_BITS  # extends the sign
        out[:] = mantissas

    def _largest(self, part: NDArray[Any]) -> float:
        """The largest magnitude in a part of the update, which is not to leave this class."""
        largest = max(-float(part.min()), float(part.max()))
        if not math.isfinite(largest):
            bad = self._update.size - np.count_nonzero(np.isfinite(self._update))
            raise ConfigError(
                f"{bad} of {self._update.size} values of the update are NaN or infinite; look at the training"
            )
        return largest


def quantize(
    update: NDArray[np.float32] | NDArray[np.float64], policy: Policy, client_id: str, stream: Words
) -> tuple[NDArray[Any], float]:
    """The whole of `Quantised` at once.

    Returns:
        (d,) unsigned integers below 2^b, and the clip rate.

    Raises:
        ConfigError: as `Quantised` does.
    """
    quantised = Quantised(update, policy, client_id, stream)
    out = np.empty(policy.length, dtype_for(policy.bits))
    quantised.read_into(out)
    if policy.bits != 8 * out.itemsize:
        out &= out.dtype.type(2**policy.bits - 1)
    return out, quantised.clip_rate


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


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take on the wire: count * bits / 8, and at most 2 for the rounding."""
    rest = count % BLOCK
    return (count - rest) * bits // 8 + sum(math.ceil(rest * width / 8) for width in _WIDTHS if bits & width)


def pack(vector: NDArray[Any], bits: int) -> bytes:
    """The low `bits` bits of every value, in blocks of 2^16 values (the last may be shorter) and planes within those.

    The widths of the planes are the powers of two that add up to `bits`, in descending order, and take the bits of a
    value from the lowest up. In a plane the values follow one another, little-endian, and zeros fill the last byte.

    Args:
        vector: (d,) uint32 or uint64, contiguous.
        bits: 8 to 64.

    Returns:
        `packed_size(d, bits)` bytes.
    """
    out = np.empty(packed_size(len(vector), bits), np.uint8)
    pack_into(vector, bits, out)
    return out.tobytes()


def _as_words(vector: NDArray[Any], bits: int) -> bool:
    """Whether the kernel, which sees bytes only, would read this vector as it is meant."""
    return vector.dtype == dtype_for(bits) and vector.flags.c_contiguous


def pack_into(vector: NDArray[Any], bits: int, out: NDArray[np.uint8]) -> None:
    """`pack` into an array of `packed_size(d, bits)` bytes."""
    if _kernel is not None and _as_words(vector, bits) and out.flags.c_contiguous:
        _kernel.pack_into(vector, out, bits)
        return
    for where, octets in _blocks(len(vector), bits, out):
        _pack_block(vector[where], bits, octets)


def accumulate(total: NDArray[Any], data: Buffer, bits: int) -> None:
    """Adds a packed vector to `total`, in place and block by block.

    Args:
        total: (d,) of `dtype_for(bits)`, contiguous; of its values the low b bits count.
        data: what `pack` made, from anybody.
        bits: b, 8 to 64.

    Raises:
        ValueError: another length than d values take, or padding bits that are not zero; `total` is then unchanged.
    """
    packed = _checked(data, len(total), bits)
    if _kernel is not None and _as_words(total, bits):
        _kernel.add_packed(total, packed, bits)
        return
    for where, values in unpacked(data, len(total), bits):
        total[where] += values


def unpack(data: Buffer, count: int, bits: int) -> NDArray[Any]:
    """Inverse of `pack`: (count,) of `dtype_for(bits)`.

    Raises:
        ValueError: another length than `count` values take, or padding bits that are not zero.
    """
    out = np.empty(count, dtype_for(bits))
    for where, values in unpacked(data, count, bits):
        out[where] = values
    return out


def unpacked(data: Buffer, count: int, bits: int) -> Iterator[tuple[slice, NDArray[Any]]]:
    """`unpack` block by block: where each block lies in the vector, and its values, in memory that the next one reuses.

    Raises:
        ValueError: as `unpack` does, before the first block.
    """
    packed = _checked(data, count, bits)
    # Used again for every block: fresh memory costs a tenth of the unpacking.
    values, above = np.empty((2, min(count, BLOCK)), dtype_for(bits))
    rest = np.empty(math.ceil(len(values) / 8) * 8, np.uint8)
    for where, octets in _blocks(count, bits, packed):
        length = where.stop - where.start
        _unpack_block(octets, bits, values[:length], above[:length], rest)
        yield where, values[:length]


def _checked(data: Buffer, count: int, bits: int) -> NDArray[np.uint8]:
    """The bytes of a packed vector. ValueError for another length, or padding bits that are not zero."""
    packed = np.frombuffer(data, np.uint8)
    if len(packed) != packed_size(count, bits):
        raise ValueError(f"{len(packed)} bytes do not hold exactly {count} values of {bits} bits")
    start = count - (count % BLOCK or BLOCK)
    length = count - start  # of the last block; the others hold a multiple of 8 values
    for _, width, plane in _planes(length, bits, packed[start * bits // 8 :]):
        if length * width % 8 and plane[-1] >> (length * width % 8):
            raise ValueError("the padding bits are not zero")
    return packed


def _pack_block(block: NDArray[Any], bits: int, out: NDArray[np.uint8]) -> None:
    rest = np.zeros(math.ceil(len(block) / 8) * 8, np.uint8)
    if bits % 8:
        rest[: len(block)] = block >> (bits - bits % 8)
    for first, width, plane in _planes(len(block), bits, out):
        if width >= 8:
            plane.view(f"<u{width // 8}")[:] = block >> first if first else block
        else:
            plane[:] = _squeeze(rest, first % 8, width)[: len(plane)]


def _unpack_block(
    octets: NDArray[np.uint8], bits: int, out: NDArray[Any], above: NDArray[Any], rest: NDArray[np.uint8]
) -> None:
    """Unpacks into `out`; `above` and `rest` are room of the same length, `rest` rounded up to a multiple of 8."""
    rest.fill(0)
    for first, width, plane in _planes(len(out), bits, octets):
        if first == 0:
            out[:] = plane.view(f"<u{width // 8}")
        elif width >= 8:
            above[:] = plane.view(f"<u{width // 8}")
            above <<= first
            out |= above
        else:
            spread = _spread(plane, first % 8, width)
            rest[: len(spread)] |= spread[: len(rest)]
    if bits % 8:
        above[:] = rest[: len(out)]
        above <<= bits - bits % 8
        out |= above


def _blocks(count: int, bits: int, packed: NDArray[np.uint8]) -> Iterator[tuple[slice, NDArray[np.uint8]]]:
    """Where each block lies in the vector, and its bytes."""
    for start in range(0, count, BLOCK):
        stop = min(start + BLOCK, count)
        yield slice(start, stop), packed[start * bits // 8 : packed_size(stop, bits)]


def _planes(count: int, bits: int, octets: NDArray[np.uint8]) -> Iterator[tuple[int, int, NDArray[np.uint8]]]:
    """The planes of a block of `count` values: lowest bit of a value in it, width, bytes."""
    first = start = 0
    for width in _WIDTHS:
        if bits & width:
            stop = start + math.ceil(count * width / 8)
            yield first, width, octets[start:stop]
            first, start = first + width, stop


def _squeeze(octets: NDArray[np.uint8], first: int, width: int) -> NDArray[np.uint8]:
    """The bits from `first` on of every octet, 4, 2 or 1 of them, one after the other; takes a multiple of 8 octets."""
    if width == 1:
        return np.packbits(octets & np.uint8(1 << first), bitorder="little")
    lanes = octets.view(f"<u{8 // width}")  # a lane is what becomes one byte
    lanes = (lanes >> first if first else lanes) & _LANE_MASKS[width]
    if width == 2:
        lanes |= lanes >> 12
    lanes |= lanes >> (8 - width)
    return lanes.astype(np.uint8)


def _spread(packed: NDArray[np.uint8], first: int, width: int) -> NDArray[np.uint8]:
    """Inverse of `_squeeze`: octets with zeros around these bits."""
    if width == 1:
        return np.unpackbits(packed, bitorder="little") * np.uint8(1 << first)
    lanes = packed.astype(f"<u{8 // width}")
    if width == 2:
        lanes |= lanes << 12
    lanes |= lanes << (8 - width)
    lanes &= _LANE_MASKS[width]
    lanes <<= first
    return lanes.view(np.uint8)
