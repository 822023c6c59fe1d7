"""A new task is a class and a line of a table: one that classifies patients trains, is scored and averaged."""

from pathlib import Path

import numpy as np
import pytest
import torch

from fedseg.averaging import mean_of
from fedseg.data.cases import Case, SiteData
from fedseg.data.layouts.layout import Declared
from fedseg.data.layouts.table import LAYOUTS
from fedseg.data.loading import load_site
from fedseg.data.scans import Scan, working_case
from fedseg.errors import CaseError
from fedseg.evaluation import assess, evaluate, measure_tables, overall_mean, structure_means
from fedseg.ledger import Ledger
from fedseg.metrics import Measure
from fedseg.models import build_model
from fedseg.models.network import Network
from fedseg.models.table import NETWORKS
from fedseg.study import Study
from fedseg.tasks import table
from fedseg.tasks.segmentation import Segmentation
from fedseg.train import train_round
from fedseg.update import assign, flatten
from secagg.prg import Stream
from tests.support.tiny import tiny_study


class Sides:
    """Classification: on which side of a patient's image it is bright."""

    names, measure, outputs = ("left", "right"), "accuracy", 2
    measures = (Measure("accuracy"),)

    def __init__(self, study: Study) -> None:
        pass

    def read(self, label, grid, name):
        if label not in (0, 1):
            raise CaseError(name, "is neither left nor right")
        return np.asarray(label, np.uint8)

    def kept(self, label, working, grid):
        return ()

    def lost(self, case):
        return []

    def odd(self, case):
        return []

    def targets(self, case, view):
        return torch.full((len(view(case.image)),), int(case.label), dtype=torch.int64)

    def loss(self, outputs, targets):
        return torch.nn.functional.cross_entropy(outputs, targets)

    def predict(self, model, case):
        model.eval()
        with torch.inference_mode():
            slices = torch.from_numpy(np.moveaxis(case.image, case.slice_axis + 1, 0).copy())
            return np.asarray(model(slices).mean(0).argmax(), np.uint8)

    def score(self, prediction, case):
        return np.array([float(prediction == side) if case.label == side else np.nan for side in (0, 1)])

    def measured(self, model, case):
        prediction = self.predict(model, case)
        return prediction, self.score(prediction, case)[None]


def linear(study: Study, outputs: int, widths: tuple[int, ...]) -> torch.nn.Module:
    return torch.nn.Sequential(
        torch.nn.AdaptiveAvgPool2d(4), torch.nn.Flatten(), torch.nn.Linear(16 * study.in_channels, outputs)
    )


@pytest.fixture
def study(monkeypatch: pytest.MonkeyPatch) -> Study:
    monkeypatch.setitem(table.TASKS, "sides", Sides)
    monkeypatch.setitem(NETWORKS, "linear", Network(linear, (), task="sides"))
    made = tiny_study(rounds=1, steps=6, mechanism="none")
    section = made.study.model_copy(update={"task": "sides", "lr": 0.2})
    return made.model_copy(update={"study": section, "model": made.model.model_copy(update={"name": "linear"})})


def scan(patient: str, side: int) -> Scan:
    image = Stream.seeded(1, patient).uniform(40 * 40 * 6).reshape(1, 40, 40, 6).astype(np.float32) + 0.2
    image[:, 20:] *= 3 if side else 1
    image[:, :20] *= 1 if side else 3
    return Scan(patient, patient, image, np.diag([1.0, 1.0, 5.0, 1.0]), np.array(side), "table.csv")


class Listed:
    """A layout whose labels are one value a patient."""

    needs_folder, index = True, ""

    def declared(self, folder: Path, study: Study) -> Declared:
        return Declared()

    def remarks(self, folder: Path, study: Study) -> tuple[str, ...]:
        return ()

    def entries(self, folder: Path, site: str, study: Study):
        for number in range(20):
            yield Patient(f"p{number:02}", number % 2)


class Patient:
    def __init__(self, name: str, side: int) -> None:
        self.patient = self.subject = self.case = self.name = name
        self.side, self.images, self.remarks = side, (), ()

    def load(self, site: str, study: Study) -> Case:
        return working_case(scan(self.patient, self.side), site, study)


def test_a_task_of_ones_own_trains_and_is_scored_and_averaged(study, tmp_path, monkeypatch):
    monkeypatch.setitem(LAYOUTS, "phantom", Listed())
    study = study.model_copy(update={"data": study.data.model_copy(update={"holdout": 0.4})})
    cohort: dict[str, SiteData] = {site: load_site(tmp_path, site, study) for site in study.site_ids}
    model = build_model(study)
    assign(model, np.zeros_like(flatten(model)))  # says left of everybody
    before = evaluate(model, cohort, study)
    updates = [
        train_round(
            model, data, study, site=site, training_run="r", round_number=1, ledger=Ledger(tmp_path / f"{site}.jsonl")
        )
        for site, data in cohort.items()
    ]
    total = sum(update.vector.astype(np.float64) for update in updates)
    assign(model, flatten(model) + mean_of(total, study.site_ids, study.policy(len(total))).astype(np.float32))
    after = assess(model, cohort, study)
    np.testing.assert_array_equal(after.pooled(), evaluate(model, cohort, study).pooled())
    assert measure_tables(after, study) == {}
    assert [values.shape[1] for values in after.values.values()] == [2, 2, 2]
    assert sum(len(patients) for patients in after.patients.values()) == len(after.pooled()) > 10
    assert overall_mean(before.pooled()) < 0.7
    assert overall_mean(after.pooled()) > 0.95
    assert set(structure_means(after.pooled(), study)) == {"left", "right"}


def test_a_label_that_the_task_does_not_know_names_where_it_is_from(study):
    wrong = scan("p", 1)
    with pytest.raises(CaseError, match=r"^table\.csv: is neither left nor right"):
        working_case(Scan(wrong.patient, wrong.name, wrong.image, wrong.affine, np.array(2), "table.csv"), "a", study)


def test_the_table_has_a_task_for_every_name_in_a_study_file():
    schema = Study.model_json_schema()["$defs"]["StudySection"]["properties"]["task"]
    assert set(table.TASKS) == set(schema.get("enum", [schema.get("const")]))
    layouts = Study.model_json_schema()["$defs"]["DataSection"]["properties"]["layout"]
    assert set(LAYOUTS) == set(layouts["enum"])


def test_segmentation_has_an_output_for_background_and_a_score_for_each_structure():
    task = Segmentation(tiny_study())
    assert (task.outputs, len(task.names), task.measure) == (8, 7, "Dice")
