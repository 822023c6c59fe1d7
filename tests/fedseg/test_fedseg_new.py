"""`fedseg new` writes a study that `fedseg data check` passes; fingerprint and plan tell what nnU-Net's do."""

import json
import shutil
from pathlib import Path

import nibabel
import numpy as np
import pytest
from PIL import Image

from fedseg.data.fingerprint import Fingerprint, Spread
from fedseg.data.layouts.medmnist import PARTS
from fedseg.data.plan import planned, written
from fedseg.errors import ConfigError
from fedseg.study import load_study
from tests.fedseg.test_fedseg_realdata import folder_of
from tests.support.command import is_one_sentence, run
from tests.support.dicom import write_radiograph
from tests.support.folders import AFFINE, brain, write_decathlon, write_feta
from tests.support.tiny import tiny_study

SITES = ("clinic-1", "clinic-2", "clinic-3")


def image(path: Path, values: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(values, AFFINE).to_filename(path)


def bids(folder: Path) -> None:
    write_feta(folder, 2)


def decathlon(folder: Path) -> None:
    write_decathlon(folder, 2)


def nnunet(folder: Path) -> None:
    for case in ("liver-001", "spleen-9"):
        for number in range(2):
            image(folder / f"imagesTr/{case}_{number:04}.nii.gz", brain()[0])
        image(folder / f"labelsTr/{case}.nii.gz", brain()[1])
    index = {"channel_names": {"0": "CT", "1": "PET"}, "labels": {"background": 0, "organ": 1, "lesion": 2}}
    (folder / "dataset.json").write_text(json.dumps({**index, "numTraining": 2, "file_ending": ".nii.gz"}))


def brats(folder: Path) -> None:
    for number in (1, 2):
        case = f"BraTS20_Training_{number:03}"
        for kind in ("flair", "t1ce"):
            image(folder / case / f"{case}_{kind}.nii.gz", brain(seed=number)[0])
        label = brain()[1].astype(np.uint8)
        label[20:22, 20:30, 15:20] = 4
        image(folder / case / f"{case}_seg.nii.gz", label)


def table(folder: Path) -> None:
    for name in ("x", "why"):
        image(folder / f"{name}.nii.gz", brain()[0])
        image(folder / f"{name}-drawn.nii.gz", brain()[1] * np.uint8(3))
    rows = ["patient,image,label", "P1,x.nii.gz,x-drawn.nii.gz", "P2,why.nii.gz,why-drawn.nii.gz"]
    (folder / "cases.csv").write_text("\n".join(rows))


FOLDERS = {
    "bids": (bids, ["T2w"], {"structure-1": [1], "structure-2": [2]}),
    "decathlon": (decathlon, ["channel-0", "channel-1", "channel-2"], {"structure-1": [1]}),
    "nnunet": (nnunet, ["CT", "PET"], {"organ": [1], "lesion": [2]}),
    "brats": (brats, ["flair", "t1ce"], {"whole tumour": [1, 2, 4], "tumour core": [1, 4], "enhancing tumour": [4]}),
    "table": (table, ["channel-0"], {"structure-3": [3], "structure-6": [6]}),
}


@pytest.mark.parametrize("layout", FOLDERS)
@pytest.mark.parametrize("whole", [True, False], ids=["sites", "one hospital"])
def test_a_study_is_written_from_a_folder_and_checks_on_it(layout, whole, tmp_path, capsys, monkeypatch):
    make, modality, structures = FOLDERS[layout]
    source = tmp_path / "data" if whole else tmp_path / "clinic-1"
    for site in SITES if whole else ("",):
        (source / site).mkdir(parents=True)
        shutil.rmtree(source / site)
        make(source / site)
    path = tmp_path / "study.toml"
    code, said, error = run(capsys, monkeypatch, "new", path, "--from", source)
    assert code == 0, error
    assert f"layout {layout}: " in said
    study = load_study(path)
    assert study.data.layout == layout
    assert list(study.data.modality) == modality
    labels = study.data.labels or [[number] for number in range(1, len(study.structures) + 1)]
    assert {name: list(those) for name, those in zip(study.structures, labels, strict=True)} == structures
    assert study.site_ids == (list(SITES) if whole else ["clinic-1", "site-2", "site-3"])
    for decision in ("epsilon", "delta", "rounds", "mechanism"):
        assert f"{decision} = " in path.read_text()
    assert not study.trust.claims_epsilon
    command = said.splitlines()[-1].removeprefix("next: fedseg ").split(" ")
    code, said, error = run(capsys, monkeypatch, *command)
    assert code == 0, (said, error)


def radiographs(folder: Path) -> None:
    for name in ("clear/P-1/chest", "clear/P-2/chest", "cloudy/P-3/chest"):
        write_radiograph(folder / f"{name}-{name[-7]}.dcm", np.tile(np.arange(0, 96, 2), (40, 1)), name[-9:-6])


def photographs(folder: Path) -> None:
    for name in ("clear/a", "clear/b", "cloudy/c"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.tile(np.arange(0, 240, 5, dtype=np.uint8), (40, 1))).save(folder / f"{name}.png")


def npz(folder: Path) -> None:
    random = np.random.default_rng(1)
    arrays = {f"{part}_images": random.integers(0, 255, (12, 28, 28)).astype(np.uint8) for part in PARTS}
    np.savez(folder / "set.npz", **arrays, **{f"{part}_labels": np.arange(12)[:, None] % 2 for part in PARTS})


PICTURES = {
    "images": (photographs, ["grey"], ["clear", "cloudy"], 48, {"clear": 2, "cloudy": 1}),
    "radiographs": (radiographs, ["DX"], ["clear", "cloudy"], 48, {"clear": 2, "cloudy": 1}),
    "medmnist": (npz, ["grey"], ["class-0", "class-1"], 32, {"class-0": 12, "class-1": 12}),
}


@pytest.mark.parametrize("layout", PICTURES)
@pytest.mark.parametrize("whole", [True, False], ids=["sites", "one hospital"])
def test_pictures_of_a_class_each_give_a_study_of_classification(layout, whole, tmp_path, capsys, monkeypatch):
    make, modality, classes, size, counts = PICTURES[layout]
    source = tmp_path / "data" if whole else tmp_path / "clinic-1"
    for site in SITES if whole else ("",):
        (source / site).mkdir(parents=True, exist_ok=True)
        make(source / site)
    path = tmp_path / "study.toml"
    code, said, error = run(capsys, monkeypatch, "new", path, "--from", source)
    assert code == 0, error
    assert f"classes: {', '.join(classes)}" in said
    study = load_study(path)
    assert (study.study.task, study.data.layout, study.data.size) == ("classification", layout, size)
    assert (list(study.data.modality), list(study.study.classes)) == (modality, classes)
    assert study.site_ids == (list(SITES) if whole else ["clinic-1", "site-2", "site-3"])
    assert study.data.rows == ("dealt" if whole and layout == "medmnist" else "own")  # the same file everywhere
    if layout == "images":
        path.write_text(path.read_text().replace("# patient", "patient"))  # which a person decides
    command = said.splitlines()[-1].removeprefix("next: fedseg ").split(" ")
    code, said, error = run(capsys, monkeypatch, *command)
    assert code == 0, (said, error)
    code, said, error = run(capsys, monkeypatch, "data", "fingerprint", source, "--json")
    assert code == 0, error
    found = json.loads(said)["sites"]
    assert len(found) == (3 if whole else 1)
    dealt = found if whole and layout == "medmnist" else found[:1]  # rows of one file are shared out
    assert {name: sum(site["structures"][name]["cases"] for site in dealt) for name in counts} == counts
    assert found[0]["intensities"][modality[0]]["std"] > 0
    code, said, error = run(capsys, monkeypatch, "plan", path, "--data", source)
    assert code == 1
    assert "nnU-Net plans segmentation" in error


def test_a_study_is_never_overwritten_and_a_strange_folder_is_told(tmp_path, capsys, monkeypatch):
    path = tmp_path / "study.toml"
    path.write_text("mine")
    bids(tmp_path / "data")
    for arguments, words in (
        ((path, "--from", tmp_path / "data"), "study.toml exists already; move it away first"),
        ((tmp_path / "new.toml", "--from", tmp_path / "nowhere"), "nowhere: there is no such folder"),
        ((tmp_path / "new.toml", "--from", tmp_path / "data/sub-001"), "no layout fits it; arrange it as one of"),
    ):
        code, _, error = run(capsys, monkeypatch, "new", *arguments)
        assert (code, is_one_sentence(error)) == (1, True)
        assert words in error
    assert path.read_text() == "mine"
    assert not (tmp_path / "new.toml").exists()


def test_a_fingerprint_tells_spacings_sizes_intensities_and_volumes(tmp_path, capsys, monkeypatch):
    bids(tmp_path)
    code, said, error = run(capsys, monkeypatch, "data", "fingerprint", tmp_path, "--json")
    assert code == 0, error
    (site,) = json.loads(said)["sites"]
    assert site["cases"] == 2
    assert [axis["percentiles"]["50"] for axis in site["spacing"]] == pytest.approx([0.8] * 3)
    assert [axis["percentiles"]["50"] for axis in site["size"]] == [40, 48, 36]
    together = np.concatenate([brain(seed=seed)[0][brain()[1] > 0] for seed in (1, 2)])
    inside = site["intensities"]["T2w"]
    assert inside["mean"] == pytest.approx(together.mean(), rel=1e-4)
    assert inside["std"] == pytest.approx(together.std(), rel=1e-3)
    for cut, value in inside["percentiles"].items():
        assert value == pytest.approx(np.percentile(together, float(cut)), rel=1e-3)
    half = np.count_nonzero(brain()[1] == 1) * 0.8**3 / 1000
    assert site["structures"]["structure-1"]["millilitres"]["mean"] == pytest.approx(half)
    (tmp_path / "sub-002/anat/sub-002_dseg.nii.gz").unlink()
    code, said, _ = run(capsys, monkeypatch, "data", "fingerprint", tmp_path)
    assert code == 0
    assert "1 cases" in said
    assert "left out" in said
    assert said.splitlines()[-1] == "not private: computed from every patient, it stays at the site"


@pytest.mark.realdata
def test_a_study_from_real_folders(tmp_path, capsys, monkeypatch):
    """Five hospitals of LGG, whose sites are subfolders."""
    code, _, error = run(capsys, monkeypatch, "new", tmp_path / "lgg.toml", "--from", folder_of("lgg"))
    assert code == 0, error
    study = load_study(tmp_path / "lgg.toml")
    assert (study.data.layout, study.site_ids) == (
        "decathlon",
        [f"site-{site}" for site in ("CS", "DU", "EZ", "FG", "HT")],
    )
    assert len(study.data.modality) == 3


def test_a_folder_that_cannot_be_an_id_is_one_sentence(tmp_path, capsys, monkeypatch):
    bids(tmp_path / "Köln Klinik")
    code, _, error = run(capsys, monkeypatch, "new", tmp_path / "s.toml", "--from", tmp_path / "Köln Klinik")
    assert code == 1
    assert is_one_sentence(error)
    assert "'Köln Klinik' cannot be an id; rename the folder" in error
    assert not (tmp_path / "s.toml").exists()


def test_a_label_to_be_ignored_becomes_no_structure(tmp_path, capsys, monkeypatch):
    nnunet(tmp_path / "site")
    index = json.loads((tmp_path / "site/dataset.json").read_text())
    index["labels"] = {"background": 0, "organ": 1, "ignore": 2}
    (tmp_path / "site/dataset.json").write_text(json.dumps(index))
    code, _, error = run(capsys, monkeypatch, "new", tmp_path / "s.toml", "--from", tmp_path / "site")
    assert code == 1
    assert "declares label 2 to be ignored" in error
    index["labels"] = {"background": 0, "organ": 1}
    (tmp_path / "site/dataset.json").write_text(json.dumps(index))
    code, _, error = run(capsys, monkeypatch, "new", tmp_path / "s.toml", "--from", tmp_path / "site")
    assert code == 0, error
    index["labels"]["ignore"] = 2
    (tmp_path / "site/dataset.json").write_text(json.dumps(index))
    check = ("data", "check", tmp_path / "s.toml", "--site", "site", "--data", tmp_path / "site")
    code, said, _ = run(capsys, monkeypatch, *check)
    assert code == 1
    assert "the files declare label 2 to be ignored, and in the study it is a structure" in said


def test_a_plan_follows_the_images_and_leaves_the_rest_of_the_study_alone(tmp_path, capsys, monkeypatch):
    bids(tmp_path / "clinic-1")
    path = tmp_path / "s.toml"
    run(capsys, monkeypatch, "new", path, "--from", tmp_path)
    before = path.read_text(encoding="utf-8")
    code, said, error = run(capsys, monkeypatch, "plan", path, "--data", tmp_path)
    assert code == 0, error
    assert path.read_text(encoding="utf-8") == before
    assert "nothing was written" in said
    assert "no epsilon covers it" in said.splitlines()[-1]
    code, _, error = run(capsys, monkeypatch, "plan", path, "--data", tmp_path, "--write")
    assert code == 0, error
    study = load_study(path)
    assert study.data.spacing == (0.8, 0.8)
    assert (study.model.name, study.training.optimizer) == ("dynunet", "adamw")
    assert max(study.data.sides) <= 48  # the head, not the whole image
    kept = [line for line in before.splitlines() if "#" in line and not line.startswith("size")]
    assert set(kept) <= set(path.read_text(encoding="utf-8").splitlines())
    clinic = ("--site", "clinic-1", "--data", tmp_path / "clinic-1")
    code, _, error = run(capsys, monkeypatch, "data", "check", path, *clinic)
    assert code == 0, error


def spread(value: float) -> Spread:
    return Spread(value, 0, value, value, {"0.5": value, "5": value, "50": value, "95": value, "99.5": value})


def scanned(voxel: tuple[float, ...], extent: tuple[float, ...], cases: int = 40) -> Fingerprint:
    axes = [[spread(value) for value in values] for values in (voxel, np.divide(extent, voxel), voxel, extent)]
    return Fingerprint("a", cases, *axes)


@pytest.mark.parametrize(
    ("dims", "voxel", "extent", "spacing", "size", "levels"),
    [
        (3, (1, 1, 1), (36, 51, 40), (1, 1, 1), (40, 56, 40), 4),  # hippocampus: nnU-Net's own plan
        (3, (1, 1, 1), (240, 240, 155), (1, 1, 1), (64, 64, 64), 5),
        (2, (0.5, 0.5, 5), (100, 120, 90), (0.5, 0.5), (192, 192), 5),
        (2, (5, 0.5, 0.5), (90, 50, 60), (0.5, 0.5), (112, 128), 5),  # slices along x
    ],
)
def test_the_plan_of_known_images(dims, voxel, extent, spacing, size, levels):
    study = tiny_study(mechanism="none").replace(data={"dims": dims, "slices_per_patient": 1})
    fields = planned([scanned(voxel, extent)], study).fields
    assert tuple(fields["data"]["spacing"]) == spacing
    assert tuple(fields["data"]["size"]) == size
    assert len(fields["model"]["channels"]) == levels
    assert min(size) // 2 ** (levels - 1) >= 4
    private = tiny_study().replace(data={"dims": dims, "slices_per_patient": 1})
    assert "training" not in planned([scanned(voxel, extent)], private).fields


def test_a_study_whose_fields_do_not_stand_in_lines_is_not_rewritten():
    plan = planned([scanned((1, 1, 1), (32, 32, 32))], tiny_study(mechanism="none"))
    text = 'study = {name = "s"}\n[data]\nsize = [\n  16,\n  16]\n'
    with pytest.raises(ConfigError, match="do not stand in one line each"):
        written(text, plan, "s.toml")
