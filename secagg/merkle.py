"""A Merkle tree over hashes: one root commits to all of them, and a short path shows that one is in its place.

The shape is that of RFC 9162, section 2.1: the left half of n leaves is the largest power of two below n. Leaves are
hashes already, under a label of their own, so that no inner node can pass for one. Specification: docs/spec.md, section
"Commitments".
"""

import hashlib
from collections.abc import Sequence

from secagg.encoding import HASH_BYTES, digest, encode, size_of_field

_NODE, _RIGHT = encode("bundle-node") + size_of_field(HASH_BYTES), size_of_field(HASH_BYTES)


def tree(leaves: Sequence[bytes]) -> tuple[bytes, tuple[bytes, ...]]:
    """The root over these hashes, 32 bytes each, and for each of them its path: the siblings from the leaf upwards."""
    if not leaves:
        return digest("bundle-node"), ()
    level, levels = list(leaves), list[list[bytes]]()
    while len(level) > 1:  # who has no neighbour goes up as it is, until it has one: the shape of halves
        levels.append(level)
        pairs = zip(level[::2], level[1::2], strict=False)
        level = [*(_node(left, right) for left, right in pairs), *(level[-1:] if len(level) % 2 else ())]
    paths = [b""]
    for nodes in reversed(levels):  # a node's path is its neighbour, where it has one, and then its parent's path
        aside = [sibling for left, right in zip(nodes[::2], nodes[1::2], strict=False) for sibling in (right, left)]
        paths = [sibling + paths[at // 2] for at, sibling in enumerate(aside + [b""] * (len(nodes) % 2))]
    return level[0], tuple(paths)


def root_of(leaf: bytes, place: int, count: int, path: bytes) -> bytes:
    """The root to which a path leads from the leaf at this place, from 0, of so many.

    Raises:
        ValueError: the path is not as long as one from there.
    """
    used = 0
    while count > 1:
        if place ^ 1 < count:
            sibling, used = path[used : used + HASH_BYTES], used + HASH_BYTES
            leaf = _node(sibling, leaf) if place % 2 else _node(leaf, sibling)
        place, count = place // 2, (count + 1) // 2
    if len(path) != used:
        raise ValueError(f"the path is too {'long' if len(path) > used else 'short'}")
    return leaf


def _node(left: bytes, right: bytes) -> bytes:
    """digest("bundle-node", left, right), spelt out: a round of n clients makes n^2 log n of them."""
    return hashlib.sha256(_NODE + left + _RIGHT + right).digest()
