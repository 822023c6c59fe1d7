"""A cohort in one process, with a hook at every point where somebody can fall silent or lie."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from functools import cache

import numpy as np

from secagg import (
    ClientSession,
    MemoryStore,
    PinnedRoster,
    Policy,
    ProtocolError,
    RoundContext,
    SecAggError,
    ServerSession,
    SigningKey,
    Suite,
    unchecked_round,
    wire,
)
from secagg.messages import FromClient
from secagg.packing import packed_size
from secagg.prg import Stream
from secagg.quantize import quantize
from secagg.roster import session_id
from secagg.steps import BLAME, STEPS

SENDING = STEPS[:-1]
"""The steps in which a client sends something."""
ORDER = (*STEPS, BLAME)

SERVER_KEY = SigningKey.from_bytes(bytes([255]) * 32)
RUN = "run-1"


@cache
def signing_key(index: int) -> SigningKey:
    return SigningKey.from_bytes(bytes([index + 1]) * 32)


def ids(n: int) -> list[str]:
    return [f"site-{chr(ord('a') + i)}" for i in range(n)]


@dataclass
class Cohort:
    """Pinned identities, policies, stores and updates of n clients; `open` makes their sessions for one attempt."""

    n: int = 4
    c: int = 1
    suite: Suite = Suite.X25519
    length: int = 5
    bits: int = 32
    weights: Mapping[str, float] = field(default_factory=dict)
    min_survivors: int = 0
    signed: bool = True
    private: bool = False

    def __post_init__(self) -> None:
        self.ids = ids(self.n)
        self.keys = {client_id: signing_key(i) for i, client_id in enumerate(self.ids)}
        self.roster = PinnedRoster({client_id: key.verify_key for client_id, key in self.keys.items()})
        self.stores = {client_id: MemoryStore() for client_id in self.ids}
        self.policy = Policy(
            project="test",
            clients=self.n,
            length=self.length,
            clip_range=1.0,
            max_corrupt=self.c,
            min_survivors=self.min_survivors,
            suite=self.suite,
            bits=self.bits,
            weights=self.weights,
            server_key=SERVER_KEY.verify_key if self.signed else b"",
        )
        self.updates = {
            client_id: np.random.default_rng(i).uniform(-1, 1, self.length) for i, client_id in enumerate(self.ids)
        }

    def context(self, number: int = 1, attempt: int = 0, model: bytes = bytes(32), head: bytes = bytes(32)):
        return RoundContext(RUN, number, attempt, model, bytes(32), head)

    def client(
        self, client_id: str, context: RoundContext | None = None, policy: Policy | None = None, private: bool = False
    ):
        return ClientSession(
            policy or self.policy,
            client_id,
            self.keys[client_id],
            self.roster,
            unchecked_round(context or self.context(), private or self.private),
            self.stores[client_id],
        )

    def server(self, context: RoundContext | None = None, leave_out=(), **given) -> ServerSession:
        key = SERVER_KEY if self.signed else None
        return ServerSession(self.policy, self.roster, context or self.context(), key, leave_out, **given)

    def provide(self, client: ClientSession, client_id: str) -> FromClient | None:
        return client.provide(self.updates[client_id], f"event of {client_id}", Stream.seeded(7, client_id))

    def plain_sum(self, included) -> np.ndarray:
        """Exact sum of the quantised updates, modulo 2^b."""
        parts = [quantize(self.updates[i], self.policy, i, Stream.seeded(7, i))[0] for i in included]
        total = np.sum(parts, axis=0, dtype=parts[0].dtype)
        return total & total.dtype.type((1 << self.bits) - 1)

    def replay(self, play: "Play") -> None:
        """Every site has replayed the transcript of this finished round."""
        slot = (play.context or self.context()).at(session_id(self.policy, self.roster))
        for store in self.stores.values():
            with store.transaction() as marks:
                marks.replay(slot, play.server.receipt.round_id)

    def play(self, **options) -> "Play":
        return Play(self, **options).to_the_end()


def excess_seed(me: str, place: int, attempt: int = 0) -> bytes:
    return f"{me} {place} {attempt}".encode().ljust(32, b".")


class Disclosing(Cohort):
    """Each client gives a seed of noise for every client that may drop out, and discloses those of who did not."""

    attempt = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        self.policy = replace(self.policy, excess_seeds=True)

    def seeds(self, me: str) -> list[bytes]:
        return [excess_seed(me, place, self.attempt) for place in range(self.policy.excess(self.n))]

    def provide(self, client: ClientSession, client_id: str) -> FromClient | None:
        stream, seeds = Stream.seeded(7, client_id), self.seeds(client_id)
        return client.provide(self.updates[client_id], f"event of {client_id}", stream, excess_seeds=seeds)


@dataclass
class Play:
    """One attempt, driven round by round.

    Attributes:
        silent: client to the step in which it falls silent for good.
        up, down: change what a client or the server says in a step; None drops it.
        late: clients whose update is not provided at the start.
    """

    cohort: Cohort
    silent: Mapping[str, str] = field(default_factory=dict)
    up: Callable = lambda step, client_id, message: message
    down: Callable = lambda step, client_id, message: message
    context: RoundContext | None = None
    leave_out: tuple[str, ...] = ()
    late: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        cohort = self.cohort
        self.server = cohort.server(self.context, self.leave_out)
        self.clients = {
            client_id: cohort.client(client_id, self.context)
            for client_id in cohort.ids
            if client_id not in self.leave_out
        }
        self.errors: dict[str, SecAggError] = {}
        self.refusals: dict[str, ProtocolError] = {}
        self.failure: SecAggError | None = None
        self.out = {}
        for client_id, client in self.clients.items():
            if client_id not in self.late:
                cohort.provide(client, client_id)
            self.out[client_id] = client.start()

    def talks(self, client_id: str, step: str) -> bool:
        stops = self.silent.get(client_id)
        return stops is None or ORDER.index(step) < ORDER.index(stops)

    def collect(self) -> None:
        """The server hears everybody who still talks."""
        step = self.server.step
        for client_id, message in self.out.items():
            said = self.up(step, client_id, message) if self.talks(client_id, step) else None
            if said is None:
                continue
            try:
                self.server.receive(client_id, wire.decode_from_client(wire.encode(said)))
            except ProtocolError as error:
                self.refusals[client_id] = error

    def answer(self, replies) -> None:
        """The clients hear the server."""
        step, self.out = self.server.step, {}
        for client_id, message in replies.items():
            heard = self.down(step, client_id, message)
            if heard is None or client_id in self.errors:
                continue
            try:
                reply = self.clients[client_id].receive(wire.decode_from_server(wire.encode(heard)))
            except SecAggError as error:
                self.errors[client_id] = error
            else:
                if reply is not None:
                    self.out[client_id] = reply

    def damage_the_sum(self) -> None:
        """An accident in the server's memory while it unmasks: the lowest bit of the last constant slot flips."""
        policy, planes = self.cohort.policy, self.server._state.collected.planes
        block = (policy.length + policy.slots - 1) // 2**16 * 2**16
        count = policy.length + policy.slots - block
        row, lane = divmod(count - 1, -(-count // 32))
        planes[packed_size(block, policy.bits) + 4 * lane + row // 8] ^= 1 << row % 8

    def until(self, step: str) -> "Play":
        """Go on until the server is about to collect `step`."""
        while not self.server.finished and self.server.step != step:
            self.collect()
            try:
                replies = self.server.close_step()
            except SecAggError as error:
                self.failure = error
                return self
            self.answer(replies)
        if self.server.finished:
            self.collect()
        return self

    def to_the_end(self) -> "Play":
        return self.until("nowhere")

    @property
    def exact(self) -> bool:
        return np.array_equal(self.server.result, self.cohort.plain_sum(self.server.included))


def alone(step: str, client_id: str, change: Callable) -> Callable:
    """A hook that changes one message of one client, or to one client, in one step."""

    def hook(at: str, who: str, message):
        return change(message) if (at, who) == (step, client_id) else message

    return hook
