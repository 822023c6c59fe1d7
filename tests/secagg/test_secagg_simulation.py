"""`secagg.simulate`: vectors in, the exact sum out, with what the round said and what it cost."""

from dataclasses import replace

import numpy as np
import pytest

import secagg
from secagg import ConfigError, Suite, TooFewClientsError
from secagg.steps import STEPS
from secagg.transcript import judge

IDS = ("amsterdam", "bern", "cork", "delft", "essen")
UPDATES = {me: np.random.default_rng(i).uniform(-1, 1, 40) for i, me in enumerate(IDS)}
POLICY = secagg.Policy(project="note", clients=5, length=40, clip_range=1.0, suite=Suite.X25519)


@pytest.mark.parametrize("step", [None, *STEPS[:-1]])
def test_the_sum_is_that_of_who_was_in_it(step):
    done = secagg.simulate(UPDATES, POLICY, drop={"cork": step} if step else {})
    into = [me for me in IDS if me != "cork" or step in (None, *STEPS[4:])]
    assert done.included == tuple(into)
    assert done.dropped == (("cork",) if step == "MaskedInputCollection" else ())
    assert np.abs(done.total - sum(UPDATES[me] for me in into)).max() < 5 / 2**15
    assert np.allclose(done.means["update"] * len(into), done.total)
    assert done.report.included == done.included
    assert done.clip_rates == dict.fromkeys(IDS, 0.0)
    assert step is None or "cork" not in done.heard[step]
    assert done.bytes_down.keys() == {"RoundStart", *STEPS[:-1]}
    assert done.bytes_up.keys() == set(STEPS)


def test_who_is_only_named_falls_silent_before_its_masked_input():
    done = secagg.simulate(UPDATES, POLICY, drop=["bern"])
    assert (done.included, done.dropped) == (("amsterdam", "cork", "delft", "essen"), ("bern",))
    said = repr(done).splitlines()
    assert said[0] == "sum of 4 vectors: amsterdam, cork, delft, essen"
    assert said[1] == "dropped after they shared keys: bern"
    assert "MaskedInputCollection" in repr(done)
    assert "its transcript holds" in said[-1]


def test_the_transcript_is_one_and_is_judged_by_others_too():
    done = secagg.simulate(UPDATES, POLICY)
    keys = {me: secagg.SigningKey.generate().verify_key for me in IDS}
    verdict = judge([("it", done.transcript)], POLICY, secagg.PinnedRoster(keys))
    assert verdict.violation.check == "T-03", "of another roster than the one that was made for it"
    assert len(done.report.unchecked) == 0


def test_fields_go_in_and_come_out():
    layout = secagg.Layout({"cases": secagg.Field.counts(3, largest=100), "w": secagg.Field.floats(4, clip_range=2.0)})
    policy = secagg.Policy(project="note", clients=5, layout=layout, suite=Suite.X25519)
    updates = {me: {"cases": np.array([i, 2, 100]), "w": np.full(4, 0.5)} for i, me in enumerate(IDS)}
    done = secagg.simulate(updates, policy)
    assert done.sums["cases"].tolist() == [10, 10, 500]
    assert np.abs(done.means["w"] - 0.5).max() < 1e-3


def test_what_does_not_fit_is_said():
    with pytest.raises(ConfigError, match="lists 4 clients"):
        secagg.simulate({me: UPDATES[me] for me in IDS[:4]}, POLICY)
    with pytest.raises(ConfigError, match="nobody"):
        secagg.simulate(UPDATES, POLICY, drop=["nobody"])
    with pytest.raises(ConfigError, match="the steps are AdvertiseKeys"):
        secagg.simulate(UPDATES, POLICY, drop={"bern": "tomorrow"})
    with pytest.raises(ConfigError, match="dict"):
        secagg.simulate([1, 2], POLICY)
    with pytest.raises(ConfigError, match="the update"):
        secagg.simulate({**UPDATES, "bern": np.zeros(3)}, POLICY)
    with pytest.raises(TooFewClientsError):
        secagg.simulate(UPDATES, POLICY, drop=IDS[:3])
    assert secagg.simulate(UPDATES, replace(POLICY, server_key=bytes(32))).included == IDS
