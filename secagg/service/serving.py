"""`secagg serve` without its command: a coordinator whose every round sums one vector of each member, into files."""

import json
from collections.abc import Sequence
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path

from secagg.book import RoundBook
from secagg.driver import Completed
from secagg.errors import ConfigError
from secagg.home import Home
from secagg.rpc.tls import AUTHORITY, COORDINATOR, ServerTls
from secagg.service import sums
from secagg.service.coordinator import Coordinator
from secagg.service.dialogue import Message
from secagg.service.events import (
    Burned,
    Connected,
    Disconnected,
    Ended,
    Event,
    Listener,
    Note,
    StepOpened,
    Summed,
    TurnedAway,
)
from secagg.service.running import Options

REVOKED = "revoked.pem"
"""Of the server's folder: certificates that the authority took back, a standard list (CRL); may be missing."""

_WORDS: dict[type, str] = {
    StepOpened: "step",
    Summed: "completed",
    Burned: "failed",
    TurnedAway: "refused",
    Connected: "back",
    Disconnected: "gone",
    Ended: "finished",
}


class Serving:
    """The application: sums, and nothing else.

    Args:
        home: the coordinator's folder.
        rounds: how many sums are wanted.
        out: gets every sum.
    """

    kinds: Sequence[type[Message]] = ()
    content_bytes = 0

    def __init__(self, home: Home, rounds: int, out: Path) -> None:
        self._policy, self.rounds, self._out = home.policy, rounds, out
        self.replayed = not home.task.private
        self.release = f"secagg {version('secagg')}"

    async def prepare(self) -> None:
        """Nothing to make ready."""

    def wants_more(self, book: RoundBook) -> bool:
        """Whether there are fewer sums than wanted."""
        return len(book.receipts) < self.rounds

    def about(self, book: RoundBook) -> bytes:
        """See `sums.about`."""
        return sums.about(book.head)

    def content(self) -> bytes:
        """Nothing goes along."""
        return b""

    def completed(self, done: Completed, summed: Summed) -> None:
        """Write the sum; another process writes the same once more, where this one ends before it is counted."""
        sums.keep_sum(self._out, self._policy, done)

    def state(self) -> bytes:
        """Nothing that the book does not know."""
        return b""

    def restore(self, state: bytes) -> None:
        """Nothing to go on from."""

    def heard(self, site: str, message: Message) -> None:
        """Members say nothing of their own."""

    def counted(self, summed: Summed) -> None:
        """The sum lies there already."""


def serving(home: Home, rounds: int, out: Path, options: Options, *listeners: Listener) -> Coordinator:
    """The coordinator of a folder.

    Args:
        home: the coordinator's folder, with its certificate and key for TLS.
        rounds: how many sums are wanted.
        out: gets every sum.
        options: how it runs.
        listeners: hear every event.

    Raises:
        ConfigError: what the folder holds does not fit together.
    """
    folder = home.folder
    if home.signing_key.verify_key != home.policy.server_key:
        raise ConfigError(f"{folder}: holds the key of {home.me}, and not the server's; serve from the server's folder")
    names = (f"{AUTHORITY}.pem", f"{COORDINATOR}.pem", f"{COORDINATOR}.key", REVOKED)
    tls = ServerTls.load(*(folder / name for name in names))
    application = Serving(home, rounds, out)
    given = (home.policy, home.federation, home.signing_key, tls, home.task.hash(), application, options)
    return Coordinator(*given, *listeners)


def as_line(event: Event) -> str:
    """An event as one line of JSON, in ASCII."""
    kind = type(event)
    return json.dumps({"event": _WORDS.get(kind, kind.__name__.lower()), **asdict(event)})


def sentence(event: Event) -> str:
    """An event for people; "" where it is none of theirs."""
    match event:
        case Summed():
            return f"round {event.round}: the sum of {', '.join(event.included)}"
        case Burned():
            return f"round {event.round}, attempt {event.attempt}: no sum: {event.reason}"
        case Note():
            return event.text
        case TurnedAway():
            return event.reason
    return ""
