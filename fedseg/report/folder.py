"""Reads a run folder for the report and cross-checks its files.

It must never guess: a file that is missing, cut off or of another run is refused by name. Pictures are loaded without
pickle; nothing outside the folder is opened.
"""

import hashlib
import json
import tomllib
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from fedseg.data.view import View
from fedseg.errors import EARLIER, ConfigError
from fedseg.events import (
    Audited,
    Event,
    Listening,
    RoundEnded,
    StepAccepted,
    StudyStarted,
    Trained,
    event_of,
    finite,
)
from fedseg.mechanisms.table import trust_in
from fedseg.records import Metrics

RANKS = ("best", "median", "worst")


@dataclass(frozen=True)
class Example:
    """One picture: image (H, W) float32, truth and prediction (H, W) uint8, and whose it is.

    A case has a name in the file, for its owner; a page says site and slice only.
    """

    image: NDArray[np.float32]
    truth: NDArray[np.uint8]
    prediction: NDArray[np.uint8]
    rank: str
    site: str
    dice: float | None
    view: View | None = None


@dataclass(frozen=True)
class Explained:
    """A made patient's picture (H, W) float32, how much each pixel decides (H, W) from 0 to 1, and what was said."""

    image: NDArray[np.float32]
    decisive: NDArray[np.float32]
    words: str
    site: str


@dataclass(frozen=True)
class Run:
    """Everything a report may know."""

    study: StudyStarted
    events: tuple[Event, ...]
    metrics: Metrics
    toml: str
    layout: str
    examples: tuple[Example, ...]
    explained: tuple[Explained, ...]
    digests: dict[str, str]

    @cached_property
    def by_round(self) -> dict[int | None, list[Event]]:
        """The events of every round, in order; None holds those of no round."""
        found: dict[int | None, list[Event]] = {}
        for event in self.events:
            found.setdefault(getattr(event, "round", None), []).append(event)
        return found


E = TypeVar("E", bound=Event)


def of_kind(run: Run, kind: type[E], round_number: int | None = None) -> list[E]:
    """The run's events of one kind, in order; of one round where a number is given."""
    events = run.events if round_number is None else run.by_round.get(round_number, ())
    return [event for event in events if isinstance(event, kind)]


def ended(run: Run) -> list[RoundEnded]:
    """The completed rounds by their numbers; a site may have learned of one later."""
    return sorted(of_kind(run, RoundEnded), key=lambda end: end.round)


@dataclass(frozen=True)
class Dropout:
    """A site that shared its keys in a completed round and is not in the sum; `back`, where it is in one again."""

    round: int
    site: str
    back: int | None


def dropouts(run: Run) -> list[Dropout]:
    """All dropouts, the same at every party: they follow from what sites signed, not from what one party saw."""
    ends = ended(run)
    return [
        Dropout(end.round, site, next((o.round for o in ends if o.round > end.round and site in o.included), None))
        for end in ends
        for site in end.dropped
    ]


def burned(run: Run) -> list[int]:
    """Numbers of rounds without a sum, the same at every party: those that the chain of receipts leaves out."""
    protocol = run.metrics.protocol
    numbers = range(1, protocol.rounds_completed + protocol.burned + 1)
    return sorted(set(numbers) - {end.round for end in of_kind(run, RoundEnded)})


def seen(run: Run) -> list[str]:
    """Sites of whose work this party saw something: all for a coordinator, itself for a site."""
    active = {event.site for event in run.events if isinstance(event, StepAccepted | Trained)}
    return [site for site in run.study.sites if site in active] or list(run.study.sites)


def read_run(folder: Path) -> Run:
    """Reads and cross-checks a run folder.

    Raises:
        ConfigError: a file is missing, truncated, malformed, or of another run; names the file and the remedy.
    """
    if not folder.is_dir():
        raise ConfigError(f"{folder}: no such run folder; name one that `fedseg simulate` or `coordinator` wrote")
    toml = _text(folder / "study.toml")
    try:
        layout = str(tomllib.loads(toml).get("data", {}).get("layout", ""))
    except (tomllib.TOMLDecodeError, AttributeError) as error:
        raise ConfigError(f"{folder / 'study.toml'}: not a study file ({error}); copy the study here again") from error
    metrics = _metrics(folder / "metrics.json")
    if metrics.privacy is not None and metrics.format < 2:
        raise ConfigError(f"{folder}: {EARLIER}")
    path = folder / "events.jsonl"
    events = _audited(tuple(_events(path)))
    study = next((event for event in events if not isinstance(event, Listening)), None)
    if not isinstance(study, StudyStarted):
        raise ConfigError(f"{path}: the first line must be the 'study' event; the beginning is missing, run again")
    if metrics.privacy is None and trust_in(study.mechanism, study.max_corrupt).claims_epsilon:
        raise ConfigError(
            f"{folder / 'metrics.json'}: field privacy is missing although mechanism = {study.mechanism!r}; "
            "run the study again"
        )
    run = Run(study, events, metrics, toml, layout, *_pictures(folder / "examples.npz"), _digests(folder))
    if run.study.study_hash != metrics.study_hash:
        raise ConfigError(f"{path} and metrics.json have different study hashes: the folder mixes two runs")
    finished = len({event.round for event in of_kind(run, RoundEnded)})
    if finished != metrics.protocol.rounds_completed:
        raise ConfigError(
            f"{path} has {finished} finished rounds and metrics.json says {metrics.protocol.rounds_completed}: "
            "one of them is cut off; finish the run with --resume or run it again"
        )
    return run


def _text(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError as error:
        raise ConfigError(f"{path} is missing: the run did not finish; go on with --resume or run again") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} cannot be read: {error}") from error


def _metrics(path: Path) -> Metrics:
    try:
        return Metrics.model_validate(json.loads(_text(path)))
    except json.JSONDecodeError as error:
        raise ConfigError(f"{path} is cut off or not JSON (line {error.lineno}); run the study again") from error
    except ValidationError as error:
        raise ConfigError(f"{path}: {_first(error)}") from error


def _events(path: Path) -> Iterator[Event]:
    shift = last = 0.0
    for number, line in enumerate(_text(path).encode().splitlines(), start=1):
        try:
            event = event_of(json.loads(line))
        except (json.JSONDecodeError, AttributeError) as error:
            raise ConfigError(
                f"{path}: line {number} is cut off or not a JSON object; finish the run with --resume or run it again"
            ) from error
        except ValidationError as error:
            raise ConfigError(f"{path}: line {number}, {_first(error)}") from error
        if event is None:
            continue
        if isinstance(event, StudyStarted) and event.t + shift < last:
            shift = last - event.t  # a resumed run counts its seconds from zero again
        last = event.t + shift
        yield event.model_copy(update={"t": last}) if shift else event


def _audited(events: tuple[Event, ...]) -> tuple[Event, ...]:
    """Ended rounds with what an audit found out about their sums."""
    found = {event.round: event.exact for event in events if isinstance(event, Audited)}
    return tuple(
        event.model_copy(update={"exact": found[event.round]})
        if isinstance(event, RoundEnded) and event.round in found
        else event
        for event in events
        if not isinstance(event, Audited)
    )


def _first(error: ValidationError) -> str:
    problem = error.errors(include_url=False, include_input=False)[0]
    where = ".".join(str(part) for part in problem["loc"])
    return f"field {where}: {problem['msg'].lower()}; the file was written by something else, run the study again"


def _pictures(path: Path) -> tuple[tuple[Example, ...], tuple[Explained, ...]]:
    """Cases with outlines, and pictures with what decides their class."""
    if not path.exists():
        return (), ()
    try:
        with np.load(path, allow_pickle=False) as arrays:
            meta = json.loads(str(arrays["meta"]))
            found = [
                Example(
                    image=np.asarray(arrays[f"image_{i}"], np.float32),
                    truth=np.asarray(arrays[f"truth_{i}"], np.uint8),
                    prediction=np.asarray(arrays[f"prediction_{i}"], np.uint8),
                    rank=str(item["rank"]),
                    site=str(item["site"]),
                    dice=finite(item["dice"]),
                    view=View(**item["view"]) if item.get("view") else None,
                )
                for i, item in enumerate(meta)
                if "rank" in item
            ]
            explained = [
                Explained(
                    np.asarray(arrays[f"image_{i}"], np.float32),
                    np.asarray(arrays[f"decisive_{i}"], np.float32),
                    str(item["words"]),
                    str(item["site"]),
                )
                for i, item in enumerate(meta)
                if "rank" not in item
            ]
    except (OSError, EOFError, KeyError, TypeError, ValueError, zipfile.BadZipFile) as error:
        raise ConfigError(f"{path} is cut off or not a picture file of a run; delete it or run again") from error
    for i, example in enumerate(found):
        if example.image.ndim != 2 or not example.image.shape == example.truth.shape == example.prediction.shape:
            raise ConfigError(f"{path}: image_{i}, truth_{i} and prediction_{i} must have one two-dimensional shape")
    if any(one.image.ndim != 2 or one.image.shape != one.decisive.shape for one in explained):
        raise ConfigError(f"{path}: a picture and what decides it must have one two-dimensional shape")
    return tuple(sorted(found, key=lambda example: [*RANKS, example.rank].index(example.rank))), tuple(explained)


def _digests(folder: Path) -> dict[str, str]:
    """SHA-256 of the files that the report stands for, by name relative to the folder."""
    names = ["study.toml", "model.safetensors", "metrics.json", "events.jsonl"]
    paths = [folder / name for name in names] + sorted((folder / "ledger").glob("*.jsonl"))
    found = {}
    for path in paths:
        if path.is_file():
            with path.open("rb") as file:
                found[path.relative_to(folder).as_posix()] = hashlib.file_digest(file, "sha256").hexdigest()
    return found
