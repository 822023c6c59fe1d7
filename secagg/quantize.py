"""From a client's values to integers modulo 2^b, and from their sum back to numbers.

Fields, clip ranges and scales come from the policy, never from the data. The numpy here is the reference; where the
compiled kernel is there, it does the same passes to the same bytes. Must never: name a value in an error, or round with
randomness that is not cryptographic. Specification: docs/spec.md, sections "Encoding" and "Fields".
"""

import math
from collections.abc import Collection
from typing import Any, NoReturn, Protocol, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secagg import kernel
from secagg.arguments import kind_of
from secagg.errors import ConfigError
from secagg.field import Field, Kind
from secagg.layout import WHOLE, Values
from secagg.packing import dtype_for, modulo
from secagg.policy import Policy

Total: TypeAlias = "NDArray[np.uint32] | NDArray[np.uint64] | NDArray[np.float64]"
_QUANTIZE_CHUNK = 1 << 16  # values: few enough for the cache, enough to outweigh the calls
_STEP = 2.0**32  # one integer, in units of the last random bit
# A float64 has 52 bits behind the leading one. From 2^52 to 2^53 (times _STEP) the last of them is worth one integer:
# adding this number rounds the fraction away, and the low bits of the sum are the integer in two's complement. It lies
# in the middle (1.5), so that up to 2^51 integers can be added or taken away without leaving that range.
_MAGIC = 1.5 * 2.0**52 * _STEP
_BELOW_2_63 = math.nextafter(2.0**63, 0)  # a sum that was rounded up to 2^63 would become the least int64
_MAGIC_BITS = np.float64(_MAGIC).view(np.int64)


class Words(Protocol):
    """Source of uniform 32-bit words; `secagg.prg.Stream` is one."""

    def words(self, n: int) -> NDArray[np.uint32]:
        """(n,) uniform uint32, in memory that the caller may change."""


class _Piece:
    """The values of one field, and what they become. Never copied or pickled: they are the update."""

    def __init__(
        self,
        values: NDArray[Any],
        start: int,
        name: str,
        rounded: bool,
        clip_range: float,
        scale: float,
        coarse: int,
    ) -> None:
        self.values, self.start, self.name = values, start, name
        self.rounded, self.clip_range, self.scale, self.coarse = rounded, clip_range, scale, coarse

    def __reduce__(self) -> NoReturn:
        raise TypeError("a part of an update is never copied or pickled")

    @property
    def stop(self) -> int:
        return self.start + len(self.values)


class Quantised:
    """An update as integers modulo 2^b, made piece by piece as they are read: once, in order.

    Floats and weights are clipped, weighted, scaled and rounded. Rounding is stochastic: v becomes the integer nearest
    to v + u, u uniform among the odd multiples of 2^-32 between -1/2 and 1/2 (of 2^(value_bits - 53) above 21 value
    bits), and so one of its neighbours, with mean v to within 2^-32 of a step up to 21 value bits and to float64's own
    precision above. No value leaves `Field.bound`. Counts and integers are taken as they are.

    Args:
        update: what the policy's fields take (`secagg.layout.Layout.pack`), for a policy without a layout (d,) float32
            or float64 in the units of `policy.clip_range`; not to be changed until it has been read.
        policy: gives fields, weights and bits.
        client_id: whose public weight applies.
        stream: fresh randomness, one word a value that is rounded.
        copy: where given, (d,) of `dtype_for(bits)`, filled with the integers below 2^b as they are read: for whoever
            holds the update anyway and wants to hold the sum against it.

    Attributes:
        policy: as given.
        clip_rates: by field of floats, the fraction of its values outside its clip range.
        clip_rate: the fraction of all floats outside theirs.

    Raises:
        ConfigError: another field, shape or type, a count or weight out of its range, or values that are not finite
            (their number is named, never a value).
    """

    def __init__(
        self, update: Values, policy: Policy, client_id: str, stream: Words, copy: NDArray[Any] | None = None
    ) -> None:
        self.policy, self._stream, self._copy, self._read = policy, stream, copy, 0
        fields = policy.fields
        arrays = fields.pack(update)
        weighing = policy.weight(client_id), policy.largest_weight
        if fields.weight is not None:
            weighing = float(arrays[list(fields).index(fields.weight)][0]), policy.largest_weight
        places = zip(fields.places(), arrays, strict=True)
        self._pieces = [_piece(name, field, where.start, array, weighing) for (name, field, where), array in places]
        # Fresh memory for every piece would cost more than the arithmetic.
        self._floats = np.empty((2, min(_QUANTIZE_CHUNK, policy.length)))
        outside, values = 0, 0
        self.clip_rates: dict[str, float] = {}
        for piece in self._pieces:
            if fields[piece.name].kind is Kind.FLOAT:
                clipped = self._outside(piece)
                self.clip_rates[piece.name] = clipped / len(piece.values)
                outside, values = outside + clipped, values + len(piece.values)
        self.clip_rate = outside / values if values else 0.0

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
        begin, end = self._read, self._read + len(out)
        if end > self.policy.length:
            raise ValueError("an update is read once, and not beyond its end")
        for piece in self._pieces:
            for start in range(max(begin, piece.start), min(end, piece.stop), _QUANTIZE_CHUNK):
                stop = min(start + _QUANTIZE_CHUNK, end, piece.stop)
                part, into = piece.values[start - piece.start : stop - piece.start], out[start - begin : stop - begin]
                if piece.rounded:
                    self._round(piece, part, into)
                else:
                    into[:] = part  # of negative ones the low bits: two's complement
        self._read = end
        if self._copy is not None:
            self._copy[begin:end] = out
            modulo(self._copy[begin:end], self.policy.bits)

    def _round(self, piece: _Piece, part: NDArray[Any], out: NDArray[Any]) -> None:
        """Rounds values stochastically into `out`: adds a random fraction, then lets `_MAGIC` round.

        All values here are in units of 2^-32 of an integer, so that a random 32-bit word is a random fraction.
        """
        largest = self._largest(piece, part)
        drawn = self._stream.words(len(part)).view(np.int32)
        if piece.coarse:
            drawn >>= np.int32(piece.coarse)
        drawn |= np.int32(1)  # odd: never half a step, which could take the largest value one too far
        if piece.coarse:
            drawn <<= np.int32(piece.coarse)
        if kernel.takes(part, out):
            kernel.compiled.quantise(part, drawn, out, piece.clip_range, piece.scale, part.itemsize, out.itemsize)
            return
        values, words = self._floats[:, : len(part)]
        values[:] = part
        if largest > piece.clip_range:
            np.clip(values, -piece.clip_range, piece.clip_range, out=values)
        values *= piece.scale
        words[:] = drawn
        values += words
        values += _MAGIC
        mantissas = values.view(np.int64)
        if out.itemsize > 4:
            mantissas -= _MAGIC_BITS  # extends the sign
        out[:] = mantissas

    def _outside(self, piece: _Piece) -> int:
        """How many values of a field the clip range cuts."""
        outside = 0
        for start in range(0, len(piece.values), _QUANTIZE_CHUNK):
            part = piece.values[start : start + _QUANTIZE_CHUNK]
            if self._largest(piece, part) > piece.clip_range:
                outside += int(np.count_nonzero(np.abs(part, dtype=np.float64) > piece.clip_range))
        return outside

    @staticmethod
    def _largest(piece: _Piece, part: NDArray[Any]) -> float:
        """The largest magnitude in a part of a field, which is not to leave this class."""
        largest = max(-float(part.min()), float(part.max()))
        if not math.isfinite(largest):
            bad, of = piece.values.size - np.count_nonzero(np.isfinite(piece.values)), piece.values.size
            where = "the update" if piece.name == WHOLE else f"the field {piece.name!r}"
            raise ConfigError(f"{bad} of {of} values of {where} are NaN or infinite; look at the training")
        return largest


def _piece(name: str, field: Field, start: int, values: NDArray[Any], weighing: tuple[float, float]) -> _Piece:
    rounded, scale = field.kind in (Kind.FLOAT, Kind.WEIGHT), 1.0
    if rounded:
        scale = field.scale(*weighing) if field.kind is Kind.FLOAT else 1 / field.step()
    # So coarse that words add without rounding to values of any magnitude; finer up to 21 value bits.
    return _Piece(values, start, name, rounded, field.number, scale * _STEP, max(field.bits - 21, 0))


def quantize(update: Values, policy: Policy, client_id: str, stream: Words) -> tuple[NDArray[Any], float]:
    """The whole of `Quantised` at once.

    Returns:
        (d,) unsigned integers below 2^b, and the clip rate.

    Raises:
        ConfigError: as `Quantised` does.
    """
    quantised = Quantised(update, policy, client_id, stream)
    out = np.empty(policy.length, dtype_for(policy.bits))
    quantised.read_into(out)
    return modulo(out, policy.bits), quantised.clip_rate


def dequantize(total: NDArray[np.uint32] | NDArray[np.uint64], policy: Policy) -> NDArray[np.float64]:
    """The sum over the included clients, weighted where there are weights: (d,) float64, in the units of each field.

    Args:
        total: (d,) sum modulo 2^b; read as the representative in -2^(b-1)..2^(b-1)-1, whatever lies above bit b.
        policy: the one that the clients quantised under.

    Raises:
        ConfigError: a wrong shape or type.
    """
    values: NDArray[np.float64] = _lifted(total, policy).astype(np.float64)
    for _, field, where in policy.fields.places():
        values[where] *= field.step(policy.largest_weight)
    return values


def sums(total: Total, policy: Policy) -> dict[str, Any]:
    """The sum over the included clients by field, in the shapes that the layout says and nested as its names are.

    Floats are weighted where there are weights, public or private. Counts, and integers of step 1, are int64: exact.

    Args:
        total: (d,) sum modulo 2^b (`ServerSession.result`), or what `dequantize` made of it: a driver's `total`, in
            which a sum of `integers` beyond 2^53 is rounded.
        policy: the one that the clients quantised under.

    Raises:
        ConfigError: a wrong shape or type.
    """
    values, pieces = _reals(total, policy), []
    integers = np.minimum(values, _BELOW_2_63) if total.dtype == np.float64 else _lifted(total, policy)
    for _, field, where in policy.fields.places():
        exact = field.kind in (Kind.COUNT, Kind.INTEGER) and field.step() == 1
        pieces.append(integers[where].astype(np.int64) if exact else values[where])
    return policy.fields.unpack(pieces)


def means(total: Total, policy: Policy, included: Collection[str]) -> dict[str, Any]:
    """The mean over the included clients by field: of floats the weighted one where there are weights.

    Args:
        total: as of `sums`.
        policy: the one that the clients quantised under.
        included: who is in the sum: `ServerSession.included`, or a driver's.

    Raises:
        ConfigError: a wrong shape or type, nobody included, or private weights that add up to nothing.
    """
    if not included:
        raise ConfigError("a mean of nobody: `included` names no client; give ServerSession.included")
    fields, values = policy.fields, _reals(total, policy)
    weights = math.fsum(policy.weight(client_id) for client_id in included)
    for _, field, where in fields.places():
        if field.kind is Kind.WEIGHT:
            weights = float(values[where][0])
    if not weights > 0:
        raise ConfigError("the private weights of the included clients add up to nothing: there is no weighted mean")
    return fields.unpack(
        [
            values[where] / (weights if field.kind is Kind.FLOAT else len(included))
            for _, field, where in fields.places()
        ]
    )


def _reals(total: Any, policy: Policy) -> NDArray[np.float64]:
    if isinstance(total, np.ndarray) and total.dtype == np.float64 and total.shape == (policy.length,):
        return total
    return dequantize(total, policy)


def _lifted(total: NDArray[Any], policy: Policy) -> NDArray[Any]:
    """(d,) representatives in -2^(b-1)..2^(b-1)-1, in fresh memory."""
    dtype = dtype_for(policy.bits)
    if not isinstance(total, np.ndarray) or total.shape != (policy.length,) or total.dtype != dtype:
        told = f"{total.dtype} of shape {total.shape}" if isinstance(total, np.ndarray) else kind_of(total)
        raise ConfigError(f"the sum is {told}; the policy says {dtype} of shape ({policy.length},)")
    spare = 8 * dtype.itemsize - policy.bits
    lifted: NDArray[Any] = (total << dtype.type(spare)).view(f"i{dtype.itemsize}")
    lifted >>= spare
    return lifted
