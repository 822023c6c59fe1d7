"""What a command and its engine say to each other over pipes: one line of JSON, then arrays as they lie in memory."""

import json
from collections.abc import Sequence
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

Frame = tuple[dict[str, Any], list[NDArray[np.float32]]]


def put(stream: IO[bytes], said: dict[str, Any], arrays: Sequence[NDArray[np.float32]] = ()) -> None:
    """Write a frame. OSError where nobody reads any more."""
    stream.write(json.dumps({**said, "shapes": [values.shape for values in arrays]}).encode() + b"\n")
    for values in arrays:
        stream.write(np.ascontiguousarray(values, np.float32).tobytes())
    stream.flush()


def take(stream: IO[bytes]) -> Frame | None:
    """The next frame; None where the other process has ended."""
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    said = json.loads(line)
    arrays = []
    for shape in said.pop("shapes"):
        raw = stream.read(size := 4 * int(np.prod(shape, dtype=np.int64)))
        if len(raw) < size:
            return None
        arrays.append(np.frombuffer(raw, np.float32).reshape(shape))
    return said, arrays
