"""The audits of `claims.yaml`: what stands there is still said, is still there, and still passes."""

import os
import re
import shlex
import subprocess
import sys
from collections import Counter

from audits.base import Result, Task, Unable
from audits.claims.book import claims, is_test, target, uncovered, wrong
from audits.claims.texts import claiming, flat, helps, pages
from audits.scope import ROOT


def book(task: Task) -> Result:
    """Quotes, patterns and evidence are there; sentences that no claim quotes are counted and listed."""
    found = wrong()
    (task.out / "wrong.txt").write_text("\n".join(found))
    looked = {source: claiming(source) for source in (*pages(), *helps())}
    left = [(source, each) for source, sentences in looked.items() for each in uncovered(source, sentences)]
    statuses = Counter(claim.status for claim in claims())
    total = sum(map(len, looked.values()))
    figures = {
        "claims": len(claims()),
        **{f"claims that are {status}": count for status, count in statuses.items()},
        "quotes": sum(len(quotes) for claim in claims() for quotes in claim.says.values()),
        "pages and commands read": len(looked),
        "sentences with words of a claim": total,
        "of these, quoted by no claim": len(left),
    }
    rows = tuple({"where": source, "a sentence that no claim quotes": each} for source, each in left)
    if found:
        return Result("violated", f"{len(found)} things are gone, the first: {found[0]}", figures, rows=rows)
    says = f"{len(claims())} claims stand on their pages; {len(left)} of {total} with a claim's words are in none"
    return Result("holds", says, figures, rows=rows)


def collected(task: Task) -> Result:
    """Pytest finds each test that a claim names."""
    tests = _named()
    done = _pytest("--collect-only", *tests)
    if done.returncode:
        return Result(
            "violated", f"pytest does not find all tests: {_last(done)}", {"tests and files named": len(tests)}
        )
    count = len(re.findall(r"^tests/\S+::", done.stdout, re.MULTILINE))
    return Result(
        "holds",
        f"the {len(tests)} tests and files that claims name are {count} tests for pytest",
        {"tests and files named": len(tests), "tests collected": count},
    )


def commands(task: Task) -> Result:
    """The commands under ``run`` print what is claimed."""
    lines = [
        each.removeprefix("run ").split(" => ") for claim in claims() for each in claim.evidence if each[:4] == "run "
    ]
    rows = []
    for line, wanted in lines:
        task.progress(line)
        done = subprocess.run(_own(line), cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
        held = done.returncode == 0 and flat(wanted) in flat(done.stdout)
        rows.append({"command": line, "prints": wanted, "outcome": "holds" if held else f"violated: {_last(done)}"})
    bad = [row["command"] for row in rows if row["outcome"] != "holds"]
    says = f"{bad[0]} does not print what is claimed" if bad else f"{len(rows)} commands print what is claimed"
    return Result("violated" if bad else "holds", says, {"commands": len(rows)}, rows=tuple(rows))


def evidence(task: Task) -> Result:
    """Every test that a claim names by itself passes, but for the slow ones; files of tests are left to `make test`."""
    done = _pytest("-m", "not slow", "--tb=line", *(each for each in _named() if "::" in each))
    (task.out / "pytest.txt").write_text(done.stdout)
    counts = {kind: int(number) for number, kind in re.findall(r"(\d+) (passed|failed|skipped|error)", done.stdout)}
    figures = {f"tests {kind}": count for kind, count in counts.items()}
    if done.returncode:
        return Result("violated", f"tests that claims name do not pass: {_last(done)}", figures)
    return Result("holds", f"{counts.get('passed', 0)} tests that claims name one by one pass", figures)


def _named() -> list[str]:
    """Targets for pytest, without those that lie in a file that is named whole."""
    targets = {target(each) for claim in claims() for each in claim.evidence if is_test(each)}
    whole = {each for each in targets if "::" not in each}
    return sorted(whole | {each for each in targets if each.partition("::")[0] not in whole})


def _pytest(*words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "pytest", "-n", "0", "-p", "no:cacheprovider", *words]
    done = subprocess.run(command, cwd=ROOT, env=_environment(), capture_output=True, text=True, check=False)
    if "No module named pytest" in done.stderr:
        raise Unable("pytest is not installed; run: pip install -e '.[dev]'")
    return done


def _own(line: str) -> list[str]:
    """A command of ours, by the Python that runs this."""
    name, *words = shlex.split(line)
    return [sys.executable, "-c", f"from {name}.cli import main; main()", *words]


def _environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path, "COLUMNS": "200", "OMP_NUM_THREADS": "1"}


def _last(done: subprocess.CompletedProcess[str]) -> str:
    return next(
        (line for line in reversed((done.stdout + done.stderr).splitlines()) if line.strip()), "nothing was said"
    )
