"""How a run stands: its events, folded into what an operator asks for. The same while it runs and when it is down.

It needs the events and nothing else, and loads neither torch nor a study: a status is asked for often. Must never: hold
a patient, or a figure that no event told.
"""

import json
import shutil
from collections import Counter
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from pathlib import Path
from threading import Lock
from typing import Any

from pydantic import ValidationError

from fedseg.errors import ConfigError
from fedseg.events import (
    AnyEvent,
    Burned,
    Certificate,
    Connected,
    Disconnected,
    Dropped,
    Ended,
    EpsilonSpent,
    Left,
    Listening,
    Note,
    Refused,
    Rejoined,
    Resumed,
    RoundEnded,
    RoundStarted,
    Scored,
    StepAccepted,
    StepClosed,
    StepOpened,
    StudyStarted,
    Trained,
    Waiting,
    event_of,
    now,
)
from fedseg.files import held
from secagg.steps import MASKED_INPUT_COLLECTION

COORDINATOR = "coordinator"
NOT_SEEN, HERE, GONE, LEFT, REFUSED = STATES = ("not seen", "connected", "gone", "left", "refused")
EVENTS = "events.jsonl"
"""Of a run folder."""

NEWS = 8
"""Sentences for the operator that a status keeps."""

FOR_EVER = 1e9
"""Seconds after which nobody waits for a deadline, whatever a peer says."""


@dataclass(frozen=True)
class Peer:
    """One other party, or a site about itself.

    Attributes:
        name: site id, or "coordinator".
        state: one of `STATES`.
        since: of the state, UTC; "" where nothing is known.
        awaited: whether the step that is open waits for it.
        step: the last step of this round in which it spoke; "" where it has not.
        silent: the last round in which it fell silent; 0 for none, or where it is back.
        reason: why it left or was refused.
        epsilon: that its patients have spent by its own word; None without a claim.
        dice: its last mean Dice by structure, where it shares them; over `patients`, after round `scored`.
        certificate: when its certificate ends, UTC; "" where that is not known.
    """

    name: str
    state: str = NOT_SEEN
    since: str = ""
    awaited: bool = False
    step: str = ""
    silent: int = 0
    reason: str = ""
    epsilon: float | None = None
    dice: dict[str, float | None] = field(default_factory=dict)
    patients: int = 0
    scored: int = 0
    certificate: str = ""


@dataclass(frozen=True)
class Status:
    """How one party's run stands.

    Attributes:
        study, study_hash, party: what it is of, and whose it is; "" for a simulation's.
        started, heard: UTC of the first and of the last event.
        over: why the run is over; "" while it goes on or may be gone on with.
        address: where a coordinator listens.
        certificate: when the party's own certificate ends, UTC; "" where that is not known.
        round, attempt, rounds: the last that began, and how many the study has.
        completed, burned, spare: rounds with a sum, rounds that will have none, and how many more may burn.
        last_completed: UTC of the last sum.
        step, since, deadline: what is waited for, since when and until when at most, UTC; "" for nothing.
        awaited: who has to speak for it to go on.
        trust, unit, delta, budget: what belongs to every epsilon; "" and None where none is claimed.
        seeded: whoever knows the seed can recompute the noise, so that nothing is claimed.
        mechanism: of the study.
        structures: that a model finds.
        peers: every site at a coordinator; at a site the coordinator and itself.
        took: seconds by step over all completed rounds, and in `steps` how many of each.
        bytes_up, bytes_down: of the protocol, in completed rounds.
        news: the last sentences for the operator, with their times.
        asked, running, free_bytes: what only the moment of asking tells (`asked`): when, whether a process works on the
            run, and how much of its disk is free.
    """

    study: str = ""
    study_hash: str = ""
    party: str = ""
    started: str = ""
    heard: str = ""
    over: str = ""
    address: str = ""
    certificate: str = ""
    round: int = 0
    attempt: int = 0
    rounds: int = 0
    completed: int = 0
    last_completed: str = ""
    burned: int = 0
    spare: int = 0
    step: str = ""
    since: str = ""
    deadline: str = ""
    awaited: tuple[str, ...] = ()
    trust: str = ""
    unit: str = ""
    delta: float | None = None
    budget: float | None = None
    seeded: bool = False
    mechanism: str = ""
    structures: tuple[str, ...] = ()
    peers: tuple[Peer, ...] = ()
    took: dict[str, float] = field(default_factory=dict)
    steps: dict[str, int] = field(default_factory=dict)
    bytes_up: int = 0
    bytes_down: int = 0
    news: tuple[tuple[str, str], ...] = ()
    asked: str = ""
    running: bool = False
    free_bytes: int | None = None

    @property
    def training_shows(self) -> bool:
        """Whether what is seen now tells how long somebody trained, which no epsilon covers."""
        return bool(self.trust) and self.step == MASKED_INPUT_COLLECTION

    def as_dict(self) -> dict[str, Any]:
        """For JSON."""
        return asdict(self)


class Folding:
    """A `Listener` that keeps the status of a run; asked for from any thread."""

    def __init__(self) -> None:
        self._lock = Lock()
        self._now = Status()
        self._peers: dict[str, Peer] = {}
        self._begun: set[int] = set()
        self._ended: set[int] = set()
        self._spare = 0
        self._seconds: dict[str, float] = {}
        self._steps: Counter[str] = Counter()

    def __call__(self, event: AnyEvent) -> None:
        """Take one event of the run."""
        with self._lock:
            self._take(event)
            self._now = replace(self._now, started=self._now.started or event.at, heard=event.at or self._now.heard)

    def status(self) -> Status:
        """As it stands."""
        with self._lock:
            awaited = set(self._now.awaited)
            peers = tuple(replace(peer, awaited=peer.name in awaited) for peer in self._peers.values())
            burned = len({number for number in self._begun if number < self._now.round} - self._ended)
            spare = max(0, self._spare - burned)
            took, steps = dict(self._seconds), dict(self._steps)
            return replace(self._now, peers=peers, burned=burned, spare=spare, took=took, steps=steps)

    def _take(self, event: AnyEvent) -> None:
        match event:
            case StudyStarted():
                self._begin(event)
            case Listening():
                self._set(address=event.where)
                self._nobody_is_here(event.at)
            case Resumed():
                self._nobody_is_here(event.at)
            case Connected():
                self._peer(event.site, state=HERE, since=event.at, reason="")
                if event.site == COORDINATOR:
                    self._spoke(COORDINATOR)
            case Certificate() if event.site == self._now.party:
                self._set(certificate=event.until)
            case Certificate():
                self._peer(event.site, certificate=event.until)
            case Disconnected():
                self._peer(event.site, state=GONE, since=event.at)
            case Left() | Refused():
                state = LEFT if isinstance(event, Left) else REFUSED
                self._peer(event.site, state=state, since=event.at, reason=event.reason)
                self._spoke(event.site)
                self._say(event.at, event.reason)
            case RoundStarted():
                self._begun.add(event.round)
                self._set(round=event.round, attempt=event.attempt, step="", since=event.at, deadline="", awaited=())
                for name in self._peers:
                    self._peer(name, step="")
            case StepOpened() | Waiting():
                until = later(event.at, event.seconds)
                since = self._now.since if event.step and event.step == self._now.step else event.at
                self._set(step=event.step, since=since, deadline=until, awaited=event.sites)
            case Trained():
                self._peer(event.site, step="training")
            case StepAccepted():
                self._peer(event.site, step=event.step)
                self._spoke(event.site)
            case Dropped():
                self._peer(event.site, silent=event.round)
                self._spoke(event.site)
                self._say(event.at, f"round {event.round}: {event.site} fell silent after {event.after or 'joining'}")
            case Rejoined():
                self._peer(event.site, silent=0)
            case _:
                self._take_result(event)

    def _take_result(self, event: AnyEvent) -> None:
        match event:
            case StepClosed():
                self._set(step="", since=event.at, deadline="", awaited=())
            case Burned():
                self._set(step="", since=event.at, deadline="", awaited=())
                self._say(event.at, f"round {event.round} ended without a sum: {event.reason}")
            case RoundEnded():
                self._end(event)
            case EpsilonSpent():
                self._peer(event.site, epsilon=event.spent)
            case Scored():
                self._peer(event.site, dice=dict(event.values), patients=event.n, scored=event.round)
            case Note():
                self._say(event.at, event.text)
            case Ended():
                done = self._now.completed >= self._now.rounds
                self._set(over="complete" if done else "ended early", step="", deadline="", awaited=())

    def _begin(self, event: StudyStarted) -> None:
        self._spare = event.spare_rounds
        names = event.sites if event.party in ("", COORDINATOR) else (COORDINATOR, event.party)
        self._peers = {name: self._peers.get(name, Peer(name)) for name in names}
        self._set(
            study=event.name,
            study_hash=event.study_hash,
            party=event.party,
            rounds=event.rounds,
            trust=event.trust,
            unit=event.unit,
            delta=event.delta,
            budget=event.budget,
            seeded=event.seed is not None,
            mechanism=event.mechanism,
            structures=event.structures,
        )

    def _end(self, event: RoundEnded) -> None:
        self._ended.add(event.round)
        self._begun.add(event.round)
        for step, seconds in event.seconds.items():
            self._seconds[step] = self._seconds.get(step, 0.0) + seconds
            self._steps[step] += 1
        now = self._now
        up, down = now.bytes_up + event.bytes_up, now.bytes_down + event.bytes_down
        self._set(completed=len(self._ended), last_completed=event.at, bytes_up=up, bytes_down=down)
        self._set(round=max(now.round, event.round), step="", since=event.at, deadline="", awaited=())

    def _nobody_is_here(self, at: str) -> None:
        """A process begins, which knows of no connection yet."""
        for name, peer in self._peers.items():
            if peer.state == HERE:
                self._peer(name, state=GONE, since=at)

    def _spoke(self, site: str) -> None:
        self._set(awaited=tuple(name for name in self._now.awaited if name != site))

    def _set(self, **changes: Any) -> None:
        self._now = replace(self._now, **changes)

    def _peer(self, name: str, **changes: Any) -> None:
        if name in self._peers:  # an event may name somebody of another study
            self._peers[name] = replace(self._peers[name], **changes)

    def _say(self, at: str, sentence: str) -> None:
        self._set(news=(*self._now.news, (at, sentence))[-NEWS:])


def later(at: str, seconds: float | None) -> str:
    """So many seconds after a time of an event; "" where that has none, or the seconds are for ever."""
    if seconds is None or not 0 <= seconds < FOR_EVER:
        return ""
    try:
        return (datetime.fromisoformat(at) + timedelta(seconds=seconds)).isoformat(timespec="milliseconds")
    except (ValueError, OverflowError):
        return ""


def status_of(events: Iterable[AnyEvent]) -> Status:
    """How a run with these events stands."""
    folding = Folding()
    for event in events:
        folding(event)
    return folding.status()


def asked(status: Status, run: Path) -> Status:
    """The status with what only this moment tells of the run in a folder."""
    try:
        free = shutil.disk_usage(run).free
    except OSError:
        free = None
    return replace(status, asked=now(), running=held(run / EVENTS), free_bytes=free)


def read_status(run: Path) -> Status:
    """How the run in a folder stands, whether or not its process runs.

    Raises:
        ConfigError: it is no run folder, or its events cannot be read.
    """
    path = run / EVENTS
    try:
        lines = path.read_bytes().splitlines(keepends=True)
    except OSError as error:
        raise ConfigError(
            f"{path} cannot be read ({error.strerror}); give a run folder, such as runs/NAME.partial"
        ) from error
    try:
        whole = (json.loads(line) for line in lines if line.endswith(b"\n"))  # the last one may be on its way
        return asked(status_of(event for fields in whole if (event := event_of(fields))), run)
    except (ValueError, AttributeError, ValidationError) as error:
        raise ConfigError(f"{path}: is cut off or not what a run writes") from error
