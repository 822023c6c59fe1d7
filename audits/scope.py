"""What was audited, and where: the commit, a hash of every file, and the machine."""

import hashlib
import os
import platform
import subprocess
from dataclasses import dataclass
from functools import cache
from importlib.metadata import distributions
from pathlib import Path

ROOT = Path(__file__).parents[1]


@dataclass(frozen=True)
class Scope:
    """The sources of a result.

    Attributes:
        commit: 40 hex digits, or "unknown" outside a git checkout.
        modified: whether files differ from the commit.
        contents: SHA-256 over the names and contents of all files that git does not ignore.
    """

    commit: str
    modified: bool
    contents: str


@cache
def scope(root: Path = ROOT) -> Scope:
    """The sources as they lie there now."""
    total = hashlib.sha256()
    for name in tracked(root):
        path = root / name
        if path.is_file():
            total.update(f"{name}\0{hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return Scope(
        _git(root, "rev-parse", "HEAD").strip() or "unknown", bool(_git(root, "status", "-s")), total.hexdigest()
    )


def changed() -> bool:
    """Whether files are others than when the run began: what is imported late would be of others."""
    return scope.__wrapped__(ROOT) != scope(ROOT)


@cache
def machine() -> str:
    """Processor, cores, Python, and what is installed and compiled, in one line, for the record."""
    model = next(
        (line.partition(":")[2].strip() for line in _cpuinfo().splitlines() if line.startswith("model name")),
        platform.processor() or platform.machine(),
    )
    python = f"Python {platform.python_version()}"
    return f"{model}, {os.cpu_count()} cores, {platform.system()}, {python}, packages and kernel {_installed()[:12]}"


def _installed() -> str:
    """A hash of what git does not know of: versions of packages, and the compiled kernel."""
    packages = sorted({f"{one.name}=={one.version}" for one in distributions()})
    kernels = [hashlib.sha256(path.read_bytes()).hexdigest() for path in sorted((ROOT / "secagg").glob("_kernel*.so"))]
    return hashlib.sha256("\n".join([*packages, *kernels]).encode()).hexdigest()


def _cpuinfo() -> str:
    try:
        return Path("/proc/cpuinfo").read_text()
    except OSError:
        return ""


def tracked(root: Path) -> list[str]:
    """Names of all files that git does not ignore; outside a checkout, of all files."""
    known = _git(root, "ls-files", "-co", "--exclude-standard", "-z").split("\0")[:-1]
    return sorted(known or (str(path.relative_to(root)) for path in root.rglob("*.*") if "/." not in str(path)))


def _git(root: Path, *arguments: str) -> str:
    """What git says, or nothing where there is no git or no checkout."""
    try:
        asked = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    except OSError:
        return ""
    return asked.stdout if asked.returncode == 0 else ""
