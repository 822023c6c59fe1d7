"""What every party does with the mean, what a site adds to its loss, and which sites are in a round."""

import asyncio

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedseg.budget.explain import explain
from fedseg.budget.plan import plan_of
from fedseg.coordinator import Coordinator
from fedseg.data.cases import SiteData
from fedseg.data.loading import load_cohort
from fedseg.errors import ConfigError
from fedseg.evidence import HELD
from fedseg.federation.draw import drawn, rounds_of_a_site
from fedseg.federation.fedadam import FedAdam
from fedseg.federation.fedavg import FedAvg
from fedseg.federation.table import ALGORITHMS
from fedseg.ledger import verify
from fedseg.mechanisms.mechanism import MOMENTUM
from fedseg.models import build_model
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.train import local_steps
from fedseg.update import NoisedSteps, PlainSteps
from fedseg.verifying import verify_run
from tests.support.federation import COORDINATOR, Federation
from tests.support.tiny import tiny_study

SITES = ["site-a", "site-b", "site-c"]
RNG = np.random.default_rng(5)
TOTALS = [RNG.normal(size=50) for _ in range(3)]
START = RNG.normal(size=50).astype(np.float32)


def after(study, totals=TOTALS):
    """The state after these sums, and every state before it."""
    states = [np.concatenate([START, np.zeros(study.kept(50), np.float32)])]
    for total in totals:
        states.append(study.following(states[-1], total, SITES, study.policy(50)))
    return states


def test_without_a_word_on_it_the_mean_is_added_bit_for_bit_as_before() -> None:
    study = tiny_study()
    assert study.kept(50) == 0
    before = START
    for total, state in zip(TOTALS, after(study)[1:], strict=True):
        before = (before + total / 3.0).astype(np.float32)
        assert state.tobytes() == before.tobytes()


def textbook(algorithm, lr, beta=(0.9, 0.99), tau=1e-3):
    """Algorithm 2 of Reddi et al. 2021, line by line, float64."""
    x, m, v = START.astype(np.float64), np.zeros(50), np.zeros(50)
    for total in TOTALS:
        delta = total / 3
        if algorithm == "fedavgm":
            m = 0.9 * m + delta
            x = x + lr * m
            continue
        m = beta[0] * m + (1 - beta[0]) * delta
        match algorithm:
            case "fedadam":
                v = beta[1] * v + (1 - beta[1]) * delta**2
            case "fedyogi":
                v = v - (1 - beta[1]) * delta**2 * np.sign(v - delta**2)
        x = x + lr * m / (np.sqrt(v) + tau)
    return x


@pytest.mark.parametrize(("algorithm", "own"), [("fedavgm", 1.0), ("fedadam", 0.01), ("fedyogi", 0.01)])
def test_each_algorithm_is_the_one_of_its_paper(algorithm, own) -> None:
    for lr in (None, 0.3):
        study = tiny_study().replace(federation={"algorithm": algorithm, "server_lr": lr})
        found = after(study)[-1]
        assert len(found) == 50 + ALGORITHMS[algorithm].kept(50)
        np.testing.assert_allclose(found[:50], textbook(algorithm, lr or own), rtol=1e-5, atol=1e-6)


def test_the_corrected_adam_does_not_take_noise_for_size() -> None:
    """Means of noise alone: their second moment is all noise, and corrected next to nothing is left of it."""
    own = {"algorithm": "fedadam", "adaptivity": 1e-9}
    study = tiny_study().replace(federation=own)
    policy, terms = study.policy(50), study.terms
    noise = study.mechanism.noise_in_mean(50, SITES, policy, terms)
    totals = [3 * np.sqrt(noise) * RNG.normal(size=50) + 0.3 * noise**0.5 for _ in range(60)]
    plain = after(study, totals)
    corrected = after(study.replace(federation={**own, "corrected": True}), totals)
    moved = [np.abs(states[-1][:50] - states[-2][:50]).mean() for states in (plain, corrected)]
    assert moved[1] > 2 * moved[0]  # divided by a tenth of the noise's variance at least, or by what is really there


@pytest.mark.parametrize("steps", [1, 3])
def test_the_noise_in_a_mean_is_the_variance_that_is_claimed(steps) -> None:
    """Nobody is drawn, so that updates are noise and nothing else; over 5,000 values the estimate is within 5 %."""
    study = tiny_study(steps=steps)
    model = torch.nn.Linear(50, 100, bias=False)
    nobody = SiteData("nobody", (), ())
    updates = [
        local_steps(model, nobody, study, site=site, round_number=1).update(site, "e", lambda _: bytes(32)).vector
        for site in SITES
    ]
    claimed = study.mechanism.noise_in_mean(5000, SITES, study.policy(5000), study.terms)
    assert np.var(np.mean(updates, 0)) == pytest.approx(claimed, rel=0.08)


@pytest.mark.parametrize("kind", [PlainSteps, NoisedSteps])
def test_fedprox_adds_half_mu_times_the_squared_distance_to_a_sites_loss(kind) -> None:
    """Against the same steps on a loss that has the term written out."""
    wanted = torch.linspace(-1, 1, 6)
    own, written = torch.nn.Linear(6, 1, bias=False), torch.nn.Linear(6, 1, bias=False)
    start = torch.linspace(0, 2, 6)[None]
    for model in (own, written):
        with torch.no_grad():
            model.weight.copy_(start)
    steps = kind(own, 0.1, MOMENTUM, 0.7)
    optimiser = torch.optim.SGD(written.parameters(), lr=0.1, momentum=MOMENTUM)
    for _ in range(5):
        (gradient,) = torch.autograd.grad(((own.weight[0] - wanted) ** 2).sum(), [own.weight])
        steps._move(gradient.reshape(-1))
        optimiser.zero_grad()
        loss = ((written.weight[0] - wanted) ** 2).sum() + 0.7 / 2 * ((written.weight - start) ** 2).sum()
        loss.backward()
        optimiser.step()
    torch.testing.assert_close(own.weight, written.weight)


def test_a_site_of_a_fedprox_study_strays_less() -> None:
    study = tiny_study(mechanism="none", steps=4)
    far = study.replace(federation={"algorithm": "fedprox", "proximal": 20.0})
    moved = []
    for one in (study, far):
        data = load_cohort(None, one)["site-a"]
        taken = local_steps(build_model(study), data, one, site="site-a", round_number=1)
        moved.append(np.linalg.norm(taken.update("site-a", "e", lambda _: bytes(32)).vector))
    assert moved[1] < 0.9 * moved[0]


def test_a_run_is_made_again_from_its_sums_by_whoever_verifies_it(tmp_path, monkeypatch) -> None:
    """T-16: with what is remembered, and with the sites that the public draw names."""
    own = {"algorithm": "fedadam", "participation": 4}
    study = tiny_study(sites=5, rounds=2, seed=None, patients=2).replace(federation=own)
    with RunFolder.create(tmp_path, study) as folder:
        run = simulate(folder, load_cohort(None, study), Options(transcripts=True))
    evidence = verify_run([run], run / "federation.toml")
    assert not evidence.violations
    assert {"T-16"} <= {finding.check for finding in evidence.findings if finding.state == HELD}
    charged = [len(verify(run / "ledger" / f"{site}.jsonl")) for site in study.site_ids]
    assert sorted(charged) == [1, 1, 2, 2, 2]
    monkeypatch.setattr(FedAdam, "following", FedAvg().following)
    assert "T-16" in {finding.check for finding in verify_run([run], run / "federation.toml").violations}


def test_a_run_that_was_interrupted_remembers(tmp_path) -> None:
    study = tiny_study(rounds=2, patients=2).replace(federation={"algorithm": "fedadam"})
    cohort = load_cohort(None, study)

    def stop(event) -> None:
        if event.kind == "end_round" and event.round == 1:
            raise KeyboardInterrupt

    with RunFolder.create(tmp_path / "whole", study) as folder:
        whole = simulate(folder, cohort, Options(plain=True))
    broken = RunFolder.create(tmp_path / "broken", study, stop)
    with pytest.raises(KeyboardInterrupt), broken:
        simulate(broken, cohort, Options(plain=True))
    with RunFolder.reopen(broken.path) as folder:
        again = simulate(folder, cohort, Options(plain=True))
    assert (whole / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()


@given(
    st.integers(1, 12).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n))),
    st.integers(1, 20),
    st.binary(min_size=32, max_size=32),
)
def test_the_draw_is_balanced_and_the_same_for_everybody(counts, rounds, study_hash) -> None:
    sites, part = counts
    names = tuple(f"s{i}" for i in range(sites))
    rounds_of = dict.fromkeys(names, 0)
    for number in range(1, rounds + 1):
        chosen = drawn(study_hash, names, number, part)
        assert len(chosen) == part
        assert chosen == drawn(study_hash, names, number, part)
        for site in chosen:
            rounds_of[site] += 1
    assert max(rounds_of.values()) - min(rounds_of.values()) <= 1
    assert max(rounds_of.values()) == rounds_of_a_site(rounds, sites, part)


def test_noise_is_planned_for_the_rounds_that_a_site_is_in() -> None:
    whole = tiny_study(sites=5, rounds=10, seed=None)
    part = whole.replace(federation={"participation": 4})
    assert (plan_of(whole).most_rounds, plan_of(part).most_rounds) == (10, 8)
    assert plan_of(part).steps == part.terms.steps == 8
    assert plan_of(part).noise_multiplier == plan_of(whole.replace(study={"rounds": 8})).noise_multiplier
    explained = explain(part)
    assert explained.guarantee.epsilon <= 8.0
    assert any("4 of 5 sites are in a round" in note for note in explained.notes)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"federation": {"participation": 2}}, "give 4 to 5, or 0 for all"),
        ({"federation": {"participation": 6}}, "give 4 to 5, or 0 for all"),
        ({"federation": {"algorithm": "fedprox"}}, "add it, such as 0.1"),
        ({"federation": {"proximal": 0.1}}, "remove it"),
        ({"federation": {"algorithm": "fedprox", "proximal": 0.1}}, "raise local_steps"),
        ({"federation": {"algorithm": "fedyogi", "corrected": True}}, "goes with algorithm = 'fedadam'"),
        ({"federation": {"algorithm": "fedadam"}, "privacy": {"mechanism": "distributed"}}, "leave algorithm"),
        ({"federation": {"server_lr": 0.5}, "privacy": {"mechanism": "distributed"}}, "leave algorithm and server_lr"),
    ],
)
def test_what_cannot_be_meant_is_refused_in_one_sentence(changes, said) -> None:
    with pytest.raises(ConfigError, match=r"\[federation\]|federation") as error:
        tiny_study(sites=5).replace(**changes)
    assert said in str(error.value)
    assert "\n" not in str(error.value)


def test_a_site_that_is_alone_is_in_every_round(tmp_path) -> None:
    study = tiny_study(sites=5).replace(federation={"participation": 4})
    folder = RunFolder.create(tmp_path, study)
    with pytest.raises(ConfigError, match="--alone with participation = 4"):
        simulate(folder, load_cohort(None, study), Options(alone="site-a"))


def test_real_processes_take_part_in_the_rounds_that_they_are_drawn_into(tmp_path) -> None:
    """A coordinator waits for nobody else, and a site gives no update to one that asks it out of its turn."""
    study = tiny_study(sites=5, rounds=1, patients=2).replace(federation={"participation": 4})

    async def scenario() -> None:
        async with Federation(study, tmp_path) as federation:
            federation.start()
            await federation.finished()
            ended = federation.of(COORDINATOR, "end_round")
            assert [set(end["included"]) for end in ended] == [study.in_round(1)]

    asyncio.run(scenario())


class Asking(Coordinator):
    """Asks everybody, whatever the draw says."""

    def _wanted(self) -> set[str]:
        return set(self.sites)


def test_a_site_refuses_a_round_that_it_is_not_drawn_into(tmp_path) -> None:
    study = tiny_study(sites=5, rounds=1, patients=2).replace(federation={"participation": 4})
    (left_out,) = set(study.site_ids) - study.in_round(1)

    async def scenario() -> None:
        async with Federation(study, tmp_path, kind=Asking) as federation:
            federation.start()
            with pytest.raises(Exception, match="this site is not by"):
                await federation.tasks[left_out]

    asyncio.run(scenario())
