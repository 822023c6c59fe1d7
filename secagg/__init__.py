"""Secure aggregation against a server that lies: vectors are added, and nobody sees any one of them.

Sans-I/O: bytes in, bytes out. `import secagg` opens no socket, reads no clock and loads neither torch nor grpc nor
asyncio. The protocol is in `client`, `server` and `session`; its specification in docs/spec.md.
"""

from typing import TYPE_CHECKING

from secagg import wire
from secagg.book import RoundBook
from secagg.client import OpenRound, accept_exposure, open_round, unchecked_round
from secagg.complaints import LeaveOut, leave_out
from secagg.context import RoundContext
from secagg.driver import (
    ClientDriver,
    Completed,
    Exposed,
    Failed,
    Joined,
    NeedInput,
    Published,
    Refused,
    Retrying,
    Save,
    Send,
    ServerDriver,
    Silent,
)
from secagg.errors import (
    AbortedError,
    AuthenticationError,
    ComplaintError,
    ConfigError,
    ExposureError,
    IllegalTransitionError,
    InconsistentViewError,
    MalformedMessageError,
    ProtocolError,
    SecAggError,
    ShareError,
    TooFewClientsError,
    UnexpectedMessageError,
)
from secagg.field import Field
from secagg.keys import SigningKey
from secagg.layout import Layout
from secagg.messages import Receipt, RoundStart
from secagg.policy import Policy, Suite
from secagg.quantize import dequantize, means, sums
from secagg.roster import PinnedRoster
from secagg.session import ClientSession, ServerSession
from secagg.simulation import Simulated, simulate
from secagg.store import MemoryStore, Store

if TYPE_CHECKING:
    from secagg.files import load_key, load_policy, load_roster
    from secagg.sqlite import SqliteStore

__all__ = [
    "AbortedError",
    "AuthenticationError",
    "ClientDriver",
    "ClientSession",
    "ComplaintError",
    "Completed",
    "ConfigError",
    "Exposed",
    "ExposureError",
    "Failed",
    "Field",
    "IllegalTransitionError",
    "InconsistentViewError",
    "Joined",
    "Layout",
    "LeaveOut",
    "MalformedMessageError",
    "MemoryStore",
    "NeedInput",
    "OpenRound",
    "PinnedRoster",
    "Policy",
    "ProtocolError",
    "Published",
    "Receipt",
    "Refused",
    "Retrying",
    "RoundBook",
    "RoundContext",
    "RoundStart",
    "Save",
    "SecAggError",
    "Send",
    "ServerDriver",
    "ServerSession",
    "ShareError",
    "SigningKey",
    "Silent",
    "Simulated",
    "SqliteStore",
    "Store",
    "Suite",
    "TooFewClientsError",
    "UnexpectedMessageError",
    "accept_exposure",
    "dequantize",
    "leave_out",
    "load_key",
    "load_policy",
    "load_roster",
    "means",
    "open_round",
    "simulate",
    "sums",
    "unchecked_round",
    "wire",
]


def __getattr__(name: str) -> object:
    """What opens files is loaded when it is asked for."""
    if name == "SqliteStore":
        from secagg.sqlite import SqliteStore

        return SqliteStore
    if name in ("load_key", "load_policy", "load_roster"):
        from secagg import files

        return getattr(files, name)
    raise AttributeError(f"module 'secagg' has no attribute {name!r}")
