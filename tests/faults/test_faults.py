"""Every fault at every step, with real processes, TLS and files: what the round comes to, and what it never does.

Whatever happens, a sum is bit for bit that of whom it names, nothing is counted twice, the others' commands end with
status 0, and nobody shows a traceback. A fifth of the cells runs always, with every fault and every step in it; all of
them behind `make slow`.
"""

import os
import subprocess
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.faults.faults import FAULTS, ROUND
from tests.faults.federation import ROUNDS, SITES, STRUCK, federation
from tests.faults.parties import POINTS

TABLE = tomllib.loads((Path(__file__).parent / "cells.toml").read_text())
CELLS: dict[str, dict[str, str]] = TABLE["cells"]
ALWAYS = {(fault, POINTS[index % len(POINTS)]) for index, fault in enumerate(CELLS)}
OUT = {"counted", "lost"}


def _cells() -> Iterator[object]:
    for fault, row in CELLS.items():
        for point in row:
            marks = () if (fault, point) in ALWAYS else (pytest.mark.slow,)
            yield pytest.param(fault, point, id=f"{fault}, {point}", marks=marks)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of its own, of a few megabytes."""
    path = tmp_path / "disk"
    path.mkdir()
    if os.geteuid() or subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4m", "tmpfs", path], check=False).returncode:
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
        assert made.finished(ROUND)
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
