"""What a round costs on this machine: a count of primitives times what each was just measured to take.

An estimate for planning, not a benchmark: it leaves out encoding, networks and disks.
"""

import time
from collections.abc import Callable

import numpy as np

from secagg.encoding import digest, vector_digest
from secagg.keys import ChannelKey, MaskKey, SigningKey, check_public, seal, verify
from secagg.masking import SHARES_PLAINTEXT_BYTES, masked_input, self_mask_seed
from secagg.packing import add_packed, packed_size
from secagg.policy import Policy, Suite
from secagg.prg import Stream
from secagg.quantize import Quantised
from secagg.shamir import combine, split

_CALIBRATED_LENGTH = 1 << 18  # values: several blocks and chunks
_MASKS = 8


class Cost:
    """Seconds of one core per primitive, for a policy."""

    def __init__(self, policy: Policy) -> None:
        """Measures for a fraction of a second."""
        self._policy, suite, t = policy, policy.suite, policy.threshold
        info = digest("calibration")
        self._keys = _seconds(lambda: (ChannelKey(suite), MaskKey(suite)), 3)
        channel, mine, signing = ChannelKey(suite), MaskKey(suite), SigningKey.generate()
        signature = signing.sign(info)
        self._sign = _seconds(lambda: signing.sign(info), 20)
        self._verify = _seconds(lambda: verify(signing.verify_key, info, signature), 20)
        self._check = _seconds(lambda: check_public(suite, channel.public, mine.dh_public, mine.kem_public), 10)
        plain = bytes(SHARES_PLAINTEXT_BYTES)
        sealed = seal(suite, channel.public, info, plain)
        self._seal = _seconds(lambda: seal(suite, channel.public, info, plain), 10)
        self._open = _seconds(lambda: channel.open(info, sealed), 10)
        self._agree = _seconds(lambda: self_mask_seed(info, info, "me", mine.exchange(mine.dh_public)), 10)
        self._hash = _seconds(lambda: digest("calibration", info, info, "dealer", "holder", "s", plain), 50)
        positions = range(1, policy.clients + 1)
        self._split = _seconds(lambda: split(info, t, positions), 1)
        shares = dict(zip(positions, split(info, t, positions), strict=True))
        combine(shares, t)  # the weights, once
        self._combine = _seconds(lambda: combine(shares, t), 3)
        self._calibrate_vectors()

    def _calibrate_vectors(self) -> None:
        """Seconds per value: quantise, mask and pack; each mask more; add and hash."""
        length, bits = min(self._policy.length, _CALIBRATED_LENGTH), self._policy.bits
        policy = Policy(
            project="calibration", clients=3, length=length, clip_range=1.0, suite=Suite.X25519, bits=bits, value_bits=4
        )
        update, total = np.zeros(length, np.float32), np.zeros(packed_size(length + policy.slots, bits), np.uint8)

        def masked(masks: int) -> memoryview:
            """A client's input under so many masks."""
            seeds = [bytes([i]) * 32 for i in range(masks)]
            return masked_input(Quantised(update, policy, "me", Stream()), policy, bytes(32), seeds, [])

        def added() -> None:
            """What the server does with one input."""
            add_packed(total, y, length + policy.slots, bits)
            vector_digest("masked-vector", y)

        y = masked(1)
        one, many = _seconds(lambda: masked(1), 1), _seconds(lambda: masked(1 + _MASKS), 1)
        self._mask = max(many - one, 0.0) / _MASKS / length
        self._quantise = max(one / length - self._mask, 0.0)
        self._add = _seconds(added, 1) / length

    def client(self) -> float:
        """Seconds of a client that takes part in every step."""
        policy, peers = self._policy, self._policy.clients - 1
        envelopes = 1.5 if policy.suite is Suite.MLKEM768_X25519 else 1.0
        fixed = self._keys + 7 * self._sign + 2 * self._split
        per_peer = 3 * self._verify + self._check + self._agree + envelopes * (self._seal + self._open)
        per_value = self._quantise + policy.clients * self._mask
        return fixed + peers * (per_peer + 10 * self._hash) + policy.length * per_value

    def server(self, dropped: int) -> float:
        """Seconds of the server where so many clients drop out between sharing and masking."""
        policy, n = self._policy, self._policy.clients
        included = n - dropped
        fixed = n * (3 * self._verify + self._check) + 4 * included * self._verify
        shares = n * (3 * n + included) * self._hash
        opened = dropped * (self._keys + self._combine + included * self._agree)
        masks = included * (1 + dropped)
        return fixed + shares + opened + policy.length * (included * self._add + masks * self._mask)


def _seconds(action: Callable[[], object], times: int) -> float:
    """Of one call: the best of three loops."""
    best = float("inf")
    for _ in range(3):
        since = time.perf_counter()
        for _ in range(times):
            action()
        best = min(best, (time.perf_counter() - since) / times)
    return best
