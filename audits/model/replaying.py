"""The machine of marks once more, from the specification's text alone, and the real one made to follow its every step.

`Machine` says of each event in each state whether docs/spec.md ("Between the rounds") allows it, and if not, by which
check it is refused. Every history of a few round starts of every kind is gone through; in each state every event is
tried on the real `secagg.store.Marks`, which has to accept or refuse it alike. More than in `cross_round.pml`: claims
of another session bind who added to their round (there: everybody), and claims are any set of rounds.
"""

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any, NamedTuple

PROJECTS = (b"1" * 32, b"2" * 32)
HASH = bytes(32)


class Start(NamedTuple):
    """A round start: whose it is, and on which model a site joins it."""

    project: int
    run: str
    number: int
    attempt: int
    model: int


FIRST = Start(0, "run-1", 1, 0, 0)
KINDS: dict[str, Start] = {
    "next attempt": Start(0, "run-1", 1, 1, 0),
    "next round": Start(0, "run-1", 2, 0, 1),
    "next round on the same model": Start(0, "run-1", 2, 0, 0),
    "new run on the same model": Start(0, "run-2", 1, 0, 0),
    "new run on another model": Start(0, "run-2", 1, 0, 1),
    "other project on the same model": Start(1, "run-1", 1, 0, 0),
    "other project on another model": Start(1, "run-1", 1, 0, 1),
}


@dataclass(frozen=True)
class Site:
    """What one site's store knows, as sets of places in the list of starts."""

    live: int = -1
    joined: frozenset[int] = frozenset()
    before: frozenset[int] = frozenset()  # replayed or settled when the live attempt was joined
    exposing: frozenset[int] = frozenset()  # own releases that expose the live attempt
    contributed: Mapping[int, bool] = field(default_factory=dict)  # to whether it was private
    contribution: int = -1  # contributed last, and not released
    released: frozenset[int] = frozenset()  # not private
    open: int = -1
    cleared: frozenset[int] = frozenset()  # replayed or settled
    accepted: frozenset[int] = frozenset()
    used: Mapping[int, frozenset[int]] = field(default_factory=dict)

    def key(self) -> tuple[Any, ...]:
        """What makes two sites the same."""
        plain = (self.live, self.joined, self.before, self.exposing, self.contribution, self.released, self.open)
        maps = (
            tuple(sorted(self.contributed.items())),
            tuple(sorted((k, tuple(sorted(v))) for k, v in self.used.items())),
        )
        return (*plain, self.cleared, self.accepted, *maps)


class Machine:
    """The specification's transitions over a list of starts; `private` are the places whose updates are private."""

    def __init__(self, starts: tuple[Start, ...], private: frozenset[int]) -> None:
        self.starts, self.private = starts, private

    def same_run(self, a: int, b: int) -> bool:
        """Of one project and run."""
        return self.starts[a][:2] == self.starts[b][:2]

    def join(self, site: Site, k: int) -> str | Site:
        """The check that refuses, or the site afterwards."""
        at = self.starts[k]
        before = [self.starts[j][2:4] for j in site.joined if self.same_run(j, k)]
        if before and at[2:4] <= max(before):
            return "C-03"
        waiting = {j for j in site.released if self.same_run(j, k) and j not in site.cleared}
        elsewhere = {j for j in site.released if not self.same_run(j, k) and self.starts[j].model == at.model}
        exposing = frozenset(waiting | elsewhere | ({site.open} - {-1}))
        if k not in self.private and exposing - site.accepted:
            return "C-05"
        return replace(site, live=k, joined=site.joined | {k}, before=site.cleared, exposing=exposing)

    def contribute(self, site: Site, k: int, claims: frozenset[int]) -> str | Site:
        """The same, with what others claim."""
        at = self.starts[k]
        if site.live != k:
            return "C-24"
        if any(self.same_run(j, k) and at.number <= self.starts[j].number for j in site.contributed):
            return "C-14"
        contributed = {**site.contributed, k: k in self.private}
        if k in self.private:
            return replace(site, contributed=contributed, contribution=k)
        if site.exposing - site.accepted:
            return "C-05"
        binding = frozenset(c for c in claims if self._binds(site, k, c) and self._exposes(site, k, c))
        if binding - site.accepted:
            return "C-26"
        needed = site.exposing | binding
        used = {**site.used, k: needed}
        return replace(site, contributed=contributed, contribution=k, accepted=site.accepted - needed, used=used)

    def _binds(self, site: Site, k: int, claim: int) -> bool:
        """Of the own session always; of another one who added to that round number, not privately."""
        of = self.starts[claim]
        added = [
            not private
            for j, private in site.contributed.items()
            if self.same_run(j, claim) and self.starts[j].number == of.number
        ]
        return of.project == self.starts[k].project or any(added)

    def _exposes(self, site: Site, k: int, claim: int) -> bool:
        return claim not in site.before or (
            self.starts[claim].model == self.starts[k].model and not self.same_run(claim, k)
        )

    def release(self, site: Site, k: int) -> str | Site:
        """The same."""
        if site.live != k or site.contribution != k:
            return "C-24"
        if k in self.private:
            return replace(site, contribution=-1)
        if site.open != -1 and site.open not in site.used.get(k, frozenset()):
            return "C-05"
        return replace(site, contribution=-1, released=site.released | {k}, open=-1 if k in site.cleared else k)

    def replay(self, site: Site, k: int) -> Site:
        """The transcript of a round, and what was accepted for it in its run."""
        settled = {k} | {j for j in site.used.get(k, frozenset()) if self.same_run(j, k)}
        cleared = site.cleared | settled
        return replace(site, cleared=cleared, open=-1 if site.open in settled else site.open)

    def accept(self, site: Site, k: int) -> Site:
        """An operator's word."""
        return replace(site, accepted=site.accepted | {k})

    def tried(self, site: Site) -> Iterator[tuple[str, int, frozenset[int], str | Site]]:
        """Every event in a state: its name, start, claims, and what the specification says."""
        places = range(len(self.starts))
        for k in places:
            yield "join", k, frozenset(), self.join(site, k)
            others = [j for j in places if j != k]
            for size in range(len(others) + 1):
                for claims in map(frozenset, itertools.combinations(others, size)):
                    yield "contribute", k, claims, self.contribute(site, k, claims)
            yield "release", k, frozenset(), self.release(site, k)
            if k in site.contributed and k not in self.private:
                yield "replay", k, frozenset(), self.replay(site, k)
            if k not in site.accepted:
                yield "accept", k, frozenset(), self.accept(site, k)


class Real:
    """The same events on `secagg.store.Marks`, over a mapping that is copied for each."""

    def __init__(self, machine: Machine) -> None:
        from secagg.context import Slot
        from secagg.messages import ReleaseClaim

        self.machine = machine
        self.slots = [Slot(PROJECTS[s.project], s.run, s.number, s.attempt) for s in machine.starts]
        self.models = [bytes([s.model]) * 32 for s in machine.starts]
        self.claims = [
            ReleaseClaim(
                session=slot.session,
                training_run=slot.training_run,
                round_number=slot.round_number,
                attempt=slot.attempt,
                model_hash=model,
                task_hash=HASH,
                previous_head=HASH,
                roster2=HASH,
                sharers_hash=HASH,
                inputs_hash=HASH,
                attestations={"site-a": bytes(64)},
            )
            for slot, model in zip(self.slots, self.models, strict=True)
        ]

    def does(
        self, entries: Mapping[str, str], event: str, k: int, claims: frozenset[int]
    ) -> tuple[str, dict[str, str]]:
        """The check that refuses ("" where it is accepted), and the entries afterwards."""
        from secagg.errors import ExposureError, UnexpectedMessageError
        from secagg.store import Marks

        draft = dict(entries)
        marks, private = Marks(draft), k in self.machine.private
        try:
            if event == "join":
                marks.join(self.slots[k], self.models[k], private)
            elif event == "contribute":
                marks.contribute(self.slots[k], "event", [self.claims[j] for j in claims], private)
            elif event == "release":
                marks.release(self.slots[k], self.claims[k], private)
            elif event == "replay":
                marks.replay(self.slots[k], self.claims[k].round_id)
            else:
                marks.accept_exposure(self.claims[k].round_id, b"signature")
        except (ExposureError, UnexpectedMessageError) as error:
            return error.check, dict(entries)
        return "", draft


class Followed(NamedTuple):
    """What came of following.

    Attributes:
        states, accepted, refused: visited, and events by what was said of them.
        checks: how often each check refused.
        difference: the first event on which both say different things; "" where there is none.
    """

    states: int
    accepted: int
    refused: int
    checks: Mapping[str, int]
    difference: str


def follow(starts: tuple[Start, ...], private: frozenset[int] = frozenset()) -> Followed:
    """Every history of these starts, the real machine beside the specification's."""
    machine = Machine(starts, private)
    real, checks = Real(machine), dict[str, int]()
    accepted = refused = 0
    first: tuple[Site, dict[str, str], tuple[str, ...]] = (Site(), {}, ())
    left, seen = [first], {(first[0].key(), frozenset[tuple[str, str]]())}
    while left:
        site, entries, path = left.pop()
        for event, k, claims, says in machine.tried(site):
            check, after = real.does(entries, event, k, claims)
            expected = says if isinstance(says, str) else ""
            name = f"{event} {k}" + (f" with claims {sorted(claims)}" if claims else "")
            if check != expected:
                told = f"after {', '.join(path) or 'nothing'}, {name}: the specification says {expected or 'accepted'}"
                return Followed(len(seen), accepted, refused, checks, f"{told}, the code {check or 'accepts'}")
            if isinstance(says, str):
                refused += 1
                checks[says] = checks.get(says, 0) + 1
                continue
            accepted += 1
            key = (says.key(), frozenset(after.items()))
            if key not in seen:
                seen.add(key)
                left.append((says, after, (*path, name)))
    return Followed(len(seen), accepted, refused, checks, "")
