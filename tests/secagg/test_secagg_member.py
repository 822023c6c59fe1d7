"""The engine of a member: what it sends again, when it trains, when it is busy, and how it ends."""

import asyncio

import numpy as np
import pytest

from secagg import wire
from secagg.driver import Completed
from secagg.messages import AdvertiseKeys, Confirmation, EncryptedShares, MaskedInput
from secagg.quantize import dequantize
from secagg.service import dialogue
from secagg.service import member as engine
from secagg.service.application import Wish
from secagg.service.errors import RunFailedError, StoppedError
from tests.support.members import Federation


def run(scenario):
    """A scenario to its end; what hangs has failed."""
    return asyncio.run(asyncio.wait_for(scenario(), 30))


def protocol(federation: Federation, me: str) -> list:
    return [wire.decode_from_client(message.data) for message in federation.said(me, dialogue.Protocolled)]


def exact(federation: Federation, done: Completed) -> bool:
    cohort = federation.cohort
    return np.array_equal(done.total, dequantize(cohort.plain_sum(done.included), cohort.policy))


def test_two_rounds_end_in_exact_sums_and_everybody_ends_with_the_last_word(tmp_path):
    async def scenario():
        async with Federation(tmp_path) as federation:
            await federation.all_ready()
            for number in (1, 2):
                federation.open()
                await federation.until(lambda n=number: all(len(site.sums) == n for site in federation.sites.values()))
            assert all(exact(federation, done) for done in federation.of(Completed))
            for me in federation.cohort.ids:
                federation.send(me, dialogue.Finished(reason="the run is complete", complete=True))
            ended = await asyncio.gather(*federation.tasks.values())
            assert [last.complete for last in ended] == [True] * 4
            assert all(federation.said(me, dialogue.Done) for me in federation.cohort.ids)
            first = federation.said("site-a", dialogue.Ready)
            assert [ready.joined for ready in first] == [(0, 0), (1, 0), (2, 0)]
            assert [ready.asked for ready in first] == [(0, 0), (1, 0), (2, 0)]
            assert [ready.inside for ready in first] == [None] * 3

    run(scenario)


def test_a_coordinator_that_is_killed_as_it_tells_the_end_and_comes_back_hears_who_has_it(tmp_path, monkeypatch):
    """A member gave up after three seconds, and the next process of the coordinator waited for it for ever."""
    monkeypatch.setattr(engine, "FAREWELL_SECONDS", 0.05)

    async def scenario():
        async with Federation(tmp_path) as federation:
            await federation.all_ready()
            federation.lines["site-a"].down.clear()
            federation.send("site-a", dialogue.Finished(reason="the run is complete", complete=True, final=True))
            _, waiting = await asyncio.wait([federation.tasks["site-a"]], timeout=0.5)
            assert waiting, "it has not said that it has the end"
            federation.lines["site-a"].down.set()
            assert (await federation.tasks["site-a"]).complete
            assert federation.said("site-a", dialogue.Done)

    run(scenario)


@pytest.mark.parametrize("step", [AdvertiseKeys, EncryptedShares, MaskedInput, Confirmation])
def test_a_coordinator_that_dies_in_any_step_gets_the_same_bytes_again_and_the_round_ends(tmp_path, step):
    async def scenario():
        async with Federation(tmp_path) as federation:
            await federation.all_ready()
            lost = "site-c"
            taken = federation._take
            before = []

            def losing(me, kind, payload):
                """The coordinator dies with what site-c sent in this step in its memory."""
                if kind == "secagg" and me == lost and isinstance(wire.decode_from_client(payload), step):
                    before.append(payload)
                    if len(before) == 1:
                        return
                taken(me, kind, payload)

            federation._take = losing
            federation.open()
            await federation.until(lambda: before)
            for _ in range(20):  # all that can come without it has come
                await asyncio.sleep(0.005)
            federation.restart()
            await federation.until(lambda: len(before) > 1)
            assert set(before) == {before[0]}
            await federation.until(lambda: len(federation.sites[lost].sums) == 1)
            done = federation.of(Completed)[-1]
            assert exact(federation, done)
            assert lost in done.included
            assert federation.sites[lost].trained == [1]
            again = federation.said(lost, dialogue.Ready)
            assert (1, 0) in [ready.inside for ready in again] or step is Confirmation

    run(scenario)


def test_a_coordinator_that_has_forgotten_the_attempt_opens_the_next_one_and_nothing_is_trained_twice(tmp_path):
    async def scenario():
        async with Federation(tmp_path) as federation:
            await federation.all_ready()
            federation.asleep.add("site-d")  # so that the step waits
            for me in federation.cohort.ids:
                federation.sites[me].may_train.clear()
            federation.open()
            await federation.until(lambda: protocol(federation, "site-a"))
            federation.asleep.clear()
            book = federation.driver.book
            federation.restart(keeps=False)
            federation.driver.book.restore(book.saved())
            federation.open()
            await federation.until(lambda: all(site.trained == [1] for site in federation.sites.values()))
            federation.driver.abort("an attempt that ends while everybody trains")
            federation._serve([])
            book = federation.driver.book
            federation.restart(keeps=False)
            federation.driver.book.restore({**book.saved(), "number": 1})
            for site in federation.sites.values():
                site.may_train.set()
            federation.open()
            await federation.until(lambda: federation.of(Completed))
            assert exact(federation, federation.of(Completed)[0])
            assert [site.trained for site in federation.sites.values()] == [[1]] * 4

    run(scenario)


def test_a_start_that_is_found_after_a_suspension_is_answered_and_costs_no_training(tmp_path):
    """Four rounds were charged for one contribution."""

    async def scenario():
        async with Federation(tmp_path) as federation:
            await federation.all_ready()
            federation.deaf.add("site-d")  # what it says comes too late, each time
            for number in (1, 2, 3):
                federation.open()
                await federation.until(lambda: federation.driver.awaited == {"site-d"})
                federation._serve(federation.driver.tick(federation.driver.deadline))
                await federation.until(lambda n=number: len(federation.sites["site-a"].sums) == n)
            assert federation.sites["site-d"].trained == []
            federation.deaf.clear()
            federation.open()
            await federation.until(lambda: len(federation.of(Completed)) == 4)
            assert federation.sites["site-d"].trained == [4]

    run(scenario)


def test_while_it_evaluates_a_member_says_that_it_is_busy_and_joins_nothing(tmp_path):
    async def scenario():
        async with Federation(tmp_path) as federation:
            slow = federation.sites["site-b"]
            slow.evaluates = True
            slow.may_evaluate.clear()
            await federation.all_ready()
            federation.open()
            await federation.until(lambda: federation.said("site-b", dialogue.Busy))
            federation.open()
            await federation.until(lambda: len(federation.said("site-b", dialogue.Busy)) == 2)
            assert "evaluation" in federation.said("site-b", dialogue.Busy)[0].reason
            assert slow.trained == [1]
            assert len([m for m in protocol(federation, "site-b") if isinstance(m, AdvertiseKeys)]) == 1
            federation.driver.abort("nobody waits for it")
            ready = len(federation.said("site-b", dialogue.Ready))
            slow.may_evaluate.set()
            await federation.until(lambda: len(federation.said("site-b", dialogue.Ready)) > ready)

    run(scenario)


def test_the_last_word_waits_for_an_evaluation_that_is_still_wanted(tmp_path):
    async def scenario():
        async with Federation(tmp_path) as federation:
            slow = federation.sites["site-b"]
            slow.evaluates = True
            slow.may_evaluate.clear()
            await federation.all_ready()
            federation.open()
            await federation.until(lambda: slow.sums)
            federation.send("site-b", dialogue.Finished(reason="over", complete=False))
            await asyncio.sleep(0.05)
            assert not federation.tasks["site-b"].done()
            slow.may_evaluate.set()
            assert not (await federation.tasks["site-b"]).complete
            assert slow.evaluated == [1]

    run(scenario)


def test_an_operator_pauses_goes_on_and_leaves(tmp_path):
    async def scenario():
        async with Federation(tmp_path) as federation:
            own = federation.sites["site-d"]
            await federation.all_ready()
            own.wanted = Wish.PAUSE
            await federation.until(lambda: federation.said("site-d", dialogue.Busy))
            federation.open()
            await federation.until(lambda: federation.driver.awaited == {"site-d"})
            federation._serve(federation.driver.tick(federation.driver.deadline))
            await federation.until(lambda: federation.of(Completed))
            assert (own.trained, protocol(federation, "site-d")) == ([], [])
            own.wanted = Wish.GO_ON
            await federation.until(lambda: len(federation.said("site-d", dialogue.Ready)) == 2)
            assert federation.said("site-d", dialogue.Ready)[-1].asked == (0, 0)
            federation.open()
            await federation.until(lambda: own.sums)
            own.wanted = Wish.LEAVE
            with pytest.raises(StoppedError, match="left the run"):
                await federation.tasks.pop("site-d")
            assert "operator" in federation.said("site-d", dialogue.Leaving)[0].reason

    run(scenario)


def test_what_an_operator_decides_before_the_coordinator_answers_holds_from_its_first_word(tmp_path):
    async def scenario():
        async with Federation(tmp_path) as federation:
            for me, wish in (("site-a", Wish.PAUSE), ("site-b", Wish.LEAVE)):
                await federation.kill(me)
                federation.heard[me].clear()
                federation.sites[me].wanted = wish
                federation.start(me)
            with pytest.raises(StoppedError, match="the coordinator was told"):
                await federation.tasks.pop("site-b")
            await federation.until(lambda: federation.said("site-a", dialogue.Busy))
            assert not federation.said("site-a", dialogue.Ready)
            assert not federation.said("site-b", dialogue.Ready)
            assert federation.said("site-b", dialogue.Leaving)

    run(scenario)


def test_who_leaves_while_no_coordinator_answers_ends_and_does_not_say_that_it_was_told(tmp_path, monkeypatch):
    monkeypatch.setattr(engine, "UNANSWERED_SECONDS", 0.01)
    monkeypatch.setattr(engine, "FAREWELL_SECONDS", 0.01)

    async def scenario():
        async with Federation(tmp_path) as federation:
            federation.lines["site-a"].down.clear()
            await federation.until(lambda: federation.sites["site-a"].awaited)
            federation.sites["site-a"].wanted = Wish.LEAVE
            with pytest.raises(StoppedError, match="does not answer: the same command tells it later"):
                await federation.tasks.pop("site-a")

    run(scenario)


def test_a_cut_is_told_with_its_reason_and_so_is_its_end(tmp_path):
    async def scenario():
        async with Federation(tmp_path) as federation:
            await federation.all_ready()
            own, told = federation.sites["site-a"], federation.lines["site-a"].on_trouble
            assert own.met == 1
            told("nothing listens there")
            assert own.notes == ["nothing listens there"]
            told("")
            assert own.met == 2

    run(scenario)


def test_who_cannot_pay_leaves_before_anything_of_the_attempt_was_sent(tmp_path):
    async def scenario():
        async with Federation(tmp_path) as federation:
            federation.sites["site-d"].poor = True
            await federation.all_ready()
            federation.open()
            await federation.until(lambda: federation.said("site-d", dialogue.Leaving))
            assert (federation.sites["site-d"].trained, protocol(federation, "site-d")) == ([], [])
            federation.restart()
            await federation.until(lambda: len(federation.said("site-d", dialogue.Leaving)) == 2)

    run(scenario)


def test_rubbish_is_passed_over_and_a_lie_ends_the_member_with_a_sentence(tmp_path):
    async def scenario():
        async with Federation(tmp_path) as federation:
            await federation.all_ready()
            line = federation.lines["site-a"].box
            for kind in ("round", "account", "closing", "awaiting", "finished", "a kind of tomorrow"):
                line.put_nowait(dialogue_of(kind, b"\x00rubbish"))
            federation.open()
            await federation.until(lambda: federation.sites["site-a"].sums)
            assert len(federation.sites["site-a"].notes) == 5
            forged = federation.driver.book.start(bytes(32))
            federation.send("site-a", dialogue.Opened(forged))
            with pytest.raises(RunFailedError, match="C-23"):
                await federation.tasks.pop("site-a")
            assert "C-23" in federation.said("site-a", dialogue.Failed)[0].reason

    run(scenario)


def dialogue_of(kind: str, payload: bytes):
    from secagg.rpc.frames import Received

    return Received("", kind, payload)


def test_nothing_leaves_that_the_application_was_not_told_of_before(tmp_path):
    async def scenario():
        async with Federation(tmp_path) as federation:
            await federation.all_ready()
            federation.open()
            await federation.until(lambda: federation.of(Completed))
            for me, site in federation.sites.items():
                assert site.records[: len(federation.lines[me].sent)] == federation.lines[me].sent

    run(scenario)


def test_a_start_that_comes_twice_from_one_coordinator_doubles_no_message(tmp_path):
    """Each message was sent twice after it, the masked input too: repeated replies were answered again."""

    async def scenario():
        async with Federation(tmp_path) as federation:
            await federation.all_ready()
            send = federation.send

            def twice(me, message):
                send(me, message)
                if isinstance(message, dialogue.Opened):
                    send(me, message)

            federation.send = twice
            federation.open()
            await federation.until(lambda: all(site.sums for site in federation.sites.values()))
            for me in federation.cohort.ids:
                sent = [type(message) for message in protocol(federation, me)]
                assert len(sent) == len(set(sent)) == 7

    run(scenario)
