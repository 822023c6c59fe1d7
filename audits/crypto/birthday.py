"""Birthday test of seeds: of half a million draws of each kind none comes twice.

Seeds of 32 bits would come twice 29 times in so many draws, and not at all with a chance of e^-29. The draws are the
product's own; only what is made of them (curve points) is left out, because it takes a hundred times as long.
"""

import secrets
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from unittest import mock

from audits.base import Result, Task

DRAWS = 500_000
LONG = ("channel keys", "streams of noise and rounding")
"""Kinds that are left to the full depth: `crypto.entropy` counts what they draw."""
EXPECTED = DRAWS * (DRAWS - 1) / 2 / 2**32


def run(task: Task) -> Result:
    """Draws of each kind, and the same test on seeds of 32 bits, which has to find some."""
    repeats = {"control: 32 bits": _repeats(lambda: sha256(secrets.token_bytes(4)).digest())}
    with without_points():
        for name, draw in kinds().items():
            if name in LONG and task.depth == "quick":
                continue
            task.progress(name)
            repeats[name] = _repeats(draw)
    control = repeats.pop("control: 32 bits")
    figures: dict[str, float | int | str] = {
        "draws_of_each_kind": DRAWS,
        "repeats_of_32_bits_expected": round(EXPECTED, 1),
    }
    figures |= {"repeats_of_32_bits": control, **{f"repeats_{name}": count for name, count in repeats.items()}}
    twice = {name: count for name, count in repeats.items() if count}
    if twice:
        name = max(twice, key=lambda one: twice[one])
        return Result(
            "violated", f"Of {DRAWS} {name} {twice[name]} came twice: they have too little randomness.", figures
        )
    if control < EXPECTED / 3:
        return Result("no power", f"Seeds of 32 bits came twice only {control} times, so nothing was shown.", figures)
    says = f"Of {DRAWS} draws of each of {len(repeats)} kinds of seed none came twice; of 32-bit seeds {control} did."
    return Result("holds", says, figures)


def _repeats(draw: Callable[[], bytes]) -> int:
    return DRAWS - len({draw() for _ in range(DRAWS)})


def _no_point(seed: bytes) -> tuple[None, bytes]:
    return None, b""


def _nothing_derived(*_: bytes) -> bytes:
    return b""


@contextmanager
def without_points() -> Iterator[None]:
    """The key classes, drawing as ever, without the curve points that follow."""
    with mock.patch("secagg.keys._x25519_key", _no_point), mock.patch("secagg.keys.hkdf", _nothing_derived):
        yield


def kinds() -> dict[str, Callable[[], bytes]]:
    """What is drawn, by what it is called."""
    from secagg import shamir
    from secagg.keys import ChannelKey, MaskKey
    from secagg.policy import Suite
    from secagg.prg import Stream

    suite = Suite.X25519
    return {
        "mask keys": lambda: MaskKey(suite).seed,
        "channel keys": lambda: ChannelKey(suite).seed,
        "coefficients of shares": lambda: shamir._uniform(1)[0].to_bytes(33, "big"),
        "streams of noise and rounding": lambda: Stream().words(8).tobytes(),
    }
