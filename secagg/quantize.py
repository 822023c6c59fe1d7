"""From a float vector to integers modulo 2^b and back.

Clip range and scale come from the policy, never from the data. The numpy here is the reference; where the compiled
kernel is there, it does the same passes to the same bytes. Must never: name a value in an error, or round
with randomness that is not cryptographic. Specification: docs/spec.md, section "Encoding".
"""

import math
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from secagg import kernel
from secagg.errors import ConfigError
from secagg.packing import dtype_for, modulo
from secagg.policy import Policy

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
        copy: where given, (d,) of `dtype_for(bits)`, filled with the integers below 2^b as they are read: for whoever
            holds the update anyway and wants to hold the sum against it.

    Attributes:
        policy: as given.
        clip_rate: fraction of the values outside the clip range.

    Raises:
        ConfigError: a wrong shape or type, or values that are not finite (their number is named, never a value).
    """

    def __init__(
        self,
        update: NDArray[np.float32] | NDArray[np.float64],
        policy: Policy,
        client_id: str,
        stream: Words,
        copy: NDArray[Any] | None = None,
    ) -> None:
        if update.shape != (policy.length,) or update.dtype not in (np.float32, np.float64):
            raise ConfigError(
                f"the update is {update.dtype} of shape {update.shape}; the policy needs float32 or float64 of shape "
                f"({policy.length},)"
            )
        self._update, self._stream, self._copy, self._read = update, stream, copy, 0
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
        begin = self._read
        for start in range(0, len(out), _QUANTIZE_CHUNK):
            self._round(out[start : start + _QUANTIZE_CHUNK])
        if self._copy is not None:
            self._copy[begin : self._read] = out
            modulo(self._copy[begin : self._read], self.policy.bits)

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
        if kernel.takes(part, out):
            kernel.compiled.quantise(part, drawn, out, self._clip_range, self._scale, part.itemsize, out.itemsize)
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
    return modulo(out, policy.bits), quantised.clip_rate


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
