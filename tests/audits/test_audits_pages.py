"""The auditor's pages: links and names lead somewhere; each threat has a check, a claim or is open. The report."""

import json
import re
from pathlib import Path

import pytest

from audits import report
from audits.base import Audit
from audits.claims.book import claims
from audits.running import Record
from audits.scope import ROOT, Scope
from audits.table import AUDITS, COMMANDS, ROOMS

HERE = ROOT / "audits"
PAGES = [*sorted(HERE.glob("*.md")), *sorted((HERE / "findings").glob("*.md"))]
LINK = re.compile(r"\]\((?!\w+:)([^)#\s]*)")


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_every_link_leads_somewhere(page):
    for target in LINK.findall(page.read_text()):
        assert not target or (page.parent / target).exists(), target


def test_every_command_of_the_path_is_there():
    text = (HERE / "README.md").read_text()
    known = {*COMMANDS, *ROOMS, *(audit.name for audit in AUDITS), "quick", "full", "report", "list"}
    assert set(re.findall(r"python -m audits (\w[\w.-]*)", text)) <= known
    targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert set(re.findall(r"`make ([\w-]+)`", text)) <= set(targets)


def test_each_threat_has_a_check_a_claim_or_is_open():
    rows = re.findall(r"^\| (.+) \|$", (HERE / "threat_model.md").read_text(), re.MULTILINE)
    rows = [row.split(" | ") for row in rows if not row.startswith(("element", "who", "---"))]
    ids, spec = {claim.id for claim in claims()}, (ROOT / "docs/spec.md").read_text()
    statuses = {claim.id: claim.status for claim in claims()}
    assert len(rows) > 45
    for *_, shown in rows:
        named = re.findall(r"`([a-z0-9-]+)`", shown)
        assert set(named) <= ids, shown
        checks = re.findall(r"\b[A-Z]-\d\d\b", shown)
        assert all(f"| {check} |" in spec for check in checks), shown
        assert named or checks or "*open*" in shown
        for name, status in re.findall(r"`([a-z0-9-]+)` \((\w+)\)", shown):
            assert statuses[name] == status, shown


def test_the_index_of_findings_is_complete_and_true():
    index = (HERE / "findings/README.md").read_text()
    for finding in report.findings():
        row = next(line for line in index.splitlines() if f"]({finding['file']})" in line)
        assert finding["severity"] in row
        assert finding["difficulty"] in row


@pytest.fixture
def written(tmp_path):
    """Writes a report of one record with these fields; gives the page and the JSON."""

    def write(**fields):
        (tmp_path / "a-picture.svg").write_text("<svg/>")
        record = {
            "name": "room.what",
            "title": "tries",
            "claims": ("sum-only",),
            "verdict": "holds",
            "says": "tried <b>all</b>",
            "figures": {"epsilon": 1.23456789},
            "pictures": ("a-picture.svg",),
            "rows": tuple({"row": number} for number in range(20)),
            "depth": "quick",
            "seed": 3,
            "seconds": 1.0,
            "cpu_seconds": 0.5,
            "began": "",
            "machine": "here",
            "scope": Scope("c" * 40, False, "d" * 64),
        }
        report.write([Record(**{**record, **fields})], "quick", 3, tmp_path)
        return (tmp_path / report.PAGE).read_text(), json.loads((tmp_path / report.DATA).read_text())

    return write


def test_the_report_says_what_was_run_what_came_out_and_what_nobody_looked_at(written):
    page, content = written()
    assert "tried &lt;b&gt;all&lt;/b&gt;" in page
    assert "data:image/svg+xml;base64," in page
    assert "1.235" in page
    assert "Self-review" in page
    assert "http" not in re.sub(r"http-equiv", "", page), "the page works offline"
    for gap in content["gaps"]:
        assert gap.split("`")[0][:30] in page.replace("&#39;", "'")
    assert len(content["gaps"]) > 10
    claim = next(each for each in content["claims"] if each["id"] == "sum-only")
    assert claim["audits"] == [["room.what", "holds"]]
    assert content["self_review"] is True


def test_what_is_violated_or_was_not_run_stands_on_top(written, monkeypatch):
    monkeypatch.setattr(report, "at", lambda depth: [Audit("room.gone", "", (), {"quick": 1}, print)])
    page, content = written(verdict="violated")
    top = page.partition("<header>")[0]
    assert "room.what is violated" in top
    assert "Not run here: room.gone" in top
    assert content["verdict"] == "violated"


def test_a_finding_that_lacks_its_severity_is_refused(tmp_path: Path, monkeypatch):
    (tmp_path / "findings").mkdir()
    (tmp_path / "findings/001-x.md").write_text("# 001 x\n\n- difficulty: low\n- mended: no\n")
    monkeypatch.setattr(report, "HERE", tmp_path)
    with pytest.raises(ValueError, match="lacks a line"):
        report.findings()
