"""Every fault at every step, with real processes, TLS and files: what the round comes to, and what it never does.

Whatever happens, a sum is bit for bit that of whom it names, nothing is counted twice, the others' commands end with
status 0, and nobody shows a traceback. A fifth of the cells runs always, with every fault and every step in it; all of
them behind `make slow`.
"""

import os
import shutil
import signal
import socket
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from secagg import home
from secagg.service.stopping import ENDED_EARLY
from secagg.steps import CONSISTENCY_CHECK, MASKED_INPUT_COLLECTION, UNMASKING
from tests.faults.faults import FAULTS, ROUND
from tests.faults.federation import ROUNDS, SITES, STRUCK, Federation, federation
from tests.faults.parties import BETWEEN, HOLD, POINTS, Strike, until

TABLE = tomllib.loads((Path(__file__).parent / "cells.toml").read_text())
CELLS: dict[str, dict[str, str]] = TABLE["cells"]
ALWAYS = {(fault, POINTS[index % len(POINTS)]) for index, fault in enumerate(CELLS)}
"""Of every fault one cell, and the coordinator killed everywhere."""
ALWAYS |= {("coordinator killed", point) for point in POINTS}
OUT = {"counted", "lost"}


def _cells() -> Iterator[object]:
    for fault, row in CELLS.items():
        for point in row:
            marks = () if (fault, point) in ALWAYS else (pytest.mark.slow,)
            yield pytest.param(fault, point, id=f"{fault}, {point}", marks=marks)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A small disk of its own; a coordinator waits where less than a round takes is free."""
    path = tmp_path / "disk"
    path.mkdir()
    if (
        os.geteuid()
        or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=80m", "tmpfs", path], check=False).returncode
    ):
        pytest.skip("a disk that can be filled takes the rights to mount one")
    yield path
    subprocess.run(["umount", "-l", path], check=True)


def test_the_table_has_every_fault_and_every_step():
    assert set(CELLS) == set(FAULTS)
    for row in CELLS.values():
        assert list(row) == list(POINTS)
        assert set(row.values()) <= set(TABLE["outcomes"])
    assert {point for _, point in ALWAYS} == set(POINTS)


@pytest.mark.parametrize(("fault", "point"), _cells())
def test_a_fault_at_a_step(fault, point, tmp_path, request):
    expected = CELLS[fault][point]
    state = request.getfixturevalue("small_disk") if fault.startswith("disk full") else None
    folder = tmp_path / "federation"
    with federation(folder, state) as made:
        FAULTS[fault](made, point)
        made.parties[SITES[0]].held()
        until(lambda: made.finished(ROUND), "the coordinator has the sum as well")
        made.parties[SITES[0]].go_on()
        assert made.coordinator.status() == 0
        for site in SITES[:-1]:
            assert made.parties[site].status() == 0, made.parties[site].said()
        if expected not in OUT:
            assert made.parties[STRUCK].status() == 0, made.parties[STRUCK].said()
        else:
            assert made.parties[STRUCK].process.exitcode != 0
        made.check_sums()
        made.check_logs()
        assert _outcome([made.included(number) for number in range(ROUND, ROUNDS + 1)]) == expected
        assert made.attempts(ROUND) == 1


def _outcome(included: list[list[str]]) -> str:
    struck, following = (STRUCK in sites for sites in included)
    assert all(set(SITES[:-1]) <= set(sites) for sites in included), included
    return {(True, True): "unharmed", (False, True): "missed", (True, False): "counted", (False, False): "lost"}[
        struck, following
    ]


# --- Beside the matrix ------------------------------------------------------------------------------------------------


def test_the_same_command_says_that_a_finished_run_is_finished(tmp_path):
    with federation(tmp_path / "federation", rounds=1) as made:
        made.serve()
        for site in SITES:
            made.join(site)
        assert made.coordinator.status() == 0
        before = sums_of(made)
        again = made.serve()
        assert again.status() == 0
        assert "complete" in again.said()
        assert sums_of(made) == before


def test_a_site_that_was_away_at_the_end_gets_it_from_the_same_commands_whichever_comes_first(tmp_path):
    """The coordinator of a finished run ended at once: a site had to come in the same second."""
    with federation(tmp_path / "federation", rounds=2) as made:
        made.rejoin_seconds = 1.0
        made.serve()
        for site in SITES[:-1]:
            made.join(site)
        struck = made.join(STRUCK, Strike(BETWEEN, HOLD, 2))
        struck.held()
        struck.kill()
        assert made.coordinator.status() == 0
        assert f"{STRUCK} did not fetch the end of the run: the same command gives it later" in made.coordinator.said()
        again = made.serve()
        until(lambda: "it is offered until everybody has it" in again.said(), "the coordinator offers the end")
        again.kill()  # and who had it is not waited for, whatever becomes of the process that told them
        again = made.serve()
        until(lambda: f"\n{STRUCK} did not fetch the end" in again.said(), "it waits for one site only")
        again.signal(signal.SIGTERM)
        assert again.status(20) == 0  # the run is over
        late = made.join(STRUCK)
        until(lambda: late.events("lost"), "the site waits for a coordinator")
        again = made.serve()
        assert (again.status(), late.status()) == (0, 0)
        assert made.serve().status() == 0
        assert "did not fetch" not in made.coordinator.said()
        made.check_sums()
        made.check_logs()


def test_a_site_that_saw_the_end_says_so_again_without_a_coordinator(tmp_path):
    with federation(tmp_path / "federation", rounds=1) as made:
        made.serve()
        for site in SITES:
            made.join(site)
        assert made.coordinator.status() == 0
        for site in SITES:
            assert made.parties[site].status() == 0
            again = made.join(site)
            assert again.status() == 0
            assert "complete" in again.said()
        made.check_logs()


def test_a_terminated_coordinator_says_goodbye_and_goes_on(tmp_path):
    with federation(tmp_path / "federation") as made:
        coordinator = made.serve()
        for site in SITES[:-1]:
            made.join(site)
        held = made.join(STRUCK, Strike(MASKED_INPUT_COLLECTION, HOLD, 2))
        held.held()
        coordinator.signal(signal.SIGTERM)
        assert coordinator.status(20) == ENDED_EARLY
        assert "SIGTERM came" in coordinator.said()
        assert coordinator.said().count("\n") < 10
        made.serve()
        held.go_on()
        assert made.coordinator.status() == 0
        made.check_sums()
        made.check_logs()
        assert [made.included(number) for number in range(1, ROUNDS + 1)] == [list(SITES)] * ROUNDS
        assert made.attempts(2) == 1


def test_who_is_killed_in_the_last_step_is_in_the_sum_and_told_as_gone_and_as_back(tmp_path):
    """The step that it owed a message of is closed by the call that ends the attempt."""
    with federation(tmp_path / "federation") as made:
        FAULTS["site killed"](made, UNMASKING)
        made.parties[SITES[0]].held()
        until(lambda: made.parties[STRUCK].events("connected"), "the site is back")
        made.parties[SITES[0]].go_on()
        assert made.coordinator.status() == 0
        assert STRUCK in made.included(ROUND)
        told = [event for kind in ("dropped", "rejoined") for event in made.coordinator.events(kind)]
        told = [(event["event"], event["site"], event["round"]) for event in told]
        assert told == [("dropped", STRUCK, ROUND), ("rejoined", STRUCK, ROUND + 1)]


def test_a_site_whose_disk_is_full_waits_and_goes_on(tmp_path, small_disk):
    """Its process ended with a sentence, in the middle of a round, and nobody started it again."""
    with federation(tmp_path / "federation") as made:
        shutil.move(made.folder / STRUCK, small_disk)
        (made.folder / STRUCK).symlink_to(small_disk / STRUCK)
        made.serve()
        for site in SITES[1:-1]:
            made.join(site)
        made.join(SITES[0], Strike(BETWEEN, HOLD, ROUND + 1))
        struck = made.join(STRUCK, Strike(CONSISTENCY_CHECK, HOLD, ROUND))
        struck.held()
        filler = small_disk / "filler"
        with filler.open("wb") as file:
            free = os.statvfs(filler)
            os.posix_fallocate(file.fileno(), 0, free.f_bavail * free.f_frsize)
        struck.go_on()
        until(lambda: "the disk is full" in struck.said(), "the site says so")
        until(lambda: made.finished(ROUND), "the others go on")
        filler.unlink()
        until(lambda: len(struck.events("connected")) == 2, "the site goes on by itself")
        made.parties[SITES[0]].held()
        made.parties[SITES[0]].go_on()
        assert made.coordinator.status() == 0
        assert [made.parties[site].status() for site in SITES] == [0] * len(SITES)
        made.check_sums()
        made.check_logs()
        assert [made.included(number) for number in (ROUND, ROUND + 1)] == [list(SITES)] * 2


def test_a_site_whose_disk_is_nearly_full_joins_no_round_and_is_not_waited_for(tmp_path, small_disk):
    with federation(tmp_path / "federation", rounds=1) as made:
        shutil.move(made.folder / STRUCK, small_disk)
        (made.folder / STRUCK).symlink_to(small_disk / STRUCK)
        with (small_disk / "filler").open("wb") as file:
            os.posix_fallocate(file.fileno(), 0, 20 << 20)  # it keeps more than that free
        made.serve()
        struck = made.join(STRUCK)
        until(lambda: "joins no round until it has room" in struck.said(), "the site says so")
        for site in SITES[:-1]:
            made.join(site)
        assert made.coordinator.status() == 0
        assert struck.status() == 0
        made.check_sums()
        assert made.included(1) == list(SITES[:-1])


@pytest.mark.slow
def test_marks_that_were_wiped_or_restored_from_a_copy_are_refused_by_name_until_the_newest_are_back(tmp_path):
    """Row 14 of the trials: they were accepted. The journal knows, also of another process of the coordinator."""
    with federation(tmp_path / "federation") as made:
        made.rejoin_seconds = 60.0
        made.serve()
        others = made.join(SITES[0], Strike(BETWEEN, HOLD, 2))
        for site in SITES[1:]:
            made.join(site)
        marks, copy, newest = made.folder / STRUCK / home.MARKS, tmp_path / "copy", tmp_path / "newest"
        others.held()
        until(lambda: made.parties[STRUCK].events("completed"), "round 1 is over")
        shutil.copy(marks, copy)
        others.strike(Strike(BETWEEN, HOLD, 3))
        others.go_on()
        others.held()
        until(lambda: len(made.parties[STRUCK].events("completed")) == 2, "round 2 is over")
        made.parties[STRUCK].kill()
        marks.rename(newest)
        sentence = f"{STRUCK} took part in round 2 (attempt 0) and its marks know nothing of it"
        for put_back in (None, copy):
            if put_back is not None:
                shutil.copy(put_back, marks)
                made.coordinator.kill()
                made.serve()
            refused = made.join(STRUCK)
            assert refused.status() == 1, refused.said()
            assert sentence in refused.said()
            assert "bring back the newest state folder" in refused.said()
            until(lambda: sentence in made.coordinator.said(), "the coordinator says so")
            marks.unlink()
        newest.rename(marks)
        back = made.join(STRUCK)
        until(lambda: back.events("joined"), "it is back, and has replayed what it missed")
        others.go_on()
        assert made.coordinator.status() == 0
        assert [made.parties[site].status() for site in SITES] == [0] * len(SITES)
        made.check_sums()
        made.check_logs()
        assert [made.included(number) for number in range(1, ROUNDS + 1)] == [list(SITES)] * ROUNDS


def test_rubbish_at_the_door_ends_nothing(tmp_path):
    with federation(tmp_path / "federation") as made:
        coordinator = made.serve()
        until(lambda: coordinator.events("listening"), "the coordinator listens")
        for said in (b"", b"GET / HTTP/1.1\r\n\r\n", bytes(range(256)) * 64, b"\x16\x03\x01\xff\xff"):
            with socket.create_connection(("127.0.0.1", made.port)) as stranger:
                stranger.sendall(said)
        for site in SITES:
            made.join(site)
        assert coordinator.status() == 0
        made.check_sums()
        made.check_logs()


def sums_of(made: Federation) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted((made.state / "sums").iterdir())}
