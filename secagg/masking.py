"""From keys to masks: infos and commitments of shares, seeds of masks, and the vector that a client masks.

Pure functions of secrets that the caller holds; nothing is kept here. Specification: docs/spec.md, sections "Keys and
seeds" and "Commitments".
"""

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from secagg.encoding import begun, digest, encode, size_of_field, text_field
from secagg.keys import hkdf
from secagg.packing import BLOCK, dtype_for, modulo, pack_into, packed_size
from secagg.policy import Policy
from secagg.prg import CHUNK_BYTES, Executor, Masks, apply_masks, keystream, zeros
from secagg.quantize import Quantised
from secagg.shamir import SHARE_BYTES

Vector: TypeAlias = NDArray[Any]
"""Unsigned integers modulo 2^b: uint32 where b <= 32, uint64 above."""

SHARES_PLAINTEXT_BYTES = 2 * SHARE_BYTES
PAIR_PLAINTEXT_BYTES = 32
_GROUP_BYTES = 8 << 20  # of the vector, at a time, where an executor shares the work


def envelope_info(purpose: str, slot: bytes, roster1: bytes, sender: str, recipient: str) -> bytes:
    """HPKE info of an envelope ('shares' or 'pair'): nobody can re-send another's ciphertext as their own."""
    return begun("envelope-" + purpose, slot, roster1) + text_field(sender) + text_field(recipient)


def share_commitment(slot: bytes, roster1: bytes, dealer: str, holder: str, kind: str, share: bytes) -> bytes:
    """H('share-commit' | slot | roster1 | dealer | holder | 's' or 'b' | share): hiding, for a share is uniform."""
    head = begun("share-commit", slot, roster1) + text_field(dealer) + text_field(holder) + text_field(kind)
    return hashlib.sha256(head + size_of_field(len(share)) + share).digest()


def share_commitments(
    slot: bytes, roster1: bytes, holder: str, kind: str, shares: Mapping[str, bytes]
) -> dict[str, bytes]:
    """`share_commitment` of the shares that one holder has of many dealers, by dealer, in a third of the time.

    What they have in common is encoded once: a server looks at n^2 of them (S-16).
    """
    head = begun("share-commit", slot, roster1)
    tail = text_field(holder) + text_field(kind) + size_of_field(SHARE_BYTES)
    return {
        dealer: hashlib.sha256(head + text_field(dealer) + tail + share).digest() for dealer, share in shares.items()
    }


def self_commitment(slot: bytes, client_id: str, self_seed: bytes) -> bytes:
    """H('self-commit' | slot | id | b_u)."""
    return digest("self-commit", slot, client_id, self_seed)


def pair_commitment(slot: bytes, dealer: str, recipient: str, pair_secret: bytes) -> bytes:
    """C_uv = H('pair-commit' | slot | dealer | recipient | r_uv)."""
    head = begun("pair-commit", slot) + text_field(dealer) + text_field(recipient)
    return hashlib.sha256(head + size_of_field(len(pair_secret)) + pair_secret).digest()


def pair_mask_seed(roster1: bytes, round_id: bytes, ids: tuple[str, str], exchanged: bytes, secret: bytes) -> bytes:
    """HKDF(salt = roster1, ikm = X25519(u, v) | r_uv, info = 'pair-mask' | round | u | v), u < v in any order given."""
    first, second = sorted(ids)
    info = begun("pair-mask", round_id) + text_field(first) + text_field(second)
    return hkdf(exchanged + secret, info, salt=roster1)


def self_mask_seed(roster1: bytes, round_id: bytes, client_id: str, self_seed: bytes) -> bytes:
    """HKDF(salt = roster1, ikm = b_u, info = 'self-mask' | round | u)."""
    return hkdf(self_seed, encode("self-mask", round_id, client_id), salt=roster1)


def slot_mask(seed: bytes, policy: Policy) -> bytes:
    """What a seed's mask adds to the constant slots: the words of its keystream behind the d values.

    Whoever sees them learns nothing of the mask on the values: words of one keystream at other positions.
    """
    width = dtype_for(policy.bits).itemsize
    return keystream(seed, policy.length * width, policy.slots * width)


def without_masks(slots: Vector, policy: Policy, added: Iterable[bytes], subtracted: Iterable[bytes]) -> Vector:
    """Constant slots less what `slot_mask` says of the seeds that went into them: (slots,) integers below 2^b.

    Args:
        slots: (slots,) of `dtype_for(bits)`; not changed.
        policy: gives number and width.
        added: slot masks that were added.
        subtracted: slot masks that were subtracted.

    Raises:
        ValueError: a slot mask of another length.
    """
    plain = slots.copy()
    for masks, operation in ((added, np.subtract), (subtracted, np.add)):
        for mask in masks:
            operation(plain, np.frombuffer(mask, plain.dtype.newbyteorder("<")).reshape(plain.shape), out=plain)
    return modulo(plain, policy.bits)


def slot_values(policy: Policy, round_id: bytes) -> Vector:
    """The public constants that every client appends to its vector: (slots,) integers below 2^b.

    They catch masks that fail to cancel, by accident or by a lie about them; a lie in the values they do not catch.
    """
    stretched = b"".join(digest("constant-slot", round_id, i)[:8] for i in range(policy.slots))
    return modulo(np.frombuffer(stretched, "<u8").astype(dtype_for(policy.bits)), policy.bits)


def masked_input(
    update: Quantised,
    policy: Policy,
    round_id: bytes,
    add: Sequence[bytes],
    subtract: Sequence[bytes],
    executor: Executor | None = None,
) -> memoryview:
    """y_u = (update | slots) + masks of `add` - masks of `subtract`, packed: one pass over the update, in the cache.

    Beside the update and y there is one block of 2^16 values in memory; with an executor, 8 MiB and what it copies.

    Args:
        update: nothing read from it yet; read to its end here.
        policy: the one that the update was quantised under.
        round_id: 32 bytes; decides the constant slots.
        add: 32-byte seeds of the masks to add.
        subtract: 32-byte seeds of the masks to subtract.
        executor: see `secagg.prg.apply_masks`; y is the same with any.

    Returns:
        y, read-only: `packed_size(d + slots, b)` bytes.

    Raises:
        ConfigError: the update now holds values that are not finite.
    """
    bits, dtype, length = policy.bits, dtype_for(policy.bits), policy.length + policy.slots
    slots, masks = slot_values(policy, round_id), Masks(add, subtract)
    y = np.empty(packed_size(length, bits), np.uint8)
    whole = zeros(min(length, BLOCK if executor is None else _GROUP_BYTES // dtype.itemsize), dtype)
    for start in range(0, length, len(whole)):
        part = whole[: length - start]
        values, first_slot = part[: max(policy.length - start, 0)], max(start - policy.length, 0)
        update.read_into(values)
        part[len(values) :] = slots[first_slot:][: len(part) - len(values)]
        first_chunk = start * dtype.itemsize // CHUNK_BYTES
        if executor is None:
            masks.apply(part, first_chunk)
        else:
            apply_masks(part, add, subtract, executor, first_chunk)
        pack_into(part, bits, y[packed_size(start, bits) : packed_size(start + len(part), bits)])
    return y.data.toreadonly()
