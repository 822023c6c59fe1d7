"""The masked input in one pass against the same in steps; adding it up; nothing left behind by what is refused."""

import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from secagg.errors import ConfigError
from secagg.masking import masked_input, slot_mask, slot_values, without_masks
from secagg.packing import BLOCK, dtype_for, pack, packed_size, unpack
from secagg.policy import Policy
from secagg.prg import Stream, apply_masks
from secagg.quantize import Quantised, quantize

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
