"""Who must go so that no complaint is left: a smallest vertex cover of the complaints.

Pure: no keys, no messages. Specification: docs/spec.md, section "Rounds", ShareReport.
"""

from collections.abc import Iterable

from secagg.errors import ShareError


def smallest_cover(complaints: Iterable[tuple[str, str]], at_most: int) -> frozenset[str]:
    """A smallest set of clients that meets every complaint, first in bytewise order among equals.

    Args:
        complaints: (accuser, dealer) pairs of one round number.
        at_most: c; each complaint has a corrupt end, so that c clients always suffice.

    Raises:
        ShareError: S-20, more than c clients would have to go, hence more than c are corrupt.
    """
    pairs = sorted(set(complaints))
    for size in range(at_most + 1):
        cover = _cover(pairs, size)
        if cover is not None:
            return frozenset(cover)
    raise ShareError("S-20", f"the complaints of this round need more than {at_most} clients to be corrupt")


def _cover(pairs: list[tuple[str, str]], size: int) -> set[str] | None:
    if not pairs:
        return set()
    disjoint: set[str] = set()
    for pair in pairs:
        if disjoint.isdisjoint(pair):
            disjoint.update(pair)
    # Each disjoint pair takes a client of its own: ends the search early where many clients complain.
    if len(disjoint) > 2 * size:
        return None
    for end in sorted(pairs[0]):
        rest = _cover([pair for pair in pairs if end not in pair], size - 1)
        if rest is not None:
            return rest | {end}
    return None
