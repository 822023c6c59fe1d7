"""Vectors as bit planes: the layout by its definition, there and back, and the sum of planes as they lie."""

import math
import tracemalloc

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from secagg import kernel
from secagg.packing import (
    BLOCK,
    add_packed,
    dtype_for,
    modulo,
    pack,
    packed_size,
    unpack,
    values_at,
    without_padding,
)
from secagg.prg import Stream

BORDERS = [BLOCK - 1, BLOCK, BLOCK + 1, BLOCK + 33, 2 * BLOCK, 2 * BLOCK + 77]


@pytest.fixture(params=["numpy", "kernel"], autouse=True)
def passes(request, monkeypatch):
    """Every test by the reference, and by the compiled kernel where it is there."""
    if request.param == "numpy":
        monkeypatch.setattr(kernel, "compiled", None)
    elif kernel.compiled is None:
        pytest.skip("secagg was installed without a C compiler")


def planes(values, bits):
    """The definition in docs/spec.md, in Python integers."""
    data = b""
    for start in range(0, len(values), 2**16):
        block = values[start : start + 2**16]
        lanes = math.ceil(len(block) / 32)
        rows = [block[r * lanes : (r + 1) * lanes] for r in range(32)]
        for k in range(bits):
            words = [0] * lanes
            for r, row in enumerate(rows):
                for lane, value in enumerate(row):
                    words[lane] |= (value >> k & 1) << r
            data += b"".join(word.to_bytes(4, "little") for word in words)
    return data


def vector_of(count, bits, label="vector"):
    """Values that have all bits of their word, of which packing takes the low ones."""
    vector = Stream.seeded(count, label, bits).words64(count).astype(dtype_for(bits))
    return vector, [int(v) & ((1 << bits) - 1) for v in vector]


@pytest.mark.parametrize("bits", range(8, 65))
def test_equals_the_definition(bits):
    for count in (0, 1, 2, 7, 31, 32, 33, 64, 200, 1000, 1025):
        vector, low = vector_of(count, bits)
        data = pack(vector, bits)
        assert data == planes(low, bits)
        assert packed_size(count, bits) == len(data) < (count + 32) * bits / 8
        again = unpack(data, count, bits)
        assert again.dtype == dtype_for(bits)
        assert again.tolist() == low


@pytest.mark.parametrize("bits", [8, 23, 64])
@pytest.mark.parametrize("count", [BLOCK, BLOCK + 33])
def test_equals_the_definition_at_block_borders(bits, count):
    vector, low = vector_of(count, bits)
    assert pack(vector, bits) == planes(low, bits)


@pytest.mark.parametrize("bits", [8, 9, 23, 31, 32, 33, 63, 64])
@pytest.mark.parametrize("count", BORDERS)
def test_goes_there_and_back(bits, count):
    vector, low = vector_of(count, bits)
    data = pack(vector, bits)
    assert packed_size(count, bits) == len(data)
    assert unpack(data, count, bits).tolist() == low


def test_packing_does_not_change_the_vector():
    vector = np.full(100, 2**32 - 1, np.uint32)
    pack(vector, 20)
    assert (vector == 2**32 - 1).all()


@pytest.mark.parametrize("bits", [8, 9, 20, 32, 64])
@pytest.mark.parametrize("count", [0, 7, BLOCK, BLOCK + 7])
@pytest.mark.parametrize("change", [-1, 1, 4])
def test_refuses_other_lengths(bits, count, change):
    data = bytes(max(packed_size(count, bits) + change, 0 if count else 1))
    for read in (
        lambda: unpack(data, count, bits),
        lambda: values_at(data, slice(0, count), count, bits),
        lambda: add_packed(np.zeros(packed_size(count, bits), np.uint8), data, count, bits),
    ):
        with pytest.raises(ValueError, match="do not hold exactly"):
            read()


@pytest.mark.parametrize("count", [3, 33, 70, BLOCK - 1, BLOCK + 3])
def test_every_padding_bit_is_refused_and_no_other(count):
    """Behind the last value a block is filled up to 32 rows: those bits belong to nobody, in every plane."""
    bits = 9
    last = count - (count % BLOCK or BLOCK)
    lanes = math.ceil((count - last) / 32)
    start = packed_size(last, bits)
    zeros = bytes(packed_size(count, bits))
    places = {divmod(place, lanes) for place in range(count - last, 32 * lanes)}
    assert places
    for k in (0, 4, bits - 1):
        for row in range(32):
            for lane in {0, 1, lanes // 2, lanes - 2, lanes - 1} & set(range(lanes)):
                forged = bytearray(zeros)
                forged[start + 4 * (k * lanes + lane) + row // 8] |= 1 << row % 8
                assert without_padding(forged, count, bits) == (zeros if (row, lane) in places else forged)
                if (row, lane) in places:
                    with pytest.raises(ValueError, match="padding"):
                        unpack(forged, count, bits)
                else:
                    assert unpack(forged, count, bits)[last + row * lanes + lane] == 1 << k


def test_takes_any_bytes_at_any_address():
    count = BLOCK + 9
    vector, low = vector_of(count, 23)
    data = pack(vector, 23)
    for shifted in (bytearray(data), memoryview(data), memoryview(b"x" + data)[1:], memoryview(b"xyz" + data)[3:]):
        assert unpack(shifted, count, 23).tolist() == low
        total = np.zeros(len(data), np.uint8)
        add_packed(total, shifted, count, 23)
        assert total.tobytes() == data


@given(st.integers(8, 64), st.data())
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_planes_add_modulo_the_width(bits, data):
    count = data.draw(st.integers(1, 70))
    value = st.one_of(st.sampled_from([0, 1, 2**bits - 1]), st.integers(0, 2**bits - 1))
    vectors = data.draw(st.lists(st.lists(value, min_size=count, max_size=count), min_size=1, max_size=4))
    total = np.zeros(packed_size(count, bits), np.uint8)
    for vector in vectors:
        add_packed(total, pack(np.array(vector, dtype_for(bits)), bits), count, bits)
    assert total.tobytes() == planes([sum(column) % 2**bits for column in zip(*vectors, strict=True)], bits)


@pytest.mark.parametrize("bits", [8, 23, 32, 33, 64])
@pytest.mark.parametrize("count", BORDERS)
def test_planes_add_across_blocks(bits, count):
    vectors = [vector_of(count, bits, label)[0] for label in "abc"]
    total = np.zeros(packed_size(count, bits), np.uint8)
    for vector in vectors:
        add_packed(total, pack(vector, bits), count, bits)
    expected = modulo(vectors[0] + vectors[1] + vectors[2], bits)
    np.testing.assert_array_equal(unpack(total.tobytes(), count, bits), expected)


def test_a_refused_vector_leaves_no_trace():
    """The padding is in the last block, and the first is not added either."""
    count = BLOCK + 3
    good = pack(np.full(count, 2**23 - 1, np.uint32), 23)
    before = pack(np.arange(count, dtype=np.uint32), 23)
    total = np.frombuffer(bytearray(before), np.uint8)
    for bad in (good[:-1], good + b"\0", b"", good[:-1] + bytes([good[-1] | 0x80])):
        with pytest.raises(ValueError, match=r"do not hold|padding"):
            add_packed(total, bad, count, 23)
        assert total.tobytes() == before


@pytest.mark.parametrize("bits", [8, 23, 40, 64])
def test_a_few_values_are_read_from_the_planes(bits):
    count = BLOCK + 70
    vector, low = vector_of(count, bits)
    data = pack(vector, bits)
    for where in (slice(count - 8, count), slice(BLOCK - 3, BLOCK + 3), slice(0, 2), slice(5, 5)):
        found = values_at(data, where, count, bits)
        assert found.dtype == dtype_for(bits)
        assert found.tolist() == low[where]


def test_adding_needs_no_second_vector():
    count = 4_000_000
    total = np.zeros(packed_size(count, 23), np.uint8)
    y = bytes(len(total))
    tracemalloc.start()
    try:
        add_packed(total, y, count, 23)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 1 << 18


@pytest.mark.parametrize(("bits", "kind"), [(8, np.uint32), (32, np.uint32), (33, np.uint64), (64, np.uint64)])
def test_the_word_that_holds_a_value(bits, kind):
    assert dtype_for(bits) == kind
    assert modulo(np.array([2**bits - 1, 2**7], kind), 7).tolist() == [2**7 - 1, 0]
