"""The page "your own data": its script, studies and commands work as shown; its mistakes print its sentences."""

import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fedseg.study import load_study
from tests.support.command import run

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs/howto/your-own-data.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```(\w+)\n(.*?)^```", TEXT, re.MULTILINE | re.DOTALL)
# The split goes by name, so that these have to be the page's own.
NUMBERS = (1, 4, 7, 11, 15, 19, 23, 25, 33, 35, 37, 39, 41, 44, 46,
           49, 51, 53, 57, 60, 65, 68, 74, 77, 84, 88, 90, 92, 94, 96)  # fmt: skip
MISTAKES = re.findall(r"^\| `(.+?)` \| ", TEXT, re.MULTILINE)


def block(language: str, nth: int = 0) -> str:
    return [body for kind, body in BLOCKS if kind == language][nth]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the page begins with, as small images, after `prepare.py`."""
    (tmp_path / "scans").mkdir()
    for number in NUMBERS:
        label = np.zeros((20, 24, 16), np.uint8)
        label[5:10, 6:18, 4:12], label[10:15, 6:18, 4:12] = 1, 2
        image = label * np.arange(40, 56, dtype=np.uint8)
        for values, ending in ((image, ""), (label, "_label")):
            path = tmp_path / f"scans/hippocampus_{number:03}{ending}.nii.gz"
            nibabel.save(nibabel.Nifti1Image(values, np.eye(4)), path)
    (tmp_path / "prepare.py").write_text(block("python"))
    done = subprocess.run([sys.executable, "prepare.py"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines() == block("console").splitlines()[1:]
    (tmp_path / "study.toml").write_text(block("toml"))
    study, changes = load_study(tmp_path / "study.toml"), tomllib.loads(block("toml", 1))
    (tmp_path / "private.toml").write_text(study.replace(**changes).toml())
    monkeypatch.chdir(tmp_path)
    return tmp_path


def known(line: str) -> str:
    """A line without what belongs to the page's real images only."""
    return line.partition("; working voxels")[0]


@pytest.mark.parametrize("nth", [1, 2])
def test_a_command_prints_what_the_page_shows(nth, folder, capsys, monkeypatch):
    command, *shown = block("console", nth).splitlines()
    code, said, _ = run(capsys, monkeypatch, *shlex.split(command)[2:])
    assert code == 0
    printed = iter([known(line) for line in said.splitlines()])
    for wanted in shown:
        assert wanted == "..." or known(wanted) in printed, said


def test_the_study_of_pictures_takes_what_the_page_says(tmp_path, capsys, monkeypatch):
    (tmp_path / "chest.toml").write_text(block("toml", 2))
    drawn = np.random.default_rng(1).integers(0, 255, (3, 40, 28, 28)).astype(np.uint8)
    arrays = {f"{part}_images": each for part, each in zip(("train", "val", "test"), drawn, strict=True)}
    arrays |= {f"{part}_labels": np.arange(40, dtype=np.uint8)[:, None] // 20 for part in ("train", "val", "test")}
    for site in load_study(tmp_path / "chest.toml").site_ids:
        (tmp_path / "chest" / site).mkdir(parents=True)
        np.savez(tmp_path / "chest" / site / "pneumoniamnist.npz", **arrays)
    command = ("data", "check", tmp_path / "chest.toml", "--data", tmp_path / "chest")
    code, said, error = run(capsys, monkeypatch, *command)
    assert code == 0, (said, error)
    told = re.findall(
        r"site-\w: (\d+) patients, (\d+) cases to train and (\d+) to test; (\d+) normal, (\d+) pneu", said
    )
    assert len(told) == 4
    assert [sum(map(int, column)) for column in zip(*told, strict=True)] == [80, 40, 40, 40, 40]  # each at one site


def test_training_and_prediction_run(folder, capsys, monkeypatch):
    train, predict = (shlex.split(block("sh", nth)) for nth in range(2))
    smaller = ["--set", "study.rounds=1", "--set", "study.local_steps=1", "--set", "data.slices_per_patient=1"]
    code, said, error = run(capsys, monkeypatch, *train[1:], *smaller)
    assert code == 0, error
    assert "no differential privacy is claimed: mechanism = 'none'" in said
    assert re.search(r"^report runs/first-[\w-]+/report.html$", said, re.MULTILINE)
    (model,) = folder.glob(predict[2])
    assert run(capsys, monkeypatch, "predict", model, *predict[3:])[0] == 0
    assert (folder / "labels.nii.gz").is_file()


def moved(folder: Path) -> None:
    path = folder / "data/site-a/labelsTr/hippocampus_001.nii.gz"
    affine = np.eye(4)
    affine[0, 3] = 1.6
    nibabel.save(nibabel.Nifti1Image(np.asarray(nibabel.load(path).dataobj), affine), path)


CHECK = "data check study.toml --data data"
WAYS = {  # words of the sentence: the mistake
    "needs images": ("simulate study.toml", None),
    "no such folder": ("data check study.toml --data nowhere", None),
    "label value 2": (CHECK, ('["anterior", "posterior"]', '["anterior"]')),
    "has 1 channels": (CHECK, ('["MRI"]', '["T1", "T2"]')),
    "another affine": (CHECK, None),
    "clients = 2": ("epsilon study.toml", ('[[sites]]\nid = "site-c"', "")),
    "round is not a field": ("epsilon study.toml", ("rounds =", "round =")),
    "diverged": ("simulate study.toml --data data --set study.lr=1000", None),
    "start = 'phantom'": ("simulate study.toml --data data --set model.start=phantom", ('"anterior"', '"head"')),
    "delta = 0.1": ("epsilon private.toml --data data", ("delta = 0.003", "delta = 0.1")),
}


@pytest.mark.parametrize("words", WAYS)
def test_a_mistake_prints_the_sentence_of_the_page(words, folder, capsys, monkeypatch):
    (sentence,) = (sentence for sentence in MISTAKES if words in sentence)
    command, change = WAYS[words]
    if words == "another affine":
        moved(folder)
    if change is not None:
        study = folder / command.split()[command.startswith("data") + 1]
        assert change[0] in study.read_text()
        study.write_text(study.read_text().replace(*change))
    code, said, error = run(capsys, monkeypatch, *shlex.split(command))
    assert code == 1
    assert sentence in said + error


def test_every_mistake_of_the_page_is_made():
    assert len(MISTAKES) == len(WAYS)
