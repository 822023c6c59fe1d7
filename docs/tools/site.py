"""A hook of mkdocs: what the pages link to outside docs/ (code, tests, the change log) becomes part of the site.

So that a link works on a code forge, in the built site, and without a network. Code is shown with its line numbers, and
Markdown as a page.
"""

import posixpath
import re
from pathlib import Path

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files, InclusionLevel
from mkdocs.structure.pages import Page
from pygments import highlight
from pygments.formatters import HtmlFormatter
from pygments.lexers import get_lexer_for_filename

ROOT = Path(__file__).parents[2]
LINK = re.compile(r"(?<!!)\]\((?!\w+:|#)([^)#\s]+)(?:#([\w-]+))?\)")
LINES = HtmlFormatter(linenos="inline", lineanchors="L")


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add a page for every file outside docs/ that a page links to, and for what those link to."""
    todo = [(f"docs/{file.src_uri}", file.content_string) for file in files.documentation_pages()]
    done: set[str] = set()
    while todo:
        source, text = todo.pop()
        for target in {_target(source, link[1]) for link in LINK.finditer(text)} - done:
            if target.startswith("docs/") or not (ROOT / target).is_file():
                continue
            done.add(target)
            content = (ROOT / target).read_text(encoding="utf-8")
            if target.endswith(".md"):
                todo.append((target, content))
            else:
                content = f"# {target}\n\n{highlight(content, get_lexer_for_filename(target), LINES)}"
            files.append(File.generated(config, _page(target), content=content, inclusion=InclusionLevel.NOT_IN_NAV))
    return files


def on_page_markdown(markdown: str, page: Page, config: MkDocsConfig, files: Files) -> str:
    """Point the links at the pages of the site."""
    here = page.file.src_uri
    source = here.removeprefix("source/").removesuffix(".md") if here.startswith("source/") else f"docs/{here}"
    if here.startswith("source/") and not source.endswith(".md"):
        return markdown

    def pointed(link: re.Match[str]) -> str:
        target = _target(source, link[1])
        if (ROOT / target).is_dir():
            target = f"{target}/index.md" if (ROOT / target / "index.md").is_file() else f"{target}/README.md"
        line = re.fullmatch(r"L(\d+)", link[2] or "")
        anchor = f"#L-{line[1]}" if line else f"#{link[2]}" if link[2] else ""
        return f"]({posixpath.relpath(_page(target), posixpath.dirname(here) or '.')}{anchor})"

    return LINK.sub(pointed, markdown)


def _target(source: str, link: str) -> str:
    """The path within the repository that a link of a file means."""
    return posixpath.normpath(posixpath.join(posixpath.dirname(source), link))


def _page(target: str) -> str:
    """The page of the site for a path within the repository."""
    return target.removeprefix("docs/") if target.startswith("docs/") else f"source/{target}.md"
