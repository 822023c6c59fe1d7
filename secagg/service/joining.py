"""`secagg join` without its command: a member that gives one vector a round, from files."""

import json
import shlex
import threading
from collections.abc import Callable, Iterable
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from secagg.driver import Completed
from secagg.home import MARKS, Home
from secagg.messages import RoundStart
from secagg.roster import session_id
from secagg.rpc.client import MailboxClient
from secagg.rpc.frames import message_limit
from secagg.rpc.proof import MTLS, prover_of, tls_of
from secagg.service import sums
from secagg.service.alone import alone
from secagg.service.application import Application, Given
from secagg.service.dialogue import Finished
from secagg.service.ended import Ended
from secagg.service.member import Member

LOOK_SECONDS = 0.2
"""How often it is looked whether the file of a round is there."""

Tell = Callable[[str, dict[str, Any]], None]
"""Takes what happens: a word, and facts about it."""


def release() -> str:
    """What everybody who adds vectors with `secagg serve` and `secagg join` has to run."""
    return f"secagg {version('secagg')}"


class Joining(Application):
    """A member whose updates lie in files.

    Args:
        home: its folder.
        vector: see `sums.file_of`.
        out: gets every sum; None for nowhere.
        tell: takes what happens.
    """

    def __init__(self, home: Home, vector: Path, out: Path | None, tell: Tell) -> None:
        self.release = release()
        self.run = f"{session_id(home.policy, home.federation.pinned).hex()}/{home.federation.training_run}"
        self._home, self._vector, self._out, self._tell = home, vector, out, tell

    def about(self, start: RoundStart, content: bytes) -> bytes:
        """See `Application.about`."""
        return sums.about(start.previous_head)

    def joined(self, start: RoundStart, content: bytes) -> None:
        """See `Application.joined`."""
        self._tell("joined", {"round": start.round_number, "attempt": start.attempt})

    def work(self, number: int) -> Callable[[threading.Event], Given]:
        """Read the round's file; wait for it where it is not there yet."""
        return partial(_read, self._vector, number)

    def completed(self, done: Completed) -> None:
        """See `Application.completed`."""
        kept = None if self._out is None else str(sums.keep_sum(self._out, self._home.policy, done))
        receipt = done.receipt
        about = {"round": receipt.round_number, "included": list(done.included), "head": receipt.head.hex()}
        self._tell("completed", {**about, "file": kept})

    def ended(self, last: Finished) -> None:
        """See `Application.ended`."""
        Ended(last.reason, last.complete).keep(self._home.folder, self.run)

    def burned(self, number: int, attempt: int, reason: str) -> None:
        """See `Application.burned`."""
        self._tell("burned", {"round": number, "attempt": attempt, "reason": reason})

    def awaiting(self, sites: Iterable[str], seconds: float) -> None:
        """See `Application.awaiting`."""
        self._tell("waiting", {"for": list(sites)})

    def connected(self) -> None:
        """See `Application.connected`."""
        self._tell("connected", {})

    def lost(self, sentence: str) -> None:
        """See `Application.lost`."""
        self._tell("lost", {"reason": sentence})

    def note(self, text: str) -> None:
        """See `Application.note`."""
        self._tell("note", {"text": text})


def _read(given: Path, number: int, over: threading.Event) -> Given:
    while (path := sums.file_of(given, number)) is None:
        if over.wait(LOOK_SECONDS):
            raise TimeoutError
    return Given(sums.read_vector(path), str(path.name))


async def join(
    home: Home,
    address: str,
    vector: Path,
    out: Path | None,
    tell: Tell,
    *,
    patience: float | None = None,
    proxy: str | None = None,
    mode: str = MTLS,
) -> Finished:
    """Take part until the coordinator says that the run is over; a run that was seen to its end needs no coordinator.

    Args:
        home: this member's folder, with its certificate and key for TLS.
        address: host:port of the coordinator.
        vector: a file, or a folder with one a round; see `sums.file_of`.
        out: gets every sum; None for nowhere.
        tell: takes what happens.
        patience: seconds without an answer after which to give up; None for never.
        proxy: see `secagg.rpc.proxy.proxy_for`.
        mode: as the coordinator has it.

    Raises:
        SecAggError: see `Member.run`.
    """
    folder, me, application = home.folder, home.me, Joining(home, vector, out, tell)
    if found := Ended.of(folder, application.run):
        return Finished(reason=found.reason, complete=found.complete, final=True)
    tls = tls_of(folder, me, home.federation.pinned, mode)
    prover = prover_of(home.signing_key, home.federation.server_key, mode)
    vectors = 1 if home.task.private else 1 + home.policy.clients  # whole transcripts come (C-05)
    limit = vectors * message_limit(home.policy)
    mailbox = MailboxClient(address, me, tls, patience=patience, max_message_bytes=limit, proxy=proxy, prover=prover)
    async with alone(folder, home.federation.training_run):
        store = home.store()
        member = Member(
            *(home.policy, me, home.signing_key, home.federation.pinned, store, mailbox),
            application,
            training_run=home.federation.training_run,
            task_hash=home.task.hash(),
            private=home.task.private,
            state=folder,
            accepting=lambda round_ids: _accept(folder, me, round_ids),
        )
        with store:
            return await member.run()


def _accept(folder: Path, me: str, round_ids: Iterable[bytes]) -> str:
    own = ["--id", me, "--key", str(folder / f"{me}.signing")]
    command = ["secagg", "marks", "accept", str(folder / MARKS)]
    return "; ".join(shlex.join([*command, round_id.hex(), *own]) for round_id in round_ids)


def as_line(kind: str, facts: dict[str, Any]) -> str:
    """An event as one line of JSON, in ASCII."""
    return json.dumps({"event": kind, **facts})
