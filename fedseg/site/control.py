"""What a site's operator decides, in the state folder: which studies, whether to go on, and with how much at most.

A process that runs beside it sees every decision. Nothing of it is sent but its consequences.
"""

import fcntl
import json
import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from fedseg.budget.cap import BUDGET, lifetime
from fedseg.errors import ConfigError
from secagg.service.application import Wish
from secagg.writing import PRIVATE, PRIVATE_FOLDER, write_whole

FILE = "control.json"
LEAST_DIGITS = 16
"""Of a study's hash: two studies with 8 digits alike are made in a second, one to be read and one to be run."""


class Control:
    """The decisions about one data set.

    Args:
        state: its state folder.
    """

    def __init__(self, state: Path) -> None:
        self._state, self._path = state, state / FILE
        self._looked: tuple[tuple[int, int], dict[str, Any]] = ((0, 0), {})

    def approved(self, study: str) -> bool:
        """Whether the operator approved the study with this hash, in hexadecimal, once."""
        return study in self._read().get("approved", {})

    def approve(self, study: str, name: str, typed: str) -> None:
        """Approve a study, for all its runs.

        Args:
            study: its hash, in hexadecimal.
            name: what it is called.
            typed: what the operator was told that the hash is; its first digits do.

        Raises:
            ConfigError: that is another study.
        """
        if len(typed) < LEAST_DIGITS or not study.startswith(typed.lower()):
            raise ConfigError(
                f"study '{name}' has the hash {study}, and {typed!r} is not how it begins (give at least "
                f"{LEAST_DIGITS} digits): compare the study file with the other parties'"
            )
        with self._changing() as decisions:
            when = datetime.now(UTC).isoformat(timespec="seconds")
            decisions.setdefault("approved", {})[study] = {"name": name, "at": when}

    def wish(self, run: str) -> Wish:
        """What the operator wants of a run by now."""
        decisions = self._read()
        if run in decisions.get("left", []):
            return Wish.LEAVE
        return Wish.PAUSE if decisions.get("paused") else Wish.GO_ON

    def want(self, wish: Wish, run: str) -> None:
        """Pause this data set in every run, go on in this one, or leave this one."""
        with self._changing() as decisions:
            left = [other for other in decisions.get("left", []) if other != run]
            decisions["paused"] = wish is Wish.PAUSE
            decisions["left"] = [*left, run] if wish is Wish.LEAVE else left

    def cap(self, epsilon: float, delta: float) -> str:
        """Give the data set a budget for life, or another one; returns a sentence on what held before.

        Raises:
            ConfigError: no such budget.
        """
        if not (0 < epsilon < math.inf and 0 < delta < 1):
            raise ConfigError("a budget for life is an epsilon above 0 at a delta between 0 and 1")
        before = lifetime(self._state)
        self._state.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        write_whole(self._state / BUDGET, f"epsilon = {epsilon!r}\ndelta = {delta!r}\n", PRIVATE)
        told = "it had none" if before is None else f"it was {before.epsilon:g} at delta {before.delta:g}"
        return f"the lifetime budget of this data set is epsilon {epsilon:g} at delta {delta:g}; {told}"

    def _read(self) -> dict[str, Any]:
        try:
            found = self._path.stat()
            now = found.st_mtime_ns, found.st_ino
            if now != self._looked[0]:
                self._looked = now, dict(json.loads(self._path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, TypeError):
            raise ConfigError(f"{self._path}: is not what this site's operator decided; bring it back") from None
        return self._looked[1]

    @contextmanager
    def _changing(self) -> Iterator[dict[str, Any]]:
        """All decisions, to be changed by nobody else meanwhile."""
        try:
            self._state.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
            descriptor = os.open(self._state, os.O_RDONLY)
        except OSError as error:
            raise ConfigError(f"state folder {self._state}: {error.strerror}; give another folder") from error
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            decisions = json.loads(json.dumps(self._read()))
            yield decisions
            write_whole(self._path, json.dumps(decisions, indent=1) + "\n", PRIVATE)
        finally:
            os.close(descriptor)
