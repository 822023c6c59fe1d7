"""Conformance tests of sampler, clip, noise, seeds, divisors and accountants find what is planted, and nothing else."""

import numpy as np
import pytest

from audits.base import Task
from audits.conformance import accountants, autocorrelation, clip, denominators, noise, sampler, seeds, testing
from audits.conformance.training import studies, study_of
from fedseg.privacy.dpsgd import draw
from secagg.encoding import digest


@pytest.fixture
def task(tmp_path):
    return Task("quick", 1, tmp_path, str)


def test_a_planted_bug_that_is_missed_is_no_power_and_a_test_that_fails_a_violation():
    holds, fails = {"one": 0.4, "two": 1.0}, {"one": 1e-9, "two": 1.0}
    assert testing.concluded("it", holds, {"bug": lambda: fails}, {}).verdict == "holds"
    missed = testing.concluded("it", holds, {"bug": lambda: holds}, {})
    assert (missed.verdict, "NO POWER against bug" in missed.says) == ("no power", True)
    assert testing.concluded("it", fails, {"bug": lambda: fails}, {}).verdict == "violated"
    assert testing.blamed({"nothing": float("nan")}) == ["nothing"]


def test_p_values_are_as_likely_as_they_say():
    draws = np.random.default_rng(1)
    largest = [testing.largest(draws.normal(size=50)) for _ in range(600)]
    spread = [testing.dispersion(float(np.square(draws.normal(size=20)).sum()), 20) for _ in range(600)]
    for found in (largest, spread):
        assert np.mean(np.array(found) < 0.05) == pytest.approx(0.05, abs=0.03)


def test_the_sampler_passes_and_shuffling_fails():
    product = sampler.drawn_by(lambda step: draw(sampler.PATIENTS, sampler.RATE, digest("step", step)), 400)
    assert testing.blamed(sampler.tests(product)) == []
    for wrong in (sampler.shuffled(1), sampler.fixed_size(1)):
        assert "spread of how many are drawn" in testing.blamed(sampler.tests(sampler.drawn_by(wrong, 400)))


def test_noise_within_one_percent_passes_and_two_percent_less_fails(monkeypatch):
    monkeypatch.setattr(noise, "VALUES", 60_000)
    assert testing.blamed(noise.tests(*noise.gaussian(3))) == []
    assert len(testing.blamed(noise._with(3, lambda n, v, s: noise._scaled(0.98, n, v, s)))) >= 4
    assert testing.blamed(noise._sparse_scales(1)) == []


@pytest.mark.parametrize("mechanism", ["local", "distributed"])
def test_a_patient_is_cut_to_the_clip_norm_and_bugs_show(mechanism):
    study = studies(1)[mechanism]
    many = clip.PATIENTS["a patient with 12 scans"]
    assert 0.9 < clip.moved(study, many) <= 1 + clip.TOLERANCE
    assert clip.moved(study, clip.PATIENTS["pixels that are no numbers"]) == 0
    with clip.twice():
        assert clip.moved(study, many) > 1.5


def test_divisors_do_not_move_and_a_mean_over_the_drawn_does():
    study = studies(1)["local"]
    assert testing.blamed(denominators.tests(study)) == []
    with denominators.by_the_drawn():
        assert testing.blamed(denominators.tests(study))


@pytest.mark.parametrize("mechanism", ["local", "distributed"])
def test_no_stream_is_opened_twice_and_a_key_that_is_used_again_shows(mechanism, task, monkeypatch):
    assert testing.blamed(seeds.tests(seeds.streams(mechanism, task))) == []
    monkeypatch.setattr("fedseg.train.secrets.token_bytes", bytes)
    assert testing.blamed(seeds.tests(seeds.streams(mechanism, task)))


def test_keys_of_the_operating_system_meet_as_chance_has_it_and_short_ones_more_often(monkeypatch):
    monkeypatch.setattr(seeds, "KEYS", 120_000)
    study, stream = study_of("local", None), np.random.default_rng(5)
    assert testing.blamed(seeds.birthdays(lambda number: seeds.train._key(study, "site-a", 1, 1, "noise"))) == []
    short = stream.integers(2**30, size=120_000)
    assert testing.blamed(seeds.birthdays(lambda number: digest("short", int(short[number]))))


def test_noise_that_is_shared_between_rounds_or_sites_shows():
    seen = np.random.default_rng(2).normal(size=(2, 6, 2000))
    assert testing.blamed(autocorrelation.tests(seen)) == []
    assert "any two rounds of a site" in testing.blamed(autocorrelation.tests(seen[:, [0, 0, 1, 2, 3, 4]]))
    assert "any two rounds of two sites" in testing.blamed(autocorrelation.tests(seen[[0, 0]]))
    smooth = seen + np.roll(seen, 1, axis=-1)
    assert "two values of an update" in testing.blamed(autocorrelation.tests(smooth / np.sqrt(2)))


def test_updates_of_sites_without_patients_are_noise(monkeypatch):
    monkeypatch.setattr(autocorrelation, "VALUES", 512)
    monkeypatch.setattr(autocorrelation, "LAGS", (1, 2))
    for study in autocorrelation.studies(1).values():
        assert testing.blamed(autocorrelation.tests(autocorrelation.noise(study, 4))) == []


def test_accountants_agree_and_half_the_rate_is_found():
    assert accountants.compared((1.0, 15, 5.0, 1e-3))[1]
    assert accountants.compared((0.1, 20, 1.5, 1e-5))[1]
    assert not accountants.compared((1.0, 15, 5.0, 1e-3), lambda point: 1.0)[1]


def test_a_ledger_comes_to_the_budget_and_one_that_forgets_does_not(tmp_path):
    study = accountants.studies()["local, everybody"]
    spent, refused = accountants.charged(study, tmp_path / "a.jsonl")
    assert refused
    assert 1.98 < spent <= 2
    assert testing.blamed(accountants._forgetful(tmp_path))


def test_accountants_are_compared_beyond_the_ceiling_of_a_lower_bound():
    apart, right = accountants.compared((1.0, 300, 0.8, 1e-6))  # epsilon 336
    assert right
    assert apart < 1e-3
