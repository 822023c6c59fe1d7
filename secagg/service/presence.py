"""Who is there: which sites can join the next round, which wait for something, which left or fell silent."""

import time
from collections.abc import Collection, Sequence


class Presence:
    """What the coordinator knows of each site's process.

    Attributes:
        ready: in no round, and able to join the next one.
        waiting: by site, the rounds (identifiers in hexadecimal) that it has to replay or to have accepted first.
        shown: by site, those whose transcript this process of it was sent.
        left: for good, such as with a spent budget.
        refused: their present process has another study.
        lost: by site, since when its connection is broken or it began anew, in monotonic seconds.
        dropped: sites that fell silent in an earlier round and have not joined one since.
    """

    def __init__(self, sites: Collection[str]) -> None:
        self.sites = frozenset(sites)
        self.ready: set[str] = set()
        self.waiting: dict[str, tuple[str, ...]] = {}
        self.shown: dict[str, set[str]] = {}
        self.left: set[str] = set()
        self.refused: set[str] = set()
        self.lost: dict[str, float] = {}
        self.dropped: set[str] = set()

    def began(self, site: str) -> None:
        """A new process of this site: nothing that was known of the one before holds."""
        self.gone(site)
        self.waiting.pop(site, None)
        self.shown.pop(site, None)
        self.refused.discard(site)

    def gone(self, site: str) -> None:
        """The connection broke, maybe for a moment."""
        self.ready.discard(site)
        self.lost[site] = time.monotonic()

    def back(self, site: str) -> None:
        """The same process again."""
        self.lost.pop(site, None)
        if site not in self.waiting and site not in self.refused:
            self.ready.add(site)

    def refuse(self, site: str) -> bool:
        """This process takes no part; returns whether that is news."""
        news = site not in self.refused
        self.refused.add(site)
        self.ready.discard(site)
        return news

    def free(self, site: str, unreplayed: Sequence[str]) -> bool:
        """It is in no round, and has to see these first; returns whether it is news that it waits."""
        self.lost.pop(site, None)
        if not unreplayed:
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

    def away(self, grace: float) -> set[str]:
        """Who has been lost for longer than `grace` seconds."""
        now = time.monotonic()
        return {site for site, since in self.lost.items() if now - since > grace}

    def there(self) -> set[str]:
        """Who can join the next round, or could once it has what it waits for."""
        return self.ready | (self.waiting.keys() - self.lost.keys())

    def rejoining(self, sites: Collection[str]) -> list[str]:
        """Which of the sites that join a round had dropped, sorted; said once."""
        found = self.dropped & set(sites)
        self.dropped -= found
        return sorted(found)
