"""Protobuf bytes to messages and back. Any bytes give a message or `MalformedMessageError`, nothing else.

The two sides are decoded by different functions and share no field number, so that a client's message can never pass
as the server's. Every message has exactly one encoding that is accepted: what decodes must encode to the same bytes,
which leaves no room for unknown fields or second spellings. A vector (y, or the sum) is the last field of its envelope:
it is sent and received where it lies. Specification: docs/spec.md, section "Messages"; schema: protos/secagg.proto.
"""

from collections.abc import Mapping
from dataclasses import fields
from functools import lru_cache
from operator import attrgetter
from typing import Any, cast

from google.protobuf.message import DecodeError, EncodeError, Message

from secagg import messages as m
from secagg import secagg_pb2 as pb
from secagg.encoding import Buffer
from secagg.errors import MalformedMessageError

_CLIENT_FIELDS: dict[str, type] = {
    "advertise_keys": m.AdvertiseKeys,
    "encrypted_shares": m.EncryptedShares,
    "share_report": m.ShareReport,
    "masked_input": m.MaskedInput,
    "attestation": m.Attestation,
    "unmasking_shares": m.UnmaskingShares,
    "confirmation": m.Confirmation,
    "slot_masks": m.SlotMasks,
}
_SERVER_FIELDS: dict[str, type] = {
    "round_start": m.RoundStart,
    "roster": m.Roster,
    "share_inbox": m.ShareInbox,
    "reports": m.Reports,
    "included_set": m.IncludedSet,
    "attestations": m.Attestations,
    "result": m.Result,
    "slots_failed": m.SlotsFailed,
    "abort": m.Abort,
}
_NESTED: dict[tuple[type, str], type] = {
    (m.RoundStart, "missed"): m.Receipt,
    (m.Roster, "advertisements"): m.AdvertiseKeys,
    (m.AdvertiseKeys, "exposing"): m.ReleaseClaim,
    (m.EncryptedShares, "header"): m.Header,
    (m.EncryptedShares, "bundles"): m.Bundle,
    (m.ShareInbox, "headers"): m.Header,
    (m.ShareInbox, "bundles"): m.Bundle,
    (m.Reports, "reports"): m.ShareReport,
    (m.IncludedSet, "inputs"): m.AcceptedInput,
    (m.Attestations, "attestations"): m.Attestation,
    (m.Result, "receipt"): m.Receipt,
}
_NAMED_BYTES = {
    (m.UnmaskingShares, "self_seed_shares"),
    (m.UnmaskingShares, "mask_key_shares"),
    (m.UnmaskingShares, "pair_secrets"),
    (m.ReleaseClaim, "attestations"),
    (m.SlotMasks, "masks"),
    (m.Result, "excess_seeds"),
}
_VECTORS: dict[type, str] = {m.MaskedInput: "y", m.Result: "total"}
_FIELDS = {
    kind: [(field.name, _NESTED.get((kind, field.name))) for field in fields(kind) if field.name != _VECTORS.get(kind)]
    for kind in {*_CLIENT_FIELDS.values(), *_SERVER_FIELDS.values(), *_NESTED.values()}
}
_TWINS = {kind: getattr(pb, kind.__name__) for kind in _FIELDS}
_PLAIN = {
    kind: attrgetter(*(name for name, _ in named))
    for kind, named in _FIELDS.items()
    if not any(nested or (kind, name) in _NAMED_BYTES for name, nested in named) and kind not in _VECTORS
}
"""Reads all fields of the kinds that hold nothing but texts, numbers and bytes, of which there are thousands."""
_NAMES = {kind: [name for name, _ in _FIELDS[kind]] for kind in _PLAIN}
_ENVELOPES: dict[type, tuple[type[Message], str]] = {
    kind: (envelope, name)
    for envelope, kinds in ((pb.FromClient, _CLIENT_FIELDS), (pb.FromServer, _SERVER_FIELDS))
    for name, kind in kinds.items()
}
_LENGTH_DELIMITED = 2
_VECTOR_TAGS: dict[type[Message], list[bytes]] = {
    envelope: [
        bytes([envelope.DESCRIPTOR.fields_by_name[name].number << 3 | _LENGTH_DELIMITED])
        for kind, (wraps, name) in _ENVELOPES.items()
        if wraps is envelope and kind in _VECTORS
    ]
    for envelope in (pb.FromClient, pb.FromServer)
}
"""With what the messages begin that carry a vector: one byte, for their field numbers are below 16."""
_LARGEST_VARINT = 10
_SMALL = 1 << 18
_SMALLEST_PART = 32


def encode(message: m.FromClient | m.FromServer) -> bytes:
    """The one encoding of a message of either side."""
    return b"".join(parts(message))


def encode_each(replies: Mapping[str, m.FromServer]) -> dict[str, bytes]:
    """The encoding of every client's reply, computed once for a message that goes to many."""
    encoded = {id(message): encode(message) for message in {id(reply): reply for reply in replies.values()}.values()}
    return {client_id: encoded[id(message)] for client_id, message in replies.items()}


def parts(message: m.FromClient | m.FromServer) -> tuple[Buffer, ...]:
    """The same bytes in pieces, the last of which is the vector itself: a stream can be fed without copying it."""
    if isinstance(message, m.ShareInbox):
        return _inbox_parts(message)
    kind = type(message)
    if kind not in _ENVELOPES:
        raise TypeError(f"{kind.__name__} is no message of the protocol")
    envelope, name = _ENVELOPES[kind]
    head = _bytes(envelope(**{name: _written(message)}))
    if kind not in _VECTORS:
        return (head,)
    vector: Buffer = getattr(message, _VECTORS[kind])
    return head, _announced(envelope, len(vector)), vector


def decode_from_client(data: Buffer) -> m.FromClient:
    """Decode a client's message. Its vector is a view of `data`, which must not change afterwards.

    Raises:
        MalformedMessageError: W-01, any bytes that no client could have encoded; M-01, a field of the wrong shape.
    """
    return cast(m.FromClient, _decode(memoryview(data), pb.FromClient, _CLIENT_FIELDS))


def decode_from_server(data: Buffer) -> m.FromServer:
    """Decode a message of the server. Its vector is a view of `data`, which must not change afterwards.

    Raises:
        MalformedMessageError: as `decode_from_client`.
    """
    return cast(m.FromServer, _decode(memoryview(data), pb.FromServer, _SERVER_FIELDS))


def decode_each(replies: Mapping[str, bytes]) -> dict[str, m.FromServer]:
    """What `encode_each` gave, for a simulation that holds all sites: what went to many is decoded once for them.

    Messages never change, so that sites can read the same one; what it is hashed to, and that its signatures verify, is
    then found out once as well.

    Raises:
        MalformedMessageError: as `decode_from_client`.
    """
    decoded = {key: decode_from_server(data) for key, data in {id(data): data for data in replies.values()}.items()}
    return {client_id: decoded[id(data)] for client_id, data in replies.items()}


def encode_receipt(receipt: m.Receipt) -> bytes:
    """The one encoding of a receipt, for who keeps `ServerSession.receipt`; what travels holds it already."""
    return _bytes(_written(receipt))


def decode_receipt(data: bytes) -> m.Receipt:
    """What `encode_receipt` encoded. Verify it before it counts: `receipt.verify(server_key, "C-18")`.

    Raises:
        MalformedMessageError: W-01, bytes that are no receipt; M-01, a field of the wrong shape.
    """
    twin: Any = _TWINS[m.Receipt]()
    try:
        twin.ParseFromString(bytes(data))
        twin.DiscardUnknownFields()
        canonical = _bytes(twin) == data
    except (DecodeError, EncodeError):
        canonical = False
    if not canonical:
        raise MalformedMessageError("W-01", "these bytes are not the encoding of a receipt")
    return cast(m.Receipt, _read(twin, m.Receipt, {}))


def _decode(data: memoryview, envelope: type[Message], kinds: dict[str, type]) -> object:
    head, vector = _split(data, envelope)
    wrapped: Any = envelope()
    try:
        if not _crowded(head):
            wrapped.ParseFromString(head)
        wrapped.DiscardUnknownFields()
        canonical = _bytes(wrapped) == head and not wrapped.vector
    except (DecodeError, EncodeError):
        canonical = False
    name = wrapped.WhichOneof("message") if canonical else None
    if name is None or (kinds[name] in _VECTORS) != (vector is not None):
        raise MalformedMessageError("W-01", "these bytes are not the encoding of a protocol message")
    kind = kinds[name]
    return _read(getattr(wrapped, name), kind, {} if vector is None else {_VECTORS[kind]: vector})


def _split(data: memoryview, envelope: type[Message]) -> tuple[bytes, memoryview | None]:
    """A message and its vector, where it is of a kind that has one and the vector is spelt in the one right way."""
    if data[:1] in _VECTOR_TAGS[envelope]:
        size, start = _varint_at(data, 1)
        end = start + size
        length, start = _varint_at(data, end + len(_announced(envelope, 0)) - 1)
        if len(data) - start == length and data[end:start] == _announced(envelope, length):
            return bytes(data[:end]), data[start:]
    return bytes(data), None


def _crowded(head: bytes) -> bool:
    """Tell whether a large message consists of more parts than an honest one can have.

    The parser spends a hundred bytes of memory on a part of two bytes: such a message could fill the memory (W-01).
    """
    if len(head) <= _SMALL:
        return False
    _, at = _varint_at(head, 0)
    size, at = _varint_at(head, at)
    parts = 0 if at + size == len(head) else len(head)
    while at < len(head) and parts * _SMALLEST_PART <= len(head):
        tag, at = _varint_at(head, at)
        size, at = _varint_at(head, at)
        at += size * (tag & 7 == _LENGTH_DELIMITED)
        parts += 1
    return parts * _SMALLEST_PART > len(head)


def _announced(envelope: type[Message], length: int) -> bytes:
    """The bytes before a vector in a message: the tag of its field, and how many bytes it has."""
    return _tag(envelope.DESCRIPTOR.fields_by_name["vector"].number) + _varint(length)


def _tag(number: int) -> bytes:
    return _varint(number << 3 | _LENGTH_DELIMITED)


@lru_cache(maxsize=1024)  # lengths, of which a round has few different ones
def _varint(value: int) -> bytes:
    groups = [value >> shift & 0x7F for shift in range(0, max(value.bit_length(), 1), 7)]
    return bytes([*(group | 0x80 for group in groups[:-1]), groups[-1]])


def _varint_at(data: Buffer, start: int) -> tuple[int, int]:
    """The integer that begins at `start`, and the position behind it.

    Where no integer begins there, the value means nothing; callers compare lengths and refuse the message.
    """
    value = 0
    for count, byte in enumerate(data[start : start + _LARGEST_VARINT]):
        value |= (byte & 0x7F) << 7 * count
        if byte < 0x80:
            return value, start + count + 1
    return value, start


def _written(message: Any) -> Any:
    """The protobuf twin of a message, without its vector."""
    kind, values = type(message), dict[str, object]()
    if kind in _PLAIN:
        return _TWINS[kind](**dict(zip(_NAMES[kind], _PLAIN[kind](message), strict=True)))
    for name, nested in _FIELDS[kind]:
        value = getattr(message, name)
        if (kind, name) in _NAMED_BYTES:
            values[name] = [pb.NamedBytes(client_id=i, value=v) for i, v in value.items()]
        elif nested is None:
            values[name] = value
        elif isinstance(value, tuple):
            values[name] = [_written(item) for item in value]
        else:
            values[name] = _written(value)
    return _TWINS[kind](**values)


_BUNDLE_TAGS = [_tag(pb.Bundle.DESCRIPTOR.fields_by_name[name].number) for name, _ in _FIELDS[m.Bundle]]
_INBOX_BUNDLES = _tag(pb.ShareInbox.DESCRIPTOR.fields_by_name["bundles"].number)


def _bytes(twin: Message) -> bytes:
    return twin.SerializeToString(deterministic=True)


def _inbox_parts(inbox: m.ShareInbox) -> tuple[bytes, bytes, bytes]:
    """The encodings of a message's fields, in their order, are its own: the headers are encoded once for everybody."""
    bundles = [_field(_INBOX_BUNDLES, _bundle_bytes(bundle)) for bundle in inbox.bundles]
    common, own = _common(inbox.headers), b"".join(bundles) + _bytes(pb.ShareInbox(paths=inbox.paths))
    number = pb.FromServer.DESCRIPTOR.fields_by_name["share_inbox"].number
    return _tag(number) + _varint(len(common) + len(own)), common, own


def _bundle_bytes(bundle: m.Bundle) -> bytes:
    """A bundle's encoding, without a protobuf twin: a server writes n^2 of them."""
    values = zip(_BUNDLE_TAGS, _PLAIN[m.Bundle](bundle), strict=True)
    return b"".join([_field(tag, value) for tag, value in values if value])


def _field(tag: bytes, value: bytes) -> bytes:
    return tag + _varint(len(value)) + value


@lru_cache(maxsize=1)
def _common(headers: tuple[m.Header, ...]) -> bytes:
    return _bytes(pb.ShareInbox(headers=[_written(header) for header in headers]))


def _read(source: Any, kind: type, values: dict[str, object]) -> object:
    if kind in _PLAIN:
        return kind(*_PLAIN[kind](source))
    for name, nested in _FIELDS[kind]:
        value = getattr(source, name)
        if (kind, name) in _NAMED_BYTES:
            values[name] = named = {entry.client_id: entry.value for entry in value}
            if len(named) != len(value):
                raise MalformedMessageError("M-01", "a message has ids that are not sorted and distinct")
        elif nested is None:
            values[name] = value if isinstance(value, bytes | str | int) else tuple(value)
        elif hasattr(value, "add"):
            values[name] = tuple(_read(item, nested, {}) for item in value)
        else:
            values[name] = _read(value, nested, {})
    return kind(**values)
