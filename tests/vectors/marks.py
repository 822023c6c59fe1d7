"""Sequences of transitions of one store, and what each must give: the state machine between the rounds, as JSON.

A second implementation needs nothing but these to agree with `secagg.store`. Run by generate.py. Specification:
docs/spec.md, section "Between the rounds".
"""

from collections.abc import Callable
from typing import Any

from playing import RUN, Json, drawn

from secagg.context import GENESIS, Slot
from secagg.errors import ExposureError, ProtocolError
from secagg.messages import ReleaseClaim
from secagg.store import Marks, MemoryStore

SESSION, OTHER_SESSION = drawn("a session", 32), drawn("another session", 32)
OLD, NEW = drawn("a model", 32), drawn("the next model", 32)


def slot(number: int = 1, attempt: int = 0, run: str = RUN, session: bytes = SESSION) -> Slot:
    return Slot(session, run, number, attempt)


def claim_of(where: Slot, model: bytes = OLD, label: str = "") -> ReleaseClaim:
    """What the data set, or with another label another one, says of a round in this attempt."""
    hashes = [drawn(f"{name} of {where}{label}", 32) for name in ("roster2", "sharers", "inputs")]
    numbers = (where.session, where.training_run, where.round_number, where.attempt)
    return ReleaseClaim(*numbers, model, bytes(32), GENESIS, *hashes, {"site-a": bytes(64)})


class Sequence:
    """One store; each call is performed and written down with what came of it."""

    def __init__(self, comment: str) -> None:
        self.store, self.written = MemoryStore(), {"comment": comment, "operations": list[Json]()}

    def do(self, entry: Json, change: Callable[[Marks], Any]) -> "Sequence":
        try:
            with self.store.transaction() as marks:
                result = change(marks)
        except (ProtocolError, ExposureError) as error:
            rounds = [round_id.hex() for round_id in getattr(error, "round_ids", ())]
            entry |= {"success": False, "check": error.check} | ({"rounds": rounds} if rounds else {})
        else:
            entry |= {"success": True} | ({} if result is None else {"exposing": [c.round_id.hex() for c in result]})
        self.written["operations"].append(entry)
        return self

    def join(self, where: Slot, model: bytes = OLD, private: bool = False) -> "Sequence":
        entry = {"operation": "join", "slot": slot_json(where), "model": model.hex(), "private": private}
        return self.do(entry, lambda marks: marks.join(where, model, private))

    def contribute(self, where: Slot, *claims: ReleaseClaim, private: bool = False) -> "Sequence":
        entry = {"operation": "contribute", "slot": slot_json(where), "claims": [claim_json(c) for c in claims]}
        entry["private"] = private
        return self.do(entry, lambda marks: marks.contribute(where, "event", claims, private))

    def release(self, where: Slot, claim: ReleaseClaim | None = None, private: bool = False) -> "Sequence":
        claim = claim or claim_of(where)
        entry = {"operation": "release", "slot": slot_json(where), "claim": claim_json(claim), "private": private}
        return self.do(entry, lambda marks: marks.release(where, claim, private))

    def round(self, where: Slot, model: bytes = OLD, *claims: ReleaseClaim) -> "Sequence":
        """Join, contribute and release."""
        return self.join(where, model).contribute(where, *claims).release(where, claim_of(where, model))

    def replay(self, where: Slot, model: bytes = OLD) -> "Sequence":
        round_id = claim_of(where, model).round_id
        entry = {"operation": "replay", "slot": slot_json(where), "round": round_id.hex()}
        return self.do(entry, lambda marks: marks.replay(where, round_id))

    def accept(self, claim: ReleaseClaim) -> "Sequence":
        entry = {"operation": "accept_exposure", "round": claim.round_id.hex()}
        return self.do(entry, lambda marks: marks.accept_exposure(claim.round_id, bytes(64)))


def slot_json(where: Slot) -> Json:
    numbers = {"training_run": where.training_run, "round_number": where.round_number, "attempt": where.attempt}
    return {"session": where.session.hex(), **numbers}


def claim_json(claim: ReleaseClaim) -> Json:
    hashes = ("model_hash", "task_hash", "previous_head", "roster2", "sharers_hash", "inputs_hash")
    signed = {party: signature.hex() for party, signature in claim.attestations.items()}
    return slot_json(claim.slot) | {name: getattr(claim, name).hex() for name in hashes} | {"attestations": signed}


def sequences() -> list[Json]:
    """Every sequence; the comment says what it shows."""
    one, two, three = slot(1), slot(2), slot(3)
    elsewhere, project = slot(1, run="run-2"), slot(1, session=OTHER_SESSION)
    theirs = claim_of(one, label=" of another site")
    far = [claim_of(slot(number, 1, session=OTHER_SESSION), NEW, " of another site") for number in (1, 2)]
    third, fourth = drawn("model 3", 32), drawn("model 4", 32)
    told = [
        Sequence("Rounds that are replayed one after the other expose nothing.")
        .round(one).replay(one).round(two, NEW).replay(two, NEW).join(three, third),
        Sequence("Numbers increase: round number, then attempt, in each session and run.")
        .join(one).join(one).join(slot(1, 1)).join(one).join(three).join(two).join(elsewhere).join(project),
        Sequence("One contribution to a round number, whatever the attempt.")
        .join(one).contribute(one).contribute(one).join(slot(1, 1)).contribute(slot(1, 1)).join(two).contribute(two),
        Sequence("One attempt is live: what was joined before is over, at contribution and at release.")
        .join(one).join(two).contribute(one).contribute(two).join(elsewhere).release(two),
        Sequence("Shares are released once, and only for the last contribution.")
        .join(one).release(one).contribute(one).release(one).release(one),
        Sequence("An open release stops every run, project and number, until its operator accepts it by name.")
        .round(one).join(two, NEW).join(elsewhere, NEW).join(project, NEW).accept(theirs).join(two, NEW)
        .accept(claim_of(one)).join(two, NEW).contribute(two),
        Sequence("An acceptance counts for one contribution, and can be given again.")
        .round(one).accept(claim_of(one)).join(two).contribute(two).join(three).accept(claim_of(one)).join(three)
        .contribute(three).release(three),
        Sequence("A replay counts for attempts that are joined after it.")
        .round(one).accept(claim_of(one)).join(two).replay(one).contribute(two).join(three, NEW).contribute(three),
        Sequence("The transcript of another round clears nothing.")
        .round(one).replay(elsewhere).replay(two).join(two, NEW),
        Sequence("A run that starts over on the same model is exposed by what was replayed.")
        .round(one).replay(one).join(elsewhere).join(elsewhere, NEW).accept(claim_of(one)).join(project)
        .contribute(project),
        Sequence("The claim of another site: refused, replayed too late, accepted by name, used up.")
        .join(one).contribute(one, theirs).replay(one).contribute(one, theirs).accept(theirs).contribute(one, theirs)
        .join(two).contribute(two, theirs),
        Sequence("What an acceptance was used for is settled once the transcript of that attempt was replayed.")
        .round(one).accept(claim_of(one)).round(two).replay(two).join(three, NEW).contribute(three),
        Sequence("A release whose transcript was replayed before it is not open.")
        .join(one).contribute(one).replay(one).release(one).join(two, NEW),
        Sequence("A private attempt is not stopped and claims what exposes it; what it released is not open.")
        .round(one).join(two, NEW, private=True).contribute(two, theirs, private=True)
        .release(two, claim_of(two, NEW), private=True).join(three, NEW),
        Sequence("An acceptance that served another run settles nothing in the own one, on whatever model.")
        .round(one).accept(claim_of(one)).round(elsewhere, NEW).replay(elsewhere, NEW).join(slot(1, run="run-3"), third)
        .join(two, third).accept(claim_of(one)).round(two, third).join(three, fourth).replay(two, third)
        .join(three, fourth),
        Sequence("The claim of another session binds who contributed, not privately, to that round number of it.")
        .join(one).contribute(one, *far).join(project, private=True).contribute(project, private=True)
        .join(slot(2, session=OTHER_SESSION)).contribute(slot(2, session=OTHER_SESSION))
        .join(two).contribute(two, *far).accept(far[1]).contribute(two, *far)
        .join(three).contribute(three, *far).replay(far[1].slot, NEW),
    ]  # fmt: skip
    return [sequence.written for sequence in told]
