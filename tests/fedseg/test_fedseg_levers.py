"""What a study trains and how often it looks at a patient: noise, clipping and accounting stay what they promise."""

import numpy as np
import pytest
import torch

from fedseg.budget.plan import plan_of
from fedseg.data.loading import load_cohort
from fedseg.errors import ConfigError
from fedseg.models import build_model, load_model, metadata_of, save_model
from fedseg.models.adapting import Standardised
from fedseg.privacy.dpsgd import Protection, stream_of, summed
from fedseg.start import starting_model
from fedseg.tasks.table import batch_of, task_of
from fedseg.train import between, local_steps, patient_loss
from tests.support.tiny import tiny_study

STUDY = tiny_study(mechanism="none")
KEY = b"k" * 32
LEVERS = [
    {"privacy": {"multiplicity": 4}, "training": {"augmentation": "light"}},
    {"training": {"trainable": "head"}},
    {"training": {"trainable": "norm-bias-head"}},
    {"training": {"trainable": "lora:2"}},
    {"training": {"weight_standardisation": True}},
    {"training": {"mixup": 0.4, "augmentation": "light"}},
    {"training": {"optimizer": "adamw"}},
]


def summed_of(study, model, cohort, patients):
    """The clipped whole steps of these patients, before any noise, as a step adds them up."""
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    grid = Protection(0.1, 1.0, 2).grid(sum(parameter.numel() for parameter in parameters))
    cases = {patient: [case for case in cohort.train if case.patient == patient] for patient in patients}
    losses = (patient_loss(model, cases[patient], study, stream_of(patient, KEY)) for patient in patients)
    return summed(parameters, losses, 0.1, grid).numpy(), grid


@pytest.mark.parametrize("lever", LEVERS, ids=str)
def test_one_patient_more_moves_a_step_by_no_more_than_the_clip_and_nobody_else(lever) -> None:
    """Two data sets that differ in one patient; the difference is that patient's own clipped steps, whole numbers."""
    study = STUDY.replace(**lever)
    cohort = load_cohort(None, study)["site-a"]
    model, patients = build_model(study), sorted({case.patient for case in cohort.train})
    every, grid = summed_of(study, model, cohort, patients)
    without, _ = summed_of(study, model, cohort, patients[1:])
    alone, _ = summed_of(study, model, cohort, patients[:1])
    np.testing.assert_array_equal(every - without, alone)
    assert 0 < alone @ alone <= grid.limit


@pytest.mark.parametrize("lever", LEVERS, ids=str)
def test_no_lever_changes_the_noise_that_is_planned(lever) -> None:
    study = tiny_study()
    assert plan_of(study.replace(**lever)) == plan_of(study)


@pytest.mark.parametrize("trainable", ["head", "norm-bias-head", "lora:2"])
def test_what_is_frozen_is_not_moved_by_noise_either(trainable) -> None:
    study = tiny_study().replace(training={"trainable": trainable})
    model = build_model(study)
    taken = local_steps(model, load_cohort(None, study)["site-a"], study, site="site-a", round_number=1)
    moved = taken.update("site-a", "e", lambda purpose: bytes(32)).vector
    assert np.count_nonzero(moved) > 0.9 * len(moved)  # noise is on each value that is sent, and no other is
    assert len(moved) == sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)


def test_the_head_is_the_layer_that_makes_the_tasks_outputs() -> None:
    model = build_model(STUDY.replace(training={"trainable": "head"}))
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    assert {8} & {side for parameter in trained for side in parameter.shape[:2]}
    assert len(trained) == 2  # its weight and its bias


@pytest.mark.parametrize(("name", "channels"), [("dynunet", [8, 8, 8]), ("segresnet", [])])
def test_with_deep_supervision_every_output_is_a_head(name, channels) -> None:
    """The one at full size is what a prediction is made of; a frozen one would say what it said at the start."""
    levers = {"trainable": "head", "deep_supervision": True}
    network = build_model(STUDY.replace(model={"name": name, "channels": channels}, training=levers))
    trained = {name for name, parameter in network.named_parameters() if parameter.requires_grad}
    assert {name for name, _ in network.named_parameters() if {"head", "heads"} & set(name.split("."))} == trained
    assert len({name.rsplit(".", 1)[0] for name in trained}) == 2


def test_thin_matrices_begin_at_the_start_and_go_with_the_model(tmp_path) -> None:
    """The first answer is the frozen start's; every party builds the same; a model file holds them."""
    low = STUDY.replace(training={"trainable": "lora:2"})
    whole, model = build_model(STUDY).eval(), build_model(low).eval()
    image = torch.rand(1, 1, 32, 32)
    torch.testing.assert_close(model(image), whole(image))
    torch.testing.assert_close(list(build_model(low).parameters()), list(model.parameters()), rtol=0, atol=0)
    with torch.no_grad():
        next(p for p in model.parameters() if p.requires_grad).add_(0.1)
    save_model(model, tmp_path / "m.safetensors", metadata_of(low))
    again = load_model(tmp_path / "m.safetensors", low).eval()
    torch.testing.assert_close(again(image), model(image), rtol=0, atol=0)


def test_a_frozen_start_is_the_file_that_was_given(tmp_path) -> None:
    save_model(build_model(STUDY.replace(study={"seed": 9})), tmp_path / "s.safetensors", metadata_of(STUDY))
    image = torch.rand(1, 1, 32, 32)
    answers = [
        starting_model(
            STUDY.replace(model={"start": str(tmp_path / "s.safetensors")}, training={"trainable": trainable})
        ).eval()(image)
        for trainable in ("all", "head", "lora:3")
    ]
    torch.testing.assert_close(answers[0], answers[1], rtol=0, atol=0)
    torch.testing.assert_close(answers[0], answers[2])


def test_standardised_filters_have_one_mean_and_size_whatever_they_are_trained_to() -> None:
    weight = torch.randn(6, 3, 3, 3) * 7 + 2
    rows = Standardised()(weight).flatten(1)
    torch.testing.assert_close(rows.mean(1), torch.zeros(6), atol=1e-6, rtol=0)
    torch.testing.assert_close(rows.pow(2).sum(1), torch.ones(6), atol=1e-4, rtol=0)
    torch.testing.assert_close(Standardised()(weight * 3 + 1).flatten(1), rows, atol=1e-5, rtol=0)


def test_views_of_a_patient_are_averaged_before_the_patient_is_clipped() -> None:
    study = STUDY.replace(privacy={"multiplicity": 3})
    case = load_cohort(None, study)["site-a"].train[0]
    model = build_model(study)
    together = patient_loss(model, [case], study, stream_of("p", KEY))
    stream = stream_of("p", KEY)
    each = [patient_loss(model, [case], STUDY, stream) for _ in range(3)]
    torch.testing.assert_close(together, torch.stack(each).mean())
    assert len({loss.item() for loss in each}) > 1


def test_what_is_mixed_is_one_patients_and_is_held_against_both() -> None:
    study = STUDY.replace(training={"mixup": 0.4})
    case = load_cohort(None, study)["site-a"].train[0]
    model = build_model(study)
    mixed = patient_loss(model, [case], study, stream_of("p", KEY))
    stream = stream_of("p", KEY)
    views = []
    for _ in range(2):
        stream.integers(1, 1)
        views.append(batch_of(case, study, stream))
    (images, targets), (others, theirs), share = *views, between(0.4, stream)
    outputs, task = model(share * images + (1 - share) * others), task_of(study)
    by_hand = share * task.loss(outputs, targets) + (1 - share) * task.loss(outputs, theirs)
    torch.testing.assert_close(mixed, by_hand)
    assert 0 < share < 1


def test_shares_of_a_mixture_are_betas() -> None:
    stream = stream_of("p", KEY)
    for alpha, variance in ((1.0, 1 / 12), (0.4, 1 / (4 * 1.8)), (1e-9, 1 / 4)):
        shares = np.array([between(alpha, stream) for _ in range(3000)])
        assert abs(shares.mean() - 0.5) < 0.03
        assert abs(shares.var() - variance) < 0.01


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"training": {"trainable": "lora:0"}}, "trainable"),
        ({"training": {"trainable": "body"}}, "trainable"),
        ({"privacy": {"multiplicity": 0}}, "multiplicity"),
        ({"training": {"mixup": 0.4, "batch": 4}}, "what is mixed is one patient's, and a batch is of several"),
    ],
)
def test_what_cannot_be_meant_is_refused(changes, said) -> None:
    with pytest.raises(ConfigError, match=said):
        STUDY.replace(**changes)
