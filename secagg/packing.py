"""Vectors modulo 2^b on the wire: bit planes, which a server adds as they lie, without unpacking them.

The numpy here is the reference; where the compiled kernel is there, it does the same passes to the same bytes. Must
never: name a value in an error. Specification: docs/spec.md, section "Encoding"; why planes: docs/adr/0006.
"""

from collections.abc import Iterator
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg import kernel
from secagg.encoding import Buffer

BLOCK = 1 << 16
"""Values that are packed together: the wire format's blocks, and few enough for the cache."""

ROWS = 32
"""A plane's word holds a bit of so many values, which lie a row apart from each other in the vector."""

_WORD_BYTES = 4
# To exchange rows and bits, ever smaller squares change places across the diagonal (Hacker's Delight, section 7-3):
# squares of so many rows and bits, and the bits of the upper left one.
_SQUARES = ((16, 0x0000FFFF), (8, 0x00FF00FF), (4, 0x0F0F0F0F), (2, 0x33333333), (1, 0x55555555))


def dtype_for(bits: int) -> np.dtype[Any]:
    """The machine word that holds values modulo 2^bits: uint32 up to 32 bits, else uint64."""
    return np.dtype(np.uint32 if bits <= 32 else np.uint64)


def modulo(values: NDArray[Any], bits: int) -> NDArray[Any]:
    """Reduces unsigned integers modulo 2^bits, in place.

    Args:
        values: of any shape and of `dtype_for(bits)`, or any other unsigned type of that many bits.
        bits: 1 to the width of that type.

    Returns:
        The same array.
    """
    values &= values.dtype.type((1 << bits) - 1)
    return values


def packed_size(count: int, bits: int) -> int:
    """Bytes that `count` values of `bits` bits take on the wire: count * bits / 8, with `count` rounded up to 32s."""
    return _lanes(count) * _WORD_BYTES * bits


def pack(vector: NDArray[Any], bits: int) -> bytes:
    """The low `bits` bits of every value, as bit planes in blocks of 2^16 values (the last may be shorter).

    A block is read as 32 rows of equal length L, filled up with zeros. Plane k, the lowest first, is L little-endian
    words of 32 bits; bit r of word l is bit k of value r * L + l.

    Args:
        vector: (d,) uint32 or uint64.
        bits: 8 to 64.

    Returns:
        `packed_size(d, bits)` bytes.
    """
    out = np.empty(packed_size(len(vector), bits), np.uint8)
    pack_into(vector, bits, out)
    return out.tobytes()


def pack_into(vector: NDArray[Any], bits: int, out: NDArray[np.uint8]) -> None:
    """`pack` into an array of `packed_size(d, bits)` bytes."""
    # The kernel sees bytes only: of other words than these it would make another vector, silently.
    if vector.dtype == dtype_for(bits) and kernel.takes(vector, out):
        kernel.compiled.pack_into(vector, out, bits)
        return
    for block, planes, rows, room in _blocks(vector, out, bits):
        for first in range(0, bits, ROWS):
            values = rows.reshape(-1)
            values[: len(block)] = block >> block.dtype.type(first) if first else block
            values[len(block) :] = 0
            _transpose(rows, room)
            planes[first : first + ROWS] = rows[: bits - first]


def unpack(data: Buffer, count: int, bits: int) -> NDArray[Any]:
    """Inverse of `pack`: (count,) of `dtype_for(bits)`.

    Raises:
        ValueError: another length than `count` values take, or padding bits that are not zero.
    """
    packed, out = checked(data, count, bits), np.empty(count, dtype_for(bits))
    if kernel.compiled is not None:
        kernel.compiled.unpack_into(out, packed, bits)
        return out
    for block, planes, rows, room in _blocks(out, packed, bits):
        for first in range(0, bits, ROWS):
            rows[: bits - first] = planes[first : first + ROWS]
            rows[bits - first :] = 0
            _transpose(rows, room)
            values = rows.reshape(-1)[: len(block)]
            if first == 0:
                block[:] = values
            else:
                block |= values.astype(out.dtype) << out.dtype.type(first)
    return out


def add_packed(total: NDArray[np.uint8], data: Buffer, count: int, bits: int) -> None:
    """Adds a packed vector to another one, modulo 2^bits, in place and as they lie.

    Args:
        total: (packed_size(count, bits),) bytes, contiguous, with zero padding: what `pack` made, or zeros.
        data: what `pack` made, from anybody.
        count: d.
        bits: b, 8 to 64.

    Raises:
        ValueError: another length than d values take, or padding bits that are not zero; `total` is then unchanged.
    """
    packed = checked(data, count, bits)
    if kernel.compiled is not None:
        kernel.compiled.add_packed(total, packed, count, bits)
        return
    room = np.empty((3, packed_size(min(count, BLOCK), 1)), np.uint8)
    for start in range(0, count, BLOCK):
        size = packed_size(min(count - start, BLOCK), 1)
        carry, differ, changes = room[:, :size]
        carry.fill(0)
        first = packed_size(start, bits)
        for place in range(first, first + bits * size, size):  # a full adder: the carry changes where it may
            sums = total[place : place + size]
            np.bitwise_xor(sums, packed[place : place + size], out=differ)
            np.bitwise_xor(sums, carry, out=changes)
            changes &= differ
            changes ^= sums
            np.bitwise_xor(differ, carry, out=sums)
            carry, changes = changes, carry


def values_at(data: Buffer, where: slice, count: int, bits: int) -> NDArray[Any]:
    """A few of the `count` values of a packed vector, read from its planes: those at `where`, of `dtype_for(bits)`.

    Raises:
        ValueError: as `unpack`.
    """
    packed, places = checked(data, count, bits), range(count)[where]
    out = np.zeros(len(places), dtype_for(bits))
    for i, place in enumerate(places):
        planes = _planes(packed, place - place % BLOCK, count, bits)
        row, lane = divmod(place % BLOCK, planes.shape[1])
        out[i] = sum((word >> row & 1) << k for k, word in enumerate(planes[:, lane].tolist()))
    return out


def checked(data: Buffer, count: int, bits: int) -> NDArray[np.uint8]:
    """The bytes of a packed vector. ValueError for another length, or padding bits that are not zero."""
    packed = np.frombuffer(data, np.uint8)
    if len(packed) != packed_size(count, bits):
        raise ValueError(f"{len(packed)} bytes do not hold exactly {count} values of {bits} bits")
    words, padding = _padding(packed, count, bits)
    if (words & padding).any():
        raise ValueError("the padding bits are not zero")
    return packed


def without_padding(data: Buffer, count: int, bits: int) -> bytes:
    """The same planes with zeros for padding."""
    packed = np.frombuffer(bytearray(data), np.uint8)
    words, padding = _padding(packed, count, bits)
    words &= ~padding
    return packed.tobytes()


def _padding(packed: NDArray[np.uint8], count: int, bits: int) -> tuple[NDArray[np.uint32], NDArray[np.uint32]]:
    """The last words of the planes of the last block, and which of their bits belong to no value."""
    start = count - (count % BLOCK or BLOCK) if count else 0
    planes = _planes(packed, start, count, bits)
    lanes = planes.shape[1]
    padding = np.zeros(lanes, np.uint32)
    for place in range(count - start, ROWS * lanes):
        padding[place % lanes] |= np.uint32(1 << place // lanes)
    return planes[:, -ROWS:], padding[-ROWS:]


def _blocks(vector: NDArray[Any], packed: NDArray[np.uint8], bits: int) -> Iterator[tuple[NDArray[Any], ...]]:
    """Each block's values and planes, and room for a transposition: (32, L) words, and half of that."""
    whole = np.empty((ROWS + ROWS // 2) * _lanes(min(len(vector), BLOCK)), np.uint32)
    for start in range(0, len(vector), BLOCK):
        planes = _planes(packed, start, len(vector), bits)
        rows, room, _ = np.split(whole, [ROWS * planes.shape[1], (ROWS + ROWS // 2) * planes.shape[1]])
        yield vector[start : start + BLOCK], planes, rows.reshape(ROWS, -1), room


def _planes(packed: NDArray[np.uint8], start: int, count: int, bits: int) -> NDArray[np.uint32]:
    """The planes of the block that begins at value `start` of `count`: (bits, L) words, as they lie."""
    stop = min(start + BLOCK, count)
    octets = packed[packed_size(start, bits) : packed_size(stop, bits)]
    return octets.view("<u4").reshape(bits, _lanes(stop - start))


def _transpose(rows: NDArray[np.uint32], room: NDArray[np.uint32]) -> None:
    """Exchanges rows and bits of (32, L) words, in place: bit k of row r becomes bit r of row k.

    `room` is of half that size: fresh memory would cost as much as the passes.
    """
    for side, kept in _SQUARES:
        pairs = rows.reshape(-1, 2, side, rows.shape[1])
        upper, lower = pairs[:, 0], pairs[:, 1]
        differ = room.reshape(-1, side, rows.shape[1])
        np.right_shift(upper, np.uint32(side), out=differ)
        differ ^= lower
        differ &= np.uint32(kept)
        lower ^= differ
        differ <<= np.uint32(side)
        upper ^= differ


def _lanes(count: int) -> int:
    return -(-count // ROWS)
