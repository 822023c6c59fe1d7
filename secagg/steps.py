"""The names of the protocol's steps, and one-shot states: what a party holds between two of its steps.

A `State` is used up by the step that leaves it, even when that step fails, so that no message can be answered twice
with different secrets. Specification: docs/spec.md, section "Steps of a round".
"""

from dataclasses import dataclass, field
from typing import TypeVar, dataclass_transform

from secagg.errors import IllegalTransitionError
from secagg.keys import Secret

ADVERTISE_KEYS = "AdvertiseKeys"
SHARE_KEYS = "ShareKeys"
SHARE_REPORT = "ShareReport"
MASKED_INPUT_COLLECTION = "MaskedInputCollection"
CONSISTENCY_CHECK = "ConsistencyCheck"
UNMASKING = "Unmasking"
RESULT = "Result"
STEPS = (
    ADVERTISE_KEYS,
    SHARE_KEYS,
    SHARE_REPORT,
    MASKED_INPUT_COLLECTION,
    CONSISTENCY_CHECK,
    UNMASKING,
    RESULT,
)
ROUND_START = "RoundStart"
BLAME = "Blame"
"""In place of Result where the constant slots do not add up."""


_Opaque = TypeVar("_Opaque")


@dataclass_transform(eq_default=False, field_specifiers=(field,))
def opaque(kind: type[_Opaque]) -> type[_Opaque]:
    """A dataclass without repr and equality, for classes that hold secrets.

    `dataclasses.replace` refuses it: a copy would start unspent, and the same step could be taken twice with the same
    keys.
    """
    kind = dataclass(repr=False, eq=False)(kind)
    del kind.__dataclass_fields__  # type: ignore[attr-defined]
    return kind


class State:
    """A state that can be left exactly once; `_leave` is the first line of every step."""

    __spent = False

    def _leave(self) -> None:
        if self.__spent:
            raise IllegalTransitionError(f"{type(self).__name__} was already used: every step happens at most once")
        self.__spent = True

    def wipe(self) -> None:
        """Use the state up and overwrite the secrets that it holds (best effort; see `Secret.wipe`)."""
        self.__spent = True
        for value in vars(self).values():
            if isinstance(value, Secret):
                value.wipe()

    def __repr__(self) -> str:
        return f"<{type(self).__name__}>"

    def __reduce__(self) -> str:
        raise TypeError(f"{type(self).__name__} holds secrets and cannot be copied or serialised")
