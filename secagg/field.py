"""One part of a vector: of which kind its numbers are, which it takes, and what they become.

Numbers that a field cannot hold are refused or clipped as its kind says, never changed without a word. Must never: name
a value in an error, or import torch. Specification: docs/spec.md, section "Fields".
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from fractions import Fraction
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.arguments import kind_of, positive, whole
from secagg.errors import ConfigError

_LARGEST_COUNT = 1 << 45  # of 256 clients the sum is exact in float64, too
_FLOAT32_SMALLEST, _FLOAT32_LARGEST = 2.0**-126, 2.0**128 - 2.0**104  # normal numbers; an update may be float32


class Kind(Enum):
    """What the numbers of a field are."""

    FLOAT = "float"
    COUNT = "count"
    WEIGHT = "weight"
    INTEGER = "integer"


@dataclass(frozen=True, slots=True)
class Field:
    """One part of a vector. Make it with `floats`, `counts`, `weight` or `integers`.

    Attributes:
        kind: what its numbers are.
        shape: of the array.
        number: the clip range of floats, the largest count or weight, what one of `integers` is worth in the sum.
        bits: floats and weights become integers of magnitude at most 2^(bits - 1); the sum of `integers` fits so many
            bits; 0 for counts.

    Raises:
        ConfigError: a number out of its range; it says which and what is possible.
    """

    kind: Kind
    shape: tuple[int, ...]
    number: float
    bits: int

    @classmethod
    def floats(cls, shape: int | Sequence[int] = (), *, clip_range: float, value_bits: int = 16) -> "Field":
        """Numbers clipped to [-clip_range, clip_range] and rounded at random, right on average, to 2^value_bits steps.

        Args:
            shape: of the array; an int for a vector, () for a single number.
            clip_range: fixed, never data-dependent. What it cuts is told by `ClientSession.clip_rates`.
            value_bits: 2 to 48.
        """
        return cls(Kind.FLOAT, _shape(shape), positive("clip_range", clip_range), whole("value_bits", value_bits))

    @classmethod
    def counts(cls, shape: int | Sequence[int] = (), *, largest: int) -> "Field":
        """Exact whole numbers, 0 to `largest` at each client: the sum is exact, and any other number is refused."""
        return cls(Kind.COUNT, _shape(shape), whole("largest", largest), 0)

    @classmethod
    def weight(cls, *, largest: float, value_bits: int = 16) -> "Field":
        """The client's own weight, 0 to `largest`, which nobody else sees: it multiplies every float of the vector.

        Whole weights are exact where `largest` is at most 2^(value_bits - 1).
        """
        return cls(Kind.WEIGHT, (), positive("largest weight", largest), whole("value_bits", value_bits))

    @classmethod
    def integers(cls, shape: int | Sequence[int], *, bits: int, step: float = 1.0) -> "Field":
        """Whole numbers of either sign, taken as they are: the caller has clipped, scaled and noised them.

        They are added modulo 2^b, so that a sum which `bits` do not hold comes out wrong: nothing here bounds it.

        Args:
            shape: of the array.
            bits: the sum lies in -2^(bits - 1)..2^(bits - 1) - 1; 2 to 64.
            step: what one integer is worth in the sum.
        """
        return cls(Kind.INTEGER, _shape(shape), positive("step", step), whole("bits", bits))

    def table(self) -> dict[str, Any]:
        """This field as plain values, by the names of whatever made it."""
        number, bits = _WORDS[self.kind]
        shape = {"shape": list(self.shape)} if self.kind is not Kind.WEIGHT else {}
        largest = int(self.number) if self.kind is Kind.COUNT else float(self.number)
        return {"kind": self.kind.value, **shape, number: largest, **({bits: self.bits} if bits else {})}

    @classmethod
    def of_table(cls, table: Mapping[str, Any]) -> "Field":
        """The inverse of `table`. ConfigError for a kind or a name that no field has, and as the makers."""
        makers = {kind.value: getattr(cls, _MAKERS[kind]) for kind in Kind}
        given = dict(table)
        if (kind := given.pop("kind", None)) not in makers:
            raise ConfigError(f"kind = {kind!r}: use {', '.join(map(repr, makers))}")
        try:
            field: Field = makers[kind](**given)
        except TypeError:
            number, bits = _WORDS[Kind(kind)]
            raise ConfigError(
                f"a field of kind {kind!r} has {', '.join(sorted(given)) or 'nothing'}; it takes shape, {number} "
                f"{f'and {bits}' if bits else ''}".rstrip()
            ) from None
        return field

    def __post_init__(self) -> None:
        if not all(side >= 1 for side in self.shape):
            raise ConfigError(f"shape = {self.shape}: a field has at least one value")
        match self.kind:
            case Kind.INTEGER if not 2 <= self.bits <= 64:
                raise ConfigError(f"bits = {self.bits}: must be 2 to 64")
            case Kind.COUNT if not 1 <= self.number <= _LARGEST_COUNT:
                raise ConfigError(f"largest = {self.number}: the largest count is 1 to 2^45")
            case Kind.FLOAT | Kind.WEIGHT if not 2 <= self.bits <= 48:
                raise ConfigError(f"value_bits = {self.bits}: must be 2 to 48")
            case Kind.FLOAT | Kind.WEIGHT:
                smallest = _FLOAT32_SMALLEST * 2 ** (self.bits - 1)
                if not smallest <= self.number <= _FLOAT32_LARGEST:
                    name = "clip_range" if self.kind is Kind.FLOAT else "largest weight"
                    raise ConfigError(
                        f"{name} = {self.number}: use {smallest:.2g} to {_FLOAT32_LARGEST:.2g}, or its steps of "
                        f"{self.bits} bits leave the normal float32 numbers"
                    )

    @property
    def size(self) -> int:
        """How many values it has."""
        return math.prod(self.shape)

    @property
    def largest_value(self) -> int:
        """Magnitude of the largest integer that a client sends here; nothing but `bits` bounds the `integers`."""
        match self.kind:
            case Kind.COUNT:
                return int(self.number)
            case Kind.WEIGHT:
                return math.ceil(Fraction(self.number) / Fraction(self.step()))
        return 1 << (self.bits - 1)

    def bits_needed(self, clients: int) -> int:
        """Smallest modulus width at which no sum of so many clients wraps.

        A sum lies between -n and n times `largest_value`, so 2^b has to be larger than 2 n times it.
        """
        return self.bits if self.kind is Kind.INTEGER else (2 * clients * self.largest_value).bit_length()

    def step(self, largest_weight: float = 1.0) -> float:
        """What one integer of the sum is worth, and so the most by which one client's rounding can change it."""
        match self.kind:
            case Kind.FLOAT:
                return largest_weight * self.number / self.largest_value
            case Kind.WEIGHT:  # a power of two, so that whole numbers stay whole
                fraction, exponent = math.frexp(self.number)
                return math.ldexp(1.0, exponent - (fraction == 0.5) - self.bits + 1)
            case Kind.INTEGER:
                return self.number
        return 1.0

    def bound(self, weight: float, largest_weight: float) -> int:
        """Magnitude of the largest integer that the floats of a client of this weight become."""
        return math.ceil(self.largest_value * (Fraction(weight) / Fraction(largest_weight)))

    def scale(self, weight: float, largest_weight: float) -> float:
        """Integers per unit of a client's floats; takes the clip range to at most `bound`."""
        scale, bound = self.largest_value * (weight / largest_weight) / self.number, self.bound(weight, largest_weight)
        while self.number * scale > bound:  # the rounding of three operations
            scale = math.nextafter(scale, 0)
        return scale

    def take(self, value: object, name: str) -> NDArray[Any]:
        """One client's array for this field, checked and flat.

        Args:
            value: numpy array, torch tensor, list or number.
            name: what to call it in a sentence.

        Returns:
            (size,) contiguous: float32 or float64 for floats and weights, not copied where it is that already; a copy
            as int64 for counts; integers of any type for `integers`.

        Raises:
            ConfigError: another shape, numbers of another type, and a count or weight outside its range.
        """
        array, advice = as_array(value, name), ""
        whole_numbers = array.dtype.kind in "iub"
        fits = (array.dtype.kind == "f" and array.dtype.itemsize <= 8) or (self.kind is Kind.WEIGHT and whole_numbers)
        if self.kind is Kind.FLOAT and whole_numbers:
            advice = ". Rounding would lose whole numbers: declare Field.counts for them, or give floats if you mean it"
        if self.kind in (Kind.COUNT, Kind.INTEGER):
            fits = True  # looked at below, value by value
        if array.shape != self.shape or not fits:
            raise ConfigError(
                f"{name} is {array.dtype} of shape {array.shape}; the policy needs {self._wants} of shape {self.shape}"
                f"{advice}"
            )
        if self.kind in (Kind.COUNT, Kind.INTEGER):
            return self._integers(array.reshape(-1), name)
        kept = np.float32 if array.dtype.kind == "f" and array.dtype.itemsize < 8 else np.float64
        flat: NDArray[Any] = np.ascontiguousarray(array, kept).reshape(-1)
        if self.kind is Kind.WEIGHT:
            if not 0 <= flat[0] <= self.number:  # as the value's own type rounds it: float32 of 0.1 is more than 0.1
                raise ConfigError(f"{name} lies outside 0 to {self.number}, the largest weight that the policy allows")
            flat = np.minimum(flat, self.number, dtype=np.float64)  # else floats would leave `bound` (T-14)
        return flat

    @property
    def _wants(self) -> str:
        return "float32 or float64" if self.kind in (Kind.FLOAT, Kind.WEIGHT) else "whole numbers"

    def _integers(self, flat: NDArray[Any], name: str) -> NDArray[Any]:
        if flat.dtype.kind not in ("iub" if self.kind is Kind.INTEGER else "iubf"):
            raise ConfigError(f"{name} is {flat.dtype}; the policy needs whole numbers, of a type such as int64")
        if flat.dtype.kind == "f" and not (np.isfinite(flat) & (np.floor(flat) == flat)).all():
            raise ConfigError(f"{name} has values that are not whole numbers; the policy needs whole numbers")
        if flat.dtype.kind == "f" and flat.dtype.itemsize < 8:  # numpy would round the limits to the narrow type
            flat = flat.astype(np.float64)
        if self.kind is Kind.INTEGER:
            low, high = -(1 << (self.bits - 1)), (1 << self.bits) - 1
        else:
            low, high = 0, int(self.number)
        if wrong := int(np.count_nonzero((flat < low) | (flat > high))):
            raise ConfigError(
                f"{wrong} of {self.size} values of {name} lie outside {low} to {high}, what its field can hold; "
                "declare a field for larger ones, in every party's policy"
            )
        return np.ascontiguousarray(flat) if self.kind is Kind.INTEGER else flat.astype(np.int64)


_MAKERS = {Kind.FLOAT: "floats", Kind.COUNT: "counts", Kind.WEIGHT: "weight", Kind.INTEGER: "integers"}
_WORDS = {
    Kind.FLOAT: ("clip_range", "value_bits"),
    Kind.COUNT: ("largest", ""),
    Kind.WEIGHT: ("largest", "value_bits"),
    Kind.INTEGER: ("step", "bits"),
}


def as_array(value: Any, name: str) -> NDArray[Any]:
    """A numpy array of what is one, or becomes one exactly."""
    if isinstance(value, np.ma.MaskedArray):
        raise ConfigError(f"{name} is a masked array, and a sum knows no masks; fill it first")
    if hasattr(value, "detach"):  # a torch tensor
        try:
            value = value.detach().cpu()
            if "bfloat16" in str(value.dtype):  # numpy has none; float32 holds each of its numbers
                value = value.float()
            value = value.numpy()
        except (TypeError, RuntimeError):
            raise ConfigError(f"{name} is a tensor that numpy cannot hold; give a dense one of real numbers") from None
    try:
        array = np.asarray(value)
    except (TypeError, ValueError):
        raise ConfigError(f"{name} is {kind_of(value)} that is no array: its rows differ in length") from None
    if array.dtype.kind not in "iubfc":
        raise ConfigError(f"{name} is {kind_of(value)}; give an array of numbers, a torch tensor or a list of numbers")
    return array


def _shape(shape: int | Sequence[int]) -> tuple[int, ...]:
    if isinstance(shape, (str, bytes)):
        raise ConfigError(f"shape = {shape!r}: give a whole number or a tuple of them")
    sides = shape if isinstance(shape, Sequence) else (shape,)
    return tuple(whole("shape", side) for side in sides)
