"""The walls between the rooms stand: each forbidden import that is planted is refused. And no function is too long."""

import ast
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.lengths import functions

ROOT = Path(__file__).parents[2]
GENERATED = ("secagg_pb2.py", "transport_pb2.py")
LONGEST_FUNCTION = 50
LONGEST_FILE = 400
LONGER_FILES = {
    "driver/server.py",
    "service/member.py",
    "client.py",
    "messages.py",
    "server.py",
    "session.py",
    "store.py",
    "rpc/client.py",
    "rpc/server.py",
}
"""Of secagg: each is read as one piece, and long because its subject is."""
WITH_FILES = (
    "cli",
    "files.py",
    "recording.py",
    "rpc",
    "service",
    "sqlite.py",
    "terminal.py",
    "text.py",
    "transcript_files.py",
)
"""The rooms of secagg that may open a file; all others take bytes and give bytes."""

PLANTS = {
    "fedseg/privacy/__init__.py": "import secagg.rpc.client",
    "fedseg/newroom.py": "import secagg.session\nimport torch\nfrom secagg import ServerSession",
    "fedseg/newroom2.py": "import matplotlib.pyplot",
    "fedseg/data/__init__.py": "import secagg.server",
    "fedseg/train.py": "import secagg.sqlite",
    "fedseg/coordinator/__init__.py": "import matplotlib.pyplot",
    "fedseg/study/__init__.py": "import secagg.book",
    "secagg/quantize.py": "import socket",
    "secagg/policy.py": "import http.client",
    "secagg/client.py": "import fedseg.study",
    "secagg/newroom.py": "import os",
    "secagg/transcript/facts.py": "import pathlib",
    "secagg/transcript/judging.py": "import os",
    "secagg/transcript/record.py": "import secagg.transcript_files",
    "secagg/transcript/checks.py": "import secagg.server",
    "secagg/merkle.py": "import audits.base",
    "audits/base.py": "import secagg.keys",
}
BY_FLOORS = {
    "secagg.transcript.record": "secagg.transcript_files",
    "secagg.transcript.checks": "secagg.server",
    "audits.base": "secagg.keys",
}


@pytest.fixture(scope="module")
def refused(tmp_path_factory) -> str:
    """What lint-imports says of a copy of the packages in which every import of `PLANTS` was added."""
    root = tmp_path_factory.mktemp("planted")
    for package in ("secagg", "fedseg", "audits", "tests/support"):
        shutil.copytree(ROOT / package, root / package, ignore=shutil.ignore_patterns("__pycache__", "*.so"))
    for name in ("pyproject.toml", "tests/__init__.py"):
        shutil.copy(ROOT / name, root / name)
    contracts = (root / "pyproject.toml").read_text()
    (root / "pyproject.toml").write_text(
        contracts.replace('  "secagg.wire: ', '  "secagg.shamir: zlib",\n  "secagg.wire: ')
    )
    for name, planted in PLANTS.items():
        with open(root / name, "a") as file:
            file.write(f"\n{planted}\n")
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as run; run()", "--no-cache"]
    environment = {**os.environ, "PYTHONPATH": str(root), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.stderr
    return " ".join(done.stdout.split())


def planted() -> list[tuple[str, str]]:
    """(module, what it imports) as the contracts name them."""
    found = []
    for name, lines in PLANTS.items():
        module = name.removesuffix(".py").removesuffix("/__init__").replace("/", ".")
        for line in lines.splitlines():
            imported = line.split()[1]
            ours = imported.startswith(("secagg", "fedseg", "audits"))
            found.append((module, imported if ours else imported.split(".")[0]))
    return found


@pytest.mark.parametrize(("module", "imported"), planted())
def test_an_import_that_is_not_allowed_is_refused(refused, module, imported):
    if BY_FLOORS.get(module) == imported:
        assert f"{module} -> {imported}" in refused
    else:
        assert f"{module} imports {imported} (line" in refused


def test_a_name_that_a_room_does_not_use_is_refused(refused):
    """The lists do not grow old: what a room stopped importing leaves its line."""
    assert "secagg.shamir does not import zlib: take it from its line" in refused


def sources(package: str) -> list[Path]:
    return [path for path in sorted((ROOT / package).rglob("*.py")) if path.name not in GENERATED]


def test_the_core_opens_nothing_by_a_builtin():
    """`open` needs no import, so that no contract sees it."""
    for path in sources("secagg"):
        if path.relative_to(ROOT / "secagg").parts[0] in WITH_FILES:
            continue
        calls = [node.func for node in ast.walk(ast.parse(path.read_text())) if isinstance(node, ast.Call)]
        names = {call.id for call in calls if isinstance(call, ast.Name)}
        assert names.isdisjoint({"open", "exec", "eval", "__import__", "print", "input"}), path


def test_no_function_of_secagg_is_too_long_to_read_at_once():
    lengths = {
        f"{path.name} {name}": lines for path in sources("secagg") for lines, name in functions(path.read_text())
    }
    assert {name: lines for name, lines in lengths.items() if lines > LONGEST_FUNCTION} == {}


def test_files_of_secagg_are_short_but_for_those_that_are_named():
    long = {path for path in sources("secagg") if len(path.read_text().splitlines()) > LONGEST_FILE}
    assert {str(path.relative_to(ROOT / "secagg")) for path in long} <= LONGER_FILES
