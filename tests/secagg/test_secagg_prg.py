"""The keystream against published vectors and its definition; masks against the keystream; the random streams."""

import copy
import json
import math
import multiprocessing
import os
import pickle
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from cryptography.hazmat.primitives.ciphers import Cipher
from cryptography.hazmat.primitives.ciphers.algorithms import AES256
from cryptography.hazmat.primitives.ciphers.modes import CTR, ECB
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg.prg import (
    CHUNK_BYTES,
    PART_BYTES,
    Masks,
    Stream,
    apply_masks,
    by_ctr,
    by_gcm,
    faster_way,
    keystream,
    mask_part,
    zeros,
)

VECTORS = Path(os.environ.get("SECAGG_VECTORS", Path(__file__).parents[3] / "shared" / "vectors"))
SEEDS = [bytes([i]) * 32 for i in range(1, 6)]
WORDS = CHUNK_BYTES // 4


def xor(a, b):
    return bytes(x ^ y for x, y in zip(a, b, strict=True))


class TestKeystream:
    def test_sp_800_38a_ctr_aes256(self):
        key = bytes.fromhex("603deb1015ca71be2b73aef0857d77811f352c073b6108d72d9810a30914dff4")
        counter = bytes.fromhex("f0f1f2f3f4f5f6f7f8f9fafbfcfdfeff")
        plaintext = bytes.fromhex(
            "6bc1bee22e409f96e93d7e117393172aae2d8a571e03ac9c9eb76fac45af8e51"
            "30c81c46a35ce411e5fbc1191a0a52eff69f2445df4f9b17ad2b417be66c3710"
        )
        assert Cipher(AES256(key), CTR(counter)).encryptor().update(plaintext).hex() == (
            "601ec313775789a5b7a7f504bbf3d228f443e3ca4d62b59aca84e990cacaf5c5"
            "2b0930daa23de94ce87017ba2d84988ddfc9c58db67aada613c2dd08457941a6"
        )

    def test_sp_800_38d_zeros(self):
        """AES-256-GCM of zeros under the zero key and nonce (McGrew and Viega, test case 14)."""
        assert keystream(bytes(32), 0, 16).hex() == "cea7403d4d606b6e074ec5d3baf39d18"

    def test_wycheproof_aes_gcm(self):
        """A GCM ciphertext is the message xored with chunk number nonce, up to 2^96 - 1."""
        path = VECTORS / "wycheproof" / "aes_gcm_test.json"
        if not path.exists():
            pytest.skip(f"{path} is absent")
        groups = [g for g in json.loads(path.read_text())["testGroups"] if (g["keySize"], g["ivSize"]) == (256, 96)]
        tests = [test for group in groups for test in group["tests"] if test["result"] == "valid"]
        assert len(tests) > 20
        for test in tests:
            key, nonce, message, ciphertext = (bytes.fromhex(test[name]) for name in ("key", "iv", "msg", "ct"))
            start = int.from_bytes(nonce, "big") * CHUNK_BYTES
            assert xor(message, keystream(key, start, len(message))) == ciphertext, test["tcId"]

    @given(st.integers(0, 3 * CHUNK_BYTES), st.integers(0, 100))
    @settings(max_examples=50, deadline=None)
    def test_definition_block_by_block(self, start, length):
        ecb = Cipher(AES256(SEEDS[0]), ECB()).encryptor()
        stream = b""
        for block in range(start // 16, (start + length) // 16 + 1):
            chunk, inside = divmod(block, CHUNK_BYTES // 16)
            stream += ecb.update(chunk.to_bytes(12, "big") + (2 + inside).to_bytes(4, "big"))
        assert keystream(SEEDS[0], start, length) == stream[start % 16 :][:length]

    def test_seeks_across_a_chunk_border(self):
        whole = keystream(SEEDS[0], 0, 2 * CHUNK_BYTES + 100)
        for start, length in ((CHUNK_BYTES - 7, 20), (CHUNK_BYTES, 5), (1, 2 * CHUNK_BYTES + 3), (2 * CHUNK_BYTES, 0)):
            assert keystream(SEEDS[0], start, length) == whole[start : start + length]

    @pytest.mark.parametrize(("start", "length"), [(-1, 5), (0, -1)])
    def test_refuses_negative_positions(self, start, length):
        with pytest.raises(ValueError, match="negative"):
            keystream(SEEDS[0], start, length)


@pytest.fixture(params=[by_gcm, by_ctr])
def way(request, monkeypatch):
    """Each of the two ways to the same bytes, whichever is the faster one here."""
    monkeypatch.setattr("secagg.prg.faster_way", lambda: request.param)
    return request.param


def test_the_faster_way_is_found_out_once_and_is_one_of_the_two():
    assert faster_way() in (by_gcm, by_ctr)
    assert faster_way() is faster_way()


def test_both_ways_write_any_chunk_and_the_beginning_of_one(way):
    write_chunk, zeroed = way(SEEDS[0]), memoryview(bytes(CHUNK_BYTES))
    for index, size in ((0, CHUNK_BYTES), (5, 7), (2**96 - 1, 100), (2, 0), (0, 16)):
        target = bytearray(size + 16)
        write_chunk(index, zeroed[:size], memoryview(target))
        assert bytes(target[:size]) == keystream(SEEDS[0], index * CHUNK_BYTES, size)


def test_both_ways_refuse_other_seeds():
    for refusing in (by_gcm, by_ctr):
        for length in (0, 16, 31, 33):
            with pytest.raises(ValueError, match="32"):
                refusing(bytes(length))


class TestApplyMasks:
    @pytest.mark.parametrize("kind", [np.uint32, np.uint64])
    @pytest.mark.parametrize(
        "size",
        [0, 1, 5, WORDS // 2 - 1, WORDS // 2, WORDS // 2 + 1, WORDS - 1, WORDS, WORDS + 1, 2 * WORDS, 2 * WORDS + 3],
    )
    def test_equals_the_reference_at_chunk_borders(self, kind, size, way):
        vector = np.arange(size, dtype=kind) * kind(40503)
        expected = vector.copy()
        little = np.dtype(kind).newbyteorder("<")
        for seeds, operation in ((SEEDS[:3], np.add), (SEEDS[3:], np.subtract)):
            for seed in seeds:
                operation(expected, np.frombuffer(keystream(seed, 0, vector.nbytes), little), out=expected)
        apply_masks(vector, SEEDS[:3], SEEDS[3:])
        np.testing.assert_array_equal(vector, expected)

    @pytest.mark.parametrize("kind", [np.uint32, np.uint64])
    def test_opposite_masks_cancel(self, kind):
        original = Stream(SEEDS[0]).words64(WORDS + 11).astype(kind)
        vector = original.copy()
        apply_masks(vector, SEEDS[:2], SEEDS[2:4])
        assert (vector != original).mean() > 0.999
        apply_masks(vector, SEEDS[2:4], SEEDS[:2])
        np.testing.assert_array_equal(vector, original)

    def test_no_seeds_no_change(self):
        vector = np.arange(9, dtype=np.uint32)
        apply_masks(vector, [], [])
        np.testing.assert_array_equal(vector, np.arange(9))

    @pytest.mark.parametrize(
        "vector",
        [
            np.zeros(4, np.int32),
            np.zeros(4, np.float32),
            np.zeros(4, np.uint16),
            np.zeros((2, 2), np.uint32),
            np.zeros(8, np.uint32)[::2],
        ],
        ids=["int32", "float32", "uint16", "matrix", "strided"],
    )
    def test_refuses_other_vectors(self, vector):
        with pytest.raises(ValueError, match="contiguous"):
            apply_masks(vector, SEEDS, [])

    @pytest.mark.parametrize("length", [0, 16, 24, 31, 33])
    def test_refuses_other_seeds_before_masking(self, length):
        vector = np.zeros(4, np.uint32)
        with pytest.raises(ValueError, match="32"):
            apply_masks(vector, SEEDS, [bytes(length)])
        assert not vector.any()


class Backwards:
    """Runs the last part first, and on copies where told to, as a cluster may."""

    def __init__(self, copies):
        self.copies, self.asked = copies, []

    def map(self, function, *iterables):
        self.asked = list(zip(*iterables, strict=False))
        results = []
        for part, *rest in reversed(self.asked):
            given = part.copy() if self.copies else part
            if self.copies:
                given.flags.writeable = False
            results.append(function(given, *rest))
        return reversed(results)


class Broken:
    """Loses the second part."""

    def map(self, function, *iterables):
        for index, arguments in enumerate(zip(*iterables, strict=False)):
            if index == 1:
                raise OSError("a worker died")
            yield function(*arguments)


class TestExecutors:
    def pair(self, kind, octets=2 * PART_BYTES + CHUNK_BYTES + 12):
        vector = Stream(SEEDS[0]).words(octets // 4).view(np.uint8).view(kind)
        return vector, vector.copy()

    @pytest.mark.parametrize("kind", [np.uint32, np.uint64])
    @pytest.mark.parametrize("copies", [False, True], ids=["in place", "copies"])
    def test_any_order_is_the_same(self, kind, copies):
        vector, expected = self.pair(kind, 2 * PART_BYTES + CHUNK_BYTES + 16)
        apply_masks(expected, SEEDS[:3], SEEDS[3:])
        executor = Backwards(copies)
        apply_masks(vector, SEEDS[:3], SEEDS[3:], executor)
        np.testing.assert_array_equal(vector, expected)
        assert [part.nbytes for part, *_ in executor.asked] == [PART_BYTES, PART_BYTES, CHUNK_BYTES + 16]

    @pytest.mark.parametrize("executor", [None, Backwards(copies=False)])
    def test_a_later_part_starts_at_its_own_chunk(self, executor):
        whole, expected = self.pair(np.uint32)
        apply_masks(expected, SEEDS[:1], SEEDS[1:2])
        split = PART_BYTES // 4
        apply_masks(whole[:split], SEEDS[:1], SEEDS[1:2], executor)
        apply_masks(whole[split:], SEEDS[:1], SEEDS[1:2], executor, PART_BYTES // CHUNK_BYTES)
        np.testing.assert_array_equal(whole, expected)

    def test_threads(self):
        vector, expected = self.pair(np.uint32)
        apply_masks(expected, SEEDS[:3], SEEDS[3:])
        with ThreadPoolExecutor(4) as pool:
            apply_masks(vector, SEEDS[:3], SEEDS[3:], pool)
        np.testing.assert_array_equal(vector, expected)

    def test_processes(self):
        vector, expected = self.pair(np.uint32)
        apply_masks(expected, SEEDS[:3], SEEDS[3:])
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            apply_masks(vector, SEEDS[:3], SEEDS[3:], pool)
        np.testing.assert_array_equal(vector, expected)

    def test_a_failure_is_not_hidden(self):
        vector, before = self.pair(np.uint32)
        with pytest.raises(OSError, match="a worker died"):
            apply_masks(vector, SEEDS[:3], SEEDS[3:], Broken())
        split = PART_BYTES // 4
        assert (vector[:split] != before[:split]).any()
        np.testing.assert_array_equal(vector[split:], before[split:])

    def test_a_part_that_is_missing_is_noticed(self):
        class Short:
            def map(self, function, *iterables):
                return [function(*next(zip(*iterables, strict=False)))]

        with pytest.raises(ValueError, match="shorter"):
            apply_masks(self.pair(np.uint32)[0], SEEDS, [], Short())

    @pytest.mark.parametrize(("vector", "seed"), [(np.zeros(4, np.int32), bytes(32)), (np.zeros(4, np.uint32), b"")])
    def test_bad_arguments_reach_no_worker(self, vector, seed):
        executor = Backwards(copies=False)
        with pytest.raises(ValueError, match=r"contiguous|32"):
            apply_masks(vector, SEEDS, [seed], executor)
        assert not executor.asked

    def test_mask_part_gives_back_the_very_part(self):
        part = np.zeros(10, np.uint32)
        assert mask_part(part, SEEDS, [], 0) is part

    def test_masks_are_neither_printed_nor_copied_nor_pickled(self):
        masks = Masks(SEEDS, [])
        assert repr(masks) == "<Masks>"
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="never copied or pickled"):
                duplicate(masks)


@pytest.mark.parametrize("kind", [np.uint8, np.uint32, np.uint64])
@pytest.mark.parametrize("length", [1, 1000, 10**6])
def test_zeros_start_on_a_cache_line(kind, length):
    vector = zeros(length, kind)
    assert (vector.dtype, vector.shape) == (kind, (length,))
    assert vector.ctypes.data % 64 == 0
    assert not vector.any()


class Fixed(Stream):
    """A stream whose 64-bit words are given."""

    def __init__(self, *words):
        super().__init__(bytes(32))
        self.given = list(words)

    def words64(self, n):
        taken, self.given = self.given[:n], self.given[n:]
        return np.array(taken, np.uint64)


class TestStream:
    def test_is_the_keystream_read_once(self, way):
        stream = Stream(SEEDS[0])
        sizes = [1, 3, 1000, WORDS - 1004, 1, WORDS + 2, 7]
        taken = b"".join(stream.words(n).astype("<u4").tobytes() for n in sizes)
        assert taken == keystream(SEEDS[0], 0, 4 * sum(sizes))
        assert stream.words64(2).astype("<u8").tobytes() == keystream(SEEDS[0], len(taken), 16)
        assert stream.words(0).shape == (0,)

    def test_words_may_be_changed_in_place(self):
        words = Stream(SEEDS[0]).words(4)
        words[:] = 0
        assert words.dtype == np.uint32
        assert Stream(SEEDS[0]).words(4).any()

    def test_operating_system_keys_differ(self):
        assert (Stream().words64(4) != Stream().words64(4)).all()

    def test_seeded_is_reproducible_and_labels_separate(self):
        labels = [(1, "noise", "a", 1, 0), (1, "noise", "a", 1, 1), (1, "noise", "b", 1, 0), (2, "noise", "a", 1, 0)]
        labels += [(1,), (1, "noise"), (1, "a", "noise", 1, 0)]
        drawn = [tuple(Stream.seeded(*label).words64(2)) for label in labels]
        assert len(set(drawn)) == len(labels)
        assert tuple(Stream.seeded(*labels[0]).words64(2)) == drawn[0]

    def test_seeded_known_answer(self):
        """Seeded runs stay reproducible within a version of the protocol."""
        assert Stream.seeded(7, "noise", "site-a", 3).words64(2).tolist() == [7249797318129978570, 13993935390420102827]

    @pytest.mark.parametrize("length", [0, 16, 31, 33])
    def test_refuses_other_keys(self, length):
        with pytest.raises(ValueError, match=r"key size|bits"):
            Stream(bytes(length))

    def test_uniform_is_open_symmetric_and_exact(self):
        low, high, middle = Fixed(0, 2**64 - 1, 2**63).uniform(3)
        assert 0 < low < high < 1
        assert (low, high, middle) == (2.0**-53, 1 - 2.0**-53, 0.5 + 2.0**-53)
        values = Stream(SEEDS[0]).uniform(100_000)
        assert abs(values.mean() - 0.5) < 5 / math.sqrt(12 * 100_000)
        assert abs(values.var() - 1 / 12) < 0.001

    def test_integers_reject_what_would_bias(self):
        last = 2**64 - 2**64 % 10 - 1
        assert Fixed(last, last + 1, 2**64 - 1, 3, 14).integers(3, 10).tolist() == [9, 3, 4]

    @pytest.mark.parametrize("below", [1, 2, 3, 7, 1000, 2**33 + 1, 2**63])
    def test_integers_range(self, below):
        values = Stream(SEEDS[0]).integers(1000, below)
        assert values.dtype == np.int64
        assert values.shape == (1000,)
        assert 0 <= values.min() <= values.max() < below

    def test_integers_are_uniform(self):
        counts = np.bincount(Stream(SEEDS[1]).integers(70_000, 7), minlength=7)
        assert ((counts - 10_000) ** 2 / 10_000).sum() < 22.5  # chi-squared, 6 degrees of freedom, 1 in 1000

    @pytest.mark.parametrize("below", [0, -1, 2**63 + 1])
    def test_integers_refuse(self, below):
        with pytest.raises(ValueError, match="below"):
            Stream().integers(1, below)

    def test_permutations_are_uniform(self):
        stream = Stream(SEEDS[2])
        orders = [tuple(stream.permutation(3)) for _ in range(6000)]
        counts = np.array([orders.count(order) for order in set(orders)])
        assert len(counts) == 6
        assert ((counts - 1000) ** 2 / 1000).sum() < 20.5  # 5 degrees of freedom, 1 in 1000

    @pytest.mark.parametrize("n", [0, 1, 5000])
    def test_permutation_is_one(self, n):
        order = Stream(SEEDS[0]).permutation(n)
        assert order.dtype == np.int64
        assert sorted(order) == list(range(n))

    def test_permutation_draws_again_on_equal_keys(self):
        assert Fixed(5, 5, 9, 3, 2, 1).permutation(3).tolist() == [2, 1, 0]

    def test_bernoulli(self):
        stream = Stream(SEEDS[3])
        draws = stream.bernoulli(100_000, 0.3)
        assert draws.dtype == bool
        assert (draws == (Stream(SEEDS[3]).uniform(100_000) < 0.3)).all()
        assert not stream.bernoulli(1000, 0).any()
        assert stream.bernoulli(1000, 1).all()
        for probability in (-0.1, 1.1, math.nan):
            with pytest.raises(ValueError, match="0 to 1"):
                stream.bernoulli(1, probability)

    def test_neither_printed_nor_copied_nor_pickled(self):
        stream = Stream()
        assert (repr(stream), f"{stream}") == ("<Stream>", "<Stream>")
        for duplicate in (copy.copy, copy.deepcopy, pickle.dumps):
            with pytest.raises(TypeError, match="never copied or pickled"):
                duplicate(stream)
