import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats
from scipy.special import ndtri

from fedseg.privacy import samplers
from fedseg.privacy.samplers import Table, discrete_gaussian, discrete_gaussian_pmf, skellam, skellam_pmf
from secagg.prg import Stream

DRAWS = 200_000
BOTH = pytest.mark.parametrize("pmf", [skellam_pmf, discrete_gaussian_pmf])


class Counted:
    """A seeded stream that counts what is read, and can begin with given words."""

    def __init__(self, label, first=()):
        self._stream, self._first, self.read = Stream.seeded(11, label), list(first), 0

    def words64(self, n):
        self.read += 8 * n
        words = self._stream.words64(n)
        given = [self._first.pop(0) for _ in range(min(n, len(self._first)))]
        words[: len(given)] = given
        return words

    def uniform(self, n):
        return ((self.words64(n) >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52


def both_signs(pmf, variance, count=200):
    lows, highs = pmf(Fraction(variance), count, 200)
    half = np.array([float(Fraction(low + high, 2 << 200)) for low, high in zip(lows, highs, strict=True)])
    return np.concatenate([half[:0:-1], half])


def misfit(values, probabilities):
    """Chi-square's p-value of integers against probabilities around 0, cells of few merged."""
    reach = len(probabilities) // 2
    seen = np.bincount(np.clip(values, -reach, reach) + reach, minlength=len(probabilities))
    common = len(values) * probabilities > 10
    expected = np.append(len(values) * probabilities[common], len(values) * (1 - probabilities[common].sum()))
    seen = np.append(seen[common], seen[~common].sum())
    return stats.chisquare(seen[expected > 0], expected[expected > 0] * len(values) / expected.sum()).pvalue


def not_skellam(sampler, variance=2.5):
    """Why a sampler is no exact Skellam, or nothing. False alarm: about 1 in 5,000 seeds."""
    values, reasons = sampler(DRAWS, variance, Counted("shape")), []
    if misfit(values, both_signs(skellam_pmf, variance)) < 5e-5:
        reasons.append("shape")
    if abs(values.mean()) > 4.1 * math.sqrt(variance / DRAWS):
        reasons.append("mean")
    if abs(values.var() / variance - 1) > 4.1 * math.sqrt((2 + 1 / variance) / DRAWS):  # its kurtosis is 3 + 1/v
        reasons.append("variance")
    # Seven has 2^-59 at this variance: some word of 64 bits must lead to it, and none of 53 bits does.
    ends = [(end + step) % 2**64 for end in (0, 2**64 * 4095 // 4096) for step in range(-64, 65)]
    rare = sampler(2 * len(ends), 0.02, Counted("tail", [word for word in ends for _ in range(2)]))
    if np.abs(rare).max() < 7:
        reasons.append("tail")
    return reasons


def rounded_gaussian(n, variance, stream):
    return np.rint(math.sqrt(variance) * ndtri(stream.uniform(n))).astype(np.int64)


def float_poisson(n, variance, stream):
    counts = np.searchsorted(stats.poisson.cdf(np.arange(60), variance / 2), stream.uniform(2 * n))
    return counts[::2] - counts[1::2]


def test_skellam_is_exact_and_what_is_usually_taken_for_it_is_not():
    assert not_skellam(skellam) == []
    assert {"shape", "variance", "tail"} <= set(not_skellam(rounded_gaussian))
    assert not_skellam(float_poisson) == ["tail"]


@pytest.mark.parametrize("variance", [0.25, Fraction(7, 3), 40])
def test_the_discrete_gaussian_has_its_shape(variance):
    values = discrete_gaussian(DRAWS, variance, Counted("gauss"))
    assert misfit(values, both_signs(discrete_gaussian_pmf, variance)) > 1e-4
    if variance == 0.25:  # a rounded Gaussian of this deviation is another distribution
        assert misfit(rounded_gaussian(DRAWS, variance, Counted("gauss")), both_signs(discrete_gaussian_pmf, 0.25)) == 0


@pytest.mark.parametrize("variance", [1600, 10**6, 10**8])
@pytest.mark.parametrize("sampler", [skellam, discrete_gaussian])
def test_large_variances_have_moments_and_tails(sampler, variance):
    """False alarm: about 1 in 10,000."""
    values = sampler(DRAWS, variance, Counted("large")) / math.sqrt(variance)
    assert abs(values.mean()) < 4.5 / math.sqrt(DRAWS)
    assert abs(values.var() - 1) < 4.5 * math.sqrt(2 / DRAWS)
    between = Counted("between").uniform(DRAWS) - 0.5
    assert stats.kstest(values + between / math.sqrt(variance), "norm").pvalue > 1e-5
    for deviations in (2, 3, 4):
        chance = 2 * stats.norm.sf(deviations)
        seen = (np.abs(values) > deviations).sum()
        assert abs(seen - DRAWS * chance) < 4.5 * math.sqrt(DRAWS * chance) + 0.02 * DRAWS * chance + 3


@pytest.mark.parametrize("variance", [0.3, 3, 500])
def test_sums_of_skellam_are_skellam(variance):
    total = sum(skellam(DRAWS, Fraction(variance) / 5, Counted(f"site {site}")) for site in range(5))
    reach = 40 + 8 * math.isqrt(int(variance))
    assert misfit(total, both_signs(skellam_pmf, variance, reach)) > 1e-4


@pytest.mark.parametrize("variance", [Fraction(1, 100), Fraction(0.7), Fraction(3), Fraction(900)])
@mpmath.workprec(300)
def test_bounds_hold_the_true_probability(variance):
    v = mpmath.mpf(variance.numerator) / variance.denominator
    whole = mpmath.nsum(lambda k: mpmath.exp(-k * k / (2 * v)), [-mpmath.inf, mpmath.inf]) if v < 9 else None
    whole = whole or mpmath.sqrt(2 * mpmath.pi * v) * (1 + 2 * mpmath.exp(-2 * mpmath.pi**2 * v))
    for pmf, true in (
        (skellam_pmf, lambda k: mpmath.exp(-v) * mpmath.besseli(k, v)),
        (discrete_gaussian_pmf, lambda k: mpmath.exp(-(mpmath.mpf(k) ** 2) / (2 * v)) / whole),
    ):
        lows, highs = pmf(variance, 400, 160)
        for k in (0, 1, 2, 7, 40, 150):
            assert lows[k] <= true(k) * 2**160 <= highs[k]
            assert highs[k] - lows[k] <= 2 + (lows[k] >> 90)


@BOTH
@given(variance=st.fractions(Fraction(1, 1000), 2000, max_denominator=1000), word=st.integers(20, 63))
@settings(max_examples=40, deadline=None)
def test_every_word_stands_for_what_it_should(pmf, variance, word):
    """Words of a magnitude, sure and all, are its probability rounded down and up: nothing else is possible."""
    table = Table(pmf, variance, word)
    lows, highs = pmf(variance, len(table._sure) + 40, 300)
    room = (1 << word) * 4095 // 4096
    for k, sure in enumerate(table._sure[:-1].tolist()):
        times = room if k == 0 else 2 * room
        assert sure <= times * lows[k] >> 300
        assert sure + 2 >= table._edges[k + 1] - table._edges[k] >= -(-times * highs[k] >> 300)
    tail = (1 << 300) - 2 * sum(lows[: len(table._sure) - 1]) + lows[0]
    assert 0 <= tail << word <= 1 << 300
    assert table._edges[-1] < 1 << word


@BOTH
def test_a_table_of_few_bits_has_the_same_distribution(pmf):
    """With 17 bits a word in a thousand lies between bounds or in the tail: the rare ways are walked often."""
    values = Table(pmf, Fraction(3), 17).draw(DRAWS, Counted("few bits"))
    assert misfit(values, both_signs(pmf, 3)) > 1e-4


@BOTH
@pytest.mark.parametrize("word", [20, 63])
def test_a_word_between_bounds_is_settled_exactly(pmf, word):
    """Each by its own binomial test. False alarm: about 1 in 1,000 over all."""
    table, draws, stream = Table(pmf, Fraction(2), word), 2000, Counted("between")
    lows, _ = pmf(Fraction(2), 60, 300)
    room = (1 << word) * 4095 // 4096
    for k in range(4):
        sure = int(table._sure[k])
        chance = float(Fraction((room if k == 0 else 2 * room) * lows[k], 1 << 300) - sure)
        kept = sum(table._settle(k, sure, stream) == k for _ in range(draws))
        assert stats.binomtest(kept, draws, min(chance, 1.0)).pvalue > 1e-4


@BOTH
@pytest.mark.parametrize("word", [20, 63])
def test_the_tail_beyond_the_table_has_its_own_distribution(pmf, word, monkeypatch):
    monkeypatch.setattr(samplers, "_reach", lambda variance, word: 1)  # so that tables end as early as they may
    table, draws, stream = Table(pmf, Fraction(19, 9), word), 4000, Counted("tail")
    last = len(table._sure) - 1
    lows, _ = pmf(Fraction(19, 9), last + 60, 400)
    room = 2 * ((1 << word) * 4095 // 4096)
    chances = [float(Fraction(room * low, 1 << 400)) for low in lows[last:]]
    found = [table._settle(last, 0, stream) for _ in range(draws)]
    assert table._settle(last, 1, stream) is None
    seen = [found.count(None), found.count(last), sum(k is not None and k > last for k in found)]
    expected = [draws * chance for chance in (1 - sum(chances), chances[0], sum(chances[1:]))]
    assert seen[1] > 0
    assert stats.chisquare(seen, np.array(expected) * draws / sum(expected)).pvalue > 1e-4


@pytest.mark.parametrize("sampler", [skellam, discrete_gaussian])
def test_a_draw_reads_eight_bytes_and_rarely_eight_more(sampler):
    stream = Counted("bytes")
    sampler(1 << 20, 900, stream)
    again = stream.read / 8 - (1 << 20)
    assert again == pytest.approx(256, abs=5 * 16)  # one in 4,096 words stands for nothing


def test_a_table_serves_all_draws_of_a_variance():
    assert samplers._table(skellam_pmf, Fraction(5)) is samplers._table(skellam_pmf, Fraction(5))
    assert len(skellam(0, 5, Stream())) == 0


@pytest.mark.parametrize("variance", [0, -1.0, math.nan, 2**33, math.inf])
def test_a_variance_out_of_range_is_refused(variance):
    for sampler in (skellam, discrete_gaussian):
        with pytest.raises(ValueError, match="above 0 and at most"):
            sampler(3, variance, Stream())
