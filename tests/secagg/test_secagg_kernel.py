"""The compiled passes make the bytes of the numpy ones, and reach beyond no buffer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import quantize as passes
from secagg.policy import Policy
from secagg.prg import Stream
from secagg.quantize import BLOCK, accumulate, dtype_for, pack, packed_size, quantize

pytestmark = pytest.mark.skipif(not passes.KERNEL, reason="secagg was installed without a C compiler")

LENGTHS = st.one_of(
    st.integers(1, 40),
    st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 9]),
)


@pytest.fixture
def in_numpy(monkeypatch):
    def run(action):
        with monkeypatch.context() as patch:
            patch.setattr(passes, "_kernel", None)
            return action()

    return run


def values(length, bits, seed):
    """(length,) words of which all bits are random, those above `bits` too."""
    dtype = dtype_for(bits)
    return np.random.default_rng(seed).integers(0, 2 ** (8 * dtype.itemsize), length, np.uint64, False).astype(dtype)


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(8, 64), st.integers(0, 2**32))
def test_packs_and_adds_as_numpy_does(length, bits, seed):
    vector, total = values(length, bits, seed), values(length, bits, seed + 1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "_kernel", None)
        reference, added = pack(vector, bits), total.copy()
        accumulate(added, reference, bits)
    assert pack(vector, bits) == reference
    accumulate(total, reference, bits)
    assert np.array_equal(total, added)


@settings(max_examples=100, deadline=None)
@given(
    LENGTHS,
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([(8, 2), (23, 16), (32, 16), (40, 30), (64, 48)]),
    st.sampled_from([1e-9, 1e-3, 1.0, 3.7, 1e9]),
    st.integers(0, 2**32),
)
def test_rounds_as_numpy_does(length, dtype, widths, clip_range, seed):
    bits, value_bits = widths
    policy = Policy(project="k", clients=3, length=length, clip_range=clip_range, bits=bits, value_bits=value_bits)
    update = (np.random.default_rng(seed).normal(scale=clip_range, size=length)).astype(dtype)
    update[:: max(length // 5, 1)] = clip_range
    update[1 :: max(length // 3, 1)] = -0.0
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(passes, "_kernel", None)
        reference = quantize(update, policy, "a", Stream.seeded(seed))
    compiled = quantize(update, policy, "a", Stream.seeded(seed))
    assert np.array_equal(compiled[0], reference[0])
    assert compiled[1] == reference[1]


def test_a_vector_that_does_not_lie_in_one_piece_is_left_to_numpy(in_numpy):
    policy = Policy(project="k", clients=3, length=9, clip_range=1.0)
    update = np.linspace(-1, 1, 18)[::2]
    reference = in_numpy(lambda: quantize(update, policy, "a", Stream.seeded(1))[0])
    assert np.array_equal(quantize(update, policy, "a", Stream.seeded(1))[0], reference)


@pytest.mark.parametrize(("dtype", "bits"), [(">u4", 32), (">u8", 40), (np.uint64, 16), (np.uint16, 8)])
def test_words_of_another_kind_are_left_to_numpy(in_numpy, dtype, bits):
    """The kernel sees bytes only: of a big-endian vector it would make another one, silently."""
    vector, total = np.arange(11).astype(dtype), np.arange(11).astype(dtype)
    reference = in_numpy(lambda: pack(vector, bits))
    assert pack(vector, bits) == reference
    accumulate(total, reference, bits)
    assert np.array_equal(total, 2 * np.arange(11))


@pytest.mark.parametrize("bits", [7, 65, -8, 0])
def test_refuses_widths_that_are_none(bits):
    with pytest.raises(ValueError, match="same number of values"):
        passes._kernel.pack_into(np.zeros(8, np.uint32), np.zeros(8 * 4, np.uint8), bits)


@pytest.mark.parametrize("off", [-1, 1])
def test_refuses_buffers_that_do_not_fit(off):
    vector, size = np.zeros(11, np.uint32), packed_size(11, 23)
    for call in (passes._kernel.pack_into, passes._kernel.add_packed):
        with pytest.raises(ValueError, match="same number of values"):
            call(vector, np.zeros(size + off, np.uint8), 23)
    words = np.zeros(11, np.uint32)
    for update, out in ((np.zeros(11 + off), vector), (np.zeros(11), np.zeros(11 + off, np.uint32))):
        with pytest.raises(ValueError, match="same number of values"):
            passes._kernel.quantise(update, words, out, 1.0, 1.0, 8, 4)
    for widths in ((2, 4), (8, 2)):
        with pytest.raises(ValueError, match="same number of values"):
            passes._kernel.quantise(np.zeros(11), words, vector, 1.0, 1.0, *widths)


def test_writes_nothing_that_is_read_only():
    frozen = np.zeros(8, np.uint32)
    frozen.flags.writeable = False
    with pytest.raises(ValueError, match=r"read-only|not writable"):
        passes._kernel.add_packed(frozen, np.zeros(packed_size(8, 32), np.uint8), 32)


def test_leaves_what_lies_around_a_buffer_alone():
    room = np.full(packed_size(13, 23) + 2, 0xA5, np.uint8)
    passes._kernel.pack_into(np.zeros(13, np.uint32), room[1:-1], 23)
    assert (room[0], room[-1]) == (0xA5, 0xA5)
    assert not room[1:-1].any()
