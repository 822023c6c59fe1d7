"""`claims.yaml`: what is claimed where, and what shows it."""

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field

from audits.claims.texts import flat, sentences, text_of
from audits.scope import ROOT

BOOK = Path(__file__).parents[1] / "claims.yaml"
Status = Literal["supported", "partial", "limitation"]


class Claim(BaseModel):
    """One claim, wherever it is made.

    Attributes:
        id: short name, which audits name too.
        says: page or command: what it says, letter for letter but for line ends.
        rows: page: patterns of sentences that belong to this claim as well.
        status: supported by the evidence; partial, with what it does not show in `note`; or a limitation.
        evidence: see the head of claims.yaml.
        note: for a reader.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    id: str = Field(pattern=r"^[a-z0-9]+(-[a-z0-9]+)*$")
    says: dict[str, tuple[str, ...]] = {}
    rows: dict[str, tuple[str, ...]] = {}
    status: Status
    evidence: tuple[str, ...] = ()
    note: str = ""

    def commands(self) -> list[str]:
        """What a reader types to see the evidence."""
        tests = [target(each) for each in self.evidence if is_test(each)]
        own = [each.split(" ", 1)[1].split(" => ")[0] for each in self.evidence if each.startswith(("run ", "once "))]
        audits = [
            f"python -m audits {each.removeprefix('audit ')}" for each in self.evidence if each.startswith("audit ")
        ]
        return [*audits, *([f"python -m pytest {' '.join(tests)}"] if tests else []), *own]

    def covers(self, source: str, sentence: str) -> bool:
        """Whether a sentence of a page or command is this claim's."""
        quoted = (flat(quote) for quote in self.says.get(source, ()))
        return any(quote in sentence or sentence in quote for quote in quoted) or any(
            re.search(pattern, sentence) for pattern in self.rows.get(source, ())
        )


@cache
def claims() -> tuple[Claim, ...]:
    """All claims, in the order of the file. ValueError where it is malformed or an id occurs twice."""
    found = tuple(Claim.model_validate(each) for each in yaml.safe_load(BOOK.read_text()))
    ids = [claim.id for claim in found]
    if twice := {each for each in ids if ids.count(each) > 1}:
        raise ValueError(f"claims.yaml has twice: {', '.join(sorted(twice))}")
    return found


def is_test(evidence: str) -> bool:
    """Whether this evidence is a test or a file of tests."""
    return evidence.startswith(("test_", "tests/"))


def target(evidence: str) -> str:
    """What pytest is to be given for a test or a file of tests. LookupError where there is none, or more than one."""
    if evidence.startswith("tests/"):
        if not (ROOT / evidence).is_file():
            raise LookupError(f"{evidence} is gone")
        return evidence
    found = _tests().get(evidence, [])
    if len(found) != 1:
        raise LookupError(f"{evidence} is {'in more than one place' if found else 'gone'}")
    return found[0]


@cache
def _tests() -> dict[str, list[str]]:
    """Where each test is, by its name: file::test, or file::Class::test."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / "tests").rglob("test_*.py")):
        for names in _defined(ast.parse(path.read_text()).body):
            found.setdefault(names[-1], []).append("::".join([str(path.relative_to(ROOT)), *names]))
    return found


def _defined(body: list[ast.stmt]) -> Iterator[list[str]]:
    for node in body:
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef) and node.name.startswith("test_"):
            yield [node.name]
        elif isinstance(node, ast.ClassDef) and node.name.startswith("Test"):
            yield from ([node.name, *names] for names in _defined(node.body))


def wrong() -> list[str]:
    """One sentence for each quote, pattern or piece of evidence that is gone, and each claim that lacks something."""
    return [f"{claim.id}: {sentence}" for claim in claims() for sentence in _wrong(claim)]


def _wrong(claim: Claim) -> Iterator[str]:
    for source, quotes in claim.says.items():
        try:
            text = text_of(source)
        except (OSError, KeyError):
            yield f"there is no {source}"
            continue
        yield from (
            f"{source} does not say any more: {quote}" for quote in quotes if flat(quote) not in text or not quote
        )
    for source, patterns in claim.rows.items():
        here = sentences(source)
        yield from (
            f"{source} has no sentence like {pattern}"
            for pattern in patterns
            if not any(re.search(pattern, each) for each in here)
        )
    for each in claim.evidence:
        try:
            exists(each)
        except LookupError as error:
            yield str(error)
    if claim.status == "supported" and not claim.evidence:
        yield "is called supported without evidence"
    if claim.status != "supported" and not claim.note:
        yield f"is {claim.status} and does not say why"


def exists(evidence: str) -> None:
    """LookupError with a sentence where a piece of evidence names something that is not there."""
    kind, _, what = evidence.partition(" ")
    if is_test(evidence):
        target(evidence)
    elif kind == "audit":
        from audits.table import named

        named([what])
    elif kind == "run" and " => " in what:
        _command(what.split(" => ")[0])
    elif kind == "once":
        _command(what)
    elif kind == "read":
        _section(*what.partition("#")[::2])
    else:
        raise LookupError(f"no kind of evidence: {evidence}")


def _command(line: str) -> None:
    """A command names a target of make, a script, or a command of ours."""
    words = line.split()
    if words[0] == "make":
        known = re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE) is not None
    elif words[0] in ("python", "sh"):
        known = words[1] == "-m" or (ROOT / words[1]).is_file()
    else:
        known = words[0] in ("secagg", "fedseg")
    if not known:
        raise LookupError(f"the command is gone: {line}")


def _section(page: str, anchor: str) -> None:
    """A page has a heading with this anchor."""
    path = ROOT / page
    headings = re.findall(r"^#+ (.+)$", path.read_text(), re.MULTILINE) if path.is_file() else []
    if anchor not in [
        re.sub(r"[^\w -]", "", each.replace("`", "").lower()).strip().replace(" ", "-") for each in headings
    ]:
        raise LookupError(f"{page} has no section {anchor}")


def uncovered(source: str, claiming: tuple[str, ...]) -> list[str]:
    """Of these sentences of a page, those that no claim quotes."""
    return [each for each in claiming if not any(claim.covers(source, each) for claim in claims())]
