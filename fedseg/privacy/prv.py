"""Opacus' PRV accountant, from its own files: the rest of Opacus imports torch, which no accountant needs."""

import sys
from functools import cache
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from fedseg.errors import ConfigError

_NAME = "fedseg.privacy._opacus"


class _History:
    """What Opacus' accountants inherit from: noise multiplier, sample rate and number of steps."""

    def __init__(self) -> None:
        self.history: list[tuple[float, float, int]] = []


def prv_accountant() -> Any:
    """A fresh accountant; set its `history`.

    Raises:
        ConfigError: Opacus is not installed.
    """
    return _loaded().PRVAccountant()


@cache
def _loaded() -> ModuleType:
    found = find_spec("opacus")
    if found is None or not found.submodule_search_locations:
        raise ConfigError("opacus, the second accountant, is not installed; install fedseg with what it needs")
    package, base = ModuleType(_NAME), ModuleType(f"{_NAME}.accountant")
    package.__path__ = [str(Path(found.submodule_search_locations[0]) / "accountants")]
    vars(base)["IAccountant"] = _History  # in place of the one file that imports Opacus' optimisers
    sys.modules |= {package.__name__: package, base.__name__: base}
    return import_module(f"{_NAME}.prv")
