"""One process for many mutants: it loads what all detectors load, and forks a child for each run.

So a run starts in milliseconds, with fresh modules of `secagg`, `fedseg` and the tests: this process never imports
them. It runs in a copy of the tree, as `python -m audits.mutants.worker`: a line of JSON in is one run, a line out is
what it came to. Every child is a group of its own, which ends with it.
"""

import contextlib
import importlib
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

LOADED = ("numpy", "hypothesis", "cryptography.hazmat.primitives.hpke", "nacl.signing", "blake3", "google.protobuf")
LOADED_FOR_FEDSEG = ("torch", "monai.losses", "scipy.stats", "dp_accounting.pld", "pydantic", "nibabel", "opacus")


class Watch:
    """A plugin of pytest that keeps the first failure: where, in which phase, with which line."""

    def __init__(self) -> None:
        self.ran, self.failure = 0, dict[str, str]()

    def pytest_runtest_makereport(self, item: pytest.Item, call: pytest.CallInfo[None]) -> None:
        """Called after setup, call and teardown of each test."""
        error = call.excinfo
        skipped = error is not None and isinstance(error.value, pytest.skip.Exception)
        self.ran += call.when == "call" and not skipped
        if error is None or self.failure or skipped:
            return
        entry = error.traceback[-1]
        own = [each for each in error.traceback if "/tests/" in str(each.path)]
        at = own[-1] if own else entry
        line = str(at.statement).strip().splitlines()
        said = f"{type(error.value).__name__}: {error.value}".splitlines()
        self.failure = {
            "phase": str(call.when),
            "test": item.nodeid,
            "line": f"{Path(str(at.path)).name}:{at.lineno + 1}: {line[0] if line else ''}",
            "says": " ".join(said[:6])[:600],
        }

    def pytest_collectreport(self, report: pytest.CollectReport) -> None:
        """Called after each file was imported."""
        if report.failed and not self.failure:
            self.failure = {
                "phase": "collection",
                "test": report.nodeid,
                "line": "",
                "says": str(report.longrepr)[-600:],
            }


def test_of(detector: str) -> dict[str, Any]:
    """Run one test: outcome, and the first failure."""
    watch = Watch()
    options = ["-x", "-q", "--tb=no", "-p", "no:cacheprovider", "-p", "no:xdist", "--hypothesis-seed=0"]
    pytest.main([*options, "-m", "slow or not slow", detector], plugins=[watch])
    if watch.failure:
        kind = "failed" if watch.failure["phase"] in ("call", "teardown") else "error"
        return {"outcome": kind, **watch.failure}
    return {"outcome": "passed" if watch.ran else "error", "says": "" if watch.ran else "no such test ran"}


def audit_of(detector: str, out: Path) -> dict[str, Any]:
    """Run one audit at its quick depth: a violation is a failure."""
    from audits.base import Task
    from audits.table import AUDITS

    (audit,) = [each for each in AUDITS if each.name == detector]
    result = audit.run(Task(depth="quick", seed=0, out=out, progress=lambda text: None))
    outcome = {"holds": "passed", "violated": "failed", "no power": "error"}[result.verdict]
    return {"outcome": outcome, "phase": "call", "test": detector, "line": detector, "says": result.says}


def child(detector: str, log: Path, folder: Path) -> dict[str, Any]:
    """What happens in the child: its output goes to a file, its answer is returned."""
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    os.environ["PYTEST_DEBUG_TEMPROOT"] = os.environ["TMPDIR"] = str(folder)
    try:
        return test_of(detector) if "::" in detector else audit_of(detector, folder)
    except BaseException:
        return {"outcome": "error", "says": traceback.format_exc()[-600:]}


def run(detector: str, seconds: float, folder: Path) -> dict[str, Any]:
    """Fork, wait at most `seconds` of wall time, and say what came out, and how many seconds of a core it took."""
    began = time.monotonic()
    answer = folder / "answer.json"
    answer.unlink(missing_ok=True)
    process = os.fork()
    if process == 0:
        os.setpgid(0, 0)
        answer.write_text(json.dumps(child(detector, folder / "log.txt", folder)), encoding="utf-8")
        os._exit(0)
    ended, used = 0, None
    while not ended and time.monotonic() - began < seconds:
        ended, _, used = os.wait4(process, os.WNOHANG)
        time.sleep(0.02)
    with contextlib.suppress(ProcessLookupError, PermissionError):  # what the test left behind
        os.killpg(process, signal.SIGKILL)
    if not ended:
        os.waitpid(process, 0)
        return {"outcome": "late", "says": f"took more than {seconds:.0f} seconds of wall time"}
    took = round(used.ru_utime + used.ru_stime, 2) if used else 0.0
    if not answer.is_file():
        return {"outcome": "error", "says": "the process died", "took": took}
    return {**json.loads(answer.read_text(encoding="utf-8")), "took": took}


@contextlib.contextmanager
def mutated(tree: Path, texts: dict[str, str]) -> Iterator[None]:
    """Files with other texts, for as long as the block lasts."""
    before = {tree / file: (tree / file).read_bytes() for file in texts}
    try:
        for file, text in texts.items():
            (tree / file).write_text(text, encoding="utf-8")
            _forget(tree / file)
        yield
    finally:
        for path, content in before.items():
            path.write_bytes(content)
            _forget(path)


def _forget(path: Path) -> None:
    """Bytecode is valid for a time stamp and a size, which an edit within a second may share."""
    for compiled in (path.parent / "__pycache__").glob(f"{path.stem}.*.pyc"):
        compiled.unlink()


def main() -> None:
    """Serve until the input ends."""
    tree, folder = Path.cwd(), Path(sys.argv[1])
    sys.path.insert(0, str(tree))
    heavy = False
    for name in LOADED:
        importlib.import_module(name)
    for line in sys.stdin:
        job = json.loads(line)
        if job["heavy"] and not heavy:
            heavy = True
            for name in LOADED_FOR_FEDSEG:
                importlib.import_module(name)
        with mutated(tree, job["texts"]):
            answer = run(job["detector"], job["seconds"], folder)
        print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    main()
