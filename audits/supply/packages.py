"""What is installed here of what the project needs, from the packages' own metadata."""

import tomllib
from collections.abc import Iterable
from functools import cache
from importlib.metadata import Distribution, PackageNotFoundError, distribution
from typing import Any

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

from audits.scope import ROOT

_TEXTS = {
    "Apache 2.0": "Apache-2.0",
    "Apache License 2.0": "Apache-2.0",
    "Apache License, Version 2.0": "Apache-2.0",
    "Apache Software License": "Apache-2.0",
    "Apache": "Apache-2.0",
    "MIT License": "MIT",
    "MIT license": "MIT",
    "The MIT License (MIT)": "MIT",
    "3-Clause BSD License": "BSD-3-Clause",
    "BSD 3-Clause": "BSD-3-Clause",
    "BSD 3-Clause License": "BSD-3-Clause",
    "BSD-3-Clause License": "BSD-3-Clause",
    "BSD 2-Clause License": "BSD-2-Clause",
    "BSD License": "BSD",
    "BSD": "BSD",
    "PSF": "PSF-2.0",
    "Python Software Foundation License": "PSF-2.0",
    "Mozilla Public License 2.0 (MPL 2.0)": "MPL-2.0",
    "ISC License (ISCL)": "ISC",
    "The Unlicense (Unlicense)": "Unlicense",
    "Dual License": "Apache-2.0 OR BSD-3-Clause",
}
"""How packages without an SPDX expression call their licence."""

PERMISSIVE = frozenset(
    {"0BSD", "Apache-2.0", "BSD", "BSD-2-Clause", "BSD-3-Clause", "BSL-1.0", "CC0-1.0", "HPND", "ISC", "MIT"}
    | {"MIT-0", "MIT-CMU", "MPL-2.0", "PSF-2.0", "Unlicense", "Zlib"}
)
"""Licences that ask for nothing but their text to be kept; MPL-2.0 asks for changes of its own files."""


@cache
def project() -> dict[str, Any]:
    """The table [project] of pyproject.toml."""
    table: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    return table


def asked() -> dict[str, set[str]]:
    """Each package that pyproject.toml names, and the extras that ask for it; "" is the core."""
    found: dict[str, set[str]] = {}
    for extra, lines in {"": project()["dependencies"], **project()["optional-dependencies"]}.items():
        for line in lines:
            name = canonicalize_name(Requirement(line).name)
            if name != project()["name"]:
                found.setdefault(name, set()).add(extra)
    return found


@cache
def pins() -> dict[str, str]:
    """Versions in constraints.txt."""
    lines = (line.split("#")[0].strip() for line in (ROOT / "constraints.txt").read_text().splitlines())
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines if line)}


def installed(name: str) -> Distribution | None:
    """A package, where it is installed."""
    try:
        return distribution(name)
    except PackageNotFoundError:
        return None


def needs(lines: Iterable[str], extras: Iterable[str] = ()) -> list[tuple[str, frozenset[str]]]:
    """Names and extras of the requirements that hold on this machine."""
    parsed = [Requirement(line) for line in lines]
    holds = [
        each for each in parsed if not each.marker or any(each.marker.evaluate({"extra": e}) for e in ("", *extras))
    ]
    return [(canonicalize_name(each.name), frozenset(each.extras)) for each in holds]


def closure(extras: Iterable[str]) -> dict[str, set[str]]:
    """Each installed package that these extras bring, and what it needs itself."""
    own = project()
    start = [line for extra in extras for line in own["optional-dependencies"][extra]]
    found: dict[str, set[str]] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = needs([*own["dependencies"], *start])
    while waiting:
        name, wanted = waiting.pop()
        if (name, wanted) in seen:
            continue
        seen.add((name, wanted))
        if name == own["name"]:
            waiting += needs([line for extra in wanted for line in own["optional-dependencies"][extra]])
        elif package := installed(name):
            below = needs(package.requires or [], wanted)
            found.setdefault(name, set()).update(other for other, _ in below)
            waiting += below
    return found


def licence(package: Distribution) -> str:
    """A package's licence as an SPDX expression, or what it says in its own words."""
    told = package.metadata
    if expression := told.get_all("License-Expression"):
        return str(expression[0])
    text = "".join(told.get_all("License") or []).strip().splitlines()[:1]
    classifiers = [
        line.rsplit(" :: ", 1)[-1] for line in told.get_all("Classifier") or [] if line.startswith("License")
    ]
    named = [*text, *classifiers]
    return next((_TEXTS[each] for each in named if each in _TEXTS), named[0] if named else "none stated")


def parts(expression: str) -> set[str]:
    """Licences that an SPDX expression names; of a choice, each."""
    words = expression.replace("(", " ").replace(")", " ").replace("WITH LLVM-exception", "").split()
    return {word for word in words if word not in ("AND", "OR")}
