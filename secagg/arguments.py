"""What an importer passes that cannot be meant: one sentence with what it is, where it stands and what is wanted.

Must never: show a value that may be secret; a caller names what is safe to show.
"""

import math
from typing import Any

import numpy as np

from secagg.errors import ConfigError


def kind_of(value: object) -> str:
    """What a value is, in words that show nothing of it."""
    if isinstance(value, np.ndarray):
        return f"an array of {value.dtype}"
    if value is None or isinstance(value, bytes):
        return "None" if value is None else "bytes"
    if isinstance(value, type):
        return f"the class {value.__name__}"
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiou' else 'a'} {name}"


def must_be(value: object, kind: type | tuple[type, ...], name: str, wanted: str) -> None:
    """ConfigError, "`name` is a list: `wanted`", unless `value` is of this type."""
    if not isinstance(value, kind):
        raise ConfigError(f"{name} is {kind_of(value)}: {wanted}")


def must_have(value: object, method: str, name: str, wanted: str) -> None:
    """ConfigError, "`name` is a list: `wanted`", unless `value` has this method."""
    if isinstance(value, type) or not callable(getattr(value, method, None)):
        raise ConfigError(f"{name} is {kind_of(value)}: {wanted}")


def must_be_bytes(data: object) -> None:
    """ConfigError for a message that is no bytes, such as a text."""
    must_be(data, (bytes, bytearray, memoryview), "data", "give the bytes that the other side sent")


def must_be_hash(value: object, name: str) -> None:
    """ConfigError unless `value` is 32 bytes."""
    must_be(value, bytes, name, _HASH)
    if isinstance(value, bytes) and len(value) != 32:
        raise ConfigError(f"{name} has {len(value)} bytes: {_HASH}")


_HASH = "give 32 bytes, such as a digest of hashlib.sha256"


def must_be_decoded(message: object, decode: str) -> None:
    """ConfigError for a message that is still bytes."""
    if isinstance(message, (bytes, bytearray, memoryview)):
        raise ConfigError(f"the message is {kind_of(message)}: decode it first, with secagg.wire.{decode}")


def whole(name: str, value: Any) -> int:
    """A whole number that is no secret, as an int. ConfigError, naming it, for anything else."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(type(value), "__index__"):
        raise ConfigError(f"{name} = {value!r}: give a whole number, not {kind_of(value)}")
    return int(value)


def positive(name: str, value: Any) -> float:
    """A positive finite number that is no secret, as a float. ConfigError, naming it, for anything else."""
    if isinstance(value, (bool, np.bool_)) or not hasattr(type(value), "__float__"):
        raise ConfigError(f"{name} = {value!r}: give a number, not {kind_of(value)}")
    try:
        number = float(value)
    except OverflowError:  # an integer beyond float64
        number = math.inf
    if not (math.isfinite(number) and number > 0):
        raise ConfigError(f"{name} = {value}: must be a positive finite number")
    return number
