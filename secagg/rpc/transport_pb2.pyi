# mypy: disable-error-code="type-arg"
from google.protobuf import descriptor as _descriptor
from google.protobuf import message as _message
from typing import ClassVar as _ClassVar, Optional as _Optional

DESCRIPTOR: _descriptor.FileDescriptor

class Greeting(_message.Message):
    __slots__ = ("version", "session", "client_id", "proof")
    VERSION_FIELD_NUMBER: _ClassVar[int]
    SESSION_FIELD_NUMBER: _ClassVar[int]
    CLIENT_ID_FIELD_NUMBER: _ClassVar[int]
    PROOF_FIELD_NUMBER: _ClassVar[int]
    version: int
    session: bytes
    client_id: str
    proof: bytes
    def __init__(self, version: _Optional[int] = ..., session: _Optional[bytes] = ..., client_id: _Optional[str] = ..., proof: _Optional[bytes] = ...) -> None: ...

class Welcome(_message.Message):
    __slots__ = ("max_message_bytes", "challenge")
    MAX_MESSAGE_BYTES_FIELD_NUMBER: _ClassVar[int]
    CHALLENGE_FIELD_NUMBER: _ClassVar[int]
    max_message_bytes: int
    challenge: bytes
    def __init__(self, max_message_bytes: _Optional[int] = ..., challenge: _Optional[bytes] = ...) -> None: ...

class Frame(_message.Message):
    __slots__ = ("sequence", "kind", "size", "data", "offset")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    KIND_FIELD_NUMBER: _ClassVar[int]
    SIZE_FIELD_NUMBER: _ClassVar[int]
    DATA_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    kind: str
    size: int
    data: bytes
    offset: int
    def __init__(self, sequence: _Optional[int] = ..., kind: _Optional[str] = ..., size: _Optional[int] = ..., data: _Optional[bytes] = ..., offset: _Optional[int] = ...) -> None: ...

class Position(_message.Message):
    __slots__ = ("sequence", "offset", "waiting")
    SEQUENCE_FIELD_NUMBER: _ClassVar[int]
    OFFSET_FIELD_NUMBER: _ClassVar[int]
    WAITING_FIELD_NUMBER: _ClassVar[int]
    sequence: int
    offset: int
    waiting: bool
    def __init__(self, sequence: _Optional[int] = ..., offset: _Optional[int] = ..., waiting: bool = ...) -> None: ...
