"""Every state that can be reached, breadth first: what spin does, without spin."""

from collections import deque
from collections.abc import Callable, Hashable, Iterable
from dataclasses import dataclass
from typing import Generic, TypeVar

State = TypeVar("State", bound=Hashable)


@dataclass(frozen=True)
class Explored(Generic[State]):
    """What came out.

    Attributes:
        states: how many were visited.
        attack: the events that lead to the first state that breaks the statement; None where none does.
    """

    states: int
    attack: tuple[str, ...] | None


def explore(
    starts: Iterable[tuple[str, State]],
    events: Callable[[State], Iterable[tuple[str, State]]],
    wrong: Callable[[State], str],
    most: int = 5_000_000,
) -> Explored[State]:
    """Visit every state.

    Args:
        starts: each with what it is called.
        events: what can happen in a state, and what it leads to.
        wrong: what the statement forbids in a state, "" where it holds.
        most: states that are visited; more is an error, not a result.

    Raises:
        RuntimeError: there are more.
    """
    came: dict[State, tuple[State | None, str]] = {}
    left: deque[State] = deque()
    for name, state in starts:
        if state not in came:
            came[state] = (None, name)
            left.append(state)
    while left:
        state = left.popleft()
        if said := wrong(state):
            return Explored(len(came), (*_path(came, state), said))
        if len(came) > most:
            raise RuntimeError(f"more than {most} states")
        for name, following in events(state):
            if following not in came:
                came[following] = (state, name)
                left.append(following)
    return Explored(len(came), None)


def _path(came: dict[State, tuple[State | None, str]], state: State) -> list[str]:
    path = list[str]()
    at: State | None = state
    while at is not None:
        at, name = came[at]
        path.append(name)
    return path[::-1]
