"""A run is held against itself: every lie is found by one check, and nothing that was not seen counts as held."""

import json
import re
import shutil
from pathlib import Path

import numpy as np
import pytest

from fedseg import verifying
from fedseg.data.loading import load_cohort
from fedseg.ledger import Ledger, verify
from fedseg.ledger.witness import KEPT
from fedseg.mechanisms import distributed
from fedseg.models import load_model, metadata_of, save_model
from fedseg.report import write_report
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from fedseg.study import load_study
from fedseg.update import assign, flatten
from fedseg.verifying import figures, verify_run
from secagg import SigningKey
from secagg.context import Slot
from secagg.files import load_policy, read_federation
from secagg.roster import session_id
from secagg.sqlite import SqliteStore
from secagg.transcript_files import published
from tests.support.command import run as command
from tests.support.tiny import tiny_study

STUDY = tiny_study(seed=None)
KEYS = {name: SigningKey.generate() for name in ("server", *STUDY.site_ids)}


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Two executions of one study under one name, by the same parties; the first has its report."""
    folder, found = tmp_path_factory.mktemp("runs"), []
    for name in ("one", "other"):
        path = folder / name / "tiny.partial"  # what its training run is called
        (path / "identities").mkdir(parents=True)
        (path / "study.toml").write_text(STUDY.toml())
        for party, key in KEYS.items():
            (path / "identities" / f"{party}.key").write_bytes(key.export())
        run = RunFolder(path, STUDY)
        found.append(simulate(run, load_cohort(None, STUDY), Options(transcripts=True, command="fedseg simulate")))
    write_report(found[0])
    return found


@pytest.fixture
def given(runs, tmp_path):
    """Copies that may be lied in; without the report, which takes seconds to compare."""
    one, other = (Path(shutil.copytree(run, tmp_path / run.parent.name / run.name)) for run in runs)
    (one / "report.html").unlink()
    return one, other


def look(*paths, roster=None):
    run = next(path for path in paths if (path / "study.toml").is_file())
    return verify_run(paths, roster or run / "federation.toml")


def violated(evidence):
    return {finding.check for finding in evidence.violations}


def edit(path, change):
    content = json.loads(path.read_text())
    change(content)
    path.write_text(json.dumps(content))


def edit_log(run, kind, change):
    lines = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    for event in lines:
        if event["kind"] == kind:
            change(event)
    (run / "events.jsonl").write_text("".join(json.dumps(event) + "\n" for event in lines))


def rewrite_ledger(path, change):
    """A ledger whose chain is whole again after a lie."""
    entries = [entry for entry in map(change, Ledger(path).entries()) if entry is not None]
    path.unlink()
    for entry in entries:
        Ledger(path).append(entry)
    path.touch()


def spent_most(run, value):
    """Everything that states an epsilon is changed along."""
    edit_log(run, "epsilon", lambda event: event.update(spent=value(event)))
    finals = {event["site"]: value(event) for event in [{"site": s, "round": 2} for s in STUDY.site_ids]}
    edit(run / "metrics.json", lambda m: m["privacy"].update(per_site=finals, epsilon=max(finals.values())))


def flip(path, where):
    data = bytearray(path.read_bytes())
    data[where] ^= 1
    path.write_bytes(data)


def transcripts(run):
    return sorted((run / "transcripts").iterdir())


def test_the_specification_lists_what_is_checked():
    runs = (Path(__file__).parents[2] / "docs/spec.md").read_text().partition("\n## Runs\n")[2].partition("\n## ")[0]
    assert set(re.findall(r"^\| ([TR]-\d\d) \|", runs, re.MULTILINE)) == set(verifying.CHECKS) == set(verifying.WHAT)


# --- The truth --------------------------------------------------------------------------------------------------------


def test_an_honest_run_holds_and_says_what_was_held_against_what(runs, capsys, monkeypatch):
    asked = "verify-run", runs[0], "--roster", runs[0] / "federation.toml"
    code, out, _ = command(capsys, monkeypatch, *asked)
    assert code == 0, out
    assert "Everything holds." in out
    code, out, _ = command(capsys, monkeypatch, *asked, "--json")  # whose sentences no table wraps
    assert code == 0, out
    assert "model.safetensors is the model after round 2, bit for bit" in out
    assert "report.html is what the folder gives, letter for letter" in out
    assert re.search(r"chain intact; over everything in it epsilon 7\.\d+ at delta 0\.01 by PLD, 8?7?\.\d+ by PRV", out)


def test_nothing_is_written_into_what_is_looked_at(given):
    one, _ = given
    before = {path: path.stat().st_mtime_ns for path in one.rglob("*")}
    look(one)
    assert before == {path: path.stat().st_mtime_ns for path in one.rglob("*")}


# --- Lies -------------------------------------------------------------------------------------------------------------


def another_study(one, other):
    path = one / "study.toml"
    path.write_text(path.read_text().replace("lr = 0.05", "lr = 0.06"))


def another_policy(one, other):
    path = one / "policy.toml"
    path.write_text(path.read_text().replace("clip_range = 0.5", "clip_range = 0.25"))


def a_masked_vector_was_changed(one, other):
    flip(transcripts(one)[1], len(transcripts(one)[1].read_bytes()) // 2)


def the_log_drops_a_site(one, other):
    def change(event):
        event.update(included=event["included"][:2], dropped=event["included"][2:])

    edit_log(one, "end_round", change)
    drops = [{"round": number, "site": "site-c"} for number in (1, 2)]
    edit(one / "metrics.json", lambda m: m["protocol"].update(dropouts=drops))


def less_noise_was_charged(one, other):
    rewrite_ledger(
        one / "ledger" / "site-a.jsonl", lambda e: e.model_copy(update={"noise_multiplier": e.noise_multiplier - 0.01})
    )
    spent_most(one, lambda event: curve(one)[event["site"]][event["round"]])


def a_round_was_cut_from_the_ledger(one, other):
    rewrite_ledger(one / "ledger" / "site-b.jsonl", lambda e: e if e.round_number < 2 else None)
    spent_most(one, lambda event: curve(one)[event["site"]][min(event["round"], 2 - (event["site"] == "site-b"))])


def curve(run):
    from fedseg.verifying.ledgers import curve_of
    from fedseg.verifying.material import gather

    given = gather([run], run / "federation.toml")
    return {ledger.site: curve_of(given, ledger) for ledger in given.ledgers}


def one_bit_of_the_model(one, other):
    one_bit_of_the_model_file(one / "model.safetensors")


def one_bit_of_the_model_file(path):
    study = load_study(path.parent / "study.toml")
    model = load_model(path, study)
    vector = flatten(model)
    vector.view(np.uint32)[17] ^= 1
    assign(model, vector)
    save_model(model, path, metadata_of(study))


def an_entry_was_edited(one, other):
    path = one / "ledger" / "site-a.jsonl"
    path.write_text(path.read_text().replace('"denominator":2.0', '"denominator":3.0', 1))


def epsilon_was_rewritten_in_the_figures(one, other):
    def change(metrics):
        metrics["privacy"].update(epsilon=3.5, per_site=dict.fromkeys(metrics["privacy"]["per_site"], 3.5))

    edit(one / "metrics.json", change)


def epsilon_was_rewritten_in_the_log(one, other):
    edit_log(one, "epsilon", lambda event: event.update(spent=event["spent"] / 2))


def delta_was_rewritten_in_the_figures(one, other):
    edit(one / "metrics.json", lambda m: m["privacy"].update(delta=1e-6))


def a_dropout_is_not_told(one, other):
    edit(one / "metrics.json", lambda m: m["protocol"].update(rounds_completed=1))


def the_budget_was_rewritten_in_the_log(one, other):
    edit_log(one, "study", lambda event: event.update(budget=4.0))


LIES = {
    another_study: "R-01",
    another_policy: "R-02",
    a_masked_vector_was_changed: "R-03",
    the_log_drops_a_site: "R-04",
    less_noise_was_charged: "T-15",
    a_round_was_cut_from_the_ledger: "T-15",
    one_bit_of_the_model: "T-16",
    an_entry_was_edited: "T-17",
    epsilon_was_rewritten_in_the_figures: "T-17",
    epsilon_was_rewritten_in_the_log: "T-17",
    delta_was_rewritten_in_the_figures: "R-06",
    a_dropout_is_not_told: "R-06",
    the_budget_was_rewritten_in_the_log: "R-06",
}


@pytest.mark.parametrize("lie", LIES, ids=lambda lie: lie.__name__)
def test_a_lie_is_found_by_one_check_and_without_it_passes(given, lie, monkeypatch):
    lie(*given)
    evidence = look(given[0])
    assert violated(evidence) == {LIES[lie]}, list(map(str, evidence.violations))
    assert evidence.exit_code == 1
    monkeypatch.delitem(verifying.CHECKS, LIES[lie])
    without = look(given[0])
    assert not without.violations
    assert any(said.startswith(f"[{LIES[lie]}] nothing was looked at") for said in without.not_seen)


def test_an_epsilon_rewritten_in_the_report_is_found(runs, tmp_path, monkeypatch):
    run = Path(shutil.copytree(runs[0], tmp_path / "run"))
    page = run / "report.html"
    text = page.read_text()
    page.write_text(text.replace("ε 8.00", "ε 1.00"))
    assert page.read_text() != text
    monkeypatch.setattr(figures, "pages", lambda folder: {page: text})  # as in the first test, which takes seconds
    evidence = look(run)
    assert violated(evidence) == {"R-07"}
    assert "states other epsilons than the folder gives (1.00" in str(evidence.violations[0])
    monkeypatch.delitem(verifying.CHECKS, "R-07")
    assert not look(run).violations


def test_all_of_another_run_under_the_same_name_is_found_by_the_log_alone(given, monkeypatch):
    one, other = given
    for old, new in zip(transcripts(one), transcripts(other), strict=True):
        shutil.copy(new, old)
    shutil.copy(other / "model.safetensors", one / "model.safetensors")
    evidence = look(one)
    assert violated(evidence) == {"R-04"}
    assert "round 1: the log has another head than the transcript" in str(evidence.violations[0])
    monkeypatch.delitem(verifying.CHECKS, "R-04")
    assert not look(one).violations


def test_one_round_of_another_run_breaks_the_chain_of_heads_and_of_models(given):
    one, other = given
    shutil.copy(transcripts(other)[1], transcripts(one)[1])
    evidence = look(one)
    assert {"R-03", "R-04"} <= violated(evidence)
    assert evidence.state("T-16") == "not checked"  # its head does not follow, so nothing is added


# --- What only a site has ---------------------------------------------------------------------------------------------


@pytest.fixture
def state(given, tmp_path):
    """A site's state folder as taking part in the first run would have left it, and the site's own run folder."""
    one, _ = given
    state, run = tmp_path / "site-a-state", tmp_path / "site-a"
    state.mkdir()
    for entry in Ledger(one / "ledger" / "site-a.jsonl").entries():
        Ledger(state / "ledger.jsonl", KEYS["site-a"]).append(entry)
    federation, policy = read_federation(one / "federation.toml"), load_policy(one / "policy.toml")
    session = session_id(policy, federation.pinned)
    with SqliteStore(state / "marks.sqlite", "site-a", synced=False) as store, store.transaction() as marks:
        for path, (event_id, entry) in zip(transcripts(one), verify(state / "ledger.jsonl").items(), strict=True):
            told = published(path, policy)
            slot = Slot(session, federation.training_run, entry.round_number, told.context.attempt)
            marks.join(slot, told.context.model_hash, private=True)
            marks.contribute(slot, event_id, (), private=True)
            marks.finish(session, federation.training_run, [told.receipt])
    shutil.copytree(one, run, ignore=shutil.ignore_patterns("ledger", "transcripts", "federation.toml"))
    return state, run


def test_a_site_holds_its_ledger_and_folder_against_the_coordinators(given, state):
    one, folder = given[0], state
    evidence = look(one, *folder)
    assert not evidence.violations
    assert evidence.state("R-05") == evidence.state("R-08") == "held"


def test_a_ledger_written_anew_without_what_was_spent_before_is_found_by_the_marks(given, state, monkeypatch):
    one, (folder, run) = given[0], state
    entries = Ledger(folder / "ledger.jsonl").entries()
    earlier = entries[0].model_copy(update={"training_run": "before", "steps": 0})
    (folder / "ledger.jsonl").unlink()
    for entry in (earlier, *entries):
        Ledger(folder / "ledger.jsonl", KEYS["site-a"]).append(entry)
    evidence = look(one, folder, run)
    assert violated(evidence) == {"R-05"}
    assert "which the ledger does not hold" in str(evidence.violations[0])
    monkeypatch.delitem(verifying.CHECKS, "R-05")
    assert not look(one, folder, run).violations


def test_an_end_that_was_cut_off_is_found_by_the_marks_where_no_round_of_this_run_is_missing(given, state, monkeypatch):
    one, (folder, run) = given[0], state
    ids = list(verify(folder / "ledger.jsonl"))
    with SqliteStore.existing(folder / "marks.sqlite") as store, store.transaction() as marks:
        marks.keep(KEPT, {"count": len(ids) + 1, "event_id": "5f" * 32})  # of a later study
    evidence = look(one, folder, run)
    assert violated(evidence) == {"R-05"}
    assert "the marks know of 3 entries, the last 5f5f5f5f5f5f5f5f, and the ledger has 2" in str(evidence.violations[0])
    monkeypatch.delitem(verifying.CHECKS, "R-05")
    assert not look(one, folder, run).violations


@pytest.mark.parametrize("key", [SigningKey.generate(), None], ids=["another key", "no key"])
def test_a_ledger_signed_by_somebody_else_is_found(given, state, key):
    one, (folder, run) = given[0], state
    entries = Ledger(folder / "ledger.jsonl").entries()
    for path in folder.iterdir():
        path.unlink()
    for entry in entries:
        Ledger(folder / "ledger.jsonl", key).append(entry)
    evidence = look(one, folder, run)
    assert violated(evidence) == {"T-17"}
    assert "lines 1, 2 are not signed by site-a's key" in str(evidence.violations[0])


def test_a_party_with_another_model_is_found(given, state, monkeypatch):
    one, run = given[0], state[1]
    for path in transcripts(one):  # else T-16 would see it, too
        path.unlink()
    one_bit_of_the_model(run, None)
    evidence = look(one, run)
    assert violated(evidence) == {"R-08"}
    assert "the models differ" in str(evidence.violations[0])
    monkeypatch.delitem(verifying.CHECKS, "R-08")
    assert not look(one, run).violations


# --- What was not seen ------------------------------------------------------------------------------------------------


def test_what_is_missing_is_said_and_never_held(given):
    one, _ = given
    transcripts(one)[0].unlink()
    evidence = look(one)
    assert evidence.exit_code == 2
    assert "[R-04] simulation: transcripts of rounds 1 were not kept" in evidence.not_seen
    assert any("transcripts are missing between rounds 0 and 2" in said for said in evidence.not_seen)
    shutil.rmtree(one / "ledger")
    said = list(look(one).not_seen)
    assert "[T-15] site-a: its ledger was not given: the noise of 2 updates was not checked" in said
    assert any(line.startswith("[T-17]") and "its ledger was not given" in line for line in said)


def test_without_a_roster_no_signature_counts(given):
    evidence = verify_run([given[0]])
    assert evidence.exit_code == 2
    assert evidence.state("R-03") == "not checked"
    assert evidence.state("T-16") == "held"  # the sums are those of the log's heads


def test_a_run_that_broke_off_is_held_against_what_it_left(given, tmp_path):
    one, _ = given
    with RunFolder.create(tmp_path / "broken", STUDY) as folder:
        broken = folder.path
        shutil.copytree(one / "transcripts", broken / "transcripts")
        shutil.copy(one / "federation.toml", broken)
        shutil.copy(one / "model.safetensors", broken / "model-2.safetensors")
        lines = (one / "events.jsonl").read_text().splitlines(keepends=True)
        whole = "".join(line for line in lines if '"kind":"end"' not in line)
        (broken / "events.jsonl").write_text(whole + '{"kind": "round", "t"')
        state = {"format": 2, "tally": {"completed": 2}, "events": len(whole), "model": "model-2.safetensors"}
        (broken / "state.json").write_text(json.dumps(state))
        evidence = look(broken)
        assert not evidence.violations, list(map(str, evidence.violations))
        assert evidence.state("T-16") == "held"
        one_bit_of_the_model_file(broken / "model-2.safetensors")
        assert violated(look(broken)) == {"T-16"}


def test_machines_get_everything_and_a_folder_of_something_else_is_no_run(given, tmp_path, capsys, monkeypatch):
    one, _ = given
    code, out, _ = command(capsys, monkeypatch, "verify-run", one, "--roster", one / "federation.toml", "--json")
    told = json.loads(out)
    assert code == told["exit_code"] == 2  # there is no report
    assert {check["id"]: check["state"] for check in told["checks"]}["T-16"] == "held"
    assert str(one / "model.safetensors") in told["inputs"]
    code, _, err = command(capsys, monkeypatch, "verify-run", tmp_path)
    assert code == 3
    assert err.startswith("fedseg: ")
    assert "neither a run folder" in err


# --- Mechanism "distributed" ------------------------------------------------------------------------------------------


def test_the_optimisers_memory_is_made_again_and_noise_shares_are_those_planned(tmp_path, monkeypatch):
    monkeypatch.setattr(distributed, "DEVIATION", 1 << 8)  # a table of noise that is made at once
    study = tiny_study(mechanism="distributed", seed=None)
    with RunFolder.create(tmp_path, study) as folder:
        run = simulate(folder, load_cohort(None, study), Options(transcripts=True, command="fedseg simulate"))
    evidence = look(run)
    assert not evidence.violations, list(map(str, evidence.violations))
    assert [evidence.state(check) for check in ("T-15", "T-16", "T-17", "R-03")] == ["held"] * 4
    rewrite_ledger(run / "ledger" / "site-a.jsonl", lambda e: e.model_copy(update={"shares": e.shares + 1}))
    assert "T-15" in violated(look(run))
