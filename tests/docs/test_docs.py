"""Pages name code that exists at the line they give, links lead somewhere, every page is in the site, examples run."""

import importlib.util
import re
import subprocess
import sys
from pathlib import Path

import pytest

import secagg

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
PAGES = sorted(DOCS.rglob("*.md"))
TEXTS = [*PAGES, *sorted(ROOT.glob("*.md")), ROOT / "tests/README.md", ROOT / "examples/README.md"]
EXAMPLES = sorted((ROOT / "examples").glob("*.py"))
HOSTS = {"flower": "flwr", "nvflare": "nvflare", "ray": "ray"}
ADAPTERS = [["secagg", adapter] for adapter in HOSTS]  # need their hosts, in environments of their own: tests/adapters
LINK = re.compile(r"(?<!!)\]\((?!\w+:)([^)#\s]*)(?:#([\w-]+))?\)")

_spec = importlib.util.spec_from_file_location("lines", DOCS / "tools/lines.py")
lines = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(lines)


def prose(page: Path) -> str:
    """A page without its code."""
    return re.sub(r"^```.*?^```", "", page.read_text(), flags=re.MULTILINE | re.DOTALL)


def anchors(page: Path) -> set[str]:
    """What a link into a page can name, as forges and the site make it of a heading."""
    headings = re.findall(r"^#+ (.+)$", prose(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.replace("`", "").lower()).strip().replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(DOCS)))
def test_a_page_names_code_where_it_is_and_the_floors_as_they_are(page):
    text = page.read_text()
    assert lines.refreshed(text) == text, f"{page.name} is behind the code: run make walks"


def test_the_walks_are_walks():
    text = (DOCS / "architecture.md").read_text()
    assert len(lines.REFERENCE.findall(text)) > 40
    assert len(lines.FLOORS.findall(text)) == 2
    assert not re.search(r"\.py:\d+", lines.REFERENCE.sub("", text)), "a line number that nobody looks up"


def test_a_name_that_moved_away_is_found(tmp_path, monkeypatch):
    text = "[`secagg/keys.py:1`](../secagg/keys.py#L1) `{}` seals."
    line = 1 + (ROOT / "secagg/keys.py").read_text().splitlines().index(
        "def seal(suite: Suite, public: bytes, info: bytes, plaintext: bytes) -> bytes:"
    )
    assert lines.refreshed(text.format("seal")) == f"[`secagg/keys.py:{line}`](../secagg/keys.py#L{line}) `seal` seals."
    for gone in ("sealed", "SigningKey.seal"):
        with pytest.raises(LookupError, match=re.escape(f"secagg/keys.py does not define {gone}")):
            lines.refreshed(text.format(gone))


@pytest.mark.parametrize("page", TEXTS, ids=lambda page: str(page.relative_to(ROOT)))
def test_every_link_leads_somewhere(page):
    for target, anchor in LINK.findall(prose(page)):
        there = (page.parent / target).resolve() if target else page
        assert there.exists(), f"{page.name}: {target}"
        assert there.is_relative_to(ROOT), f"{page.name}: {target} is outside the repository"
        if anchor and there.suffix == ".md":
            assert anchor in anchors(there), f"{page.name}: {target}#{anchor}"


def test_the_site_has_every_page_once():
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    listed = re.findall(r": ([\w/-]+\.md)$", nav, re.MULTILINE)
    assert sorted(listed) == sorted(str(page.relative_to(DOCS)) for page in PAGES)


def test_the_index_of_decisions_is_complete():
    listed = re.findall(r"\]\((\d{4}-[\w-]+\.md)\)", (DOCS / "adr/index.md").read_text())
    assert listed == sorted(page.name for page in (DOCS / "adr").glob("0*.md"))


def test_the_api_page_has_every_public_name_once_and_nothing_else():
    listed = re.findall(r"^::: ([\w.]+)$", (DOCS / "api.md").read_text(), re.MULTILINE)
    assert len(set(listed)) == len(listed)
    top = [name.removeprefix("secagg.") for name in listed]
    assert {name for name in top if "." not in name} - {"files", "writing"} == set(secagg.__all__)


@pytest.mark.parametrize("page", ["api.md", "api-fedseg.md"])
def test_what_an_api_page_lists_is_there_and_documented(page):
    listed = re.findall(r"^::: ([\w.]+)$", (DOCS / page).read_text(), re.MULTILINE)
    assert len(set(listed)) == len(listed) > 25
    for name in listed:
        module, _, attribute = name.rpartition(".")
        found = getattr(importlib.import_module(module), attribute, None) or importlib.import_module(name)
        assert found.__doc__, name
        if isinstance(found, type):
            undocumented = [key for key, value in vars(found).items() if key[0] != "_" and callable(value)]
            assert [key for key in undocumented if not vars(found)[key].__doc__] == [], name


def found(name: str) -> object:
    """What a dotted name of the packages means.

    Raises:
        AttributeError, ImportError: nothing.
    """
    parts = name.split(".")
    if parts[:2] in ADAPTERS and importlib.util.find_spec(HOSTS[parts[1]]) is None:
        return (ROOT / "secagg" / parts[1]).with_suffix(".py").exists() or (ROOT / "secagg" / parts[1]).is_dir()
    there = importlib.import_module(parts[0])
    for depth, part in enumerate(parts[1:], start=2):
        there = getattr(there, part) if hasattr(there, part) else importlib.import_module(".".join(parts[:depth]))
    return there


@pytest.mark.parametrize("page", [*PAGES, ROOT / "README.md"], ids=lambda page: str(page.relative_to(ROOT)))
def test_what_a_page_imports_or_names_is_there(page):
    text = page.read_text()
    for module, names in re.findall(r"^ *from ((?:secagg|fedseg)[\w.]*) import ([\w, ]+)", text, re.MULTILINE):
        assert all(found(f"{module}.{name.strip()}") for name in names.split(",")), module
    for name in re.findall(r"`((?:secagg|fedseg)(?:\.\w+)+)(?!\w*/)", text):
        assert name.endswith((".proto", ".toml", ".py")) or found(name), name


def test_every_word_of_the_glossary_is_there_once():
    words = re.findall(r"^\| \*\*(.+?)\*\* \|", (DOCS / "glossary.md").read_text(), re.MULTILINE)
    assert len(words) > 40
    assert len(set(words)) == len(words)


def test_the_readme_of_the_tests_lists_every_file():
    text = (ROOT / "tests/README.md").read_text()
    files = [
        path for path in (ROOT / "tests").rglob("*.py") if path.parent.name in ("secagg", "fedseg", "docs", "support")
    ]
    assert [path.name for path in files if f"]({path.parent.name}/{path.name})" not in text] == []


@pytest.mark.parametrize("script", EXAMPLES, ids=lambda script: script.stem)
def test_an_example_runs_and_says_something(script):
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()
    page = (ROOT / "examples/README.md").read_text()
    assert f"]({script.name})" in page
    for shown in re.findall(rf"python examples/{script.name}\n```\n\n```text\n(.*?)```", page, re.DOTALL):
        random = re.compile(r"0\.\d+")  # the largest error of rounding, which no seed keeps
        assert random.sub("*", done.stdout) == random.sub("*", shown), "the page shows what was printed once"
