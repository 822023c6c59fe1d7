"""Pages that work offline: templates that escape everything, one style, and files that are seen whole or not at all.

Text of others stands on a page as it stands in a terminal: nothing in it is markup, and nothing turns or hides letters.
"""

from collections.abc import Callable
from pathlib import Path

import jinja2
from markupsafe import Markup

from fedseg.errors import ConfigError
from secagg.printable import printable
from secagg.writing import write_whole

STYLE = Path(__file__).parent / "report"
"""Folder with the style and the head that all pages share."""

_NO_BREAK = "\u00a0"


def template(folder: Path, name: str, **filters: Callable[..., object]) -> jinja2.Template:
    """A page's template. Every value is escaped, an unknown one is an error, and style.css of the report is at hand.

    Args:
        folder: where it lies.
        name: of its file.
        filters: by the names that it uses.
    """
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, STYLE]),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        finalize=visible,
    )
    environment.filters.update(filters)
    return environment.get_template(name)


def visible(value: object) -> object:
    """A value as a page shows it: of text of others, each line as `printable` has it; markup of ours as it is.

    A space that does not break a line is a space, and keeps an epsilon beside its number.
    """
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return "\n".join(_NO_BREAK.join(map(printable, line.split(_NO_BREAK))) for line in value.split("\n"))


def save(target: Path, text: str) -> None:
    """Write a page beside its name and rename it; only its owner can read it. ConfigError where it cannot be."""
    try:
        write_whole(target, text)
    except OSError as error:
        raise ConfigError(
            f"{target} cannot be written ({error.strerror}); free some space or fix its rights"
        ) from error
