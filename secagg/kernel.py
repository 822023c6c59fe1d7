"""The compiled passes over vectors, where secagg was installed with a C compiler (`secagg/_kernel.c`)."""

from importlib import import_module
from typing import Any

compiled: Any
"""The extension module, or None: numpy then does the same passes to the same bytes (docs/performance.md)."""

try:
    compiled = import_module("secagg._kernel")
except ImportError:
    compiled = None
