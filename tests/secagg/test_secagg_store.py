"""The one state machine between the rounds: every transition, over memory and over a file that outlives its process."""

import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import tempfile
from contextlib import closing
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import pytest
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

import secagg
from secagg import ConfigError, ExposureError, UnexpectedMessageError
from secagg.context import GENESIS, LARGEST_NUMBER, Slot
from secagg.encoding import encode
from secagg.keys import verify
from secagg.messages import LARGEST_CLAIMS, Receipt, ReleaseClaim
from secagg.sqlite import SqliteStore
from secagg.store import NEVER, MemoryStore, Store
from tests.support.cohort import signing_key

RUN, OTHER_RUN = "run-1", 'a/"name" with %s'
SESSION, OTHER_SESSION = b"s" * 32, b"o" * 32
MODEL, OTHER_MODEL = b"m" * 32, b"n" * 32
BROKEN = (UnexpectedMessageError, ExposureError)


def slot(number: int = 1, attempt: int = 0, run: str = RUN, session: bytes = SESSION) -> Slot:
    return Slot(session, run, number, attempt)


def claim_of(at: Slot, model: bytes = MODEL) -> ReleaseClaim:
    rest = (model, GENESIS, GENESIS, b"2" * 32, b"3" * 32, b"4" * 32)
    return ReleaseClaim(at.session, at.training_run, at.round_number, at.attempt, *rest, {"site-a": bytes(64)})


def receipts(*numbers: int, run: str = RUN, previous: bytes = GENESIS) -> list[Receipt]:
    made = []
    for number in numbers:
        head = bytes([number % 256, len(made) + 1]) * 16
        made.append(Receipt(run, number, *[bytes([number % 256]) * 32] * 3, previous, head, b"signed"))
        previous = head
    return made


def does(store: Store, step: str, *arguments):
    with store.transaction() as marks:
        return getattr(marks, step)(*arguments)


def known(store: Store, name: str):
    with store.transaction() as marks:
        return getattr(marks, name)


def everything(store: Store) -> dict[str, str]:
    with store.transaction() as marks:
        return dict(marks._entries)


def refused(check: str, store: Store, step: str, *arguments) -> Exception:
    """The step is refused and has left nothing."""
    before = everything(store)
    with pytest.raises(BROKEN) as caught:
        does(store, step, *arguments)
    assert caught.value.check == check
    assert everything(store) == before
    return caught.value


def go(store: Store, at: Slot, *, model: bytes = MODEL, claims=(), private: bool = False) -> bytes:
    """A whole attempt up to its release: the round's id."""
    does(store, "join", at, model, private)
    does(store, "contribute", at, "event", claims, private)
    does(store, "release", at, claim_of(at, model), private)
    return claim_of(at, model).round_id


def accept(store: Store, round_id: bytes) -> None:
    does(store, "accept_exposure", round_id, b"signature")


@pytest.fixture(params=["sqlite", "memory"])
def store(request, tmp_path) -> Store:
    return SqliteStore(tmp_path / "marks.sqlite", "d") if request.param == "sqlite" else MemoryStore()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "marks.sqlite"


# --- join --------------------------------------------------------------------------------------------------------


def test_joins_increase_by_round_number_then_attempt_in_each_run_of_each_session(store):
    assert does(store, "joined", SESSION, RUN) == (0, 0)
    for number, attempt in ((1, 0), (1, 1), (3, 0), (3, 2), (LARGEST_NUMBER, LARGEST_NUMBER)):
        assert does(store, "join", slot(number, attempt), MODEL, False) == ()
        assert does(store, "joined", SESSION, RUN) == (number, attempt)
        for again in ((number, attempt), (number, 0), (1, 0)):
            error = refused("C-03", store, "join", slot(*again), MODEL, False)
    assert "wait for a later round or attempt" in str(error)
    for elsewhere in (slot(run=OTHER_RUN), slot(session=OTHER_SESSION)):
        does(store, "join", elsewhere, MODEL, False)
        refused("C-03", store, "join", elsewhere, MODEL, True)


def test_a_later_join_of_any_session_kills_what_was_joined_before(store):
    for later in (slot(2), slot(1, 1), slot(run=OTHER_RUN), slot(session=OTHER_SESSION)):
        at = slot(known(store, "joined")(SESSION, RUN)[0] + 10)
        does(store, "join", at, MODEL, False)
        does(store, "join", replace(later, round_number=at.round_number + 1), MODEL, True)
        refused("C-24", store, "contribute", at, "event", (), False)
        refused("C-24", store, "contribute", at, "event", (), True)


def test_whoever_contributed_releases_nothing_once_another_attempt_was_joined(store):
    does(store, "join", slot(), MODEL, False)
    does(store, "contribute", slot(), "event", (), False)
    does(store, "join", slot(run=OTHER_RUN), MODEL, False)
    refused("C-24", store, "release", slot(), claim_of(slot()), False)
    refused("C-24", store, "refuse_claims", slot(), (), "ShareKeys")
    refused("C-24", store, "release", slot(run=OTHER_RUN), claim_of(slot(run=OTHER_RUN)), False)
    assert known(store, "open_release") is None


# --- contribute --------------------------------------------------------------------------------------------------


def test_one_contribution_to_a_round_number_whatever_the_attempt_and_the_event(store):
    does(store, "join", slot(2), MODEL, False)
    refused("C-24", store, "contribute", slot(3), "event", (), False)
    does(store, "contribute", slot(2), "event-1", (), False)
    for event in ("event-1", "event-2"):
        refused("C-14", store, "contribute", slot(2), event, (), False)
    does(store, "join", slot(2, 1), MODEL, False)
    assert "joins again in round 3" in str(refused("C-14", store, "contribute", slot(2, 1), "event-2", (), True))
    for at in (slot(3), slot(2, run=OTHER_RUN), slot(2, session=OTHER_SESSION)):
        does(store, "join", at, MODEL, False)
        does(store, "contribute", at, "", (), False)


def test_what_others_released_must_be_replayed_before_the_join_or_accepted_by_name(store):
    theirs, more = claim_of(slot(7), OTHER_MODEL), claim_of(slot(8), OTHER_MODEL)
    does(store, "join", slot(9), MODEL, False)
    assert refused("C-26", store, "refuse_claims", slot(9), (theirs,), "ShareKeys").round_ids == (theirs.round_id,)
    error = refused("C-26", store, "contribute", slot(9), "event", (theirs, more), False)
    assert (error.step, error.round_ids) == ("MaskedInputCollection", (theirs.round_id, more.round_id))
    assert theirs.round_id.hex() in str(error)
    accept(store, theirs.round_id)
    assert refused("C-26", store, "contribute", slot(9), "event", (theirs, more), False).round_ids == (more.round_id,)
    does(store, "replay", slot(8), more.round_id)  # after the join: the model of this attempt is still the old one
    refused("C-26", store, "contribute", slot(9), "event", (theirs, more), False)
    does(store, "join", slot(9, 1), MODEL, False)
    does(store, "contribute", slot(9, 1), "event", (theirs, more), False)
    assert not does(store, "accepted", theirs.round_id)


def test_a_replay_that_comes_again_changes_nothing(store):
    theirs = claim_of(slot(7), OTHER_MODEL)
    does(store, "replay", slot(7), theirs.round_id)
    does(store, "join", slot(9), MODEL, False)
    before = everything(store)
    does(store, "replay", slot(7), theirs.round_id)
    assert everything(store) == before
    does(store, "contribute", slot(9), "event", (theirs,), False)


@pytest.mark.parametrize("elsewhere", [{"run": OTHER_RUN}, {"session": OTHER_SESSION}])
def test_another_run_on_the_same_model_exposes_even_where_it_was_replayed(store, elsewhere):
    theirs = claim_of(slot(1, **elsewhere))
    does(store, "join", theirs.slot, MODEL, False)
    does(store, "contribute", theirs.slot, "event", (), False)
    does(store, "replay", theirs.slot, theirs.round_id)
    for at, model, fires in ((slot(1), MODEL, True), (slot(2), OTHER_MODEL, False), (slot(3), MODEL, True)):
        does(store, "join", at, model, False)
        if fires:
            refused("C-26", store, "contribute", at, "event", (theirs,), False)
            accept(store, theirs.round_id)
        does(store, "contribute", at, "event", (theirs,), False)


def test_a_claim_of_another_session_exposes_who_added_to_its_round_an_update_that_was_not_private(store):
    theirs = claim_of(slot(4, 1, session=OTHER_SESSION), OTHER_MODEL)  # of another attempt at the same round number
    for number, private in ((2, False), (3, True), (4, False)):
        does(store, "join", slot(number), MODEL, False)
        does(store, "contribute", slot(number), "event", (theirs,), False)  # not in that round itself so far
        does(store, "join", slot(number, session=OTHER_SESSION), MODEL, private)
        does(store, "contribute", slot(number, session=OTHER_SESSION), "event", (), private)
    for at in (slot(5), slot(5, run=OTHER_RUN)):
        does(store, "join", at, MODEL, False)
        assert refused("C-26", store, "contribute", at, "event", (theirs,), False).round_ids == (theirs.round_id,)
    accept(store, theirs.round_id)
    does(store, "contribute", slot(5, run=OTHER_RUN), "event", (theirs,), False)
    does(store, "replay", theirs.slot, theirs.round_id)
    does(store, "join", slot(6), MODEL, False)
    does(store, "contribute", slot(6), "event", (theirs,), False)


@pytest.mark.parametrize("model", [MODEL, OTHER_MODEL])
def test_a_claim_of_another_session_of_a_round_that_this_data_set_added_to_privately_exposes_nothing(store, model):
    theirs = claim_of(slot(1, session=OTHER_SESSION), model)
    does(store, "join", theirs.slot, model, True)
    does(store, "contribute", theirs.slot, "event", (), True)
    does(store, "join", slot(1), MODEL, False)
    does(store, "contribute", slot(1), "event", (theirs,), False)


def test_a_private_contribution_asks_for_no_acceptance_and_uses_none(store):
    own = go(store, slot(1))
    accept(store, own)
    theirs = claim_of(slot(7))
    assert does(store, "join", slot(8), MODEL, True) == (claim_of(slot(1)),)  # another member may not be private
    does(store, "contribute", slot(8), "event", (theirs,), True)
    does(store, "release", slot(8), claim_of(slot(8)), True)
    assert does(store, "accepted", own)
    assert known(store, "open_release").round_id == own
    assert does(store, "released", SESSION) == claim_of(slot(8)).round_id


def test_a_contribution_that_was_private_releases_as_nothing_else(store):
    opened = go(store, slot(1))
    does(store, "join", slot(2), MODEL, True)
    does(store, "contribute", slot(2), "event", (), True)
    assert refused("C-05", store, "release", slot(2), claim_of(slot(2)), False).round_ids == (opened,)


# --- release -----------------------------------------------------------------------------------------------------


def test_shares_are_released_once_by_who_contributed_and_is_live(store):
    assert does(store, "released", SESSION) == NEVER
    does(store, "join", slot(), MODEL, False)
    refused("C-24", store, "release", slot(), claim_of(slot()), False)
    does(store, "contribute", slot(), "event", (), False)
    refused("C-24", store, "release", slot(2), claim_of(slot(2)), False)
    does(store, "release", slot(), claim_of(slot()), False)
    refused("C-24", store, "release", slot(), claim_of(slot()), False)
    opened = known(store, "open_release")
    assert (opened.round_id, opened.name, opened.claim) == (claim_of(slot()).round_id, str(slot()), claim_of(slot()))
    assert does(store, "released", SESSION) == opened.round_id
    assert does(store, "released", OTHER_SESSION) == NEVER


@pytest.mark.parametrize("elsewhere", [{}, {"run": OTHER_RUN}, {"session": OTHER_SESSION}])
def test_an_open_release_stops_every_later_attempt_until_it_is_replayed(store, elsewhere):
    opened = go(store, slot(1))
    later = slot(2, **elsewhere)
    for step in ("RoundStart", "Other"):
        error = refused("C-05", store, "refuse_exposure", later, OTHER_MODEL, step)
        assert (error.step, error.round_ids) == (step, (opened,))
    assert "did send unmasking shares" in str(error)
    refused("C-05", store, "join", later, OTHER_MODEL, False)
    does(store, "replay", slot(2), claim_of(slot(2)).round_id)
    refused("C-05", store, "join", later, OTHER_MODEL, False)
    does(store, "replay", slot(1), opened)
    assert known(store, "open_release") is None
    assert does(store, "join", later, OTHER_MODEL, False) == ()
    does(store, "contribute", later, "event", (), False)


@pytest.mark.parametrize("elsewhere", [{"run": OTHER_RUN}, {"session": OTHER_SESSION}])
def test_a_run_that_starts_over_on_the_same_model_needs_acceptance_of_every_round_on_it(store, elsewhere):
    first = go(store, slot(1))
    does(store, "replay", slot(1), first)
    accept(store, first)
    again = slot(1, run="run-2")
    second = go(store, again)
    does(store, "replay", again, second)
    over = slot(1, **elsewhere)
    assert refused("C-05", store, "join", over, MODEL, False).round_ids == (first, second)
    accept(store, first)
    assert refused("C-05", store, "join", over, MODEL, False).round_ids == (second,)
    accept(store, second)
    assert does(store, "join", over, MODEL, False) == (claim_of(slot(1)), claim_of(again))
    does(store, "contribute", over, "event", (), False)
    assert not does(store, "accepted", first) | does(store, "accepted", second)


def test_a_release_that_was_accepted_is_superseded_by_the_next_one(store):
    first = go(store, slot(1))
    accept(store, first)
    assert does(store, "join", slot(2), MODEL, False) == (claim_of(slot(1)),)
    does(store, "contribute", slot(2), "event", (), False)
    does(store, "release", slot(2), claim_of(slot(2)), False)
    assert known(store, "open_release").round_id == claim_of(slot(2)).round_id
    second = claim_of(slot(2)).round_id
    for model in (OTHER_MODEL, MODEL):  # neither was replayed, so nothing says that the model has moved on
        assert refused("C-05", store, "join", slot(3), model, False).round_ids == (first, second)


def test_a_release_of_another_run_is_passed_over_on_another_model_once_it_was_superseded(store):
    first = go(store, slot(1, run=OTHER_RUN))
    accept(store, first)
    second = go(store, slot(1), model=OTHER_MODEL)
    assert refused("C-05", store, "join", slot(2), OTHER_MODEL, False).round_ids == (second,)
    assert refused("C-05", store, "join", slot(2), MODEL, False).round_ids == (first, second)
    does(store, "replay", slot(1), second)
    assert does(store, "join", slot(2), OTHER_MODEL, False) == ()
    # What its acceptance served was another run: in its own one it is not accounted for, whatever the model.
    assert refused("C-05", store, "join", slot(2, run=OTHER_RUN), b"3" * 32, False).round_ids == (first,)
    does(store, "replay", slot(1, run=OTHER_RUN), first)
    assert does(store, "join", slot(2, run=OTHER_RUN), b"3" * 32, False) == ()


def test_an_acceptance_counts_for_one_contribution_and_can_be_given_again(store):
    first = go(store, slot(1))
    accept(store, first)
    for number in (2, 3):
        does(store, "join", slot(number), MODEL, False)
        does(store, "contribute", slot(number), "event", (), False)
        assert not does(store, "accepted", first)
        refused("C-05", store, "join", slot(number + 1), MODEL, False)
        accept(store, first)


def test_an_acceptance_that_another_attempt_used_meanwhile_does_not_count(store):
    """The acceptance is there when the attempt is joined, and gone when it contributes."""
    theirs = claim_of(slot(1, run=OTHER_RUN), OTHER_MODEL)
    accept(store, theirs.round_id)
    does(store, "join", slot(5), MODEL, False)
    does(store, "contribute", slot(5), "event", (theirs,), False)
    does(store, "join", slot(6), MODEL, False)
    refused("C-26", store, "contribute", slot(6), "event", (theirs,), False)


def test_a_replay_after_the_join_does_not_free_what_was_announced(store):
    """The model of an attempt is fixed when it is joined: a transcript that comes later does not change its update."""
    first = go(store, slot(1))
    accept(store, first)
    does(store, "join", slot(2), MODEL, False)
    does(store, "replay", slot(1), first)
    does(store, "contribute", slot(2), "event", (), False)
    assert not does(store, "accepted", first)
    does(store, "join", slot(3), OTHER_MODEL, False)


def test_a_round_that_was_replayed_before_its_own_release_is_not_opened(store):
    does(store, "join", slot(1), MODEL, False)
    does(store, "contribute", slot(1), "event", (), False)
    does(store, "replay", slot(1), claim_of(slot(1)).round_id)
    does(store, "release", slot(1), claim_of(slot(1)), False)
    assert known(store, "open_release") is None
    assert does(store, "released", SESSION) == claim_of(slot(1)).round_id


def test_the_replay_of_a_round_settles_what_was_accepted_for_it(store):
    """A liar that shows the true claim of an old burned round again asks for one acceptance, not for one a round."""
    burned, theirs, elsewhere = go(store, slot(1)), claim_of(slot(1, 1)), claim_of(slot(1, run=OTHER_RUN))
    for round_id in (burned, theirs.round_id, elsewhere.round_id):
        accept(store, round_id)
    done = go(store, slot(2), claims=(theirs, elsewhere))
    does(store, "replay", slot(2), done)
    assert does(store, "replayed", burned) & does(store, "replayed", theirs.round_id)
    does(store, "join", slot(3), OTHER_MODEL, False)
    error = refused("C-26", store, "contribute", slot(3), "event", (claim_of(slot(1)), theirs, elsewhere), False)
    assert error.round_ids == (elsewhere.round_id,)  # the model of another run did not move on with this one
    does(store, "contribute", slot(3), "event", (claim_of(slot(1)), theirs), False)


def test_a_settled_round_is_closed_also_where_this_site_released_nothing_in_the_round_that_settled_it(store):
    burned = go(store, slot(1))
    accept(store, burned)
    does(store, "join", slot(2), MODEL, False)
    does(store, "contribute", slot(2), "event", (), False)  # then its line broke; the others finished the round
    does(store, "replay", slot(2), claim_of(slot(2)).round_id)
    assert known(store, "open_release") is None
    assert does(store, "join", slot(3), OTHER_MODEL, False) == ()


def test_an_operator_signs_what_is_accepted(store):
    key = signing_key(0)
    secagg.accept_exposure(store, key, "site-a", b"r" * 32)
    kept = everything(store)[f"accepted/{(b'r' * 32).hex()}"]
    (signature,) = (bytes.fromhex(word) for word in kept.split('"') if len(word) == 128)
    assert verify(key.verify_key, encode("accept-exposure", b"r" * 32, "site-a"), signature)
    assert does(store, "accepted", b"r" * 32)
    assert not does(store, "accepted", b"q" * 32)
    with pytest.raises(ConfigError, match="64 hexadecimal digits"):
        secagg.accept_exposure(store, key, "site-a", b"short")


# --- the log -----------------------------------------------------------------------------------------------------


def test_receipts_follow_each_other_and_may_skip_burned_rounds(store):
    assert does(store, "head", SESSION, RUN) == (0, GENESIS)
    one, three, four = receipts(1, 3, 4)
    does(store, "finish", SESSION, RUN, [one])
    does(store, "finish", SESSION, RUN, [three, four])
    assert does(store, "head", SESSION, RUN) == (4, four.head)
    assert [does(store, "receipt", SESSION, RUN, n) for n in (1, 2, 3, 4)] == [one, None, three, four]
    for elsewhere in ((OTHER_SESSION, RUN), (SESSION, OTHER_RUN)):
        assert does(store, "head", *elsewhere) == (0, GENESIS)
        assert does(store, "receipt", *elsewhere, 1) is None
    known(store, "verify")()


def test_receipts_are_logged_all_or_none(store):
    one, two, three = receipts(1, 2, 3)
    does(store, "finish", SESSION, RUN, [one])
    forged = replace(three, previous_head=b"x" * 32)
    for bad in ([three], [two, forged], [two, replace(three, round_number=2)], [replace(two, training_run=OTHER_RUN)]):
        assert "compare the heads" in str(refused("C-22", store, "finish", SESSION, RUN, bad))
    refused("C-22", store, "finish", SESSION, OTHER_RUN, [two])
    does(store, "finish", SESSION, RUN, [one, two, three])
    before = everything(store)
    does(store, "finish", SESSION, RUN, [one, three])
    assert everything(store) == before
    refused("C-22", store, "finish", SESSION, RUN, [replace(two, head=b"x" * 32)])


# --- the file ----------------------------------------------------------------------------------------------------


def test_marks_survive_reopening(path):
    with SqliteStore(path, "d") as store:
        opened = go(store, slot(1))
        does(store, "finish", SESSION, RUN, receipts(1))
        before = everything(store)
    for _ in range(2):
        with SqliteStore(path, "d") as store:
            assert everything(store) == before
            refused("C-03", store, "join", slot(1), MODEL, True)
            refused("C-14", store, "contribute", slot(1), "event", (), False)
            refused("C-24", store, "release", slot(1), claim_of(slot(1)), False)
            assert refused("C-05", store, "join", slot(2), MODEL, False).round_ids == (opened,)
            assert known(store, "open_release").claim == claim_of(slot(1))
            assert does(store, "head", SESSION, RUN) == (1, receipts(1)[0].head)


def die_in_a_transaction(store: Store, error: type[BaseException]) -> None:
    with store.transaction() as marks:
        marks.join(slot(1), MODEL, False)
        marks.contribute(slot(1), "event", (), False)
        raise error


def test_what_raises_in_a_transaction_leaves_nothing(store):
    for broken in (ValueError, KeyboardInterrupt):
        before = everything(store)
        with pytest.raises(broken):
            die_in_a_transaction(store, broken)
        assert everything(store) == before
    go(store, slot(1))


def test_every_commit_is_flushed_and_the_file_is_private(path):
    with SqliteStore(path, "d") as store:
        assert store._database.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert store._database.execute("PRAGMA synchronous").fetchone() == (3,)
    with SqliteStore(path, "d", synced=False) as store:
        assert store._database.execute("PRAGMA synchronous").fetchone() == (0,)
        assert store._database.execute("PRAGMA journal_mode").fetchone() == ("wal",)
        assert path.stat().st_mode & 0o777 == 0o600


TAMPERINGS = {
    "a head": ("value = replace(value, '\"round_number\": 2', '\"round_number\": 9')", "log/%0002"),
    "a receipt's signature": ("value = replace(value, 'signature\": \"', 'signature\": \"00')", "log/%0002"),
    "no receipt": ("value = '{}'", "log/%0002"),
    "no json": ("value = '{'", "log/%0002"),
    "a short head": ('value = replace(value, \'"previous_head": "\', \'"previous_head": "00\')', "log/%0002"),
    "a gap": ("key = 'gone'", "log/%0002"),
}
INDEX_TAMPERINGS = {
    "the last head": ("value = replace(value, '[3', '[2')", "head/%"),
    "a head too few": ("key = 'gone'", "head/%"),
    "a round's entry": ("value = '1'", 'round/%"/2'),
    "a log that was shortened": ("value = replace(value, '[3', '[2')", "log"),
    "no log": ("key = 'gone'", "log"),
}


@pytest.mark.parametrize("tampering", [*TAMPERINGS, *INDEX_TAMPERINGS])
def test_a_changed_log_is_noticed(path, tampering):
    with SqliteStore(path, "d") as store:
        does(store, "finish", SESSION, RUN, receipts(1, 2, 3))
    change, where = {**TAMPERINGS, **INDEX_TAMPERINGS}[tampering]
    with sqlite3.connect(path) as database:
        assert database.execute(f"UPDATE marks SET {change} WHERE key LIKE ?", (where,)).rowcount == 1
    what = "entry 2 of" if tampering in TAMPERINGS else "(the index|entry .*) of"
    with pytest.raises(ConfigError, match=rf"marks.sqlite: {what} the log of heads was changed or removed"):
        SqliteStore(path, "d")


def test_a_store_belongs_to_one_data_set(path):
    SqliteStore(path, "ward-3").close()
    with pytest.raises(ConfigError, match=r"belongs to data set 'ward-3', not 'ward-4'"):
        SqliteStore(path, "ward-4")


def test_files_that_are_no_store(path, tmp_path):
    path.write_bytes(b"not a database at all" * 100)
    with pytest.raises(ConfigError, match="file is not a database"):
        SqliteStore(path, "d")
    with pytest.raises(ConfigError, match="cannot be opened"):
        SqliteStore(tmp_path / "absent" / "marks.sqlite", "d")
    for name, script in (("other", "CREATE TABLE something (x)"), ("later", "PRAGMA user_version = 4")):
        database = sqlite3.connect(tmp_path / f"{name}.sqlite")
        database.executescript(script)
        database.close()
        before = (tmp_path / f"{name}.sqlite").read_bytes()
        with pytest.raises(ConfigError, match="not a store of this version"):
            SqliteStore(tmp_path / f"{name}.sqlite", "d")
        assert sqlite3.connect(tmp_path / f"{name}.sqlite").execute("PRAGMA user_version").fetchone()[0] in (0, 4)
        assert len((tmp_path / f"{name}.sqlite").read_bytes()) == len(before)


# --- stores of protocol version 1 --------------------------------------------------------------------------------

VERSION_1 = """
CREATE TABLE data_set (name TEXT NOT NULL);
CREATE TABLE joined (training_run TEXT NOT NULL, round_number INTEGER NOT NULL, attempt INTEGER NOT NULL,
  PRIMARY KEY (training_run, round_number, attempt));
CREATE TABLE contributed (training_run TEXT NOT NULL, round_number INTEGER NOT NULL, event_id TEXT NOT NULL,
  PRIMARY KEY (training_run, round_number));
CREATE TABLE released (training_run TEXT NOT NULL, round_number INTEGER NOT NULL,
  PRIMARY KEY (training_run, round_number));
{replayed}
CREATE TABLE heads (entry INTEGER PRIMARY KEY, training_run TEXT NOT NULL, round_number INTEGER NOT NULL,
  head BLOB NOT NULL, receipt BLOB NOT NULL, link BLOB NOT NULL);
INSERT INTO data_set VALUES ('ward-3');
INSERT INTO joined VALUES ('run-1', 2, 0);
INSERT INTO contributed VALUES ('run-1', 2, 'event');
INSERT INTO heads VALUES (1, 'run-1', 1, zeroblob(32), x'00', zeroblob(32));
PRAGMA user_version = {version};
"""
REPLAYED = """CREATE TABLE replayed (training_run TEXT NOT NULL, round_number INTEGER NOT NULL,
  PRIMARY KEY (training_run, round_number));"""


def version_1(path: Path, version: int, released=(), replayed=()) -> None:
    """A file as protocol version 1 left it: the first version of its schema had no table of replayed rounds."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA journal_mode = WAL")
    database.executescript(VERSION_1.format(replayed=REPLAYED if version == 2 else "", version=version))
    database.executemany("INSERT INTO released VALUES (?, ?)", released)
    if version == 2:
        database.executemany("INSERT INTO replayed VALUES (?, ?)", replayed)
    database.commit()
    database.close()


@pytest.mark.parametrize(
    ("version", "released", "replayed", "left"),
    [
        (1, [], [], None),
        (2, [], [], None),
        (2, [("run-1", 1), ("run-1", 2)], [("run-1", 1), ("run-1", 2)], None),
        (2, [("run-1", 2)], [("run-1", 3)], None),
        (2, [("run-1", 1), ("run-1", 2)], [("run-1", 1)], "round 2 of run run-1 (protocol version 1)"),
        (2, [("run-1", 2), ("b", 1)], [("b", 1)], "round 2 of run run-1 (protocol version 1)"),
        (2, [("run-1", 2)], [("b", 2)], "round 2 of run run-1 (protocol version 1)"),
        (1, [("run-1", 2), ("b", 1)], [], "round 1 of run b, round 2 of run run-1 (protocol version 1)"),
    ],
)
def test_a_store_of_version_1_keeps_what_was_released_open(path, version, released, replayed, left):
    version_1(path, version, released, replayed)
    with pytest.raises(ConfigError, match="belongs to data set 'ward-3'"):
        SqliteStore(path, "ward-4")
    SqliteStore(path, "ward-3").close()
    with SqliteStore(path, "ward-3") as store:  # and again, now as a store of this version
        opened = known(store, "open_release")
        assert (opened and opened.name) == left
        tables = {name for (name,) in store._database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
        assert {"version_1_joined", "version_1_heads", "version_1_released"} <= tables
        assert store._database.execute("SELECT * FROM version_1_contributed").fetchall() == [("run-1", 2, "event")]
        if left is None:
            go(store, slot(1))
            return
        assert opened.claim is None
        assert refused("C-05", store, "join", slot(3, run=OTHER_RUN), MODEL, False).round_ids == (opened.round_id,)
        accept(store, opened.round_id)
        assert does(store, "join", slot(3), MODEL, False) == ()
        does(store, "contribute", slot(3), "event", (), False)
        does(store, "release", slot(3), claim_of(slot(3)), False)
        assert known(store, "open_release").claim == claim_of(slot(3))


def test_two_histories_of_version_1_are_two_rounds_to_accept(tmp_path):
    opened = set()
    for place, number in enumerate((2, 3)):
        version_1(tmp_path / f"{place}.sqlite", 2, [("run-1", number)])
        with SqliteStore(tmp_path / f"{place}.sqlite", "ward-3") as store:
            opened.add(known(store, "open_release").round_id)
    assert len(opened) == 2


def test_a_migration_that_dies_has_not_begun(path, monkeypatch):
    version_1(path, 2, [("run-1", 2)])
    monkeypatch.setattr("secagg.sqlite._OLD_TABLES", ("joined", "joined"))
    with pytest.raises(ConfigError, match="no such table"):
        SqliteStore(path, "ward-3")
    monkeypatch.undo()
    with SqliteStore(path, "ward-3") as store:
        assert known(store, "open_release").name == "round 2 of run run-1 (protocol version 1)"


# --- several processes -------------------------------------------------------------------------------------------


def child(program: str, path: Path) -> subprocess.Popen[str]:
    head = "import sys\nfrom tests.secagg.test_secagg_store import *\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


@pytest.mark.parametrize("synced", [True, False])
def test_marks_of_a_killed_process_stand(path, synced):
    """SIGKILL at an arbitrary moment of a busy loop: whatever was reported as marked stays marked, as a whole."""
    process = child(
        f"store = SqliteStore(Path(sys.argv[1]), 'd', synced={synced})\n"
        "for number in range(1, 100000):\n"
        "    with store.transaction() as marks:\n"
        "        marks.join(slot(number), MODEL, True)\n"
        "        marks.contribute(slot(number), 'event', (), True)\n"
        "        marks.release(slot(number), claim_of(slot(number)), True)\n"
        "    print(number, flush=True)\n",
        path,
    )
    reported = [int(process.stdout.readline()) for _ in range(5)]
    os.kill(process.pid, signal.SIGKILL)
    reported += [int(line) for line in process.stdout.read().splitlines()]
    process.wait()
    with SqliteStore(path, "d") as store:
        last = does(store, "joined", SESSION, RUN)[0]
        assert last in (reported[-1], reported[-1] + 1)
        assert does(store, "released", SESSION) == claim_of(slot(last)).round_id
        refused("C-03", store, "join", slot(last), MODEL, True)
        go(store, slot(last + 1))


@pytest.mark.parametrize(
    ("said", "told"),
    [("locking protocol", "keep the file on a local disk"), ("disk I/O error", "check the disk and the rights")],
)
def test_a_disk_whose_locks_do_not_work_is_named_at_once(path, monkeypatch, said, told):
    """SQLite's own words on a network share; waiting for another process would not help."""
    asked = []

    class Share(sqlite3.Connection):
        def execute(self, statement, *values):
            if "journal_mode" in statement:
                asked.append(statement)
                raise sqlite3.OperationalError(said)
            return super().execute(statement, *values)

    monkeypatch.setattr("secagg.sqlite.sqlite3.connect", partial(sqlite3.connect, factory=Share))
    with pytest.raises(ConfigError, match=rf"{path.name}: cannot be used \({said}\); .*{told}"):
        SqliteStore(path, "d")
    assert len(asked) == 1


def test_a_file_that_another_process_keeps_locked_is_told_with_the_network_share_that_says_the_same(path, monkeypatch):
    SqliteStore(path, "d").close()
    monkeypatch.setattr("secagg.sqlite._LOCK_SECONDS", 0.0)
    with closing(sqlite3.connect(path, isolation_level=None)) as other:
        other.execute("BEGIN EXCLUSIVE")
        with pytest.raises(ConfigError, match=r"database is locked\); end the other process .* not on a network share"):
            SqliteStore(path, "d")


@pytest.mark.parametrize("moment", ["within", "after"])
def test_killed_in_a_transaction_or_after_it(path, moment):
    """The crash that the mark is for: marked, killed before anything was sent, started again."""
    wait = {"within": "    print('ok'); input()\n", "after": "print('ok'); input()\n"}[moment]
    process = child(
        "store = SqliteStore(Path(sys.argv[1]), 'd')\n"
        "does(store, 'join', slot(7), MODEL, False)\n"
        "with store.transaction() as marks:\n"
        "    marks.contribute(slot(7), 'event', (), False)\n" + wait,
        path,
    )
    assert process.stdout.readline() == "ok\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with SqliteStore(path, "d") as store:
        refused("C-03", store, "join", slot(7), MODEL, False)
        if moment == "after":
            refused("C-14", store, "contribute", slot(7), "event", (), False)
        else:
            does(store, "contribute", slot(7), "event", (), False)


def test_a_store_that_is_moved_after_its_process_was_killed_knows_everything(path, tmp_path):
    """A write-ahead log would stay behind with the marks, and the site would give its update twice."""
    process = child(
        "store = SqliteStore(Path(sys.argv[1]), 'd')\n"
        "does(store, 'join', slot(7), MODEL, False)\n"
        "does(store, 'contribute', slot(7), 'event', (), False)\n"
        "print('ok'); input()\n",
        path,
    )
    assert process.stdout.readline() == "ok\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    (tmp_path / "disk").mkdir()
    with SqliteStore(path.rename(tmp_path / "disk" / path.name), "d") as moved:
        refused("C-03", moved, "join", slot(7), MODEL, False)
        refused("C-14", moved, "contribute", slot(7), "event", (), False)


def test_racing_processes_win_each_mark_once(path):
    """Three processes open a new file at once, and race to contribute and to release in the same fifteen rounds."""
    program = (
        "print('ready'); input()\n"
        "store = SqliteStore(Path(sys.argv[1]), 'd')\n"
        "for number in range(1, 16):\n"
        "    release = (claim_of(slot(number)), True)\n"
        "    for step, arguments in (('join', (MODEL, True)), ('contribute', ('e', (), True)), ('release', release)):\n"
        "        try:\n"
        "            does(store, step, slot(number), *arguments)\n"
        "            print(step, number)\n"
        "        except UnexpectedMessageError:\n"
        "            pass\n"
    )
    racers = [child(program, path) for _ in range(3)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
    won = [line for racer in racers for line in racer.communicate()[0].splitlines()]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert len(won) == len(set(won))
    assert {"join 15", "contribute 15", "release 15"} <= set(won)


def test_store_needs_no_grpc():
    code = "import sys, secagg.sqlite; sys.exit(not {'grpc', 'asyncio'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


# --- against a model ---------------------------------------------------------------------------------------------


class Of(NamedTuple):
    """A round, by what tells it from others here."""

    slot: Slot
    model: bytes

    @property
    def claim(self) -> ReleaseClaim:
        return claim_of(self.slot, self.model)

    @property
    def number(self) -> tuple[bytes, str, int]:
        """What a data set adds to once, whatever the attempt."""
        return self.slot.session, self.slot.training_run, self.slot.round_number

    def same_run(self, at: Slot) -> bool:
        return (self.slot.session, self.slot.training_run) == (at.session, at.training_run)

    def elsewhere(self, at: Slot, model: bytes) -> bool:
        """Whether it was another run on this very model."""
        return self.model == model and not self.same_run(at)


@dataclass
class Reference:
    """The same machine, written as the specification says it, in sets: each step returns what it gives, or who refuses.

    A round exposes an attempt unless it was replayed before the attempt was joined, and anyhow where it was another run
    on the attempt's model. An own release of another run on another model is passed over once a later one has
    superseded it, and a claim of another session where this data set added nothing to its round that was not private.
    """

    joins: int = 0
    joined: dict = field(default_factory=dict)
    contributed: dict = field(default_factory=dict)
    added: set = field(default_factory=set)
    last: dict = field(default_factory=dict)
    live: tuple | None = None
    pending: Slot | None = None
    open: Of | None = None
    released: list = field(default_factory=list)
    replayed: dict = field(default_factory=dict)
    accepted: set = field(default_factory=set)
    used: dict = field(default_factory=dict)
    heads: dict = field(default_factory=dict)

    def join(self, at, model, private):
        run = (at.session, at.training_run)
        if (at.round_number, at.attempt) <= self.joined.get(run, (0, 0)):
            return "C-03"
        elsewhere = [r for r in self.released if r.elsewhere(at, model)]
        waiting = [r for r in self.released if r.same_run(at) and r not in self.replayed]
        own = list(dict.fromkeys([*elsewhere, *waiting, *([self.open] if self.open else [])]))
        if not private and not self.accepted.issuperset(own):
            return "C-05"
        self.joins += 1
        self.joined[run] = (at.round_number, at.attempt)
        self.live = (at, model, self.joins, set(own))
        return tuple(own[-LARGEST_CLAIMS:])

    def contribute(self, at, theirs, private):
        if self.live is None or self.live[0] != at:
            return "C-24"
        _, model, since, own = self.live
        run = (at.session, at.training_run)
        if at.round_number <= self.contributed.get(run, 0):
            return "C-14"
        bind = [r for r in theirs if r.slot.session == at.session or r.number in self.added]
        exposing = {r for r in bind if self.replayed.get(r, since) >= since or r.elsewhere(at, model)}
        for check, rounds in (("C-05", own), ("C-26", exposing)):
            if not private and not rounds <= self.accepted:
                return check
        if not private:
            self.used[at] = own | exposing
            self.accepted -= self.used[at]
            self.added.add((*run, at.round_number))
        self.contributed[run] = at.round_number
        self.pending = at
        return None

    def release(self, at, private):
        if self.live is None or self.live[0] != at or self.pending != at:
            return "C-24"
        if not private and self.open is not None and self.open not in self.used[at]:
            return "C-05"
        this = Of(at, self.live[1])
        self.pending, self.last[at.session] = None, this
        if not private:
            self.released.append(this)
            self.open = None if this in self.replayed else this
        return None

    def replay(self, this):
        cleared = {this, *(r for r in self.used.get(this.slot, ()) if r.same_run(this.slot))}
        for each in cleared:
            self.replayed.setdefault(each, self.joins)
        self.open = None if self.open in cleared else self.open

    def finish(self, session, run, fresh):
        number, head = self.heads.get((session, run), (0, GENESIS))
        if fresh.round_number <= number or fresh.previous_head != head:
            return "C-22"
        self.heads[session, run] = (fresh.round_number, fresh.head)
        return None


RUNS = st.tuples(st.sampled_from([SESSION, OTHER_SESSION]), st.sampled_from([RUN, OTHER_RUN]))
MODELS = st.sampled_from([MODEL, OTHER_MODEL])
WHICH = st.integers(0, 11)


class OneMachine(RuleBasedStateMachine):
    """Memory and a file that is closed and opened again give, step by step, what the reference gives."""

    @initialize()
    def open(self) -> None:
        self.folder = Path(tempfile.mkdtemp())
        self.reference, self.memory = Reference(), MemoryStore()
        self.open_file()
        self.rounds = [
            Of(slot(1, run=run, session=session), model)
            for session, run in ((SESSION, RUN), (OTHER_SESSION, RUN), (b"t" * 32, "x"))
            for model in (MODEL, b"z" * 32)
        ]
        self.at, self.model, self.private = slot(), MODEL, False

    def teardown(self) -> None:
        if hasattr(self, "file"):
            self.file.close()
            shutil.rmtree(self.folder)

    def agree(self, expected, step: str, *arguments):
        for store in (self.memory, self.file):
            try:
                got = does(store, step, *arguments)
            except BROKEN as error:
                got = error.check
            if isinstance(got, tuple):
                got = tuple(Of(claim.slot, claim.model_hash) for claim in got)
            assert got == expected, (step, got, expected)

    def some(self, places) -> list[Of]:
        known = [*self.rounds, *self.reference.released]
        return [known[place % len(known)] for place in places]

    @rule(run=RUNS, model=MODELS, forward=st.integers(0, 2), attempt=st.integers(0, 1), private=st.booleans())
    def join(self, run, model, forward, attempt, private):
        number = max(1, self.reference.joined.get(run, (0, 0))[0] + forward)
        self.at, self.model, self.private = slot(number, attempt, run[1], run[0]), model, private
        self.agree(self.reference.join(self.at, model, private), "join", self.at, model, private)

    @rule(theirs=st.sets(WHICH, max_size=2))
    def contribute(self, theirs):
        rounds = self.some(theirs)
        expected = self.reference.contribute(self.at, rounds, self.private)
        self.agree(expected, "contribute", self.at, "event", [r.claim for r in rounds], self.private)

    @rule()
    def release(self):
        claim = claim_of(self.at, self.reference.live[1] if self.reference.live else MODEL)
        self.agree(self.reference.release(self.at, self.private), "release", self.at, claim, self.private)

    @rule(run=RUNS, model=MODELS, private=st.booleans(), accepting=st.booleans())
    def a_whole_attempt(self, run, model, private, accepting):
        if accepting:
            self.accept_what_is_open()
        self.join(run, model, 1, 0, private)
        self.contribute(())
        self.release()

    @rule(run=RUNS, model=MODELS, theirs=st.sets(WHICH, max_size=2))
    def an_attempt_that_ends_unreleased(self, run, model, theirs):
        self.join(run, model, 1, 0, False)
        self.contribute(theirs)

    @rule(which=WHICH)
    def replay(self, which):
        (this,) = self.some([which])
        self.agree(self.reference.replay(this), "replay", this.slot, this.claim.round_id)

    @rule()
    def replay_the_live_one(self):
        this = Of(self.at, self.model)
        self.agree(self.reference.replay(this), "replay", this.slot, this.claim.round_id)

    @rule(which=st.sets(WHICH, min_size=1, max_size=4))
    def accept_exposure(self, which):
        for this in self.some(which):
            self.reference.accepted.add(this)
            self.agree(None, "accept_exposure", this.claim.round_id, b"signature")

    @rule()
    def accept_what_is_open(self):
        if self.reference.open is not None:
            self.reference.accepted.add(self.reference.open)
            self.agree(None, "accept_exposure", self.reference.open.claim.round_id, b"signature")

    @rule(run=RUNS, forward=st.integers(0, 2), follows=st.booleans())
    def finish(self, run, forward, follows):
        number, head = self.reference.heads.get(run, (0, GENESIS))
        (fresh,) = receipts(max(1, number + forward), run=run[1], previous=head if follows else b"x" * 32)
        fresh = replace(fresh, head=fresh.round_id[:16] + head[:8] + bytes(8))
        self.agree(self.reference.finish(*run, fresh), "finish", *run, [fresh])

    @rule()
    def restart(self):
        self.file.close()
        self.open_file()

    def open_file(self) -> None:
        self.file = SqliteStore(self.folder / "marks.sqlite", "d")
        self.file._database.execute("PRAGMA synchronous = OFF")  # no power cut in a test

    @invariant()
    def all_know_the_same(self):
        if not hasattr(self, "file"):
            return
        reference = self.reference
        assert everything(self.memory) == everything(self.file)
        with self.memory.transaction() as marks:
            opened = marks.open_release
            assert (opened and opened.round_id) == (reference.open and reference.open.claim.round_id)
            for session in (SESSION, OTHER_SESSION):
                last = reference.last.get(session)
                assert marks.released(session) == (last.claim.round_id if last else NEVER)
                for run in (RUN, OTHER_RUN):
                    assert marks.joined(session, run) == reference.joined.get((session, run), (0, 0))
                    assert marks.head(session, run) == reference.heads.get((session, run), (0, GENESIS))
            for this in [*self.rounds, *reference.released]:
                assert marks.replayed(this.claim.round_id) == (this in reference.replayed)
                assert marks.accepted(this.claim.round_id) == (this in reference.accepted)
            marks.verify()


QUICK = settings(
    max_examples=40,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],
    derandomize=True,  # a change fails by its own fault; the long run looks further
)


class TestOneMachine(OneMachine.TestCase):
    settings = QUICK


@pytest.mark.slow
class TestOneMachineForLong(OneMachine.TestCase):
    settings = settings(QUICK, max_examples=1500, stateful_step_count=40, derandomize=False)
