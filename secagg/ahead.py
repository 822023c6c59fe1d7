"""The keys of the next attempt, drawn while nothing is asked of a client.

A slot names the model, so nothing of the next step can be said before this step's sum. Its two key pairs name nothing:
they can be there. They are used once or never. A store counts its joins, durably and before keys are used; keys are for
the one join that follows the count at which they were drawn. So neither a fork nor a machine that was restored with its
memory, and not with its store, uses keys a second time (C-03). They are never written down and never copied.
"""

from secagg.keys import ChannelKey, MaskKey, Secret
from secagg.policy import Suite
from secagg.store import Marks, Store

Keys = tuple[ChannelKey, MaskKey]


class KeysAhead(Secret):
    """What one client holds between two attempts.

    Args:
        suite: of the policy.
        store: durable marks of the data set.
    """

    def __init__(self, suite: Suite, store: Store) -> None:
        self._suite, self._store = suite, store
        self._drawn: tuple[int, Keys] | None = None

    def draw(self) -> None:
        """Draw the keys of the next attempt, unless some are there."""
        if self._drawn is None:
            with self._store.transaction() as marks:
                joins = marks.joins
            self._drawn = joins, fresh(self._suite)

    def take(self, marks: Marks) -> Keys | None:
        """The keys, for the join that is marked next in this transaction; None where there are none for it."""
        drawn = self._drawn
        if drawn is None or drawn[0] != marks.joins:
            self.wipe()
            return None
        self._drawn = None
        return drawn[1]

    def wipe(self) -> None:
        """Forget them; see `Secret.wipe`."""
        drawn, self._drawn = self._drawn, None
        for key in () if drawn is None else drawn[1]:
            key.wipe()


def fresh(suite: Suite) -> Keys:
    """New keys from the operating system."""
    return ChannelKey(suite), MaskKey(suite)
