"""One patient more or less: up to the noise nothing changes for anybody else, and the clipped sum by one clip norm.

Every property is shown to fail on what fedseg 0.1 and 0.2 did: a split by a shuffle of the site's patients, and one
stream that the patients read in turn.
"""

import json
import re
import shutil
from contextlib import ExitStack
from functools import cache
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from fedseg import train
from fedseg.data.cases import SiteData
from fedseg.data.loading import load_site
from fedseg.ledger import Ledger
from fedseg.mechanisms import local
from fedseg.models import build_model
from fedseg.privacy import dpsgd
from fedseg.study import Study
from secagg.prg import Stream
from tests.support.folders import write_decathlon, write_feta
from tests.support.tiny import tiny_study

SITE, CLIP, PATIENTS, STEPS = "site-a", 0.005, 9, 3
LAYOUTS = ("feta", "bids", "decathlon", "timepoints", "phantom")
LISTED = ("decathlon", "timepoints")
"""Layouts with an index of files; the second has two of each patient."""
pytestmark = pytest.mark.filterwarnings("ignore:.*nobody is in training")


def study_of(layout: str) -> Study:
    """A private study whose patients' gradients are all cut, and of whom a step draws some two thirds."""
    study = tiny_study(rounds=1, steps=STEPS, patients=PATIENTS).replace(
        data={"size": 16, "slices_per_patient": 2, "holdout": 0.3},
        privacy={"clip_norm": CLIP, "sample_rate": 0.7, "denominator": 4},
    )
    if layout == "phantom":
        return study
    channels = {"modality": ["pre", "FLAIR", "post"]} if layout in LISTED else {}
    channels |= {"patient": "(?P<patient>P[0-9]+)_ses-[0-9]+[.]nii"} if layout == "timepoints" else {}
    structures = ["left"] if layout in LISTED else ["left", "right"]
    sites = tuple(site.model_copy(update={"patients": None}) for site in study.sites)
    content = study.model_dump(mode="json") | {"sites": [site.model_dump(mode="json") for site in sites]}
    content["data"] |= {"layout": "decathlon" if layout in LISTED else "feta", **channels}
    content["study"]["structures"] = structures
    return Study.model_validate_json(json.dumps(content))


@pytest.fixture(scope="module")
def hospital(tmp_path_factory):
    """`data(layout, chosen)`: the site as it would be if only these of its nine patients had ever come."""
    root = tmp_path_factory.mktemp("hospital")
    everybody = {
        "feta": write_feta(root / "feta", PATIENTS),
        "bids": write_feta(root / "bids", PATIENTS),
        "decathlon": write_decathlon(root / "decathlon", PATIENTS),
        "timepoints": twice(write_decathlon(root / "timepoints", 2 * PATIENTS)),
    }
    (root / "bids" / "participants.tsv").unlink()

    @cache
    def data(layout: str, chosen: frozenset[int]) -> SiteData:
        study = study_of(layout)
        if layout == "phantom":  # makes its patients one after the other: the last ones are those who may not come
            sites = [site.model_dump() | {"patients": len(chosen) or 1} for site in study.sites]
            return load_site(
                None, SITE, Study.model_validate_json(json.dumps(study.model_dump(mode="json") | {"sites": sites}))
            )
        return load_site(only(layout, everybody[layout], chosen), SITE, study)

    def only(layout: str, folder: Path, chosen: frozenset[int]) -> Path:
        fewer = root / f"{layout}-{'-'.join(map(str, sorted(chosen)))}"
        fewer.mkdir()
        for name in ("imagesTr", "labelsTr", *(f"sub-{number + 1:03}" for number in sorted(chosen, reverse=True))):
            if (folder / name).exists():
                (fewer / name).symlink_to(folder / name)
        if layout == "feta":
            rows = [f"sub-{number + 1:03}\t30" for number in chosen]
            (fewer / "participants.tsv").write_text("\n".join(["participant_id\tweeks", *rows]) + "\n")
        if layout in LISTED:
            index = json.loads((folder / "dataset.json").read_text())
            each = len(index["training"]) // PATIENTS
            listed = [index["training"][each * number + time] for number in chosen for time in range(each)]
            (fewer / "dataset.json").write_text(json.dumps({**index, "training": listed, "numTraining": len(listed)}))
        return fewer

    return data


def twice(folder: Path) -> Path:
    """Two images a patient in place of one: P0_ses-1, P0_ses-2, P1_ses-1, ..."""
    text = (folder / "dataset.json").read_text()
    for number in reversed(range(2 * PATIENTS)):
        name = f"P{number // 2}_ses-{number % 2 + 1}.nii.gz"
        for kind in ("imagesTr", "labelsTr"):
            (folder / kind / f"P{number}.nii.gz").rename(folder / kind / name)
        text = text.replace(f"/P{number}.nii.gz", f"/{name}")
    (folder / "dataset.json").write_text(json.dumps({**json.loads(text), "labels": {"0": "background", "1": "Left"}}))
    return folder


class Trace:
    """What a round of `train_round` does, patient by patient, with the model kept as it is and the noise taken out."""

    def __init__(self, data: SiteData, study: Study, folder: Path) -> None:
        self.roles = {case.patient: "train" for case in data.train} | {case.patient: "test" for case in data.test}
        self.cases = [
            (case.patient, case.name.rpartition("/")[2], case.image.tobytes(), case.label.tobytes(), case.spacing)
            for case in (*data.train, *data.test)
        ]
        self.slices, self.added, self.noise, self.sums, self.told = [], [], [], [], []
        model = build_model(study)
        self._now = ""
        with ExitStack() as stack:
            for module, name, watched in (
                (train, "patient_loss", self._patient_loss),
                (train, "batch_of", self._batch_of),
                (dpsgd, "add_clipped", self._add_clipped),
                (dpsgd, "discrete_gaussian", self._gaussian),
                (local, "noisy_gradient", self._noisy_gradient),
            ):
                stack.enter_context(patch.object(module, name, watched(getattr(module, name))))
            ledger = Ledger(folder / "ledger.jsonl")
            ledger.path.unlink(missing_ok=True)
            train.train_round(
                model, data, study, site=SITE, training_run="run", round_number=1, ledger=ledger,
                on_step=lambda *step: self.told.append(step),
            )  # fmt: skip
            self.charged = [entry.model_copy(update={"charged": ""}) for entry in ledger.entries()]  # no clock

    def _patient_loss(self, real):
        def watched(model, cases, *rest):
            self._now = cases[0].patient
            return real(model, cases, *rest)

        return watched

    def _batch_of(self, real):
        def watched(*arguments):
            images, labels = real(*arguments)
            self.slices.append((self._step, self._now, images.numpy().tobytes(), labels.numpy().tobytes()))
            return images, labels

        return watched

    def _add_clipped(self, real):
        def watched(total, gradient, clip_norm, grid):
            own = torch.zeros_like(total)
            real(own, gradient, clip_norm, grid)
            self.added.append((self._step, self._now, own.numpy().tobytes()))
            real(total, gradient, clip_norm, grid)
            self.sums[-1] = total

        return watched

    def _gaussian(self, real):
        def watched(*arguments):
            self.noise.append(real(*arguments).tobytes())
            return np.zeros(arguments[0], np.int64)

        return watched

    def _noisy_gradient(self, real):
        def watched(parameters, losses, protection, stream, within):
            length = sum(parameter.numel() for parameter in parameters)
            self.sums.append(torch.zeros(length, dtype=torch.float64))
            gradient = real(parameters, losses, protection, stream, within)
            self.told.append(("divisor", protection.denominator, protection.noise_multiplier))
            self.sums[-1] = self.sums[-1] * protection.grid(length).step
            np.testing.assert_allclose(
                gradient.values.numpy() * protection.denominator, self.sums[-1].numpy(), atol=1e-7
            )
            gradient.values.zero_()
            return gradient

        return watched

    @property
    def _step(self) -> int:
        return len(self.sums)

    def without(self, patient: str):
        """Everything that is not this patient's."""
        kept = [[row for row in rows if patient not in row] for rows in (self.cases, self.slices, self.added)]
        roles = {name: role for name, role in self.roles.items() if name != patient}
        return roles, *kept, self.noise, self.told, self.charged

    def apart(self, other: "Trace") -> float:
        """By how many clip norms the clipped sums of any step differ."""
        return max(float((a - b).norm()) / CLIP for a, b in zip(self.sums, other.sums, strict=True))


def shuffled(site, cases, study):
    """The split of fedseg 0.1 and 0.2."""
    patients = sorted({case.patient for case in cases})
    held_out = min(max(round(study.data.holdout * len(patients)), 1), len(patients) - 1) if len(patients) > 1 else 0
    order = Stream.seeded(1, "split", site).permutation(len(patients))
    test = {patients[i] for i in order[:held_out]}
    kept = [case.patient in test for case in cases]
    train, test = ([case for case, t in zip(cases, kept, strict=True) if t is want] for want in (False, True))
    return SiteData(site, tuple(train), tuple(test))


def in_turn():
    """The streams of fedseg 0.1 and 0.2: one a step, which the patients read one after the other."""
    streams = {}
    return lambda patient, key: streams.setdefault(key, Stream(key))


def unlike(model, cases, *_):
    """A loss whose gradient is each patient's own direction: epsilon holds for any patients, alike or not."""
    number = int("".join(filter(str.isdigit, cases[0].patient)))
    return torch.cat([parameter.reshape(-1) for parameter in model.parameters()])[number]


def one_more(layout: str, chosen: set[int], extra: int) -> tuple[frozenset[int], frozenset[int], str]:
    """Who is there without and with one patient more, and that patient's name."""
    if layout == "phantom":
        chosen, extra = set(range(max(len(chosen - {extra}), 1))), max(len(chosen - {extra}), 1)
    name = f"P{extra}" if layout in LISTED else f"sub-{extra + 1:03}"
    return frozenset(chosen - {extra}), frozenset(chosen | {extra}), name


def pairs(layout: str) -> list[tuple[frozenset[int], frozenset[int]]]:
    """Everybody with and without one patient; of made patients the last one of each number of them."""
    everybody = frozenset(range(PATIENTS))
    if layout == "phantom":
        return [(frozenset(range(n)), frozenset(range(n - 1))) for n in range(PATIENTS, 2, -1)]
    some = range(0, PATIENTS, 2) if layout == "timepoints" else range(PATIENTS)
    return [(everybody, everybody - {patient}) for patient in some]


somebody = st.sets(st.integers(0, PATIENTS - 1), min_size=2)


@pytest.mark.parametrize("layout", LAYOUTS)
@settings(max_examples=6, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(chosen=somebody, extra=st.integers(0, PATIENTS - 2))
def test_up_to_the_noise_one_patient_more_changes_nothing_for_the_others(layout, chosen, extra, hospital, tmp_path):
    fewer, more, name = one_more(layout, chosen, extra)
    study = study_of(layout)
    before = Trace(hospital(layout, fewer), study, tmp_path)
    after = Trace(hospital(layout, more), study, tmp_path)
    assert after.without(name) == before.without(name)
    assert after.roles.keys() - before.roles.keys() == {name}
    assert hospital(layout, more).declared == hospital(layout, fewer).declared  # a site may say it to everybody


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_noise_each_patient_moves_the_sum_of_a_step_by_at_most_one_clip_norm(layout, hospital, tmp_path):
    study = study_of(layout)
    trace = cache(lambda chosen: Trace(hospital(layout, chosen), study, tmp_path))
    moved = [trace(more).apart(trace(fewer)) for more, fewer in pairs(layout)]
    assert max(moved) <= 1 + 1e-12
    assert max(moved) > 0.99  # somebody who is drawn is cut to the clip norm


@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_split_of_the_first_versions_fails_both(layout, hospital, tmp_path, monkeypatch):
    monkeypatch.setattr(train, "patient_loss", unlike)
    study = study_of(layout)

    @cache
    def traced(chosen: frozenset[int]) -> Trace:
        data = hospital(layout, chosen)
        return Trace(shuffled(SITE, [*data.train, *data.test], study), study, tmp_path)

    moved, changed = [], 0
    for more, fewer in pairs(layout):
        _, _, name = one_more(layout, set(more), max(more - fewer))
        moved.append(traced(more).apart(traced(fewer)))
        changed += traced(more).without(name) != traced(fewer).without(name)
    assert changed if layout == "phantom" else changed == len(moved)
    assert max(moved) > 1.3


def test_streams_that_patients_read_in_turn_fail_both(hospital, tmp_path):
    layout = "decathlon"
    study, everybody = study_of(layout), frozenset(range(PATIENTS))
    with patch.object(dpsgd, "stream_of", in_turn()), patch.object(train, "stream_of", in_turn()):
        whole = Trace(hospital(layout, everybody), study, tmp_path)
    moved, changed = [], 0
    for patient in range(PATIENTS):
        with patch.object(dpsgd, "stream_of", in_turn()), patch.object(train, "stream_of", in_turn()):
            other = Trace(hospital(layout, everybody - {patient}), study, tmp_path)
        moved.append(whole.apart(other))
        changed += whole.without(f"P{patient}") != other.without(f"P{patient}")
    assert changed
    assert max(moved) > 1.3


def test_a_patient_whose_files_are_damaged_is_as_if_absent(hospital, tmp_path):
    """A site that stayed away would tell everybody that such a patient is there."""
    study, everybody = study_of("feta"), frozenset(range(PATIENTS))
    fewer = hospital("feta", everybody - {0, 1, 2})
    folder = write_feta(tmp_path / "damaged", PATIENTS)
    (folder / "sub-001/anat/sub-001_T2w.nii.gz").write_bytes(b"damaged")
    (folder / "sub-002/anat/sub-002_dseg.nii.gz").unlink()
    shutil.rmtree(folder / "sub-003")
    with pytest.warns(UserWarning, match=r"left out: .*sub-00") as told:
        data = load_site(folder, SITE, study)
    assert [f"sub-00{number}" in str(warning.message) for number, warning in enumerate(told[:3], 1)] == [True] * 3
    assert Trace(data, study, tmp_path).without("") == Trace(fewer, study, tmp_path).without("")


def test_every_test_that_the_threat_model_names_exists():
    text = (Path(__file__).parents[2] / "docs" / "threat-model-fedseg.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`(test_\w+)`", text))
    tests = "".join(path.read_text(encoding="utf-8") for path in Path(__file__).parents[1].glob("*/test_*.py"))
    assert len(named) > 12
    assert named == {name for name in named if f"def {name}(" in tests}


def test_nobody_is_a_site_too(hospital, tmp_path):
    """The last patient of a site may leave: what remains are steps of noise only."""
    for layout in ("feta", *LISTED):
        study, nobody = study_of(layout), Trace(hospital(layout, frozenset()), study_of(layout), tmp_path)
        alone = Trace(hospital(layout, frozenset({3})), study, tmp_path)
        name = "P3" if layout in LISTED else "sub-004"
        assert nobody.without(name) == alone.without(name)
        assert len(nobody.noise) == STEPS
