"""The explorer finds every attack that it should, z3 proves what it should, and another machine of marks is noticed."""

import pytest

from audits.base import Task, Unable
from audits.model import _by_spin, between, check, replaying, threshold, unmasking
from audits.model.exploring import explore
from secagg.store import Marks


def test_the_explorer_visits_every_state_and_gives_the_shortest_way():
    events = lambda n: [("add", n + 1), ("double", 2 * n)] if n < 40 else []  # noqa: E731
    assert explore([("start", 1)], events, lambda n: "").states == 40 + len(range(42, 79, 2))
    found = explore([("start", 1)], events, lambda n: "seven" if n == 7 else "")
    assert found.attack == ("start", "add", "add", "double", "add", "seven")
    with pytest.raises(RuntimeError, match="more than 5"):
        explore([("start", 1)], events, lambda n: "", most=5)


@pytest.mark.parametrize("name", [name for name, case in between.CASES.items() if case.attack])
def test_without_a_defence_between_rounds_the_attack_is_found(name):
    case = between.CASES[name]
    assert between.explored(case.rules, case.kinds).attack


def test_two_attempts_of_one_number_hold():
    explored = between.explored(between.Rules(operators=1, restarts=1), ("next attempt",))
    assert explored.attack is None
    assert explored.states > 1000


@pytest.mark.parametrize("name", ["shares without a quorum", "2t <= n + c", "U3 outside U2"])
def test_without_a_defence_at_unmasking_the_attack_is_found(name):
    assert unmasking.explored(unmasking.CASES[name][0]).attack


@pytest.mark.skipif(not check.installed(), reason="needs spin and gcc")
def test_spin_visits_the_same_states_at_unmasking_and_finds_an_attack():
    attack, states, _ = check.check(check.UNMASKING["protocol, n=4"])
    assert (attack, states) == (False, unmasking.explored(unmasking.Rules()).states + 1)  # spin counts its beginning
    assert check.check(check.UNMASKING["2t <= n + c"])[0]


def test_a_search_that_came_to_no_end_shows_nothing(monkeypatch, tmp_path):
    monkeypatch.setattr(check, "installed", lambda: True)
    monkeypatch.setattr(check, "check", lambda case: (None, 0, ""))
    with pytest.raises(Unable, match="no end"):
        _by_spin(Task("full", 0, tmp_path, lambda text: None), check.UNMASKING)


def test_three_clients_unmask_one_set():
    assert unmasking.explored(unmasking.Rules(3, 1, 3)).attack is None


def test_z3_proves_the_threshold_and_shows_what_happens_without_it(tmp_path):
    pytest.importorskip("z3")
    result = threshold.run(Task("quick", 0, tmp_path, lambda text: None))
    assert result.verdict == "holds"
    assert "n = 3, c = 1, t = 2" in result.says


def test_the_store_follows_the_specification_and_another_machine_is_noticed(monkeypatch):
    starts = (replaying.FIRST, replaying.KINDS["new run on the same model"])
    followed = replaying.follow(starts)
    assert followed.difference == ""
    assert set(followed.checks) == {"C-03", "C-05", "C-14", "C-24", "C-26"}
    monkeypatch.setattr(Marks, "_exposed_by", lambda *_: [])
    assert "the specification says C-26, the code accepts" in replaying.follow(starts).difference
