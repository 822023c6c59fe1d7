import itertools
import json

import numpy as np
import pytest
import torch

from fedseg import train
from fedseg.budget.plan import noise_multiplier
from fedseg.data.cases import Case, SiteData
from fedseg.errors import BudgetExceededError, ConfigError, LedgerError, UnsupportedModelError
from fedseg.ledger import Ledger
from fedseg.mechanisms import local
from fedseg.models import build_model
from fedseg.privacy import dpsgd
from fedseg.study import parse_study
from fedseg.train import train_round
from fedseg.update import NoisedUpdate, flatten
from secagg.prg import Stream

STUDY = """
[study]
name = "small"
structures = ["disc"]
rounds = 3
local_steps = 2
lr = 0.5
seed = 7
[data]
layout = "decathlon"
modality = ["T2w"]
dims = 2
size = 16
slices_per_patient = 2
[model]
name = "unet-small"
channels = [4, 8]
[privacy]
mechanism = "local"
epsilon = 8.0
delta = 1e-3
sample_rate = 1.0
clip_norm = 0.05
denominator = 4
[secagg]
clip_range = 0.5
[[sites]]
id = "a"
[[sites]]
id = "b"
[[sites]]
id = "c"
"""


@pytest.fixture
def study():
    return parse_study(STUDY, "study.toml")


@pytest.fixture
def model(study):
    return build_model(study)


def case(patient, name="", slices=4):
    """Bright discs on noise, whose label is the disc."""
    stream = Stream.seeded(0, "case", patient, name)
    rows, columns = np.mgrid[:16, :16]
    inside = (rows - 8) ** 2 + (columns - 6 - len(patient)) ** 2 < 16
    label = np.repeat(inside[..., None], slices, axis=2).astype(np.uint8)
    noise = stream.uniform(label.size).reshape(label.shape).astype(np.float32)
    return Case("a", patient, name or patient, (label + 0.3 * noise)[None], label, np.eye(4), (1.0, 1.0, 5.0), 2, 2)


def site_data(patients=4, site="a"):
    return SiteData(site, tuple(case(f"p{index}") for index in range(patients)), ())


@pytest.fixture
def one_round(model, tmp_path):
    """Train one round; every call has a fresh ledger unless one is given."""
    numbers = itertools.count()

    def run(study, data=None, site="a", round_number=1, ledger=None, on_step=None):
        ledger = ledger or Ledger(tmp_path / f"{next(numbers)}.jsonl")
        data = data or site_data()
        return train_round(
            model, data, study, site=site, training_run="run", round_number=round_number, ledger=ledger, on_step=on_step
        )

    return run


@pytest.fixture
def no_signal(monkeypatch):
    """Patients whose gradient is zero: what is left of an update is noise."""
    monkeypatch.setattr(train, "patient_loss", lambda model, *_: sum((value * 0).sum() for value in model.parameters()))


def test_an_update_is_the_difference_and_the_model_stays(one_round, study, model):
    start, steps = flatten(model), []
    update = one_round(study, on_step=lambda step, of: steps.append((step, of)))
    assert isinstance(update, NoisedUpdate)
    assert update.vector.shape == start.shape
    assert update.vector.dtype == np.float32
    assert 0 < np.abs(update.vector).max() < 1
    assert np.array_equal(flatten(model), start)
    assert steps == [(1, 2), (2, 2)]


def test_the_charge_is_on_disk_before_the_first_gradient(one_round, study, tmp_path, monkeypatch):
    ledger, seen = Ledger(tmp_path / "a.jsonl"), []
    loss = train.patient_loss

    def watched(*arguments):
        seen.append(len(ledger.entries()))
        return loss(*arguments)

    monkeypatch.setattr(train, "patient_loss", watched)
    update = one_round(study, ledger=ledger)
    assert set(seen) == {1}
    assert update.event_id == json.loads(ledger.path.read_text())["event_id"]


def test_nothing_trains_when_it_cannot_be_charged(one_round, study, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "patient_loss", lambda *_: pytest.fail("trained"))
    ledger = Ledger(tmp_path / "folder" / "a.jsonl")
    (tmp_path / "folder").write_text("a file in its place")
    with pytest.raises(LedgerError, match="cannot be"):
        one_round(study, ledger=ledger)


def test_the_round_after_the_last_affordable_one_does_not_train(one_round, study, tmp_path, monkeypatch):
    ledger = Ledger(tmp_path / "a.jsonl")
    for number in (1, 2, 3):
        one_round(study, round_number=number, ledger=ledger)
    monkeypatch.setattr(train, "patient_loss", lambda *_: pytest.fail("trained"))
    with pytest.raises(BudgetExceededError, match="round 4"):
        one_round(study, round_number=4, ledger=ledger)
    assert len(ledger.entries()) == 3


def test_a_seeded_round_is_reproducible_and_an_unseeded_one_is_not(one_round, study):
    assert np.array_equal(one_round(study).vector, one_round(study).vector)
    unseeded = study.replace(study={"seed": None})
    assert not np.array_equal(one_round(unseeded).vector, one_round(unseeded).vector)


def test_noise_is_never_used_twice(one_round, study, tmp_path, no_signal, monkeypatch):
    drawn = []
    gaussian = dpsgd.discrete_gaussian

    def kept(*arguments):
        drawn.append(gaussian(*arguments))
        return drawn[-1]

    monkeypatch.setattr(dpsgd, "discrete_gaussian", kept)
    for site, number in itertools.product("abc", (1, 2)):
        one_round(study, site=site, round_number=number, data=site_data(site=site))
    assert len(drawn) == 12  # three sites, two rounds, two steps
    similarity = np.corrcoef(drawn) - np.eye(12)
    assert np.abs(similarity).max() < 5 / np.sqrt(len(drawn[0]))


def test_a_patient_more_or_less_leaves_the_noise_as_it_is(one_round, study, no_signal):
    assert np.array_equal(one_round(study, site_data(4)).vector, one_round(study, site_data(3)).vector)


def test_the_noise_of_a_step_is_the_planned_one(one_round, study, no_signal):
    once = study.replace(study={"local_steps": 1})
    vector = np.concatenate([one_round(once, round_number=number).vector for number in range(1, 21)])
    expected = once.study.lr * noise_multiplier(once) * 0.05 / 4
    assert vector.std() == pytest.approx(expected, rel=4.5 / np.sqrt(2 * len(vector)))


def test_nobody_drawn_is_a_noise_only_step(one_round, study, monkeypatch):
    monkeypatch.setattr(train, "patient_loss", lambda *_: pytest.fail("somebody was drawn"))
    monkeypatch.setattr(local, "noise_multiplier_for", lambda *_: 5.0)
    rare = study.replace(privacy={"sample_rate": 0.01, "delta": 1e-6})
    assert one_round(rare).vector.all()
    assert np.array_equal(one_round(rare).vector, one_round(rare, SiteData("a", (), ())).vector)


def test_every_planned_step_is_made_whatever_the_loss(one_round, study, no_signal):
    """A site that stopped where its own patients are learned would tell of them, which no epsilon covers."""
    steps = []
    one_round(study.replace(study={"local_steps": 4}), on_step=lambda step, of: steps.append((step, of)))
    assert steps == [(1, 4), (2, 4), (3, 4), (4, 4)]


def test_a_wild_patient_moves_the_update_no_further_than_the_clip(one_round, study, monkeypatch):
    once = study.replace(study={"local_steps": 1})
    before = one_round(once, site_data(3)).vector.astype(np.float64)
    loss = train.patient_loss

    def wild(model, cases, *rest):
        return loss(model, cases, *rest) * (1e12 if cases[0].patient == "p3" else 1)

    monkeypatch.setattr(train, "patient_loss", wild)
    moved = one_round(once, site_data(4)).vector - before
    assert np.linalg.norm(moved) <= once.study.lr * 0.05 / 4 * (1 + 1e-3)
    assert np.linalg.norm(moved) > 0.9 * once.study.lr * 0.05 / 4


def test_a_patient_with_many_cases_is_one_patient(one_round, study, monkeypatch):
    data = SiteData("a", (*site_data(1).train, *(case("p0", f"scan-{index}") for index in range(20))), ())
    lengths = []
    add_clipped = dpsgd.add_clipped

    def measured(total, gradient, clip_norm, grid):
        before = total.clone()
        add_clipped(total, gradient, clip_norm, grid)
        lengths.append(float((total - before).norm()) * grid.step)

    monkeypatch.setattr(dpsgd, "add_clipped", measured)
    drawn = set()
    batch_of = train.batch_of
    monkeypatch.setattr(train, "batch_of", lambda case, *rest: (drawn.add(case.name), batch_of(case, *rest))[1])
    one_round(study.replace(study={"local_steps": 20}), data)
    assert len(lengths) == 20  # one contribution a step
    assert max(lengths) <= 0.05 * (1 + 1e-6)
    assert len(drawn) > 5  # a case drawn anew


def test_without_privacy_the_update_says_so_and_learns(one_round, study, model, tmp_path):
    open_study = study.replace(privacy={"mechanism": "none"}, study={"local_steps": 60, "lr": 0.1})
    ledger = Ledger(tmp_path / "a.jsonl")
    update = one_round(open_study, ledger=ledger)
    assert update.event_id == ""
    assert [entry.kind for entry in ledger.entries()] == ["none"]

    def loss():
        cases = site_data().train
        return sum(train.patient_loss(model, [one], study, Stream.seeded(1, "check")).item() for one in cases)

    before = loss()
    train.assign(model, flatten(model) + update.vector)
    assert loss() < 0.5 * before


def test_divergence_is_a_sentence(one_round, study, model):
    start = flatten(model)
    with pytest.raises(ConfigError, match=r"lr = 1e\+30: training diverged"):
        one_round(study.replace(privacy={"mechanism": "none"}, study={"lr": 1e30, "local_steps": 3}))
    assert np.array_equal(flatten(model), start)


def test_a_model_that_mixes_patients_is_refused_and_not_charged(study, tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl")
    mixing = torch.nn.Sequential(torch.nn.Conv2d(1, 2, 1), torch.nn.BatchNorm2d(2))
    with pytest.raises(UnsupportedModelError, match="BatchNorm2d"):
        train_round(mixing, site_data(), study, site="a", training_run="run", round_number=1, ledger=ledger)
    assert ledger.entries() == ()


def test_untrained_tensors_stay_where_they_are(one_round, study, model):
    first = next(model.parameters())
    first.requires_grad_(False)
    update = one_round(study).vector
    assert update.size == flatten(model).size - first.numel()
    assert update.any()
