import math
from fractions import Fraction

import numpy as np
import pytest
from dp_accounting.dp_event import GaussianDpEvent, LaplaceDpEvent, PoissonSampledDpEvent, SelfComposedDpEvent
from dp_accounting.rdp import RdpAccountant

from fedseg.errors import ConfigError, PrivacyError
from fedseg.privacy import renyi
from fedseg.privacy.accounting import accountants, cross_check, epsilon, gaussian_dp, gaussian_steps, in_words
from fedseg.privacy.renyi import ORDERS, SkellamDpEvent
from fedseg.privacy.samplers import discrete_gaussian_pmf, skellam_pmf
from fedseg.privacy.shared_noise import SMOOTHED, SharedNoise, plan_noise
from secagg.prg import Stream

KINDS = pytest.mark.parametrize("kind", ["skellam", "gaussian"])
TERMS = {"budget": 4.0, "delta": 1e-3, "sample_rate": 1.0, "steps": 20, "length": 4096}


def noise_and_moved(pmf, variance, shift, reach):
    """Exact probabilities of noise, and of noise moved by one patient."""
    lows, _ = pmf(Fraction(variance), reach + 1, 900)
    half = [low / 2**900 for low in lows]
    whole = np.array([0.0] * shift + half[:0:-1] + half)
    return whole, np.concatenate([whole[shift:], np.zeros(shift)])


def divergence(p, q, order):
    both = (p > 0) & (q > 0)
    return math.log(np.sum(np.exp(order * np.log(p[both]) - (order - 1) * np.log(q[both])))) / (order - 1)


def revealed(p, q, loss):
    """Delta at epsilon `loss`: no bound, the thing itself, in both directions."""
    return max(np.maximum(a - math.exp(loss) * b, 0).sum() for a, b in ((p, q), (q, p)))


def test_epsilon_of_the_privacy_brief():
    """n = 10, z = 4, T = 100 at delta 1e-5, by how many honest shares remain; `design/privacy.md` had 14.2, 18.2, 22.6.

    The discrete Gaussian, for which PLD exists, needs 13.2, 16.6 and 20.7.
    """
    for kind, known in (("skellam", [14.18, 18.19, 22.63]), ("gaussian", [13.21, 16.59, 20.68])):
        noise = SharedNoise(kind, 1_600_000, 1000, 100_000)  # (4 x 1000)^2 over ten sites
        found = [epsilon([noise.event(honest, 1.0, 100)], 1e-5) for honest in (10, 7, 5)]
        assert found == pytest.approx(known, abs=0.006)


EMNIST = 100 / 3400


@pytest.mark.parametrize(
    ("deviation", "scale", "l2", "l1", "rate", "steps", "delta", "published"),
    [
        (40.0, 1000, 1124.1245482596669, 1151103.537417899, 1.0, 1500, 1e-5, 5.214422089497488),
        (40.0, 100, 522.2604714124935, 272756.0, 1.0, 1500, 1e-5, 35.69750969975463),
        (10.0, 100, 522.2604714124935, 272756.0, 1.0, 100, 1e-5, 37.40229247395034),
        (1.0, 3000, 3043.9540075369077, 3117008.9037177935, EMNIST, 1500, 1 / 3400, 7.733795662363748),
    ],
)
def test_skellam_noise_has_the_epsilon_of_its_authors(deviation, scale, l2, l1, rate, steps, delta, published):
    """What the published program of Agarwal, Kairouz and Liu gives for 2^20 values, clip 1, beta exp(-1/2).

    With a random draw it has the factor of 3 of Zhu and Wang, which noise that is symmetric does not need.
    """
    one = SkellamDpEvent((deviation * scale) ** 2, l2, l1)
    found = epsilon([SelfComposedDpEvent(one if rate == 1 else PoissonSampledDpEvent(rate, one), steps)], delta)
    assert found == pytest.approx(published, rel=1e-9) if rate == 1 else 0.85 * published < found < published


@pytest.mark.parametrize(
    ("share", "scale", "sites", "rate", "steps", "delta", "l2", "published"),
    [
        (4.0, 1000, 100, 1.0, 1500, 1e-5, 1124.1245482596669, 5.214422086819823),
        (4.0, 1000, 60, 1.0, 1500, 1e-5, 1124.1245482596669, 7.036786628831665),
        (1.0, 1000, 40, 1.0, 100, 1e-5, 1124.1245482596669, 9.406141628831664),
        (0.1, 3000, 100, EMNIST, 1500, 1 / 3400, 3043.9540075369077, 7.7337944067747815),
    ],
)
def test_discrete_gaussian_noise_has_the_epsilon_of_its_authors(share, scale, sites, rate, steps, delta, l2, published):
    """The same of Kairouz, Liu and Steinke, whose program has a Rényi bound where PLD is 7 to 8 % closer."""
    noise = SharedNoise("gaussian", round((share * scale) ** 2), math.ceil(l2), 1 << 20)
    as_gaussian = RdpAccountant(range(2, 129))
    multiplier = math.sqrt(sites) * share * scale / l2
    one = GaussianDpEvent(multiplier)
    as_gaussian.compose(one if rate == 1 else PoissonSampledDpEvent(rate, one), steps)
    assert as_gaussian.get_epsilon(delta) <= published * (1 + 1e-4)
    found = epsilon([noise.event(sites, rate, steps)], delta)
    assert 0.75 * published < found < published
    assert found == pytest.approx(0.926 * published, rel=0.01) or rate < 1


@pytest.mark.parametrize(("variance", "shift"), [(4, 1), (25, 3), (400, 20), (900, 45)])
def test_the_skellam_bound_holds_and_is_close_in_one_dimension(variance, shift):
    event = SkellamDpEvent(variance, shift, shift)
    noise, moved = noise_and_moved(skellam_pmf, variance, shift, 14 * math.isqrt(variance) + 12 * shift)
    for order in (2, 3, 4, 6):
        true = divergence(moved, noise, order)
        assert true <= event.divergence(order) * (1 + 1e-9)
        assert event.divergence(order) <= true * (1.06 if variance >= 400 else 1.8)
        assert event.divergence(order) <= order / (2 * event.as_gaussian() ** 2) * (1 + 1e-12)


@pytest.mark.parametrize("rate", [0.02, 0.3, 0.9])
def test_a_random_draw_of_skellam_noise_is_bounded_in_both_directions(rate):
    event = PoissonSampledDpEvent(rate, SkellamDpEvent(400, 20, 20))
    noise, moved = noise_and_moved(skellam_pmf, 400, 20, 600)
    mixed, moments = (1 - rate) * noise + rate * moved, renyi._moments(event)
    for order in (2, 3, 5, 8):
        bound = moments[ORDERS.index(order)] / (order - 1)
        more, less = divergence(mixed, noise, order), divergence(noise, mixed, order)
        assert less <= more <= bound * (1 + 1e-9)
        assert order > 3 or bound <= more * 1.1


@pytest.mark.parametrize("rate", [1.0, 0.1])
def test_orders_and_conversion_agree_with_dp_accounting_on_gaussians(rate):
    gaussian = GaussianDpEvent(1.7)
    event = gaussian if rate == 1 else PoissonSampledDpEvent(rate, gaussian)
    theirs = RdpAccountant(ORDERS).compose(event, 40).get_epsilon(1e-5)
    assert renyi.epsilon([(event, 40)], 1e-5) == pytest.approx(theirs, rel=1e-9)


@pytest.mark.parametrize(("variance", "shift"), [(36, 6), (400, 20), (900, 60)])
@pytest.mark.parametrize("rate", [1.0, 0.2])
def test_discrete_gaussian_noise_reveals_no_more_than_the_continuous_one_that_is_accounted(variance, shift, rate):
    noise, moved = noise_and_moved(discrete_gaussian_pmf, variance, shift, 16 * math.isqrt(variance) + shift)
    mixed = (1 - rate) * noise + rate * moved
    multiplier = math.sqrt(variance - SMOOTHED) / shift
    for claimed in (0.3, 0.05, 1e-3):
        at = epsilon([gaussian_steps(multiplier, rate, 1)], claimed)
        if at > 0:
            assert revealed(mixed, noise, at) <= claimed * (1 + 1e-6)


def test_the_continuous_gaussian_of_all_the_variance_would_promise_too_much():
    """Why some variance is given away: with sigma 1 the discrete Gaussian is far from any Gaussian."""
    noise, moved = noise_and_moved(discrete_gaussian_pmf, Fraction(1, 4), 1, 30)
    at = epsilon([gaussian_steps(0.5, 1.0, 1)], 0.02)
    assert revealed(moved, noise, at) > 0.02
    with pytest.raises(ValueError, match="variance of 36"):
        SharedNoise("gaussian", 35, 3, 10)


def test_sums_of_discrete_gaussian_shares_are_discrete_gaussians():
    share, _ = noise_and_moved(discrete_gaussian_pmf, 36, 0, 120)
    total = share
    for sites in (2, 3, 4):
        total = np.convolve(total, share)
        whole, _ = noise_and_moved(discrete_gaussian_pmf, 36 * sites, 0, 200)
        middle = len(total) // 2
        assert total[middle - 60 : middle + 61] == pytest.approx(whole[140:261], rel=1e-9)


@KINDS
def test_a_plan_is_the_smallest_noise_that_meets_its_budget(kind):
    noise = plan_noise(kind, honest=3, **TERMS)
    assert epsilon([noise.event(3, 1.0, 20)], 1e-3) <= 4
    less = SharedNoise(kind, int(noise.variance * 0.99), noise.sensitivity, noise.length)
    assert epsilon([less.event(3, 1.0, 20)], 1e-3) > 4
    cross_check([noise.event(3, 1.0, 20)], 1e-3)
    assert noise.sensitivity == 16 * 64
    assert plan_noise(kind, honest=6, **TERMS).variance == pytest.approx(noise.variance / 2, rel=1e-3)


@KINDS
def test_more_honest_sites_than_planned_cost_less_and_fewer_cost_more(kind):
    noise = plan_noise(kind, honest=4, **TERMS)
    spent = [epsilon([noise.event(honest, 1.0, 20)], 1e-3) for honest in (2, 3, 4, 5, 8)]
    assert spent == sorted(spent, reverse=True)
    assert spent[2] <= 4 < spent[1]
    # One dropout more costs what one colluder more does: both take one share away.
    assert noise.noise_multiplier(3) == pytest.approx(noise.noise_multiplier(4) * math.sqrt(3 / 4))


@KINDS
def test_one_dimension_by_monte_carlo(kind):
    """No threshold tells a patient's presence better than planned; with a quarter of the noise one does.

    False alarm: about 1 in 10,000.
    """
    draws, delta, loss = 200_000, 0.02, 1.0
    noise = plan_noise(kind, budget=loss, delta=delta, sample_rate=1.0, steps=1, honest=2, length=1, sensitivity=200)

    def best(shares):
        total = sum(shares.draw(draws, Stream.seeded(site, "monte carlo")) for site in range(2))
        moved = sum(shares.draw(draws, Stream.seeded(site, "monte carlo", "moved")) for site in range(2)) + 200
        thresholds = np.arange(-1000, 2000, 20)
        above = [(np.sort(sample)[:, None] > thresholds).mean(axis=0) for sample in (moved[::10], total[::10])]
        return float((above[0] - math.exp(loss) * above[1]).max())

    assert best(noise) <= delta + 4.5 * math.sqrt(0.25 / (draws / 10))
    assert best(SharedNoise(kind, noise.variance // 4, 200, 1)) > delta + 0.05


def test_skellam_has_two_programs_of_one_theory_and_no_mu():
    noise = plan_noise("skellam", honest=3, **TERMS)
    spent = [noise.event(3, 1.0, 20)]
    first, second = cross_check(spent, 1e-3)
    assert second == pytest.approx(first, rel=1e-3)
    assert accountants(spent) == ("Rényi", "dp-accounting's Rényi")
    assert gaussian_dp(spent, 1e-3) is None
    assert "right at most" in in_words(None, loss=first, delta=1e-3)
    # It is a bound: above what PLD says of Gaussian noise of the same deviation, by less than a quarter.
    gaussian = epsilon([gaussian_steps(noise.noise_multiplier(3), 1.0, 20)], 1e-3)
    assert gaussian < first < 1.25 * gaussian


def test_without_mu_the_words_hold_the_bound():
    assert "1.0%" in in_words(None, loss=0.0, delta=0.0)
    assert 0.01 * math.e + 1e-3 == pytest.approx(0.0282, abs=1e-4)
    assert "2.9%" in in_words(None, loss=1.0, delta=1e-3), "rounded up"
    assert "100.0%" in in_words(None, loss=8.0, delta=1e-3)


def test_a_grid_so_coarse_that_the_bounds_part_is_refused():
    with pytest.raises(PrivacyError, match="two accountants disagree"):
        cross_check([SkellamDpEvent(1, 1, 1)], 1e-3)


def test_releases_that_no_accountant_knows_together_share_delta():
    noise, laplace = plan_noise("skellam", honest=3, **TERMS).event(3, 1.0, 20), LaplaceDpEvent(2.0)
    both, second = cross_check([noise, laplace], 1e-3)
    assert both == pytest.approx(epsilon([noise], 5e-4) + epsilon([laplace], 5e-4), abs=1e-6)
    assert second is None


def test_mixed_with_gaussian_steps_all_is_one_renyi_bound():
    noise = plan_noise("skellam", honest=3, **TERMS).event(3, 1.0, 20)
    both = epsilon([noise, gaussian_steps(5.0, 0.5, 10)], 1e-3)
    assert epsilon([noise], 1e-3) < both < epsilon([noise], 5e-4) + epsilon([gaussian_steps(5.0, 0.5, 10)], 5e-4)


@KINDS
def test_what_cannot_be_planned_is_said(kind):
    with pytest.raises(ConfigError, match=r"min_survivors must be above max_corrupt"):
        plan_noise(kind, honest=0, **TERMS)
    with pytest.raises(ConfigError, match=r"epsilon = 4 cannot be met: so much noise"):
        plan_noise(kind, honest=1, sensitivity=60_000, **TERMS)
    with pytest.raises(ValueError, match="protects nobody"):
        SkellamDpEvent(0, 1, 1)


@KINDS
def test_wide_models_take_the_finest_grid_that_shares_allow(kind):
    noise = plan_noise(kind, honest=2, **{**TERMS, "length": 10**9})
    assert noise.variance <= 2**32
    assert epsilon([noise.event(2, 1.0, 20)], 1e-3) <= 4


def test_the_binomial_sum_is_a_binomial_sum():
    """The order-2 case by hand: 1 + q^2 (e^D - 1)."""
    event = SkellamDpEvent(100, 10, 10)
    moment = renyi._moments(PoissonSampledDpEvent(0.3, event))[0]
    assert moment == pytest.approx(math.log(1 + 0.09 * (math.exp(event.divergence(2)) - 1)))
