"""Whom combinations of sums single out for a server with c clients, against every coalition by brute force."""

import random
from fractions import Fraction
from itertools import combinations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.transcript import Isolation, Singled, isolated


def rank(rows: list[list[int]]) -> int:
    """Over the rationals."""
    rows, found = [[Fraction(value) for value in row] for row in rows], 0
    for column in range(len(rows[0]) if rows else 0):
        pivot = next((row for row in rows[found:] if row[column]), None)
        if pivot is None:
            continue
        rows.remove(pivot)
        rows.insert(found, pivot)
        for row in rows[found + 1 :]:
            times = row[column] / pivot[column]
            row[:] = [value - times * other for value, other in zip(row, pivot, strict=True)]
        found += 1
    return found


def helpers_needed(rounds: list[set[str]], victim: str, most: int) -> int | None:
    """By the definition: is the victim's unit vector in the span of the sums and of the coalition's own updates?"""
    clients = sorted(set().union(*rounds))
    matrix = [[int(client in included) for client in clients] for included in rounds]
    for size in range(most + 1):
        for coalition in combinations([client for client in clients if client != victim], size):
            known = [*matrix, *([int(client == told) for client in clients] for told in coalition)]
            if rank(known) == rank([*known, [int(client == victim) for client in clients]]):
                return size
    return None


def check(rounds: list[set[str]], client: str, way: Singled) -> None:
    """The combination is what it says."""
    total: dict[str, Fraction] = {}
    for i, times in way.rounds.items():
        for member in rounds[i]:
            total[member] = total.get(member, Fraction(0)) + times
    left = {member for member, times in total.items() if times}
    assert total[client] == 1
    assert left == {client, *way.coalition}
    assert len(left) == len(way.coalition) + 1


SETS = st.lists(st.sets(st.sampled_from("abcdef"), min_size=1), max_size=5)


@settings(deadline=None, max_examples=60)
@given(SETS, st.integers(0, 3))
def test_isolation_is_what_the_definition_says(rounds, c):
    found = isolated(rounds, c)
    assert (found.undecided, found.decided) == ((), True)
    for client in sorted(set().union(*rounds)):
        size = helpers_needed(rounds, client, c)
        assert (client in found.found) == (size is not None)
        if size is not None:
            check(rounds, client, found.found[client])
            assert len(found.found[client].coalition) == size


@settings(deadline=None, max_examples=100)
@given(SETS, st.integers(0, 3), st.integers(0, 300))
def test_cut_short_what_is_found_holds_and_the_rest_is_undecided(rounds, c, budget):
    found = isolated(rounds, c, budget)
    for client, way in found.found.items():
        check(rounds, client, way)
        assert len(way.coalition) <= c
    for client in set().union(*rounds) - found.found.keys() - set(found.undecided):
        assert helpers_needed(rounds, client, c) is None
    assert found.decided == (set(found.undecided) <= found.found.keys())
    for one, other in combinations(rounds, 2):  # differences of two rounds are always looked at
        if len(one ^ other) <= c + 1:
            assert one ^ other <= found.found.keys()


def test_isolation_of_a_few_rounds():
    a, b, c, d = "abcd"
    assert isolated([{a, b, c}, {a, b}], 0).found == {c: Singled({0: 1, 1: -1}, ())}
    assert isolated([{a, b, c}, {a, b, c}], 0).found == {}
    assert isolated([{a, b}, {c, d}], 0).found == {}
    assert isolated([{a, b}, {c, d}], 1).found.keys() == {a, b, c, d}
    half = Fraction(1, 2)
    assert isolated([{a, b}, {b, c}, {a, c}], 0).found[a] == Singled({0: half, 1: -half, 2: half}, ())
    assert isolated([], 1) == Isolation({}, ())


def test_sets_that_differ_by_one_honest_and_two_corrupt_clients_isolate_the_honest_one():
    """The rank of the matrix alone does not see it (n = 10, c = 2)."""
    everybody = set("abcdefghij")
    rounds = [everybody - {"a"}, everybody - {"b", "c"}]
    assert isolated(rounds, 0).found == isolated(rounds, 1).found == {}
    assert isolated(rounds, 2).found["a"] == Singled({0: -1, 1: 1}, ("b", "c"))


@pytest.mark.parametrize(("n", "count", "c"), [(20, 50, 5), (40, 100, 3), (256, 40, 2)])
def test_many_rounds_are_decided_within_the_budget(n, count, c):
    drawn = random.Random(n)
    rounds = [{str(i) for i in range(n) if drawn.random() > 0.02} for _ in range(count)]
    found = isolated(rounds, c)
    assert found.decided
    matrix = np.array([[str(i) in included for i in range(n)] for included in rounds], float)
    for client in random.Random(1).sample(sorted(found.found), 5):
        way = found.found[client]
        check(rounds, client, way)
        told = np.array([[str(i) == other for i in range(n)] for other in (*way.coalition, client)], float)
        assert np.linalg.matrix_rank(np.vstack([matrix, told])) == np.linalg.matrix_rank(np.vstack([matrix, told[:-1]]))
