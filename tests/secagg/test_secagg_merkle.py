"""The tree over a dealer's bundles: each path leads to the root from its own place, and from nowhere else."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from secagg.encoding import digest
from secagg.merkle import root_of, tree


def leaves(count: int) -> list[bytes]:
    return [digest("bundle", i) for i in range(count)]


@given(st.integers(1, 300), st.data())
def test_a_path_leads_from_its_leaf_to_the_root_and_is_short(count, data):
    made = leaves(count)
    root, paths = tree(made)
    place = data.draw(st.integers(0, count - 1))
    assert root_of(made[place], place, count, paths[place]) == root
    assert len(paths[place]) <= 32 * (count - 1).bit_length()


@given(st.integers(2, 40), st.data())
def test_no_other_leaf_place_or_path_leads_there(count, data):
    made = leaves(count)
    root, paths = tree(made)
    place, other = data.draw(st.permutations(range(count)))[:2]
    assert root_of(made[other], place, count, paths[place]) != root
    for leaf, at, path in [(place, other, place), (place, place, other)]:
        try:
            assert root_of(made[leaf], at, count, paths[path]) != root
        except ValueError:  # of another depth
            assert len(paths[place]) != len(paths[other])
    for wrong in (paths[place] + bytes(32), paths[place][32:]):
        with pytest.raises(ValueError, match="too"):
            root_of(made[place], place, count, wrong)


def test_a_node_never_passes_for_a_leaf():
    """Whose leaves are the nodes of another tree has another root: leaves are hashed under a label of their own."""
    four = leaves(4)
    nodes = [tree(four[:2])[0], tree(four[2:])[0]]
    assert tree(nodes)[0] == tree(four)[0], "the tree alone does not tell, as RFC 9162 says"
    assert nodes[0] != digest("bundle", four[0], four[1])
