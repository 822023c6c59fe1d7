"""What a run is about at a coordinator: the model of a study, which every sum moves on by one step."""

import json
from collections.abc import Callable, Sequence
from importlib.metadata import version

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.coordinator.figures import Figures
from fedseg.course import Course
from fedseg.dialogue import Metrics, Progress, content_of, state_in
from fedseg.errors import RoundFailedError
from fedseg.events import Note, RoundEnded, Trained
from fedseg.models import build_model
from fedseg.models.standardising import follow
from fedseg.runfolder import RunFolder, Tally
from fedseg.summary import found_in
from fedseg.update import model_hash
from secagg.book import RoundBook
from secagg.driver import Completed
from secagg.policy import Policy
from secagg.service.dialogue import Message
from secagg.service.errors import DialogueError
from secagg.service.events import Summed

_LENGTH_BYTES = 4


def release() -> str:
    """What all parties of a study run."""
    return f"fedseg {version('secagg')}"


class Training:
    """The application of `secagg.service` that a study is.

    Args:
        folder: the run's; what it shows follows from what the journal holds.

    Attributes:
        model, vector: the last ones: the network, and weights with what an optimiser keeps behind them.
        policy: of the run; set before the first round.
        book: the same.
    """

    kinds: Sequence[type[Message]] = (Progress, Metrics)

    def __init__(self, folder: RunFolder) -> None:
        self._folder, self._study = folder, folder.study
        self.model = build_model(self._study)
        self.course = Course(self._study, self.model)
        self.parameters = self.course.parameters
        self.vector: NDArray[np.float32] = self.course.opened(self.model)
        self.policy: Policy | None = None
        self.book: RoundBook | None = None
        self.figures = Figures(folder)
        self.replayed = not self._study.trust.each_update_private
        self.content_bytes = 4 * len(self.vector)
        self.release, self.rounds = release(), self._study.study.rounds
        self.restored = False
        self.running: Callable[[], int] = lambda: 0
        self._ended: RoundEnded | None = None
        self._trained: dict[str, tuple[int, int]] = {}  # round and step that a site told last, in this attempt

    async def prepare(self) -> None:
        """The start is read by the coordinator, which says so."""

    def wants_more(self, book: RoundBook) -> bool:
        """Whether rounds of the study are left."""
        return len(book.receipts) < self.rounds

    @property
    def given_out(self) -> torch.nn.Module:
        """The last model, or with `[federation] ema` the average."""
        return self.course.given_out(self.model, self.vector)

    def about(self, book: RoundBook) -> bytes:
        """Hash of the model that the next attempt is about."""
        self._trained.clear()
        return model_hash(self.vector)

    def content(self) -> bytes:
        """The model."""
        return content_of(self.vector)

    def completed(self, done: Completed, summed: Summed) -> None:
        """The next model; every site computes the same."""
        policy = self.policy
        if policy is None:
            raise RoundFailedError("a sum came before the run began")
        asked = self._study.asks(self.vector)
        self.vector = self.course.following(self.vector, done.total, done.included, policy, done.excess_seeds)
        if asked:
            self._folder.emit(Note(text=found_in(self._study, self.vector)))
        follow(self.model, self.vector, self._study)
        self._ended = RoundEnded(
            round=summed.round,
            attempt=summed.attempt,
            included=summed.included,
            dropped=summed.dropped,
            exact=None,
            head=summed.head,
            clip_rate={},
            bytes_up=summed.bytes_up,
            bytes_down=summed.bytes_down,
            seconds=summed.seconds,
        )

    def counted(self, summed: Summed) -> None:
        """Write the round into the run's folder."""
        if self._ended is not None and self._folder.tally.last_round < self._ended.round:
            self.figures.record(self._ended.round)
            self._folder.end_round(self.given_out, self.book, self._ended)

    def state(self) -> bytes:
        """The model, and what the run's folder shows: so that it can be written again."""
        told = {
            "tally": self._folder.tally.model_dump(),
            "ended": None if self._ended is None else self._ended.model_dump(),
            "figures": self.figures.kept(),
        }
        text = json.dumps(told).encode()
        return len(text).to_bytes(_LENGTH_BYTES, "big") + text + self.content()

    def restore(self, state: bytes) -> None:
        """Go on from there; what the folder lacks of it is written."""
        end = _LENGTH_BYTES + int.from_bytes(state[:_LENGTH_BYTES], "big")
        told = json.loads(state[_LENGTH_BYTES:end])
        self.vector, self.restored = state_in(state[end:]), True
        follow(self.model, self.vector, self._study)
        self.figures.restore(told["figures"])
        self._ended = RoundEnded.model_validate(told["ended"])
        before = Tally.model_validate(told["tally"])
        if self._folder.finished or self._folder.tally.last_round >= self._ended.round:
            return
        self._folder.tally = before
        told = any(
            isinstance(event, RoundEnded) and event.round == self._ended.round for event in self._folder.events()
        )
        if told:  # a run that was given up has its report, and no checkpoint
            self.figures.count(self._ended.round)
            self._folder.tally.add(self._ended)
            self._folder.checkpoint(self.given_out, self.book)
        else:
            self.figures.record(self._ended.round)
            self._folder.end_round(self.given_out, self.book, self._ended)

    def heard(self, site: str, message: Message) -> None:
        """How far a site's training is, or what it shares of its held-out patients."""
        match message:
            case Progress():
                self.figures.epsilon[site] = message.epsilon
                steps = self._study.study.local_steps
                step = (message.round, message.step)
                true = message.round == self.running() and message.step <= message.steps == steps
                if true and step > self._trained.get(site, (0, 0)):  # else late, not true, or told before
                    self._trained[site] = step
                    self._folder.emit(Trained(round=message.round, site=site, step=message.step, steps=steps))
            case Metrics() if self._study.report.share_metrics:
                try:
                    self.figures.take(site, message)
                except RoundFailedError as error:
                    raise DialogueError(str(error)) from None
