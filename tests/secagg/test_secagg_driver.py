"""Drivers of both sides: whole runs over bytes with stragglers, rubbish, retries, transcripts and deadlines."""

import copy
import pickle
from collections import deque
from dataclasses import replace

import numpy as np
import pytest

import secagg
from secagg import (
    AbortedError,
    ClientDriver,
    IllegalTransitionError,
    InconsistentViewError,
    MalformedMessageError,
    MemoryStore,
    RoundBook,
    ServerDriver,
    SigningKey,
    wire,
)
from secagg.driver import (
    Completed,
    Exposed,
    Failed,
    Joined,
    NeedInput,
    Published,
    Refused,
    Retrying,
    Save,
    Send,
    Silent,
)
from secagg.messages import Abort, AdvertiseKeys, Confirmation, EncryptedShares, Result, RoundStart, UnmaskingShares
from secagg.prg import Stream
from secagg.quantize import dequantize
from secagg.transcript_files import Recorder
from tests.support.cohort import RUN, SENDING, SERVER_KEY, Cohort, Play
from tests.support.hostile import secrets_of

MODEL, TASK = bytes([1]) * 32, bytes([2]) * 32


class World:
    """A server and clients over bytes; who is in `dead` neither hears nor speaks, and `says` changes what is said."""

    def __init__(self, n=4, private=True, record=None, **options):
        self.cohort = cohort = Cohort(n, length=8, private=private)
        self.book = RoundBook(RUN, TASK, SERVER_KEY, cohort.policy.max_corrupt)
        self.server = ServerDriver(cohort.policy, cohort.roster, self.book, step_seconds=10, record=record, **options)
        self.clients = {me: self.client(me) for me in cohort.ids}
        self.dead, self.late, self.now = set(), set(), 0.0
        self.says = lambda me, data: data
        self.told = {me: [] for me in cohort.ids}
        self.heard, self.sent, self.mail = [], [], deque()

    def client(self, me, **options):
        cohort = self.cohort
        driver = ClientDriver(
            *(cohort.policy, me, cohort.keys[me], cohort.roster, cohort.stores[me]),
            **{"training_run": RUN, "task_hash": TASK, "private": cohort.private, **options},
        )
        driver.model_hash = MODEL
        return driver

    def provide(self, me):
        return self.clients[me].provide(self.cohort.updates[me], f"event of {me}", Stream.seeded(7, me))

    def begin(self, **options):
        self.serve(self.server.begin(MODEL, now=self.now, **options))

    def serve(self, actions):
        """Do what the server's driver says, and all that follows from it."""
        self._take("", actions)
        self.run()

    def hear(self, me, actions):
        """The same of a client's driver."""
        self._take(me, actions)
        self.run()

    def run(self):
        while self.mail:
            me, to, data = self.mail.popleft()
            if to:
                self._take(to, self.clients[to].receive(data, self.now))
            else:
                self._take("", self.server.receive(me, data, self.now))

    def _take(self, me, actions):
        for action in actions:
            if isinstance(action, Send):
                self.sent += [action] if not me else []
                said = self.says(me, action.data) if me else action.data
                if said is not None and self.dead.isdisjoint((me, action.to)):
                    self.mail.append((me, action.to, said))
            else:
                (self.told[me] if me else self.heard).append(action)
                if isinstance(action, Joined) and not action.provided and me not in self.late:
                    self._take(me, self.provide(me))

    def wait(self):
        """Let time go by until nothing is waited for."""
        while (deadline := self.server.deadline) is not None:
            self.now = deadline
            self.serve(self.server.tick(self.now))

    def of(self, kind):
        return [action for action in self.heard if isinstance(action, kind)]

    def exact(self, done):
        return np.array_equal(done.total, dequantize(self.cohort.plain_sum(done.included), self.cohort.policy))


def test_a_round_ends_in_the_same_sum_on_both_sides():
    world = World()
    world.begin()
    (done,) = world.of(Completed)
    assert world.exact(done)
    assert done.included == tuple(world.cohort.ids)
    for told in world.told.values():
        joined, completed = told
        assert joined == Joined(1, 0, MODEL)
        assert np.array_equal(completed.total, done.total)
        assert (completed.included, completed.receipt) == (done.included, done.receipt)
    assert (world.server.deadline, world.server.running, world.book.number) == (None, False, 2)
    world.begin()
    assert [done.receipt.round_number for done in world.of(Completed)] == [1, 2]


def test_the_book_is_saved_before_an_attempt_is_announced_and_after_its_sum():
    world = World()
    first = world.server.begin(MODEL)
    assert [type(action) for action in first] == [Save, *[Send] * 4]
    world.serve(first)
    kinds = [type(action) for action in world.heard]
    assert kinds == [Save, Save, Completed]
    again = RoundBook(RUN, TASK, SERVER_KEY, 1)
    again.restore(world.heard[1].book)
    assert (again.number, again.receipts) == (2, world.book.receipts)


def test_an_update_may_come_after_the_reports_and_is_asked_for():
    world = World()
    world.late = {"site-b"}
    world.begin()
    assert world.told["site-b"] == [Joined(1, 0, MODEL), NeedInput(1, 0)]
    assert not world.of(Completed)
    world.hear("site-b", world.provide("site-b"))
    assert world.exact(world.of(Completed)[0])


def test_a_straggler_and_rubbish_cost_their_senders_the_round_and_nobody_else():
    world = World(6)
    world.dead = {"site-c"}
    world.says = lambda me, data: b"rubbish" if me == "site-f" else data
    world.begin()
    assert {action.sender for action in world.of(Refused)} == {"site-f"}
    assert world.server.awaited == {"site-c"}, "nobody waits for more rubbish"
    assert world.server.tick(world.server.deadline - 0.001) == []
    world.wait()
    (done,) = world.of(Completed)
    assert world.exact(done)
    assert done.included == ("site-a", "site-b", "site-d", "site-e")
    assert world.of(Silent)[0] == Silent("AdvertiseKeys", ("site-c", "site-f"))
    world.serve(world.server.receive("site-c", b"late rubbish"))
    world.serve(world.server.receive("stranger", b""))
    assert len(world.of(Completed)) == 1


@pytest.mark.parametrize("kind", ["AdvertiseKeys", "EncryptedShares", "ShareReport", "MaskedInput", "Attestation"])
def test_a_message_replaced_by_another_clients_is_refused_and_the_others_go_on(kind):
    world = World(5)
    kept = {}

    def says(me, data):
        name = type(wire.decode_from_client(data)).__name__
        kept.setdefault(name, data)
        return kept[name] if me == "site-e" and name == kind else data

    world.says = says
    world.begin()
    world.wait()
    (done,) = world.of(Completed)
    assert world.exact(done)
    assert world.of(Refused)[0].sender == "site-e"


def test_who_is_gone_is_not_waited_for():
    world = World(5)
    world.dead = {"site-c"}
    world.begin()
    assert world.server.awaited == {"site-c"}
    world.serve(world.server.gone("site-c"))
    assert world.exact(world.of(Completed)[0])
    world.dead = set()
    world.server.back("site-c")
    world.begin()
    assert world.of(Completed)[1].included == tuple(world.cohort.ids)


@pytest.mark.parametrize("earlier", [{}, {"now": 3.0}], ids=["without a time", "a clock that went back"])
def test_a_call_without_a_time_or_with_an_earlier_one_does_not_end_the_next_step(earlier):
    world = World(5)
    world.dead, world.now = {"site-e"}, 1000.0
    world.clients["site-a"] = client = world.client("site-a", patience=5)
    world.begin()
    assert world.server.awaited == {"site-e"}
    actions = world.server.gone("site-e", **earlier)
    assert [type(action) for action in actions] == [Silent, *[Send] * 4]
    assert world.server.deadline == 1010.0
    assert world.server.tick(1009.0) == []
    roster = actions[1].data
    client.tick(1001.0)
    client.receive(roster, **earlier)
    assert client.deadline == 1006.0


def test_only_those_who_are_there_are_asked():
    world = World(5)
    world.begin(clients=world.cohort.ids[:4])
    assert world.of(Completed)[0].included == tuple(world.cohort.ids[:4])
    world.serve(world.server.begin(MODEL, clients=world.cohort.ids[:3]))
    (failed,) = world.of(Failed)
    assert isinstance(failed.error, secagg.TooFewClientsError)
    assert (world.book.number, world.book.attempt) == (2, 0), "no number was used up"
    with pytest.raises(secagg.ConfigError, match="roster"):
        world.server.begin(MODEL, clients=["stranger"])


# --- an attempt without a sum -------------------------------------------------------------------------------------


def bad_shares(cohort, dealer):
    """The dealer seals rubbish for the first of its peers."""

    def says(me, data):
        message = wire.decode_from_client(data)
        if me != dealer or not isinstance(message, EncryptedShares):
            return data
        first = replace(message.bundles[0], shares=bytes(len(message.bundles[0].shares)))
        changed = EncryptedShares(message.header, (first, *message.bundles[1:]))
        header = replace(changed.header, bundles_root=changed.tree[0])
        return wire.encode(EncryptedShares(header.sign(cohort.keys[dealer]), changed.bundles))

    return says


def test_a_complaint_is_followed_by_the_next_attempt_without_one_end_of_it_and_with_the_same_updates():
    world = World(5)
    world.says = bad_shares(world.cohort, "site-c")
    world.begin()
    world.wait()
    assert "site-a contradicts site-c" in world.of(Retrying)[0].reason
    (done,) = world.of(Completed)
    assert world.exact(done)
    assert done.included == ("site-a", "site-b", "site-d", "site-e"), "a second complaint shows which end it was"
    aborts = [action for action in world.sent if isinstance(wire.decode_from_server(action.data), Abort)]
    assert {action.to for action in aborts} == set(world.cohort.ids)
    for me in done.included:
        joined = [action for action in world.told[me] if isinstance(action, Joined)]
        assert [action.provided for action in joined] == [False, *[True] * (len(joined) - 1)], "no second update"
        assert isinstance(world.told[me][1], Failed)
        assert isinstance(world.told[me][-1], Completed)


def test_a_client_of_a_failed_round_does_not_wait_for_ever_and_its_marks_stay():
    world = World(4, attempts=1)
    world.says = lambda me, data: None if "Attestation" in type(wire.decode_from_client(data)).__name__ else data
    world.begin()
    world.wait()
    (failed,) = world.of(Failed)
    assert failed.reason == "ConsistencyCheck: 0 clients are left and the policy needs 3; nothing was opened"
    assert (world.book.number, world.book.attempt) == (2, 0), "the number is burned"
    for me, told in world.told.items():
        assert isinstance(told[-1], Failed)
        assert failed.reason in told[-1].reason
        assert not world.clients[me].live
        with world.cohort.stores[me].transaction() as marks:
            assert marks.accepted(bytes(32)) is False
        again = RoundStart(RUN, 1, 1, MODEL, TASK, bytes(32)).sign(SERVER_KEY)
        client = world.client(me)
        opened, joined = client.receive(wire.encode(again))
        assert (type(opened), type(joined)) == (Send, Joined), "its number was used up by its contribution alone (C-14)"


def test_rounds_are_tried_again_as_often_as_was_said_and_no_more():
    world = World(4, attempts=3)
    world.dead = {"site-a", "site-b"}
    world.begin()
    world.wait()
    assert len(world.of(Retrying)) == 2
    assert len(world.of(Failed)) == 1
    assert (world.book.number, world.book.attempt) == (1, 3)
    world.dead = set()
    world.begin()
    assert world.exact(world.of(Completed)[0])


def test_an_operator_ends_a_round_and_everybody_is_told():
    world = World()
    world.late = {"site-a"}
    world.begin()
    with pytest.raises(IllegalTransitionError, match="under way"):
        world.server.begin(MODEL)
    world.serve(world.server.abort("the power goes off"))
    assert "the power goes off" in world.of(Failed)[0].reason
    assert all("the power goes off" in told[-1].reason for told in world.told.values())
    with pytest.raises(IllegalTransitionError):
        world.server.abort("again")


@pytest.mark.parametrize("step", SENDING)
def test_an_abort_ends_a_client_as_its_own_deadline_does_and_changes_no_mark(step):
    told = Play(Cohort(4)).until(step)
    client, entries = told.clients["site-a"], told.cohort.stores["site-a"]._entries
    before, held = dict(entries), secrets_of(client)
    with pytest.raises(AbortedError, match="the server goes off") as caught:
        client.receive(told.server.abort("the server goes off\n"))
    assert caught.value.step == client.step == step
    assert client.finished
    assert client._state is None
    assert not any(vars(secret) for secret in held)
    assert told.cohort.stores["site-a"]._entries == before
    with pytest.raises(IllegalTransitionError):
        client.receive(Abort(bytes(32), "again"))
    with pytest.raises(IllegalTransitionError):
        told.server.close_step()


def test_who_was_told_that_a_round_failed_after_it_released_is_as_exposed_as_before():
    world = World(4, private=False, attempts=1)
    quiet = {"site-a", "site-b"}
    world.says = lambda me, data: (
        None if me in quiet and isinstance(wire.decode_from_client(data), UnmaskingShares) else data
    )
    world.begin()
    world.wait()
    assert "opened" in world.of(Failed)[0].reason
    for me in world.cohort.ids:
        assert isinstance(world.told[me][-1], Failed)
        with world.cohort.stores[me].transaction() as marks:
            assert marks.open_release is not None
    world.begin()
    assert all(isinstance(told[-1], Exposed) and "C-05" in told[-1].reason for told in world.told.values())


def test_a_round_with_a_sum_is_not_ended_by_an_abort():
    play = Cohort(4).play()
    with pytest.raises(IllegalTransitionError, match="sum"):
        play.server.abort("too late")
    late = Play(Cohort(4))
    with pytest.raises(InconsistentViewError, match="C-28"):
        late.clients["site-a"].receive(Abort(bytes(32), "another attempt"))
    assert late.clients["site-a"].finished
    assert Abort.because(bytes(32), "é\x1b" + "x" * 2000).reason == "??" + "x" * 998
    with pytest.raises(MalformedMessageError):
        Abort(bytes(32), "two\nlines")


def test_a_client_has_the_sum_that_it_confirmed():
    play = Play(Cohort(4, bits=24))
    client = play.clients["site-a"]
    assert (client.total, client.receipt, client.head) == (None, None, None)
    play.to_the_end()
    assert np.array_equal(client.total, play.server.result)
    assert client.receipt == play.server.receipt


# --- the client's side --------------------------------------------------------------------------------------------


def test_a_silent_server_is_given_up_after_patience():
    world = World()
    world.clients["site-a"] = client = world.client("site-a", patience=5)
    assert client.deadline is None
    world.dead = {"site-b"}
    world.begin()
    assert client.deadline == 5
    assert client.tick(4.9) == []
    (failed,) = client.tick(5.0)
    assert "said nothing for 5 s" in failed.reason
    assert not client.live
    assert client.deadline is None


def test_a_start_that_comes_again_is_answered_with_the_same_bytes_and_an_older_one_not():
    world = World()
    client, start = world.clients["site-a"], wire.encode(world.book.start(MODEL))
    first, joined = client.receive(start)
    assert client.receive(start) == [first]
    world.book.attempt = 1
    later, *_ = client.receive(wire.encode(world.book.start(MODEL)))
    assert later.data != first.data
    assert client.receive(start) == []
    assert joined == Joined(1, 0, MODEL)


@pytest.mark.parametrize("private", [True, False])
def test_a_sum_that_comes_again_in_the_next_round_ends_nothing_and_a_false_one_does(tmp_path, private):
    """A grid brings again what went with a message that got no answer, though the node had it."""
    world = World(private=private)
    world.server._record = recording(tmp_path, world.cohort)
    world.begin()
    told = [wire.decode_from_server(send.data) for send in world.sent if send.to == "site-b"]
    (result,) = (message for message in told if isinstance(message, Result))
    client = world.clients["site-b"]
    if not private:
        assert client.receive(world.of(Published)[0].transcript.read_bytes()) == []
    client.receive(wire.encode(world.book.start(MODEL)))
    sent = client.receive(wire.encode(result))
    assert [type(wire.decode_from_client(send.data)) for send in sent] == [Confirmation] * (not private)
    assert client.live
    actions = client.receive(wire.encode(replace(result, total=bytes(len(result.total)))))
    assert [action.error.check for action in actions] == ["C-19"] * (not private)
    assert client.live is private


def test_what_comes_late_is_passed_over_and_what_lies_ends_the_attempt():
    world = World()
    client, start = world.clients["site-a"], wire.encode(world.book.start(MODEL))
    assert client.receive(wire.encode(Abort(bytes(32), "of another attempt"))) == []
    client.receive(start)
    assert client.receive(wire.encode(Abort(bytes(32), "of another attempt"))) == []
    assert client.live
    (failed,) = client.receive(b"rubbish")
    assert failed.error.check == "W-01"
    assert not client.live
    assert client.receive(wire.encode(Abort(bytes(32), "late"))) == []
    client.model_hash = bytes(32)
    world.book.attempt = 1
    (failed,) = client.receive(wire.encode(world.book.start(MODEL)))
    assert failed.error.check == "C-23"
    (failed,) = client.receive(wire.encode(replace(world.book.start(bytes(32)), signature=bytes(64))))
    assert failed.error.check == "C-01"


def test_calls_out_of_order_are_our_own_mistake():
    world = World()
    client = world.client("site-a")
    with pytest.raises(IllegalTransitionError, match="no round waits for an update"):
        client.provide(world.cohort.updates["site-a"])
    client.model_hash = None
    with pytest.raises(IllegalTransitionError, match="model_hash"):
        client.receive(wire.encode(world.book.start(MODEL)))
    client.model_hash = MODEL
    client.receive(wire.encode(world.book.start(MODEL)))
    with pytest.raises(secagg.ConfigError, match="shape"):
        client.provide(np.zeros(3))
    client.provide(world.cohort.updates["site-a"])
    with pytest.raises(IllegalTransitionError):
        client.provide(world.cohort.updates["site-a"])
    client.close()
    assert not client.live
    cohort = world.cohort
    keyless = replace(cohort.policy, server_key=b"")
    with pytest.raises(secagg.ConfigError, match="server_key"):
        ClientDriver(
            *(keyless, "site-a", cohort.keys["site-a"], cohort.roster, MemoryStore()), training_run=RUN, task_hash=TASK
        )
    with pytest.raises(secagg.ConfigError, match="server_key"):
        ServerDriver(keyless, cohort.roster, world.book)
    with pytest.raises(secagg.ConfigError, match="pin"):
        ClientDriver(
            *(cohort.policy, "site-a", SigningKey.generate(), cohort.roster, MemoryStore()),
            training_run=RUN,
            task_hash=TASK,
        )


@pytest.mark.parametrize(
    ("place", "wrong", "told"),
    [
        (0, None, "policy is None: give a secagg.Policy"),
        (1, 7, "me is an int"),
        (2, b"key", "signing_key is bytes"),
        (3, {}, "pinned is a dict"),
        (4, None, "store is None"),
    ],
)
def test_what_an_importer_mixes_up_is_said_in_one_sentence(place, wrong, told):
    cohort = Cohort(4)
    given = [cohort.policy, "site-a", cohort.keys["site-a"], cohort.roster, cohort.stores["site-a"]]
    given[place] = wrong
    with pytest.raises(secagg.ConfigError, match=told):
        ClientDriver(*given, training_run=RUN, task_hash=TASK)
    with pytest.raises(secagg.ConfigError, match="book is a str"):
        ServerDriver(cohort.policy, cohort.roster, "book")


def ended(world, client):
    """The attempt ends before anything is masked, and the next one is announced."""
    slot = world.book.context(MODEL).slot(client._own_session)
    (failed,) = client.receive(wire.encode(Abort(slot, "somebody complained")))
    assert isinstance(failed, Failed)
    world.book.attempt += 1
    return wire.encode(world.book.start(MODEL))


def test_an_update_between_two_attempts_is_looked_at_when_it_is_handed_over():
    world = World()
    client = world.clients["site-a"]
    client.receive(wire.encode(world.book.start(MODEL)))
    start = ended(world, client)
    for wrong in (np.zeros(3), np.full(8, np.nan)):
        with pytest.raises(secagg.ConfigError):
            client.provide(wrong)
    first, joined = client.receive(start)
    assert isinstance(first, Send)
    assert joined == Joined(1, 1, MODEL), "the attempt was joined, and its first message is not lost"


def test_an_update_that_was_spoilt_between_two_attempts_is_asked_for_again():
    world = World()
    client, update = world.clients["site-a"], np.zeros(8)
    client.receive(wire.encode(world.book.start(MODEL)))
    client.provide(update)
    start = ended(world, client)
    update[:] = np.nan
    first, joined = client.receive(start)
    assert isinstance(first, Send)
    assert joined == Joined(1, 1, MODEL)
    assert client.provide(np.zeros(8)) == []


def test_a_second_update_is_refused_and_takes_nothing_from_the_first():
    world = World()
    client = world.clients["site-a"]
    client.receive(wire.encode(world.book.start(MODEL)))
    client.provide(np.zeros(8))
    with pytest.raises(IllegalTransitionError):
        client.provide(np.ones(8))
    assert client.receive(ended(world, client))[1] == Joined(1, 1, MODEL, provided=True)


def test_after_its_update_was_masked_a_client_keeps_no_other_one():
    world = World()
    world.begin()
    client = world.clients["site-a"]
    with pytest.raises(IllegalTransitionError, match="no round waits for an update"):
        client.provide(np.zeros(8))
    assert client._given is None


@pytest.mark.parametrize(
    "spoil",
    [
        lambda save: Save({}, b""),
        lambda save: Save({**save.book, "receipts": ["zz"]}, save.sealed),
        lambda save: Save({**save.book, "number": 0}, save.sealed),
        lambda save: Save({**save.book, "convicted": 7}, save.sealed),
        lambda save: Save({**save.book, "driver": {}}, save.sealed),
        lambda save: Save({**save.book, "driver": {**save.book["driver"], "asked": ["nobody"]}}, save.sealed),
        lambda save: Save({**save.book, "convicted": ["nobody"]}, b""),
        lambda save: Save(save.book, save.sealed[:-1]),
    ],
    ids=range(8),
)
def test_what_no_driver_saved_is_refused_in_a_sentence(spoil):
    world = World(resumable=True)
    world.server.begin(MODEL)
    save = world.server._saved(world.server.session)[0]
    fresh = ServerDriver(world.cohort.policy, world.cohort.roster, RoundBook(RUN, TASK, SERVER_KEY, 1), resumable=True)
    with pytest.raises(secagg.ConfigError):
        fresh.resume(spoil(save))
    assert fresh.session is None


def test_a_step_is_resumed_with_the_book_that_it_was_saved_with_and_no_other():
    world = World(resumable=True)
    world.begin()
    step, done = [save for save in world.of(Save) if save.sealed][2], world.of(Save)[-1]
    book = RoundBook(RUN, TASK, SERVER_KEY, 1)
    fresh = ServerDriver(world.cohort.policy, world.cohort.roster, book, resumable=True)
    mixed = {**done.book, "driver": step.book["driver"]}
    with pytest.raises(secagg.ConfigError, match="another round than the book"):
        fresh.resume(Save(mixed, step.sealed))
    assert fresh.session is None


# --- without differential privacy ---------------------------------------------------------------------------------


def recording(tmp_path, cohort):
    return lambda context: Recorder(
        tmp_path / f"{context.round_number}-{context.attempt}.transcript",
        *(cohort.policy, cohort.roster, context),
        signing_key=SERVER_KEY,
    )


def test_without_privacy_the_next_round_waits_for_the_transcript_and_then_opens_by_itself(tmp_path):
    world = World(private=False)
    world.server._record = recording(tmp_path, world.cohort)
    world.begin()
    (published,) = world.of(Published)
    assert len(world.of(Completed)) == 1
    transcript = published.transcript.read_bytes()
    world.begin()
    exposed = {me: told[-1] for me, told in world.told.items()}
    assert all(isinstance(told, Exposed) and "C-05" in told.reason for told in exposed.values())
    assert {told.round_ids for told in exposed.values()} == {(world.of(Completed)[0].receipt.round_id,)}
    for me, client in world.clients.items():
        (refused,) = client.receive(transcript[:-10])
        assert refused.sender == ""
        assert "settles nothing" in refused.reason
        world.hear(me, client.receive(transcript))
    assert [done.receipt.round_number for done in world.of(Completed)] == [1, 2]
    assert world.exact(world.of(Completed)[1])


def test_who_missed_a_round_must_see_its_transcript_too(tmp_path):
    world = World(5, private=False)
    world.server._record = recording(tmp_path, world.cohort)
    world.dead = {"site-e"}
    world.begin()
    world.wait()
    transcript = world.of(Published)[0].transcript.read_bytes()
    world.dead = set()
    for me in world.cohort.ids[:4]:
        world.hear(me, world.clients[me].receive(transcript))
    world.begin()
    (told,) = world.told["site-e"]
    assert "nothing shows this site that round 1" in told.reason
    world.hear("site-e", world.clients["site-e"].receive(transcript))
    assert world.of(Completed)[1].included == tuple(world.cohort.ids)


@pytest.mark.parametrize("killed", ["before the result", "after it, before its confirmation"])
def test_who_was_killed_after_it_released_confirms_later_so_that_the_transcript_counts(tmp_path, killed):
    """Two of five killed just after the sum: T-02 wants four confirmations, and all refused for good."""
    world = World(5, private=False)
    world.server._record = recording(tmp_path, world.cohort)
    gone, results = ("site-d", "site-e"), {}

    class Killed:
        """Hears all but the result, or answers all but that."""

        def __init__(self, client):
            self.client = client
            self.provide = client.provide

        def receive(self, data, now=0.0):
            if isinstance(wire.decode_from_server(data), Result):
                results[self.client._me] = data
                if killed != "before the result":
                    self.client.receive(data, now)
                return []
            return self.client.receive(data, now)

    world.clients |= {me: Killed(world.client(me)) for me in gone}
    world.begin()
    assert len(world.server.session.confirmations) == 3
    for me, data in results.items():
        result, fresh = wire.decode_from_server(data), world.client(me)
        (failed,) = fresh.receive(wire.encode(replace(result, total=bytes(len(result.total)))))
        assert failed.error.check == "C-19"
        unknown = replace(result, receipt=replace(result.receipt, round_id=bytes(32)))
        assert fresh.receive(wire.encode(unknown)) == []
        again = fresh.receive(data)
        assert again == fresh.receive(data)
        world.hear(me, again)
    assert set(world.server.session.confirmations) == set(world.cohort.ids)


def test_a_client_that_was_over_before_the_sum_may_still_confirm_it_and_is_waited_for(tmp_path):
    """Hosts say so of a node that died; one that comes back confirms out of its marks (T-02)."""
    world = World(5, private=False)
    world.server._record = recording(tmp_path, world.cohort)

    def says(me, data):
        if me == "site-e" and type(wire.decode_from_client(data)).__name__ == "UnmaskingShares":
            world.dead = {"site-e"}
            world._take("", world.server.over("site-e", world.now))
            return None
        return data

    world.says = says
    world.begin()
    assert world.of(Completed)
    assert world.server.awaited == {"site-e"}


def test_what_was_sent_last_is_repeated_byte_for_byte_until_the_attempt_is_over_without_a_sum():
    world = World()
    client, sent = world.clients["site-a"], []
    assert client.repeat() == []

    def says(me, data):
        if me == "site-a":
            sent.append(data)
            assert client.repeat() == [Send(data)] or isinstance(wire.decode_from_client(data), AdvertiseKeys)
        return data

    world.says = says
    world.begin()
    assert client.repeat() == [Send(sent[-1])]
    assert isinstance(wire.decode_from_client(sent[-1]), Confirmation)
    world.dead = {"site-b", "site-c", "site-d"}
    world.begin()
    assert client.repeat() == [Send(sent[-1])]
    client.close()
    assert client.repeat() == []


# --- what is said of what is seen ---------------------------------------------------------------------------------


def test_no_action_shows_bytes_and_no_driver_is_copied():
    assert repr(Send(b"secret", "site-a")) == "<Send of 6 bytes to site-a>"
    assert repr(Send(b"secret")) == "<Send of 6 bytes>"
    world = World()
    for thing in (world.server, *world.clients.values()):
        with pytest.raises(TypeError, match="never copied or pickled"):
            pickle.dumps(thing)
        with pytest.raises(TypeError, match="never copied or pickled"):
            copy.copy(thing)
    world.begin()
    assert repr(world.of(Completed)[0]) == "<Completed round 1 of site-a, site-b, site-c, site-d>"
