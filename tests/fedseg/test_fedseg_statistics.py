"""Statistics of all patients before training: exact or with noise, asked once, charged, the same at every party."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from fedseg.budget.achieved import achieved
from fedseg.budget.charge import spent
from fedseg.budget.explain import explain
from fedseg.budget.plan import planned_entries
from fedseg.data.loading import load_cohort
from fedseg.errors import ConfigError
from fedseg.events import Note
from fedseg.evidence import VIOLATED
from fedseg.ledger import Ledger, NoisyStatistics, released, verify
from fedseg.models import build_model, load_model, metadata_of, save_model
from fedseg.models.standardising import MEAN, SD
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.counted import counted
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.statistics import summary
from fedseg.update import StatisticsUpdate, flatten
from fedseg.verifying import verify_run
from tests.support.tiny import tiny_classes, tiny_study

SECURE = {"data": {"statistics": "secure"}}
EXACT = tiny_classes(rounds=2).replace(**SECURE)
NOISY = tiny_classes(rounds=3, mechanism="local").replace(**SECURE)


class Stop:
    """Interrupts a run at an event."""

    def __init__(self, kind="", number=0):
        self.at, self.notes = (kind, number), []

    def __call__(self, event):
        if isinstance(event, Note):
            self.notes.append(event.text)
        if (event.kind, getattr(event, "round", None)) == self.at:
            self.at = None
            raise KeyboardInterrupt


def train(study, runs, options=None, log=None, cohort=None):
    with RunFolder.create(runs, study, *([log] if log else [])) as folder:
        return simulate(folder, cohort or load_cohort(None, study), options or Options())


def buffers(run, study):
    found = dict(load_model(run / "model.safetensors", study).named_buffers())
    return found[MEAN].tolist(), found[SD].tolist()


def by_hand(study, sites=None):
    """Each patient once: mean and deviation of images, and how many are of each class."""
    means, squares, classes = [], [], []
    for site, data in load_cohort(None, study).items():
        for case in data.train if site in (sites or study.site_ids) else ():
            means.append(case.image.mean(dtype=float))
            squares.append((case.image.astype(float) ** 2).mean())
            classes.append(int(case.label))
    mean = np.mean(means)
    return mean, np.sqrt(np.mean(squares) - mean**2), np.bincount(classes, minlength=2)


def test_an_exact_sum_says_what_all_images_together_would_and_is_the_same_without_masks(tmp_path):
    log = Stop()
    run = train(EXACT, tmp_path / "secure", log=log)
    plain = train(EXACT, tmp_path / "plain", Options(plain=True))
    assert (run / "model.safetensors").read_bytes() == (plain / "model.safetensors").read_bytes()
    mean, sd, classes = by_hand(EXACT)
    assert buffers(run, EXACT) == (pytest.approx([mean], abs=1e-4), pytest.approx([sd], abs=1e-4))
    (told,) = (text for text in log.notes if text.startswith("statistics of"))
    assert told.startswith(
        f"statistics of {sum(classes)} patients in training, exact: clear {classes[0]}, cloudy {classes[1]};"
    )
    ended = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["exact"] for event in ended if event["kind"] == "end_round"] == [True, True]


def test_with_an_epsilon_it_is_noised_charged_first_and_within_the_budget(tmp_path):
    run = train(NOISY, tmp_path, Options(plain=True))
    for site in NOISY.site_ids:
        first, *others = verify(run / "ledger" / f"{site}.jsonl").values()
        assert isinstance(first, NoisyStatistics)
        assert [entry.kind for entry in others] == ["local", "local"]
        planned = planned_entries(NOISY, site, first.training_run)
        assert all(entry.same_use(was) for entry, was in zip(planned, (first, *others), strict=True))
        everything = released([first, *others], unseeded=True)
        alone, training = (epsilon(released(some, unseeded=True), 1e-2) for some in ([first], others))
        assert max(alone, training) < epsilon(everything, 1e-2) <= 8.0
        assert alone == pytest.approx(epsilon(released([first], unseeded=True), 1e-2))
        assert epsilon(released([first], unseeded=True), 0.05 * 1e-2) == pytest.approx(0.05 * 8.0, rel=1e-3)
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["privacy"]["steps"] == 2
    mean, sd = buffers(run, NOISY)
    assert (mean, sd) != buffers(train(NOISY.replace(study={"seed": 8}), tmp_path, Options(plain=True)), NOISY)


def test_it_is_told_where_so_few_patients_drown_in_the_noise():
    said = [note for note in explain(NOISY).notes if "statistics" in note or "scale" in note]
    assert len(said) == 2
    assert "a scale that is mostly noise: use [data] statistics = 'public'" in said[1]


@pytest.mark.parametrize("study", [EXACT, NOISY, tiny_study().replace(**SECURE)], ids=["exact", "noise", "structures"])
def test_one_patient_more_adds_one_bounded_summary_and_nothing_else(study):
    data = load_cohort(None, study)["site-a"]
    asked = study.asked
    cases = {patient: [case for case in data.train if case.patient == patient] for patient in data.patients}
    each = [summary(own, study, asked) for own in cases.values()]
    every = counted(each, asked.length, asked.sensitivity, None).values
    without = counted(each[1:], asked.length, asked.sensitivity, None).values
    np.testing.assert_array_equal(every - without, each[0])
    assert all(one @ one <= asked.sensitivity**2 for one in each)
    assert every[0] == len(each) * asked.scale
    bright = replace(data.train[0], image=np.full_like(data.train[0].image, 1e6))
    extreme = summary([bright], study, asked)
    assert extreme @ extreme <= asked.sensitivity**2
    twice = summary(cases[data.patients[0]] * 5, study, asked)  # many images of one patient count once
    np.testing.assert_array_equal(twice, each[0])


def test_a_summary_that_is_too_long_adds_nothing():
    total = counted([np.array([3, 4]), np.array([0, 6])], 2, 5, None)
    assert total.values.tolist() == [3, 4]


def test_what_claims_an_epsilon_lets_no_statistics_out_without_noise():
    total = counted([np.array([1])], 1, 1, None)
    with pytest.raises(TypeError, match="statistics without noise do not leave"):
        StatisticsUpdate(total, "site-a", "", NOISY.trust, 32)
    with pytest.raises(TypeError, match="from counted and from nowhere else"):
        StatisticsUpdate(np.array([1]), "site-a", "", EXACT.trust, 32)
    with pytest.raises(TypeError, match="neither copied nor pickled"):
        copy.copy(StatisticsUpdate(total, "site-a", "", EXACT.trust, 32))


def test_it_is_asked_once_whatever_is_interrupted(tmp_path):
    whole = train(NOISY, tmp_path / "whole", Options(plain=True))
    log = Stop("round", 2)
    with pytest.raises(KeyboardInterrupt), RunFolder.create(tmp_path / "cut", NOISY, log) as folder:
        simulate(folder, load_cohort(None, NOISY), Options(plain=True))
    run = simulate(RunFolder.reopen(folder.path), load_cohort(None, NOISY), Options(plain=True))
    assert (run / "model.safetensors").read_bytes() == (whole / "model.safetensors").read_bytes()
    for site in NOISY.site_ids:
        assert [entry.kind for entry in verify(run / "ledger" / f"{site}.jsonl").values()] == [
            "statistics",
            "local",
            "local",
        ]


def test_a_site_that_is_missing_is_not_in_the_statistics_and_learns_them(tmp_path):
    study = tiny_classes(rounds=2).replace(**SECURE)
    sites = [{"id": f"site-{c}", "patients": 6} for c in "abcde"]
    study = type(study).model_validate_json(json.dumps({**study.model_dump(mode="json"), "sites": sites}))
    options = Options(plain=True, silent={"site-b": "MaskedInputCollection"}, silent_round=1)
    run = train(study, tmp_path, options)
    mean, sd, _ = by_hand(study, [site for site in study.site_ids if site != "site-b"])
    assert buffers(run, study) == (pytest.approx([mean], abs=1e-4), pytest.approx([sd], abs=1e-4))
    ended = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [len(event["included"]) for event in ended if event["kind"] == "end_round"] == [4, 5]


def test_an_ask_without_a_sum_is_charged_and_the_next_one_too(tmp_path):
    """The noise of the second is another one: both count, and the budget ends the study early."""
    study = NOISY.replace(study={"spare_rounds": 1})
    run = train(study, tmp_path, Options(silent={"site-b": "MaskedInputCollection"}, silent_round=1))
    ledger = Ledger(run / "ledger" / "site-a.jsonl")
    assert [entry.kind for entry in ledger.entries()] == ["statistics", "statistics", "local", "local"]
    assert [entry.round_number for entry in ledger.entries()] == [1, 2, 3, 4]
    assert spent(ledger, study) <= 8.0


def test_what_a_run_has_given_counts_the_asks_that_burned_as_asks(tmp_path):
    """As the ledger has it: two asks and one round of training, in sums that had no site more than the fewest."""
    study = tiny_classes(rounds=2, mechanism="distributed").replace(**SECURE, study={"spare_rounds": 1})
    run = train(study, tmp_path, Options(silent={"site-b": "MaskedInputCollection"}, silent_round=1))
    privacy = json.loads((run / "metrics.json").read_text())["privacy"]
    entries = Ledger(run / "ledger" / "site-a.jsonl").entries()
    assert [entry.kind for entry in entries] == ["statistics", "statistics", "distributed"]
    assert privacy["achieved"]["charged"] == pytest.approx(privacy["epsilon"])
    assert privacy["achieved"]["epsilon"] == pytest.approx(privacy["epsilon"])
    assert not found_wrong(run)
    assert achieved(study, {}, 2, (0, 0)).epsilon == pytest.approx(epsilon([study.asked.released(2)], 1e-2))
    # A site that came late: the round that burned there, and the one whose sum it saw, may have been of training.
    late, whole = achieved(study, {3: 1}, 1, (3, 3)), achieved(study, {3: 1}, 1, (2, 2))
    trained = [study.mechanism.achieved(study.terms, study.terms.local_steps, shares, shares + 1) for shares in (2, 2)]
    assert late.epsilon >= epsilon([event for event in trained if event is not None], 1e-2)
    assert late.epsilon > whole.epsilon
    assert late.charged > whole.charged


def test_a_run_with_statistics_is_verified_and_a_forged_mean_is_found(tmp_path):
    run = train(EXACT, tmp_path, Options(transcripts=True))
    assert not found_wrong(run)
    model = load_model(run / "model.safetensors", EXACT)
    dict(model.named_buffers())[MEAN].add_(0.5)
    save_model(model, run / "model.safetensors", metadata_of(EXACT))
    assert "T-16 mean and deviation in model.safetensors are not those that the sum of statistics says" in found_wrong(
        run
    )


def found_wrong(run):
    return [f"{found.check} {found.sentence}" for found in verify_run([run]).findings if found.state == VIOLATED]


def test_constants_are_what_the_network_sees_and_go_with_it(tmp_path):
    study = tiny_classes().replace(data={"statistics": "public", "mean": [0.4], "sd": [0.2]})
    plain, seen = build_model(tiny_classes()), build_model(study)
    np.testing.assert_array_equal(flatten(plain), flatten(seen))
    images = torch.rand(2, 1, 16, 16)
    torch.testing.assert_close(seen(images), plain((images - 0.4) / 0.2))
    run = train(study, tmp_path, Options(plain=True))
    assert buffers(run, study) == (pytest.approx([0.4]), pytest.approx([0.2]))


def test_the_scale_is_the_studys_and_not_that_of_the_file_it_starts_from_and_another_one_is_found(tmp_path):
    """The file's was of other patients; a network of sites never sees it."""
    other = tiny_classes().replace(data={"statistics": "public", "mean": [0.7], "sd": [0.1]})
    start = tmp_path / "start.safetensors"
    save_model(build_model(other), start, metadata_of(other))
    study = other.replace(data={"mean": [0.4], "sd": [0.2]}, model={"start": str(start)})
    run = train(study, tmp_path, Options(transcripts=True))
    assert buffers(run, study) == (pytest.approx([0.4]), pytest.approx([0.2]))
    assert not found_wrong(run)
    model = load_model(run / "model.safetensors", study)
    dict(model.named_buffers())[MEAN].add_(0.5)
    save_model(model, run / "model.safetensors", metadata_of(study))
    assert "T-16 mean and deviation in model.safetensors are not those that the study says" in found_wrong(run)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        (
            {"data": {"statistics": "public"}},
            "mean lists 0 numbers with statistics = 'public'; give 1, one for each mod",
        ),
        ({"data": {"mean": [0.5]}}, "mean lists 1 numbers with statistics = 'none'; give none"),
        ({**SECURE, "study": {"rounds": 1}}, "the first sum is of statistics; raise rounds"),
        ({**SECURE, "federation": {"participation": 3}}, "all sites are asked"),
        ({**SECURE, "model": {"start": "phantom"}}, "was trained on images as they are"),
        ({**SECURE, "secagg": {"bits": 21}}, r"\[secagg\] bits = 21: the sum of so many patients needs"),
        ({**SECURE, "privacy": {"mechanism": "svt", "released": 0.5}}, "has no room for it"),
    ],
)
def test_what_cannot_be_asked_is_one_sentence(changes, said):
    with pytest.raises(ConfigError, match=said):
        tiny_classes(rounds=2).replace(**changes)
