"""The server's side: a grid that turns one exchange into a round, and gives the strategy its mean as a reply.

Six exchanges make a sum; what the sites get to see of it rides on the next message to them. Of transcripts only the
newest waits for a node: one that lacks an older one names it. A round without a sum is an
empty list of replies, which every strategy takes for a round in which nobody answered.
"""

import time
from collections.abc import Iterable
from dataclasses import dataclass
from logging import INFO, WARNING
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp import Grid
from flwr.supercore import log

from secagg import wire
from secagg.arguments import must_be
from secagg.driver import (
    Completed,
    Failed,
    Published,
    Refused,
    Retrying,
    Save,
    Send,
    ServerAction,
    ServerDriver,
    Silent,
)
from secagg.errors import ConfigError, IllegalTransitionError, ProtocolError
from secagg.federated import mean_of
from secagg.flower.records import EXPOSED, RECORD_OF, arrays_in, kind_of, parts_of, told_hash, with_parts, without_parts
from secagg.home import Home
from secagg.messages import AdvertiseKeys
from secagg.prg import Executor
from secagg.printable import printable
from secagg.roster import session_id
from secagg.steps import ADVERTISE_KEYS, MASKED_INPUT_COLLECTION
from secagg.transcript.record import looks_like

PULL_SECONDS = 0.1  # Flower's own grids wait three seconds between two looks


_Parts: TypeAlias = dict[str, list[bytes]]
"""By the name of a record, what is told in it."""


class _Out(NamedTuple):
    """A message that is at a node, and what it brought there."""

    node: int
    brought: _Parts


@dataclass
class _Sum:
    """The sums of one kind of message: of training, or of evaluations."""

    home: Home
    driver: ServerDriver
    record: str
    ended: Completed | Failed | None = None


class SecAggGrid(Grid):  # type: ignore[misc]
    """A grid for strategies that need the mean only: FedAvg, FedAvgM, FedProx, FedAdam, FedAdagrad, FedYogi.

    Training messages become a round of secure aggregation; where ``[task] evaluate = "sum"``, evaluations too.
    All others pass through, and carry what is still to be told. Not for strategies that compare single updates (Krum,
    medians, trimmed means): they would take the mean for one.

    Args:
        grid: Flower's.
        context: of the ServerApp: what its run config says is part of what every node agrees to.
        folder: of the server (`secagg.home`); never in the app that is shipped to clients.
        step_seconds: how long an exchange waits for a node, training apart.
        input_seconds: how long training may take.
        attempts: how often a round is tried.
        executor: what expands masks, such as a `secagg.ray.RayExecutor`.

    Attributes:
        exchanges: how often messages went to nodes, for sums alone.

    Raises:
        ConfigError: the folder lacks something.
    """

    def __init__(
        self,
        grid: Grid,
        context: Context,
        folder: str | Path,
        *,
        step_seconds: float = 60.0,
        input_seconds: float = 3600.0,
        attempts: int = 3,
        executor: Executor | None = None,
    ) -> None:
        must_be(grid, Grid, "grid", "give Flower's, which the ServerApp's main gets")
        must_be(context, Context, "context", "give Flower's, which the ServerApp's main gets")
        home = Home.read(folder)
        self._grid, self._task, self.exchanges = grid, home.task, 0
        self._run_config, self._step_seconds = context.run_config, step_seconds
        homes = {MessageType.TRAIN: home}
        if home.task.evaluate == "sum":
            homes[MessageType.EVALUATE] = home.evaluation
        driving = {"step_seconds": step_seconds, "input_seconds": input_seconds, "attempts": attempts}
        self._sums = {
            kind: _Sum(of, of.server(executor=executor, **driving), RECORD_OF[kind]) for kind, of in homes.items()
        }
        self._asked: dict[int, Message] = {}
        self._client_at: dict[int, str] = {}
        self._waiting: dict[str, _Out] = {}
        self._later: dict[int, _Parts] = {}

    def set_run(self, run: Any) -> None:
        """See `Grid.set_run`."""
        self._grid.set_run(run)

    @property
    def run(self) -> Any:
        """See `Grid.run`."""
        return self._grid.run

    def create_message(self, *args: Any, **kwargs: Any) -> Message:
        """See `Grid.create_message`."""
        return self._grid.create_message(*args, **kwargs)

    def get_node_ids(self) -> Iterable[int]:
        """See `Grid.get_node_ids`."""
        found: Iterable[int] = self._grid.get_node_ids()
        return found

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See `Grid.push_messages`; nothing is summed."""
        pushed: Iterable[str] = self._grid.push_messages(messages)
        return pushed

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See `Grid.pull_messages`."""
        pulled: Iterable[Message] = self._grid.pull_messages(message_ids)
        return pulled

    def send_and_receive(self, messages: Iterable[Message], *, timeout: float | None = None) -> Iterable[Message]:
        """Of what is summed the mean, as one reply, or none where there is no sum; others as `Grid` does."""
        asked = list(messages)
        if asked and (kind := kind_of(asked[0])) in self._sums:
            return self._summed(kind, asked, timeout)
        return self._passed(asked, timeout)

    # --- A round ------------------------------------------------------------------------------------------------------

    def _summed(self, kind: str, messages: list[Message], timeout: float | None) -> list[Message]:
        self._asked = {message.metadata.dst_node_id: message for message in messages}
        told, began, of = self._told(kind, messages), time.monotonic(), self._sums[kind]
        self._begin(of, told)
        while of.ended is None:
            if not self._listen():
                time.sleep(PULL_SECONDS)
            self._do(of, of.driver.tick(time.monotonic()))
            if timeout is not None and time.monotonic() > began + timeout and of.driver.running:
                self._do(of, of.driver.abort("the strategy's timeout is over"))
        if not isinstance(of.ended, Completed):
            return []
        try:
            return [Message(self._mean(of, messages[0].content), reply_to=messages[0])]
        except ConfigError as error:  # all sites together have no example
            log(WARNING, "secagg: a sum without a mean: %s", error)
            return []

    def _mean(self, of: _Sum, content: RecordDict) -> RecordDict:
        """What every strategy takes for the reply of one client that has seen all examples."""
        session = of.driver.session
        if session is None or session.result is None:
            raise IllegalTransitionError("no round has a sum")
        model = {} if of.home.evaluates else arrays_in(content)
        mean = mean_of(session.result, of.driver.policy, session.included, model, changes=self._task.changes)
        count = int(mean.weight) if mean.weight.is_integer() else mean.weight
        records = {"metrics": MetricRecord({self._task.weighted_by: count, **mean.metrics})}
        if mean.arrays:
            records["arrays"] = ArrayRecord({name: Array(array) for name, array in mean.arrays.items()})
        return RecordDict(records)

    def _told(self, kind: str, messages: list[Message]) -> bytes:
        """What all nodes are told, in 32 bytes: a sum is of updates of one model, under one config."""
        contents = {id(message.content): message.content for message in messages}.values()
        hashes = {told_hash(content, kind, self._run_config) for content in contents}
        if len(hashes) != 1:
            raise ConfigError("this strategy sends nodes different models or configs, and a sum is of one for all")
        return hashes.pop()

    def _begin(self, of: _Sum, told: bytes) -> None:
        """Open a round; first, where no other message has brought the last result, that: T-02 wants confirmations."""
        of.ended = None
        waits = [each.driver for each in self._sums.values() if each.driver.deadline is not None]
        if waits:
            self._push({node: {} for node in self._later if node in self._asked})
            until = time.monotonic() + self._step_seconds
            while self._waiting and any(each.deadline is not None for each in waits) and time.monotonic() < until:
                if not self._listen():
                    time.sleep(PULL_SECONDS)
        self._do(of, of.driver.begin(told, now=time.monotonic()))

    def _listen(self) -> bool:
        """Hear who has answered, and give up on clients at whose nodes no message is any more."""
        replies = list(self._grid.pull_messages(set(self._waiting))) if self._waiting else []
        for reply in replies:
            self._hear(reply)
        for of in self._sums.values():
            for client_id in sorted(of.driver.awaited):
                if of.ended is None and not self._may_speak(client_id):
                    self._do(of, of.driver.gone(client_id, time.monotonic()))
                    self._do(of, of.driver.over(client_id, time.monotonic()))  # and it will not be back
        return bool(replies)

    def _may_speak(self, client_id: str) -> bool:
        """Whether a message is at the client's node, or at one that may turn out to be its node."""
        nodes = {out.node for out in self._waiting.values()}
        return any(self._client_at.get(node, client_id) == client_id for node in nodes)

    def _hear(self, reply: Message) -> None:
        passed = _Out(reply.metadata.src_node_id, {})
        node, brought = self._waiting.pop(reply.metadata.reply_to_message_id, passed)
        if reply.has_error():
            self._bring_again(node, brought)
            log(WARNING, "secagg: node %s answers with an error: %s", node, printable(reply.error.reason))
            return
        for of in self._sums.values():
            for part in parts_of(reply.content, of.record) or []:
                if client_id := self._speaker(of, node, part):
                    self._do(of, of.driver.receive(client_id, part, time.monotonic()))
        wanted = reply.content.get(EXPOSED)
        if isinstance(wanted, ConfigRecord):
            reason, rounds = wanted.get("reason"), wanted.get("rounds")  # of others: there, or anything else
            log(WARNING, "secagg: node %s takes part in no sum yet: %s", node, printable(reason))
            for of in self._sums.values():
                named = rounds if isinstance(rounds, list) else []
                self._tell_later(node, of, of.home.transcripts(of.driver.book.receipts, named))

    def _speaker(self, of: _Sum, node: int, part: bytes) -> str | None:
        """Who a node is: it shows that with its first signed advertisement, and stays it.

        One of this very attempt: others' reach a node only when this step is over, so that none can be shown in
        another's place; those of earlier attempts everybody has.
        """
        session, pinned = of.driver.session, of.driver.pinned
        if node not in self._client_at and session and session.step == ADVERTISE_KEYS:
            slot = session.context.slot(session_id(of.driver.policy, pinned))
            try:
                said = wire.decode_from_client(part)
                if isinstance(said, AdvertiseKeys) and said.client_id in pinned and said.slot == slot:
                    said.verify(pinned[said.client_id], "S-04", said.client_id)
                    self._client_at = {n: c for n, c in self._client_at.items() if c != said.client_id}
                    self._client_at[node] = said.client_id
            except ProtocolError as error:
                log(WARNING, "secagg: node %s sent rubbish: %s", node, error)
        return self._client_at.get(node)

    def _do(self, of: _Sum, actions: list[ServerAction]) -> None:
        sends: dict[int, list[bytes]] = {}
        for action in actions:
            match action:
                case Send():
                    for node in self._nodes_of(action.to):
                        sends.setdefault(node, []).append(bytes(action.data))
                case Save():
                    of.home.save_book(action.book)
                case Published() if action.transcript is not None:
                    data = Path(action.transcript).read_bytes()
                    for node in {*self._client_at, *self._later}:
                        parts = self._later.setdefault(node, {}).get(of.record, [])
                        self._later[node][of.record] = [*(part for part in parts if not looks_like(part)), data]
                case Completed():
                    of.ended = action
                    log(INFO, "secagg: a sum of %s; dropped out: %s", len(action.included), action.dropped or "nobody")
                case Failed():
                    of.ended = action
                    log(WARNING, "secagg: a round without a sum: %s", action.reason)
                case Retrying() | Refused() | Silent():
                    log(WARNING, "secagg: %s", action)
                case _:
                    pass
        if isinstance(of.ended, Completed) and self._task.private:
            pass  # sites see the next model and, in the next start, the receipt: nobody needs the sum itself
        elif of.ended is not None:  # nobody waits for what the sites get to know now
            for node, parts in sends.items():
                self._tell_later(node, of, parts)
        elif sends:
            self._push({node: {of.record: parts} for node, parts in sends.items()}, self._model_goes(of))

    def _model_goes(self, of: _Sum) -> bool:
        """Whether the step that is open wants updates: the app's own records go with its messages."""
        session = of.driver.session
        return session is not None and not session.finished and session.step == MASKED_INPUT_COLLECTION

    def _nodes_of(self, client_id: str) -> list[int]:
        """The client's node; where it has not shown itself yet, every node that nobody is known to be."""
        known = [node for node, client in self._client_at.items() if client == client_id]
        return known or [node for node in self._asked if node not in self._client_at]

    def _tell_later(self, node: int, of: _Sum, parts: list[bytes]) -> None:
        if parts:
            self._later.setdefault(node, {}).setdefault(of.record, []).extend(parts)

    def _bring_again(self, node: int, brought: _Parts) -> None:
        """A node did not answer: what went with that message goes with the next one; twice does no harm."""
        for record, parts in brought.items():
            later = self._later.setdefault(node, {})
            later[record] = [*parts, *later.get(record, [])]

    def _push(self, sends: dict[int, _Parts], model: bool = False) -> None:
        messages, outs = [], []
        for node in [node for node in sends if node in self._asked]:
            asked, out = self._asked[node], _Out(node, self._later.pop(node, {}))
            outs.append(out)
            parts = dict(out.brought)
            for record, more in sends[node].items():
                parts[record] = [*parts.get(record, []), *dict.fromkeys(more)]
            content = with_parts(asked.content if model else RecordDict(), parts)
            about = asked.metadata
            messages.append(Message(content, node, about.message_type, ttl=about.ttl, group_id=about.group_id))
        self._waiting |= dict(zip(self._grid.push_messages(messages), outs, strict=True))
        self.exchanges += 1

    # --- Everything else ----------------------------------------------------------------------------------------------

    def _passed(self, messages: list[Message], timeout: float | None) -> list[Message]:
        """As they are, with what is still to be told; replies with nothing for the strategy in them are left out."""
        brought: dict[int, _Parts] = {}
        for message in messages:
            node = message.metadata.dst_node_id
            if parts := self._later.pop(node, {}):
                brought[node] = parts
                message.content = with_parts(message.content, parts)
        replies = list(self._grid.send_and_receive(messages, timeout=timeout))
        for reply in replies:
            self._hear(reply)
            if reply.has_content():
                reply.content = without_parts(reply.content)
        answered = {reply.metadata.src_node_id for reply in replies if not reply.has_error()}
        for node in brought.keys() - answered:
            self._bring_again(node, brought[node])
        return [reply for reply in replies if reply.has_error() or len(reply.content)]
