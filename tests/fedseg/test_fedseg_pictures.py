"""Layouts of pictures with a class: PNG and JPEG, DICOM radiographs, MedMNIST; whose they are, what is refused."""

import csv
import json
import re
import sys

import numpy as np
import pytest
from PIL import Image

from fedseg.cli import main
from fedseg.data.findings import check_site
from fedseg.data.layouts.radiographs import read_radiograph
from fedseg.data.layouts.table import entries
from fedseg.data.loading import load_site
from fedseg.errors import CaseError, ConfigError
from fedseg.models import build_model, metadata_of, save_model
from fedseg.study import Study, parse_study
from tests.support.tiny import tiny_classes

RAMP = np.tile(np.arange(0, 240, 5, dtype=np.uint8), (40, 1))


def study_of(layout: str, **data: object) -> Study:
    text = tiny_classes().replace(study={"seed": None}).toml()
    text = re.sub(r"patients = \d+\n", "", text).replace('layout = "phantom"', f'layout = "{layout}"')
    return parse_study(text, "s").replace(data={"holdout": 0.0, **data})


def picture(path, values=RAMP, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(values).save(path, **options)
    return path


def warned(folder, study):
    return [finding.message for finding in check_site(folder, "site-a", study) if finding.severity != "info"]


@pytest.fixture
def images(tmp_path):
    for path in ("Clear/p1.png", "clear/deep/p2.jpg", "cloudy/p3.jpeg"):
        picture(tmp_path / path)
    return tmp_path


def test_the_first_folder_is_the_class_and_a_picture_keeps_its_frame_upright(images):
    study = study_of("images", size=48)
    values = RAMP.copy()
    values[:4] = 0  # a dark rim is part of a picture
    picture(images / "cloudy/p4.png", values)
    data = load_site(images, "site-a", study)
    assert {case.patient: int(case.label) for case in data.train} == {"p1": 0, "p2": 0, "p3": 1, "p4": 1}
    case = next(case for case in data.train if case.patient == "p4")
    assert case.image.shape == (1, 48, 48, 1)
    assert not case.oriented
    shown = np.rot90(case.image[0, :, :, 0])  # as fedseg.data.view shows it: 40 rows and a band above and below
    assert shown[:8].max() < 0.05 < shown[10:40, -1].min()
    assert (np.diff(shown[20]) >= 0).all(), "brighter to the right, as in the file"


def test_a_table_says_the_class_where_folders_do_not(images):
    for name in ("a.png", "b.png"):
        picture(images / "mixed" / name)
    (images / "classes.csv").write_text("file;class\nmixed/a.png;cloudy\nb.png;clear\np1.png;cloudy\n")
    found = {entry.case: entry for entry in entries(images, "site-a", study_of("images"))}
    load = lambda name: int(found[name].load("site-a", study_of("images")).label)  # noqa: E731
    assert (load("a"), load("b"), load("p1")) == (1, 0, 1)
    with pytest.raises(CaseError, match=r"p2.jpg: is in no folder of a class and not in classes.csv; .* add its path"):
        load("p2")


@pytest.mark.parametrize(
    ("rows", "said"),
    [
        ("image,class\na,b", "must name the columns 'file' and 'class'"),
        ("file,class\np1.png,", "line 2 lacks its file or its class"),
        ("file,class\np1.png,clear\np1.png,cloudy", "line 3 gives p1.png another class than a line before"),
    ],
)
def test_a_bad_table_is_one_sentence(images, rows, said):
    (images / "classes.csv").write_text(rows)
    assert said in warned(images, study_of("images"))[0]


def test_with_privacy_a_line_about_a_picture_leaves_out_that_picture_alone(images):
    """A site that stays away would tell that such a line, and so such a patient, is there."""
    private = study_of("images").replace(
        privacy={"mechanism": "local", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.1}, secagg={"clip_range": 0.5}
    )
    rows = "file,class\np1.png,\ndeep/x\np2.jpg,clear\np2.jpg,cloudy\nClear/p1.png,clear\np3.jpeg,cloudy\n"
    (images / "classes.csv").write_text(rows)
    with pytest.raises(ConfigError, match="line 2 lacks"):
        load_site(images, "site-a", study_of("images"))
    with pytest.warns(UserWarning, match="line 2 lacks") as told:
        assert load_site(images, "site-a", private).patients == ["p1", "p3"]
    said = [str(one.message) for one in told]
    assert any("line 2 lacks its file or its class" in one for one in said)
    assert any("is of class 'clear and cloudy'" in one for one in said)


def test_a_name_without_its_folder_says_nothing_of_several_files(images):
    """One line would decide about several patients."""
    for person in ("a", "b"):
        picture(images / person / "IM-0001.png")
    (images / "patients.csv").write_text("file,patient\na/IM-0001.png,a\nb/IM-0001.png,b\nClear/p1.png,c\n")
    (images / "classes.csv").write_text("file,class\nIM-0001.png,clear\np1.png,clear\n")
    found = {entry.name: entry.entry.said for entry in entries(images, "site-a", study_of("images")) if entry.patient}
    assert [found[str(images / name)] for name in ("a/IM-0001.png", "b/IM-0001.png", "Clear/p1.png")] == [
        None,
        None,
        "clear",
    ]


def test_what_cannot_be_meant_is_refused(images):
    picture(images / "bacteria/p5.png")
    picture(images / "clear/p6.png", np.stack([RAMP, RAMP, RAMP[:, ::-1]], -1))
    picture(images / "clear/p7.png", np.stack([RAMP, RAMP, RAMP, RAMP], -1))
    (images / "clear/p8.png").write_bytes((images / "cloudy/p3.jpeg").read_bytes()[:200])
    picture(images / "p9.png")
    (images / "clear/notes.docx").write_bytes(b"x")
    said = warned(images, study_of("images"))
    assert len(said) == 6
    for path, why in {
        "bacteria/p5.png": "is of class 'bacteria', and [study] classes are clear, cloudy",
        "clear/p6.png": "has 3 channels and [data] modality lists 1",
        "clear/p7.png": "is transparent in places",
        "clear/p8.png": "cannot be read as a picture",
        "p9.png": "is in no folder of a class",
    }.items():
        assert any(one.startswith(f"{images / path}: ") and why in one for one in said), path
    assert any("1 files are neither PNG nor JPEG, such as notes.docx" in one for one in said)


def test_grey_in_three_equal_colours_is_grey_and_colours_are_three_channels(images):
    picture(images / "clear/p6.png", np.stack([RAMP] * 3, -1))
    picture(images / "clear/p7.jpg", np.stack([RAMP] * 3, -1), quality=60)
    assert len(load_site(images, "site-a", study_of("images")).train) == 5
    for name in ("p1.png", "deep/p2.jpg", "p6.png", "p7.jpg"):
        for folder in ("clear", "Clear"):
            (images / folder / name).unlink(missing_ok=True)
    picture(images / "clear/p8.png", np.stack([RAMP, RAMP[:, ::-1], RAMP], -1))
    (images / "cloudy/p3.jpeg").unlink()
    coloured = study_of("images", modality=["red", "green", "blue"])
    assert load_site(images, "site-a", coloured).train[0].image.shape[0] == 3


def test_names_that_could_be_one_persons_are_refused_until_somebody_says_whose_they_are(images):
    """The names of the paediatric radiographs of Kermany et al."""
    for name in ("clear/IM-0115-0001.png", "cloudy/person17_virus_1.png", "cloudy/person17_virus_2.png"):
        picture(images / name)
    study = study_of("images")
    with pytest.raises(ConfigError, match="2 names share the stem 'person17_virus'"):
        load_site(images, "site-a", study)
    pattern = r"(?P<patient>person\d+|IM-\d+|p\d)"
    data = load_site(images, "site-a", study.replace(data={"patient": pattern}))
    assert {case.patient for case in data.train} == {"p1", "p2", "p3", "IM-0115", "person17"}
    (images / "patients.csv").write_text(
        "file,patient\np1,A\np2.jpg,A\ncloudy/p3.jpeg,B\nIM-0115-0001.png,C\nperson17_virus_1.png,D\nperson17_virus_2,D\n"
    )
    data = load_site(images, "site-a", study)
    assert sorted(case.patient for case in data.train) == ["A", "A", "B", "C", "D", "D"]


@pytest.fixture
def radiograph(tmp_path):
    pytest.importorskip("highdicom")
    from tests.support.dicom import write_radiograph

    def write(path, stored=RAMP, person="P1", **tags):
        return write_radiograph(tmp_path / path, stored, person, **tags)

    return write


def test_dense_is_bright_whichever_way_the_file_has_it(radiograph, tmp_path):
    study = study_of("radiographs")
    plain = radiograph("clear/a.dcm", RescaleSlope="2", RescaleIntercept="-10", PixelSpacing=["0.2", "0.2"])
    turned = radiograph("clear/b.dcm", 4095 - RAMP.astype(int), "P2", PhotometricInterpretation="MONOCHROME1")
    (first, wide), (second, unknown) = (read_radiograph(path, study) for path in (plain, turned))
    assert (wide, unknown) == (0.2, 1.0)
    np.testing.assert_array_equal(np.rot90(first[0, :, :, 0]), 2.0 * RAMP - 10)
    np.testing.assert_array_equal(np.rot90(second[0, :, :, 0]), RAMP)
    radiograph("cloudy/c.dcm", np.stack([RAMP, RAMP + 1]), "P3")
    data = load_site(tmp_path, "site-a", study)
    assert {case.patient: case.image.shape[-1] for case in data.train} == {"P1": 1, "P2": 1, "P3": 2}


def test_the_patient_is_the_tag_and_two_files_of_one_are_one_patient(radiograph, tmp_path):
    for number in range(3):
        radiograph(f"clear/{number}.dcm", person="P9")
    assert load_site(tmp_path, "site-a", study_of("radiographs")).patients == ["P9"]


def test_a_series_with_missing_images_colours_and_burnt_in_letters(radiograph, tmp_path):
    radiograph("clear/one.dcm", person="A", SeriesInstanceUID="1.2.3", InstanceNumber=1, BurnedInAnnotation="NO")
    radiograph("clear/three.dcm", person="A", SeriesInstanceUID="1.2.3", InstanceNumber=3, BurnedInAnnotation="NO")
    radiograph("clear/some.dcm", person="B", SeriesInstanceUID="1.2.4", NumberOfSeriesRelatedInstances="2")
    radiograph("cloudy/burnt.dcm", person="C", BurnedInAnnotation="YES")
    radiograph("cloudy/odd.dcm", person="D", PixelSpacing=["0.2", "0.3"], BurnedInAnnotation="NO")
    radiograph("cloudy/hue.dcm", person="E", PhotometricInterpretation="PALETTE COLOR", BurnedInAnnotation="NO")
    (tmp_path / "cloudy/cut.dcm").write_bytes((tmp_path / "cloudy/burnt.dcm").read_bytes()[:150])
    said = warned(tmp_path, study_of("radiographs"))
    for path, why in {
        "clear/one.dcm": "is of a series without image 2 (1 are missing)",
        "clear/three.dcm": "is of a series without image 2 (1 are missing)",
        "clear/some.dcm": "is of a series with 1 of 2 images",
        "cloudy/burnt.dcm": "says that annotations are burnt into it",
        "cloudy/odd.dcm": "has pixels of 0.2 x 0.3 mm, which are not square",
        "cloudy/hue.dcm": "has colours (PALETTE COLOR)",
        "cloudy/cut.dcm": "cannot be read as DICOM",
    }.items():
        assert any(one.startswith(f"{tmp_path / path}: ") and why in one for one in said), (path, said)
    assert any("2 of 7 files do not say whether annotations are burnt in" in one for one in said)


def test_tags_that_are_no_number_leave_out_their_own_picture(radiograph, tmp_path):
    """Whatever stands in one patient's file stops nobody else: a site that ends would tell that it is there."""
    radiograph("clear/a.dcm", person="A")
    far = radiograph("clear/far.dcm", person="B", SeriesInstanceUID="1.2.3", InstanceNumber=1)
    radiograph("clear/far2.dcm", person="B", SeriesInstanceUID="1.2.3", InstanceNumber=2_000_000_000)
    for name, tag, value in (("n.dcm", 0x00200013, b"no"), ("s.dcm", 0x00281053, b"x1"), ("p.dcm", 0x00280030, b"zz")):
        vr = {0x00200013: "IS", 0x00281053: "DS", 0x00280030: "DS"}[tag]
        damaged(radiograph(f"cloudy/{name}", person=name[0].upper()), tag, vr, value)
    study = study_of("radiographs").replace(
        privacy={"mechanism": "local", "epsilon": 8.0, "delta": 1e-3, "clip_norm": 0.1}, secagg={"clip_range": 0.5}
    )
    with pytest.warns(UserWarning, match="left out") as told:
        patients = load_site(tmp_path, "site-a", study).patients
    assert set(patients) == {"A", "N"}
    said = [str(one.message) for one in told]
    assert any(str(far) in one and "without image 2 (1999999998 are missing)" in one for one in said)
    assert sum("cannot be read as DICOM" in one for one in said) == 2


def damaged(path, tag, vr, value):
    """Write bytes into a tag that no writer would."""
    import pydicom

    file = pydicom.dcmread(path)
    file[tag] = pydicom.dataelem.RawDataElement(pydicom.tag.Tag(tag), vr, len(value), value, 0, False, True)
    file.save_as(path)


@pytest.fixture
def medmnist(tmp_path):
    random = np.random.default_rng(1)
    parts = {"train": 12, "val": 3, "test": 7}
    arrays = {f"{part}_images": random.integers(0, 255, (n, 28, 28)).astype(np.uint8) for part, n in parts.items()}
    arrays |= {f"{part}_labels": (np.arange(n) % 2).astype(np.uint8)[:, None] for part, n in parts.items()}
    np.savez(tmp_path / "set.npz", **arrays)
    return tmp_path


def test_a_files_own_parts_are_the_roles_and_every_row_is_dealt_to_one_site(medmnist):
    study = study_of("medmnist", rows="dealt")
    dealt = {site: load_site(medmnist, site, study) for site in study.site_ids}
    trained = [case.patient for data in dealt.values() for case in data.train]
    tested = [case.patient for data in dealt.values() for case in data.test]
    assert sorted(trained) == sorted(f"train-{n}" for n in range(12))
    assert sorted(tested) == sorted(f"test-{n}" for n in range(7))
    choosing = load_site(medmnist, "site-a", study.replace(data={"rows": "own", "tested": "val"}))
    assert [case.patient for case in choosing.test] == ["val-0", "val-1", "val-2"]
    assert len(choosing.train) == 12


@pytest.mark.parametrize("row", [0, 5])
def test_a_row_more_in_a_file_that_is_dealt_moves_no_other_row(medmnist, row):
    """By its number a row more moved all rows behind it to other sites: epsilon speaks for one row at one site."""
    study = study_of("medmnist", rows="dealt")

    def held():
        found = {site: load_site(medmnist, site, study).train for site in study.site_ids}
        return {site: {case.image.tobytes() for case in cases} for site, cases in found.items()}

    before, arrays = held(), dict(np.load(medmnist / "set.npz"))
    one = np.arange(28 * 28, dtype=np.uint8).reshape(1, 28, 28)
    arrays["train_images"] = np.insert(arrays["train_images"], row, one, axis=0)
    arrays["train_labels"] = np.insert(arrays["train_labels"], row, 1, axis=0)
    np.savez(medmnist / "set.npz", **arrays)
    after = held()
    assert sorted(len(after[site] ^ before[site]) for site in study.site_ids) == [0, 0, 1]
    assert all(before[site] <= after[site] for site in study.site_ids)


def test_a_row_is_a_patient_unless_a_table_says_otherwise_and_that_is_said(medmnist):
    study = study_of("medmnist")
    assert any("each row counts as a patient of its own" in one for one in warned(medmnist, study))
    rows = [f"train-{n},P{n // 2}" for n in range(12)] + [f"test-{n},T{n}" for n in range(6)] + ["test-6,P0"]
    (medmnist / "patients.csv").write_text("file,patient\n" + "\n".join(rows))
    data = load_site(medmnist, "site-a", study)
    assert data.patients == [f"P{n}" for n in range(1, 6)], "P0 is in both parts, and is never trained on"
    assert [case.patient for case in data.test].count("P0") == 3


@pytest.mark.parametrize("wrong", ["two files", "no file", "part", "several labels", "damaged"])
def test_a_wrong_file_is_one_sentence(medmnist, wrong):
    path, study = medmnist / "set.npz", study_of("medmnist")
    arrays = dict(np.load(path))
    match wrong:
        case "two files":
            (medmnist / "b.npz").write_bytes(path.read_bytes())
            expected = "has 2 .npz files, and layout 'medmnist' is one"
        case "no file":
            path.unlink()
            expected = "has 0 .npz files"
        case "part":
            del arrays["val_labels"]
            expected = "must have val_images and as many val_labels"
        case "several labels":
            arrays["train_labels"] = np.zeros((12, 14), np.uint8)
            expected = "has 14 labels; a picture is of one class here"
        case _:
            path.write_bytes(path.read_bytes()[:500])
            expected = "cannot be read as .npz"
    if wrong in ("part", "several labels"):
        np.savez(path, **arrays)
    with pytest.raises((ConfigError, CaseError), match=re.escape(expected)):
        load_site(medmnist, "site-a", study)


def test_layouts_go_with_their_task():
    with pytest.raises(ConfigError, match=r"layout = 'images' is not for task = 'segmentation'; use one of label maps"):
        study_of("images").replace(study={"task": "segmentation", "classes": [], "structures": ["a"]})
    with pytest.raises(ConfigError, match=r"layout = 'feta' is not for task = 'classification'; use images, radio"):
        study_of("feta")
    with pytest.raises(ConfigError, match=r"\[data\] rows and tested go with layout = 'medmnist'"):
        study_of("images", rows="dealt")


def test_the_command_checks_a_folder_of_pictures(images, tmp_path, monkeypatch, capsys):
    (images / "s.toml").write_text(study_of("images").toml())
    monkeypatch.setattr(sys, "argv", ["fedseg", "data", "check", str(images / "s.toml"), "--site", "site-a", "--json",
                                      "--data", str(images)])  # fmt: skip
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 0
    findings = json.loads(capsys.readouterr().out)["findings"]
    assert findings[-1]["message"] == "3 patients, 3 cases to train and 0 to test; 2 clear, 1 cloudy"


@pytest.mark.parametrize("ending", ["csv", "json"])
def test_predict_writes_a_table_of_probabilities(ending, images, tmp_path, monkeypatch, capsys):
    study = study_of("images")
    save_model(build_model(study), tmp_path / "model.safetensors", metadata_of(study))
    (images / "cloudy/broken.png").write_bytes(b"no picture")
    output = tmp_path / f"answers.{ending}"
    command = ["fedseg", "predict", str(tmp_path / "model.safetensors"), str(images), str(output)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit, match="1"):
        main()
    told = capsys.readouterr()
    assert f"classes of 3 of 4 pictures: {output}" in told.out.replace("\n", "")
    assert "broken.png: cannot be read as a picture" in told.err.replace("\n", "")
    text = output.read_text()
    rows = list(csv.DictReader(text.splitlines())) if ending == "csv" else json.loads(text)["pictures"]
    assert [row["file"] for row in rows] == ["Clear/p1.png", "clear/deep/p2.jpg", "cloudy/p3.jpeg"]
    for row in rows:
        likely = {name: float(row[f"p({name})"]) for name in ("clear", "cloudy")}
        assert sum(likely.values()) == pytest.approx(1, abs=1e-5)
        assert row["said"] == max(likely, key=likely.get)
    monkeypatch.setattr(sys, "argv", [*command[:4], str(tmp_path / "labels.nii.gz")])
    with pytest.raises(SystemExit):
        main()
    assert "give a name that ends in .csv or .json" in capsys.readouterr().err.replace("\n", " ")
