"""Measures of outlines by hand, on the file's own grid, and wherever they are shown."""

import json

import nibabel
import numpy as np
import pytest
import torch
from monai.metrics import compute_hausdorff_distance, compute_surface_dice
from scipy.ndimage import binary_erosion, gaussian_filter

from fedseg.cli.ending import show_metrics
from fedseg.data.cases import Case
from fedseg.data.layouts.table import entries
from fedseg.data.loading import load_site
from fedseg.evaluation import assess, dice_table, evaluate, measure_tables
from fedseg.metrics import dice, overlaps
from fedseg.predict import predict_file
from fedseg.records import Metrics
from fedseg.report import pages
from fedseg.report.claims import warnings
from fedseg.report.folder import read_run
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.study import Study, parse_study
from tests.support.command import feta_study
from tests.support.folders import write_hospitals
from tests.support.run_folder import make_run


def surface(mask: np.ndarray, spacing: tuple[float, ...]) -> np.ndarray:
    """Where the outermost voxels of a mask lie, in millimetres."""
    return np.argwhere(mask & ~binary_erosion(mask)) * np.array(spacing)


def distances(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    return np.sqrt(((one[:, None] - other[None]) ** 2).sum(-1)).min(1)


@pytest.mark.parametrize("shift", [0, 2, 5])
def test_distances_are_in_millimetres_and_those_of_every_pair_of_voxels(shift):
    spacing = (1.0, 0.5, 3.0)
    true = np.zeros((16, 20, 10), bool)
    true[3:9, 5:15, 2:7] = True
    predicted = np.roll(true, shift, axis=1)
    predicted[9, 5 + shift : 12 + shift, 3:5] = True
    one, other = surface(predicted, spacing), surface(true, spacing)
    there, back = distances(one, other), distances(other, one)
    found = overlaps(predicted, true, spacing, tolerance=0.9)
    assert found[1] == pytest.approx(max(np.percentile(there, 95), np.percentile(back, 95)), abs=1e-5)
    within = ((there <= 0.9).sum() + (back <= 0.9).sum()) / (len(there) + len(back))
    assert found[2] == pytest.approx(within, abs=1e-6)
    assert found[0] == pytest.approx(2 * (predicted & true).sum() / (predicted.sum() + true.sum()))
    assert found[3] == pytest.approx(1 - 14 / 614)


@pytest.mark.parametrize("seed", range(4))
def test_distances_are_those_of_monai(seed):
    chance, spacing = np.random.default_rng(seed), (0.7, 1.3, 2.0)
    masks = [gaussian_filter(chance.normal(size=(14, 12, 9)), 1.5) > 0.05 for _ in range(2)]
    both = [torch.from_numpy(mask[None, None]) for mask in masks]
    found = overlaps(*masks, spacing, tolerance=1.0)
    distance = compute_hausdorff_distance(*both, include_background=True, percentile=95, spacing=spacing)
    surface = compute_surface_dice(*both, [1.0], include_background=True, spacing=spacing)
    assert found[1] == pytest.approx(float(distance), abs=1e-5)
    assert found[2] == pytest.approx(float(surface), abs=1e-6)


def test_a_structure_that_one_or_both_lack():
    nothing, something = np.zeros((8, 8, 8), bool), np.zeros((8, 8, 8), bool)
    something[2:5, 2:5, 2:5] = True
    assert np.isnan(overlaps(nothing, nothing, (1, 1, 1), 1.0)).all()
    for pair in ((nothing, something), (something, nothing)):
        found = overlaps(*pair, (1, 1, 1), 1.0)
        assert np.isnan(found[1])
        assert found[[0, 2, 3]].tolist() == [0.0, 0.0, 0.0]
    np.testing.assert_allclose(overlaps(something, something, (1, 1, 1), 1.0), [1, 0, 1, 1])


class Bright(torch.nn.Module):
    """A network that calls a voxel structure 1 where it is bright, 2 where it is very bright, and never 3 and above."""

    def __init__(self) -> None:
        super().__init__()
        self.steepness = torch.nn.Parameter(torch.tensor(20.0))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        value = images[:, 0] * self.steepness
        known = [0.3 * self.steepness - value, torch.zeros_like(value), value - 0.8 * self.steepness]
        return torch.stack([*known, *[torch.full_like(value, -99)] * 5], 1)


@pytest.fixture
def hospital(tmp_path) -> tuple[Study, dict]:
    study = parse_study(feta_study(), "study").replace(data={"holdout": 0.9, "size": 16})
    write_hospitals(tmp_path)
    return study, {site: load_site(tmp_path / site, site, study) for site in study.site_ids}


def test_a_model_is_judged_on_the_files_grid_by_what_predict_writes(hospital, tmp_path):
    study, cohort = hospital
    model = Bright()
    final, cheap = assess(model, cohort, study), evaluate(model, cohort, study)
    assert sum(map(len, final.patients.values())) > 1
    for site, data in cohort.items():
        for row, case in zip(final.values[site], sorted(data.test, key=lambda one: one.patient), strict=True):
            entry = next(one for one in entries(tmp_path / site, site, study) if one.patient == case.patient)
            (image,) = entry.images
            predict_file(model, image, tmp_path / "out.nii.gz", study)
            written = np.asarray(nibabel.load(tmp_path / "out.nii.gz").dataobj)
            truth = np.asarray(nibabel.load(str(image).replace("T2w", "dseg")).dataobj)
            np.testing.assert_allclose(row, dice(written, truth.astype(np.uint8), 7))
    assert not np.allclose(final.pooled(), cheap.pooled(), equal_nan=True)  # the working grid has half the pixels
    table = dice_table(final, {}, study)
    assert table.grid is not None
    assert (table.grid.where, dice_table(cheap, {}, study).grid.where) == ("file", "working")


def test_what_has_no_distance_is_counted_and_not_averaged(hospital):
    study, cohort = hospital
    scores = assess(Bright(), cohort, study)
    tables, n = measure_tables(scores, study), len(scores.pooled())
    assert list(tables) == ["HD95", "NSD", "volume similarity"]
    hd = tables["HD95"]
    assert (hd.unit, tables["NSD"].tolerance) == ("mm", 2.0)
    assert hd.overall["brainstem"] is None
    assert hd.undefined["brainstem"] == n
    assert tables["NSD"].overall["brainstem"].mean == 0
    assert dice_table(scores, {}, study).overall["brainstem"].n == n
    assert hd.overall["external CSF"].n + hd.undefined.get("external CSF", 0) == n


def test_a_packed_label_map_is_the_one_of_the_file(hospital, tmp_path):
    _, cohort = hospital
    cases: list[Case] = [case for data in cohort.values() for case in (*data.train, *data.test)]
    for case in cases:
        truth = nibabel.load(case.name.replace("T2w", "dseg"))
        np.testing.assert_array_equal(case.original.label, np.asarray(truth.dataobj))
        assert case.original.spacing == pytest.approx(truth.header.get_zooms()[:3])
        assert len(case.original.packed) < case.original.label.size / 5


def test_a_simulation_writes_and_shows_every_measure_and_its_grid(hospital, tmp_path, capsys):
    study, cohort = hospital
    with RunFolder.create(tmp_path / "runs", study) as folder:
        done = simulate(folder, cohort, Options(plain=True))
    found = Metrics.model_validate(json.loads((done / "metrics.json").read_text()))
    assert found.dice.grid is not None
    assert found.dice.grid.where == "file"
    assert set(found.measures) == {"HD95", "NSD", "volume similarity"}
    show_metrics(found)
    said = " ".join(capsys.readouterr().out.split())
    assert all(words in said for words in ("Computed on the grid of each label map", "HD95 mm: mean", "NSD at 2 mm:"))


def test_the_report_shows_every_measure_and_its_grid(tmp_path):
    folder = make_run(tmp_path / "run", rounds=1, pictures=False)
    metrics = json.loads((folder / "metrics.json").read_text())
    metrics["dice"]["grid"]["where"] = "file"
    one = {"mean": 3.25, "low": 2.5, "high": 4.0, "n": 38}
    metrics["measures"] = {"HD95": {"unit": "mm", "overall": {"brainstem": one}, "undefined": {"brainstem": 2}}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    page = pages(folder)[folder / "report.html"]
    assert "Computed on the grid of each label map" in page
    assert "HD95, mm" in page
    assert "n = 38, 2 undefined" in page


@pytest.mark.parametrize(
    ("name", "above", "told"),
    [
        ("zero-shot, before any training here", 0.1, True),
        ("zero-shot, before any training here", -0.1, False),
        ("untrained", 0.0, True),
        ("one site alone", 0.1, False),
    ],
)
def test_a_model_that_is_no_better_than_its_start_is_not_let_through_in_silence(tmp_path, capsys, name, above, told):
    folder = make_run(tmp_path / "run", rounds=1, pictures=False)
    metrics = json.loads((folder / "metrics.json").read_text())
    mean = metrics["dice"]["mean"]
    start = mean["mean"] + above
    metrics["baselines"] = {name: {"mean": start, "low": start, "high": start, "n": mean["n"]}}
    (folder / "metrics.json").write_text(json.dumps(metrics))
    said = "this model is no better than its start"
    show_metrics(Metrics.model_validate(metrics))
    assert (said in capsys.readouterr().out) is told
    assert any(said in warning for warning in warnings(read_run(folder))) is told
