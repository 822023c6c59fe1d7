"""The page that shows a status: it loads nothing, runs no script and asks again by itself."""

from pathlib import Path

from fedseg import palette
from fedseg.page import template
from fedseg.status import Status
from fedseg.watching import words


def render(status: Status, refresh: int = 0) -> str:
    """The page.

    Args:
        status: what it shows.
        refresh: seconds after which a browser asks again; 0 for a page that is kept as a file.
    """
    page = template(Path(__file__).parent, "template.html", clock=words.clock, size=words.size)
    return page.render(
        status=status,
        rows=words.rows(status),
        words=words,
        warnings=list(words.warnings(status)),
        refresh=refresh,
        palette=palette,
    )
