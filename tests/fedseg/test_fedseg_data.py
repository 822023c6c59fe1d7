"""Folders, geometry, normalisation, split and batches, and one sentence for each bad file."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
import torch

from fedseg.data.cases import Case, held_out, split, whole
from fedseg.data.findings import check_site
from fedseg.data.loading import load_cohort, load_site
from fedseg.data.scans import Scan, working_case
from fedseg.errors import CaseError, ConfigError
from fedseg.study import Study, load_study
from fedseg.tasks.table import batch_of
from secagg.prg import Stream
from tests.support.folders import AFFINE, brain, write_decathlon, write_feta

STUDIES = Path(__file__).parents[2] / "studies"
SITE = "site-a"


@pytest.fixture(scope="module")
def feta() -> Study:
    changes = {"structures": ["left", "right"]}
    return load_study(STUDIES / "fetal.toml").replace(study=changes, data={"size": 32, "slices_per_patient": 4})


@pytest.fixture(scope="module")
def lgg() -> Study:
    return load_study(STUDIES / "lgg.toml").replace(data={"size": 32})


def test_feta_layout_loads_normalised_and_split_by_patient(tmp_path: Path, feta: Study) -> None:
    data = load_site(write_feta(tmp_path / SITE), SITE, feta)
    assert (len(data.train), len(data.test)) == (4, 1)
    assert not set(data.patients) & {case.patient for case in data.test}
    case = data.train[0]
    assert (case.image.dtype, case.image.shape) == (np.float32, (1, 32, 32, 18))
    assert case.label is not None
    assert (case.label.dtype, case.label.shape, set(np.unique(case.label))) == (np.uint8, (32, 32, 18), {0, 1, 2})
    assert 0 <= case.image.min() < 0.2 < 0.9 < case.image.max() <= 1.5
    assert case.spacing == pytest.approx((0.8 * 24 / 32, 0.8 * 24 / 32, 0.8))
    assert "image" not in repr(case)


def test_decathlon_layout_takes_channels_and_float_labels(tmp_path: Path, lgg: Study) -> None:
    data = load_site(write_decathlon(tmp_path), "site-CS", lgg)
    case = data.train[0]
    assert case.image.shape == (3, 32, 32, 4)
    assert case.label is not None
    assert set(np.unique(case.label)) == {0, 1}
    assert {case.patient for case in (*data.train, *data.test)} == {"P0", "P1", "P2"}


def test_a_network_that_sees_parts_of_images_only_is_told_unless_the_study_means_it(tmp_path: Path, lgg: Study) -> None:
    """Two sides in another order trained on parts of 40 of 51 millimetres, and cost a fifth of the Dice."""
    write_decathlon(tmp_path)

    def told(**data: object) -> list[str]:
        asked = lgg.replace(data={"spacing": [1.0, 1.0], **data})
        return [found.message for found in check_site(tmp_path, "site-CS", asked) if "at once" in found.message]

    assert told(size=[40, 40]) == []
    assert told(size=[40, 24], patch=[40, 16]) == []
    (one,) = told(size=[40, 16])
    assert "fills 40 x 24 voxels of the working grid and the network sees 40 x 16 at once" in one
    assert one.endswith("else give [data] size = [40, 24]")


def test_a_cohort_has_a_folder_per_site_and_a_large_delta_is_told(tmp_path: Path, feta: Study) -> None:
    for site in feta.site_ids:
        write_feta(tmp_path / site, patients=7)
    private = feta.replace(privacy={"mechanism": "local", "delta": 0.05})
    with pytest.warns(UserWarning, match=r"delta = 0.05 is not below 1/21"):
        assert list(load_cohort(tmp_path, private)) == feta.site_ids
    with pytest.raises(ConfigError, match=r"layout = 'feta' needs images.*--data"):
        load_cohort(None, feta)


def test_a_site_may_have_nobody_to_test_or_nobody_in_training(tmp_path: Path, feta: Study) -> None:
    folder = write_feta(tmp_path, patients=1)
    data = load_site(folder, SITE, feta.replace(data={"holdout": 0.0}))
    assert (len(data.train), len(data.test)) == (1, 0)
    with pytest.warns(UserWarning, match=rf"\[{SITE}\] nobody is in training"):
        data = load_site(folder, SITE, feta.replace(data={"holdout": 0.999999}))
    assert (len(data.train), len(data.test)) == (0, 1)


def test_the_split_is_by_patient_reproducible_and_follows_the_site(feta: Study) -> None:
    case = case_of("p", feta)

    def held(study: Study, site: str) -> set[str]:
        cases = [replace(case, patient=f"p{number // 2:02}") for number in range(400)]
        data = split(site, cases, study)
        assert not set(data.patients) & {case.patient for case in data.test}
        return {case.patient for case in data.test}

    study = feta.replace(data={"holdout": 0.25})
    assert 35 < len(held(study, SITE)) < 65
    assert held(study, SITE) == held(study, SITE)
    assert held(study, SITE) != held(study, "site-b")
    assert held(study, SITE) < held(study.replace(data={"holdout": 0.5}), SITE)
    assert held(study.replace(data={"holdout": 0.0}), SITE) == set()


def test_a_role_is_the_same_today_and_tomorrow() -> None:
    """Whoever was held out must stay unseen, so that this never changes with a version of anything."""
    patients = [f"sub-{number:03}" for number in range(1, 21)]
    assert [patient for patient in patients if held_out("site-a", patient, 0.2)] == [
        "sub-002",
        "sub-010",
        "sub-019",
        "sub-020",
    ]
    assert not held_out("site-a", "\udcff\u00e4", 0.0)  # a folder's name that is not text


def case_of(patient: str, study: Study, affine: np.ndarray = AFFINE) -> Case:
    image, label = brain()
    return working_case(Scan(patient, patient, image[None], affine, label), SITE, study)


def centre(values: np.ndarray, affine: np.ndarray) -> np.ndarray:
    return affine[:3, :3] @ np.argwhere(values).mean(axis=0) + affine[:3, 3]


@pytest.mark.parametrize("dims", [2, 3])
@pytest.mark.parametrize("axes", ["RAS", "LPS", "IRP", "SAR"])
def test_the_working_grid_knows_where_it_is_in_millimetres(dims: int, axes: str, feta: Study) -> None:
    image, label = brain()
    turn = nibabel.orientations.axcodes2ornt(axes)
    place = AFFINE.copy()
    place[:3, 3] = (5, -7, 11)
    source = nibabel.Nifti1Image(label, place)
    turned = source.as_reoriented(turn)
    image = nibabel.Nifti1Image(image, source.affine).as_reoriented(turn).get_fdata(dtype=np.float32)
    study = feta.replace(data={"dims": dims, "slices_per_patient": 1})
    label, affine = np.asarray(turned.dataobj), turned.affine
    case = working_case(Scan("p", "p", image[None], affine, label), SITE, study)
    assert nibabel.aff2axcodes(case.affine) == ("R", "A", "S")
    assert case.label is not None
    np.testing.assert_allclose(centre(case.label > 0, case.affine), centre(label > 0, affine), atol=0.01)
    everywhere = np.ones(case.label.shape)
    np.testing.assert_allclose(centre(everywhere, case.affine), centre(label > 0, affine), atol=0.41)
    for value in (1, 2):
        np.testing.assert_allclose(centre(case.label == value, case.affine), centre(label == value, affine), atol=0.2)
    assert np.prod(case.spacing) * np.count_nonzero(case.label) == pytest.approx(
        0.8**3 * np.count_nonzero(label), rel=0.05
    )


def test_stacked_slices_are_never_mixed(lgg: Study) -> None:
    """The slice axis is not spatial: what is in one slice may not show in another."""
    image, label = np.ones((3, 50, 44, 7), np.float32), np.zeros((50, 44, 7), np.uint8)
    image *= np.arange(1, 8, dtype=np.float32)
    label[..., 3] = 1
    case = working_case(Scan("p", "p", image, np.eye(4), label), SITE, lgg)
    assert case.image.shape == (3, 32, 32, 7)
    middle = case.image[:, 16, 16]
    expected = (np.arange(1, 8) - 1) / 6
    np.testing.assert_allclose(middle, np.tile(expected, (3, 1)), atol=1e-5)
    assert case.label is not None
    assert [bool(case.label[..., index].any()) for index in range(7)] == [index == 3 for index in range(7)]


def test_thick_slices_are_stacked_along_the_coarse_axis(feta: Study) -> None:
    image, label = brain((40, 20, 48))
    case = working_case(Scan("p", "p", image[None], np.diag([1.1, 3.3, 1.1, 1.0]), label), SITE, feta)
    assert (case.slice_axis, case.image.shape, case.spacing[1]) == (1, (1, 32, 10, 32), pytest.approx(3.3))
    images, labels = batch_of(case, feta, Stream.seeded(1, "draw"))
    assert (images.shape, labels.shape) == ((4, 1, 32, 32), (4, 32, 32))


def test_dark_tissue_at_the_rim_stays_in_the_field_of_view(feta: Study) -> None:
    image, label = brain()
    image[image > 0] = 200
    image[10:14, 12:36, 9:27] = 60
    case = working_case(Scan("p", "p", image[None], AFFINE, label), SITE, feta)
    assert case.spacing == case_of("p", feta).spacing
    np.testing.assert_allclose(case.affine, case_of("p", feta).affine)


def test_the_scale_of_the_scanner_and_its_offset_do_not_matter(feta: Study) -> None:
    image, label = brain()
    scaled = np.where(image > 0, 37 * image + 500, 0).astype(np.float32)
    first = working_case(Scan("p", "p", image[None], AFFINE, label), SITE, feta)
    second = working_case(Scan("p", "p", scaled[None], AFFINE, label), SITE, feta)
    np.testing.assert_allclose(first.image, second.image, atol=1e-4)


def test_a_batch_is_different_slices_drawn_anew_and_reproducible(feta: Study) -> None:
    depth = np.broadcast_to(np.arange(18, dtype=np.uint8), (32, 32, 18))
    case = replace(case_of("p", feta), label=depth)
    images, labels = batch_of(case, feta, Stream.seeded(1, "draw"))
    assert (images.shape, images.dtype, labels.shape, labels.dtype) == (
        (4, 1, 32, 32), torch.float32, (4, 32, 32), torch.int64,
    )  # fmt: skip
    again, _ = batch_of(case, feta, Stream.seeded(1, "draw"))
    other, _ = batch_of(case, feta, Stream.seeded(2, "draw"))
    assert torch.equal(images, again)
    assert not torch.equal(images, other)
    everything = whole(case)
    found = [int(index) for image in images for index in range(18) if torch.equal(everything[index], image)]
    assert len(set(found)) == 4
    for index, label in zip(found, labels, strict=True):
        assert label.unique().tolist() == [index]


def test_a_case_with_few_slices_gives_all_and_a_volume_gives_itself(feta: Study) -> None:
    case = case_of("p", feta)
    images, _ = batch_of(case, feta.replace(data={"slices_per_patient": 50}), Stream.seeded(1, "draw"))
    assert len(images) == 18
    volume = feta.replace(data={"dims": 3, "slices_per_patient": 1})
    case = case_of("p", volume)
    images, labels = batch_of(case, volume, Stream.seeded(1, "draw"))
    assert (images.shape, labels.shape) == ((1, 1, 32, 32, 32), (1, 32, 32, 32))
    np.testing.assert_array_equal(images[0].numpy(), case.image)


def test_a_case_without_label_cannot_be_trained_on(feta: Study) -> None:
    image, _ = brain()
    case = working_case(Scan("p", "sub-x", image[None], AFFINE, None), SITE, feta)
    with pytest.raises(CaseError, match="sub-x: has no label map"):
        batch_of(case, feta, Stream.seeded(1, "draw"))


def change(ending: str, edit: Callable[[np.ndarray], np.ndarray], shift: float = 0.0) -> Callable[[Path], None]:
    def apply(folder: Path) -> None:
        path = folder / f"sub-002/anat/sub-002_{ending}.nii.gz"
        values = edit(nibabel.load(path).get_fdata(dtype=np.float32))
        affine = AFFINE.copy()
        affine[0, 3] += shift
        nibabel.save(nibabel.Nifti1Image(values, affine), path)

    return apply


def put(value: float) -> Callable[[np.ndarray], np.ndarray]:
    def edit(values: np.ndarray) -> np.ndarray:
        values[20, 20, 18] = value
        return values

    return edit


def truncate(folder: Path) -> None:
    path = folder / "sub-002/anat/sub-002_T2w.nii.gz"
    path.write_bytes(path.read_bytes()[:5000])


BAD_FILES = {
    "missing label": (lambda folder: (folder / "sub-002/anat/sub-002_dseg.nii.gz").unlink(),
                      "sub-002_dseg.nii.gz: the label map of sub-002_T2w.nii.gz is missing; add it"),
    "missing image": (lambda folder: (folder / "sub-002/anat/sub-002_T2w.nii.gz").unlink(),
                      "sub-002_T2w.nii.gz: is missing; add it or remove the patient from the list"),
    "another shape": (change("dseg", lambda values: values[:-1]),
                      "sub-002_dseg.nii.gz: is 39 x 48 x 36 voxels and its image is 40 x 48 x 36; export both"),
    "another affine": (change("dseg", lambda values: values, shift=1.6),
                       "sub-002_dseg.nii.gz: has another affine than its image (by up to 1.6 mm); export both"),
    "NaN voxels": (change("T2w", put(np.nan)), "sub-002_T2w.nii.gz: has 1 voxels that are NaN or infinite; export"),
    "infinite voxels": (change("T2w", put(np.inf)), "sub-002_T2w.nii.gz: has 1 voxels that are NaN or infinite"),
    "unknown label": (change("dseg", put(9)), "sub-002_dseg.nii.gz: has label value 9, and the study's structures"),
    "label of 1.5": (change("dseg", put(1.5)), "sub-002_dseg.nii.gz: has label value 1.5, and the study's"),
    "negative label": (change("dseg", put(-1)), "sub-002_dseg.nii.gz: has label value -1, and the study's"),
    "NaN label": (change("dseg", put(np.nan)), "sub-002_dseg.nii.gz: has label value nan, and the study's"),
    "two channels": (change("T2w", lambda values: np.stack([values] * 2, -1)),
                     "sub-002_T2w.nii.gz: has 2 channels and [data] modality lists 1; correct either"),
    "flat image": (change("T2w", lambda values: values[..., 0]), "sub-002_T2w.nii.gz: has 2 spatial axes; a volume"),
    "constant image": (change("T2w", np.zeros_like), "sub-002_T2w.nii.gz: channel 0 is the same everywhere; export"),
    "truncated file": (truncate, "sub-002_T2w.nii.gz: cannot be read as NIfTI: it ends too early; copy it again"),
    "text for an image": (lambda folder: (folder / "sub-002/anat/sub-002_T2w.nii.gz").write_text("hello"),
                          "sub-002_T2w.nii.gz: cannot be read as NIfTI"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD_FILES)
def test_a_bad_file_is_one_sentence_with_file_and_remedy(name: str, tmp_path: Path, feta: Study) -> None:
    damage, expected = BAD_FILES[name]
    damage(write_feta(tmp_path, patients=3))
    with pytest.raises(CaseError) as caught:
        load_site(tmp_path, SITE, feta)
    assert str(caught.value).startswith(str(tmp_path))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)
    findings = check_site(tmp_path, SITE, feta)
    assert [finding.severity for finding in findings if finding.severity == "error"] == ["error"]
    assert expected in findings[0].message


def empty(folder: Path) -> None:
    (folder / "participants.tsv").write_text("participant_id\n")


def header(folder: Path) -> None:
    (folder / "participants.tsv").write_text("patient\nsub-001\n")


def test_a_folder_without_patients_is_named(tmp_path: Path, feta: Study, lgg: Study) -> None:
    public = lgg.replace(privacy={"mechanism": "none"})
    cases = [
        (tmp_path / "absent", feta, "there is no such folder; give --data"),
        (tmp_path / "empty", feta, "no patients in layout 'feta'; correct the folder or the layout"),
        (tmp_path / "listed", feta, "no patients in layout 'feta'"),
        (tmp_path / "header", feta, "participants.tsv: its first column must be participant_id"),
        (tmp_path / "empty", lgg, "dataset.json is missing; a Decathlon folder has one"),
        (tmp_path / "index", lgg, "dataset.json: 'training' must list image and label"),
        (tmp_path / "json", lgg, "dataset.json: not valid JSON"),
        (tmp_path / "nobody", public, "no patients in layout 'decathlon'"),
    ]
    for name in ("empty", "listed", "header", "index", "json", "nobody"):
        (tmp_path / name).mkdir()
    empty(tmp_path / "listed")
    header(tmp_path / "header")
    (tmp_path / "index/dataset.json").write_text('{"training": [{"image": "a"}]}')
    (tmp_path / "json/dataset.json").write_text("{")
    (tmp_path / "nobody/dataset.json").write_text('{"training": []}')
    for folder, study, words in cases:
        with pytest.raises(ConfigError, match=f"^{re.escape(str(folder))}.*{re.escape(words)}"):
            load_site(folder, study.site_ids[0], study)
        assert check_site(folder, study.site_ids[0], study)[0].severity == "error"


def test_a_site_outside_the_study_is_told(feta: Study, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="site 'nobody' is not in the study; use one of site-a, site-b, site-c"):
        load_site(tmp_path, "nobody", feta)


def test_check_finds_all_bad_cases_and_odd_ones(tmp_path: Path, feta: Study) -> None:
    write_feta(tmp_path, patients=4)
    truncate(tmp_path)
    (tmp_path / "sub-003/anat/sub-003_dseg.nii.gz").unlink()
    path = tmp_path / "sub-004/anat/sub-004_dseg.nii.gz"
    nibabel.save(nibabel.Nifti1Image(np.minimum(nibabel.load(path).get_fdata(), 1), AFFINE), path)
    findings = check_site(tmp_path, SITE, feta)
    assert [finding.severity for finding in findings] == ["error", "error", "warning", "info"]
    assert "sub-004" in findings[2].message
    assert "has no right" in findings[2].message
    assert findings[3].message.startswith("2 patients")


def test_background_stays_zero_where_a_scan_was_centred_before(feta: Study) -> None:
    image, label = brain()
    centred = np.where(image > 0, image - 75, 0).astype(np.float32)
    plain = working_case(Scan("p", "p", image[None], AFFINE, label), SITE, feta)
    case = working_case(Scan("p", "p", centred[None], AFFINE, label), SITE, feta)
    np.testing.assert_allclose(case.image, plain.image, atol=1e-4)
