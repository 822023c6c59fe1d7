"""A simulation on real images that is charged in the ledgers which these have for life, and one that is not."""

import shutil
from pathlib import Path

import pytest

from fedseg.data.loading import load_cohort
from fedseg.errors import ConfigError, LedgerError
from fedseg.exposure import held
from fedseg.ledger.home import Home
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.statement import write_statement
from fedseg.study import parse_study
from fedseg.verifying import verify_run
from tests.support.command import feta_study, run
from tests.support.folders import copied
from tests.support.tiny import tiny_study

STUDY = parse_study(feta_study().replace("seed = 7\n", ""), "study").replace(study={"rounds": 2}, data={"holdout": 0.0})


@pytest.fixture(scope="module")
def cohort(feta_folder):
    return load_cohort(feta_folder, STUDY)


@pytest.fixture
def charged(cohort, feta_folder, tmp_path):
    """A charged run; its folder and its log."""

    def train(images=feta_folder, runs="runs"):
        with RunFolder.create(tmp_path / runs, STUDY) as folder:
            path = simulate(folder, cohort, Options(plain=True, charged=images, command="fedseg simulate --charge"))
        return path, (path / "events.jsonl").read_text()

    return train


def rounds():
    """Rounds charged for life, by site."""
    return {
        found.site: [line.entry.round_number for line in held(Path(found.state) / "ledger.jsonl")]
        for found in Home().data_sets()
    }


def test_the_command_charges_nothing_for_life_and_says_so(capsys, monkeypatch, tmp_path, feta_folder):
    (tmp_path / "study.toml").write_text(STUDY.replace(study={"rounds": 1}).toml(), encoding="utf-8")
    given = ["simulate", tmp_path / "study.toml", "--data", feta_folder, "--out", tmp_path / "runs", "--plain"]
    code, said, _ = run(capsys, monkeypatch, *given)
    (folder,) = (tmp_path / "runs").iterdir()
    assert code == 0
    assert "Nothing was charged for life" in said
    assert "Nothing was charged for life" in (folder / "report.html").read_text()
    assert rounds() == {}
    for more, words in (
        (["--seed", "3"], "--charge with seed 3: noise that can be repeated protects nobody"),
        (["--alone", "site-x"], "not a site of the study"),
    ):
        code, _, error = run(capsys, monkeypatch, *given, "--charge", *more)
        assert code == 1
        assert words in error
    (tmp_path / "study.toml").write_text(tiny_study(seed=None).toml(), encoding="utf-8")
    code, _, error = run(capsys, monkeypatch, *given, "--charge")
    assert code == 1
    assert "--charge with layout = 'phantom': its patients are made, and nobody's" in error
    assert list((tmp_path / "runs").iterdir()) == [folder]
    assert rounds() == {}


def test_a_charged_simulation_is_in_the_ledgers_for_life_and_is_found_there(charged, tmp_path):
    folder, log = charged()
    assert rounds() == {site: [1, 2] for site in STUDY.site_ids}
    assert not (folder / "ledger").exists()
    # Every site has a sub-001: they are others, or all but the first would have spent too much after a round.
    assert "have spent so much" not in log
    found = verify_run([folder])
    assert not found.violations
    seen = {(finding.check, finding.subject) for finding in found.findings if finding.state == "held"}
    assert {(check, "ledger of site-a") for check in ("T-15", "T-17", "R-05")} <= seen
    facts = write_statement([folder], tmp_path / "page.html")
    assert [(account.site, account.simulated) for account in facts.accounts] == [
        (site, False) for site in STUDY.site_ids
    ]
    page = (tmp_path / "page.html").read_text()
    assert "This was a simulation" in page
    assert "Its ledgers begin with the run" not in page
    assert str(Home().path) not in page


def test_a_second_charged_simulation_goes_on_from_the_first(charged, feta_folder, tmp_path):
    charged()
    _, log = charged(runs="elsewhere")
    assert "over all training runs, above the budget of 8" in log
    assert rounds() == {site: [1, 2] for site in STUDY.site_ids}
    _, log = charged(copied(feta_folder, tmp_path / "twins"), runs="twin-runs")
    assert "have spent so much in other data sets" in log  # nobody stops: only who runs it is told
    assert sorted(map(len, (found for found in rounds().values()))) == [2, 2, 2]


def test_a_lifetime_budget_stops_a_charged_simulation(charged, feta_folder, tmp_path):
    for site in STUDY.site_ids:
        state = Home().state_of(site, feta_folder / site, tmp_path / site, tmp_path / "none")
        state.mkdir()
        (state / "budget.toml").write_text("epsilon = 6.0\ndelta = 0.01\n")
    _, log = charged()
    assert "lifetime budget of this data set of 6" in log
    assert rounds() == {site: [1] for site in STUDY.site_ids}


def test_a_resumed_simulation_charges_nothing_twice(tmp_path, cohort, feta_folder):
    def stops(event):
        if event.kind == "train" and event.round == 2:
            raise KeyboardInterrupt

    options = Options(plain=True, charged=feta_folder)
    with pytest.raises(KeyboardInterrupt), RunFolder.create(tmp_path, STUDY, stops) as folder:
        simulate(folder, cohort, options)
    assert rounds() == {site: [1, 2] for site in STUDY.site_ids}
    with pytest.raises(ConfigError, match="was started with --plain and --charge, not --plain; resume it the same way"):
        simulate(RunFolder.reopen(folder.path), cohort, Options(plain=True))
    done = simulate(RunFolder.reopen(folder.path), cohort, options)
    assert rounds() == {site: [1, 2] for site in STUDY.site_ids}
    assert not verify_run([done]).violations


def test_another_run_of_the_same_name_is_no_attempt_at_the_first(charged, cohort, feta_folder, tmp_path):
    path, _ = charged()
    again = tmp_path / "other" / f"{path.name}.partial"
    again.mkdir(parents=True)
    shutil.copy(path / "study.toml", again)
    with pytest.raises(LedgerError, match=r"has a training run .* already; start this one again"):
        simulate(RunFolder(again, STUDY), cohort, Options(plain=True, charged=feta_folder))
