"""Which runs a member saw to their end, in its state folder: the same command says so again, without a coordinator."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from secagg.encoding import digest
from secagg.errors import ConfigError
from secagg.writing import PRIVATE, PRIVATE_FOLDER, write_whole

ENDING = ".ended"
"""Of the file in the state folder: one a run."""


@dataclass(frozen=True)
class Ended:
    """How a run ended.

    Attributes:
        reason: the coordinator's last word.
        complete: whether everything that was agreed was done.
        folder: where the member's own figures are, or were written when its process ended; "" for nowhere.
    """

    reason: str
    complete: bool
    folder: str = ""

    def keep(self, state: Path, run: str) -> None:
        """Write it down; `run` identifies federation and training run."""
        state.mkdir(PRIVATE_FOLDER, parents=True, exist_ok=True)
        write_whole(_path(state, run), json.dumps(asdict(self)) + "\n", PRIVATE)

    @classmethod
    def of(cls, state: Path, run: str) -> "Ended | None":
        """What was kept; None for a run whose end this member did not see.

        Raises:
            ConfigError: it cannot be read.
        """
        path = _path(state, run)
        try:
            return cls(**json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            return None
        except (OSError, ValueError, TypeError) as error:
            raise ConfigError(f"{path}: says how a run ended and cannot be read ({error}); remove it") from None


def _path(state: Path, run: str) -> Path:
    return state / f"{digest('ended', run).hex()[:16]}{ENDING}"
