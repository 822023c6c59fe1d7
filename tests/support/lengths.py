"""How long functions and files are, today and at a commit: python -m tests.support.lengths [COMMIT]."""

import ast
import statistics
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2]
LONG_FILE = 400


def git(*arguments: str) -> str:
    """What git prints in this repository."""
    return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout


def sources(package: str, commit: str) -> Iterator[tuple[str, str]]:
    """Path and text of a package's modules, but for generated ones; of the working tree where no commit is named."""
    listed = git("ls-tree", "-r", "--name-only", commit, package) if commit else git("ls-files", package)
    for path in listed.splitlines():
        if path.endswith(".py") and not path.endswith("_pb2.py"):
            yield path, git("show", f"{commit}:{path}") if commit else (ROOT / path).read_text(encoding="utf-8")


def functions(text: str) -> Iterator[tuple[int, str]]:
    """Lines, without those of the docstring, and name of every function."""
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0]
            told = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) is not None else 0
            yield node.end_lineno - node.lineno + 1 - told, node.name


def main() -> None:
    """Print one line for each package and commit."""
    for package in ("secagg", "fedseg"):
        for commit in (*sys.argv[1:], ""):
            files = dict(sources(package, commit))
            found = sorted((lines, name, path) for path, text in files.items() for lines, name in functions(text))
            longest, name, path = found[-1]
            long = [path for path, text in files.items() if len(text.splitlines()) > LONG_FILE]
            print(
                f"{package} {commit or 'today'}: {len(files)} files, {len(found)} functions, median "
                f"{statistics.median(lines for lines, *_ in found):g} lines, longest {longest} ({path} {name}), "
                f"{len(long)} files above {LONG_FILE} lines {' '.join(long)}"
            )


if __name__ == "__main__":
    main()
