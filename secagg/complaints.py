"""Who must go so that no complaint is left: a smallest vertex cover of the complaints, in bounded work.

Each complaint has a corrupt end, so that c clients always suffice, and which end it is nobody can see. Among smallest
sets the operating system's randomness decides. More complaints against a client are no reason to prefer it: up to c
liars can accuse one honest client. Only more than c opponents are, and those prove that it is corrupt.

Pure: no keys, no messages. Specification: docs/spec.md, section "Steps of a round", ShareReport.
"""

import secrets
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field

from secagg.errors import ShareError

Choose = Callable[[int], int]
"""A number below the one given; `secrets.randbelow` outside tests."""

BUDGET = 1_000_000
"""Steps of one search; a step looks at one client, and a million of them take less than a second."""


@dataclass(frozen=True)
class LeaveOut:
    """Clients that together meet every complaint.

    Attributes:
        clients: who goes.
        proven: those of them who are corrupt if at most c clients are: they have more opponents than that.
        smallest: no smaller set would do. Otherwise the search was cut short, and up to twice as many go as must.
        steps: of the search.
    """

    clients: frozenset[str] = frozenset()
    proven: frozenset[str] = frozenset()
    smallest: bool = True
    steps: int = field(default=0, compare=False)


def leave_out(
    complaints: Iterable[tuple[str, str]],
    at_most: int,
    choose: Choose = secrets.randbelow,
    budget: int = BUDGET,
) -> LeaveOut:
    """A smallest set of clients that meets every complaint, drawn among the smallest; or, named as such, a larger one.

    Kernel (Buss and Goldsmith 1993), then branching on a client of most opponents within each connected part, cut off
    by two bounds: a matching of the double cover, and a partition into cliques.

    Args:
        complaints: (accuser, dealer) pairs of any number of rounds with one set of corrupt clients.
        at_most: c, less those who are known to be corrupt and are in no pair.
        choose: what draws.
        budget: steps after which what is found so far is completed without a search.

    Raises:
        ShareError: S-20, more than `at_most` clients would have to go, hence more are corrupt. Not raised where the
            budget ends before that is decided; `clients` may then be more than `at_most`.
    """
    pairs = {frozenset(pair) for pair in complaints}
    names = sorted(frozenset().union(*pairs))
    place = {name: i for i, name in enumerate(names)}
    opponents = [0] * len(names)
    for first, second in pairs:
        opponents[place[first]] |= 1 << place[second]
        opponents[place[second]] |= 1 << place[first]
    search = _Search(opponents, choose, budget)
    proven, rest, left = search.kernel((1 << len(names)) - 1, at_most)
    parts = sorted(search.parts(rest), key=int.bit_count)
    least = [search.bound(part) for part in parts]
    left -= sum(least)
    chosen, smallest = proven, True
    for part, low in zip(parts, least, strict=True):
        found = None
        try:
            for size in range(low, low + left + 1):
                found = search.within(part, size)
                if found is not None:
                    left -= size - low
                    break
        except _SpentError:
            found, smallest = search.larger(part), False
        if found is None:
            break
        chosen |= found
    else:
        if left >= 0:
            clients, corrupt = (frozenset(names[i] for i in _bits(who)) for who in (chosen, proven))
            return LeaveOut(clients, corrupt, smallest, search.steps)
    raise ShareError(
        "S-20", f"no {max(at_most, 0)} clients meet every complaint: more are corrupt than the policy's max_corrupt"
    )


class _SpentError(Exception):
    """The search took as many steps as it may; what was found until then stands."""


class _Search:
    """Vertex covers of a graph; a set of vertices is an integer with their bits."""

    def __init__(self, opponents: list[int], choose: Choose, budget: int) -> None:
        self._opponents, self._choose, self._budget, self.steps = opponents, choose, budget, 0

    def kernel(self, among: int, most: int) -> tuple[int, int, int]:
        """Who is in every cover of at most `most`, who is left with an opponent, and how many more may go."""
        forced = 0
        while True:
            degrees = self._degrees(among)
            over = next((vertex for vertex, degree in degrees.items() if degree > most), None)
            if over is None or most < 0:
                return forced, sum(1 << vertex for vertex in degrees), most
            forced, among, most = forced | 1 << over, among & ~(1 << over), most - 1

    def parts(self, among: int) -> Iterator[int]:
        """The connected parts of those with an opponent."""
        while among:
            part, new = 0, among & -among
            while new:
                part |= new
                reached = 0
                for vertex in self._walk(new):
                    reached |= self._opponents[vertex]
                new = reached & among & ~part
            among &= ~part
            if part & (part - 1):
                yield part

    def bound(self, part: int) -> int:
        """A size below which there is no cover of this part."""
        return max((self._double_matching(part) + 1) // 2, part.bit_count() - self._cliques(part))

    def within(self, among: int, most: int) -> int | None:
        """A cover of at most `most`, or None.

        Raises:
            _SpentError: the budget ended first.
        """
        if self.steps > self._budget:
            raise _SpentError
        forced, among, most = self.kernel(among, most)
        parts = list(self.parts(among))
        least = [self.bound(part) for part in parts]
        slack = most - sum(least)
        if slack < 0:
            return None
        cover = forced
        for part, low in zip(parts, least, strict=True):
            # Of one part any cover that fits will do; of several each must leave the others as much as it can.
            for size in range(low if len(parts) > 1 else low + slack, low + slack + 1):
                found = self._branch(part, size)
                if found is not None:
                    cover, slack = cover | found, slack - (size - low)
                    break
            else:
                return None
        return cover

    def _branch(self, part: int, most: int) -> int | None:
        degrees = self._degrees(part)
        largest = max(degrees.values())
        ties = [vertex for vertex, degree in degrees.items() if degree == largest]
        vertex = ties[self._choose(len(ties))]
        goes = 1 << vertex
        stays = self._opponents[vertex] & part  # where it stays, all of its opponents go
        ways = (goes, stays) if self._choose(2) == 0 else (stays, goes)
        for way in ways:
            rest = self.within(part & ~(goes | way), most - way.bit_count())
            if rest is not None:
                return rest | way
        return None

    def larger(self, part: int) -> int:
        """A cover without a needless member, at most twice the smallest: no search."""
        greedy, matched, left = 0, 0, part
        while degrees := self._degrees(left):
            largest = max(degrees.values())
            ties = [vertex for vertex, degree in degrees.items() if degree == largest]
            greedy |= 1 << ties[self._choose(len(ties))]
            left = part & ~greedy
        for vertex in self._walk(part):
            if not matched >> vertex & 1 and (free := self._opponents[vertex] & part & ~matched):
                matched |= 1 << vertex | free & -free
        return min(self._needed(greedy, part), self._needed(matched, part), key=int.bit_count)

    def _needed(self, cover: int, part: int) -> int:
        vertices = list(self._walk(cover))
        while vertices:
            vertex = vertices.pop(self._choose(len(vertices)))
            if not self._opponents[vertex] & part & ~cover:
                cover &= ~(1 << vertex)
        return cover

    def _degrees(self, among: int) -> dict[int, int]:
        """For each client that has a complaint, the set of those at the other end."""
        degrees = ((vertex, (self._opponents[vertex] & among).bit_count()) for vertex in self._walk(among))
        return {vertex: degree for vertex, degree in degrees if degree}

    def _double_matching(self, part: int) -> int:
        """Largest matching of the double cover of this part: twice the least of the linear relaxation (Nemhauser)."""
        left_of: dict[int, int] = {}
        right_of: dict[int, int] = {}
        taken = 0
        for start in self._walk(part):
            seen, queue, came = 0, [start], dict[int, int]()
            for left in queue:
                self.steps += 1
                new = self._opponents[left] & part & ~seen
                if free := new & ~taken:
                    right = (free & -free).bit_length() - 1
                    taken |= 1 << right
                    while True:  # turn the path around
                        right_before = right_of.get(left)
                        left_of[right], right_of[left] = left, right
                        if left == start or right_before is None:
                            break
                        right, left = right_before, came[right_before]
                    break
                seen |= new
                for right in _bits(new):
                    came[right] = left
                    queue.append(left_of[right])
        return len(left_of)

    def _cliques(self, part: int) -> int:
        """Into how many cliques this part falls, greedily; all but one of each must go."""
        cliques: list[int] = []  # who could still join each
        for vertex in self._walk(part):
            for i, common in enumerate(cliques):
                self.steps += 1
                if common >> vertex & 1:
                    cliques[i] &= self._opponents[vertex]
                    break
            else:
                cliques.append(self._opponents[vertex])
        return len(cliques)

    def _walk(self, vertices: int) -> Iterator[int]:
        for vertex in _bits(vertices):
            self.steps += 1
            yield vertex


def _bits(vertices: int) -> Iterator[int]:
    while vertices:
        lowest = vertices & -vertices
        yield lowest.bit_length() - 1
        vertices ^= lowest
