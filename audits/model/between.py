"""`cross_round.pml` in Python: every state of two round starts between three honest sites and a server that lies.

The same events, checks and statement, so that who has no spin can look all the same, and who has it has two programs.
Masks have one bit per round start. Sites are alike, so they are kept sorted. README.md says what is abstracted.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import NamedTuple

from audits.model.exploring import Explored, explore

HONEST, CORRUPT, STARTS = 3, 1, 2
QUORUM = (HONEST + 2 * CORRUPT) // 2 + 1 - CORRUPT  # t - c


@dataclass(frozen=True)
class Rules:
    """Which defences are there, and what the server may use.

    Attributes:
        operators: that accept one and the same round by name, at most.
        restarts: of all sites together.
        private: updates are private, and the statement is one contribution per run and number.
        without: defences that are taken out.
        least: honest updates that stay added up.
    """

    operators: int = 1
    restarts: int = 1
    private: bool = False
    without: frozenset[str] = frozenset()
    least: int = 0

    @property
    def keeps(self) -> int:
        """How many honest updates stay added up."""
        return self.least or min(QUORUM, 2 * (QUORUM - self.operators))


class Start(NamedTuple):
    """A round start.

    Attributes:
        run: 0 is run-1 of a project, 1 another run of it, 2 a run of another project.
        number, attempt: of the round.
        anew: the run has a first model of its own.
    """

    run: int
    number: int
    attempt: int
    anew: bool


FIRST = Start(0, 1, 0, False)
SECOND = {
    "next attempt": Start(0, 1, 1, False),
    "next round": Start(0, 2, 0, False),
    "new run on the same model": Start(1, 1, 0, False),
    "new run on another model": Start(1, 1, 0, True),
    "other project on the same model": Start(2, 1, 0, False),
    "other project on another model": Start(2, 1, 0, True),
}


class Site(NamedTuple):
    """A site's store and memory; the last three are per start."""

    live: int = 0
    open: int = 0
    joined: int = 0
    contributed: int = 0
    released: int = 0
    replayed: int = 0
    exposing: int = 0
    accepted: int = 0
    settled: int = 0
    alive: int = 0
    named: int = 0
    used: tuple[int, ...] = (0,) * STARTS
    before: tuple[int, ...] = (0,) * STARTS
    update: tuple[int, ...] = (0,) * STARTS


class World(NamedTuple):
    """Everything: the sites sorted, what each attempt is about, what was told and attested, and what went wrong."""

    sites: tuple[Site, ...] = (Site(),) * HONEST
    model: tuple[int, ...] = (0,) * STARTS
    claims: tuple[int, ...] = (0,) * STARTS
    told: int = 0
    attested: int = 0
    restarts: int = 0
    wrong: str = ""


def _with(values: tuple[int, ...], k: int, value: int) -> tuple[int, ...]:
    return (*values[:k], value, *values[k + 1 :])


class Model:
    """The events of one pair of starts under some rules."""

    def __init__(self, starts: tuple[Start, ...], rules: Rules) -> None:
        self.starts, self.rules, self.out = starts, rules, rules.without
        places = range(len(starts))
        self.of_run = [sum(1 << j for j in places if starts[j].run == start.run) for start in starts]
        self.not_later = [self._mask(k, lambda a, b: b[1:3] >= a[1:3]) for k in places]
        self.later = [self._mask(k, lambda a, b: b[1:3] > a[1:3]) for k in places]
        self.number_or_later = [self._mask(k, lambda a, b: b.number >= a.number) for k in places]

    def _mask(self, k: int, relation: Callable[[Start, Start], bool]) -> int:
        """Starts of the same run that stand in a relation to start k."""
        own = self.starts[k]
        return sum(1 << j for j, other in enumerate(self.starts) if other.run == own.run and relation(own, other))

    # --- checks, by their ids ---

    def lives(self, site: Site, k: int) -> bool:
        """C-24: the attempt joined last."""
        return not site.joined & self.later[k] if "marks for all runs" in self.out else site.live == k + 1

    def opened(self, site: Site, k: int) -> int:
        """Own releases that are neither replayed nor superseded."""
        if "marks for all runs" in self.out:
            return site.released & self.of_run[k] & ~site.replayed
        return 1 << (site.open - 1) if site.open else 0

    def trains(self, site: Site, k: int) -> int:
        """The model that follows from what the site replayed of the run."""
        seen = site.replayed & self.of_run[k]
        return seen or (16 + self.starts[k].run if self.starts[k].anew else 16)

    def on_model(self, world: World, model: int, k: int, *, same: bool) -> int:
        """Rounds on a model, of the run of start k or of others."""
        return sum(
            1 << j
            for j, start in enumerate(self.starts)
            if world.model[j] == model and (start.run == self.starts[k].run) == same
        )

    def elsewhere(self, world: World, model: int, k: int) -> int:
        """Rounds of other runs on a model: one that starts over."""
        return 0 if "rounds of other runs on the model" in self.out else self.on_model(world, model, k, same=False)

    def exposing(self, world: World, site: Site, k: int) -> int:
        """Own releases that expose an attempt (C-05)."""
        if "marks for all runs" in self.out:
            return self.opened(site, k)
        model = self.trains(site, k)
        superseded = self.on_model(world, model, k, same=True) & ~(site.replayed | site.settled)
        return self.opened(site, k) | site.released & (self.elsewhere(world, model, k) | superseded)

    def needed(self, world: World, site: Site, k: int) -> int:
        """What a contribution needs acceptances of (C-05, C-26)."""
        own, cleared = site.exposing, site.before[k]
        if "replay before the join" in self.out:
            own, cleared = own & ~site.replayed, site.replayed | site.settled
        if "claims in U1 (C-26)" in self.out:
            return own
        return own | world.claims[k] & (~cleared | self.elsewhere(world, site.update[k], k))

    # --- events ---

    def events(self, world: World) -> Iterator[tuple[str, World]]:
        """What can happen next."""
        for place, site in enumerate(world.sites):
            if place and site == world.sites[place - 1]:
                continue  # alike
            for k in range(len(self.starts)):
                yield from self._joins(world, place, site, k)
                yield from self._sends(world, place, site, k)
                yield from self._settles(world, place, site, k)
            if site.alive and world.restarts < self.rules.restarts:
                changed = world._replace(restarts=world.restarts + 1)
                yield f"{place} restarts", self._put(changed, place, site._replace(alive=0))
        for k in range(len(self.starts)):
            bit = 1 << k
            if not world.attested & bit and sum(bool(s.contributed & s.alive & bit) for s in world.sites) >= QUORUM:
                yield f"clients attest {k + 1}", world._replace(attested=world.attested | bit)

    def _put(self, world: World, place: int, site: Site) -> World:
        sites = list(world.sites)
        sites[place] = site
        return world._replace(sites=tuple(sorted(sites)))

    def _joins(self, world: World, place: int, site: Site, k: int) -> Iterator[tuple[str, World]]:
        bit = 1 << k
        taken = any(s.joined & bit for s in world.sites)
        if (
            not world.told & bit
            and not site.joined & self.not_later[k]  # C-03
            and not site.replayed & self.number_or_later[k]  # C-04
            and (not taken or world.model[k] == self.trains(site, k))  # C-23
        ):
            exposing = self.exposing(world, site, k)
            if self.rules.private or not exposing & ~site.accepted:  # C-05
                model = self.trains(site, k)
                joined = site._replace(
                    live=k + 1,
                    joined=site.joined | bit,
                    alive=site.alive | bit,
                    exposing=exposing,
                    before=_with(site.before, k, site.replayed | site.settled),
                    update=_with(site.update, k, model),
                )
                claims = _with(world.claims, k, world.claims[k] | exposing)
                changed = world._replace(model=_with(world.model, k, model), claims=claims)
                yield f"{place} joins {k + 1}", self._put(changed, place, joined)

    def _sends(self, world: World, place: int, site: Site, k: int) -> Iterator[tuple[str, World]]:
        bit, private, out = 1 << k, self.rules.private, self.out
        quorum_joined = sum(bool(s.joined & bit) for s in world.sites) >= QUORUM
        if (
            site.alive & bit
            and not site.contributed & bit
            and not world.attested & bit
            and quorum_joined
            and self.lives(site, k)  # C-24
            and ("one contribution per number (C-14)" in out or not site.contributed & self.number_or_later[k])
        ):
            needed = self.needed(world, site, k)
            if private or not needed & ~site.accepted:  # C-05, C-26
                given = site._replace(
                    used=_with(site.used, k, needed),
                    accepted=site.accepted & ~needed,
                    contributed=site.contributed | bit,
                )
                yield f"{place} contributes {k + 1}", self._put(world._replace(told=world.told | bit), place, given)
        if (
            world.attested & bit
            and site.alive & bit
            and site.contributed & bit
            and ("live at the release (C-24)" in out or self.lives(site, k))
            and (private or not self.opened(site, k) & ~site.used[k])  # C-05
        ):
            opened = site.open if site.replayed & bit else k + 1
            released = site._replace(released=site.released | bit, alive=site.alive & ~bit, open=opened)
            after = self._put(world, place, released)
            if sum(bool(s.released & bit) for s in after.sites) == QUORUM:
                after = after._replace(wrong=self._said(after))
            yield f"{place} releases {k + 1}", after

    def _settles(self, world: World, place: int, site: Site, k: int) -> Iterator[tuple[str, World]]:
        bit = 1 << k
        if self._open(world, k) and not site.replayed & bit:
            settled = site.settled | site.used[k] & self.of_run[k]
            shut = 0 if site.open == k + 1 else site.open
            replayed = site._replace(replayed=site.replayed | bit, settled=settled, open=shut)
            yield f"{place} replays {k + 1}", self._put(world, place, replayed)
        claimed = site.live and world.claims[site.live - 1] & bit
        may = site.named & bit or sum(bool(s.named & bit) for s in world.sites) < self.rules.operators
        if not site.accepted & bit and (site.released & bit or claimed) and may:
            accepted = site._replace(accepted=site.accepted | bit, named=site.named | bit)
            yield f"the operator of {place} accepts {k + 1}", self._put(world, place, accepted)

    # --- the statement ---

    def _open(self, world: World, k: int) -> bool:
        return sum(bool(s.released >> k & 1) for s in world.sites) >= QUORUM

    def _said(self, world: World) -> str:
        places = range(len(self.starts))
        opened = [k for k in places if self._open(world, k)]
        if self.rules.private:
            for j, k in product(opened, opened):
                same = j < k and self.starts[j][:2] == self.starts[k][:2]
                if same and any(s.contributed >> j & s.contributed >> k & 1 for s in world.sites):
                    return f"one site gave to {j + 1} and {k + 1} of one number"
            return ""
        for weights in product((-1, 0, 1), repeat=len(opened)):
            total = 0
            for site in world.sites:
                sums: dict[int, int] = {}
                for k, weight in zip(opened, weights, strict=True):
                    if weight and site.contributed >> k & 1:
                        sums[site.update[k]] = sums.get(site.update[k], 0) + weight
                total += sum(value != 0 for value in sums.values())
            if 0 < total < self.rules.keeps:
                return f"{total} honest update stays alone in a combination of the sums {[k + 1 for k in opened]}"
        return ""


def explored(rules: Rules, kinds: tuple[str, ...] = tuple(SECOND)) -> Explored[World]:
    """Every state of two starts, the second of each of these kinds; stops at an attack."""
    states = 0
    for kind in kinds:
        model = Model((FIRST, SECOND[kind]), rules)
        found = explore([(f"the second start is: {kind}", World())], model.events, lambda world: world.wrong)
        states += found.states
        if found.attack:
            return Explored(states, found.attack)
    return Explored(states, None)


class Case(NamedTuple):
    """A variant, the kinds of its second start, and whether it has to be attacked."""

    rules: Rules
    kinds: tuple[str, ...]
    attack: bool


def _without(defence: str, operators: int = 0, *, private: bool = False) -> Rules:
    return Rules(operators=operators, restarts=0, private=private, without=frozenset([defence]))


CASES: dict[str, Case] = {
    "protocol, n=4, no restart": Case(Rules(operators=1, restarts=0), tuple(SECOND), False),
    "claims in U1 not looked at (C-26)": Case(
        _without("claims in U1 (C-26)", 1), ("next round", "new run on the same model"), True
    ),
    "marks per run": Case(_without("marks for all runs"), ("new run on the same model",), True),
    "live slot not looked at before the release (C-24)": Case(
        _without("live at the release (C-24)"), ("next attempt", "next round", "new run on the same model"), True
    ),
    "replay after the join counts": Case(_without("replay before the join", 1), ("next round",), True),
    "a run starts over on the same model": Case(
        _without("rounds of other runs on the model"), ("new run on the same model",), True
    ),
    "t - c operators accept": Case(Rules(operators=2, restarts=0, least=2), ("next round",), True),
    "private, contribution not marked (C-14)": Case(
        _without("one contribution per number (C-14)", private=True), ("next attempt",), True
    ),
}
LONG: dict[str, Case] = {
    "protocol, n=4": Case(Rules(operators=1, restarts=1), tuple(SECOND), False),
    "private, n=4": Case(Rules(operators=0, restarts=1, private=True), tuple(SECOND), False),
}
