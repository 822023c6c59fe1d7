"""Quantiser and packing: exact arithmetic, no bias, no overflow, no leak in errors."""

import math
from fractions import Fraction

import numpy as np
import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

from secagg.errors import ConfigError
from secagg.packing import dtype_for
from secagg.policy import Policy
from secagg.prg import Stream, keystream
from secagg.quantize import Quantised, dequantize, quantize

KEY = bytes(range(32))
CLIENTS = "abcde"


def policy(length, **changes):
    return Policy(
        **{"project": "p", "clients": 5, "length": length, "clip_range": 1.0, "value_bits": 20, "bits": 32} | changes
    )


def lift(values, bits):
    """Representatives in -2^(b-1)..2^(b-1)-1 as Python integers."""
    return [int(v) - (1 << bits) * (int(v) >> (bits - 1)) for v in values]


class Constant:
    """Randomness that always is one word: 2^31 rounds down, 2^31 - 1 rounds up (the word is read as signed)."""

    def __init__(self, word):
        self.word = word

    def words(self, n):
        return np.full(n, self.word, np.uint32)


class TestQuantize:
    @pytest.mark.parametrize("kind", [np.float32, np.float64])
    @pytest.mark.parametrize("length", [1, 65535, 65536, 65537, 140001])
    def test_equals_floor_of_value_plus_word(self, kind, length):
        update = np.linspace(-1.25, 1.25, length).astype(kind)
        rules = policy(length, bits=27)
        result, clip_rate = quantize(update, rules, "a", Stream(KEY))
        words = (np.frombuffer(keystream(KEY, 0, 4 * length), "<i4") | 1) + 2.0**31
        scaled = np.clip(update.astype(np.float64), -1, 1) * 2.0**19
        expected = np.floor(scaled + words * 2.0**-32)
        assert result.dtype == np.uint32
        np.testing.assert_array_equal(lift(result, 27), expected)
        assert clip_rate == np.mean(np.abs(update) > 1)

    def test_is_unbiased(self):
        """Mean of 40000 roundings of k + f, for fractions f of either sign."""
        fractions = np.repeat([0.0, 0.01, 0.25, 0.5, 0.9], 40_000)
        values = np.concatenate([3 + fractions, -3 - fractions])
        rules = policy(len(values), clip_range=float(2**19))
        result = np.array(lift(quantize(values, rules, "a", Stream(KEY))[0], 32), np.float64)
        error = (result - values).reshape(10, -1)
        assert np.abs(error).max() < 1
        deviation = np.sqrt(fractions * (1 - fractions) / 40_000).reshape(5, -1)[:, 0]
        assert (np.abs(error.mean(axis=1)) <= 4 * np.tile(deviation, 2) + 1e-6).all()

    @pytest.mark.parametrize("value_bits", [2, 8, 20, 21, 22, 33, 48])
    @pytest.mark.parametrize("clip_range", [1.0, 0.1, 1 / 3, 7e-9, 3e12])
    @pytest.mark.parametrize("word", [0, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1])
    def test_never_leaves_the_bit_budget(self, value_bits, clip_range, word):
        largest = 2 ** (value_bits - 1)
        edge = np.array([clip_range, math.nextafter(clip_range, 0), 0.0, 2 * clip_range, math.nextafter(0, 1)])
        update = np.concatenate([edge, -edge])
        rules = policy(10, value_bits=value_bits, clip_range=clip_range, bits=64)
        result = lift(quantize(update, rules, "a", Constant(word))[0], 64)
        assert max(map(abs, result)) <= largest
        scaled = np.clip(update / clip_range, -1, 1) * largest
        assert np.abs(np.array(result, float) - scaled).max() <= 1

    @settings(max_examples=300, deadline=None)
    @given(
        st.integers(2, 48),
        st.floats(1e-20, 1e20),
        st.lists(st.one_of(st.integers(1, 2**47).map(float), st.floats(1e-3, 1e3)), min_size=5, max_size=5),
        st.lists(st.floats(-1.5, 1.5), min_size=1, max_size=20),
        st.sampled_from([0, 1, 2**31 - 1, 2**31, 2**31 + 1, 2**32 - 1]) | st.integers(0, 2**32 - 1),
    )
    @example(48, 1.0, [2.0**46 + 1, 2.0**47, 1.0, 1.0, 1.0], [1.0, -1.0], 2**31 - 1)  # rounded to half a step
    @example(48, 0.1, [2.0**46 + 1, 2.0**47, 1.0, 1.0, 1.0], [1.0, -1.0], 2**31 - 1)  # the scale is rounded up
    @example(48, 5.50724478993493, [123574164806471.0, 2.0**47, 1.0, 1.0, 1.0], [1.0, -1.0], 2**31 - 1)
    @example(16, 1.0, [3.0, 2.0**15, 1.0, 1.0, 1.0], [1.0, -1.0], 2**31)  # exactly half a step
    def test_every_client_stays_in_its_exact_bound_and_within_a_step(self, value_bits, clip, weights, values, word):
        """Against exact rationals: no value above its client's bound, and none farther from the truth than a step."""
        given = dict(zip(CLIENTS, weights, strict=True))
        largest, full = Fraction(max(weights)), 2 ** (value_bits - 1)
        assume(min(weights) * full >= max(weights))
        rules = policy(len(values), value_bits=value_bits, clip_range=clip, weights=given, bits=64)
        update = np.array(values) * clip
        for client, weight in given.items():
            share = full * Fraction(weight) / largest
            bound = math.ceil(share)
            field, weighing = rules.fields["update"], (weight, rules.largest_weight)
            assert field.bound(*weighing) == bound <= full
            assert clip * field.scale(*weighing) <= bound
            result = lift(quantize(update, rules, client, Constant(word))[0], 64)
            for value, integer in zip(update.tolist(), result, strict=True):
                exact = min(max(Fraction(value) / Fraction(clip), Fraction(-1)), Fraction(1)) * share
                assert abs(integer) <= bound
                assert abs(integer - exact) < 1 + share / 2**50

    @settings(max_examples=300, deadline=None)
    @given(
        st.integers(2, 48),
        st.floats(5e-324, 1.7e308),
        st.lists(st.floats(5e-324, 1.7e308), min_size=5, max_size=5),
        st.sampled_from([np.float32, np.float64]),
    )
    @example(16, 1e-300, [1.0] * 5, np.float64)
    @example(16, 1.0, [1e-305, 1e10, 1e10, 1e10, 1e10], np.float64)
    @example(16, 2.0**-111, [1.0] * 5, np.float32)
    @example(48, 2.0**-79, [1e-270, 1e-260, 1e-265, 1e-264, 1e-266], np.float32)
    @example(16, 3.4e38, [1e269, 1e267, 1e269, 1e269, 1e269], np.float32)
    def test_a_policy_that_can_be_built_loses_no_update(self, value_bits, clip, weights, kind):
        """Whatever the numbers: the whole range of every client comes back to within a step of its own."""
        given = dict(zip(CLIENTS, weights, strict=True))
        try:
            rules = policy(3, value_bits=value_bits, clip_range=clip, weights=given, bits=64)
        except ConfigError:
            return
        update = np.array([clip, -clip, clip / 2], kind)
        for client, weight in given.items():
            integers = quantize(update, rules, client, Constant(0))[0]
            assert lift(integers, 64)[0] >= 1
            step = rules.largest_weight * clip / rules.largest_value
            back = dequantize(integers, rules)
            assert np.isfinite(back).all()
            clipped = np.clip(update.astype(np.float64), -clip, clip)
            for value, real in zip(clipped.tolist(), back.tolist(), strict=True):
                exact = Fraction(value) * Fraction(weight)
                assert abs(Fraction(real) - exact) <= Fraction(step) * Fraction(1000001, 1000000) + abs(exact) / 2**48
        assert np.isfinite(dequantize(np.full(3, 5 * rules.largest_value, np.uint64), rules)).all()

    def test_rounding_leaves_integers_as_they_are(self):
        rules = policy(4, clip_range=float(2**19))
        for word in (0, 1, 2**31 - 1, 2**31, 2**32 - 1):
            assert lift(quantize(np.array([3.0, -3.0, 2.0, 0.0]), rules, "a", Constant(word))[0], 32) == [3, -3, 2, 0]

    @pytest.mark.parametrize("value_bits", [16, 20])
    def test_the_tightest_modulus_holds_the_sum_of_extremes(self, value_bits):
        bits = policy(2, value_bits=value_bits, bits=64).bits_needed
        rules = policy(2, value_bits=value_bits, bits=bits)
        for word in (2**31, 2**31 - 1):
            parts = [quantize(np.array([9.0, -9.0]), rules, client, Constant(word))[0] for client in CLIENTS]
            total = np.add.reduce(parts, dtype=dtype_for(bits))
            np.testing.assert_allclose(dequantize(total, rules), [5.0, -5.0], atol=5 * 2.0 ** (1 - value_bits))
        with pytest.raises(ConfigError, match="can overflow"):
            policy(2, value_bits=value_bits, bits=bits - 1)

    @given(
        st.lists(st.floats(-2, 2, width=32), min_size=1, max_size=40),
        st.lists(st.floats(0.01, 100), min_size=5, max_size=5),
        st.integers(24, 64),
        st.floats(0.01, 10),
    )
    @settings(max_examples=60, deadline=None)
    def test_dequantized_sum_is_the_weighted_sum(self, values, weights, bits, clip_range):
        weighted = dict(zip(CLIENTS, weights, strict=True))
        rules = policy(len(values), weights=weighted, bits=bits, clip_range=clip_range)
        stream, updates = Stream(KEY), [np.roll(np.float32(values), k) for k in range(5)]
        total = np.zeros(len(values), dtype_for(bits))
        for client, update in zip(CLIENTS, updates, strict=True):
            total += quantize(update, rules, client, stream)[0]
        expected = sum(
            w * np.clip(u.astype(float), -clip_range, clip_range) for w, u in zip(weights, updates, strict=True)
        )
        step = max(weights) * clip_range / 2**19
        np.testing.assert_allclose(dequantize(total, rules), expected, atol=5 * step)

    def test_largest_weight_has_full_scale_and_absent_weights_are_one(self):
        rules = policy(1, weights={"a": 4.0, "b": 0.5})
        parts = {client: quantize(np.ones(1), rules, client, Constant(2**31))[0] for client in "abc"}
        assert [int(parts[client][0]) for client in "abc"] == [2**19, 2**16, 2**17]

    def test_leaves_the_update_alone_and_gives_fresh_memory(self):
        update = np.array([3.0, -3.0], np.float32)
        result, rate = quantize(update, policy(2), "a", Stream(KEY))
        np.testing.assert_array_equal(update, [3.0, -3.0])
        assert rate == 1.0
        assert result.flags.owndata

    def test_a_value_at_the_clip_range_is_not_clipped(self):
        for clip_range in (1.0, 0.1, 1 / 3, 0.7):
            update = np.array([clip_range, -clip_range])
            assert quantize(update, policy(2, clip_range=clip_range), "a", Stream(KEY))[1] == 0

    def test_a_float32_just_above_the_clip_range_is_clipped_and_counted(self):
        """float32's nearest to 0.1 is larger than float64's."""
        result, rate = quantize(np.full(3, 0.1, np.float32), policy(3, clip_range=0.1), "a", Constant(0))
        assert lift(result, 32) == [2**19] * 3
        assert rate == 1

    def test_huge_finite_values_are_clipped_quietly(self, recwarn):
        update = np.array([1e308, -1e308, 0.0, 5e-324])
        result, rate = quantize(update, policy(4), "a", Constant(2**31))
        assert lift(result, 32) == [2**19, -(2**19), 0, 0]
        assert rate == 0.5
        assert not recwarn.list

    def test_seeded_stream_gives_the_same_integers(self):
        update = np.linspace(-1, 1, 999, dtype=np.float32)
        first, second, other = (quantize(update, policy(999), "a", Stream.seeded(1, "round", n))[0] for n in (1, 1, 2))
        np.testing.assert_array_equal(first, second)
        assert (first != other).any()

    @pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
    @pytest.mark.parametrize("kind", [np.float32, np.float64])
    def test_refuses_values_that_are_not_finite(self, poison, kind):
        update = np.full(40_000, 0.1234567, kind)
        update[[7, 39_999]] = poison
        stream = Stream(KEY)
        with pytest.raises(ConfigError, match="2 of 40000 values") as caught:
            quantize(update, policy(40_000), "a", stream)
        assert "0.123" not in str(caught.value)
        assert stream.words(1) == Stream(KEY).words(1)

    @pytest.mark.parametrize(
        "update",
        [np.zeros(4), np.zeros((1, 5)), np.zeros(5, np.complex64), np.zeros(5, np.int64)],
        ids=["short", "matrix", "complex64", "int64"],
    )
    def test_refuses_other_shapes_and_types(self, update):
        with pytest.raises(ConfigError, match=r"shape \(5,\)"):
            quantize(update, policy(5), "a", Stream(KEY))


class TestQuantised:
    """The same integers as `quantize`, in pieces."""

    @given(st.lists(st.integers(0, 50_000), max_size=6), st.sampled_from([24, 32, 40, 64]))
    @settings(max_examples=25, deadline=None)
    def test_any_pieces_are_the_whole(self, pieces, bits):
        update = np.linspace(-1.5, 1.5, sum(pieces) + 1, dtype=np.float32)
        rules = policy(len(update), bits=bits)
        whole, clip_rate = quantize(update, rules, "a", Stream(KEY))
        copy = np.zeros(len(update), dtype_for(bits))
        quantised = Quantised(update, rules, "a", Stream(KEY), copy)
        assert quantised.clip_rate == clip_rate
        low = dtype_for(bits).type(2**bits - 1)
        for stop in np.cumsum([*pieces, 1]):
            piece = np.empty(pieces.pop(0) if pieces else 1, dtype_for(bits))
            quantised.read_into(piece)
            np.testing.assert_array_equal(piece & low, whole[stop - len(piece) : stop])
        np.testing.assert_array_equal(copy, whole)

    def test_is_read_once(self):
        quantised = Quantised(np.zeros(3), policy(3), "a", Stream(KEY))
        quantised.read_into(np.empty(2, np.uint32))
        for count in (2, 5):
            with pytest.raises(ValueError, match="read once"):
                quantised.read_into(np.empty(count, np.uint32))
        quantised.read_into(np.empty(1, np.uint32))
        with pytest.raises(ValueError, match="read once"):
            quantised.read_into(np.empty(1, np.uint32))

    @pytest.mark.parametrize("poison", [math.nan, math.inf, -math.inf])
    def test_a_value_that_stops_being_finite_is_refused(self, poison):
        update = np.full(100_000, 0.1234567)
        quantised = Quantised(update, policy(100_000), "a", Stream(KEY))
        update[99_999] = poison
        quantised.read_into(np.empty(50_000, np.uint32))
        with pytest.raises(ConfigError, match="1 of 100000 values") as caught:
            quantised.read_into(np.empty(50_000, np.uint32))
        assert "0.123" not in str(caught.value)

    def test_a_value_that_leaves_the_clip_range_later_is_clipped(self):
        update = np.zeros(2)
        quantised = Quantised(update, policy(2), "a", Stream(KEY))
        update[:] = 7, -7
        out = np.empty(2, np.uint32)
        quantised.read_into(out)
        assert lift(out, 32) == [2**19, -(2**19)]

    def test_shows_nothing(self):
        assert repr(Quantised(np.ones(2), policy(2), "a", Stream(KEY))) == "<Quantised>"


class TestDequantize:
    @given(st.integers(24, 64), st.lists(st.integers(-(2**22), 2**22), min_size=1, max_size=20), st.data())
    @settings(max_examples=50, deadline=None)
    def test_lifts_from_any_modulus_and_ignores_higher_bits(self, bits, values, data):
        dtype = dtype_for(bits)
        noise = data.draw(st.integers(0, (1 << (8 * dtype.itemsize - bits)) - 1)) << bits
        total = np.array([(v % (1 << bits)) | noise for v in values], dtype)
        rules = policy(len(values), bits=bits, clip_range=float(2**19))
        np.testing.assert_array_equal(dequantize(total, rules), values)

    def test_does_not_change_the_sum(self):
        total = np.array([5, 2**32 - 5], np.uint32)
        assert dequantize(total, policy(2)).tolist() == [5 / 2**19, -5 / 2**19]
        assert total.tolist() == [5, 2**32 - 5]

    @pytest.mark.parametrize("total", [np.zeros(3, np.uint32), np.zeros(2, np.uint64), np.zeros(2, np.int32)])
    def test_refuses_other_shapes_and_types(self, total):
        with pytest.raises(ConfigError, match="the sum is"):
            dequantize(total, policy(2))
