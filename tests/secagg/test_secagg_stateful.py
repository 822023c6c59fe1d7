"""Whatever is lost, doubled, replayed, reordered or late: sums are exact, and nobody releases too much."""

from hypothesis import HealthCheck, event, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from secagg_cohort import SENDING, Cohort

from secagg import IllegalTransitionError, ProtocolError, SecAggError, TooFewClientsError, wire
from secagg.messages import UnmaskingShares

COHORT_SIZE = 5
UNMASKING = SENDING[-1]
anybody = st.sampled_from(Cohort(COHORT_SIZE).ids)


class Network(RuleBasedStateMachine):
    """Real sessions of one server and five clients, joined by a network that does what it likes."""

    @initialize(late=st.sets(anybody, max_size=2))
    def open(self, late):
        self.cohort = Cohort(COHORT_SIZE, length=3)
        self.server = self.cohort.server()
        self.clients = {client_id: self.cohort.client(client_id) for client_id in self.cohort.ids}
        self.late = set(late)
        self.gone: set[str] = set()
        self.going_up = {client_id: [wire.encode(client.start())] for client_id, client in self.clients.items()}
        self.going_down = {client_id: [] for client_id in self.cohort.ids}
        self.went_up = {client_id: [] for client_id in self.cohort.ids}
        self.went_down = {client_id: [] for client_id in self.cohort.ids}
        self.accepted = [set() for _ in SENDING]
        self.released: dict[str, UnmaskingShares] = {}
        for client_id in set(self.cohort.ids) - self.late:
            self.cohort.provide(self.clients[client_id], client_id)

    def to_server(self, sender: str, data: bytes) -> None:
        if self.server.finished:
            return
        step = SENDING.index(self.server.step)
        repeat = self.server._collecting.received.get(sender) is not None
        try:
            stored = self.server.receive(sender, wire.decode_from_client(data))
        except ProtocolError as error:
            if error.check not in ("S-01", "S-02", "S-03"):
                raise
            return
        if stored is None and not repeat:
            self.accepted[step].add(sender)

    def to_client(self, client_id: str, data: bytes) -> None:
        client = self.clients[client_id]
        if client_id in self.gone:
            return
        try:
            reply = client.receive(wire.decode_from_server(data))
        except IllegalTransitionError:
            assert client.finished
        except SecAggError:
            assert client.finished
            assert client._state is None
            self.gone.add(client_id)
        else:
            self.say(client_id, reply)

    def say(self, client_id: str, reply) -> None:
        if reply is None:
            return
        if isinstance(reply, UnmaskingShares):
            assert self.released.setdefault(client_id, reply) == reply
        self.going_up[client_id].append(wire.encode(reply))

    def close(self) -> None:
        alive = len(self.server._collecting.received)
        policy, step = self.cohort.policy, self.server.step
        need = policy.min_survivors if SENDING.index(step) < 4 else policy.threshold
        try:
            replies = self.server.close_round()
        except TooFewClientsError:
            assert alive < need
            return
        assert alive >= need
        for client_id, message in replies.items():
            self.going_down[client_id].append(wire.encode(message))

    # --- what a network does -------------------------------------------------------------------------------------

    @precondition(lambda self: any(self.going_up.values()))
    @rule(client_id=anybody)
    def deliver_up(self, client_id):
        if self.going_up[client_id]:
            data = self.going_up[client_id].pop(0)
            self.went_up[client_id].append(data)
            self.to_server(client_id, data)

    @precondition(lambda self: any(self.going_down.values()))
    @rule(client_id=anybody)
    def deliver_down(self, client_id):
        if self.going_down[client_id]:
            data = self.going_down[client_id].pop(0)
            self.went_down[client_id].append(data)
            self.to_client(client_id, data)

    @rule(client_id=anybody, data=st.data())
    def double_up(self, client_id, data):
        if self.went_up[client_id]:
            self.to_server(client_id, data.draw(st.sampled_from(self.went_up[client_id])))

    @rule(client_id=anybody, data=st.data())
    def double_down(self, client_id, data):
        if self.went_down[client_id]:
            self.to_client(client_id, data.draw(st.sampled_from(self.went_down[client_id])))

    @rule(client_id=anybody, other=anybody)
    def replay_as_another(self, client_id, other):
        if client_id != other and self.went_up[client_id]:
            self.to_server(other, self.went_up[client_id][-1])

    @rule(client_id=anybody, other=anybody)
    def misdirect(self, client_id, other):
        """A message for one client reaches another: the same for all, or the end of that other's session."""
        if self.going_down[other]:
            self.to_client(client_id, self.going_down[other][0])

    @rule(client_id=anybody)
    def lose_up(self, client_id):
        if self.going_up[client_id]:
            self.going_up[client_id].pop()

    @rule(client_id=anybody)
    def crash(self, client_id):
        self.gone.add(client_id)
        self.going_up[client_id].clear()

    @rule()
    def finish_training(self):
        for client_id in sorted(self.late - self.gone):
            if not self.clients[client_id].finished:
                self.cohort.provide(self.clients[client_id], client_id)
                self.say(client_id, self.clients[client_id].pending())
        self.late = set()

    @precondition(lambda self: not self.server.finished and len(self.server.missing) <= 1)
    @rule()
    def close_at_the_deadline(self):
        self.close()

    @rule()
    def everything_arrives_and_the_round_closes(self):
        self.finish_training()
        for client_id in self.cohort.ids:
            while self.going_down[client_id]:
                self.deliver_down(client_id)
            while self.going_up[client_id]:
                self.deliver_up(client_id)
        if not self.server.finished:
            self.close()

    # --- what always holds ---------------------------------------------------------------------------------------

    @invariant()
    def sets_nest(self):
        for wider, narrower in zip(self.accepted, self.accepted[1:], strict=False):
            assert narrower <= wider

    @invariant()
    def nothing_is_released_below_the_threshold(self):
        if self.released:
            policy = self.cohort.policy
            assert len(self.server.included) >= policy.min_survivors
            assert len(self.accepted[4]) >= policy.threshold

    @invariant()
    def both_kinds_of_share_are_never_released_for_one_client(self):
        both = [m.self_seed_shares.keys() & m.mask_key_shares.keys() for m in self.released.values()]
        assert not any(both)
        opened = {peer for m in self.released.values() for peer in m.self_seed_shares} | self.released.keys()
        dropped = {peer for m in self.released.values() for peer in m.mask_key_shares}
        assert not opened & dropped

    def teardown(self):
        if not hasattr(self, "server"):
            return
        while not self.server.finished:
            self.everything_arrives_and_the_round_closes()
        event(f"ended in {self.server.step}")
        event(f"{len(self.gone)} clients gone")
        assert (self.server.result is not None) == (len(self.accepted[-1]) >= self.cohort.policy.threshold)
        if self.server.result is not None:
            included = self.server.included
            assert set(included) == self.accepted[3]
            assert self.server.result.tolist() == self.cohort.plain_sum(included).tolist()


Network.TestCase.settings = settings(
    max_examples=60, stateful_step_count=25, deadline=None, suppress_health_check=list(HealthCheck)
)
TestNetwork = Network.TestCase
