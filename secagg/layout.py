"""What the values of a vector are: its fields by name, in their order in it.

Must never: name a value in an error, or import torch. Specification: docs/spec.md, section "Fields".
"""

import math
from collections.abc import Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, TypeAlias

from numpy.typing import ArrayLike, NDArray

from secagg.arguments import kind_of, positive
from secagg.errors import ConfigError
from secagg.field import Field as Field  # who makes a layout needs its fields
from secagg.field import Kind, as_array

Values: TypeAlias = "ArrayLike | Mapping[str, Any]"
"""What one client gives: arrays by field, nested mappings and torch's state_dict among them; an array for one field."""

WHOLE = "update"
"""Name of the one field of a policy without a layout."""

_SEPARATOR = "/"


class Layout(Mapping[str, Field]):
    """The fields of a vector by name, in their order in it.

    Part of the policy and of its hash. A "/" in a name separates the levels of nested mappings: the field "head/bias"
    is `values["head"]["bias"]`.

    Args:
        fields: by name; may be nested.

    Raises:
        ConfigError: no field, a doubtful name, or two weights.
    """

    __slots__ = ("_fields", "length")

    def __init__(self, fields: Mapping[str, Any]) -> None:
        found = _flattened(fields, "the layout")
        for name, field in found.items():
            if not isinstance(field, Field):
                raise ConfigError(
                    f"the layout's {name!r} is {kind_of(field)}; make it with secagg.Field.floats or .counts"
                )
            if not (name.isascii() and name.isprintable() and 0 < len(name) <= 256) or '"' in name or "\\" in name:
                raise ConfigError(f"the layout's {name!r}: use 1 to 256 printable ASCII characters without quotes")
            if any(other.startswith(name + _SEPARATOR) for other in found):
                raise ConfigError(f"the layout's {name!r} is a field, and the level of another one's name as well")
        if not found:
            raise ConfigError("the layout has no field; a vector has at least one value")
        if sum(field.kind is Kind.WEIGHT for field in found.values()) > 1:
            raise ConfigError("the layout has two weights; a client has one, which multiplies every float")
        self._fields: Mapping[str, Field] = MappingProxyType(found)
        self.length = sum(field.size for field in found.values())

    @classmethod
    def like(cls, example: Mapping[str, Any], *, clip_range: float, largest: int = 0, value_bits: int = 16) -> "Layout":
        """The layout of mappings such as `example`: a field for each array, in their order.

        Args:
            example: arrays of the right shapes and types, such as a model's state_dict; their values do not matter.
            clip_range: of every float array.
            largest: of every array of whole numbers, which are counts.
            value_bits: of every float array.

        Raises:
            ConfigError: an array of whole numbers, and no `largest`.
        """
        fields = {}
        for name, value in _flattened(example, "the example").items():
            array = as_array(value, repr(name))
            if array.dtype.kind == "f":
                fields[name] = Field.floats(array.shape, clip_range=clip_range, value_bits=value_bits)
            elif array.dtype.kind == "c":
                raise ConfigError(f"{name!r} holds complex numbers; give their real and imaginary parts as two fields")
            elif largest < 1:
                raise ConfigError(f"{name!r} holds whole numbers: say with `largest` how large a count can be")
            else:
                fields[name] = Field.counts(array.shape, largest=largest)
        return cls(fields)

    @classmethod
    def weighted_mean(cls, fields: Mapping[str, Any], *, largest_weight: float, value_bits: int = 16) -> "Layout":
        """For a mean whose weights nobody sees: a client sends w and w x, and the sum of the one divides the other's.

        The price is precision: see `lost_bits`.

        Args:
            fields: what is averaged.
            largest_weight: no client's own weight is larger; one that is, is refused.
            value_bits: of the weight. Whole weights are exact where `largest_weight` is at most 2^(value_bits - 1).
        """
        return cls({"weight": Field.weight(largest=largest_weight, value_bits=value_bits), **fields})

    def __getitem__(self, name: str) -> Field:
        return self._fields[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._fields)

    def __len__(self) -> int:
        return len(self._fields)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Layout) and list(self.items()) == list(other.items())

    def __hash__(self) -> int:
        return hash(tuple(self.items()))

    def __repr__(self) -> str:
        return f"Layout({dict(self._fields)!r})"

    def __reduce__(self) -> tuple[type["Layout"], tuple[dict[str, Field]]]:
        return Layout, (dict(self._fields),)

    @property
    def weight(self) -> str | None:
        """Name of the field with the client's private weight, where there is one."""
        return next((name for name, field in self.items() if field.kind is Kind.WEIGHT), None)

    @property
    def largest_weight(self) -> float | None:
        """The largest private weight, where there are any."""
        return self[self.weight].number if self.weight is not None else None

    def lost_bits(self, weight: float) -> float:
        """Bits of precision that a private weight costs its client: log2(largest / weight), 0 without private weights.

        All clients share one step, which fits the largest weight: a client of half of it has half of the steps.
        """
        return 0.0 if self.largest_weight is None else math.log2(self.largest_weight / positive("weight", weight))

    def places(self) -> Iterator[tuple[str, Field, slice]]:
        """Each field with its name and its place in the vector."""
        start = 0
        for name, field in self.items():
            yield name, field, slice(start, start + field.size)
            start += field.size

    def pack(self, values: Values) -> list[NDArray[Any]]:
        """One client's values, checked and flat, a piece for each field; floats are not copied, so do not change them.

        Args:
            values: by field; for a layout of one field also its array.

        Raises:
            ConfigError: a field that lacks or is unknown, and what `Field.take` refuses.
        """
        if not isinstance(values, Mapping):
            if len(self) > 1:
                raise ConfigError(
                    f"the update is {kind_of(values)}; the policy has {len(self)} fields: give a mapping with "
                    f"{', '.join(map(repr, self))}"
                )
            ((name, field),) = self.items()
            return [field.take(values, _called(name))]
        given = _flattened(values, "the update")
        for name in sorted(given.keys() - self.keys()):
            raise ConfigError(f"the update has the field {name!r}, which the policy's layout does not know")
        for name in sorted(self.keys() - given.keys()):
            raise ConfigError(f"the update lacks the field {name!r} of the policy's layout")
        return [field.take(given[name], _called(name)) for name, field in self.items()]

    def unpack(self, pieces: Sequence[NDArray[Any]]) -> dict[str, Any]:
        """The inverse of `pack`: arrays by field, in their shapes, nested as the names say.

        Args:
            pieces: (size,) for each field.
        """
        nested: dict[str, Any] = {}
        for (name, field), piece in zip(self.items(), pieces, strict=True):
            inner, (*path, last) = nested, name.split(_SEPARATOR)
            for level in path:
                inner = inner.setdefault(level, {})
            inner[last] = piece.reshape(field.shape)
        return nested


def _called(name: str) -> str:
    return "the update" if name == WHOLE else f"the field {name!r}"


def _flattened(values: object, what: str) -> dict[str, Any]:
    """The leaves of nested mappings by their joined names."""
    if not isinstance(values, Mapping):
        raise ConfigError(f"{what} is {kind_of(values)}; give a mapping with a value for each field's name")
    found: dict[str, Any] = {}
    for name, value in values.items():
        if not isinstance(name, str):
            raise ConfigError(f"{what} has the field name {name!r}; a name is a text")
        nested = isinstance(value, Mapping)
        leaves = (
            {name + _SEPARATOR + inner: leaf for inner, leaf in _flattened(value, what).items()}
            if nested
            else {name: value}
        )
        for twice in leaves.keys() & found.keys():
            raise ConfigError(f"{what} has the field {twice!r} twice")
        found |= leaves
    return found
