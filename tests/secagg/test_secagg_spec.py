"""The specification and the code list the same checks, and every section that the code cites exists."""

import re
from pathlib import Path

import secagg.errors
from secagg.transcript.checks import WHAT

ROOT = Path(__file__).parents[2]
CODE = [path for path in sorted((ROOT / "secagg").rglob("*.py")) if not path.name.endswith("_pb2.py")]
ERRORS = (secagg.errors.ProtocolError, secagg.errors.ExposureError, secagg.errors.ComplaintError)
SPEC = (ROOT / "docs/spec.md").read_text()
CHECK = r"\b[CSMW]-\d\d\b"
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in SPEC.splitlines()
    if re.match(rf"\| {CHECK} \|", line)
]


def test_code_and_specification_list_the_same_checks():
    raised = {check for path in CODE for check in re.findall(rf'"({CHECK})"', path.read_text())}
    assert raised == {row[0] for row in ROWS}


def test_no_comment_or_page_names_a_check_that_does_not_exist():
    listed = {row[0] for row in ROWS}
    for path in [*CODE, *(ROOT / "docs").rglob("*.md")]:
        assert set(re.findall(CHECK, path.read_text())) <= listed, path


def test_ids_are_contiguous_and_every_row_is_complete():
    for family in "CSMW":
        numbers = [int(row[0][2:]) for row in ROWS if row[0][0] == family]
        assert numbers == list(range(1, len(numbers) + 1)), family
    for row in ROWS:
        assert len(row) == 5, row
        assert all(row), row
        assert row[1] == {"C": "client", "S": "server", "M": "both", "W": "both"}[row[0][0]]
        for name in re.findall(r"\w+Error", row[3]):
            assert issubclass(getattr(secagg.errors, name), ERRORS)


def test_every_check_is_tested_by_its_id():
    tests = "".join(path.read_text() for path in (ROOT / "tests/secagg").glob("test_*.py"))
    # C-12 is a complaint, not an error that anybody sees: the hostile tests ask for the dealer's name.
    missing = {row[0] for row in ROWS} - set(re.findall(CHECK, tests)) - {"C-12"}
    assert not missing


def test_every_section_that_the_code_cites_exists():
    headings = set(re.findall(r"^## (.+)$", SPEC, re.MULTILINE))
    for path in CODE:
        text = " ".join(path.read_text().split())
        for cited in re.findall(r"docs/spec\.md,\s+sections? ((?:\"[^\"]+\"(?: and |, )?)+)", text):
            assert set(re.findall(r'"([^"]+)"', cited)) <= headings, path


def test_every_test_that_the_threat_model_names_exists():
    tests = "".join(path.read_text() for path in (ROOT / "tests/secagg").glob("test_*.py"))
    named = set(re.findall(r"`(test_\w+)`", (ROOT / "docs/threat-model.md").read_text()))
    assert len(named) > 15
    for name in named:
        assert f"def {name}(" in tests, name


def test_the_checks_of_a_transcript_are_those_of_the_table():
    listed = re.findall(r"^\| (T-\d\d) \|", SPEC.partition("\n## Runs\n")[0], re.MULTILINE)
    assert listed == list(WHAT)
    assert listed == [f"T-{i:02}" for i in [*range(1, 15), *range(18, 23)]]
