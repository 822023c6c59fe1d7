"""Machines over real sessions: an honest server among liars and a bad network, and a server that lies as it likes.

The first asks that everybody honest gets the exact sum; the second that nobody gets more than one. A third lets the
lying server go from round to round, run to run and project to project: its rules are the events of the model under
audits/model, and of the exhaustive driver.
"""

# ruff: noqa: PT017 - a refusal is one of two right outcomes here, and pytest.raises demands it

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from itertools import combinations, pairwise

import numpy as np
import pytest
from hypothesis import HealthCheck, Phase, event, given, settings, target
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)

from secagg import (
    AbortedError,
    ClientSession,
    ComplaintError,
    ExposureError,
    IllegalTransitionError,
    MemoryStore,
    ProtocolError,
    RoundContext,
    SecAggError,
    ServerSession,
    Suite,
    TooFewClientsError,
    accept_exposure,
    open_round,
    unchecked_round,
    wire,
)
from secagg.client import Advertised, Attested, Masked, Released, Reported, Shared
from secagg.complaints import leave_out as meet
from secagg.context import GENESIS, next_head
from secagg.context import Slot as DurableSlot
from secagg.encoding import digest
from secagg.keys import verify
from secagg.messages import (
    AdvertiseKeys,
    Attestation,
    Attestations,
    Confirmation,
    EncryptedShares,
    IncludedSet,
    MaskedInput,
    Receipt,
    Reports,
    Result,
    Roster,
    RoundStart,
    ShareInbox,
    ShareReport,
    SlotMasks,
    UnmaskingShares,
)
from secagg.roster import session_id
from secagg.shamir import PRIME
from secagg.steps import BLAME
from secagg.store import Marks
from tests.support.cohort import RUN, SENDING, SERVER_KEY, Cohort
from tests.support.hostile import (
    GARBLED,
    MASKED,
    OTHER_HASH,
    Witness,
    altered,
    believe_own_lie,
    both_lists,
    deal_otherwise,
    fingerprint,
    flip,
    flipped,
    headed,
    lie_about_pair_secrets,
    poisoned,
    rebundled,
    resigned,
    secrets_of,
    unsigned,
    wrong_list,
)

CHOICE = st.integers(0, 59)
AFTER = st.integers(0, 3)
PLACES = st.integers(0, 6)
"""A client, by its place modulo the size of the cohort."""

KINDS = (*SENDING, "Result", BLAME)


def take(client: ClientSession, data: bytes, answer: bool = True):
    """Hand bytes to a client: the reply, or the error that ended its session. Nothing in between.

    Raises:
        AssertionError: a client that refused goes on, or still holds a secret.
    """
    held, before = secrets_of(client), fingerprint(client)
    try:
        message = wire.decode_from_server(data)
    except ProtocolError as error:
        assert fingerprint(client) == before
        return None, error
    over = client.finished
    try:
        return client.receive(message), None
    except IllegalTransitionError as error:
        assert over
        return None, error
    except SecAggError as error:
        assert client.finished
        assert client._state is client._update is None
        assert not any(vars(secret) for secret in held)
        return None, error


# --- an honest server --------------------------------------------------------------------------------------------

UNMASKING_LIES = {
    "another own self seed": resigned(self_seed=OTHER_HASH),
    "a wrong share of a self seed": wrong_list("self_seed_shares", lambda m: flipped(m) if m else m),
    "a wrong share of a mask key": wrong_list("mask_key_shares", lambda m: flipped(m) if m else {}),
    "a wrong pair secret": wrong_list("pair_secrets", lambda m: flipped(m) if m else {}),
    "a share too few": wrong_list("self_seed_shares", lambda m: dict(list(m.items())[1:])),
    "both lists": both_lists,
    "another round": resigned(round_id=OTHER_HASH),
    "forged": unsigned(signature=bytes(64)),
}
LIES = {
    AdvertiseKeys: {
        "another slot": resigned(slot=OTHER_HASH),
        "a point of low order": resigned(mask_dh_pk=bytes(32)),
        "a key too short": resigned(channel_pk=b""),
        "forged": unsigned(nonce=bytes(16)),
    },
    EncryptedShares: {
        "an envelope that does not open": rebundled(altered(0, shares=flip)),
        "a wrong commitment to s": rebundled(altered(0, mask_key_commitment=flip)),
        "a wrong commitment to b": rebundled(altered(-1, self_seed_commitment=flip)),
        "a wrong pair envelope": rebundled(altered(0, pair=lambda sealed: flip(sealed) if sealed else b"")),
        "a wrong pair commitment": rebundled(
            altered(0, pair_commitment=lambda sealed: flip(sealed) if sealed else b"")
        ),
        "a pair secret where none is due": rebundled(altered(-1, pair_commitment=OTHER_HASH)),
        "bundles in another order": rebundled(lambda bundles: bundles[::-1]),
        "bundles outside the header": rebundled(lambda bundles: bundles[::-1], resign=False),
        "a bundle too few": rebundled(lambda bundles: bundles[:-1]),
        "another roster": headed(roster1=OTHER_HASH),
    },
    ShareReport: {
        "a complaint about the first": lambda cohort, m: resigned(
            complaint=cohort.ids[0] if m.client_id != cohort.ids[0] else cohort.ids[1]
        )(cohort, m),
        "a complaint about the last": lambda cohort, m: resigned(
            complaint=cohort.ids[-1] if m.client_id != cohort.ids[-1] else cohort.ids[0]
        )(cohort, m),
        "a complaint about itself": lambda cohort, m: resigned(complaint=m.client_id)(cohort, m),
        "other headers": resigned(roster2=OTHER_HASH),
        "forged": unsigned(signature=bytes(64)),
    },
    MaskedInput: {
        "a poisoned value": lambda cohort, m: poisoned(cohort.policy, 0, 1)(cohort, m),
        "a poisoned slot": lambda cohort, m: poisoned(cohort.policy, -1, 1)(cohort, m),
        "too long": lambda cohort, m: resigned(y=bytes(m.y) + b"\0")(cohort, m),
        "too short": lambda cohort, m: resigned(y=bytes(m.y)[:-1])(cohort, m),
        "another model": resigned(round_id=OTHER_HASH),
        "forged": lambda cohort, m: replace(m, y=bytes(len(m.y))),
    },
    Attestation: {"another set": resigned(attested=OTHER_HASH), "forged": unsigned(signature=bytes(64))},
    UnmaskingShares: UNMASKING_LIES,
    SlotMasks: {
        "a wrong mask": wrong_list("masks", flipped),
        "a peer too few": wrong_list("masks", lambda m: dict(list(m.items())[1:])),
        "another round": resigned(round_id=OTHER_HASH),
        "forged": unsigned(signature=bytes(64)),
    },
    Confirmation: {"another head": resigned(head=OTHER_HASH), "forged": unsigned(signature=bytes(64))},
}
SHAPES = [(4, 1, Suite.X25519), (5, 1, Suite.X25519), (7, 2, Suite.X25519), (5, 1, Suite.MLKEM768_X25519)]


@dataclass
class Attempt:
    """One attempt: the server, the sessions of those who take part, and what is under way between them."""

    context: RoundContext
    server: ServerSession
    clients: dict
    up: dict = field(default_factory=dict)
    down: dict = field(default_factory=dict)
    went_up: dict = field(default_factory=dict)
    went_down: dict = field(default_factory=dict)
    accepted: list = field(default_factory=lambda: [set() for _ in KINDS])
    poison: dict = field(default_factory=dict)
    """Bytes of a masked input to what its sender added on top of its update; None: to a slot."""
    taken: dict = field(default_factory=dict)


class HonestServer(RuleBasedStateMachine):
    """Up to c clients lie; the network loses, delays, doubles and keeps; clients crash, come back, and train late."""

    @initialize(
        shape=st.sampled_from(SHAPES),
        liars=st.sets(PLACES, max_size=2),
        late=st.sets(PLACES, max_size=2),
        plan=st.dictionaries(st.sampled_from(list(LIES)), st.tuples(CHOICE, st.booleans()), max_size=2),
    )
    def open(self, shape, liars, late, plan):
        n, c, suite = shape
        self.cohort = Cohort(n, c, suite, length=3)
        self.corrupt = frozenset(sorted({self.cohort.ids[i % n] for i in liars})[:c])
        self.plan, self.told = plan, set()
        self.late = {self.cohort.ids[i % n] for i in late}
        self.witness = Witness(self.cohort, self.corrupt)
        self.number, self.attempt, self.head = 1, 0, bytes(32)
        self.receipts: list[Receipt] = []
        self.opened: dict[DurableSlot, bytes] = {}
        self.complaints: list[tuple[str, str]] = []
        self.convicted: set[str] = set()
        self.attempts: list[Attempt] = []
        self.sums = self.burned = self.lies = 0
        self.over = False
        self.begin()

    # --- the server opens attempts as the specification says ------------------------------------------------------

    def begin(self) -> None:
        cohort, leave_out = self.cohort, self.convicted | self.met()
        if cohort.n - len(leave_out) < cohort.policy.min_survivors:
            self.over = True
            return
        for store in self.cohort.stores.values():
            with store.transaction() as marks:
                if (release := marks.open_release) is not None:
                    self.opened[release.claim.slot] = release.round_id
        start = RoundStart(RUN, self.number, self.attempt, bytes(32), bytes(32), self.head, tuple(self.receipts)).sign(
            SERVER_KEY
        )
        members = [client_id for client_id in cohort.ids if client_id not in leave_out]
        clients = {client_id: self.join(client_id, start) for client_id in members}
        context = cohort.context(self.number, self.attempt, head=self.head)
        self.now = Attempt(context, cohort.server(context, leave_out), clients)
        self.attempts.append(self.now)
        for client_id, client in clients.items():
            for queue in (self.now.up, self.now.down, self.now.went_up, self.now.went_down):
                queue[client_id] = []
            if client_id not in self.late:
                cohort.provide(client, client_id)
            self.says(self.now, client_id, client.start())

    def met(self) -> frozenset[str]:
        return meet(self.complaints, self.cohort.c, choose=lambda _: 0).clients

    def join(self, client_id: str, start: RoundStart) -> ClientSession:
        """Every site replays what was completed; what was burned after shares were sent, its operator accepts."""
        cohort, store = self.cohort, self.cohort.stores[client_id]
        completed = {receipt.round_id for receipt in self.receipts}
        with store.transaction() as marks:
            for at, round_id in self.opened.items():
                if round_id in completed:
                    marks.replay(at, round_id)
                elif not marks.accepted(round_id):
                    marks.accept_exposure(round_id, bytes(64))
            if marks.open_release is not None:
                assert marks.open_release.round_id in set(self.opened.values()) - completed
        own = {"model_hash": start.model_hash, "task_hash": start.task_hash}
        return cohort.client(client_id, open_round(cohort.policy, cohort.roster, RUN, start, store, **own).context)

    def ends(self) -> None:
        """The attempt is over, with a sum or without."""
        server = self.now.server
        if server.result is not None:
            self.sums += 1
            self.check_sum()
            self.head, self.receipts = server.head, [*self.receipts, server.receipt]
        self.burned += server.burned
        if server.result is not None or server.burned:
            self.number, self.attempt, self.complaints = self.number + 1, 0, []
        else:
            self.attempt += 1

    def check_sum(self) -> None:
        server, now = self.now.server, self.now
        assert set(server.included) == now.accepted[3]
        deltas = [now.poison.get(data, 0) for data in now.taken.values()]
        assert None not in deltas
        expected = self.cohort.plain_sum(server.included)
        expected[0] += np.uint32(sum(deltas))
        assert server.result.tolist() == expected.tolist()

    def close(self) -> None:
        server, policy = self.now.server, self.cohort.policy
        kind = KINDS.index(server.step)
        alive, need = len(server._collecting.received), policy.min_survivors if kind < 4 else policy.threshold
        try:
            replies = server.close_step()
        except TooFewClientsError:
            assert alive < need
        except ComplaintError as error:
            assert all(self.corrupt & set(pair) for pair in error.complaints)
            self.complaints += error.complaints
        except ProtocolError as error:
            assert error.check in ("S-18", "S-19")
            assert set(error.culprits) <= self.corrupt
            self.convicted |= set(error.culprits)
            if error.check == "S-18":
                assert error.culprits
            else:
                assert None in [self.now.poison.get(data, 0) for data in self.now.taken.values()]
                assert error.culprits or self.corrupt & (
                    set(server.included or self.now.accepted[3]) - self.now.accepted[7]
                )
        else:
            assert alive >= need
            assert KINDS[kind] != BLAME
            for client_id, message in replies.items():
                self.now.down[client_id].append(wire.encode(message))
        if server.finished:
            self.ends()

    # --- the wires ------------------------------------------------------------------------------------------------

    def to_server(self, attempt: Attempt, sender: str, data: bytes) -> None:
        server, before = attempt.server, fingerprint(attempt.server)
        try:
            message = wire.decode_from_client(data)
            kind = KINDS.index(server.step)
            heard = not server.finished and sender in server._collecting.received
            stored = server.receive(sender, message)
        except (ProtocolError, IllegalTransitionError) as error:
            assert fingerprint(server) == before
            if isinstance(error, ProtocolError) and sender not in self.corrupt:
                assert error.check == "S-01"
                assert not error.culprits
            assert set(getattr(error, "culprits", ())) <= {sender}
            return
        if stored is not None:
            assert fingerprint(server) == before
        elif not heard and server._collecting.received.get(sender) is not None:
            attempt.accepted[kind].add(sender)
            if isinstance(message, MaskedInput):
                attempt.taken[sender] = data

    def to_client(self, attempt: Attempt, client_id: str, data: bytes) -> None:
        client = attempt.clients.get(client_id)
        if client is None:
            return
        reply, error = take(client, data)
        if client_id not in self.corrupt:
            assert error is None or isinstance(error, (AbortedError, IllegalTransitionError)), error
            if reply is not None:
                self.witness.hears(client, client_id, reply)
        if reply is not None:
            self.says(attempt, client_id, reply)

    def member(self, place: int) -> str:
        return list(self.now.up)[place % len(self.now.up)]

    # --- what happens to messages -----------------------------------------------------------------------------------

    @rule(place=PLACES)
    def deliver_up(self, place):
        who = self.member(place)
        if self.now.up[who]:
            self.now.went_up[who].append(self.now.up[who].pop(0))
            self.to_server(self.now, who, self.now.went_up[who][-1])

    @rule(place=PLACES)
    def deliver_down(self, place):
        who = self.member(place)
        if self.now.down[who]:
            self.now.went_down[who].append(self.now.down[who].pop(0))
            self.to_client(self.now, who, self.now.went_down[who][-1])

    @rule(place=PLACES, ago=st.integers(0, 3), which=st.integers(0, 6))
    def repeat(self, place, ago, which):
        """Anything that already went over a wire, of this attempt or an earlier one, goes over it again."""
        attempt = self.attempts[-1 - ago % len(self.attempts)]
        who = list(attempt.up)[place % len(attempt.up)]
        for sent, deliver in ((attempt.went_up[who], self.to_server), (attempt.went_down[who], self.to_client)):
            if sent:
                deliver(attempt, who, sent[which % len(sent)])

    @rule(place=PLACES, ago=st.integers(1, 2))
    def arrives_an_attempt_late(self, place, ago):
        """What an earlier attempt did not deliver arrives there now; its server is gone or does not care."""
        for attempt in self.attempts[-1 - ago : -ago]:
            who = list(attempt.up)[place % len(attempt.up)]
            down, attempt.down[who] = attempt.down[who], []
            for data in down:
                self.to_client(attempt, who, data)
            up, attempt.up[who] = attempt.up[who], []
            for data in up:
                self.to_server(attempt, who, data)

    @rule(place=PLACES)
    def lose(self, place):
        if self.now.up[self.member(place)]:
            self.now.up[self.member(place)].pop()

    def go_on(self, steps: int) -> None:
        """Time passes as it should, until just before this attempt ends."""
        for _ in range(steps):
            if not self.over and not self.now.server.finished:
                self.everything_arrives_and_rounds_close(1, True)

    @rule(place=PLACES, after=AFTER)
    def crash_and_come_back(self, place, after):
        """Secrets are gone; the store knows that this attempt was joined."""
        self.go_on(after)
        who = self.member(place)
        if self.now.clients[who] is not None:
            again = self.cohort.client(who, self.now.context)
            with pytest.raises(ProtocolError, match="C-03"):
                again.start()
            self.now.clients[who] = None
            self.now.up[who].clear()

    @rule()
    def finish_training(self):
        for who in sorted(self.late & self.now.clients.keys()):
            client = self.now.clients[who]
            if client is not None and not client.finished and not client._provided:
                reply = self.cohort.provide(client, who)
                if reply is not None:
                    if who not in self.corrupt:
                        self.witness.hears(client, who, reply)
                    self.says(self.now, who, reply)
        self.late = set()

    # --- what liars do ----------------------------------------------------------------------------------------------

    def liar(self, place: int) -> str | None:
        liars = sorted(self.corrupt & self.now.up.keys())
        return liars[place % len(liars)] if liars else None

    def says(self, attempt: Attempt, who: str, message) -> None:
        """A client sends a message, or what it planned to say instead."""
        planned = self.plan.get(type(message)) if who in self.corrupt else None
        if planned is None:
            attempt.up[who].append(wire.encode(message))
        else:
            attempt.up[who].append(self.lies_about(attempt, who, message, *planned))

    def lies_about(self, attempt: Attempt, who: str, honest, choice: int, believe: bool) -> bytes:
        name, change = list(LIES[type(honest)].items())[choice % len(LIES[type(honest)])]
        lie = change(self.cohort, honest)
        data = wire.encode(lie)
        if isinstance(lie, MaskedInput):
            attempt.poison[data] = {"a poisoned value": 1, "a poisoned slot": None}.get(name, 0)
        if believe and attempt.clients.get(who) is not None:
            believe_own_lie(attempt.clients[who], lie)
        self.lies += 1
        self.told.add(data)
        event(f"lie: {type(honest).__name__}, {name}")
        return data

    @precondition(lambda self: hasattr(self, "corrupt") and self.corrupt)
    @rule(place=PLACES, after=AFTER, choice=CHOICE, believe=st.booleans())
    def lie_as_well(self, place, after, choice, believe):
        """A second message after the honest one, or before it."""
        self.go_on(after)
        who = self.liar(place)
        if who is not None and self.now.up[who] and self.now.up[who][0] not in self.told:
            honest = wire.decode_from_client(self.now.up[who][0])
            self.now.up[who].insert(believe, self.lies_about(self.now, who, honest, choice, False))

    @precondition(lambda self: hasattr(self, "corrupt") and self.corrupt)
    @rule(place=PLACES, other=PLACES)
    def speak_for_another(self, place, other):
        who, victim = self.liar(place), self.member(other)
        if who is not None and who != victim and self.now.up[victim]:
            self.to_server(self.now, who, self.now.up[victim][0])

    @precondition(lambda self: hasattr(self, "corrupt") and self.corrupt)
    @rule(place=PLACES, other=PLACES)
    def resend_the_bundles_of_another(self, place, other):
        who, victim = self.liar(place), self.member(other)
        pending = self.now.up[who][:1] + self.now.up[victim][:1] if who is not None and who != victim else []
        if len(pending) < 2 or self.told & set(pending):
            return
        own, stolen = map(wire.decode_from_client, pending)
        if isinstance(own, EncryptedShares) and isinstance(stolen, EncryptedShares):
            lie = rebundled(lambda _: stolen.bundles)(self.cohort, own)
            self.now.up[who][0] = wire.encode(lie)
            self.told.add(self.now.up[who][0])
            if self.now.clients[who] is not None:
                believe_own_lie(self.now.clients[who], lie)
            event("lie: EncryptedShares, of another")

    @precondition(lambda self: hasattr(self, "corrupt") and self.corrupt)
    @rule(place=PLACES, how=st.sampled_from(["s", "b", "no s", "no b", "pair"]))
    def prepare_to_deal_something_else(self, place, how):
        who = self.liar(place)
        client = self.now.clients[who] if who is not None else None
        if client is None or not isinstance(client._state, Advertised) or "receive" in vars(client):
            return
        if how == "pair" and self.cohort.suite is Suite.X25519:
            return
        if how == "pair":
            lie_about_pair_secrets(client)
        else:
            deal_otherwise(client, "sb".index(how[-1]), PRIME - 1 if how.startswith("no") else 7)
        event(f"lie: deals another {how}")

    @precondition(lambda self: hasattr(self, "corrupt") and self.corrupt)
    @rule(place=PLACES, how=st.sampled_from(sorted(GARBLED)))
    def garble(self, place, how):
        who = self.liar(place)
        if who is not None and self.now.up[who]:
            self.to_server(self.now, who, GARBLED[how](self.now.up[who][0]))

    # --- time goes on -------------------------------------------------------------------------------------------------

    @precondition(lambda self: not self.over and not self.now.server.finished and len(self.now.server.missing) <= 1)
    @rule()
    def close_at_the_deadline(self):
        self.close()

    def everything_arrives(self) -> None:
        for place in range(len(self.now.up)):
            who = self.member(place)
            while self.now.down[who]:
                self.deliver_down(place)
            while self.now.up[who]:
                self.deliver_up(place)

    @precondition(lambda self: not self.over)
    @rule(steps=st.integers(1, 4), eager=st.booleans())
    def everything_arrives_and_rounds_close(self, steps=1, eager=False):
        self.finish_training()
        for _ in range(steps):
            self.everything_arrives()
            if not self.now.server.finished:
                self.close()
        for place in range(len(self.now.up) * eager):
            while self.now.down[self.member(place)]:
                self.deliver_down(place)

    @precondition(lambda self: not self.over and self.now.server.finished and len(self.attempts) < 4)
    @rule()
    def open_the_next(self):
        self.begin()

    # --- what always holds -------------------------------------------------------------------------------------------

    @invariant()
    def sets_nest(self):
        for attempt in getattr(self, "attempts", ()):
            for wider, narrower in pairwise(attempt.accepted[:6]):
                assert narrower <= wider
            if attempt.server.included:
                assert set(attempt.server.included) == attempt.accepted[3]
                assert attempt.accepted[6] <= attempt.accepted[3]

    def teardown(self):
        """Whatever happened: this attempt ends, and one in which everybody behaves gives the exact sum."""
        if not hasattr(self, "attempts"):
            return
        while not self.over and not self.now.server.finished:
            self.everything_arrives_and_rounds_close()
        before = self.sums
        event(f"{len(self.attempts)} attempts, {self.sums} sums, {self.burned} burned, over: {self.over}")
        event(f"last attempt ended in {self.now.server.step}")
        event(f"{len(self.corrupt)} liars")
        target(float(self.sums * 10 + self.lies), label="sums and lies")
        self.plan = {}
        if not self.over:
            self.begin()
        while not self.over and not self.now.server.finished:
            self.everything_arrives_and_rounds_close()
        if not self.over:
            assert self.sums == before + 1
            self.everything_arrives_and_rounds_close()
            assert self.now.server.confirmations.keys() == set(self.now.server.included)
        assert len(self.met()) <= self.cohort.c
        assert self.convicted <= self.corrupt


# --- a server that lies ------------------------------------------------------------------------------------------


class Slot:
    """One slot as a lying server sees it: honest sessions, and everything that it can make a message of.

    Its corrupt clients need no sessions: they answer for any view, with the keys that they hold.
    """

    def __init__(self, cohort: Cohort, corrupt: frozenset[str], context: RoundContext) -> None:
        self.cohort, self.context, self.corrupt = cohort, context, corrupt
        self.clients: dict[str, ClientSession] = {}
        self.said: dict[type, dict[str, object]] = {kind: {} for kind in LIES}
        self.told: dict[str, dict[bytes, bytes]] = {client_id: {} for client_id in cohort.ids}
        self.keys = {liar: [self._advertise(liar) for _ in range(2)] for liar in sorted(corrupt)}
        self.dealt: dict[tuple[str, bytes], EncryptedShares] = {}

    def _advertise(self, liar: str) -> tuple[Advertised, AdvertiseKeys]:
        self.cohort.stores[liar] = MemoryStore()
        client = self.cohort.client(
            liar, self.context, private=True
        )  # it claims nothing, and whatever others do is fine
        message = client.start()
        return client._state, message

    def _signed(self, liar: str, message):
        return message.sign(self.cohort.keys[liar])

    def _deals(self, liar: str, roster: Roster) -> EncryptedShares | None:
        if (liar, roster.hash) not in self.dealt:
            for state, advertisement in self.keys[liar]:
                if roster.by_id.get(liar) == advertisement:
                    state._State__spent = False
                    self.dealt[liar, roster.hash] = state.share_keys(roster)[1]
        return self.dealt.get((liar, roster.hash))

    def next_for(self, reader: str, omitted: frozenset[str], version: int, careless: bool):
        """What an honest server could say next to this reader, but for the omitted; careless: other views get in."""
        state = self.clients[reader]._state
        kept = [i for i in self.cohort.ids if i not in omitted]
        said = lambda kind: {i: m for i, m in self.said[kind].items() if i in kept}  # noqa: E731
        liars = [i for i in kept if i in self.corrupt]
        match state:
            case Advertised():
                entries = said(AdvertiseKeys) | {liar: self.keys[liar][version][1] for liar in liars}
                return Roster(in_order(entries))
            case Shared(roster=roster):
                dealt = {i: m for i, m in said(EncryptedShares).items() if careless or m.header.roster1 == roster.hash}
                dealt |= {liar: m for liar in liars if (m := self._deals(liar, roster)) is not None}
                ordered = [dealt[i] for i in sorted(dealt)]
                places = [
                    (m, min(roster.others(m.header.client_id).index(reader), len(m.bundles) - 1))
                    for m in ordered
                    if m.header.client_id != reader and m.header.client_id in roster.by_id
                ]
                bundles = tuple(m.bundles[place] for m, place in places)
                paths = tuple(m.tree[1][place] for m, place in places)
                return ShareInbox(tuple(m.header for m in ordered), bundles, paths)
            case Reported(reported=own):
                view = (own.slot, own.roster1, own.roster2)
                reports = {i: m for i, m in said(ShareReport).items() if careless or same_view(m, own)}
                reports |= {liar: self._signed(liar, ShareReport(*view, liar)) for liar in liars}
                return Reports(in_order(reports))
            case Masked(mine=own):
                inputs = {i: m.acceptance() for i, m in said(MaskedInput).items() if careless or same_view(m, own)}
                lie = lambda liar: replace(own, client_id=liar, y_hash=OTHER_HASH)  # noqa: E731
                inputs |= {liar: self._signed(liar, lie(liar)) for liar in liars if liar in state.sharers or careless}
                return IncludedSet(in_order(inputs)) if inputs else None
            case Attested(included=included, attestation=own):
                entries = {i: m for i, m in said(Attestation).items() if careless or m.attested == own.attested}
                signers = [liar for liar in liars if liar in included.by_id or careless]
                entries |= {liar: self._signed(liar, Attestation(own.attested, liar)) for liar in signers}
                return Attestations(in_order(entries))
            case Released(round_id=round_id, attested=attested):
                total = bytes([version]) * 20
                total_hash, previous = Result.hash_of(total), self.context.previous_head
                head = next_head(previous, round_id, attested, total_hash)
                receipt = Receipt(RUN, self.context.round_number, round_id, attested, total_hash, previous, head)
                return Result(total, receipt.sign(SERVER_KEY))
        return None


def in_order(entries: dict[str, object]) -> tuple:
    return tuple(entries[client_id] for client_id in sorted(entries))


def same_view(one, other) -> bool:
    names = ("slot", "round_id", "roster1", "roster2", "sharers_hash")
    return all(getattr(one, name, b"") == getattr(other, name, b"") for name in names)


WHICH = st.integers(0, 2)
OMITTED = st.one_of(st.just(frozenset()), st.frozensets(PLACES, max_size=2))


class LyingServer(RuleBasedStateMachine):
    """The server and up to c clients say whatever they like, to anybody, in any order, in several slots at once."""

    @initialize(
        shape=st.sampled_from(SHAPES[:3]),
        liars=st.sets(PLACES, max_size=2),
        late=st.sets(PLACES, max_size=1),
        steps=st.integers(0, 5),
        split=st.none() | st.tuples(st.frozensets(PLACES, min_size=1, max_size=2), st.integers(0, 1), st.booleans()),
    )
    def open(self, shape, liars, late, steps, split):
        n, c, suite = shape
        self.cohort = Cohort(n, c, suite, length=3)
        self.corrupt = frozenset(sorted({self.cohort.ids[i % n] for i in liars})[:c])
        self.honest = [client_id for client_id in self.cohort.ids if client_id not in self.corrupt]
        self.late = {self.cohort.ids[i % n] for i in late}
        self.witness = Witness(self.cohort, self.corrupt)
        self.slots: list[Slot] = []
        self.refused = 0
        self.open_slot(1, 0)
        if split is None:
            self.behave_for_a_while(0, steps)
        else:
            self.split_the_cohort(0, steps, *split)

    def ids_of(self, places) -> frozenset[str]:
        return frozenset(self.cohort.ids[place % self.cohort.n] for place in places)

    def slot(self, which: int) -> Slot:
        return self.slots[which % len(self.slots)]

    def tells(self, slot: Slot, reader: str, data: bytes):
        """The reader hears these bytes; what it answers is witnessed, and anybody may use it."""
        client = slot.clients[reader]
        reply, error = take(client, data)
        if error is not None:
            assert isinstance(error, (ProtocolError, AbortedError, IllegalTransitionError))
            assert not getattr(error, "culprits", ())
            self.refused += 1
        if reply is not None:
            encoded = wire.encode(reply)
            assert slot.told[reader].setdefault(data, encoded) == encoded
            self.witness.hears(client, reader, reply)
            slot.said[type(reply)][reader] = reply
        return reply

    def tell_next(self, slot: Slot, reader: str, omitted, version: int, careless: bool) -> None:
        client = slot.clients.get(reader)
        if client is not None and not client.finished:
            message = slot.next_for(reader, omitted, version, careless)
            if message is not None:
                self.tells(slot, reader, wire.encode(message))

    # --- what it does ------------------------------------------------------------------------------------------------

    @precondition(lambda self: len(self.slots) < 3)
    @rule(number=st.integers(1, 2), attempt=st.integers(0, 1), steps=st.integers(0, 3), accept=st.booleans())
    def open_another(self, number, attempt, steps, accept):
        self.open_slot(number, attempt, accept)
        self.behave_for_a_while(len(self.slots) - 1, steps)

    def open_slot(self, number: int, attempt: int, accept: bool = False) -> None:
        for store in [self.cohort.stores[i] for i in self.honest] if accept else ():
            with store.transaction() as marks:
                for claim in [marks.open_release.claim] if marks.open_release is not None else ():
                    marks.accept_exposure(claim.round_id, bytes(64))
        context = self.cohort.context(number, attempt)
        slot = Slot(self.cohort, self.corrupt, context)
        for client_id in self.honest:
            client = self.cohort.client(client_id, context)
            try:
                message = client.start()
            except (ProtocolError, ExposureError) as error:
                assert error.check in ("C-03", "C-05")
                assert error.check == "C-05" or any(s.context.round_number >= number for s in self.slots)
                continue
            slot.clients[client_id] = client
            slot.said[AdvertiseKeys][client_id] = message
            if client_id not in self.late:
                self.cohort.provide(client, client_id)
        if slot.clients:
            self.slots.append(slot)

    @rule(which=WHICH, omitted=OMITTED, split=st.booleans(), version=st.integers(0, 1), careless=st.booleans())
    def go_on_with_everybody(self, which, omitted, split, version, careless):
        """All who wait for the same step hear of it; those omitted hear that they are not, where the server splits."""
        slot, gone = self.slot(which), self.ids_of(omitted)
        waiting = {i: type(client._state) for i, client in slot.clients.items() if not client.finished}
        order = (Advertised, Shared, Reported, Masked, Attested, Released)
        earliest = min(waiting.values(), key=order.index, default=None)
        for reader, state in waiting.items():
            if state is earliest:
                hears_all = split and reader in gone
                self.tell_next(slot, reader, frozenset() if hears_all else gone, version if hears_all else 0, careless)

    @rule(which=WHICH, steps=st.integers(1, 6))
    def behave_for_a_while(self, which, steps):
        for _ in range(steps):
            self.go_on_with_everybody(which, (), False, 0, False)

    @rule(
        which=WHICH,
        steps=st.integers(0, 4),
        omitted=st.frozensets(PLACES, min_size=1, max_size=2),
        version=st.integers(0, 1),
        careless=st.booleans(),
    )
    def split_the_cohort(self, which, steps, omitted, version, careless):
        """At one step some are told that others are gone, and those that they are not; then on, as if nothing was."""
        self.behave_for_a_while(which, steps)
        self.go_on_with_everybody(which, omitted, True, version, False)
        for _ in range(len(SENDING)):
            self.go_on_with_everybody(which, (), False, version, careless)

    @rule(which=WHICH, place=PLACES, omitted=OMITTED, version=st.integers(0, 1), careless=st.booleans())
    def go_on_with_one(self, which, place, omitted, version, careless):
        slot = self.slot(which)
        reader = self.honest[place % len(self.honest)]
        self.tell_next(slot, reader, self.ids_of(omitted) - {reader}, version, careless)

    @rule(which=WHICH, source=WHICH, place=PLACES, other=PLACES, past=st.integers(0, 6))
    def replay(self, which, source, place, other, past):
        """What somebody was told, here or elsewhere, is told to another, or once more."""
        slot, reader = self.slot(which), self.honest[place % len(self.honest)]
        told = list(self.slot(source).told[self.honest[other % len(self.honest)]])
        if told and reader in slot.clients:
            self.tells(slot, reader, told[past % len(told)])

    @rule(which=WHICH, place=PLACES)
    def ask_twice(self, which, place):
        """The last question again, with somebody left out: a different one."""
        slot, reader = self.slot(which), self.honest[place % len(self.honest)]
        told = list(slot.told[reader])
        if told and reader in slot.clients:
            message = wire.decode_from_server(told[-1])
            if not isinstance(message, Result):
                name, entries = next(iter(vars(message).items()))
                if len(entries) > 1:
                    reply = self.tells(slot, reader, wire.encode(replace(message, **{name: entries[:-1]})))
                    assert reply is None

    @rule(which=WHICH, place=PLACES, how=st.sampled_from(sorted(GARBLED)))
    def garble(self, which, place, how):
        slot, reader = self.slot(which), self.honest[place % len(self.honest)]
        client = slot.clients.get(reader)
        message = slot.next_for(reader, frozenset(), 0, False) if client and not client.finished else None
        if message is not None and client._provided:
            data = wire.encode(message)
            garbled = GARBLED[how](data)
            reply = self.tells(slot, reader, garbled) if garbled != data else None
            if reply is not None:  # whoever has a quorum looks at no further signature
                assert len(self.attesting(wire.decode_from_server(garbled)) | {reader}) >= self.cohort.policy.threshold

    def attesting(self, message: Attestations) -> set[str]:
        """Whose signatures in it hold."""
        keys = {client_id: key.verify_key for client_id, key in self.cohort.keys.items()}
        return {i for i, entry in message.by_id.items() if verify(keys[i], entry.statement(), entry.signature)}

    @rule(place=PLACES)
    def crash(self, place):
        for slot in self.slots:
            slot.clients.pop(self.honest[place % len(self.honest)], None)

    @rule()
    def finish_training(self):
        for slot in self.slots:
            for client_id, client in slot.clients.items():
                if not client._provided and not client.finished:
                    try:
                        reply = self.cohort.provide(client, client_id)
                    except (ProtocolError, AbortedError):
                        assert client.finished
                        continue
                    if reply is not None:
                        self.witness.hears(client, client_id, reply)
                        slot.said[type(reply)][client_id] = reply

    def teardown(self):
        if not hasattr(self, "slots"):
            return
        released = len({slot for _, slot in self.witness.opened})
        for slot in self.slots:
            furthest = max((len(told) for told in slot.told.values()), default=0)
            event(f"furthest question answered: {furthest}")
        event(f"{len(self.slots)} slots, {released} opened")
        event(f"{len(self.corrupt)} liars, {'some' if self.refused else 'none'} refused")
        target(float(len(self.witness.attested) + 5 * len(self.witness.released)), label="attested and released")


# --- between the rounds ------------------------------------------------------------------------------------------


class Venture:
    """One attempt that a lying server opened: real sessions, a real server that holds back what it likes.

    Attributes:
        opened: by honest site, the round that it took for its own; `sessions`, of those that joined.
        accepted: by honest site, the rounds whose acceptance its contribution used up.
        released: honest sites whose shares are out.
    """

    def __init__(self, cohort: Cohort, start: RoundStart, policy, members: dict) -> None:
        self.cohort, self.start, self.policy, self.opened = cohort, start, policy, members
        hashes = (start.model_hash, start.task_hash, start.previous_head)
        self.context = RoundContext(start.training_run, start.round_number, start.attempt, *hashes)
        self.slot = self.context.at(session_id(policy, cohort.roster))
        self.server = ServerSession(policy, cohort.roster, self.context, SERVER_KEY)
        self.sessions: dict[str, ClientSession] = {}
        self.replies: dict = {}
        self.accepted: dict[str, frozenset[bytes]] = {}
        self.released: set[str] = set()
        self.round_id = b""

    def says(self, who: str, message) -> None:
        if message is not None and not self.server.finished and who in self.server.expected:
            self.server.receive(who, wire.decode_from_client(wire.encode(message)))

    def close(self) -> bool:
        try:
            self.replies = {who: wire.encode(m) for who, m in self.server.close_step().items()}
        except (TooFewClientsError, IllegalTransitionError):
            self.replies = {}
        return bool(self.replies)

    def hears(self, who: str):
        data = self.replies.get(who)
        return None if data is None or who not in self.sessions else take(self.sessions[who], data)

    @property
    def over(self) -> bool:
        return self.server.finished


class BetweenRounds(RuleBasedStateMachine):
    """Rounds, runs and projects over the real stores of honest sites; the server and the last site lie.

    Everything that a site computes starts from one model, and from there follows the head of its run: a run that starts
    over has the same updates as the first one had. What must hold: two sums that were opened are over the same honest
    sites, or of other updates, or t - c honest operators have accepted one of the two rounds by name in the other.
    """

    @initialize(n=st.sampled_from([4, 5]), last=st.sets(PLACES, max_size=1), publish=st.booleans())
    def begin(self, n, last, publish):
        self.cohort = Cohort(n, length=1)
        *self.honest, self.liar = self.cohort.ids
        self.ventures: list[Venture] = []
        self.run, self.project, self.number = "run-1", "liver", {}
        self.published: dict[tuple, list[Receipt]] = {}
        self.a_whole_round((), last, publish, False)

    def policy(self):
        return replace(self.cohort.policy, project=self.project)

    def who(self, places) -> list[str]:
        return sorted({self.honest[place % len(self.honest)] for place in places})

    def venture(self, ago: int, step: str) -> Venture | None:
        waiting = [v for v in self.ventures if not v.over and v.server.step == step]
        return waiting[-1 - ago % len(waiting)] if waiting else None

    @rule(without=st.sets(PLACES, max_size=1), forward=st.integers(0, 1), told=st.booleans())
    def open_round(self, without, forward, told):
        """To all honest sites but some; `told`: after the rounds that were published, or as if they were burned."""
        key, policy = (self.project, self.run), self.policy()
        missed = self.published.get(key, []) if told else []
        number, attempt = self.number.get(key, (0, 0))
        number, attempt = (number + 1, 0) if forward or not number else (number, attempt + 1)
        self.number[key] = (number, attempt)
        head = missed[-1].head if missed else GENESIS
        model = digest("model", head)
        start = RoundStart(self.run, number, attempt, model, bytes(32), head, tuple(missed)).sign(SERVER_KEY)
        members, own = {}, {"model_hash": model, "task_hash": bytes(32)}
        for who in sorted(set(self.honest) - set(self.who(without))):
            store = self.cohort.stores[who]
            try:
                members[who] = open_round(policy, self.cohort.roster, self.run, start, store, **own)
            except (ProtocolError, ExposureError) as error:
                assert error.check in ("C-04", "C-05")
                event(f"open_round: {error.check}")
        if len(members) + 1 >= policy.min_survivors:
            self.ventures.append(Venture(self.cohort, start, policy, members))

    def session(self, venture: Venture, who: str, opened, store) -> ClientSession:
        cohort = self.cohort
        session = ClientSession(venture.policy, who, cohort.keys[who], cohort.roster, opened, store)
        venture.sessions[who] = session
        return session

    @rule(ago=AFTER)
    def join(self, ago):
        venture = self.venture(ago, "AdvertiseKeys")
        if venture is None:
            return
        liar = self.session(venture, self.liar, unchecked_round(venture.context, private=True), MemoryStore())
        liar.provide(self.cohort.updates[self.liar])
        venture.says(self.liar, liar.start())
        for who, opened in venture.opened.items():
            session = self.session(venture, who, opened, self.cohort.stores[who])
            session.provide(self.cohort.updates[who])
            try:
                venture.says(who, session.start())
            except (ProtocolError, ExposureError) as error:
                assert error.check in ("C-03", "C-05")
                del venture.sessions[who]
                event(f"join: {error.check}")
        venture.close()

    @rule(ago=AFTER)
    def contribute(self, ago):
        """U1 and the shares go round, and whoever is still there masks its update."""
        venture = self.venture(ago, "ShareKeys")
        while venture is not None and not venture.over and venture.server.step != "ConsistencyCheck":
            for who in sorted(venture.sessions):
                before = self.acceptances(who)
                reply, error = venture.hears(who) or (None, None)
                self.refused(error)
                if isinstance(reply, MaskedInput):
                    venture.accepted[who] = before - self.acceptances(who)
                    venture.round_id = reply.round_id
                venture.says(who, reply)
            venture.close()

    def acceptances(self, who: str) -> frozenset[bytes]:
        with self.cohort.stores[who].transaction() as marks:
            return frozenset(v.round_id for v in self.ventures if v.round_id and marks.accepted(v.round_id))

    def refused(self, error) -> None:
        if error is not None and not isinstance(error, IllegalTransitionError):
            assert error.check in ("C-05", "C-24", "C-14", "C-26"), error
            event(f"refused: {error.check}")

    @rule(ago=AFTER)
    def attest(self, ago):
        venture = self.venture(ago, "ConsistencyCheck")
        if venture is not None:
            for who in sorted(venture.sessions):
                reply, error = venture.hears(who) or (None, None)
                self.refused(error)
                venture.says(who, reply)
            venture.close()

    @rule(ago=AFTER, without=st.sets(PLACES, max_size=2), publish=st.booleans())
    def release(self, ago, without, publish):
        """Some never hear the attestations. With enough shares the server has the sum, and tells it or keeps it."""
        venture = self.venture(ago, "Unmasking")
        if venture is None:
            return
        for who in sorted(set(venture.sessions) - set(self.who(without))):
            reply, error = venture.hears(who) or (None, None)
            self.refused(error)
            if isinstance(reply, UnmaskingShares):
                venture.says(who, reply)
                venture.released |= {who} - {self.liar}
        if len(venture.server.missing) + venture.policy.threshold <= len(venture.server.expected) and venture.close():
            assert venture.server.result is not None
            if publish:
                self.tells(venture)

    def tells(self, venture: Venture) -> None:
        receipt = venture.server.receipt
        chain = self.published.setdefault((venture.policy.project, venture.start.training_run), [])
        if receipt.previous_head == (chain[-1].head if chain else GENESIS):
            chain.append(receipt)
        for who in sorted(venture.sessions):
            venture.hears(who)

    @rule(ago=AFTER, places=st.sets(PLACES, min_size=1, max_size=5))
    def replay(self, ago, places):
        """Sites get the transcript of a round of which the server has the sum; see `secagg.transcript.accept`."""
        done = [v for v in self.ventures if v.server.result is not None]
        if not done:
            return
        venture = done[-1 - ago % len(done)]
        receipt, session = venture.server.receipt, venture.slot.session
        for who in self.who(places):
            with self.cohort.stores[who].transaction() as marks:
                logged = marks.receipt(session, receipt.training_run, receipt.round_number)
                number, head = marks.head(session, receipt.training_run)
                follows = head == receipt.previous_head and receipt.round_number > number
                if logged == receipt or (logged is None and follows):
                    marks.finish(session, receipt.training_run, [receipt])
                    marks.replay(venture.slot, receipt.round_id)
                    event("replay")

    @rule(places=st.sets(PLACES, min_size=1, max_size=5), ago=AFTER)
    def accept_exposure(self, places, ago):
        """Operators accept a round of which shares are out, by name."""
        known = [v for v in self.ventures if v.released]
        if known:
            for who in self.who(places):
                accept_exposure(
                    self.cohort.stores[who], self.cohort.keys[who], who, known[-1 - ago % len(known)].round_id
                )
                event("accept_exposure")

    @rule(place=PLACES)
    def restart(self, place):
        """A site's process dies: its sessions are gone, its store is not."""
        (who,) = self.who([place])
        for venture in self.ventures:
            venture.opened.pop(who, None)
            if venture.sessions.pop(who, None) is not None:
                event("restart")

    @rule(name=st.sampled_from(["run-1", "run-2"]))
    def new_run(self, name):
        self.run = name

    @rule(name=st.sampled_from(["liver", "brain"]))
    def other_project(self, name):
        self.project = name

    @rule(
        without=st.sets(PLACES, max_size=1), last=st.sets(PLACES, max_size=1), publish=st.booleans(), told=st.booleans()
    )
    def a_whole_round(self, without, last, publish, told):
        self.open_round(without, 1, told)
        for step in (self.join, self.contribute, self.attest):
            step(0)
        self.release(0, last, publish)

    @rule(places=st.sets(PLACES, min_size=2, max_size=4), accept=st.booleans())
    def clear(self, places, accept):
        (self.accept_exposure(places, 0) if accept else self.replay(0, places))

    @invariant()
    def two_sums_are_one_or_were_accepted(self):
        if not hasattr(self, "ventures"):
            return
        enough = self.cohort.policy.threshold - self.cohort.c
        opened = [v for v in self.ventures if v.server.result is not None]
        for one, two in combinations(opened, 2):
            same = set(one.server.included) - {self.liar} == set(two.server.included) - {self.liar}
            if one.start.model_hash == two.start.model_hash and not same:
                assert max(self.accepting(one, two), self.accepting(two, one)) >= enough, (
                    "two sums differ by a few sites"
                )
                event("two sums, accepted")

    def accepting(self, one: Venture, two: Venture) -> int:
        return sum(one.round_id in two.accepted.get(who, ()) for who in set(two.server.included) - {self.liar})

    def teardown(self):
        if hasattr(self, "ventures"):
            event(f"{sum(v.server.result is not None for v in self.ventures)} sums")
            target(float(sum(len(v.released) for v in self.ventures)), label="released")


# --- what is new every time --------------------------------------------------------------------------------------


@settings(max_examples=10, deadline=None)
@given(shape=st.sampled_from(SHAPES), gone=st.sets(PLACES, max_size=1), step=st.sampled_from(SENDING))
def test_new_randomness_changes_every_masked_input_and_not_the_total(shape, gone, step):
    cohort = Cohort(*shape, length=3, private=True)
    silent = {cohort.ids[place % cohort.n]: step for place in gone}
    totals, seen = [], []
    for number in (1, 2):
        sent = {}
        hook = lambda at, who, m, sent=sent: sent.update({who: bytes(m.y)} if at == MASKED else {}) or m  # noqa: E731
        play = cohort.play(context=cohort.context(number), silent=silent, up=hook)
        if play.failure is not None:
            assert len(gone) > cohort.n - cohort.policy.min_survivors
            return
        totals.append(play.server.result.tolist())
        seen.append(sent)
    assert totals[0] == totals[1]
    assert all(seen[0][who] != seen[1][who] for who in seen[0])


QUICK = settings(
    max_examples=60,
    stateful_step_count=25,
    deadline=None,
    suppress_health_check=list(HealthCheck),
    print_blob=True,
    phases=[Phase.explicit, Phase.reuse, Phase.generate],  # shrinking a failure can take half an hour
    derandomize=True,  # a change fails by its own fault; the long run looks further
)
LONG = settings(QUICK, max_examples=2000, stateful_step_count=40, derandomize=False)


class TestHonestServer(HonestServer.TestCase):
    settings = settings(QUICK, max_examples=20)


class TestLyingServer(LyingServer.TestCase):
    settings = settings(QUICK, max_examples=40)


class TestBetweenRounds(BetweenRounds.TestCase):
    settings = settings(QUICK, max_examples=50, stateful_step_count=15)


EXPOSING = Marks._exposing


def exposing(replayed: bool) -> Callable:
    """Of the own releases that expose an attempt only those that were replayed, or only those that were not."""
    return lambda marks, *of: [r for r in EXPOSING(marks, *of) if marks.replayed(r.round_id) == replayed]


TAKEN_OUT = {
    "C-05 of what was not replayed": {"_exposing": exposing(replayed=True), "open_release": None},
    "C-05 of another run on the model": {"_exposing": exposing(replayed=False)},
    "C-26": {"refuse_claims": lambda *_: None},
}


@pytest.mark.slow
@pytest.mark.parametrize("defence", TAKEN_OUT)
def test_without_a_defence_the_machine_finds_two_sums(monkeypatch, defence):
    for name, nothing in TAKEN_OUT[defence].items():
        monkeypatch.setattr(Marks, name, nothing)
    with pytest.raises(AssertionError, match="two sums differ"):
        run_state_machine_as_test(BetweenRounds, settings=settings(QUICK, max_examples=3000))


@pytest.mark.slow
class TestBetweenRoundsForLong(BetweenRounds.TestCase):
    settings = LONG


@pytest.mark.slow
class TestHonestServerForLong(HonestServer.TestCase):
    settings = LONG


@pytest.mark.slow
class TestLyingServerForLong(LyingServer.TestCase):
    settings = LONG
