"""A round in one process, for a notebook: vectors in, their sum out, with what the round said and what it cost.

It is the real protocol, over its real bytes, with keys made for the occasion: what is left out is the network alone.
"""

from collections import Counter, deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from secagg.arguments import must_be
from secagg.book import RoundBook
from secagg.context import RoundContext
from secagg.driver import ClientDriver, Completed, Failed, NeedInput, Published, Send, ServerDriver
from secagg.errors import ConfigError
from secagg.keys import SigningKey
from secagg.layout import Values
from secagg.messages import FromClient, Result
from secagg.policy import Policy
from secagg.prg import Executor
from secagg.quantize import means, sums
from secagg.roster import PinnedRoster
from secagg.steps import MASKED_INPUT_COLLECTION, ROUND_START, STEPS
from secagg.store import MemoryStore
from secagg.transcript import RoundReport, judge
from secagg.transcript.record import (
    CHAIN_START,
    Closing,
    OpenedPair,
    Opening,
    as_shown,
    encode_record,
    next_link,
    place,
)

RUN = "simulation"
_NOTHING = bytes(32)


@dataclass(frozen=True, repr=False)
class Simulated:
    """A round that was simulated.

    Attributes:
        total: (d,) float64, the sum over `included`, weighted where there are weights.
        sums, means: the same by field, and divided by who is in it, as `secagg.sums` and `secagg.means` give them.
        included, dropped: U3, and U2 without U3, sorted.
        clip_rates: by client, the fraction of its values that were clipped.
        heard: by step, whose message the server took.
        bytes_up, bytes_down: by step, over all clients, as they go over a network.
        report: on the round's public transcript, which was verified: who did what, the head, model and task.
        transcript: its records, for `secagg.transcript.judge`.
    """

    total: NDArray[np.float64]
    sums: dict[str, Any]
    means: dict[str, Any]
    included: tuple[str, ...]
    dropped: tuple[str, ...]
    clip_rates: Mapping[str, float]
    heard: Mapping[str, tuple[str, ...]]
    bytes_up: Mapping[str, int]
    bytes_down: Mapping[str, int]
    report: RoundReport
    transcript: tuple[bytes, ...]

    def __repr__(self) -> str:
        lines = [f"sum of {len(self.included)} vectors: {', '.join(self.included)}"]
        lines += [f"dropped after they shared keys: {', '.join(self.dropped)}"] if self.dropped else []
        for step in self.bytes_down:
            who, up, down = len(self.heard.get(step, ())), self.bytes_up.get(step, 0), self.bytes_down[step]
            lines.append(f"{step:<22} {who:>4} heard {up:>12,} bytes up {down:>12,} down")
        return "\n".join([*lines, f"its transcript holds; head {self.report.next_head.hex()[:16]}"])


def simulate(
    updates: Mapping[str, Values],
    policy: Policy,
    drop: Mapping[str, str] | Iterable[str] = (),
    *,
    executor: Executor | None = None,
) -> Simulated:
    """Add vectors in this process as they would be added between sites, and verify the round's transcript.

    Args:
        updates: by client id, its vector, or arrays by field where the policy has a layout.
        policy: for as many clients. Its `server_key` is replaced by one that is made here, like every other key.
        drop: who falls silent: ids, before they send their masked input, or by id the step (`secagg.steps.STEPS`) whose
            message they do not send any more.
        executor: what expands masks (`secagg.prg.apply_masks`).

    Raises:
        ConfigError: updates, policy and drop do not fit together.
        TooFewClientsError: so many fall silent that there is no sum.
    """
    must_be(policy, Policy, "policy", "give a secagg.Policy")
    must_be(updates, Mapping, "updates", "give a dict of vectors by client id")
    must_be(drop, (Mapping, tuple, list, set, frozenset), "drop", "give ids, or a dict of the steps by id")
    silent = dict(drop) if isinstance(drop, Mapping) else dict.fromkeys(drop, MASKED_INPUT_COLLECTION)
    if not silent.keys() <= updates.keys():
        raise ConfigError(f"drop names {sorted(silent.keys() - updates.keys())[0]!r}, who has no update")
    if unknown := set(silent.values()) - set(STEPS):
        raise ConfigError(f"drop names the step {sorted(map(str, unknown))[0]!r}: the steps are {', '.join(STEPS)}")
    return _Simulation(updates, policy, silent, executor).run()


class _Simulation:
    """The parties of one round, and the mail between them."""

    def __init__(
        self, updates: Mapping[str, Values], policy: Policy, silent: Mapping[str, str], executor: Executor | None
    ) -> None:
        keys, server_key = {me: SigningKey.generate() for me in updates}, SigningKey.generate()
        self.updates, self.silent = updates, silent
        self.policy = policy = replace(policy, server_key=server_key.verify_key)
        self.pinned = pinned = PinnedRoster({me: key.verify_key for me, key in keys.items()})
        self.written = _Written(policy, pinned, server_key)
        book = RoundBook(RUN, _NOTHING, server_key, policy.max_corrupt)
        self.server = ServerDriver(policy, pinned, book, attempts=1, record=self.written.begin, executor=executor)
        self.clients: dict[str, ClientDriver] = {}
        for me in pinned:
            client = ClientDriver(
                *(policy, me, keys[me], pinned, MemoryStore()),
                training_run=RUN,
                task_hash=_NOTHING,
                private=True,
                executor=executor,
            )
            client.model_hash = _NOTHING
            self.clients[me] = client
        self.mail: deque[Send] = deque()
        self.heard: dict[str, list[str]] = {}
        self.up, self.down = Counter[str](), Counter[str]()
        self.done: Completed | None = None

    def run(self) -> Simulated:
        """Go on until nobody has anything to say."""
        self._do(ROUND_START, self.server.begin(_NOTHING))
        while self.mail or self.done is None:
            if self.mail:
                send = self.mail.popleft()
                self._answer(send.to, send.data)
            elif self.server.deadline is None or self.server.session is None:
                raise ConfigError("the round has no sum")
            else:  # who is silent stays silent: nobody waits for the deadline
                self._do(self.server.session.step, self.server.tick(self.server.deadline))
        done, policy = self.done, self.policy
        verdict = judge([("the simulation's transcript", self.written.records)], policy, self.pinned)
        if verdict.violation is not None:
            raise verdict.violation
        rates = {me: client.session.clip_rate for me, client in self.clients.items() if client.session is not None}
        return Simulated(
            total=done.total,
            sums=sums(done.result, policy),
            means=means(done.result, policy, done.included),
            included=done.included,
            dropped=done.dropped,
            clip_rates=rates,
            heard={step: tuple(sorted(who)) for step, who in self.heard.items()},
            bytes_up=dict(self.up),
            bytes_down=dict(self.down),
            report=verdict.rounds[0],
            transcript=tuple(self.written.records),
        )

    def _answer(self, me: str, data: bytes) -> None:
        client = self.clients[me]
        actions = client.receive(data)
        for action in actions:
            match action:
                case NeedInput():
                    actions += client.provide(self.updates[me])
                case Send():
                    self._speak(me, action.data)
                case Failed():
                    raise action.error

    def _speak(self, me: str, data: bytes) -> None:
        step = self.server.session.step if self.server.session is not None else ROUND_START
        if self.silent.get(me) == step:
            self._do(step, self.server.gone(me))
            return
        self.heard.setdefault(step, []).append(me)
        self.up[step] += len(data)
        self._do(step, self.server.receive(me, data))

    def _do(self, step: str, actions: list[Any]) -> None:
        for action in actions:
            match action:
                case Send():
                    self.down[step] += len(action.data)
                    self.mail.append(action)
                case Completed():
                    self.done = action
                case Published():
                    pass
                case Failed():
                    raise action.error


class _Written:
    """The transcript of the one round, in memory."""

    def __init__(self, policy: Policy, pinned: PinnedRoster, signing_key: SigningKey) -> None:
        self._policy, self._pinned, self._key = policy, pinned, signing_key
        self._opening = b""
        self._kept: dict[tuple[int, str, str], list[bytes]] = {}
        self.records: list[bytes] = []

    def begin(self, context: RoundContext) -> "_Written":
        """Of the attempt that begins."""
        self._opening = encode_record(Opening.of(self._policy, self._pinned.hash(), context, True))
        return self

    def __call__(self, message: FromClient | OpenedPair | Result) -> None:
        """Keep a message in its published form."""
        record, vector = as_shown(message, self._policy)
        self._kept[place(record)] = [encode_record(part) for part in (record, *vector)]

    def publish(self) -> None:
        """Put the records into their order, and seal them."""
        kept = [record for _, parts in sorted(self._kept.items()) for record in parts]
        self.records, link = [self._opening, *kept], CHAIN_START
        for record in self.records:
            link = next_link(link, record)
        self.records.append(encode_record(Closing(link).sign(self._key)))
