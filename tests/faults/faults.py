"""The faults: what each does to a federation at a point of its second round, and how it is mended afterwards.

Each is a function of the federation and the point. It starts the processes that it strikes, waits until the fault has
happened, and mends it once the struck round is over: it starts what was killed, renews a certificate, clears a wire.
"""

import datetime as dt
import os
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from secagg import files, home
from tests.faults.federation import ROUNDS, SITES, STRUCK, Federation
from tests.faults.parties import BETWEEN, FLIP, HOLD, KILL, TWICE, Strike, until

ROUND = 2
"""The round that is struck: there is one before it and one after it."""
EXPIRES_SECONDS = 12.0
SHORT = 4.0
"""Seconds of a step that is waited out for a site that says nothing more in it."""

Fault = Callable[[Federation, str], None]


def site_killed(made: Federation, point: str) -> None:
    """A site gets SIGKILL, and is started again once the round is over."""
    made.step_seconds = SHORT
    start(made, site=Strike(point, KILL, ROUND))
    until(lambda: not made.parties[STRUCK].alive, "the site is dead")
    over(made)
    made.join(STRUCK)


def coordinator_killed(made: Federation, point: str) -> None:
    """The coordinator gets SIGKILL, and the same command is started again."""
    start(made, coordinator=Strike(point, KILL, ROUND))
    until(lambda: not made.coordinator.alive, "the coordinator is dead")
    made.serve()


def cut_while_sending(made: Federation, point: str) -> None:
    """The connection is cut in the middle of the site's message."""
    start(made, site=Strike(point, HOLD, ROUND))
    made.parties[STRUCK].held()
    before = made.proxy.connections
    made.proxy.cut_after(60)
    made.parties[STRUCK].go_on()
    until(lambda: made.proxy.connections > before, "the site has connected again")
    made.proxy.clear()


def too_late(made: Federation, point: str) -> None:
    """The site's message is sent after everybody has stopped waiting for it."""
    made.step_seconds = SHORT
    start(made, site=Strike(point, HOLD, ROUND))
    made.parties[STRUCK].held()
    over(made)
    made.parties[STRUCK].go_on()


def sent_twice(made: Federation, point: str) -> None:
    """The site's message arrives twice."""
    start(made, site=Strike(point, TWICE, ROUND))


def corrupted_wire(made: Federation, point: str) -> None:
    """Bits flip on the way of the site's message."""
    start(made, site=Strike(point, HOLD, ROUND))
    made.parties[STRUCK].held()
    before = made.proxy.connections
    made.proxy.corrupt()
    made.parties[STRUCK].go_on()
    until(lambda: made.proxy.connections > before, "the site has connected again")
    made.proxy.clear()


def corrupted_message(made: Federation, point: str) -> None:
    """A bit of the site's message flips before TLS sees it, in the site's own memory."""
    start(made, site=Strike(point, FLIP, ROUND))


def disk_full(made: Federation, point: str) -> None:
    """The disk of the coordinator is full for two seconds."""
    start(made, coordinator=Strike(point, HOLD, ROUND))
    made.coordinator.held()
    filler = made.state.parent / "filler"
    with filler.open("wb") as file, suppress(OSError):
        free = os.statvfs(filler).f_bavail * os.statvfs(filler).f_frsize
        os.posix_fallocate(file.fileno(), 0, free)
    made.coordinator.go_on()
    time.sleep(2)
    filler.unlink()


def certificate_expired(made: Federation, point: str) -> None:
    """The site's certificate expires, then its connection is cut; a new one is put in its place after the round."""
    now = dt.datetime.now(dt.UTC)
    ends = now + dt.timedelta(seconds=EXPIRES_SECONDS)
    made.certify(STRUCK, valid=(now - dt.timedelta(minutes=1), ends))
    start(made, site=Strike(point, HOLD, ROUND))
    made.parties[STRUCK].held()
    time.sleep(max(0.0, (ends - dt.datetime.now(dt.UTC)).total_seconds()) + 1)
    made.proxy.cut()
    made.parties[STRUCK].go_on()
    over(made)
    made.certify(STRUCK)


def revoked(made: Federation, point: str) -> None:
    """The coordinator takes the site's certificate back; it will not be there again."""
    made.step_seconds, made.rejoin_seconds = SHORT, 1.0
    start(made, site=Strike(point, HOLD, ROUND))
    made.parties[STRUCK].held()
    made.revoke(STRUCK)
    time.sleep(2)  # the coordinator looks at its files once a second
    made.parties[STRUCK].go_on()


def wrong_code(made: Federation, point: str) -> None:
    """The site is killed and comes back with other constants, as after an update that the others lack."""
    made.step_seconds = SHORT
    start(made, site=Strike(point, KILL, ROUND))
    until(lambda: not made.parties[STRUCK].alive, "the site is dead")
    _other_constants(made.folder / STRUCK / home.POLICY)
    made.join(STRUCK)


def _other_constants(path: Path) -> None:
    policy, task = files.load_policy(path), home.Home.read(path.parent).task
    path.write_text(files.policy_text(replace(policy, project="another")) + "\n" + home.task_text(task))


FAULTS: dict[str, Fault] = {
    "site killed": site_killed,
    "coordinator killed": coordinator_killed,
    "connection cut mid-upload": cut_while_sending,
    "message delayed beyond the deadline": too_late,
    "duplicate delivery": sent_twice,
    "corrupted bytes on the wire": corrupted_wire,
    "corrupted bytes at the site": corrupted_message,
    "disk full at the coordinator": disk_full,
    "expired certificate": certificate_expired,
    "revoked site": revoked,
    "wrong model or code": wrong_code,
}


def start(made: Federation, site: Strike | None = None, coordinator: Strike | None = None) -> None:
    """Start everybody. One of the others waits between the struck round and the next, until `go_on`."""
    made.serve(*[coordinator] if coordinator else [])
    for name in SITES[1:-1]:
        made.join(name)
    made.join(SITES[0], Strike(BETWEEN, HOLD, ROUND + 1))
    made.join(STRUCK, *[site] if site else [])


def over(made: Federation) -> None:
    """Wait until the struck round is over."""
    until(lambda: made.finished(ROUND), f"round {ROUND} of {ROUNDS} is over")
