"""From a site's whole update to the numbers that it masks, and what it owes afterwards."""

from typing import Any, NoReturn, final

import numpy as np
from numpy.typing import NDArray

from fedseg.sharing.levels import Levels
from fedseg.sharing.space import Space
from secagg.prg import Stream

LOST = "error feedback begins anew: what was owed of earlier updates lay in the memory of a process that ended"
"""Said where a process goes on with a run."""


@final
class Owed:
    """Error feedback: what a site's updates held and a sum did not get yet. It is added to the site's next update.

    It lies in the memory of one process: a site that begins anew owes nothing, and what it owed is lost like an update
    that was not sent. Source: Seide et al. 2014, Karimireddy et al. 2019.
    """

    def __init__(self) -> None:
        self._owed: NDArray[np.float32] | None = None
        self._then: NDArray[np.float32] | None = None

    def __reduce__(self) -> NoReturn:
        raise TypeError("what a site owes is a part of its updates: never copied or pickled")

    def added_to(self, update: NDArray[np.float32]) -> NDArray[np.float32]:
        """A (d,) update, and what is owed."""
        return update if self._owed is None else update + self._owed

    def then(self, left: NDArray[np.float32]) -> None:
        """What will be owed once the sum has what was sent."""
        self._then = left

    def settle(self, *, included: bool) -> None:
        """The round is over. Where its sum is without this site, what was owed before is owed still."""
        if included and self._then is not None:
            self._owed = self._then
        self._then = None


@final
class Sending:
    """What a site sends of an update: reduced, and as whole numbers where the study says in how many bits.

    It looks at nothing but the update it is given, public numbers, fresh randomness, and what earlier updates owe.

    Args:
        space: of the round.
        levels: how values become words; None sends floats.
        stream: fresh randomness for rounding.
        owed: of this site; None without error feedback.
    """

    def __init__(self, space: Space, levels: Levels | None, stream: Stream, owed: Owed | None) -> None:
        self._space, self._levels, self._stream, self._owed = space, levels, stream, owed

    def __call__(self, update: NDArray[np.float32]) -> NDArray[Any]:
        """(d,) to what is sent: (length,) float32, or (words,) int64."""
        whole = update if self._owed is None else self._owed.added_to(update)
        sent = self._space.reduced(whole)
        heard = np.asarray(sent, dtype=np.float64)
        packed: NDArray[Any] = sent.astype(np.float32)
        if self._levels is not None:
            levels = self._levels.levels(heard, self._stream)
            heard, packed = self._levels.values(levels, 1), self._levels.packed(levels)
        if self._owed is not None:
            self._owed.then((whole - self._space.restored(heard)).astype(np.float32))
        return packed
