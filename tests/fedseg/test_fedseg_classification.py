"""Classification: which class a picture is of, from the study file to what a run says of its model."""

import json
import re
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedseg.data.cases import SiteData
from fedseg.data.loading import load_cohort, load_site
from fedseg.data.phantoms.chest import PROFILES, chest_case
from fedseg.errors import CaseError, ConfigError
from fedseg.ledger import Ledger
from fedseg.models import build_model
from fedseg.models.table import NETWORKS
from fedseg.privacy.dpsgd import clipped_gradient
from fedseg.records import Metrics
from fedseg.report import write_report
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.site.figures import Figures
from fedseg.study import parse_study
from fedseg.tasks.table import task_of
from fedseg.train import patient_loss, train_round
from fedseg.update import assign, flatten
from secagg.prg import Stream
from tests.benchmarks.heads import Way, pictures, step
from tests.support.tiny import tiny_classes, tiny_study

CLASSES = 'classes = ["clear", "cloudy"]'
WRONG = {
    "no classes": (CLASSES, "", "[study] classes is missing; add classes: names of the classes"),
    "one class": (CLASSES, 'classes = ["clear"]', "[study] classes lists one: there is nothing to tell apart"),
    "class twice": (CLASSES, 'classes = ["a", "a"]', "[study] classes: two have the same name; give every class"),
    "structures too": ("structures = []", 'structures = ["a"]', "[study] structures goes with another task"),
    "weights": ("class_weights = []", "class_weights = [1.0]", "[study] class_weights lists 1 numbers and classes 2"),
    "volumes": ("dims = 2", "dims = 3", "[data] dims = 3 with [study] task = 'classification'"),
    "task": ('task = "classification"', 'task = "detection"', "[study] task = 'detection': use 'segmentation' or"),
}


@pytest.mark.parametrize("case", WRONG)
def test_a_mistake_is_one_sentence(case):
    pattern, replacement, said = WRONG[case]
    text = tiny_classes().toml()
    assert pattern in text
    with pytest.raises(ConfigError, match=re.escape(f"s: {said}")):
        parse_study(text.replace(pattern, replacement), "s")


def test_a_study_has_either_structures_or_classes():
    with pytest.raises(ConfigError, match="structures is missing; add structures: names of the label values"):
        tiny_study().replace(study={"structures": []})
    with pytest.raises(ConfigError, match="classes goes with another task than 'segmentation'"):
        tiny_study().replace(study={"classes": ["a", "b"]})
    assert tiny_classes().names == ["clear", "cloudy"]
    assert tiny_study().names == tiny_study().structures


def test_a_network_of_the_other_task_is_refused_and_those_that_fit_are_named():
    with pytest.raises(ConfigError, match=r"'unet-small' does segmentation.*use 'cnn-small' or 'resnet18'"):
        build_model(tiny_classes().replace(model={"name": "unet-small"}))
    with pytest.raises(ConfigError, match=r"'resnet18' does classification.*use 'unet-small'"):
        build_model(tiny_study().replace(model={"name": "resnet18", "channels": []}))


@pytest.mark.parametrize(("name", "size"), [("cnn-small", 16), ("resnet18", 32), ("resnet18", 80)])
def test_a_network_gives_a_number_for_each_class_and_mixes_nobody(name, size):
    channels = [4, 4, 8, 8] if name == "resnet18" else []
    study = tiny_classes(size=size).replace(model={"name": name, "channels": channels})
    model = build_model(study).eval()
    pictures = torch.randn(3, 1, size, size, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        together, alone = model(pictures), model(pictures[:1])
    assert together.shape == (3, 2)
    torch.testing.assert_close(together[:1], alone, rtol=1e-4, atol=1e-5)
    kinds = {type(layer) for layer in model.modules()}
    assert torch.nn.GroupNorm in kinds
    assert torch.nn.BatchNorm2d not in kinds
    assert NETWORKS[name].task == "classification"


def test_a_made_picture_is_the_same_by_seed_and_each_class_looks_otherwise():
    first, again = (chest_case(PROFILES["A"], 5, 4, 32) for _ in range(2))
    np.testing.assert_array_equal(first.image, again.image)
    assert first.image.shape == (1, 32, 32, 1)
    labels = [int(chest_case(PROFILES["A"], seed, 4, 16).label) for seed in range(60)]
    assert set(labels) == {0, 1, 2, 3}
    assert 20 <= labels.count(0) <= 40  # half of hospital A's are clear


def test_a_patients_frames_share_one_loss_and_the_weight_of_a_class_is_not_divided_away():
    plain, weighted = (task_of(tiny_classes().replace(study={"class_weights": w})) for w in ([], [1.0, 4.0]))
    outputs, second = torch.tensor([[0.2, 0.1], [1.0, -1.0]]), torch.tensor([1, 1])
    torch.testing.assert_close(weighted.loss(outputs, second), 4 * plain.loss(outputs, second))
    torch.testing.assert_close(weighted.loss(outputs, 0 * second), plain.loss(outputs, 0 * second))
    expected = torch.nn.functional.cross_entropy(outputs, second)
    torch.testing.assert_close(plain.loss(outputs, second), expected)


def test_a_score_is_at_the_patients_own_class():
    task, data = task_of(tiny_classes()), load_site(None, "site-a", tiny_classes())
    case = data.train[0]
    own, other = int(case.label), 1 - int(case.label)
    assert task.score(np.uint8(own), case)[own] == 1
    assert task.score(np.uint8(other), case)[own] == 0
    assert np.isnan(task.score(np.uint8(own), case)[other])
    with pytest.raises(CaseError, match=r"table.csv: has class 2, and the study has 2"):
        task.read(np.asarray(2), None, "table.csv")


def test_it_is_learned_in_a_few_steps(tmp_path):
    study = tiny_classes(steps=15).replace(study={"lr": 0.3}, privacy={"denominator": 8})
    made = load_site(None, "site-a", study).train[0]
    cases = []
    for number in range(8):
        picture = Stream.seeded(number, "picture").uniform(256).reshape(1, 16, 16, 1).astype(np.float32)
        picture[:, :8] += 2 * (number % 2)
        cases.append(replace(made, patient=f"p{number}", image=picture, label=np.asarray(number % 2, np.uint8)))
    data, model, task = SiteData("site-a", tuple(cases), ()), build_model(study), task_of(study)
    ledger = Ledger(tmp_path / "ledger.jsonl")
    update = train_round(model, data, study, site="site-a", training_run="r", round_number=1, ledger=ledger)

    def loss() -> float:
        return float(-np.mean([np.log(task.probabilities(model, case)[int(case.label)]) for case in cases]))

    before = loss()
    assign(model, flatten(model) + update.vector)
    assert loss() < 0.5 * before
    assert all(task.predict(model, case) == case.label for case in cases)


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    study = tiny_classes(mechanism="local", patients=6, seed=7)
    with RunFolder.create(tmp_path_factory.mktemp("runs"), study) as folder:
        return simulate(folder, load_cohort(None, study), Options(plain=True))


def test_a_run_says_how_good_a_classifier_is(run):
    metrics = Metrics.model_validate_json((run / "metrics.json").read_text())
    assert (metrics.dice.measure, metrics.dice.grid) == ("accuracy", None)
    assert set(metrics.classes.measures) == {"accuracy", "balanced accuracy", "AUC", "MCC", "ECE"}
    tested = sum(site.n_test for site in metrics.dice.sites.values())
    assert np.sum(metrics.classes.confusion) == metrics.classes.pictures == tested > 4
    assert metrics.classes.measures["accuracy"].mean == pytest.approx(metrics.dice.mean.mean)
    assert {name: found.n for name, found in metrics.classes.auc.items()} == {"clear": tested, "cloudy": tested}


def test_the_report_has_confusion_curves_and_saliency_of_made_patients_only(run):
    page = write_report(run).read_text(encoding="utf-8")
    assert "Federated classification report" in page
    assert "trained one model to tell two classes apart" in page
    assert "Dice" not in page
    assert "By class: accuracy" in page
    for heading in ("true class", "said cloudy", "ROC: ", "Reliability: ", "What decides"):
        assert heading in page
    with np.load(run / "examples.npz") as arrays:
        meta = json.loads(str(arrays["meta"]))
        assert [one["site"] for one in meta] == ["public phantom"] * 3
        assert all(0 <= arrays[f"decisive_{i}"].min() < arrays[f"decisive_{i}"].max() == 1 for i in range(3))
    assert all(one["words"] in page for one in meta)
    assert not (run / "report-private.html").exists()


def test_a_site_shares_accuracies_of_several_classes_in_an_order_that_names_nobody(tmp_path):
    study = tiny_classes(patients=30)
    data = load_site(None, "site-a", study)
    assert len({int(case.label) for case in data.test}) == 2  # each is undefined at the other's class
    with RunFolder.create(tmp_path, study) as folder:
        figures = Figures(folder, "site-a", data, Ledger(tmp_path / "ledger.jsonl"), None)
        rows = figures.evaluate(build_model(study), 0).rows
    assert len(rows) == len(data.test)
    assert [row[0] is None for row in rows] == sorted(row[0] is None for row in rows)


def test_saliency_is_where_the_answer_comes_from():
    study = tiny_classes()
    made = load_site(None, "site-a", study).train[0]

    class Corner(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = torch.nn.Parameter(torch.ones(()))

        def forward(self, pictures):
            seen = self.scale * pictures[:, 0, :4, :4].mean((1, 2))
            return torch.stack([seen, -seen], 1)

    words, decisive, likely = task_of(study).explained(Corner(), made)
    assert decisive.shape == made.image.shape[1:]
    assert decisive[:4, :4].min() > 0.3 > decisive[6:].max() == decisive[:, 6:].max() == 0
    assert "said to be" in words
    assert 0 < likely < 1


def test_the_closed_form_of_the_last_layers_gradients_is_what_a_site_computes():
    study = tiny_classes(mechanism="clipped").replace(
        training={"trainable": "head"}, study={"class_weights": [1.9, 0.7]}, privacy={"clip_norm": 0.4}
    )
    start, found = pictures(study, None)
    mine = step(start, found["train"], Way("", 1, 1, 0.1, clip=0.4), study, np.random.default_rng(1), 1)

    model = build_model(study)
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    cases = [case for data in load_cohort(None, study).values() for case in data.train]
    losses = (patient_loss(model, [case], study, Stream.seeded(1, "views")) for case in cases)
    theirs = clipped_gradient(trained, losses, 0.4, study.privacy.denominator).numpy()
    weights, biases = theirs[: -len(start)].reshape(len(start), -1), theirs[-len(start) :]
    np.testing.assert_allclose(mine, np.hstack([weights, biases[:, None]]), rtol=1e-4, atol=1e-6)
