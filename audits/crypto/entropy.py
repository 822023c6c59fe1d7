"""Every byte that a round asks the operating system for, counted and held against the specification.

Statistics of what a server sees cannot tell a 32-bit seed from a good one; who counts requests can. What libraries draw
by themselves (the ephemeral keys of HPKE) is beyond this count.
"""

import os
import secrets
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any
from unittest import mock

from audits.base import Result, Task

CLIENTS = 5


class Asked:
    """Sizes and values of requests, by who asked in which step of a round with this threshold."""

    def __init__(self, threshold: int = 0) -> None:
        self.threshold = threshold
        self.now, self.drawn = ("", ""), dict[tuple[str, str], list[bytes]]()
        self._real = os.urandom

    def __call__(self, size: int | None = 32) -> bytes:
        """What `os.urandom` and `secrets.token_bytes` give."""
        value = self._real(32 if size is None else size)
        self.drawn.setdefault(self.now, []).append(value)
        return value

    @contextmanager
    def by(self, who: str, step: str) -> Iterator[None]:
        """Requests of this party in this step."""
        self.now = who, step
        yield
        self.now = "", ""


def run(task: Task) -> Result:
    """One whole round of each suite with one client that falls silent; then sealed files."""
    wrong, figures = list[str](), dict[str, float | int | str]()
    for hybrid in (False, True):
        asked = played(hybrid)
        found = list(_held_against_the_specification(asked, figures, "hybrid" if hybrid else "x25519"))
        wrong += found
    wrong += _sealed()
    values = sum(isinstance(value, int) for value in figures.values())
    says = f"{values} counts of bytes asked of the operating system in a round are those of the specification"
    if wrong:
        says = f"{len(wrong)} counts are not those of the specification, the first: {wrong[0]}"
    return Result("violated" if wrong else "holds", says + ".", figures)


def played(hybrid: bool) -> Asked:
    """A round of real sessions; what each asked for in each step."""
    from secagg.policy import Suite
    from tests.support.cohort import Cohort

    cohort = Cohort(CLIENTS, suite=Suite.MLKEM768_X25519 if hybrid else Suite.X25519)
    asked = Asked(cohort.policy.threshold)
    with mock.patch("os.urandom", asked), mock.patch.object(secrets, "token_bytes", asked):
        with asked.by("server", "start"):
            server = cohort.server()
        clients, out = {}, {}
        for me in cohort.ids:
            with asked.by(me, "AdvertiseKeys"):
                clients[me] = cohort.client(me)
                out[me] = clients[me].start()
            with asked.by(me, "update"):
                clients[me].provide(cohort.updates[me], "event")
        while not server.finished:
            step = server.step
            with asked.by("server", step):
                for me, message in out.items():
                    server.receive(me, message)
                replies = dict(server.close_step())
            out = {}
            for me, message in replies.items():
                if (me, server.step) == (cohort.ids[-1], "MaskedInputCollection"):
                    continue
                with asked.by(me, server.step):
                    reply = clients[me].receive(message)
                out |= {} if reply is None else {me: reply}
    return asked


def expected(threshold: int) -> Mapping[str, tuple[int, ...]]:
    """Bytes of each request of a client, by step: docs/spec.md, "Keys and seeds", "Messages" and "Encoding".

    c_u, s_u and the nonce; b_u, and the coefficients of two polynomials (33 bytes each, drawn again where they would
    bias, which is left out here); the key of the stream that rounds.
    """
    coefficients = 33 * (threshold - 1)
    return {
        "AdvertiseKeys": (32, 32, 16),
        "ShareKeys": (32, coefficients, coefficients),
        "update": (32,),
    }


def _held_against_the_specification(asked: Asked, figures: dict[str, Any], suite: str) -> Iterator[str]:
    from secagg.shamir import _MULTIPLE

    every = [value for drawn in asked.drawn.values() for value in drawn]
    if len(set(every)) != len(every):
        yield "one value was drawn twice"
    steps = expected(asked.threshold)
    for (who, step), drawn in sorted(asked.drawn.items()):
        sizes, again = list[int](), 0
        for value in drawn:
            if again and len(value) == 33 * again:
                again = 0  # drawn again for those that were thrown away
            else:
                sizes.append(len(value))
            if step == "ShareKeys" and len(value) % 33 == 0:
                words = (int.from_bytes(value[i : i + 33], "big") for i in range(0, len(value), 33))
                again = sum(word >= _MULTIPLE for word in words)
        if tuple(sizes) != steps.get(step, ()) or who == "server":
            yield f"{who} asked for {sizes} bytes in {step} ({suite}), and the specification says {steps.get(step, ())}"
    clients = {who for who, _ in asked.drawn}
    if len(clients) != CLIENTS:
        yield f"{len(clients)} parties drew anything, and there are {CLIENTS} clients"
    for step, right in steps.items():
        figures[f"bytes_{suite}_{step}"] = sum(right)


def _sealed() -> Iterator[str]:
    """Every sealed file has a nonce of its own, of 12 bytes."""
    from secagg.keys import SealingKey, SigningKey

    asked, key = Asked(), SealingKey(SigningKey.generate())
    with mock.patch("os.urandom", asked), mock.patch.object(secrets, "token_bytes", asked):
        sealed = [key.seal(b"about", b"the same") for _ in range(100)]
    drawn = asked.drawn.get(("", ""), [])
    if [len(value) for value in drawn] != [12] * 100 or len({one[:12] for one in sealed}) != 100:
        yield f"100 sealed files have {len({one[:12] for one in sealed})} nonces, from {len(drawn)} draws"
