"""No two streams of randomness are one: of sites, rounds, steps, patients and purposes.

Every `Stream` that training opens is recorded by its key while sites train for several rounds. Keys come from the
operating system: among half a million of them, keys with 32 bits of randomness or fewer would meet 29 times.
"""

import hashlib
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from unittest.mock import patch

import numpy as np
from scipy import stats

from audits.base import Result, Task
from audits.conformance.testing import Tried, concluded, exact
from audits.conformance.training import SITE, sent, site_of, study_of
from fedseg import train
from fedseg.mechanisms.distributed import rotation
from fedseg.models import build_model
from fedseg.update import flatten
from secagg.prg import Stream

MECHANISMS = ("local", "distributed", "svt")
ROUNDS = 3
KEYS = 500_000


def audit(task: Task) -> Result:
    """Streams of three sites over three rounds at each mechanism; half a million keys."""
    opened = {mechanism: streams(mechanism, task) for mechanism in MECHANISMS}
    tried = {f"{mechanism}: {name}": p for mechanism, seen in opened.items() for name, p in tests(seen).items()}
    task.progress(f"{KEYS} keys")
    study = study_of("local", None)
    tried |= birthdays(lambda number: train._key(study, SITE, 1, 1, "noise"))
    bugs = {
        "one key for all rounds": lambda: tests(_with(bytes, task)),
        "the same keys at every site": lambda: tests(_with(_again_after(3 * ROUNDS), task)),
        "keys of 32 bits": lambda: birthdays(_of_32_bits()),
    }
    figures: dict[str, float | int | str] = {f"streams, {mechanism}": len(seen) for mechanism, seen in opened.items()}
    figures |= {"keys": KEYS, "sites": 3, "rounds": ROUNDS}
    return concluded("Streams of randomness", tried, bugs, figures)


def tests(opened: list[bytes]) -> Tried:
    """No key twice, and enough of them for every patient to have its own."""
    return {
        "no stream is opened twice": exact(max(Counter(opened).values()) == 1),
        "streams for every site, round and patient": exact(len(opened) >= 3 * ROUNDS * 4),
    }


def streams(mechanism: str, task: Task) -> list[bytes]:
    """Hashes of the keys of all streams that sites open while they train, without a seed."""
    task.progress(f"{mechanism}: streams of three sites over {ROUNDS} rounds")
    study, opened = study_of(mechanism, None, rounds=ROUNDS, sample_rate=0.9), list[bytes]()
    with recorded(opened):
        for site in study.site_ids:
            for number in range(1, ROUNDS + 1):
                sent(study, site_of(study), round_number=number, site=site)
    turned = hashlib.sha256(rotation(flatten(build_model(study)))).digest()  # public, and the same at all sites
    return [key for key in opened if key != turned]


@contextmanager
def recorded(opened: list[bytes]) -> Iterator[None]:
    """Keeps a hash of each key that a `Stream` is made with; public ones of a seed do not count."""
    honest, seeded = Stream.__init__, Stream.seeded

    def init(stream: Stream, key: bytes | None = None) -> None:
        """Notes what a stream was made from."""
        honest(stream, key)
        if key is not None:
            opened.append(hashlib.sha256(key).digest())

    def of_seed(seed: int, *labels: str | int) -> Stream:
        """Notes what a seeded stream was made from."""
        before = len(opened)
        stream = seeded(seed, *labels)
        del opened[before:]
        return stream

    with patch.object(Stream, "__init__", init), patch.object(Stream, "seeded", of_seed):
        yield


def birthdays(key: Callable[[int], bytes]) -> Tried:
    """Half a million keys: none is there twice, and their first four bytes meet as often as chance has it."""
    keys = b"".join(key(number) for number in range(KEYS))
    words = np.frombuffer(keys, "<u4").reshape(KEYS, 8)
    rows = np.unique(words, axis=0)
    tried = {"no key of half a million is there twice": exact(len(rows) == KEYS)}
    expected = KEYS * (KEYS - 1) / 2 / 2**32
    for place in range(8):
        _, counts = np.unique(words[:, place], return_counts=True)
        met = int((counts * (counts - 1) // 2).sum())
        low, high = stats.poisson.cdf(met, expected), stats.poisson.sf(met - 1, expected)
        tried[f"bytes {4 * place} to {4 * place + 3} meet as chance has it"] = float(min(1.0, 2 * min(low, high)))
    return tried


def _with(token: Callable[[int], bytes], task: Task) -> list[bytes]:
    with patch("fedseg.train.secrets.token_bytes", token):
        return streams("local", task)


def _again_after(keys: int) -> Callable[[int], bytes]:
    """As many keys as a site needs, which are sampling, slices and noise of each round, and the same ones again."""
    numbers = count()
    return lambda size: hashlib.sha256((next(numbers) % keys).to_bytes(4, "big")).digest()[:size]


def _of_32_bits() -> Callable[[int], bytes]:
    draws = np.random.default_rng(3).integers(2**32, size=KEYS)
    return lambda number: hashlib.sha256(int(draws[number]).to_bytes(4, "big")).digest()
