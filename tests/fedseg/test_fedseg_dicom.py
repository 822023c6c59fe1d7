"""DICOM series as images, DICOM SEG out of `predict`, and series that are no volume."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedseg.data.layouts.dicom import chosen_series, read_folder
from fedseg.data.layouts.series import read_segments
from fedseg.data.layouts.table import LAYOUTS, entries
from fedseg.errors import CaseError
from fedseg.models import build_model, metadata_of, save_model
from fedseg.study import Study, load_study
from fedseg.tasks.segmentation import Segmentation
from tests.support.command import run
from tests.support.dicom import write_series
from tests.support.folders import brain

highdicom, pydicom = pytest.importorskip("highdicom"), pytest.importorskip("pydicom")
STUDY = Path(__file__).parents[2] / "studies/fetal.toml"
SHAPE = (40, 48, 18)


@pytest.fixture(scope="module")
def study() -> Study:
    return load_study(STUDY).replace(
        study={"structures": ["left", "right"]},
        data={"layout": "dicom", "modality": ["T2"], "size": 16},
        model={"channels": [4, 4], "start": "scratch"},
    )


def volume() -> np.ndarray:
    return np.round(brain(SHAPE)[0]).astype(int) * 2


def test_a_series_is_a_volume_in_hounsfield_units_where_the_scanner_says(tmp_path: Path, study: Study) -> None:
    write_series(tmp_path / "a", volume())
    image = read_folder(tmp_path / "a", study)
    np.testing.assert_array_equal(image.values[0], volume()[:, :, ::-1])  # left-handed as the files are, so from above
    expected = np.array([[-0.6, 0, 0, -10], [0, -0.8, 0, -20], [0, 0, -2, 64], [0, 0, 0, 1]])
    np.testing.assert_allclose(image.affine, expected)
    shutil.rmtree(tmp_path / "a")
    write_series(tmp_path / "a", volume(), turn=(0, 1, 0, 0, 0, -1))  # sagittal
    np.testing.assert_allclose(read_folder(tmp_path / "a", study).affine[:3, 0], [0, -0.6, 0], atol=1e-9)


@pytest.mark.parametrize(
    "turn", [(1, 0, 0, 0, 1, 0), (0, 1, 0, 0, 0, -1), (-1, 0, 0, 0, 1, 0), (0.8, 0.6, 0, -0.48, 0.64, 0.6)]
)
def test_every_pixel_lies_where_its_own_file_says(turn: tuple[float, ...], tmp_path: Path, study: Study) -> None:
    """In LPS by the standard (C.7.6.2.1.1), written down here again; the affine is in RAS."""
    image = read_folder(write_series(tmp_path / "a", volume(), turn=turn), study)
    for path in sorted((tmp_path / "a").iterdir())[::5]:
        one = pydicom.dcmread(path)
        row, column = np.array(turn[:3]), np.array(turn[3:])
        for c, r in ((0, 0), (17, 29)):
            lps = np.array(one.ImagePositionPatient, float) + row * c * 0.6 + column * r * 0.8
            voxel = np.linalg.inv(image.affine) @ [-lps[0], -lps[1], lps[2], 1]
            np.testing.assert_allclose(voxel, np.round(voxel), atol=1e-3)
            assert image.values[0][tuple(np.round(voxel[:3]).astype(int))] == one.pixel_array[r, c] * 2.0 - 1024


def test_slices_of_another_series_of_the_same_acquisition_are_not_missed(tmp_path: Path, study: Study) -> None:
    folder = write_series(tmp_path / "a", volume())
    change(0, ImagesInAcquisition=36)(folder)  # two echoes, or two kernels
    assert read_folder(folder, study).shape == SHAPE


def test_slices_lost_at_the_ends_are_told(tmp_path: Path, study: Study) -> None:
    for path in sorted(write_series(tmp_path / "P1", volume()).iterdir())[-4:]:
        path.unlink()
    (entry,) = entries(tmp_path, "site-a", study)
    assert entry.remarks() == ["the slices of series 'T2' are numbered 5 to 18: are those before lost?"]


def test_files_of_old_archives_are_read_without_their_first_bytes(tmp_path: Path, study: Study) -> None:
    for path in write_series(tmp_path / "P1", volume()).iterdir():
        path.write_bytes(path.read_bytes()[132:])
    assert read_folder(tmp_path / "P1", study).shape == SHAPE


@pytest.mark.parametrize("left", [0, 300, 700])
def test_a_slice_that_was_copied_in_part_is_not_left_out(left: int, tmp_path: Path, study: Study) -> None:
    """At an end of the stack nothing else would tell."""
    path = sorted(write_series(tmp_path / "P1", volume()).iterdir())[0]
    path.write_bytes(path.read_bytes()[:left])
    (entry,) = entries(tmp_path, "site-a", study)
    with pytest.raises(CaseError):
        read_folder(entry.folder, study)


def write_seg(folder: Path, labels: list[str], kind: str = "BINARY", **options: object) -> Path:
    """A DICOM SEG of a folder's series: segment n is 1 in slice n, four pixels."""
    slices = [pydicom.dcmread(path) for path in sorted(folder.iterdir())]
    code = highdicom.sr.CodedConcept("85756007", "SCT", "Tissue")
    pixels = np.zeros((len(slices), slices[0].Rows, slices[0].Columns, len(labels)), float if options else np.uint8)
    for number in range(len(labels)):
        pixels[number, 4:6, 4:6, number] = 1
    highdicom.seg.Segmentation(
        source_images=slices,
        pixel_array=pixels,
        segmentation_type=kind,
        segment_descriptions=[
            highdicom.seg.SegmentDescription(number, name, code, code, "MANUAL")
            for number, name in enumerate(labels, 1)
        ],
        series_instance_uid=highdicom.UID(),
        series_number=9,
        sop_instance_uid=highdicom.UID(),
        instance_number=1,
        manufacturer="a",
        manufacturer_model_name="b",
        software_versions="1",
        device_serial_number="0",
        **options,
    ).save_as(folder / "label.dcm")
    return folder / "label.dcm"


def test_segments_of_one_name_are_one_structure(tmp_path: Path, study: Study) -> None:
    folder = write_series(tmp_path / "P1", volume())
    seg = write_seg(folder, ["left", "left", "other", "right"])
    labels = read_segments(seg, read_folder(folder, study), study.structures)
    assert [np.count_nonzero(labels == value) for value in (1, 2)] == [8, 4]


def test_a_segmentation_of_probabilities_is_refused(tmp_path: Path, study: Study) -> None:
    folder = write_series(tmp_path / "P1", volume())
    seg = write_seg(folder, ["left", "right"], "FRACTIONAL", fractional_type="PROBABILITY")
    with pytest.raises(CaseError, match=r"label[.]dcm: says how likely each voxel is"):
        read_segments(seg, read_folder(folder, study), study.structures)


def change(number: int, **values: object) -> Callable[[Path], None]:
    def edit(folder: Path) -> None:
        path = sorted(folder.iterdir())[number]
        one = pydicom.dcmread(path)
        for name, value in values.items():
            setattr(one, name, value)
        one.save_as(path)

    return edit


def lose(folder: Path) -> None:
    for path in sorted(folder.iterdir())[7:9]:
        path.unlink()


def repeat(folder: Path) -> None:
    one = pydicom.dcmread(sorted(folder.iterdir())[3])
    one.SOPInstanceUID = pydicom.uid.generate_uid()
    one.save_as(folder / "twice.dcm")


BAD = {
    "missing slices": (lose, "has about 2 slices missing between 46.0 and 52.0 mm"),
    "irregular": (
        change(4, ImagePositionPatient=["10", "20", "56.7"]),
        "is spaced irregularly: slices are 1.30 to 2.70",
    ),
    "an echo": (repeat, "has several images at one place"),
    "a localiser": (change(0, ImageOrientationPatient=[0, 1, 0, 0, 0, -1]), "has slices in several directions"),
    "fewer than counted": (change(0, NumberOfSeriesRelatedInstances=20), "has 18 of 20 slices"),
    "colours": (change(0, SamplesPerPixel=3), "holds colours"),
    "no place": (change(0, ImagePositionPatient=None), "does not say where its slices lie"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_series_that_is_no_volume_is_refused_with_numbers(name: str, tmp_path: Path, study: Study) -> None:
    damage, said = BAD[name]
    damage(write_series(tmp_path / "a", volume()))
    with pytest.raises(CaseError, match=said):
        read_folder(tmp_path / "a", study)


def test_several_series_are_named_and_chosen_by_description_or_folder(tmp_path: Path, study: Study) -> None:
    write_series(tmp_path / "a/s1", volume(), said="Localizer")
    write_series(tmp_path / "a/T1", volume(), said="tra")
    with pytest.raises(CaseError, match=r"has no series for 'T2' among 2 \('tra' with 18; 'Localizer' with 18\)"):
        read_folder(tmp_path / "a", study)
    write_series(tmp_path / "a/s3", volume(), said="T2")
    two = study.replace(data={"modality": ["t2", "T1"]})
    assert [files[0].parent.name for files in chosen_series(tmp_path / "a", two)] == ["s3", "T1"]
    assert read_folder(tmp_path / "a", two).values.shape == (2, *SHAPE)


@pytest.fixture
def predicted(tmp_path, study, capsys, monkeypatch) -> Path:
    """A model that says right of what is bright, and its DICOM SEG of one series."""
    monkeypatch.setattr(Segmentation, "write_picture", lambda self, case, labels, output: output)
    truth = np.zeros((16, 16), np.float32)
    truth[4:12, 4:12] = 1

    def answer(self, model, case):
        right = case.image[0] > 0.3
        return np.stack([~right, np.zeros_like(right), right]).astype(np.float32)

    monkeypatch.setattr(Segmentation, "probabilities", answer)
    save_model(build_model(study), tmp_path / "m.safetensors", metadata_of(study))
    write_series(tmp_path / "site/P1", volume())
    seg = tmp_path / "label.dcm"
    code, _, error = run(capsys, monkeypatch, "predict", tmp_path / "m.safetensors", tmp_path / "site/P1", seg)
    assert code == 0, error
    return seg


def test_dicom_seg_is_of_the_series_and_is_read_back_as_a_label_map(predicted, tmp_path, study, capsys, monkeypatch):
    seg, source = highdicom.seg.segread(predicted), pydicom.dcmread(next((tmp_path / "site/P1").iterdir()))
    assert [seg.get_segment_description(number).segment_label for number in seg.segment_numbers] == ["left", "right"]
    assert (seg.PatientID, seg.StudyInstanceUID) == ("P1", source.StudyInstanceUID)
    assert seg.FrameOfReferenceUID == source.FrameOfReferenceUID
    nifti = tmp_path / "o.nii.gz"
    code, _, error = run(capsys, monkeypatch, "predict", tmp_path / "m.safetensors", tmp_path / "site/P1", nifti)
    assert code == 0, error
    shutil.copy(predicted, tmp_path / "site/P1/label.dcm")
    (entry,) = entries(tmp_path / "site", "site-a", study)
    from_seg = entry.load("site-a", study)
    (tmp_path / "site/P1/label.dcm").unlink()
    shutil.copy(nifti, tmp_path / "site/P1/label.nii.gz")
    from_nifti = entry.load("site-a", study)
    assert (entry.case, entry.subject, from_seg.patient) == ("P1", "P1", "P1")
    assert set(np.unique(from_seg.label)) == {0, 2}
    np.testing.assert_array_equal(from_seg.label, from_nifti.label)


def test_no_slice_is_replaced_and_a_series_without_names_has_a_dicom_seg(predicted, tmp_path, capsys, monkeypatch):
    folder = tmp_path / "site/P1"
    for path in folder.iterdir():
        one = pydicom.dcmread(path)
        del one.PatientBirthDate, one.PatientName, one.StudyID, one.AccessionNumber
        one.save_as(path)
    before = (folder / "001.dcm").read_bytes()
    code, _, error = run(capsys, monkeypatch, "predict", tmp_path / "m.safetensors", folder, folder / "001.dcm")
    assert code == 1
    assert "001.dcm: is there already, in the folder of the images; write elsewhere" in error
    assert (folder / "001.dcm").read_bytes() == before
    code, _, error = run(capsys, monkeypatch, "predict", tmp_path / "m.safetensors", folder, tmp_path / "again.dcm")
    assert code == 0, error
    for path in folder.iterdir():
        one = pydicom.dcmread(path)
        del one.StudyInstanceUID
        one.save_as(path)
    code, _, error = run(capsys, monkeypatch, "predict", tmp_path / "m.safetensors", folder, tmp_path / "third.dcm")
    assert code == 1
    assert "cannot be what a DICOM SEG is of" in error
    assert not (tmp_path / "third.dcm").exists()


def test_a_folder_of_series_gives_a_folder_of_dicom_seg(predicted, tmp_path, capsys, monkeypatch):
    write_series(tmp_path / "site/P2", volume(), "P2")
    out = tmp_path / "out"
    code, said, error = run(capsys, monkeypatch, "predict", tmp_path / "m.safetensors", tmp_path / "site", out)
    assert code == 0, error
    assert sorted(path.name for path in out.iterdir()) == ["P1.dcm", "P2.dcm"]
    assert said.startswith("1/2 labels")


def test_whose_a_folder_is_and_what_is_left_alone(tmp_path: Path, study: Study) -> None:
    write_series(tmp_path / "case-1", volume()[:, :, :3], "A")
    write_series(tmp_path / "case-2", volume()[:, :, :3], "A")
    (tmp_path / "papers").mkdir()
    (tmp_path / "papers/notes.txt").write_text("x")
    assert [(entry.case, entry.patient) for entry in entries(tmp_path, "site-a", study)] == [
        ("case-1", "A"),
        ("case-2", "A"),
    ]
    assert LAYOUTS["dicom"].remarks(tmp_path, study) == ["papers: no DICOM images in it, left alone"]
    write_series(tmp_path / "case-2/more", volume()[:, :, :3], "B")
    mixed = entries(tmp_path, "site-a", study)[1]  # only this case, or a site that stays away would tell of it
    with pytest.raises(CaseError, match="case-2: has images of 2 patients"):
        mixed.load("site-a", study)
