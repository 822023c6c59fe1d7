"""What the two ends of the mailbox share: messages cut into frames of at most 1 MiB, names, limits.

A message is a kind and opaque bytes. This module must never look into them, and never take more memory for a stream
than the bytes that have arrived, an eighth more and one frame: the limit bounds them, and every frame but a message's
last one is full, so that no stream of tiny frames costs more than its bytes. Specification: protos/transport.proto.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from secagg.messages import LARGEST_CLAIMS
from secagg.policy import Policy
from secagg.rpc.transport_pb2 import Frame

SERVICE = "secagg.transport.v1.Mailbox"
VERSION = 1
SESSION_BYTES = 16
SESSION_KEY = "session-bin"
CHUNK_BYTES = 1 << 20
FRAME_BYTES = CHUNK_BYTES + 1024
DEFAULT_LIMIT = 64 << 20
POLL_SECONDS = 20.0
"""The server ends a long poll that was idle for this long, so that proxies and both ends see life."""

HELLO = "hello"
GONE = "gone"
BACK = "back"
NEWS = frozenset({HELLO, GONE, BACK})
"""Kinds that the server itself delivers to its owner; no client can send one."""

_KIND = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_KEYS_AND_SHARES = 16 << 20
_CLAIM = 768  # a name of 256 characters and seven hashes
_ATTESTATION = 144  # an id of 64 characters and a signature
_SLOWEST_BYTES_PER_SECOND = 64 << 10


@dataclass(frozen=True, slots=True)
class Received:
    """A message: who sent it (a client id, or "" for the server), what it is, and its bytes."""

    sender: str
    kind: str
    payload: bytes = field(repr=False)


@dataclass(frozen=True, slots=True)
class Traffic:
    """Bytes of frames, repeats included, TLS and HTTP/2 headers not: `up` towards the server, `down` from it."""

    up: int = 0
    down: int = 0


@dataclass(frozen=True, slots=True)
class Message:
    """A message with its place in one direction of one session, counted from 1."""

    sequence: int
    kind: str
    payload: bytes = field(repr=False)

    def frames(self) -> Iterator[Frame]:
        """The message in frames; an empty one is one frame."""
        size = len(self.payload)
        yield Frame(sequence=self.sequence, kind=self.kind, size=size, data=self.payload[:CHUNK_BYTES])
        for start in range(CHUNK_BYTES, size, CHUNK_BYTES):
            yield Frame(sequence=self.sequence, data=self.payload[start : start + CHUNK_BYTES])


class Assembler:
    """Puts the frames of one stream together again.

    Args:
        limit: bytes of the largest message that is accepted.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._head: Frame | None = None
        self._arrived = io.BytesIO()  # one buffer that becomes the message without a copy
        self._missing = 0

    def add(self, frame: Frame) -> Message | None:
        """The message that this frame completes, if it does.

        Raises:
            ValueError: no honest peer sends such a frame; says why.
        """
        if self._head is None:
            self._begin(frame)
        elif frame.sequence != self._head.sequence or frame.kind or frame.size:
            raise ValueError("a message began before the last one was complete")
        if len(frame.data) != min(CHUNK_BYTES, self._missing):
            raise ValueError("a frame does not fit the announced size of its message: all but the last one are full")
        self._missing -= len(frame.data)
        self._arrived.write(frame.data)
        if self._missing or self._head is None:
            return None
        message = Message(self._head.sequence, self._head.kind, self._arrived.getvalue())
        self.close()
        return message

    def close(self) -> None:
        """Let go of an unfinished message now: the error that ended its call may keep this object for long."""
        self._head, self._arrived = None, io.BytesIO()

    def _begin(self, frame: Frame) -> None:
        check_kind(frame.kind)
        if frame.sequence < 1:
            raise ValueError("messages are numbered from 1")
        if frame.size > self._limit:
            raise ValueError(f"a message of {frame.size} bytes is larger than the limit of {self._limit}")
        self._head, self._missing = Frame(sequence=frame.sequence, kind=frame.kind), frame.size


def check_kind(kind: str) -> None:
    """Refuse a kind that is not a short ASCII word.

    Raises:
        ValueError: says what a kind is.
    """
    if not _KIND.fullmatch(kind):
        raise ValueError("a kind is 1 to 64 ASCII letters, digits, '.', '_' or '-', and begins with a letter")


def message_limit(policy: Policy) -> int:
    """Bytes of the largest message that a round of this policy needs: a vector, or keys, claims and shares of all."""
    claims = policy.clients * LARGEST_CLAIMS * (_CLAIM + policy.threshold * _ATTESTATION)
    return 8 * (policy.length + policy.slots) + _KEYS_AND_SHARES + claims


def transfer_seconds(size: int) -> float:
    """A generous deadline for a transfer of `size` bytes, in seconds."""
    return 30.0 + size / _SLOWEST_BYTES_PER_SECOND
