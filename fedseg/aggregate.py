"""From noised updates to their sum, in a simulation.

`SecureSum` drives the very sessions that the executables drive, over wire bytes; `PlainSum` uses the same encoder and
order and no masks, so that with a seed both give the same model bit for bit. Only an `Update` is accepted.
Nothing here keeps an update after its round.
"""

from collections.abc import Collection, Iterable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.attempt import Emit, Exchange, Facts
from fedseg.errors import RoundFailedError
from fedseg.events import Note, RoundEnded
from fedseg.parties import Agreed, Rounding, Sites, Train
from fedseg.update import seeds_of, values_of
from secagg import (
    AbortedError,
    ExposureError,
    Policy,
    ProtocolError,
    RoundBook,
    ServerSession,
    dequantize,
    wire,
)
from secagg.context import GENESIS, RoundContext
from secagg.packing import dtype_for, modulo
from secagg.quantize import quantize
from secagg.steps import MASKED_INPUT_COLLECTION, STEPS, UNMASKING
from secagg.transcript_files import Recorder


@dataclass(frozen=True)
class Outcome:
    """A completed aggregation.

    Attributes:
        total: (d,) float64, the weighted sum over `ended.included`.
        ended: the round as the log has it. `exact` says that the total equals the plain sum of the included, quantised
            updates bit for bit; the head of a plain sum is zero.
        excess_seeds: what sites disclosed for this sum, by site, one behind the other.
    """

    total: NDArray[np.float64]
    ended: RoundEnded
    excess_seeds: Mapping[str, bytes] = field(default_factory=dict)


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
        clip_rate, seeds = dict[str, float](), dict[str, bytes]()
        for site in sorted(sites):
            update = train(site)
            values, share = quantize(
                values_of(update, self._policy), self._policy, site, self._rounding(site, self.number)
            )
            if any(field.kind.value == "float" for field in self._policy.fields.values()):
                clip_rate[site] = share
            if site in included:
                total += values
            count = self._policy.excess(len(included))
            if count and seeds_of(update) and STEPS.index(silent.get(site, STEPS[-1])) > STEPS.index(UNMASKING):
                seeds[site] = b"".join(seeds_of(update)[-count:])
        dropped = tuple(site for site in sorted(sites) if site not in included)
        ended = Facts(self.number, 0, emit).ended(included, dropped, GENESIS, exact=True, clip_rate=clip_rate)
        self.number += 1
        told = {site: disclosed for site, disclosed in seeds.items() if site in included}
        return Outcome(dequantize(modulo(total, self._policy.bits), self._policy), ended, told)


class SecureSum:
    """The server of one federation and its sites, speaking the real protocol over wire bytes.

    Args:
        agreed: what all sites agreed to.
        book: the server's book of rounds.
        sites: all sites, in this process or elsewhere.
        folder: where the transcript lies that the sites replay (C-05).
        kept: an existing folder for the public transcript of every round; None keeps none.
    """

    def __init__(self, agreed: Agreed, book: RoundBook, sites: Sites, folder: Path, kept: Path | None = None) -> None:
        self._policy, self._pinned, self._private = agreed.policy, agreed.pinned, agreed.private
        self.book, self.sites, self._kept = book, sites, kept
        folder.mkdir(parents=True, exist_ok=True)
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
            model_hash: of the global model that the sites start from; every site holds the same.
            sites: who takes part.
            train: makes a site's update; called after ShareReport, once per site, where the sites are in this process.
            emit: takes `StepAccepted`, `StepClosed`, `Dropped` and `Note`.
            silent: sites that stop before sending their message of the named step, as if killed there.

        Raises:
            RoundFailedError: the attempt ended without a sum; the book is ready for the next one.
        """
        book, context = self.book, self.book.context(model_hash)
        recorder = self._recorder(context)
        server = ServerSession(self._policy, self._pinned, context, book.signing_key, book.leave_out, recorder)
        asked = sorted(server.expected & set(sites))
        exchange = Exchange(server, Facts(context.round_number, context.attempt, emit), asked)
        speaking = _Speaking(exchange, silent)
        try:
            with recorder or nullcontext():
                speaking.send(self.sites.open(asked, wire.encode(book.start(model_hash)), model_hash))
                while not server.finished:
                    speaking.send(self.sites.hear(speaking.close(), train))
        except (ProtocolError, AbortedError) as error:
            for text in book.failed(error, server.burned):
                emit(Note(text=text))
            raise RoundFailedError(_said(error)) from error
        receipt = exchange.receipt
        book.completed(receipt)
        if recorder is not None and not self._private:
            self.sites.replay(recorder.path, receipt.round_id)
        values = self.sites.quantised
        exact = None if values is None else np.array_equal(exchange.total, self._plain(values, server.included))
        ended = exchange.ended(exact=exact, clip_rate=self.sites.clip_rate)
        return Outcome(dequantize(exchange.total, self._policy), ended, server.excess_seeds)

    def _recorder(self, context: RoundContext) -> Recorder | None:
        """Of the transcript that is kept, or that sites replay where an update is not private alone (C-05)."""
        if self._kept is None and self._private:
            return None
        name = f"{context.round_number:04d}-{context.attempt}.transcript"
        path, key = self._transcript if self._kept is None else self._kept / name, self.book.signing_key
        return Recorder(path, self._policy, self._pinned, context, signing_key=key, synced=self._kept is not None)

    def _plain(self, values: Mapping[str, NDArray[Any]], included: Iterable[str]) -> NDArray[Any]:
        total = np.zeros(self._policy.length, dtype_for(self._policy.bits))
        for site in included:
            total += values[site]
        return modulo(total, self._policy.bits)

    def close(self) -> None:
        """Close the sites' marks."""
        self.sites.close()


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

    def send(self, messages: Mapping[str, bytes]) -> None:
        """The sites' messages to the server."""
        for site, data in messages.items():
            if self._silent.get(site) == self._exchange.server.step:
                self._gone.add(site)
            if site not in self._gone:
                self._exchange.take(site, data)

    def close(self) -> dict[str, bytes]:
        """Close the step; the server's replies to the sites that are still there."""
        return {site: data for site, data in self._exchange.close().items() if site not in self._gone}
