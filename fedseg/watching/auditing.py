"""What goes into a coordinator's audit log: who came and went, what was opened, closed and refused."""

from collections import deque
from pathlib import Path

from fedseg.events import (
    AnyEvent,
    Burned,
    Certificate,
    Connected,
    Disconnected,
    Ended,
    Left,
    Listening,
    Refused,
    Resumed,
    RoundEnded,
    RoundStarted,
    StudyStarted,
)
from fedseg.status import COORDINATOR
from secagg.audit import AuditLog, operator

_WAITING = 10_000
_Line = tuple[str, str, dict[str, object]]


class Auditing:
    """A `Listener` that appends to an audit log; on a full disk lines wait, and say when they were.

    Args:
        path: of the log; its folder must exist.
    """

    def __init__(self, path: Path) -> None:
        self._log = AuditLog(path)
        self._waiting: deque[_Line] = deque(maxlen=_WAITING)

    def __call__(self, event: AnyEvent) -> None:
        """Take one event of the run."""
        if (line := _line(event)) is not None:
            who, what, about = line
            self._waiting.append((who, what, {"event_at": event.at, **about} if self._waiting else about))
        while self._waiting:
            who, what, about = self._waiting[0]
            try:
                self._log.append(who, what, **about)
            except OSError:  # the disk is full; it is tried again with the next event
                return
            self._waiting.popleft()


def _line(event: AnyEvent) -> _Line | None:
    """Who, what, and more of it; None for what is no act of anybody."""
    match event:
        case StudyStarted():
            return operator(), "began a study", {"study": event.name, "hash": event.study_hash}
        case Resumed():
            return operator(), "went on with a run", {"after_round": event.round}
        case Listening():
            return COORDINATOR, "opened the port", {"address": event.where}
        case Connected():
            return event.site, "connected", {"version": event.version} if event.version else {}
        case Certificate():
            return event.site, "showed a certificate", {"until": event.until}
        case Disconnected():
            return event.site, "was lost", {}
        case Refused():
            return COORDINATOR, "refused a site", {"site": event.site, "reason": event.reason}
        case Left():
            return event.site, "left", {"reason": event.reason}
        case _:
            return _round(event)


def _round(event: AnyEvent) -> _Line | None:
    match event:
        case RoundStarted():
            about = {"round": event.round, "attempt": event.attempt, "model": event.model_hash}
            return COORDINATOR, "opened a round", dict(about)
        case Burned():
            about = {"round": event.round, "attempt": event.attempt, "reason": event.reason}
            return COORDINATOR, "gave a round up", dict(about)
        case RoundEnded():
            included = " ".join(event.included)
            return COORDINATOR, "closed a round", {"round": event.round, "head": event.head, "sites": included}
        case Ended():
            return COORDINATOR, "ended the run", {}
    return None
