"""An unsafe policy cannot be built, says why in one sentence, and every field of a policy reaches its hash."""

import math
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import ConfigError, Field, Layout, PinnedRoster, Policy, RoundContext, Suite
from secagg.encoding import digest, encode
from secagg.masking import slot_values
from secagg.packing import dtype_for
from secagg.roster import session_id
from tests.support.cohort import Cohort


def policy(**changes) -> Policy:
    return Policy(**{"project": "p", "clients": 5, "length": 10, "clip_range": 1.0, **changes})


@pytest.mark.parametrize(
    ("n", "c", "t", "survives", "honest"),
    [(3, 1, 3, 0, 2), (5, 1, 4, 1, 3), (10, 2, 7, 3, 5), (30, 6, 19, 11, 13), (100, 20, 61, 39, 41)],
)
def test_the_table_of_the_specification(n, c, t, survives, honest):
    built = policy(clients=n, max_corrupt=c)
    assert built.threshold == t
    assert built.min_survivors == max(t, c + 2, 3)
    assert n - built.min_survivors == survives
    assert built.min_survivors - c == honest


@pytest.mark.parametrize("n", [3, 4, 5, 17, 256])
def test_two_quorums_share_an_honest_client_and_one_is_always_reachable(n):
    for c in range(1, n):
        try:
            built = policy(clients=n, max_corrupt=c)
        except ConfigError:
            assert c + 2 > n
            continue
        assert 2 * built.threshold - n > c
        assert built.min_survivors >= max(built.threshold, c + 2, 3)


UNSAFE = [
    ({"project": "a b"}, "project"),
    ({"project": ""}, "project"),
    ({"clients": 2}, "clients = 2"),
    ({"clients": 257}, "clients = 257"),
    ({"max_corrupt": 0}, "max_corrupt = 0"),
    ({"max_corrupt": -1}, "max_corrupt = -1"),
    ({"clients": 5, "max_corrupt": 4}, "max_corrupt = 4: 5 clients tolerate at most 3"),
    ({"clients": 3, "max_corrupt": 2}, "max_corrupt = 2: 3 clients tolerate at most 1"),
    ({"min_survivors": 3}, "min_survivors = 3.* must be 4 to 5"),
    ({"min_survivors": 6}, "min_survivors = 6.* must be 4 to 5"),
    ({"length": 0}, "length = 0"),
    ({"clip_range": 0.0}, "clip_range"),
    ({"clip_range": math.inf}, "clip_range"),
    ({"clip_range": math.nan}, "clip_range"),
    ({"bits": 7}, "bits = 7"),
    ({"bits": 65}, "bits = 65"),
    ({"value_bits": 1}, "value_bits = 1"),
    ({"value_bits": 49, "bits": 64}, "value_bits = 49"),
    ({"bits": 16}, "bits = 16 can overflow.* at least 19"),
    ({"clients": 100, "bits": 22}, "at least 23"),
    ({"server_key": bytes(31)}, "server_key"),
    ({"weights": {"a": 0.0}}, "weight of a"),
    ({"weights": {"a": -1.0}}, "weight of a"),
    ({"weights": {"a": math.nan}}, "weight of a"),
    ({"weights": {"a": 10**400}}, "weight of a"),
    ({"clip_range": 10**400}, "clip_range"),
    ({"clip_range": 1e-300}, "clip_range = 1e-300: use 3.9e-34 to 3.4e\\+38"),
    ({"clip_range": 5e-324}, "clip_range"),
    ({"clip_range": 1e39}, "clip_range"),
    ({"clip_range": 1e-32, "value_bits": 24}, "clip_range = 1e-32"),
    ({"weights": dict.fromkeys("abcde", 1e305), "clip_range": 1e4}, "largest weight is 1e\\+305"),
    ({"weights": dict.fromkeys("abcde", 1.7e308)}, "largest weight"),
    ({"weights": dict.fromkeys("abcde", 1e-305)}, "largest weight is 1e-305"),
    (
        {"weights": {"a": 1e-305, "b": 1e10}},
        "weight of a is 1e-305 and the largest 10000000000.0",
    ),
    ({"weights": {"a": 32769.0}}, "weight of a client without one is 1.0"),
    ({"weights": {"a": 3.0}, "value_bits": 2}, "raise value_bits or even the weights out"),
]


@pytest.mark.parametrize(("changes", "says"), UNSAFE, ids=[repr(row[0]) for row in UNSAFE])
def test_an_unsafe_policy_cannot_be_built(changes, says):
    with pytest.raises(ConfigError, match=says) as caught:
        policy(**changes)
    assert "\n" not in str(caught.value)
    with pytest.raises(ConfigError, match=says):
        replace(policy(), **{"min_survivors": 0, "bits": 0, **changes})


@given(n=st.integers(3, 256), value_bits=st.integers(2, 48))
@settings(max_examples=50, deadline=None)
def test_the_smallest_legal_width_holds_the_largest_honest_sum_of_either_sign(n, value_bits):
    bits = max(8, policy(clients=n, bits=64, value_bits=value_bits).bits_needed)
    largest = n * 2 ** (value_bits - 1)
    assert -(2 ** (bits - 1)) <= -largest
    assert largest < 2 ** (bits - 1)
    assert policy(clients=n, bits=bits, value_bits=value_bits).bits == bits
    if bits > 8:
        with pytest.raises(ConfigError, match="overflow"):
            policy(clients=n, bits=bits - 1, value_bits=value_bits)


CHANGES = [
    {"project": "q"},
    {"clients": 6},
    {"length": 11},
    {"clip_range": 2.0},
    {"max_corrupt": 2},
    {"min_survivors": 5},
    {"suite": Suite.X25519},
    {"bits": 33},
    {"value_bits": 15},
    {"weights": {"site-a": 2.0}},
    {"server_key": bytes(32)},
    {"excess_seeds": True},
    *(
        {"length": 0, "clip_range": 0.0, "bits": 32, "layout": Layout(fields)}
        for fields in (
            {"update": Field.floats(10, clip_range=1.0)},
            {"other": Field.floats(10, clip_range=1.0)},
            {"update": Field.floats((2, 5), clip_range=1.0)},
            {"update": Field.floats(10, clip_range=2.0)},
            {"update": Field.floats(10, clip_range=1.0, value_bits=15)},
            {"update": Field.counts(10, largest=1)},
            {"update": Field.integers(10, bits=16)},
            {"a": Field.counts(9, largest=1), "b": Field.counts(1, largest=1)},
            {"b": Field.counts(1, largest=1), "a": Field.counts(9, largest=1)},
        )
    ),
]


def session(built: Policy) -> bytes:
    return session_id(built, Cohort(built.clients).roster)


def test_every_field_of_a_policy_is_bound():
    assert {name for change in CHANGES for name in change} == set(Policy.__dataclass_fields__)
    assert len({session(policy(**change)) for change in [{}, *CHANGES]}) == len(CHANGES) + 1
    assert session(policy(weights={"site-b": 1.5, "site-a": 2})) == session(
        policy(weights={"site-a": 2.0, "site-b": 1.5})
    )


def test_every_field_of_a_round_is_bound():
    base = Cohort().context()
    changes = [
        {"training_run": "run-2"},
        {"round_number": 2},
        {"attempt": 1},
        {"model_hash": b"m" * 32},
        {"task_hash": b"t" * 32},
        {"previous_head": b"h" * 32},
    ]
    assert {name for change in changes for name in change} == set(RoundContext.__slots__)

    def bound(context: RoundContext) -> bytes:
        return context.round_id(context.slot(bytes(32)), bytes(32), bytes(32))

    assert len({bound(replace(base, **change)) for change in [{}, *changes]}) == len(changes) + 1
    slots = {replace(base, **change).slot(bytes(32)) for change in [{}, *changes]}
    assert len(slots) == 4, "a slot carries no data: run, round number and attempt only"


@pytest.mark.parametrize(
    "change",
    [
        {"training_run": ""},
        {"training_run": "é"},
        {"training_run": "x" * 257},
        {"round_number": 0},
        {"round_number": 2**63},
        {"attempt": -1},
        {"model_hash": b""},
        {"task_hash": bytes(31)},
        {"previous_head": bytes(33)},
    ],
)
def test_a_round_that_no_store_could_hold_cannot_be_opened(change):
    with pytest.raises(ConfigError):
        replace(Cohort().context(), **change)


KEY = bytes(32)


@pytest.mark.parametrize(
    ("keys", "says"),
    [
        ({"a b": KEY}, "client id"),
        ({"": KEY}, "client id"),
        ({"é": KEY}, "client id"),
        ({"x" * 65: KEY}, "client id"),
        ({"../a": KEY}, "client id"),
        ({"a": bytes(31)}, "verify key of a"),
        ({"a": KEY, "b": KEY}, "share one verify key"),
    ],
)
def test_a_roster_with_doubtful_identities_cannot_be_built(keys, says):
    with pytest.raises(ConfigError, match=says):
        PinnedRoster(keys)


def test_roster_and_policy_must_fit():
    roster = Cohort(5).roster
    assert list(roster) == sorted(roster)
    with pytest.raises(ConfigError, match="lists 5 clients"):
        session_id(policy(clients=6), roster)
    with pytest.raises(ConfigError, match="weight to nobody"):
        session_id(policy(weights={"nobody": 2.0}), roster)


fields = st.recursive(
    st.binary(max_size=3) | st.integers(0, 2**64 - 1), lambda inner: st.lists(inner, max_size=3), max_leaves=6
)


def shape(field) -> object:
    """What an encoding is injective over: the schema of a hash fixes the type of every field."""
    return [shape(item) for item in field] if isinstance(field, list) else type(field)


@given(st.lists(fields, max_size=4), st.lists(fields, max_size=4))
@settings(max_examples=200, deadline=None)
def test_the_encoding_is_injective(first, second):
    if shape(first) == shape(second):
        assert (encode("x", *first) == encode("x", *second)) == (first == second)


@pytest.mark.parametrize(
    ("first", "second"),
    [
        ((b"ab", b"c"), (b"a", b"bc")),
        ((b"", b"a"), (b"a", b"")),
        (([b"a", b"b"],), ([b"ab"],)),
        (([b"a"], [b"b"]), ([b"a", b"b"], [])),
        (([[b"a"], [b"b"]],), ([[b"a", b"b"]],)),
        ((1, 2), (2, 1)),
    ],
)
def test_moving_a_boundary_changes_the_encoding(first, second):
    assert encode("x", *first) != encode("x", *second)


def test_the_bytes_of_the_encoding_are_those_of_the_specification():
    assert encode("x", b"ab", 1, "c", [b"d"]) == bytes.fromhex(
        "0000000a" + b"secagg/2 x".hex() + "000000026162" + "000000080000000000000001" + "0000000163"
        "00000009" + "00000001" + "0000000164"
    )
    assert digest("x") != digest("y")
    for bad in (-1, 2**64):
        with pytest.raises(ValueError, match="integer"):
            encode("x", bad)


@pytest.mark.parametrize("bits", [8, 20, 32, 33, 64])
def test_constant_slots_fill_64_bits_and_differ_by_round(bits):
    built = policy(clients=3, bits=bits, value_bits=2)
    values = slot_values(built, bytes(32))
    assert values.dtype == dtype_for(bits)
    assert len(values) * bits >= 64
    assert all(int(value) < 2**bits for value in values)
    assert values.tolist() != slot_values(built, b"r" * 32).tolist()
