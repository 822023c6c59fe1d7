"""pydantic's errors in the words of a study file: the section's heading, the field, what is wrong, what to do."""

from difflib import get_close_matches
from typing import get_args

from pydantic import BaseModel
from pydantic_core import ErrorDetails


def sentence(error: ErrorDetails, study: type[BaseModel]) -> str:
    """One error of the first level that pydantic found in a study.

    Args:
        error: as `ValidationError.errors` gives it.
        study: the class of a whole study; its fields are the sections, `sites` a list of tables.
    """
    loc = error["loc"]
    section, owner = _owner(loc, study)
    name = (
        str(next(part for part in reversed(loc) if isinstance(part, str)))
        if len(loc) > 1 or error["type"] in ("missing", "extra_forbidden")
        else ""
    )
    given = error["input"]
    match error["type"]:
        case "missing" if len(loc) == 1:
            heading = "[[sites]]" if name == "sites" else f"[{name}]"
            return f"section {heading} is missing; add it"
        case "missing":
            return f"{section} {name} is missing; add {name}: {owner.model_fields[name].description}"
        case "extra_forbidden":
            near = get_close_matches(name, owner.model_fields, n=1)
            remedy = f"did you mean '{near[0]}'?" if near else f"use one of {', '.join(owner.model_fields)}"
            return f"{section} {name} is not a field of a study; {remedy}".lstrip()
        case "value_error":
            return f"{section} {error['ctx']['error']!s}".lstrip()
        case "literal_error" | "enum":
            return f"{section} {name} = {given!r}: use {error['ctx']['expected']}"
        case "string_pattern_mismatch":
            return f"{section} {name} = {given!r}: must be {owner.model_fields[name].description}"
        case _:
            field = next((str(part) for part in loc[1:] if isinstance(part, str)), str(loc[0]))
            return f"{section} {field} = {given!r}: {error['msg'].replace('Input should', 'must')}"


def _owner(loc: tuple[int | str, ...], study: type[BaseModel]) -> tuple[str, type[BaseModel]]:
    """The section's heading as in the file, and its class, of a pydantic location."""
    if not loc or (len(loc) == 1 and loc[0] not in study.model_fields):
        return "", study
    if loc[0] == "sites":
        section = get_args(study.model_fields["sites"].annotation)[0]
        return "[[sites]]" if len(loc) == 1 else f"[[sites]] number {int(loc[1]) + 1}", section
    annotation = study.model_fields[str(loc[0])].annotation
    return f"[{loc[0]}]", annotation if isinstance(annotation, type) else study
