"""The loaders on the real images of FEDSEG_DATA."""

import os
from pathlib import Path

import numpy as np
import pytest

from fedseg.data.findings import check_site
from fedseg.data.layouts.files import read_image
from fedseg.data.layouts.table import entries
from fedseg.data.loading import load_site
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
        assert case.image.shape[:3] == (3, study.data.size, study.data.size)
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
