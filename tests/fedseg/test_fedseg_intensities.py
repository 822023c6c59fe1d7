"""Zero is not background, and no label is lost without a word: intensities, field of view and labels of each image."""

import re
from dataclasses import replace
from pathlib import Path

import nibabel
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.data import scans
from fedseg.data.background import Background, background_of
from fedseg.data.cases import Case
from fedseg.data.findings import check_site
from fedseg.data.loading import load_site
from fedseg.data.scans import Scan, working_case
from fedseg.errors import CaseError, ConfigError
from fedseg.study import Study, load_study
from fedseg.tasks.table import task_of
from tests.support.folders import AFFINE, brain, write_feta

STUDY = load_study(Path(__file__).parents[2] / "studies" / "fetal.toml").replace(
    study={"structures": ["left", "right"]}, data={"size": 32}, model={"start": "scratch"}
)
BODY = (slice(6, 34), slice(8, 40), slice(3, 15))
SHAPE = (40, 48, 18)


def of(data: dict[str, object]) -> Study:
    return STUDY.replace(data=data)


def case(image: np.ndarray, label: np.ndarray | None = None, study: Study = STUDY, affine: np.ndarray = AFFINE) -> Case:
    channels = image[None] if image.ndim == 3 else image
    return working_case(Scan("p", "p.nii", channels.astype(np.float32), affine, label, "label.nii"), "site-a", study)


def body(low: int, high: int, seed: int = 0, around: int = 0, noise: int = 0) -> np.ndarray:
    """Whole numbers from `low` to `high` in a block; around it `around`, and up to `noise` more."""
    random = np.random.default_rng(seed)
    image = np.full(SHAPE, around) + random.integers(0, noise + 1, SHAPE)
    image[BODY] = random.integers(low, high + 1, image[BODY].shape)
    return image


IMAGES = {
    "masked": body(50, 200),
    "with noisy air": body(300, 2000, noise=9),
    "CT": body(-150, 400, around=-1000),
    "z-scored": body(-300, 300, around=-400),
    "z-scored in a mask": body(-300, 300),
    "bright outside": body(10, 80, around=255),
    "a crop": np.random.default_rng(3).integers(0, 256, SHAPE),
    "two values": body(1, 1),
    "two values, dark inside": body(0, 0, around=1),
}


@settings(max_examples=25, deadline=None)
@given(
    name=st.sampled_from(sorted(IMAGES)),
    method=st.sampled_from(["percentiles", "z-score"]),
    dims=st.sampled_from([2, 3]),
    scale=st.integers(1, 60),
    finer=st.integers(0, 12),
    shift=st.integers(-9000, 9000),
)
def test_scale_and_offset_of_a_scanner_change_nothing(name, method, dims, scale, finer, shift):
    """Whole numbers and powers of two, so that no voxel is rounded to the other side of a threshold."""
    study = of({"normalisation": [method], "dims": dims, "slices_per_patient": 1})
    label = np.zeros(SHAPE, np.uint8)
    label[BODY] = 1
    first = case(IMAGES[name], label, study)
    second = case((IMAGES[name] * scale + shift) * 2.0**-finer, label, study)
    np.testing.assert_allclose(second.image, first.image, atol=2e-5)
    np.testing.assert_array_equal(second.affine, first.affine)
    np.testing.assert_array_equal(second.label, first.label)
    assert first.image.min() < first.image.max()


@pytest.mark.parametrize("name", [name for name in IMAGES if name != "a crop"])
def test_the_field_of_view_is_the_body_whatever_air_is(name):
    assert case(IMAGES[name]).spacing == pytest.approx((0.8, 0.8, 0.8))  # 32 voxels of the body's longer side
    assert case(IMAGES["a crop"]).spacing == pytest.approx((0.8 * 48 / 32, 0.8 * 48 / 32, 0.8))


def test_water_is_not_air():
    """0 HU between 40 and 1: with zero as background 4,036 voxels of a liver's CT were painted as air."""
    image = np.full(SHAPE, -1024.0)
    image[BODY] = 40
    image[14:26, 16:32, 5:13] = 0
    image[14:26, 16:32, 8:10] = 1
    for study in (STUDY, of({"normalisation": ["ct"], "window": [-160, 240]}), of({"normalisation": ["z-score"]})):
        shown = case(image, study=study).image[0]
        water, nearly = shown[16, 16, 5], shown[16, 16, 8]
        assert abs(water - nearly) < 0.1
        assert study.data.window is None or abs(water - shown[0, 0, 0]) > 0.3


def test_a_mask_of_zero_takes_no_water_for_outside():
    """A CT in which somebody set all but the patient to 0: what is not connected to the sides is the patient's."""
    image = np.zeros(SHAPE)
    image[BODY] = np.random.default_rng(1).integers(20, 200, image[BODY].shape)
    image[7, 9:39, 4:14] = -500  # so that 0 is not the darkest
    image[14:20, 16:24, 5:9] = 0
    ground = background_of(image.astype(np.float32), 2)
    assert ground.outside is not None
    assert not ground.outside[14:20, 16:24, 5:9].any()
    assert ground.outside[0].all()
    assert np.count_nonzero(ground.outside) == np.count_nonzero(image == 0) - 6 * 8 * 4


def test_a_window_in_hounsfield_units_is_the_same_for_every_patient():
    study = of({"normalisation": ["ct"], "window": [-100, 300]})
    thin, thick = (case(body(low, high, around=-1000), study=study).image for low, high in ((0, 100), (-100, 1500)))
    assert (thin.min(), thick.max()) == (0, 1)
    assert thin[0, 8:24, 8:24].min() >= 0.2
    with pytest.raises(
        CaseError, match=r"p\.nii: channel 0 is the same everywhere once it is normalised by 'ct'; is it"
    ):
        case(body(1000, 2000, around=500), study=study)


def test_two_values_stay_two_values():
    for image, inside in ((body(1, 1), 1), (body(0, 0, around=1), 0), (body(-7, -7, around=90), 0)):
        shown = case(image).image[0]
        assert shown[16, 16, 6] == inside
        assert set(np.unique(shown)) == {0, 1}


def test_a_constant_image_is_refused_in_a_sentence():
    with pytest.raises(CaseError, match=r"^p\.nii: channel 0 is the same everywhere; export the image again$"):
        case(np.full(SHAPE, -1000.0))


def test_each_channel_has_its_method():
    study = STUDY.replace(data={"modality": ["CT", "PET"], "normalisation": ["ct", "z-score"], "window": [0, 100]})
    image = np.stack([body(0, 100, around=-1000), body(100, 900)])
    shown = case(image, study=study).image
    assert (shown[0].min(), shown[0].max()) == (0, 1)
    assert shown[1].min() < -1.2
    for wrong, said in (
        ({"normalisation": ["ct", "z-score", "ct"]}, "normalisation lists 3 methods and modality 2 channels; give one"),
        ({"normalisation": ["z-score"]}, r"window goes with normalisation = 'ct' and nothing else; remove window"),
        ({"window": [100, 0]}, r"window = \[100.0, 0.0\]: the lowest Hounsfield unit comes first"),
        ({"window": None}, r"window goes with normalisation = 'ct' and nothing else; add window"),
        ({"normalisation": ["minmax"]}, r"\[data\] normalisation = 'minmax': use 'percentiles', 'z-score' or 'ct'"),
    ):
        with pytest.raises(ConfigError, match=said):
            study.replace(data=wrong)
    with pytest.raises(ConfigError, match=r"normalisation = \['z-score'\] with start = 'phantom': made images"):
        STUDY.replace(data={"normalisation": ["z-score"]}, model={"start": "phantom"})


def test_dark_tissue_at_the_rim_of_a_mask_is_not_cut_off():
    image, label = brain((64, 64, 36))
    image[image > 0] += 900
    image[4:16, 20:40, 9:27] = 30  # 3 % of what is bright
    label[:] = 0
    label[4:16, 20:40, 9:27] = 1
    label[20:30, 20:40, 9:27] = 2
    found = case(image, label)
    assert [(kept.structure, kept.written == kept.seen) for kept in found.kept] == [("left", True), ("right", True)]
    assert all(0.9 < kept.share < 1.1 for kept in found.kept)


def test_what_is_cut_off_is_told(tmp_path):
    """As dark as the noise of the air nothing can be told from it; then the loss is said, with its voxels."""
    write_feta(tmp_path, 2)
    image, label = brain()
    image += np.random.default_rng(1).uniform(0, 2, image.shape).astype(np.float32)
    label[:] = 0
    label[1:5, 12:36, 9:27], label[12:20, 12:36, 9:27] = 1, 2
    for values, ending in ((image, "T2w"), (label, "dseg")):
        nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / f"sub-001/anat/sub-001_{ending}.nii.gz")
    said = "1728 of 1728 voxels of left are as dark as background and cut off"
    warned = [finding.message for finding in check_site(tmp_path, "site-a", STUDY) if finding.severity == "warning"]
    assert [message.partition(": ")[2] for message in warned] == [said]
    told = r"\[site-a\] 1 label maps lose or change structures on the working grid; of .*sub-001_T2w.nii.gz " + said
    with pytest.warns(UserWarning, match=told):
        load_site(tmp_path, "site-a", STUDY)


def test_a_small_lesion_is_kept_and_what_becomes_of_it_is_told(tmp_path):
    image, label = brain((256, 256, 6))
    label[:] = 0
    label[126:131, 122:127, 3] = 1
    study = STUDY.replace(study={"structures": ["lesion"]})
    found = case(image, label, study)
    (kept,) = found.kept
    assert found.label is not None
    assert (kept.written, kept.seen, kept.working, np.count_nonzero(found.label)) == (25, 25, 1, 1)
    place = np.argwhere(found.label)[0]
    middle = found.affine[:3, :3] @ place + found.affine[:3, 3]
    np.testing.assert_allclose(middle[:2], 0.8 * np.array([128, 124]), atol=1.7)
    assert np.argwhere(label)[0][2] * 0.8 == pytest.approx(middle[2])
    fine = case(image, label, study.replace(data={"size": 128}))
    assert 0.6 < fine.kept[0].share < 1.5
    write_feta(tmp_path, 1)
    for values, ending in ((image, "T2w"), (label, "dseg")):
        nibabel.save(nibabel.Nifti1Image(values, AFFINE), tmp_path / f"sub-001/anat/sub-001_{ending}.nii.gz")
    sizes = " ".join(finding.message for finding in check_site(tmp_path, "site-a", study.replace(data={"size": 16})))
    assert re.search(r"lesion has 25 voxels in the file and 1 on the working grid, 256 % of its volume; raise", sizes)
    assert "empty" not in sizes


def test_an_empty_label_map_is_called_empty_and_a_missing_structure_missing():
    image, label = brain()
    task = task_of(STUDY)
    assert task.odd(case(image, np.zeros_like(label))) == ["the label map is empty; is that so?"]
    assert task.odd(case(image, np.minimum(label, 1))) == ["has no right"]
    assert task.odd(case(image, label)) == []
    assert task.odd(replace(case(image, label), label=None)) == ["has no label map"]


def test_zero_taken_for_background_fails_the_property(monkeypatch):
    """What version 0.5 did, held to the same test."""
    monkeypatch.setattr(scans, "background_of", lambda values, axis: Background(0.0, values == 0))
    with pytest.raises(AssertionError):
        test_scale_and_offset_of_a_scanner_change_nothing.hypothesis.inner_test(
            "masked", "percentiles", 2, scale=3, finer=0, shift=100
        )
