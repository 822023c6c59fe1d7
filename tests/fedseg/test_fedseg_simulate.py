"""The federation in one process: bit identity with a plain sum, dropouts, interruption, what a run leaves behind."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from fedseg import aggregate
from fedseg.data.loading import load_cohort
from fedseg.errors import ConfigError, RoundFailedError
from fedseg.events import StepAccepted
from fedseg.ledger import verify
from fedseg.models import load_model
from fedseg.report import write_report
from fedseg.runfolder import (
    FEDERATION,
    IDENTITY,
    JOURNAL,
    KEPT,
    LIFETIME,
    OWN_MODELS,
    POLICY,
    TENSORBOARD,
    TRANSCRIPTS,
    RunFolder,
)
from fedseg.simulate import Options, simulate
from fedseg.study import Study
from fedseg.update import flatten
from secagg import SigningKey, wire
from secagg.steps import SHARE_REPORT
from tests.support.tiny import tiny_study


class Log:
    def __init__(self, stop_at: tuple[str, int] | None = None) -> None:
        self.events: list[dict] = []
        self.stop_at = stop_at

    def __call__(self, event) -> None:
        self.events.append(event.model_dump())
        if self.stop_at == (event.kind, getattr(event, "round", None)):
            self.stop_at = None
            raise KeyboardInterrupt

    def of(self, kind: str) -> list[dict]:
        return [event for event in self.events if event["kind"] == kind]


def train(study: Study, runs: Path, options: Options | None = None, log: Log | None = None) -> Path:
    with RunFolder.create(runs, study, *([log] if log else [])) as folder:
        return simulate(folder, load_cohort(None, study), options or Options(command="test"))


def weights(run: Path, study: Study) -> np.ndarray:
    return flatten(load_model(run / "model.safetensors", study))


def test_secure_and_plain_sums_give_the_same_model_bit_for_bit(tmp_path):
    study = tiny_study()
    log = Log()
    run = train(study, tmp_path / "secure", log=log)
    other = train(study, tmp_path / "plain", Options(plain=True))
    secure, plain = weights(run, study), weights(other, study)
    assert np.array_equal(secure, plain)
    assert (run / "model.safetensors").read_bytes() == (other / "model.safetensors").read_bytes()
    assert [end["exact"] for end in log.of("end_round")] == [True, True]
    other = weights(train(study.replace(study={"seed": 8}), tmp_path / "other", Options(plain=True)), study)
    assert not np.array_equal(plain, other)


def test_workers_cannot_change_results(tmp_path):
    study = tiny_study()
    one = weights(train(study, tmp_path / "one"), study)
    two = weights(train(study.replace(run={"workers": 3}), tmp_path / "three"), study)
    assert np.array_equal(one, two)


@pytest.mark.parametrize(
    ("step", "included"),
    [
        ("MaskedInputCollection", ["site-a", "site-c", "site-d", "site-e"]),
        ("ConsistencyCheck", ["site-a", "site-b", "site-c", "site-d", "site-e"]),
        ("Unmasking", ["site-a", "site-b", "site-c", "site-d", "site-e"]),
    ],
)
def test_killed_before_its_masked_input_a_site_is_out_of_the_sum_and_after_it_is_in(tmp_path, step, included):
    study = tiny_study(sites=5)
    silent = {"site-b": step}
    log = Log()
    secure = train(study, tmp_path / "secure", Options(silent=silent, silent_round=1), log)
    plain = train(study, tmp_path / "plain", Options(plain=True, silent=silent, silent_round=1))
    first, second = log.of("end_round")
    assert first["included"] == tuple(included)
    assert first["dropped"] == tuple({"site-b"} - set(included))
    assert first["exact"] is True
    assert len(second["included"]) == 5  # the site is back in the next round
    assert np.array_equal(weights(secure, study), weights(plain, study))
    assert log.of("dropped")[0]["site"] == "site-b"


def test_too_few_survivors_burn_the_round_and_stay_charged(tmp_path):
    study = tiny_study(sites=3, rounds=2)
    log = Log()
    run = train(study, tmp_path, Options(silent={"site-b": "MaskedInputCollection"}, silent_round=1), log)
    assert "needs 3" in log.of("burned")[0]["reason"]
    assert [end["round"] for end in log.of("end_round")] == [2]
    # Two rounds were planned and two are charged, so that the budget ends the study: nobody trains for free.
    assert {event["site"] for event in log.of("left")} == {"site-a", "site-b", "site-c"}
    for site in study.site_ids:
        events = verify(run / "ledger" / f"{site}.jsonl")
        assert [event.round_number for event in events.values()] == [1, 2]
    metrics = json.loads((run / "metrics.json").read_text())
    assert (metrics["protocol"]["rounds_completed"], metrics["protocol"]["burned"]) == (1, 1)
    assert metrics["unfinished"] == "too few sites have budget left for another round"
    assert metrics["privacy"]["epsilon"] == pytest.approx(8.0, abs=0.01)


@pytest.mark.parametrize("stop_at", [("end_round", 1), ("dice", 1), ("round", 2), ("train", 3)])
def test_resume_gives_the_model_of_an_uninterrupted_run(tmp_path, stop_at):
    study = tiny_study(rounds=3)
    whole = weights(train(study, tmp_path / "whole"), study)
    log = Log(stop_at)
    with pytest.raises(KeyboardInterrupt), RunFolder.create(tmp_path / "cut", study, log) as folder:
        simulate(folder, load_cohort(None, study), Options())
    assert not list((tmp_path / "cut").glob("*[0-9]"))
    again = RunFolder.reopen(folder.path, log)
    run = simulate(again, load_cohort(None, study), Options())
    assert np.array_equal(weights(run, study), whole)
    events = [json.loads(line) for line in (run / "events.jsonl").read_text().splitlines()]
    assert [event["round"] for event in events if event["kind"] == "end_round"] == [1, 2, 3]
    assert [event["t"] for event in events] == sorted(event["t"] for event in events)
    history = json.loads((run / "metrics.json").read_text())["history"]
    assert [entry["round"] for entry in history] == [1, 2, 3]


def test_a_run_is_resumed_as_it_was_started(tmp_path):
    study = tiny_study(rounds=3)
    with pytest.raises(KeyboardInterrupt), RunFolder.create(tmp_path, study, Log(("round", 2))) as folder:
        simulate(folder, load_cohort(None, study), Options(plain=True))
    with pytest.raises(ConfigError, match="was started with --plain"):
        simulate(RunFolder.reopen(folder.path), load_cohort(None, study), Options())
    assert simulate(RunFolder.reopen(folder.path), load_cohort(None, study), Options(plain=True)).is_dir()


def test_a_run_cut_after_masking_burns_that_round_and_never_contributes_twice(tmp_path):
    study = tiny_study(rounds=3)
    cut = Log()

    def stop(event):
        cut(event)
        if isinstance(event, StepAccepted) and (event.step, event.round) == ("MaskedInputCollection", 2):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt), RunFolder.create(tmp_path, study, stop) as folder:
        simulate(folder, load_cohort(None, study), Options())
    log = Log()
    run = simulate(RunFolder.reopen(folder.path, log), load_cohort(None, study), Options())
    assert "C-14" in log.of("burned")[0]["reason"]
    assert [end["round"] for end in log.of("end_round")] == [1, 3]  # and then the budget is spent
    assert len(log.of("left")) == 3
    assert json.loads((run / "metrics.json").read_text())["protocol"]["rounds_completed"] == 2


def liar_in(monkeypatch: pytest.MonkeyPatch, folder: RunFolder, liar: str, victims: dict[int, str]) -> None:
    """`liar` says in every round number that it could not open the shares of a victim, wherever both are there."""
    send, key = aggregate._Speaking.send, folder.path / "identities" / f"{liar}.key"

    def lie(speaking, messages):
        server, messages = speaking._exchange.server, dict(messages)
        if server.step == SHARE_REPORT and liar in messages:
            victim = victims[speaking._exchange.facts.number]
            if victim in server.expected:
                told = replace(wire.decode_from_client(messages[liar]), complaint=victim)
                messages[liar] = wire.encode(told.sign(SigningKey.from_bytes(key.read_bytes())))
        send(speaking, messages)

    monkeypatch.setattr(aggregate._Speaking, "send", lie)


def test_a_site_that_accuses_the_same_site_again_is_named_with_it_over_an_interruption_too(tmp_path, monkeypatch):
    study, log = tiny_study(sites=4, rounds=3), Log(("burned", 2))
    folder = RunFolder.create(tmp_path, study, log)
    liar_in(monkeypatch, folder, "site-d", dict.fromkeys(range(1, 4), "site-a"))
    with pytest.raises(KeyboardInterrupt), folder:
        simulate(folder, load_cohort(None, study), Options())
    log = Log()  # hears what was before the interruption too
    simulate(RunFolder.reopen(folder.path, log), load_cohort(None, study), Options())
    notes = [event["text"] for event in log.of("note")]
    assert [note.split(":")[0] for note in notes] == [
        "site-a and site-d had complaints in rounds 1, 2",
        "site-a and site-d had complaints in rounds 1, 2, 3",
    ]
    ends = log.of("end_round")
    assert [end["round"] for end in ends] == [1, 2, 3]
    assert all(len({"site-a", "site-d"} & set(end["included"])) == 1 for end in ends)


def test_a_site_that_accuses_two_others_takes_no_part_any_more(tmp_path, monkeypatch):
    study, log = tiny_study(sites=4, rounds=3), Log()
    with RunFolder.create(tmp_path, study, log) as folder:
        liar_in(monkeypatch, folder, "site-d", {1: "site-a", 2: "site-b", 3: "site-c"})
        simulate(folder, load_cohort(None, study), Options())
    assert [end["included"] for end in log.of("end_round")[1:]] == [("site-a", "site-b", "site-c")] * 2
    assert "site-d had complaints with so many others" in log.of("note")[-1]["text"]


def test_what_a_complete_run_leaves_behind(tmp_path):
    study = tiny_study(mechanism="none", seed=None, rounds=1)
    run = train(study, tmp_path)
    asked_for = {TRANSCRIPTS, POLICY, FEDERATION, LIFETIME, IDENTITY, JOURNAL, OWN_MODELS, TENSORBOARD}
    assert sorted(path.name for path in run.iterdir()) == sorted(set(KEPT) - asked_for)
    assert [path.name for path in tmp_path.iterdir()] == [run.name]
    metrics = json.loads((run / "metrics.json").read_text())
    assert metrics["privacy"] is None
    assert metrics["dice"]["mean"]["n"] == 6
    assert "no privacy" in write_report(run).read_text().lower()


def test_nobody_to_test_is_no_average_and_nobody_in_training_is_no_error(tmp_path):
    study = tiny_study(rounds=1, patients=2, mechanism="none")
    sites = tuple(site.model_copy(update={"patients": 1 + (site.id != "site-a")}) for site in study.sites)
    study = study.model_copy(update={"sites": sites})
    run = train(study, tmp_path)
    table = json.loads((run / "metrics.json").read_text())["dice"]["sites"]
    assert (table["site-a"]["n_train"], table["site-a"]["n_test"], table["site-a"]["mean"]) == (1, 0, None)
    assert (table["site-b"]["n_train"], table["site-b"]["mean"]["n"]) == (0, 2)


def test_one_site_alone_is_a_baseline_on_everybodys_patients(tmp_path):
    study = tiny_study(rounds=1, mechanism="none")
    run = train(study, tmp_path, Options(alone="site-b"))
    table = json.loads((run / "metrics.json").read_text())["dice"]
    assert [site["n_train"] for site in table["sites"].values()] == [0, 1, 0]
    assert table["mean"]["n"] == 6
    with pytest.raises(ConfigError, match="site-x"):
        train(study, tmp_path, Options(alone="site-x"))


def test_a_failed_start_leaves_nothing(tmp_path):
    study = tiny_study(sites=3, rounds=1)
    with pytest.raises(RoundFailedError, match="needs 3"):
        train(study, tmp_path, Options(silent={"site-a": "AdvertiseKeys"}, silent_round=1))
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("step", ["Unmasking", "Result"])
def test_a_site_that_fell_silent_late_enters_the_next_round_without_privacy_too(tmp_path, step):
    study = tiny_study(mechanism="none", sites=4)
    run = train(study, tmp_path, Options(silent={"site-b": step}, silent_round=1))
    ends = [
        event
        for event in map(json.loads, (run / "events.jsonl").read_text().splitlines())
        if event["kind"] == "end_round"
    ]
    assert ["site-b" in event["included"] for event in ends] == [True, True]


def test_an_exposure_without_privacy_ends_a_simulation_with_what_to_do(tmp_path):
    """Shares were sent and no sum came (C-05): here is no operator to accept that, and another attempt is no help."""
    silent, log = {"site-a": "Unmasking", "site-b": "Unmasking"}, Log()
    with pytest.raises(RoundFailedError, match=r"no operator .*: start it again, without --resume") as failed:
        train(tiny_study(mechanism="none"), tmp_path, Options(silent=silent, silent_round=1), log)
    assert str(failed.value).startswith("[C-05] ")
    assert ["C-05" in event["reason"] for event in log.of("burned")] == [False, True]
