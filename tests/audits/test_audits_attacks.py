"""Attacks on updates and sums, tiny: each succeeds where the protection is out, so that its failure means something."""

from pathlib import Path

import numpy as np
import pytest
from typer.testing import CliRunner

from audits.__main__ import app
from audits.attacks import common, identification, imprint, inversion, membership, real, reruns
from audits.base import Task, Unable
from fedseg.study import load_study
from tests.support.folders import write_decathlon

STUDIES = Path(__file__).parents[2] / "studies"


@pytest.fixture
def task(tmp_path):
    return Task("quick", 1, tmp_path, lambda line: None)


def percent(words: str) -> float:
    """Of "3 of 4 = 75.0 % (...)"."""
    return float(words.split(" = ")[1].split(" %")[0])


@pytest.mark.slow
def test_a_patient_is_named_from_an_update_and_not_from_a_sum(task):
    found = identification.attacked(task, candidates=8, size=16, before=5)
    assert percent(found.figures["identified, unprotected"]) == 100
    assert percent(found.figures["identified, from the secure sum"]) < 90
    assert "trusted" in found.figures["protection at epsilon 8"]
    assert all(picture.is_file() for picture in found.pictures)


def test_a_candidate_is_told_from_the_others_in_a_sum_by_nothing_but_its_place():
    known = np.random.default_rng(1).normal(size=(16, 40)).astype(np.float32)
    inside = [0, 2, 3, 5, 7, 11, 13, 15]
    assert identification.in_sum(known[inside].sum(0, dtype=np.float64), known) == inside


def test_an_imprint_reads_images_off_a_sum_and_every_real_site_refuses_it(task):
    found = imprint.attacked(task, size=16, bins=128, each=1)
    assert percent(found.figures["recovered from the sum, PSNR above 25 dB"]) > 60
    assert [row["check"] for row in found.rows] == [
        "allow-list of networks",
        "length of the study's network",
        "C-23",
        "the start of the study, recomputed (T-16)",
        "the next model, recomputed (T-16)",
    ]
    assert found.verdict == "holds"
    assert "joined" not in {row["the site says"] for row in found.rows}


@pytest.mark.slow
def test_a_check_that_does_nothing_is_a_violation(task, monkeypatch):
    monkeypatch.setattr(imprint, "refusals", lambda folder: (imprint.Refusal("tries", "C-23", "joined", "joined"),))
    assert imprint.attacked(task, size=16, bins=128, each=1).verdict == "violated"


def test_every_way_to_a_second_sum_is_refused_and_gives_a_site_away_where_its_check_is_out(task):
    found = reruns.attacked(task, reruns.CASES)
    assert found.verdict == "holds"
    assert [row["check"] for row in found.rows] == ["C-05", "C-05", "C-20, C-24", "C-04", "C-23", "ledger"]
    for row in found.rows[:-1]:
        assert row["check"].split(",")[0] in row["a real site says"]
    assert "older than the ledger" in found.rows[-1]["a real site says"]
    assert all("one site's update" in row["with the check taken out"] for row in found.rows)


def test_a_way_to_a_second_sum_that_is_not_refused_is_a_violation(task):
    open_door = reruns.CASES[0]._replace(play=lambda federation: reruns.Played("", federation.quantised("site-01")))
    assert reruns.attacked(task, [open_door]).verdict == "violated"
    harmless = reruns.CASES[0]._replace(play=lambda federation: reruns.Played("[C-05] no"))
    assert reruns.attacked(task, [harmless]).verdict == "no power"
    by_another = reruns.CASES[0]._replace(play=lambda federation: reruns.Played("[C-03] no"))
    assert reruns.attacked(task, [by_another]).verdict == "violated"


def test_luck_is_no_violation_and_what_no_luck_explains_is_one():
    assert not common.above(7, 64, 0.03)  # a chance of 1 in 300
    assert common.above(16, 64, 0.03)
    assert common.above(64, 64, 0.31)


def test_a_picture_is_made_from_one_gradient_and_not_from_noise(task):
    found = inversion.attacked(task, targets=1, private=1, epsilon=8.0, iterations=40, candidates=8, size=16)
    assert found.figures["unprotected: median PSNR in dB"] > 12
    assert found.figures["local DP, epsilon 8: median PSNR in dB"] < 10
    assert "made fetal brains" in found.figures["images"]
    assert found.verdict == "no power"  # of one patient, recognised or not, no bound can be passed


def test_who_lowers_a_models_loss_is_detected_and_who_does_not_is_not():
    random = np.random.default_rng(1)
    inside = random.random((4, 200)) < 0.5
    dealt = np.stack([row for half in inside for row in (half, ~half)])
    noise = random.normal(size=dealt.shape)
    by_heart, blind = (membership.lira(np.exp(0.2 * noise - drop * dealt), dealt) for drop in (2, 0))
    assert by_heart.detected > 0.9 * len(by_heart.members)
    assert blind.detected < 0.1 * len(blind.members)


@pytest.mark.slow
def test_an_attack_without_a_control_that_succeeds_has_no_power(task):
    found = membership.attacked(task, models=4, pool=16, steps=1, rounds=1)
    assert found.verdict == "no power"
    assert all(picture.is_file() for picture in found.pictures)


def test_real_images_are_slices_of_different_patients_on_one_grid(task, tmp_path):
    folder = write_decathlon(tmp_path / "here", patients=12)
    images = real.images_in(folder, load_study(STUDIES / "lgg-plain.toml"))
    study = images.adapted(common.study_of(sites=3, size=16, layout=images.layout))
    found = images.patients(study, 8, 0)
    assert len({case.patient for case in found}) == 8
    assert {case.image.shape for case in found} == {(3, 16, 16, 1)}
    with pytest.raises(Unable, match="has 12 patients"):
        images.patients(study, 13, 0)
    listed = membership.attacked(task, models=4, pool=8, steps=1, rounds=1, size=16, images=images)
    assert listed.figures["images"].startswith("real patients: here")


def test_a_study_of_volumes_is_no_study_of_slices(tmp_path):
    text = (STUDIES / "hippocampus-plain.toml").read_text().replace("dims = 2", "dims = 3")
    (tmp_path / "s.toml").write_text(text.replace("[40, 56]", "32").replace("spacing = [1.0, 1.0]", ""))
    answer = CliRunner().invoke(app, ["real", str(tmp_path), "--study", str(tmp_path / "s.toml")])
    assert (answer.exit_code, "dims = 2" in answer.output) == (3, True)
