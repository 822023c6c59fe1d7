"""Writes the tables of docs/study.md: every field of a study file, from the models that check it.

A field's type, limits, default and meaning stand in `fedseg/study/sections.py` and nowhere else. `make walks` runs
this; a test fails where the page is behind. Needs fedseg's own environment, unlike lines.py.
"""

import json
import re
from pathlib import Path
from typing import Any

from fedseg.study import UNHASHED, Study

PAGE = Path(__file__).parents[1] / "study.md"
TABLES = re.compile(r"(<!-- fields of a study, written by make walks -->\n).*?(<!-- end -->)", re.DOTALL)
TYPES = {"string": "text", "integer": "whole number", "number": "number", "boolean": "true or false"}
LIMITS = {"minimum": "at least", "exclusiveMinimum": "above", "maximum": "at most", "exclusiveMaximum": "below"}


def refreshed(text: str) -> str:
    """The page with the fields of today."""
    return TABLES.sub(lambda found: f"{found[1]}\n{tables()}\n{found[2]}", text)


def tables() -> str:
    """A heading, a sentence and a table for each section, in the order of the file."""
    schema = Study.model_json_schema()
    return "\n".join(_section(name, found, schema) for name, found in schema["properties"].items())


def _section(name: str, found: dict[str, Any], schema: dict[str, Any]) -> str:
    heading = f"[[{name}]]" if "items" in found else f"[{name}]"
    model = _resolved(found.get("items", found), schema)
    hashed = "Not hashed: each party has its own." if name in UNHASHED else "Hashed: the same at every party."
    said = model["description"].partition("]`: ")[2]
    rows = []
    for field, about in model["properties"].items():
        what = _type(_resolved(about, schema), schema)
        rows.append(f"| `{field}` | {what} | {_default(field, about, model)} | {about['description']} |")
    head = ["| field | what | default | meaning |", "|---|---|---|---|"]
    return "\n".join([f"### {heading}", "", f"{said[:1].upper()}{said[1:]} {hashed}", "", *head, *rows, ""])


def _default(name: str, about: dict[str, Any], model: dict[str, Any]) -> str:
    if name in model.get("required", ()):
        return "**required**"
    default = about["default"]
    return "none" if default is None else f"`{json.dumps(default)}`"


def _type(about: dict[str, Any], schema: dict[str, Any]) -> str:
    """In words: type, choices, limits."""
    if "anyOf" in about:
        found = [_type(_resolved(one, schema), schema) for one in about["anyOf"] if one.get("type") != "null"]
        return "; or ".join(found)
    if "enum" in about:
        return " or ".join(f"`{json.dumps(one)}`" for one in about["enum"])
    if "const" in about:
        return f"`{json.dumps(about['const'])}`"
    if "prefixItems" in about:
        return f"list of {len(about['prefixItems'])}, each {_type(about['prefixItems'][0], schema)}"
    if about["type"] == "array":
        low, high = about.get("minItems", 0), about.get("maxItems")
        number = f"{low} to {high}" if high is not None else f"{low} or more" if low else "any number"
        return f"list, {number}, each {_type(_resolved(about['items'], schema), schema)}"
    limits = [f"{words} {about[name]}" for name, words in LIMITS.items() if name in about and about[name] < 2**53]
    return ", ".join([TYPES[about["type"]], *limits])


def _resolved(about: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    """A schema in place of a reference to it."""
    reference = about.get("$ref", "").rpartition("/")[2]
    return {**schema["$defs"][reference], **about} if reference else about


if __name__ == "__main__":
    PAGE.write_text(refreshed(PAGE.read_text(encoding="utf-8")), encoding="utf-8")
