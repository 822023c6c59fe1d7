"""Which model may come next: the last one plus the last sum, whatever the coordinator sends and over restarts.

On any other model the last round's updates could be summed again, without one site.
"""

import json
from pathlib import Path
from typing import NamedTuple

from fedseg.errors import RoundFailedError
from secagg.messages import RoundStart
from secagg.writing import write_whole

NEXT_MODELS = "next-models.json"
"""In the state folder."""


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
        self._expected = Expected(*self._kept().get(run, []))

    def check(self, start: RoundStart) -> None:
        """Hold a round start against what follows from the last round that this site saw to its end.

        Raises:
            RoundFailedError: it is about another model.
        """
        head, expected = self._expected
        if start.previous_head.hex() == head and start.model_hash.hex() != expected:
            raise RoundFailedError("the coordinator's model is not the last one plus the last sum; compare with others")

    def expect(self, head: bytes, following: bytes) -> None:
        """After the round with this head only the model with this hash follows."""
        self._expected = Expected(head.hex(), following.hex())
        write_whole(self._path, json.dumps({**self._kept(), self._run: self._expected}))

    def _kept(self) -> dict[str, list[str]]:
        return dict(json.loads(self._path.read_text(encoding="utf-8"))) if self._path.is_file() else {}
