"""Row 3: whatever text a peer, a study, a file or a certificate brings, it is shown in one line and nobody ends."""

import asyncio
import io
import json
import re
import shutil
import types
import typing
from collections.abc import Mapping
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console

from fedseg.budget.plan import round_entry
from fedseg.coordinator import Coordinator, Options
from fedseg.credentials import make_credentials
from fedseg.dialogue import Metrics, Progress
from fedseg.errors import ConfigError
from fedseg.events import Event, event_of
from fedseg.ledger import Ledger
from fedseg.report import write_report
from fedseg.runfolder import RunFolder
from fedseg.screen import Screen
from fedseg.study import parse_study
from secagg.rpc.frames import Received
from secagg.service import dialogue
from secagg.service.errors import DialogueError
from tests.support.command import run as command
from tests.support.hostile_text import HOSTILE, KINDS, acting
from tests.support.run_folder import SITES, make_run
from tests.support.tiny import tiny_study

FEW = settings(
    max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)


def screens() -> list[tuple[Screen, io.StringIO]]:
    """One in a terminal and one in a log."""
    found = []
    for terminal in (True, False):
        file = io.StringIO()
        console = Console(file=file, force_terminal=terminal, color_system=None, width=120, legacy_windows=False)
        found.append((Screen(console), file))
    return found


def filled(annotation: object, text: str) -> object:
    """A value of a field's type that holds the text wherever there is room for text."""
    origin, arguments = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is typing.Annotated:
        return filled(arguments[0], text)
    if origin is typing.Literal:
        return arguments[0]
    if origin in (typing.Union, types.UnionType):
        return filled(arguments[0], text)
    if origin is tuple:
        return [text]
    if origin is Mapping:
        return {text: filled(arguments[1], text)}
    return {str: text, int: 1, float: 0.5, bool: True, type(None): None}[annotation]


def every_event(text: str) -> list[Event]:
    """One of each kind, with the text in each field that takes text."""
    known = {"mechanism": "local"}
    return [
        event
        for kind in Event.__subclasses__()
        if (
            event := event_of(
                {name: filled(field.annotation, text) for name, field in kind.model_fields.items()} | known
            )
        )
    ]


@pytest.fixture(scope="module")
def study():
    return tiny_study(rounds=1)


@FEW
@given(text=HOSTILE)
def test_every_event_is_safe_on_the_screen_in_the_log_and_in_its_file_and_is_read_again(study, tmp_path, text):
    """U+2028 in a site's sentence once split its line of events.jsonl, and the coordinator ended as it resumed."""
    folder = RunFolder.create(tmp_path, study)
    for event in every_event(text):
        folder.emit(event)
    lines = (folder.path / "events.jsonl").read_text(encoding="utf-8").split("\n")
    assert len(lines) == len(Event.__subclasses__()) + 1
    assert not acting("\n".join(lines))
    for screen, file in screens():
        with screen:
            for line in lines[:-1]:
                screen(event_of(json.loads(line)))
            drawn = Console(file=io.StringIO(), width=200, color_system=None, legacy_windows=False)
            drawn.print(screen._draw())
        assert not acting(drawn.file.getvalue())
        if not screen._drawn:
            assert all(line.isprintable() for line in file.getvalue().split("\n"))


HEARD = (*dialogue.FROM_MEMBER, Progress, Metrics)


# --- From a site to the coordinator and back -------------------------------------------------------------------------


@pytest.fixture(scope="module")
def coordinator(tmp_path_factory, study):
    folder = tmp_path_factory.mktemp("coordinator")
    make_credentials(folder / "credentials", study, "run")
    return Coordinator(RunFolder.create(folder, study), Options(credentials=folder / "credentials"))


def messages_of_a_site(text: str) -> st.SearchStrategy[tuple[str, bytes]]:
    """Well formed but for the text in it, and anything else."""
    kinds = st.sampled_from([message.kind for message in HEARD])
    said = [(how.kind, json.dumps({"reason": text}).encode()) for how in (dialogue.Leaving, dialogue.Failed)]
    keyed = {**dict.fromkeys(("release", "run", "task", "policy", "roster"), text), "unreplayed": [text]}
    said.append((dialogue.Ready.kind, json.dumps(keyed).encode()))
    return st.one_of(
        st.sampled_from(said),
        st.tuples(kinds, st.binary(max_size=40)),
        st.tuples(st.just(text), st.binary(max_size=4)),
        st.tuples(kinds, st.just(b"[" * 5000)),
    )


@settings(max_examples=60, deadline=None)
@given(data=st.data(), text=HOSTILE)
def test_nothing_that_a_site_sends_ends_the_coordinator_or_reaches_its_log_raw(coordinator, data, text):
    kind, payload = data.draw(messages_of_a_site(text))
    received = Received("site-a", kind, payload)
    coordinator.mailbox.receive = lambda _: asyncio.sleep(0, received)
    asyncio.run(coordinator._hear(0))
    written = coordinator.folder.path / "events.jsonl"
    assert not acting(written.read_text(encoding="utf-8") if written.is_file() else "")


@settings(max_examples=60, deadline=None)
@given(data=st.data(), text=HOSTILE)
def test_a_message_of_the_coordinator_is_understood_or_refused_in_a_sentence(data, text):
    kinds = st.sampled_from([message.kind for message in dialogue.FROM_COORDINATOR])
    said = st.sampled_from([json.dumps({"reason": text}), json.dumps({"sites": [text], "seconds": 1.0})])
    try:
        payload = data.draw(st.one_of(st.binary(max_size=40), said.map(str.encode)))
        dialogue.Dialogue(dialogue.FROM_COORDINATOR).read(data.draw(kinds), payload)
    except DialogueError as error:
        said = str(error)
    else:
        said = "the coordinator"
    assert "the coordinator" in said


# --- Pages -----------------------------------------------------------------------------------------------------------


def spoilt(content: object, text: str, *, inside: str = "") -> object:
    """The same with the text in place of every sentence and in every name; what must be a known word stays."""
    kept = ("kind", "mechanism", "study_hash", "head", "step", "after", "suite")
    match content:
        case dict():
            return {
                name if name.isidentifier() else text: spoilt(value, text, inside=name)
                for name, value in content.items()
            }
        case list():
            return [spoilt(each, text, inside=inside) for each in content]
        case str():
            return content if inside in kept else text
    return content


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    folder = tmp_path_factory.mktemp("finished") / "run"
    return make_run(folder, rounds=1, pictures=False, drop_round=1, structures=["cord"], sites=SITES[:4])


def is_text(target: Path) -> None:
    page = target.read_text(encoding="utf-8")
    assert acting(page) <= {"\u00a0"}  # our own between an epsilon and its number; of a peer's text none stays
    assert not re.search(r"<(script|img)", page)


def other_words(run: Path, folder: Path, text: str) -> Path:
    """A copy of a run with the text in it."""
    shutil.copytree(run, folder, dirs_exist_ok=True)
    for name in ("metrics.json", "events.jsonl"):
        lines = [spoilt(json.loads(line), text) for line in (run / name).read_text().splitlines()]
        (folder / name).write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


@pytest.mark.parametrize("kind", ["everything", "html"])
def test_a_report_of_such_texts_is_a_page_of_text(finished, tmp_path, kind):
    is_text(write_report(other_words(finished, tmp_path, KINDS[kind])))


@pytest.mark.slow
@FEW
@given(text=HOSTILE)
def test_a_report_of_any_texts_is_a_page_of_text(finished, tmp_path, text):
    is_text(write_report(other_words(finished, tmp_path, text)))


def test_a_report_of_a_mechanism_that_nobody_knows_is_refused(finished, tmp_path):
    run = other_words(finished, tmp_path, "x")
    for name in ("metrics.json", "events.jsonl"):
        text = (run / name).read_text()
        assert '"mechanism": "local"' in text
        (run / name).write_text(text.replace('"mechanism": "local"', '"mechanism": "[/red]"'))
    with pytest.raises(ConfigError, match="mechanism"):
        write_report(run)


@pytest.mark.parametrize("kind", ["html", "escape", "lines"])
def test_a_ledger_and_its_statement_show_whatever_name_a_run_or_a_study_had(kind, tmp_path, capsys, monkeypatch):
    named = {"study": KINDS[kind], "training_run": KINDS[kind], "site": KINDS[kind], "charged": KINDS[kind]}
    Ledger(tmp_path / "ledger.jsonl").append(round_entry(tiny_study(seed=None), "a", "run", 1).model_copy(update=named))
    for arguments in (("ledger", "show"), ("ledger", "epsilon", "--delta", "0.01")):
        code, out, err = command(capsys, monkeypatch, *arguments, tmp_path)
        assert (code, err) == (0, "")
        assert not acting(out)
    target = tmp_path / "statement.html"
    code, out, err = command(capsys, monkeypatch, "statement", tmp_path, "--delta", "0.01", "--out", target)
    assert code == 0
    assert not acting(out + err)
    is_text(target)
    assert not acting(target.with_suffix(".json").read_text(encoding="utf-8"))


# --- Files that people are sent --------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", [kind for kind in KINDS if "\ud800" not in KINDS[kind]])
def test_a_study_whose_names_cannot_be_seen_is_refused_in_one_line(study, kind, tmp_path, capsys, monkeypatch):
    for field in ('"brainstem"', '"T2w"'):
        spoilt = study.toml().replace(field, json.dumps(KINDS[kind][:64]))
        (tmp_path / "study.toml").write_text(spoilt, encoding="utf-8")
        if KINDS[kind][:64].isprintable():
            assert parse_study(spoilt, "s")
            continue
        with pytest.raises(ConfigError, match="use letters that can be seen"):
            parse_study(spoilt, "s")
        code, out, err = command(capsys, monkeypatch, "coordinator", tmp_path / "study.toml", "--credentials", tmp_path)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert not acting(err)
