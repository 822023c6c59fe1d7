"""What a classifier's answers come to: each measure against its definition, and intervals over patients."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.classes import judged

NAMES = ["a", "b", "c"]


def answers(seed: int, pictures: int = 40, classes: int = 3, rounded: int = 1):
    """Labels and probabilities with ties, better than chance."""
    random = np.random.default_rng(seed)
    labels = np.arange(pictures) % classes
    said = random.random((pictures, classes)) + 0.6 * np.eye(classes)[labels]
    return labels, np.round(said / said.sum(1, keepdims=True), rounded)


@pytest.mark.parametrize("seed", range(3))
def test_every_measure_is_what_its_definition_gives(seed):
    labels, said = answers(seed)
    found = judged([str(n) for n in range(len(labels))], labels, said, NAMES)
    answer = said.argmax(1)
    table = np.array([[np.sum((labels == t) & (answer == s)) for s in range(3)] for t in range(3)])
    assert found.confusion == table.tolist()
    assert found.measures["accuracy"].mean == pytest.approx(np.mean(labels == answer))
    assert found.measures["balanced accuracy"].mean == pytest.approx(np.mean(table.diagonal() / table.sum(1)))
    one, other = np.eye(3)[labels], np.eye(3)[answer]
    covariance = lambda x, y: np.sum((x - x.mean(0)) * (y - y.mean(0)))  # noqa: E731  Gorodkin's definition
    mcc = covariance(one, other) / np.sqrt(covariance(one, one) * covariance(other, other))
    assert found.measures["MCC"].mean == pytest.approx(mcc)
    for number, name in enumerate(NAMES):
        pairs = itertools.product(said[labels == number, number], said[labels != number, number])
        assert found.auc[name].mean == pytest.approx(np.mean([(p > q) + (p == q) / 2 for p, q in pairs]))
    assert found.measures["AUC"].mean == pytest.approx(np.mean([found.auc[name].mean for name in NAMES]))
    confidence, right = said.max(1), labels == answer
    bins = np.minimum((confidence * 10).astype(int), 9)
    apart = [abs(np.sum(confidence[bins == b] - right[bins == b])) for b in range(10)]
    assert found.measures["ECE"].mean == pytest.approx(np.sum(apart) / len(labels))
    assert sum(one.pictures for one in found.reliability) == len(labels)


def test_the_area_is_that_of_the_curve():
    labels, said = answers(5, rounded=3)
    found = judged([str(n) for n in range(len(labels))], labels, said, NAMES)
    for name in NAMES:
        xs, ys = np.transpose(found.roc[name])
        assert (xs[0], ys[0], xs[-1], ys[-1]) == (0, 0, 1, 1)
        assert np.trapezoid(ys, xs) == pytest.approx(found.auc[name].mean)


@settings(max_examples=15, deadline=None)
@given(st.integers(0, 1000), st.integers(2, 12))
def test_pictures_of_one_patient_are_resampled_together(seed, people):
    """Each patient's pictures repeated: the figures stay, and so do the intervals, which are of patients."""
    labels, said = answers(seed, people, 2)
    whose = [f"p{n}" for n in range(people)]
    once = judged(whose, labels, said, NAMES[:2])
    often = judged(whose * 4, np.tile(labels, 4), np.tile(said, (4, 1)), NAMES[:2])
    for name in once.measures:
        first, second = once.measures[name], often.measures[name]
        np.testing.assert_allclose(
            [first.mean, first.low, first.high], [second.mean, second.low, second.high], atol=1e-12
        )
        assert first.n == second.n == people
    assert often.pictures == 4 * people


def test_nothing_is_made_up_of_nobody():
    nobody = judged([], [], np.zeros((0, 2)), NAMES[:2])
    assert set(nobody.measures.values()) == {None}
    assert nobody.confusion == [[0, 0], [0, 0]]
    alike = judged(["p", "q"], [1, 1], np.array([[0.4, 0.6], [0.7, 0.3]]), NAMES[:2])
    assert alike.measures["AUC"] is None, "of one class alone there is no curve"
    assert alike.measures["MCC"] is None
    assert alike.roc == {"a": [], "b": []}
    assert alike.measures["accuracy"].mean == 0.5


def test_saying_one_class_of_everybody_has_learned_nothing():
    labels, said = np.arange(10) % 2, np.tile([0.9, 0.1], (10, 1))
    found = judged([str(n) for n in range(10)], labels, said, NAMES[:2])
    assert found.measures["MCC"].mean == 0
    assert found.measures["AUC"].mean == 0.5
    assert found.measures["balanced accuracy"].mean == 0.5
    assert found.measures["ECE"].mean == pytest.approx(0.4)
