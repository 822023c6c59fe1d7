"""Words that the project never uses of itself, blanks that a template keeps, and the ledger's schema as it is."""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from audits.base import Result, Task

ROOT, HERE = Path(__file__).parents[2], Path(__file__).parent
SCHEMA, ASSESSMENT = HERE / "ledger.schema.json", HERE / "dpia.md"
WORDS = re.compile(r"\b(anonymous|anonymously|compliant)\b", re.IGNORECASE)
LOOKED_AT = (
    *("README.md", "docs/**/*.md", "secagg/**/*.py", "fedseg/**/*.py", "fedseg/**/*.html", "fedseg/**/*.toml"),
    *("studies/**/*.toml", "audits/regulatory/*.md", "audits/regulatory/*.json"),
)
SAYS_SO = "It never calls data anonymous or anything compliant."
"""The one place, in fedseg/report/claims.py, that says that they are not used."""
BLANK = "[SITE]"
FEWEST_BLANKS = 15


def run(task: Task) -> Result:
    """Look at every text that a reader sees."""
    files = sorted({path for pattern in LOOKED_AT for path in ROOT.glob(pattern) if path.is_file()})
    found = [where for path in files for where in used(path)]
    blanks = ASSESSMENT.read_text(encoding="utf-8").count(BLANK)
    same = json.loads(SCHEMA.read_text(encoding="utf-8")) == schema()
    figures = {"files": len(files), "words_found": len(found), "blanks": blanks, "schema_is_the_codes": int(same)}
    if found:
        return Result("violated", f"A word that only a lawyer may use: {found[0]}.", figures)
    if not same:
        says = "ledger.schema.json is not the code's; write it anew: python -m audits.regulatory.words"
        return Result("violated", says, figures)
    if blanks < FEWEST_BLANKS:
        return Result("violated", f"The assessment has {blanks} blanks left; it is a template.", figures)
    if not list(used_in("the data are anonymous", "planted")):
        return Result("no power", "A planted word was not found.", figures)
    return Result("holds", f"{len(files)} files use neither word; the schema of the ledger is the code's.", figures)


def used(path: Path) -> Iterator[str]:
    """Where a file of the repository uses one of the words."""
    yield from used_in(path.read_text(encoding="utf-8", errors="replace"), path.relative_to(ROOT).as_posix())


def used_in(text: str, file: str) -> Iterator[str]:
    """Where a text uses one of the words."""
    for number, line in enumerate(text.splitlines(), 1):
        if SAYS_SO not in line and (match := WORDS.search(line)):
            yield f"{match[0]} in {file}:{number}"


def schema() -> dict[str, Any]:
    """JSON Schema of a line of a ledger, from the classes that write it."""
    from pydantic import TypeAdapter

    from fedseg.ledger.entries import Entry

    made: dict[str, Any] = TypeAdapter(Entry).json_schema()
    link = {"type": "string", "pattern": "^[0-9a-f]*$"}
    outside = {"previous": link, "event_id": link, "signer": link, "signature": link}
    for kind in made["$defs"].values():
        kind["properties"] |= outside
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", "title": "A line of ledger.jsonl", **made}


if __name__ == "__main__":
    SCHEMA.write_text(json.dumps(schema(), indent=1) + "\n", encoding="utf-8")
