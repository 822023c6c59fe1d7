"""Seen from outside: table, page, metrics, logs say how a run stands, and nothing of how long sites trained."""

import http.client
import json
import re
import shutil
import subprocess
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import pytest
from hypothesis import given, settings
from prometheus_client.parser import text_string_to_metric_families as families

from fedseg import events as e
from fedseg.cli.watching import LogFormat, seen
from fedseg.errors import ConfigError
from fedseg.runfolder import RunFolder
from fedseg.status import COORDINATOR, Status, status_of
from fedseg.summary import study_event
from fedseg.watching import Auditing, Logged, Watch, render, words
from fedseg.watching.metrics import exposition
from secagg.audit import AuditLog, entries
from secagg.steps import MASKED_INPUT_COLLECTION as MASKED
from secagg.steps import STEPS
from tests.fedseg.test_fedseg_text_of_others import every_event
from tests.support.command import run as command
from tests.support.hostile_text import HOSTILE, KINDS, acting
from tests.support.tiny import tiny_study

AT = "2026-11-30T03:{:02d}:{:02d}.000+00:00"
STUDY = tiny_study(seed=None).replace(study={"spare_rounds": 2, "rounds": 5})
SITES = tuple(STUDY.site_ids)
DICE = dict.fromkeys(STUDY.structures, 0.5)


def middle(party: str = COORDINATOR, study=STUDY) -> list[e.AnyEvent]:
    """A run in the middle of its second round, which waits for one site's masked input."""
    ended = {
        "attempt": 0,
        "exact": None,
        "head": "ab" * 32,
        "clip_rate": {},
        "bytes_up": 10**6,
        "bytes_down": 2 * 10**6,
    }
    seconds = dict.fromkeys((*STEPS[:-1], "train"), 1.5)
    found = [
        study_event(study, 3, secure=True, party=party),
        e.Listening(host="h", port=7),
        *(e.Connected(site=site) for site in SITES),
        e.Certificate(site=SITES[0], until="2026-12-05T00:00:00+00:00"),
        e.Certificate(site=COORDINATOR, until="2027-11-30T00:00:00+00:00"),
        e.RoundStarted(round=1, attempt=0, model_hash="cd" * 32),
        *(e.EpsilonSpent(round=1, site=site, spent=1.25) for site in SITES),
        e.Scored(round=1, site=SITES[0], values=DICE, n=12),
        e.RoundEnded(round=1, included=SITES, dropped=(), seconds=seconds, **ended),
        e.Note(text="a sentence for the operator about 3 patients"),
        e.RoundStarted(round=2, attempt=0, model_hash="ef" * 32),
        e.StepOpened(round=2, step=MASKED, sites=SITES, seconds=3600.0),
        e.Trained(round=2, site=SITES[0], step=1, steps=2),
        e.StepAccepted(round=2, site=SITES[0], step=MASKED, bytes=12345),
        e.Disconnected(site=SITES[2]),
    ]
    return [event.model_copy(update={"at": AT.format(0, at)}) for at, event in enumerate(found)]


def now(events, **changes) -> Status:
    return replace(status_of(events), asked=AT.format(2, 0), running=True, free_bytes=5 * 10**10, **changes)


# --- Words and table -------------------------------------------------------------------------------------------------


def test_the_headline_says_what_is_waited_for_since_when_and_how_long_at_most():
    events = middle()
    told = words.headline(now(events))
    assert told == f"round 2 of 5, step {MASKED}: waits for site-b, site-c for 105 s, at most 58 min more"
    down = words.headline(replace(now(events), running=False))
    assert down.startswith("down: no process works on this run; it was last heard of 102 s ago")
    over = now([*events, e.Ended(seconds=1.0)])
    assert words.headline(over) == "ended early: 1 of 5 rounds have a sum"


def test_warnings_are_what_an_operator_should_do():
    said = list(words.warnings(replace(now(middle()), free_bytes=10**9)))
    assert said == ["the certificate of site-a ends in 4 days: renew it", "little free disk: 1 GB"]


def test_the_command_shows_a_run_that_is_down_and_as_json(tmp_path, capsys, monkeypatch):
    with RunFolder.create(tmp_path, STUDY) as folder:
        for event in middle():
            folder.emit(event)
    code, out, err = command(capsys, monkeypatch, "status", folder.path, "--page", tmp_path / "page.html")
    assert (code, err) == (0, "")
    assert "tiny: down: no process works on this run" in out
    assert "epsilon per patient at delta 0.01, of a budget of 8; nobody is trusted" in out
    assert re.search(r"site-a +not known +masked update sent +1\.25 +4 days", out)
    assert re.search(r"patients, n +12 *\n.*external CSF +0\.50", out)
    assert "1 of 5 rounds" in out
    assert 'http-equiv="refresh"' not in (tmp_path / "page.html").read_text()
    code, out, err = command(capsys, monkeypatch, "status", folder.path, "--json")
    told = json.loads(out)
    assert (told["round"], told["step"], told["running"]) == (2, MASKED, False)
    assert [peer["awaited"] for peer in told["peers"]] == [False, True, True]
    assert command(capsys, monkeypatch, "status", tmp_path / "none")[0] == 1


# --- Page ------------------------------------------------------------------------------------------------------------


def test_the_page_says_everything_and_is_self_contained():
    page = render(now(middle()), 5)
    for told in (
        "tiny",
        "site-c",
        "gone for",
        "awaited",
        "1.25",
        "4 days",
        "0.50",
        "12",
        "50 GB",
        "spare left",
        MASKED,
    ):
        assert told in page
    assert '<meta http-equiv="refresh" content="5">' in page
    assert not re.search(r"<(script|link|iframe|img)|https?:|src=|@import|url\(", page)


@settings(max_examples=15, deadline=None)
@given(text=HOSTILE)
def test_table_page_and_metrics_of_any_text(text):
    """Row 3: a run that another party wrote, or that peers wrote into."""
    status = replace(status_of(every_event(text)), asked=AT.format(0, 0))
    page = render(status)
    assert not acting(page)
    assert not re.search(r"<(script|img)", page)
    assert list(families(exposition(status).decode()))
    assert words.headline(status).isprintable()
    assert all(said.isprintable() for said in words.warnings(status))


def test_a_browser_shows_it_at_every_width_without_cutting(tmp_path):
    browser = shutil.which("chromium") or shutil.which("chromium-browser")
    if browser is None:
        pytest.skip("no chromium here: make chromium")
    page = tmp_path / "page.html"
    page.write_text(render(now([*middle(), e.Left(site="site-b", reason="x" * 300)])), encoding="utf-8")
    for width in (400, 1400):
        probe = tmp_path / "probe.html"
        probe.write_text(
            f'<iframe src="page.html" style="width:{width}px;height:2000px"></iframe><script>'
            "onload=()=>{const d=frames[0].document.documentElement;"
            "const name=document.createRange();name.selectNodeContents(d.querySelector('tbody th'));"
            "document.title=d.scrollWidth+' '+d.clientWidth+' '+d.querySelectorAll('tbody tr').length"
            "+' '+name.getClientRects().length}"
            "</script>"
        )
        options = [
            "--headless",
            "--no-sandbox",
            "--allow-file-access-from-files",
            "--dump-dom",
            f"--user-data-dir={tmp_path}/u",
        ]
        done = subprocess.run([browser, *options, probe.as_uri()], capture_output=True, text=True, timeout=120)
        told = re.search(r"<title>(\d+) (\d+) (\d+) (\d+)</title>", done.stdout)
        needed, there, rows, lines_of_a_name = map(int, told.groups())
        assert (needed, rows, lines_of_a_name) == (there, 4, 1)


# --- Server ----------------------------------------------------------------------------------------------------------


def get(watch: Watch, path: str, method: str = "GET", **headers: str) -> tuple[int, str, str]:
    _, host, port = watch.url.removesuffix("/").rsplit(":", 2)
    connection = http.client.HTTPConnection(host.strip("/"), int(port), timeout=10)
    connection.request(method, path, headers=headers)
    answer = connection.getresponse()
    return answer.status, answer.headers["Content-Type"], answer.read().decode()


def test_the_server_gives_page_json_and_metrics_and_nothing_else():
    with Watch("0", lambda: now(middle())) as watch:
        assert watch.url.startswith("http://127.0.0.1:")
        assert get(watch, "/")[2] == render(now(middle()), 5)
        assert json.loads(get(watch, "/status.json")[2])["round"] == 2
        assert "fedseg_rounds_completed_total 1.0" in get(watch, "/metrics")[2]
        assert get(watch, "/", "HEAD")[2] == ""
        assert [get(watch, path)[0] for path in ("/x", "/../etc/passwd", "/metrics/")] == [404] * 3
        assert get(watch, "/", "POST")[0] == 501
        assert get(watch, "/status.json", Host="evil.example")[0] == 421  # a name that leads here (DNS rebinding)
        assert get(watch, "/status.json", Host="localhost:1")[0] == 200


def test_the_options_of_a_command_give_page_log_and_audit_log_of_its_run(tmp_path, capsys):
    log, audit = tmp_path / "log", tmp_path / "audit.jsonl"
    for how, file in ((LogFormat.JSON, log), (LogFormat.TEXT, tmp_path / "lines"), (LogFormat.JSON, None)):
        with seen(how, file, "0", audit) as view, RunFolder.create(tmp_path, STUDY, *view.listeners) as folder:
            view.run = folder
            for event in middle():
                folder.emit(event)
            url = re.search(r"status page at (http://127.0.0.1:\d+/)", capsys.readouterr().out)
            if url is not None:  # the screen is off where the log is on the error output
                with urlopen(url[1] + "status.json") as answer:
                    told = json.load(answer)
                assert (told["running"], told["round"]) == (True, 2)
    assert json.loads(log.read_text().splitlines()[0])["event"] == "study"
    assert "round 1: sum of 3 of 3 sites" in (tmp_path / "lines").read_text()
    assert len(entries(audit)) == 3 * 11
    for where in (tmp_path / "none" / "log", tmp_path):
        with pytest.raises(ConfigError, match="--log-file"), seen(LogFormat.JSON, where, ""):
            pass


def test_silent_connections_take_a_bounded_number_of_threads():
    import socket

    with Watch("127.0.0.1:0", lambda: now(middle())) as watch:
        port = int(watch.url.rsplit(":", 1)[1].strip("/"))
        silent = [socket.create_connection(("127.0.0.1", port)) for _ in range(16)]
        for connection in silent:
            connection.sendall(b"GET / ")
        beside = socket.create_connection(("127.0.0.1", port), timeout=10)
        assert beside.recv(1) == b""
        for connection in (*silent, beside):
            connection.close()


@pytest.mark.parametrize("where", ["", "x", "localhost:x", "localhost:99999", "192.0.2.1:0"])
def test_an_address_that_is_none_is_one_sentence(where):
    with pytest.raises(ConfigError, match="--watch"):
        Watch(where, Status)


# --- Metrics ---------------------------------------------------------------------------------------------------------


def values(status: Status) -> dict[str, float]:
    return {
        f"{sample.name}{sorted(sample.labels.values())}": sample.value
        for family in families(exposition(status).decode())
        for sample in family.samples
    }


def test_metrics_are_those_of_the_status():
    found = values(now(middle()))
    assert found["fedseg_rounds_completed_total[]"] == 1
    assert found["fedseg_peers['connected']"] == 2
    assert found["fedseg_peer_connected['site-c']"] == 0
    assert found["fedseg_epsilon_spent['0.01', 'patient', 'site-a']"] == 1.25
    assert found["fedseg_protocol_bytes_total['down']"] == 2e6
    assert found["fedseg_certificate_ends_timestamp_seconds['site-a']"] == 1796428800.0
    assert found["fedseg_free_disk_bytes[]"] == 5e10


def test_no_metric_tells_when_a_masked_input_came_where_an_epsilon_is_claimed():
    before, after = (
        [event for event in middle() if keep(event)] for keep in (lambda x: x.kind != "step", lambda x: True)
    )
    changing = {"process_cpu_seconds_total[]", "process_resident_memory_bytes[]", "process_virtual_memory_bytes[]"}
    changing |= {"process_open_fds[]"}
    known = [{k: v for k, v in values(now(events)).items() if k not in changing} for events in (before, after)]
    assert known[0] == known[1]
    assert not any(MASKED in name or "train" in name for name in known[0])
    assert not any(name.startswith("process_") for name in values(now(middle(SITES[0]))))  # a site trains
    open_ = [event.model_copy(update={"trust": ""}) if event.kind == "study" else event for event in after]
    assert values(now(open_))["fedseg_sites_awaited[]"] == 2
    assert values(now(open_))[f"fedseg_step_seconds_total['{MASKED}']"] == 1.5


# --- Logs ------------------------------------------------------------------------------------------------------------


def logged(events, tmp_path) -> list[dict]:
    log = Logged(tmp_path / "log.json")
    for event in events:
        log(event)
    return [json.loads(line) for line in (tmp_path / "log.json").read_text("ascii").splitlines()]


def test_the_log_has_times_and_levels_and_nothing_of_patients(tmp_path):
    lines = logged(middle(), tmp_path)
    assert [line["at"] for line in lines] == sorted(line["at"] for line in lines)
    assert {"at": AT.format(0, 18), "level": "warning", "event": "disconnected", "site": "site-c"} == lines[-1] | {
        "at": AT.format(0, 18)
    }
    kinds = {line["event"] for line in lines}
    assert {"study", "round", "end_round", "epsilon", "note", "open"} <= kinds
    assert not kinds & {"train", "dice", "step"}  # of training, of held-out patients, and when a masked input came
    assert "seconds" not in next(line for line in lines if line["event"] == "end_round")


def test_at_a_site_a_note_is_a_line_without_its_text(tmp_path):
    (note,) = [line for line in logged(middle(SITES[0]), tmp_path) if line["event"] == "note"]
    assert note.keys() == {"at", "level", "event"}


def test_without_a_claim_the_log_tells_when_a_masked_input_came(tmp_path):
    events = [event.model_copy(update={"trust": ""}) if event.kind == "study" else event for event in middle()]
    assert [line["bytes"] for line in logged(events, tmp_path) if line["event"] == "step"] == [12345]


def test_a_log_that_is_rotated_goes_on_in_the_new_file_and_a_full_disk_costs_nothing(tmp_path, capsys):
    path = tmp_path / "log.json"
    log = Logged(path)
    log(e.Note(text="one"))
    path.rename(tmp_path / "log.json.1")
    log(e.Note(text="two %s"))
    assert (json.loads(path.read_text())["text"], len((tmp_path / "log.json.1").read_text().splitlines())) == (
        "two %s",
        1,
    )
    full = Logged(Path("/dev/full"))
    full(e.Note(text="lost"))
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("kind", KINDS)
def test_whatever_text_is_one_line_of_the_log(tmp_path, kind):
    lines = logged(every_event(KINDS[kind]), tmp_path)
    assert not acting("".join(str(value) for line in lines for value in line.values()))


def test_the_audit_log_has_who_did_what(tmp_path):
    auditing = Auditing(tmp_path / "audit.jsonl")
    for event in (*middle(), e.Refused(site="site-b", reason="another study")):
        auditing(event)
    found = [(entry.who, entry.what) for entry in entries(tmp_path / "audit.jsonl")]
    assert found[1:4] == [("coordinator", "opened the port"), ("site-a", "connected"), ("site-b", "connected")]
    assert ("coordinator", "closed a round") in found
    assert found[-2:] == [("site-c", "was lost"), ("coordinator", "refused a site")]
    assert found[0][0].startswith("operator ")


def test_what_could_not_be_written_into_the_audit_log_is_written_later_with_its_time(tmp_path, monkeypatch):
    auditing = Auditing(tmp_path / "audit.jsonl")
    append = AuditLog.append

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    first, second, third = (e.Connected(site=site, at=AT.format(0, at)) for at, site in enumerate(SITES))
    monkeypatch.setattr(AuditLog, "append", full)
    auditing(first)
    auditing(second)
    monkeypatch.setattr(AuditLog, "append", append)
    auditing(third)
    found = entries(tmp_path / "audit.jsonl")
    assert [entry.who for entry in found] == list(SITES)
    assert found[1].about["event_at"] == AT.format(0, 1)
