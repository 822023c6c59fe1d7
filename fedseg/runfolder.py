"""A run on disk: one folder, written beside its final name and renamed when it is complete.

Events are appended as they happen; after every whole round a checkpoint makes the model and the server's book durable,
and `reopen` goes on from there. Nothing here holds an update or a secret.
"""

import json
import secrets
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from threading import Lock
from types import TracebackType
from typing import Any, Self, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import BaseModel, SerializeAsAny

from fedseg.data.cases import Case
from fedseg.data.view import View, busiest, pixels
from fedseg.errors import EARLIER, ConfigError
from fedseg.events import AnyEvent, Audience, Listener, Resumed, RoundEnded, event_of, now
from fedseg.files import append_line, hold, private
from fedseg.models import load_model, metadata_of, save_model
from fedseg.records import Drop, MaybeInterval, Metrics, Validated
from fedseg.study import Study, parse_study
from secagg.book import RoundBook
from secagg.writing import PRIVATE_FOLDER, replacing, write_whole

PARTIAL = ".partial"
FORMAT = 2
"""Of state.json and metrics.json; 1, which was not written down, is of fedseg 0.1 and 0.2."""
POLICY = "policy.toml"
"""The aggregation policy that this party computed itself: what `secagg verify-transcript` is given."""
FEDERATION = "federation.toml"
"""Of a simulation, which makes its own parties: roster, run and server key."""
TRANSCRIPTS = "transcripts"
IDENTITY = "coordinator.json"
"""Of a coordinator's run: which run it is, beside its journal."""
JOURNAL = "journal.sqlite"
"""The same: everything from which it goes on."""
OWN_MODELS = "own-models"
"""Of a study with `[federation] personal`: each site's own model, as far as it is here."""
TENSORBOARD = "tensorboard"
"""Figures for TensorBoard, where that is installed."""
LIFETIME = "lifetime.json"
"""Of a simulation that was charged for life: in which state folder each site's ledger is."""
KEPT = (
    "study.toml",
    "model.safetensors",
    "metrics.json",
    "events.jsonl",
    "examples.npz",
    "ledger",
    TRANSCRIPTS,
    OWN_MODELS,
    TENSORBOARD,
    POLICY,
    FEDERATION,
    LIFETIME,
    IDENTITY,
    JOURNAL,
)

NOTHING: NDArray[np.float32] = np.empty(0, np.float32)

Picture: TypeAlias = tuple[str, Case, NDArray[np.uint8] | NDArray[np.float32], float]
"""Rank, case, prediction and Dice of a case to be shown; of a class what was said, what decides it, and how likely."""


class Tally(BaseModel):
    """What a run has added up so far; all of it survives an interruption.

    `in_sums` is by how many sites are in a sum the number of rounds with such a sum.
    """

    mode: str = ""
    completed: int = 0
    first_round: int = 0
    last_round: int = 0
    burned: int = 0
    bytes_up: int = 0
    bytes_down: int = 0
    seconds: dict[str, float] = {}
    dropouts: list[Drop] = []
    in_sums: dict[int, int] = {}
    history: list[SerializeAsAny[Validated]] = []
    baselines: dict[str, MaybeInterval] = {}

    def add(self, ended: RoundEnded) -> None:
        """Count a completed round."""
        self.completed += 1
        self.first_round = min(self.first_round or ended.round, ended.round)
        self.last_round = max(self.last_round, ended.round)
        self.bytes_up += ended.bytes_up
        self.bytes_down += ended.bytes_down
        self.in_sums[len(ended.included)] = self.in_sums.get(len(ended.included), 0) + 1
        self.dropouts += [Drop(round=ended.round, site=site) for site in ended.dropped]
        for step, seconds in ended.seconds.items():
            self.seconds[step] = self.seconds.get(step, 0.0) + seconds


class RunFolder:
    """`runs/<study>-<utc>-<random>/`, under the same name with `.partial` until it is complete.

    The name is the training run's, in ledgers that outlive the folder: no two runs of one second share it.

    Attributes:
        path: where files are written now.
        tally: what has been added up.
        lasts: whether it stays although no round is complete: another process can go on with it.
    """

    def __init__(self, path: Path, study: Study, *listeners: Listener) -> None:
        self.path, self.study, self.tally = path, study, Tally()
        self._audience = Audience(*listeners)
        self.lasts = False
        self._lock = Lock()
        self._before = 0.0
        self._since = time.monotonic()
        self.started = datetime.now(UTC).isoformat(timespec="seconds")
        self._held = hold(path / "events.jsonl")

    @classmethod
    def create(cls, runs: Path, study: Study, *listeners: Listener) -> Self:
        """A new folder under `runs`.

        Raises:
            ConfigError: `runs` cannot be written.
        """
        stamp = datetime.now(UTC).strftime("%Y%m%dT%H%M%S")
        path = runs / f"{study.study.name}-{stamp}-{secrets.token_hex(3)}{PARTIAL}"
        try:
            path.mkdir(PRIVATE_FOLDER, parents=True)
            with open(path / "study.toml", "w", encoding="utf-8", opener=private) as file:
                file.write(study.toml())
        except OSError as error:
            shutil.rmtree(path, ignore_errors=True)  # its name was free
            raise ConfigError(f"{runs}: no run folder can be made there ({error.strerror}); give --out") from error
        return cls(path, study, *listeners)

    @classmethod
    def reopen(cls, path: Path, *listeners: Listener) -> Self:
        """A folder whose run was interrupted, as it was after the last whole round; `listeners` hear all up to there.

        Raises:
            ConfigError: there is nothing to go on with, or it is of an earlier version.
        """
        if not path.name.endswith(PARTIAL) or not (path / "state.json").is_file():
            raise ConfigError(f"{path}: holds no interrupted run; name a folder that ends in '{PARTIAL}'")
        read_state(path)
        study = parse_study((path / "study.toml").read_text(encoding="utf-8"), str(path / "study.toml"))
        folder = cls(path, study, *listeners)
        state = folder.state()
        folder.tally = Tally.model_validate(state["tally"])
        folder._before, folder.started = state["seconds"], state["started"]
        with (path / "events.jsonl").open("rb+") as events:  # what came after the last whole round will happen again
            events.truncate(state["events"])
        for line in (path / "events.jsonl").read_bytes().splitlines():  # of text, U+2028 would end a line, too
            if event := event_of(json.loads(line)):
                folder._tell(event)  # a screen that starts from nothing shows the whole run
        folder.emit(Resumed(round=folder.tally.last_round))
        return folder

    @classmethod
    def again(cls, path: Path, *listeners: Listener, over: bool) -> Self:
        """The folder of a coordinator's run, whose journal says how far it came; `listeners` hear all up to there.

        Args:
            path: the folder, under either name: a run that was given up has its final one.
            listeners: as of `create`.
            over: whether the run came to its end.

        Raises:
            ConfigError: it is of an earlier version.
        """
        if not path.name.endswith(PARTIAL) and not over:
            path = path.rename(path.with_name(path.name + PARTIAL))
        if path.name.endswith(PARTIAL) and (path / "state.json").is_file():
            folder = cls.reopen(path, *listeners)
        else:
            study = parse_study((path / "study.toml").read_text(encoding="utf-8"), str(path / "study.toml"))
            folder = cls(path, study, *listeners)
            for event in folder.events():
                folder._tell(event)
        folder.lasts = True
        return folder

    def events(self) -> Iterator[AnyEvent]:
        """All that was written down so far."""
        path = self.path / "events.jsonl"
        for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else []:
            if event := event_of(json.loads(line)):
                yield event

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """A run that failed before its first whole round leaves nothing behind."""
        self._held.close()
        if error is not None and not self.tally.completed and not self.finished and not self.lasts:
            _remove(self.path)

    @property
    def finished(self) -> bool:
        """Whether it has its final name, with all that a report needs."""
        return not self.path.name.endswith(PARTIAL)

    def state(self) -> dict[str, Any]:
        """The last checkpoint."""
        return read_state(self.path)

    @property
    def seconds(self) -> float:
        """Since the start of the run, interruptions left out."""
        return self._before + time.monotonic() - self._since

    def emit(self, event: AnyEvent) -> None:
        """Append an event to `events.jsonl` and tell the listeners, also where the disk has no room for it.

        Raises:
            OSError: it cannot be written.
        """
        with self._lock:  # sites train in threads
            event = self._stamped(event)
            try:
                append_line(self.path / "events.jsonl", event.model_dump_json())
            finally:
                self._tell(event)

    def end_round(
        self, model: torch.nn.Module, book: RoundBook | None, ended: RoundEnded, kept: NDArray[np.float32] = NOTHING
    ) -> None:
        """Append a completed round, count it, write the checkpoint, and only then tell the listeners.

        In this order a listener never hears of a round that a crash could undo.
        """
        with self._lock:
            event = self._append(ended)
            self.tally.add(ended)
            self.checkpoint(model, book, kept)
            self._tell(event)

    def _append(self, event: AnyEvent) -> AnyEvent:
        event = self._stamped(event)
        append_line(self.path / "events.jsonl", event.model_dump_json())
        return event

    def _stamped(self, event: AnyEvent) -> AnyEvent:
        return event.model_copy(update={"t": round(self.seconds, 4), "at": now()})

    def _tell(self, event: AnyEvent) -> None:
        for note in self._audience.tell(event):
            self._tell(self._append(note))

    def checkpoint(self, model: torch.nn.Module, book: RoundBook | None, kept: NDArray[np.float32] = NOTHING) -> None:
        """Make the last whole round durable: the model first, then the state that names it.

        Args:
            model: the last one.
            book: the server's.
            kept: what a simulation goes on from beside the model: the last state, and what is a site's own.
        """
        name = f"model-{self.tally.completed}.safetensors"
        save_model(model, self.path / name, metadata_of(self.study))
        optimiser = f"model-{self.tally.completed}.npy"
        with replacing(self.path / optimiser) as beside:
            np.save(beside, kept, allow_pickle=False)
        state = {
            "format": FORMAT,
            "tally": self.tally.model_dump(),
            "seconds": self.seconds,
            "started": self.started,
            "events": (self.path / "events.jsonl").stat().st_size,
            "model": name,
            "book": book.saved() if book is not None else None,
        }
        self._write("state.json", json.dumps(state))
        for old in self.path.glob("model-*"):
            if old.name not in (name, optimiser):
                old.unlink()

    def model(self) -> torch.nn.Module:
        """The model of the last checkpoint."""
        return load_model(self.path / self.state()["model"], self.study)

    def kept(self) -> NDArray[np.float32]:
        """What the last checkpoint kept beside the model."""
        found: NDArray[np.float32] = np.load(
            (self.path / self.state()["model"]).with_suffix(".npy"), allow_pickle=False
        )
        return found

    def keep_own(self, site: str, model: torch.nn.Module) -> None:
        """Write a site's own model beside the shared one."""
        folder = self.path / OWN_MODELS
        folder.mkdir(PRIVATE_FOLDER, exist_ok=True)
        save_model(model, folder / f"{site}.safetensors", metadata_of(self.study))

    def complete(self, metrics: Metrics, examples: Sequence[Picture]) -> Path:
        """Write what is left, drop what only an interrupted run needs, and take the final name."""
        (self.path / self.state()["model"]).rename(self.path / "model.safetensors")
        self._write("metrics.json", json.dumps(metrics.model_dump(), indent=1))
        if examples:
            _save_examples(self.path / "examples.npz", examples)
        for entry in self.path.iterdir():
            if entry.name not in KEPT:
                _remove(entry)
        final = self.path.with_name(self.path.name.removesuffix(PARTIAL))
        self.path.rename(final)
        self.path = final
        return final

    def _write(self, name: str, text: str) -> None:
        write_whole(self.path / name, text)


def read_state(run: Path) -> dict[str, Any]:
    """The last checkpoint of a run that is not complete.

    Raises:
        ConfigError: it is of an earlier version.
    """
    state: dict[str, Any] = json.loads((run / "state.json").read_text(encoding="utf-8"))
    if state.get("format") != FORMAT:
        raise ConfigError(f"{run}: {EARLIER}")
    return state


def _remove(entry: Path) -> None:
    if entry.is_dir():
        for child in entry.iterdir():
            _remove(child)
        entry.rmdir()
    else:
        entry.unlink()


def _save_examples(path: Path, examples: Sequence[Picture]) -> None:
    arrays: dict[str, Any] = {}
    meta = []
    for i, (rank, case, prediction, score) in enumerate(examples):
        if case.label is None:
            continue
        if not case.label.ndim:  # a class: shown is what decides it
            arrays[f"image_{i}"] = pixels(case.image[case.image.shape[0] // 2], case, 0)
            arrays[f"decisive_{i}"] = pixels(prediction, case, 0)
            meta.append({"words": rank, "site": case.site, "case": case.name, "likely": score})
            continue
        shown = busiest(case.label, case)[0]
        arrays[f"image_{i}"] = pixels(case.image[case.image.shape[0] // 2], case, shown)
        arrays[f"truth_{i}"] = pixels(case.label, case, shown)
        arrays[f"prediction_{i}"] = pixels(prediction, case, shown)
        view = asdict(View.of_slice(case, shown))
        meta.append({"rank": rank, "site": case.site, "case": case.name, "dice": score, "view": view})
    with open(path, "wb", opener=private) as file:
        np.savez_compressed(file, allow_pickle=False, meta=np.array(json.dumps(meta)), **arrays)
