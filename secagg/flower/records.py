"""Flower's records and ours: protocol messages as one record beside the app's, and a model's arrays by name."""

from collections.abc import Mapping, Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, Message, MessageType, RecordDict
from numpy.typing import NDArray

from secagg.errors import ConfigError
from secagg.federated import model_hash

PARTS, OF_EVALUATION = "secagg", "secagg-evaluation"
"""The records that hold protocol messages, in their order: of sums of updates, and of sums of evaluations. Arrays,
because Flower cuts those in pieces."""

RECORD_OF = {MessageType.TRAIN: PARTS, MessageType.EVALUATE: OF_EVALUATION}

EXPOSED = "secagg-exposed"
"""The record of a reply of a node that waits for the transcripts of rounds (C-05, C-26)."""


def kind_of(message: Message) -> str:
    """What a message asks for, whatever follows behind the dot: "train", "evaluate" or "query"."""
    kind: str = message.metadata.message_type.split(".")[0]
    return kind


def with_parts(content: RecordDict, parts: Mapping[str, Sequence[bytes]]) -> RecordDict:
    """The records, and beside them protocol messages, by the record that is for them."""
    records = {
        record: ArrayRecord({f"{i:03d}": Array("uint8", (len(part),), "secagg", part) for i, part in enumerate(said)})
        for record, said in parts.items()
    }
    return RecordDict({**content, **records})


def parts_of(content: RecordDict, record: str) -> list[bytes] | None:
    """The protocol messages in a record, in their order; None where there is no such record."""
    found = content.get(record)
    if not isinstance(found, ArrayRecord):
        return None
    return [found[key].data for key in sorted(found)]


def without_parts(content: RecordDict) -> RecordDict:
    """The app's own records."""
    ours = (*RECORD_OF.values(), EXPOSED)
    return RecordDict({name: record for name, record in content.items() if name not in ours})


def arrays_in(content: RecordDict) -> dict[str, NDArray[Any]]:
    """The arrays of the one ArrayRecord among an app's records, by name.

    Raises:
        ConfigError: there is none, or more than one.
    """
    records = list(content.array_records.values())
    if len(records) != 1:
        raise ConfigError(f"a sum is of one ArrayRecord, and this message has {len(records)}; put all arrays into one")
    return {name: array.numpy() for name, array in records[0].items()}


def told_hash(content: RecordDict, kind: str, run_config: Mapping[str, Any]) -> bytes:
    """The hash of all that a node is told for one training: the arrays, every other record, and the run's config.

    A server that lies could send most nodes a learning rate of 0: the sum would be the update of the others.

    Args:
        content: the app's own records.
        kind: of the message, such as "train".
        run_config: of the app's context.

    Raises:
        ConfigError: no ArrayRecord, or more than one.
    """
    records = {**content.config_records, **content.metric_records}
    told = [f"{name}.{key} = {value!a}" for name in sorted(records) for key, value in sorted(records[name].items())]
    config = [f"{key} = {value!a}" for key, value in sorted(run_config.items())]
    return model_hash(arrays_in(content), kind, *map(ascii, told), "", *map(ascii, config))
