"""The compiled passes make the bytes of the numpy ones, and reach beyond no buffer."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from secagg import kernel
from secagg.packing import BLOCK, add_packed, dtype_for, pack, packed_size, unpack
from secagg.policy import Policy
from secagg.prg import Stream
from secagg.quantize import quantize

pytestmark = pytest.mark.skipif(kernel.compiled is None, reason="secagg was installed without a C compiler")

LENGTHS = st.one_of(
    st.integers(1, 40),
    st.sampled_from([BLOCK - 1, BLOCK, BLOCK + 1, 2 * BLOCK, 2 * BLOCK + 9]),
)


@pytest.fixture
def in_numpy(monkeypatch):
    def run(action):
        with monkeypatch.context() as patch:
            patch.setattr(kernel, "compiled", None)
            return action()

    return run


def values(length, bits, seed):
    """(length,) words of which all bits are random, those above `bits` too."""
    dtype = dtype_for(bits)
    return np.random.default_rng(seed).integers(0, 2 ** (8 * dtype.itemsize), length, np.uint64, False).astype(dtype)


@settings(max_examples=150, deadline=None)
@given(LENGTHS, st.integers(8, 64), st.integers(0, 2**32))
def test_packs_adds_and_unpacks_as_numpy_does(length, bits, seed):
    first, second = (values(length, bits, seed + i) for i in range(2))

    def passes():
        packed = pack(first, bits)
        total = np.frombuffer(bytearray(pack(second, bits)), np.uint8)
        add_packed(total, packed, length, bits)
        return packed, total.tobytes(), unpack(total.tobytes(), length, bits).tobytes()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "compiled", None)
        reference = passes()
    assert passes() == reference


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
        patch.setattr(kernel, "compiled", None)
        reference = quantize(update, policy, "a", Stream.seeded(seed))
    compiled = quantize(update, policy, "a", Stream.seeded(seed))
    assert np.array_equal(compiled[0], reference[0])
    assert compiled[1] == reference[1]


def test_a_vector_that_does_not_lie_in_one_piece_is_left_to_numpy(in_numpy):
    policy = Policy(project="k", clients=3, length=9, clip_range=1.0)
    update = np.linspace(-1, 1, 18)[::2]
    reference = in_numpy(lambda: quantize(update, policy, "a", Stream.seeded(1))[0])
    assert np.array_equal(quantize(update, policy, "a", Stream.seeded(1))[0], reference)


def test_words_off_their_alignment_are_left_to_numpy(in_numpy, monkeypatch):
    """As they lie in a file behind a header, say: C promises nothing for them."""
    policy = Policy(project="k", clients=3, length=9, clip_range=1.0)
    update, vector = (np.frombuffer(bytearray(1 + 9 * 4), np.uint8)[1:].view(kind) for kind in ("f4", "u4"))
    update[:], vector[:] = np.linspace(-1, 1, 9), np.arange(9)
    assert not update.flags.aligned
    passes = lambda: (quantize(update, policy, "a", Stream.seeded(1))[0].tolist(), pack(vector, 23))  # noqa: E731
    reference = in_numpy(passes)
    monkeypatch.setattr(kernel, "compiled", object())  # whose passes nobody finds
    assert passes() == reference


@pytest.mark.parametrize(("dtype", "bits"), [(">u4", 32), (">u8", 40), (np.uint64, 16), (np.uint16, 8)])
def test_words_of_another_kind_are_left_to_numpy(in_numpy, dtype, bits):
    """The kernel sees bytes only: of a big-endian vector it would make another one, silently."""
    vector = np.arange(11).astype(dtype)
    reference = in_numpy(lambda: pack(vector, bits))
    assert pack(vector, bits) == reference
    assert unpack(reference, 11, bits).tolist() == list(range(11))


@pytest.mark.parametrize("bits", [7, 65, -8, 0])
def test_refuses_widths_that_are_none(bits):
    vector, planes = np.zeros(32, np.uint32), np.zeros(4 * max(bits, 0), np.uint8)
    for call, arguments in (
        (kernel.compiled.pack_into, (vector, planes)),
        (kernel.compiled.unpack_into, (vector, planes)),
        (kernel.compiled.add_packed, (planes, planes, 32)),
    ):
        with pytest.raises(ValueError, match="same number of values"):
            call(*arguments, bits)


@pytest.mark.parametrize("count", [-1, 65, 2**62, -(2**62)])
def test_refuses_numbers_of_values_that_the_planes_do_not_hold(count):
    planes = np.zeros(packed_size(64, 23), np.uint8)
    with pytest.raises(ValueError, match="same number of values"):
        kernel.compiled.add_packed(planes, planes, count, 23)


@pytest.mark.parametrize("off", [-1, 1])
def test_refuses_buffers_that_do_not_fit(off):
    vector, size = np.zeros(11, np.uint32), packed_size(11, 23)
    right, wrong = np.zeros(size, np.uint8), np.zeros(size + off, np.uint8)
    for call in (kernel.compiled.pack_into, kernel.compiled.unpack_into):
        with pytest.raises(ValueError, match="same number of values"):
            call(vector, wrong, 23)
        with pytest.raises(ValueError, match="same number of values"):
            call(np.zeros(44 + off, np.uint8), right, 23)
    for total, planes in ((right, wrong), (wrong, right)):
        with pytest.raises(ValueError, match="same number of values"):
            kernel.compiled.add_packed(total, planes, 11, 23)
    words = np.zeros(11, np.uint32)
    for update, out in ((np.zeros(11 + off), vector), (np.zeros(11), np.zeros(11 + off, np.uint32))):
        with pytest.raises(ValueError, match="same number of values"):
            kernel.compiled.quantise(update, words, out, 1.0, 1.0, 8, 4)
    for widths in ((2, 4), (8, 2)):
        with pytest.raises(ValueError, match="same number of values"):
            kernel.compiled.quantise(np.zeros(11), words, vector, 1.0, 1.0, *widths)


def test_writes_nothing_that_is_read_only():
    frozen, words = np.zeros(packed_size(8, 32), np.uint8), np.zeros(8, np.uint32)
    other = frozen.copy()
    frozen.flags.writeable = words.flags.writeable = False
    for call, arguments in (
        (kernel.compiled.add_packed, (frozen, other, 8)),
        (kernel.compiled.pack_into, (words, frozen)),
        (kernel.compiled.unpack_into, (words, other)),
    ):
        with pytest.raises(ValueError, match=r"read-only|not writable"):
            call(*arguments, 32)


@pytest.mark.parametrize(("count", "bits"), [(13, 23), (33, 23), (8 * 256 * 32 + 5, 8), (BLOCK + 40, 40)])
def test_leaves_what_lies_around_a_buffer_alone(count, bits):
    """Red zones around every buffer that is written, at an address that no word is aligned to."""
    size, width = packed_size(count, bits), dtype_for(bits).itemsize
    vector = np.full(count, 2**bits - 1, dtype_for(bits))
    planes, total = np.full(size + 2, 0xA5, np.uint8), np.full(size + 2, 0xA5, np.uint8)
    kernel.compiled.pack_into(vector, planes[1:-1], bits)
    total[1:-1] = 0
    kernel.compiled.add_packed(total[1:-1], planes[1:-1], count, bits)
    words = np.full(count * width + 2 * width, 0xA5, np.uint8)
    kernel.compiled.unpack_into(words[width:-width], total[1:-1], bits)
    assert words[width:-width].view(dtype_for(bits)).tolist() == vector.tolist()
    for room, edge in ((planes, 1), (total, 1), (words, width)):
        assert (room[:edge] == 0xA5).all()
        assert (room[-edge:] == 0xA5).all()
