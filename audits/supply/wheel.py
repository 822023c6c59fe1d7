"""The wheel built twice, in folders of different names and depths, by one builder: the same bytes, kernel included."""

import hashlib
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

from audits.base import Result, Task, Unable
from audits.scope import ROOT, tracked

EPOCH = "1700000000"
FOLDERS = ("a", "another/folder/of another name")


def audit(task: Task) -> Result:
    """See the module."""
    from audits.supply.packages import installed

    builder = installed("setuptools")
    if builder is None or int(builder.version.split(".")[0]) < 77:
        raise Unable("setuptools 77 or later is needed to build the wheel; run: pip install -e '.[audits]'")
    wheels, here = [], task.out.resolve()
    for number, name in enumerate(FOLDERS):
        task.progress(f"building in {name}")
        wheels.append(_built(here / name, here / f"wheel-{number}"))
    differ = different(*wheels)
    kernel = [name for name in zipfile.ZipFile(wheels[0]).namelist() if name.endswith(".so")]
    figures = {
        "SHA-256 of the first": _hash(wheels[0]),
        "SHA-256 of the second": _hash(wheels[1]),
        "compiled kernel": ", ".join(kernel) or "none: no compiler here",
        "SOURCE_DATE_EPOCH": EPOCH,
        "setuptools": builder.version,
    }
    if differ or _hash(wheels[0]) != _hash(wheels[1]):
        return Result("violated", f"built twice, the wheel differs: {', '.join(differ) or 'in its archive'}", figures)
    if not kernel:
        return Result("no power", "the wheel is the same, but without a compiler its kernel was not looked at", figures)
    return Result(
        "holds", "built twice in different folders, the wheel has the same hash, compiled kernel included", figures
    )


def different(first: Path, second: Path) -> list[str]:
    """Names of what differs in two wheels."""
    one, two = zipfile.ZipFile(first), zipfile.ZipFile(second)
    if one.namelist() != two.namelist():
        return sorted(set(one.namelist()) ^ set(two.namelist())) or ["the order of its files"]
    return [a.filename for a, b in zip(one.infolist(), two.infolist(), strict=True) if _about(one, a) != _about(two, b)]


def _about(wheel: zipfile.ZipFile, entry: zipfile.ZipInfo) -> tuple[bytes, object, int]:
    return wheel.read(entry), entry.date_time, entry.external_attr


def _built(folder: Path, to: Path) -> Path:
    """A wheel of a copy of the sources."""
    for name in tracked(ROOT):
        if (ROOT / name).is_file():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(ROOT / name, folder / name)
    command = [sys.executable, "-m", "pip", "wheel", "-q", "--no-deps", "--no-build-isolation", "-w", str(to), "."]
    environment = {**os.environ, "SOURCE_DATE_EPOCH": EPOCH, "PIP_DISABLE_PIP_VERSION_CHECK": "1", "PYTHONPATH": ""}
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"the wheel cannot be built: {done.stderr.strip().splitlines()[-1]}")
    shutil.rmtree(folder)
    return next(to.glob("*.whl"))


def _hash(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
