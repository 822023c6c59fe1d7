"""The phantom: reproducible, complete, growing and folding with age, and as noisy as it says it is."""

import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest

from fedseg.data.cases import held_out
from fedseg.data.loading import load_site
from fedseg.data.phantoms.fetal_brain import OLDEST, YOUNGEST, draw, surfaces
from fedseg.data.phantoms.fetal_scan import COVERING, FETAL, PROFILES, SLICES, phantom_case, scan, tissue_signal
from fedseg.data.phantoms.phantom import HOSPITALS, rician
from fedseg.data.phantoms.table import phantom_of
from fedseg.errors import ConfigError
from fedseg.study import load_study
from secagg.prg import Stream
from tests.support.folders import write_phantoms

DATA = Path(os.environ.get("FEDSEG_DATA", Path(__file__).parents[3] / "shared" / "data")) / "fetal"
STUDIES = Path(__file__).parents[2] / "studies"
AGES = (21.0, 24.0, 28.0, 32.0, 36.0)
A = PROFILES["A"]


@pytest.fixture(scope="module")
def study():
    return load_study(STUDIES / "phantom.toml")


@pytest.fixture(scope="module")
def by_age():
    return {weeks: phantom_case(A, 3, weeks, size=64) for weeks in AGES}


@pytest.mark.parametrize("dims", [2, 3])
def test_same_seed_same_case_and_another_seed_another_patient(dims):
    one, again, other = (phantom_case(A, seed, size=32, dims=dims) for seed in (5, 5, 6))
    assert np.array_equal(one.image, again.image)
    assert np.array_equal(one.label, again.label)
    assert one.weeks == again.weeks != other.weeks
    assert not np.array_equal(one.label, other.label)


def test_patients_of_one_age_are_individuals():
    first, second = (phantom_case(A, seed, 30.0, size=48).label for seed in (1, 2))
    both = np.count_nonzero((first == second) & (first > 0))
    assert both < 0.9 * np.count_nonzero(first), "two patients of one age are the same"
    assert both > 0.4 * np.count_nonzero(first), "two patients of one age have nothing in common"


def test_case_has_the_form_of_a_real_one():
    case = phantom_case(A, 1, 27.0, size=48)
    assert case.image.shape == (1, 48, 48, 48)
    assert case.image.dtype == np.float32
    assert case.label.shape == (48, 48, 48)
    assert case.label.dtype == np.uint8
    assert np.isfinite(case.image).all()
    assert np.allclose(np.linalg.norm(case.affine[:3, :3], axis=0), case.spacing)
    assert np.allclose(case.affine @ [23.5, 23.5, 23.5, 1], [0, 0, 0, 1], atol=1e-4)
    assert (case.axes, case.slice_axis) == (3, 2)


def test_two_dimensional_case_is_a_few_axial_slices():
    case = phantom_case(A, 1, 27.0, size=64, dims=2)
    assert case.label.shape == (64, 64, SLICES)
    assert case.spacing[2] > 3 * case.spacing[0]
    assert set(np.unique(case.label)) == set(range(8))
    assert (case.label > 0).any(axis=(0, 1)).all()


@pytest.mark.parametrize("weeks", AGES)
def test_all_labels_inside_the_field_of_view(by_age, weeks):
    label = by_age[weeks].label
    assert set(np.unique(label)) == set(range(8))
    for axis in range(3):
        assert not np.take(label, [0, -1], axis).any(), "the head leaves the field of view"


@pytest.mark.parametrize("name", PROFILES)
def test_every_head_fits_the_field_of_view(name):
    for seed in range(25):
        label = phantom_case(PROFILES[name], seed, size=24).label
        assert not any(np.take(label, [0, -1], axis).any() for axis in range(3)), f"seed {seed}"


def test_slices_are_slices_of_the_volume():
    """A 2D patient is cut through the same head: the same surfaces at the same millimetres."""
    stack = phantom_case(A, 8, 30.0, size=32, dims=2)
    stream = Stream.seeded(8, "phantom", "A")
    stream.uniform(2)
    anatomy = draw(stream, 30.0)
    x, y, z, k = 14, 9, 2, stack.affine
    point = (k @ [x, y, z, 1])[:3].astype(np.float32)
    distances = surfaces(point[:, None], anatomy)
    covering = [value for value, distance in zip(COVERING, distances, strict=True) if distance[0] > 0]
    assert stack.label[x, y, z] == (covering[-1] if distances.intracranial[0] > 0 else 0) != 0


def test_brain_grows_with_age_as_brains_do(by_age):
    litres = [np.count_nonzero(case.label) * np.prod(case.spacing) / 1e6 for case in by_age.values()]
    assert all(after > 1.1 * before for before, after in pairwise(litres))
    assert 0.04 < litres[0] < 0.09
    assert 0.25 < litres[-1] < 0.45


def test_cortex_folds_with_age(by_age):
    """Surface of the white matter over the surface of a ball of its volume."""
    folding = []
    for case in by_age.values():
        inner = np.isin(case.label, (3, 4, 6))
        faces = sum(np.count_nonzero(np.diff(inner.astype(np.int8), axis=axis)) for axis in range(3))
        folding.append(faces / np.count_nonzero(inner) ** (2 / 3))
    assert folding[-1] > 1.4 * folding[0]
    assert all(after > before for before, after in pairwise(folding))


def test_folds_of_the_two_sides_are_alike_but_not_mirrored():
    axis = np.linspace(-50, 50, 50, dtype=np.float32)
    points = np.stack(np.meshgrid(axis, axis, axis, indexing="ij")).reshape(3, -1)
    straight = replace(
        draw(Stream.seeded(2, "anatomy"), 34.0), turn=np.eye(3, dtype=np.float32), shift=np.zeros(3, np.float32)
    )
    mirrored = {}
    for factor in (0, 1):
        found = surfaces(points, replace(straight, fold_asymmetry=factor * straight.fold_asymmetry))
        cortex = ((found.cortex > 0) & (found.white_matter < 0)).reshape(50, 50, 50)
        mirrored[factor] = np.count_nonzero(cortex & cortex[::-1]) / np.count_nonzero(cortex)
    assert mirrored[1] < mirrored[0] - 0.04
    assert 0 < np.abs(straight.fold_asymmetry).max() < 1.5


def test_deep_grey_brainstem_and_cerebellum_lie_where_they_belong(by_age):
    label = by_age[28.0].label
    centre = {value: np.argwhere(label == value).mean(axis=0) for value in range(1, 8)}
    assert centre[5][2] < centre[7][2] < centre[6][2]  # cerebellum below brainstem below deep grey
    assert centre[5][1] < centre[7][1] < centre[6][1]  # and behind it
    assert np.ptp([centre[value][0] for value in (4, 5, 6, 7)]) < 4  # all on the midline


def test_contrast_is_that_of_a_t2_weighted_image():
    for weeks in AGES:
        for profile in PROFILES.values():
            _, csf, grey, white, ventricle, _, deep, stem = tissue_signal(profile, weeks)
            assert max(grey, deep, stem) < white == 1 < csf < ventricle


def test_noise_is_rician():
    stream, sigma = Stream.seeded(1, "test"), 0.2
    background = rician(np.zeros(200_000, np.float32), sigma, stream)
    assert background.mean() == pytest.approx(sigma * np.sqrt(np.pi / 2), rel=0.01)
    assert background.std() == pytest.approx(sigma * np.sqrt(2 - np.pi / 2), rel=0.01)
    bright = rician(np.full(200_000, 4.0, np.float32), sigma, stream)
    assert bright.mean() == pytest.approx(4.0 + sigma**2 / 8, rel=0.001)
    assert bright.std() == pytest.approx(sigma, rel=0.02)
    assert np.corrcoef(bright[:-1], bright[1:])[0, 1] == pytest.approx(0, abs=0.01)


def test_sites_differ_in_noise_contrast_and_sharpness():
    grid = [np.linspace(-20, 20, 40, dtype=np.float32)] * 3
    anatomy = draw(Stream.seeded(1, "anatomy"), 33.0)
    noise, fluid, sharpness = {}, {}, {}
    for name, profile in PROFILES.items():
        even = replace(profile, bias=0.0)
        noisy, label = scan(even, anatomy, grid, Stream.seeded(1, "scan"))
        clean, _ = scan(replace(even, snr=1e6), anatomy, grid, Stream.seeded(1, "scan"))
        noise[name] = (noisy - clean)[label == 3].std()
        fluid[name] = np.median(clean[label == 4])
        sharpness[name] = np.percentile(np.abs(np.diff(clean, axis=0)), 99) / fluid[name]
    for name, profile in PROFILES.items():
        assert noise[name] == pytest.approx(1 / profile.snr, rel=0.05)
    assert noise["D"] > 2 * noise["B"]
    assert sharpness["B"] > 1.2 * sharpness["D"]
    assert np.diff(sorted(fluid.values())).min() > 0.01
    assert "pretrain" not in HOSPITALS


def test_receive_field_is_uneven_by_the_profile():
    grid = [np.linspace(-25, 25, 24, dtype=np.float32)] * 3
    anatomy = draw(Stream.seeded(1, "anatomy"), 30.0)
    quiet = replace(A, snr=1e6)
    flat, _ = scan(replace(quiet, bias=0.0), anatomy, grid, Stream.seeded(2, "scan"))
    tilted, _ = scan(replace(quiet, bias=0.4), anatomy, grid, Stream.seeded(2, "scan"))
    ratio = tilted[flat > 0] / flat[flat > 0]
    assert 1.05 < ratio.std() / ratio.mean() + 1 < 1.6


def test_nothing_beyond_the_mask():
    case = phantom_case(A, 2, 29.0, size=48)
    assert case.image[0, 0, 0, 0] == 0
    assert 0.2 < np.count_nonzero(case.image) / case.image.size < 0.7
    assert np.count_nonzero(case.image[0][case.label > 0]) > 0.97 * np.count_nonzero(case.label)


def test_a_large_grid_has_the_scanners_voxels():
    assert phantom_case(PROFILES["D"], 1, 21.0, size=64).spacing[0] == pytest.approx(1.2)
    assert phantom_case(PROFILES["B"], 1, 36.0, size=64).spacing[0] > 1.2


def test_a_site_has_its_hospitals_patients(study):
    fewer = study.replace(data={"holdout": 0.5})
    data = load_site(None, "site-e", fewer)
    cases = (*data.train, *data.test)
    assert len({case.patient for case in cases}) == 48
    assert {case.site for case in cases} == {"site-e"}
    assert len(data.test) == sum(held_out("site-e", case.patient, 0.5) for case in cases)
    first = FETAL.site_seeds("site-e", 48, 1)[0]
    made = phantom_case(PROFILES[HOSPITALS[4]], first, size=study.data.cube, dims=2)
    assert made.image.shape == (1, *study.data.sides, SLICES)
    (same,) = (case for case in cases if case.patient == "sub-001")
    assert np.array_equal(made.image, same.image)
    assert not set(FETAL.site_seeds("site-e", 9, 1)) & set(FETAL.site_seeds("site-a", 9, 1))


def test_bad_input_is_one_sentence(study):
    with pytest.raises(ConfigError, match="gestational_age = 40"):
        phantom_case(A, 1, 40.0)
    with pytest.raises(ConfigError, match="gestational_age = nan"):
        phantom_case(A, 1, float("nan"))
    with pytest.raises(ConfigError, match="dims = 4"):
        phantom_case(A, 1, dims=4)
    for other in (
        study.replace(study={"structures": ["brain", "skull"]}),
        study.replace(data={"modality": ["T2w", "T1w"]}),
    ):
        with pytest.raises(ConfigError, match=r"^\[data\] layout.*seven structures.*this study has"):
            phantom_of(other, "[data] layout = 'phantom'", "change those")


def test_written_cohort_is_read_back_as_feta(tmp_path):
    cases = [phantom_case(A, seed, size=32) for seed in (1, 2)]
    write_phantoms(tmp_path / "site-a", cases)
    data = load_site(tmp_path / "site-a", "site-a", load_study(STUDIES / "fetal.toml"))
    assert [case.patient for case in (*data.train, *data.test)] == ["sub-001", "sub-002"]


@pytest.mark.realdata
@pytest.mark.parametrize(("site", "patient", "weeks"), [("a", 3, 23), ("b", 4, 28), ("c", 4, 33)])
def test_resembles_the_atlas_of_its_age(site, patient, weeks):
    anat = DATA / f"site-{site}" / f"sub-{patient:03d}" / "anat"
    if not anat.is_dir():
        pytest.skip(f"no atlas at {anat}; set FEDSEG_DATA")
    t2w, label = (nib.load(anat / f"sub-{patient:03d}_rec-mial_{kind}.nii.gz") for kind in ("T2w", "dseg"))
    truth = np.asarray(label.dataobj)
    case = phantom_case(A, 1, float(weeks), size=64)
    volume = np.count_nonzero(truth) * np.prod(label.header.get_zooms())
    made = np.count_nonzero(case.label) * np.prod(case.spacing)
    assert 0.6 < made / volume < 1.5
    raw = scan(
        replace(A, bias=0.0), draw(Stream.seeded(1, "x"), weeks), [np.arange(-50, 51, 1.3, np.float32)] * 3, Stream()
    )
    for value in range(1, 8):
        atlas = t2w.get_fdata()[truth == value].mean() / t2w.get_fdata()[truth == 3].mean()
        phantom = raw[0][raw[1] == value].mean() / raw[0][raw[1] == 3].mean()
        assert phantom == pytest.approx(atlas, rel=0.2), f"label {value}"


def test_ages_cover_the_second_half_of_pregnancy():
    assert (YOUNGEST, OLDEST) == (21.0, 36.0)
    drawn = [phantom_case(PROFILES["E"], seed, size=16, dims=2).weeks for seed in range(40)]
    assert min(drawn) < 24 < 30 < max(drawn) <= PROFILES["E"].weeks[1]
