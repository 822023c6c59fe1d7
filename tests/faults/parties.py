"""Real processes of the real commands, and the points of the protocol at which a fault strikes one of them.

A party is the command as a user starts it, in a process of its own, with sockets, files and signals of its own. Nothing
in the commands knows of the tests: before the command begins, its process wraps the calls that carry the protocol's
messages, so that a fault strikes at an exact point of a round and not at a guessed time. Processes are forked from one
that has imported everything, which saves most of their cost.
"""

import asyncio
import json
import multiprocessing
import os
import signal
import sys
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from threading import Event, Thread
from typing import Any

from secagg import cli, messages, wire
from secagg.driver import ServerDriver
from secagg.errors import ProtocolError
from secagg.rpc.client import MailboxClient
from secagg.steps import (
    ADVERTISE_KEYS,
    CONSISTENCY_CHECK,
    MASKED_INPUT_COLLECTION,
    RESULT,
    SHARE_KEYS,
    SHARE_REPORT,
    UNMASKING,
)

CONFIRMATION, BETWEEN = "Confirmation", "between rounds"
STEP_OF = {
    messages.AdvertiseKeys: ADVERTISE_KEYS,
    messages.EncryptedShares: SHARE_KEYS,
    messages.ShareReport: SHARE_REPORT,
    messages.MaskedInput: MASKED_INPUT_COLLECTION,
    messages.Attestation: CONSISTENCY_CHECK,
    messages.UnmaskingShares: UNMASKING,
    messages.Confirmation: CONFIRMATION,
}
POINTS = (*STEP_OF.values(), BETWEEN)

KILL, HOLD, TWICE, FLIP = "kill", "hold", "twice", "flip"

_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__, "secagg.service.serving", "secagg.service.joining", "numpy.ma"])


@dataclass(frozen=True)
class Strike:
    """What happens to a party, once.

    Attributes:
        point: one of `POINTS`. At a site just before its message of this step is sent, at the coordinator just after it
            has taken the first message of this step; between rounds before the next one begins.
        act: `KILL`; `HOLD`, until the test lets it go on; of a site's message `TWICE` or `FLIP` (one bit of it).
        round_number: in which round, between rounds before which one, counted from the start of the process; 0 for the
            next time that it comes to this point.
    """

    point: str
    act: str
    round_number: int = 0


class Party:
    """One process.

    Args:
        name: for messages.
        arguments: of the command.
        log: what it says is added to this file.
        events: the file to which the command adds its events, one JSON object a line.
        strikes: what happens to it.
    """

    def __init__(self, name: str, arguments: list[str], log: Path, events: Path, *strikes: Strike) -> None:
        self.name, self._log, self._events = name, log, events
        self._from = {path: path.stat().st_size if path.exists() else 0 for path in (log, events)}
        self._control, theirs = _context.Pipe()
        self.process = _context.Process(target=_live, args=(arguments, log, theirs, strikes), daemon=True)
        self.process.start()
        theirs.close()

    def strike(self, strike: Strike) -> None:
        """One more."""
        self._control.send(strike)

    def held(self, seconds: float = 60) -> None:
        """Wait until it is held at its point."""
        with suppress(EOFError):
            if self._control.poll(seconds):
                self._control.recv()
                return
        raise AssertionError(f"{self.name} was never held: {self.said()}")

    def is_held(self) -> bool:
        """Whether it is held at its point just now; said once."""
        with suppress(EOFError):
            if self._control.poll():
                self._control.recv()
                return True
        return False

    def go_on(self) -> None:
        """Let it go on."""
        self._control.send(None)

    @property
    def alive(self) -> bool:
        """Whether it runs."""
        return self.process.exitcode is None

    def signal(self, number: int) -> None:
        """Send it a signal."""
        os.kill(self.process.pid or 0, number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is dead."""
        self.process.kill()
        self.process.join()

    def status(self, seconds: float = 60) -> int:
        """Its exit status, once it has ended by itself; minus a signal's number where one ended it."""
        self.process.join(seconds)
        if self.process.exitcode is None:
            raise AssertionError(f"{self.name} did not end: {self.said()}")
        return self.process.exitcode

    def said(self) -> str:
        """Everything that this process has said."""
        return self._new(self._log)

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """Its events, of one kind or all."""
        lines = (json.loads(line) for line in self._new(self._events).splitlines() if line.endswith("}"))
        return [line for line in lines if not kind or line["event"] == kind]

    def _new(self, path: Path) -> str:
        if not path.exists():
            return ""
        with path.open("rb") as file:
            file.seek(self._from[path])
            return file.read().decode(errors="replace")


def until(condition: Callable[[], Any], what: str, seconds: float = 60) -> Any:
    """Wait until a condition holds, and return what it gave.

    Raises:
        AssertionError: it did not hold in time.
    """
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        if time.monotonic() > deadline:
            raise AssertionError(f"waited {seconds:g} s in vain until {what}")
        time.sleep(0.02)
    return found


# --- In the party's process -------------------------------------------------------------------------------------------


class _Strikes:
    """What is to happen to this process."""

    def __init__(self, control: Connection, strikes: tuple[Strike, ...]) -> None:
        self._control, self._left, self._may_go_on = control, list(strikes), Event()
        Thread(target=self._listen, daemon=True).start()

    def _listen(self) -> None:
        with suppress(EOFError, OSError):
            while True:
                told = self._control.recv()
                if told is None:
                    self._may_go_on.set()
                else:
                    self._left.append(told)

    def due(self, point: str, number: int) -> list[str]:
        """What happens now, but for death, which comes at once."""
        now = [one for one in self._left if one.point == point and one.round_number in (0, number)]
        self._left = [one for one in self._left if one not in now]
        if any(one.act == KILL for one in now):
            os.kill(os.getpid(), signal.SIGKILL)
        return [one.act for one in now]

    def hold(self) -> None:
        """Wait until the test lets this process go on."""
        self._may_go_on.clear()
        self._control.send("held")
        self._may_go_on.wait()


def _live(arguments: list[str], log: Path, control: Connection, strikes: tuple[Strike, ...]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for own in (1, 2):
        os.dup2(descriptor, own)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    to_come = _Strikes(control, strikes)
    _strike_site(to_come)
    _strike_coordinator(to_come)
    sys.argv = ["secagg", *arguments]
    cli.main()


def _strike_site(strikes: _Strikes) -> None:
    plain, seen = MailboxClient.send, Counter[str]()
    last: dict[str, bytes] = {}

    async def send(self: MailboxClient, kind: str, payload: bytes) -> None:
        point = _point(payload) or BETWEEN
        if point != BETWEEN and payload != last.get(point):  # after a cut it may be the same one again
            seen[point], last[point] = seen[point] + 1, payload
        number = seen[CONFIRMATION] + 1 if point == BETWEEN else seen[point]
        for act in strikes.due(point, number):
            if act == HOLD:
                await asyncio.to_thread(strikes.hold)
            elif act == TWICE:
                await plain(self, kind, payload)
            elif act == FLIP:
                middle = len(payload) // 2
                payload = payload[:middle] + bytes([payload[middle] ^ 1]) + payload[middle + 1 :]
        await plain(self, kind, payload)

    MailboxClient.send = send  # type: ignore[method-assign]


def _point(payload: bytes) -> str:
    try:
        return STEP_OF.get(type(wire.decode_from_client(payload)), "")
    except ProtocolError:
        return ""


def _strike_coordinator(strikes: _Strikes) -> None:
    plain_receive, plain_begin = ServerDriver.receive, ServerDriver.begin

    def receive(self: ServerDriver, *given: Any, **named: Any) -> Any:
        session = self.session
        point, number = (session.step, session.context.round_number) if session is not None else ("", 0)
        actions = plain_receive(self, *given, **named)
        if strikes.due(CONFIRMATION if point == RESULT else point, number):
            strikes.hold()
        return actions

    def begin(self: ServerDriver, *given: Any, **named: Any) -> Any:
        if strikes.due(BETWEEN, self.book.number):
            strikes.hold()
        return plain_begin(self, *given, **named)

    ServerDriver.receive, ServerDriver.begin = receive, begin  # type: ignore[method-assign]
