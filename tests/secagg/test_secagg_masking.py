"""The masked input in one pass against the same in steps; adding it up; nothing left behind by what is refused."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from secagg.errors import ConfigError
from secagg.masking import masked_input, slot_mask, slot_values, without_masks
from secagg.policy import Policy
from secagg.prg import Stream, apply_masks
from secagg.quantize import BLOCK, Quantised, accumulate, dtype_for, pack, packed_size, quantize, unpack

ROUND = bytes(range(32))
SEEDS = [bytes([i]) * 32 for i in range(1, 6)]
KEY = bytes(32)


def policy(length, bits):
    return Policy(project="p", clients=5, length=length, clip_range=1.0, value_bits=4, bits=bits)


def update_of(length):
    return np.linspace(-1.2, 1.2, length, dtype=np.float32)


def masked(length, bits, executor=None, update=None):
    rules = policy(length, bits)
    quantised = Quantised(update_of(length) if update is None else update, rules, "a", Stream(KEY))
    return masked_input(quantised, rules, ROUND, SEEDS[:3], SEEDS[3:], executor)


class TestMaskedInput:
    @pytest.mark.parametrize("bits", [8, 15, 23, 32, 33, 64])
    @pytest.mark.parametrize(
        "length", [1, 2, BLOCK - 9, BLOCK - 2, BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK - 3, 2 * BLOCK + 100]
    )
    def test_equals_quantise_then_mask_then_pack(self, length, bits):
        """The slots lie across a block border in some of these."""
        rules = policy(length, bits)
        steps = np.concatenate([quantize(update_of(length), rules, "a", Stream(KEY))[0], slot_values(rules, ROUND)])
        apply_masks(steps, SEEDS[:3], SEEDS[3:])
        assert masked(length, bits) == pack(steps, bits)

    def test_unmasks_to_the_integers_and_the_slots(self):
        rules = policy(1000, 23)
        vector = unpack(masked(1000, 23), 1000 + rules.slots, 23)
        apply_masks(vector, SEEDS[3:], SEEDS[:3])
        plain = quantize(update_of(1000), rules, "a", Stream(KEY))[0]
        np.testing.assert_array_equal(vector & (2**23 - 1), np.concatenate([plain, slot_values(rules, ROUND)]))

    @pytest.mark.parametrize("bits", [23, 40])
    def test_is_the_same_with_an_executor(self, bits):
        length = (9 << 20) // dtype_for(bits).itemsize  # more than one group
        with ThreadPoolExecutor(2) as pool:
            assert masked(length, bits, pool) == masked(length, bits)

    def test_is_read_only(self):
        y = masked(10, 23)
        assert y.readonly
        assert y.nbytes == packed_size(13, 23)

    def test_a_value_that_stopped_being_finite_is_refused(self):
        rules, update = policy(10, 23), np.zeros(10)
        quantised = Quantised(update, rules, "a", Stream(KEY))
        update[3] = np.nan
        with pytest.raises(ConfigError, match="1 of 10 values"):
            masked_input(quantised, rules, ROUND, SEEDS, [])

    @pytest.mark.parametrize(("threads", "limit"), [(0, 8 << 20), (2, 16 << 20)])
    def test_memory_beside_input_and_output_is_small(self, threads, limit):
        update = np.zeros(4_000_000, np.float32)
        pool = ThreadPoolExecutor(threads) if threads else None
        tracemalloc.start()
        try:
            y = masked(len(update), 23, pool, update)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
            if pool:
                pool.shutdown()
        assert y.nbytes < peak < y.nbytes + limit


class TestSlots:
    @pytest.mark.parametrize("bits", [8, 15, 23, 32, 33, 64])
    @pytest.mark.parametrize("length", [1, 1000, BLOCK - 1, (1 << 18) // 4 - 1, (1 << 18) // 4, (1 << 18) // 8])
    def test_their_masks_taken_away_one_by_one_leave_the_constants(self, length, bits):
        """Also where they lie across the end of a chunk of the keystream."""
        rules = policy(length, bits)
        slots = unpack(masked(length, bits), length + rules.slots, bits)[length:]
        masks = [slot_mask(seed, rules) for seed in SEEDS]
        assert {len(mask) for mask in masks} == {rules.slots * dtype_for(bits).itemsize}
        plain = without_masks(slots, rules, masks[:3], masks[3:])
        np.testing.assert_array_equal(plain, slot_values(rules, ROUND))
        assert not np.array_equal(without_masks(slots, rules, masks[:2], masks[3:]), slot_values(rules, ROUND))

    def test_they_are_other_words_of_the_keystream_than_those_of_the_values(self):
        rules = policy(1000, 23)
        for seed in SEEDS:
            expanded = np.zeros(1000 + rules.slots, np.uint32)
            apply_masks(expanded, [seed], [])
            assert slot_mask(seed, rules) == expanded[1000:].astype("<u4").tobytes()
            assert slot_mask(seed, rules) not in expanded[:1000].astype("<u4").tobytes()

    def test_a_mask_of_another_length_is_refused(self):
        rules = policy(10, 23)
        slots = slot_values(rules, ROUND)
        for wrong in (bytes(4), bytes(11), bytes(16), b""):
            with pytest.raises(ValueError, match=r"reshape|multiple"):
                without_masks(slots, rules, [wrong], [])


class TestAccumulate:
    @pytest.mark.parametrize("bits", [8, 23, 32, 33, 64])
    def test_adds_modulo_the_word(self, bits):
        length = BLOCK + 77
        vectors = [Stream.seeded(i, "v").words64(length).astype(dtype_for(bits)) for i in range(3)]
        low = dtype_for(bits).type(2**bits - 1)
        total = vectors[0].copy()
        for vector in vectors[1:]:
            accumulate(total, pack(vector, bits), bits)
        np.testing.assert_array_equal(total, vectors[0] + (vectors[1] & low) + (vectors[2] & low))

    def test_takes_a_slice_of_a_message(self):
        vector = np.arange(BLOCK + 5, dtype=np.uint32)
        total = np.zeros_like(vector)
        accumulate(total, memoryview(b"head" + pack(vector, 20) + b"tail")[4:-4], 20)
        np.testing.assert_array_equal(total, vector)

    def test_a_refused_vector_leaves_no_trace(self):
        """The padding is in the last block, and the first is not added either."""
        length = BLOCK + 3
        good = pack(np.full(length, 2**23 - 1, np.uint32), 23)
        total = np.arange(length, dtype=np.uint32)
        for bad in (good[:-1], good + b"\0", b"", good[:-1] + bytes([good[-1] | 0x80])):
            with pytest.raises(ValueError, match=r"do not hold|padding"):
                accumulate(total, bad, 23)
            np.testing.assert_array_equal(total, np.arange(length, dtype=np.uint32))

    def test_needs_no_second_vector(self):
        total = np.zeros(4_000_000, np.uint32)
        y = pack(total, 23)
        tracemalloc.start()
        try:
            accumulate(total, y, 23)
            peak = tracemalloc.get_traced_memory()[1]
        finally:
            tracemalloc.stop()
        assert peak < 2 << 20
