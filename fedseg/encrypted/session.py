"""A session as its command sees it: an engine in a process of its own, and one sentence for whatever ends it early.

SPU notices late, or never, that a party has gone or shows another certificate. So while the engine works the command
looks at the other two's addresses every few seconds, and ends the engine where it need not go on.
"""

import os
import queue
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

import numpy as np
from numpy.typing import NDArray

from fedseg.encrypted.frames import Frame, put, take
from fedseg.encrypted.parties import ROLES, WHO, Parties, Party, PartyError, answers, host_port, listens
from fedseg.encrypted.program import Program
from fedseg.errors import ConfigError

PATIENCE = 600.0
"""Seconds that one step of SPU may take at another party."""
LOOK = 2.0
"""Seconds between two looks at the other parties."""
LEAVING = 20.0
"""Seconds in which the engine tells the other two that there is nothing more."""


def needs_engine() -> None:
    """ConfigError where this environment cannot compute on shares."""
    if missing := [name for name in ("spu", "jax") if find_spec(name) is None]:
        raise ConfigError(
            f"encrypted inference needs {' and '.join(missing)}, which an environment of its own has: run "
            "`make encrypted`, then build/encrypted/bin/fedseg instead of fedseg"
        )


class Session:
    """One session of a party; use it in a `with`, which ends the engine whatever happens.

    Args:
        parties: who takes part.
        role: which of them this is.
        key: file of its own key.
        listen: HOST:PORT to listen on, where it is not the address that the others dial.
        program: at the model's owner, what it serves.
        weights: and with which weights.
        study: and the study's text, which the pictures' owner prepares its pictures by.
        wait: seconds that the others may take to come; None waits for ever.
    """

    def __init__(
        self,
        parties: Parties,
        role: str,
        key: Path,
        *,
        listen: str | None = None,
        program: Program | None = None,
        weights: Mapping[str, NDArray[np.float32]] | None = None,
        study: str = "",
        wait: float | None = None,
    ) -> None:
        self._parties, self._role, self._key, self._wait = parties, role, key, wait
        self._others = [parties.each[other] for other in ROLES if other != role]
        self._linked, self._missed = False, dict.fromkeys((other.role for other in self._others), 0)
        addresses = [(other, parties.each[other].address) for other in ROLES]
        addresses[ROLES.index(role)] = (role, listen or parties.each[role].address)
        self._folder = tempfile.TemporaryDirectory(prefix="fedseg-encrypted-")
        bundle = Path(self._folder.name) / "others.pem"
        bundle.write_bytes(b"\n".join(other.certificate.read_bytes() for other in self._others))
        self._setup: dict[str, Any] = {
            "rank": ROLES.index(role),
            "who": [WHO[other] for other in ROLES],
            "addresses": addresses,
            "certificate": str(parties.each[role].certificate),
            "key": str(key),
            "others": str(bundle),
            "patience": PATIENCE,
            "parties": parties.digest,
            "program": program.text() if program else "",
            "study": study,
        }
        self._weights = [values for _, values in sorted((weights or {}).items())]
        self._frames: queue.Queue[Frame | None] = queue.Queue()

    def __enter__(self) -> Self:
        needs_engine()
        # What SPU's libraries print is not for people; where somebody wants to see it, there is a variable.
        shown = None if os.environ.get("FEDSEG_ENGINE_LOG") else subprocess.DEVNULL
        self._process = subprocess.Popen(
            [sys.executable, "-m", "fedseg.encrypted.engine"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=shown,
            start_new_session=True,  # Ctrl-C is the command's
        )
        threading.Thread(target=self._read, daemon=True).start()
        self._say(self._setup, self._weights)
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def hear(self, *wanted: str) -> Frame:
        """The engine's next word of these; the others are passed over.

        Raises:
            PartyError: another party is not there, has gone, is somebody else, or said something else than agreed.
            ConfigError: nothing can listen at this party's address.
        """
        began, looked = time.monotonic(), 0.0
        while True:
            try:
                frame = self._frames.get(timeout=0.2)
            except queue.Empty:
                if time.monotonic() - looked > LOOK:
                    looked = time.monotonic()
                    self._look(time.monotonic() - began)
                continue
            said = frame[0] if frame else {"broken": "its process ended"}
            if "error" in said:
                raise PartyError(said["error"])
            if "broken" in said:
                if not self._linked:
                    self._can_listen()
                raise PartyError(self._why(said["broken"]))
            self._linked |= "linked" in said
            if frame and not said.keys().isdisjoint(wanted):
                return frame

    def ask(self, pictures: NDArray[np.float32]) -> NDArray[np.float32]:
        """The network's answer on (k, channels, height, width) float32; at the pictures' owner only; see `hear`."""
        self._say({"ask": True}, [pictures])
        return self.hear("answer")[1][0]

    def end(self) -> None:
        """At the pictures' owner: tell the others that there is nothing more. It has its answers: nothing can fail."""
        with suppress(OSError):
            put(self._process.stdin, {"end": True})  # type: ignore[arg-type]
        until = time.monotonic() + LEAVING
        with suppress(queue.Empty):  # who is told first has gone before the engine says so
            while (frame := self._frames.get(timeout=max(0.0, until - time.monotonic()))) and "end" not in frame[0]:
                pass

    def _say(self, said: dict[str, Any], arrays: Sequence[NDArray[np.float32]] = ()) -> None:
        try:
            put(self._process.stdin, said, arrays)  # type: ignore[arg-type]
        except OSError:
            raise PartyError(self._why("its process ended")) from None

    def _read(self) -> None:
        frame: Frame | None = ({}, [])
        while frame is not None:
            frame = take(self._process.stdout)  # type: ignore[arg-type]
            self._frames.put(frame)

    def _look(self, waited: float) -> None:
        """Raise where it is of no use to go on."""
        if not self._linked:
            absent = [other for other in self._others if not self._answers(other)]
            if self._wait is not None and waited > self._wait:
                late = f"{' and '.join(other.where for other in absent)} did not answer"
                raise PartyError(
                    f"{late if absent else 'the other two answer, and all three did not come together'} within "
                    f"{self._wait:g} s; see that `fedseg encrypted` runs there, and what is between"
                )
            return
        for other in self._others:
            self._missed[other.role] = 0 if listens(other) else self._missed[other.role] + 1
            if self._missed[other.role] > 1:
                raise _gone(other)

    def _answers(self, other: Party) -> bool:
        """Whether another party is there; raises where it is somebody else, or refuses us, at two looks in turn."""
        try:
            here = answers(other, self._parties.each[self._role].certificate, self._key)
        except PartyError:  # or its engine of an earlier session ended just now
            self._missed[other.role] += 1
            if self._missed[other.role] > 1:
                raise
            return False
        self._missed[other.role] = 0
        return here

    def _can_listen(self) -> None:
        """ConfigError where an engine that did not begin could not have listened at its address."""
        self._process.kill()
        self._process.wait()
        own = self._setup["addresses"][ROLES.index(self._role)][1]
        try:
            socket.create_server(host_port(own)).close()
        except OSError:
            raise ConfigError(
                f"could not begin at {own}; free the port, or give --listen; with FEDSEG_ENGINE_LOG=1 SPU says more"
            ) from None

    def _why(self, broken: str) -> str:
        """Who has gone, where somebody has; else what SPU said."""
        gone = [other for other in self._others if not listens(other)]
        return str(_gone(gone[0])) if gone else f"the computation broke off ({broken}); ask again"


def _gone(other: Party) -> PartyError:
    return PartyError(f"{other.where} has gone, nothing was written; ask again when it is back")
