"""Sets of round numbers as spans of them: a run has many rounds, and a member saw nearly all of them to their end."""

from collections.abc import Iterable, Sequence
from typing import TypeAlias

Span: TypeAlias = tuple[int, int]
"""The first number and the last."""

ALL: tuple[Span, ...] = ((0, 2**53),)


def spans(numbers: Iterable[int]) -> tuple[Span, ...]:
    """The fewest spans, in order."""
    found: list[Span] = []
    for number in sorted(numbers):
        first = found.pop()[0] if found and found[-1][1] + 1 >= number else number
        found.append((first, number))
    return tuple(found)


def within(found: Sequence[Span], number: int) -> bool:
    """Whether one of the spans holds the number."""
    return any(first <= number <= last for first, last in found)


def with_number(found: Sequence[Span], number: int) -> tuple[Span, ...]:
    """The spans, and this number, which is mostly the one that follows."""
    if within(found, number):
        return tuple(found)
    if found and found[-1][1] + 1 == number:
        return (*found[:-1], (found[-1][0], number))
    return (*found, (number, number))
