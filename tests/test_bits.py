"""The dense bit stream against Python's big integers, one bit at a time."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from refquant.errors import BadInput
from refquant.formats.bits import pack_bits, packed_bytes, unpack_bits


def as_one_integer(codes, bits):
    """Code j at bits b*j .. b*j + b - 1 of one integer, written little-endian."""
    number = sum(int(code) << (bits * j) for j, code in enumerate(codes))
    return number.to_bytes((len(codes) * bits + 7) // 8, "little")


@given(st.integers(1, 8).flatmap(lambda b: st.tuples(st.just(b), st.lists(st.integers(0, 2**b - 1), max_size=70))))
def test_packing_is_one_big_integer_and_unpacking_its_inverse(case):
    bits, codes = case
    stream = pack_bits(np.array(codes, np.uint8), bits)
    assert stream.tobytes() == as_one_integer(codes, bits)
    assert stream.size == packed_bytes(len(codes), bits)
    assert unpack_bits(stream, bits, len(codes)).tolist() == codes


def test_every_row_is_its_own_stream():
    codes = np.random.default_rng(0).integers(0, 8, (3, 4, 11))
    stream = pack_bits(codes, 3)
    assert stream.shape == (3, 4, 5)
    for row in np.ndindex(3, 4):
        assert stream[row].tobytes() == as_one_integer(codes[row], 3)
    np.testing.assert_array_equal(unpack_bits(stream, 3, 11), codes)


def test_case_05_three_bit_codes_cross_words():
    """32 codes in three 32-bit words: 10 codes and 2 bits; 1 bit, 10 codes, 1 bit; 2 bits, 10 codes."""
    codes = np.arange(32) * 5 % 8
    first, second, third = (int(word) for word in pack_bits(codes, 3).view("<u4"))
    assert [first >> (3 * i) & 7 for i in range(10)] == codes[:10].tolist()
    assert first >> 30 | (second & 1) << 2 == codes[10]
    assert [second >> (1 + 3 * i) & 7 for i in range(10)] == codes[11:21].tolist()
    assert second >> 31 | (third & 3) << 1 == codes[21]
    assert [third >> (2 + 3 * i) & 7 for i in range(10)] == codes[22:].tolist()


def test_four_bit_codes_fill_the_low_half_first():
    assert pack_bits(np.array([1, 2, 3]), 4).tolist() == [0x21, 0x03]


@pytest.mark.parametrize("codes", [[8], [-1], [0, 300]])
def test_codes_that_do_not_fit_are_refused(codes):
    with pytest.raises(BadInput, match=r"0\.\.7"):
        pack_bits(np.array(codes), 3)


@pytest.mark.parametrize("size", [0, 2, 4])
def test_a_stream_of_another_length_is_refused(size):
    with pytest.raises(BadInput, match="take 3 bytes"):
        unpack_bits(np.zeros(size, np.uint8), 3, 8)
