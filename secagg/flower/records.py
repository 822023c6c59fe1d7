"""Flower's records and ours: protocol messages as one record beside the app's, and a model's arrays by name."""

from collections.abc import Sequence
from typing import Any

from flwr.app import Array, ArrayRecord, RecordDict
from numpy.typing import NDArray

from secagg.errors import ConfigError

PARTS = "secagg"
"""The record of a message that holds protocol messages, in their order. Arrays, because Flower cuts those in pieces."""

EXPOSED = "secagg-exposed"
"""The record of a reply of a node that waits for the transcripts of rounds (C-05, C-26)."""


def with_parts(content: RecordDict, parts: Sequence[bytes]) -> RecordDict:
    """The records, and beside them protocol messages."""
    arrays = {f"{i:03d}": Array("uint8", (len(part),), "secagg", part) for i, part in enumerate(parts)}
    return RecordDict({**content, PARTS: ArrayRecord(arrays)})


def parts_of(content: RecordDict) -> list[bytes] | None:
    """The protocol messages in a content, in their order; None where it has no record of them."""
    record = content.get(PARTS)
    if not isinstance(record, ArrayRecord):
        return None
    return [record[key].data for key in sorted(record)]


def without_parts(content: RecordDict) -> RecordDict:
    """The app's own records."""
    return RecordDict({name: record for name, record in content.items() if name not in (PARTS, EXPOSED)})


def arrays_in(content: RecordDict) -> dict[str, NDArray[Any]]:
    """The arrays of the one ArrayRecord among an app's records, by name.

    Raises:
        ConfigError: there is none, or more than one.
    """
    records = list(content.array_records.values())
    if len(records) != 1:
        raise ConfigError(f"a sum is of one ArrayRecord, and this message has {len(records)}; put all arrays into one")
    return {name: array.numpy() for name, array in records[0].items()}
