"""Durable marks: strictly increasing, surviving SIGKILL, won by exactly one of several racing processes."""

import os
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from secagg.errors import ConfigError, UnexpectedMessageError
from secagg.sqlite import SqliteStore
from secagg.state import GENESIS
from secagg.store import MemoryStore, Store

RUN = "run-1"
HEADS = [bytes([i]) * 32 for i in range(1, 5)]


@pytest.fixture(params=["sqlite", "memory"])
def store(request, tmp_path) -> Store:
    return SqliteStore(tmp_path / "marks.sqlite", "d") if request.param == "sqlite" else MemoryStore()


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "marks.sqlite"


def refused(check: str, call, *arguments) -> None:
    with pytest.raises(UnexpectedMessageError) as caught:
        call(*arguments)
    assert caught.value.check == check


def test_joins_increase_by_round_number_then_attempt(store):
    store.join(RUN, 1, 0)
    store.join(RUN, 1, 1)
    refused("C-03", store.join, RUN, 1, 1)
    refused("C-03", store.join, RUN, 1, 0)
    store.join(RUN, 3, 0)
    refused("C-03", store.join, RUN, 2, 7)
    store.join("another run", 1, 0)
    store.join(RUN, 3, 2)


def test_one_contribution_to_a_round_number_whatever_the_event(store):
    store.contribute(RUN, 2, "event-1")
    refused("C-14", store.contribute, RUN, 2, "event-1")
    refused("C-14", store.contribute, RUN, 2, "event-2")
    refused("C-14", store.contribute, RUN, 1, "event-2")
    store.contribute(RUN, 3, "event-2")
    store.contribute("another run", 1, "")


def test_heads_follow_each_other_and_may_skip_burned_rounds(store):
    assert store.head(RUN) == (0, GENESIS)
    store.finish(RUN, 1, HEADS[0], b"receipt")
    store.finish(RUN, 3, HEADS[1], b"")
    assert store.head(RUN) == (3, HEADS[1])
    refused("C-22", store.finish, RUN, 3, HEADS[2], b"")
    refused("C-22", store.finish, RUN, 2, HEADS[2], b"")
    assert store.head(RUN) == (3, HEADS[1])
    assert store.head("another run") == (0, GENESIS)


def test_release_remembers_the_highest_round(store):
    assert store.released(RUN) == 0
    store.release(RUN, 2)
    store.release(RUN, 2)
    store.release(RUN, 1)
    assert store.released(RUN) == 2
    assert store.released("another run") == 0


def test_a_logged_head_once_more_changes_nothing(store):
    store.finish(RUN, 1, HEADS[0], b"receipt")
    store.finish(RUN, 1, HEADS[0], b"the same round, heard again")
    store.finish(RUN, 2, HEADS[1], b"")
    store.finish(RUN, 1, HEADS[0], b"a result two round starts late")
    assert store.head(RUN) == (2, HEADS[1])
    refused("C-22", store.finish, RUN, 1, HEADS[1], b"")
    refused("C-22", store.finish, "another run", 0, HEADS[0], b"")


def test_replay_remembers_the_highest_round(store):
    assert store.replayed("run") == 0
    for number in (3, 1, 3):
        store.replay("run", number)
    assert (store.replayed("run"), store.replayed("other")) == (3, 0)


def test_a_store_of_version_1_gains_the_table_of_replayed_rounds(path):
    with SqliteStore(path, "data") as store:
        store.release("run", 2)
    database = sqlite3.connect(path)
    database.executescript("DROP TABLE replayed; PRAGMA user_version = 1")
    database.close()
    with SqliteStore(path, "data") as store:
        store.replay("run", 2)
        assert (store.released("run"), store.replayed("run")) == (2, 2)


def test_refusals_say_what_to_do(path):
    with SqliteStore(path, "d") as store:
        store.join(RUN, 4, 1)
        store.contribute(RUN, 4, "e")
        with pytest.raises(UnexpectedMessageError, match=r"\[C-03\] round 4 attempt 0 .* wait for a later round"):
            store.join(RUN, 4, 0)
        with pytest.raises(UnexpectedMessageError, match=r"\[C-14\] .* joins again in round 5"):
            store.contribute(RUN, 4, "e")
        with pytest.raises(UnexpectedMessageError, match=r"\[C-22\] .* compare the heads"):
            store.finish(RUN, 1, b"short", b"")
        with pytest.raises(UnexpectedMessageError, match=r"\[C-22\] .* compare the heads"):
            store.finish(RUN, 1, GENESIS, b"")


def test_numbers_beyond_the_file_format_are_refused_not_a_crash(path):
    with SqliteStore(path, "d") as store:
        refused("C-03", store.join, RUN, 2**63, 0)
        refused("C-03", store.join, RUN, 1, 2**63)
        refused("C-14", store.contribute, RUN, 2**63, "")
        refused("C-22", store.finish, RUN, 2**63, HEADS[0], b"")
        store.join(RUN, 1, 0)


def test_marks_survive_reopening(path):
    with SqliteStore(path, "d") as store:
        store.join(RUN, 1, 0)
        store.contribute(RUN, 1, "e")
        store.release(RUN, 1)
        store.finish(RUN, 1, HEADS[0], b"r")
    with SqliteStore(path, "d") as store:
        refused("C-03", store.join, RUN, 1, 0)
        refused("C-14", store.contribute, RUN, 1, "e")
        refused("C-22", store.finish, RUN, 1, HEADS[1], b"r")
        assert store.released(RUN) == 1
        assert store.head(RUN) == (1, HEADS[0])


def test_every_commit_is_flushed_and_the_file_is_private(path):
    with SqliteStore(path, "d") as store:
        assert store._row("PRAGMA journal_mode") == ("wal",)
        assert store._row("PRAGMA synchronous") == (2,)
        assert path.stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize(
    "tampering",
    [
        "UPDATE heads SET head = zeroblob(32) WHERE entry = 2",
        "UPDATE heads SET receipt = x'00' WHERE entry = 2",
        "UPDATE heads SET round_number = 9 WHERE entry = 2",
        "DELETE FROM heads WHERE entry = 2",
    ],
)
def test_a_changed_log_is_noticed(path, tampering):
    with SqliteStore(path, "d") as store:
        for number, head in enumerate(HEADS[:3], start=1):
            store.finish(RUN, number, head, b"receipt")
    with sqlite3.connect(path) as database:
        database.execute(tampering)
    with pytest.raises(ConfigError, match="entry 2 of the log of heads was changed or removed"):
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
    with sqlite3.connect(tmp_path / "other.sqlite") as database:
        database.execute("CREATE TABLE something (x)")
    with pytest.raises(ConfigError, match="not a store of this version"):
        SqliteStore(tmp_path / "other.sqlite", "d")


def child(program: str, path: Path) -> subprocess.Popen[str]:
    head = "import sys\nfrom secagg.sqlite import SqliteStore\nfrom secagg.errors import UnexpectedMessageError\n"
    return subprocess.Popen(
        [sys.executable, "-c", head + program, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        bufsize=1,
    )


def test_marks_of_a_killed_process_stand(path):
    """SIGKILL at an arbitrary moment of a busy loop: whatever was reported as marked stays marked."""
    process = child(
        "store = SqliteStore(sys.argv[1], 'd')\n"
        "for number in range(1, 100000):\n"
        "    store.join('run-1', number, 0)\n"
        "    store.contribute('run-1', number, 'event')\n"
        "    store.finish('run-1', number, number.to_bytes(32, 'big'), b'')\n"
        "    print(number, flush=True)\n",
        path,
    )
    reported = [int(process.stdout.readline()) for _ in range(5)]
    os.kill(process.pid, signal.SIGKILL)
    reported += [int(line) for line in process.stdout.read().splitlines()]
    process.wait()
    with SqliteStore(path, "d") as store:
        refused("C-03", store.join, RUN, reported[-1], 0)
        refused("C-14", store.contribute, RUN, reported[-1], "event")
        assert store.head(RUN)[0] in (reported[-1], reported[-1] + 1)
        store.contribute(RUN, reported[-1] + 2, "event")


def test_killed_between_the_mark_and_the_work(path):
    """The crash that the mark is for: marked, killed before anything was sent, started again."""
    process = child("SqliteStore(sys.argv[1], 'd').contribute('run-1', 7, 'e')\nprint('ok')\ninput()\n", path)
    assert process.stdout.readline() == "ok\n"
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    with SqliteStore(path, "d") as store:
        refused("C-14", store.contribute, RUN, 7, "e")
        store.contribute(RUN, 8, "e")


def test_racing_processes_win_each_mark_once(path):
    """Three processes open a new file at once and race for the same thirty marks."""
    program = (
        "print('ready'); input()\n"
        "store = SqliteStore(sys.argv[1], 'd')\n"
        "for number in range(1, 31):\n"
        "    try:\n"
        "        store.contribute('run-1', number, 'event')\n"
        "        print(number)\n"
        "    except UnexpectedMessageError:\n"
        "        pass\n"
    )
    racers = [child(program, path) for _ in range(3)]
    for racer in racers:
        assert racer.stdout.readline() == "ready\n"
    for racer in racers:
        racer.stdin.write("go\n")
    won = [int(line) for racer in racers for line in racer.communicate()[0].splitlines()]
    assert [racer.returncode for racer in racers] == [0, 0, 0]
    assert len(won) == len(set(won))
    assert max(won) == 30


def test_store_needs_no_grpc():
    code = "import sys, secagg.sqlite; sys.exit(not {'grpc', 'asyncio'}.isdisjoint(sys.modules))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
