"""T-15, T-17 and R-05: what was charged for the rounds, what it comes to, and whether a ledger is whole.

A ledger is its site's own: whoever looks without it sees nothing of the noise, and is told so.
"""

import json
import math
from collections.abc import Iterator, Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any

from dp_accounting.dp_event import DpEvent

from fedseg.budget.plan import round_entry
from fedseg.errors import FedSegError, PrivacyError
from fedseg.events import EpsilonSpent
from fedseg.evidence import HELD, NOT_APPLICABLE, NOT_CHECKED, VIOLATED, Finding
from fedseg.ledger import Entry, distinct, released
from fedseg.ledger.witness import KEPT
from fedseg.models import load_model
from fedseg.privacy.accounting import accountants, cross_check, epsilon
from fedseg.privacy.delta import delta_text
from fedseg.update import flatten, model_hash
from fedseg.verifying.material import Charged, Material, Run, marks_of
from fedseg.verifying.models import reached_in
from secagg.errors import ConfigError, SecAggError
from secagg.roster import session_id
from secagg.store import Marks

EQUAL = 1e-6
"""Largest relative difference between two epsilons that are meant to be one: versions of the accountant may differ."""
_NOT_PLANNED = {"format", "study_hash", "study", "patients", "charged"}
"""Fields of an entry that say when, from whom and under which name; R-01 looks at the study."""
NEXT_MODELS = "next-models.json"


def t15_noise_floor(given: Material) -> Iterator[Finding]:
    """T-15: for every round in whose sum a site is, its ledger holds an event with the noise that the study planned."""
    if not given.study.trust.claims_epsilon:
        yield Finding("T-15", NOT_APPLICABLE, "noise", "the study plans none: it claims no epsilon")
        return
    if not given.run_name:
        yield Finding("T-15", NOT_CHECKED, "noise", "the name of the training run is not known: give --roster")
        return
    ledgers = {ledger.site: ledger for ledger in given.ledgers}
    for site in given.study.site_ids:
        rounds = [number for number, end in given.log.items() if site in end.included]
        if (ledger := ledgers.get(site)) is None:
            if rounds:
                said = f"its ledger was not given: the noise of {len(rounds)} updates was not checked"
                yield Finding("T-15", NOT_CHECKED, site, said)
        elif ledger.broken:
            yield Finding("T-15", NOT_CHECKED, str(ledger), "it does not verify (T-17), so nothing in it counts")
        elif wrong := [said for number in rounds if (said := _below(given, ledger, number))]:
            yield Finding("T-15", VIOLATED, str(ledger), "; ".join(wrong), len(rounds))
        elif rounds:
            told = f"{len(rounds)} rounds charged with the noise that the study planned"
            yield Finding("T-15", HELD, str(ledger), told, len(rounds))


def _below(given: Material, ledger: Charged, number: int) -> str:
    """What a round's charge lacks of the planned one, as one clause; empty where it lacks nothing."""
    asking = given.study.asked is not None and number == min(given.log)
    planned = round_entry(given.study, ledger.site, given.run_name, number, asking=asking)
    place = (given.run_name, planned.series, number)
    found = next(
        (e for e in ledger.entries.values() if (e.training_run, e.series, e.round_number) == place),
        None,
    )
    if found is None:
        return f"round {number} is not charged"
    own = found.model_dump()
    for name, value in planned.model_dump(exclude=_NOT_PLANNED).items():
        enough = own.get(name) == value or (name == "noise_multiplier" and own.get(name, 0) > value)
        if not enough:
            return f"round {number} has {name} {own.get(name)} where the study planned {value}"
    return ""


def t17_ledger(given: Material) -> Iterator[Finding]:
    """T-17: every ledger verifies, and epsilon recomputed from its events is the one that log and figures state."""
    ledgers = {ledger.site: ledger for ledger in given.ledgers}
    for ledger in given.ledgers:
        if broken := ledger.broken or _foreign(given, ledger):
            yield Finding("T-17", VIOLATED, str(ledger), broken)
            continue
        try:
            yield Finding("T-17", HELD, str(ledger), _told(given, ledger), len(ledger.entries))
        except PrivacyError as error:
            yield Finding("T-17", VIOLATED, str(ledger), str(error))
    if not given.study.trust.claims_epsilon:
        return
    for run in given.runs:
        for site, stated in _stated(run).items():
            charged = ledgers.get(site)
            if charged is None or charged.broken or not given.run_name:
                said = f"epsilon of {site} was not recomputed: its ledger was not given, or the run's name is not known"
                yield Finding("T-17", NOT_CHECKED, str(run), said)
            elif wrong := _wrong(given, run, charged, stated):
                yield Finding("T-17", VIOLATED, str(run), wrong)
            else:
                told = f"epsilon of {site} is what its ledger gives, {len(stated)} times"
                yield Finding("T-17", HELD, str(run), told, len(stated))


def _foreign(given: Material, ledger: Charged) -> str:
    """Lines that the site of the reader's roster did not sign, as one clause; empty where there are none.

    Who writes the whole chain anew can sign it only with a key that he has. Lines of 0.4 and before have no signature:
    those of other runs may be such.
    """
    if given.federation is None or ledger.simulated or ledger.path.resolve() in given.charged_by_simulations:
        return ""  # a simulation's roster has keys of its own
    pinned = given.federation.pinned.get(ledger.site, b"").hex()
    foreign = [
        number
        for number, line in enumerate(ledger.lines, start=1)
        if line.signer != pinned and (line.signer or line.entry.training_run == given.run_name)
    ]
    return f"lines {', '.join(map(str, foreign))} are not signed by {ledger.site}'s key" if foreign else ""


def _told(given: Material, ledger: Charged) -> str:
    """What a ledger comes to. PrivacyError where two accountants disagree."""
    delta, entries = given.study.privacy.delta, distinct(ledger.entries.values())
    chain = f"{len(ledger.lines)} entries, chain intact"
    if delta is None or not given.study.trust.claims_epsilon:
        return chain
    events = tuple(released(entries, unseeded=given.study.study.seed is not None))
    (first, second), names = _both(events, delta), accountants(events)
    if math.isinf(first):
        return f"{chain}; no epsilon can be promised: a round without noise, or with a seed, is among them"
    told = f"{second:.4g} by {names[1]}" if second is not None else "no second accountant knows it"
    return f"{chain}; over everything in it epsilon {first:.4g} at delta {delta_text(delta)} by {names[0]}, {told}"


@lru_cache(maxsize=64)
def _both(events: tuple[DpEvent, ...], delta: float) -> tuple[float, float | None]:
    return cross_check(events, delta)


def _stated(run: Run) -> dict[str, list[tuple[int, float]]]:
    """Every epsilon that a folder states of a site, each with the round after which; round 0 stands for the end."""
    found: dict[str, list[tuple[int, float]]] = {}
    for event in run.of_kind(EpsilonSpent):
        if event.spent is not None:
            found.setdefault(event.site, []).append((event.round, event.spent))
    if run.metrics is not None and run.metrics.privacy is not None:
        for site, spent in run.metrics.privacy.per_site.items():
            if spent is not None:
                found.setdefault(site, []).append((0, spent))
    return found


def _wrong(given: Material, run: Run, ledger: Charged, stated: list[tuple[int, float]]) -> str:
    """The first stated epsilon that the ledger does not give, as one clause; empty where all are right."""
    curve = curve_of(given, ledger)
    for number, spent in stated:
        last = number or max(run.ended, default=0)
        reached = {then: value for then, value in curve.items() if then <= last} if number else curve
        included = last in run.ended and ledger.site in run.ended[last].included
        # A coordinator repeats what a site said last, which for a site that fell silent is of an earlier round.
        exact = [reached[last]] if included and number and last in reached else list(reached.values())
        if not any(math.isclose(spent, value, rel_tol=EQUAL) for value in exact):
            what = f"after round {number}" if number else "in the end"
            gives = f"{exact[-1]:.6g}" if exact else "nothing"
            return f"epsilon of {ledger.site} {what} is said to be {spent:.6g} and its ledger gives {gives}"
    return ""


def curve_of(given: Material, ledger: Charged) -> dict[int, float]:
    """Epsilon of all that a ledger holds up to each round of the run, by round number.

    Runs before this one are in it, because what is spent composes; runs after it are not.
    """
    curve, entries = dict[int, float](), list[Entry]()
    delta, unseeded = given.study.privacy.delta, given.study.study.seed is not None
    for entry in ledger.entries.values():
        entries.append(entry)
        if entry.training_run == given.run_name and entry.series == "training" and delta is not None:
            curve[entry.round_number] = epsilon(released(distinct(entries), unseeded=unseeded), delta)
    return curve


def r05_marks(given: Material) -> Iterator[Finding]:
    """R-05: a site's durable marks name the events of its ledger, and the heads of the log."""
    for ledger in given.ledgers:
        if ledger.simulated:
            said = "a simulation trusts its own process and keeps no marks"
            yield Finding("R-05", NOT_APPLICABLE, str(ledger), said)
            continue
        try:
            with marks_of(ledger) as marks:
                if marks is None:
                    said = "no marks lie beside it: whether it was cut off or written anew does not show"
                    yield Finding("R-05", NOT_CHECKED, str(ledger), said)
                    continue
                wrong = [
                    *_cut(ledger, marks),
                    *_unknown(ledger, marks),
                    *_other_heads(given, marks),
                    *_other_model(given, ledger),
                ]
        except (FedSegError, SecAggError) as error:
            yield Finding("R-05", VIOLATED, str(ledger), str(error))
            continue
        if wrong:
            yield Finding("R-05", VIOLATED, str(ledger), "; ".join(wrong))
        else:
            told = f"the marks beside it know {len(ledger.entries)} entries, and the heads of the log"
            yield Finding("R-05", HELD, str(ledger), told, len(ledger.entries))


def _cut(ledger: Charged, marks: Marks) -> Iterator[str]:
    """How far the ledger had come by the marks: they are told after each entry, and hold the id of the last."""
    known = marks.kept(KEPT)
    if known is None:
        return
    ids, count = [line.event_id for line in ledger.lines], int(known["count"])
    if count > len(ids) or (count and ids[count - 1] != known["event_id"]):
        yield f"the marks know of {count} entries, the last {known['event_id'][:16]}, and the ledger has {len(ids)}"


def _unknown(ledger: Charged, marks: Marks) -> Iterator[str]:
    """Contributions whose event the ledger does not hold: it was cut, or written anew."""
    for session, run in marks.runs:
        for number, event_id in marks.contributed(session, run).items():
            if event_id and event_id not in ledger.entries:
                yield f"round {number} of run {run} was charged as {event_id[:16]}, which the ledger does not hold"


def _other_heads(given: Material, marks: Marks) -> Iterator[str]:
    own = session_id(given.policy, given.federation.pinned) if given.federation is not None else None
    for session, run in marks.runs:
        if run != given.run_name or own not in (session, None):
            continue
        for number, end in given.log.items():
            receipt = marks.receipt(session, run, number)
            if receipt is not None and receipt.head.hex() != end.head:
                yield f"round {number} has another head in the marks than in the log"


def _other_model(given: Material, ledger: Charged) -> Iterator[str]:
    """The state that the site itself computed after the last round that it saw to its end, against the last one.

    What an optimiser remembers is in no file: then it takes the transcripts.
    """
    kept = _kept(ledger.path.parent / NEXT_MODELS)
    for name, (head, expected) in kept.items():
        for run in given.runs:
            last = run.ended[max(run.ended)].head if run.ended else ""
            if name.endswith(f"/{given.run_name}") and head == last and run.model.is_file():
                vector = flatten(load_model(run.model, run.study))
                if given.course.kept:
                    reached = reached_in(given)
                    if reached.round != max(run.ended):
                        continue
                    vector = reached.state
                if model_hash(vector).hex() != expected:
                    yield f"the site computed another last model than {run.path.name} holds"


def _kept(path: Path) -> Mapping[str, Any]:
    try:
        return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}
    except ValueError:
        raise ConfigError(f"{path}: is not what a site writes") from None
