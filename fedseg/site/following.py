"""Which model may come next: the last one plus the last sum, whatever the coordinator sends and over restarts.

On any other model the last round's updates could be summed again, without one site.
"""

import json
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fedseg.course import Course
from fedseg.dialogue import content_of, state_in
from fedseg.errors import RoundFailedError
from fedseg.update import model_hash
from secagg.encoding import digest
from secagg.messages import RoundStart
from secagg.policy import Policy
from secagg.quantize import dequantize
from secagg.transcript_files import published
from secagg.writing import PRIVATE, write_whole

NEXT_MODELS = "next-models.json"
"""In the state folder."""

OPENED = ".opened"
"""How the file in it ends with the model that the last round was opened on: a run each."""


class Expected(NamedTuple):
    """If the next round builds on `head`, its model must have this hash; both in hexadecimal."""

    head: str = ""
    model_hash: str = ""


class Following:
    """What one run of one federation goes on with.

    Args:
        state: the site's state folder.
        run: identifies the federation and the training run.
    """

    def __init__(self, state: Path, run: str) -> None:
        self._path, self._run = state / NEXT_MODELS, run
        self._opened = state / f"{digest('opened', run).hex()[:16]}{OPENED}"

    def check(self, start: RoundStart) -> None:
        """Hold a round start against what follows from the last round that this site saw to its end.

        Raises:
            RoundFailedError: it is about another model.
        """
        head, expected = Expected(*self._kept().get(self._run, []))
        if start.previous_head.hex() == head and start.model_hash.hex() != expected:
            raise RoundFailedError("the coordinator's model is not the last one plus the last sum; compare with others")

    def expect(self, head: bytes, following: bytes) -> None:
        """After the round with this head only the model with this hash follows."""
        write_whole(self._path, json.dumps({**self._kept(), self._run: Expected(head.hex(), following.hex())}))

    def opened(self, state: NDArray[np.float32]) -> None:
        """An attempt is joined on this model: kept until the next one, also by another process."""
        write_whole(self._opened, content_of(state), PRIVATE)

    def replayed(self, transcript: Path, course: Course, policy: Policy) -> None:
        """Expect what follows from a round that was confirmed late, or never: its session was gone before the result.

        Args:
            transcript: of a round of this federation, just replayed.
            course: of the own study.
            policy: own.
        """
        found = published(transcript, policy)
        if found is None or not self._run.endswith(f"/{found.context.training_run}") or not self._opened.is_file():
            return
        state = state_in(self._opened.read_bytes())
        if model_hash(state) == found.context.model_hash:
            total = dequantize(found.total, policy)
            following = course.following(state, total, found.included, policy, found.excess_seeds)
            self.expect(found.receipt.head, model_hash(following))

    def _kept(self) -> dict[str, list[str]]:
        return dict(json.loads(self._path.read_text(encoding="utf-8"))) if self._path.is_file() else {}
