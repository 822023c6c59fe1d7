"""The compiled passes over vectors, where secagg was installed with a C compiler (`secagg/_kernel.c`)."""

from importlib import import_module
from typing import Any

from numpy.typing import NDArray

compiled: Any
"""The extension module, or None: numpy then does the same passes to the same bytes (docs/performance.md)."""

try:
    compiled = import_module("secagg._kernel")
except ImportError:
    compiled = None


def takes(*arrays: NDArray[Any]) -> bool:
    """Whether the kernel is there and may read and write these: in one piece, every word at its alignment."""
    return compiled is not None and all(array.flags.c_contiguous and array.flags.aligned for array in arrays)
