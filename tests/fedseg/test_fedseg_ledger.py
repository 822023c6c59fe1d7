import json
import os

import pytest
from pydantic import ValidationError

from fedseg.errors import LedgerError
from fedseg.ledger import START, Event, Ledger, verify
from secagg.encoding import digest


def event(round_number=1, **changes):
    fields = {
        "study_hash": "ab" * 32,
        "site": "site-a",
        "training_run": "run",
        "round_number": round_number,
        "mechanism": "local",
        "covered": True,
        "unit": "patient",
        "sample_rate": 0.5,
        "noise_multiplier": 1.25,
        "clip_norm": 0.05,
        "denominator": 16,
        "steps": 3,
        "generator": "os",
    }
    return Event(**{**fields, **changes})


@pytest.fixture
def ledger(tmp_path):
    ledger = Ledger(tmp_path / "ledger" / "site-a.jsonl")
    for round_number in (1, 2, 3):
        ledger.append(event(round_number))
    return ledger


def test_a_line_holds_everything_and_chains_to_the_one_before(ledger):
    lines = [json.loads(line) for line in ledger.path.read_text().splitlines()]
    assert [line["previous"] for line in lines] == [START, lines[0]["event_id"], lines[1]["event_id"]]
    assert set(lines[0]) == {*event().model_dump(), "previous", "event_id"}
    assert lines[0]["transcript_root"] is None
    assert lines[0]["neighbouring"] == "add or remove one"
    assert ledger.events() == (event(1), event(2), event(3))
    assert Ledger(ledger.path).events() == ledger.events()


def test_attempts_of_a_round_share_one_event(ledger):
    before = ledger.path.read_bytes()
    assert ledger.append(event(2)) == list(verify(ledger.path))[1]
    assert ledger.path.read_bytes() == before


@pytest.mark.parametrize("other", [event(3, noise_multiplier=0.5), event(2, site="site-b")])
def test_a_charged_round_is_never_charged_differently(ledger, other):
    with pytest.raises(LedgerError, match=r"round \d of site .* is charged already"):
        ledger.append(other)


def test_each_training_run_counts_its_own_rounds(ledger):
    assert ledger.append(event(1, training_run="another")) == list(verify(ledger.path))[3]
    with pytest.raises(LedgerError, match=r"round 1 of site site-a in training run 'another' is charged already"):
        ledger.append(event(1, training_run="another", steps=9))


def first_version(folder, name):
    """A line as fedseg 0.1 and 0.2 wrote it, chain intact."""
    body = {"previous": START, **event().model_dump(exclude={"format", "training_run"})}
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
    Ledger.of_site(tmp_path).append(event())
    Ledger.of_site(tmp_path).append(event(training_run="next"))
    assert [path.name for path in tmp_path.iterdir()] == ["ledger.jsonl"]
    assert len(Ledger.of_site(tmp_path).events()) == 2


def test_an_earlier_round_is_not_slipped_in(tmp_path):
    ledger = Ledger(tmp_path / "l.jsonl")
    ledger.append(event(5))
    with pytest.raises(LedgerError, match="round 4"):
        ledger.append(event(4))


def test_shared_metrics_of_a_round_stand_beside_its_training(ledger):
    metrics = event(3, mechanism="metrics", covered=False, noise_multiplier=0.0, steps=0)
    ledger.append(metrics)
    assert ledger.events()[-1] == metrics


def test_the_event_is_synced_before_append_returns(tmp_path, monkeypatch):
    synced = []
    fsync = os.fsync
    monkeypatch.setattr(
        os, "fsync", lambda descriptor: (synced.append(os.fstat(descriptor).st_mode), fsync(descriptor))
    )
    Ledger(tmp_path / "l.jsonl").append(event())
    assert len(synced) == 2  # the file, and the folder that now lists it


def test_a_failed_write_leaves_the_ledger_as_it_was(ledger, monkeypatch):
    before = ledger.path.read_bytes()

    def full(descriptor):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(LedgerError, match=r"No space left on device.*nothing was trained"):
        ledger.append(event(4))
    assert ledger.path.read_bytes() == before


def test_a_cut_off_last_line_names_its_number_and_the_remedy(ledger):
    data = ledger.path.read_bytes()
    for cut in (1, 40):
        ledger.path.write_bytes(data[:-cut])
        with pytest.raises(LedgerError, match=r"line 3: the line is cut off.*delete this line"):
            Ledger(ledger.path)
    ledger.path.write_bytes(b"".join(data.splitlines(keepends=True)[:2]))
    assert Ledger(ledger.path).append(event(3))


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
        ledger.append(event(4))


def test_a_folder_in_place_of_a_ledger_is_a_sentence(tmp_path):
    with pytest.raises(LedgerError, match="cannot be read"):
        Ledger(tmp_path)


@pytest.mark.parametrize(
    "wrong",
    [{"sample_rate": 0.0}, {"sample_rate": 1.5}, {"noise_multiplier": -1.0}, {"round_number": 0}, {"steps": 1.5}],
)
def test_an_impossible_event_cannot_be_made(wrong):
    with pytest.raises(ValidationError):
        event(**wrong)
