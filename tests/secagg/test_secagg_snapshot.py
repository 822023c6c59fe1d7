"""Sessions on a disk: resumed once, on their own store, or not at all; no message is answered twice, no sum differs."""

import json
import os
import subprocess
import sys
from collections import deque
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

import secagg
from secagg import ClientDriver, ConfigError, IllegalTransitionError, MemoryStore, RoundBook, ServerDriver, Suite, wire
from secagg.driver import Completed, Failed, NeedInput, Published, Save, Send, Silent
from secagg.encoding import split_fields
from secagg.errors import UnexpectedMessageError
from secagg.keys import SigningKey
from secagg.messages import Abort, Reports, RoundStart
from secagg.prg import Stream
from secagg.session import ClientSession
from secagg.snapshot import resume, resume_server, snapshot_server, suspend
from secagg.snapshot_files import kept_in
from secagg.sqlite import SqliteStore
from secagg.steps import STEPS
from secagg.transcript_files import Recorder, verify
from tests.support.cohort import RUN, SENDING, SERVER_KEY, Cohort, Play, signing_key

ROOT = Path(__file__).parents[2]

SUITES = list(Suite)


def again(cohort: Cohort, me: str, snapshot: bytes, **other) -> ClientSession:
    """The session as another process resumes it: from bytes and what is pinned, nothing else."""
    given = {
        "policy": cohort.policy,
        "me": me,
        "signing_key": cohort.keys[me],
        "pinned": cohort.roster,
        "store": cohort.stores[me],
        **other,
    }
    return resume(bytes(snapshot), **given)


class Resting(Play):
    """A play in which every client is sealed and resumed around every message, and the server after every step."""

    def answer(self, replies):
        self.server, told = resume_server(
            snapshot_server(self.server, SERVER_KEY), self.cohort.policy, self.cohort.roster, SERVER_KEY
        )
        assert dict(told) == dict(replies)
        assert wire.encode_each(told) == wire.encode_each(replies)
        for me, client in self.clients.items():
            if not client.finished and client._update is None:
                self.clients[me] = again(self.cohort, me, suspend(client))
        super().answer(replies)


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("silent", [{}, {"site-c": "MaskedInputCollection"}, {"site-e": "Unmasking"}], ids=str)
def test_every_session_rests_between_all_messages_and_the_sum_is_exact(suite, silent):
    cohort = Cohort(5, suite=suite)
    play = Resting(cohort, silent=silent, late=tuple(cohort.ids)).until("MaskedInputCollection")
    for me, client in play.clients.items():
        if client._waiting is not None:  # its reports came while it trained, and lay on the disk
            client = play.clients[me] = again(cohort, me, suspend(client))
            play.out[me] = cohort.provide(client, me)
    play.to_the_end()
    assert not play.errors
    assert play.exact
    assert play.server.included == tuple(me for me in cohort.ids if silent.get(me) != "MaskedInputCollection")
    assert play.clients["site-a"].head == play.server.head
    assert np.array_equal(play.clients["site-a"].total, play.server.result)


def resting(step: str) -> tuple[Cohort, Play, bytes]:
    """A round whose server is about to collect `step`, and the session of site-a, sealed: its message is under way."""
    cohort = Cohort(4)
    play = Play(cohort, late=("site-a",))
    while play.server.step != step:
        play.until(STEPS[STEPS.index(play.server.step) + 1])
        if play.server.step == "MaskedInputCollection":
            play.out["site-a"] = cohort.provide(play.clients["site-a"], "site-a")
    return cohort, play, suspend(play.clients["site-a"])


def finish(cohort: Cohort, play: Play, client: ClientSession) -> Play:
    play.clients["site-a"] = client
    if play.server.step in STEPS[:3]:
        play.until("MaskedInputCollection")
        play.out["site-a"] = cohort.provide(client, "site-a")
    return play.to_the_end()


@pytest.mark.parametrize("step", SENDING)
def test_a_snapshot_is_resumed_once(step):
    cohort, play, snapshot = resting(step)
    client = again(cohort, "site-a", snapshot)
    with pytest.raises(ConfigError, match="used already"):
        again(cohort, "site-a", snapshot)
    assert finish(cohort, play, client).exact


@pytest.mark.parametrize("step", SENDING)
def test_an_older_snapshot_is_dead_once_a_later_one_was_made(step):
    cohort, play, old = resting(step)
    newer = suspend(again(cohort, "site-a", old))
    assert newer != old
    with pytest.raises(ConfigError, match="older than the last one"):
        again(cohort, "site-a", old)
    assert finish(cohort, play, again(cohort, "site-a", newer)).exact


@pytest.mark.parametrize("step", SENDING)
def test_a_session_is_over_where_it_was_sealed(step):
    cohort = Cohort(4)
    play = Play(cohort).until(step) if step == "MaskedInputCollection" else resting(step)[1]
    client = play.clients["site-a"]
    if step == "MaskedInputCollection":
        suspend(client)
    assert client.finished
    assert client._state is None
    with pytest.raises(IllegalTransitionError):
        suspend(client)
    with pytest.raises(IllegalTransitionError):
        client.receive(Abort(bytes(32), "why"))


def test_a_snapshot_on_another_store_is_refused():
    cohort, _, snapshot = resting("ShareKeys")
    with pytest.raises(ConfigError, match="another store"):
        again(cohort, "site-a", snapshot, store=MemoryStore())
    elsewhere = Cohort(4)  # the same keys and the same attempt, joined on another store
    Play(elsewhere)
    with pytest.raises(ConfigError, match="another store"):
        again(elsewhere, "site-a", snapshot)


def test_a_snapshot_of_an_attempt_that_is_over_is_refused():
    cohort, _, snapshot = resting("ShareKeys")
    later = cohort.client("site-a", cohort.context(attempt=1))
    later.start()
    with pytest.raises(UnexpectedMessageError, match="C-24"):
        again(cohort, "site-a", snapshot)
    suspend(later)
    with pytest.raises(ConfigError, match="not the one"):
        again(cohort, "site-a", snapshot)


def test_a_session_that_another_attempt_ended_is_not_sealed():
    cohort = Cohort(4)
    client = cohort.client("site-a")
    client.start()
    cohort.client("site-a", cohort.context(attempt=1)).start()
    with pytest.raises(UnexpectedMessageError, match="C-24"):
        suspend(client)


def test_a_snapshot_opens_for_nobody_else_and_under_nothing_else():
    cohort, _, snapshot = resting("ConsistencyCheck")
    for other in (
        {"signing_key": signing_key(7)},
        {"policy": replace(cohort.policy, clip_range=2.0)},
        {"pinned": secagg.PinnedRoster({**cohort.roster, "site-d": SigningKey.generate().verify_key})},
    ):
        with pytest.raises(ConfigError, match="does not open"):
            again(cohort, "site-a", snapshot, **other)
    again(cohort, "site-a", snapshot)  # and a refusal does not use it up


@pytest.mark.parametrize("step", ["AdvertiseKeys", "Unmasking"])
def test_damage_is_one_sentence(step):
    cohort, _, snapshot = resting(step)
    rng = np.random.default_rng(1)
    damaged = [snapshot[:cut] for cut in (0, 1, 3, 4, 20, len(snapshot) // 2, len(snapshot) - 1)]
    damaged += [snapshot + b"\0", b"\xff" * 100, snapshot[::-1], bytes(len(snapshot))]
    for place in [*range(0, 400, 7), *rng.integers(0, len(snapshot), 40)]:
        changed = bytearray(snapshot)
        changed[place] ^= 1 << int(rng.integers(8))
        damaged.append(bytes(changed))
    for data in damaged:
        with pytest.raises(ConfigError) as caught:
            again(cohort, "site-a", data)
        assert "\n" not in str(caught.value)
        assert str(caught.value).endswith("joins the next attempt")
    again(cohort, "site-a", snapshot)


def test_a_snapshot_of_another_version_is_refused():
    cohort, _, snapshot = resting("ShareKeys")
    _, listed, _ = split_fields(snapshot)
    place = snapshot.index(bytes(listed)) + 4 + 4 + 7
    assert snapshot[place] == 2
    with pytest.raises(ConfigError, match="another version"):
        again(cohort, "site-a", snapshot[:place] + b"\1" + snapshot[place + 1 :])


def test_an_update_is_never_written_down():
    cohort = Cohort(4)
    client = cohort.client("site-a")
    with pytest.raises(IllegalTransitionError, match="after its first message"):
        suspend(client)
    client.start()
    cohort.provide(client, "site-a")
    with pytest.raises(IllegalTransitionError, match="never written down"):
        suspend(client)
    assert not client.finished
    play = Play(cohort, context=cohort.context(attempt=1)).to_the_end()
    with pytest.raises(IllegalTransitionError, match="before its end"):
        suspend(play.clients["site-a"])


def test_a_crash_between_use_and_reply_loses_the_round_and_answers_nothing_twice():
    cohort, play, snapshot = resting("ConsistencyCheck")
    play.collect()
    (attestations,) = {id(m): m for m in play.server.close_step().values()}.values()
    first = again(cohort, "site-a", snapshot).receive(attestations)  # and the process dies before it is sent
    assert first is not None
    with pytest.raises(ConfigError):
        again(cohort, "site-a", snapshot)
    with cohort.stores["site-a"].transaction() as marks:
        assert marks.open_release is not None, "the marks of what was made stay"


def test_reports_that_came_early_lie_on_the_disk_and_are_answered_by_the_update():
    cohort = Cohort(4)
    play = Play(cohort, late=("site-a",)).until("MaskedInputCollection")
    client = again(cohort, "site-a", suspend(play.clients["site-a"]))
    assert isinstance(client._waiting, Reports)
    play.out["site-a"] = cohort.provide(client, "site-a")
    play.clients["site-a"] = client
    assert play.to_the_end().exact


def test_a_repeat_is_answered_with_the_stored_bytes_after_a_night_on_the_disk():
    heard = []
    cohort = Cohort(4)
    play = Play(cohort, down=lambda step, who, m: heard.append(m) or m if who == "site-a" else m).until("Unmasking")
    said = [play.clients["site-a"].receive(message) for message in heard]
    client = again(cohort, "site-a", suspend(play.clients["site-a"]))
    assert [wire.encode(client.receive(message)) for message in heard] == list(map(wire.encode, said))
    assert client.first == play.clients["site-a"].first
    assert (client.step, client.included) == ("Unmasking", tuple(cohort.ids))
    assert client.clip_rate == 0.0


def test_no_secret_is_in_the_clear_in_a_snapshot():
    cohort = Cohort(4, suite=Suite.MLKEM768_X25519)
    play = Play(cohort).until("MaskedInputCollection")
    held = play.clients["site-a"]._state.held
    secrets = [held.mask_key.seed, held.self_seed, *held.mask_key_shares.values(), *held.pair_secrets.values()]
    snapshot = suspend(play.clients["site-a"])
    assert len(secrets) > 4
    assert not any(secret in snapshot for secret in secrets)


# --- the server ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suite", SUITES)
@pytest.mark.parametrize("step", [*SENDING, "Result"])
def test_a_server_killed_in_any_step_goes_on_from_the_last_and_no_reply_differs(step, suite):
    cohort = Cohort(5, suite=suite)
    silent = {"site-c": "MaskedInputCollection"}
    play = Play(cohort, silent=silent).until(step)
    snapshot, out = snapshot_server(play.server, SERVER_KEY) if not play.server.confirmations else b"", dict(play.out)
    if step == "Result":
        play = Play(Cohort(5, suite=suite), silent=silent).until("Unmasking")
        play.collect()
        replies = play.server.close_step()
        snapshot = snapshot_server(play.server, SERVER_KEY)
        server, told = resume_server(snapshot, play.cohort.policy, play.cohort.roster, SERVER_KEY)
        assert wire.encode_each(told) == wire.encode_each(replies)
        assert np.array_equal(server.result, play.server.result)
        assert (server.receipt, server.included, server.dropped) == (
            play.server.receipt,
            play.server.included,
            play.server.dropped,
        )
        assert (server.finished, server.burned) == (True, False)
        play.server = server
        play.answer(replies)
        play.collect()
        assert set(server.confirmations) == set(server.included)
        return
    play.collect()  # what it heard in this step dies with it
    undisturbed = wire.encode_each(play.server.close_step())
    server, told = resume_server(snapshot, cohort.policy, cohort.roster, SERVER_KEY)
    assert server.step == step
    for me, data in wire.encode_each(told).items():
        if me in play.clients and me not in silent and step != "AdvertiseKeys":
            assert play.clients[me].receive(wire.decode_from_server(data)) == out[me], "a repeat"
    play.server, play.out = server, out
    play.collect()
    replies = server.close_step()
    assert wire.encode_each(replies) == undisturbed
    play.answer(replies)
    assert play.to_the_end().exact


@pytest.mark.parametrize("suite", SUITES)
def test_what_was_dealt_follows_from_the_inboxes_also_where_somebody_dealt_nothing(suite):
    cohort = Cohort(5, suite=suite)
    play = Play(cohort, silent={"site-b": "ShareKeys"}).until("ShareReport")
    told = wire.encode_each(play.server.told)
    snapshot = snapshot_server(play.server, SERVER_KEY, told)
    server, replies = resume_server(snapshot, cohort.policy, cohort.roster, SERVER_KEY)
    dealt, again = play.server._state.dealt, server._state.dealt
    dealers = dealt.bundles.keys()
    assert (wire.encode_each(replies), dealers) == (told, {"site-a", "site-c", "site-d", "site-e"})
    assert (again.roster, again.roster2, again.self_commitments) == (
        dealt.roster,
        dealt.roster2,
        dealt.self_commitments,
    )
    assert again.bundles == {
        dealer: {peer: kept for peer, kept in sent.items() if peer in dealers} for dealer, sent in dealt.bundles.items()
    }


def test_a_server_is_sealed_between_two_steps_only_and_its_snapshot_is_its_own():
    cohort = Cohort(4)
    play = Play(cohort).until("ShareKeys")
    snapshot = snapshot_server(play.server, SERVER_KEY)
    play.collect()
    with pytest.raises(IllegalTransitionError, match="right after a step was closed"):
        snapshot_server(play.server, SERVER_KEY)
    with pytest.raises(ConfigError, match="does not open"):
        resume_server(snapshot, replace(cohort.policy, clip_range=2.0), cohort.roster, SERVER_KEY)
    with pytest.raises(ConfigError):
        resume_server(snapshot[:-1], cohort.policy, cohort.roster, SERVER_KEY)
    with pytest.raises(ConfigError, match="does not open"):
        again(cohort, "site-a", snapshot)
    spoilt = Play(Cohort(4)).until("Unmasking")
    spoilt.damage_the_sum()
    spoilt.collect()
    spoilt.server.close_step()
    with pytest.raises(IllegalTransitionError, match="burned"):
        snapshot_server(spoilt.server, SERVER_KEY)


# --- drivers, one process a message -------------------------------------------------------------------------------


MODEL, TASK = bytes([1]) * 32, bytes([2]) * 32


def driver(cohort, me, **options) -> ClientDriver:
    given = {"training_run": RUN, "task_hash": TASK, "private": cohort.private, **options}
    made = ClientDriver(*(cohort.policy, me, cohort.keys[me], cohort.roster, cohort.stores[me]), **given)
    made.model_hash = MODEL
    return made


def one_message(cohort, me, path, data):
    """What a process does that is there for one message of the server: what it sends, and what it was told."""
    made = driver(cohort, me)
    with kept_in(path, made) as actions:
        actions += made.receive(data)
        for action in actions:
            if isinstance(action, NeedInput):
                actions += made.provide(cohort.updates[me], f"event of {me}", Stream.seeded(7, me))
    return [action.data for action in actions if isinstance(action, Send)], actions


@pytest.fixture
def cohort():
    return Cohort(4, private=True, length=8)


def drive(cohort, tmp_path, server, actions, between=lambda server, save: server):
    """A round in which every message at a site, and maybe every step of the server, is a process of its own."""
    told, mail, save = [], deque(), None
    while True:
        for action in actions:
            match action:
                case Save():
                    save = action
                case Send():
                    mail.append(action)
                case _:
                    told.append(action)
        server = between(server, save)
        if not mail:
            return told
        send = mail.popleft()
        said, heard = one_message(cohort, send.to, tmp_path / send.to, send.data)
        told += [action for action in heard if isinstance(action, Failed)]
        actions = [action for data in said for action in server.receive(send.to, data)]


def serving(cohort, **options):
    book = RoundBook(RUN, TASK, SERVER_KEY, cohort.policy.max_corrupt)
    return ServerDriver(cohort.policy, cohort.roster, book, **options)


def test_a_site_that_runs_one_process_a_message_gives_the_exact_sum_round_after_round(tmp_path, cohort):
    server = serving(cohort)
    for number in (1, 2):
        (done,) = drive(cohort, tmp_path, server, server.begin(MODEL))
        assert isinstance(done, Completed)
        assert done.receipt.round_number == number
        assert np.array_equal(done.result, cohort.plain_sum(cohort.ids))
        assert list(tmp_path.iterdir()) == [], "nothing of a round that is over lies on the disk"


def test_the_server_too_may_die_after_every_message_and_goes_on_from_what_it_saved(tmp_path, cohort):
    saves = []

    def dies(server, save):
        if save is None or save in saves:  # between two steps it would forget what it heard, and ask again
            return server
        saves.append(save)
        fresh = serving(cohort, resumable=True)
        repeated = fresh.resume(Save(json.loads(json.dumps(save.book)), save.sealed))
        if save.sealed and not fresh.session.finished:
            assert all(isinstance(action, Send) for action in repeated)
        return fresh if save.sealed and not fresh.session.finished else server

    server = serving(cohort, resumable=True)
    (done,) = drive(cohort, tmp_path, server, server.begin(MODEL), dies)
    assert np.array_equal(done.result, cohort.plain_sum(cohort.ids))
    assert len(saves) > 6
    assert "Save of the book" in repr(saves[0])


def test_a_server_that_dies_with_the_sum_tells_it_again(cohort):
    clients = {me: driver(cohort, me) for me in cohort.ids}
    server = serving(cohort, resumable=True)
    actions, last = server.begin(MODEL), None
    while not any(isinstance(action, Completed) for action in actions):
        last = [action for action in actions if isinstance(action, Save)][-1:] or last
        heard = [(a.to, clients[a.to].receive(a.data)) for a in actions if isinstance(a, Send)]
        for me, told in heard:
            if any(isinstance(action, NeedInput) for action in told):
                told += clients[me].provide(cohort.updates[me], "", Stream.seeded(7, me))
        said = [(me, a.data) for me, told in heard for a in told if isinstance(a, Send)]
        actions = [action for me, data in said for action in server.receive(me, data)]
    save, *sends, after, done = actions
    fresh = serving(cohort, resumable=True)
    again = fresh.resume(save)
    assert [(a.to, a.data) for a in again[:4]] == [(a.to, a.data) for a in sends]
    assert isinstance(again[-1], Completed)
    assert np.array_equal(again[-1].result, done.result)
    assert fresh.book.receipts == server.book.receipts
    assert (after.sealed, fresh.running) == (b"", False)
    with pytest.raises(IllegalTransitionError, match="before anything else"):
        fresh.resume(save)


def test_what_cannot_be_resumed_loses_the_round_in_one_sentence_and_the_next_start_is_welcome(tmp_path, cohort):
    path, server = tmp_path / "site-a", serving(cohort)
    start = next(action.data for action in server.begin(MODEL) if isinstance(action, Send))
    one_message(cohort, "site-a", path, start)
    kept = path.read_bytes()
    assert path.stat().st_mode & 0o777 == 0o600
    path.write_bytes(kept[:-1])
    said, (failed,) = one_message(cohort, "site-a", path, wire.encode(Abort(bytes(32), "late")))
    assert said == []
    assert isinstance(failed, Failed)
    assert "\n" not in failed.reason
    assert not path.exists()
    server.book.attempt = 1
    said, _ = one_message(cohort, "site-a", path, wire.encode(server.book.start(MODEL)))
    assert len(said) == 1
    (other,) = driver(cohort, "site-a", training_run="other").resume(path.read_bytes())
    assert "another run" in other.reason
    path.write_bytes(kept)
    (older,) = driver(cohort, "site-a").resume(kept)
    assert "not the one" in older.reason


def test_a_process_that_fails_before_its_block_ends_has_answered_nothing(tmp_path, cohort):
    path, server = tmp_path / "site-a", serving(cohort)
    start = next(action.data for action in server.begin(MODEL) if isinstance(action, Send))
    one_message(cohort, "site-a", path, start)
    made = driver(cohort, "site-a")
    with pytest.raises(FileNotFoundError), kept_in(path, made):
        path.read_bytes()  # gone before anything of it is used
    assert not path.exists()
    assert driver(cohort, "site-a").suspend() == b""
    assert made.live
    with pytest.raises(IllegalTransitionError, match="before anything else"):
        made.resume(b"")


def test_a_process_that_comes_too_late_leaves_the_file_of_the_one_that_was_first(tmp_path, cohort, monkeypatch):
    path, server = tmp_path / "site-a", serving(cohort)
    start = next(action.data for action in server.begin(MODEL) if isinstance(action, Send))
    one_message(cohort, "site-a", path, start)
    before = path.read_bytes()
    with kept_in(path, driver(cohort, "site-a")):
        pass
    after, read, old = path.read_bytes(), Path.read_bytes, [before]
    monkeypatch.setattr(Path, "read_bytes", lambda self: old.pop() if old else read(self))  # it read before the other
    with kept_in(path, driver(cohort, "site-a")) as actions:
        assert [type(action) for action in actions] == [Failed]
    assert path.read_bytes() == after != before


def test_another_process_that_joined_a_later_attempt_ends_this_one(tmp_path, cohort):
    server = serving(cohort)
    start = next(action.data for action in server.begin(MODEL) if isinstance(action, Send))
    one, other = driver(cohort, "site-a"), driver(cohort, "site-a")
    one.receive(start)
    server.book.attempt = 1
    other.receive(wire.encode(server.book.start(MODEL)))
    assert one.suspend() == b""
    assert other.suspend()


@pytest.mark.parametrize("silent", [False, True])
def test_a_recorded_round_goes_on_after_the_server_was_killed_anywhere_and_its_transcript_holds(tmp_path, silent):
    """C-05: without differential privacy nobody goes on where the transcript of a round is missing."""
    cohort, killed = Cohort(5, length=8), set()
    folder = tmp_path / "transcripts"
    folder.mkdir()

    def record(context):
        return Recorder(folder / "1.transcript", cohort.policy, cohort.roster, context, True, SERVER_KEY, durable=True)

    def fresh():
        return serving(cohort, resumable=True, record=record, confirmed=True)

    clients = {me: driver(cohort, me) for me in cohort.ids}
    server, saves, told, mail = fresh(), [], [], deque()

    def take(actions):
        for action in actions:
            match action:
                case Save():
                    server.sync()
                    saves.append(action)
                case Send():
                    mail.append(action)
                case _:
                    told.append(action)

    take(server.begin(MODEL))
    while mail:
        send = mail.popleft()
        if silent and server.session.step not in STEPS[:3]:
            take(server.gone("site-e"))
        if not silent or send.to != "site-e" or server.session.step in STEPS[:3]:
            said = clients[send.to].receive(send.data)
            if any(isinstance(action, NeedInput) for action in said):
                said += clients[send.to].provide(cohort.updates[send.to], "", Stream.seeded(7, send.to))
            take(action for a in said if isinstance(a, Send) for action in server.receive(send.to, a.data))
        step = server.session.step
        if step not in killed and server.session.heard == 2:  # killed; whoever is in the attempt is told again
            killed.add(step)
            server, before = fresh(), list(told)
            resumed = server.resume(saves[-1])
            assert [action for action in resumed if not isinstance(action, Send)] == [] == told[len(before) :]
            mail.clear()
            for me in cohort.ids:
                take(server.again(me))
    assert [type(action) for action in told if not isinstance(action, Silent)] == [Completed, Published]
    (done,) = (action for action in told if isinstance(action, Completed))
    assert np.array_equal(done.result, cohort.plain_sum(done.included))
    assert len(done.included) == 5 - silent
    assert verify([folder / "1.transcript"], cohort.policy, cohort.roster).status == "holds"
    assert killed == {*STEPS}
    assert saves[-1].sealed == b""
    assert [path.name for path in folder.iterdir()] == ["1.transcript"], "what was recorded is gone"


def test_nothing_that_was_recorded_lies_in_the_clear(tmp_path, cohort):
    path = tmp_path / "1.transcript"
    server = serving(
        cohort,
        resumable=True,
        record=lambda context: Recorder(path, cohort.policy, cohort.roster, context, True, SERVER_KEY, durable=True),
    )
    clients = {me: driver(cohort, me) for me in cohort.ids}
    heard = [(a.to, clients[a.to].receive(a.data)) for a in server.begin(MODEL) if isinstance(a, Send)]
    for me, told in heard:
        server.receive(me, told[0].data)
    server.sync()
    (kept,) = tmp_path.iterdir()
    assert kept.stat().st_mode & 0o777 == 0o600
    assert all(me.encode() not in kept.read_bytes() for me in cohort.ids)
    other = Recorder(path, cohort.policy, cohort.roster, cohort.context(2), True, SERVER_KEY, durable=True)
    with pytest.raises(OSError, match="damaged"):
        other.rewind(kept.stat().st_size)


def test_a_snapshot_of_another_run_is_refused(cohort):
    server = serving(cohort, resumable=True)
    save, *_ = server.begin(MODEL)
    other = ServerDriver(cohort.policy, cohort.roster, RoundBook("other", TASK, SERVER_KEY, 1), resumable=True)
    with pytest.raises(ConfigError, match="another run"):
        other.resume(save)


# --- any order of it all ------------------------------------------------------------------------------------------


class OneProcessAMessage(RuleBasedStateMachine):
    """A site whose processes are killed anywhere, whose old files come back, and whose server repeats itself."""

    def __init__(self):
        super().__init__()
        self.cohort = cohort = Cohort(4, private=True, length=3)
        self.server = serving(cohort, attempts=1)
        self.others = {me: driver(cohort, me) for me in cohort.ids[1:]}
        self.inbox, self.next = [], 0  # what came for site-a, with its round and attempt; what is delivered next
        self.disk, self.files = b"", []
        self.replies: dict[tuple, set[bytes]] = {}
        self.sums = 0

    @initialize()
    def begin(self):
        self.serve(self.server.begin(MODEL))

    def serve(self, actions):
        mail = deque(actions)
        while mail:
            match mail.popleft():
                case Send(to="site-a", data=data):
                    context = self.server.session.context
                    self.inbox.append((context.round_number, context.attempt, data))
                case Send(to=to, data=data):
                    said = self.others[to].receive(data)
                    for action in said:
                        if isinstance(action, NeedInput):
                            said += self.others[to].provide(self.cohort.updates[to], "", Stream.seeded(7, to))
                        if isinstance(action, Send):
                            mail += self.server.receive(to, action.data)
                case Completed() as done:
                    self.sums += 1
                    assert np.array_equal(done.result, self.cohort.plain_sum(done.included))

    def process(self, entry, dies):
        """One process: it resumes, answers, writes down and sends, or dies before one of these."""
        made, (number, attempt, data) = driver(self.cohort, "site-a"), entry
        actions = made.resume(self.disk) if self.disk else []
        self.disk = b""
        if dies == "after use":
            return
        actions += made.receive(data)
        for action in actions:
            if isinstance(action, NeedInput):
                actions += made.provide(self.cohort.updates["site-a"], "event of site-a", Stream.seeded(7, "site-a"))
        said = [action.data for action in actions if isinstance(action, Send)]
        for reply in said:
            kind = type(wire.decode_from_client(reply)).__name__
            self.replies.setdefault((number, attempt, kind), set()).add(reply)
            if kind == "MaskedInput":
                self.replies.setdefault((number, kind), set()).add(reply)
        if dies == "before writing":
            return
        if sealed := made.suspend():
            self.disk = sealed
            self.files.append(sealed)
        if dies == "before sending":
            return
        for reply in said:
            self.serve(self.server.receive("site-a", reply))

    @precondition(lambda self: self.next < len(self.inbox))
    @rule(dies=st.sampled_from([None, None, None, None, "after use", "before writing", "before sending"]))
    def deliver(self, dies):
        self.next += 1
        self.process(self.inbox[self.next - 1], dies)

    @precondition(lambda self: self.next)
    @rule(place=st.integers(0, 99), dies=st.sampled_from([None, "after use", "before writing", "before sending"]))
    def repeat(self, place, dies):
        self.process(self.inbox[place % self.next], dies)

    @precondition(lambda self: self.files)
    @rule(file=st.integers(0, 5), message=st.integers(0, 5))
    def an_old_file_comes_back_and_meets_an_old_message(self, file, message):
        self.disk = self.files[-1 - file % len(self.files)]
        self.process(self.inbox[self.next - 1 - message % self.next], None)

    @precondition(lambda self: self.next == len(self.inbox))
    @rule()
    def the_server_waits_no_longer(self):
        if self.server.deadline is not None:
            self.serve(self.server.tick(self.server.deadline))
        if not self.server.running:
            self.serve(self.server.begin(MODEL))

    @invariant()
    def nothing_is_answered_twice(self):
        for key, said in self.replies.items():
            assert len(said) == 1, f"two answers: {key}"

    def teardown(self):
        event(f"{min(self.sums, 3)} sums, site-a masked {sum(len(key) == 2 for key in self.replies)} times")


@pytest.mark.parametrize("examples", [8, pytest.param(150, marks=pytest.mark.slow)])
def test_whatever_dies_and_comes_back_no_message_has_two_answers_and_every_sum_is_exact(examples):
    at_most = settings(max_examples=examples, stateful_step_count=40, deadline=None, database=None)
    run_state_machine_as_test(OneProcessAMessage, settings=settings(at_most, suppress_health_check=list(HealthCheck)))


KILLED = """
import sys
from pathlib import Path
from secagg import wire
from secagg.snapshot_files import kept_in
from secagg.sqlite import SqliteStore
from secagg.sqlite import SqliteStore
from tests.secagg.test_secagg_snapshot import MODEL, RUN, TASK, Cohort, driver
import os

cohort = Cohort(4, private=True, length=8)
folder = Path(sys.argv[1])
cohort.stores["site-a"] = SqliteStore(folder / "store", "a")
made = driver(cohort, "site-a")
with kept_in(folder / "sealed", made) as actions:
    actions += made.receive(Path(sys.argv[2]).read_bytes())
    if sys.argv[3] == "killed":
        os._exit(9)
print([type(action).__name__ for action in actions])
sys.stdout.flush()
print(b"".join(action.data for action in actions if hasattr(action, "data")).hex())
"""


def test_processes_that_are_killed_between_use_and_reply_never_answer_twice(tmp_path, cohort):
    def process(data: bytes, how: str) -> list[str]:
        (tmp_path / "message").write_bytes(data)
        done = subprocess.run(
            [sys.executable, "-c", KILLED, tmp_path, tmp_path / "message", how],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "PYTHONPATH": str(ROOT)},
        )
        assert done.returncode == (9 if how == "killed" else 0), done.stderr
        return done.stdout.splitlines()

    server = serving(cohort)
    starts = {action.to: action.data for action in server.begin(MODEL) if isinstance(action, Send)}
    told, first = process(starts["site-a"], "whole")
    assert told == "['Send', 'Joined']"
    rosters = server.receive("site-a", bytes.fromhex(first))
    others = {me: driver(cohort, me) for me in cohort.ids[1:]}
    for me, other in others.items():
        rosters += server.receive(me, other.receive(starts[me])[0].data)
    roster = next(action.data for action in rosters if isinstance(action, Send) and action.to == "site-a")
    kept = (tmp_path / "sealed").read_bytes()
    assert process(roster, "killed") == []
    assert not (tmp_path / "sealed").exists()
    (tmp_path / "sealed").write_bytes(kept)  # somebody restores the file
    told, said = process(roster, "whole")
    assert (told, said) == ("['Failed']", "")


KILLED_WHILE_WRITING = """
import os, sys
from pathlib import Path
import secagg.writing
from tests.secagg.test_secagg_snapshot import SqliteStore, Cohort, one_message

cohort = Cohort(4, private=True, length=8)
folder = Path(sys.argv[1])
cohort.stores["site-a"] = SqliteStore(folder / "store", "a")
secagg.writing.os.replace = lambda *_: os._exit(9)
one_message(cohort, "site-a", folder / "sealed", Path(sys.argv[2]).read_bytes())
"""


def test_what_a_process_that_was_killed_while_it_wrote_left_behind_is_erased(tmp_path, cohort, monkeypatch):
    folder = tmp_path / "site"
    folder.mkdir()
    server = serving(cohort, attempts=2)
    starts = [action.data for action in server.begin(MODEL) if isinstance(action, Send) and action.to == "site-a"]
    (tmp_path / "message").write_bytes(starts[0])
    done = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, folder, tmp_path / "message"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        check=False,
    )
    assert done.returncode == 9
    (left,) = (path for path in folder.iterdir() if path.name.startswith("."))
    assert left.stat().st_mode & 0o077 == 0
    (folder / "sealed.of.another").write_bytes(b"not ours")
    cohort.stores["site-a"] = SqliteStore(folder / "store", "a")
    erased = []
    monkeypatch.setattr("secagg.snapshot_files.erase", lambda path: (erased.append(path.name), path.unlink()))
    later = server.tick(server.deadline)
    heard = [action.data for action in later if isinstance(action, Send) and action.to == "site-a"]
    start = next(data for data in heard if isinstance(wire.decode_from_server(data), RoundStart))
    assert one_message(cohort, "site-a", folder / "sealed", start)[0]
    assert left.name in erased
    assert sorted(path.name for path in folder.iterdir()) == ["sealed", "sealed.of.another", "store"]
    cohort.stores["site-a"].close()
