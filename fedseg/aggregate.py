"""From noised updates to their sum: an aggregation in one process.

`SecureSum` drives the very sessions that the executables drive, over wire bytes; `PlainSum` uses the same encoder and
order and no masks, so that with a seed both give the same model bit for bit. Only a `NoisedUpdate` is accepted.
Nothing here keeps an update after its round.
"""

import time
from collections.abc import Callable, Collection, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.errors import RoundFailedError
from fedseg.events import AnyEvent, Dropped, Note, RoundEnded, StepAccepted, StepClosed
from fedseg.update import NoisedUpdate
from secagg import (
    AbortedError,
    ClientSession,
    PinnedRoster,
    Policy,
    ProtocolError,
    RoundBook,
    ServerSession,
    SigningKey,
    UnexpectedMessageError,
    dequantize,
    open_round,
    wire,
)
from secagg.context import GENESIS
from secagg.messages import FromClient, FromServer, Receipt, Reports, RoundStart
from secagg.packing import dtype_for, modulo
from secagg.prg import Stream
from secagg.quantize import quantize
from secagg.sqlite import SqliteStore
from secagg.steps import MASKED_INPUT_COLLECTION, STEPS
from secagg.transcript import accept
from secagg.transcript_files import Recorder, verify

Emit = Callable[[AnyEvent], None]
Train = Callable[[str], NoisedUpdate]
Rounding = Callable[[str, int], Stream]


@dataclass(frozen=True)
class Outcome:
    """A completed aggregation.

    Attributes:
        total: (d,) float64, the weighted sum over `included`.
        included, dropped: site ids.
        head: of the round, 32 bytes; zero bytes for a plain sum.
        exact: the total equals the plain sum of the included, quantised updates bit for bit; None where not known.
        clip_rate: fraction of clipped values by site.
        bytes_up, bytes_down: wire bytes of the protocol over all sites.
        seconds: by protocol step, the server's waiting included.
    """

    total: NDArray[np.float64]
    included: tuple[str, ...]
    dropped: tuple[str, ...]
    head: bytes
    exact: bool | None
    clip_rate: Mapping[str, float]
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: Mapping[str, float] = field(default_factory=dict)

    def ended(self, number: int, attempt: int | None) -> RoundEnded:
        """What the log has of it."""
        return RoundEnded(
            round=number,
            attempt=attempt,
            included=self.included,
            dropped=self.dropped,
            exact=self.exact,
            head=self.head.hex(),
            clip_rate=self.clip_rate,
            bytes_up=self.bytes_up,
            bytes_down=self.bytes_down,
            seconds=self.seconds,
        )


class PlainSum:
    """A plain modular sum with the same encoder, order and included set as `SecureSum`: for comparison, no secrecy."""

    def __init__(self, policy: Policy, rounding: Rounding, number: int = 1) -> None:
        self._policy, self._rounding, self.number = policy, rounding, number

    def round(
        self, model_hash: bytes, sites: Collection[str], train: Train, emit: Emit, silent: Mapping[str, str]
    ) -> Outcome:
        """See `SecureSum.round`."""
        early = STEPS.index(MASKED_INPUT_COLLECTION)
        included = tuple(site for site in sorted(sites) if STEPS.index(silent.get(site, STEPS[-1])) > early)
        total = np.zeros(self._policy.length, dtype_for(self._policy.bits))
        clip_rate = {}
        for site in sorted(sites):
            update = train(site)
            values, clip_rate[site] = quantize(update.vector, self._policy, site, self._rounding(site, self.number))
            if site in included:
                total += values
        self.number += 1
        dropped = tuple(site for site in sorted(sites) if site not in included)
        return Outcome(
            dequantize(modulo(total, self._policy.bits), self._policy), included, dropped, GENESIS, True, clip_rate
        )


class SecureSum:
    """All sites and the server of one federation in one process, speaking the real protocol over wire bytes.

    Args:
        policy: with the server's key.
        book: the server's book of rounds.
        keys: every site's identity.
        folder: where each site's durable marks live.
        rounding: the stream of stochastic rounding by site and round number, the same stream for the same arguments.
        task_hash: of the study that every site agreed to, 32 bytes.
        private: whether each update is private alone and charged, so that a burned round exposes nothing more.
    """

    def __init__(
        self,
        policy: Policy,
        book: RoundBook,
        keys: Mapping[str, SigningKey],
        folder: Path,
        rounding: Rounding,
        task_hash: bytes,
        private: bool,
    ) -> None:
        self._policy, self._keys, self._rounding = policy, keys, rounding
        self._task_hash, self._private = task_hash, private
        self.book = book
        self._pinned = PinnedRoster({site: key.verify_key for site, key in keys.items()})
        folder.mkdir(parents=True, exist_ok=True)
        self._stores = {site: SqliteStore(folder / f"{site}.sqlite", site) for site in keys}
        self._transcript = folder / "round.transcript"

    @property
    def number(self) -> int:
        """Number of the next round."""
        return self.book.number

    def round(
        self, model_hash: bytes, sites: Collection[str], train: Train, emit: Emit, silent: Mapping[str, str]
    ) -> Outcome:
        """One attempt at one round.

        Args:
            model_hash: of the global model that `train` starts from; every site holds the same.
            sites: who takes part.
            train: makes a site's update; called after ShareReport, once per site.
            emit: takes `StepAccepted`, `StepClosed`, `Dropped` and `Note`.
            silent: sites that stop before sending their message of the named step, as if killed there.

        Raises:
            RoundFailedError: the attempt ended without a sum; the book is ready for the next one.
        """
        book, context, recorder = self.book, self.book.context(model_hash), None
        if not self._private:
            recorder = Recorder(self._transcript, self._policy, self._pinned, context, signing_key=book.signing_key)
        server = ServerSession(self._policy, self._pinned, context, book.signing_key, book.leave_out, recorder)
        exchange = _Exchange(server, context.round_number, emit, silent)
        start = wire.encode(book.start(model_hash))
        plain = np.zeros(self._policy.length, dtype_for(self._policy.bits))
        values: dict[str, NDArray[Any]] = {}
        try:
            with recorder or nullcontext():
                asked = sorted(server.expected & set(sites))
                sessions = {site: self._session(site, start, model_hash) for site in asked}
                for site, session in sessions.items():
                    exchange.send(site, session.start())
                while not server.finished:
                    for site, message in exchange.close():
                        if isinstance(message, Reports):
                            values[site] = self._provide(sessions[site], train(site))
                        reply = sessions[site].receive(message)
                        if reply is not None:
                            exchange.send(site, reply)
        except (ProtocolError, AbortedError) as error:
            for text in book.failed(error, server.burned):
                emit(Note(text=text))
            raise RoundFailedError(str(error)) from error
        for site in server.included:
            plain += values[site]
        outcome = exchange.outcome(
            modulo(plain, self._policy.bits), {s: sessions[s].clip_rate for s in values}, self._policy
        )
        book.completed(exchange.receipt)
        if recorder is not None:
            self._replay(exchange.receipt)
        return outcome

    def _replay(self, receipt: Receipt) -> None:
        """What each site that released shares does without differential privacy, computed once for all of them."""
        verdict = verify([self._transcript], self._policy, self._pinned)
        for store in self._stores.values():
            with store.transaction() as marks:
                release = marks.open_release
            if release is not None and release.round_id == receipt.round_id:
                accept(verdict, store)

    def _session(self, site: str, start: bytes, model_hash: bytes) -> ClientSession:
        """A site's session for an announced round, after the site's own checks."""
        announced = wire.decode_from_server(start)
        if not isinstance(announced, RoundStart):
            raise UnexpectedMessageError("C-20", "the server opened a round with another message")
        store = self._stores[site]
        opened = open_round(
            self._policy,
            self._pinned,
            self.book.training_run,
            announced,
            store,
            model_hash=model_hash,
            task_hash=self._task_hash,
            private=self._private,
        )
        return ClientSession(self._policy, site, self._keys[site], self._pinned, opened, store)

    def _provide(self, session: ClientSession, update: NoisedUpdate) -> NDArray[Any]:
        session.provide(update.vector, update.event_id, self._rounding(update.site, self.number))
        return quantize(update.vector, self._policy, update.site, self._rounding(update.site, self.number))[0]

    def close(self) -> None:
        """Close the sites' stores."""
        for store in self._stores.values():
            store.close()


class _Exchange:
    """One attempt: every message goes as wire bytes, is counted, timed and told."""

    def __init__(self, server: ServerSession, number: int, emit: Emit, silent: Mapping[str, str]) -> None:
        self._server, self._number, self._emit, self._silent = server, number, emit, silent
        self._last: dict[str, str] = {}
        self._gone: set[str] = set()
        self._up = self._down = 0
        self._seconds: dict[str, float] = {}
        self._since = time.perf_counter()

    def send(self, site: str, message: FromClient) -> None:
        """A site's message to the server, unless the site is silent from here on."""
        step = self._server.step
        if site in self._gone or self._silent.get(site) == step:
            if site not in self._gone:
                self._emit(Dropped(round=self._number, site=site, after=self._last.get(site, "")))
            self._gone.add(site)
            return
        data = wire.encode(message)
        self._server.receive(site, wire.decode_from_client(data))
        self._up += len(data)
        self._last[site] = step
        self._emit(StepAccepted(round=self._number, site=site, step=step, bytes=len(data)))

    def close(self) -> list[tuple[str, FromServer]]:
        """Close the step; the server's replies to the sites that are still there."""
        step = self._server.step
        replies = wire.encode_each(self._server.close_round())
        sent = sum(map(len, replies.values()))
        self._down += sent
        now = time.perf_counter()
        self._seconds[step], self._since = now - self._since, now
        self._emit(StepClosed(round=self._number, step=step, seconds=self._seconds[step], bytes_down=sent))
        return [(site, wire.decode_from_server(data)) for site, data in replies.items() if site not in self._gone]

    @property
    def receipt(self) -> Receipt:
        """Of the completed round."""
        if self._server.receipt is None:
            raise RoundFailedError("the round has no result yet")
        return self._server.receipt

    def outcome(self, plain: NDArray[Any], clip_rate: Mapping[str, float], policy: Policy) -> Outcome:
        """The sum of the finished session, held against the plain sum of the same quantised updates."""
        result = self._server.result
        if result is None:
            raise RoundFailedError("the round has no result yet")
        return Outcome(
            dequantize(result, policy),
            self._server.included,
            self._server.dropped,
            self.receipt.head,
            np.array_equal(result, plain),
            clip_rate,
            self._up,
            self._down,
            self._seconds,
        )
