"""Shamir's scheme over p = 2^256 + 297."""

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import shamir
from secagg.shamir import MAX_POSITION, PRIME, SHARE_BYTES, combine, is_share, split

secrets32 = st.binary(min_size=32, max_size=32)


def test_the_modulus_is_prime_and_as_specified():
    assert PRIME == 2**256 + 297
    odd, twos = (PRIME - 1) >> 3, 3
    assert odd << twos == PRIME - 1
    assert odd % 2 == 1
    for base in (2, 3, 5, 7, 11, 13, 17, 19, 23, 29, 31, 37):
        chain = [pow(base, odd << k, PRIME) for k in range(twos)]
        assert chain[0] == 1 or PRIME - 1 in chain


@given(secrets32, st.data())
@settings(max_examples=60, deadline=None)
def test_any_threshold_of_shares_opens(secret, data):
    positions = data.draw(st.lists(st.integers(1, MAX_POSITION), min_size=1, max_size=20, unique=True))
    threshold = data.draw(st.integers(1, len(positions)))
    shares = dict(zip(positions, split(secret, threshold, positions), strict=True))
    assert all(is_share(share) and len(share) == SHARE_BYTES for share in shares.values())
    kept = data.draw(st.permutations(positions))[: data.draw(st.integers(threshold, len(positions)))]
    assert combine({x: shares[x] for x in kept}, threshold) == secret


@given(secrets32, st.integers(2, 8))
@settings(max_examples=30, deadline=None)
def test_fewer_shares_open_nothing_and_fit_every_secret(secret, threshold):
    """One share less is consistent with any secret at all: some last share leads there."""
    positions = range(1, threshold + 1)
    shares = dict(zip(positions, split(secret, threshold, positions), strict=True))
    last = shares.pop(threshold)
    with pytest.raises(ValueError, match=f"{threshold} are needed"):
        combine(shares, threshold)
    opened = {combine(shares | {threshold: bytes([0]) + bytes([fill]) * 32}, threshold) for fill in (1, 2, 3)}
    assert len(opened) == 3 or last in (bytes([0]) + bytes([fill]) * 32 for fill in (1, 2, 3))


@pytest.mark.parametrize("secret", [bytes(32), b"\xff" * 32, bytes(31) + b"\1", b"\x80" + bytes(31)])
@pytest.mark.parametrize(("threshold", "count"), [(1, 1), (3, 3), (61, 100), (160, 256)])
def test_extreme_secrets_and_sizes(secret, threshold, count):
    positions = range(1, count + 1)
    shares = dict(zip(positions, split(secret, threshold, positions), strict=True))
    assert combine(dict(list(shares.items())[-threshold:]), threshold) == secret


def drawn(*values):
    """A `token_bytes` that gives these 33-byte numbers, as many as are asked for at a time."""
    left = list(values)

    def token_bytes(count):
        taken, left[:] = left[: count // SHARE_BYTES], left[count // SHARE_BYTES :]
        return b"".join(value.to_bytes(SHARE_BYTES, "big") for value in taken)

    return token_bytes, left


def test_shares_are_points_of_the_polynomial(monkeypatch):
    """f(x) = secret + 5 x + 7 x^2 and its big-endian encoding, worked out by hand."""
    monkeypatch.setattr(shamir.secrets, "token_bytes", drawn(7, 5)[0])
    shares = split((11).to_bytes(32, "big"), 3, [256, 1, 2])
    assert [int.from_bytes(share, "big") for share in shares] == [11 + 5 * x + 7 * x * x for x in (256, 1, 2)]


@given(secrets32, st.lists(st.integers(0, PRIME - 1), max_size=100))
@settings(max_examples=40, deadline=None)
def test_shares_equal_the_sum_of_powers(secret, coefficients):
    """The coefficients are drawn from the highest down; positions where the last reduction has the most to do."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(shamir.secrets, "token_bytes", drawn(*reversed(coefficients))[0])
        shares = split(secret, len(coefficients) + 1, [1, 3, 255, 256])
    polynomial = [int.from_bytes(secret, "big"), *coefficients]
    for x, share in zip([1, 3, 255, 256], shares, strict=True):
        assert int.from_bytes(share, "big") == sum(a * pow(x, k, PRIME) for k, a in enumerate(polynomial)) % PRIME


def test_coefficients_cover_the_whole_field_and_reject_what_would_bias(monkeypatch):
    """33 bytes hold 255 multiples of p and a rest: from the last multiple on a draw is thrown away."""
    multiple = 255 * PRIME
    assert multiple < 2**264 < multiple + PRIME
    token_bytes, left = drawn(multiple, 2**264 - 1, multiple - 1, PRIME - 1, PRIME, multiple + 1, 0, 9)
    monkeypatch.setattr(shamir.secrets, "token_bytes", token_bytes)
    assert shamir._uniform(4) == [PRIME - 1, PRIME - 1, 0, 0]
    assert left == [9]


def test_polynomial_is_fresh_every_time():
    assert len({split(bytes(32), 2, [1])[0] for _ in range(50)}) == 50


def test_threshold_may_exceed_the_holders():
    """n = 3, t = 3: a dealer has two peers; the third share would be its own, which nobody holds."""
    assert len(split(bytes(32), 3, [1, 3])) == 2


def test_uses_exactly_threshold_shares_at_the_smallest_positions():
    secret = bytes(range(32))
    shares = dict(enumerate(split(secret, 2, [1, 2, 3]), 1))
    assert combine(dict(reversed(shares.items())) | {3: b"not a share"}, 2) == secret


def test_every_wrong_share_changes_the_result():
    secret = bytes(range(32))
    shares = dict(enumerate(split(secret, 3, [1, 2, 3]), 1))
    for x, bit in itertools.product((1, 2, 3), (0, 8, 255)):
        forged = (int.from_bytes(shares[x], "big") ^ (1 << bit)).to_bytes(SHARE_BYTES, "big")
        try:
            opened = combine(shares | {x: forged}, 3)
        except ValueError:
            continue
        assert opened != secret


@pytest.mark.parametrize(
    ("share", "valid"),
    [
        ((PRIME - 1).to_bytes(33, "big"), True),
        (bytes(33), True),
        (PRIME.to_bytes(33, "big"), False),
        (b"\xff" * 33, False),
        (bytes(32), False),
        (bytes(34), False),
        (b"", False),
    ],
)
def test_is_share(share, valid):
    assert is_share(share) is valid
    if not valid:
        with pytest.raises(ValueError, match="malformed"):
            combine({1: share}, 1)


@pytest.mark.parametrize("value", [2**256, PRIME - 1])
def test_a_value_beyond_32_bytes_is_refused(value):
    with pytest.raises(ValueError, match="no 32-byte secret"):
        combine({7: value.to_bytes(SHARE_BYTES, "big")}, 1)


@pytest.mark.parametrize(
    ("secret", "threshold", "positions"),
    [
        (bytes(31), 2, [1, 2]),
        (bytes(33), 2, [1, 2]),
        (bytes(32), 0, [1, 2]),
        (bytes(32), 2, [0, 1]),
        (bytes(32), 2, [1, 257]),
        (bytes(32), 2, [1, 1]),
        (bytes(32), 2, [-1, 1]),
    ],
)
def test_split_refuses(secret, threshold, positions):
    with pytest.raises(ValueError, match=r"32 bytes|distinct"):
        split(secret, threshold, positions)


@pytest.mark.parametrize(("position", "threshold"), [(0, 1), (257, 1), (-1, 1), (1, 0), (1, 2)])
def test_combine_refuses(position, threshold):
    with pytest.raises(ValueError, match=r"malformed|needed"):
        combine({position: bytes(SHARE_BYTES)}, threshold)
