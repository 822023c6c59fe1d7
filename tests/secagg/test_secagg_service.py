"""The coordinator of the service: killed around every write, and exact all the same; who is waited for, and who not."""

import asyncio

import pytest

from secagg.service.events import Burned, Resumed, Summed, TurnedAway
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
    told = [event.round for event in hub.of(Summed)]  # one that died right after the write told nobody
    assert len(set(told)) == len(told)
    assert all(member.finished.complete for member in hub.members.values())
    if not hub.private:
        verdict = verify(sorted((hub.folder / "transcripts").glob("*.transcript")), hub.policy, hub.pinned)
        assert (verdict.status, len(verdict.rounds)) == ("holds", hub.rounds)
    hub.close()


@pytest.mark.parametrize("private", [True, False])
def test_a_coordinator_that_dies_after_every_second_write_goes_on_and_every_sum_is_exact(tmp_path, private):
    async def scenario():
        hub = Hub(tmp_path, private=private, rounds=2)
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
        hub = Hub(folder, private=private, rounds=2)
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
