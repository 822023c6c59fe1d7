"""Writes the table of faults in docs/operations.md from tests/faults/cells.toml, whose every cell a test runs.

`make walks` runs this; a test fails where the page is behind.
"""

import re
import tomllib
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
PAGE, CELLS = ROOT / "docs/operations.md", ROOT / "tests/faults/cells.toml"
TABLE = re.compile(r"(<!-- faults, written by make walks -->\n).*?(<!-- end -->)", re.DOTALL)


def refreshed(text: str, cells: dict[str, Any]) -> str:
    """The page with these cells."""
    return TABLE.sub(lambda found: f"{found[1]}\n{table(cells)}\n\n{found[2]}", text)


def table(cells: dict[str, Any]) -> str:
    """What each outcome means, then a row for each fault and a column for each point of a round."""
    points = list(next(iter(cells["cells"].values())))
    lines = [f"- **{outcome}**: {meaning}" for outcome, meaning in cells["outcomes"].items()]
    lines += ["", f"| fault | {' | '.join(points)} |", "|---" * (len(points) + 1) + "|"]
    lines += [f"| {fault} | {' | '.join(row[point] for point in points)} |" for fault, row in cells["cells"].items()]
    return "\n".join(lines)


if __name__ == "__main__":
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8"), tomllib.loads(CELLS.read_text())), encoding="utf-8")
