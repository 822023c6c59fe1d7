"""A Merkle tree over hashes: one root commits to all of them, and a short path shows that one is in its place.

The shape is that of RFC 9162, section 2.1: the left half of n leaves is the largest power of two below n. Leaves are
hashes already, under a label of their own, so that no inner node can pass for one. Specification: docs/spec.md, section
"Commitments".
"""

from collections.abc import Sequence

from secagg.encoding import HASH_BYTES, digest


def tree(leaves: Sequence[bytes]) -> tuple[bytes, tuple[bytes, ...]]:
    """The root over these hashes, 32 bytes each, and for each of them its path: the siblings from the leaf upwards."""
    if len(leaves) < 2:
        return (leaves[0], (b"",)) if leaves else (digest("bundle-node"), ())
    half = _half(len(leaves))
    (left, on_the_left), (right, on_the_right) = tree(leaves[:half]), tree(leaves[half:])
    paths = (*(path + right for path in on_the_left), *(path + left for path in on_the_right))
    return digest("bundle-node", left, right), paths


def root_of(leaf: bytes, place: int, count: int, path: bytes) -> bytes:
    """The root to which a path leads from the leaf at this place, from 0, of so many.

    Raises:
        ValueError: the path is not as long as one from there.
    """
    if count == 1:
        if path:
            raise ValueError("the path is too long")
        return leaf
    half, rest, sibling = _half(count), path[:-HASH_BYTES], path[-HASH_BYTES:]
    if len(sibling) != HASH_BYTES:
        raise ValueError("the path is too short")
    if place < half:
        return digest("bundle-node", root_of(leaf, place, half, rest), sibling)
    return digest("bundle-node", sibling, root_of(leaf, place - half, count - half, rest))


def _half(count: int) -> int:
    return 1 << (count - 1).bit_length() - 1
