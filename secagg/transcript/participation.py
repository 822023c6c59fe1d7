"""Who took part over several rounds, and whom combinations of rounds single out for a server with up to c clients.

After So et al., "Securing secure aggregation: mitigating multi-round privacy leakage in federated learning" (2021):
where updates change slowly, a combination of sums that leaves one client beside those who tell their own updates is
close to that client's update. A note for the operator, not a fault of anybody. Specification: docs/spec.md, section
"Transcripts".
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import combinations

BUDGET = 3_000_000
"""Steps in all; a step looks at one coefficient, and a million of them take about a second, or some where they grow."""

_Vector = dict[int, Fraction]
"""A combination of sums: coefficients by column, and by ~i that of round i. Zeros are absent."""


@dataclass(frozen=True)
class Singled:
    """A combination of rounds in which one client's update stands alone, but for helpers who know their own.

    Attributes:
        rounds: index of a round to its coefficient; in their combination the client's own update has coefficient 1.
        coalition: who else is left in it, sorted: at most c clients, who would have to tell their updates.
    """

    rounds: Mapping[int, Fraction]
    coalition: tuple[str, ...]


@dataclass(frozen=True)
class Isolation:
    """The clients that a server and up to c corrupt clients can single out, as far as the search went.

    Attributes:
        found: client id to a way with the fewest helpers; of a client that is also undecided, perhaps not the fewest.
        undecided: clients for whom the search was cut short; of these, differences of two rounds were looked at.
    """

    found: Mapping[str, Singled]
    undecided: tuple[str, ...]

    @property
    def decided(self) -> bool:
        """Whether the search was finished: then no client outside `found` can be singled out."""
        return not set(self.undecided) - self.found.keys()


def isolated(rounds: Sequence[Collection[str]], max_corrupt: int, budget: int = BUDGET) -> Isolation:
    """Which clients a rational combination of the rounds' sums leaves alone but for at most `max_corrupt` others.

    Such a combination is a vector of the row space of the 0/1 matrix of participation with few entries that are not
    zero: per client, elimination and branching on which others may stay. Without helpers that is elimination only.

    Args:
        rounds: the included set of each round.
        max_corrupt: c.
        budget: steps after which the rest is left undecided.

    Returns:
        Rounds with the same included set count once, under the index of the earliest.
    """
    distinct = {frozenset(included): i for i, included in reversed(list(enumerate(rounds)))}
    columns: dict[frozenset[int], list[str]] = {}  # clients that were always there together are one column
    for client_id in sorted(frozenset().union(*distinct)):
        present = frozenset(i for included, i in distinct.items() if client_id in included)
        columns.setdefault(present, []).append(client_id)
    members = list(columns.values())
    rows = [
        {j: Fraction(1) for j, there in enumerate(columns) if i in there} | {~i: Fraction(1)}
        for i in sorted(distinct.values())
    ]
    basis, steps = _reduced(rows, budget)
    budget -= steps
    targets = [j for j, same in enumerate(members) if len(same) <= max_corrupt + 1]
    found: dict[str, Singled] = {}
    undecided: set[str] = set()
    for position, target in enumerate(targets):
        search = _Search([len(same) for same in members], target, budget // (len(targets) - position))
        vector = search.fewest(basis, max_corrupt + 1) if budget > 0 else None
        spent = search.spent or budget <= 0
        budget -= search.steps
        if spent:
            undecided.update(members[target])
        elif vector is not None:
            of = {~i: times / vector[target] for i, times in sorted(vector.items(), reverse=True) if i < 0}
            left = {client_id for j in vector if j >= 0 for client_id in members[j]}
            found |= {client_id: Singled(of, tuple(sorted(left - {client_id}))) for client_id in members[target]}
    pairs = combinations(sorted(distinct.items(), key=lambda item: item[1]), 2)
    for (one, i), (other, j) in pairs if undecided else ():
        differ = one ^ other
        for client_id in differ & undecided if len(differ) <= max_corrupt + 1 else ():
            if client_id not in found or len(differ) <= len(found[client_id].coalition):
                sign = Fraction(1 if client_id in one else -1)
                found[client_id] = Singled({i: sign, j: -sign}, tuple(sorted(differ - {client_id})))
    return Isolation(dict(sorted(found.items())), tuple(sorted(undecided)))


class _Search:
    """The smallest set of columns that the target can be left with."""

    def __init__(self, weights: Sequence[int], target: int, budget: int) -> None:
        self._weights, self._target, self._budget = weights, target, budget
        self.steps, self.spent = 0, False

    def fewest(self, basis: Sequence[_Vector], most: int) -> _Vector | None:
        """A vector in which the target stays, with others of the least weight in all, at most `most`; or None."""
        own = self._weights[self._target]
        for weight in range(own, most + 1):
            vector = self._within(basis, frozenset([self._target]), weight - own)
            if vector is not None or self.spent:
                return vector
        return None

    def _within(self, basis: Sequence[_Vector], stays: frozenset[int], left: int) -> _Vector | None:
        """Columns that `stays` does not name either go to zero, or join it while there is weight left."""
        while True:
            holding = [vector for vector in basis if self._target in vector]
            if not holding:
                return None
            self.steps += sum(map(len, basis))
            weights = {j: self._weights[j] for vector in basis for j in vector if j >= 0 and j not in stays}
            if not weights:
                return holding[0]
            column = max(weights, key=lambda j: (weights[j], -j))
            if weights[column] <= left:
                break
            basis = self._without(basis, column)
        if self.steps > self._budget:
            self.spent = True
            return None
        return self._within(self._without(basis, column), stays, left) or self._within(
            basis, stays | {column}, left - weights[column]
        )

    def _without(self, basis: Sequence[_Vector], column: int) -> list[_Vector]:
        """Those vectors of the space that are zero in this column."""
        pivot = min((vector for vector in basis if column in vector), key=len)
        self.steps += len(pivot) * sum(column in vector for vector in basis)
        return [_eliminated(vector, pivot, column) for vector in basis if vector is not pivot]


def _eliminated(vector: _Vector, pivot: _Vector, column: int) -> _Vector:
    if column not in vector:
        return vector
    times, result = vector[column] / pivot[column], dict(vector)
    for i, value in pivot.items():
        if difference := result.get(i, 0) - times * value:
            result[i] = difference
        else:
            result.pop(i, None)
    return result


def _reduced(rows: Iterable[_Vector], budget: int) -> tuple[list[_Vector], int]:
    """A basis of the row space, each vector with a column of its own; and the steps, where not above the budget."""
    basis: dict[int, _Vector] = {}
    steps = 0
    for row in rows:
        for column, pivot in basis.items():
            row = _eliminated(row, pivot, column)
        steps += 2 * sum(map(len, basis.values()))
        if steps > budget:
            break
        own = min((j for j in row if j >= 0), default=None)
        if own is not None:
            basis = {column: _eliminated(vector, row, own) for column, vector in basis.items()} | {own: row}
    return list(basis.values()), steps
