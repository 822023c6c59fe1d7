"""A SuperNode's side: every message of the server goes through here, and no update, count or metric leaves in clear.

Training and evaluation run when the reports are there, in the fourth exchange, so that no update waits anywhere. Must
never: take a folder, key, roster or policy from the app or the server where the node names its own; hand on a reply of
the app.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from logging import WARNING
from pathlib import Path
from typing import Any

from flwr.app import ConfigRecord, Context, Message, MessageType, RecordDict
from flwr.supercore import log

from secagg.arguments import must_be
from secagg.driver import ClientAction, Exposed, Failed, NeedInput, Refused, Send
from secagg.errors import ConfigError, SecAggError
from secagg.federated import values_for
from secagg.flower.records import (
    EXPOSED,
    PARTS,
    RECORD_OF,
    arrays_in,
    kind_of,
    parts_of,
    told_hash,
    with_parts,
    without_parts,
)
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
    must_be(folder, (str, Path), "folder", "give the name of a node's folder, with its node config in braces")

    def mod(message: Message, context: Context, call_next: App) -> Message:
        """Answer what is about secagg, and pass on everything else."""
        home = Home.read(_own_folder(str(folder), context.node_config))
        with home.store() as store:
            answer = _answer(home, store, message, context, call_next)
        if answer.error is not None and not answer.parts:
            raise answer.error
        return Message(with_parts(answer.content, answer.parts or {PARTS: []}), reply_to=message)

    return mod


def _own_folder(folder: str, config: Mapping[str, Any]) -> str:
    try:
        own = config.get("secagg") or folder.format(**config)
    except (KeyError, IndexError, ValueError):
        names = ", ".join(sorted(config)) or "nothing"
        raise ConfigError(f"the folder {folder!r}: in braces stands what this node's config has, {names}") from None
    if not own:
        raise ConfigError("this node has no secagg folder; start it with --node-config 'secagg=\"FOLDER\"'")
    return str(own)


@dataclass
class _Answer:
    """What a node says to one message: the app's records, protocol messages by record, or an error instead."""

    content: RecordDict
    parts: dict[str, list[bytes]] = field(default_factory=dict)
    error: SecAggError | None = None


def _answer(home: Home, store: SqliteStore, message: Message, context: Context, call_next: App) -> _Answer:
    kind = kind_of(message)
    if kind == MessageType.TRAIN and not any(record in message.content for record in RECORD_OF.values()):
        raise ConfigError("this node gives its update to secure aggregation only: wrap the grid in SecAggGrid")
    in_clear = kind == MessageType.EVALUATE and home.task.evaluate == "clear"
    answer = _Answer(_metrics_in_clear(message, context, call_next) if in_clear else RecordDict())
    homes = {MessageType.TRAIN: home}
    if home.task.evaluate == "sum":
        homes[MessageType.EVALUATE] = home.evaluation
    for of in sorted(homes, key=lambda of: of == kind):  # what this message asks for last: the other's transcript first
        parts = parts_of(message.content, RECORD_OF[of])
        if parts is not None:
            node = _Node(of, homes[of], store)
            with homes[of].live(node.driver):
                node.answer(answer, parts, message, context, call_next)
    return answer


def _metrics_in_clear(message: Message, context: Context, call_next: App) -> RecordDict:
    reply = call_next(Message(without_parts(message.content), metadata=message.metadata), context)
    return RecordDict(dict(reply.content.metric_records)) if reply.has_content() else RecordDict()


class _Node:
    """One site in one kind of sum, for the length of a message: Flower may run each message in its own process."""

    def __init__(self, kind: str, home: Home, store: SqliteStore) -> None:
        self.kind, self.home, self.store, self.driver = kind, home, store, home.client(store)

    def answer(self, answer: _Answer, parts: list[bytes], message: Message, context: Context, call_next: App) -> None:
        """Take the protocol messages of one record, in their order, and add what this node says."""
        for part in parts:
            for action in self._actions(part, message, context, call_next):
                match action:
                    case Send():
                        answer.parts.setdefault(RECORD_OF[self.kind], []).append(bytes(action.data))
                    case Failed():
                        answer.error = action.error
                    case Exposed():
                        rounds = [round_id.hex() for round_id in action.round_ids]
                        answer.content[EXPOSED] = ConfigRecord({"reason": action.reason, "rounds": rounds})
                    case Refused():
                        log(WARNING, "secagg: %s", action.reason)
                    case _:
                        pass

    def _actions(self, part: bytes, message: Message, context: Context, call_next: App) -> Iterator[ClientAction]:
        for action in self.home.receive(self.driver, self.store, part):
            if isinstance(action, NeedInput):
                yield from self._run(message, context, call_next)
            else:
                yield action

    def _run(self, message: Message, context: Context, call_next: App) -> list[ClientAction]:
        """Train or evaluate, and mask what came of it."""
        if kind_of(message) != self.kind:
            raise ConfigError(f"the server wants a sum of {self.kind} and sent a message for {kind_of(message)}")
        content = without_parts(message.content)
        model = arrays_in(content)
        self.home.takes(self.driver, model, told_hash(content, self.kind, context.run_config))
        reply = call_next(Message(content, metadata=message.metadata), context)
        if reply.has_error():
            raise ConfigError(f"the app did not {self.kind}: {reply.error.reason}")
        metrics = {name: value for record in reply.content.metric_records.values() for name, value in record.items()}
        weighted_by = self.home.task.weighted_by
        if weighted_by not in metrics:
            raise ConfigError(f"the app's reply has no metric {weighted_by!r}, by which the mean is weighted")
        weight = metrics.pop(weighted_by)
        arrays = {} if self.home.evaluates else arrays_in(reply.content)
        base = model if self.home.task.changes and not self.home.evaluates else None
        return self.driver.provide(values_for(self.home.policy.fields, arrays, weight, metrics, base))
