"""Draws initial weights, the same at every party, though layers of torch draw from one generator of the process."""

from collections.abc import Iterator
from contextlib import contextmanager
from threading import Lock

import torch

from secagg.prg import Stream

_one = Lock()


@contextmanager
def weights_from(stream: Stream) -> Iterator[None]:
    """Inside, torch draws from a seed of the stream; afterwards its generator goes on as if nothing had been drawn.

    One thread at a time: two would take turns at the same generator, and both would begin with wrong weights.
    """
    with _one, torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(int(stream.integers(1, 2**62)[0]))
        yield
