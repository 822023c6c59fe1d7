"""What of an update is sent: maps that all parties make alike, right on average, and sums that hold through a round."""

import json
from typing import get_args

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.data.loading import load_cohort
from fedseg.errors import ConfigError
from fedseg.models import build_model
from fedseg.privacy.dpsgd import Protection, noisy_gradient, summed
from fedseg.runfolder import RunFolder
from fedseg.sharing.levels import Levels
from fedseg.sharing.method import Sharing
from fedseg.sharing.sending import Owed, Sending
from fedseg.sharing.space import Space, Within
from fedseg.sharing.table import METHODS
from fedseg.simulate import Options, simulate
from fedseg.study import parse_study
from fedseg.study.sections import SharingSection
from fedseg.update import flatten
from fedseg.verifying.material import gather
from fedseg.verifying.models import t16_next_model
from secagg.prg import Stream
from secagg.steps import MASKED_INPUT_COLLECTION
from tests.support.tiny import tiny_study

MASK = Sharing(method="random-mask", share=0.1)
RANK = Sharing(method="low-rank", rank=3)
SAMPLE = Sharing(method="sketch", share=0.25)
ROTATED = Sharing(method="sketch", share=0.25, rotation=True)
PUBLIC = (MASK, RANK, SAMPLE, ROTATED)
LINEAR = pytest.mark.parametrize("sharing", PUBLIC, ids=lambda sharing: f"{sharing.method}-{sharing.rotation}")


def space(sharing: Sharing, d: int = 1000, round_number: int = 1) -> Space:
    return Space.of(np.full(d, round_number, np.float32), sharing)


def normal(d: int, name: str = "values") -> np.ndarray:
    return np.random.default_rng(len(name)).normal(size=d)


@LINEAR
def test_every_party_makes_the_same_map_and_each_round_another(sharing):
    update = normal(1000)
    assert (space(sharing).reduced(update) == space(sharing).reduced(update)).all()
    assert (space(sharing).reduced(update) != space(sharing, round_number=2).reduced(update)).any()


@LINEAR
@pytest.mark.parametrize("d", [1, 2, 37, 1000, 5000])
def test_fewer_values_are_sent_and_the_sum_of_the_sent_is_the_sent_of_the_sum(sharing, d):
    one, other, here = normal(d), normal(d, "other"), space(sharing, d)
    sent = here.reduced(one)
    assert sent.shape == (here.length,)
    assert here.length <= max(1, d // 3 + 3) or d < 100
    np.testing.assert_allclose(here.reduced(one + other), sent + here.reduced(other), atol=1e-9)
    assert here.restored(sent).shape == (d,)


@pytest.mark.parametrize("sharing", [MASK, RANK], ids=lambda sharing: sharing.method)
@pytest.mark.parametrize("d", [1, 2, 37, 5000])
def test_what_is_trained_within_a_space_is_sent_whole_and_no_gradient_grows(sharing, d):
    here, gradient = space(sharing, d), normal(d)
    inside = here.restored(here.reduced(gradient))
    np.testing.assert_allclose(here.restored(here.reduced(inside)), inside, atol=1e-12)
    assert np.linalg.norm(here.reduced(gradient)) <= np.linalg.norm(gradient) * (1 + 1e-12)
    np.testing.assert_allclose(np.linalg.norm(here.reduced(inside)), np.linalg.norm(inside))


@pytest.mark.parametrize("d", [1, 37, 4096, 5000])
def test_a_rotation_turns_back(d):
    all_of_it, update = space(Sharing(method="sketch", rotation=True), d), normal(d)
    np.testing.assert_allclose(all_of_it.restored(all_of_it.reduced(update)), update, atol=1e-12)


@pytest.mark.parametrize("sharing", [SAMPLE, ROTATED], ids=["plain", "rotated"])
def test_a_sketch_is_right_on_average_over_rounds(sharing):
    d, rounds = 64, 500
    update = normal(d)
    mean = np.zeros(d)
    for number in range(rounds):
        here = space(sharing, d, number)
        mean += here.restored(here.reduced(update)) / rounds
    # One round's value has a variance of about 3 |update|^2 / d; six deviations of the mean.
    assert np.abs(mean - update).max() < 6 * np.sqrt(4 * (update**2).max() / rounds)


@given(st.integers(1, 8), st.integers(2, 9), st.integers(16, 48), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_sums_of_packed_levels_are_exact(bits, sites, word, count):
    levels = Levels(bits, sites, word, 0.5)
    drawn = np.random.default_rng(count).integers(0, levels.last + 1, (sites, count))
    drawn[:, 0] = levels.last  # as large as a sum can be
    words = sum(levels.packed(own) for own in drawn) % (1 << word)
    signed = np.where(words >= 1 << (word - 1), words - (1 << word), words)  # as a sum of integers is read
    assert (levels.unpacked(signed, count) == drawn.sum(axis=0)).all()
    assert levels.words(count) == len(words)


@pytest.mark.parametrize("bits", [1, 2, 5])
def test_levels_are_right_on_average_and_ends_stay_ends(bits):
    levels, values = Levels(bits, 3, 32, 0.5), np.array([-0.7, -0.5, -0.123, 0.0, 0.31, 0.5, 9.0])
    rounds = 6000
    drawn = levels.values(levels.levels(np.tile(values, rounds), Stream.seeded(3, "levels")), 1).reshape(rounds, -1)
    assert (np.abs(drawn) <= 0.5).all()
    assert np.abs(drawn.mean(axis=0) - np.clip(values, -0.5, 0.5)).max() < 6 * 0.5 / np.sqrt(rounds)
    assert (drawn[:, [0, 1]] == -0.5).all()
    assert (drawn[:, [5, 6]] == 0.5).all()


def test_a_sum_takes_as_few_words_as_it_needs():
    assert [Levels(bits, 8, 32, 1.0).each for bits in (1, 2, 4, 8)] == [10, 6, 4, 2]
    with pytest.raises(ValueError, match="holds no sum"):
        Levels(8, 9, 11, 1.0)


def test_what_was_not_sent_is_owed_and_arrives_later():
    sharing = Sharing(method="sketch", share=0.1, bits=2, error_feedback=True)
    owed, update, arrived = Owed(), normal(200).astype(np.float32) / 100, np.zeros(200)
    levels, stream = Levels(2, 3, 32, 0.2), Stream.seeded(1, "levels")
    for number in range(60):
        here = space(sharing, 200, number)
        words = Sending(here, levels, stream, owed)(update)
        if number % 3 == 2:
            owed.settle(included=False)  # the round was lost: all that was owed is owed still, but not its own update
            continue
        owed.settle(included=True)
        arrived += here.restored(levels.values(levels.unpacked(words, here.length), 1))
    left = owed.added_to(np.zeros(200, np.float32))
    np.testing.assert_allclose(arrived + left, 40 * update, atol=1e-4)
    with pytest.raises(TypeError, match="never copied"):
        __import__("copy").copy(owed)


@pytest.mark.parametrize("sharing", [MASK, RANK], ids=lambda sharing: sharing.method)
def test_noise_covers_what_is_sent_and_nothing_else_moves(sharing):
    weights = torch.nn.Parameter(torch.zeros(900))
    here = space(sharing, 900)
    within = Within(here)
    protection = Protection(1.0, 2.0, 1)
    noised = noisy_gradient([weights], [], protection, Stream.seeded(5, "noise"), within).values.double().numpy()
    sent = here.reduced(noised)
    np.testing.assert_allclose(here.restored(sent), noised, atol=1e-5)  # no noise outside
    assert 0.8 * 2 < sent.std() < 1.2 * 2  # of a full deviation on every value that is sent
    loud = summed([weights], [(weights * torch.from_numpy(normal(900))).sum() * 1e3], 1.0, within=within)
    assert len(loud) == here.length
    assert 0.999 < float(loud.norm()) <= 1.0 + 1e-9  # clipped where it is sent, so that all of the norm is used


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"sharing": {"share": 0.5}}, r"share goes with method = 'random-mask' or 'sketch' or 'percentile'"),
        ({"sharing": {"method": "low-rank"}}, "rank is missing and method = 'low-rank' needs it"),
        ({"sharing": {"method": "random-mask", "error_feedback": True}}, "error_feedback goes with method = 'sketch'"),
        ({"sharing": {"method": "sketch", "bits": 12}, "secagg": {"bits": 10}}, "does not fit into .secagg. bits = 10"),
        ({"sharing": {"method": "sketch", "bits": 2}, "secagg": {"bits": 60}}, "at most 48 with .sharing. bits"),
        ({"sharing": {"method": "sketch"}, "privacy": {"mechanism": "distributed"}}, "use 'full' or 'random-mask' or"),
        ({"sharing": {"method": "low-rank", "rank": 1, "bits": 2}, "privacy": {"mechanism": "distributed"}}, "bits"),
    ],
)
def test_what_does_not_go_together_is_a_sentence(sections, expected):
    with pytest.raises(ConfigError, match=expected):
        tiny_study(mechanism="local").replace(**sections)


def test_a_pattern_without_a_tensor_is_a_sentence_before_anybody_is_charged():
    study = tiny_study(mechanism="local").replace(sharing={"method": "exclude", "leave_out": ["*.bias", "tail.*"]})
    with pytest.raises(
        ConfigError, match=r"\[sharing\] leave_out: 'tail\.\*' matches no tensor of the network, such as"
    ):
        build_model(study)


def test_every_method_has_a_name_in_a_study_file():
    assert list(get_args(SharingSection.model_fields["method"].annotation)) == list(METHODS)


def test_levels_count_every_site_alike():
    study = tiny_study(mechanism="local").replace(sharing={"method": "sketch", "bits": 2})
    text = study.toml().replace("weight = 1.0", "weight = 2.0", 1)
    with pytest.raises(ConfigError, match="every site counts the same"):
        parse_study(text, "study")


SENT = {
    "mask": ("local", {"method": "random-mask", "share": 0.1}),
    "mask-distributed": ("distributed", {"method": "random-mask", "share": 0.1}),
    "rank": ("local", {"method": "low-rank", "rank": 1, "bits": 3}),
    "sketch": (
        "none",
        {"method": "sketch", "share": 0.1, "rotation": True, "bits": 1, "error_feedback": True},
    ),
    "percentile": ("none", {"method": "percentile", "share": 0.1}),
    "exclude": ("none", {"method": "exclude", "leave_out": ["*.bias"]}),
}


LONG = ("mask", "percentile", "exclude")


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) if n in LONG else n for n in SENT])
def test_a_run_sums_exactly_sends_fewer_bytes_and_can_be_made_again(name, tmp_path):
    mechanism, sharing = SENT[name]
    study = tiny_study(mechanism=mechanism, rounds=2).replace(sharing=sharing)
    with RunFolder.create(tmp_path, study) as folder:
        run = simulate(folder, load_cohort(None, study), Options(transcripts=True))
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["exact"] for event in events if event["kind"] == "end_round"] == [True, True]
    vectors = [e["bytes"] for e in events if e["kind"] == "step" and e["step"] == MASKED_INPUT_COLLECTION]
    d = len(flatten(build_model(study)))
    policy = study.policy(d)
    assert max(vectors) <= policy.length * policy.bits / 8 + 400
    if name in ("percentile", "exclude"):
        assert policy.length == d  # zeros are masked like everything else
    else:
        assert policy.length <= {"sketch": d // 80}.get(name, d // 7)
    found = list(t16_next_model(gather([run], None)))
    assert [finding.state for finding in found] == ["held"] * len(found)
    assert found
