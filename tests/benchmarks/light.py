"""Clients that cost next to nothing, so that a server and a few real clients can be measured in a cohort of hundreds.

A light client sends every message of the protocol, signed, of the right kind and length. It leaves out what nobody else
can see: envelopes between two light clients hold random bytes, and are opened by looking up what was meant; what it
receives is not verified; its update is the same random vector as everybody's, and only the constant slots in it are
masked. To the server it is a client like any other, and makes it the same work; but the values of its sum mean nothing.
"""

import os
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import numpy as np
from numpy.typing import NDArray

from secagg import client, keys, masking, messages, session
from secagg.messages import Header
from secagg.packing import dtype_for, pack_into, packed_size
from secagg.policy import Policy, Suite
from secagg.shamir import SHARE_BYTES, split

UNREAD = {"clip_rate": 0.0, "clip_rates": {}}
"""What is said of an update that nobody quantises."""


class Lightness:
    """What the light clients of one round have in common. They live in one process, with no real client in it.

    Args:
        policy: of the round.
        gone: who will drop out: these secrets are opened, so that they have to be dealt in earnest.
    """

    def __init__(self, policy: Policy, gone: Collection[str]) -> None:
        length = policy.length + policy.slots
        self.gone, self.speaker = gone, ""
        self.real_keys: set[bytes] = set()  # of the real clients: what is sealed to them must open
        self._meant: dict[bytes, bytes] = {}
        self._words = np.random.default_rng(0).integers(0, 1 << policy.bits, length, dtype_for(policy.bits))
        self._packed: NDArray[np.uint8] = np.empty(packed_size(length, policy.bits), np.uint8)

    @contextmanager
    def installed(self) -> Iterator[None]:
        """In the place of the originals, in this process."""
        with ExitStack() as stack:
            for where, name, instead in (
                (client, "seal", self._seal),
                (client, "split", self._split),
                (client, "masked_input", self._masked_input),
                (
                    session,
                    "Quantised",
                    lambda _, policy, *rest: SimpleNamespace(policy=policy, clip_rate=0.0, clip_rates={}),
                ),
                (messages, "verify", lambda *_: True),
                (Header, "covers", lambda *_: True),
                (keys.ChannelKey, "open", self._opening(keys.ChannelKey.open)),
                (keys.MaskKey, "open_pair", self._opening(keys.MaskKey.open_pair)),
            ):
                stack.enter_context(patch.object(where, name, instead))
            yield

    def _seal(self, suite: Suite, public: bytes, info: bytes, plaintext: bytes) -> bytes:
        if public in self.real_keys:
            return keys.seal(suite, public, info, plaintext)
        envelope = os.urandom(keys.envelope_length(suite, len(plaintext)))
        self._meant[envelope] = plaintext
        return envelope

    def _opening(self, real: Callable[..., bytes]) -> Callable[..., bytes]:
        def opened(key: Any, info: bytes, envelope: bytes) -> bytes:
            meant = self._meant.pop(envelope, None)
            return real(key, info, envelope) if meant is None else meant

        return opened

    def _split(self, secret: bytes, threshold: int, positions: Sequence[int]) -> list[bytes]:
        if self.speaker in self.gone:
            return split(secret, threshold, positions)
        return [os.urandom(SHARE_BYTES - 1).rjust(SHARE_BYTES, b"\0") for _ in positions]

    def _masked_input(
        self,
        update: object,
        policy: Policy,
        round_id: bytes,
        add: Sequence[bytes],
        subtract: Sequence[bytes],
        executor: object = None,
    ) -> memoryview:
        """Valid until the next one: it is sent at once, and what is kept of it is its hash."""
        slots = masking.slot_values(policy, round_id)
        for seeds, operation in ((add, np.add), (subtract, np.subtract)):
            for seed in seeds:
                mask = np.frombuffer(masking.slot_mask(seed, policy), slots.dtype.newbyteorder("<"))
                operation(slots, mask, out=slots)
        self._words[policy.length :] = slots
        pack_into(self._words, policy.bits, self._packed)
        return self._packed.data.toreadonly()
