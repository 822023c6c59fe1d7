"""Folders as people have them: which files belong together, whose they are, and what is left alone."""

import json
from collections.abc import Sequence
from pathlib import Path

import nibabel
import numpy as np
import pytest

from fedseg.data.layouts.channels import chosen
from fedseg.data.layouts.layout import Declared, Entry
from fedseg.data.layouts.table import LAYOUTS, entries
from fedseg.errors import CaseError, ConfigError
from fedseg.study import Study, load_study
from fedseg.tasks.table import task_of
from tests.fedseg.test_fedseg_realdata import folder_of
from tests.support.folders import AFFINE, brain, write_decathlon, write_feta

STUDIES = Path(__file__).parents[2] / "studies"
SITE = "site-a"


def study_of(layout: str, modality: Sequence[str] = ("T2w",), **data: object) -> Study:
    return load_study(STUDIES / "fetal.toml").replace(
        study={"structures": ["left", "right"]},
        data={"layout": layout, "modality": list(modality), "size": 32, **data},
    )


def image(path: Path, factor: float = 1) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(brain()[0] * np.float32(factor), AFFINE).to_filename(path)
    return path


def label(path: Path, values: Sequence[int] = (0, 1, 2)) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    nibabel.Nifti1Image(np.array(values, np.int16)[brain()[1]], AFFINE).to_filename(path)
    return path


def found(folder: Path, study: Study) -> list[Entry]:
    return entries(folder, study.site_ids[0], study)


def test_what_systems_leave_behind_is_no_image(tmp_path: Path) -> None:
    write_feta(tmp_path, 2)
    (tmp_path / "participants.tsv").unlink()
    (tmp_path / "._sub-001").mkdir()
    for path in (tmp_path / "sub-001/anat").iterdir():
        (path.parent / f"._{path.name}").write_bytes(b"\0\x05\x16\x07")
    (tmp_path / "sub-001/anat/.DS_Store").write_bytes(b"\0\0\0\1Bud1")
    assert [entry.patient for entry in found(tmp_path, study_of("feta"))] == ["sub-001", "sub-002"]


def test_bids_has_sessions_runs_and_derivatives(tmp_path: Path) -> None:
    for session in ("ses-01", "ses-02"):
        for run in (1, 2):
            image(tmp_path / f"sub-01/{session}/anat/sub-01_{session}_run-{run}_T2w.nii")
            label(tmp_path / f"derivatives/hand/sub-01/{session}/anat/sub-01_{session}_run-{run}_dseg.nii.gz")
    image(tmp_path / "sub-02/anat/sub-02_T2w.nii.gz")
    label(tmp_path / "sub-02/anat/sub-02_dseg.nii")
    study = study_of("bids")
    cases = found(tmp_path, study)
    assert [(entry.case, entry.subject) for entry in cases] == [
        *((f"sub-01/ses-0{session}/anat/sub-01_ses-0{session}_run-{run}_T2w", "sub-01")
          for session in (1, 2) for run in (1, 2)),
        ("sub-02/anat/sub-02_T2w", "sub-02"),
    ]  # fmt: skip
    assert {entry.load(SITE, study).patient for entry in cases} == {"sub-01", "sub-02"}
    image(tmp_path / "sub-02/anat/sub-02_dseg.nii.gz")
    entry = found(tmp_path, study)[-1]  # only this case, or a site that stays away would tell of one patient
    with pytest.raises(CaseError, match=r"sub-02_dseg.nii.gz: sub-02_dseg.nii is there too; remove the one"):
        entry.load(SITE, study)
    (tmp_path / "participants.tsv").write_text("participant_id\tage\nsub-01 \t30\n")
    assert {entry.patient for entry in found(tmp_path, study)} == {"sub-01"}


def test_two_modalities_of_one_plain_name_are_never_one_file_twice(tmp_path: Path) -> None:
    image(tmp_path / "a.nii.gz"), image(tmp_path / "b.nii.gz", 2), label(tmp_path / "l.nii.gz")
    (tmp_path / "cases.csv").write_text("patient,T1,T1+,label\nP1,a.nii.gz,b.nii.gz,l.nii.gz\n")
    for study in (study_of("table", ["T1", "T1+"]), study_of("table", ["T1"])):
        with pytest.raises(ConfigError, match=r"'T1' and 'T1\+' are one modality to this package"):
            found(tmp_path, study)
    with pytest.raises(ConfigError, match=r"dataset.json: 'T1' and 'T1\+' are one modality"):
        chosen(["T1"], ["T1", "T1+"], "dataset.json")
    assert chosen(["FLAIR"], ["T1", "T1+", "FLAIR"], "dataset.json") == [2]


def test_brats_2019_says_whose_a_case_is(tmp_path: Path) -> None:
    for case in ("BraTS19_2013_10_1", "BraTS19_2013_11_1", "BraTS19_CBICA_AAB_1"):
        image(tmp_path / f"HGG/{case}/{case}_flair.nii.gz")
    people = {entry.patient for entry in found(tmp_path, study_of("brats", ["flair"]))}
    assert people == {"BraTS19_2013_10", "BraTS19_2013_11", "BraTS19_CBICA_AAB"}


def test_bids_has_a_file_for_each_modality(tmp_path: Path) -> None:
    for person in ("sub-01", "sub-02"):
        for number, kind in enumerate(("T1w", "FLAIR"), 1):
            image(tmp_path / f"{person}/anat/{person}_{kind}.nii.gz", number)
        label(tmp_path / f"{person}/anat/{person}_dseg.nii.gz")
    (tmp_path / "sub-02/anat/sub-02_T1w.nii.gz").unlink()
    study = study_of("bids", ["FLAIR", "T1w"])
    first, second = found(tmp_path, study)
    assert [path.name for path in first.images] == ["sub-01_FLAIR.nii.gz", "sub-01_T1w.nii.gz"]
    assert first.load(SITE, study).image.shape[0] == 2
    assert len(second.images) == 1
    with pytest.raises(CaseError, match=r"sub-02_FLAIR.nii.gz: has 1 channels and \[data\] modality lists 2"):
        second.load(SITE, study)


def test_the_list_of_participants_is_read_as_people_write_it(tmp_path: Path) -> None:
    write_feta(tmp_path, 4)
    index, layout, study = tmp_path / "participants.tsv", LAYOUTS["bids"], study_of("bids")
    index.write_bytes(b"\xef\xbb\xbfparticipant_id\tage\r\n001\t25\r\nsub-002\t25\r\nsub-002\t25\r\n\r\n")
    assert [entry.subject for entry in found(tmp_path, study)] == ["sub-001", "sub-002"]
    assert layout.remarks(tmp_path, study) == [
        "participants.tsv does not list sub-003, sub-004: left alone",
        "participants.tsv lists sub-002 more than once: taken once",
    ]


def test_a_list_of_files_per_case_is_its_channels(tmp_path: Path) -> None:
    for number, name in enumerate(("a", "b"), 1):
        image(tmp_path / f"{name}.nii.gz", number)
    label(tmp_path / "l.nii.gz")
    listed = {"training": [{"image": ["a.nii.gz", "b.nii.gz"], "label": "l.nii.gz"}]}
    (tmp_path / "dataset.json").write_text(json.dumps(listed))
    study = study_of("decathlon", ["FLAIR", "T1"])
    (case,) = found(tmp_path, study)
    assert (case.case, len(case.images), case.load(SITE, study).image.shape[0]) == ("a", 2, 2)


def nnunet(folder: Path, index: dict[str, object]) -> Path:
    for case in ("c_1", "c_2"):
        for number in range(3):
            image(folder / f"imagesTr/{case}_{number:04}.nii.gz", number + 1)
        label(folder / f"labelsTr/{case}.nii.gz")
    (folder / "dataset.json").write_text(json.dumps(index))
    return folder


NNUNET = {
    1: {
        "modality": {"0": "T1", "1": "T2", "2": "FLAIR"},
        "labels": {"0": "background", "1": "left", "2": "right"},
        "training": [{"image": f"./imagesTr/c_{n}.nii.gz", "label": f"./labelsTr/c_{n}.nii.gz"} for n in (1, 2)],
    },
    2: {
        "channel_names": {"0": "T1", "1": "T2", "2": "FLAIR"},
        "labels": {"background": 0, "left": 1, "right": 2},
        "numTraining": 2,
        "file_ending": ".nii.gz",
    },
}


@pytest.mark.parametrize("version", NNUNET)
def test_nnunets_channels_are_found_by_name(version: int, tmp_path: Path) -> None:
    nnunet(tmp_path, NNUNET[version])
    study = study_of("nnunet", ["FLAIR", "T1"])
    first, _ = found(tmp_path, study)
    assert (first.case, first.subject) == ("c_1", None)
    assert [path.name for path in first.images] == ["c_1_0002.nii.gz", "c_1_0000.nii.gz"]
    assert first.load(SITE, study).image.shape[0] == 2
    assert LAYOUTS["nnunet"].declared(tmp_path, study) == Declared({"left": (1,), "right": (2,)}, ("FLAIR", "T1"))
    with pytest.raises(ConfigError, match=r"has the channels T1, T2, FLAIR, and \[data\] modality asks for CT"):
        found(tmp_path, study_of("nnunet", ["CT", "T1"]))
    with pytest.raises(ConfigError, match=r"nnU-Net: set \[data\] layout = 'nnunet'"):
        found(tmp_path, study_of("decathlon"))


def test_an_image_without_label_map_is_told_where_the_folder_is_the_list(tmp_path: Path) -> None:
    nnunet(tmp_path, NNUNET[2])
    (tmp_path / "labelsTr/c_2.nii.gz").unlink()
    study = study_of("nnunet", ["T2"])
    assert [entry.case for entry in found(tmp_path, study)] == ["c_1"]
    assert LAYOUTS["nnunet"].remarks(tmp_path, study) == ["imagesTr: c_2 have no label map in labelsTr: left alone"]


def test_what_a_decathlon_folder_declares(tmp_path: Path) -> None:
    write_decathlon(tmp_path)
    index = json.loads((tmp_path / "dataset.json").read_text())
    index |= {"labels": {"0": "background", "1": "left"}, "modality": {"0": "T1", "1": "FLAIR", "2": "T1c"}}
    (tmp_path / "dataset.json").write_text(json.dumps(index))
    said = LAYOUTS["decathlon"].declared(tmp_path, study_of("decathlon"))
    assert said == Declared({"left": (1,)}, ("T1", "FLAIR", "T1c"))


BRATS = {
    "Brats18_CBICA_AAB_1": ("HGG/Brats18_CBICA_AAB_1/Brats18_CBICA_AAB_1_{}.nii.gz", "Brats18_CBICA_AAB"),
    "BraTS20_Training_001": ("BraTS20_Training_001/BraTS20_Training_001_{}.nii.gz", "BraTS20_Training_001"),
    "BraTS2021_00000": ("BraTS2021_00000/BraTS2021_00000_{}.nii", "BraTS2021_00000"),
    "BraTS-GLI-00000-001": ("BraTS-GLI-00000-001/BraTS-GLI-00000-001-{}.nii.gz", "BraTS-GLI-00000"),
    "BraTS-PED-00002-000": ("BraTS-PED-00002-000/BraTS-PED-00002-000-{}.nii.gz", "BraTS-PED-00002"),
}


@pytest.mark.parametrize("case", BRATS)
def test_a_folder_of_brats_of_every_year(case: str, tmp_path: Path) -> None:
    place, person = BRATS[case]
    years = ("t1n", "t1c", "t2w", "t2f") if "-" in case else ("t1", "t1ce", "t2", "flair")
    for number, kind in enumerate(years, 1):
        image(tmp_path / place.format(kind), number)
    label(tmp_path / place.format("seg"))
    for wanted in (["t2f", "t1c"], ["FLAIR", "T1ce"]):
        study = study_of("brats", wanted)
        (entry,) = found(tmp_path, study)
        assert (entry.case, entry.subject, entry.patient) == (case, person, person or case)
        assert [path.name for path in entry.images] == [Path(place.format(years[index])).name for index in (3, 1)]
        assert entry.load(SITE, study).image.shape[0] == 2
    (tmp_path / place.format("seg")).unlink()
    with pytest.raises(CaseError, match=r"seg.nii.*the label map of"):
        found(tmp_path, study)[0].load(SITE, study)


def with_labels(labels: list[list[int]], own: list[list[int]], structures: list[str]) -> Study:
    study = study_of("brats", ["t2f"])
    content = study.model_dump(mode="json")
    content["study"]["structures"], content["data"]["labels"] = structures, labels
    content["sites"][0]["labels"] = own
    return Study.model_validate_json(json.dumps(content))


def test_tumour_core_and_enhancing_tumour_lie_within_each_other(tmp_path: Path) -> None:
    """4 is enhancing tumour up to 2020, 3 since 2023: the first site has the old one, the others the new one."""
    study = with_labels([[1, 2, 3], [1, 3], [3]], [[1, 2, 4], [1, 4], [4]], ["WT", "TC", "ET"])
    assert study.regions == ((1, 2, 3), (2, 3), (3,))
    image(tmp_path / "A/A_flair.nii.gz")
    for site, enhancing in ((study.site_ids[0], 4), (study.site_ids[1], 3)):
        for values, expected in (((0, 2, 1), {0, 1, 2}), ((0, enhancing, 2), {0, 3, 1})):
            label(tmp_path / "A/A_seg.nii.gz", values)
            case = found(tmp_path, study)[0].load(site, study)
            assert set(np.unique(case.label)) == expected
    oedema, core, other = np.where(case.label == 1, 1, 0), np.where(case.label == 1, 2, 0), np.zeros_like(case.label)
    for prediction, scores in (
        (case.label, [1, 1, 1]),
        (np.where(case.label == 3, 2, case.label), [1, 1, 0]),
        (np.where(case.label > 0, 1, 0), [1, 0, 0]),
        (np.where(case.label > 0, 3, 0), [1, 2 / 3, 2 / 3]),
        (oedema, [2 / 3, 0, 0]),
        (core, [2 / 3, 0, 0]),
        (other, [0, 0, 0]),
    ):
        np.testing.assert_allclose(task_of(study).score(prediction.astype(np.uint8), case), scores, atol=0.01)


def test_label_values_that_nobody_lists_are_refused(tmp_path: Path) -> None:
    study = with_labels([[1], [2]], [], ["left", "right"])
    image(tmp_path / "A/A_flair.nii.gz")
    label(tmp_path / "A/A_seg.nii.gz", (0, 1, 4))
    with pytest.raises(CaseError, match=r"A_seg.nii.gz: has label value 4, and \[data\] labels lists 0, 1, 2; correct"):
        found(tmp_path, study)[0].load(SITE, study)


@pytest.mark.parametrize(
    ("labels", "own", "said"),
    [
        ([[1]], [], "labels lists 1 structures and .study. structures 3"),
        ([[1, 2], [2, 3], [4]], [], "labels: two structures share a label value"),
        ([[4], [1, 4], [2]], [], "labels: two structures share a label value"),
        ([[1], [1], [2]], [], "labels: two structures share a label value"),
        ([[1, 2], [2], [3]], [[1], [2], [3]], "site-a: labels nests the structures otherwise"),
        ([], [[1, 2], [2], [3]], "site-a: labels nests the structures otherwise"),
    ],
)
def test_structures_are_apart_or_one_within_the_other(labels, own, said) -> None:
    with pytest.raises(ValueError, match=said):
        with_labels(labels, own, ["a", "b", "c"])


@pytest.mark.parametrize("separator", [",", ";", "\t"])
def test_a_table_says_which_files_belong_together_and_whose_they_are(separator: str, tmp_path: Path) -> None:
    for name in ("x.nii.gz", "y z.nii.gz"):
        image(tmp_path / "deep" / name)
    label(tmp_path / "l.nii.gz")
    table, study = tmp_path / "cases.csv", study_of("table")
    rows = [("Patient", "image", "label"), ("P1", "deep/x.nii.gz", "l.nii.gz"), ("P1", "deep/y z.nii.gz", "l.nii.gz")]
    table.write_bytes(b"\xef\xbb\xbf" + "\r\n".join(separator.join(row) for row in rows).encode())
    assert [(entry.case, entry.subject) for entry in found(tmp_path, study)] == [("x", "P1"), ("y z", "P1")]
    assert {entry.load(SITE, study).patient for entry in found(tmp_path, study)} == {"P1"}
    two = study_of("table", ["T1", "T2-FLAIR"])
    header = separator.join(("t1", "t2-flair", "label", "case"))
    table.write_text(f"{header}\n{separator.join(('deep/x.nii.gz', 'deep/y z.nii.gz', 'l.nii.gz', 'c7'))}\n")
    (entry,) = found(tmp_path, two)
    assert (entry.case, entry.subject, len(entry.images)) == ("c7", None, 2)
    assert entry.load(SITE, two).image.shape[0] == 2
    for text, said in (
        ("image\nx\n", "needs a column image or the columns T1, T2-FLAIR, and label"),
        (f"image{separator}label{separator}patient\nx{separator}l{separator}\n", "line 2: patient is empty"),
    ):
        table.write_text(text)
        with pytest.raises(ConfigError, match=rf"cases.csv:? {said}"):
            found(tmp_path, two)


def test_channels_go_by_name_and_by_order_only_where_no_name_fits() -> None:
    assert chosen(["t2f", "T1ce"], ["t1c", "t1n", "flair"], "x") == [2, 0]
    assert chosen(["pre", "post"], ["0", "1"], "x") == [0, 1]
    assert chosen(["pre", "post"], None, "x") == [0, 1]
    for wanted, there in ((["pre"], ["0", "1"]), (["T1", "CT"], ["T1", "T2"])):
        with pytest.raises(ConfigError, match=r"has the channels .*; correct either"):
            chosen(wanted, there, "x")


@pytest.mark.realdata
def test_a_real_folder_of_brats_is_read() -> None:
    study = study_of("brats", ["t1c", "t2f"], patient=r"(?P<patient>BraTS-2013-\d{5})/")
    cases = found(folder_of("brats"), study)
    assert [entry.case for entry in cases] == [f"BraTS-2013-0000{number}" for number in range(1, 5)]
    assert all(not entry.remarks() for entry in cases)
