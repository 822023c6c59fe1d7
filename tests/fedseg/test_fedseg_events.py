"""Events: what is written is what is read, a wrong field is refused, and no listener can cost a run anything."""

import json
import resource
from pathlib import Path
from typing import get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from fedseg.data.loading import load_cohort
from fedseg.events import AnyEvent, Audience, Event, Note, RoundStarted, StepAccepted, event_of
from fedseg.runfolder import RunFolder
from fedseg.simulate import Options, simulate
from tests.support.run_folder import make_run
from tests.support.tiny import tiny_study


def written(event: Event) -> Event | None:
    return event_of(json.loads(event.model_dump_json()))


@given(st.text(), st.integers(0, 10**9))
def test_what_is_written_is_what_is_read(text, number):
    assert written(Note(text=text)) == Note(text=text)
    event = StepAccepted(t=0.5, round=number, site=text, step=text, bytes=number)
    assert written(event) == event


def test_every_kind_has_one_class_of_its_own():
    kinds = [kind.model_fields["kind"].default for kind in Event.__subclasses__()]
    listed = get_args(get_args(AnyEvent)[0])
    assert sorted(kinds) == sorted({kind.model_fields["kind"].default for kind in listed})


def test_half_a_character_is_written_as_text():
    assert written(Note(text="\ud800 half")) == Note(text="\\ud800 half")


def test_an_event_of_a_later_version_is_skipped_and_its_new_fields_are_too():
    assert event_of({"kind": "weather", "t": 1.0, "sky": "grey"}) is None
    assert event_of({"kind": "note", "t": 1.0, "text": "a", "sky": "grey"}) == Note(t=1.0, text="a")


@pytest.mark.parametrize("fields", [{"round": 1}, {"round": 1, "attempt": "first", "model_hash": ""}])
def test_an_event_is_emitted_whole_or_not_at_all(fields):
    with pytest.raises(ValidationError):
        RoundStarted(**fields)


def test_nobody_changes_an_event_that_others_hear():
    with pytest.raises(ValidationError):
        Note(text="a").text = "b"


def test_the_fixture_of_the_report_is_what_a_run_writes(tmp_path):
    """Whatever the report is tested on could have been emitted: every field is there."""
    for line in (make_run(tmp_path / "run", pictures=False) / "events.jsonl").read_text().splitlines():
        event = event_of(json.loads(line))
        assert event is not None
        assert event.model_fields_set == type(event).model_fields.keys()


# --- Listeners --------------------------------------------------------------------------------------------------------


class Failing:
    def __init__(self, at: str) -> None:
        self.at, self.heard = at, 0

    def __call__(self, event) -> None:
        self.heard += 1
        if event.kind == self.at:
            raise KeyError("done")


def test_a_listener_that_fails_is_dropped_and_the_others_hear_on():
    heard: list[Event] = []
    failing = Failing("note")
    audience = Audience(failing, heard.append)
    (note,) = audience.tell(Note(text="a"))
    assert note.text == "Failing hears no more events of this run: it failed at 'note' (KeyError: 'done')"
    assert audience.tell(Note(text="b")) == []
    assert (failing.heard, [event.text for event in heard]) == (1, ["a", "b"])


@pytest.mark.parametrize("kind", ["study", "train", "end_round", "end"])
def test_a_listener_that_fails_costs_the_run_nothing_but_a_sentence(tmp_path: Path, kind: str):
    study = tiny_study(rounds=1, mechanism="none")
    heard: list[Event] = []
    failing = Failing(kind)
    with RunFolder.create(tmp_path, study, failing, heard.append) as folder:
        run = simulate(folder, load_cohort(None, study), Options(plain=True))
    log = [event_of(json.loads(line)) for line in (run / "events.jsonl").read_text().splitlines()]
    said = [event.text for event in log if isinstance(event, Note)]
    assert said == [f"Failing hears no more events of this run: it failed at '{kind}' (KeyError: 'done')"]
    assert [event.kind for event in heard] == [event.kind for event in log if event]


def test_a_full_disk_costs_lines_of_a_log_and_never_half_of_one(tmp_path):
    """What follows half a line would be lost with it, and the run could not be read again. The screen is told."""
    told = []
    folder = RunFolder.create(tmp_path, tiny_study(), told.append)
    folder.emit(Note(text="before"))
    size, limits = (folder.path / "events.jsonl").stat().st_size, resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size + 20, limits[1]))
    try:
        with pytest.raises(OSError):  # noqa: PT011 - of a disk, "No space left"; of the limit, "File too large"
            folder.emit(Note(text="while it is full"))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    folder.emit(Note(text="after"))
    assert [event.text for event in folder.events()] == ["before", "after"]
    assert [event.text for event in told] == ["before", "while it is full", "after"]
