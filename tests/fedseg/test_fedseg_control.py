"""The site's own control: it sees a study and approves it once, pauses, goes on, leaves, and keeps what it sent."""

import asyncio
import json
import shutil
import sys

import pytest

from fedseg.credentials import make_credentials
from fedseg.errors import ConfigError, LedgerError
from fedseg.evidence import HELD, NOT_CHECKED, VIOLATED
from fedseg.site.asking import sentences
from fedseg.site.control import Control
from fedseg.site.record import FILE, Record, read
from fedseg.study import load_study
from fedseg.verifying import verify_run
from secagg.service.application import Wish
from tests.fedseg.test_fedseg_network import federate
from tests.support.command import feta_study, is_one_sentence, run
from tests.support.folders import write_hospitals
from tests.support.tiny import tiny_study


def test_a_study_is_approved_by_the_hash_that_was_read_aloud_and_once(tmp_path):
    control, own = Control(tmp_path / "state"), "0123456789abcdef" * 4
    for typed in ("", own[:8], own[:15], "f" + own[:20]):
        with pytest.raises(ConfigError, match="not how it begins"):
            control.approve(own, "a study", typed)
    assert not control.approved(own)
    control.approve(own, "a study", own[:16])
    assert Control(tmp_path / "state").approved(own)
    assert not Control(tmp_path / "state").approved("f" * 64)


def test_an_operator_beside_a_running_site_pauses_goes_on_and_leaves_one_run(tmp_path):
    running, beside = Control(tmp_path), Control(tmp_path)
    assert running.wish("run") is Wish.GO_ON
    beside.want(Wish.PAUSE, "run")
    assert (running.wish("run"), running.wish("another")) == (Wish.PAUSE, Wish.PAUSE)
    beside.want(Wish.LEAVE, "run")
    assert (running.wish("run"), running.wish("another")) == (Wish.LEAVE, Wish.GO_ON)
    beside.want(Wish.GO_ON, "run")
    assert running.wish("run") is Wish.GO_ON
    (tmp_path / "control.json").write_text("{")
    with pytest.raises(ConfigError, match="bring it back"):
        Control(tmp_path).wish("run")


def test_the_commands_of_an_operator_beside_a_running_site(tmp_path, capsys, monkeypatch):
    study = tiny_study()
    make_credentials(tmp_path / "keys", study, "run")
    (tmp_path / "study.toml").write_text(study.toml(), encoding="utf-8")
    given = ["--coordinator", "127.0.0.1:1", "--credentials", tmp_path / "keys", "--state", tmp_path / "state"]
    for option, wish in (("--pause", Wish.PAUSE), ("--leave", Wish.LEAVE), ("--go-on", Wish.GO_ON)):
        code, said, _ = run(capsys, monkeypatch, "site", tmp_path / "study.toml", "site-a", *given, option)
        assert (code, Control(tmp_path / "state").wish("run")) == (0, wish), said
    code, said, _ = run(capsys, monkeypatch, "ledger", "budget", tmp_path / "state", "--epsilon", 3, "--delta", 1e-5)
    assert (code, "it had none" in said) == (0, True)
    code, said, _ = run(capsys, monkeypatch, "ledger", "budget", tmp_path / "state", "--epsilon", 4, "--delta", 1e-5)
    assert "epsilon 4 at delta 1e-05; it was 3" in said
    code, _, error = run(capsys, monkeypatch, "ledger", "budget", tmp_path / "state", "--epsilon", -1, "--delta", 0.5)
    assert (code, "epsilon above 0" in error) == (1, True)


def test_on_images_the_command_shows_what_is_asked_and_begins_nothing_before_it_is_approved(
    tmp_path, capsys, monkeypatch
):
    """Through the command: refused with what to type, approved once by its first digits, then never asked again."""
    (tmp_path / "study.toml").write_text(feta_study(), encoding="utf-8")
    study = load_study(tmp_path / "study.toml")
    make_credentials(tmp_path / "keys", study, "run")
    own, began = study.hash().hex(), []
    monkeypatch.setenv("FEDSEG_HOME", str(tmp_path / "home"))
    monkeypatch.setattr("fedseg.site.take_part", lambda *_: began.append(1) or sys.exit(0))
    data = write_hospitals(tmp_path / "hospitals") / "site-a"
    given = ["site", tmp_path / "study.toml", "site-a", "--coordinator", "127.0.0.1:1"]
    given += ["--credentials", tmp_path / "keys", "--data", data, "--out", tmp_path / "runs"]
    code, said, error = run(capsys, monkeypatch, *given)
    assert (code, began, is_one_sentence(error)) == (1, [], True)
    assert "was not approved at this site; read what is said above, compare the hash" in error
    assert f"add: --approve {own[:16]}" in error
    assert (f"hash {own}" in said, "patients in training here" in said) == (True, True)
    assert not (tmp_path / "runs").exists()
    code, _, error = run(capsys, monkeypatch, *given, "--approve", "0" * 16)
    assert (code, began, "is not how it begins" in error) == (1, [], True)
    code, said, error = run(capsys, monkeypatch, *given, "--approve", own[:16])
    assert (code, began, "approved at this site, once" in said) == (0, [1], True), error
    code, said, _ = run(capsys, monkeypatch, *given)
    assert (code, began, "hash" in said) == (0, [1, 1], False)


@pytest.fixture(scope="module")
def ran(tmp_path_factory):
    """A run of two rounds: its folder, and the coordinator's run folder."""
    folder = tmp_path_factory.mktemp("ran")
    study = tiny_study(rounds=2)
    coordinator, _ = asyncio.run(federate(study, folder))
    return study, folder, coordinator


def test_the_operator_reads_what_is_asked_and_what_was_spent(ran, tmp_path):
    from fedseg.data.loading import load_site

    study, folder, _ = ran
    state = folder / "site-a-state"
    said = "\n".join(sentences(study, "site-a", load_site(None, "site-a", study), state, "another run"))
    assert study.hash().hex() in said
    assert f"asked: epsilon {study.privacy.epsilon:g}" in said
    before = "\n".join(sentences(study, "site-a", load_site(None, "site-a", study), tmp_path, "another run"))
    spent = [line for line in said.splitlines() if line.startswith("spent by")]
    assert spent != [line for line in before.splitlines() if line.startswith("spent by")]
    assert "epsilon 0" in before


def r09(ran, state) -> tuple[str, str]:
    _, folder, coordinator = ran
    evidence = verify_run([coordinator, state], folder / "credentials" / "federation.toml")
    (found,) = evidence.of("R-09")
    return found.state, found.sentence


def test_everything_that_was_sent_is_in_a_record_that_transcripts_bear_out(ran, tmp_path):
    _, folder, _ = ran
    own = folder / "site-a-state"
    entries = list(read(own / FILE))
    named = [(entry["round"], entry["message"]) for entry in entries if entry["kind"] == "secagg"]
    assert named == [(number, what) for number in (1, 2) for what in (
        "AdvertiseKeys", "EncryptedShares", "ShareReport", "MaskedInput", "Attestation", "UnmaskingShares",
        "Confirmation",
    )]  # fmt: skip
    assert [entry["kind"] for entry in entries if entry["kind"] != "secagg"].count("ready") == 3
    assert entries[-1]["epsilon"] > 0
    assert r09(ran, own)[0] == HELD


@pytest.mark.parametrize(
    ("spoil", "state", "said"),
    [
        (lambda lines: [*lines[:-1], lines[-1].replace('"bytes": ', '"bytes": 1')], VIOLATED, "changed or is missing"),
        (lambda lines: lines[:3] + lines[4:], VIOLATED, "changed or is missing"),
        (lambda lines: lines[: len(lines) // 2], VIOLATED, "its key was used elsewhere, or its state folder is an old"),
        (lambda lines: [*lines, '{"cut": of'], HELD, "are in its record"),
        (None, NOT_CHECKED, "no sent.record"),
    ],
)
def test_a_record_that_was_changed_cut_or_put_back_is_found(ran, tmp_path, spoil, state, said):
    copied = tmp_path / "site-a-state"
    shutil.copytree(ran[1] / "site-a-state", copied)
    path = copied / FILE
    lines = path.read_text().splitlines()
    path.unlink()
    if spoil is not None:
        left = spoil(lines)
        whole = left[-1].endswith("}")
        path.write_text("\n".join(left) + ("\n" if whole else ""))
    found, sentence = r09(ran, copied)
    assert (found, said in sentence) == (state, True), sentence


def test_two_studies_append_to_one_record_and_a_line_that_a_crash_cut_off_is_taken_away(tmp_path):
    one, two = Record(tmp_path, "site-a", "one"), Record(tmp_path, "site-a", "two")
    for record in (one, two, one):
        record.keep("ready", b"{}", None, None)
    with (tmp_path / FILE).open("a") as file:
        file.write('{"cut off')
    two.keep("progress", b"{}", (3, 1), 0.5)
    entries = list(read(tmp_path / FILE))
    assert [entry["run"] for entry in entries] == ["one", "two", "one", "two"]
    assert (entries[-1]["round"], entries[-1]["attempt"], entries[-1]["epsilon"]) == (3, 1, 0.5)
    (tmp_path / FILE).write_text(json.dumps({"link": 3}) + "\n")
    with pytest.raises(LedgerError, match="line 1"):
        list(read(tmp_path / FILE))
