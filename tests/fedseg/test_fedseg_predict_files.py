"""`fedseg predict` on files and folders: no image is ever lost, and nothing is answered that no model said."""

import os
import resource
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from fedseg.models import build_model, load_model, metadata_of, save_model, study_of
from fedseg.predict import asked_of
from fedseg.study import Study, load_study
from fedseg.tasks.segmentation import Segmentation
from tests.support.command import is_one_sentence, run
from tests.support.folders import AFFINE, brain

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(STUDIES / "fetal.toml").replace(
        study={"structures": ["left", "right"]}, data={"size": 16}, model={"channels": [4, 4], "start": "scratch"}
    )


@pytest.fixture(autouse=True)
def _quick_picture(monkeypatch: pytest.MonkeyPatch) -> None:
    """Pictures take seconds, and have tests of their own."""

    def touch(self, case, prediction, output: Path) -> Path:
        picture = output.with_suffix("").with_suffix(".png")
        picture.touch()
        return picture

    monkeypatch.setattr(Segmentation, "write_picture", touch)


@pytest.fixture
def model(study: Study, tmp_path: Path) -> Path:
    return saved(study, tmp_path / "model.safetensors")


def saved(study: Study, path: Path) -> Path:
    save_model(build_model(study), path, metadata_of(study))
    return path


def image(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(brain()[0], AFFINE).to_filename(path)
    return path


def refused(capsys, monkeypatch, words: str, *arguments: object) -> None:
    code, said, error = run(capsys, monkeypatch, "predict", *arguments)
    assert (code, said) == (1, ""), (said, error)
    assert is_one_sentence(error), error
    assert words in error


def test_no_image_is_overwritten_by_whatever_name(model, tmp_path, capsys, monkeypatch):
    scan = image(tmp_path / "in/a.nii.gz")
    before = scan.read_bytes()
    (tmp_path / "link.nii.gz").symlink_to(scan)
    os.link(scan, tmp_path / "hard.nii.gz")
    for name in ("in/a.nii.gz", "in/../in/a.nii.gz", "link.nii.gz", "hard.nii.gz"):
        refused(capsys, monkeypatch, "is an image to be segmented, and would be lost", model, scan, tmp_path / name)
    refused(capsys, monkeypatch, "is an image to be segmented", model, scan.parent, scan.parent)
    image(tmp_path / "in/b.nii.gz")
    (tmp_path / "out").mkdir()
    (tmp_path / "out/a.nii.gz").symlink_to(tmp_path / "in/b.nii.gz")  # one image's label map onto another image
    refused(capsys, monkeypatch, "is an image to be segmented", model, scan.parent, tmp_path / "out")
    assert scan.read_bytes() == before
    assert sorted(path.name for path in (tmp_path / "in").iterdir()) == ["a.nii.gz", "b.nii.gz"]


def test_a_label_map_beside_its_images_is_not_replaced(model, tmp_path, capsys, monkeypatch):
    image(tmp_path / "in/P1_0000.nii.gz")
    before = image(tmp_path / "in/P1.nii.gz").read_bytes()  # drawn by hand
    words = "P1.nii.gz: is there already, in the folder of the images"
    refused(capsys, monkeypatch, words, model, tmp_path / "in", tmp_path / "in")
    assert (tmp_path / "in/P1.nii.gz").read_bytes() == before


@pytest.mark.parametrize("modality", [["T2w"], ["T1w", "T2w"]])
def test_numbers_of_images_are_no_channels_of_one_case(modality, study, tmp_path):
    for name in ("scan_0001", "scan_0002", "P1_0000", "P10"):
        image(tmp_path / f"in/{name}.nii.gz")
    if len(modality) == 2:
        image(tmp_path / "in/P1_0001.nii.gz")
    found = asked_of(tmp_path / "in", tmp_path / "out", study.replace(data={"modality": modality}))
    assert {one.output.name: len(one.images) for one in found} == {
        "P1.nii.gz": len(modality),
        "P10.nii.gz": 1,
        "scan_0001.nii.gz": 1,
        "scan_0002.nii.gz": 1,
    }


def test_a_model_of_another_study_is_refused(model, study, tmp_path, capsys, monkeypatch):
    scan, other = image(tmp_path / "a.nii.gz"), tmp_path / "other.toml"
    other.write_text(study.replace(study={"structures": ["right", "left"]}).toml())
    words = f"was trained with another study than the one given: '{study.study.name}' with left, right"
    refused(capsys, monkeypatch, words, model, scan, tmp_path / "o.nii.gz", "--study", other)
    other.write_text(study.replace(run={"threads": 2}).toml())
    code, _, error = run(capsys, monkeypatch, "predict", model, scan, tmp_path / "o.nii.gz", "--study", other)
    assert code == 0, error


def test_a_weight_that_is_no_number_is_refused_before_training_and_prediction(study, tmp_path, capsys, monkeypatch):
    broken = build_model(study)
    name, first = next(iter(broken.named_parameters()))
    with torch.no_grad():
        first.view(-1)[0] = float("nan")
    path = tmp_path / "nan.safetensors"
    save_model(broken, path, metadata_of(study))
    words = f"nan.safetensors: weight '{name}' has 1 values that are no number"
    refused(capsys, monkeypatch, words, path, image(tmp_path / "a.nii.gz"), tmp_path / "o.nii.gz")
    assert not (tmp_path / "o.nii.gz").exists()
    with pytest.raises(ValueError, match="no number"):
        load_model(path, study)


def test_an_answer_that_is_no_number_is_no_background(study, tmp_path, capsys, monkeypatch):
    """Finite weights whose products overflow: the label map would be empty, with status 0."""
    huge = build_model(study)
    with torch.no_grad():
        for weights in huge.parameters():
            weights.fill_(3e38)
    save_model(huge, tmp_path / "huge.safetensors", metadata_of(study))
    scan = image(tmp_path / "a.nii.gz")
    words = "a.nii.gz: the model's answer is no number"
    refused(capsys, monkeypatch, words, tmp_path / "huge.safetensors", scan, tmp_path / "o.nii.gz")
    assert not (tmp_path / "o.nii.gz").exists()


def test_what_cannot_be_written_is_told_before_the_work_and_leaves_nothing(model, tmp_path, capsys, monkeypatch):
    scan, closed = image(tmp_path / "a.nii.gz"), tmp_path / "closed"
    closed.mkdir()
    with monkeypatch.context() as rights:
        rights.setattr(os, "access", lambda path, *_, **__: Path(path) != closed)
        refused(capsys, monkeypatch, "closed: nothing can be written there", model, scan, closed / "o.nii.gz")
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (8192, hard))
    try:
        refused(capsys, monkeypatch, "too large", model, scan, closed / "o.nii")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert list(closed.iterdir()) == []


def test_a_folder_is_segmented_image_by_image_and_goes_on_after_a_bad_one(model, tmp_path, capsys, monkeypatch):
    scans = [image(tmp_path / f"in/{name}") for name in ("a.nii.gz", "b.nii", "c_0000.nii.gz")]
    scans[0].with_name("._a.nii.gz").write_bytes(b"\0\x05\x16\x07")
    scans[0].with_name("d.nii.gz").write_text("no image")
    code, said, error = run(capsys, monkeypatch, "predict", model, tmp_path / "in", tmp_path / "out")
    assert code == 1
    assert "4/4 error" in error or "3/4 error" in error
    assert "d.nii.gz: cannot be read as NIfTI" in error
    assert said.count("labels") == 3
    assert said.splitlines()[0].startswith("1/4 labels")
    made = sorted(path.name for path in (tmp_path / "out").iterdir())
    assert made == ["a.nii.gz", "a.png", "b.nii.gz", "b.png", "c.nii.gz", "c.png"]
    for name, scan in zip(("a", "b", "c"), scans, strict=True):
        result, source = nibabel.load(tmp_path / f"out/{name}.nii.gz"), nibabel.load(scan)
        assert result.shape == source.shape
        np.testing.assert_array_equal(result.affine, source.affine)


def test_a_folders_files_go_together_by_modality_number_or_layout(study, tmp_path):
    two = study.replace(data={"modality": ["t2f", "T1c"], "layout": "brats"})
    for name in ("A-t1c", "A-t2f", "A-t1n", "A-seg", "B_flair", "C_0000", "C_0001"):
        image(tmp_path / f"in/{name}.nii.gz")
    found = {one.output.name: [path.name for path in one.images] for one in asked_of(tmp_path / "in", tmp_path, two)}
    assert found == {
        "A.nii.gz": ["A-t2f.nii.gz", "A-t1c.nii.gz"],
        "B.nii.gz": ["B_flair.nii.gz"],
        "C.nii.gz": ["C_0000.nii.gz", "C_0001.nii.gz"],
    }
    for kind in ("t1c", "t2f", "t1n"):
        image(tmp_path / f"cases/X-1/X-1-{kind}.nii.gz")
    (one,) = asked_of(tmp_path / "cases", tmp_path, two)
    assert [path.name for path in one.images] == ["X-1-t2f.nii.gz", "X-1-t1c.nii.gz"]
    (tmp_path / "nothing").mkdir()
    with pytest.raises(ValueError, match="nothing: no"):
        asked_of(tmp_path / "nothing", tmp_path / "out", two)


def test_a_file_without_a_study_takes_the_one_that_is_given(study, tmp_path):
    save_model(build_model(study), tmp_path / "bare.safetensors", {})
    with pytest.raises(ValueError, match="holds no study"):
        study_of(tmp_path / "bare.safetensors")
    assert study_of(tmp_path / "bare.safetensors", study) is study


def test_masks_of_raw_stacks_are_no_images(study, tmp_path):
    """BIDS derivatives beside their images; a mask without its image may be meant."""
    for name in ("sub-1_run-1_T2w", "sub-1_run-1_T2w_desc-brain_mask", "sub-2_mask", "sub-3_dseg"):
        image(tmp_path / "in" / f"{name}.nii.gz")
    found = {one.images[0].name for one in asked_of(tmp_path / "in", tmp_path / "out", study)}
    assert found == {"sub-1_run-1_T2w.nii.gz", "sub-2_mask.nii.gz", "sub-3_dseg.nii.gz"}
