"""T-15 to T-17 (specification, "Runs"), for run folders.

Of T-17: the chain of each ledger, and the epsilon that the log states of a site. Signatures of lines are not looked at.
T-16 is in `states`.
"""

from __future__ import annotations

import json
import math
import tomllib
from collections.abc import Sequence
from pathlib import Path
from statistics import NormalDist
from typing import Any

import numpy as np

from audits.verifier import states
from audits.verifier.encoding import H
from audits.verifier.judge import Judge, ViolationError
from audits.verifier.reading import Reader, Transcript, read

Entry = dict[str, Any]
NONE = "0" * 64
COMPACT: dict[str, Any] = {"sort_keys": True, "separators": (",", ":")}
"""How the text is written that a line's id is of."""


def ledger(path: Path) -> list[Entry]:
    """T-17: the lines of a ledger, each of which names the one before it and is named by its own hash.

    Raises:
        ViolationError: T-17.
    """
    entries: list[Entry] = []
    for place, line in enumerate(path.read_text().splitlines()):
        entry = json.loads(line)
        about = {name: value for name, value in entry.items() if name not in ("event_id", "signature")}
        text = json.dumps(about, **COMPACT)
        if entry["previous"] != (entries[-1]["event_id"] if entries else NONE):
            raise ViolationError("T-17", f"{path.name} does not continue its own chain", place)
        if entry["event_id"] != H("ledger-event", text).hex():
            raise ViolationError("T-17", f"a line of {path.name} was changed", place)
        entries.append(entry)
    return entries


def epsilon(entries: Sequence[Entry], delta: float) -> float:
    """Epsilon of full steps with Gaussian noise, exactly: they compose to one of mu = sqrt(sum of steps / noise^2)."""
    if any(entry["kind"] == "none" for entry in entries):
        return math.inf
    if any(e.get("sample_rate", 1) != 1 or e.get("noise") == "skellam" or e["kind"] == "svt" for e in entries):
        raise NotImplementedError("only the product's accountants compose drawn patients, Skellam noise and svt")
    mu = math.sqrt(sum(_squared(entry) for entry in entries))
    phi = NormalDist().cdf
    low, high = 0.0, 1000.0
    for _ in range(100):
        middle = (low + high) / 2
        spent = phi(mu / 2 - middle / mu) - math.exp(middle) * phi(-mu / 2 - middle / mu)
        low, high = (middle, high) if spent > delta else (low, middle)
    return high


def _squared(entry: Entry) -> float:
    """The square of a line's mu: of a discrete Gaussian, all but 9 of the variance is a Gaussian's."""
    if entry["kind"] == "local":
        return float(entry["steps"] / entry["noise_multiplier"] ** 2)
    return float(entry["sensitivity"] ** 2 / (entry["shares"] * entry["variance"] - 9))


def charged(study: dict[str, Any], files: Sequence[Transcript], site: str, entries: Sequence[Entry]) -> None:
    """T-15: of every round in whose sum the site is, its ledger holds what the study plans, with at least its noise.

    Raises:
        ViolationError: T-15.
    """
    about, privacy = study["study"], study["privacy"]
    asks = study.get("data", {}).get("statistics", "none") == "secure"
    kind, first = privacy["mechanism"], min((file.number for file in files if file.finished), default=0)
    planned = {"kind": kind, "unit": privacy["unit"]}
    if kind in ("local", "distributed"):
        planned |= {"neighbouring": "add or remove one"}
        planned |= {name: privacy[name] for name in ("sample_rate", "clip_norm", "denominator")}
    if kind == "svt":
        planned |= {name: privacy[name] for name in ("released", "threshold")}
    if kind == "local":
        planned["steps"] = about["local_steps"]
    rounds = about["rounds"] + about.get("spare_rounds", 0) - asks
    for file in files:
        if site not in file.of["input"]:
            continue
        asking = asks and kind != "none" and file.number == first
        plan = {"kind": "statistics", "unit": privacy["unit"]} if asking else planned
        found = [e for e in entries if (e["training_run"], e["round_number"]) == (file.run, file.number)]
        if not any(all(entry[name] == value for name, value in plan.items()) for entry in found):
            raise ViolationError("T-15", f"round {file.number} is not in its ledger as the study plans it", None, site)
        if kind == "none":
            continue
        share = (privacy["statistics"] if asking else 1 - privacy["statistics"]) if asks else 1.0
        times = 1 + about.get("spare_rounds", 0) if asking else rounds
        if epsilon(found[:1] * times, share * privacy["delta"]) > share * privacy["epsilon"] * 1.001:
            raise ViolationError("T-15", f"round {file.number} has less noise than the study plans", None, site)


def noise_of(ledgers: Sequence[Sequence[Entry]], files: Sequence[Transcript]) -> dict[tuple[str, int], Entry]:
    """By kind and number of a round, the line that says how large its noise is; T-15 where two sites say otherwise."""
    found: dict[tuple[str, int], Entry] = {}
    about = ("sensitivity", "variance", "noise_multiplier", "clip_norm", "denominator")
    for entry in (entry for entries in ledgers for entry in entries):
        same = found.setdefault((entry["kind"], entry["round_number"]), entry)
        if entry["training_run"] == files[0].run and any(entry.get(name) != same.get(name) for name in about):
            raise ViolationError("T-15", f"the ledgers say two things of the noise of round {entry['round_number']}")
    return found


def stated(log: Sequence[dict[str, Any]], run: str, site: str, entries: Sequence[Entry], delta: float) -> int:
    """T-17: every epsilon that the log states of the site is the one of its ledger up to that round; their number.

    Raises:
        ViolationError: T-17.
    """
    events = [event for event in log if event["kind"] == "epsilon" and event["site"] == site]
    for event in events:
        at = next(i for i, e in enumerate(entries) if (e["training_run"], e["round_number"]) == (run, event["round"]))
        own = epsilon(entries[: at + 1], delta)
        if abs(own - event["spent"]) > 0.01 * own:
            raise ViolationError("T-17", f"the log says epsilon {event['spent']:.4f}, the ledger {own:.4f}", None, site)
    return len(events)


def verify_run(folder: Path, reader: Reader, start: np.ndarray | None = None) -> tuple[list[str], list[str]]:
    """T-15 and T-17 of every ledger in a run folder, and T-16 from the start of the study to its model file.

    Args:
        folder: of the run.
        reader: policy and roster.
        start: float32 (d,), the weights with which the study begins; without them T-16 is not checked.

    Returns:
        what held, and what was not checked, one sentence each.

    Raises:
        ViolationError: T-15, T-16 or T-17.
    """
    study = tomllib.loads((folder / "study.toml").read_text())
    log = [json.loads(line) for line in (folder / "events.jsonl").read_text().splitlines()]
    delta = study["privacy"]["delta"]
    judge = Judge()
    files = [read(path, reader, judge) for path in sorted((folder / "transcripts").glob("*.transcript"))]
    held, unchecked = [], []
    ledgers = {path: ledger(path) for path in sorted((folder / "ledger").glob("*.jsonl"))}
    for path, entries in ledgers.items():
        try:
            charged(study, files, path.stem, entries)
            count = stated(log, files[0].run, path.stem, entries, delta)
            held.append(f"{path.stem}: {len(entries)} lines of its ledger, {count} epsilons of the log (T-15, T-17)")
        except NotImplementedError as missing:
            unchecked.append(f"{path.stem}: how much noise (T-15) and which epsilon (T-17), because {missing}")
    if start is None:
        unchecked.append("T-16: the weights of the start were not given")
    elif why := states.unknown(study):
        unchecked.append(f"T-16: the text has no step of {why}")
    else:
        held.append(states.verify(folder, study, files, reader.policy, start, noise_of([*ledgers.values()], files)))
    return held, unchecked
