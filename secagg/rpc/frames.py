"""What the two ends of the mailbox share: messages cut into frames, places in them, names, limits.

A message is a kind and opaque bytes. This module must never look into them, and never take more memory for a stream
than the bytes that have arrived, an eighth more and one frame: the limit bounds them, and every frame but a message's
last one has at least `PIECE_BYTES`, so that no stream of tiny frames costs more than its bytes. What has arrived of a
message stays over a cut, and the next call goes on behind it. Specification: protos/transport.proto.
"""

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass, field

from secagg.messages import LARGEST_CLAIMS
from secagg.policy import Policy
from secagg.rpc.pace import CHUNK_BYTES, FIRST_PIECE_BYTES, PIECE_BYTES, Pace
from secagg.rpc.transport_pb2 import Frame

SERVICE = "secagg.transport.v2.Mailbox"
VERSION = 3
SESSION_BYTES = 16
SESSION_KEY = "session-bin"
OURS = ("mailbox", "secagg")
"""Trailing metadata of every refusal of the server's own: a middlebox that answers HTTP 403 has none."""
FRAME_BYTES = CHUNK_BYTES + 1024
DEFAULT_LIMIT = 64 << 20
POLL_SECONDS = 20.0
"""The server ends a long poll that was idle for this long, so that proxies and both ends see life."""
STALL_SECONDS = 60.0
"""A call in which nothing moves for so long is ended and made again: the largest frame passes at 20 KB/s in less."""
ALIVE_SECONDS = 10.0
"""How often the server says that an upload which awaits its turn is not forgotten."""
KEEPALIVE_SECONDS = 10.0
"""After so long without a byte each end asks the other for a sign of life, which must come within as long again."""

HELLO = "hello"
GONE = "gone"
BACK = "back"
NEWS = frozenset({HELLO, GONE, BACK})
"""Kinds that the mailbox itself delivers to its owner; no peer can send one."""

_KIND = re.compile(r"[A-Za-z][A-Za-z0-9._-]{0,63}")
_KEYS_AND_SHARES = 16 << 20
_CLAIM = 768  # a name of 256 characters and seven hashes
_ATTESTATION = 144  # an id of 64 characters and a signature


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

    @property
    def small(self) -> bool:
        """Whether it goes at once, in one frame; a larger one is announced first."""
        return len(self.payload) <= FIRST_PIECE_BYTES

    def head(self) -> Frame:
        """The frame that begins an upload: the whole of a small message, the announcement of a larger one."""
        data = self.payload if self.small else b""
        return Frame(sequence=self.sequence, kind=self.kind, size=len(self.payload), data=data)

    def frames(self, offset: int = 0, pace: Pace | None = None, headed: bool = False) -> Iterator[Frame]:
        """The message from an offset on, in frames; an empty one is one frame.

        Args:
            offset: what the peer has already.
            pace: chooses the size of each frame; the largest where not given.
            headed: the message's first frame in this call was sent.
        """
        size = len(self.payload)
        while offset < size or not headed:
            piece = self.payload[offset : offset + (pace.piece() if pace is not None else CHUNK_BYTES)]
            kind, total = ("", 0) if headed else (self.kind, size)
            yield Frame(sequence=self.sequence, kind=kind, size=total, data=piece, offset=offset)
            offset, headed = offset + len(piece), True


class Assembler:
    """Puts frames together again, over as many calls as it takes.

    Args:
        limit: bytes of the largest message that is accepted.

    Attributes:
        kind: of the message that is unfinished, "" where none is.
        size: its bytes.
        have: how many of them have arrived, in order.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self.close()
        self._headed = False

    def begin_call(self) -> None:
        """The frames of a new call follow: the first one says of which message."""
        self._headed = False

    def add(self, frame: Frame) -> Message | None:
        """The message that this frame completes, if it does.

        Raises:
            ValueError: no honest peer sends such a frame; says why.
        """
        if self._headed:
            if frame.sequence != self._sequence or frame.kind or frame.size:
                raise ValueError("a message began before the last one was complete")
        elif not self._sequence:
            self._begin(frame)
        elif (frame.sequence, frame.kind, frame.size) != (self._sequence, self.kind, self.size):
            raise ValueError("a message went on as another one")
        missing = self.size - self.have
        announced = not (self._headed or frame.data)
        self._headed = True
        if announced and missing:
            return None
        if frame.offset != self.have:
            raise ValueError(f"a frame belongs at byte {frame.offset} and {self.have} have arrived")
        if not min(PIECE_BYTES, missing) <= len(frame.data) <= min(CHUNK_BYTES, missing):
            raise ValueError("a frame is too small, or larger than what is left of its message")
        self.have += len(frame.data)
        self._arrived.write(frame.data)
        if self.have < self.size:
            return None
        message = Message(self._sequence, self.kind, self._arrived.getvalue())
        self.close()
        return message

    def close(self) -> None:
        """Let go of an unfinished message now: the error that ended its call may keep this object for long."""
        self._sequence, self.kind, self.size, self.have = 0, "", 0, 0
        self._arrived = io.BytesIO()  # one buffer that becomes the message without a copy
        self._headed = False

    def _begin(self, frame: Frame) -> None:
        check_kind(frame.kind)
        if frame.sequence < 1:
            raise ValueError("messages are numbered from 1")
        if frame.size > self._limit:
            raise ValueError(f"a message of {frame.size} bytes is larger than the limit of {self._limit}")
        self._sequence, self.kind, self.size = frame.sequence, frame.kind, frame.size


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
