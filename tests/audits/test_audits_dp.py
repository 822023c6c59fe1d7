"""Lower bounds of epsilon: the estimators give known numbers, games on the real code find what is planted."""

import numpy as np
import pytest

from audits.base import Task
from audits.dp import alarms, canary, estimators, games, published
from audits.dp import pipeline as through
from audits.dp.canary import DELTA, Played, study_of
from audits.dp.estimators import Counts, Guesses
from audits.dp.judging import ERROR, SURE, judge, picture


@pytest.fixture
def task(tmp_path):
    return Task("quick", 1, tmp_path, str)


def exact_scores(mu, m=2000, seed=3):
    draws = np.random.default_rng(seed)
    present = draws.random(m) < 0.5
    return draws.normal(size=m) + mu * present, present


def gaussian_game(mu, claim, m=2000):
    scores, present = exact_scores(mu, m)
    return Played(scores, present, claim, DELTA, mu / 2, [slice(0, m)])


@pytest.mark.parametrize("known", published.KNOWN, ids=lambda known: known.what)
def test_an_estimator_gives_the_known_number(known):
    assert abs(known.found() - known.value) <= 10.0**-known.places


def test_at_least_ten_numbers_are_known_and_a_wrong_one_is_a_violation(task, monkeypatch):
    assert len(published.KNOWN) >= 10
    assert published.audit(task).verdict == "holds"
    monkeypatch.setattr(published, "KNOWN", [published.KNOWN[0]._replace(value=0.56)])
    assert published.audit(task).verdict == "violated"


def test_without_its_delta_term_the_one_run_bound_is_another_number():
    guesses = Guesses(1000, 100, 75)
    assert estimators.one_run(guesses, 0.0, ERROR) == pytest.approx(0.702, abs=1e-3)  # what four of ten copies give
    assert estimators.one_run(guesses, 1e-4, ERROR) == pytest.approx(0.673, abs=1e-3)


def test_bounds_lie_below_the_truth_and_rise_with_it():
    before = dict.fromkeys(("one-run", "f-DP", "GDP", "rates"), 0.0)
    for epsilon in (1.0, 2.0, 4.0):
        judged = judge(gaussian_game(estimators.mu_of_epsilon(epsilon, DELTA), epsilon))
        assert judged.verdict == "holds"
        for name, bound in judged.bounds.items():
            assert before[name] < bound < epsilon
        before = judged.bounds


def test_more_than_is_claimed_is_a_violation_and_a_claim_above_the_ceiling_has_no_power():
    mu = estimators.mu_of_epsilon(4.0, DELTA)
    assert judge(gaussian_game(mu, 1.0)).verdict == "violated"
    few = gaussian_game(mu, 4.0, m=16)
    pure = Played(few.scores, few.present, 4.0, DELTA, few.threshold, (), exact=False)
    assert judge(pure).verdict == "no power"
    assert judge(pure).row["verdict"] == "NO POWER"


def test_the_ceiling_is_about_the_logarithm_of_a_third_of_the_guesses():
    for made in (300, 3000):
        ceiling = estimators.one_run(Guesses(made, made, made), 0.0, ERROR)
        assert ceiling == pytest.approx(np.log(made / 3), abs=0.01)


def test_one_tensor_that_shows_everything_is_found_among_others_that_show_nothing():
    scores, present = exact_scores(0.0)
    scores[:250] = present[:250]
    parts = [slice(first, first + 250) for first in range(0, 2000, 250)]
    assert judge(Played(scores, present, 2.0, DELTA, 0.5, parts)).verdict == "violated"
    assert judge(Played(scores, present, 2.0, DELTA, 0.5, [slice(None)])).verdict == "holds"


@pytest.mark.parametrize("wrong", [(1, 2, 3), (5, 3, -1), (2, 3, 1)])
def test_guesses_that_cannot_be_are_refused(wrong):
    with pytest.raises(ValueError, match="must rise"):
        Guesses(*wrong)


def test_rates_that_are_always_wrong_prove_nothing():
    assert estimators.from_rates(Counts(0, 50, 50, 50), 0.0, ERROR) == 0
    assert estimators.gaussian(Counts(0, 50, 50, 50), DELTA, ERROR) == 0


def played_local(tmp_path, planted=canary.nullcontext, m=400, rate=1.0):
    study = study_of("local", 4.0, rounds=1, seed=5, sample_rate=rate)
    return judge(canary.play_local(study, m, 5, tmp_path, planted=planted))


def test_a_canary_is_as_long_as_the_clip_allows_and_in_one_place(tmp_path):
    study = study_of("local", 4.0, rounds=1, seed=5)
    game = canary.play_local(study, 200, 5, tmp_path)
    mean = game.scores[game.present].mean() - game.scores[~game.present].mean()
    noise = study.mechanism.noise_multiplier(study.terms) * canary.CLIP_NORM
    assert mean == pytest.approx(canary.CLIP_NORM, abs=4 * noise * 2 / np.sqrt(200))
    assert game.scores.std() == pytest.approx(noise, rel=0.3)
    assert 3.99 < game.claim <= 4


def test_local_is_not_blamed(tmp_path):
    assert played_local(tmp_path).verdict == "holds"


@pytest.mark.parametrize("bug", ["no clipping", "one tensor of four without noise"])
def test_a_planted_bug_of_local_is_found(tmp_path, bug):
    assert played_local(tmp_path, alarms.PLANTED[bug]).verdict == "violated"


def test_the_server_of_a_distributed_study_reads_canaries_in_the_sum_of_the_fewest_honest_sites(tmp_path):
    study = study_of("distributed", 4.0, rounds=1, sites=4, seed=5)
    game = games.play_distributed(study, 200, 5, tmp_path)
    assert (study.terms.min_survivors, study.terms.max_corrupt) == (3, 1)
    assert judge(game).verdict == "holds"
    assert game.scores[game.present].mean() == pytest.approx(canary.CLIP_NORM, rel=0.5)
    noise = study.mechanism.noise_multiplier(study.terms) * canary.CLIP_NORM
    assert game.scores.std() == pytest.approx(noise, rel=0.35)


def test_canaries_come_out_of_a_verified_transcript_as_they_do_of_the_sum_itself(tmp_path):
    study = study_of("distributed", 4.0, rounds=1, sites=4, seed=5)
    (tmp_path / "plain").mkdir()
    plain = games.play_distributed(study, 100, 5, tmp_path / "plain")
    (tmp_path / "secure").mkdir()
    secure = through.play_distributed(study, 100, 5, tmp_path / "secure")
    assert np.array_equal(plain.present, secure.present)
    assert np.allclose(plain.scores, secure.scores, atol=1e-12)  # seeded: the same noise, whole number for whole number


def test_a_transcript_that_does_not_hold_gives_no_figure(tmp_path, monkeypatch):
    study = study_of("svt", 1.0, rounds=1, more="released = 1.0", seed=5)
    verify = through.verify

    def cut(paths, policy, pinned):
        data = bytearray(paths[0].read_bytes())
        data[len(data) // 2] ^= 1
        paths[0].write_bytes(data)
        return verify(paths, policy, pinned)

    monkeypatch.setattr(through, "verify", cut)
    with pytest.raises(RuntimeError, match="violated"):
        through.play_svt(study, 1, 5, tmp_path)


def test_a_release_without_noise_is_found(tmp_path, monkeypatch):
    study = study_of("svt", 0.5, rounds=1, more="released = 1.0", seed=5)
    monkeypatch.setattr("fedseg.privacy.sparse_vector.laplace", lambda n, scale, stream: np.zeros(n, np.int64))
    assert judge(games.play_svt(study, 120, 5, tmp_path)).verdict == "violated"


def test_the_picture_is_drawn(tmp_path):
    assert picture([judge(gaussian_game(0.5, 2.0))], tmp_path / "p.png", "a game").stat().st_size > 5000
    assert SURE < 1e-5
