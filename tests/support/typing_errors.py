"""What mypy says of a snippet: tests of walls that are type errors."""

from pathlib import Path

from mypy import api

ROOT = Path(__file__).parents[2]
CACHE = ROOT / "build" / "mypy"
"""Of all such tests, which have the same settings; a developer's own cache has others and stays as it is."""

SETTINGS = """
[mypy]
strict = True
follow_imports = skip
[mypy-fedseg.*,secagg.*,numpy.*]
follow_imports = silent
"""
"""torch takes mypy half a minute and has no part in this."""


def complaints(snippet: str, folder: Path) -> str:
    """What mypy says of a snippet, which is written to `folder`; nothing where it is clean.

    Call it in the root of the repository, where the packages are found.
    """
    path, settings = folder / "snippet.py", folder / "mypy.ini"
    path.write_text(snippet)
    settings.write_text(SETTINGS)
    options = ["--no-error-summary", "--config-file", str(settings), "--cache-dir", str(CACHE)]
    told, failed, _ = api.run([*options, str(path)])
    return told + failed


def wrong_lines(snippet: str, folder: Path) -> tuple[set[int], str]:
    """Numbers of the lines of a snippet with a type error, and what mypy said; the snippet is written to `folder`.

    Call it in the root of the repository, where the packages are found.
    """
    told = complaints(snippet, folder)
    assert told
    return {int(line.split(":")[1]) for line in told.splitlines() if ": error:" in line}, told
