"""The page on operations: its table of faults is the one whose cells are run, and a promise names tests that exist."""

import importlib.util
import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs/operations.md").read_text(encoding="utf-8")

_spec = importlib.util.spec_from_file_location("faults_page", ROOT / "docs/tools/faults.py")
page = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(page)


def test_the_table_of_faults_is_the_one_that_is_run():
    cells = tomllib.loads(page.CELLS.read_text())
    assert page.refreshed(PAGE, cells) == PAGE, "docs/operations.md is behind: run make walks"
    assert all(fault in PAGE for fault in cells["cells"])


def test_every_promise_names_tests_that_exist():
    promises, mended = (
        PAGE.split(f"## {title}")[1].split("\n## ")[0] for title in ("What is promised", "What failed once")
    )
    rows = [line for line in promises.splitlines() if line.startswith("| ") and not line.startswith("| promise")]
    trials = [line for line in mended.splitlines() if line.startswith("| ") and not line.startswith("| #")]
    assert len(rows) >= 8
    assert [row.split("|")[1].strip() for row in trials] == [str(number) for number in range(1, 17)]
    for row in [*rows, *trials]:
        named = re.findall(r"\[(test_\w+\.py)\]\(([^)]+)\)(?:, `(test_\w+)`)?", row)
        assert named, f"no test proves: {row}"
        for _, link, test in named:
            path = (ROOT / "docs" / link).resolve()
            assert path.is_file(), f"{link} is no file"
            assert not test or f"def {test}(" in path.read_text(), f"{link} has no {test}"
