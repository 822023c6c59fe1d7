"""What a transcript file holds: its records, their one encoding, and the chain that binds them.

A file is a sequence of records, each preceded by its length as u32. A record is the canonical encoding of one message
in its published form, `encode("transcript-<kind>", field, ...)`, with fields in the order of the dataclass; a message
within a message is the list of its fields. Every record extends a hash chain, and the last one holds its end. Must
never: give an envelope, or a secret that was not released, a form in which it could be written. Specification:
docs/spec.md, section "Transcripts".
"""

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, fields
from typing import Any, TypeAlias, cast, get_args, get_origin, get_type_hints

from secagg.context import RoundContext
from secagg.encoding import HASH_BYTES, Buffer, encode, size_of_field, split_fields
from secagg.errors import IllegalTransitionError, MalformedMessageError
from secagg.messages import (
    AcceptedInput,
    AdvertiseKeys,
    Attestation,
    Bundle,
    Confirmation,
    EncryptedShares,
    FromClient,
    Header,
    MaskedInput,
    Receipt,
    ReleaseClaim,
    Result,
    ShareReport,
    Signed,
    SlotMasks,
    UnmaskingShares,
    bundle_digest,
)
from secagg.packing import BLOCK, packed_size
from secagg.policy import Policy

FORMAT = 2
LARGEST_RECORD = 1 << 20
LARGEST_VECTOR = (1 << 32) - 1  # its length enters a hash as u32
CHAIN_START = bytes(HASH_BYTES)


@dataclass(frozen=True)
class Opening:
    """The first record: the policy field by field, the context of the attempt, and whose roster is meant.

    Floats are hexadecimal literals, as they enter H(policy). `vectors` is 1 where y is published whole, 0 where by its
    hash. The policy is here to be compared: whoever verifies brings his own, and his own roster.
    """

    format: int
    project: str
    clients: int
    length: int
    clip_range: str
    max_corrupt: int
    min_survivors: int
    suite: str
    bits: int
    value_bits: int
    weights: Mapping[str, str]
    server_key: bytes
    roster_hash: bytes
    training_run: str
    round_number: int
    attempt: int
    model_hash: bytes
    task_hash: bytes
    previous_head: bytes
    vectors: int

    @classmethod
    def of(cls, policy: Policy, roster_hash: bytes, context: RoundContext, vectors: bool) -> "Opening":
        """The opening record of one attempt.

        Args:
            policy: of the session.
            roster_hash: of the pinned roster, 32 bytes.
            context: of the attempt.
            vectors: whether masked inputs are published whole; otherwise by their hashes.
        """
        return cls(
            FORMAT,
            policy.project,
            policy.clients,
            policy.length,
            float(policy.clip_range).hex(),
            policy.max_corrupt,
            policy.min_survivors,
            policy.suite.value,
            policy.bits,
            policy.value_bits,
            {client_id: float(weight).hex() for client_id, weight in policy.weights.items()},
            policy.server_key,
            roster_hash,
            context.training_run,
            context.round_number,
            context.attempt,
            context.model_hash,
            context.task_hash,
            context.previous_head,
            int(vectors),
        )

    @property
    def context(self) -> RoundContext:
        """The context of the attempt. ConfigError for a field of the wrong size or range."""
        hashes = (self.model_hash, self.task_hash, self.previous_head)
        return RoundContext(self.training_run, self.round_number, self.attempt, *hashes)


@dataclass(frozen=True)
class PublishedBundle:
    """A bundle with the hashes of its envelopes in their place: the preimage of the digest in the signed header."""

    shares_hash: bytes
    pair_hash: bytes
    mask_key_commitment: bytes
    self_seed_commitment: bytes
    pair_commitment: bytes

    @classmethod
    def of(cls, bundle: Bundle) -> "PublishedBundle":
        """The published form of a bundle, without its envelopes: s_u, once released, would open one of them."""
        return cls(*bundle.published())

    def digest(self) -> bytes:
        """The digest of the bundle: 32 bytes, equal to `Bundle.digest`."""
        return bundle_digest(*(getattr(self, field.name) for field in fields(self)))


@dataclass(frozen=True)
class PublishedShares:
    """ShareKeys: a dealer's header and its bundles, in roster order with itself left out."""

    header: Header
    bundles: tuple[PublishedBundle, ...]

    @property
    def client_id(self) -> str:
        """Id of the dealer, whose message this was."""
        return self.header.client_id


@dataclass(frozen=True)
class OpenedPair:
    """r_uv that the server opened with the mask key of a dropped client, because its dealer then fell silent."""

    client_id: str
    dropped: str
    secret: bytes


@dataclass(frozen=True)
class Block:
    """2^16 values of the vector that the record before it announced, or what is left of it."""

    data: bytes


@dataclass(frozen=True)
class Closing(Signed):
    """The last record: the end of the chain, signed by the server key where the policy has one."""

    link: bytes
    signature: bytes = b""

    def statement(self) -> bytes:
        """See `Signed.statement`."""
        return encode("transcript", self.link)


Record: TypeAlias = (
    Opening
    | Header
    | AdvertiseKeys
    | PublishedShares
    | ShareReport
    | AcceptedInput
    | Attestation
    | UnmaskingShares
    | OpenedPair
    | Receipt
    | Block
    | Confirmation
    | Closing
)
KINDS: dict[str, type] = {
    "opening": Opening,
    "header": Header,  # of a burned round, which has nothing else
    "advertisement": AdvertiseKeys,
    "shares": PublishedShares,
    "report": ShareReport,
    "input": AcceptedInput,
    "attestation": Attestation,
    "release": UnmaskingShares,
    "pair": OpenedPair,
    "result": Receipt,
    "block": Block,
    "confirmation": Confirmation,
    "closing": Closing,
}
"""In the order of a file, but that blocks follow the input or result that they belong to."""
_RANKS = {kind: rank for rank, kind in enumerate(KINDS.values())}
_NAMES = {kind: name for name, kind in KINDS.items()}
_BY_LABEL = {encode(f"transcript-{name}"): kind for name, kind in KINDS.items()}
_SHOWN = (*KINDS.values(), PublishedBundle, ReleaseClaim)
_FIELDS = {kind: tuple(field.name for field in fields(kind)) for kind in _SHOWN}
_HINTS = {kind: [get_type_hints(kind)[name] for name in _FIELDS[kind]] for kind in _SHOWN}


def place(record: Record) -> tuple[int, str, str]:
    """The sort key of a record in its file: kind, sender, second name. No two records have the same."""
    return _RANKS[type(record)], sender_of(record), getattr(record, "dropped", "")


def sender_of(record: Record) -> str:
    """Id of the client whose message this is; empty for the server's."""
    return str(getattr(record, "client_id", ""))


def name_of(record: Record) -> str:
    """The word for a record's kind, as in `KINDS`."""
    return _NAMES[type(record)]


def encode_record(record: Record) -> bytes:
    """The one encoding of a record: `encode("transcript-<kind>", field, ...)`."""
    return encode(f"transcript-{name_of(record)}", *_written(record))


def decode_record(data: bytes) -> Record:
    """Inverse of `encode_record`, which it does not enforce: compare with the encoding of what you get.

    Raises:
        ValueError: these bytes hold no record.
    """
    pieces = split_fields(data)
    kind = _BY_LABEL.get(data[: 4 + len(pieces[0])]) if pieces else None
    if kind is None:
        raise ValueError("it is of no known kind")
    try:
        return cast(Record, _build(kind, pieces[1:]))
    except MalformedMessageError as error:
        raise ValueError(str(error)) from None


def next_link(link: bytes, record: bytes) -> bytes:
    """The chain after one more record, 32 bytes: H("transcript-record", link, record), hashed where it lies."""
    begun = hashlib.sha256(encode("transcript-record", link) + size_of_field(len(record)))
    begun.update(record)
    return begun.digest()


def records(read: Callable[[int], bytes]) -> Iterator[bytes]:
    """The records of a file, one after the other.

    Args:
        read: gives so many bytes as they come next, fewer where the file ends, such as `read` of an open file.

    Raises:
        ValueError: it ends within a record, or one is longer than any can be.
    """
    while size := read(4):
        length = int.from_bytes(size, "big")
        if len(size) < 4 or length > LARGEST_RECORD:
            raise ValueError("it is cut off or no transcript at all")
        record = read(length)
        if len(record) < length:
            raise ValueError("it is cut off")
        yield record


def as_shown(
    message: FromClient | OpenedPair | Result, policy: Policy, vectors: bool = True
) -> tuple[Record, Iterator[Block]]:
    """An accepted message, or the result, as a transcript shows it: without envelopes, its vector in blocks if at all.

    Raises:
        IllegalTransitionError: slot masks, which enter none.
    """
    match message:
        case SlotMasks():
            raise IllegalTransitionError("slot masks are of a round without a sum and enter no transcript")
        case EncryptedShares():
            return PublishedShares(message.header, tuple(map(PublishedBundle.of, message.bundles))), iter(())
        case MaskedInput():
            return message.acceptance(), blocks(message.y, policy) if vectors else iter(())
        case Result():
            return message.receipt, blocks(message.total, policy)
    return message, iter(())


def records_in(data: Buffer) -> Iterator[bytes]:
    """The records of a file that was read, or came over a network; see `records`."""
    view, at = memoryview(data), 0

    def read(size: int) -> bytes:
        """The next so many bytes."""
        nonlocal at
        at += size
        return bytes(view[at - size : at])

    return records(read)


def looks_like(data: Buffer) -> bool:
    """Whether these bytes begin as a transcript does, and so are no message of the protocol."""
    label = encode(f"transcript-{_NAMES[Opening]}")
    return bytes(data[4 : 4 + len(label)]) == label


def blocks(vector: Buffer, policy: Policy) -> Iterator[Block]:
    """A packed vector of d + slots values in blocks that can be unpacked on their own."""
    view, size = memoryview(vector), packed_size(BLOCK, policy.bits)
    for start in range(0, len(view), size):
        yield Block(bytes(view[start : start + size]))


def _written(value: Any) -> Any:
    if isinstance(value, bytes | str | int):  # nearly all
        return value
    if names := _FIELDS.get(type(value)):
        values = [_written(getattr(value, name)) for name in names]
        return values[:-1] if isinstance(value, UnmaskingShares) and not value.excess_seeds else values
    if isinstance(value, tuple):
        return [_written(item) for item in value]
    return [[name, item] for name, item in value.items()]


def _build(kind: type, pieces: list[memoryview]) -> object:
    hints = _HINTS[kind]
    if len(pieces) < len(hints) - (kind is UnmaskingShares):  # seeds of excess noise are the last field, or not there
        raise ValueError("it lacks a field")
    return kind(*(_read(hint, piece) for hint, piece in zip(hints, pieces, strict=False)))


def _read(hint: Any, data: memoryview) -> object:
    if hint is bytes:
        return bytes(data)
    if hint is str:
        return bytes(data).decode("ascii")
    if hint is int:
        return int.from_bytes(data[:8], "big")
    items = split_fields(data[4:])
    if hint in _HINTS:
        return _build(hint, items)
    if get_origin(hint) is tuple:
        return tuple(_read(get_args(hint)[0], item) for item in items)
    named = [split_fields(item[4:]) for item in items]
    if not all(len(pair) >= 2 for pair in named):
        raise ValueError("it lacks a field")
    return {_read(str, pair[0]): _read(get_args(hint)[1], pair[1]) for pair in named}
