"""From keys to masks: infos and commitments of round 1, seeds of round 2, and the vector that a client masks.

Pure functions of secrets that the caller holds; nothing is kept here. Specification: docs/spec.md, sections "Keys and
seeds" and "Commitments".
"""

from collections.abc import Iterable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secagg.encoding import digest, encode
from secagg.keys import hkdf
from secagg.policy import Policy
from secagg.prg import apply_masks
from secagg.quantize import dtype_for
from secagg.shamir import SHARE_BYTES

Vector: TypeAlias = NDArray[Any]
"""Unsigned integers modulo 2^b: uint32 where b <= 32, uint64 above."""

SHARES_PLAINTEXT_BYTES = 2 * SHARE_BYTES
PAIR_PLAINTEXT_BYTES = 32


def envelope_info(purpose: str, slot: bytes, roster1: bytes, sender: str, recipient: str) -> bytes:
    """HPKE info of an envelope ('shares' or 'pair'): nobody can re-send another's ciphertext as their own."""
    return encode("envelope-" + purpose, slot, roster1, sender, recipient)


def share_commitment(slot: bytes, roster1: bytes, dealer: str, holder: str, kind: str, share: bytes) -> bytes:
    """H('share-commit' | slot | roster1 | dealer | holder | 's' or 'b' | share): hiding, for a share is uniform."""
    return digest("share-commit", slot, roster1, dealer, holder, kind, share)


def self_commitment(slot: bytes, client_id: str, self_seed: bytes) -> bytes:
    """H('self-commit' | slot | id | b_u)."""
    return digest("self-commit", slot, client_id, self_seed)


def pair_commitment(slot: bytes, first: str, second: str, pair_secret: bytes) -> bytes:
    """C_uv = H('pair-commit' | slot | u | v | r_uv) for u < v."""
    return digest("pair-commit", slot, first, second, pair_secret)


def pair_mask_seed(roster1: bytes, round_id: bytes, ids: tuple[str, str], exchanged: bytes, secret: bytes) -> bytes:
    """HKDF(salt = roster1, ikm = X25519(u, v) | r_uv, info = 'pair-mask' | round | u | v), u < v in any order given."""
    first, second = sorted(ids)
    return hkdf(exchanged + secret, encode("pair-mask", round_id, first, second), salt=roster1)


def self_mask_seed(roster1: bytes, round_id: bytes, client_id: str, self_seed: bytes) -> bytes:
    """HKDF(salt = roster1, ikm = b_u, info = 'self-mask' | round | u)."""
    return hkdf(self_seed, encode("self-mask", round_id, client_id), salt=roster1)


def slot_values(policy: Policy, round_id: bytes) -> Vector:
    """The public constants that every client appends to its vector: (slots,) integers below 2^b.

    They catch masks that fail to cancel by accident; a client that wants to lie can.
    """
    stretched = b"".join(digest("constant-slot", round_id, i)[:8] for i in range(policy.slots))
    words = np.frombuffer(stretched, dtype="<u8") & np.uint64((1 << policy.bits) - 1)
    return words.astype(dtype_for(policy.bits))


def mask_vector(
    update: Vector, policy: Policy, round_id: bytes, add: Iterable[bytes], subtract: Iterable[bytes]
) -> Vector:
    """y_u = (update | slots) + masks of `add` - masks of `subtract`: a new (d + slots,) vector, one copy."""
    masked = np.concatenate([update, slot_values(policy, round_id)])
    apply_masks(masked, list(add), list(subtract))
    return masked
