"""All three parties on this computer, over TLS as always: whether encrypted answers are the plain ones.

Whoever has the model can check it before anybody sends a picture. SPU computes with 20 binary places, so that outputs
differ a little: by `ALLOWED` at most, and the likeliest class by what is stated.
"""

import os
import socket
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
from numpy.typing import NDArray

from fedseg.encrypted.parties import ROLES, PartyError, make_key, read_parties
from fedseg.encrypted.program import Program
from fedseg.encrypted.session import Session
from fedseg.encrypted.tracing import program_of
from fedseg.study import Study
from secagg.prg import Stream

ALLOWED = 1e-3
"""By which an output before softmax may differ from PyTorch's."""


@dataclass(frozen=True)
class Agreement:
    """How alike answers are.

    Attributes:
        apart: the largest difference of two outputs.
        largest: output, by its size.
        alike: places, or pictures, whose likeliest class is the same.
        places: of how many.
        seconds: of each question: the first one is compiled too.
    """

    apart: float
    largest: float
    alike: int
    places: int
    seconds: tuple[float, ...]

    @property
    def holds(self) -> bool:
        """Whether no output differs by more than is allowed."""
        return self.apart <= ALLOWED


def agreement(model: torch.nn.Module, study: Study, questions: int = 2, at_once: int = 1) -> Agreement:
    """Ask made pictures, encrypted and not.

    Args:
        model: the study's network.
        study: what it was trained with.
        questions: how many.
        at_once: pictures in each.

    Raises:
        ConfigError: the network cannot be asked.
        PartyError: the parties did not come together here.
    """
    program, weights = program_of(model, study)
    said, truth, seconds = [], [], []
    with three_here(program, weights) as session:
        for number in range(questions):
            pictures = made(program, at_once, number)
            began = time.perf_counter()
            said.append(session.ask(pictures))
            seconds.append(time.perf_counter() - began)
            with torch.inference_mode():
                truth.append(model(torch.from_numpy(pictures)).numpy())
        session.end()
    return agreement_of(np.concatenate(said), np.concatenate(truth), seconds)


def agreement_of(
    encrypted: NDArray[np.float32], plain: NDArray[np.float32], seconds: Iterable[float] = ()
) -> Agreement:
    """How alike (k, outputs, ...) are to each other."""
    alike = encrypted.argmax(1) == plain.argmax(1)
    apart, largest = float(np.abs(encrypted - plain).max()), float(np.abs(plain).max())
    return Agreement(apart, largest, int(alike.sum()), alike.size, tuple(seconds))


def made(program: Program, count: int, number: int) -> NDArray[np.float32]:
    """Waves of several sizes and directions, (count, channels, height, width), as large as scaled intensities are."""
    channels, height, width = program.picture
    down, across, size = (
        Stream.seeded(1, "encrypted", number).uniform(count * channels * 3).reshape(3, count, channels, 1, 1)
    )
    rows, columns = np.linspace(0, 20, height)[:, None], np.linspace(0, 20, width)[None]
    return np.asarray((0.5 + 2 * size) * np.sin(down * rows + across * columns), np.float32)


@contextmanager
def three_here(program: Program, weights: Mapping[str, NDArray[np.float32]]) -> Iterator[Session]:
    """All three parties on free ports of this computer, with keys of their own; the pictures' owner's session, ready.

    Raises:
        PartyError: one of them did not come.
    """
    with TemporaryDirectory() as folder:
        path = _described(Path(folder))
        parties = read_parties(path)

        def follow(role: str) -> None:
            """The other two's commands."""
            given = {"program": program, "weights": weights} if role == "model" else {}
            with suppress(PartyError), Session(parties, role, parties.key(role), **given) as other:  # type: ignore[arg-type]
                other.hear("end")

        others = [threading.Thread(target=follow, args=(role,), daemon=True) for role in ROLES[1:]]
        for other in others:
            other.start()
        with Session(parties, "data", parties.key("data"), wait=120.0) as session:
            session.hear("ready")
            yield session
        for other in others:
            other.join()


def _described(folder: Path) -> Path:
    lines = []
    for role, port in zip(ROLES, _free_ports(len(ROLES)), strict=True):
        make_key(role, folder)
        lines += [f"[{role}]", f'address = "127.0.0.1:{port}"', f'certificate = "{role}.pem"']
        lines += [f'sha256 = "{os.urandom(32).hex()}"'] if role == "model" else []
    path = folder / "parties.toml"
    path.write_text("\n".join(lines), encoding="utf-8")
    return path


def _free_ports(count: int) -> list[int]:
    held = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [int(one.getsockname()[1]) for one in held]
    for one in held:
        one.close()
    return ports
