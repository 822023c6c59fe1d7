"""One round that a site takes part in, on the model that it was opened on."""

import asyncio
import threading
from typing import Any

import numpy as np
from numpy.typing import NDArray

from fedseg.attempt import Emit, Facts
from fedseg.events import RoundEnded
from fedseg.study import Study
from fedseg.update import Update
from secagg import ClientSession, Policy, dequantize, wire
from secagg.messages import FromClient, FromServer, Reports, Result
from secagg.packing import unpack
from secagg.prg import Stream
from secagg.steps import SHARE_REPORT


class Round:
    """What a site holds of a round.

    Args:
        me: the site's id.
        session: its part in the protocol.
        number, attempt: of the round.
        opened_on: its state, weights and what is kept behind them. The site's own may be another by the end: one to be
            evaluated comes at any time.
        emit: takes events.

    Attributes:
        training: runs beside the first steps; `over` stops it.
        provided: the update was handed to the session.
        quantised: what an audit wants of it, filled as it is masked; None where there is no audit.
    """

    def __init__(
        self, me: str, session: ClientSession, number: int, attempt: int, opened_on: NDArray[np.float32], emit: Emit
    ) -> None:
        self.me, self.session, self.opened_on = me, session, opened_on
        self.facts = Facts(number, attempt, emit)
        self.training: asyncio.Task[Update] | None = None
        self.over = threading.Event()
        self.provided = False
        self.quantised: NDArray[Any] | None = None
        self._sharers: frozenset[str] = frozenset()

    @property
    def number(self) -> int:
        """Of the round."""
        return self.facts.number

    @property
    def trained(self) -> bool:
        """Whether there is an update that was not handed over yet."""
        return not self.provided and self.training is not None and self.training.done()

    def rounding(self, study: Study) -> Stream:
        """The stream of stochastic rounding."""
        if study.study.seed is not None:
            return Stream.seeded(study.study.seed, "rounding", self.me, self.number)
        return Stream()

    def heard(self, data: bytes) -> FromServer:
        """The coordinator's message of these bytes.

        Raises:
            ProtocolError: W-01 or M-01.
        """
        message = wire.decode_from_server(data)
        self.facts.heard(len(data))
        if isinstance(message, Reports):
            self._sharers = frozenset(message.by_id)
        return message

    def speaks(self, message: FromClient) -> bytes:
        """The bytes of a message of this site, which is counted as sent."""
        data = wire.encode(message)
        self.facts.spoke(self.me, self.session.step, len(data))
        return data

    def total(self, result: Result, policy: Policy) -> NDArray[Any]:
        """The sum, (d,) integers modulo 2^b."""
        return unpack(result.total, policy.length + policy.slots, policy.bits)[: policy.length]

    def following(self, total: NDArray[Any], policy: Policy, study: Study) -> NDArray[np.float32]:
        """The state that this sum gives."""
        return study.following(self.opened_on, dequantize(total, policy), self.session.included, policy)

    def ended(self, head: bytes) -> RoundEnded:
        """The round as this site saw it to its end; says who dropped out of it."""
        included = self.session.included
        dropped = sorted(self._sharers - set(included))
        for site in dropped:
            self.facts.silent(site, SHARE_REPORT)
        self.facts.took("round")
        clip_rate = {self.me: self.session.clip_rate} if self.session.clip_rates else {}
        return self.facts.ended(included, dropped, head, clip_rate=clip_rate)

    def close(self) -> None:
        """End training and wipe the session's secrets."""
        self.over.set()
        self.session.close()
