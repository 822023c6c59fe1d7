"""The keys of the next attempt, drawn while nothing is asked of a client.

A slot names the model, so nothing of the next step can be said before this step's sum. Its two key pairs name nothing:
they can be there. They are used once or never. A store counts its joins, durably and before keys are used; keys are for
the one join that follows the count that was known as they were drawn. So neither a fork nor a machine that was restored
with its memory, and not with its store, uses keys a second time (C-03). They are never written down and never copied.
"""

from secagg.keys import ChannelKey, MaskKey, Secret
from secagg.policy import Suite
from secagg.store import Store

Keys = tuple[ChannelKey, MaskKey]


class KeysAhead(Secret):
    """What one client holds between two attempts.

    Args:
        suite: of the policy.
        store: durable marks of the data set.

    Raises:
        ConfigError: the store cannot be used.
    """

    def __init__(self, suite: Suite, store: Store) -> None:
        self._suite = suite
        with store.transaction() as marks:
            self._joins = marks.joins
        self._drawn: Keys | None = None

    def draw(self) -> None:
        """Draw the keys of the next attempt, unless some are there; asks no store, so it neither waits nor fails."""
        if self._drawn is None:
            self._drawn = fresh(self._suite)

    def take(self, joins: int) -> Keys:
        """The keys of an attempt that was joined just now; fresh ones where none were drawn for it.

        Args:
            joins: the store's count before it was joined, from the transaction that marked it.
        """
        if joins != self._joins:
            self.wipe()
        drawn, self._drawn, self._joins = self._drawn, None, joins + 1
        return drawn or fresh(self._suite)

    def wipe(self) -> None:
        """Forget them; see `Secret.wipe`."""
        drawn, self._drawn = self._drawn, None
        for key in drawn or ():
            key.wipe()


def fresh(suite: Suite) -> Keys:
    """New keys from the operating system."""
    return ChannelKey(suite), MaskKey(suite)
