"""The loaders on the real images of FEDSEG_DATA."""

import os
from pathlib import Path

import numpy as np
import pytest

from fedseg.data.background import background_of
from fedseg.data.findings import check_site
from fedseg.data.intensity import normalised
from fedseg.data.layouts.files import read_image
from fedseg.data.layouts.table import entries
from fedseg.data.loading import load_site
from fedseg.data.scans import Scan, working_case
from fedseg.study import load_study

ROOT = Path(__file__).parents[2]
DATA = Path(os.environ.get("FEDSEG_DATA", ROOT.parent / "shared" / "data"))


def folder_of(name: str) -> Path:
    if not (DATA / name).is_dir():
        pytest.skip(f"real images are not in {DATA / name}; set FEDSEG_DATA")
    return DATA / name


@pytest.mark.realdata
@pytest.mark.parametrize(("site", "patients", "held"), [("site-CS", 13, 3), ("site-EZ", 1, 0), ("site-FG", 10, 2)])
def test_lgg_sites_load_by_patient(site: str, patients: int, held: int) -> None:
    study = load_study(ROOT / "studies" / "lgg.toml")
    folder = folder_of("lgg") / site
    data = load_site(folder, site, study)
    assert len({case.patient for case in (*data.train, *data.test)}) == patients
    assert len(data.test) == held
    for case in data.train:
        assert case.image.shape[:3] == (3, *study.data.sides)
        assert case.label is not None
        assert 0 < np.count_nonzero(case.label) < 0.3 * case.label.size
    assert {finding.severity for finding in check_site(folder, site, study)} <= {"info", "warning"}


@pytest.mark.realdata
def test_fetal_brain_keeps_its_volume_on_the_working_grid() -> None:
    study = load_study(ROOT / "studies" / "fetal.toml")
    folder = folder_of("fetal") / "site-c"
    entry = entries(folder, "site-c", study)[0]
    image = read_image([Path(entry.name)], study)
    case = entry.load("site-c", study)
    assert case.label is not None
    assert set(np.unique(case.label)) == set(range(8))
    before = np.count_nonzero(image.values) * abs(np.linalg.det(image.affine[:3, :3]))
    after = np.count_nonzero(case.label) * np.prod(case.spacing)
    assert after == pytest.approx(before, rel=0.1)


@pytest.mark.realdata
def test_a_z_scored_brain_has_the_view_and_the_intensities_of_the_same_with_background_zero() -> None:
    """BRATS as it is shipped: its background is -3.6, and in version 0.5 nothing of it was cut off."""
    study = load_study(ROOT / "studies" / "fetal.toml")
    path = folder_of("brats") / "BraTS-2013-00001" / "BraTS-2013-00001-t2f.nii.gz"
    image = read_image([path], study)
    shipped, shifted = (
        working_case(Scan("p", "p", values, image.affine), "site-a", study)
        for values in (image.values, image.values - image.values.min())
    )
    np.testing.assert_allclose(shipped.affine, shifted.affine)
    np.testing.assert_allclose(shipped.image, shifted.image, atol=1e-3)
    assert max(shipped.spacing) < max(np.abs(np.diag(image.affine)[:3])) * max(image.values.shape[1:]) / study.data.cube
    assert np.count_nonzero(shipped.image) < 0.6 * shipped.image.size


@pytest.mark.realdata
def test_water_in_a_real_ct_is_what_the_window_says_and_air_is_nothing() -> None:
    """4,036 voxels of this volume are exactly 0 HU; in version 0.5 they were painted as air."""
    study = load_study(ROOT / "studies" / "fetal.toml").replace(
        study={"structures": ["liver"]},
        model={"start": "scratch"},
        data={"layout": "decathlon", "modality": ["CT"], "normalisation": ["ct"], "window": [-160, 240]},
    )
    (entry,) = entries(folder_of("liver"), "site-a", study)
    image = read_image([Path(entry.name)], study).values
    ground = background_of(image[0], 2)
    assert ground.level == pytest.approx(-1000, abs=30)
    water, air = (normalised(image, [ground], study.data, "ct")[image == value] for value in (0, image.min()))
    assert np.count_nonzero(image == 0) > 4000
    np.testing.assert_allclose(water, 160 / 400, atol=1e-6)
    assert not air.any()
    (kept,) = entry.load("site-a", study).kept
    assert kept.written == kept.seen > 10_000
    assert 0.9 < kept.share < 1.1
