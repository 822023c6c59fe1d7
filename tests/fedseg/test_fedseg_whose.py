"""Who is a patient, what the files declare, and what `fedseg data check` says of both at one hospital."""

import json
import sys
import warnings
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import fedseg.simulate as simulation
from fedseg.budget.charge import charge
from fedseg.cli import main
from fedseg.cli import terminal as command
from fedseg.data.cases import held_out
from fedseg.data.declaration import Declaration, agree
from fedseg.data.layouts.files import FileEntry
from fedseg.data.layouts.patients import Alike, alike, by_patient, stem_of
from fedseg.data.loading import declared_at, load_cohort, load_site
from fedseg.data.roles import going_on
from fedseg.dialogue import Declares
from fedseg.errors import CaseError, ConfigError, RoundFailedError
from fedseg.events import Note, RoundEnded
from fedseg.ledger import Ledger
from fedseg.ledger.home import Home
from fedseg.ledger.payers import Payers
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.study import Study, load_study
from secagg.keys import SigningKey
from tests.support.folders import brain, write_feta

SITE = "site-a"
BASE = load_study(Path(__file__).parents[2] / "studies" / "fetal.toml").replace(
    study={"structures": ["left", "right"]}, model={"start": "scratch"}
)
STUDY = BASE.replace(data={"layout": "decathlon", "size": 16, "modality": ["T2w"]})
PATTERN = r"(?P<patient>[^/]+)[-_][^-_/]+[.]nii"
LABELS = {"0": "background", "1": "Left", "2": "Right"}


def private(study: Study) -> Study:
    return study.replace(privacy={"mechanism": "local"})


def write(folder: Path, names: list[str], **index: object) -> Path:
    """A Decathlon folder with these images, each under its path in the folder."""
    training = []
    for name in names:
        image, label = (Path(kind) / name if "/" not in name else Path(name.replace("IMAGE", kind))
                        for kind in ("imagesTr", "labelsTr"))  # fmt: skip
        for path, values in zip((image, label), brain((24, 24, 4)), strict=True):
            (folder / path).parent.mkdir(parents=True, exist_ok=True)
            nibabel.save(nibabel.Nifti1Image(values, np.diag([1.0, 1.0, 3.0, 1.0])), folder / path)
        training.append({"image": f"./{image}", "label": f"./{label}"})
    (folder / "dataset.json").write_text(json.dumps({"training": training, "numTraining": len(names), **index}))
    return folder


def patients(folder: Path, study: Study = STUDY) -> list[str]:
    data = load_site(folder, SITE, study)
    return sorted(case.patient for case in (*data.train, *data.test))


@pytest.mark.parametrize(
    ("name", "stem"),
    [
        ("BraTS-GLI-00001-000", "BraTS-GLI-00001"),
        ("TCGA_CS_4941_19960909", "TCGA_CS_4941"),
        ("P7_ses-1_run-02", "P7"),
        ("P7_baseline", "P7"),
        ("scan_followup2", "scan"),
        ("12_t1", "12"),
        ("hippocampus_001", "hippocampus_001"),
        ("TCGA_CS_4941", "TCGA_CS_4941"),
        ("patient12", "patient12"),
        ("001", "001"),
        ("ses-1", "ses-1"),
    ],
)
def test_a_stem_is_a_name_without_what_looks_like_a_time_point(name, stem):
    assert stem_of(name) == stem


def test_names_that_only_count_patients_are_nobodys_riddle():
    assert alike([f"hippocampus_{number:03}" for number in (1, 4, 6)]) == {}
    assert alike(["P1", "P10", "P11", "P2"]) == {}
    assert alike(["p7", "P7_ses-2", "P8"]) == {"p7": ["p7", "P7_ses-2"]}


@pytest.mark.parametrize(
    ("names", "said"),
    [
        (
            ["B-01-000.nii.gz", "B-01-001.nii.gz", "B-02-000.nii.gz"],
            "2 names share the stem 'B-01' (B-01-000, B-01-001)",
        ),
        (["P1/IMAGE/scan.nii.gz", "P2/IMAGE/scan.nii.gz"], "2 names repeat (scan, scan)"),
        (
            [f"A1_{n}.nii.gz" for n in range(5)] + ["C_pre.nii.gz", "C_post.nii.gz"],
            "7 names in 2 groups share the stem",
        ),
        (["patient001_frame01.nii.gz", "patient001_frame12.nii.gz"], "2 names share the stem 'patient001'"),
        (["anna_20190101.nii.gz", "anna_2020-02-01.nii.gz"], "2 names share the stem 'anna'"),
        (["P7_left.nii.gz", "P7_right.nii.gz", "P8_A.nii.gz", "P8_B.nii.gz"], "4 names in 2 groups share the stem"),
    ],
)
def test_names_that_could_be_one_persons_are_refused_until_somebody_says(names, said, tmp_path):
    """In version 0.5 two time points were in train and in test, and equal names in two folders were one patient."""
    with pytest.raises(ConfigError) as caught:
        load_site(write(tmp_path, names), SITE, STUDY)
    assert str(caught.value).startswith(f"{tmp_path}: {said}")
    assert "nothing says whether that is one patient or several; name the patient of each file in a table" in str(
        caught.value
    )


def test_with_privacy_names_that_could_be_one_persons_are_left_out_alone_and_pay(tmp_path):
    """Until 0.6 the whole site stopped, which told that such a patient is there."""
    folder = write(tmp_path / "images", ["P7_1.nii.gz", "P7_2.nii.gz", "P8.nii.gz"])
    with pytest.warns(UserWarning, match=r"left out: 2 names share the stem 'P7' \(P7_1, P7_2\)") as told:
        data = load_site(folder, SITE, private(STUDY).replace(data={"holdout": 0.0}))
    assert len([one for one in told if "left out" in str(one.message)]) == 1
    assert (data.patients, data.unsaid) == (["P8"], ("P7_1", "P7_2"))
    payers = Payers(Home(), tmp_path / "state", data.patients, [], unsaid=data.unsaid)
    charge(Ledger(tmp_path / "state/ledger.jsonl", payers=payers), private(STUDY), SITE, "run", 1)
    (line,) = Ledger(tmp_path / "state/ledger.jsonl").entries()
    assert payers.sets.members(line.patients) == {payers.sets.digest_of(name) for name in ("P7_1", "P7_2", "P8")}


NAMES = st.sampled_from(["P7", "P7_1", "P7_2", "P7_ses-2", "P8", "P8_left", "A", "A_pre", "B"])


@given(st.sets(NAMES), NAMES)
def test_one_name_more_changes_who_is_used_by_at_most_one(names, more):
    def used(names: set[str]) -> set[str]:
        listed = [FileEntry(name, (Path(f"{name}.nii"),), Path()) for name in sorted(names)]
        found = by_patient(listed, Path("nowhere"), private(STUDY))
        return {entry.patient for entry in found if not isinstance(entry, Alike)}

    assert len(used(names) ^ used(names | {more})) <= 1


def test_with_privacy_a_line_that_lacks_something_leaves_out_whom_it_is_about(tmp_path):
    study = private(STUDY).replace(data={"holdout": 0.0})
    folder = write(tmp_path, ["a.nii.gz", "b.nii.gz", "P1/IMAGE/scan.nii.gz", "P2/IMAGE/scan.nii.gz", "c.nii.gz"])
    text = "file\tpatient\na\tAnna\nb\t\nscan\tEve\nc\tEve\n\tNobody\n"
    (folder / "patients.tsv").write_text(text)
    with pytest.warns(UserWarning, match="lacks its file or its patient") as told:
        assert load_site(folder, SITE, study).patients == ["Anna"]
    said = [str(one.message) for one in told]
    assert [one.rpartition("patients.tsv: ")[2] for one in said[:2]] == [
        "line 3 lacks its file or its patient; fill it in or remove it",
        "line 6 lacks its file or its patient; fill it in or remove it",
    ]
    assert sum("left out" in one for one in said) == 4  # b, both scans, and c, which is of the same patient
    (folder / "patients.tsv").write_text("file\tpatient\na\tAnna\na\tEve\n")
    with pytest.raises(ConfigError, match="line 3 gives a to Eve and another line to Anna"):
        load_site(folder, SITE, study)


def test_the_command_tells_what_it_leaves_out(tmp_path, capsys, monkeypatch):
    study = private(STUDY).replace(data={"holdout": 0.0})
    folder = write(tmp_path, ["a.nii.gz", "b.nii.gz"])
    (folder / "patients.tsv").write_text("file\tpatient\na\tAnna\nb\t\n")
    monkeypatch.setattr(command, "app", lambda: load_site(folder, SITE, study))
    monkeypatch.setattr(warnings, "showwarning", warnings.showwarning)
    with warnings.catch_warnings():
        command.main()
    said = capsys.readouterr().err
    assert "patients.tsv: line 3 lacks its file or its patient; fill it in or remove it" in said
    assert f"warning: [{SITE}] left out: " in said


@pytest.mark.parametrize(
    ("sidecar", "text", "space"),
    [
        ("space-MNI152_T2w.json", "{}", "mni152"),
        ("T2w.json", '{"SpatialReference": "MNI152NLin6Asym"}', "mni152nlin6asym"),
        ("T2w.json", '{"SpatialReference": {"VoI": "x"}}', None),
        ("T1w.json", '{"SpatialReference": "other"}', None),
        ("sub-001_space-MNI152_T2w.json", "{}", None),  # of one patient: nobody's presence is declared
    ],
)
def test_a_bids_sidecar_of_all_images_says_their_space(sidecar, text, space, tmp_path):
    (tmp_path / sidecar).write_text(text)
    assert declared_at(tmp_path, SITE, BASE.replace(data={"layout": "bids", "modality": ["T2w"]})).space == space


def test_a_pattern_of_the_study_says_who_is_who(tmp_path):
    folder = write(tmp_path, ["B-01-000.nii.gz", "B-01-001.nii.gz", "B-02-000.nii.gz"])
    assert patients(folder, STUDY.replace(data={"patient": PATTERN})) == ["B-01", "B-01", "B-02"]
    each = STUDY.replace(data={"patient": "(?P<patient>[^/]+)[.]nii"})
    assert patients(folder, each) == ["B-01-000", "B-01-001", "B-02-000"]
    apart = STUDY.replace(data={"patient": "^(?P<patient>[^/]+)/"})
    assert patients(write(tmp_path / "b", ["P1/IMAGE/scan.nii.gz", "P2/IMAGE/scan.nii.gz"]), apart) == ["P1", "P2"]


def test_two_time_points_have_one_role(tmp_path):
    names = [f"P{number}_{time}.nii.gz" for number in range(12) for time in (1, 2)]
    study = STUDY.replace(data={"patient": PATTERN, "holdout": 0.4})
    data = load_site(write(tmp_path, names), SITE, study)
    assert len(data.patients) * 2 == len(data.train)
    assert not set(data.patients) & {case.patient for case in data.test}
    assert {case.patient for case in data.test} == {f"P{n}" for n in range(12) if held_out(SITE, f"P{n}", 0.4)}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        (
            "patients.tsv",
            "file\tpatient\nimagesTr/B-01-000.nii.gz\tAnna\n./imagesTr/B-01-001.nii.gz\tAnna\nx.nii.gz\tEve\n",
        ),
        ("patients.csv", "\ufeffage,Patient_ID,case\r\n7,Anna,B-01-000\r\n8,Anna,B-01-001.nii.gz\r\n9,Eve,x\r\n\r\n"),
        ("patients.csv", 'case;patient\n"B-01-000";Anna\nB-01-001;Anna\nx;Eve\n'),
        ("who.csv", "image,participant_id\nimagesTr\\B-01-000.nii.gz,Anna\nB-01-001,Anna\nx,Eve\n"),
    ],
)
def test_a_table_in_the_folder_says_who_is_who(name, text, tmp_path):
    folder = write(tmp_path, ["B-01-000.nii.gz", "B-01-001.nii.gz", "x.nii.gz"])
    (folder / name).write_bytes(text.encode())
    study = STUDY.replace(data={"patients": "who.csv"}) if name == "who.csv" else STUDY
    assert patients(folder, study) == ["Anna", "Anna", "Eve"]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("file\tage\nx\t7\n", "patients.tsv: its first line must name the columns 'file' and 'patient'"),
        ("", "patients.tsv: its first line must name"),
        ("file\tpatient\na\tAnna\nx\n", "patients.tsv: line 3 lacks its file or its patient; fill it in"),
        ("file\tpatient\na\tAnna\na\tEve\n", "patients.tsv: line 3 gives a to Eve and another line to Anna"),
        ("file\tpatient\nscan\tAnna\n", "patients.tsv: 'scan' is the name of 2 files; give their paths from"),
    ],
)
def test_a_malformed_table_is_one_sentence(text, said, tmp_path):
    folder = write(tmp_path, ["P1/IMAGE/scan.nii.gz", "P2/IMAGE/scan.nii.gz"])
    (folder / "patients.tsv").write_text(text)
    with pytest.raises(ConfigError) as caught:
        load_site(folder, SITE, STUDY)
    assert said in str(caught.value)


def test_who_is_in_no_table_and_fits_no_pattern_is_left_out_alone(tmp_path):
    """With differential privacy the site goes on: it would tell that such a patient is there."""
    folder = write(tmp_path, ["B-01-000.nii.gz", "odd.nii.gz"])
    study = STUDY.replace(data={"patient": PATTERN, "holdout": 0.0})
    with pytest.raises(CaseError, match=r"odd\.nii\.gz: its path does not fit \[data\] patient; rename the file or"):
        load_site(folder, SITE, study)
    with pytest.warns(UserWarning, match=r"left out: .*odd\.nii\.gz: its path does not fit"):
        assert load_site(folder, SITE, private(study)).patients == ["B-01"]
    (folder / "patients.tsv").write_text("file\tpatient\nodd\tEve\n")
    with pytest.warns(UserWarning, match=r"left out: .*B-01-000\.nii\.gz: is not in patients\.tsv; add a line"):
        assert load_site(folder, SITE, private(study)).patients == ["Eve"]
    with pytest.raises(ConfigError, match=r"who\.tsv is missing; it says which file is whose: make it, or correct"):
        load_site(folder, SITE, STUDY.replace(data={"patients": "who.tsv"}))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        ({"patient": "("}, r"patient = '\(': not a regular expression"),
        ({"patient": "P[0-9]"}, r"must have a group \(\?P<patient>...\)"),
        ({"patient": PATTERN, "patients": "a.csv"}, "patient and patients both say who is a patient; remove one"),
        ({"patients": "../a.csv"}, "must be the name of a file in the site's folder"),
    ],
)
def test_a_study_that_cannot_say_who_is_who_is_refused(data, said):
    with pytest.raises(ConfigError, match=said):
        STUDY.replace(data=data)


def cohort(root: Path, **declared: dict[str, object]) -> Path:
    for site in STUDY.site_ids:
        write(root / site, [f"{site}_a.nii.gz"], **declared.get(site.replace("-", "_"), {"labels": LABELS}))
    return root


SWAPPED = {"labels": {"0": "background", "1": "Right", "2": "Left"}}


def test_a_site_that_numbers_structures_otherwise_is_refused(tmp_path):
    cohort(tmp_path, site_b=SWAPPED)
    for study in (STUDY, private(STUDY)):
        with pytest.raises(ConfigError) as caught:
            load_cohort(tmp_path, study)
        assert str(caught.value).startswith(
            f"{tmp_path}/site-b: the files declare label 1 to be 'Right', and in the study"
        )
    own = [{"id": site, **({"labels": [[2], [1]]} if site == "site-b" else {})} for site in STUDY.site_ids]
    content = STUDY.model_dump(mode="json", exclude_none=True) | {"sites": own}
    assert load_cohort(tmp_path, Study.model_validate_json(json.dumps(content))).keys() == set(STUDY.site_ids)


def test_channels_in_another_order_are_refused(tmp_path):
    study = STUDY.replace(data={"modality": ["FLAIR", "T1"]})
    folder = write(tmp_path, ["a.nii.gz"], modality={"0": "T1", "1": "FLAIR"})
    with pytest.raises(
        ConfigError, match=r"declare the channels T1, FLAIR, and \[data\] modality lists FLAIR, T1: another"
    ):
        load_site(folder, SITE, study)


def test_the_odd_one_out_is_named_before_anybody_trains(tmp_path):
    """Names that the study does not know say nothing against it, but three sites have to mean the same."""
    core, shell = ({"labels": {"0": "background", "1": name, "2": "Right"}} for name in ("core", "shell"))
    cohort(tmp_path, site_a=core, site_b=shell, site_c=core)
    said = r"sites' files declare what the study calls 'left' differently: site-b 'shell', the others 'core'; compare"
    with pytest.raises(ConfigError, match=said):
        load_cohort(tmp_path, STUDY)
    three = {site: Declaration(structures=(name, "")) for site, name in zip("abc", ("x", "y", "z"), strict=True)}
    with pytest.raises(ConfigError, match="differently: a 'x', b 'y', c 'z'; compare"):
        agree(three, STUDY)
    agree({"a": Declaration(), "b": Declaration(("left", "right"), ("t2w",)), "c": Declaration(("", "right"))}, STUDY)


def test_a_declaration_has_no_number_of_anything(tmp_path):
    one = load_site(write(tmp_path / "one", ["a.nii.gz"], labels=LABELS, modality={"0": "T2"}, numTest=7), SITE, STUDY)
    two = load_site(
        write(tmp_path / "two", ["b.nii.gz", "c.nii.gz"], labels=LABELS, channel_names={"0": "t2w"}), SITE, STUDY
    )
    assert one.declared == two.declared == Declaration(("left", "right"), ("t2w",))
    assert one.declared.digest == two.declared.digest != Declaration().digest


def check(capsys, monkeypatch, *arguments: str) -> tuple[int, str]:
    monkeypatch.setattr(sys, "argv", ["fedseg", "data", "check", *arguments])
    monkeypatch.setenv("COLUMNS", "1000")
    with pytest.raises(SystemExit) as ended:
        main()
    code = ended.value.code
    said = capsys.readouterr()
    return (code if isinstance(code, int) else int(bool(code))), said.out + said.err


def test_data_check_says_it_at_one_hospital_and_in_json(tmp_path, capsys, monkeypatch):
    study = tmp_path / "study.toml"
    study.write_text(STUDY.toml(), encoding="utf-8")
    folder = str(write(tmp_path / "mine", ["B-01-000.nii.gz", "B-01-001.nii.gz"], **SWAPPED))
    code, said = check(capsys, monkeypatch, str(study), "--site", SITE, "--data", folder)
    assert (code, said.count("error site-a")) == (1, 1)
    assert "share the stem 'B-01'" in said
    (tmp_path / "mine/patients.tsv").write_text("file\tpatient\nB-01-000\tAnna\nB-01-001\tAnna\n")
    code, said = check(capsys, monkeypatch, str(study), "--site", SITE, "--data", folder)
    assert code == 1
    assert f"error site-a: {folder}: the files declare label 1 to be 'Right'" in said
    content = json.loads((tmp_path / "mine/dataset.json").read_text()) | {
        "labels": {"1": "Left", "2": "dextra", "3": "x"}
    }
    (tmp_path / "mine/dataset.json").write_text(json.dumps(content))
    code, said = check(capsys, monkeypatch, str(study), "--site", SITE, "--data", folder, "--json")
    found = json.loads(said)
    assert (code, found["ok"]) == (0, True)
    assert [finding["message"] for finding in found["findings"]][:2] == [
        "the files call label 2 'dextra', and the study 'right'; is it the same?",
        "the files declare label 3, 'x', which the study does not have",
    ]
    assert found["findings"][-1]["message"].startswith("1 patients, 2 cases")
    code, said = check(capsys, monkeypatch, str(study), "--data", folder)
    assert code == 1
    assert "has no subfolder site-a, site-b, site-c; is it one hospital's own? Then add --site and its id" in said


def test_data_check_holds_all_sites_against_each_other(tmp_path, capsys, monkeypatch):
    study = tmp_path / "study.toml"
    study.write_text(STUDY.toml(), encoding="utf-8")
    cohort(tmp_path, site_c={"labels": {"0": "background", "1": "Left", "2": "dextra"}})
    code, said = check(capsys, monkeypatch, str(study), "--data", str(tmp_path))
    assert code == 1
    assert "error between sites: sites' files declare what the study calls 'right' differently: site-c 'dextra'" in said


def test_rows_twice_and_folders_that_no_row_names_are_told(tmp_path, capsys, monkeypatch):
    study = tmp_path / "study.toml"
    study.write_text(BASE.replace(data={"size": 16}).toml(), encoding="utf-8")
    folder = write_feta(tmp_path / "mine", 3)
    (folder / "participants.tsv").write_text("participant_id\nsub-001\nsub-001\nsub-002\n")
    code, said = check(capsys, monkeypatch, str(study), "--site", SITE, "--data", str(folder))
    assert code == 0
    assert "warning site-a: participants.tsv does not list sub-003: left alone" in said
    assert "warning site-a: participants.tsv lists sub-001 more than once: taken once" in said
    assert "info site-a: 2 patients" in said


def named(role: bool, start: int = 100) -> str:
    """A patient's name that is held out, or not."""
    return next(name for number in range(start, start + 99) if held_out(SITE, name := f"sub-{number}", 0.2) == role)


def moved(folder: Path, old: str, new: str) -> None:
    """Another name for a patient: a slip of a pen, or a new export."""
    for kind in ("T2w", "dseg"):
        place = folder / new / "anat"
        place.mkdir(parents=True, exist_ok=True)
        (folder / old / "anat" / f"{old}_{kind}.nii.gz").rename(place / f"{new}_{kind}.nii.gz")
    (folder / old / "anat").rmdir()
    (folder / old).rmdir()


def test_a_run_goes_on_without_those_who_would_change_sides(tmp_path):
    """Here a trained patient's image comes back under a name that is held out, and the other way round."""
    study = BASE.replace(data={"size": 16})
    folder = write_feta(tmp_path / "mine", 5)
    (folder / "participants.tsv").unlink()
    record = tmp_path / "roles" / "run.json"
    before, told = going_on(record, load_site(folder, SITE, study))
    trained, tested = before.patients, sorted({case.patient for case in before.test})
    assert (told, tested, len(trained)) == ([], ["sub-002"], 4)
    assert going_on(record, load_site(folder, SITE, study))[1] == []
    out, drawn = named(True), named(False)
    moved(folder, trained[0], out)
    moved(folder, tested[0], drawn)
    write_feta(tmp_path / "other", 6)
    (tmp_path / "other/sub-006").rename(folder / "sub-006")
    after, told = going_on(record, load_site(folder, SITE, study))
    assert after.patients == [*trained[1:], "sub-006"]
    assert after.test == ()
    assert told[0] == f"{SITE}: 1 patients (sub-006) came since this run began; roles of the others are as they were"
    assert told[1].startswith(f"{SITE}: 2 patients took part before and are gone; what they")
    assert not any(name in record.read_text() for name in (*trained, *tested, out, drawn))
    assert told[2].startswith(
        f"{SITE}: 1 patients ({out}) (by name or image) were trained on in this run and would change"
    )
    assert told[3].startswith(
        f"{SITE}: 1 patients ({drawn}) (by name or image) were held out in this run and would change"
    )
    moved(folder, drawn, tested[0])
    moved(folder, out, trained[0])
    again, told = going_on(record, load_site(folder, SITE, study))
    assert (again.patients, len(again.test), told) == ([*trained, "sub-006"], 1, [])


def test_a_simulation_that_goes_on_names_who_came_and_keeps_everybodys_role(tmp_path, monkeypatch):
    study = BASE.replace(
        study={"rounds": 2, "local_steps": 1}, data={"size": 16, "slices_per_patient": 1}, model={"channels": [4, 4]}
    )
    for site in study.site_ids:
        write_feta(tmp_path / "data" / site, 2)
        (tmp_path / "data" / site / "participants.tsv").unlink()

    class Stop(BaseException):
        pass

    def stop(event):
        if isinstance(event, RoundEnded):
            raise Stop

    folder = RunFolder.create(tmp_path / "runs", study, stop)
    with pytest.raises(Stop):
        simulate(folder, load_cohort(tmp_path / "data", study), Options(plain=True))
    mine = tmp_path / "data" / SITE
    out = named(True)
    moved(mine, "sub-001", out)
    write_feta(tmp_path / "other", 3)
    (tmp_path / "other/sub-003").rename(mine / "sub-003")
    trained, heard, real = [], [], simulation.train_round

    def watched(model, data, *arguments, **named):
        trained.append((named["site"], data.patients))
        return real(model, data, *arguments, **named)

    monkeypatch.setattr(simulation, "train_round", watched)
    simulate(RunFolder.reopen(folder.path, heard.append), load_cohort(tmp_path / "data", study), Options(plain=True))
    notes = [event.text for event in heard if isinstance(event, Note)]
    assert [note.partition(" patients")[0] for note in notes] == [f"{SITE}: 1"] * 3
    assert "sub-003) came" in notes[0]
    assert f"({out}) (by name or image) were trained on" in notes[2]
    assert dict(trained)[SITE] == ["sub-003"]


def test_a_site_signs_what_it_declares():
    declared = Declaration(("core", ""), ("t2w",), None)
    key, other = SigningKey.generate(), SigningKey.generate()
    text = Declares.signed(declared, "run", "site-a", key).model_dump_json()
    assert Declares.heard(text, "run", "site-a", key.verify_key) == declared
    for run, site, verify_key in (
        ("another", "site-a", key.verify_key),
        ("run", "site-b", key.verify_key),
        ("run", "site-a", other.verify_key),
    ):
        with pytest.raises(RoundFailedError, match=f"{site} did not sign its declaration of labels and channels"):
            Declares.heard(text, run, site, verify_key)
    with pytest.raises(RoundFailedError, match="did not sign"):
        Declares.heard(text.replace("core", "shell"), "run", "site-a", key.verify_key)
    for malformed in ("", "[]", text.replace("core", "co re"), text.replace('"core"', "1"), text[:-1] + ',"n":1}'):
        with pytest.raises(RoundFailedError, match="site-a sent a malformed declaration"):
            Declares.heard(malformed, "run", "site-a", key.verify_key)
