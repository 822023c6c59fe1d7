"""The log for machines: one JSON object a line, with the time, for what may leave the room in which the data is.

A field is in a line only where `_LINES` names it. No line tells of a patient, a Dice, how many patients were drawn or,
where an epsilon is claimed, when a site's masked input came (which tells how long it trained). At a site a note for the
operator is a line without its text: it may count patients.
"""

import json
import logging
import sys
from logging.handlers import WatchedFileHandler
from pathlib import Path
from typing import Any, TextIO

from fedseg.errors import ConfigError
from fedseg.events import (
    AnyEvent,
    Audited,
    Burned,
    Certificate,
    Connected,
    Disconnected,
    Dropped,
    Ended,
    EpsilonSpent,
    Event,
    Left,
    Listening,
    Note,
    Refused,
    Rejoined,
    Resumed,
    RoundEnded,
    RoundStarted,
    StepAccepted,
    StepClosed,
    StepOpened,
    StudyStarted,
    Waiting,
)
from secagg.steps import MASKED_INPUT_COLLECTION

_LINES: dict[type[Event], tuple[int, tuple[str, ...]]] = {
    Listening: (logging.INFO, ("host", "port")),
    StudyStarted: (
        logging.INFO,
        ("name", "study_hash", "party", "rounds", "mechanism", "unit", "delta", "budget", "n"),
    ),
    Connected: (logging.INFO, ("site", "version")),
    Certificate: (logging.INFO, ("site", "until")),
    Disconnected: (logging.WARNING, ("site",)),
    Refused: (logging.WARNING, ("site", "reason")),
    Resumed: (logging.INFO, ("round",)),
    Waiting: (logging.INFO, ("sites", "seconds", "step")),
    RoundStarted: (logging.INFO, ("round", "attempt", "model_hash")),
    StepOpened: (logging.INFO, ("round", "step", "sites", "seconds")),
    StepAccepted: (logging.INFO, ("round", "site", "step", "bytes")),
    StepClosed: (logging.INFO, ("round", "step", "bytes_down")),
    Dropped: (logging.WARNING, ("round", "site", "after")),
    Rejoined: (logging.INFO, ("round", "site")),
    Left: (logging.WARNING, ("site", "reason")),
    Burned: (logging.WARNING, ("round", "attempt", "reason")),
    EpsilonSpent: (logging.INFO, ("round", "site", "spent")),
    RoundEnded: (logging.INFO, ("round", "attempt", "included", "dropped", "head", "bytes_up", "bytes_down")),
    Audited: (logging.INFO, ("round", "exact")),
    Note: (logging.INFO, ("text",)),
    Ended: (logging.INFO, ("seconds",)),
}


class _Quiet(logging.Handler):
    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802 - its name in logging
        """A line that cannot be written, as on a full disk, is lost, and nothing else happens."""


class _File(_Quiet, WatchedFileHandler):
    """A file that another program may rotate."""


class _Stream(_Quiet, logging.StreamHandler[TextIO]):
    """The error output."""


class Logged:
    """A `Listener` that writes the log; one that fails, as on a full disk, loses lines and costs the run nothing.

    Args:
        target: the file, which another program may rotate; None for the error output.

    Raises:
        ConfigError: the file cannot be written.
    """

    def __init__(self, target: Path | None = None) -> None:
        try:
            self._handler: logging.Handler = _File(target, encoding="ascii") if target else _Stream(sys.stderr)
        except OSError as error:
            raise ConfigError(
                f"{target} cannot be written ({error.strerror}); give --log-file another place"
            ) from error
        self._handler.setFormatter(logging.Formatter("%(message)s"))
        self._claims = self._site = False

    def __call__(self, event: AnyEvent) -> None:
        """Take one event of the run."""
        if isinstance(event, StudyStarted):
            self._claims, self._site = bool(event.trust), event.party not in ("", "coordinator")
        if type(event) not in _LINES or self._tells_of_training(event):
            return
        level, names = _LINES[type(event)]
        if isinstance(event, Note) and self._site:
            names = ()
        fields = event.model_dump(mode="json", include=set(names))
        line: dict[str, Any] = {"at": event.at, "level": logging.getLevelName(level).lower(), "event": event.kind}
        self._handler.handle(logging.LogRecord("fedseg", level, "", 0, json.dumps(line | fields), (), None))

    def _tells_of_training(self, event: AnyEvent) -> bool:
        return self._claims and isinstance(event, StepAccepted) and event.step == MASKED_INPUT_COLLECTION
