"""How a run stands: folded from its events, shown as a table, JSON and a page; while it runs and when it is down."""

import json
from dataclasses import replace

from fedseg import events as e
from fedseg.runfolder import RunFolder
from fedseg.status import COORDINATOR, Folding, read_status, status_of
from fedseg.summary import study_event
from secagg.steps import ADVERTISE_KEYS
from tests.support.tiny import tiny_study

AT = "2026-11-30T03:00:{:02d}.000+00:00"
STUDY = tiny_study(seed=None).replace(study={"spare_rounds": 2, "rounds": 3})
ENDED = {
    "attempt": 0,
    "exact": None,
    "head": "",
    "clip_rate": {},
    "bytes_up": 10,
    "bytes_down": 20,
    "seconds": {"A": 2.0},
}


def told(*events: e.AnyEvent, party: str = COORDINATOR) -> list[e.AnyEvent]:
    """The events of a run, a second apart."""
    first = study_event(STUDY, 3, secure=True, party=party)
    return [event.model_copy(update={"at": AT.format(at)}) for at, event in enumerate([first, *events])]


def peers(status):
    return {peer.name: peer for peer in status.peers}


def test_who_is_there_who_is_awaited_since_when_and_until_when():
    sites = ("site-a", "site-b", "site-c")
    status = status_of(
        told(
            e.Listening(host="h", port=7),
            *(e.Connected(site=site) for site in sites),
            e.RoundStarted(round=1, attempt=0, model_hash=""),
            e.StepOpened(round=1, step=ADVERTISE_KEYS, sites=sites, seconds=60.0),
            e.StepAccepted(round=1, site="site-b", step=ADVERTISE_KEYS, bytes=1),
            e.Disconnected(site="site-c"),
        )
    )
    assert (status.study, status.party, status.address, status.rounds) == ("tiny", "coordinator", "h:7", 3)
    assert (status.round, status.step, status.awaited) == (1, ADVERTISE_KEYS, ("site-a", "site-c"))
    assert (status.since, status.deadline) == (AT.format(6), AT.format(0).replace(":00:00", ":01:06"))
    found = peers(status)
    assert [(p.state, p.since, p.awaited) for p in found.values()] == [
        ("connected", AT.format(2), True),
        ("connected", AT.format(3), False),
        ("gone", AT.format(8), True),
    ]
    assert found["site-b"].step == ADVERTISE_KEYS


def test_a_burned_round_takes_a_spare_one_and_a_second_attempt_does_not():
    started = [e.RoundStarted(round=n, attempt=a, model_hash="") for n, a in [(1, 0), (1, 1), (2, 0), (3, 0)]]
    burned = e.Burned(round=1, attempt=0, reason="too few")
    status = status_of(told(started[0], burned, started[1]))
    assert (status.burned, status.spare, status.completed, status.attempt) == (0, 2, 0, 1)
    ended = e.RoundEnded(round=2, included=("site-a",), dropped=(), **ENDED)
    status = status_of(told(started[0], burned, started[1], burned, started[2], ended, started[3]))
    assert (status.burned, status.spare, status.completed, status.last_completed) == (1, 1, 1, AT.format(6))
    assert (status.took, status.steps, status.bytes_up, status.bytes_down) == ({"A": 2.0}, {"A": 1}, 10, 20)
    assert status.news[-1] == (AT.format(4), "round 1 ended without a sum: too few")


def test_a_new_process_knows_of_no_connection_and_keeps_what_was_spent():
    before = [e.Connected(site="site-a"), e.EpsilonSpent(round=1, site="site-a", spent=2.5)]
    status = status_of(told(*before, e.Resumed(round=1)))
    assert (peers(status)["site-a"].state, peers(status)["site-a"].epsilon) == ("gone", 2.5)


def test_at_a_site_the_peers_are_the_coordinator_and_itself():
    waiting = e.Waiting(sites=(COORDINATOR,), seconds=1e300)
    status = status_of(told(waiting, party="site-b"))
    assert list(peers(status)) == [COORDINATOR, "site-b"]
    assert (status.awaited, status.deadline) == ((COORDINATOR,), "")  # for ever
    for_ever = e.Waiting(sites=(COORDINATOR,), seconds=float("inf"))
    assert e.event_of(json.loads(for_ever.model_dump_json())).seconds is None
    assert status_of(told(for_ever, party="site-b")).deadline == ""
    assert status_of(told(waiting, e.Connected(site=COORDINATOR), party="site-b")).awaited == ()


def test_who_left_was_refused_or_is_unknown():
    status = status_of(
        told(
            e.Left(site="site-a", reason="its budget is spent"),
            e.Refused(site="site-b", reason="another study"),
            e.Connected(site="somebody"),
            e.Certificate(site="site-b", until="2026-12-01"),
            e.Certificate(site=COORDINATOR, until="2027-01-01"),
        )
    )
    assert [(p.state, p.reason, p.certificate) for p in status.peers] == [
        ("left", "its budget is spent", ""),
        ("refused", "another study", "2026-12-01"),
        ("not seen", "", ""),
    ]
    assert status.certificate == "2027-01-01"


def test_the_folder_tells_the_same_as_a_listener_and_whether_a_process_works_on_it(tmp_path):
    folding = Folding()
    with RunFolder.create(tmp_path, STUDY, folding) as folder:
        for event in told(e.Scored(round=1, site="site-a", values={"brainstem": 0.5}, n=3), e.Ended(seconds=1.0)):
            folder.emit(event)
        status = read_status(folder.path)
        assert status.running
        assert status.free_bytes
        assert replace(status, asked="", running=False, free_bytes=None) == folding.status()
        assert (peers(status)["site-a"].dice, peers(status)["site-a"].patients) == ({"brainstem": 0.5}, 3)
    assert not read_status(folder.path).running
    with (folder.path / "events.jsonl").open("a") as file:
        file.write('{"kind": "no')  # a line on its way
    assert read_status(folder.path).over == "ended early"
