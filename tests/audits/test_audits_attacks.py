"""Attacks on updates and sums, tiny: each succeeds where the protection is out, so that its failure means something."""

import numpy as np
import pytest

from audits.attacks import identification, imprint
from audits.base import Task


@pytest.fixture
def task(tmp_path):
    return Task("quick", 1, tmp_path, lambda line: None)


def percent(words: str) -> float:
    """Of "3 of 4 = 75.0 % (...)"."""
    return float(words.split(" = ")[1].split(" %")[0])


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
        "the next model, recomputed (T-16)",
    ]
    assert found.verdict == "holds"
    assert "joined" not in {row["the site says"] for row in found.rows}


def test_a_check_that_does_nothing_is_a_violation(task, monkeypatch):
    monkeypatch.setattr(imprint, "refusals", lambda folder: (imprint.Refusal("tries", "C-23", "joined", "joined"),))
    assert imprint.attacked(task, size=16, bins=128, each=1).verdict == "violated"
