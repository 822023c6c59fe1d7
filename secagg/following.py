"""The model after a sum: each site computes it from the one before and the mean, and takes no other one.

Where updates are not private on their own, a server could send nearly the same model twice, the second time without one
site: the two sums would differ by nearly that site's update. Whoever is in a sum computes the next model, so at least
min_survivors - c honest sites do, and all others are too few for another sum, because 2 min_survivors > n + c. A site
that was not in the last sum takes what comes: it cannot know better, and the others look. Must never: hold anything
secret; the server knows these models.
"""

import io
import json
from contextlib import suppress
from pathlib import Path

import numpy as np

from secagg.driver import Completed
from secagg.errors import ConfigError, InconsistentViewError
from secagg.federated import Arrays, mean_of, values_hash
from secagg.policy import Policy
from secagg.text import read_text
from secagg.writing import PRIVATE, write_whole

MODEL, NEXT = "model.npz", "next.json"
_PREFIX = "arrays/"
_NOT_NEXT = (
    "the server sent a model that is not the last one and the mean of the last sum, as this site computed it; a server "
    'with a step of its own (FedAdam, FedAvgM, ...) needs [task] next = "server", agreed on by all; one that begins '
    "again needs a new training_run"
)


class Following:
    """What a site knows of the model to come; it outlives processes.

    Args:
        folder: of the site, for `model.npz`, which it trained last, and `next.json`.
        policy: of the sums.
        changes: whether sites send changes.
    """

    def __init__(self, folder: Path, policy: Policy, changes: bool) -> None:
        self._folder, self._policy, self._changes = folder, policy, changes

    def demand(self, model: Arrays, head: bytes | None = None) -> None:
        """Hold a model against what this site computed.

        Args:
            model: that came.
            head: 32 bytes, after the last sum: a site that was not in that one takes what comes. None to take nothing
                that it did not compute.

        Raises:
            InconsistentViewError: C-23, it is another one.
            ConfigError: `next.json` is damaged.
        """
        known = self._known()
        if (head is None or known.get("head") == head.hex()) and known.get("model") != values_hash(model).hex():
            raise InconsistentViewError("C-23", _NOT_NEXT)

    def trains(self, model: Arrays, told: bytes) -> None:
        """Keep the model that an update belongs to; `told` is the model hash of the attempt, 32 bytes."""
        kept = io.BytesIO()
        arrays = {_PREFIX + name: array for name, array in model.items()}
        np.savez(kept, allow_pickle=False, told=np.frombuffer(told, np.uint8), **arrays)
        write_whole(self._folder / MODEL, kept.getvalue(), PRIVATE)

    def concluded(self, done: Completed, told: bytes) -> None:
        """Compute the model after a sum, where this site trained the one before; `told` as for `trains`."""
        if not (self._folder / MODEL).is_file():
            return
        with np.load(self._folder / MODEL, allow_pickle=False) as kept:
            if kept["told"].tobytes() != told:
                return
            model = {name.removeprefix(_PREFIX): kept[name] for name in kept.files if name != "told"}
        with suppress(ConfigError):  # all sites together have no example: the model stays
            model = mean_of(done.result, self._policy, done.included, model, changes=self._changes).arrays
        known = {"head": done.receipt.head.hex(), "model": values_hash(model).hex()}
        write_whole(self._folder / NEXT, json.dumps(known), PRIVATE)

    def _known(self) -> dict[str, str]:
        path = self._folder / NEXT
        if not path.is_file():
            return {}
        try:
            known = json.loads(read_text(path))
        except ValueError:
            known = None
        if not isinstance(known, dict):
            raise ConfigError(f"{path} is damaged: put back what was there, or agree on a new run")
        return known
