"""The coordinator of the service: killed around every write, and exact all the same; who is waited for, and who not."""

import asyncio
import errno
import math
import sqlite3
import threading
from contextlib import closing
from functools import partial
from types import SimpleNamespace

import pytest

from secagg.errors import ConfigError
from secagg.service import dialogue
from secagg.service.errors import RunFailedError
from secagg.service.events import Burned, Connected, Disconnected, Note, Resumed, StepOpened, Summed, TurnedAway
from secagg.service.journal import Journal
from secagg.service.standing import NOTES, SLOWEST_BYTES_PER_SECOND
from secagg.transcript_files import verify
from tests.support.service import Hub, Killed


def test_rounds_end_in_exact_sums_and_everybody_is_told_that_the_run_is_complete(tmp_path):
    async def scenario():
        hub = Hub(tmp_path, rounds=2)
        coordinator = hub.coordinator()
        hub.start()
        assert await coordinator.run() == "the study is complete"
        assert coordinator.complete
        assert [hub.exact(number) for number in (1, 2)] == [True, True]
        assert [event.included for event in hub.of(Summed)] == [("site-a", "site-b", "site-c")] * 2
        assert all(member.finished.complete for member in hub.members.values())
        hub.close()

    asyncio.run(scenario())


UNHURRIED = {"step_seconds": 60.0, "training_seconds": 60.0}
"""Where nobody is missing no step waits for its deadline, and a busy machine may take longer than the hub's."""


async def killed_again_and_again(hub, dies):
    """Run to the end with one coordinator after the other, each killed at a write where `dies(life, write)` says so.

    Returns:
        How many writes there were, and how many lives.
    """
    written, life = 0, 0
    hub.start()
    while True:
        coordinator, life, own = hub.coordinator(), life + 1, 0
        commit = coordinator.journal.commit

        def counted(changes, commit=commit, life=life):
            nonlocal written, own
            written, own = written + 1, own + 1
            death = dies(life, own)
            if death == "before":
                raise Killed
            commit(changes)
            if death == "after":
                raise Killed

        coordinator.journal.commit = counted
        try:
            assert await coordinator.run() == "the study is complete"
        except Killed:
            hub.line = None
            assert life < 200
            continue
        return written, life


def check(hub):
    assert all(hub.exact(number) for number in range(1, hub.rounds + 1))
    assert not hub.of(Burned), "nothing that could finish is lost"
    told = {event.round for event in hub.of(Summed)}  # one that died right after the write told nobody: the next did
    assert told == set(range(1, hub.rounds + 1))
    assert all(member.finished.complete for member in hub.members.values())
    if not hub.private:
        verdict = verify(sorted((hub.folder / "transcripts").glob("*.transcript")), hub.policy, hub.pinned)
        assert (verdict.status, len(verdict.rounds)) == ("holds", hub.rounds)
    hub.close()


@pytest.mark.parametrize("private", [True, False])
def test_a_coordinator_that_dies_after_every_second_write_goes_on_and_every_sum_is_exact(tmp_path, private):
    async def scenario():
        hub = Hub(tmp_path, private=private, rounds=2, **UNHURRIED)
        _, lives = await killed_again_and_again(hub, lambda life, own: "after" if own == 2 else "")
        assert lives > 5
        assert len(hub.of(Resumed)) > 5
        check(hub)

    asyncio.run(scenario())


@pytest.mark.slow
@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("when", ["before", "after"])
def test_a_coordinator_killed_around_any_write_goes_on_and_every_sum_is_exact(tmp_path, private, when):
    async def scenario(folder, number):
        hub = Hub(folder, private=private, rounds=2, **UNHURRIED)
        written, _ = await killed_again_and_again(hub, lambda life, own: when if (life, own) == (1, number) else "")
        check(hub)
        return written

    total = asyncio.run(scenario(tmp_path / "whole", 0))
    assert total > 15
    for number in range(1, total + 1):
        asyncio.run(scenario(tmp_path / str(number), number))


def test_the_odd_one_out_is_named_to_both_and_not_waited_for(tmp_path):
    """Row 10 of the trials: it was refused in every round, waited for and charged each time."""

    async def scenario():
        hub = Hub(tmp_path, n=4, rounds=2)
        coordinator = hub.coordinator()
        hub.start()
        hub.members["site-d"].release = "secagg 0.4.0"
        await coordinator.run()
        (named,) = hub.of(TurnedAway)
        assert named.site == "site-d"
        assert "another release (secagg 0.4.0)" in named.reason
        assert hub.members["site-d"].refused == named.reason
        assert [event.included for event in hub.of(Summed)] == [("site-a", "site-b", "site-c")] * 2
        assert "site-d" not in hub.sent
        hub.close()

    asyncio.run(scenario())


def test_two_hashes_that_begin_alike_are_shown_whole(tmp_path):
    """They were shown as 8 digits each, the same ones, after a bit had flipped further on."""

    async def scenario():
        hub = Hub(tmp_path, n=4)
        coordinator = hub.coordinator()
        hub.start()
        ours = hub.policy.hash().hex()
        hub.members["site-d"].policy_hash = theirs = ours[:-1] + ("1" if ours[-1] == "0" else "0")
        await coordinator.run()
        (named,) = hub.of(TurnedAway)
        assert f"({theirs}) than the coordinator ({ours})" in named.reason
        hub.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("fell", ["marks", "spent"])
def test_marks_or_an_epsilon_that_fell_are_found_and_refused_by_name(tmp_path, fell):
    """Rows 2 and 14 of the trials: also by another process of the coordinator."""

    async def scenario():
        hub = Hub(tmp_path, n=4, rounds=2)
        first = hub.coordinator()
        hub.start()
        hub.members["site-d"].spent = 8.0
        running = asyncio.create_task(first.run())
        while not hub.of(Summed):
            await asyncio.sleep(0.01)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
        hub.line = None
        if fell == "marks":
            hub.stores["site-d"] = type(hub.stores["site-d"])()
        hub.start("site-d")
        hub.members["site-d"].spent = 8.0 if fell == "marks" else 5.1
        await hub.coordinator().run()
        (named,) = hub.of(TurnedAway)
        assert named.site == "site-d"
        assert "wiped, or restored from a copy" in named.reason
        assert hub.of(Summed)[-1].included == ("site-a", "site-b", "site-c")
        hub.close()

    asyncio.run(scenario())


@pytest.mark.parametrize("private", [True, False])
@pytest.mark.parametrize("where", ["journal", "recording", "transcript"])
def test_a_full_disk_is_waited_out_and_costs_nothing(tmp_path, private, where):
    """Row 4 of the trials: the coordinator ended with a traceback."""

    async def scenario():
        hub = Hub(tmp_path, private=private, rounds=1)
        coordinator = hub.coordinator()
        owner, name = {
            "journal": (coordinator.journal, "commit"),
            "recording": (coordinator.driver, "sync"),
            "transcript": (coordinator.transcripts, "write"),
        }[where]
        write, refused = getattr(owner, name), []

        def full(*given):
            if len(refused) < 2:
                refused.append(given)
                raise OSError(errno.ENOSPC, "No space left on device")
            return write(*given)

        setattr(owner, name, full)
        hub.start()
        assert await coordinator.run() == "the study is complete"
        assert len(refused) == 2
        (said,) = [event.text for event in hub.of(Note) if "No space left on device" in event.text]
        assert "this coordinator waits, and goes on by itself" in said
        check(hub)

    asyncio.run(scenario())


def test_transcripts_keep_to_their_quota_the_oldest_go_first_and_two_stay(tmp_path):
    async def scenario():
        hub = Hub(tmp_path, rounds=4, quota=1)
        coordinator = hub.coordinator()
        hub.start()
        await coordinator.run()
        assert [path.name[:4] for path in sorted((tmp_path / "transcripts").glob("*.transcript"))] == ["0003", "0004"]
        said = [event.text for event in hub.of(Note) if "transcripts keep to their quota" in event.text]
        assert [text.split(": ")[1][:4] for text in said] == ["0001", "0002"]
        hub.close()

    asyncio.run(scenario())


def test_a_coordinator_that_gave_up_goes_on_with_the_same_command(tmp_path):
    async def scenario():
        hub = Hub(tmp_path, rounds=2, patience=0.5)
        first = hub.coordinator()
        hub.start()
        finished = first._completed

        async def alone(save, done):
            await finished(save, done)
            hub.kill("site-b")
            hub.kill("site-c")

        first._completed = alone
        with pytest.raises(RunFailedError, match="1 of 3 sites are there"):
            await first.run()
        await asyncio.sleep(0.1)
        assert not hub.members["site-a"].finished.complete
        hub.options["patience"] = 5.0
        again = hub.coordinator()
        hub.start()
        assert await again.run() == "the study is complete"
        assert [event.round for event in hub.of(Summed)] == [1, 2]
        assert all(hub.exact(number) for number in (1, 2))
        assert all(member.finished.complete for member in hub.members.values())
        hub.close()

    asyncio.run(scenario())


def test_a_sum_that_nobody_was_told_of_is_told_by_the_next_process(tmp_path):
    async def scenario():
        hub = Hub(tmp_path, rounds=1)
        first = hub.coordinator()
        hub.start()
        commit = first.journal.commit

        def dies(changes):
            commit(changes)
            if "result" in changes:
                raise Killed

        first.journal.commit = dies
        with pytest.raises(Killed):
            await first.run()
        hub.line = None
        assert not hub.of(Summed)
        assert await hub.coordinator().run() == "the study is complete"
        (told,) = hub.of(Summed)
        assert (told.round, told.included) == (1, ("site-a", "site-b", "site-c"))
        check(hub)

    asyncio.run(scenario())


@pytest.mark.parametrize("step", ["Unmasking", "Result"])
def test_a_member_started_again_around_the_sum_is_not_waited_for_where_it_kept_nothing_to_confirm(tmp_path, step):
    """It was back before the grace ended, and everybody waited for its confirmation until the step's deadline."""

    async def scenario():
        hub = Hub(tmp_path, n=5, rounds=2, step_seconds=3600.0, training_seconds=3600.0, grace=3600.0)
        coordinator = hub.coordinator()

        def again(event):
            if isinstance(event, StepOpened) and (event.round, event.step) == (1, step):
                hub.start("site-e")

        coordinator.listen(again)
        hub.start()
        async with asyncio.timeout(60):
            await coordinator.run()
        assert [len(event.included) for event in hub.of(Summed)] == [5, 5]
        assert [hub.exact(number) for number in (1, 2)] == [True, True]
        hub.close()

    asyncio.run(scenario())


def test_one_that_left_and_one_that_is_away_do_not_end_a_run_that_can_go_on(tmp_path):
    """Only who left for good counts: the run was written down as finished, and the same command did not go on."""

    async def scenario():
        hub = Hub(tmp_path, n=5, rounds=2, patience=0.3)
        first = hub.coordinator()

        def after_round_1(event):
            if isinstance(event, Summed) and event.round == 1:
                hub.members["site-e"].tell(dialogue.Leaving.because("its operator left the run"))
                hub.kill("site-d")
                hub.kill("site-e")

        first.listen(after_round_1)
        hub.start()
        with pytest.raises(RunFailedError, match="start the missing sites"):
            await first.run()
        hub.line = None
        hub.start("site-d")
        assert await hub.coordinator().run() == "the study is complete"
        assert hub.of(Summed)[-1].included == ("site-a", "site-b", "site-c", "site-d")
        hub.close()

    asyncio.run(scenario())


def test_what_a_member_said_twice_before_it_had_the_round_start_leaves_it_out_of_no_round(tmp_path):
    """The second of two early `Ready` counted as an answer to the start: the step closed without its keys."""

    async def scenario():
        hub = Hub(tmp_path, n=4, rounds=2, **UNHURRIED)
        coordinator = hub.coordinator()
        hub.start()
        struck = hub.members["site-d"]
        take = struck.driver.receive

        def late(data):
            """The start of round 2 comes when the others have answered it, and after what is sent here."""
            if struck.asked == (2, 0) and not struck.driver.live:
                struck.asked = (1, 0)
                struck.ready()
                struck.ready()
                struck.asked = (2, 0)
            return take(data)

        struck.driver.receive = late
        assert await asyncio.wait_for(coordinator.run(), 20) == "the study is complete"
        assert [event.included for event in hub.of(Summed)] == [tuple(hub.keys)] * 2
        assert all(hub.exact(number) for number in (1, 2))
        hub.close()

    asyncio.run(scenario())


def test_a_member_that_was_asked_and_is_in_no_attempt_is_not_waited_for(tmp_path):
    """Such as one whose own marks keep it out: it answers the start with `Ready`."""

    async def scenario():
        hub = Hub(tmp_path, n=4, **UNHURRIED)
        coordinator = hub.coordinator()
        hub.start()
        struck = hub.members["site-d"]
        struck.driver.receive = lambda data: struck.ready() or []
        assert await asyncio.wait_for(coordinator.run(), 20) == "the study is complete"
        assert [event.included for event in hub.of(Summed)] == [("site-a", "site-b", "site-c")]
        hub.close()

    asyncio.run(scenario())


def test_a_member_that_says_the_same_for_ever_fills_no_log(tmp_path):
    async def scenario():
        hub = Hub(tmp_path, n=4, rounds=1, patience=2.0)
        coordinator = hub.coordinator()
        hub.start()
        running = asyncio.create_task(coordinator.run())
        while hub.line is None:
            await asyncio.sleep(0)
        for number in range(500):
            hub.members["site-d"].tell(dialogue.Failed(reason=f"again {number}"))
        assert await running == "the study is complete"
        told = [event.text for event in hub.of(Note) if "site-d" in event.text]
        assert len(told) <= 2 * NOTES  # before the round, and in it
        assert "what else site-d does before the next round is not told" in told
        hub.close()

    asyncio.run(scenario())


def test_a_member_that_comes_and_goes_for_ever_fills_no_log(tmp_path):
    async def scenario():
        hub = Hub(tmp_path, n=4, rounds=1, patience=2.0)
        coordinator = hub.coordinator()
        hub.start()
        running = asyncio.create_task(coordinator.run())
        while hub.line is None:
            await asyncio.sleep(0)
        for _ in range(500):
            hub.line.goes("site-d")
            hub.line.comes("site-d")
        hub.line.goes("site-d")
        assert await running == "the study is complete"
        told = [event for event in hub.events if isinstance(event, Connected | Disconnected) and event.site == "site-d"]
        assert NOTES <= len(told) <= 2 * NOTES  # before the round, and in it
        assert isinstance(told[-1], Disconnected)
        hub.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(("first", "then"), [("none", "whole"), ("hashes", "whole"), ("whole", "none")])
def test_a_round_is_kept_as_it_was_begun_and_the_next_one_as_the_command_says_now(tmp_path, first, then):
    """Half a transcript was published of a round that began without one."""

    async def scenario():
        hub = Hub(tmp_path, rounds=2, transcripts=first)
        hub.start()
        coordinator = hub.coordinator()
        commit = coordinator.journal.commit

        def killed(changes):
            commit(changes)
            if "reports" in changes:  # the masked inputs come next
                raise Killed

        coordinator.journal.commit = killed
        with pytest.raises(Killed):
            await coordinator.run()
        hub.line = None
        hub.options["transcripts"] = then
        assert await hub.coordinator().run() == "the study is complete"
        check(hub)
        kept = sorted((tmp_path / "transcripts").glob("*.transcript"))
        assert [path.name[:4] for path in kept] == [
            number for number, how in (("0001", first), ("0002", then)) if how != "none"
        ]
        assert verify(kept, hub.policy, hub.pinned).violation is None

    asyncio.run(scenario())


def test_a_member_that_drips_holds_a_step_no_longer_than_its_largest_message_may_take(tmp_path, monkeypatch):
    """It sends a byte in time for each look, for ever; here the largest message may take a second."""

    async def scenario():
        hub = Hub(tmp_path, n=4, rounds=1, step_seconds=0.5, training_seconds=0.5)
        coordinator = hub.coordinator()
        coordinator.limit = SLOWEST_BYTES_PER_SECOND
        dripping = SimpleNamespace(still=0.0, seconds_left=lambda: math.inf)
        coordinator.mailbox.link = lambda site: SimpleNamespace(
            held=0, uploading=dripping if site == "site-d" else None, downloading=None
        )
        hub.start()
        monkeypatch.setattr(hub.members["site-d"], "_do", lambda actions: None)  # it says nothing whole
        assert await asyncio.wait_for(coordinator.run(), 20) == "the study is complete"
        assert [event.included for event in hub.of(Summed)] == [("site-a", "site-b", "site-c")]
        hub.close()

    asyncio.run(scenario())


@pytest.mark.parametrize(
    ("said", "told"),
    [
        ("database is locked", "another coordinator has it open"),
        ("locking protocol", "keep the folder on a local disk"),
        ("disk I/O error", "check the disk and the rights"),
    ],
)
def test_a_journal_that_cannot_be_opened_says_what_to_do(tmp_path, monkeypatch, said, told):
    """`locking protocol` is what SQLite says on a network share."""

    class Share(sqlite3.Connection):
        def execute(self, statement, *values):
            raise sqlite3.OperationalError(said)

    monkeypatch.setattr("secagg.service.journal.sqlite3.connect", partial(sqlite3.connect, factory=Share))
    with pytest.raises(ConfigError, match=f"journal: .*{told}"):
        Journal(tmp_path / "journal", {"run": "r"})


def test_a_journal_of_another_version_is_refused_with_what_to_do(tmp_path):
    Journal(tmp_path / "journal", {"run": "r"}).close()
    with closing(sqlite3.connect(tmp_path / "journal")) as other:
        other.execute("PRAGMA user_version = 1")
    with pytest.raises(ConfigError, match="another version of secagg; finish its run with the version that began it"):
        Journal(tmp_path / "journal", {"run": "r"})


def test_a_coordinator_that_is_stopped_while_it_gives_up_stops_its_server(tmp_path, monkeypatch):
    """A server that was not stopped may hang the interpreter."""

    async def scenario():
        hub = Hub(tmp_path, n=3)
        coordinator, stopped = hub.coordinator(), []

        async def stop(*seconds):
            stopped.append(seconds)

        async def cancelled():
            raise asyncio.CancelledError

        monkeypatch.setattr(coordinator.mailbox, "stop", stop)
        monkeypatch.setattr(coordinator, "_part", cancelled)
        monkeypatch.setattr(coordinator, "_taking", lambda: {"site-a": 0})
        with pytest.raises(asyncio.CancelledError):
            await coordinator._give_up(RunFailedError("nobody came"))
        assert stopped == [(0.5,)]
        hub.close()

    asyncio.run(scenario())


def test_a_journal_that_is_closed_lets_a_thread_finish_what_it_writes(tmp_path):
    """A coroutine that is cancelled leaves its thread behind; SQLite does not survive a file closed under it."""
    journal = Journal(tmp_path / "journal", {"run": "r"})
    writing, go_on = threading.Event(), threading.Event()

    class Slow(dict):
        def items(self):
            writing.set()
            go_on.wait(10)
            return super().items()

    writer = threading.Thread(target=journal.commit, args=(Slow(key=b"value"),))
    closer = threading.Thread(target=journal.close)
    writer.start()
    writing.wait(10)
    closer.start()
    closer.join(0.2)
    assert closer.is_alive()
    go_on.set()
    writer.join(10)
    closer.join(10)
    with pytest.raises(OSError, match="closed"):
        journal.commit({"key": b"later"})
    again = Journal(tmp_path / "journal", {"run": "r"})
    assert again.get("key") == b"value"
    again.close()
