"""`audit.json` and `audit.html`: what was run, on which sources, and what came out."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from audits.base import Depth, worst
from audits.running import Record
from audits.scope import machine, scope
from fedseg import page

DATA, PAGE = "audit.json", "audit.html"


def write(records: Sequence[Record], depth: Depth, seed: int, out: Path) -> dict[str, Any]:
    """Write both files.

    Args:
        records: what came out.
        depth: of the run.
        seed: of the run.
        out: folder.

    Returns:
        The content of `audit.json`.
    """
    content = {
        "verdict": worst(record.verdict for record in records),
        "depth": depth,
        "seed": seed,
        "scope": asdict(scope()),
        "machine": machine(),
        "written": datetime.now(UTC).isoformat(timespec="seconds"),
        "audits": [asdict(record) for record in records],
    }
    out.mkdir(parents=True, exist_ok=True)
    (out / DATA).write_text(json.dumps(content, indent=2) + "\n")
    page.save(out / PAGE, page.template(Path(__file__).parent, "report.html").render(content))
    return content
