"""TensorBoard: the figures of a run while it runs, and in its end the pictures that its report shows.

Written by default where tensorboard is installed, into `tensorboard/` of the run folder. It holds what the run folder
holds already, and of pictures only what `report.html` may show: made patients, and nobody else. A coordinator has no
picture of a site's patient, and none is written at a site or of a simulation of real images.
"""

import base64
import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from fedseg.errors import SiteWarning
from fedseg.events import AnyEvent, EpsilonSpent, RoundEnded, Scored
from fedseg.report.claims import pictures_of_patients
from fedseg.report.folder import read_run
from fedseg.report.pictures import PIXELS, pictures
from fedseg.runfolder import TENSORBOARD
from secagg.writing import PRIVATE, PRIVATE_FOLDER


def installed() -> bool:
    """Whether there is a tensorboard to write for."""
    return find_spec("tensorboard") is not None


@contextmanager
def costing_nothing() -> Iterator[None]:
    """Curves and pictures that cannot be written are told of, and the run goes on: a full disk, a broken package."""
    try:
        yield
    except Exception as error:
        warnings.warn(f"TensorBoard has no more of this run ({type(error).__name__}: {error})", SiteWarning, 2)


class Board:
    """A `Listener` that writes scalars: Dice, epsilon, sites in the sum, bytes. One that fails costs the run nothing.

    What is told before the run has its folder waits, and of a run that goes on all of it is written again.
    """

    def __init__(self) -> None:
        self._waiting: list[AnyEvent] = []
        self._writer: Any = None

    def __call__(self, event: AnyEvent) -> None:
        """Take one event of the run."""
        if self._writer is None:
            self._waiting.append(event)
            return
        self._write(event)

    def at(self, run: Path) -> None:
        """The run's folder is known."""
        waiting, self._waiting = self._waiting, []
        self.close()
        with costing_nothing():
            shutil.rmtree(run / TENSORBOARD, ignore_errors=True)
            self._writer = _writer(run)
            for event in waiting:
                self._write(event)

    def _write(self, event: AnyEvent) -> None:
        for name, value in _scalars(event).items():
            if value is not None:
                self._writer.add_event(_event(event.round, tag=name, simple_value=value))  # type: ignore[union-attr]
        if isinstance(event, RoundEnded):
            self._writer.flush()

    def close(self) -> None:
        """Bring everything to the disk."""
        writer, self._writer = self._writer, None
        if writer is not None:
            with costing_nothing():
                writer.close()


def write_pictures(run: Path) -> int:
    """Add the pictures of a complete run's report; none where they are of patients. Returns how many.

    Raises:
        ConfigError: the run folder is not whole.
    """
    found = read_run(run)
    if pictures_of_patients(found) or not found.examples:
        return 0
    writer, written = _writer(run), 0
    for place, example in enumerate(found.examples):
        for caption, uri in pictures(example, len(found.study.structures)):
            png = base64.b64decode(uri.partition(",")[2])
            image = {"encoded_image_string": png, "height": PIXELS, "width": PIXELS, "colorspace": 4}
            tag = f"{example.rank or place} made patient/{caption}"
            writer.add_event(_event(found.metrics.protocol.rounds_completed, tag=tag, image=image))
            written += 1
    writer.close()
    return written


def _scalars(event: AnyEvent) -> dict[str, float | None]:
    match event:
        case Scored():
            return {f"{event.site}/{name}": value for name, value in event.values.items()}
        case EpsilonSpent():
            return {f"epsilon/{event.site}": event.spent}
        case RoundEnded():
            sizes = {"round/bytes up": event.bytes_up, "round/bytes down": event.bytes_down}
            return {**sizes, "round/sites in the sum": len(event.included)}
    return {}


def _writer(run: Path) -> Any:
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder = run / TENSORBOARD
    folder.mkdir(mode=PRIVATE_FOLDER, exist_ok=True)
    writer = EventFileWriter(str(folder))
    for file in folder.iterdir():  # figures of patients, as metrics.json has them: their owner's only
        file.chmod(PRIVATE)
    return writer


def _event(step: int, **value: Any) -> Any:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    return Event(step=step, summary=Summary(value=[Summary.Value(**value)]))
