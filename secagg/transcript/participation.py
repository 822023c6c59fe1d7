"""Who took part over several rounds, and whom sums and differences of rounds would single out.

After So et al., "Securing secure aggregation: mitigating multi-round privacy leakage in federated learning" (2021):
where updates change slowly, a combination of sums that leaves one client is close to that client's update. A note for
the operator, not a fault of anybody. Specification: docs/spec.md, section "Transcripts".
"""

from collections.abc import Collection, Mapping, Sequence
from fractions import Fraction


def isolated(rounds: Sequence[Collection[str]]) -> Mapping[str, Mapping[int, Fraction]]:
    """Which clients a rational combination of the rounds' sums leaves alone, by elimination on the 0/1 matrix.

    Args:
        rounds: the included set of each round.

    Returns:
        Client id to one combination: index of the round to its coefficient. Of rounds with the same set the first is
        named. A client is missing where no combination isolates it.
    """
    clients = sorted(set().union(*rounds))
    column = {client_id: i for i, client_id in enumerate(clients)}
    distinct = {frozenset(included): i for i, included in reversed(list(enumerate(rounds)))}
    # A row: its entries by column, and the combination of rounds that it is.
    reduced: dict[int, tuple[dict[int, Fraction], dict[int, Fraction]]] = {}
    for included, number in sorted(distinct.items(), key=lambda item: item[1]):
        row, combination = {column[client_id]: Fraction(1) for client_id in included}, {number: Fraction(1)}
        for pivot in [pivot for pivot in row if pivot in reduced]:
            _subtract(row, combination, reduced[pivot], row[pivot])
        if not row:
            continue
        pivot = min(row)
        scale = row[pivot]
        row = {i: value / scale for i, value in row.items()}
        combination = {i: value / scale for i, value in combination.items()}
        for other, of in reduced.values():
            if pivot in other:
                _subtract(other, of, (row, combination), other[pivot])
        reduced[pivot] = (row, combination)
    return {clients[pivot]: of for pivot, (row, of) in sorted(reduced.items()) if len(row) == 1}


def _subtract(
    row: dict[int, Fraction],
    combination: dict[int, Fraction],
    other: tuple[dict[int, Fraction], dict[int, Fraction]],
    times: Fraction,
) -> None:
    for target, source in ((row, other[0]), (combination, other[1])):
        for i, value in source.items():
            if difference := target.get(i, Fraction(0)) - times * value:
                target[i] = difference
            else:
                target.pop(i, None)
