"""The table of dependencies against pyproject.toml, constraints.txt and what packages say of themselves."""

import re
from datetime import date
from pathlib import Path
from typing import NamedTuple

from packaging.utils import canonicalize_name
from packaging.version import Version

from audits.base import Result, Task
from audits.supply.packages import PERMISSIVE, asked, closure, installed, licence, parts, pins

TABLE = Path(__file__).parents[1] / "dependencies.md"
_ROW = re.compile(r"^\| ([\w.-]+) \| ([\w, ]+) \| ([^|]+) \| (\d{4}-\d\d-\d\d) \| (.+) \|$", re.MULTILINE)
INSTALLED_WITH = ("fedseg", "dicom", "dev")


class Row(NamedTuple):
    """A line of the table."""

    package: str
    extras: frozenset[str]
    licence: str
    reviewed: date
    reason: str


def rows() -> dict[str, Row]:
    """The table by package; "core" stands for no extra."""
    found = {}
    for package, extras, told, day, reason in _ROW.findall(TABLE.read_text()):
        names = frozenset("" if each == "core" else each for each in extras.split(", "))
        found[package] = Row(package, names, told, date.fromisoformat(day), reason)
    return found


def wrong() -> list[str]:
    """One sentence for each thing in which table, pyproject.toml, pins and packages differ."""
    table, needed = rows(), asked()
    found = [f"{name} is in pyproject.toml and has no row" for name in needed.keys() - table.keys()]
    found += [f"{name} has a row and is not in pyproject.toml" for name in table.keys() - needed.keys()]
    for name in sorted(table.keys() & needed.keys()):
        if table[name].extras != needed[name]:
            extras = ", ".join(each or "core" for each in sorted(needed[name]))
            found.append(f"{name} is needed by {extras}, and its row says otherwise")
        package = installed(name)
        if package and not _same(table[name].licence, licence(package)):
            found.append(f"{name} says that its licence is {licence(package)}, its row {table[name].licence}")
    for name in sorted(closure(INSTALLED_WITH)):
        found += _installed(name)
    return sorted(found)


def _installed(name: str) -> list[str]:
    package = installed(name)
    if package is None:
        return []
    found = []
    pin = pins().get(canonicalize_name(name))
    if pin is None:
        found.append(f"{name} is brought by a dependency and has no pin in constraints.txt")
    elif Version(pin).base_version != Version(package.version).base_version:
        found.append(f"{name} is installed in version {package.version} and pinned to {pin}")
    if strange := parts(licence(package)) - PERMISSIVE:
        found.append(f"{name} has a licence that nobody looked at: {', '.join(sorted(strange))}")
    return found


def _same(written: str, told: str) -> bool:
    """Whether a row and a package mean one licence; "BSD" alone does not say which of its texts."""
    return written == told or (told == "BSD" and written.startswith("BSD-"))


def audit(task: Task) -> Result:
    """Every dependency has a reason, its licence, a day of review and a pin."""
    table, needed = rows(), closure(INSTALLED_WITH)
    found = wrong()
    figures: dict[str, float | int | str] = {
        "packages that pyproject.toml names": len(table),
        "packages installed with them": len(needed),
        "of the named, not installed here": sum(installed(name) is None for name in table),
        "oldest review": min(row.reviewed for row in table.values()).isoformat(),
    }
    shown = tuple(
        {
            "package": name,
            "extra": ", ".join(each or "core" for each in sorted(row.extras)),
            "installed": package.version if (package := installed(name)) else "not here",
            "licence": row.licence,
            "reviewed": row.reviewed.isoformat(),
        }
        for name, row in table.items()
    )
    if found:
        return Result("violated", f"{len(found)} things do not fit, the first: {found[0]}", figures, rows=shown)
    says = f"{len(table)} dependencies have reason, licence and review; {len(needed)} installed packages are as pinned"
    return Result("holds", says, figures, rows=shown)
