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
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from secagg import messages, wire
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
from tests.faults import mini

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
_context.set_forkserver_preload([__name__])


@dataclass(frozen=True)
class Strike:
    """What happens to a party, once.

    Attributes:
        point: one of `POINTS`. At a site just before its message of this step is sent, at the coordinator just after it
            has taken the first message of this step; between rounds before the next one begins.
        act: `KILL`; `HOLD`, until the test lets it go on; of a site's message `TWICE` or `FLIP` (one bit of it).
        round_number: in which round; between rounds, before which one.
    """

    point: str
    act: str
    round_number: int = 2


class Party:
    """One process.

    Args:
        name: for messages.
        arguments: of the command.
        log: what it says is added to this file.
        strikes: what happens to it.
    """

    def __init__(self, name: str, arguments: list[str], log: Path, *strikes: Strike) -> None:
        self.name, self._log, self._from = name, log, log.stat().st_size if log.exists() else 0
        self._control, theirs = _context.Pipe()
        self.process = _context.Process(target=_live, args=(arguments, log, theirs, strikes), daemon=True)
        self.process.start()
        theirs.close()

    def held(self, seconds: float = 60) -> None:
        """Wait until it is held at its point."""
        if not self._control.poll(seconds):
            raise AssertionError(f"{self.name} was never held: {self.said()}")
        self._control.recv()

    def go_on(self) -> None:
        """Let it go on."""
        self._control.send("go")

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
        with self._log.open("rb") as log:
            log.seek(self._from)
            return log.read().decode(errors="replace")

    def events(self, kind: str = "") -> list[dict[str, Any]]:
        """Its lines of JSON, of one kind or all."""
        lines = [json.loads(line) for line in self.said().splitlines() if line.startswith("{") and line.endswith("}")]
        return [line for line in lines if not kind or line.get("event") == kind]


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


def _live(arguments: list[str], log: Path, control: Connection, strikes: tuple[Strike, ...]) -> None:
    descriptor = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    for own in (1, 2):
        os.dup2(descriptor, own)
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    if strikes:
        _strike_site(control, strikes)
        _strike_coordinator(control, strikes)
    sys.argv = ["secagg", *arguments]
    mini.main()


def _hold(control: Connection) -> None:
    control.send("held")
    control.recv()


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _strike_site(control: Connection, strikes: tuple[Strike, ...]) -> None:
    plain, seen, left = MailboxClient.send, Counter[str](), set(strikes)

    async def send(self: MailboxClient, kind: str, payload: bytes) -> None:
        point = _point(payload) or (BETWEEN if seen[CONFIRMATION] else "")
        if point != BETWEEN:
            seen[point] += 1
            now = Strike(point, "", seen[point])
        else:
            now = Strike(point, "", seen[CONFIRMATION] + 1)
        for strike in [one for one in left if (one.point, one.round_number) == (now.point, now.round_number)]:
            left.discard(strike)
            if strike.act == KILL:
                _kill()
            elif strike.act == HOLD:
                await asyncio.to_thread(_hold, control)
            elif strike.act == TWICE:
                await plain(self, kind, payload)
            elif strike.act == FLIP:
                middle = len(payload) // 2
                payload = payload[:middle] + bytes([payload[middle] ^ 1]) + payload[middle + 1 :]
        await plain(self, kind, payload)

    MailboxClient.send = send  # type: ignore[method-assign]


def _point(payload: bytes) -> str:
    try:
        return STEP_OF.get(type(wire.decode_from_client(payload)), "")
    except ProtocolError:
        return ""


def _strike_coordinator(control: Connection, strikes: tuple[Strike, ...]) -> None:
    plain_receive, plain_begin, left = ServerDriver.receive, ServerDriver.begin, set(strikes)

    def strike(point: str, number: int) -> None:
        for one in [one for one in left if (one.point, one.round_number) == (point, number)]:
            left.discard(one)
            if one.act == KILL:
                _kill()
            _hold(control)

    def receive(self: ServerDriver, *given: Any, **named: Any) -> Any:
        session = self.session
        at = (session.step, session.context.round_number) if session is not None else ("", 0)
        actions = plain_receive(self, *given, **named)
        strike(CONFIRMATION if at[0] == RESULT else at[0], at[1])
        return actions

    def begin(self: ServerDriver, *given: Any, **named: Any) -> Any:
        strike(BETWEEN, self.book.number)
        return plain_begin(self, *given, **named)

    ServerDriver.receive, ServerDriver.begin = receive, begin  # type: ignore[method-assign]
