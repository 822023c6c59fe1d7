"""How a run stands, at one moment: what a status page, a command and a metric show."""

from dataclasses import dataclass


@dataclass(frozen=True)
class SiteStatus:
    """One member.

    Attributes:
        state: "in the round", "ready", "waiting" (for a transcript or its operator), "busy", "away", "left", "refused",
            "left out" or "done".
        why: a sentence where there is one, text of others among it.
        connected: whether its process is there.
        awaited: whether the step, or the next round, waits for it.
        spent: what it said that its people have paid; None where it said nothing.
        bytes_up, bytes_down: of its connections to this process.
    """

    site: str
    state: str
    why: str
    connected: bool
    awaited: bool
    spent: float | None
    bytes_up: int
    bytes_down: int


@dataclass(frozen=True)
class Status:
    """A run.

    Attributes:
        run: its name; `task`: hash of what is computed, in hexadecimal.
        completed, rounds: how many rounds have a sum, and how many are wanted.
        round, attempt, step: what is open; step "" between two rounds.
        since: seconds that the present step, or the wait for a round, has lasted.
        deadline: seconds until it is closed; None where nothing closes it.
        ended: why the run is over; "" while it is not.
    """

    run: str
    task: str
    completed: int
    rounds: int
    round: int
    attempt: int
    step: str
    since: float
    deadline: float | None
    ended: str
    complete: bool
    sites: tuple[SiteStatus, ...]
