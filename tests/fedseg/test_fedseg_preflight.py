"""`--check`: each thing that can be missing is found before a study, in its own row, and nothing is charged or sent."""

import asyncio
import json
import re
import socket
import ssl
import threading
import time
from contextlib import closing
from pathlib import Path

import pytest

from fedseg import credentials, preflight
from fedseg.cli import checking
from fedseg.coordinator.finding import write_identity
from fedseg.credentials import coordinator_tls, expiring, load_federation, make_credentials
from fedseg.runfolder import RunFolder
from fedseg.site.control import LEAST_DIGITS, Control
from fedseg.study import load_study
from secagg.enrolment.office import Office
from secagg.rpc import probe
from secagg.rpc.proof import BALANCER, Pinned
from secagg.rpc.server import MailboxServer
from secagg.service.journal import Journal
from secagg.service.standing import JOURNAL
from tests.support.command import run
from tests.support.tiny import tiny_study


class Listening:
    """A coordinator's mailbox in a thread of its own."""

    def __init__(self, credentials: Path, sites: list[str], pinned: Pinned | None = None) -> None:
        self.server = MailboxServer(sites, coordinator_tls(credentials), pinned=pinned)
        self.loop = asyncio.new_event_loop()
        self.thread = threading.Thread(target=self.loop.run_forever, daemon=True)

    def __enter__(self) -> "Listening":
        self.thread.start()
        self.port = asyncio.run_coroutine_threadsafe(self.server.start("127.0.0.1", 0), self.loop).result(300)
        return self

    def __exit__(self, *_: object) -> None:
        asyncio.run_coroutine_threadsafe(self.server.stop(0.0), self.loop).result(300)
        self.loop.call_soon_threadsafe(self.loop.stop)
        self.thread.join(300)

    def heard(self) -> object:
        return asyncio.run_coroutine_threadsafe(self.server.receive(0.2), self.loop).result(300)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    study = tiny_study(seed=None)
    (tmp_path / "study.toml").write_text(study.toml())
    make_credentials(tmp_path / "keys", study, "run")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("FEDSEG_HOME", str(tmp_path / "home"))
    return tmp_path


@pytest.fixture
def look(capsys, monkeypatch):
    def looking(*words: object) -> tuple[int, dict[str, dict]]:
        code, said, _ = run(capsys, monkeypatch, *words, "--check", "--json", "--credentials", "keys")
        return code, {row["name"]: row for row in json.loads(said)["checks"]}

    return looking


def site(port: int) -> tuple[str, ...]:
    return ("site", "study.toml", "site-a", "--coordinator", f"127.0.0.1:{port}")


def test_a_site_that_is_ready_is_told_so_and_its_coordinator_hears_nothing(folder, look):
    with Listening(folder / "keys", ["site-a", "site-b", "site-c"]) as coordinator:
        code, rows = look(*site(coordinator.port))
        assert coordinator.heard() is None
    assert code == 0
    assert {row["state"] for row in rows.values()} == {"ok"}
    digits = tiny_study(seed=None).hash().hex()[:24]
    assert digits in rows["study"]["said"].replace(" ", "")
    assert "after all of this study" in rows["budget"]["said"]
    assert not list(folder.glob("runs/**/*"))


def test_in_mode_tls_a_site_needs_no_certificate_and_is_told_where_the_coordinator_is_in_the_other_mode(folder, look):
    keys = folder / "keys"
    federation = load_federation(keys, tiny_study(seed=None))
    with Listening(keys, ["site-a"], Pinned(federation.server_key, federation.pinned)) as coordinator:
        _, rows = look(*site(coordinator.port))
        assert rows["coordinator"]["state"] == "fail"
        assert "in mode tls, and this site is in mtls: start both in the same one" in rows["coordinator"]["said"]
        for own in ("site-a.pem", "site-a.key"):
            (keys / own).rename(folder / own)
        (keys / BALANCER).write_bytes((keys / "authority.pem").read_bytes())
        code, rows = look(*site(coordinator.port), "--tls", "tls")
        assert coordinator.heard() is None
    assert code == 0
    assert {row["state"] for row in rows.values()} == {"ok"}
    assert "prove itself with its signing key" in rows["coordinator"]["said"]
    assert BALANCER in rows["certificate"]["said"]
    with Listening(keys, ["site-a"]) as coordinator:
        _, rows = look(*site(coordinator.port), "--tls", "tls")
    assert "where the coordinator is in mode mtls, start this site in mtls too" in rows["coordinator"]["said"]


def test_a_coordinator_in_mode_tls_looks_at_no_certificate_of_a_site(folder, look):
    given = ("coordinator", "study.toml", "--host", "0.0.0.0", "--port", "50999", "--tls", "tls")
    code, rows = look(*given)
    assert code == 0
    assert "none is shown in mode tls" in rows["sites' certificates"]["said"]


def test_a_clock_that_is_wrong_is_told_by_how_much(folder, look, monkeypatch):
    with Listening(folder / "keys", ["site-a"]) as coordinator:
        monkeypatch.setattr(probe.TellingHealth, "clock", staticmethod(lambda: time.time() + 400))
        _, rows = look(*site(coordinator.port))
    assert rows["clock"]["state"] == "fail"
    assert "400 s behind the coordinator's; set this computer's clock by NTP" in rows["clock"]["said"]


def test_what_a_site_lacks_is_named_row_by_row(folder, look):
    (folder / "keys/site-a.signing").write_bytes((folder / "keys/site-b.signing").read_bytes())
    code, rows = look(*site(1))
    assert code == 1
    assert rows["roster and key"]["state"] == "fail"
    assert "use its own" in rows["roster and key"]["said"]
    assert rows["coordinator"]["state"] == "fail"
    assert rows["data"]["state"] == "ok"


def test_a_certificate_is_warned_of_a_month_before_it_expires(folder, look):
    office = Office(folder / "keys")
    office.renew(days=20)
    code, rows = look("coordinator", "study.toml", "--host", "0.0.0.0", "--port", "50999")
    assert code == 0
    assert rows["certificate"]["state"] == "warn"
    assert "expires in 20 days: renew it now with fedseg enrol renew" in rows["certificate"]["said"]
    assert rows["sites' certificates"]["state"] == "ok"


def test_a_coordinator_with_a_revoked_site_in_its_roster_or_a_port_in_use_is_not_ready(folder, look):
    Office(folder / "keys").revoke("site-b")
    with Listening(folder / "keys", ["site-a"]) as other:
        code, rows = look("coordinator", "study.toml", "--port", str(other.port))
    assert code == 1
    assert "site-b is in the roster and was revoked" in rows["sites' certificates"]["said"]
    assert "is a coordinator running already?" in rows["port"]["said"]


def test_a_study_that_nobody_approved_here_is_told_with_what_approves_it(folder, look):
    text = (folder / "study.toml").read_text().replace("phantom", "bids")
    (folder / "study.toml").write_text(re.sub(r"\n(patients|slices_per_patient) = \d+", "", text))
    own = load_study(folder / "study.toml").hash().hex()
    _, rows = look(*site(1), "--state", "state")
    assert rows["approval"]["state"] == "warn"
    assert f"start once with fedseg site ... --approve {own[:LEAST_DIGITS]}" in rows["approval"]["said"]
    Control(folder / "state").approve(own, "tiny", own[:LEAST_DIGITS])
    _, rows = look(*site(1), "--state", "state")
    assert rows["approval"]["state"] == "ok"


def test_a_proxy_has_a_row_of_its_own(folder, look, monkeypatch):
    monkeypatch.setenv("https_proxy", "http://operator:secret@127.0.0.1:1")
    monkeypatch.setenv("no_proxy", "")
    words = ("site", "study.toml", "site-a", "--coordinator", "coordinator.invalid:50051")
    code, rows = look(*words)
    assert code == 1
    assert rows["proxy"]["state"] == "fail"
    assert "proxy 127.0.0.1:1 (from https_proxy) does not answer (Connection refused)" in rows["proxy"]["said"]
    assert "secret" not in str(rows)
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        monkeypatch.setenv("https_proxy", f"http://127.0.0.1:{proxy.getsockname()[1]}")
        assert preflight._proxy("coordinator.invalid:50051", None)[0] == "ok"
        assert "(from --proxy)" in preflight._proxy("coordinator.invalid:50051", "http://127.0.0.1:1")[1]


def test_a_coordinator_is_told_what_its_command_would_do_with_the_run(folder, look):
    words = ("coordinator", "study.toml", "--port", "50999")
    assert "run has not begun" in look(*words)[1]["run"]["said"]
    study = tiny_study(seed=None)
    made = RunFolder.create(folder / "runs", study)
    write_identity(made.path, study, load_federation(folder / "keys", study))
    with made:
        _, rows = look(*words)
        assert rows["run"]["state"] == "fail"
        assert "a coordinator works on it now" in rows["run"]["said"]
    _, rows = look(*words)
    assert rows["run"]["state"] == "ok"
    assert "0 of 2 rounds" in rows["run"]["said"]
    assert "the same command goes on with it" in rows["run"]["said"]
    with closing(Journal(made.path / JOURNAL, {"run": "run"})) as journal:
        journal.commit({"finished": b"1"})
    _, rows = look(*words)
    assert rows["run"]["state"] == "warn"
    assert "is over; publish the next roster with the name of a new run" in rows["run"]["said"]


def test_a_coordinator_that_runs_takes_up_what_the_office_revoked_and_renewed(folder, look):
    office = Office(folder / "keys")
    with Listening(folder / "keys", ["site-a", "site-b", "site-c"]) as coordinator:

        def shown() -> str:
            return ssl.get_server_certificate(("127.0.0.1", coordinator.port))

        before = shown()
        assert look(*site(coordinator.port))[1]["coordinator"]["state"] == "ok"
        office.revoke("site-a")
        office.renew(["192.0.2.7"])
        while shown() == before:
            time.sleep(0.1)
        assert shown().strip() == (folder / "keys/coordinator.pem").read_text().strip()
        code, rows = look(*site(coordinator.port))
    assert code == 1
    assert rows["coordinator"]["state"] == "fail"
    assert "refuses this site: the certificate was revoked by the coordinator" in rows["coordinator"]["said"]


def test_the_table_ends_with_status_1_where_something_fails(folder, capsys, monkeypatch):
    code, said, _ = run(capsys, monkeypatch, *site(1), "--credentials", "keys", "--check")
    assert code == 1
    assert "fail" in said
    assert "warn" in said


def test_a_party_that_runs_says_that_its_certificate_expires(folder, monkeypatch):
    monkeypatch.setattr(checking, "_FIRST", 0.0)
    Office(folder / "keys").renew(days=20)
    for name, wanted in (("coordinator", ["expires in 20 days"]), ("site-a", [])):
        said: list[str] = []
        looked = threading.Event()
        monkeypatch.setattr(credentials, "expiring", lambda *rest, looked=looked: (expiring(*rest), looked.set())[0])
        with checking.told_of_expiry(lambda event, said=said: said.append(event.text), folder / "keys", name):
            looked.wait()
        assert [text.partition(": renew it")[0][-18:] for text in said] == wanted
