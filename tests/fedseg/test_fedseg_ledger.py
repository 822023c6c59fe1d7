"""The ledger: durable before training, damage found at its line, and read for life."""

import json
import math
import os
from pathlib import Path

import pytest
from dp_accounting.dp_event import NonPrivateDpEvent, SelfComposedDpEvent
from pydantic import ValidationError

from fedseg.budget.charge import charge, spent
from fedseg.errors import BudgetExceededError, LedgerError
from fedseg.ledger import START, Ledger, MetricsRelease, NoisySteps, NoisySum, UnprotectedRound, released, verify
from fedseg.privacy.accounting import cross_check, gaussian_steps
from fedseg.study import parse_study
from secagg.encoding import digest

KEPT = Path(__file__).parent / "ledgers"
"""Ledgers that fedseg 0.3 wrote (format 2)."""

COMMON = {"study_hash": "ab" * 32, "site": "site-a", "training_run": "run", "unit": "patient"}
STEPS = {"sample_rate": 0.5, "noise_multiplier": 1.25, "clip_norm": 0.05, "denominator": 16, "steps": 3}


def entry(round_number=1, **changes):
    return NoisySteps(**{**COMMON, "round_number": round_number, **STEPS, "generator": "os", **changes})


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger" / "site-a.jsonl")
    for round_number in (1, 2, 3):
        ledger.append(entry(round_number))
    return ledger


def test_a_line_holds_everything_and_chains_to_the_one_before(ledger):
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert [line["previous"] for line in lines] == [START, lines[0]["event_id"], lines[1]["event_id"]]
    assert set(lines[0]) == {*entry().model_dump(), "previous", "event_id"}
    assert (lines[0]["format"], lines[0]["kind"]) == (4, "local")
    assert lines[0]["neighbouring"] == "add or remove one"
    assert [old.round_number for old in ledger.entries()] == [1, 2, 3]
    assert all(old.same_use(entry(number)) for number, old in enumerate(ledger.entries(), 1))
    assert lines[0]["charged"].endswith("+00:00")
    assert Ledger(ledger.path).entries() == ledger.entries()


def test_attempts_of_a_round_share_one_event(ledger):
    before = ledger.path.read_bytes()
    assert ledger.append(entry(2)) == list(verify(ledger.path))[1]
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("other", [entry(3, noise_multiplier=0.5), entry(2, site="site-b")])
def test_a_charged_round_is_never_charged_differently(ledger, other):
    with pytest.raises(LedgerError, match=r"round \d of site .* is charged already"):
        ledger.append(other)


def test_each_training_run_counts_its_own_rounds(ledger):
    assert ledger.append(entry(1, training_run="another")) == list(verify(ledger.path))[3]
    with pytest.raises(LedgerError, match=r"round 1 of site site-a in training run 'another' is charged already"):
        ledger.append(entry(1, training_run="another", steps=9))


def first_version(folder, name):
    """A line as fedseg 0.1 and 0.2 wrote it, chain intact."""
    body = {"previous": START, **entry().model_dump(exclude={"format", "kind", "training_run"}), "mechanism": "local"}
    canonical = json.dumps(body, sort_keys=True, separators=(",", ":")).encode()
    body["event_id"] = digest("ledger-event", canonical).hex()
    (folder / name).write_text(json.dumps(body, sort_keys=True, separators=(",", ":")) + "\n")


@pytest.mark.parametrize("name", ["ledger.jsonl", "fetal-2026-11.jsonl"])
def test_a_ledger_of_the_first_versions_is_refused_with_the_reason(tmp_path, name):
    first_version(tmp_path, name)
    with pytest.raises(LedgerError, match=rf"{name}.*fedseg 0.1 or 0.2, whose epsilon was not true.*move it away"):
        Ledger.of_site(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == [name]
    with pytest.raises(LedgerError, match="whose epsilon was not true"):
        verify(tmp_path / name)


def test_a_site_has_one_ledger_for_good(tmp_path):
    Ledger.of_site(tmp_path).append(entry())
    Ledger.of_site(tmp_path).append(entry(training_run="next"))
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.jsonl"]
    assert len(Ledger.of_site(tmp_path).entries()) == 2


def test_an_earlier_round_is_not_slipped_in(tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl")
    ledger.append(entry(5))
    with pytest.raises(LedgerError, match="round 4"):
        ledger.append(entry(4))


def test_shared_metrics_of_a_round_stand_beside_its_training(ledger):
    metrics = MetricsRelease(**COMMON, round_number=3)
    ledger.append(metrics)
    assert ledger.entries()[-1].same_use(metrics)


def test_the_event_is_synced_before_append_returns(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_mode), fsync(descriptor))
    )
    Ledger(tmp_path / "l.jsonl").append(entry())
    assert len(synced) == 2  # the file, and the folder that now lists it


def test_a_failed_write_leaves_the_ledger_as_it_was(ledger, monkeypatch):
    before = ledger.path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LedgerError, match=r"No space left on device.*nothing was trained"):
        ledger.append(entry(4))
    assert ledger.path.read_bytes() == before


def test_a_cut_off_last_line_names_its_number_and_the_remedy(ledger):
    data = ledger.path.read_bytes()
    for cut in (1, 40):
        ledger.path.write_bytes(data[:-cut])
        with pytest.raises(LedgerError, match=r"line 3: the line is cut off.*delete this line"):
            Ledger(ledger.path)
    ledger.path.write_bytes(b"".join(data.splitlines(keepends=True)[:2]))
    assert Ledger(ledger.path).append(entry(3))


def damages():
    def edited(lines):
        lines[1] = lines[1].replace(b'"noise_multiplier":1.25', b'"noise_multiplier":9.25')

    def rehashed_alone(lines):
        body = json.loads(lines[1])
        body["event_id"] = "0" * 64
        lines[1] = json.dumps(body, sort_keys=True, separators=(",", ":")).encode() + b"\n"

    def removed(lines):
        del lines[1]

    def swapped(lines):
        lines[1], lines[2] = lines[2], lines[1]

    def spaced(lines):
        lines[1] = lines[1].replace(b":", b": ", 1)

    def doubled(lines):
        lines.insert(2, lines[1])

    def not_json(lines):
        lines[1] = b"nonsense\n"

    def a_list(lines):
        lines[1] = b"[1,2]\n"

    def unknown_field(lines):
        lines[1] = lines[1].replace(b'"unit"', b'"colour":"red","unit"')

    def infinite(lines):
        lines[1] = lines[1].replace(b"1.25", b"Infinity")

    def binary(lines):
        lines[1] = b"\xff\xfe\n"

    return [
        edited,
        rehashed_alone,
        removed,
        swapped,
        spaced,
        not_json,
        a_list,
        unknown_field,
        infinite,
        binary,
        doubled,
    ]


@pytest.mark.parametrize("damage", damages(), ids=lambda damage: damage.__name__)
def test_damage_is_found_at_its_line(ledger, damage):
    lines = ledger.path.read_bytes().splitlines(keepends=True)
    damage(lines)
    ledger.path.write_bytes(b"".join(lines))
    number = 3 if damage.__name__ == "doubled" else 2
    for use in (verify, Ledger):
        with pytest.raises(LedgerError, match=rf"line {number}: .*backup"):
            use(ledger.path)
    with pytest.raises(LedgerError, match=f"line {number}"):
        ledger.append(entry(4))


def test_a_folder_in_place_of_a_ledger_is_a_sentence(tmp_path):
    with pytest.raises(LedgerError, match="cannot be read"):
        Ledger(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"sample_rate": 0.0}, {"sample_rate": 1.5}, {"noise_multiplier": -1.0}, {"round_number": 0}, {"steps": 1.5}],
)
def test_an_impossible_event_cannot_be_made(wrong):
    with pytest.raises(ValidationError):
        entry(**wrong)


def test_each_kind_knows_what_it_released():
    assert entry().dp_event() == gaussian_steps(1.25, 0.5, 3)
    seeded = entry(generator="seeded: no privacy claim")
    assert seeded.dp_event() == UnprotectedRound(**COMMON, round_number=1).dp_event() == NonPrivateDpEvent()
    assert seeded.dp_event(unseeded=True) == entry().dp_event()
    assert MetricsRelease(**COMMON, round_number=1).dp_event() is None
    assert released([entry(), MetricsRelease(**COMMON, round_number=1)]) == [entry().dp_event()]
    assert NoisySum.steps == 1  # `fedseg ledger show` said 0
    twice = released(
        [entry(), entry().model_copy(update={"round_number": 2, "study": "another", "patients": "a" * 64})]
    )
    assert twice == [SelfComposedDpEvent(entry().dp_event(), 2)]
    assert len(released([entry(), entry().model_copy(update={"noise_multiplier": 9.0})])) == 2


def test_an_unprotected_round_and_a_noisy_one_are_rounds_of_one_series(ledger):
    with pytest.raises(LedgerError, match=r"round 3 of site site-a .* is charged already"):
        ledger.append(UnprotectedRound(**COMMON, round_number=3))


# --- A ledger is for life: the files and figures below are fedseg 0.3's own ------------------------------------------


def test_a_ledger_of_version_0_3_is_read_and_gives_the_same_epsilon():
    entries = list(verify(KEPT / "local.jsonl").values())
    assert [found.kind for found in entries] == ["local", "local", "local", "metrics", "local"]
    events = released(entries)
    assert cross_check(events, 1e-3) == pytest.approx((2.4365740702519036, 2.441769122041038), rel=1e-6)
    assert cross_check(events, 1e-5) == pytest.approx((3.79972154793366, 3.8075936486334805), rel=1e-6)


def test_a_ledger_of_version_0_4_is_read_gives_the_same_epsilon_and_goes_on(study, tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes((KEPT / "version-0.4.jsonl").read_bytes())
    ledger = Ledger(path)
    assert [(old.kind, old.patients, old.study) for old in ledger.entries()] == [
        ("local", "", ""),
        ("metrics", "", ""),
        ("local", "", ""),
    ]
    assert spent(ledger, study) == pytest.approx(1.6592934679492524, rel=1e-9)  # what 0.4 said of it
    for event_id, charged in verify(path).items():  # another attempt at a round that 0.4 charged costs nothing
        assert ledger.append(charged) == event_id
    charge(ledger, study.replace(privacy={"epsilon": 8.0}), "a", "next", 1)
    assert [json.loads(line)["format"] for line in path.read_text().splitlines()] == [3, 3, 3, 4]


@pytest.mark.parametrize("name", ["unprotected", "seeded"])
def test_what_version_0_3_left_unprotected_stays_so(study, name):
    assert spent(Ledger(KEPT / f"{name}.jsonl"), study) == math.inf


def test_seeded_rounds_of_version_0_3_show_the_same_figure(study):
    seeded = study.replace(study={"seed": 3})
    assert spent(Ledger(KEPT / "seeded.jsonl"), seeded) == pytest.approx(1.232039338685345, rel=1e-9)


def test_a_ledger_of_version_0_3_goes_on(study, tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes((KEPT / "local.jsonl").read_bytes())
    ledger = Ledger(path)
    for event_id, charged in verify(path).items():  # another attempt at a round that 0.3 charged costs nothing
        assert ledger.append(charged) == event_id
    with pytest.raises(BudgetExceededError, match=r"epsilon to \S+ over all training runs"):
        charge(ledger, study, "a", "second", 1)
    longer = study.replace(study={"name": "third"}, privacy={"epsilon": 8.0})
    charge(ledger, longer, "a", "third", 1)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    assert [line["format"] for line in lines] == [2, 2, 2, 2, 2, 4]
    assert lines[5]["previous"] == lines[4]["event_id"]
    assert path.read_bytes().startswith((KEPT / "local.jsonl").read_bytes())
    assert spent(ledger, longer) > spent(Ledger(KEPT / "local.jsonl"), longer)


@pytest.mark.parametrize(("old", "new"), [(b'"steps":2', b'"steps":1'), (b'"covered":true', b'"covered":false')])
def test_an_edit_of_an_old_line_is_found_also_in_fields_that_nobody_reads(tmp_path, old, new):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes((KEPT / "local.jsonl").read_bytes().replace(old, new, 1))
    with pytest.raises(LedgerError, match="line 1: the line was edited"):
        verify(path)


def test_a_ledger_of_a_later_version_is_not_called_damaged(tmp_path):
    path = tmp_path / "ledger.jsonl"
    path.write_bytes((KEPT / "local.jsonl").read_bytes().replace(b'"format":2', b'"format":5', 1))
    with pytest.raises(LedgerError, match="line 1: was written by a later version"):
        verify(path)


@pytest.fixture
def study():
    """The study that `local.jsonl` was charged for."""
    return parse_study(STUDY, "study.toml")


STUDY = """
[study]
name = "small"
structures = ["lesion"]
rounds = 3
local_steps = 2
lr = 0.1
[data]
layout = "decathlon"
modality = ["T2w"]
dims = 2
size = 16
[privacy]
mechanism = "local"
epsilon = 2.0
delta = 1e-3
sample_rate = 0.25
clip_norm = 0.05
denominator = 8
[secagg]
clip_range = 0.5
[[sites]]
id = "a"
[[sites]]
id = "b"
[[sites]]
id = "c"
"""
