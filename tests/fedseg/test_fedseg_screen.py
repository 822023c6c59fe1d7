"""The screen and text of others: whatever a site sends or a file holds, it is shown and nothing ends."""

import asyncio
import io
import json
import random
from datetime import datetime

import pytest
from rich.console import Console

from fedseg.cli import terminal as command
from fedseg.cli.ending import show_metrics
from fedseg.coordinator import Coordinator, Options
from fedseg.credentials import make_credentials, signing_key
from fedseg.data.declaration import Declaration
from fedseg.dialogue import Declares, Progress
from fedseg.dialogue import Metrics as Shared
from fedseg.errors import ConfigError, SiteWarning
from fedseg.events import AnyEvent, Burned, Dropped, EpsilonSpent, Left, Note, RoundEnded, RoundStarted, Trained
from fedseg.records import Metrics
from fedseg.runfolder import RunFolder
from fedseg.screen import Screen
from fedseg.summary import study_event
from secagg.printable import printable
from secagg.rpc.frames import HELLO, Received
from secagg.service.dialogue import Failed, Leaving, Ready
from tests.support.tiny import tiny_study

HOSTILE = {
    "markup that was never opened": "no [/such] tag",
    "markup": "[bold red]alarm[/] [link=https://example.org]here[/link]",
    "escape": "\x1b[2J\x1b]0;title\x07 and \x9b31m",
    "lines": "one\ntwo\r\nround 99: sum of 5 of 5 sites\u2028x",
    "bidi": "\u202etxt.exe",
    "surrogate": "\ud800 half",
    "everything": "[/]\x1b[31m\n\ud800\u202e[",
}
NOON = datetime(2026, 11, 29, 12)
STAMP = "2026-11-29 12:00:00 "
STUDY = study_event(tiny_study(mechanism="none"), 3, secure=True).model_copy(
    update={"name": "[/x]\x1b[1mstudy", "sites": ("a", "[/b]\x1b")}
)


def screen_of(terminal: bool, encoding: str = "utf-8") -> tuple[Screen, io.TextIOWrapper]:
    file = io.TextIOWrapper(io.BytesIO(), encoding=encoding, newline="\n")
    console = Console(file=file, force_terminal=terminal, color_system=None, width=120, legacy_windows=False)
    return Screen(console, now=lambda: NOON), file


def shown_on(file: io.TextIOWrapper) -> str:
    file.flush()
    return file.buffer.getvalue().decode(file.encoding)


def events(text: str) -> list[AnyEvent]:
    ended = {"attempt": 0, "exact": None, "head": "", "clip_rate": {}, "bytes_up": 0, "bytes_down": 0, "seconds": {}}
    return [
        STUDY,
        RoundStarted(round=1, attempt=0, model_hash=""),
        Trained(site="a", round=1, step=1, steps=2),
        Note(text=f"a stopped: {text}"),
        Left(site="a", reason=text),
        Burned(round=1, attempt=0, reason=text),
        Dropped(site="[/b]\x1b", round=1, after=text),
        RoundEnded(round=1, included=("a",), dropped=(text,), **ended),
    ]


@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_log_has_one_line_for_each_event_as_it_stands(kind, encoding):
    screen, file = screen_of(terminal=False, encoding=encoding)
    with screen:
        for event in events(HOSTILE[kind]):
            screen(event)
    lines = shown_on(file).split("\n")
    assert len(lines) == 2 + 5 + 1
    assert all(line.isprintable() for line in lines)
    assert all(line.startswith(STAMP) for line in lines[:-1])
    assert lines[3] == STAMP + printable(HOSTILE[kind], encoding)


@pytest.mark.parametrize("kind", HOSTILE)
def test_a_terminal_shows_it_as_it_stands(kind):
    screen, file = screen_of(terminal=True)
    with screen:
        for event in events(HOSTILE[kind]):
            screen(event)
        drawn = Console(file=io.StringIO(), width=400, color_system=None, legacy_windows=False)
        drawn.print(screen._draw())
    text = drawn.file.getvalue()
    assert f"a stopped: {printable(HOSTILE[kind])}" in text
    assert r"[/x]\x1b[1mstudy" in text
    assert r"[/b]\x1b" in text
    assert not {c for c in text if not c.isprintable()} - {"\n"}
    assert "\x9b" not in shown_on(file)
    assert "\x1b]0;" not in shown_on(file)


def test_random_text_never_ends_the_screen():
    pieces = ["[", "]", "/", "[/", "\x1b", "\n", "\ud800", "\u202e", "bold", "\\", ":skull:", "[[", "=", "ü", "\x00"]
    chance = random.Random(7)
    for terminal in (True, False):
        screen, file = screen_of(terminal)
        with screen:
            for _ in range(300):
                text = "".join(chance.choices(pieces, k=chance.randrange(12)))
                for event in events(text):
                    screen(event)
        assert shown_on(file)


def test_what_clip_range_cuts_is_said_at_once_with_share_and_remedy():
    screen, file = screen_of(terminal=False)
    ended = {"attempt": 0, "exact": None, "head": "", "bytes_up": 0, "bytes_down": 0, "seconds": {}, "dropped": ()}
    with screen:
        screen(STUDY)
        for number in (1, 2):
            screen(RoundEnded(round=number, included=("a",), clip_rate={"a": 0.98, "b": 0.02}, **ended))
    said = shown_on(file)
    assert said.count("round 1: clip_range cut 98 % of the values of a's update") == 1  # once a site
    assert "raise [secagg] clip_range, or lower [study] lr" in said
    assert "of b's update" not in said


def test_an_epsilon_stands_beside_unit_delta_and_trust():
    study = study_event(tiny_study(seed=None), 3, secure=True)
    ended = {"attempt": 0, "exact": None, "head": "", "bytes_up": 0, "bytes_down": 0, "seconds": {}, "dropped": ()}
    for terminal in (False, True):
        screen, file = screen_of(terminal=terminal)
        with screen:
            screen(study)
            screen(EpsilonSpent(round=1, site="site-a", spent=2.5))
            screen(RoundEnded(round=1, included=("site-a",), clip_rate={}, **ended))
            drawn = Console(file=io.StringIO(), width=200, color_system=None, legacy_windows=False)
            drawn.print(screen._draw())
        said = drawn.file.getvalue() if terminal else shown_on(file)
        assert "per patient at delta 0.01" in said
        assert ("nobody is trusted" if terminal else "trusting nobody") in said
        assert "2.50" in said


def test_a_narrow_terminal_cuts_neither_names_nor_figures():
    file = io.StringIO()
    screen = Screen(Console(file=file, force_terminal=True, color_system=None, width=60, legacy_windows=False))
    screen(study_event(tiny_study(seed=None), 3, secure=True))
    screen(EpsilonSpent(round=1, site="site-a", spent=2.5))
    drawn = Console(file=io.StringIO(), width=60, color_system=None, legacy_windows=False)
    drawn.print(screen._draw())
    text = drawn.file.getvalue()
    assert "…" not in text
    assert all(name in text for name in ("site-a", "site-b", "site-c", "2.50", "······", "epsilon of 8.0"))
    assert max(map(len, text.splitlines())) == 60


# --- Through the coordinator ------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def credentials(tmp_path_factory):
    folder = tmp_path_factory.mktemp("credentials")
    make_credentials(folder, tiny_study(rounds=1), "run")
    return folder


@pytest.mark.parametrize("kind", [kind for kind in HOSTILE if "\ud800" not in HOSTILE[kind]])
@pytest.mark.parametrize("how", [Leaving, Failed])
def test_a_sites_sentence_does_not_end_the_coordinator(tmp_path, credentials, kind, how):
    """Version 0.2 read it as markup and crashed."""
    screen, file = screen_of(terminal=False)
    options = Options(credentials=credentials)
    coordinator = Coordinator(RunFolder.create(tmp_path, tiny_study(rounds=1), screen), options)
    asyncio.run(coordinator._take(Received("site-a", how.kind, how(reason=HOSTILE[kind]).packed())))
    assert shown_on(file).endswith(f"{printable(HOSTILE[kind])}\n")
    assert shown_on(file).count("\n") == 1
    written = (coordinator.folder.path / "events.jsonl").read_text(encoding="utf-8")
    assert printable(HOSTILE[kind]) in json.loads(written).get("reason", "") + json.loads(written).get("text", "")


def test_half_a_character_is_refused_where_it_arrives(tmp_path, credentials):
    screen, file = screen_of(terminal=False)
    coordinator = Coordinator(
        RunFolder.create(tmp_path, tiny_study(rounds=1), screen), Options(credentials=credentials)
    )

    async def scenario() -> None:
        coordinator.mailbox.receive = lambda _: asyncio.sleep(
            0, Received("site-a", Leaving.kind, b'{"reason":"\\ud800"}')
        )
        await coordinator._hear(0)

    asyncio.run(scenario())
    assert shown_on(file) == f"{STAMP}site-a sent a malformed Leaving message; it was ignored\n"


def test_a_process_is_sent_the_transcript_that_it_asks_for_once(tmp_path, credentials):
    """600 requests of a few bytes once made the coordinator hold 3.6 GB."""
    screen, _ = screen_of(terminal=False)
    coordinator = Coordinator(
        RunFolder.create(tmp_path, tiny_study(rounds=1), screen), Options(credentials=credentials)
    )
    transcripts = coordinator.folder.path / "transcripts"
    transcripts.mkdir()
    (transcripts / f"0001-0-{'ab' * 8}.transcript").write_bytes(bytes(1000))
    sent, same = [], {name: ours for name, (ours, _) in coordinator._same.items()}
    says = Declares.signed(Declaration(), "run", "site-a", signing_key(credentials, "site-a")).model_dump_json()
    waits = Ready(**same, unreplayed=["ab" * 32], says=says)
    coordinator.mailbox.send = lambda site, kind, payload: sent.append(kind)

    async def scenario() -> None:
        for _ in range(2):
            await coordinator._take(Received("site-a", HELLO, b""))
            for _ in range(600):
                await coordinator._take(Received("site-a", Ready.kind, waits.packed()))
                await coordinator._take(Received("site-a", Failed.kind, Failed(reason="again").packed()))

    asyncio.run(scenario())
    assert sent == ["transcript"] * 2


def test_figures_of_rounds_that_are_not_there_are_neither_kept_nor_shown(tmp_path, credentials):
    """A site could fill the coordinator's memory with rounds, and its screen with numbers."""
    screen, file = screen_of(terminal=False)
    study = tiny_study(rounds=1).replace(report={"share_metrics": True})
    coordinator = Coordinator(RunFolder.create(tmp_path, study, screen), Options(credentials=credentials))
    rows = [[0.5] * len(study.structures)]
    for number, told in [(0, ""), (1, "not there yet"), (10**30, "not there yet")]:
        taken = Received("site-a", Shared.kind, Shared(round=number, rows=rows).packed())
        coordinator.mailbox.receive = lambda _, taken=taken: asyncio.sleep(0, taken)
        asyncio.run(coordinator._hear(0))
        assert told in shown_on(file)
        for step, steps in [(0, 2), (3, 2), (0, 10**30)]:
            progress = Progress(round=number + 1, step=step, steps=steps, epsilon=None)
            asyncio.run(coordinator._take(Received("site-a", Progress.kind, progress.packed())))
    assert coordinator.figures.missing({"site-a", "site-b"}) == {"site-b"}
    events = [json.loads(line) for line in (coordinator.folder.path / "events.jsonl").read_text().splitlines()]
    assert [(event["kind"], event.get("round")) for event in events if event["kind"] != "note"] == [("dice", 0)]
    for rows in ([[1.5]], [[-0.1]]):
        with pytest.raises(ValueError, match=r"less than|greater than"):
            Shared(round=0, rows=rows)


# --- The command ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", HOSTILE)
def test_errors_warnings_and_figures_of_the_command(kind, monkeypatch, capsys):
    text = HOSTILE[kind]

    def fail() -> None:
        raise ConfigError(text)

    monkeypatch.setattr(command, "app", fail)
    with pytest.raises(SystemExit):
        command.main()
    command._warn(text, SiteWarning)
    printed = capsys.readouterr().err
    assert printed == f"fedseg: {printable(text)}\nwarning: {printable(text)}\n"
    figure = {"mean": 0.5, "low": 0.4, "high": 0.6, "n": 3}
    column = {"mean": figure, "structures": {text: figure}}
    metrics = {
        "dice": {"mean": figure, "overall": {text: figure}, "sites": {text: column}},
        "baselines": {text: figure},
        "study": "s",
        "study_hash": "",
        "mechanism": "none",
        "protocol": {"rounds_completed": 1, "bytes_up": 1, "bytes_down": 1, "seconds": {text: 1.0}},
        "seconds": 1.0,
    }
    show_metrics(Metrics.model_validate(metrics))
    printed = capsys.readouterr().out
    assert f"{printable(text)}: mean Dice 0.50 0.40-0.60 n=3" in printed
    assert all(c.isprintable() or c == "\n" for c in printed)
