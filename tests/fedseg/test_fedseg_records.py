"""metrics.json: written and read by the same classes, and the same file as before they were."""

import json
from pathlib import Path

import pytest

from fedseg.data.loading import load_cohort
from fedseg.records import Metrics
from fedseg.report import write_report
from fedseg.report.folder import read_run
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from tests.support.tiny import tiny_study

BEFORE = Path(__file__).parent / "metrics"
"""Of one seeded study of two rounds, as fedseg 0.3 wrote them while metrics.json was a dictionary."""

CLOCKS = {"started_utc", "seconds", "versions"}


def shape(value: object) -> object:
    """Names and kinds of all that is in a JSON value; what a clock or an installation decides is left open."""
    if isinstance(value, dict):
        return {name: "any" if name in CLOCKS else shape(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [shape(inner) for inner in value]
    return type(value).__name__


NEW = {"ema": 0.0, "personal": "none"}
"""Fields since then, and what a file from before is read to say."""


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Path:
    study = tiny_study(rounds=2).replace(study={"seed": 1}, report={"share_metrics": True})
    with RunFolder.create(tmp_path_factory.mktemp("runs"), study) as folder:
        return simulate(folder, load_cohort(None, study), Options(command="fedseg simulate study.toml"))


def test_a_run_writes_the_file_that_it_wrote_before(run):
    now, before = (
        json.loads((folder / name).read_text()) for folder, name in ((run, "metrics.json"), (BEFORE, "simulate.json"))
    )
    assert shape(now) == shape(before | NEW)
    assert [name for name in now if name not in NEW] == list(before)
    for name in ("format", "seed", "command", "rounds", "parameters", "mechanism", "privacy"):
        assert now[name] == before[name], name


@pytest.mark.parametrize("name", ["simulate.json", "coordinator.json"])
def test_what_was_written_before_is_read_whole(name):
    before = json.loads((BEFORE / name).read_text())
    read = Metrics.model_validate(before).model_dump(mode="json")
    for entry in before["history"]:
        entry.pop("completed", None)  # a coordinator's own counting: its row's place says the same
    assert read == before | NEW


def test_a_report_is_written_of_a_folder_from_before(run, tmp_path):
    before = json.loads((BEFORE / "simulate.json").read_text())
    before["study_hash"] = json.loads((run / "metrics.json").read_text())["study_hash"]  # the study has new fields
    for path in run.iterdir():
        if path.is_file():
            (tmp_path / path.name).write_bytes(path.read_bytes())
    (tmp_path / "metrics.json").write_text(json.dumps(before))
    assert read_run(tmp_path).metrics.protocol.rounds_completed == 2
    assert "epsilon" in write_report(tmp_path).read_text()
