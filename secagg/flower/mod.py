"""A SuperNode's side: every message of the server goes through here, and no update, count or metric leaves in clear.

Training runs when the reports are there, in the fourth exchange, so that no update waits anywhere. Must never: take a
folder, key, roster or policy from the app or the server where the node names its own; hand on a reply of the app.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from logging import WARNING
from pathlib import Path

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore import log

from secagg.driver import ClientAction, Exposed, Failed, NeedInput, Refused, Send
from secagg.errors import ConfigError, SecAggError
from secagg.federated import values_for
from secagg.flower.records import EXPOSED, arrays_in, parts_of, told_hash, with_parts, without_parts
from secagg.home import Home
from secagg.sqlite import SqliteStore

App = Callable[[Message, Context], Message]


def secagg_mod(folder: str | Path = "") -> Callable[[Message, Context, App], Message]:
    """The mod of a `ClientApp`: ``ClientApp(mods=[secagg_mod()])``.

    Args:
        folder: for simulations, where one process plays all nodes: the folder of each, with the names of its node
            config in braces, such as ``"sites/{partition-id}"``. A node that has ``secagg`` in its own node config
            (``flower-supernode --node-config 'secagg="/var/lib/secagg"'``) takes that one and no other.

    Returns:
        The mod. It raises ConfigError where the folder lacks something, and the error of the protocol where the server
        breaks it: Flower answers the server with the sentence.
    """

    def mod(message: Message, context: Context, call_next: App) -> Message:
        """Answer what is about secagg, and pass on everything else."""
        own = context.node_config.get("secagg") or str(folder).format(**context.node_config)
        if not own:
            raise ConfigError("this node has no secagg folder; start it with --node-config 'secagg=\"FOLDER\"'")
        home = Home.read(own)
        with home.store() as store:
            node = _Node(home, store)
            with home.live(node.driver):
                answer = node.answer(message, context, call_next)
        if answer.error is not None and not answer.parts:
            raise answer.error
        return Message(with_parts(answer.content, answer.parts), reply_to=message)

    return mod


@dataclass
class _Answer:
    """What a node says to one message: the app's records, protocol messages, or an error instead."""

    content: RecordDict
    parts: list[bytes] = field(default_factory=list)
    error: SecAggError | None = None


class _Node:
    """One site, for the length of one message: Flower may run every message in a process of its own."""

    def __init__(self, home: Home, store: SqliteStore) -> None:
        self.home, self.store, self.driver = home, store, home.client(store)

    def answer(self, message: Message, context: Context, call_next: App) -> _Answer:
        parts = parts_of(message.content)
        train = message.metadata.message_type.split(".")[0] == MessageType.TRAIN
        if train and parts is None:
            raise ConfigError("this node gives its update to secure aggregation only: wrap the grid in SecAggGrid")
        answer = _Answer(RecordDict() if train else self._evaluated(message, context, call_next))
        for part in parts or []:
            for action in self._actions(part, message, context, call_next):
                match action:
                    case Send():
                        answer.parts.append(bytes(action.data))
                    case Failed():
                        answer.error = action.error
                    case Exposed():
                        rounds = [round_id.hex() for round_id in action.round_ids]
                        answer.content[EXPOSED] = ConfigRecord({"reason": action.reason, "rounds": rounds})
                    case Refused():
                        log(WARNING, "secagg: %s", action.reason)
                    case _:
                        pass
        return answer

    def _actions(self, part: bytes, message: Message, context: Context, call_next: App) -> Iterator[ClientAction]:
        for action in self.home.receive(self.driver, self.store, part):
            if isinstance(action, NeedInput):
                yield from self._train(message, context, call_next)
            else:
                yield action

    def _train(self, message: Message, context: Context, call_next: App) -> list[ClientAction]:
        content = without_parts(message.content)
        model = arrays_in(content)
        self.home.takes(self.driver, model, told_hash(content, MessageType.TRAIN, context.run_config))
        reply = call_next(Message(content, metadata=message.metadata), context)
        if reply.has_error():
            raise ConfigError(f"the app did not train: {reply.error.reason}")
        metrics = {name: value for record in reply.content.metric_records.values() for name, value in record.items()}
        weighted_by = self.home.task.weighted_by
        if weighted_by not in metrics:
            raise ConfigError(f"the app's reply has no metric {weighted_by!r}, by which the mean is weighted")
        weight = metrics.pop(weighted_by)
        base = model if self.home.task.changes else None
        values = values_for(self.home.policy.fields, arrays_in(reply.content), weight, metrics, base)
        return self.driver.provide(values)

    def _evaluated(self, message: Message, context: Context, call_next: App) -> RecordDict:
        if self.home.task.evaluate != "clear":
            return RecordDict()
        reply = call_next(Message(without_parts(message.content), metadata=message.metadata), context)
        return RecordDict(dict(reply.content.metric_records)) if reply.has_content() else RecordDict()
