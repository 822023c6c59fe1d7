"""Search for settings: free on made and public images, charged for life on patients', and it says on which."""

import json
import re
import sqlite3

import pytest

from fedseg import search as searching
from fedseg.data.loading import load_cohort
from fedseg.errors import BudgetExceededError, ConfigError
from fedseg.files import hold
from fedseg.ledger import FILE, distinct, read, released
from fedseg.privacy.accounting import epsilon
from fedseg.search import Wanted, aside, read_space, search
from fedseg.study import load_study
from tests.support.command import run as command
from tests.support.tiny import tiny_classes, tiny_study

STUDY = tiny_classes(patients=8)
SPACE = """
[study]
lr = { low = 1e-3, high = 1.0, log = true }
local_steps = { low = 1, high = 2 }
[training]
mirror = [[], ["x"]]
"""


@pytest.fixture
def space(tmp_path):
    path = tmp_path / "space.toml"
    path.write_text(SPACE)
    return path


def test_the_command_tries_settings_goes_on_and_says_on_what_they_were_chosen(tmp_path, space, capsys, monkeypatch):
    (tmp_path / "s.toml").write_text(STUDY.toml())
    asked = ["search", str(tmp_path / "s.toml"), "--space", str(space), "--out", str(tmp_path / "out")]
    code, said, _ = command(capsys, monkeypatch, *asked, "--trials", "2")
    assert (code, len(re.findall("^trial ", said, re.MULTILINE))) == (0, 2)
    code, again, _ = command(capsys, monkeypatch, *asked, "--trials", "3")
    assert code == 0
    assert len(re.findall("^trial ", again, re.MULTILINE)) == 1, "two of three are there"
    best = tmp_path / "out" / "best.toml"
    text = best.read_text()
    assert "the best of 3 trials" in text
    assert "made patients, who are nobody's: nothing was spent" in text
    assert "made patients" in again
    found = load_study(best)
    assert 1e-3 <= found.study.lr <= 1.0
    assert found.study.seed == STUDY.study.seed
    assert found.replace(study={"lr": 0.1, "local_steps": 1}, training={"mirror": []}) == STUDY
    assert not list((tmp_path / "out" / "trials").iterdir())


def test_what_steps_without_an_end_would_cost_is_said_before_the_first(tmp_path, capsys, monkeypatch):
    (tmp_path / "s.toml").write_text(STUDY.toml())
    minutes = []
    for most in (10, 10**9):
        (tmp_path / "space.toml").write_text(f"[study]\nlocal_steps = {{ low = 1, high = {most} }}")
        monkeypatch.setattr(searching, "search", lambda *given: given[3].out)
        code, said, _ = command(
            *(capsys, monkeypatch, "search", tmp_path / "s.toml"), *("--space", tmp_path / "space.toml", "--trials", 2)
        )
        assert code == 0
        found = re.search(r"dearest trial takes (\S+) CPU minutes, 2 of them (\S+)", said)
        minutes.append(float(found[1]))
        assert float(found[2]) == pytest.approx(2 * minutes[-1], rel=0.1)
    assert minutes[1] > 1e5 * minutes[0]


def test_who_is_held_out_has_no_part_in_a_trial():
    cohort = load_cohort(None, STUDY)
    for site, data in aside(cohort).items():
        trained, scored = set(data.patients), {case.patient for case in data.test}
        assert trained | scored == set(cohort[site].patients)
        assert not trained & scored
    assert any(data.test for data in aside(cohort).values())


def test_a_trial_of_a_process_that_was_killed_is_not_waited_for(tmp_path, space, monkeypatch):
    cohort, wanted = load_cohort(None, STUDY), Wanted(1, "made", tmp_path / "out")

    def killed(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(searching, "_tried", killed)
        patch.setattr("optuna.study.Study.tell", lambda *_, **__: None)
        with pytest.raises(KeyboardInterrupt):
            search(STUDY, cohort, read_space(space), wanted, print)
    heard = []
    search(STUDY, cohort, read_space(space), wanted, heard.append)
    assert [tried.number for tried in heard] == [1]
    states = sqlite3.connect(tmp_path / "out" / "search.sqlite").execute("select state from trials").fetchall()
    assert [state for (state,) in states] == ["FAIL", "COMPLETE"]


def test_sites_with_a_model_of_their_own_are_scored_by_it(tmp_path, monkeypatch):
    """[federation] personal: the shared model has the start's norms, and is nobody's."""
    judging, loaded = [], searching.load_model
    monkeypatch.setattr(searching, "load_model", lambda path, study: judging.append(path) or loaded(path, study))
    space = {"federation.personal": ["norm"]}
    search(STUDY, load_cohort(None, STUDY), space, Wanted(1, "made", tmp_path), lambda _: None)
    assert {path.parent.name for path in judging} == {"own-models"}
    assert {path.stem for path in judging} == set(STUDY.site_ids)


def test_two_searches_in_one_folder_do_not_disturb_each_other(tmp_path):
    """The second one would take the first one's running trial for one that was killed."""
    with hold(tmp_path / searching.WORKING), pytest.raises(ConfigError, match="another process searches there"):
        search(STUDY, load_cohort(None, STUDY), {"study.lr": [0.1]}, Wanted(1, "made", tmp_path), print)


@pytest.mark.parametrize("how", ["raises", "is killed"])
def test_no_model_of_a_trial_is_left_however_it_ended(tmp_path, how, monkeypatch):
    left, wanted = tmp_path / "trials" / f"{STUDY.study.name}-20260101T000000-abc.partial", Wanted(1, "made", tmp_path)
    left.mkdir(parents=True)
    (tmp_path / "trials" / "mine").mkdir()

    def broken(*_):
        raise KeyboardInterrupt

    if how == "raises":
        monkeypatch.setattr(searching, "_judged", broken)
        with pytest.raises(KeyboardInterrupt):
            search(STUDY, load_cohort(None, STUDY), {"study.lr": [0.1]}, wanted, print)
    else:
        search(STUDY, load_cohort(None, STUDY), {"study.lr": [0.1]}, wanted, lambda _: None)
    assert [path.name for path in (tmp_path / "trials").iterdir()] == ["mine"]


def test_patients_of_whom_nothing_can_be_scored_end_the_search(tmp_path, monkeypatch):
    """Optuna takes no score that is no number: the search would try on and on."""
    monkeypatch.setattr(searching, "structure_means", lambda *_: {"one": None})
    with pytest.raises(ConfigError, match="nothing can be scored"):
        search(STUDY, load_cohort(None, STUDY), {"study.lr": [0.1]}, Wanted(1, "made", tmp_path), print)


def test_a_file_of_trials_that_is_none_is_one_sentence(tmp_path):
    (tmp_path / searching.STORAGE).write_text("no database " * 100)
    with pytest.raises(ConfigError, match=r"search.sqlite: cannot be used \(.*; mend it, or give --out"):
        search(STUDY, load_cohort(None, STUDY), {"study.lr": [0.1]}, Wanted(1, "made", tmp_path), print)


def test_settings_that_do_not_fit_are_a_failed_trial_and_the_search_goes_on(tmp_path):
    heard = []
    space = {"training.mixup": [0.5], "training.batch": [0, 4]}
    search(STUDY, load_cohort(None, STUDY), space, Wanted(1, "made", tmp_path, seed=3), heard.append)
    assert heard[-1].score is not None
    assert all("what is mixed is one patient's" in tried.why for tried in heard[:-1])


@pytest.fixture
def charged(tmp_path, monkeypatch):
    """A study whose images lie in folders, as far as a ledger is concerned."""
    monkeypatch.setenv("FEDSEG_HOME", str(tmp_path / "home"))
    study = tiny_study(mechanism="local", rounds=1, seed=None, patients=6)
    for site in study.site_ids:
        (tmp_path / "data" / site).mkdir(parents=True)
    return study


def test_every_trial_is_charged_for_life_before_it_begins_and_one_too_many_is_refused(tmp_path, charged):
    wanted = Wanted(9, "charged", tmp_path / "out", epsilon=1.0, budget=1.6, data=tmp_path / "data")
    heard, space = [], {"study.lr": [0.01, 0.05]}
    with pytest.raises(BudgetExceededError, match=r"bring epsilon from .* above the budget of this search of 1\.6"):
        search(charged, load_cohort(None, charged), space, wanted, heard.append)
    assert len(heard) == 2
    ledgers = list((tmp_path / "home").glob(f"site-*/{FILE}"))
    assert len(ledgers) == 3
    for path in ledgers:
        entries = [line.entry for line in read(path)]
        assert [entry.kind for entry in entries] == ["local", "metrics"] * 2
        assert len({entry.training_run for entry in entries}) == 2
        assert all(entry.patients for entry in entries)
        assert 1.0 < epsilon(released(distinct(entries)), 1e-2) <= 1.6
    text = (tmp_path / "out" / "best.toml").read_text()
    assert "patients' images, who paid for every trial" in text
    assert load_study(tmp_path / "out" / "best.toml").privacy.epsilon == 8.0, "what the study promises is no setting"


def test_trials_of_another_folder_are_charged_though_their_settings_are_the_same(tmp_path, charged):
    """Without a seed the noise is another one, so that the same settings again are another use of the patients."""
    for folder in ("one", "other"):
        wanted = Wanted(1, "charged", tmp_path / folder, epsilon=1.0, budget=4.0, data=tmp_path / "data")
        search(charged, load_cohort(None, charged), {"study.lr": [0.05]}, wanted, lambda _: None)
    for path in (tmp_path / "home").glob(f"site-*/{FILE}"):
        entries = [line.entry for line in read(path)]
        assert [entry.kind for entry in entries] == ["local", "metrics"] * 2
        assert len(distinct(entries)) == len(entries)


def test_settings_that_fit_no_network_cost_nobody_anything(tmp_path, charged):
    wanted, heard = Wanted(1, "charged", tmp_path / "out", epsilon=1.0, budget=4.0, data=tmp_path / "data"), []
    with pytest.raises(ConfigError, match=r"trials failed, the last one: \[model\] channels = \[3, 5\]"):
        search(charged, load_cohort(None, charged), {"model.channels": [[3, 5]]}, wanted, heard.append)
    assert not list((tmp_path / "home").glob(f"site-*/{FILE}"))


def test_nobody_is_charged_where_nothing_protects(tmp_path, charged):
    study = charged.replace(privacy={"mechanism": "none"})
    wanted = Wanted(1, "charged", tmp_path / "out", epsilon=1.0, budget=2.0, data=tmp_path / "data")
    with pytest.raises(ConfigError, match="nothing protects these patients"):
        search(study, load_cohort(None, study), {"study.lr": [0.1]}, wanted, print)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[data]\nsize = [32]", r"\[data\] is not searched over"),
        ("[privacy]\nepsilon = [1.0]", "privacy.epsilon is what a study is about or promises"),
        ("[study]\nlr = 0.1", "study.lr: give a list of values"),
        ("[study]\nlr = { low = 1.0, high = 0.1 }", "low is not below high"),
        ('[study]\nlr = { low = "1", high = 2.0 }', "low, high and step are numbers"),
        ("[study]\nlr = { low = 0.0, high = 1.0, log = true }", "with log = true low is above 0"),
        ("[study]\nrounds = { low = 1, high = 4, step = 0.5 }", "step is above 0, and whole"),
        ("[study]\nlr = { low = 1.0, high = inf }", "numbers up to 1e\\+12"),
        ("[study]\nlr = [2020-01-01]", "values are finite numbers, texts"),
        ("[study]\nlr = [nan]", "values are finite numbers, texts"),
        ("[study]\nbatches = [1, 2]", "batches is no field of a study; use one of class_weights, rounds"),
        ("", "names no setting"),
        ("[study", "not valid TOML"),
    ],
)
def test_a_space_that_is_none_is_one_sentence(tmp_path, text, said):
    (tmp_path / "space.toml").write_text(text)
    with pytest.raises(ConfigError, match=said):
        read_space(tmp_path / "space.toml")


@pytest.mark.parametrize("flags", [[], ["--charge", "--public"]])
def test_whose_images_they_are_has_to_be_said(tmp_path, space, flags, capsys, monkeypatch):
    study = json.loads(STUDY.model_dump_json())
    study["data"]["layout"] = "images"
    study["sites"] = [{"id": site["id"]} for site in study["sites"]]
    (tmp_path / "s.toml").write_text(type(STUDY).model_validate_json(json.dumps(study)).toml())
    asked = ["search", str(tmp_path / "s.toml"), "--space", str(space), "--data", str(tmp_path), *flags]
    code, _, error = command(capsys, monkeypatch, *asked)
    assert code == 1
    assert "whose images are these" in error


@pytest.mark.parametrize("flags", [["--charge"], ["--public", "--epsilon", "1"], ["--public", "--budget", "1"]])
def test_what_a_trial_may_spend_is_said_where_somebody_pays_and_nowhere_else(
    tmp_path, space, flags, capsys, monkeypatch
):
    study = json.loads(STUDY.model_dump_json())
    study["data"]["layout"] = "images"
    study["sites"] = [{"id": site["id"]} for site in study["sites"]]
    (tmp_path / "s.toml").write_text(type(STUDY).model_validate_json(json.dumps(study)).toml())
    asked = ["search", str(tmp_path / "s.toml"), "--space", str(space), "--data", str(tmp_path), *flags]
    code, _, error = command(capsys, monkeypatch, *asked)
    assert (code, "go together" in error) == (1, True), error


@pytest.mark.parametrize("flags", [["--epsilon", "0"], ["--epsilon", "nan"], ["--epsilon", "1", "--budget", "nan"]])
def test_a_budget_that_is_no_number_bounds_nothing_and_is_refused(tmp_path, space, flags, capsys, monkeypatch):
    study = json.loads(STUDY.model_dump_json())
    study["data"]["layout"] = "images"
    study["sites"] = [{"id": site["id"]} for site in study["sites"]]
    (tmp_path / "s.toml").write_text(type(STUDY).model_validate_json(json.dumps(study)).toml())
    asked = ["search", str(tmp_path / "s.toml"), "--space", str(space), "--data", str(tmp_path), "--charge", *flags]
    code, _, error = command(capsys, monkeypatch, *asked)
    assert (code, "is no epsilon" in error) == (1, True), error
