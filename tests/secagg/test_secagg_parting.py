"""The end of a run of many rounds: each member gets what it lacks, as it takes it, and a row is read once for all."""

import asyncio
import json

import pytest

from secagg.context import GENESIS, next_head
from secagg.errors import ConfigError
from secagg.messages import Receipt
from secagg.rpc.frames import Received, Traffic
from secagg.rpc.peer import Peer
from secagg.service import dialogue
from secagg.service.account import Account
from secagg.service.ended import Ended
from secagg.service.events import Note
from secagg.service.parting import ACCOUNTS_AT_ONCE, WAITING_BYTES
from secagg.service.spans import ALL, spans, with_number, within
from secagg.service.standing import ACCOUNT
from tests.support.service import Hub

ROUNDS = 400
ROW = bytes(70_000)
"""As long as the account of a round of 100 members."""


def receipts_of(hub):
    head, found = GENESIS, []
    for number in range(1, ROUNDS + 1):
        after = next_head(head, bytes(32), bytes(32), bytes(32))
        receipt = Receipt(hub.run, number, bytes(32), bytes(32), bytes(32), head, after)
        found.append(receipt.sign(hub.key))
        head = after
    return tuple(found)


def finished_run(hub):
    """A coordinator whose earlier process finished a long run and told nobody."""
    coordinator = hub.coordinator()
    coordinator.book.receipts = receipts_of(hub)
    rows = {f"{ACCOUNT}{number:06d}": ROW for number in range(1, ROUNDS + 1)}
    told = {"reason": "the study is complete", "complete": True}
    coordinator.journal.commit({**rows, "finished": json.dumps(told).encode()})
    coordinator.ended, coordinator.complete = told["reason"], True
    coordinator.last_word = coordinator._word(coordinator.ended, True, final=True)
    return coordinator


class Slow:
    """Members that take a message now and then, and never hold more than the mailbox allows."""

    def __init__(self, hub, coordinator, lacking):
        self.hub, self.mailbox, self.most, self.got = hub, coordinator.mailbox, 0, {}
        self.peers = {site: Peer(site, coordinator.limit) for site in hub.keys}
        self.introductions = {}
        self.mailbox.send = self.send
        self.mailbox.link = lambda site: self.peers[site]
        self.mailbox.traffic = lambda site: Traffic(down=self.peers[site].down)
        for site in hub.keys:
            ready = dialogue.Ready(
                release=hub.release,
                run=hub.run,
                task=(bytes([7]) * 32).hex(),
                policy=hub.policy.hash().hex(),
                roster=hub.pinned.hash().hex(),
                saw=list(spans(set(range(1, ROUNDS + 1)) - lacking[site])),
            )
            self.got[site] = []
            hub.members[site] = type("Quiet", (), {"meets": lambda self: None})()
            self.introductions[site] = ready

    def send(self, site, kind, payload):
        assert self.peers[site].post(kind, payload)
        self.most = max(self.most, self.peers[site].untaken)

    async def take(self):
        while True:
            await asyncio.sleep(0.001)
            for site, peer in self.peers.items():
                if peer.queue:
                    message = peer.queue[0]
                    peer.acknowledge(message.sequence, 0)
                    peer.down += len(message.payload)
                    self.got[site].append((message.kind, len(message.payload)))
                    if message.kind == dialogue.Finished.kind:
                        self.tell(site, dialogue.Done())

    def tell(self, site, message):
        self.mailbox.inbox.put_nowait(Received(site, message.kind, message.packed()))


def test_each_member_gets_the_accounts_that_it_lacks_as_it_takes_them_and_each_is_read_once(tmp_path):
    async def scenario():
        hub = Hub(tmp_path, n=3)
        coordinator = finished_run(hub)
        every = set(range(1, ROUNDS + 1))
        lacking = {"site-a": every, "site-b": every, "site-c": {7, ROUNDS}}
        slow, read, plain = Slow(hub, coordinator, lacking), [], coordinator.journal.get
        coordinator.journal.get = lambda key: read.append(key) or plain(key)
        running = asyncio.create_task(coordinator.run())
        taking = asyncio.create_task(slow.take())
        await asyncio.sleep(0.05)
        for site, ready in slow.introductions.items():
            slow.tell(site, ready)
        assert await asyncio.wait_for(running, 60) == "the study is complete"
        taking.cancel()
        for site, lacks in lacking.items():
            kinds = [kind for kind, _ in slow.got[site]]
            assert kinds == [dialogue.Closing.kind, *[Account.kind] * len(lacks), dialogue.Finished.kind]
        assert slow.most < WAITING_BYTES + (ACCOUNTS_AT_ONCE + 1) * (len(ROW) + 5000)
        rows = [key for key in read if key.startswith(ACCOUNT)]
        assert len(rows) <= 1.2 * ROUNDS, len(rows)
        assert not any("did not fetch" in event.text and "later" in event.text for event in hub.of(Note))

    asyncio.run(scenario())


def test_spans_hold_the_numbers_that_they_were_made_of():
    assert spans([]) == ()
    assert spans([5, 1, 2, 3, 9]) == ((1, 3), (5, 5), (9, 9))
    found = ((1, 3), (5, 5))
    assert [number for number in range(8) if within(found, number)] == [1, 2, 3, 5]
    assert with_number(found, 6) == ((1, 3), (5, 6))
    assert with_number(found, 2) == found
    assert with_number((), 4) == ((4, 4),)
    assert within(ALL, 10_000)


def test_a_run_that_ended_is_remembered_apart_from_others_and_a_spoilt_record_is_named(tmp_path):
    assert Ended.of(tmp_path, "one") is None
    kept = Ended("the study is complete", True, "/runs/x")
    kept.keep(tmp_path / "state", "one")
    assert Ended.of(tmp_path / "state", "one") == kept
    assert Ended.of(tmp_path / "state", "other") is None
    (path,) = (tmp_path / "state").iterdir()
    assert path.stat().st_mode & 0o077 == 0
    path.write_text("{")
    with pytest.raises(ConfigError, match="says how a run ended and cannot be read"):
        Ended.of(tmp_path / "state", "one")
