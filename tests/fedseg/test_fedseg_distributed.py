"""Mechanism "distributed": one patient moves the integers by a bounded vector, and all step by the same sum."""

import asyncio
import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from fedseg.budget.achieved import achieved
from fedseg.data.loading import load_cohort
from fedseg.errors import ConfigError
from fedseg.evidence import HELD
from fedseg.ledger import Ledger, NoisySum
from fedseg.mechanisms import distributed
from fedseg.mechanisms.distributed import honest, noise_of
from fedseg.models import build_model, load_model
from fedseg.optimisers import OPTIMISERS
from fedseg.privacy.accounting import epsilon
from fedseg.privacy.shares import Grid, noise_share
from fedseg.report import write_report
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.update import flatten
from fedseg.verifying.figures import r06_figures
from fedseg.verifying.material import gather
from secagg.prg import Stream
from tests.support.command import run as command
from tests.support.federation import Federation
from tests.support.tiny import tiny_study

KEY = bytes(32)
CLIP, SENSITIVITY = 0.5, 300


@pytest.fixture(autouse=True)
def coarse(monkeypatch):
    """A grid whose table of noise is made at once."""
    monkeypatch.setattr(distributed, "DEVIATION", 1 << 8)


def shared(sites=3, rounds=2, **study):
    return tiny_study(mechanism="distributed", sites=sites, rounds=rounds, **study)


def train(study, folder, *listeners, **options):
    with RunFolder.create(folder, study, *listeners) as run:
        return simulate(run, load_cohort(None, study), Options(**options))


def weights(run, study):
    return flatten(load_model(run / "model.safetensors", study))


def no_noise(n):
    return np.zeros(n, np.int64)


gradients = st.one_of(
    st.lists(st.floats(-1, 1, width=32), min_size=70, max_size=70).map(np.array),
    st.integers(0, 69).map(lambda place: np.eye(70)[place]),
    st.floats(0, 1).map(lambda value: np.full(70, value)),
)


@settings(max_examples=200, deadline=None)
@given(gradient=gradients, sensitivity=st.sampled_from([24, 60, 300, 8192]), seed=st.integers(0, 2**32))
def test_no_patient_is_longer_than_the_sensitivity_whatever_rounding_does(gradient, sensitivity, seed):
    grid = Grid(70, CLIP, sensitivity)
    clipped = gradient * min(1.0, CLIP / max(np.linalg.norm(gradient), 1e-9))
    placed = grid.integers(clipped, KEY, Stream.seeded(seed, "rounding"))
    assert placed.dtype == np.int64
    assert placed @ placed <= sensitivity**2


def test_a_rounding_that_is_too_long_is_cut_and_not_let_through(monkeypatch):
    grid = Grid(4096, CLIP, 300)
    monkeypatch.setattr(Stream, "uniform", lambda self, n: np.zeros(n))  # every value up
    even = grid.gradient(np.ones(4096, np.int64), KEY)  # which is turned into 4.6 everywhere
    placed = grid.integers(even * CLIP / np.linalg.norm(even), KEY, Stream())
    assert (placed == 4).all()  # 5 would be too long


def test_what_patients_add_stands_for_the_sum_of_their_gradients():
    grid, rng = Grid(5000, CLIP, 8192), np.random.default_rng(1)
    each = rng.normal(size=(8, 5000))
    each *= CLIP / np.linalg.norm(each, axis=1, keepdims=True)
    total = sum(grid.integers(one, KEY, Stream.seeded(1, "patient", number)) for number, one in enumerate(each))
    error = grid.gradient(total, KEY) - each.sum(axis=0)
    step = 1 / grid.scale
    assert abs(error.mean()) < 4 * step / np.sqrt(5000)
    assert 0.5 * step < error.std() < step * np.sqrt(8 / 4)
    assert np.allclose(grid.gradient(total, bytes(31) + b"\1"), 0, atol=CLIP)  # another rotation gives something else
    assert abs(grid.gradient(total, bytes(31) + b"\1") - each.sum(axis=0)).max() > 100 * step


@settings(max_examples=30, deadline=None)
@given(chosen=st.sets(st.integers(0, 9)), extra=st.integers(0, 9))
def test_one_patient_more_adds_its_own_integers_and_changes_nothing_else(chosen, extra):
    grid, weight = Grid(70, CLIP, SENSITIVITY), torch.zeros(70, requires_grad=True)
    directions = torch.from_numpy(np.random.default_rng(3).normal(size=(10, 70))).float()

    def total(patients):
        losses = ((f"patient-{p}", weight @ directions[p]) for p in sorted(patients))
        return noise_share([weight], losses, grid, KEY, KEY, no_noise).values

    alone = total({extra})
    assert np.array_equal(total(chosen | {extra}) - total(chosen - {extra}), alone)
    assert 0.9 * SENSITIVITY**2 < alone @ alone <= SENSITIVITY**2


def test_a_gradient_that_is_not_finite_adds_nothing_and_stops_nobody():
    weight = torch.zeros(70, requires_grad=True)
    losses = [("a", weight.sum() * float("nan")), ("b", weight.sum() * float("inf"))]
    assert not noise_share([weight], losses, Grid(70, CLIP, SENSITIVITY), KEY, KEY, no_noise).values.any()


@pytest.mark.parametrize("noise", ["skellam", "discrete-gaussian"])
def test_the_shares_that_count_add_up_to_the_noise_that_is_accounted(noise):
    study = shared(sites=5, seed=None).replace(privacy={"noise": noise})
    mechanism, terms = study.mechanism, study.terms
    assert honest(terms) == study.policy(1).min_survivors - 1 == 3
    counted = []
    for _ in range(honest(terms)):
        taken = mechanism.begin(build_model(study), terms)
        taken.step([], lambda purpose: Stream().words(8).tobytes())
        counted.append(taken._share.values)
    deviation = np.sum(counted, axis=0).std()
    accounted = mechanism.noise_multiplier(terms) * noise_of(terms).sensitivity
    assert deviation == pytest.approx(accounted, rel=0.06)  # of 4096 values, 5 standard errors


def test_two_rounds_have_two_rotations(tmp_path):
    model = build_model(shared())
    before = distributed.rotation(flatten(model))
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    assert distributed.rotation(flatten(model)) != before


@pytest.mark.parametrize("optimizer", ["sgd", "adam"])
def test_secure_and_plain_give_one_model_bit_for_bit(tmp_path, optimizer):
    study = shared(rounds=3).replace(study={"optimizer": optimizer})
    secure, plain = train(study, tmp_path / "secure"), train(study, tmp_path / "plain", plain=True)
    assert np.array_equal(weights(secure, study), weights(plain, study))
    ends = [json.loads(line) for line in (secure / "events.jsonl").read_text().splitlines()]
    assert [event["exact"] for event in ends if event["kind"] == "end_round"] == [True] * 3
    claim = json.loads((secure / "metrics.json").read_text())["privacy"]
    assert 7 < claim["epsilon"] <= 8
    assert "at most 1 of the sites may side with the coordinator" in claim["trust"]


def test_an_interrupted_run_goes_on_with_the_optimisers_memory(tmp_path):
    study = shared(rounds=3).replace(run={"evaluate_every": 2})
    whole = train(study, tmp_path / "whole")

    def stop(event):
        if event.kind == "round" and event.round == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), RunFolder.create(tmp_path / "cut", study, stop) as folder:
        simulate(folder, load_cohort(None, study), Options())
    run = simulate(RunFolder.reopen(folder.path), load_cohort(None, study), Options())
    assert np.array_equal(weights(run, study), weights(whole, study))
    history = json.loads((run / "metrics.json").read_text())["history"]
    assert [entry["round"] for entry in history] == [2, 3]


def test_a_round_is_charged_as_one_noisy_sum(tmp_path):
    run = train(shared(seed=None, rounds=2), tmp_path)
    entries = Ledger(run / "ledger" / "site-a.jsonl").entries()
    assert [type(entry) for entry in entries] == [NoisySum] * 2
    assert (entries[0].noise, entries[0].shares, entries[0].generator) == ("gaussian", 2, "os")


def test_a_run_says_what_the_sites_that_were_in_each_sum_gave(tmp_path, monkeypatch, capsys):
    study = shared(sites=4, rounds=3, seed=None).replace(privacy={"noise": "skellam"})
    run = train(study, tmp_path, silent={"site-b": "MaskedInputCollection"}, silent_round=2)
    terms, noise = study.terms, noise_of(study.terms)
    planned, rate = honest(terms), terms.sample_rate
    assert (planned, terms.max_corrupt) == (2, 1)  # 3 honest shares in rounds 1 and 3, the fewest in round 2
    spent = epsilon([noise.event(2, rate, 1), noise.event(3, rate, 2)], terms.delta)
    privacy = json.loads((run / "metrics.json").read_text())["privacy"]
    told = privacy["achieved"]
    assert told["epsilon"] == pytest.approx(spent)
    assert told["charged"] == pytest.approx(privacy["epsilon"])  # a budget goes by this one
    assert epsilon([noise.event(3, rate, 3)], terms.delta) < spent < told["charged"]
    said = (
        f"planned for at least 2 honest shares of the noise: epsilon {up(told['charged'])}; with the sites that were "
        f"really in each sum: {up(spent)}"
    )
    assert told["sentence"].startswith(said)
    write_report(run)
    assert said in (run / "report.html").read_text()
    page = tmp_path / "page.html"
    code, _, err = command(capsys, monkeypatch, "statement", run, "--out", page)
    assert code == 0, err
    assert said in page.read_text()
    assert json.loads(page.with_suffix(".json").read_text())["achieved"]["epsilon"] == pytest.approx(spent)
    (finding,) = r06_figures(gather([run], None))
    assert finding.state == HELD
    told["epsilon"] = spent / 2
    (run / "metrics.json").write_text(json.dumps(json.loads((run / "metrics.json").read_text()) | {"privacy": privacy}))
    (finding,) = r06_figures(gather([run], None))
    assert "achieved" in finding.sentence


def up(value):
    return f"{np.ceil(100 * value) / 100:.2f}"


@pytest.mark.parametrize(
    ("in_sums", "burned", "shares"), [({4: 2}, 0, {3: 2}), ({4: 1, 3: 1}, 1, {3: 1, 2: 2}), ({}, 1, {2: 1})]
)
def test_a_round_whose_sum_is_not_known_counts_as_planned(in_sums, burned, shares):
    study = shared(sites=4)
    terms, noise = study.terms, noise_of(study.terms)
    events = [noise.event(honest, terms.sample_rate, rounds) for honest, rounds in sorted(shares.items())]
    found = achieved(study, in_sums, burned)
    assert found.epsilon == pytest.approx(epsilon(events, terms.delta))
    assert found.epsilon <= found.charged * (1 + 1e-6)


def test_one_site_alone_with_a_colluder_left_is_no_bound_and_other_mechanisms_have_none():
    assert achieved(shared(), {1: 1}, 0).epsilon is None
    assert "really in each sum: no bound" in achieved(shared(), {1: 1}, 0).sentence
    assert achieved(shared(), {}, 0) is None
    assert achieved(tiny_study(), {3: 2}, 0) is None
    assert achieved(tiny_study(mechanism="none"), {3: 2}, 0) is None


def test_sgd_and_adam_step_as_torch_does():
    rng = np.random.default_rng(2)
    start = rng.normal(size=50).astype(np.float32)
    for name, torchs in (("sgd", torch.optim.SGD), ("adam", torch.optim.Adam)):
        optimiser = OPTIMISERS[name]
        state = np.concatenate([start, np.zeros(optimiser.kept(50), np.float32)])
        assert optimiser.parameters(len(state)) == 50
        theirs = torch.from_numpy(start.copy()).requires_grad_()
        reference = torchs([theirs], lr=0.01, **({"momentum": 0.9} if name == "sgd" else {}))
        for _ in range(20):
            gradient = rng.normal(size=50)
            state = optimiser.step(state, gradient, 0.01, 0.0)
            theirs.grad = torch.from_numpy(gradient).float()
            reference.step()
        assert np.allclose(state[:50], theirs.detach().numpy(), atol=1e-5)


def test_adam_sees_a_small_gradient_under_large_noise():
    rng, lr = np.random.default_rng(4), 0.01
    gradient = np.where(np.arange(1000) < 500, 0.3, 0.03)  # tenfold; Adam's steps are to be alike
    moved = {}
    for corrected in (False, True):
        state = np.zeros(3001, np.float32)
        for _ in range(300):
            noisy = gradient + rng.normal(size=1000)
            state = OPTIMISERS["adam"].step(state, noisy, lr, 1.0 if corrected else 0.0)
        moved[corrected] = -state[:500].mean() / (lr * 300)
    assert moved[True] > 1.5 * moved[False]  # noise makes plain Adam's steps short


REFUSED = {
    "more than one local step": ({"study": {"local_steps": 2}}, r"\[study\] local_steps = 2: .*rounds to the number"),
    "too few bits": ({"secagg": {"bits": 12}}, r"\[secagg\] bits = 12: .* needs"),
    "too many bits": ({"secagg": {"bits": 64}}, r"\[secagg\] bits = 64: at most 48"),
    "adam for differences of weights": ({"privacy": {"mechanism": "local"}, "study": {"optimizer": "adam"}}, "adam"),
    "no clip range": ({"privacy": {"mechanism": "local"}, "secagg": {"clip_range": None}}, r"add clip_range: bound"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_a_study_that_cannot_be_is_a_sentence(case):
    changes, said = REFUSED[case]
    assert shared().replace(secagg={"clip_range": None})  # which this mechanism does not need
    with pytest.raises(ConfigError, match=said):
        shared().replace(**changes)


def test_weights_of_sites_and_too_large_models_are_refused():
    study = shared()
    content = study.model_dump(mode="json")
    content["sites"][0]["weight"] = 2.0
    with pytest.raises(ValueError, match="every patient counts the same"):
        type(study).model_validate_json(json.dumps(content))
    with pytest.raises(ConfigError, match="take a smaller model"):
        Grid(10**6, CLIP, 300)


def test_over_the_network_a_site_that_comes_back_goes_on_with_the_same_state(tmp_path):
    study = shared(sites=4, rounds=3).replace(run={"evaluate_every": 3})

    async def run():
        async with Federation(study, tmp_path) as federation:
            federation.start()
            await federation.until(lambda: federation.of("site-d", "end_round"))
            federation.kill("site-d")
            federation.start("site-d")
            await asyncio.gather(*(federation.tasks[who] for who in ("coordinator", "site-d")))
            return federation.tasks["coordinator"].result(), federation.tasks["site-d"].result(), federation.events

    run_folder, again, events = asyncio.run(run())
    included = [event["included"] for event in events["coordinator"] if event["kind"] == "end_round"]
    assert len(included) == 3
    assert "site-d" in included[-1]
    assert np.array_equal(weights(run_folder, study), weights(again, study))


def test_one_site_alone_has_too_little_noise_and_is_refused_before_anything_is_loaded(tmp_path, capsys, monkeypatch):
    (tmp_path / "study.toml").write_text(shared(seed=None).toml(), encoding="utf-8")
    code, _, error = command(
        capsys, monkeypatch, "simulate", tmp_path / "study.toml", "--alone", "site-a", "--out", tmp_path / "runs"
    )
    assert code == 1
    assert "--alone with mechanism = 'distributed': one site has its share of the noise only" in error
    assert not (tmp_path / "runs").exists()
    with (
        RunFolder.create(tmp_path / "runs", shared(seed=None)) as folder,
        pytest.raises(ConfigError, match="its share"),
    ):
        simulate(folder, load_cohort(None, shared(seed=None)), Options(alone="site-a"))
