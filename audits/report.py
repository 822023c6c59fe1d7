"""`audit.json` and `audit.html`: what was run, on which sources, what came out, and what nobody looked at."""

import base64
import json
import re
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from audits.base import Depth, worst
from audits.claims.book import Claim, claims, is_test
from audits.running import Record
from audits.scope import changed, machine, scope
from audits.table import at
from fedseg import page, palette

DATA, PAGE = "audit.json", "audit.html"
HERE = Path(__file__).parent
_GRADES = ("critical", "high", "medium", "low", "informational")
_KINDS = {".png": "image/png", ".svg": "image/svg+xml"}


def write(records: Sequence[Record], depth: Depth, seed: int, out: Path, again: str = "") -> dict[str, Any]:
    """Write both files.

    Args:
        records: what came out.
        depth: of the run.
        seed: of the run.
        out: folder.
        again: the command, where it is not that of a depth; then no audit is missing.

    Returns:
        The content of `audit.json`.
    """
    content = {
        "self_review": True,
        "verdict": worst(record.verdict for record in records),
        "depth": depth,
        "seed": seed,
        "again": again or f"python -m audits {depth} --seed {seed}",
        "scope": asdict(scope()),
        "changed_meanwhile": changed(),
        "machine": machine(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "audits": [asdict(record) for record in records],
        "claims": [_claim(claim, records) for claim in claims()],
        "findings": findings(),
        "gaps": gaps(),
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / DATA).write_text(json.dumps(content, indent=2) + "\n")
    shown = page.template(
        HERE,
        "report.html",
        number=_number,
        caption=lambda picture: Path(picture).stem.replace("-", " ").replace("_", " "),
        embedded=lambda picture: _embedded(out / picture),
    )
    ran = {record.name for record in records}
    book = next((record.rows for record in records if record.name == "claims.book"), None)
    missing = [audit for audit in at(depth) if audit.name not in ran and not again]
    page.save(out / PAGE, shown.render(content, palette=palette, uncovered=book, missing=missing, data=DATA))
    return content


def _claim(claim: Claim, records: Sequence[Record]) -> dict[str, Any]:
    """A claim for a reader: its first quote, its evidence, and what came out of its audits."""
    named = {each.removeprefix("audit ") for each in claim.evidence if each.startswith("audit ")}
    mine = [
        record
        for record in records
        if claim.id in record.claims or named & {record.name, record.name.partition(".")[0]}
    ]
    where = next(iter([*claim.says, *claim.rows]))
    return {
        "id": claim.id,
        "status": claim.status,
        "note": claim.note,
        "where": where,
        "quote": claim.says.get(where, ("",))[0],
        "quotes": sum(map(len, claim.says.values())),
        "evidence": len(claim.evidence),
        "tests": sum(map(is_test, claim.evidence)),
        "commands": claim.commands(),
        "audits": [(record.name, record.verdict) for record in mine],
    }


def findings() -> list[dict[str, Any]]:
    """What audits and reviews found, the worst first."""
    found = [_finding(path) for path in sorted((HERE / "findings").glob("[0-9]*.md"))]
    return sorted(found, key=lambda each: (_GRADES.index(each["severity"]), each["title"]))


def _finding(path: Path) -> dict[str, Any]:
    text = path.read_text()
    told = {
        key.lower(): value.strip() for key, value in re.findall(r"^[-*| ]*\**(\w+)\**:\** *(.+)$", text, re.MULTILINE)
    }
    severity, difficulty = (re.split(r"\W", told.get(key, ""))[0].lower() for key in ("severity", "difficulty"))
    if severity not in _GRADES or not difficulty or "mended" not in told:
        raise ValueError(f"{path} lacks a line `severity: ...`, `difficulty: ...` or `mended: ...`")
    return {
        "file": path.name,
        "title": text.partition("\n")[0].lstrip("# "),
        "severity": severity,
        "difficulty": difficulty,
        "mended": told["mended"],
        "open": told["mended"].lower().startswith(("no", "open")),
    }


def gaps() -> list[str]:
    """The lines of COVERAGE.md."""
    return [
        " ".join(each.split())
        for each in re.findall(r"^- (.+(?:\n  .+)*)", (HERE / "COVERAGE.md").read_text(), re.MULTILINE)
    ]


def _number(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def _embedded(path: Path) -> str:
    return f"data:{_KINDS[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
