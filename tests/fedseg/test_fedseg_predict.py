"""Dice, bootstrap, and prediction back on the file's own grid."""

import subprocess
import sys
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from fedseg.data.cases import Case
from fedseg.data.scans import Scan, working_case
from fedseg.errors import CaseError, ConfigError
from fedseg.metrics import bootstrap, by_patient, dice
from fedseg.predict import predict, predict_file
from fedseg.study import Study, load_study
from fedseg.tasks.segmentation import Segmentation

STUDIES = Path(__file__).parents[2] / "studies"


class Threshold(torch.nn.Module):
    """A network that knows the answer: bright voxels are structure 2, medium ones structure 1."""

    def __init__(self) -> None:
        super().__init__()
        self.steepness = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        value = images[:, 0] * self.steepness
        return torch.stack([0.25 * self.steepness - value, torch.zeros_like(value), value - 0.75 * self.steepness], 1)


@pytest.fixture(scope="module")
def study() -> Study:
    changes = {"structures": ["medium", "bright"]}
    return load_study(STUDIES / "fetal.toml").replace(study=changes, data={"size": 32, "slices_per_patient": 1})


def scan(shape: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray]:
    """A lopsided ellipsoid of 125 with a core of 200, in a head of 50, in zeros."""
    x, y, z = (
        np.linspace(-1, 1, extent).reshape([-1 if axis == i else 1 for i in range(3)])
        for axis, extent in enumerate(shape)
    )
    head = (x / 0.9) ** 2 + (y / 0.7) ** 2 + ((z - 0.1) / 0.8) ** 2 < 1
    outer = (x / 0.7) ** 2 + (y / 0.5) ** 2 + ((z - 0.1) / 0.6) ** 2 < 1
    inner = ((x - 0.2) / 0.3) ** 2 + (y / 0.3) ** 2 + ((z - 0.1) / 0.4) ** 2 < 1
    label = (outer.astype(np.uint8) + (outer & inner)).astype(np.uint8)
    return np.array([0, 50, 125, 200], np.float32)[head.astype(np.uint8) + label], label


@pytest.mark.parametrize("axes", ["RAS", "LPI", "SRA"])
@pytest.mark.parametrize("dims", [2, 3])
def test_predict_file_answers_on_the_files_grid(dims: int, axes: str, study: Study, tmp_path: Path) -> None:
    image, label = scan((40, 44, 36))
    affine = np.diag([1.2, 1.2, 1.4, 1.0])
    affine[:3, 3] = (-10, 20, 30)
    turn = nibabel.orientations.axcodes2ornt(axes)
    source = nibabel.Nifti1Image(image, affine).as_reoriented(turn)
    truth = np.asarray(nibabel.Nifti1Image(label, affine).as_reoriented(turn).dataobj)
    nibabel.save(source, tmp_path / "in.nii.gz")
    study, output = study.replace(data={"dims": dims}), tmp_path / "out.nii.gz"
    overlay = Segmentation(study).write_picture(
        *predict_file(Threshold(), tmp_path / "in.nii.gz", output, study), output
    )
    result = nibabel.load(tmp_path / "out.nii.gz")
    assert result.shape == source.shape
    assert result.get_data_dtype() == np.uint8
    np.testing.assert_allclose(result.affine, source.affine, atol=1e-5)
    assert dice(np.asarray(result.dataobj), truth, 2).min() > 0.9
    assert overlay.read_bytes().startswith(b"\x89PNG")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.nii.gz", "out.nii.gz", "out.png"]


def test_the_label_file_copies_no_text_of_the_header(study: Study, tmp_path: Path) -> None:
    source = nibabel.Nifti1Image(scan((40, 44, 36))[0], np.eye(4))
    source.header["descrip"] = b"Jane Doe"
    nibabel.save(source, tmp_path / "in.nii")
    predict_file(Threshold(), tmp_path / "in.nii", tmp_path / "out.nii", study)
    assert b"Jane" in (tmp_path / "in.nii").read_bytes()
    assert b"Jane" not in (tmp_path / "out.nii").read_bytes()


def test_bad_paths_and_images_are_told_and_nothing_is_left(study: Study, tmp_path: Path) -> None:
    image = scan((40, 44, 36))[0]
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), tmp_path / "in.nii.gz")
    image[3, 3, 3] = np.nan
    nibabel.save(nibabel.Nifti1Image(image, np.eye(4)), tmp_path / "nan.nii.gz")
    for source, target, error, words in [
        ("in.nii.gz", "out.png", ConfigError, "out.png: images and label maps are NIfTI"),
        ("in.png", "out.nii.gz", ConfigError, "in.png: images and label maps are NIfTI"),
        ("in.nii.gz", "absent/out.nii.gz", ConfigError, "absent: there is no such folder"),
        ("absent.nii.gz", "out.nii.gz", CaseError, "absent.nii.gz: is missing"),
        ("nan.nii.gz", "out.nii.gz", CaseError, "nan.nii.gz: has 1 voxels that are NaN"),
    ]:
        with pytest.raises(error, match=words):
            predict_file(Threshold(), tmp_path / source, tmp_path / target, study)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["in.nii.gz", "nan.nii.gz"]


def test_predict_has_the_cases_shape_and_keeps_no_gradient(study: Study) -> None:
    image, label = scan((40, 20, 36))
    case: Case = working_case(Scan("p", "p", image[None], np.diag([1.0, 3.0, 1.0, 1.0]), label), "s", study)
    model = Threshold()
    result = predict(model, case, study)
    assert case.label is not None
    assert (result.dtype, result.shape, case.slice_axis) == (np.uint8, case.label.shape, 1)
    assert dice(result, case.label, 2).min() > 0.9
    assert model.steepness.grad is None


def test_dice_by_hand() -> None:
    truth = np.array([[1, 1, 0, 0], [2, 0, 0, 0]], np.uint8)
    prediction = np.array([[1, 0, 0, 0], [0, 0, 3, 0]], np.uint8)
    scores = dice(prediction, truth, 4)
    np.testing.assert_allclose(scores[:3], [2 / 3, 0, 0])
    assert np.isnan(scores[3])
    volume = np.zeros((4, 4, 4), np.uint8)
    volume[1:3] = 1
    assert dice(volume, volume, 1) == [1.0]


def test_bootstrap_covers_the_mean_and_is_reproducible() -> None:
    scores = np.random.default_rng(1).normal(0.7, 0.1, 50)
    interval = bootstrap([*scores, float("nan")], seed=1)
    assert interval is not None
    assert interval == bootstrap(scores, seed=1)
    assert interval != bootstrap(scores, seed=2)
    assert (interval.n, interval.mean) == (50, pytest.approx(scores.mean()))
    half = 1.96 * scores.std() / np.sqrt(50)
    assert interval.low == pytest.approx(interval.mean - half, abs=0.1 * half)
    assert interval.high == pytest.approx(interval.mean + half, abs=0.1 * half)


def test_nothing_is_never_averaged() -> None:
    assert bootstrap([], seed=1) is None
    assert bootstrap([float("nan")], seed=1) is None
    one = bootstrap([0.5], seed=1)
    assert one is not None
    assert (one.mean, one.low, one.high, one.n) == (0.5, 0.5, 0.5, 1)


def test_cases_are_averaged_within_a_patient_first() -> None:
    nan = float("nan")
    scores = [np.array([1.0, nan]), np.array([0.0, 0.5]), np.array([0.8, nan])]
    table = by_patient(["b", "b", "a"], scores)
    np.testing.assert_array_equal(table, [[0.8, nan], [0.5, 0.5]])


def test_a_process_that_trains_or_coordinates_needs_no_plotting() -> None:
    """MONAI loads matplotlib where it is there, and none of our rooms does."""
    program = (
        "import sys; sys.modules['matplotlib'] = None; import fedseg.coordinator, fedseg.site, fedseg.simulate; "
        "print([name for name in sys.modules if name in ('fedseg.picture', 'jinja2', 'fedseg.report')])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert (done.stdout, done.returncode) == ("[]\n", 0), done.stderr
