"""Protobuf bytes to messages and back. Any bytes give a message or `MalformedMessageError`, nothing else.

The two sides are decoded by different functions and share no field number, so that a client's message can never pass
as the server's. Every message has exactly one encoding that is accepted: what decodes must encode to the same bytes,
which leaves no room for unknown fields or second spellings. Specification: docs/spec.md, section "Messages"; schema:
protos/secagg.proto.
"""

from collections.abc import Callable
from dataclasses import fields
from typing import Any, cast

from google.protobuf.message import DecodeError, EncodeError, Message

from secagg import messages as m
from secagg import secagg_pb2 as pb
from secagg.errors import MalformedMessageError

_CLIENT_FIELDS: dict[str, type] = {
    "advertise_keys": m.AdvertiseKeys,
    "encrypted_shares": m.EncryptedShares,
    "share_report": m.ShareReport,
    "masked_input": m.MaskedInput,
    "attestation": m.Attestation,
    "unmasking_shares": m.UnmaskingShares,
}
_SERVER_FIELDS: dict[str, type] = {
    "round_start": m.RoundStart,
    "roster": m.Roster,
    "share_inbox": m.ShareInbox,
    "reports": m.Reports,
    "included_set": m.IncludedSet,
    "attestations": m.Attestations,
    "result": m.Result,
}
_NESTED: dict[tuple[type, str], type] = {
    (m.RoundStart, "missed"): m.Receipt,
    (m.Roster, "advertisements"): m.AdvertiseKeys,
    (m.EncryptedShares, "header"): m.Header,
    (m.EncryptedShares, "bundles"): m.Bundle,
    (m.ShareInbox, "headers"): m.Header,
    (m.ShareInbox, "bundles"): m.Bundle,
    (m.Reports, "reports"): m.ShareReport,
    (m.IncludedSet, "inputs"): m.AcceptedInput,
    (m.Attestations, "attestations"): m.Attestation,
    (m.Result, "receipt"): m.Receipt,
}
_NAMED_BYTES = ("self_seed_shares", "mask_key_shares", "pair_secrets")


def encode(message: m.FromClient | m.FromServer) -> bytes:
    """The one encoding of a message of either side."""
    for envelope, kinds in ((pb.FromClient, _CLIENT_FIELDS), (pb.FromServer, _SERVER_FIELDS)):
        for name, kind in kinds.items():
            if isinstance(message, kind):
                wrapped = envelope()
                _fill(getattr(wrapped, name), message)
                getattr(wrapped, name).SetInParent()
                return wrapped.SerializeToString(deterministic=True)
    raise TypeError(f"{type(message).__name__} is no message of the protocol")


def decode_from_client(data: bytes) -> m.FromClient:
    """What a client sent.

    Raises:
        MalformedMessageError: W-01, any bytes that no client could have encoded; M-01, a field of the wrong shape.
    """
    return cast(m.FromClient, _decode(data, pb.FromClient, _CLIENT_FIELDS))


def decode_from_server(data: bytes) -> m.FromServer:
    """What the server sent; raises as `decode_from_client`."""
    return cast(m.FromServer, _decode(data, pb.FromServer, _SERVER_FIELDS))


def _decode(data: bytes, envelope: Callable[[], Any], kinds: dict[str, type]) -> object:
    wrapped = envelope()
    try:
        wrapped.ParseFromString(data)
        wrapped.DiscardUnknownFields()
        canonical = wrapped.SerializeToString(deterministic=True) == data
    except (DecodeError, EncodeError):
        canonical = False
    name = wrapped.WhichOneof("message") if canonical else None
    if name is None:
        raise MalformedMessageError("W-01", "these bytes are not the encoding of a protocol message")
    return _read(getattr(wrapped, name), kinds[name])


def _fill(target: Message, message: Any) -> None:
    for name in (field.name for field in fields(message)):
        value = getattr(message, name)
        if name in _NAMED_BYTES:
            getattr(target, name).extend(pb.NamedBytes(client_id=i, value=v) for i, v in value.items())
        elif (type(message), name) not in _NESTED:
            if isinstance(value, tuple):
                getattr(target, name).extend(value)
            else:
                setattr(target, name, value)
        elif isinstance(value, tuple):
            for item in value:
                _fill(getattr(target, name).add(), item)
        else:
            _fill(getattr(target, name), value)


def _read(source: Any, kind: Any) -> object:
    values: dict[str, object] = {}
    for name in (field.name for field in fields(kind)):
        value = getattr(source, name)
        nested = _NESTED.get((kind, name))
        if name in _NAMED_BYTES:
            values[name] = {entry.client_id: entry.value for entry in value}
            if list(values[name]) != sorted(entry.client_id for entry in value):  # type: ignore[call-overload]
                raise MalformedMessageError("M-01", "a message has ids that are not sorted and distinct")
        elif nested is not None and hasattr(value, "add"):
            values[name] = tuple(_read(item, nested) for item in value)
        elif nested is not None:
            values[name] = _read(value, nested)
        else:
            values[name] = tuple(value) if hasattr(value, "extend") else value
    return kind(**values)
