"""One ledger for a data set's whole life: found from anywhere, whoever's patients, and never shorter than it was."""

import json
import os
import resource
import shutil
import signal
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial

import pytest

import fedseg.site
from fedseg.budget.balance import balance
from fedseg.budget.cap import lifetime
from fedseg.budget.charge import charge, spent
from fedseg.budget.explain import explain
from fedseg.budget.plan import plan_of
from fedseg.credentials import load_federation, make_credentials
from fedseg.data.loading import load_site
from fedseg.errors import BudgetExceededError, ConfigError, LedgerError
from fedseg.exposure import MARKS, data_set_ledger
from fedseg.ledger import START, Ledger, NoisySteps, book, distinct, home, read, released, verify, witness
from fedseg.ledger.chain import next_line
from fedseg.ledger.home import Home
from fedseg.ledger.patients import PatientSets
from fedseg.privacy import accounting
from fedseg.privacy.accounting import epsilon
from fedseg.site import Site
from fedseg.statement.facts import accounts_of
from fedseg.study import parse_study
from fedseg.verifying.material import gather
from secagg import SigningKey
from secagg.context import Slot
from secagg.roster import session_id
from secagg.sqlite import SqliteStore
from tests.support.command import feta_study, run
from tests.support.folders import copied
from tests.support.tiny import tiny_study

DELTA = 0.01


def study(rounds=10, name="first", budget=8.0):
    text = feta_study().replace('name = "tiny"', f'name = "{name}"').replace("seed = 7\n", "")
    loaded = parse_study(text, "study").replace(study={"rounds": rounds}, privacy={"epsilon": budget})
    assert loaded.study.seed is None
    return loaded


@pytest.fixture
def site(tmp_path, monkeypatch, capsys):
    """`fedseg site` as a person types it; in place of a federation's rounds so many are charged."""

    def typed(what, run_name, rounds, data, folder="here", **more):
        here = tmp_path / folder
        here.mkdir(exist_ok=True)
        monkeypatch.chdir(here)
        credentials = tmp_path / f"credentials-{run_name}"
        if not credentials.is_dir():
            make_credentials(credentials, what, run_name)
        (tmp_path / f"{run_name}.toml").write_text(what.toml(), encoding="utf-8")
        charged = []

        def in_place_of_rounds(run_folder, found, options):
            party = Site(run_folder, found, options)
            try:
                for number in range(1, rounds + 1):
                    charge(party.ledger, party.study, party.me, party.federation.training_run, number)
                    charged.append(spent(party.ledger, party.study))
            finally:
                party.store.close()
            raise SystemExit(0)

        monkeypatch.setattr(fedseg.site, "take_part", in_place_of_rounds)
        given = ["--coordinator", "127.0.0.1:1", "--credentials", credentials, "--data", data]
        given += ["--approve", what.hash().hex()]
        options = [part for name, value in more.items() for part in (f"--{name}", value)]
        code, _, error = run(
            capsys, monkeypatch, "site", tmp_path / f"{run_name}.toml", "site-a", *given, *options
        )  # fmt: skip
        return code, charged, error

    return typed


def only_state():
    (state,) = {found.state for found in Home().data_sets()}
    return state


# --- Whatever the run, the study, the working directory and the credentials are called ------------------------------


def test_a_new_run_another_folder_and_another_study_on_the_same_patients_do_not_begin_at_zero(
    site, feta_folder, capsys, monkeypatch
):
    data = feta_folder / "site-a"
    code, charged, _ = site(study(), "monday", 5, data, folder="here")
    assert code == 0
    assert charged[-1] == pytest.approx(5.17, abs=0.3)
    code, again, error = site(study(name="second"), "tuesday", 10, data, folder="elsewhere")  # it began at 0 once
    assert code == 1
    assert "over all training runs, above the budget of 8" in error
    assert again[0] > charged[-1]
    assert max(again) <= 8
    code, said, _ = run(capsys, monkeypatch, "ledger", "epsilon", only_state(), "--delta", DELTA, "--json")
    told = json.loads(said)
    assert code == 0
    assert set(told["runs"]) == {"monday", "tuesday"}
    assert told["everything"] == pytest.approx(max(again))
    assert max(told["runs"].values()) < told["everything"] < sum(told["runs"].values())
    more = study(name="third", budget=12.0)
    code, third, _ = site(more, "wednesday", 2, data, folder="here")
    assert code == 0
    assert third[0] > max(again)  # a larger budget goes on from where the patients are


def test_a_state_of_an_earlier_version_is_taken_over(site, feta_folder, tmp_path):
    old = tmp_path / "here" / "runs" / "site-a-state"
    old.mkdir(parents=True)
    (tmp_path / "here").mkdir(exist_ok=True)
    lines = [NoisySteps(**entry(number, "old run")) for number in (1, 2)]
    for line in lines:
        Ledger(old / "ledger.jsonl").append(line)
    _, charged, _ = site(study(), "new", 1, feta_folder / "site-a", folder="here")
    assert charged[0] > epsilon(released(lines), DELTA)
    assert only_state() == str(old)
    _, elsewhere, _ = site(study(), "newer", 1, feta_folder / "site-a", folder="elsewhere")
    assert elsewhere[0] > charged[0]


def test_another_state_folder_is_refused_and_a_moved_one_is_followed(site, feta_folder, tmp_path):
    data = feta_folder / "site-a"
    site(study(), "first", 1, data, state=tmp_path / "state")
    code, _, error = site(study(), "second", 1, data, state=tmp_path / "fresh")
    assert code == 1
    assert "has been in" in error
    assert not (tmp_path / "fresh").exists()
    os.rename(tmp_path / "state", tmp_path / "moved")
    code, _, error = site(study(), "second", 1, data)
    assert code == 1
    assert "give its new place with --state" in error
    code, charged, _ = site(study(), "second", 1, data, state=tmp_path / "moved")
    assert code == 0
    assert len(verify(tmp_path / "moved" / "ledger.jsonl")) == 2
    code, later, _ = site(study(), "third", 1, data)
    assert later[0] > charged[0]


def test_a_second_federation_under_the_name_of_the_first_is_not_paid_by_its_charges(site, feta_folder, tmp_path):
    data = feta_folder / "site-a"
    credentials, first = tmp_path / "credentials-trial", tmp_path / "first"
    assert site(study(), "trial", 1, data)[:1] == (0,)
    with SqliteStore(only_state() + f"/{MARKS}", "site-a") as store, store.transaction() as marks:
        policy, federation = study().policy(1), load_federation(credentials, study())
        slot = Slot(session_id(policy, federation.pinned), "trial", 1, 0)
        marks.join(slot, b"m" * 32, True)
        marks.contribute(slot, "event", (), True)
    os.rename(credentials, first)
    code, charged, error = site(study(), "trial", 1, data)  # with keys made anew: it went on for nothing once
    assert (code, charged) == (1, [])
    assert "'trial'" in error
    assert "--training-run" in error


def test_the_same_folder_under_another_site_id_is_refused(site, feta_folder, tmp_path):
    data = feta_folder / "site-a"
    site(study(), "first", 1, data)
    (tmp_path / "link").symlink_to(data)
    for same in (data, tmp_path / "link"):
        with pytest.raises(ConfigError, match=r"have taken part as site 'site-a'.*call the site site-a"):
            Home().state_of("other", same, None, tmp_path / "none")
    assert [found.site for found in Home().data_sets()] == ["site-a"]


# --- Whoever the patients are ---------------------------------------------------------------------------------------


def test_the_same_patients_in_another_folder_are_found_and_left_out_alone(site, feta_folder, tmp_path):
    data = feta_folder / "site-a"
    site(study(), "first", 9, data)
    twin = copied(data, tmp_path / "twin")
    newcomer = twin / "sub-077"
    os.rename(twin / "sub-002", newcomer)
    for path in (newcomer / "anat").iterdir():
        path.rename(path.with_name(path.name.replace("sub-002", "sub-077")))
    listed = (twin / "participants.tsv").read_text().replace("sub-002", "sub-077")
    (twin / "participants.tsv").write_text(listed)
    everyone = study().replace(data={"holdout": 0.0})
    code, charged, _ = site(everyone, "second", 10, twin)
    assert code == 0  # what is spent elsewhere stops no site: that would be seen
    assert charged[0] < 2
    state = Home().state_of("site-a", twin, None, tmp_path)
    sets = PatientSets(state / "patients", Home().salt())
    entries = [line.entry for line in read(state / "ledger.jsonl")]
    old, new = sets.digest_of("sub-001"), sets.digest_of("sub-077")
    assert [new in (sets.members(one.patients) or ()) for one in entries] == [True] * 10
    paid = [old in (sets.members(one.patients) or ()) for one in entries]
    assert not paid[-1]
    assert paid == sorted(paid, reverse=True)
    before = [line.entry for line in read(state_of_first(feta_folder) / "ledger.jsonl")]
    assert epsilon(released([*before, *sets.of("sub-001", entries)]), DELTA) <= 8


def state_of_first(feta_folder):
    return Home().state_of("site-a", feta_folder / "site-a", None, feta_folder)


def test_disjoint_studies_do_not_add_up_and_overlapping_ones_do(tmp_path):
    sets = PatientSets(tmp_path / "patients", bytes(32))
    ab, bc, d = sets.keep(["a", "b"]), sets.keep(["b", "c"]), sets.keep(["d"])
    lines = {name: NoisySteps(**entry(1, name), patients=name) for name in (ab, bc, d)}
    paid = sets.heaviest(list(lines.values()))
    assert sorted(len(one) for one in paid) == [1, 2]  # b paid two, d one; what a and c paid is within what b did
    assert sets.of("b", list(lines.values())) == [lines[ab], lines[bc]]
    unknown = NoisySteps(**entry(1, "0.4"))  # nobody knows whose: everybody's
    assert sorted(len(one) for one in sets.heaviest([*lines.values(), unknown])) == [2, 3]


def test_a_set_under_another_salt_or_damaged_counts_for_everybody(tmp_path):
    name = PatientSets(tmp_path, bytes(32)).keep(["a"])
    assert PatientSets(tmp_path, bytes([1]) * 32).members(name) is None
    (tmp_path / f"{name}.txt").write_text((tmp_path / f"{name}.txt").read_text().replace("salt", "salz"))
    assert PatientSets(tmp_path, bytes(32)).members(name) is None
    line = NoisySteps(**entry(1, "run"), patients=name)
    assert PatientSets(tmp_path, bytes(32)).of("somebody else", [line]) == [line]


def test_patients_are_nowhere_by_name_and_the_salt_is_its_owners(site, feta_folder):
    site(study(), "first", 1, feta_folder / "site-a")
    assert Home().path.stat().st_mode & 0o777 == 0o700
    assert (Home().path / "salt").stat().st_mode & 0o777 == 0o600
    for path in Home().path.rglob("*"):
        assert path.is_dir() or b"sub-00" not in path.read_bytes()


def test_a_patients_digest_follows_from_the_salt(tmp_path):
    """Else whoever sees a set could look whether a name is in it."""
    one, other = (PatientSets(tmp_path, bytes([byte]) * 32) for byte in (1, 2))
    assert one.digest_of("sub-001") == PatientSets(tmp_path / "elsewhere", bytes([1]) * 32).digest_of("sub-001")
    assert one.digest_of("sub-001") != other.digest_of("sub-001")


def test_a_round_whose_patients_changed_between_two_attempts_is_one_use(tmp_path):
    ledger = Ledger(tmp_path / "ledger.jsonl")
    for patients in ("a" * 64, "b" * 64, "a" * 64):
        ledger.append(NoisySteps(**entry(1, "run"), patients=patients))
    assert len(ledger.entries()) == 2
    assert len(distinct(ledger.entries())) == 1


# --- Budgets --------------------------------------------------------------------------------------------------------


def test_a_lifetime_budget_stops_before_the_round_that_would_pass_it(tmp_path):
    (tmp_path / "budget.toml").write_text("epsilon = 3.0\ndelta = 0.01\n")
    ledger = Ledger(tmp_path / "ledger.jsonl")

    def all_rounds():
        for number in range(1, 11):
            charge(ledger, study(), "site-a", "run", number)

    with pytest.raises(BudgetExceededError, match=r"lifetime budget of this data set of 3 .*budget.toml says it"):
        all_rounds()
    assert 2 < epsilon(released(ledger.entries()), DELTA) <= 3
    unprotected = study().replace(privacy={"mechanism": "none"})
    with pytest.raises(BudgetExceededError, match="without protection"):
        charge(ledger, unprotected, "site-a", "other", 1)


@pytest.mark.parametrize(
    "text", ["epsilon = 1", "epsilon = -1\ndelta = 0.1", "delta = 'x'", "nonsense", "epsilon = nan\ndelta=1e-5"]
)
def test_a_budget_that_is_none_is_a_sentence(tmp_path, text):
    (tmp_path / "budget.toml").write_text(text)
    with pytest.raises(ConfigError, match=r"budget\.toml: give two lines"):
        lifetime(tmp_path)


def test_spare_rounds_let_so_many_burn(tmp_path):
    plain, spare = study(rounds=4), study(rounds=4).replace(study={"spare_rounds": 2})
    for planned, most in ((plain, 4), (spare, 6)):
        ledger = Ledger(tmp_path / f"{most}.jsonl")
        for number in range(1, most + 1):  # whichever of them burn
            charge(ledger, planned, "site-a", "run", number)
        with pytest.raises(BudgetExceededError):
            charge(ledger, planned, "site-a", "run", most + 1)
        assert 7.9 < spent(ledger, planned) <= 8
    assert plan_of(spare).noise_multiplier > plan_of(plain).noise_multiplier
    told = explain(spare)
    assert max(told.guarantee.curve) == 6
    assert any("2 spare rounds beside the 4" in note for note in told.notes)


def test_what_each_observer_learns_is_the_same_before_in_the_ledger_and_on_the_statement(tmp_path, capsys, monkeypatch):
    shared = tiny_study(sites=6, seed=None, mechanism="distributed").replace(privacy={"noise": "discrete-gaussian"})
    terms, ledger = shared.terms, Ledger(tmp_path / "ledger.jsonl")
    for number in range(1, 3):
        charge(ledger, shared, "site-a", "run", number)
    promised = {one.colluders: one.epsilon[terms.min_survivors] for one in explain(shared).observers}
    code, said, _ = run(capsys, monkeypatch, "ledger", "epsilon", tmp_path, "--delta", DELTA, "--json")
    told = json.loads(said)
    assert code == 0
    assert told["observers"] == pytest.approx(
        {
            "the public": promised[0],
            "the coordinator": promised[0],
            "the coordinator with max_corrupt sites": promised[terms.max_corrupt],
            "one other site": promised[1],
        }
    )
    assert promised[0] < promised[1] <= promised[terms.max_corrupt] == pytest.approx(told["everything"])
    (account,) = accounts_of(replace(gather([tmp_path], None, runs=False), run_name="run"), DELTA, unseeded=False)
    assert account.seen == told["observers"]
    alone = Ledger(tmp_path / "alone.jsonl")
    charge(alone, study(), "site-a", "run", 1)
    assert len(set(balance(alone.path, DELTA).observers.values())) == 1


# --- Never shorter than it was --------------------------------------------------------------------------------------


def entry(number, run_name):
    return {
        "study_hash": "ab" * 32, "site": "site-a", "training_run": run_name, "round_number": number,
        "unit": "patient", "sample_rate": 1.0, "noise_multiplier": 2.0, "clip_norm": 0.1, "denominator": 2,
        "steps": 1, "generator": "os",
    }  # fmt: skip


@pytest.fixture
def opened(tmp_path, feta_folder):
    """Opens the ledger of a data set as a site does."""
    data = load_site(feta_folder / "site-a", "site-a", study())
    key = SigningKey.generate()
    stores = []

    def open_ledger():
        state = Home().state_of("site-a", feta_folder / "site-a", tmp_path / "state", tmp_path / "none")
        state.mkdir(exist_ok=True)
        stores.append(SqliteStore(state / MARKS, "site-a"))
        return data_set_ledger(state, stores[-1], key, data)

    yield open_ledger
    for store in stores:
        store.close()


def test_a_cut_off_end_is_found_where_the_chain_holds(opened, tmp_path, capsys, monkeypatch):
    ledger = opened()
    for number in range(1, 6):
        ledger.append(NoisySteps(**entry(number, "run")))
    whole = ledger.path.read_bytes()
    ledger.path.write_bytes(b"".join(whole.splitlines(keepends=True)[:3]))
    assert len(verify(ledger.path)) == 3  # the chain alone sees nothing
    for use in (opened, lambda: ledger.append(NoisySteps(**entry(6, "run")))):
        with pytest.raises(
            LedgerError, match=r"holds 3 entries, and the marks beside it know of 5.*its end was cut off"
        ):
            use()
    code, _, error = run(capsys, monkeypatch, "ledger", "verify", tmp_path / "state", "--delta", DELTA)
    assert code == 1
    assert "its end was cut off" in error
    ledger.path.write_bytes(whole)
    code, said, _ = run(capsys, monkeypatch, "ledger", "verify", tmp_path / "state", "--delta", DELTA, "--json")
    assert (code, json.loads(said)["end"], json.loads(said)["signed"]) == (0, "known", 5)


def test_a_line_whose_signature_does_not_hold_is_found(opened):
    ledger = opened()
    ledger.append(NoisySteps(**entry(1, "run")))
    text = ledger.path.read_text()
    signature = json.loads(text)["signature"]
    ledger.path.write_text(text.replace(signature, signature[::-1]))
    with pytest.raises(LedgerError, match="line 1: its signature does not hold"):
        verify(ledger.path)


def test_old_marks_are_found(opened, tmp_path):
    ledger = opened()
    for number in (1, 2, 3):
        ledger.append(NoisySteps(**entry(number, "run")))
        if number == 2:
            old = (tmp_path / "state" / MARKS).read_bytes()
    (tmp_path / "state" / MARKS).write_bytes(old)  # one behind the ledger, as a crash would leave it
    with pytest.raises(LedgerError, match="marks beside it are older than the ledger"):
        opened()
    (tmp_path / "state" / MARKS).unlink()
    with pytest.raises(LedgerError, match="marks beside it are gone"):
        opened()


def test_a_state_folder_put_back_as_a_whole_in_its_own_files_is_found_outside_it(opened, tmp_path):
    ledger = opened()
    ledger.append(NoisySteps(**entry(1, "run")))
    old = {path.name: path.read_bytes() for path in (tmp_path / "state").iterdir() if path.is_file()}
    ledger.append(NoisySteps(**entry(2, "run")))
    for name, data in old.items():
        (tmp_path / "state" / name).write_bytes(data)
    with pytest.raises(LedgerError, match=r"this site's own records .* know of 2"):
        opened()


def test_a_copy_is_refused_by_name_until_its_operator_says_that_it_was_moved(opened, tmp_path, capsys, monkeypatch):
    ledger = opened()
    ledger.append(NoisySteps(**entry(1, "run")))
    shutil.copytree(tmp_path / "state", tmp_path / "copy")
    shutil.rmtree(tmp_path / "state")
    os.rename(tmp_path / "copy", tmp_path / "state")
    with pytest.raises(LedgerError, match=r"ledger.jsonl and marks.sqlite in it are a copy.*fedseg ledger moved"):
        opened()
    code, _, _ = run(capsys, monkeypatch, "ledger", "moved", tmp_path / "state")
    assert code == 0
    opened().append(NoisySteps(**entry(2, "run")))


def test_another_machine_is_refused(opened, monkeypatch):
    opened().append(NoisySteps(**entry(1, "run")))
    said = witness._said
    monkeypatch.setattr(witness, "_said", lambda file: "another" if "machine-id" in file else said(file))
    with pytest.raises(LedgerError, match="it was written on another machine"):
        opened()


def test_another_day_after_a_restart_goes_on(opened, monkeypatch):
    opened().append(NoisySteps(**entry(1, "run")))
    said = witness._said
    monkeypatch.setattr(witness, "_said", lambda file: "another" if "boot_id" in file else said(file))

    class Tomorrow(datetime):
        @classmethod
        def now(cls, tz=None):
            return super().now(tz) + timedelta(days=1)

    monkeypatch.setattr(book, "datetime", Tomorrow)
    ledger = opened()
    ledger.append(NoisySteps(**entry(1, "run")))  # the same round
    ledger.append(NoisySteps(**entry(2, "run")))
    first, second = ledger.entries()
    assert first.charged[:10] < second.charged[:10]
    assert len(opened().entries()) == 2


def in_another_process(work):
    """Runs it in a child with all that is imported here; how it ended, negative for the signal that killed it."""
    child = os.fork()
    if not child:
        try:
            work()
            os._exit(0)
        finally:
            os._exit(1)
    return child


def ended(child):
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def killed(*_):
    os.kill(os.getpid(), signal.SIGKILL)


def before_the_marks():
    witness.MarksWitness.remember = killed


def before_the_record():
    home.RecordWitness.remember = killed


def before_the_disk():
    os.fsync = killed


def within_the_line():
    write = os.write
    os.write = lambda file, data: killed() if write(file, data[:40]) else None


@pytest.mark.parametrize("where", [before_the_marks, before_the_record, before_the_disk, within_the_line])
def test_a_killed_process_forgets_no_charge(opened, tmp_path, where):
    opened().append(NoisySteps(**entry(1, "run")))

    def work():
        ledger = opened()
        where()
        ledger.append(NoisySteps(**entry(2, "run")))

    assert ended(in_another_process(work)) == -signal.SIGKILL
    path = tmp_path / "state" / "ledger.jsonl"
    if where is within_the_line:  # the round did not train
        with pytest.raises(LedgerError, match="line 2: the line is cut off, as by a crash while writing"):
            opened()
        path.write_bytes(path.read_bytes().splitlines(keepends=True)[0])
    ledger = opened()
    assert len(ledger.entries()) == (1 if where is within_the_line else 2)
    ledger.append(NoisySteps(**entry(2, "run")))  # the same round, after the restart
    assert len(ledger.entries()) == 2
    assert Home().of_state(tmp_path / "state")[0].count == 2


def test_a_full_disk_charges_nothing_and_says_so(opened):
    ledger = opened()
    ledger.append(NoisySteps(**entry(1, "run")))
    full = ledger.path.stat().st_size + 100

    def work():
        signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
        resource.setrlimit(resource.RLIMIT_FSIZE, (full, full))
        with pytest.raises(LedgerError, match=r"the ledger cannot be written .*; nothing was trained"):
            ledger.append(NoisySteps(**entry(2, "run")))

    assert ended(in_another_process(work)) == 0
    assert len(opened().entries()) == 1


def test_two_processes_at_once_do_not_pass_a_budget_together(tmp_path):
    path, planned = tmp_path / "ledger.jsonl", study()

    def work(name):
        ledger = Ledger(path)
        with pytest.raises(BudgetExceededError):
            [charge(ledger, planned, "site-a", name, number) for number in range(1, 100)]

    both = [in_another_process(partial(work, name)) for name in ("one", "two")]
    assert [ended(child) for child in both] == [0, 0]
    assert len(verify(path)) == 10  # what the study planned, whoever came first
    assert 7.9 < epsilon(released(Ledger(path).entries()), DELTA) <= 8


def test_a_thousand_entries_are_composed_once_a_kind(tmp_path, monkeypatch):
    ledger, previous, lines = Ledger(tmp_path / "ledger.jsonl"), START, []
    for number in range(1, 1001):
        line, data = next_line(
            previous, NoisySteps(**{**entry(number, f"run-{number % 7}"), "noise_multiplier": 400.0}), None
        )
        lines.append(data)
        previous = line.event_id
    ledger.path.write_bytes(b"".join(lines))
    seen, exact = [], accounting._pld_epsilon
    monkeypatch.setattr(
        accounting, "_pld_epsilon", lambda composition, delta: seen.append(composition) or exact(composition, delta)
    )
    told = balance(ledger.path, 1e-5)
    assert told.everything == told.most
    assert {len(composition) for composition in seen} == {1}
    assert max(composition[0][1] for composition in seen) == 1000
