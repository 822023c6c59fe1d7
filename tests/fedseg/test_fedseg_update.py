"""The wall around updates: an update without noise is a type error before it is a TypeError, and nothing is pickled."""

import copy
import json
import pickle
from pathlib import Path

import numpy as np
import pytest
import torch

from fedseg.mechanisms.table import MECHANISMS
from fedseg.privacy.dpsgd import NoisedGradient, Protection, noisy_gradient
from fedseg.privacy.shares import Grid, NoiseShare, noise_share
from fedseg.update import NoisedSteps, NoisedUpdate, NoiseShared, PlainSteps, flatten
from secagg.prg import Stream
from tests.support.typing_errors import wrong_lines

ROOT = Path(__file__).parents[2]
RAW = np.full(3, 0.123456, np.float32)

SNIPPET = """
import numpy as np
from numpy.typing import NDArray
from fedseg.parties import Train
from fedseg.privacy.dpsgd import NoisedGradient
from fedseg.mechanisms.table import MECHANISMS
from fedseg.privacy.shares import NoiseShare
from fedseg.update import NoisedSteps, NoisedUpdate, NoiseShared, PlainSteps

def as_it_should_be(steps: NoisedSteps, gradient: NoisedGradient) -> NoisedUpdate:
    steps.step(gradient)
    return NoisedUpdate(steps, "a", "b")

def a_raw_vector(raw: NDArray[np.float32]) -> None:
    NoisedUpdate(raw, "a", "b")  # wrong

def steps_without_noise(steps: PlainSteps) -> None:
    NoisedUpdate(steps, "a", "b")  # wrong

def a_raw_gradient(steps: NoisedSteps, gradient: NDArray[np.float32]) -> None:
    steps.step(gradient)  # wrong

def a_made_up_gradient(gradient: NDArray[np.float32]) -> None:
    NoisedGradient(gradient)  # wrong
    NoisedGradient(gradient, object())  # wrong

def an_unsaid_exception(raw: NDArray[np.float32]) -> None:
    NoisedUpdate.unprotected(raw, "a")  # wrong

def another_vector(update: NoisedUpdate, raw: NDArray[np.float32]) -> None:
    update.vector = raw  # wrong

def a_share(share: NoiseShare, ok: NoiseShared) -> Train:
    NoiseShared(share, 32, "a", "b")
    return lambda site: ok

def a_share_is_not_private_alone(share: NoiseShare, integers: NDArray[np.int64]) -> NoisedUpdate:
    NoiseShare(integers)  # wrong
    NoiseShared(integers, 32, "a", "b")  # wrong
    NoisedUpdate(share, "a", "b")  # wrong
    return NoiseShared(share, 32, "a", "b")  # wrong

def to_the_aggregator(raw: NDArray[np.float32]) -> Train:
    return lambda site: raw  # wrong
"""


def test_what_has_no_noise_does_not_type_check(tmp_path, monkeypatch):
    monkeypatch.chdir(ROOT)
    wrong, told = wrong_lines(SNIPPET, tmp_path)
    meant = {number for number, line in enumerate(SNIPPET.splitlines(), start=1) if line.endswith("# wrong")}
    assert wrong == meant, told
    assert len(meant) == 12


@pytest.fixture
def model():
    return torch.nn.Linear(2, 1)


@pytest.fixture
def gradient():
    weights = torch.zeros(3, requires_grad=True)
    return noisy_gradient([weights], [], Protection(1.0, 1.0, 1), Stream.seeded(1, "noise"))


@pytest.fixture
def update(model, gradient):
    steps = NoisedSteps(model, 0.1, 0.9)
    steps.step(gradient)
    return NoisedUpdate(steps, "site-a", "event")


def test_an_update_is_made_of_noised_steps_only(model):
    for raw in (RAW, torch.zeros(3), PlainSteps(model, 0.1, 0.9), None):
        with pytest.raises(TypeError, match="made of noised steps"):
            NoisedUpdate(raw, "a", "b")


def test_noised_steps_take_noised_gradients_only(model):
    steps = NoisedSteps(model, 0.1, 0.9)
    for raw in (torch.zeros(3), RAW):
        with pytest.raises(TypeError, match="no noised gradient"):
            steps.step(raw)
    assert not steps.difference.any()


@pytest.mark.parametrize("made", [None, object(), True])
def test_a_noised_gradient_is_made_where_the_noise_is(made):
    with pytest.raises(TypeError, match="noisy_gradient only"):
        NoisedGradient(torch.zeros(3), made)


@pytest.mark.parametrize("numbers", [(0.0, 1.0), (1.0, 0.0), (float("nan"), 1.0), (1.0, -1.0)])
def test_a_mechanism_that_clips_or_noises_nothing_is_none(numbers):
    with pytest.raises(ValueError, match="protects nobody"):
        Protection(*numbers, 1)


@pytest.fixture
def share():
    weights = torch.zeros(3, requires_grad=True)
    key = bytes(32)
    return noise_share([weights], [], Grid(3, 1.0, 4000), key, key, lambda n: np.arange(n) - 123456)


def test_a_share_of_the_noise_is_no_update_that_is_private_alone(share, gradient):
    for raw in (RAW, share.values, gradient, None):
        with pytest.raises(TypeError, match="comes from noise_share"):
            NoiseShared(raw, 32, "a", "b")
    with pytest.raises(TypeError, match="made of noised steps"):
        NoisedUpdate(share, "a", "b")
    for made in (None, object(), True):
        with pytest.raises(TypeError, match="noise_share only"):
            NoiseShare(share.values, made)


def test_a_share_is_taken_modulo_the_sums_own_modulus(share):
    vector = NoiseShared(share, 12, "a", "b").vector
    assert np.array_equal(vector, share.values % 4096)


def test_nothing_of_a_sites_training_is_pickled_copied_or_shown(model, gradient, update, share, tmp_path):
    shared = NoiseShared(share, 32, "site-a", "event")
    assert "123456" not in repr(shared)
    for kept in (gradient, update, NoisedSteps(model, 0.1, 0.9), PlainSteps(model, 0.1, 0.9), share, shared):
        for leave in (
            pickle.dumps,
            copy.copy,
            copy.deepcopy,
            lambda found: torch.save(found, tmp_path / "saved"),
            lambda found: np.save(tmp_path / "saved", np.array([found], dtype=object)),
            json.dumps,
        ):
            with pytest.raises(TypeError):
                leave(kept)
        assert f"{update.vector[0]:.3f}" not in repr(kept)


def test_a_model_changed_by_something_else_is_in_no_update(model, gradient):
    before = flatten(model)
    steps = NoisedSteps(model, 0.1, 0.9)
    with torch.no_grad():
        model.weight.add_(100)  # such as a gradient that was never clipped
    steps.step(gradient)
    assert np.allclose(steps.difference, -0.1 * gradient.values.numpy(), rtol=1e-6, atol=1e-7)
    assert np.allclose(flatten(model), before + steps.difference, rtol=0, atol=1e-6)


def test_an_update_does_not_move_with_later_steps_or_writes(model, gradient):
    steps = NoisedSteps(model, 0.1, 0.9)
    steps.step(gradient)
    update = NoisedUpdate(steps, "a", "b")
    held = update.vector.copy()
    steps.step(gradient)
    assert np.array_equal(update.vector, held)
    with pytest.raises(ValueError, match="read-only"):
        update.vector[0] = 1
    with pytest.raises(AttributeError):
        update.vector = RAW


def test_an_unprotected_update_leaves_only_where_the_mechanism_claims_nothing():
    update = NoisedUpdate.unprotected(RAW, "a", MECHANISMS["none"].trust)
    assert (update.site, update.event_id) == ("a", "")
    assert np.array_equal(update.vector, RAW)
    for mechanism in MECHANISMS.values():
        if mechanism.trust.claims_epsilon:
            with pytest.raises(TypeError, match="claims an epsilon"):
                NoisedUpdate.unprotected(RAW, "a", mechanism.trust)
