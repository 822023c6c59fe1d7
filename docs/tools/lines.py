"""Keeps what the pages say about the code true: `file:line` of every name in a walk, and the floors.

A page names a definition as ``[`secagg/client.py:195`](../secagg/client.py#L195) `Joining.advertise_keys` ``. The name
is what counts: the line is looked up. `make walks` writes the lines that are right now; a test fails where a page is
behind, or where a file does not define the name any more.
"""

import ast
import re
import tomllib
from collections.abc import Iterator
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
REFERENCE = re.compile(r"\[`([\w/]+\.py):\d+`\]\(((?:\.\./)+)\1#L\d+\) `([\w.]+)`")
FLOORS = re.compile(r"(<!-- floors of (\w+), written by make walks -->\n).*?(<!-- end -->)", re.DOTALL)


@cache
def definitions(path: str) -> dict[str, int]:
    """Line of every class, function, method and constant of a file, by dotted name."""

    def named(body: list[ast.stmt], within: str) -> Iterator[tuple[str, int]]:
        for node in body:
            match node:
                case ast.ClassDef() | ast.FunctionDef() | ast.AsyncFunctionDef():
                    yield within + node.name, node.lineno
                    yield from named(node.body, f"{within}{node.name}.")
                case ast.Assign(targets=[ast.Name(id=name)]) | ast.AnnAssign(target=ast.Name(id=name)):
                    yield within + name, node.lineno

    return dict(named(ast.parse((ROOT / path).read_text(encoding="utf-8")).body, ""))


def refreshed(text: str) -> str:
    """A page with the lines and floors of today.

    Raises:
        LookupError: the page names something that its file does not define.
    """

    def with_line(found: re.Match[str]) -> str:
        path, up, name = found.groups()
        line = definitions(path).get(name) if (ROOT / path).is_file() else None
        if line is None:
            raise LookupError(f"{path} does not define {name}: find where it is now and correct the page by hand")
        return f"[`{path}:{line}`]({up}{path}#L{line}) `{name}`"

    def with_floors(found: re.Match[str]) -> str:
        return f"{found[1]}{floors(found[2])}\n{found[3]}"

    return FLOORS.sub(with_floors, REFERENCE.sub(with_line, text))


def layers(package: str) -> list[list[str]]:
    """The floors of a package, the highest first, as the import contracts of pyproject.toml list them."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"]
    (found,) = (contract["layers"] for contract in settings["contracts"] if contract.get("containers") == [package])
    return [re.findall(r"[\w.]+", floor) for floor in found]


def floors(package: str) -> str:
    """The drawing of the floors, and the table that says what each room is, in the words of its own docstring."""
    found = layers(package)
    width = max(len(" | ".join(rooms)) for rooms in found)
    edge = f"     +{'-' * (width + 2)}+"
    drawn = [f"{len(found) - i:>4} | {' | '.join(rooms):<{width}} |" for i, rooms in enumerate(found)]
    rows = [
        f"| {len(found) - i} | [`{room}`](../{_file(package, room)}) | {_sentence(_file(package, room))} |"
        for i, rooms in enumerate(found)
        for room in rooms
    ]
    drawing = ["```text", edge, *drawn, edge, "```"]
    return "\n".join(["", *drawing, "", "| floor | room | what it is |", "|---|---|---|", *rows, ""])


def _file(package: str, room: str) -> str:
    path = Path(package, *room.split("."))
    folder = path / "__init__.py"
    return str(folder if (ROOT / folder).is_file() else path.with_name(f"{path.name}.py"))


def _sentence(path: str) -> str:
    """The first sentence of a file's docstring."""
    said = " ".join((ast.get_docstring(ast.parse((ROOT / path).read_text(encoding="utf-8"))) or "").split())
    return re.split(r"(?<=\.) (?=[A-Z`])", said)[0].replace("|", "\\|")


if __name__ == "__main__":
    for page in sorted(DOCS.rglob("*.md")):
        before = page.read_text(encoding="utf-8")
        if (after := refreshed(before)) != before:
            page.write_text(after, encoding="utf-8")
