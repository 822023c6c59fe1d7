import math
import tracemalloc

import pytest
from dp_accounting.dp_event import LaplaceDpEvent, UnsupportedDpEvent
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant
from scipy.optimize import brentq
from scipy.stats import norm

from fedseg.budget.charge import charge, charge_metrics, spent
from fedseg.budget.explain import explain
from fedseg.budget.plan import noise_multiplier, round_entry
from fedseg.errors import BudgetExceededError, ConfigError, LedgerError, PrivacyError
from fedseg.ledger import Ledger, released
from fedseg.privacy import accounting
from fedseg.privacy.accounting import (
    LEAST_GUESS,
    cross_check,
    epsilon,
    gaussian_dp,
    gaussian_steps,
    in_words,
    noise_multiplier_for,
)
from fedseg.privacy.prv import prv_accountant
from fedseg.study import parse_study

STUDY = """
[study]
name = "small"
structures = ["lesion"]
rounds = 3
local_steps = 2
lr = 0.1
[data]
layout = "decathlon"
modality = ["T2w"]
dims = 2
size = 16
[privacy]
mechanism = "local"
epsilon = 2.0
delta = 1e-3
sample_rate = 0.25
clip_norm = 0.05
denominator = 8
[secagg]
clip_range = 0.5
[[sites]]
id = "a"
[[sites]]
id = "b"
[[sites]]
id = "c"
"""


@pytest.fixture
def study():
    return parse_study(STUDY, "study.toml")


def delta_of_gaussian(mu, loss):
    return norm.cdf(mu / 2 - loss / mu) - math.exp(loss) * norm.cdf(-mu / 2 - loss / mu)


def test_known_value_and_second_opinion():
    release = [gaussian_steps(1.0, 0.01, 1000)]
    assert epsilon(release, 1e-5) == pytest.approx(1.828, abs=1e-3)
    pld, prv = cross_check(release, 1e-5)
    assert prv == pytest.approx(pld, rel=0.01)


def test_the_second_opinion_is_opacus_own_to_the_last_bit():
    """It is loaded without the rest of Opacus; another release of it may no longer allow that."""
    own, whole = prv_accountant(), PRVAccountant()
    own.history = whole.history = [(1.0, 0.01, 1000), (3.0, 0.5, 20)]
    assert own.get_epsilon(1e-5) == whole.get_epsilon(1e-5)


@pytest.mark.parametrize(("sigma", "steps", "delta"), [(5.0, 15, 1e-3), (0.7, 1, 1e-5), (40.0, 300, 1e-6)])
def test_full_batches_are_one_gaussian_exactly(sigma, steps, delta):
    mu = math.sqrt(steps) / sigma
    exact = brentq(lambda loss: delta_of_gaussian(mu, loss) - delta, 0, 100, xtol=1e-12)
    assert epsilon([gaussian_steps(sigma, 1.0, steps)], delta) == pytest.approx(exact, abs=1e-8)
    assert gaussian_dp([gaussian_steps(sigma, 1.0, steps)], delta) == pytest.approx(mu)


def test_the_grid_bounds_the_exact_value_from_above_and_closely():
    steps = [gaussian_steps(5.0, 1.0, 15)]
    exact = epsilon(steps, 1e-3)
    assert exact <= accounting._accountant(accounting._composed(steps)).get_epsilon(1e-3) <= exact + 1e-4


@pytest.mark.parametrize("steps", [(5.0, 0.01, 1000), (20.0, 0.1, 1000), (1.15, 0.125, 200)])
def test_the_grid_is_fine_enough_for_the_sample_rate(steps):
    finer = PLDAccountant(value_discretization_interval=5e-5).compose(gaussian_steps(*steps))
    assert 1 - 1e-6 <= epsilon([gaussian_steps(*steps)], 1e-3) / finer.get_epsilon(1e-3) <= 1.01


def test_composition_does_not_depend_on_how_it_is_written():
    parts = [gaussian_steps(2.0, 0.2, 10), gaussian_steps(3.0, 0.2, 5), gaussian_steps(2.0, 0.2, 20)]
    whole = [gaussian_steps(3.0, 0.2, 5), gaussian_steps(2.0, 0.2, 30)]
    assert epsilon(parts, 1e-3) == epsilon(whole, 1e-3)
    most, fewer = [gaussian_steps(2.0, 0.2, 30)], [gaussian_steps(2.0, 0.2, 29)]
    assert epsilon(parts, 1e-3) > epsilon(most, 1e-3) > epsilon(fewer, 1e-3)


def test_mixed_rates_compose():
    sampled, full = [gaussian_steps(2.0, 0.3, 20)], [gaussian_steps(4.0, 1.0, 4)]
    both = epsilon(sampled + full, 1e-3)
    assert max(epsilon(sampled, 1e-3), epsilon(full, 1e-3)) < both < epsilon(sampled, 5e-4) + epsilon(full, 5e-4)
    cross_check(sampled + full, 1e-3)


def test_a_release_of_a_new_kind_composes_without_an_edit_in_accounting():
    laplace, gaussian = LaplaceDpEvent(2.0), gaussian_steps(2.0, 0.3, 20)
    assert epsilon([laplace], 1e-9) == pytest.approx(0.5, abs=2e-3)  # pure: 1 / noise multiplier
    both, second = cross_check([laplace, gaussian], 1e-3)
    assert epsilon([gaussian], 1e-3) < both <= 0.5 + epsilon([gaussian], 1e-3) + 2e-3
    assert second is None  # the second accountant knows Gaussians only
    with pytest.raises(PrivacyError, match="Gaussian noise only"):
        epsilon([laplace], 1e-3, "prv")
    assert gaussian_dp([laplace], 1e-3) > 0


def test_a_release_that_no_accountant_knows_is_never_counted_as_free():
    with pytest.raises(PrivacyError, match="no accountant here knows"):
        epsilon([UnsupportedDpEvent()], 1e-3)


def test_nothing_costs_nothing_and_no_noise_costs_everything():
    assert epsilon([], 1e-3) == 0
    assert epsilon([gaussian_steps(0.0, 0.5, 1), gaussian_steps(9.0, 0.5, 1)], 1e-3) == math.inf
    assert gaussian_dp([], 1e-3) == 0
    assert gaussian_dp([gaussian_steps(0.0, 1.0, 1)], 1e-3) == math.inf


def test_ten_thousand_rounds_are_checked_within_bounded_memory():
    rounds = lambda sigma: [gaussian_steps(sigma, 1.0, 10_000)]  # noqa: E731
    epsilon(rounds(20.0), 1e-5, "prv")
    tracemalloc.start()
    first, second = cross_check(rounds(20.0), 1e-5)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    assert second == pytest.approx(first, rel=accounting.AGREEMENT)
    assert cross_check(rounds(2.0), 1e-5) == (pytest.approx(1462.285, rel=1e-4), None)  # once 17 GB


@pytest.mark.parametrize("accountant", ["gdp", "rdp", "PLD"])
def test_accountants_that_are_no_tight_bound_are_refused(accountant):
    with pytest.raises(ConfigError, match=rf"'{accountant}'.*use 'pld'"):
        epsilon([gaussian_steps(1.0, 0.01, 1000)], 1e-5, accountant)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-3, math.nan])
def test_delta_is_a_probability(delta):
    with pytest.raises(ConfigError, match="delta"):
        epsilon([gaussian_steps(1.0, 0.01, 10)], delta)


def test_disagreeing_accountants_claim_nothing(monkeypatch):
    more = lambda composition, delta: 1.02 * accounting._pld_epsilon(composition, delta)  # noqa: E731
    monkeypatch.setattr(accounting, "_prv_epsilon", more)
    with pytest.raises(PrivacyError, match="disagree"):
        cross_check([gaussian_steps(2.0, 1.0, 10)], 1e-3)


@pytest.mark.parametrize(("budget", "rate", "steps"), [(8.0, 1.0, 30), (4.0, 0.125, 200), (0.2, 0.05, 50)])
def test_the_noise_multiplier_is_the_smallest_that_meets_the_budget(budget, rate, steps):
    sigma = noise_multiplier_for(budget, 1e-3, rate, steps)
    assert epsilon([gaussian_steps(sigma, rate, steps)], 1e-3) <= budget
    assert epsilon([gaussian_steps(0.995 * sigma, rate, steps)], 1e-3) > budget
    assert sigma == round(sigma, 4)


@pytest.mark.parametrize(("budget", "rate", "steps"), [(0.001, 1.0, 10_000), (0.0, 0.5, 10), (-1.0, 0.5, 10)])
def test_a_budget_out_of_reach_says_what_to_change(budget, rate, steps):
    with pytest.raises(
        ConfigError, match=r"\[privacy\] epsilon = .* cannot be met: .* spend at least .*; raise epsilon"
    ):
        noise_multiplier_for(budget, 1e-3, rate, steps)


@pytest.mark.parametrize(("budget", "rate", "steps"), [(0.01, 1e-6, 2), (1000.0, 1.0, 1)])
def test_rare_draws_and_huge_budgets_do_not_switch_the_noise_off(budget, rate, steps):
    assert noise_multiplier_for(budget, 1e-3, rate, steps) == accounting.SMALLEST_NOISE_MULTIPLIER


def test_mu_is_never_below_the_privacy_curve_of_sampled_steps():
    release = [gaussian_steps(1.2, 0.2, 60)]
    mu = gaussian_dp(release, 1e-3)
    curve = accounting._accountant(accounting._composed(release))
    for loss in (0.0, 0.3, 1.0, 2.0, 3.0):
        if (delta := curve.get_delta(loss)) >= 1e-3:
            assert delta <= delta_of_gaussian(mu, loss) * (1 + 1e-3)
    central_limit = 0.2 * math.sqrt(60 * (math.exp(1 / 1.2**2) - 1))
    assert mu > central_limit  # which is why the central limit is not used


@pytest.mark.parametrize(("rate", "sigma", "delta"), [(0.01, 0.5, 0.01), (0.1, 0.5, 0.01), (0.1, 0.5, 1e-5)])
def test_no_guess_is_right_more_often_than_mu_says(rate, sigma, delta):
    """Whoever looks at one drawn step, by its exact curve: rare draws that show plainly have no Gaussian's."""
    mu = gaussian_dp([gaussian_steps(sigma, rate, 1)], delta)
    for prior in (LEAST_GUESS, 0.01, 0.1, 0.5):
        right = (1 - rate) * prior + rate * norm.cdf(norm.ppf(prior) + 1 / sigma)
        assert right <= norm.cdf(norm.ppf(prior) + mu), prior


def test_words_hold_the_bound():
    assert norm.cdf(norm.ppf(0.01) + 2) == pytest.approx(0.37208, abs=1e-5)
    assert "37.3%" in in_words(2.0), "rounded up"
    assert in_words(0.0).count("1%") == 1
    assert "1.0%" in in_words(0.0)
    assert "100.0%" in in_words(math.inf)


def test_charge_stops_before_the_round_that_would_pass_the_budget(study, tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl")
    ids = [charge(ledger, study, "a", "run", number) for number in (1, 2, 4)]  # 3 burned before it was charged here
    assert len(set(ids)) == 3
    before = ledger.path.read_bytes()
    with pytest.raises(BudgetExceededError, match=r"site a: round 5 .* above the budget of 2"):
        charge(ledger, study, "a", "run", 5)
    assert ledger.path.read_bytes() == before
    assert charge(ledger, study, "a", "run", 4) == ids[2]  # another attempt of a charged round costs nothing
    assert 1.99 < spent(ledger, study) <= 2


def test_the_next_whole_round_counts_not_the_next_step(study, tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl")
    greedy = study.replace(study={"rounds": 3, "local_steps": 2})
    for number in (1, 2, 3):
        charge(ledger, greedy, "a", "run", number)
    one_more = round_entry(greedy, "a", "run", 4).model_copy(update={"steps": 1})
    assert epsilon(released([*ledger.entries(), one_more]), 1e-3) > 2 >= epsilon(released(ledger.entries()), 1e-3)


def test_a_ledger_of_another_site_and_two_studies_in_one_run_are_refused(study, tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl")
    charge(ledger, study, "a", "run", 1)
    for other, site, told in ((study, "b", "another site"), (study.replace(study={"lr": 0.2}), "a", "another study")):
        with pytest.raises(LedgerError, match=told):
            charge(ledger, other, site, "run", 2)


def test_what_is_spent_composes_over_runs_and_studies(study, tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl")
    ids = {charge(ledger, study, "a", run, 1) for run in ("run", "again", "again")}
    assert len(ids) == 2  # round 1 of another run is another release, a second attempt is not
    assert spent(ledger, study) == pytest.approx(epsilon([gaussian_steps(noise_multiplier(study), 0.25, 4)], 1e-3))
    other = study.replace(
        study={"name": "other", "rounds": 1, "local_steps": 7}, privacy={"epsilon": 2.5, "delta": 1e-4}
    )
    assert epsilon(released([round_entry(other, "a", "third", 1)]), 1e-4) <= 2.5
    before = ledger.path.read_bytes()
    with pytest.raises(
        BudgetExceededError, match=r"epsilon to 3\.\S+ over all training runs, above the budget of 2\.5"
    ):
        charge(ledger, other, "a", "third", 1)
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("first", [{"privacy": {"mechanism": "none"}}, {"study": {"seed": 3}}])
def test_after_rounds_that_protected_nobody_no_epsilon_is_promised(study, tmp_path, first):
    ledger = Ledger(tmp_path / "a.jsonl")
    charge(ledger, study.replace(**first), "a", "trial", 1)
    assert spent(ledger, study) == math.inf
    with pytest.raises(BudgetExceededError, match="no epsilon can be promised"):
        charge(ledger, study, "a", "run", 1)
    assert len(ledger.entries()) == 1


def test_without_privacy_every_event_says_so(study, tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl")
    open_study = study.replace(privacy={"mechanism": "none"})
    for number in range(1, 9):
        charge(ledger, open_study, "a", "run", number)
    assert {entry.kind for entry in ledger.entries()} == {"none"}
    assert spent(ledger, open_study) == math.inf
    assert noise_multiplier(open_study) == 0
    told = explain(open_study)
    assert told.guarantee is None
    assert (told.plan.budget, told.plan.delta, told.plan.clip_norm) == (None, None, None)


def test_shared_metrics_are_recorded_and_not_counted(study, tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl")
    charge(ledger, study, "a", "run", 1)
    before = spent(ledger, study)
    charge_metrics(ledger, study, "a", "run", 1)
    assert spent(ledger, study) == before
    assert [entry.kind for entry in ledger.entries()] == ["local", "metrics"]


def test_a_seeded_study_claims_no_privacy(study):
    seeded = study.replace(study={"seed": 3})
    assert round_entry(study, "a", "run", 1).generator == "os"
    assert round_entry(seeded, "a", "run", 1).generator == "seeded: no privacy claim"
    assert any("seeded: no privacy claim" in note for note in explain(seeded).notes)


def test_explain_tells_the_whole_promise_before_training(study):
    told = explain(study, {"a": 100, "b": 1, "c": 30})
    plan, guarantee = told.plan, told.guarantee
    assert len(guarantee.curve) == 3
    assert list(guarantee.curve.values()) == sorted(guarantee.curve.values())
    assert guarantee.curve[3] == guarantee.epsilon <= plan.budget == 2
    assert guarantee.epsilon_second == pytest.approx(guarantee.epsilon, rel=0.01)
    assert plan.noise_multiplier == noise_multiplier(study)
    assert (plan.unit, plan.neighbouring, plan.delta, plan.steps) == ("patient", "add or remove one patient", 1e-3, 6)
    assert [(site.site, site.patients, site.expected_draw) for site in told.sites] == [
        ("a", 100, 25.0),
        ("b", 1, 0.25),
        ("c", 30, 7.5),
    ]
    assert "right at most" in guarantee.sentence


def test_explain_says_where_most_patients_are_never_drawn(study):
    assert not any("drawn" in note for note in explain(study).notes)
    rare = study.replace(privacy={"sample_rate": 0.1})
    assert any("0.6 times on average over all 6 steps" in note for note in explain(rare).notes)


def test_explain_warns_of_a_delta_that_allows_publishing_a_patient(study):
    assert not any("delta" in note for note in explain(study, {"a": 900}).notes)
    assert any("delta = 0.001" in note for note in explain(study, {"a": 900, "b": 100}).notes)


def test_epsilon_is_recomputed_from_events_alone(study, tmp_path):
    ledger = Ledger(tmp_path / "a.jsonl")
    charge(ledger, study, "a", "run", 1)
    charge(ledger, study, "a", "run", 2)
    release = [gaussian_steps(noise_multiplier(study), 0.25, 4)]
    assert spent(Ledger(tmp_path / "a.jsonl"), study) == epsilon(release, 1e-3)
    assert epsilon(released(ledger.entries()), 1e-5) > epsilon(released(ledger.entries()), 1e-3)


def test_many_rounds_are_not_each_composed(study):
    long = study.replace(study={"rounds": 1000}, privacy={"sample_rate": 1.0})
    assert list(explain(long).guarantee.curve) == [1, 200, 400, 600, 800, 1000]


def test_one_dropout_or_colluder_more_has_its_price_where_noise_is_shared(study):
    alone = explain(study).observers
    assert len({found for observer in alone for found in observer.epsilon.values()}) == 1
    text = STUDY.replace('"local"', '"distributed"\nnoise = "discrete-gaussian"')
    text = text.replace("local_steps = 2", "local_steps = 1").replace("sample_rate = 0.25", "sample_rate = 1.0")
    shared = parse_study(
        text + "".join(f'[[sites]]\nid = "{site}"\n' for site in "defghi"),
        "study.toml",
    )
    told = explain(shared)
    terms = shared.terms
    by = {observer.colluders: observer.epsilon for observer in told.observers}
    sums = list(by[0])
    assert (max(sums), min(sums)) == (9, terms.min_survivors)
    assert by[terms.max_corrupt][terms.min_survivors] == told.guarantee.epsilon <= 2
    assert by[terms.max_corrupt + 1][terms.min_survivors] > 2  # one colluder more
    for found in by.values():
        assert list(found.values()) == sorted(found.values())  # the fewer sites, the more is revealed
