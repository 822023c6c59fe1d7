"""From noised updates to their sum: an aggregation in one process.

`SecureSum` drives the very sessions that the executables drive, over wire bytes; `PlainSum` uses the same encoder and
order and no masks, so that with a seed both give the same model bit for bit. Only an `Update` is accepted.
Nothing here keeps an update after its round.
"""

from collections.abc import Callable, Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.attempt import Emit, Exchange, Facts
from fedseg.errors import RoundFailedError
from fedseg.events import Note, RoundEnded
from fedseg.update import Update
from secagg import (
    AbortedError,
    ClientSession,
    ExposureError,
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
from secagg.context import GENESIS, RoundContext
from secagg.messages import FromClient, FromServer, Receipt, Reports, RoundStart
from secagg.packing import dtype_for, modulo
from secagg.prg import Stream
from secagg.quantize import quantize
from secagg.sqlite import SqliteStore
from secagg.steps import MASKED_INPUT_COLLECTION, STEPS
from secagg.transcript import accept
from secagg.transcript_files import Recorder, verify

Train = Callable[[str], Update]
Rounding = Callable[[str, int], Stream]


@dataclass(frozen=True)
class Outcome:
    """A completed aggregation.

    Attributes:
        total: (d,) float64, the weighted sum over `ended.included`.
        ended: the round as the log has it. `exact` says that the total equals the plain sum of the included, quantised
            updates bit for bit; the head of a plain sum is zero.
    """

    total: NDArray[np.float64]
    ended: RoundEnded


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
            values, share = quantize(update.vector, self._policy, site, self._rounding(site, self.number))
            if self._policy.layout is None:  # floats, which are clipped
                clip_rate[site] = share
            if site in included:
                total += values
        dropped = tuple(site for site in sorted(sites) if site not in included)
        ended = Facts(self.number, 0, emit).ended(included, dropped, GENESIS, exact=True, clip_rate=clip_rate)
        self.number += 1
        return Outcome(dequantize(modulo(total, self._policy.bits), self._policy), ended)


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
        kept: an existing folder for the public transcript of every round; None keeps none.
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
        kept: Path | None = None,
    ) -> None:
        self._kept = kept
        self._policy, self._keys, self._rounding = policy, keys, rounding
        self._task_hash, self._private = task_hash, private
        self.book = book
        self._pinned = PinnedRoster({site: key.verify_key for site, key in keys.items()})
        folder.mkdir(parents=True, exist_ok=True)
        # After a power cut nobody relies on these marks: all data is in this process. The run's checkpoint is synced.
        self._stores = {site: SqliteStore(folder / f"{site}.sqlite", site, synced=False) for site in keys}
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
        book, context = self.book, self.book.context(model_hash)
        recorder = self._recorder(context)
        server = ServerSession(self._policy, self._pinned, context, book.signing_key, book.leave_out, recorder)
        start = wire.encode(book.start(model_hash))
        asked = sorted(server.expected & set(sites))
        exchange = Exchange(server, Facts(context.round_number, context.attempt, emit), asked)
        values: dict[str, NDArray[Any]] = {}
        try:
            with recorder or nullcontext():
                sessions = {site: self._session(site, start, model_hash) for site in asked}
                speaking = _Speaking(exchange, silent)
                for site, session in sessions.items():
                    speaking.send(site, session.start())
                while not server.finished:
                    for site, message in speaking.close():
                        if isinstance(message, Reports):
                            values[site] = self._provide(sessions[site], train(site))
                        reply = sessions[site].receive(message)
                        if reply is not None:
                            speaking.send(site, reply)
        except (ProtocolError, AbortedError) as error:
            for text in book.failed(error, server.burned):
                emit(Note(text=text))
            raise RoundFailedError(_said(error)) from error
        book.completed(exchange.receipt)
        if recorder is not None and not self._private:
            self._replay(exchange.receipt, recorder.path)
        clip_rate = {site: sessions[site].clip_rate for site in values if sessions[site].clip_rates}
        exact = np.array_equal(exchange.total, self._plain(values[site] for site in server.included))
        ended = exchange.ended(exact=exact, clip_rate=clip_rate)
        return Outcome(dequantize(exchange.total, self._policy), ended)

    def _recorder(self, context: RoundContext) -> Recorder | None:
        """Of the transcript that is kept, or that sites replay where an update is not private alone (C-05)."""
        if self._kept is None and self._private:
            return None
        name = f"{context.round_number:04d}-{context.attempt}.transcript"
        path = self._transcript if self._kept is None else self._kept / name
        return Recorder(path, self._policy, self._pinned, context, signing_key=self.book.signing_key)

    def _plain(self, values: Iterable[NDArray[Any]]) -> NDArray[Any]:
        total = np.zeros(self._policy.length, dtype_for(self._policy.bits))
        for update in values:
            total += update
        return modulo(total, self._policy.bits)

    def _replay(self, receipt: Receipt, transcript: Path) -> None:
        """Check C-05: where an update is not private alone, a site that sent shares replays the last transcript.

        All sites are in one process, so it is verified once, and accepted in the name of each.
        """
        verdict = verify([transcript], self._policy, self._pinned)
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

    def _provide(self, session: ClientSession, update: Update) -> NDArray[Any]:
        """Hands an update over; returns what the session masks of it, filled as it does."""
        quantised = np.zeros(self._policy.length, dtype_for(self._policy.bits))
        session.provide(update.vector, update.event_id, self._rounding(update.site, self.number), quantised)
        return quantised

    def close(self) -> None:
        """Close the sites' stores."""
        for store in self._stores.values():
            store.close()


def _said(error: Exception) -> str:
    """What an attempt ended with; the protocol asks operators to accept an exposure (C-05), and here there are none."""
    if isinstance(error, ExposureError):
        return f"{error}. A simulation has no operator and no other copy of it: start it again, without --resume"
    return str(error)


class _Speaking:
    """Sites that speak until they fall silent, as if killed: nobody hears them, and they hear nobody."""

    def __init__(self, exchange: Exchange, silent: Mapping[str, str]) -> None:
        self._exchange, self._silent = exchange, silent
        self._gone: set[str] = set()

    def send(self, site: str, message: FromClient) -> None:
        """A site's message to the server."""
        if self._silent.get(site) == self._exchange.server.step:
            self._gone.add(site)
        if site not in self._gone:
            self._exchange.take(site, wire.encode(message))

    def close(self) -> list[tuple[str, FromServer]]:
        """Close the step; the server's replies to the sites that are still there."""
        heard = wire.decode_each(self._exchange.close())
        return [(site, message) for site, message in heard.items() if site not in self._gone]
