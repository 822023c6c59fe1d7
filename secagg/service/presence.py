"""Who is there: which sites can join the next round, which wait for something, which left or fell silent."""

import time
from collections import defaultdict, deque
from collections.abc import Collection, Sequence

from secagg.service.dialogue import WAITED_FOR

RETURN_SECONDS = 5.0
"""Within which a member tries again whose coordinator did not answer for long."""


class Presence:
    """What the coordinator knows of each site's process.

    Attributes:
        ready: in no round, and able to join the next one.
        waiting: by site, the rounds (identifiers in hexadecimal) that it has to replay or to have accepted first.
        shown: by site, the latest of those whose transcript this process of it was sent.
        left: for good, such as with a spent budget.
        refused: their present process takes no part, and why: another study, version or policy, or marks of yesterday.
        busy: they are there and not to be waited for, and why.
        missed: they were waited for in vain before a round, and are not waited for again until they are back.
        lost: by site, since when its connection is broken or it began anew, in monotonic seconds.
        dropped: sites that fell silent in an earlier round and have not joined one since.
    """

    def __init__(self, sites: Collection[str]) -> None:
        self.sites = frozenset(sites)
        self.met: set[str] = set()  # of whom some process was there
        self.known: set[str] = set()  # whose present process has introduced itself
        self.ready: set[str] = set()
        self.waiting: dict[str, tuple[str, ...]] = {}
        self.shown: dict[str, deque[str]] = defaultdict(lambda: deque(maxlen=WAITED_FOR))
        self.left: set[str] = set()
        self.refused: dict[str, str] = {}
        self.busy: dict[str, str] = {}
        self.missed: set[str] = set()
        self.lost: dict[str, float] = {}
        self.dropped: set[str] = set()

    def began(self, site: str) -> bool:
        """A process of this site begins: nothing that was known of one before holds; returns whether there was one."""
        again = site in self.met
        self.met.add(site)
        self.gone(site)
        self.known.discard(site)
        self.waiting.pop(site, None)
        self.shown.pop(site, None)
        self.refused.pop(site, None)
        self.busy.pop(site, None)
        return again

    def gone(self, site: str) -> None:
        """The connection broke, maybe for a moment."""
        self.ready.discard(site)
        self.lost[site] = time.monotonic()

    def back(self, site: str) -> set[str]:
        """The same process again.

        Returns:
            Who is waited for anew: after an outage of this coordinator's own network everybody is on the way back.
        """
        again = {site}
        if self._cut_off:
            again |= self.known
            self.lost |= dict.fromkeys(self.known, time.monotonic() + RETURN_SECONDS)
        self.lost.pop(site, None)
        if site in self.known and site not in self.waiting and site not in self.refused and site not in self.busy:
            self.ready.add(site)
            self.missed.discard(site)
        return again

    def refuse(self, site: str, why: str = "") -> bool:
        """This process takes no part; returns whether that is news."""
        news = site not in self.refused
        self.refused[site] = why
        self.ready.discard(site)
        return news

    def away_with(self, site: str, why: str) -> None:
        """It is busy: there, and not to be waited for."""
        self.lost.pop(site, None)
        self.ready.discard(site)
        self.busy[site] = why

    def free(self, site: str, unreplayed: Sequence[str]) -> bool:
        """It is in no round, and has to see these first; returns whether it is news that it waits."""
        self.lost.pop(site, None)
        self.busy.pop(site, None)
        self.known.add(site)
        if not unreplayed:
            self.missed.discard(site)
            self.waiting.pop(site, None)
            self.ready.add(site)
            return False
        news = site not in self.waiting
        self.ready.discard(site)
        self.waiting[site] = tuple(unreplayed)
        return news

    def failed(self, site: str) -> None:
        """Its process ended, and said so."""
        self.ready.discard(site)
        self.waiting.pop(site, None)
        self.busy.pop(site, None)
        self.known.discard(site)

    def away(self, grace: float) -> set[str]:
        """Who has been lost for longer than `grace` seconds, and others are there."""
        if self._cut_off:
            return set()
        now = time.monotonic()
        return {site for site, since in self.lost.items() if now - since > grace}

    @property
    def _cut_off(self) -> bool:
        """Whether nobody is there at once: most likely this coordinator's own network is away."""
        return len(self.known) > 1 and self.known <= self.lost.keys()

    def there(self) -> set[str]:
        """Who can join the next round, or could once it has what it waits for."""
        return self.ready | (self.waiting.keys() - self.lost.keys())

    def heard(self) -> set[str]:
        """Whose present process said anything of itself; what is sent to another one before that is lost."""
        return self.known | self.busy.keys() | self.refused.keys()

    def rejoining(self, sites: Collection[str]) -> list[str]:
        """Which of the sites that join a round had dropped, sorted; said once."""
        found = self.dropped & set(sites)
        self.dropped -= found
        return sorted(found)
