"""Calls and comparisons that are banned in the packages, found in their syntax trees.

Linters look for some of them too; this asks none. What is allowed all the same is named with its reason, and an
exception that is needed no more is a finding as well.
"""

import ast
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from audits.base import Result, Task

ROOT = Path(__file__).parents[2]
PACKAGES = ("secagg", "fedseg")

MODULES = {
    "random": "not cryptographic",
    "numpy.random": "not cryptographic",
    "pickle": "runs what it reads",
    "cPickle": "runs what it reads",
    "marshal": "runs what it reads",
    "shelve": "unpickles",
    "dill": "unpickles",
    "joblib": "unpickles",
}
CALLS = {
    "eval": "runs text",
    "exec": "runs text",
    "torch.load": "unpickles",
    "yaml.load": "runs what it reads",
    "np.random": "not cryptographic",
    "os.system": "runs text",
}
UNSEEDED = ("torch.rand", "torch.randn", "torch.randint", "torch.normal", "torch.randperm")
SECRETS = {
    *("seed", "self_seed", "secret", "secrets", "pair_secret", "mask_key", "channel_key", "signing_key", "sealing_key"),
    *("private_key", "exchanged", "self_seed_share", "mask_key_share", "_seed", "password", "token"),
}
ALLOWED = {
    ("fedseg/models/adapting.py", "torch.randn"): "public initial weights, from a generator that the line before seeds",
    ("secagg/server.py", "known.seed == seed"): "a mask key that t released shares give to everybody",
    ("secagg/transcript/checks.py", "secret != told.secrets.mask_keys[dealer].pair_secret(recipient)"): (
        "of a published transcript"
    ),
}


class Found(NamedTuple):
    """Something banned: where, what, why."""

    file: str
    line: int
    what: str
    why: str


def run(task: Task) -> Result:
    """Look at every file of the packages."""
    files = [path for package in PACKAGES for path in sorted((ROOT / package).rglob("*.py")) if "_pb2" not in path.name]
    found = [one for path in files for one in in_file(path)]
    bad = [one for one in found if (one.file, one.what) not in ALLOWED]
    unused = [key for key in ALLOWED if key not in {(one.file, one.what) for one in found}]
    control = {one.what for one in in_text(PLANTED, "planted.py")}
    figures = {"files": len(files), "allowed": len(ALLOWED), "found": len(bad), "planted_and_found": len(control)}
    rows = tuple({"file": file, "what": what, "why it may stay": why} for (file, what), why in ALLOWED.items())
    if bad:
        first = bad[0]
        says = f"{len(bad)} banned, the first: {first.what} in {first.file}:{first.line} ({first.why})."
        return Result("violated", says, figures, rows=rows)
    if unused:
        says = f"An exception is needed no more: {unused[0][1]} in {unused[0][0]}; take it away."
        return Result("violated", says, figures, rows=rows)
    if len(control) < PLANTED.count("\n"):
        return Result("no power", "Of what was planted not all was found, so nothing was shown.", figures)
    says = (
        f"{len(files)} files call nothing that is banned, and compare no secret with == but in {len(ALLOWED)} places."
    )
    return Result("holds", says, figures, rows=rows)


def in_file(path: Path) -> Iterator[Found]:
    """What is banned in a file of the repository."""
    yield from in_text(path.read_text(encoding="utf-8"), path.relative_to(ROOT).as_posix())


def in_text(text: str, file: str) -> Iterator[Found]:
    """What is banned in a text."""
    for node in ast.walk(ast.parse(text)):
        match node:
            case ast.Import():
                names = [alias.name for alias in node.names]
            case ast.ImportFrom():
                names = [node.module or "", *(f"{node.module}.{alias.name}" for alias in node.names)]
            case ast.Call():
                yield from _called(node, file)
                continue
            case ast.Compare():
                yield from _compared(node, file)
                continue
            case _:
                continue
        for name in names:
            if name in MODULES or name.split(".")[0] in MODULES:
                yield Found(file, node.lineno, name, MODULES.get(name, "banned"))


def _called(node: ast.Call, file: str) -> Iterator[Found]:
    name = ast.unparse(node.func)
    for banned, why in CALLS.items():
        if name == banned or name.startswith(banned + "."):
            yield Found(file, node.lineno, name, why)
    said = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
    if name in UNSEEDED and "generator" not in said:
        yield Found(file, node.lineno, name, "of a generator that everybody shares")
    if name in ("np.load", "numpy.load") and said.get("allow_pickle", "False") != "False":
        yield Found(file, node.lineno, name, "unpickles")
    if said.get("shell") == "True":
        yield Found(file, node.lineno, name, "runs text")


def _compared(node: ast.Compare, file: str) -> Iterator[Found]:
    if not any(isinstance(operation, ast.Eq | ast.NotEq) for operation in node.ops):
        return
    sides = [node.left, *node.comparators]
    if any(isinstance(side, ast.Constant) and not isinstance(side.value, bytes) for side in sides):
        return  # a number, a text, None: no secret
    if any(_secret(side) for side in sides):
        yield Found(file, node.lineno, ast.unparse(node), "how long == takes tells where two secrets differ")


def _secret(side: ast.expr) -> bool:
    match side:
        case ast.Name():
            return side.id in SECRETS
        case ast.Attribute():
            return side.attr in SECRETS
        case ast.Call(func=ast.Attribute(attr=name)):
            return name in SECRETS
    return False


PLANTED = """import random
from numpy import random as r
import pickle
x = eval("1")
y = torch.load("f")
z = np.random.default_rng(0)
w = torch.randn(3)
v = np.load("f", allow_pickle=True)
u = self_seed == bytes(32)
t = key.seed != other
"""
