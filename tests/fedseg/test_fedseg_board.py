"""TensorBoard and MLflow: figures and pictures that a run folder and its forwardable report hold, and no others."""

import json

import numpy as np
import pytest
from typer.testing import CliRunner

from fedseg.cli import app
from fedseg.cli.ending import conclude
from fedseg.errors import SiteWarning
from fedseg.runfolder import TENSORBOARD
from fedseg.study import load_study
from fedseg.watching import board, tracking
from fedseg.watching.board import write_pictures
from tests.support.tiny import tiny_study


def command(*arguments):
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    assert result.exit_code == 0, (result.output, result.exception)
    return result.output


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of the command, with curves where tensorboard is installed."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "study.toml").write_text(tiny_study(patients=3).replace(data={"size": 16}).toml())
    said = command("simulate", folder / "study.toml", "--plain", "--out", folder / "runs")
    (found,) = (folder / "runs").iterdir()
    assert not board.installed() or f"tensorboard --logdir {found / TENSORBOARD}" in said
    return found


def told(folder):
    """Tag to steps and values of all event files."""
    loading = pytest.importorskip("tensorboard.backend.event_processing.event_file_loader", reason="no tensorboard")
    found = {}
    for path in sorted(folder.iterdir()):
        for event in loading.LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                found.setdefault(value.tag, []).append((event.step, value))
    return found


def test_a_run_writes_its_curves_and_the_pictures_of_made_patients(run):
    found = told(run / TENSORBOARD)
    metrics = json.loads((run / "metrics.json").read_text())
    spent = [value.simple_value for _, value in found["epsilon/site-a"]]
    assert spent[-1] == pytest.approx(metrics["privacy"]["per_site"]["site-a"], rel=1e-5)
    assert [step for step, _ in found["round/bytes up"]] == [1, 2]
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    dice = next(event for event in events if event["kind"] == "dice" and event["site"] == "site-a")
    assert {tag.removeprefix("site-a/") for tag in found if tag.startswith("site-a/")} <= dice["values"].keys()
    shown = [found[tag][0][1].image.encoded_image_string for tag in found if "made patient/" in tag]
    assert shown
    assert all(png.startswith(b"\x89PNG") for png in shown)


@pytest.mark.filterwarnings("ignore:TensorBoard has no more")
def test_curves_that_cannot_be_written_cost_the_run_nothing(run, tmp_path, monkeypatch):
    """A full disk, or a package of which half is installed."""

    def broken(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(board, "_writer", broken)
    monkeypatch.setattr(board, "installed", lambda: True)
    said = command("simulate", run / "study.toml", "--plain", "--out", tmp_path)
    assert "model.safetensors" in said
    (found,) = tmp_path.iterdir()
    (found / TENSORBOARD).mkdir(exist_ok=True)
    with pytest.warns(SiteWarning, match="TensorBoard has no more of this run"):
        conclude(found)


def test_no_picture_of_a_patient_is_written(run, tmp_path):
    """The same run folder, of images that a hospital has: nothing is added to the curves."""
    copy = tmp_path / run.name
    __import__("shutil").copytree(run, copy)
    text = (copy / "study.toml").read_text().replace('layout = "phantom"', 'layout = "bids"')
    (copy / "study.toml").write_text(text)
    before = sorted((copy / TENSORBOARD).iterdir()) if (copy / TENSORBOARD).is_dir() else []
    assert write_pictures(copy) == 0
    assert np.array_equal(before, sorted((copy / TENSORBOARD).iterdir()) if before else [])


def test_what_leaves_for_mlflow_is_what_may_leave(run, tmp_path, monkeypatch):
    pytest.importorskip("mlflow", reason="the extra mlflow is not installed")
    monkeypatch.setenv("MLFLOW_ALLOW_FILE_STORE", "true")
    said = command("track", run, "--to", (tmp_path / "mlruns").as_uri())
    identity = said.rsplit("run ", 1)[1].split()[0]  # MLflow says lines of its own before
    (folder,) = (tmp_path / "mlruns").glob(f"*/{identity}")
    assert {path.name for path in (folder / "artifacts").iterdir()} == {
        "study.toml",
        "model.safetensors",
        "report.html",
    }
    assert (folder / "params" / "privacy.mechanism").read_text() == "local"
    assert len((folder / "metrics" / "epsilon").read_text().splitlines()) == 2


@pytest.mark.parametrize(
    ("party", "layout", "shares", "leaves"),
    [
        ("", "phantom", False, True),
        ("", "bids", False, False),
        ("coordinator", "bids", False, True),
        ("site-a", "bids", False, False),
        ("site-a", "bids", True, True),
    ],
)
def test_figures_of_patients_leave_a_machine_where_the_study_says_so(run, party, layout, shares, leaves):
    class Found:
        study = type("Started", (), {"party": party})

    study = load_study(run / "study.toml").replace(report={"share_metrics": shares})
    study = study.model_copy(update={"data": study.data.model_copy(update={"layout": layout})})
    assert tracking.shows_figures(Found, study) is leaves
