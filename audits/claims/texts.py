"""The texts that make claims, sentence by sentence: pages of the repository, and what commands print with `--help`."""

import re
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from typing import Any

import typer

from audits.scope import ROOT

HELP = " --help"
_FENCE = re.compile(r"^ *```.*?^ *```", re.MULTILINE | re.DOTALL)
_END = re.compile(r"(?<=[.!?;])\s+(?=[A-Z*`\[(\"])")
_RULE = re.compile(r"\|[-: |]+\|$")
_NEW_BLOCK = re.compile(r"\s*(?:[-*] |\d+\. |\|#|\||#+ |$)")
WIDE = 10_000

CLAIM = re.compile(
    r"""never|nobody|no\ one|cannot|always|refused|\bexact|bit-identical|bit\ for\ bit|constant\ time
    |epsilon|\bprivate|privacy|anonym|secret|\bhid(?:e|es|den)\b|\bleak|reveal|\blearns?\b|collud|quantum
    |protect|guarantee|promise|\bsafe|\bsecur|forge|\bproo[fv]|\btrust|faster|slower|times\ (?:more|less|longer)
    |\d\s?(?:x|times|%|ms|us|ns|s|MB|MiB|GB|KiB|minutes?|seconds?|hours?)\b|Dice\ \S?0\.""",
    re.IGNORECASE | re.VERBOSE,
)
"""Words that make a sentence a claim about security, privacy or speed, or one that ought to be looked at."""


def pages() -> list[str]:
    """Files whose sentences are looked at."""
    docs = sorted(str(path.relative_to(ROOT)) for path in (ROOT / "docs").rglob("*.md"))
    return ["README.md", "SECURITY.md", *docs]


@cache
def helps() -> dict[str, str]:
    """What every command says of itself, by ``secagg policy --help``."""
    from fedseg.cli import app as fedseg
    from secagg.cli import app as secagg

    found = {}
    for name, app in (("secagg", secagg), ("fedseg", fedseg)):
        for words, command in _commands(typer.main.get_command(app), name):
            context = typer.Context(command, info_name=words, terminal_width=WIDE, max_content_width=WIDE)
            found[words + HELP] = command.get_help(context)
    return found


def _commands(command: Any, words: str) -> Iterator[tuple[str, Any]]:
    yield words, command
    for name, below in getattr(command, "commands", {}).items():
        yield from _commands(below, f"{words} {name}")


@cache
def text_of(source: str) -> str:
    """A text with every run of white space as one space. OSError or KeyError where there is none of this name."""
    return flat(helps()[source] if source.endswith(HELP) else (ROOT / source).read_text())


def flat(text: str) -> str:
    """A text in one line."""
    return " ".join(text.split())


@cache
def sentences(source: str) -> tuple[str, ...]:
    """Its sentences, each row of a table and each line of a list on its own; code is left out."""
    if source.endswith(HELP):
        lines = [
            line for line in helps()[source].splitlines() if "--install-completion" not in line and "--help" not in line
        ]
        return tuple(flat(line) for line in lines if line.strip())
    blocks: list[str] = []
    for line, below in pairwise([*_FENCE.sub("", (ROOT / source).read_text()).splitlines(), ""]):
        if line.startswith(":::") or _RULE.match(below):
            blocks.append("")
        elif _NEW_BLOCK.match(line) or not blocks:
            blocks.append(line)
        else:
            blocks[-1] += " " + line
    return tuple(
        flat(sentence)
        for block in blocks
        for sentence in ([block] if block.lstrip().startswith("|") else _END.split(block))
        if sentence.strip() and not sentence.lstrip().startswith("#")
    )


def claiming(source: str) -> tuple[str, ...]:
    """Its sentences with a claim's words."""
    return tuple(each for each in sentences(source) if CLAIM.search(each))
