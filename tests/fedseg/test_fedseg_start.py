"""Where a study starts: same weights everywhere, shipped or kept, better than scratch at hospitals never seen."""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fedseg import pretraining, start
from fedseg.augment import augmented
from fedseg.data.cases import Case, split
from fedseg.data.phantoms import hippocampus, tumour
from fedseg.data.phantoms.fetal_scan import FETAL, NEAR_TERM, PhantomCase
from fedseg.data.phantoms.hippocampus import HIPPOCAMPUS, hippocampus_case
from fedseg.data.phantoms.hippocampus import PROFILES as LOBES
from fedseg.data.phantoms.phantom import Phantom
from fedseg.data.phantoms.temporal_lobe import TEMPORAL_LOBE
from fedseg.data.phantoms.tumour import PROFILES, TUMOUR, lesion_case
from fedseg.errors import ConfigError
from fedseg.evaluation import evaluate, overall_mean
from fedseg.models import build_model
from fedseg.pretraining import recipe_hash
from fedseg.start import public_phantom, starting_model
from fedseg.study import Study, load_study
from fedseg.update import flatten

STUDIES = Path(__file__).parents[2] / "studies"
TINY = {"data": {"size": 32}, "model": {"start": "phantom", "channels": (8, 8, 8)}}


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(start, "_unkept", {})
    monkeypatch.setattr(pretraining, "STEPS", {2: 4, 3: 1})
    monkeypatch.setattr(pretraining, "POOL", {2: 4, 3: 1})


@pytest.fixture
def fetal() -> Study:
    return load_study(STUDIES / "fetal.toml").replace(**TINY)


@pytest.fixture
def glioma() -> Study:
    return load_study(STUDIES / "lgg.toml").replace(**TINY)


def made(phantom: Phantom[Any], study: Study, site: str, patients: int, cohort: int) -> list[Case]:
    seeds = phantom.site_seeds(site, patients, cohort)
    return [phantom.site_case(site, f"sub-{number:03d}", seed, study) for number, seed in enumerate(seeds, 1)]


def cached(tmp_path: Path) -> list[Path]:
    return sorted((tmp_path / "cache" / "fedseg").iterdir())


def test_every_process_starts_from_the_same_weights(
    fetal: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = flatten(starting_model(fetal))
    torch.manual_seed(1)  # the state of the process is of no matter
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    assert np.array_equal(first, flatten(starting_model(fetal)))
    assert not np.array_equal(first, flatten(build_model(fetal)))


def test_what_a_recipe_does_not_name_changes_no_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A study weighs classes by its own patients; two studies of one recipe would each have kept another start."""
    study = load_study(STUDIES / "pneumonia-private.toml")
    plain = study.replace(study={"class_weights": []}, training={"trainable": "all"})
    assert recipe_hash(study) == recipe_hash(plain)
    monkeypatch.setattr(start, "checksums", dict)  # none is shipped
    first = flatten(starting_model(study))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "another cache"))
    assert np.array_equal(first, flatten(starting_model(plain)))


def test_pretraining_is_done_once(fetal: Study, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    first = starting_model(fetal, lambda *step: seen.append(step))
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    other = fetal.replace(study={"name": "other", "seed": 7, "rounds": 1}, privacy={"epsilon": 1.0})
    second = starting_model(other, lambda *step: pytest.fail("trained again"))
    assert np.array_equal(flatten(first), flatten(second))
    assert len(cached(tmp_path)) == 1


def test_another_network_or_grid_or_recipe_is_another_start(
    fetal: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    starting_model(fetal)
    starting_model(fetal.replace(model={"channels": (8, 8)}))
    starting_model(fetal.replace(data={"size": 48}))
    monkeypatch.setattr(pretraining, "VERSION", 0)
    starting_model(fetal)
    assert len(cached(tmp_path)) == 4


def test_a_damaged_cache_is_made_again(fetal: Study, tmp_path: Path) -> None:
    whole = flatten(starting_model(fetal))
    (path,) = cached(tmp_path)
    path.write_bytes(path.read_bytes()[:-100])
    assert np.array_equal(whole, flatten(starting_model(fetal)))
    assert np.array_equal(whole, flatten(starting_model(fetal, lambda *step: pytest.fail("trained again"))))


def test_without_a_cache_it_only_takes_longer(fetal: Study, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = flatten(starting_model(fetal))
    occupied = tmp_path / "file"
    occupied.touch()
    monkeypatch.setenv("XDG_CACHE_HOME", str(occupied))
    assert np.array_equal(whole, flatten(starting_model(fetal)))


@pytest.mark.parametrize("data", [{"modality": ("T1w",)}, {"modality": ("T2w", "T1w")}])
def test_no_phantom_for_other_images(fetal: Study, data: dict[str, object]) -> None:
    other = fetal.replace(data=data)
    with pytest.raises(ConfigError, match=r"\[model\] start = 'phantom'.*seven structures.*'scratch'"):
        starting_model(other)
    assert public_phantom(other).test == ()


def test_no_phantom_for_other_structures(fetal: Study, glioma: Study) -> None:
    for other in (
        fetal.replace(study={"structures": ("ventricles",)}),
        glioma.replace(study={"structures": ("core", "oedema")}),
        glioma.replace(data={"dims": 3, "slices_per_patient": 1}),
        glioma.replace(data={"modality": ("FLAIR", "pre-contrast", "post-contrast")}),
    ):
        with pytest.raises(ConfigError, match="phantom"):
            starting_model(other)
        assert public_phantom(other).test == ()


def test_a_file_or_nothing(glioma: Study, tmp_path: Path) -> None:
    starting_model(glioma)
    (path,) = cached(tmp_path)
    given = starting_model(glioma.replace(model={"start": str(path)}))
    assert np.array_equal(flatten(given), flatten(starting_model(glioma)))
    scratch = starting_model(glioma.replace(model={"start": "scratch"}))
    assert np.array_equal(flatten(scratch), flatten(build_model(glioma)))
    with pytest.raises(ConfigError, match=r"nowhere\.safetensors"):
        starting_model(glioma.replace(model={"start": "nowhere.safetensors"}))


def test_public_cases_fit_the_study_and_were_not_trained_on(fetal: Study, glioma: Study) -> None:
    for study in (fetal, glioma):
        shown = public_phantom(study)
        assert shown.train == ()
        assert len(shown.test) == start.SHOWN
        assert {case.site for case in shown.test} == {"public phantom"}
        assert all(case.image.shape[:3] == (study.in_channels, 32, 32) for case in shown.test)
    volumes = public_phantom(fetal.replace(data={"dims": 3, "slices_per_patient": 1}))
    assert volumes.test[0].image.shape == (1, 32, 32, 32)


def test_public_cases_were_not_trained_on(fetal: Study, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: list[Case] = []
    train = pretraining._trained

    def spy(study: Study, cases: Sequence[Case], progress: pretraining.Progress | None) -> torch.nn.Module:
        trained.extend(cases)
        return train(study, cases, progress)

    monkeypatch.setattr(pretraining, "_trained", spy)
    starting_model(fetal)
    assert len(trained) == 4
    assert not {case.patient for case in trained} & {case.patient for case in public_phantom(fetal).test}


def test_phantom_hospitals_see_patients_that_the_start_has_not_seen() -> None:
    study = load_study(STUDIES / "phantom.toml").replace(**TINY)
    weeks = [case.weeks for case in public_phantom(study).test if isinstance(case, PhantomCase)]
    assert len(weeks) == start.SHOWN
    assert min(weeks) >= NEAR_TERM[0]
    hospital = made(FETAL, study, study.site_ids[0], 16, 1)
    assert min(case.weeks for case in hospital if isinstance(case, PhantomCase)) < NEAR_TERM[0] - 5


def test_volumes_can_be_pretrained_too(fetal: Study) -> None:
    volume = fetal.replace(data={"dims": 3, "slices_per_patient": 1, "size": 16})
    assert not np.array_equal(flatten(starting_model(volume)), flatten(build_model(volume)))


@pytest.mark.parametrize(("which", "gain"), [("fetal", 0.08), ("glioma", 0.15)])
def test_it_transfers_to_hospitals_never_seen(
    which: str, gain: float, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch
) -> None:
    study: Study = request.getfixturevalue(which)
    monkeypatch.setattr(pretraining, "STEPS", {2: 80})
    monkeypatch.setattr(pretraining, "POOL", {2: 24})
    phantom = FETAL if which == "fetal" else TUMOUR
    halves = study.replace(data={"holdout": 0.5})
    hospitals = {site: split(site, made(phantom, halves, site, 6, 5), halves) for site in study.site_ids[:2]}
    before, after = (
        overall_mean(evaluate(starting_model(study.replace(model={"start": kind})), hospitals, study).pooled())
        for kind in ("scratch", "phantom")
    )
    assert before is not None
    assert after is not None
    assert after > before + gain


def test_views_move_image_and_label_together() -> None:
    generator = torch.Generator().manual_seed(1)
    labels = torch.zeros(8, 32, 32, dtype=torch.int64)
    labels[:, 4:12, 6:26] = 1
    labels[:, 20:26, 16:28] = 2
    image, label = augmented((labels[:, None] + 1.0) * 0.4, labels, 2, generator)
    inside = label > 0
    bright = image[:, 0] > image[:, 0].flatten(1).quantile(1 - inside.flatten(1).float().mean(1).max(), dim=1).max()
    assert (bright & inside).sum() / bright.sum() > 0.9
    assert not torch.equal(label, labels)
    assert set(label.unique().tolist()) == {0, 1, 2}
    left = torch.zeros(40, 32, 32, dtype=torch.int64)
    left[:, :16] = 1
    _, turned = augmented(torch.ones(40, 1, 32, 32), left, 1, generator)
    mirrored = turned[:, 24:].float().mean((1, 2)) > turned[:, :8].float().mean((1, 2))
    assert 5 < mirrored.sum() < 35
    dark, _ = augmented(torch.zeros(2, 1, 16, 16), labels[:2, :16, :16], 2, generator)
    assert not dark.any()


def test_lesions_are_lesions() -> None:
    case = lesion_case(PROFILES["A"], 5, 64)
    again = lesion_case(PROFILES["A"], 5, 64)
    assert np.array_equal(case.image, again.image)
    assert not np.array_equal(case.image, lesion_case(PROFILES["B"], 5, 64).image)
    assert case.label is not None
    assert case.image.shape == (3, 64, 64, tumour.SLICES)
    cases = [lesion_case(PROFILES["pretrain"], seed, 64) for seed in range(12)]
    assert sum(bool(one.label is not None and one.label.any()) for one in cases) >= 10
    for one in cases:
        assert one.label is not None
        assert set(np.unique(one.label)) <= {0, 1}
        assert np.isfinite(one.image).all()
        assert one.label.mean() < 0.25
    brighter = [
        one.image[1][one.label == 1].mean() > np.median(one.image[1][one.image[1] > 0.2])
        for one in cases
        if one.label is not None and one.label.sum() > 40
    ]
    assert np.mean(brighter) > 0.8


@pytest.mark.parametrize("dims", [2, 3])
def test_a_hippocampus_lies_dark_in_white_matter_its_anterior_part_in_front(dims: int) -> None:
    for seed in range(6):
        case = hippocampus_case(LOBES["pretrain"], seed, 48, dims)
        again = hippocampus_case(LOBES["pretrain"], seed, 48, dims)
        assert case.label is not None
        assert np.array_equal(case.image, again.image)
        assert case.image.shape[1:] == case.label.shape == (48, 48, 48 if dims == 3 else hippocampus.SLICES)
        anterior, posterior = (np.argwhere(case.label == value) for value in (1, 2))
        assert min(len(anterior), len(posterior)) > 100
        assert anterior[:, 1].mean() > posterior[:, 1].mean()
        inside = case.image[0][case.image[0] > 0]
        assert case.image[0][case.label > 0].mean() < np.percentile(inside, 70)
    assert not np.array_equal(case.image, hippocampus_case(LOBES["A"], seed, 48, dims).image)


def test_a_made_temporal_lobe_keeps_its_millimetres_on_every_grid() -> None:
    study = load_study(STUDIES / "hippocampus-private.toml")
    volumes = []
    for size, spacing in (([24, 32, 24], 1.6), ([40, 56, 40], 1.0)):
        on = study.replace(data={"size": size, "spacing": [spacing]})
        case = TEMPORAL_LOBE.make(TEMPORAL_LOBE.public(on), 1, on)
        assert case.label is not None
        assert case.label.shape == tuple(size)
        assert case.spacing == (spacing,) * 3
        volumes.append(np.count_nonzero(case.label) * spacing**3)
    assert volumes[0] == pytest.approx(volumes[1], rel=0.05)
    recipes = [recipe_hash(study.replace(data={"spacing": [spacing]})) for spacing in (1.6, 1.5)]
    assert len(set(recipes)) == 2


# --- The starts that come with the package ------------------------------------------------------------------------


@pytest.fixture
def shipped(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()  # the true recipe
    monkeypatch.setattr(start, "pretrained", lambda *_: pytest.fail("trained though it is shipped"))


STARTS = [
    path
    for path in (*sorted(STUDIES.glob("*.toml")), STUDIES.parent / "fedseg" / "demo.toml")
    if load_study(path).model.start == "phantom"
]


@pytest.mark.parametrize("path", STARTS, ids=lambda path: path.stem)
@pytest.mark.usefixtures("shipped")
def test_a_study_of_this_repository_begins_with_what_was_shipped(path: Path) -> None:
    study = load_study(path)
    model = starting_model(study)
    other = study.replace(study={"name": "other", "seed": 7, "rounds": 1}, privacy={"epsilon": 1.0})
    assert np.array_equal(flatten(model), flatten(starting_model(other)))
    shown = {"": public_phantom(study)}
    scores = (overall_mean(evaluate(one, shown, study).pooled()) for one in (model, build_model(study)))
    good, fresh = (score or 0.0 for score in scores)
    assert good > fresh + 0.3
    assert (start.SHIPPED / f"{recipe_hash(study)}.safetensors").stat().st_size < 600_000


def test_every_shipped_start_is_some_studys(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.undo()
    wanted = {f"{recipe_hash(load_study(path))}.safetensors" for path in STARTS}
    assert set(start.checksums()) == wanted == {path.name for path in start.SHIPPED.glob("*.safetensors")}


@pytest.mark.usefixtures("shipped")
def test_a_shipped_start_that_was_changed_is_refused(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    study = load_study(STUDIES / "lgg.toml")
    shutil.copytree(start.SHIPPED, tmp_path / "starts")
    monkeypatch.setattr(start, "SHIPPED", tmp_path / "starts")
    path = tmp_path / "starts" / f"{recipe_hash(study)}.safetensors"
    whole = bytearray(path.read_bytes())
    whole[-1] ^= 1
    path.write_bytes(whole)
    with pytest.raises(ConfigError, match=r"is not the start that came with fedseg.*install fedseg again$"):
        starting_model(study)
    path.unlink()
    with pytest.raises(ConfigError, match="cannot be read"):
        starting_model(study)


@pytest.mark.parametrize(
    ("phantom", "version", "mean", "spread", "labelled"),
    [
        (FETAL, 1, 0.154013, 0.238945, 0.96948),
        (TUMOUR, 1, 0.219843, 0.275102, 0.04033),
        (HIPPOCAMPUS, 1, 0.427879, 0.365548, 0.041956),
        (TEMPORAL_LOBE, 2, 0.394933, 0.261075, 0.042372),
    ],
    ids=["fetal", "tumour", "hippocampus", "temporal lobe"],
)
def test_a_generator_that_makes_other_patients_has_another_version(
    phantom: Phantom[Any], version: int, mean: float, spread: float, labelled: float
) -> None:
    """The recipe names a version and no code: whoever changes what a seed gives raises it, and writes these anew."""
    names = {"lesion": "lgg", "hippocampus": "hippocampus", "temporal lobe": "hippocampus-private"}
    study = load_study(STUDIES / f"{names.get(phantom.name, 'fetal')}.toml")
    case = phantom.make(phantom.public(study), 1, study)
    assert case.label is not None
    assert phantom.version == version
    assert (case.image.mean(), case.image.std()) == pytest.approx((mean, spread), abs=2e-6)
    assert case.label.mean() == pytest.approx(labelled, abs=2e-3)  # a voxel may go either way elsewhere


def test_a_recipe_that_gives_other_weights_has_another_version(fetal: Study) -> None:
    """As above, for the pretraining: four steps, whose weights other processors may round a little otherwise."""
    weights = flatten(starting_model(fetal)).astype(np.float64)
    assert pretraining.VERSION == 1
    assert (np.abs(weights).sum(), weights.sum()) == pytest.approx((254.375, 25.524), rel=1e-4)
