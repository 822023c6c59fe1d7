"""The second verifier of transcripts: each check refuses something, and it agrees with the first one."""

import json

import numpy as np
import pytest
from safetensors.numpy import save_file
from typer.testing import CliRunner

from audits.__main__ import app
from audits.transcripts import whole
from audits.transcripts.agreement import compared, of_flips, policy_text
from audits.transcripts.golden import vector
from audits.transcripts.lies import CASES, HONEST
from audits.transcripts.negatives import IDS, policy
from audits.transcripts.play import Play, played
from audits.verifier import checks, reading, runs, spaces, states, study
from audits.verifier.encoding import H
from audits.verifier.judge import CHECKS, Judge, ViolationError
from audits.verifier.policy import load_policy, load_roster

# One lie that only its own check sees.
ALONE = {
    "T-01": "closing that a site signed",
    "T-02": "receipt of another sum",
    "T-03": "opening with another project",
    "T-04": "header that somebody else signed",
    "T-05": "nonce that another site has too",
    "T-06": "channel key of order eight",
    "T-07": "input for another model",
    "T-08": "envelope that was sent twice",
    "T-09": "complaint",
    "T-10": "release for another set",
    "T-11": "pair that did not have to be opened",
    "T-12": "pair commitment that does not follow from s",
    "T-13": "sum that is one too large in a value",
    "T-14": "value beyond what the included can send",
    "T-18": "bit set in what a client signed",
    "T-19": "two of kind report swapped",
    "T-20": "bytes behind the closing",
    "T-21": "release named that no file shows",
    "T-22": "claim of the round before that no quorum attested",
}


def case(name):
    return next(each for each in (*CASES, *HONEST) if each.name == name)


@pytest.mark.parametrize("check", CHECKS)
def test_a_lie_is_refused_by_its_check_and_gets_by_without_it(check, tmp_path):
    lie = case(ALONE[check])
    reader, paths = lie.write(tmp_path)
    verdict = study.verify(paths, reader)
    assert lie.check == check
    assert (verdict.exit_code, verdict.check) == ((2, "") if check == "T-21" else (1, check)), verdict.sentence
    assert study.verify(paths, reader, {check}).exit_code == 0


@pytest.mark.parametrize("name", ["one dropped out, one fell silent, post-quantum", "two rounds", "public weights"])
def test_an_honest_round_holds_for_both(name, tmp_path):
    reader, paths = case(name).write(tmp_path)
    both = compared(name, reader, paths, tmp_path, "")
    assert both.agree
    assert both.ours.status == 0


@pytest.mark.parametrize("name", ["round_n5_silent_mask_input", "round_n3_b64", "bad_s16_wrong_share_of_b"])
def test_rounds_of_the_vectors_are_judged_alike(name, tmp_path):
    made = vector(name)
    both = compared(name, made.reader, made.write(tmp_path), tmp_path, None)
    assert both.agree
    assert both.ours.status == name.startswith("bad_")


@pytest.mark.parametrize("name", ["share commitment of 31 bytes"])
def test_what_only_the_second_verifier_refused_at_first_is_refused_by_both(name, tmp_path):
    reader, paths = case(name).write(tmp_path)
    both = compared(name, reader, paths, tmp_path, "T-08")
    assert both.agree, both


def test_a_disagreement_is_seen(tmp_path, monkeypatch):
    assert all(one.agree for one in of_flips(tmp_path, 4, seed=3))
    monkeypatch.setattr(checks, "verifies", lambda key, signed, signature: True)
    reader, paths = case("header that somebody else signed").write(tmp_path)
    assert not compared("forged", reader, paths, tmp_path, "T-04").agree


def test_both_verifiers_call_every_damage_of_an_opening_the_same(tmp_path):
    found = list(of_flips(tmp_path, 0, 0))
    assert [one for one in found if not one.agree] == []
    assert {one.ours.check for one in found} >= {"T-03", "T-20", ""}


def test_the_command_names_the_check_and_ends_with_1(tmp_path):
    for name, status, said in (
        ("one dropped out, one fell silent", 0, "Everything holds."),
        ("receipt of another sum", 1, "T-02"),
        ("masked vectors by hash only", 2, "by hash only"),
    ):
        reader, paths = case(name).write(tmp_path)
        (tmp_path / "policy.toml").write_text(policy_text(reader.policy))
        keys = "".join(f'"{u}" = "{key.hex()}"\n' for u, key in reader.roster.items())
        (tmp_path / "roster.toml").write_text(f"[clients]\n{keys}")
        own = ["--roster", str(tmp_path / "roster.toml"), "--policy", str(tmp_path / "policy.toml")]
        answer = CliRunner().invoke(app, ["verify-transcript", *map(str, paths), *own])
        assert (answer.exit_code, said in answer.output) == (status, True)
    answer = CliRunner().invoke(app, ["verify-transcript", str(tmp_path / "policy.toml"), *own])
    assert answer.exit_code == 3


YOGI = {"federation": {"algorithm": "fedyogi", "ema": 0.5}, "privacy": {"mechanism": "local"}, "study": {}}


@pytest.fixture
def run_folder(tmp_path):
    """Two rounds of a private study as a run folder keeps them; written from the specification."""
    for name in ("transcripts", "ledger"):
        (tmp_path / name).mkdir()
    rules = policy(weights={u: 2.0 if u == IDS[0] else 1.0 for u in IDS})
    reader = Play(rules, "honest", IDS).reader
    start = np.linspace(-1, 1, rules.length, dtype=np.float32)
    course = states.Course(YOGI, rules, {}, len(start))
    state, rounds = course.start(start), []
    for number in (1, 2):
        about = {"number": number, "model": states.hash_of(state)}
        path = tmp_path / "transcripts" / f"{number}.transcript"
        played(Play(rules, "honest", IDS, **about, follows=rounds)).write(path)
        rounds = [about]
        state = course.next(state, reading.read(path, reader, Judge()))
    save(tmp_path, course.step.given_out(state, len(start)))
    (tmp_path / "study.toml").write_text(
        "[study]\nrounds = 2\nlocal_steps = 3\n[privacy]\nmechanism = 'local'\nunit = 'patient'\nepsilon = 8.0\n"
        "delta = 3e-4\nsample_rate = 1.0\nclip_norm = 0.05\ndenominator = 64\n"
        "[federation]\nalgorithm = 'fedyogi'\nema = 0.5\n"
    )
    charge(tmp_path, 1.5)
    spent = 4.1687
    (tmp_path / "events.jsonl").write_text(
        json.dumps({"kind": "epsilon", "round": 1, "site": "site-a", "spent": spent}) + "\n"
    )
    return tmp_path, reader, start


def save(folder, weights):
    """A model file whose tensors lie in another order than the network's."""
    save_file({"a": weights[12:].reshape(2, 4), "b": weights[:12]}, folder / "model.safetensors")


def charge(folder, noise, rounds=2, **changes):
    """A ledger of site-a."""
    lines, previous = [], runs.NONE
    for number in range(1, rounds + 1):
        entry = {
            "kind": "local", "unit": "patient", "neighbouring": "add or remove one", "sample_rate": 1.0,
            "clip_norm": 0.05, "denominator": 64.0, "steps": 3, "noise_multiplier": noise, "round_number": number,
            "training_run": "run-1", "previous": previous, **changes,
        }  # fmt: skip
        text = json.dumps(entry, **runs.COMPACT)
        previous = H("ledger-event", text).hex()
        lines.append(json.dumps({**entry, "event_id": previous}))
    (folder / "ledger" / "site-a.jsonl").write_text("\n".join(lines) + "\n")


def test_a_run_is_held_against_its_ledger_and_its_sums(run_folder):
    folder, reader, start = run_folder
    held, unchecked = runs.verify_run(folder, reader, start)
    assert (len(held), unchecked) == (2, [])
    assert "T-16" in runs.verify_run(folder, reader)[1][0]
    for check, lie in (
        ("T-15", lambda: charge(folder, 0.9)),
        ("T-15", lambda: charge(folder, 1.5, rounds=1)),
        ("T-15", lambda: charge(folder, 1.5, clip_norm=0.1)),
        ("T-17", lambda: charge(folder, 1.9)),
        ("T-17", lambda: (charge(folder, 1.5), edit(folder / "ledger" / "site-a.jsonl", "0.05", "0.06"))),
        ("T-17", lambda: (charge(folder, 1.5), drop_first(folder / "ledger" / "site-a.jsonl"))),
        ("T-16", lambda: (charge(folder, 1.5), edit(folder / "study.toml", "ema = 0.5", "ema = 0.6"))),
        ("T-16", lambda: (edit(folder / "study.toml", "ema = 0.6", "ema = 0.5"), save(folder, start))),
    ):
        lie()
        with pytest.raises(ViolationError) as refused:
            runs.verify_run(folder, reader, start)
        assert refused.value.check == check


def edit(path, old, new):
    path.write_text(path.read_text().replace(old, new, 1))


def drop_first(path):
    path.write_text("\n".join(path.read_text().splitlines()[1:]) + "\n")


@pytest.mark.parametrize("name", whole.RUNS)
def test_every_way_to_step_is_followed_bit_for_bit(name, tmp_path):
    folder, start = whole.trained(whole.RUNS[name], tmp_path)
    assert (whole.second(folder, start), whole.first(folder)) == ("", set())


@pytest.mark.parametrize(
    ("name", "where", "what", "wrong"),
    [
        ("random mask", spaces, "draw", lambda n, m, key: np.arange(m)),
        ("low rank in few bits", spaces, "signs", lambda key, n: np.ones(n, np.int64)),
        ("rotated sketch, error feedback", spaces, "turned", lambda x, block: x),
        ("fedadam, corrected", states, "_noise", lambda about, line, d: 0.0),
        ("statistics first", states, "RANGES", {"percentiles": (0.0, 1.0)}),
        ("distributed", states, "signs", lambda key, n: np.ones(n, np.int64)),
    ],
)
def test_a_model_that_another_step_made_is_refused(name, where, what, wrong, tmp_path, monkeypatch):
    folder, start = whole.trained(whole.RUNS[name], tmp_path)
    monkeypatch.setattr(where, what, wrong)
    assert whole.second(folder, start) == "T-16"


def test_two_ledgers_that_say_two_things_of_one_noise_are_refused(tmp_path):
    folder, start = whole.trained(whole.RUNS["distributed"], tmp_path)
    path = folder / "ledger" / "site-01.jsonl"
    lines, previous = [], runs.NONE
    for entry in map(json.loads, path.read_text().splitlines()):
        entry |= {"variance": entry["variance"] + 1, "previous": previous}
        text = json.dumps({k: v for k, v in entry.items() if k not in ("event_id", "signature")}, **runs.COMPACT)
        previous = H("ledger-event", text).hex()
        lines.append(json.dumps({**entry, "event_id": previous}) + "\n")
    path.write_text("".join(lines))
    assert whole.second(folder, start) == "T-15"


def test_what_only_the_accountants_compose_is_said_and_the_models_are_looked_at_all_the_same(tmp_path):
    folder, start = whole.trained(whole.RUNS["half of the patients drawn"], tmp_path)
    reader = reading.Reader(load_policy(folder / "policy.toml"), load_roster(folder / "federation.toml"))
    held, unchecked = runs.verify_run(folder, reader, start)
    assert [one.endswith("(T-16)") for one in held] == [True]
    assert len(unchecked) == 3
    assert all("drawn patients" in one for one in unchecked)
