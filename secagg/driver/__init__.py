"""Drives rounds to their sums, both sides: attempts, deadlines, receipts and transcripts; bytes in, actions out.

A driver opens no socket, reads no clock and starts no thread: its owner gives it what came and what time it is, and
does what it says, in order (sans-I/O, as in h11). All seconds are of the owner's one clock, which only goes forward,
such as `time.monotonic`. Specification: docs/spec.md, section "Driving a round".
"""

from secagg.driver.actions import (
    ClientAction,
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
    ServerAction,
    Silent,
)
from secagg.driver.client import ClientDriver
from secagg.driver.server import ServerDriver

__all__ = [
    "ClientAction",
    "ClientDriver",
    "Completed",
    "Exposed",
    "Failed",
    "Joined",
    "NeedInput",
    "Published",
    "Refused",
    "Retrying",
    "Save",
    "Send",
    "ServerAction",
    "ServerDriver",
    "Silent",
]
