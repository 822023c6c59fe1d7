"""Mechanism "svt": what it releases, that two data sets stay alike, and the epsilon that every output says."""

import json
import math
from dataclasses import replace

import numpy as np
import pytest
from scipy.stats import beta

from fedseg.budget.explain import explain
from fedseg.data.loading import load_cohort
from fedseg.errors import ConfigError
from fedseg.ledger import released
from fedseg.ledger.entries import entry_of
from fedseg.mechanisms.table import MECHANISMS
from fedseg.privacy import sparse_vector
from fedseg.privacy.accounting import cross_check, epsilon, gaussian_dp, gaussian_steps
from fedseg.privacy.pure import PureDpEvent
from fedseg.privacy.sparse_vector import STEPS, Release, SparseVector, laplace, sparse_release
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.update import NoisedUpdate
from secagg.prg import Stream
from tests.support.tiny import tiny_study

NUMBERS = SparseVector.of(3, 0.5, 0.1, 2.0)


def study(**sections):
    privacy = {"mechanism": "svt", "epsilon": 8.0, "released": 0.1, "threshold": 0.01, "clip_norm": None}
    return tiny_study(mechanism="local", seed=None, rounds=2).replace(privacy=privacy, **sections)


def test_epsilon_is_split_and_adds_up():
    assert NUMBERS.epsilon == pytest.approx(2.0)
    assert NUMBERS.values == 1.0
    assert NUMBERS.queries / NUMBERS.thresholds == pytest.approx((2 * 3) ** (2 / 3))
    with pytest.raises(ValueError, match="protects nobody"):
        replace(NUMBERS, queries=0.0)


@pytest.mark.parametrize("scale", [0.7, 12.5, 3e6])
def test_noise_is_discrete_laplace(scale):
    n = 20000
    drawn = laplace(n, scale, Stream.seeded(4, "laplace"))
    ratio = math.exp(-1 / scale)
    assert abs(np.abs(drawn).mean() - 2 * ratio / (1 - ratio**2)) < 6 * math.sqrt(2) * (scale + 1) / math.sqrt(n)
    for reach in (0.5, 1, 2):
        k = math.ceil(reach * scale)
        expected = 2 * ratio**k / (1 + ratio)  # of a magnitude of at least k
        assert abs((np.abs(drawn) >= k).mean() - expected) < 6 * math.sqrt(expected / n)


def test_each_noise_has_the_scale_that_the_proof_asks_for(monkeypatch):
    seen = []

    def none(n, scale, stream):
        seen.append((n, scale))
        return np.zeros(n, np.int64)

    monkeypatch.setattr(sparse_vector, "laplace", none)
    update = np.array([0.2, -7.0, 0.05, np.nan, np.inf, -0.3, 0.4, 0.0])
    out = NUMBERS.release(update, Stream.seeded(1, "svt"))
    s, q = 2 * STEPS, 3
    assert seen == [(1, s / NUMBERS.thresholds), (8, 2 * q * s / NUMBERS.queries), (3, q * s / NUMBERS.values)]
    chosen = np.flatnonzero(out)
    assert len(chosen) == q
    clipped = np.clip(np.nan_to_num(update, nan=0.0), -0.5, 0.5)
    np.testing.assert_allclose(out[chosen], clipped[chosen], atol=0.5 / STEPS)
    assert (np.abs(clipped[chosen]) >= 0.1 - 1e-3).all()
    others = NUMBERS.release(update, Stream.seeded(2, "svt"))
    assert set(np.flatnonzero(others)) != set(chosen)  # in a random order, so that the first do not always win


def likely(numbers: SparseVector, update: np.ndarray, trials: int = 250) -> tuple[float, float]:
    """Bounds of how often most of what is released is above 0, at 99.99 %."""
    stream = Stream.seeded(11, "trial", str(update[0]))
    hits = sum(numbers.release(update, stream).sum() > 0 for _ in range(trials))
    return beta.ppf(5e-5, hits, trials - hits + 1), beta.ppf(1 - 5e-5, hits + 1, trials - hits)


def test_two_data_sets_stay_alike_and_do_not_with_the_published_noise(monkeypatch):
    """Even of updates that differ in every value by all that clipping leaves."""
    numbers, m = SparseVector.of(64, 0.5, 0.0, 1.0), 80
    one, other = np.full(m, 9.0), np.full(m, -9.0)
    low, _ = likely(numbers, one)
    _, high = likely(numbers, other)
    assert math.log(low / high) < numbers.epsilon
    real = sparse_vector.laplace

    def published(n, scale, stream):  # NVFlare: the noise of one value, whatever number is released
        return real(n, scale / numbers.released if n <= numbers.released and n > 1 else scale, stream)

    monkeypatch.setattr(sparse_vector, "laplace", published)
    low, _ = likely(numbers, one)
    _, high = likely(numbers, other)
    assert math.log(low / high) > numbers.epsilon


def test_pure_releases_compose_to_less_than_their_sum_and_never_to_more():
    def total(each, rounds, delta=1e-3):
        return epsilon([PureDpEvent(each)] * rounds, delta)

    assert total(0.05, 100) < 0.6 * 5
    assert total(0.5, 1) <= 0.5
    assert total(4e6, 3) == 1.2e7
    more = epsilon([PureDpEvent(0.5), gaussian_steps(2.0, 1.0, 1)], 1e-3)
    assert 0.5 < more < 0.5 + epsilon([gaussian_steps(2.0, 1.0, 1)], 5e-4) + 1e-9
    assert cross_check([PureDpEvent(0.5)], 1e-3)[1] is None
    assert gaussian_dp([PureDpEvent(0.5)], 1e-3) is None


def test_what_leaves_is_a_release_and_nothing_else():
    release = sparse_release(np.ones(8), NUMBERS, Stream.seeded(1, "svt"))
    assert NoisedUpdate.released(release, "site-a", "event").vector.dtype == np.float32
    for wrong in (np.ones(8), release.values, None):
        with pytest.raises(TypeError, match="sparse_release"):
            NoisedUpdate.released(wrong, "site-a", "event")
    with pytest.raises(TypeError, match="sparse_release"):
        Release(np.ones(8), None)


def test_a_study_says_its_whole_epsilon_before_and_after(tmp_path):
    planned = study(sharing={"method": "random-mask", "share": 0.5})
    guarantee = explain(planned).guarantee
    assert 7.9 < guarantee.epsilon <= 8
    with RunFolder.create(tmp_path, planned) as folder:
        run = simulate(folder, load_cohort(None, planned), Options())
    claim = json.loads((run / "metrics.json").read_text())["privacy"]
    assert claim["epsilon"] == pytest.approx(guarantee.epsilon)
    assert claim["unit"] == "patient"
    lines = (run / "ledger" / "site-a.jsonl").read_text().splitlines()
    fields = [json.loads(line)["event"] if "event" in json.loads(line) else json.loads(line) for line in lines]
    entries = [entry_of({k: v for k, v in one.items() if k in ENTRY}) for one in fields]
    assert [entry.kind for entry in entries] == ["svt", "svt"]
    assert epsilon(released(entries), 1e-2) == pytest.approx(claim["epsilon"])


ENTRY = {
    *("format", "study_hash", "study", "site", "training_run", "round_number", "unit", "patients", "charged"),
    *("kind", "neighbouring", "epsilon", "released", "clip_range", "threshold", "generator"),
}


def test_a_published_setting_is_taken_and_told_for_what_it_is():
    huge = study().replace(privacy={"epsilon": 4e6})
    assert explain(huge).guarantee.epsilon == pytest.approx(4e6)
    with pytest.raises(ConfigError, match="promises nothing"):
        tiny_study().replace(privacy={"epsilon": 4e6})


@pytest.mark.parametrize(
    ("sections", "expected"),
    [
        ({"privacy": {"mechanism": "svt", "released": None}}, "released is missing and mechanism = 'svt' needs it"),
        ({"sharing": {"method": "percentile", "share": 0.1}}, "'svt', which chooses what is sent: use 'full' or"),
        ({"sharing": {"method": "low-rank", "rank": 1, "bits": 2}}, "zeros would become noise"),
    ],
)
def test_what_does_not_go_with_it_is_a_sentence(sections, expected):
    with pytest.raises(ConfigError, match=expected):
        study().replace(**sections)
    assert MECHANISMS["svt"].trust.claims_epsilon
