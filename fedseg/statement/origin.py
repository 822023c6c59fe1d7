"""Which program wrote a page: version, commit where one is known, and a hash over its own code."""

import hashlib
import json
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, distribution, version
from pathlib import Path

import fedseg
import secagg

_PACKAGES = (secagg, fedseg)


@dataclass(frozen=True)
class Origin:
    """What wrote a page.

    Attributes:
        version: of the packages.
        commit: 40 hexadecimal digits; "" where neither the installation nor a checkout tells.
        code: SHA-256 over names and contents of all Python files of secagg and fedseg.
    """

    version: str
    commit: str
    code: str


def origin() -> Origin:
    """Of this process."""
    return Origin(version("secagg"), _installed() or _checked_out(Path(fedseg.__file__).parents[1]), _code())


def _code() -> str:
    whole = hashlib.sha256()
    for package in _PACKAGES:
        root = Path(str(package.__file__)).parent
        for path in sorted(root.rglob("*.py")):
            content = hashlib.sha256(path.read_bytes()).hexdigest()
            whole.update(f"{package.__name__}/{path.relative_to(root).as_posix()} {content}\n".encode())
    return whole.hexdigest()


def _installed() -> str:
    """The commit from which pip installed, where it did so from a repository (PEP 610)."""
    try:
        told = json.loads(distribution("secagg").read_text("direct_url.json") or "{}")
    except (PackageNotFoundError, ValueError):
        return ""
    return str(told.get("vcs_info", {}).get("commit_id", ""))


def _checked_out(root: Path) -> str:
    """The commit of a checkout; what was changed in it since shows in `Origin.code` only."""
    try:
        git = root / ".git"
        if git.is_file():  # of a work tree, which names its own folder
            git = (root / git.read_text(encoding="utf-8").removeprefix("gitdir:").strip()).resolve()
        head = (git / "HEAD").read_text(encoding="ascii").strip()
        if not head.startswith("ref:"):
            return head
        name = head.removeprefix("ref:").strip()
        shared = git / (git / "commondir").read_text(encoding="ascii").strip() if (git / "commondir").is_file() else git
        if (shared / name).is_file():
            return (shared / name).read_text(encoding="ascii").strip()
        packed = (shared / "packed-refs").read_text(encoding="ascii").splitlines()
        return next((line.split()[0] for line in packed if line.endswith(f" {name}")), "")
    except (OSError, ValueError):
        return ""
