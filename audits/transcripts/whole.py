"""Both verifiers on whole runs: made patients, trained with each algorithm, as they are and with one lie each."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from audits.attacks.common import scratch, study_of
from audits.base import Result, Task
from audits.verifier import runs
from audits.verifier.judge import ViolationError
from audits.verifier.policy import load_policy, load_roster
from audits.verifier.reading import Reader
from fedseg.data.loading import load_cohort
from fedseg.models import build_model
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.update import flatten
from fedseg.verifying import verify_run
from secagg import SigningKey

RUNS: dict[str, dict[str, dict[str, Any]]] = {
    "fedavg": {},
    "fedavgm, half the step": {"federation": {"algorithm": "fedavgm", "server_lr": 0.5}},
    "fedadam": {"federation": {"algorithm": "fedadam"}},
    "fedadam, corrected": {"federation": {"algorithm": "fedadam", "corrected": True}},
    "fedyogi and an average": {"federation": {"algorithm": "fedyogi", "ema": 0.9}},
    "random mask": {"sharing": {"method": "random-mask", "share": 0.25}},
    "low rank in few bits": {"sharing": {"method": "low-rank", "rank": 8, "bits": 8}},
    "rotated sketch, error feedback": {
        "sharing": {"method": "sketch", "share": 0.5, "rotation": True, "bits": 6, "error_feedback": True}
    },
    "statistics first": {"data": {"statistics": "secure"}, "study": {"rounds": 3}},
    "half of the patients drawn": {"privacy": {"sample_rate": 0.5}},
    "svt": {"privacy": {"mechanism": "svt", "released": 0.1}},
    "distributed": {"privacy": {"mechanism": "distributed"}},
    "distributed, adam, an average": {
        "privacy": {"mechanism": "distributed"}, "study": {"optimizer": "adam"}, "federation": {"ema": 0.9}
    },
    "distributed, random mask, statistics": {
        "privacy": {"mechanism": "distributed"},
        "sharing": {"method": "random-mask", "share": 0.5},
        "data": {"statistics": "secure"},
        "study": {"rounds": 3},
    },
}  # fmt: skip
"""What of a study differs from a small one of mechanism local with federated averaging."""


def _changed(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-2] ^= 1
    path.write_bytes(data)


def _shorter(path: Path) -> None:
    path.write_text("".join(path.read_text().splitlines(keepends=True)[1:]))


LIES: dict[str, tuple[str, Callable[[Path], None]]] = {
    "as it is": ("", lambda folder: None),
    "a bit of the model file": ("T-16", lambda folder: _changed(folder / "model.safetensors")),
    "a line of a ledger is gone": ("T-17", lambda folder: _shorter(next((folder / "ledger").glob("*.jsonl")))),
}


def audit(task: Task) -> Result:
    """Both come to the same: everything holds, or it does not and one names the check that was lied about."""
    rows: list[dict[str, float | int | str]] = []
    with scratch() as folder:
        for number, (name, changes) in enumerate(RUNS.items()):
            task.progress(f"a run with {name}")
            run, start = trained(changes, folder / str(number))
            for lie, (check, tell) in LIES.items():
                copy = folder / f"{number}-{check}" / run.name
                shutil.copytree(run, copy)
                tell(copy)
                ours, theirs = second(copy, start), first(copy)
                agree = (not ours and not theirs) if not check else (ours == check and check in theirs)
                rows.append(
                    {
                        "run": name,
                        "lie": lie,
                        "second verifier": ours or "holds",
                        "fedseg verify-run": ", ".join(sorted(theirs)) or "holds",
                        "agree": "yes" if agree else "NO",
                    }
                )
    against = sum(row["agree"] == "NO" for row in rows)
    says = (
        f"fedseg verify-run and a verifier written from the specification alone looked at {len(rows)} runs, from the "
        f"start of the study through every sum to the model file, and "
        f"{'agreed on all' if not against else f'disagreed on {against}'}: {len(RUNS)} that hold, "
        f"{len(rows) - len(RUNS)} with a lie."
    )
    return Result(
        "violated" if against else "holds", says, {"runs": len(rows), "disagreements": against}, (), tuple(rows)
    )


def trained(changes: dict[str, dict[str, Any]], folder: Path) -> tuple[Path, np.ndarray]:
    """A run folder with its transcripts, and the weights of its start: float32 (d,)."""
    study = study_of(sites=3, size=16, rounds=2, mechanism="local").replace(**changes)
    path = folder / "whole.partial"
    (path / "identities").mkdir(parents=True)
    (path / "study.toml").write_text(study.toml())
    for party in ("server", *study.site_ids):
        (path / "identities" / f"{party}.key").write_bytes(SigningKey.generate().export())
    options = Options(transcripts=True, command="an audit")
    return simulate(RunFolder(path, study), load_cohort(None, study), options), flatten(build_model(study))


def second(folder: Path, start: np.ndarray) -> str:
    """The check that the second verifier names, why it did not check T-16, or nothing."""
    reader = Reader(load_policy(folder / "policy.toml"), load_roster(folder / "federation.toml"))
    try:
        _, unchecked = runs.verify_run(folder, reader, start)
    except ViolationError as violation:
        return violation.check
    return "; ".join(one for one in unchecked if "T-16" in one)


def first(folder: Path) -> set[str]:
    """The checks that fedseg finds violated."""
    return {finding.check for finding in verify_run([folder], folder / "federation.toml").violations}
